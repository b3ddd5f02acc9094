"""The highest scores of many users over many items, at little more than the time of the matrix product.

Selecting from whole rows of scores takes longer than the product itself. Instead the maximum of each group of
consecutive items is taken while a tile of scores is in the processor's cache. The n groups with the highest maxima
contain the n highest scores, so only they are looked at again: of 100,000 items some 3,500.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from serving import deadline
from serving.search.vectors import BLOCK

Barred = tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]
"""Pairs that must not be found: positions of queries, and of items."""

_GROUP = 32
# Scores computed at a time: 1 MB on a CPU, which its caches hold; a GPU has no use for small pieces.
_TILE_CELLS = 1 << 18
_TILE_CELLS_ON_GPU = 1 << 26


def scores_of(
    queries: Float32[Tensor, "queries width"],
    items: Float[Tensor, "items width"],
    closed: Bool[Tensor, " items"] | None,
    barred: Barred | None,
) -> Float32[Tensor, "queries items"]:
    """Return the inner products of queries and items; -inf for items that are closed to all, and for barred pairs."""
    scores = queries.new_empty((len(queries), len(items)))
    for start in range(0, len(items), BLOCK):  # vectors in half precision are converted some at a time
        torch.mm(queries, items[start : start + BLOCK].float().T, out=scores[:, start : start + BLOCK])
    if closed is not None:
        scores.masked_fill_(closed, -torch.inf)
    if barred is not None:
        scores[barred] = -torch.inf
    return scores


def top_scores(
    queries: Float32[Tensor, "queries width"],
    items: Float[Tensor, "items width"],
    count: int,
    closed: Bool[Tensor, " items"] | None,
    barred: Barred | None,
) -> tuple[Float32[Tensor, "queries count"], Int64[Tensor, "queries count"]]:
    """Return the `count` highest of `scores_of` for each query, best first, and their items.

    All scores are in memory at the end, so the caller bounds the number of queries and items.

    Args:
        queries: Vectors.
        items: Vectors, perhaps in half precision.
        count: Number of results, at most the number of items.
        closed: Items that no query gets. None: none.
        barred: Pairs that must not be found. None: none.
    """
    num_queries, num_items = len(queries), len(items)
    num_groups = -(-num_items // _GROUP)
    if count >= num_groups:
        return torch.topk(scores_of(queries, items, closed, barred), count, dim=1)
    scores = queries.new_empty((num_queries, num_groups * _GROUP))
    scores[:, num_items:] = -torch.inf
    by_group = scores.view(num_queries, num_groups, _GROUP)
    maxima = queries.new_empty((num_queries, num_groups))
    cells = _TILE_CELLS_ON_GPU if items.is_cuda else _TILE_CELLS
    step = max(1, cells // max(1, num_queries) // _GROUP) * _GROUP
    for start in deadline.watched(range(0, num_items, step)):
        tile = slice(start, min(start + step, num_items))
        groups = slice(start // _GROUP, -(-tile.stop // _GROUP))
        torch.mm(queries, items[tile].float().T, out=scores[:, tile])
        if closed is not None:
            scores[:, tile].masked_fill_(closed[tile], -torch.inf)
        torch.amax(by_group[:, groups], dim=2, out=maxima[:, groups])
    if barred is not None:
        scores[barred] = -torch.inf
        changed = barred[0], barred[1] // _GROUP
        maxima[changed] = by_group[changed].amax(dim=1)
    best = maxima.topk(count, dim=1, sorted=False).indices
    found = by_group.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    highest, at = found.topk(count, dim=1)
    return highest, best.gather(1, at // _GROUP) * _GROUP + at % _GROUP
