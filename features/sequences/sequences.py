"""Interactions as the model reads them: one ordered row of items per user, jagged, without padding.

`Sequences` is the working form of an `Interactions` table; `Queries` is a set of questions with known answers.
A `Split` (see `features.sequences.split`) is one `Sequences` to learn from and `Queries` to be judged by.

An `item_row` is the 0-based position of an item in the catalogue. In `training/loop` the catalogue is that of the known
items, those with interactions (`training.loop.build`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from features.sequences.ragged import offsets_of, ragged_arange

UNKNOWN_TIME = -(2**63)
"""An unknown time among Unix seconds; numpy's "not a time"."""


@dataclass(frozen=True)
class Sequences:
    """The interactions of each user, in order.

    User `u` did `item_rows[offsets[u]:offsets[u + 1]]`, oldest first. A user may have no events.

    Attributes:
        user_ids: External ids, `[users]`, int64 or object (str).
        offsets: Where each user's events begin, `[users + 1]`, from 0 to the number of events.
        item_rows: Catalogue positions, `[events]`.
        times: Unix seconds of each event, `[events]`; None where the data has no times.
        is_ordered: Whether the order within a user means anything. Without time or position it is the order of
            the file, and training should shuffle.
    """

    user_ids: np.ndarray
    offsets: Int[np.ndarray, "users_plus_1"]
    item_rows: Int[np.ndarray, "events"]
    times: Int[np.ndarray, "events"] | None
    is_ordered: bool

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """The number of events of all users."""
        return len(self.item_rows)

    @property
    def lengths(self) -> Int[np.ndarray, "users"]:
        """The number of events of each user."""
        return np.diff(self.offsets)

    @property
    def event_users(self) -> Int[np.ndarray, "events"]:
        """The position of each event's user in `user_ids`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def items_of(self, user: int) -> Int[np.ndarray, "history"]:
        """Return the catalogue rows of the user at position `user`, oldest first."""
        return self.item_rows[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: Int[np.ndarray, "chosen"]) -> Sequences:
        """Return the users at the given positions, in that order."""
        if len(users) == 1:
            return self._take_one(users)
        starts = self.offsets[users]
        lengths = self.offsets[users + 1] - starts  # not `self.lengths`, which is computed for all users
        events = ragged_arange(starts, lengths)
        return replace(
            self,
            user_ids=self.user_ids[users],
            offsets=offsets_of(lengths),
            item_rows=self.item_rows[events],
            times=None if self.times is None else self.times[events],
        )

    def _take_one(self, users: Int[np.ndarray, "one"]) -> Sequences:
        """Return one user, as `take` does, without copying."""
        start, end = self.offsets[users[0]], self.offsets[users[0] + 1]
        return Sequences(
            self.user_ids[users],
            np.array([0, end - start]),
            self.item_rows[start:end],
            None if self.times is None else self.times[start:end],
            self.is_ordered,
        )

    def keep(self, events: np.ndarray) -> Sequences:
        """Return the same users with only the events where the boolean `events`, `[events]`, is true."""
        kept = np.bincount(self.event_users[events], minlength=len(self))
        return replace(
            self,
            offsets=offsets_of(kept),
            item_rows=self.item_rows[events],
            times=None if self.times is None else self.times[events],
        )

    def last(self, length: int) -> Sequences:
        """Return every user's newest `length` events."""
        if self.num_events <= length or self.lengths.max(initial=0) <= length:
            return self
        position_from_end = np.repeat(self.offsets[1:], self.lengths) - np.arange(self.num_events)
        return self.keep(position_from_end <= length)

    def first_visits(self) -> np.ndarray:
        """Return a boolean `[events]`: whether the event is the user's first with that item."""
        pairs = self.event_users.astype(np.int64) * (int(self.item_rows.max(initial=0)) + 1) + self.item_rows
        first = np.zeros(self.num_events, dtype=bool)
        first[np.unique(pairs, return_index=True)[1]] = True
        return first


@dataclass(frozen=True)
class Queries:
    """Evaluation queries: a history for each user, and the target items.

    Attributes:
        history: What may be seen, one row per question (possibly empty). A `SeenItems` says which of its items are
            excluded from the ranking.
        target_offsets: Where each question's answers begin, `[questions + 1]`.
        target_rows: Catalogue rows to be found, `[targets]`, at least one per question, none twice.
        times: Unix seconds at which each question is asked, `[questions]`; None where the data has no times.
    """

    history: Sequences
    target_offsets: Int[np.ndarray, "questions_plus_1"]
    target_rows: Int[np.ndarray, "targets"]
    times: Int[np.ndarray, "questions"] | None

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.history)

    def take(self, questions: Int[np.ndarray, "chosen"]) -> Queries:
        """Return the queries at the given positions, in that order."""
        lengths = np.diff(self.target_offsets)[questions]
        targets = ragged_arange(self.target_offsets[:-1][questions], lengths)
        return Queries(
            history=self.history.take(questions),
            target_offsets=offsets_of(lengths),
            target_rows=self.target_rows[targets],
            times=None if self.times is None else self.times[questions],
        )
