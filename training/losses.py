"""The contrastive loss: a softmax in which the positive competes with the negatives it was given.

Letters: P positives (predictions made in a batch), N negatives, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.negatives import Forbidden, Negatives

BLOCK_CELLS = 4_000_000
"""Logits held at once."""


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

    Logits are made a block of positives at a time and never kept: memory is `BLOCK_CELLS`, not P x N.

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
    """Loss and gradients in one pass over blocks of positives."""

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
        num_positives = len(users)
        positive_logits = scale * (users * positives).sum(-1)
        d_users, d_items = torch.empty_like(users), torch.zeros_like(items)
        d_positive_logits = torch.empty_like(positive_logits)
        total = users.new_zeros(())
        fast = users.dtype if precision == torch.float32 else precision
        scaled, shared = (users * scale).to(fast), items.to(fast)
        block = max(1, BLOCK_CELLS // max(len(items), 1))
        edges = torch.arange(0, num_positives + block, block, device=users.device)
        cuts = torch.searchsorted(forbidden_rows, edges).tolist()
        for place, begin in enumerate(range(0, num_positives, block)):
            rows = slice(begin, min(begin + block, num_positives))
            cells = slice(cuts[place], cuts[place + 1])
            logits = (scaled[rows] @ shared.T).to(users.dtype)
            if log_weight is not None:
                logits += log_weight
            taken_out = (forbidden_rows[cells] - begin) * len(items) + forbidden_columns[cells]
            logits.view(-1).index_fill_(0, taken_out, -torch.inf)
            positive = positive_logits[rows]
            top = torch.maximum(positive, logits.amax(dim=1))
            weights = logits.sub_(top[:, None]).exp_()
            positive_weight = (positive - top).exp()
            normalizer = weights.sum(dim=1) + positive_weight
            total += (normalizer.log() + top - positive).sum()
            weights /= normalizer[:, None]
            d_positive_logits[rows] = positive_weight / normalizer - 1
            weights = weights.to(fast)
            d_users[rows] = (weights @ shared).to(users.dtype)
            d_items += weights.T @ scaled[rows]
        d_users += d_positive_logits[:, None] * positives
        d_scale = (users * d_users).sum()
        d_users *= scale
        d_positives = scale * d_positive_logits[:, None] * users
        ctx.save_for_backward(d_users, d_positives, d_items, d_scale)
        ctx.num_positives = num_positives
        return total / num_positives

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0] / ctx.num_positives
        d_users, d_positives, d_items, d_scale = (factor * saved for saved in ctx.saved_tensors)
        return d_users, d_positives, d_items, d_scale, None, None, None, None
