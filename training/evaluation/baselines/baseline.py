"""A kind of baseline: which hyperparameters it has, what it needs, and how it is fitted.

CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from features.sequences.split import Split
from training.evaluation.baselines.tuning import Grid
from training.evaluation.evaluate import ScoringModel

GIB = 2**30


class LeftOutError(Exception):
    """A baseline cannot be used on this data; the message is the reason, empty where it needs no mention."""


@dataclass(frozen=True)
class BaselineData:
    """What baselines are fitted on.

    Attributes:
        split: Training data and validation questions.
        texts: What is written of each item, `[items]`, as `item_texts` gives it; None: nothing is.
        memory_bytes: Most memory that the matrices of a baseline may take.
        notes: What baselines leave out of the data to stay within their bounds, a line each, which the report shows.
    """

    split: Split
    texts: Sequence[str] | None
    memory_bytes: float
    notes: list[str] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.split.candidates)

    def check_memory(self, needed_bytes: float, of_what: str) -> None:
        """Raise `LeftOutError` if a baseline needs more memory than it may take."""
        if needed_bytes > self.memory_bytes:
            raise LeftOutError(
                f"{of_what} would take {needed_bytes / GIB:,.1f} GiB, more than the {self.memory_bytes / GIB:g} GiB "
                "that a baseline may take"
            )


@dataclass(frozen=True)
class Baseline:
    """A kind of baseline.

    Attributes:
        name: Its name in reports.
        prepare: Computes what does not depend on hyperparameters, and returns the function that fits a recommender
            with given ones. Raises `LeftOutError` where the data does not allow it.
        grids: The values tried of each hyperparameter, by the name of the argument, the most important first.
        rounds: How often the hyperparameters are gone through at most.
        finds_cold_items: Whether it can recommend items without training interactions. The others are not tuned where
            all answers are such items.
    """

    name: str
    prepare: Callable[[BaselineData], Callable[..., ScoringModel]]
    grids: Mapping[str, Grid] = field(default_factory=dict)
    rounds: int = 2
    finds_cold_items: bool = False
