"""By what can be cut: every kind of column, values in people's order, and nothing lost when rare ones are pooled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import FeatureSettings
from features.sequences.ragged import offsets_of
from training.audit.facets import (
    Facet,
    activity_facet,
    column_facets,
    emptiness_facet,
    item_age_facet,
    pause_facet,
    popularity_facet,
)
from training.evaluation.metrics import wilson_interval


def spelled(facet: Facet) -> list[list[str]]:
    """The values of each entity by name."""
    starts = zip(facet.offsets, facet.offsets[1:], strict=False)
    return [[facet.labels[code] for code in facet.codes[start:end]] for start, end in starts]


def facets_of(column: list[object], kind: str, separator: str | None = None) -> list[Facet]:
    settings = {"x": FeatureSettings.model_validate({"kind": kind, "separator": separator})}
    return column_facets(pd.DataFrame({"item_id": range(len(column)), "x": column}), settings, "item")


def test_values_are_in_the_order_of_people_and_empty_cells_are_missing():
    (facet,) = facets_of(["10", "9", None, "size 2", "size 10", "9"], "category")
    assert facet.labels == ("9", "10", "size 2", "size 10", "(missing)")
    assert spelled(facet) == [["10"], ["9"], ["(missing)"], ["size 2"], ["size 10"], ["9"]]


def test_a_cell_of_several_values_belongs_to_each():
    (facet,) = facets_of(["b|a", "", "a", None], "categories", "|")
    assert [sorted(values) for values in spelled(facet)] == [["a", "b"], ["(missing)"], ["a"], ["(missing)"]]


def test_numbers_are_cut_into_quarters_of_the_rows():
    # Quarters of 1 to 8 end at 2, 4 and 6.
    (facet,) = facets_of([*range(1, 9), None], "number")
    assert facet.labels == ("up to 2", "over 2 to 4", "over 4 to 6", "over 6", "(missing)")
    assert [values[0] for values in spelled(facet)[::2]] == [
        "up to 2",
        "over 2 to 4",
        "over 4 to 6",
        "over 6",
        "(missing)",
    ]


def test_few_different_numbers_are_told_one_by_one():
    (facet,) = facets_of([1.5, 2, 2, None], "number")
    assert facet.labels == ("1.5", "2", "(missing)")


def test_most_of_one_number_does_not_cut_it_in_two():
    (facet,) = facets_of([0] * 90 + list(range(1, 11)), "number")
    assert facet.labels == ("up to 0", "over 0")
    assert np.bincount(facet.codes).tolist() == [90, 10]


def test_dates_are_cut_like_numbers_and_said_as_dates():
    (facet,) = facets_of(list(pd.date_range("2024-01-01", periods=8)), "time")
    assert facet.labels[:2] == ("up to 2024-01-02", "over 2024-01-02 to 2024-01-04")


def test_texts_are_cut_by_their_length_in_words():
    (facet,) = facets_of(["one", "two words", "three little words", "now there are four", None, "  "], "text")
    assert facet.name == "x length"
    assert facet.labels == ("(missing)", "up to 1 words", "over 1 to 2 words", "over 2 to 3 words", "over 3 words")
    assert spelled(facet)[-2:] == [["(missing)"], ["(missing)"]]


def test_texts_that_come_again_are_values():
    (facet,) = facets_of(["Garden > Pots > Hanging", "Sports > Running > Belts"] * 4, "text")
    assert facet.labels == ("Garden > Pots > Hanging", "Sports > Running > Belts")


def test_of_vectors_only_whether_there_is_one():
    (facet,) = facets_of([[1.0], None, [2.0]], "vector")
    assert spelled(facet) == [["known"], ["(missing)"], ["known"]]
    assert facets_of([[1.0], [2.0]], "vector") == []


def test_columns_that_the_model_does_not_read_are_read_as_init_would():
    frame = pd.DataFrame(
        {
            "item_id": range(40),
            "colour": ["red", "blue"] * 20,
            "popularity": [n * n for n in range(40)],
            "code": [f"c{n}" for n in range(40)],
        }
    )
    names = [facet.name for facet in column_facets(frame, {}, "item")]
    # A code of its own in every row says nothing; what knows the future does no harm here.
    assert names == ["colour", "popularity"]


def test_equally_popular_items_are_on_the_same_side():
    facet = popularity_facet(np.array([1] * 10))
    assert facet.labels == ("head",)
    # 6 of 10 interactions are before the two of the second; three seeds' items are each divided by themselves.
    both = popularity_facet(np.array([6, 2, 2, 0, 6, 2, 2]), np.array([0, 0, 0, 0, 1, 1, 1]))
    assert [values[0] for values in spelled(both)] == [
        "head",
        "torso",
        "torso",
        "no interactions",
        "head",
        "torso",
        "torso",
    ]


def test_activity_and_age_are_told_in_ranges():
    assert [value[0] for value in spelled(activity_facet(np.array([0, 1, 4, 5, 19, 200, 999])))] == [
        "no history", "1 to 4", "1 to 4", "5 to 19", "5 to 19", "200 or more", "200 or more"
    ]  # fmt: skip
    ages = np.array([np.nan, 0.0, 0.99, 1.0, 6.9, 7.0, 365.0]) * 86_400
    assert [value[0] for value in spelled(item_age_facet(ages))] == [
        "not seen before", "under a day", "under a day", "1 to 6 days", "1 to 6 days", "7 to 29 days",
        "365 or more days",
    ]  # fmt: skip


def test_a_pause_is_the_time_since_the_last_interaction():
    pauses = np.array([np.nan, 0.0, 3_599.0, 3_600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0])
    assert [value[0] for value in spelled(pause_facet(pauses))] == [
        "no history", "under an hour", "under an hour", "under a day", "1 to 6 days", "7 to 29 days", "30 or more days",
    ]  # fmt: skip


def test_cells_are_empty_where_nothing_stands():
    frame = pd.DataFrame(
        {"item_id": [1, 2, 3], "a": ["x", " ", None], "b": [1.0, np.nan, np.nan], "c": [[1], [], None]}
    )
    assert spelled(emptiness_facet(frame, "item")) == [["0"], ["2"], ["3 or more"]]


memberships = st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=1, max_size=12)


@given(memberships, st.lists(st.booleans(), min_size=6, max_size=6))
def test_pooling_loses_nobody_and_counts_nobody_twice(rows: list[set[int]], kept: list[bool]):
    codes = np.array([code for row in rows for code in sorted(row)], dtype=np.int64)
    facet = Facet("x", tuple("abcdef"), offsets_of(np.array([len(row) for row in rows])), codes)
    pooled = facet.pooled(np.array(kept))
    for before, after in zip(spelled(facet), spelled(pooled), strict=True):
        told = [value for value in before if kept["abcdef".index(value)]]
        others = len(before) > len(told)
        assert sorted(after) == sorted([*told, *(["(other)"] if others else [])])


@given(memberships, st.lists(st.integers(0, 11), max_size=20))
def test_taking_entities_gives_each_its_own_values(rows: list[set[int]], chosen: list[int]):
    codes = np.array([code for row in rows for code in sorted(row)], dtype=np.int64)
    facet = Facet("x", tuple("abcdef"), offsets_of(np.array([len(row) for row in rows])), codes)
    chosen = [entity % len(rows) for entity in chosen]
    expected = [spelled(facet)[entity] for entity in chosen]
    assert spelled(facet.take(np.array(chosen, dtype=np.int64))) == expected


def test_the_interval_of_wilson_holds_as_often_as_it_says():
    # Twenty questions, each answered with probability 0.1: of many such evaluations 95 % should hold 0.1 inside.
    hits = np.random.default_rng(0).binomial(20, 0.1, 20_000) / 20
    low, high = wilson_interval(hits, np.full(20_000, 20.0))
    assert np.mean((low <= 0.1) & (high >= 0.1)) == pytest.approx(0.95, abs=0.03)
