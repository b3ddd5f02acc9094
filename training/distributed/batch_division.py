"""Which users of a batch are whose: each process reads the histories of some users that follow one another."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from features.sequences.batches import SequenceBatch
from training.loop.negatives import Targets
from training.loop.processes import Share


def divide_evenly(total: int, size: int) -> list[int]:
    """Return how many of so many things each of `size` processes takes; the numbers differ by at most one."""
    return [total * (rank + 1) // size - total * rank // size for rank in range(size)]


def first_users(offsets: Int[Tensor, "users_plus_1"], size: int) -> list[int]:
    """Return the first user of each process, and the number of all, so that all have about as many events."""
    begins = torch.arange(size) * int(offsets[-1]) // size
    return [*torch.searchsorted(offsets, begins).tolist(), len(offsets) - 1]


def share_of(targets: Targets, rank: int, size: int) -> Share:
    """Return the part of a batch that a process computes.

    Where there are fewer users than processes, some have none; they read the first user's history and predict nothing,
    because all have to take part in each exchange.
    """
    cuts = first_users(targets.batch.offsets, size)
    starts = torch.searchsorted(targets.users, torch.tensor(cuts)).tolist()
    sizes = [end - begin for begin, end in pairwise(starts)]
    first, last = cuts[rank : rank + 2] if cuts[rank] < cuts[rank + 1] else (0, 1)
    positives = slice(starts[rank], starts[rank + 1])
    return Share(
        batch=users_between(targets.batch, first, last),
        places=targets.places[positives] - targets.batch.offsets[first],
        positives=positives,
        sizes=sizes,
        weight=size * sizes[rank] / max(sum(sizes), 1),
    )


def users_between(batch: SequenceBatch, first: int, last: int) -> SequenceBatch:
    """Return the users of a batch from `first` up to, without, `last`."""
    events = slice(*batch.offsets[[first, last]].tolist())
    known = slice(*batch.known_offsets[[first, last]].tolist())
    return replace(
        batch,
        users=batch.users[first:last],
        offsets=batch.offsets[first : last + 1] - events.start,
        item_rows=batch.item_rows[events],
        times=_part(batch.times, events),
        is_target=batch.is_target[events],
        known_offsets=batch.known_offsets[first : last + 1] - known.start,
        known_rows=batch.known_rows[known],
        answer_rows=_part(batch.answer_rows, events),
        request_times=_part(batch.request_times, events),
    )


def _part(values: Tensor | None, events: slice) -> Tensor | None:
    return None if values is None else values[events]
