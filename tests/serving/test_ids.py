from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ids import IdMap


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1))
def test_whole_numbers_are_found_as_numbers_and_as_text(numbers):
    ids = IdMap(np.array(numbers, dtype=np.int64))
    assert [ids.row(number) for number in numbers] == list(range(len(numbers)))
    assert [ids.row(str(number)) for number in numbers] == list(range(len(numbers)))
    assert ids.to_array(numbers).dtype == np.int64


@given(st.lists(st.text(), unique=True))
def test_text_is_found_letter_by_letter(texts):
    ids = IdMap(np.array(texts, dtype=object))
    assert [ids.row(text) for text in texts] == list(range(len(texts)))


def test_a_number_finds_the_text_that_spells_it():
    ids = IdMap(np.array(["7", "07"], dtype=object))
    assert (ids.row(7), ids.row("7"), ids.row("07"), ids.row(8)) == (0, 0, 1, None)


def test_unknown_ids_are_named_once_in_their_order():
    ids = IdMap(np.array([1, 2, 3]))
    assert ids.rows(["3", 9, 1, "x", 9, 3]) == ([2, 0, 2], [9, "x"])


def test_repeated_ids_are_our_own_mistake():
    with pytest.raises(AssertionError, match="1 ids occur twice"):
        IdMap(np.array([1, 1]))
