"""Encoders of a user's past: at every point of a sequence, a summary of what came up to there and nothing after.

Tokens of many users come one after another without padding, `[tokens, width]`, with `offsets` saying where each
user's begin. Every position is summarised in one pass, so that one reading of a user trains as many predictions as he
has events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

PADDING_TOLERANCE = 0.8
"""Sequences share a padded block for attention when the shortest has at least this share of the longest."""


class CausalMean(nn.Module):
    """The mean of the tokens so far, through one hidden layer. The order does not matter."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.mix = GatedLayer(width, dropout=dropout)

    def forward(
        self, tokens: Float[Tensor, "tokens width"], offsets: Int[Tensor, users_plus_1]
    ) -> Float[Tensor, "tokens width"]:
        """Return the summary at each token."""
        lengths = offsets.diff()
        total = tokens.double().cumsum(0)
        before = functional.pad(total, (0, 0, 1, 0))[offsets[:-1]]
        num_tokens = len(tokens)
        place = torch.arange(1, num_tokens + 1, device=tokens.device) - _repeat(offsets[:-1], lengths, num_tokens)
        mean = ((total - _repeat(before, lengths, num_tokens)) / place[:, None]).to(tokens.dtype)
        summary: Tensor = mean + self.mix(self.norm(mean))
        return summary


class CausalTransformer(nn.Module):
    """Pre-norm causal self-attention with gated feed-forward layers.

    Linear layers see real tokens only. Attention works on groups of sequences of nearly equal length, each group
    padded to its longest: a real token never looks at padding, because padding comes after it.

    Args:
        width: Numbers in a token.
        blocks: How many layers.
        heads: Attention heads of each layer.
        length: The longest sequence, in tokens.
        dropout: Share of numbers set to zero after the input and after each half of a layer.
    """

    def __init__(self, width: int, *, blocks: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "tokens width"], offsets: Int[Tensor, users_plus_1]
    ) -> Float[Tensor, "tokens width"]:
        """Return the summary at each token."""
        groups = length_groups(offsets)
        place = torch.arange(len(tokens), device=tokens.device) - _repeat(offsets[:-1], offsets.diff(), len(tokens))
        x = self.dropout(tokens + self.positions[place])
        for block in self.blocks:
            x = block(x, groups)
        normed: Tensor = self.norm(x)
        return normed


class GatedLayer(nn.Module):
    """A feed-forward layer whose hidden units are gated (SwiGLU; Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, *, dropout: float, expansion: int = 2) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * expansion * width, bias=False)
        self.down = nn.Linear(expansion * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

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
        is_real: Which cells are tokens, `[sequences, longest]`.
    """

    tokens: Int[Tensor, "sequences longest"]
    is_real: Tensor


def length_groups(offsets: Int[Tensor, users_plus_1]) -> list[LengthGroup]:
    """Divide sequences into groups of nearly equal length."""
    starts, lengths = offsets[:-1], offsets.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    ordered = lengths[order].tolist()
    groups, begin = [], 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or ordered[end] < PADDING_TOLERANCE * ordered[begin]:
            members = order[begin:end]
            steps = torch.arange(ordered[begin], device=offsets.device)
            is_real = steps < lengths[members, None]
            groups.append(LengthGroup(torch.where(is_real, starts[members, None] + steps, 0), is_real))
            begin = end
    return groups


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.mix_norm = nn.RMSNorm(width)
        self.mix = GatedLayer(width, dropout=dropout)

    def forward(self, x: Float[Tensor, "tokens width"], groups: list[LengthGroup]) -> Float[Tensor, "tokens width"]:
        x = x + self.dropout(self.out(self._attend(self.qkv(self.attention_norm(x)), groups)))
        mixed: Tensor = x + self.mix(self.mix_norm(x))
        return mixed

    def _attend(self, qkv: Float[Tensor, "tokens width3"], groups: list[LengthGroup]) -> Float[Tensor, "tokens width"]:
        parts, places = [], []
        for group in groups:
            sequences, longest = group.tokens.shape
            block = qkv[group.tokens].view(sequences, longest, 3, self.heads, -1)
            query, key, value = block.permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            parts.append(attended.transpose(1, 2).reshape(sequences, longest, -1)[group.is_real])
            places.append(group.tokens[group.is_real])
        back = torch.argsort(torch.cat(places))
        return torch.cat(parts)[back]


def _repeat(values: Tensor, lengths: Int[Tensor, rows], total: int) -> Tensor:
    return torch.repeat_interleave(values, lengths, dim=0, output_size=total)
