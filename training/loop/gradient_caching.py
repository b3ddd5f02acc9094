"""Gradient caching (GradCache): encoding of a batch's histories in bounded memory, however large the batch.

A softmax over the batch needs the vectors of all its users at once, but not the activations that lead to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from features.sequences.batches import EntityFeatures, SequenceBatch
from towers.model.two_tower import UserTower
from training.loop.negatives import to_device


def user_states(
    tower: UserTower,
    batch: SequenceBatch,
    user_features: EntityFeatures,
    item_vectors: Float[Tensor, "items width"],
    place: Int[Tensor, "catalogue"] | None = None,
    *,
    gradient_cache_chunk: int | None = None,
) -> Float[Tensor, "events width"]:
    """Return the states of a batch: state t is made from the events before event t (see `SequenceBatch`).

    Args:
        tower: The user tower.
        batch: The events, on the host.
        user_features: The users of the training data, where the tower is.
        item_vectors: The vectors of all items of the histories, where the tower is.
        place: Where the vector of each catalogue row is, on the host. None: where the row is.
        gradient_cache_chunk: See `encode_in_chunks`. None: all histories are read at once.
    """
    device = item_vectors.device
    is_input = torch.ones_like(batch.is_target)
    is_input[batch.offsets[1:] - 1] = False  # a user's last event is only predicted
    inputs = batch.item_rows[is_input]
    given = (
        item_vectors[to_device(inputs if place is None else place[inputs], device)],
        to_device(batch.offsets - torch.arange(len(batch.offsets)), device),
        user_features.take(to_device(batch.users, device)),
    )
    request_times = event_times = None
    if batch.times is not None:
        asked = batch.times if batch.request_times is None else batch.request_times
        request_times, event_times = to_device(asked, device), to_device(batch.times[is_input], device)
    if gradient_cache_chunk is None:
        states: Tensor = tower(*given, request_times=request_times, event_times=event_times)
        return states
    return encode_in_chunks(
        tower, *given, request_times=request_times, event_times=event_times, gradient_cache_chunk=gradient_cache_chunk
    )


def encode_in_chunks(
    tower: UserTower,
    event_vectors: Float[Tensor, "events width"],
    offsets: Int[Tensor, "users_plus_1"],
    users: EntityFeatures,
    *,
    request_times: Int[Tensor, "tokens"] | None = None,
    event_times: Int[Tensor, "events"] | None = None,
    gradient_cache_chunk: int,
) -> Float[Tensor, "tokens width"]:
    """Return what the tower returns, keeping the inner workings of one chunk of users at a time.

    **What it does.** Each chunk is read, and of that reading only the users' vectors are kept. The loss, and its
    gradients with respect to them, is made of the whole batch; then each chunk is read once more, with the same random
    numbers, so that dropout repeats, and its gradients go on from there. Loss and gradients are those of the whole
    batch read at once.

    **When to use it.** Where a large batch is wanted for its negatives and does not fit. Accumulating the gradients of
    small batches is no substitute: it adds no negatives.

    **Cost.** Each history is read twice forward, a third more work; chunks of few histories cost more for being small.
    Histories of like length are read together. Memory for the reading is that of a chunk, plus a few vectors per event.

    **Relations.** Item vectors, and the vectors of user attributes, are made once for the batch, outside: their tables
    learn while gradients pass (see `embeddings`) and must see one pass.

    **Source.** GradCache (Gao et al. 2021, arXiv 2101.06983); the bookkeeping is that of `torch.utils.checkpoint`.

    Args:
        tower: The user tower.
        event_vectors: The vectors of the items of all histories, oldest first.
        offsets: Where each user's events begin.
        users: The attributes of the users.
        request_times: Unix seconds of the request that each result is for; None: unknown.
        event_times: Unix seconds of each event; None: unknown.
        gradient_cache_chunk: Results in a chunk, at most; a single longer history makes a chunk of its own.
    """
    order = offsets.diff().argsort(stable=True)
    events, tokens = _taken(offsets, order), _taken(offsets + torch.arange(len(offsets), device=offsets.device), order)
    by_length = functional.pad(offsets.diff()[order].cumsum(0), (1, 0))
    chunks = _deal(by_length.tolist(), gradient_cache_chunk)
    vectors = event_vectors.index_select(0, events).split([chunk.num_events for chunk in chunks])
    attributes = _attributes(tower, users, order, chunks)

    def read(chunk: _Chunk, vectors: Tensor, attributes: Tensor | None) -> Tensor:
        with _answering(tower.attributes, attributes):
            states: Tensor = tower(
                vectors,
                by_length[chunk.first : chunk.last + 1] - chunk.first_event,
                users.take(order[chunk.first : chunk.last]),
                request_times=None if request_times is None else request_times[tokens[chunk.tokens]],
                event_times=None if event_times is None else event_times[events[chunk.events]],
            )
        return states

    parts = [checkpoint(read, *given, use_reentrant=False) for given in zip(chunks, vectors, attributes, strict=True)]
    return torch.cat(parts).index_select(0, tokens.argsort())


def _taken(offsets: Int[Tensor, "users_plus_1"], order: Int[Tensor, "users"]) -> Int[Tensor, "values"]:
    """Return where the values of each user are, the users in another order."""
    lengths = offsets.diff()[order]
    ends = lengths.cumsum(0)
    return torch.arange(int(offsets[-1]), device=offsets.device) + torch.repeat_interleave(
        offsets[:-1][order] - (ends - lengths), lengths
    )


@dataclass(frozen=True)
class _Chunk:
    """Users `first` to `last` (without the last) and their events; each user has one result more than events."""

    first: int
    last: int
    first_event: int
    last_event: int

    @property
    def num_events(self) -> int:
        return self.last_event - self.first_event

    @property
    def events(self) -> slice:
        return slice(self.first_event, self.last_event)

    @property
    def tokens(self) -> slice:
        return slice(self.first_event + self.first, self.last_event + self.last)


def _deal(offsets: list[int], most: int) -> list[_Chunk]:
    """Divide users into chunks of at most so many results."""
    chunks, first = [], 0
    for user in range(1, len(offsets)):
        is_last = user == len(offsets) - 1
        if is_last or offsets[user + 1] - offsets[first] + user + 1 - first > most:
            chunks.append(_Chunk(first, user, offsets[first], offsets[user]))
            first = user
    return chunks


def _attributes(
    tower: UserTower, users: EntityFeatures, order: Int[Tensor, "users"], chunks: list[_Chunk]
) -> Sequence[Tensor | None]:
    """Return the vectors of the users' attributes by chunk; None where users have none."""
    if tower.attributes is None:
        return [None] * len(chunks)
    vectors: Tensor = tower.attributes(users).index_select(0, order)
    return [*vectors.split([chunk.last - chunk.first for chunk in chunks])]


@contextmanager
def _answering(module: nn.Module | None, answer: Tensor | None) -> Iterator[None]:
    """Let the module return `answer` without computing anything: other processes may have no such chunk to look up."""
    if module is None or answer is None:
        yield
        return
    module.forward = lambda *_: answer
    try:
        yield
    finally:
        del module.forward
