"""Interactions as the model reads them: one ordered row of items per user, jagged, without padding.

`Sequences` is the working form of an `Interactions` table; `Queries` is a set of questions with known answers.
A `Split` (see `features.sequences.split`) is one `Sequences` to learn from and `Queries` to be judged by.

An `item_row` is the 0-based position of an item in the catalogue. In `training/loop` the catalogue is that of the known
items, those with interactions (`training.loop.build`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int

from features.sequences.ragged import offsets_of, ragged_arange

BLOCK_EVENTS = 1 << 22
"""Events that are worked on at once, about: with their intermediate results, a few hundred megabytes."""
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
        folder: Where the arrays of events lie on disk, mapped into memory, as do those that are made of all of them.
            None: they are in memory.
    """

    user_ids: np.ndarray
    offsets: Int[np.ndarray, "users_plus_1"]
    item_rows: Int[np.ndarray, "events"]
    times: Int[np.ndarray, "events"] | None
    is_ordered: bool
    folder: Path | None = None

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
            self.folder,
        )

    def blocks(self) -> Iterator[Sequences]:
        """Yield all users, in order, in blocks of about `BLOCK_EVENTS` events, without a copy."""
        if self.num_events <= BLOCK_EVENTS:
            yield self
            return
        start = 0
        while start < len(self):
            most = self.offsets[start] + BLOCK_EVENTS
            end = max(start + 1, int(np.searchsorted(self.offsets, most, side="right")) - 1)
            begin, stop = self.offsets[start], self.offsets[end]
            yield replace(
                self,
                user_ids=self.user_ids[start:end],
                offsets=self.offsets[start : end + 1] - begin,
                item_rows=self.item_rows[begin:stop],
                times=None if self.times is None else self.times[begin:stop],
            )
            start = end

    def item_counts(self, num_items: int) -> Int[np.ndarray, "items"]:
        """Return the number of events of each item of a catalogue of this size."""
        counts = np.zeros(num_items, dtype=np.int64)
        for block in self.blocks():
            counts += np.bincount(block.item_rows, minlength=num_items)
        return counts

    def with_item_rows(self, rows: Callable[[Sequences], Int[np.ndarray, "events"]]) -> Sequences:
        """Return the same events of other items.

        Args:
            rows: Gets the users block by block and returns the item of each of their events.
        """
        found = EventArray(self.folder, self.item_rows.dtype)
        for block in self.blocks():
            found.append(rows(block))
        return replace(self, item_rows=found.whole())

    def shuffled(self, rng: np.random.Generator) -> Sequences:
        """Return every user's events in a random order of their own."""
        found = SequencesOf(self)
        for block in self.blocks():
            order = np.lexsort((rng.random(block.num_events), block.event_users))
            times = None if block.times is None else block.times[order]
            found.append(replace(block, item_rows=block.item_rows[order], times=times))
        return found.whole()

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


class EventArray:
    """An array of one entry for each of many events, which is put together piece by piece.

    Args:
        folder: Where it is kept, in a file without a name that goes with the array. None: in memory.
        kind: Type of the entries, on disk; in memory they keep their own.
    """

    def __init__(self, folder: Path | None, kind: np.dtype) -> None:
        self._folder, self._kind, self._length = folder, kind, 0
        self._file: IO[bytes] | None = None
        self._pieces: list[np.ndarray] = []

    def append(self, values: np.ndarray) -> None:
        """Add entries at the end."""
        self._length += len(values)
        if self._folder is None or not len(values):
            self._pieces.append(values)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder.parent)  # noqa: SIM115 (closed with the array)
        self._file.write(np.ascontiguousarray(values, dtype=self._kind).data)

    def whole(self) -> np.ndarray:
        """Return the array, after the last piece."""
        if self._file is None:
            pieces = self._pieces or [np.zeros(0, self._kind)]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        with self._file as file:
            file.flush()
            return np.memmap(file, self._kind, "c", shape=(self._length,)).view(np.ndarray)


class SequencesOf:
    """Sequences of many users, which are put together block by block; where all events are on disk, on disk.

    Args:
        whole: The sequences that the blocks are made of.
    """

    def __init__(self, whole: Sequences) -> None:
        self._whole = whole
        self._item_rows = EventArray(whole.folder, whole.item_rows.dtype)
        self._times = None if whole.times is None else EventArray(whole.folder, whole.times.dtype)
        self._user_ids: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def append(self, block: Sequences) -> None:
        """Add users at the end."""
        self._user_ids.append(block.user_ids)
        self._lengths.append(block.lengths)
        self._item_rows.append(block.item_rows)
        if self._times is not None and block.times is not None:
            self._times.append(block.times)

    def whole(self) -> Sequences:
        """Return all users, after the last block."""
        return replace(
            self._whole,
            user_ids=np.concatenate([self._whole.user_ids[:0], *self._user_ids]),
            offsets=offsets_of(np.concatenate([np.zeros(0, np.int64), *self._lengths])),
            item_rows=self._item_rows.whole(),
            times=None if self._times is None else self._times.whole(),
        )


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

    def sample(self, most: int, seed: int) -> Queries:
        """Return the queries, or so many of them, drawn at random and in their order."""
        if len(self) <= most:
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False)))


class QueriesOf:
    """Queries of many users, which are put together block by block; where all events are on disk, so are histories.

    Args:
        whole: The sequences that the queries are about.
    """

    def __init__(self, whole: Sequences) -> None:
        self._history = SequencesOf(whole)
        self._num_targets: list[np.ndarray] = [np.zeros(0, np.int64)]
        self._target_rows: list[np.ndarray] = [whole.item_rows[:0]]
        self._times: list[np.ndarray] | None = None if whole.times is None else [whole.times[:0]]

    def append(self, block: Queries) -> None:
        """Add queries at the end."""
        self._history.append(block.history)
        self._num_targets.append(np.diff(block.target_offsets))
        self._target_rows.append(block.target_rows)
        if self._times is not None and block.times is not None:
            self._times.append(block.times)

    def whole(self) -> Queries:
        """Return all queries, after the last block."""
        return Queries(
            history=self._history.whole(),
            target_offsets=offsets_of(np.concatenate(self._num_targets)),
            target_rows=np.concatenate(self._target_rows),
            times=None if self._times is None else np.concatenate(self._times),
        )
