"""Mining of hard negatives: each user's highest-scoring items without an interaction, under the current model.

The search is exact: matrix products in blocks, and the best of each row. It happens between two epochs. Where users
times items are too many, it is among a random pool of the items, another one at each mining.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from features.sequences.batches import EntityFeatures, SequenceBatch
from towers.model.two_tower import TwoTower
from training.loop.gradient_caching import user_states
from training.loop.negatives import Targets
from training.loop.processes import OneProcess, Processes, encode_items

BLOCK_CELLS = 4_000_000
"""Scores held at once."""
MOST_PAIRS = 2 * 10**10
"""Pairs of a user and an item that are scored in a mining; with vectors of 64 numbers some four minutes on one core."""
LEAST_POOL = 10_000
"""Items that are searched at least, so that the best of them are hard: beyond two million users the time grows with
their number, as that of an epoch does."""


def pool_size(num_users: int, num_items: int) -> int:
    """Return how many of the items a mining searches.

    Example:
        >>> pool_size(1_000, 50_000), pool_size(1_000_000, 1_000_000)
        (50000, 20000)
    """
    return min(num_items, max(LEAST_POOL, MOST_PAIRS // max(1, num_users)))


def mining_notes(num_users: int, num_items: int) -> list[str]:
    """Return whether hard negatives are not mined from all items."""
    size = pool_size(num_users, num_items)
    if size == num_items:
        return []
    note = (
        f"Hard negatives of the {num_users:,} users are mined from {size:,} of the {num_items:,} items, others at each "
        "mining, drawn at random, to save time."
    )
    return [note]


@torch.no_grad()
def mine_hard_negatives(
    model: TwoTower,
    batches: Iterable[SequenceBatch],
    item_features: EntityFeatures,
    user_features: EntityFeatures,
    *,
    per_user: int,
    skip: int = 0,
    below: float | None = None,
    seed: int = 0,
    processes: Processes | None = None,
) -> Int[Tensor, "users per_user"]:
    """Return the hard negatives of each user, highest score first; -1 fills rows that are not full.

    A user is represented by the vector before the newest event of the training data, so that this event is a positive
    to compare with. Three filters remove likely false negatives: all items of the user's training data; the `skip`
    highest-scoring of the rest; and items that score more than `below` times the positive's score (positive-aware
    mining: Moreira et al. 2024, NV-Retriever, arXiv 2407.15831, where 0.95 was best for text). Filtered items can still
    be drawn as random negatives, except those of the user's training data.

    Cost: users x items dot products, but no more than `pool_size` allows; `BLOCK_CELLS` scores and the vectors of the
    catalogue in memory.

    Args:
        model: The model; left in evaluation mode.
        batches: All users, in any order.
        item_features: The catalogue.
        user_features: The users of the training data.
        per_user: How many items are wanted for each.
        skip: How many of the nearest are passed over.
        below: With `s` the positive's score, items above `s - (1 - below) |s|` are not mined. None: no limit.
        seed: Of the pool of items, where not all are searched.
        processes: Those that mine together, each for a part of the users of every batch. None: this one alone.
    """
    processes = processes or OneProcess()
    model.eval()
    vectors = encode_items(model, item_features, processes)
    num_users, num_items = len(user_features), len(vectors)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randperm(num_items, generator=generator)[: pool_size(num_users, num_items)].sort().values
    table = torch.full((num_users, per_user), -1, dtype=torch.int32)
    for whole_batch in batches:
        batch = processes.share(Targets.of(whole_batch)).batch
        states = user_states(model.user_tower, batch, user_features, vectors)[batch.offsets[1:] - 1]
        table[batch.users] = _nearest(states, vectors, batch, pool, per_user, skip, below).int()
    return processes.highest(table)


def _nearest(
    states: Float[Tensor, "users width"],
    vectors: Float[Tensor, "items width"],
    batch: SequenceBatch,
    pool: Int[Tensor, "pool"],
    per_user: int,
    skip: int,
    below: float | None,
) -> Int[Tensor, "users per_user"]:
    """Return the nearest items of the pool, by their rows in the catalogue."""
    own = (states * vectors[batch.item_rows[batch.offsets[1:] - 1].to(states.device)]).sum(1, keepdim=True)
    searched = vectors if len(pool) == len(vectors) else vectors[pool.to(vectors.device)]
    place = torch.full((len(vectors),), -1)
    place[pool] = torch.arange(len(pool))
    known = place[batch.known_rows]
    starts = batch.known_offsets.tolist()
    found = torch.full((len(states), per_user), -1)
    block = max(1, BLOCK_CELLS // len(pool))
    for first in range(0, len(states), block):
        last = min(first + block, len(states))
        scores = states[first:last] @ searched.T
        if below is not None:
            limit = own[first:last] - (1 - below) * own[first:last].abs()
            scores.masked_fill_(scores > limit, -torch.inf)
        lengths = batch.known_offsets[first : last + 1].diff()
        users = torch.repeat_interleave(torch.arange(last - first), lengths)
        columns = known[starts[first] : starts[last]]
        scores[users[columns >= 0], columns[columns >= 0]] = -torch.inf
        best = scores.topk(min(skip + per_user, len(pool)))
        rows = pool[best.indices.cpu()].masked_fill((best.values == -torch.inf).cpu(), -1)[:, skip:]
        found[first:last, : rows.shape[1]] = rows
    return found
