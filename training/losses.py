"""The contrastive loss: a softmax in which the positive competes with the negatives it was given.

Letters: P positives (predictions made in a batch), N negatives, D width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.negatives import Forbidden, Negatives

BLOCK_CELLS = 4_000_000
"""Logits held at once."""
BLOCK_COLUMNS = 16_384
"""Items in a block. Up to so many, each logit is made once; beyond, once for the sum and once for the gradients."""


def softmax_loss(
    users: Float[Tensor, "P D"],
    positives: Float[Tensor, "P D"],
    items: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    negatives: Negatives,
    forbidden: Forbidden,
    *,
    precision: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Return the mean over positives of -log softmax of the positive among itself and the negatives.

    For a positive with logit `s+ = scale * user . positive` and negatives `j` with logits `s_j` and weights `w_j`::

        loss = log(exp(s+) + sum_j w_j exp(s_j)) - s+

    With every item as a negative and no weights this is the exact softmax over the catalogue. With a sample and
    `w_j` = times drawn / times expected, the sum estimates the one over the whole catalogue (log-Q correction: Bengio
    and Senecal 2008; for in-batch negatives Yi et al. 2019). The positive is not a sample and carries no correction
    (arXiv 2507.09331). Items known to be liked are no negatives: their cells are taken out, to the last bit.

    Logits are made in blocks and never kept: memory is `BLOCK_CELLS`, not P x N, whatever the catalogue.

    Args:
        users: Unit vectors of the users at the moment of each prediction.
        positives: Unit vectors of the items that were chosen.
        items: Unit vectors of the negatives.
        scale: 1 / temperature.
        negatives: The weights of the items.
        forbidden: The cells that are not negatives; must hold each positive's own cell where it was drawn.
        precision: Of the matrix products with the negatives; bfloat16 is three times as fast where the processor has
            it. Sums, exponentials and the positive's own logit stay in the precision of the vectors.
    """
    loss: Tensor = _Softmax.apply(
        users, positives, items, scale, negatives.log_weight, forbidden.positives, forbidden.negatives, precision
    )
    return loss


class _Softmax(torch.autograd.Function):
    """Loss and gradients together, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Float[Tensor, "P D"],
        positives: Float[Tensor, "P D"],
        items: Float[Tensor, "N D"],
        scale: Float[Tensor, ""],
        log_weight: Float[Tensor, N] | None,
        forbidden_rows: Int[Tensor, cells],
        forbidden_columns: Int[Tensor, cells],
        precision: torch.dtype,
    ) -> Float[Tensor, ""]:
        positive_logits = scale * (users * positives).sum(-1)
        fast = users.dtype if precision == torch.float32 else precision
        scaled, shared = (users * scale).to(fast), items.to(fast)
        d_users, d_items = torch.zeros_like(users), torch.zeros_like(items)
        log_sums = positive_logits.clone()
        columns = _slices(len(items), BLOCK_COLUMNS)
        rows = _slices(len(users), max(1, BLOCK_CELLS // min(len(items), BLOCK_COLUMNS)))
        cuts = torch.searchsorted(forbidden_rows, torch.tensor([0, *(part.stop for part in rows)]).to(users.device))
        for row, (first, last) in zip(rows, pairwise(cuts.tolist()), strict=True):
            cells = forbidden_rows[first:last] - row.start, forbidden_columns[first:last]
            for column in columns:
                logits = _logits(scaled[row], shared, log_weight, cells, column, users.dtype)
                log_sums[row] = torch.logaddexp(log_sums[row], logits.logsumexp(dim=1))
            for column in columns:
                if len(columns) > 1:
                    logits = _logits(scaled[row], shared, log_weight, cells, column, users.dtype)
                weights = logits.sub_(log_sums[row, None]).exp_().to(fast)
                d_users[row] += weights @ shared[column]
                d_items[column] += weights.T @ scaled[row]
        d_positive_logits = (positive_logits - log_sums).exp() - 1
        d_users += d_positive_logits[:, None] * positives
        d_scale = (users * d_users).sum()
        d_users *= scale
        d_positives = scale * d_positive_logits[:, None] * users
        ctx.save_for_backward(d_users, d_positives, d_items, d_scale)
        ctx.num_positives = len(users)
        return (log_sums - positive_logits).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0] / ctx.num_positives
        d_users, d_positives, d_items, d_scale = (factor * saved for saved in ctx.saved_tensors)
        return d_users, d_positives, d_items, d_scale, None, None, None, None


def _logits(
    scaled: Float[Tensor, "R D"],
    items: Float[Tensor, "N D"],
    log_weight: Float[Tensor, "N"] | None,
    cells: tuple[Int[Tensor, "cells"], Int[Tensor, "cells"]],
    column: slice,
    dtype: torch.dtype,
) -> Float[Tensor, "R C"]:
    """Return the weighted logits of some positives and some items, -inf where a cell is forbidden."""
    logits = (scaled @ items[column].T).to(dtype)
    if log_weight is not None:
        logits += log_weight[column]
    here = (cells[1] >= column.start) & (cells[1] < column.stop)
    taken_out = cells[0][here] * logits.shape[1] + cells[1][here] - column.start
    logits.view(-1).index_fill_(0, taken_out, -torch.inf)
    return logits


def _slices(total: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]
