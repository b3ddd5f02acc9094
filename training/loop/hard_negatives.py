"""Mining of hard negatives: each user's highest-scoring items without an interaction, under the current model.

The search is exact: matrix products in blocks, and the best of each row. It happens between two epochs.
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
    processes: Processes | None = None,
) -> Int[Tensor, "users per_user"]:
    """Return the hard negatives of each user, highest score first; -1 fills rows that are not full.

    A user is represented by the vector before the newest event of the training data, so that this event is a positive
    to compare with. Three filters remove likely false negatives: all items of the user's training data; the `skip`
    highest-scoring of the rest; and items that score more than `below` times the positive's score (positive-aware
    mining: Moreira et al. 2024, NV-Retriever, arXiv 2407.15831, where 0.95 was best for text). Filtered items can still
    be drawn as random negatives, except those of the user's training data.

    Cost: users x items dot products; `BLOCK_CELLS` scores and the vectors of the catalogue in memory.

    Args:
        model: The model; left in evaluation mode.
        batches: All users, in any order.
        item_features: The catalogue.
        user_features: The users of the training data.
        per_user: How many items are wanted for each.
        skip: How many of the nearest are passed over.
        below: With `s` the positive's score, items above `s - (1 - below) |s|` are not mined. None: no limit.
        processes: Those that mine together, each for a part of the users of every batch. None: this one alone.
    """
    processes = processes or OneProcess()
    model.eval()
    vectors = encode_items(model, item_features, processes)
    table = torch.full((len(user_features), per_user), -1, dtype=torch.int32)
    for whole_batch in batches:
        batch = processes.share(Targets.of(whole_batch)).batch
        states = user_states(model.user_tower, batch, user_features, vectors)[batch.offsets[1:] - 1]
        table[batch.users] = _nearest(states, vectors, batch, per_user, skip, below).int().cpu()
    return processes.highest(table)


def _nearest(
    states: Float[Tensor, "users width"],
    vectors: Float[Tensor, "items width"],
    batch: SequenceBatch,
    per_user: int,
    skip: int,
    below: float | None,
) -> Int[Tensor, "users per_user"]:
    positives = batch.item_rows[batch.offsets[1:] - 1].to(states.device)
    starts = batch.known_offsets.tolist()
    found = torch.full((len(states), per_user), -1)
    block = max(1, BLOCK_CELLS // len(vectors))
    for first in range(0, len(states), block):
        last = min(first + block, len(states))
        scores = states[first:last] @ vectors.T
        if below is not None:
            own = scores.gather(1, positives[first:last, None])
            scores.masked_fill_(scores > own - (1 - below) * own.abs(), -torch.inf)
        lengths = batch.known_offsets[first : last + 1].diff()
        users = torch.repeat_interleave(torch.arange(last - first), lengths)
        scores[users, batch.known_rows[starts[first] : starts[last]]] = -torch.inf
        best = scores.topk(min(skip + per_user, len(vectors)))
        rows = best.indices.masked_fill(best.values == -torch.inf, -1)[:, skip:]
        found[first:last, : rows.shape[1]] = rows.cpu()
    return found
