"""The contrastive losses by name, `LOSSES`: each positive against its negatives. CONTRIBUTING.md: "Add a loss".

Letters: P positives (predictions made in a batch), N negatives, D width, R positives and C negatives of a block. With
`Negatives.trend` vectors of users and positives are longer than those of negatives (E = D + W): behind them are the
users' weights of recent popularity, and the numbers of the positives; those of negatives differ by the time of a
prediction and are in `Negatives`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from features.errors import DataError
from features.sequences.trend import STEPS
from towers.model.feature_tower import unit
from training.loop.negatives import MaskedPairs, Negatives

BLOCK_CELLS = 6_000_000
"""Logits held at once."""
BITS = math.log2(math.e)
"""In a unit of the natural logarithm. Blocks are in bits, because powers of 2 take half as long as those of e."""
ROUND = 64
"""Rows of a block are a multiple of it."""
BLOCK_COLUMNS = 16_384
"""Items in a block. Up to so many, each logit is made once; beyond, once for the sum and once for the gradients."""
PREFIX_WEIGHT = 1.0
"""Weight of the loss of a prefix against that of the whole vectors."""


class Loss(Protocol):
    """A function that returns the loss of the predictions of a batch."""

    def __call__(
        self,
        users: Float[Tensor, "P E"],
        positives: Float[Tensor, "P E"],
        items: Float[Tensor, "N D"],
        scale: Float[Tensor, ""],
        negatives: Negatives,
        *,
        precision: torch.dtype = torch.float32,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of the predictions.

        Args:
            users: Unit vectors of the users, one for each prediction.
            positives: Unit vectors of the positives.
            items: Unit vectors of the negatives.
            scale: 1 / temperature.
            negatives: Their weights, and the masked pairs, which must include each positive's own column if it was
                drawn.
            precision: Of the matrix products with the negatives.
        """


def softmax_loss(
    users: Float[Tensor, "P E"],
    positives: Float[Tensor, "P E"],
    items: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    negatives: Negatives,
    *,
    precision: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Return the mean over positives of -log softmax of the positive among itself and the negatives.

    **What it does.** Moves each user towards the positive item and away from the negatives, from each in proportion to
    its softmax probability. For a positive `p` with logit `s+ = scale * user . positive` and negatives `j` with logits
    `s_pj` and weights `w_pj`::

        loss_p = log(exp(s+) + Z-) - s+        Z- = sum_j w_pj exp(s_pj)

    A weight says how many items a negative stands for. With every item a negative of weight 1 this is the exact softmax
    over the catalogue. With a sample the weights are those of `MixedSampler`, and `Z-` estimates the sum over the
    catalogue without the positive. Items known to be liked are no negatives: their cells are taken out, to the last
    bit.

    **When to use it.** Always: which negatives there are (`AllItems`, or a `MixedSampler` of `UniformSampler`,
    `InBatchSampler`, `CrossBatchMemory` and `HardNegatives`) is what differs. Up to some 30,000 items take all.

    **Cost.** P x N x D multiplications, thrice (logits, and the gradients of users and items), four times from
    `BLOCK_COLUMNS` items on. Logits are made in blocks and never kept: memory is `BLOCK_CELLS`, not P x N. On a GPU the
    host waits once per block of columns where there are several; otherwise never.

    **Relations.**

    * *log-Q correction.* Weight `draws / expected draws`: Bengio and Senecal 2008; Yi et al. 2019 for in-batch
      negatives, who correct the positive as well (`log_q = "all"`).
    * *Corrected log-Q* (Khrylchenko et al. 2025, arXiv 2507.09331). Their loss, with `n` draws `d` other than the
      positive, of probability `Q'(d) = Q(d) / (1 - Q(p))`, is::

          -sg(1 - P) (s+ - log sum_d exp(s_d - log Q'(d)))        P = exp(s+) / (exp(s+) + Z-)
                                                                  Z- = 1/n sum_d exp(s_d) / Q'(d)

      where `sg` stops the gradient. Its gradient is `(1 - P) (dlog Z- - ds+)`. Ours is
      `(dZ- + exp(s+) ds+) / (exp(s+) + Z-) - ds+ = (1 - P) dlog Z- + P ds+ - ds+`, the same: leaving the positive out
      of the sample and in the sum *is* their weight, the probability of a wrong prediction. What remains is their `Z-`,
      a mean over the draws that count with a renormalised `Q'`: those are the weights that a sample has.
    * *Sampled softmax without correction, InfoNCE, MultipleNegativesRanking:* `log_q = "none"`.

    **Source.** See above; masking by id after Yang et al. 2020.

    **Arguments.** Those of `Loss`. With bfloat16 the matrix products are three times as fast where the processor has
    it; sums, exponentials and the positive's own logit stay in the precision of the vectors.
    """
    loss: Tensor = _Softmax.apply(users, positives, items, scale, negatives, precision)
    return loss


LOSSES: dict[str, Loss] = {"softmax": softmax_loss}
"""The losses, by the names that `[training] loss` accepts. Programs may add their own."""


def check_loss(name: str) -> None:
    """Check that there is a loss of this name.

    Raises:
        DataError: There is none.
    """
    if name not in LOSSES:
        raise DataError(
            f"[training] loss: expected one of {', '.join(LOSSES)}, found {name!r}; in Python, add your own to "
            "towers.LOSSES first"
        )


def matryoshka_loss(
    users: Float[Tensor, "P E"],
    positives: Float[Tensor, "P E"],
    items: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    negatives: Negatives,
    *,
    prefix_scales: Mapping[int, Float[Tensor, ""]],
    prefix_weight: float = PREFIX_WEIGHT,
    precision: torch.dtype = torch.float32,
    loss: Loss = softmax_loss,
) -> Float[Tensor, ""]:
    """Return the mean of the loss of whole vectors and of the losses of their prefixes.

    **What it does.** The first `m` numbers of a vector, scaled to length one, are a shorter vector. Each of these
    widths gets the same loss, with the same negatives and a temperature of its own, so that the first numbers of a
    vector carry the most information. With weight `w` for each of `n` widths::

        loss = (loss_D + w sum_m loss_m) / (1 + n w)

    **When to use it.** Where an index searches short vectors first and re-scores (`towers.matryoshka_dims`).
    Without prefixes it is `loss`, to the last bit.

    **Cost.** For each prefix once more the loss, in fewer multiplications and as many exponentials. Memory grows by
    copies of the shortened vectors and their gradients; no width keeps logits.

    **Source.** Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147), who give each width the
    weight 1.

    Args:
        users: Unit vectors of the users, one for each prediction.
        positives: Unit vectors of the positives.
        items: Unit vectors of the negatives.
        scale: 1 / temperature of whole vectors.
        negatives: As for `softmax_loss`.
        prefix_scales: 1 / temperature of each prefix, by its width.
        prefix_weight: Weight of the loss of each prefix, against 1 for that of whole vectors.
        precision: As for `softmax_loss`.
        loss: The loss of each width.
    """
    total = loss(users, positives, items, scale, negatives, precision=precision)
    for width, prefix_scale in prefix_scales.items():
        own, right, others = (_prefix(one, width, items.shape[1]) for one in (users, positives, items))
        total = total + prefix_weight * loss(own, right, others, prefix_scale, negatives, precision=precision)
    return total / (1 + prefix_weight * len(prefix_scales))


def _prefix(vectors: Float[Tensor, "R E"], width: int, dim: int) -> Float[Tensor, "R F"]:
    """Return the first `width` numbers at length one, and after them what comes behind an embedding of `dim`."""
    short = unit(vectors[:, :width])
    return short if vectors.shape[1] == dim else torch.cat([short, vectors[:, dim:]], dim=1)


class _Softmax(torch.autograd.Function):
    """Loss and gradients together, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Float[Tensor, "P E"],
        positives: Float[Tensor, "P E"],
        items: Float[Tensor, "N D"],
        scale: Float[Tensor, ""],
        negatives: Negatives,
        precision: torch.dtype,
    ) -> Float[Tensor, ""]:
        positive_logits = scale * (users * positives).sum(-1)
        fast = users.dtype if precision == torch.float32 else precision
        d_users, d_items = torch.zeros_like(users), torch.zeros_like(items)
        log_sums = positive_logits.clone()
        columns = _slices(len(items), BLOCK_COLUMNS)
        blocks = [_rounded(items[column], fast) for column in columns]
        rows = _slices(len(users), _rows_at_once(min(len(items), BLOCK_COLUMNS)))
        dim = items.shape[1]
        for row, cells in zip(rows, _cells_of(rows, negatives.forbidden), strict=True):
            scaled = _rounded(users[row, :dim] * (scale * BITS), fast)
            weighing = users[row, dim:] * (scale * BITS)
            num_rows = row.stop - row.start
            for column, block in zip(columns, blocks, strict=True):
                trend = _trend(negatives, row, column, users.dtype)
                bits = _bits(scaled, block, negatives, row, column, cells, weighing, trend)
                shift = bits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(users.dtype).min)
                weights = bits.sub_(shift).exp2_()
                log_sum = (shift + weights.sum(dim=1, keepdim=True).log2())[:num_rows, 0] / BITS
                log_sums[row] = torch.logaddexp(log_sums[row], log_sum)
            for column, block in zip(columns, blocks, strict=True):
                if len(columns) > 1:
                    shift = _padded(log_sums[row, None] * BITS, len(scaled))
                    trend = _trend(negatives, row, column, users.dtype)
                    weights = _bits(scaled, block, negatives, row, column, cells, weighing, trend).sub_(shift).exp2_()
                rounded = weights.to(fast)
                share = (shift[:num_rows] - log_sums[row, None] * BITS).exp2()
                weighted = scaled * _padded(share / BITS, len(scaled)).to(fast)
                d_users[row, :dim] += (rounded @ block)[:num_rows] * share
                for place, numbers in enumerate(trend, dim):
                    d_users[row, place, None] += _weighted_sum(weights, numbers) * share
                d_items[column] += (rounded.T @ weighted)[: column.stop - column.start]
        d_positive_logits = (positive_logits - log_sums).exp() - 1
        d_users += d_positive_logits[:, None] * positives
        d_scale = (users * d_users).sum()
        d_users *= scale
        d_positives = scale * d_positive_logits[:, None] * users
        ctx.save_for_backward(d_users, d_positives, d_items, d_scale)
        ctx.num_positives = num_positives = max(len(users), 1)
        return (log_sums - positive_logits).sum() / num_positives

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0] / ctx.num_positives
        d_users, d_positives, d_items, d_scale = (factor * saved for saved in ctx.saved_tensors)
        return d_users, d_positives, d_items, d_scale, None, None


def _bits(
    scaled: Float[Tensor, "rounded_R D"],
    items: Float[Tensor, "rounded_C D"],
    negatives: Negatives,
    row: slice,
    column: slice,
    cells: tuple[Int[Tensor, "cells"], Int[Tensor, "cells"]],
    weighing: Float[Tensor, "R W"],
    trend: Sequence[Float[Tensor, "R C"]],
) -> Float[Tensor, "rounded_R rounded_C"]:
    """Return the weighted logits of a block in bits, -inf where a cell is forbidden or beyond the last item."""
    num_rows, num_columns = row.stop - row.start, column.stop - column.start
    bits: Tensor = (scaled @ items.T).to(weighing.dtype)
    for weight, numbers in zip(weighing.unbind(1), trend, strict=True):
        bits[:num_rows, :num_columns].addcmul_(numbers, weight[:, None])
    bits[:, num_columns:] = -torch.inf
    if negatives.expected is not None and negatives.factors is not None:
        bits[:num_rows, :num_columns] -= (negatives.factors[row] @ negatives.expected[:, column]).log2_()
    if num_columns < len(negatives.rows):
        here = (cells[1] >= column.start) & (cells[1] < column.stop)
        cells = cells[0][here], cells[1][here] - column.start
    bits.view(-1).index_fill_(0, cells[0] * bits.shape[1] + cells[1], -torch.inf)
    return bits


def _trend(negatives: Negatives, row: slice, column: slice, dtype: torch.dtype) -> list[Float[Tensor, "R C"]]:
    """Return the recent popularity of a block's items at the time of each of its positives, by half-life."""
    if negatives.trend is None:
        return []
    moments = negatives.trend.moments[row]
    return [numbers[:, column][moments].to(dtype) / STEPS for numbers in negatives.trend.numbers]


def _weighted_sum(weights: Float[Tensor, "rounded_R rounded_C"], numbers: Float[Tensor, "R C"]) -> Float[Tensor, "R 1"]:
    """Return the sum of each row's numbers with the weights of a block."""
    num_rows, num_columns = numbers.shape
    found: Tensor = torch.linalg.vecdot(weights[:num_rows, :num_columns], numbers)
    return found[:, None]


def _rows_at_once(num_columns: int) -> int:
    """Return how many positives a block has."""
    rows = BLOCK_CELLS // max(1, num_columns)
    return max(ROUND, rows // ROUND * ROUND)


def _rounded(vectors: Float[Tensor, "rows D"], dtype: torch.dtype) -> Float[Tensor, "rounded D"]:
    """Return the vectors in the precision of the products; where that is another, followed by zeros to a round number.

    On a CPU oneDNN builds a program for each shape that it multiplies in bfloat16, and keeps it, half a megabyte each.
    As hardly two batches are of the same size, memory would grow with every step; of round numbers there are few.
    """
    if vectors.dtype == dtype:
        return vectors
    step = max(ROUND, 1 << max(len(vectors).bit_length() - 4, 0))
    return _padded(vectors.to(dtype), -(-len(vectors) // step) * step)


def _padded(values: Float[Tensor, "R C"], rows: int) -> Float[Tensor, "rounded_R C"]:
    """Return the values with zeros up to so many rows."""
    return functional.pad(values, (0, 0, 0, rows - len(values)))


def _cells_of(rows: list[slice], forbidden: MaskedPairs) -> list[tuple[Tensor, Tensor]]:
    """Return the forbidden cells of each block of positives, their rows counted from its first."""
    cuts = forbidden.starts[[0, *(row.stop for row in rows)]].tolist()
    return [
        (forbidden.positives[first:last] - row.start, forbidden.negatives[first:last])
        for row, (first, last) in zip(rows, pairwise(cuts), strict=True)
    ]


def _slices(total: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]
