"""Seen-item filtering: the items of a user's history that may be recommended again, and those that may not.

The setting `recommend_seen` names a policy, a `SeenItems`. Splits and batches ask it which events can be prediction
targets; evaluation, training of re-rankers and the service ask it which items to exclude from a ranking. No other file
knows which policies there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from features.config import RecommendSeen
from features.sequences.ragged import Ragged
from features.sequences.sequences import Sequences


@dataclass(frozen=True)
class SeenItems(ABC):
    """A policy for items that are already in a user's history.

    Both methods must agree: an event is a possible target exactly if `excluded`, of the events before it and at its
    time, does not hold its item.

    Attributes:
        label: Name of the policy. Lists that were precomputed with one label are not used with another.
        depends_on_time: Whether the time of the request changes what is excluded. Nothing is precomputed then.
    """

    label: str
    depends_on_time: ClassVar[bool] = False

    @staticmethod
    def of(recommend_seen: RecommendSeen) -> SeenItems:
        """Return the policy that a setting names."""
        match recommend_seen:
            case True:
                return REPEAT
            case False:
                return EXCLUDE

    @abstractmethod
    def possible_targets(self, sequences: Sequences) -> Bool[np.ndarray, "events"]:
        """Return which events a model can be asked to predict from the events before them, as a new array."""

    @abstractmethod
    def excluded(self, histories: Sequences, request_times: Int[np.ndarray, "users"] | int | None) -> Ragged:
        """Return the items that must not be recommended, a row for each history; an item may stand there twice.

        Args:
            histories: All events of each user before the request. Their times are None where the data has none;
                single ones may be `UNKNOWN_TIME`.
            request_times: Unix seconds of each user's request, or of all requests; None where the data has no times.
        """


class _Exclude(SeenItems):
    def possible_targets(self, sequences: Sequences) -> Bool[np.ndarray, "events"]:
        return sequences.first_visits()

    def excluded(self, histories: Sequences, request_times: Int[np.ndarray, "users"] | int | None) -> Ragged:
        return Ragged(histories.offsets, histories.item_rows)


class _Repeat(SeenItems):
    def possible_targets(self, sequences: Sequences) -> Bool[np.ndarray, "events"]:
        return np.ones(sequences.num_events, dtype=bool)

    def excluded(self, histories: Sequences, request_times: Int[np.ndarray, "users"] | int | None) -> Ragged:
        return Ragged.empty(len(histories))


EXCLUDE: SeenItems = _Exclude("exclude")
"""Items of the history are never recommended again."""
REPEAT: SeenItems = _Repeat("repeat")
"""Items of the history are recommended like any other, as in shops with repeat purchases."""
