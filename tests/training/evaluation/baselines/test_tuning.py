"""The search for hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from training.evaluation.baselines.tuning import Grid, search


def searched(grids: dict[str, Grid], ndcg: Callable[..., float], **options: Any) -> Any:
    """Search with the settings themselves in the place of recommenders."""
    return search(lambda **settings: settings, grids, lambda settings: ndcg(**settings), **options)


def test_a_grid_grows_while_its_best_value_is_at_an_edge():
    grid = {"a": Grid((1, 2, 4), 2, lowest=0.01, highest=100, growth=3)}
    choice = searched(grid, lambda a: -abs(a - 30))
    assert (choice.settings, choice.tried) == ({"a": 36}, {"a": [1, 2, 4, 12, 36]})
    choice = searched(grid, lambda a: -abs(a - 0.2))
    assert choice.tried["a"] == pytest.approx([1 / 27, 1 / 9, 1 / 3, 1, 2, 4])


def test_a_grid_does_not_grow_beyond_its_limits_or_inside():
    choice = searched({"a": Grid((1, 2, 4), 2, lowest=0.5, highest=8)}, lambda a: a)
    assert choice.tried == {"a": [1, 2, 4, 8]}
    assert choice.is_complete
    endless = Grid((1, 2, math.inf), 2, lowest=0.5, highest=math.inf)
    assert searched({"a": endless}, lambda a: a).tried == {"a": [1, 2, math.inf]}
    assert searched({"a": Grid((1, 2, 4), 1, lowest=0, highest=9)}, lambda a: a == 2).tried == {"a": [1, 2, 4]}


def test_the_rounds_go_on_until_nothing_changes():
    # The best of each depends on the other: from (1, 1) one round leads to (2, 2), the next to (3, 3).
    grids = {"a": Grid((1, 2, 3), 1, lowest=1, highest=3), "b": Grid((1, 2, 3), 1, lowest=1, highest=3)}

    def ndcg(a: float, b: float) -> float:
        return {(1, 1): 0, (2, 1): 1, (2, 2): 2, (3, 2): 3, (3, 3): 4}.get((a, b), -1)

    assert searched(grids, ndcg, rounds=1).settings == {"a": 2, "b": 2}
    assert searched(grids, ndcg, rounds=3).settings == {"a": 3, "b": 3}


def test_the_first_among_equals_is_chosen_and_nothing_is_tried_twice():
    tried = []
    choice = searched(
        {"a": Grid((1, 2), 2, lowest=1, highest=2), "b": Grid((1, 2), 1, lowest=1, highest=2)},
        lambda a, b: tried.append((a, b)) or 0.5,
    )
    assert choice.settings == {"a": 2, "b": 1}
    assert len(tried) == len(set(tried))


def test_when_the_time_is_over_the_best_so_far_is_taken():
    left = iter([True, True, False])
    choice = searched({"a": Grid((1, 2, 3, 4), 1, lowest=1, highest=4)}, lambda a: a, has_time=lambda: next(left))
    assert (choice.settings, choice.is_complete) == ({"a": 3}, False)
