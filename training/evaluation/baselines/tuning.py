"""Hyperparameters of baselines, chosen on validation questions.

One hyperparameter after the other is varied, the rest being at the best so far, until a round changes nothing. A grid
whose best value is at an edge grows beyond it, so that no baseline is held back by the choice of its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from features.sequences.sequences import Queries
from features.sequences.split import Split
from training.evaluation.evaluate import ScoringModel, evaluate

MOST_CELLS = 10**8
"""Most scores that a trial computes; of more validation questions a sample is asked."""
LEAST_QUESTIONS = 500
"""The sample is not smaller than that, however large the catalogue."""

Trial = TypeVar("Trial", bound=ScoringModel)


@dataclass(frozen=True)
class Grid:
    """The values that are tried of a hyperparameter.

    Attributes:
        values: Those tried in any case, ascending.
        default: The value that the search begins with, and the one where nothing can be tried.
        lowest: The grid does not grow below.
        highest: The grid does not grow above.
        growth: An edge times or divided by it is the next value beyond.
        unit: What it counts, for the report.
        needs_order: Whether the hyperparameter means something only where histories are ordered.
    """

    values: tuple[float, ...]
    default: float
    lowest: float
    highest: float
    growth: float = 2.0
    unit: str = ""
    needs_order: bool = False

    def beyond(self, tried: set[float], best: float) -> float | None:
        """Return the next value to try if the best one is an edge of those tried; None if there is none.

        Example:
            >>> grid = Grid((1, 2, 4), 2, lowest=0.5, highest=8)
            >>> grid.beyond({1, 2, 4}, 4), grid.beyond({1, 2, 4}, 1), grid.beyond({1, 2, 4, 8}, 8)
            (8.0, 0.5, None)
        """
        steps = ((min(tried), best / self.growth), (max(tried), best * self.growth))
        return next(
            (
                value
                for edge, value in steps
                if best == edge and self.lowest <= value <= self.highest and value not in tried
            ),
            None,
        )


@dataclass(frozen=True)
class Choice(Generic[Trial]):
    """The outcome of a search.

    Attributes:
        model: The recommender with the best hyperparameters.
        settings: Those hyperparameters, by name.
        ndcg: Its NDCG@10 on the validation questions.
        tried: The values tried, ascending, by hyperparameter.
        is_complete: Whether the search ended by itself rather than by the time.
    """

    model: Trial
    settings: dict[str, float]
    ndcg: float
    tried: dict[str, list[float]]
    is_complete: bool


def search(
    fit: Callable[..., Trial],
    grids: Mapping[str, Grid],
    ndcg_of: Callable[[Trial], float],
    *,
    rounds: int = 2,
    has_time: Callable[[], bool] = lambda: True,
) -> Choice[Trial]:
    """Return the best recommender; among equals the one tried first, which is the default before all others.

    Args:
        fit: Returns the recommender with the hyperparameters that it is given by name.
        grids: By hyperparameter.
        ndcg_of: What is maximised.
        rounds: How often the hyperparameters are gone through at most.
        has_time: Whether another trial may begin. The first one always runs.
    """
    search = _Search(fit, ndcg_of, {name: grid.default for name, grid in grids.items()})
    is_complete = True
    for _ in range(rounds):
        before = search.best
        for name, grid in grids.items():
            for value in search.values(name, grid):
                is_complete = has_time()
                if not is_complete:
                    break
                search.attempt({**search.best, name: value})
        if search.best == before or not is_complete:
            break
    tried = {name: sorted({settings[place] for settings in search.ndcg}) for place, name in enumerate(grids)}
    return Choice(search.model, search.best, search.ndcg[tuple(search.best.values())], tried, is_complete)


class _Search(Generic[Trial]):
    """The best settings so far, and what each of those tried reached."""

    def __init__(self, fit: Callable[..., Trial], ndcg_of: Callable[[Trial], float], start: dict[str, float]) -> None:
        self._fit, self._ndcg_of = fit, ndcg_of
        self.best, self.model = start, fit(**start)
        self.ndcg = {tuple(start.values()): ndcg_of(self.model)}

    def values(self, name: str, grid: Grid) -> Iterator[float]:
        """Yield the values of a hyperparameter that were not tried with the best ones of the others."""
        place = list(self.best).index(name)

        def tried() -> set[float]:
            others = {**self.best, name: None}.values()
            return {one[place] for one in self.ndcg if all(b in (None, a) for a, b in zip(one, others, strict=True))}

        yield from (value for value in grid.values if value not in tried())
        while (value := grid.beyond(tried(), self.best[name])) is not None:
            yield value

    def attempt(self, settings: dict[str, float]) -> None:
        model = self._fit(**settings)
        ndcg = self.ndcg[tuple(settings.values())] = self._ndcg_of(model)
        if ndcg > self.ndcg[tuple(self.best.values())]:
            self.best, self.model = settings, model


def sample(queries: Queries, num_items: int, *, most_cells: int = MOST_CELLS) -> Queries:
    """Return the questions, or a random part where they would take more than so many scores of items."""
    return queries.sample(max(LEAST_QUESTIONS, most_cells // num_items), seed=0)


def sample_notes(asked: Queries, everything: Queries, part: str) -> list[str]:
    """Return whether not all questions of a part are asked."""
    if len(asked) == len(everything):
        return []
    note = (
        f"{len(asked):,} of the {len(everything):,} {part} questions are asked, drawn at random, to save time; the "
        "intervals are those of so many."
    )
    return [note]


def ndcg_on(split: Split, questions: Queries, *, progress: tqdm[Any] | None = None) -> Callable[[ScoringModel], float]:
    """Return the function that gives a recommender's NDCG@10 on validation questions, and moves a bar by one."""

    def ndcg(model: ScoringModel) -> float:
        result = evaluate(
            model, questions, split.candidates, seen_items=split.seen_items, cutoffs=(10,), with_coverage=False
        )
        if progress is not None:
            progress.update()
        return result.means["ndcg_at_10"]

    return ndcg
