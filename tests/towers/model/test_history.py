"""History encoders: nothing is seen ahead of its time, and packing changes nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.sequences.ragged import offsets_of
from features.sequences.sequences import UNKNOWN_TIME
from towers.model.history import (
    NUM_SPANS,
    UNKNOWN_SPAN,
    CausalAttention,
    CausalAttentionPooling,
    CausalMean,
    Layout,
    LengthGroup,
    Moments,
    time_spans,
)

WIDTH = 16


def speaking(encoder: nn.Module) -> nn.Module:
    """The encoder as after some training: what begins as zeros is no longer."""
    for parameter in encoder.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def attention(kind: str, *, width: int = WIDTH, num_layers: int = 2, length: int = 64, **switches: bool) -> nn.Module:
    return speaking(
        CausalAttention(width, kind=kind, num_layers=num_layers, num_heads=2, length=length, dropout=0.5, **switches)
    )


def encoders() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "mean": speaking(CausalMean(WIDTH, dropout=0.5)),
        "attention-pooling": speaking(CausalAttentionPooling(WIDTH, num_heads=2, dropout=0.5)),
        "transformer": attention("transformer"),
        "transformer with time": attention("transformer", time_bias=True),
        "transformer with a bag": attention("transformer", sum_residual=True),
        "hstu": attention("hstu"),
        "hstu with time": attention("hstu", time_bias=True),
    }


every_encoder = pytest.mark.parametrize("encoder", encoders().values(), ids=encoders().keys())


def moments_of(num_tokens: int) -> Moments:
    event = torch.randint(1_000_000, (num_tokens,))
    return Moments(event, event + torch.randint(1_000_000, (num_tokens,)))


def offsets(*lengths: int) -> Tensor:
    return torch.from_numpy(offsets_of(np.array(lengths)))


@every_encoder
def test_each_user_is_summarised_as_if_he_were_alone(encoder: nn.Module) -> None:
    lengths = (5, 1, 40, 39, 3, 1)
    tokens = torch.randn(sum(lengths), WIDTH)
    moments = moments_of(len(tokens))
    together = encoder(tokens, offsets(*lengths), moments)
    alone = [
        encoder(part, offsets(len(part)), Moments(event, request))
        for part, event, request in zip(
            tokens.split(lengths), moments.event.split(lengths), moments.request.split(lengths), strict=True
        )
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@every_encoder
def test_a_summary_does_not_depend_on_what_comes_later(encoder: nn.Module) -> None:
    tokens = torch.randn(20, WIDTH, requires_grad=True)
    encoder(tokens, offsets(8, 12), moments_of(20))[12].sum().backward()  # the fifth token of the second user
    assert tokens.grad is not None
    moved = tokens.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [False] * 8 + [True] * 5 + [False] * 7


def test_the_mean_is_the_mean_of_the_tokens_so_far() -> None:
    encoder = CausalMean(2, dropout=0.0)  # untrained, its hidden layer adds nothing
    tokens = torch.tensor([[2.0, 0.0], [4.0, 2.0], [10.0, 10.0], [0.0, 4.0]])
    # User 1: 2, then (2 + 4) / 2 = 3; user 2: 10, then (10 + 0) / 2 = 5.
    expected = torch.tensor([[2.0, 0.0], [3.0, 1.0], [10.0, 10.0], [5.0, 7.0]])
    torch.testing.assert_close(encoder(tokens, offsets(2, 2)), expected)


def test_a_bag_is_the_sum_of_the_tokens_so_far_over_the_root_of_their_number_added_to_the_summary() -> None:
    torch.manual_seed(1)
    encoder = attention("transformer", width=8, num_layers=1, length=8, sum_residual=True)
    tokens = torch.randn(6, 8)
    with_bag = encoder(tokens, offsets(2, 4))
    matrix = encoder.sum_residual.weight
    encoder.sum_residual = None
    sums = torch.stack([tokens[0], tokens[:2].sum(0), *(tokens[2:end].sum(0) for end in (3, 4, 5, 6))])
    roots = torch.tensor([1.0, 2.0, 1.0, 2.0, 3.0, 4.0]).sqrt()
    torch.testing.assert_close(with_bag, encoder(tokens, offsets(2, 4)) + (sums / roots[:, None]) @ matrix.T)


def test_the_transformer_is_the_textbook_one() -> None:
    torch.manual_seed(1)
    encoder = attention("transformer", width=8, num_layers=1, length=8)
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


def test_attention_pooling_is_the_weighted_mean_so_far() -> None:
    torch.manual_seed(2)
    encoder = speaking(CausalAttentionPooling(8, num_heads=2, dropout=0.0))
    tokens = torch.randn(7, 8)
    normed = encoder.token_norm(tokens)
    values, scores = tokens + encoder.value(normed), encoder.score(normed)
    for place, (begin, end) in {2: (0, 3), 6: (3, 7)}.items():
        weights = scores[begin:end].softmax(dim=0)
        pooled = torch.cat([weights[:, 0] @ values[begin:end, :4], weights[:, 1] @ values[begin:end, 4:]])
        expected = pooled + encoder.mix(encoder.norm(pooled)[None])[0]
        torch.testing.assert_close(encoder(tokens, offsets(3, 4))[place], expected, rtol=1e-4, atol=1e-5)


def test_attention_pooling_begins_as_a_mean_and_bears_extreme_scores() -> None:
    encoder = CausalAttentionPooling(8, num_heads=2, dropout=0.0)
    tokens = torch.randn(300, 8)
    mean = tokens.cumsum(0) / torch.arange(1, 301)[:, None]
    torch.testing.assert_close(encoder(tokens, offsets(300)), mean, rtol=1e-4, atol=1e-4)
    nn.init.constant_(encoder.score.weight, 1e4)
    assert encoder(tokens, offsets(300)).isfinite().all()


@pytest.mark.parametrize("kind", ["transformer", "hstu"])
def test_before_training_a_user_is_what_he_had_last(kind: str) -> None:
    encoder = CausalAttention(8, kind=kind, num_layers=3, num_heads=2, length=9, time_bias=True, dropout=0.0)
    tokens = torch.randn(5, 8) * 8
    nearest = functional.normalize(encoder(tokens, offsets(5), moments_of(5))) @ functional.normalize(tokens).T
    assert nearest.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]
    assert (nearest.diagonal() > 0.99).all()


def test_hstu_is_the_papers() -> None:
    torch.manual_seed(1)
    encoder = attention("hstu", time_bias=True, width=8, num_layers=1, length=8)
    tokens, moments = torch.randn(6, 8), moments_of(6)
    (block,) = encoder.blocks
    x = tokens + encoder.positions[:6]
    x = x + encoder.by_span[[int(3 * np.log1p(int(s))) for s in moments.request - moments.event]]
    gate, query, key, value = functional.silu(block.project(block.norm(x))).chunk(4, dim=-1)
    attended = torch.zeros(6, 8)
    for token in range(6):
        for other in range(token + 1):
            seconds = int(moments.request[token] - moments.event[other])
            step = int(3 * np.log1p(max(seconds, 0)))
            for head, part in enumerate((slice(0, 4), slice(4, 8))):
                logit = query[token, part] @ key[other, part]
                logit = logit + block.bias.by_steps[head, token - other] + block.bias.by_span[head, step]
                attended[token, part] += functional.silu(logit) * value[other, part] / 8
    x = x + block.out(block.attended_norm(attended) * gate)
    torch.testing.assert_close(encoder(tokens, offsets(6), moments), encoder.norm(x), rtol=1e-4, atol=1e-5)


def test_the_transformer_adds_the_bias_by_time_to_its_logits() -> None:
    torch.manual_seed(1)
    encoder = attention("transformer", time_bias=True, width=8, num_layers=1, length=8)
    tokens, moments = torch.randn(4, 8), Moments(torch.tensor([0, 5, 5, 90]), torch.tensor([5, 5, 90, 1000]))
    (block,) = encoder.blocks
    # Seconds from each token to each request, and 3 ln(1 + s) rounded down: ln 6 = 1.79, ln 91 = 4.51, ln 1001 = 6.91.
    seconds = [[5], [5, 0], [90, 85, 85], [1000, 995, 995, 910]]
    steps = [[5], [5, 0], [13, 13, 13], [20, 20, 20, 20]]
    assert [[int(3 * np.log1p(s)) for s in row] for row in seconds] == steps
    spans = time_spans(moments.event[None, :], moments.request[:, None])
    assert [spans[row, : row + 1].tolist() for row in range(4)] == steps
    x = tokens + encoder.positions[:4] + encoder.by_span[[5, 0, 13, 20]]
    query, key, value = block.qkv(block.attention_norm(x)).chunk(3, dim=-1)
    heads = []
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        logits = query[:, part] @ key[:, part].T / 4**0.5 + block.bias.by_span[head, spans]
        heads.append(logits.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(dim=-1) @ value[:, part])
    x = x + block.out(torch.cat(heads, dim=-1))
    x = x + block.mix(block.mix_norm(x))
    torch.testing.assert_close(encoder(tokens, offsets(4), moments), encoder.norm(x), rtol=1e-4, atol=1e-5)


def test_unknown_future_and_remote_times_have_a_step() -> None:
    event = torch.tensor([UNKNOWN_TIME, 100, 0, 100])
    request = torch.tensor([50, UNKNOWN_TIME, 2**40, 40])
    assert time_spans(event, request).tolist() == [UNKNOWN_SPAN, UNKNOWN_SPAN, NUM_SPANS - 1, 0]


@pytest.mark.parametrize("kind", ["transformer", "hstu"])
def test_only_encoders_that_look_at_the_clock_see_the_time(kind: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(9, WIDTH)
    for time_bias in (False, True):
        encoder = attention(kind, time_bias=time_bias)
        told, untold = encoder(tokens, offsets(9), moments_of(9)), encoder(tokens, offsets(9))
        assert torch.equal(told, untold) is not time_bias


def test_every_token_has_a_cell_of_its_own_and_there_is_little_padding() -> None:
    lengths = [50, 1, 7, 45, 17, 7, 2, 30]
    layout = Layout.of(offsets(*lengths))
    assert layout.token_of_cell[layout.cell_of_token].tolist() == list(range(sum(lengths)))
    assert [tuple(group.tokens.shape) for group in layout.groups] == [(2, 50), (1, 30), (1, 17), (4, 7)]


def test_what_is_made_of_padded_blocks_has_the_gradients_of_what_is_made_of_each_sequence() -> None:
    lengths = [5, 1, 4, 3, 1]
    values = torch.randn(sum(lengths), 3, dtype=torch.double, requires_grad=True)

    def products_with_the_past(block: Tensor, group: LengthGroup) -> Tensor:
        return (block @ block.transpose(1, 2)).tril() @ block

    packed = Layout.of(offsets(*lengths)).in_groups(values, products_with_the_past)
    alone = torch.cat([((one @ one.T).tril() @ one) for one in values.split(lengths)])
    torch.testing.assert_close(packed, alone)
    weights = torch.randn_like(packed)
    torch.testing.assert_close(
        torch.autograd.grad((packed * weights).sum(), values), torch.autograd.grad((alone * weights).sum(), values)
    )
