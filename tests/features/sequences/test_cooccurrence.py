"""Neighbours in histories against loops over pairs, whatever the blocks, and the memory that counting takes."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from features.sequences import cooccurrence
from features.sequences.cooccurrence import blocks_of, neighbour_counts, strongest
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences

histories = st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=6)


def sequences_of(rows: list[list[int]]) -> Sequences:
    events = np.array([item for row in rows for item in row], dtype=np.int64)
    return Sequences(np.arange(len(rows)), offsets_of(np.array([len(row) for row in rows])), events, None, True)


@given(
    histories,
    st.dictionaries(st.sampled_from([-3, -1, 1, 2, 5]), st.integers(1, 9), min_size=1),
    st.integers(1, 40),
)
def test_counts_are_those_of_a_loop_over_pairs_whatever_the_blocks(
    rows: list[list[int]], weights: dict[int, int], block_pairs: int
) -> None:
    expected = np.zeros((7, 7), dtype=np.int64)  # item 6 occurs nowhere
    for row in rows:
        for place, item in enumerate(row):
            for distance, weight in weights.items():
                if 0 <= place + distance < len(row):
                    expected[item, row[place + distance]] += weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "BLOCK_PAIRS", block_pairs)
        blocks = list(neighbour_counts(sequences_of(rows), 7, weights))
    ends = np.cumsum([counts.shape[0] for _, counts in blocks])
    assert [first for first, _ in blocks] == [0, *ends[:-1]]
    assert np.array_equal(np.concatenate([counts.toarray() for _, counts in blocks]), expected)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_blocks_cover_all_rows_and_are_as_large_as_allowed(lengths: list[int], most: int) -> None:
    begins = offsets_of(np.array(lengths, dtype=np.int64))
    blocks = list(blocks_of(begins, most))
    assert [row for first, end in blocks for row in range(first, end)] == list(range(len(lengths)))
    for first, end in blocks:
        assert end == first + 1 or sum(lengths[first:end]) <= most
        assert end == len(lengths) or sum(lengths[first : end + 1]) > most


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=5), st.integers(1, 6))
def test_the_strongest_are_the_first_of_a_stable_sort(rows: list[list[int]], most: int) -> None:
    dense = np.array(rows)
    expected = np.zeros_like(dense)
    for row, values in enumerate(dense):
        kept = [place for place in np.argsort(-values, kind="stable")[:most] if values[place]]
        expected[row, kept] = values[kept]
    assert np.array_equal(strongest(sp.csr_array(dense), most).toarray(), expected)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "BLOCK_PAIRS", 1 << 14)
    rng = np.random.default_rng(0)

    def peak(events: int) -> int:
        rows = rng.integers(0, 2_000, events)
        sequences = Sequences(np.arange(events // 50), np.arange(0, events + 1, 50), rows, None, is_ordered=True)
        tracemalloc.start()
        for _, counts in neighbour_counts(sequences, 2_000, dict.fromkeys(range(1, 21), 1)):
            del counts
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(20_000), peak(100_000)
    assert many - few < 80_000 * 24, "the order of the events, and sorting it, but none of the twenty pairs of each"
