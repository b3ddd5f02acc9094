"""History encoders: nothing is seen ahead of its time, and packing changes nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.sequences import offsets_of
from towers.history import CausalMean, CausalTransformer, length_groups

WIDTH = 16


def encoders() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        CausalMean(WIDTH, dropout=0.5),
        CausalTransformer(WIDTH, blocks=2, heads=2, length=64, dropout=0.5),
    ]


def offsets(*lengths: int) -> Tensor:
    return torch.from_numpy(offsets_of(np.array(lengths)))


@pytest.mark.parametrize("encoder", encoders(), ids=lambda encoder: type(encoder).__name__)
def test_each_user_is_summarised_as_if_he_were_alone(encoder: nn.Module) -> None:
    lengths = (5, 1, 40, 39, 3, 1)
    tokens = torch.randn(sum(lengths), WIDTH)
    together = encoder.eval()(tokens, offsets(*lengths))
    alone = [encoder(part, offsets(len(part))) for part in tokens.split(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", encoders(), ids=lambda encoder: type(encoder).__name__)
def test_a_summary_does_not_depend_on_what_comes_later(encoder: nn.Module) -> None:
    tokens = torch.randn(20, WIDTH, requires_grad=True)
    encoder.eval()(tokens, offsets(8, 12))[12].sum().backward()  # the fifth token of the second user
    assert tokens.grad is not None
    moved = tokens.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [False] * 8 + [True] * 5 + [False] * 7


def test_the_mean_is_the_mean_of_the_tokens_so_far() -> None:
    encoder = CausalMean(2, dropout=0.0)
    nn.init.zeros_(encoder.mix.down.weight)  # takes the hidden layer away
    tokens = torch.tensor([[2.0, 0.0], [4.0, 2.0], [10.0, 10.0], [0.0, 4.0]])
    # User 1: 2, then (2 + 4) / 2 = 3; user 2: 10, then (10 + 0) / 2 = 5.
    expected = torch.tensor([[2.0, 0.0], [3.0, 1.0], [10.0, 10.0], [5.0, 7.0]])
    torch.testing.assert_close(encoder(tokens, offsets(2, 2)), expected)


def test_the_transformer_is_the_textbook_one() -> None:
    torch.manual_seed(1)
    encoder = CausalTransformer(8, blocks=1, heads=2, length=8, dropout=0.0).eval()
    tokens = torch.randn(6, 8)
    (block,) = encoder.blocks
    x = tokens + encoder.positions[:6]
    query, key, value = block.qkv(block.attention_norm(x)).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = query[:, head] @ key[:, head].T / 4**0.5
        weights = weights.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(dim=-1)
        heads.append(weights @ value[:, head])
    x = x + block.out(torch.cat(heads, dim=-1))
    gate, up = block.mix.up(block.mix_norm(x)).chunk(2, dim=-1)
    x = x + block.mix.down(functional.silu(gate) * up)
    torch.testing.assert_close(encoder(tokens, offsets(6)), encoder.norm(x), rtol=1e-4, atol=1e-5)


def test_groups_hold_every_token_once_and_little_padding() -> None:
    lengths = [50, 1, 7, 45, 7, 2, 30]
    groups = length_groups(offsets(*lengths))
    tokens = torch.cat([group.tokens[group.is_real] for group in groups])
    assert sorted(tokens.tolist()) == list(range(sum(lengths)))
    padded = sum(group.tokens.numel() for group in groups)
    assert padded <= sum(lengths) / 0.8
