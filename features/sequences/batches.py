"""From featurized tables and sequences to what one training step reads: jagged tensors and rows, never padded.

`EntityFeatures` holds the features of many items (or users) once, as tensors; a step takes the rows it needs.
`TrainingBatches` deals the users' sequences into batches of about equal work; batch `n` of epoch `e` depends on the
seed, `e` and `n` alone, so that a run can stop anywhere and go on exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from features.sequences.ragged import ragged_arange
from features.sequences.replay import Replay, users_of
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences

POOL_EVENTS, POOL_PARTS = 1 << 24, 16
"""Events whose users are shuffled among each other, of larger data; and in how many parts they lie."""


@dataclass(frozen=True)
class JaggedFeatures:
    """A bag of table rows for each entity and feature, in the layout of torchrec's `KeyedJaggedTensor`.

    It is a class of ours because importing torchrec takes seconds, and only training needs it.

    Attributes:
        keys: The names of the features.
        values: The rows of all bags, `[values]`: all bags of the first feature, then those of the next.
        lengths: The size of each bag, `[keys * entities]`, in the same order.
    """

    keys: tuple[str, ...]
    values: Int[Tensor, "values"]
    lengths: Int[Tensor, "bags"]

    def __len__(self) -> int:
        """Return the number of entities."""
        return len(self.lengths) // len(self.keys)

    def take(self, rows: Int[Tensor, "chosen"]) -> JaggedFeatures:
        """Return the entities at `rows`, in that order."""
        begins = torch.arange(len(self.keys), device=rows.device) * len(self)
        bags = (begins[:, None] + rows[None, :]).reshape(-1)
        lengths = self.lengths[bags].long()
        ends = torch.cumsum(lengths, 0)
        total = int(ends[-1]) if len(ends) else 0
        places = torch.arange(total, device=rows.device) + torch.repeat_interleave(
            self._starts[bags] - (ends - lengths), lengths, output_size=total
        )
        return JaggedFeatures(self.keys, self.values[places], lengths.int())

    @cached_property
    def _starts(self) -> Int[Tensor, "bags"]:
        """Where each bag begins; kept, because each training step takes some entities of the same features."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    def select(self, keys: Sequence[str]) -> JaggedFeatures:
        """Return the features of these names, in that order."""
        if tuple(keys) == self.keys:
            return self
        lengths = self.lengths.view(len(self.keys), -1)
        values = self.values.split(lengths.sum(dim=1).tolist())
        places = [self.keys.index(key) for key in keys]
        return JaggedFeatures(tuple(keys), torch.cat([values[place] for place in places]), lengths[places].reshape(-1))

    def to(self, device: torch.device) -> JaggedFeatures:
        """Return the same features on `device`."""
        return JaggedFeatures(self.keys, self.values.to(device), self.lengths.to(device))


@dataclass(frozen=True)
class EntityFeatures:
    """The features of `entities` items or users.

    Attributes:
        sparse: One key per sparse feature. None without sparse features.
        dense: Numbers, times and ready-made vectors side by side, scaled, `[entities, dense]`.
        tokens: Of texts whose encoder is trained, a key for each. None without such texts.
    """

    sparse: JaggedFeatures | None
    dense: Float[Tensor, "entities dense"]
    tokens: JaggedFeatures | None = None

    def __len__(self) -> int:
        """Return the number of entities."""
        return len(self.dense)

    @property
    def rows(self) -> Int[Tensor, "entities"]:
        """The row of each entity."""
        return torch.arange(len(self), device=self.dense.device)

    def take(self, rows: Int[Tensor, "chosen"]) -> EntityFeatures:
        """Return the entities at `rows`, in that order."""
        sparse, tokens = (None if one is None else one.take(rows) for one in (self.sparse, self.tokens))
        return EntityFeatures(sparse, self.dense[rows], tokens)

    def to(self, device: torch.device) -> EntityFeatures:
        """Return the same features on `device`."""
        sparse, tokens = (None if one is None else one.to(device) for one in (self.sparse, self.tokens))
        return EntityFeatures(sparse, self.dense.to(device), tokens)


@dataclass(frozen=True)
class SequenceBatch:
    """Several users' sequences, one after another, without padding.

    State t predicts event t: the user tower makes one vector (a state) per event, from the events before it. The first
    state sees no event but the start token, and the last event is never an input::

        input     [start]    event 0    event 1    event 2
                     |          |          |          |
        state        0          1          2          3       state t sees [start] and events 0 ... t - 1
                     |          |          |          |
        predicts  event 0    event 1    event 2    event 3    wherever `is_target`

    So a batch of `events` has as many states, and `offsets` divides both among the users. At serving time one more
    state is needed, which sees the whole history.

    Attributes:
        users: Positions in the `Sequences` of origin, `[users]`.
        offsets: Offsets of each user's events, `[users + 1]`.
        item_rows: Catalogue rows, `[events]`, oldest first.
        times: Unix seconds, `[events]`, or None.
        is_target: Which events are to be predicted, `[events]`.
        known_offsets: Where each user's known positives begin, `[users + 1]`.
        known_rows: Every item of each user's training data, `[known]`: never a negative of that user.
        answer_rows: Catalogue row to predict in the place of each event, `[events]`. None: the event's own.
        request_times: Unix seconds of the request of each state, `[events]`. None: the time of the event, as in
            `times`.
    """

    users: Int[Tensor, "users"]
    offsets: Int[Tensor, "users_plus_1"]
    item_rows: Int[Tensor, "events"]
    times: Int[Tensor, "events"] | None
    is_target: Tensor
    known_offsets: Int[Tensor, "users_plus_1"]
    known_rows: Int[Tensor, "known"]
    answer_rows: Int[Tensor, "events"] | None = None
    request_times: Int[Tensor, "events"] | None = None

    def to(self, device: torch.device) -> SequenceBatch:
        """Return the same batch on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class TrainingBatches:
    """A training set divided into batches of about `batch_size` events, in another order each epoch.

    Args:
        sequences: The training data. The items of users without an order are shuffled each epoch, so that any part of
            them is used to predict the rest.
        history: Maximum events before a target. Of longer sequences the newest `history + 1` events are used, the first
            of them as input only.
        batch_size: How many events a batch holds at most (a single longer sequence makes a batch of its own).
        seen_items: Which of a user's repeats of an item can be targets; first visits always can.
        seed: Decides the order of users, with the epoch.
        targets: Target of each state, for data with an order: the `next` event, a random later one (`future`), or, as
            for data without an order, `any` other one.
        history_fraction: For shuffled data: fraction of a user's items that is input only.
        replay: Which events an epoch predicts, in incremental training; of shuffled data, all of the users who have any
            of these. None: all.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        history: int,
        batch_size: int,
        seen_items: SeenItems,
        seed: int,
        targets: Literal["next", "future", "any"] = "next",
        history_fraction: float = 0.0,
        replay: Replay | None = None,
    ) -> None:
        enough = np.flatnonzero(sequences.lengths > 0)
        self.sequences = sequences
        self.history = history
        self.batch_size = batch_size
        self.seen_items = seen_items
        self.seed = seed
        self.is_shuffled = targets == "any" or not sequences.is_ordered
        self.replay = replay.by_user(sequences) if replay is not None and self.is_shuffled else replay
        self.is_future = targets == "future" and sequences.is_ordered
        self.history_fraction = history_fraction if self.is_shuffled else 0.0
        self._users = enough

    def epoch(self, epoch: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches of an epoch, from batch `start` on."""
        generator = np.random.default_rng([self.seed, epoch])
        users, is_chosen = self._chosen(epoch)
        order = self._order(generator, users)
        sequences = self.sequences.shuffled(generator) if self.is_shuffled else self.sequences
        for place, group in enumerate(self._deal(order)[start:], start):
            batch = self._batch(sequences, order[group], is_chosen)
            yield _with_future_targets(batch, [self.seed, epoch, place]) if self.is_future else batch

    def num_batches(self, epoch: int) -> int:
        """Return how many batches the epoch has."""
        return len(self._deal(self._order(np.random.default_rng([self.seed, epoch]), self._chosen(epoch)[0])))

    def are_possible_targets(self, sequences: Sequences) -> Bool[np.ndarray, "events"]:
        """Return which events of users with an order can be targets: those that are read, and of allowed repeats."""
        lengths = np.repeat(sequences.lengths, sequences.lengths)
        from_end = np.repeat(sequences.offsets[1:], sequences.lengths) - np.arange(sequences.num_events)
        is_read = (from_end <= self.history) | (lengths == self.history + 1)
        found: np.ndarray = self.seen_items.possible_targets(sequences) & is_read
        return found

    def _chosen(self, epoch: int) -> tuple[Int[np.ndarray, "users"], Bool[np.ndarray, "events"] | None]:
        """Return the users of an epoch, and which events are predicted; None: all that can be."""
        if self.replay is None:
            return self._users, None
        is_chosen = self.replay.draw(self.sequences, np.random.default_rng([self.seed, epoch, 1]))
        if not self.is_shuffled:
            is_chosen &= self.are_possible_targets(self.sequences)
        return users_of(self.sequences, is_chosen), is_chosen

    def _order(self, generator: np.random.Generator, users: Int[np.ndarray, "users"]) -> Int[np.ndarray, "users"]:
        """Return the users in the order of an epoch.

        Of very many events some parts, drawn by chance, are dealt together, before the next ones: what is read from
        disk lies close together then.
        """
        if self.sequences.num_events <= POOL_EVENTS:
            return generator.permutation(users)
        parts = self.sequences.offsets[users] // (POOL_EVENTS // POOL_PARTS)
        order = generator.permutation(int(parts[-1]) + 1)
        pool = np.empty(len(order), dtype=np.int64)
        pool[order] = np.arange(len(order)) // POOL_PARTS
        keys = generator.random(len(users))
        found: np.ndarray = users[np.lexsort((keys, pool[parts]))]
        return found

    def _deal(self, order: np.ndarray) -> list[slice]:
        lengths = np.minimum(self.sequences.lengths[order], self.history + 1)
        slices, begin, held = [], 0, 0
        for i, length in enumerate(lengths.tolist()):
            if held and held + length > self.batch_size:
                slices.append(slice(begin, i))
                begin, held = i, 0
            held += length
        return [*slices, slice(begin, len(order))]

    def _batch(
        self, sequences: Sequences, users: np.ndarray, is_chosen: Bool[np.ndarray, "events"] | None
    ) -> SequenceBatch:
        whole = sequences.take(users)
        window = np.repeat(whole.offsets[1:], whole.lengths) - np.arange(whole.num_events) <= self.history + 1
        is_target = self.seen_items.possible_targets(whole)
        if is_chosen is not None:
            is_target &= is_chosen[ragged_arange(sequences.offsets[users], whole.lengths)]
        newest = whole.keep(window)
        is_target = is_target[window]
        truncated = whole.lengths > self.history + 1
        is_target[newest.offsets[:-1][truncated]] = False
        place = np.arange(newest.num_events) - np.repeat(newest.offsets[:-1], newest.lengths)
        is_target &= place >= np.repeat((newest.lengths * self.history_fraction).astype(np.int64), newest.lengths)
        return SequenceBatch(
            users=torch.from_numpy(users),
            offsets=torch.from_numpy(newest.offsets),
            item_rows=torch.from_numpy(newest.item_rows.astype(np.int64)),
            times=None if newest.times is None else torch.from_numpy(newest.times),
            is_target=torch.from_numpy(is_target),
            known_offsets=torch.from_numpy(whole.offsets),
            known_rows=torch.from_numpy(whole.item_rows.astype(np.int64)),
        )


def _with_future_targets(batch: SequenceBatch, seed: list[int]) -> SequenceBatch:
    """Return the batch with the target of each state replaced by a random later one, requested at the time of that.

    With the request time of the next event instead, the model would learn that the time since the last event is
    always short; in a service it varies.
    """
    places = batch.is_target.nonzero()[:, 0]
    users = torch.searchsorted(batch.offsets, places, right=True) - 1
    ends = torch.bincount(users, minlength=len(batch.users)).cumsum(0)[users]
    place = torch.arange(len(places))
    drawn = torch.from_numpy(np.random.default_rng(seed).random(len(places)))
    chosen = place + (drawn * (ends - place)).long()
    source = torch.arange(len(batch.item_rows))
    source[places] = places[chosen]
    times = None if batch.times is None else batch.times[source]
    return replace(batch, answer_rows=batch.item_rows[source], request_times=times)
