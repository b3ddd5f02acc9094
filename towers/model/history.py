"""History encoders by name, `HISTORY_ENCODERS`: at every position, a summary of the tokens up to there (causal).

Tokens of many users come one after another without padding, `[tokens, width]`, with `offsets` saying where each
user's begin. Every position is summarised in one pass, so that encoding a user once trains as many predictions as there
are events. Encoders with a time bias also get the time of each token and of each request. CONTRIBUTING.md says how to
add an encoder.

Layers add to what comes in, and begin by adding nothing: before training the summary is the newest token (or the mean
of all), so that with tokens made of item vectors a user vector starts near the items of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from features.errors import DataError
from features.sequences.sequences import UNKNOWN_TIME
from towers.config import TowersConfig
from towers.model.dropout import Dropout

PADDING_TOLERANCE = 0.8
"""Sequences share a padded block for attention when the shortest has at least this share of the longest."""
SHORT = 16
"""So many tokens or fewer share one in any case: another block would cost more than the padding."""
SPANS_A_TURN = 3.0
"""Time spans are quantised by the logarithm of their seconds: so many steps per factor of e."""
NUM_SPANS = 64
"""Number of quantised time spans; the last begins at about 42 years."""
UNKNOWN_SPAN = NUM_SPANS


@dataclass(frozen=True)
class Moments:
    """Times of tokens and requests, in Unix seconds; `UNKNOWN_TIME` if unknown.

    Attributes:
        event: When each token happened, `[tokens]`.
        request: When the summary at each token is asked for, `[tokens]`.
    """

    event: Int[Tensor, "tokens"]
    request: Int[Tensor, "tokens"]


class HistoryEncoder(Protocol):
    """A torch module that summarises sequences; its `forward` has these arguments."""

    def __call__(
        self,
        tokens: Float[Tensor, "tokens width"],
        offsets: Int[Tensor, "users_plus_1"],
        moments: Moments | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Return the summary at each token, which depends on this token and the earlier ones of the same user only.

        Args:
            tokens: A token for the beginning of each history, followed by one for each event, oldest first.
            offsets: Where each user's tokens begin, and the number of all; every user has at least one.
            moments: Times of tokens and requests. None: unknown, or no encoder with a time bias.
        """


class CausalMean(nn.Module):
    """The mean of the tokens so far, through one hidden layer. Neither order nor time matters."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.mix = GatedLayer(width, dropout=dropout)

    def forward(
        self,
        tokens: Float[Tensor, "tokens width"],
        offsets: Int[Tensor, "users_plus_1"],
        moments: Moments | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Return the summary at each token."""
        count = _place(offsets, len(tokens)) + 1
        mean = (running_sum(tokens, offsets) / count[:, None]).to(tokens.dtype)
        summary: Tensor = mean + self.mix(self.norm(mean))
        return summary


class CausalAttentionPooling(nn.Module):
    """Attention pooling: a mean of the tokens so far, with weights from the tokens, through one hidden layer.

    Head `h` sees `sum_j exp(s_jh) v_jh / sum_j exp(s_jh)` over the tokens j so far, where score and value are linear
    in the token: a running sum, so the cost is that of the mean. Neither order nor time matters.

    Args:
        width: Numbers in a token.
        num_heads: Attention heads: independent sets of weights.
        dropout: Share of numbers set to zero in the hidden layer.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.token_norm = nn.RMSNorm(width)
        self.score = nn.Linear(width, num_heads)
        self.value = _silent(nn.Linear(width, width, bias=False))
        self.norm = nn.RMSNorm(width)
        self.mix = GatedLayer(width, dropout=dropout)
        nn.init.zeros_(self.score.weight)

    def forward(
        self,
        tokens: Float[Tensor, "tokens width"],
        offsets: Int[Tensor, "users_plus_1"],
        moments: Moments | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Return the summary at each token."""
        normed = self.token_norm(tokens)
        weight = self.score(normed).clamp(-30, 30).exp()
        value = tokens + self.value(normed)
        weighted = (value.view(len(tokens), self.num_heads, -1) * weight[..., None]).flatten(1)
        total, weights = running_sum(weighted, offsets), running_sum(weight, offsets)
        pooled = (total.view(len(tokens), self.num_heads, -1) / weights[..., None]).flatten(1).to(tokens.dtype)
        summary: Tensor = pooled + self.mix(self.norm(pooled))
        return summary


class CausalAttention(nn.Module):
    """Layers of causal self-attention, of one of two kinds.

    `transformer`: softmax attention and a gated feed-forward layer, both behind a norm. `hstu`: pointwise attention,
    whose weights need not sum to one, so that it can count, gated by the token itself (Zhai et al. 2024, arXiv
    2402.17152), with a bias for how far back a token is.

    With `time_bias` both add to each attention logit a learned number for the time between the token that is looked
    at and the moment of the request, in 64 logarithmic steps from a second to decades: "the same evening" and "last
    summer" are then different pasts, whatever came between. Each token also has a vector of its own for how long
    before the request it was.

    With `sum_residual` the sum of all tokens so far, divided by the square root of their number and projected by a
    matrix that is initialised to zero, is added to the output. This linear path, as in EASE or iALS, carries long-term
    preferences.

    Linear layers see real tokens only. Attention works on groups of sequences of nearly equal length, each group
    padded to its longest: a real token never looks at padding, because padding comes after it.

    Args:
        width: Numbers in a token.
        kind: Of the layers.
        num_layers: How many layers.
        num_heads: Attention heads of each layer.
        length: The longest sequence, in tokens.
        time_bias: Whether the clock is looked at.
        sum_residual: Whether a projection of the sum of the tokens is added to the summary.
        dropout: Share of numbers set to zero after the input and after each half of a layer.
    """

    def __init__(
        self,
        width: int,
        *,
        kind: Literal["transformer", "hstu"] = "transformer",
        num_layers: int,
        num_heads: int,
        length: int,
        time_bias: bool = False,
        sum_residual: bool = False,
        dropout: float,
    ) -> None:
        super().__init__()
        self.sum_residual = _silent(nn.Linear(width, width, bias=False)) if sum_residual else None
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.by_span = nn.Parameter(torch.zeros(NUM_SPANS + 1, width)) if time_bias else None
        block = TransformerBlock if kind == "transformer" else HstuBlock
        self.blocks = nn.ModuleList(
            block(width, num_heads=num_heads, length=length, time_bias=time_bias, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "tokens width"],
        offsets: Int[Tensor, "users_plus_1"],
        moments: Moments | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Return the summary at each token; without `moments` every time span is unknown."""
        layout, place = Layout.of(offsets), _place(offsets, len(tokens))
        residual = None if self.sum_residual is None else self.sum_residual(_sum_over_root(tokens, offsets, place))
        tokens = tokens + self.positions[place]
        if self.by_span is not None:
            layout = layout.timed(moments)
            tokens = tokens + self.by_span[_own_spans(len(tokens), moments, tokens.device)]
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, layout)
        normed: Tensor = self.norm(x)
        return normed if residual is None else normed + residual


def _attention(config: TowersConfig, length: int, kind: Literal["transformer", "hstu"]) -> CausalAttention:
    return CausalAttention(
        config.embedding_dim,
        kind=kind,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        length=length,
        time_bias=config.time_bias,
        sum_residual=config.sum_residual,
        dropout=config.dropout,
    )


HISTORY_ENCODERS: dict[str, Callable[[TowersConfig, int], HistoryEncoder]] = {
    "mean": lambda config, length: CausalMean(config.embedding_dim, dropout=config.dropout),
    "attention-pooling": lambda config, length: CausalAttentionPooling(
        config.embedding_dim, num_heads=config.num_heads, dropout=config.dropout
    ),
    "transformer": partial(_attention, kind="transformer"),
    "hstu": partial(_attention, kind="hstu"),
}
"""Functions that make a history encoder with initial weights, by the names that `[towers] history_encoder` accepts,
except `none`. Arguments: the settings `[towers]`, and the number of tokens of the longest sequence. Programs may add
their own."""


def make_history_encoder(config: TowersConfig, length: int) -> HistoryEncoder | None:
    """Return the history encoder that `[towers]` names, with initial weights; None for `none`.

    Args:
        config: The settings.
        length: Number of tokens of the longest sequence.

    Raises:
        DataError: There is no encoder of this name.
    """
    if not config.reads_history:
        return None
    check_history_encoder(config)
    return HISTORY_ENCODERS[config.history_encoder](config, length)


def check_history_encoder(config: TowersConfig) -> None:
    """Check that there is an encoder of the name in `[towers]`.

    Raises:
        DataError: There is none.
    """
    if config.reads_history and config.history_encoder not in HISTORY_ENCODERS:
        raise DataError(
            f"[towers] history_encoder: expected one of {', '.join(HISTORY_ENCODERS)} and none, found "
            f"{config.history_encoder!r}; in Python, add your own to towers.HISTORY_ENCODERS first"
        )


class TransformerBlock(nn.Module):
    """Softmax attention, then a gated feed-forward layer, each added to what came in."""

    def __init__(self, width: int, *, num_heads: int, length: int, time_bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.bias = AttentionBias(num_heads, length=0, time_bias=True) if time_bias else None
        self.out = _silent(nn.Linear(width, width, bias=False))
        self.dropout = Dropout(dropout)
        self.mix_norm = nn.RMSNorm(width)
        self.mix = GatedLayer(width, dropout=dropout)

    def forward(self, x: Float[Tensor, "tokens width"], layout: Layout) -> Float[Tensor, "tokens width"]:
        """Return the tokens after the layer."""
        qkv = self.qkv(self.attention_norm(x))
        x = x + self.dropout(self.out(layout.in_groups(qkv, self._attend)))
        mixed: Tensor = x + self.mix(self.mix_norm(x))
        return mixed

    def _attend(self, qkv: Float[Tensor, "sequences longest width3"], group: LengthGroup) -> Tensor:
        query, key, value = _heads(qkv, 3, self.num_heads)
        if self.bias is None:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            bias = self.bias(group).masked_fill(_future(qkv.shape[1], qkv.device), -torch.inf)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return attended.transpose(1, 2).flatten(2)


class HstuBlock(nn.Module):
    """Pointwise attention, gated: `x + out(norm(sum_j silu(q_i k_j + bias_ij) v_j / n) * u_i)`, n the longest."""

    def __init__(self, width: int, *, num_heads: int, length: int, time_bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.length = length
        self.norm = nn.RMSNorm(width)
        self.project = nn.Linear(width, 4 * width, bias=False)
        self.bias = AttentionBias(num_heads, length=length, time_bias=time_bias)
        self.attended_norm = nn.RMSNorm(width)
        self.out = _silent(nn.Linear(width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "tokens width"], layout: Layout) -> Float[Tensor, "tokens width"]:
        """Return the tokens after the layer."""
        projected = functional.silu(self.project(self.norm(x)))
        gate, qkv = projected.split([x.shape[1], 3 * x.shape[1]], dim=1)
        gated = self.attended_norm(layout.in_groups(qkv, self._attend)) * gate
        added: Tensor = x + self.out(self.dropout(gated))
        return added

    def _attend(self, qkv: Float[Tensor, "sequences longest width3"], group: LengthGroup) -> Tensor:
        query, key, value = _heads(qkv, 3, self.num_heads)
        weights = functional.silu(query @ key.transpose(-1, -2) + self.bias(group)) / self.length
        attended = weights.masked_fill(_future(qkv.shape[1], qkv.device), 0.0) @ value
        return attended.transpose(1, 2).flatten(2)


class AttentionBias(nn.Module):
    """Learned bias of the attention logits of each head, by the steps and by the time between two tokens.

    Args:
        num_heads: Attention heads.
        length: The longest sequence, for the bias by steps; 0: none of it.
        time_bias: Whether there is a bias by time.
    """

    def __init__(self, num_heads: int, *, length: int, time_bias: bool) -> None:
        super().__init__()
        self.by_steps = nn.Parameter(torch.randn(num_heads, length) * 0.02) if length else None
        self.by_span = nn.Parameter(torch.zeros(num_heads, NUM_SPANS + 1)) if time_bias else None

    def forward(self, group: LengthGroup) -> Float[Tensor, "#sequences heads longest longest"]:
        """Return the bias of each pair of cells; values for future tokens are undefined."""
        total: Tensor | float = 0.0
        if self.by_steps is not None:
            place = torch.arange(group.tokens.shape[1], device=group.tokens.device)
            total = self.by_steps[:, (place[:, None] - place).clamp(min=0)][None]
        if self.by_span is not None:
            assert group.spans is not None, "the spans are made wherever there is a bias by time"
            total = total + self.by_span[:, group.spans].transpose(0, 1)
        assert isinstance(total, Tensor), "a bias has at least one part"
        return total


class GatedLayer(nn.Module):
    """A feed-forward layer whose hidden units are gated (SwiGLU; Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, *, dropout: float, expansion: int = 2) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * expansion * width, bias=False)
        self.down = _silent(nn.Linear(expansion * width, width, bias=False))
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Return what the layer adds to `x`."""
        gate, value = self.up(x).chunk(2, dim=-1)
        added: Tensor = self.dropout(self.down(functional.silu(gate) * value))
        return added


@dataclass(frozen=True)
class LengthGroup:
    """Sequences of nearly equal length, padded to the longest.

    Attributes:
        tokens: Where each cell of the padded block comes from, `[sequences, longest]`; any token where it is padding.
        spans: Step of the time from each token (last axis) to the request at each other, `[sequences, longest,
            longest]`; None without a time bias.
    """

    tokens: Int[Tensor, "sequences longest"]
    spans: Int[Tensor, "sequences longest longest"] | None = None


@dataclass(frozen=True)
class Layout:
    """Layout of a batch's tokens in padded blocks, one for each group of sequences of nearly equal length.

    Attributes:
        groups: The groups, the longest sequences first.
        token_of_cell: Where each cell of all groups, one group after another, comes from, `[cells]`.
        cell_of_token: Where each token is among those cells, `[tokens]`.
    """

    groups: list[LengthGroup]
    token_of_cell: Int[Tensor, "cells"]
    cell_of_token: Int[Tensor, "tokens"]

    @classmethod
    def of(cls, offsets: Int[Tensor, "users_plus_1"]) -> Layout:
        """Return the layout of the sequences between the offsets."""
        starts, lengths = offsets[:-1], offsets.diff()
        order = torch.argsort(lengths, descending=True, stable=True)
        groups, first_cells, num_cells = [], torch.zeros_like(starts), 0
        for begin, end, longest in _alike(lengths[order].tolist()):
            members = order[begin:end]
            steps = torch.arange(longest, device=offsets.device)
            is_real = steps < lengths[members, None]
            groups.append(LengthGroup(torch.where(is_real, starts[members, None] + steps, 0)))
            first_cells[members] = num_cells + torch.arange(len(members), device=offsets.device) * longest
            num_cells += len(members) * longest
        shift = torch.repeat_interleave(first_cells - starts, lengths)
        token_of_cell = torch.cat([group.tokens.flatten() for group in groups])
        return cls(groups, token_of_cell, shift + torch.arange(len(shift), device=offsets.device))

    def timed(self, moments: Moments | None) -> Layout:
        """Return the layout with the time spans between the tokens of each group."""
        return replace(self, groups=[replace(group, spans=_pair_spans(group, moments)) for group in self.groups])

    def in_groups(
        self, values: Float[Tensor, "tokens width"], function: Callable[[Tensor, LengthGroup], Tensor]
    ) -> Float[Tensor, "tokens result"]:
        """Return what a function makes of the values, which is given each group's as `[sequences, longest, width]`.

        What it makes of padding is left out, and padding must have no say in what it makes of tokens.
        """
        cells = _Pad.apply(values, self.token_of_cell, self.cell_of_token)
        blocks = cells.split([group.tokens.numel() for group in self.groups])
        results = [
            function(block.view(*group.tokens.shape, -1), group).flatten(0, 1)
            for block, group in zip(blocks, self.groups, strict=True)
        ]
        result: Tensor = torch.cat(results).index_select(0, self.cell_of_token)
        return result


class _Pad(torch.autograd.Function):
    """The values of tokens in their cells. Each token has one cell of its own, so that gradients are gathered, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, token_of_cell: Tensor, cell_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(cell_of_token)
        return values.index_select(0, token_of_cell)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (cell_of_token,) = ctx.saved_tensors
        return gradients[0].index_select(0, cell_of_token), None, None


def _alike(lengths: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and longest of each run of nearly equal lengths, or of short ones; the lengths fall."""
    begin = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (lengths[begin] > SHORT and lengths[end] < PADDING_TOLERANCE * lengths[begin]):
            yield begin, end, lengths[begin]
            begin = end


def time_spans(event: Int[Tensor, "*#pairs"], request: Int[Tensor, "*#pairs"]) -> Int[Tensor, "*pairs"]:
    """Return the step, 0 to `NUM_SPANS` - 1, of the time from event to request; `UNKNOWN_SPAN` where one is unknown.

    A span of s seconds is in step `3 ln(1 + s)`, rounded down; a request from before the event counts as 0 seconds.
    """
    seconds = (request - event).clamp(min=0).float()
    spans = (seconds.log1p() * SPANS_A_TURN).long().clamp(max=NUM_SPANS - 1)
    return spans.masked_fill((event == UNKNOWN_TIME) | (request == UNKNOWN_TIME), UNKNOWN_SPAN)


def _sum_over_root(
    tokens: Float[Tensor, "tokens width"], offsets: Int[Tensor, "users_plus_1"], place: Int[Tensor, "tokens"]
) -> Float[Tensor, "tokens width"]:
    """Return the sum of the tokens so far over the root of their number: unlike tokens add up to the length of one."""
    total: Tensor = running_sum(tokens, offsets) / (place + 1)[:, None] ** 0.5
    return total.to(tokens.dtype)


def running_sum(
    values: Float[Tensor, "tokens width"], offsets: Int[Tensor, "users_plus_1"]
) -> Float[Tensor, "tokens width"]:
    """Return the sum of each user's values up to and with each token, in double precision."""
    total = values.double().cumsum(0)
    before = functional.pad(total, (0, 0, 1, 0))[offsets[:-1]]
    return total - torch.repeat_interleave(before, offsets.diff(), dim=0, output_size=len(values))


def _silent(layer: nn.Linear) -> nn.Linear:
    """Return the layer with zeros for weights."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _pair_spans(group: LengthGroup, moments: Moments | None) -> Int[Tensor, "sequences longest longest"]:
    """Return the step of the time from each token (last axis) to the request at each other."""
    if moments is None:
        size = (*group.tokens.shape, group.tokens.shape[1])
        return torch.full(size, UNKNOWN_SPAN, device=group.tokens.device)
    return time_spans(moments.event[group.tokens][:, None, :], moments.request[group.tokens][:, :, None])


def _own_spans(num_tokens: int, moments: Moments | None, device: torch.device) -> Int[Tensor, "tokens"]:
    """Return the step of the time from each token to the request at it."""
    if moments is None:
        return torch.full((num_tokens,), UNKNOWN_SPAN, device=device)
    return time_spans(moments.event, moments.request)


def _place(offsets: Int[Tensor, "users_plus_1"], num_tokens: int) -> Int[Tensor, "tokens"]:
    """Return the place of each token in its sequence, from 0."""
    starts = torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=num_tokens)
    return torch.arange(num_tokens, device=offsets.device) - starts


def _heads(block: Float[Tensor, "sequences longest width"], parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Return each part of a block as `[sequences, heads, longest, head width]`."""
    sequences, longest, _ = block.shape
    return block.view(sequences, longest, parts, num_heads, -1).permute(2, 0, 3, 1, 4).unbind()


def _future(longest: int, device: torch.device) -> Tensor:
    return torch.ones(longest, longest, dtype=torch.bool, device=device).triu(1)
