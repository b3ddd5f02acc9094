"""Values that come in blocks have the numbers of a dictionary that is filled one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.tables.numbering import Numbering


@pytest.mark.parametrize("kind", [np.int64, object])
@given(blocks=st.lists(st.lists(st.integers(-3, 60), max_size=30), max_size=8), known=st.sets(st.integers(0, 9)))
def test_each_value_has_the_number_of_its_first_appearance(kind, blocks, known):
    def values(numbers):
        return np.array([number if kind is np.int64 else f"v{number}" for number in numbers], dtype=kind)

    numbering = Numbering(values(known)) if known else Numbering()
    expected = {value: number for number, value in enumerate(values(known))}
    for block in map(values, blocks):
        numbers = [expected.setdefault(value, len(expected)) for value in block]
        np.testing.assert_array_equal(numbering.number(block), numbers)
    assert numbering.values.tolist() == list(expected)
