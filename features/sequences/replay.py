"""Which interactions an epoch of incremental training predicts: the new ones, and a sample of the old ones.

Trained on new interactions alone, a model forgets the old ones. Repeating a sample of these is the simplest remedy that
works, known as experience replay or rehearsal (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from features.sequences.sequences import Sequences


@dataclass(frozen=True)
class Replay:
    """New interactions, and how many old ones are repeated with them.

    Old ones are drawn by users, because a history is read as a whole. A user with new interactions who is not drawn
    has the old ones as input only.

    Attributes:
        is_new: Which interactions are new, `[events]`.
        chance: Chance of each user that the old interactions are predicted in an epoch as well.
    """

    is_new: Bool[np.ndarray, "events"]
    chance: float

    @classmethod
    def of(cls, is_new: Bool[np.ndarray, "events"], ratio: float) -> Replay:
        """Return a replay of about `ratio` old interactions for each new one."""
        num_new = int(is_new.sum())
        return cls(is_new, min(1.0, ratio * num_new / max(len(is_new) - num_new, 1)))

    def by_user(self, sequences: Sequences) -> Replay:
        """Return the replay in which every interaction of a user who has new ones counts as new."""
        has_new = np.bincount(sequences.event_users[self.is_new], minlength=len(sequences)) > 0
        return Replay(np.repeat(has_new, sequences.lengths), self.chance)

    def draw(self, sequences: Sequences, generator: np.random.Generator) -> Bool[np.ndarray, "events"]:
        """Return which of the interactions one epoch predicts."""
        is_replayed = generator.random(len(sequences)) < self.chance
        return self.is_new | np.repeat(is_replayed, sequences.lengths)

    def chances(self, events: slice) -> np.ndarray:
        """Return the chance of some interactions to be predicted in an epoch."""
        return np.where(self.is_new[events], 1.0, self.chance)


def users_of(sequences: Sequences, events: Bool[np.ndarray, "events"]) -> Int[np.ndarray, "users"]:
    """Return the positions of the users who have any of the events."""
    found: np.ndarray = np.flatnonzero(np.bincount(sequences.event_users[events], minlength=len(sequences)))
    return found
