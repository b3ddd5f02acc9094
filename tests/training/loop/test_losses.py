"""The loss and its gradients against a slow, obvious reference, and against the formulas of the papers it is after."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from features.errors import DataError
from features.sequences.batches import SequenceBatch
from training.config import TrainingConfig
from training.loop import losses
from training.loop.losses import LOSSES, check_loss, matryoshka_loss, softmax_loss
from training.loop.negatives import (
    InBatchSampler,
    LogQ,
    MaskedPairs,
    MixedSampler,
    Negatives,
    Targets,
    TrendNumbers,
    UniformSampler,
)


def masked(mask: Tensor, **weights: Tensor) -> Negatives:
    """Negatives of which those of a boolean `[positives, negatives]` are forbidden."""
    cells = MaskedPairs(*mask.nonzero(as_tuple=True), starts=functional.pad(mask.sum(1).cumsum(0), (1, 0)))
    return Negatives(torch.arange(mask.shape[1]), cells, **weights)


def unmasked(num_positives: int, num_items: int) -> Negatives:
    return masked(torch.zeros(num_positives, num_items, dtype=torch.bool))


def unit_vectors(rows: int, generator: torch.Generator, width: int = 4) -> Tensor:
    vectors = torch.randn(rows, width, generator=generator, dtype=torch.double)
    return functional.normalize(vectors, dim=1).requires_grad_()


def reference(users: Tensor, positives: Tensor, items: Tensor, scale: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """One positive at a time, in the words of the docstring; `weight` is `[positives, negatives]`."""
    total = users.new_zeros(())
    for row in range(len(users)):
        positive = scale * users[row] @ positives[row]
        others = [
            weight[row, j] * torch.exp(scale * users[row] @ items[j])
            for j in range(len(items))
            if not bool(mask[row, j])
        ]
        total = total + torch.log(torch.exp(positive) + sum(others)) - positive
    return total / len(users)


def test_the_setting_accepts_the_names_of_the_table() -> None:
    assert TrainingConfig.model_fields["loss"].examples == [*LOSSES], "as the reference lists them"
    for name in LOSSES:
        check_loss(TrainingConfig(loss=name).loss)
    with pytest.raises(DataError, match=r"loss: expected one of softmax, found 'hinge'; in Python, add your own to"):
        check_loss(TrainingConfig(loss="hinge").loss)


@given(
    st.integers(1, 9),
    st.integers(1, 12),
    st.sampled_from([0, 1, 3]),
    st.integers(0, 1000),
    st.integers(1, 40),
)
def test_loss_and_gradients_equal_the_reference(
    num_positives: int, num_items: int, ways: int, seed: int, cells: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [unit_vectors(rows, generator) for rows in (num_positives, num_positives, num_items)]
    scale = torch.tensor(6.0, dtype=torch.double, requires_grad=True)
    mask = torch.rand(num_positives, num_items, generator=generator) < 0.3
    weight = torch.ones(num_positives, num_items, dtype=torch.double)
    given_weights = {}
    if ways:
        given_weights["factors"] = torch.rand(num_positives, ways, generator=generator, dtype=torch.double)
        given_weights["expected"] = torch.rand(ways, num_items, generator=generator, dtype=torch.double)
        weight = 1 / (given_weights["factors"] @ given_weights["expected"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "BLOCK_CELLS", cells)
        patch.setattr(losses, "BLOCK_COLUMNS", max(1, cells // 3))
        loss = softmax_loss(*leaves, scale, masked(mask, **given_weights))
        gradients = torch.autograd.grad(loss, (*leaves, scale))
    expected = reference(*leaves, scale, weight, mask)
    torch.testing.assert_close(loss, expected)
    expected_gradients = torch.autograd.grad(expected, (*leaves, scale), allow_unused=True)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if wanted is None else wanted)


@given(
    st.integers(0, 7),
    st.integers(1, 9),
    st.sampled_from([(), (1,), (2, 3)]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0, 2]),
    st.integers(0, 1000),
)
def test_the_nested_loss_and_its_gradients_equal_the_reference(
    num_positives: int, num_items: int, prefixes: Sequence[int], prefix_weight: float, ways: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [unit_vectors(rows, generator) for rows in (num_positives, num_positives, num_items)]
    scales = [torch.tensor(6.0 + one, dtype=torch.double, requires_grad=True) for one in range(1 + len(prefixes))]
    mask = torch.rand(num_positives, num_items, generator=generator) < 0.3
    weights = {
        "factors": 1 + torch.rand(num_positives, ways, generator=generator, dtype=torch.double),
        "expected": 1 + torch.rand(ways, num_items, generator=generator, dtype=torch.double),
    }
    loss = matryoshka_loss(
        *leaves,
        scales[-1],
        masked(mask, **(weights if ways else {})),
        prefix_scales=dict(zip(prefixes, scales, strict=False)),
        prefix_weight=prefix_weight,
    )
    weight = 1 / (weights["factors"] @ weights["expected"]) if ways else torch.ones(mask.shape, dtype=torch.double)
    total, sum_of_weights = leaves[0].new_zeros(()), 0.0
    for width, scale, share in zip([*prefixes, 4], scales, [prefix_weight] * len(prefixes) + [1.0], strict=True):
        short = [vectors[:, :width] for vectors in leaves]
        if width < 4:  # whole vectors are of length one as they come
            short = [vectors / vectors.norm(dim=1, keepdim=True) for vectors in short]
        if num_positives:
            total = total + share * reference(*short, scale, weight, mask)
        sum_of_weights += share
    torch.testing.assert_close(loss, total / sum_of_weights)
    if num_positives:
        found, wanted = (
            torch.autograd.grad(one, (*leaves, *scales), materialize_grads=True)
            for one in (loss, total / sum_of_weights)
        )
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([0, 2]), st.integers(0, 1000), st.integers(1, 40))
def test_recent_popularity_is_a_part_of_each_logit_that_differs_by_the_moment_of_the_positive(
    num_positives: int, num_items: int, prefix: int, seed: int, cells: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    users, positives, items = (unit_vectors(rows, generator) for rows in (num_positives, num_positives, num_items))
    weights = torch.randn(num_positives, 2, generator=generator, dtype=torch.double, requires_grad=True)
    own = torch.rand(num_positives, 2, generator=generator, dtype=torch.double)
    numbers = torch.randint(256, (2, 3, num_items), generator=generator, dtype=torch.uint8)
    moments = torch.randint(3, (num_positives,), generator=generator)
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    mask = torch.rand(num_positives, num_items, generator=generator) < 0.3
    weight = torch.ones(num_positives, num_items, dtype=torch.double)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "BLOCK_CELLS", cells)
        patch.setattr(losses, "BLOCK_COLUMNS", max(1, cells // 3))
        loss = matryoshka_loss(
            torch.cat([users, weights], dim=1),
            torch.cat([positives, own], dim=1),
            items,
            scale,
            replace(masked(mask), trend=TrendNumbers(numbers, moments)),
            prefix_scales={prefix: scale} if prefix else {},
        )
        found = torch.autograd.grad(loss, (users, weights, items, scale))
    total = users.new_zeros(())
    widths = [prefix, 4] if prefix else [4]
    for width in widths:
        user, positive, item = (
            functional.normalize(one[:, :width], dim=1) if width == prefix else one for one in (users, positives, items)
        )
        for row in range(num_positives):
            total = total + reference(
                torch.cat([user, weights], dim=1)[row, None],
                torch.cat([positive, own], dim=1)[row, None],
                torch.cat([item, numbers[:, moments[row]].T / 255], dim=1),
                scale,
                weight[row, None],
                mask[row, None],
            )
    expected = total / num_positives / len(widths)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, (users, weights, items, scale), materialize_grads=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_prefixes_the_nested_loss_is_the_softmax_loss_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    leaves = [unit_vectors(rows, generator, width=16).detach().float().requires_grad_() for rows in (50, 50, 70)]
    scale = torch.tensor(20.0, requires_grad=True)
    plain = softmax_loss(*leaves, scale, unmasked(50, 70))
    nested = matryoshka_loss(*leaves, scale, unmasked(50, 70), prefix_scales={})
    assert plain.item() == nested.item()
    for ours, theirs in zip(*(torch.autograd.grad(loss, (*leaves, scale)) for loss in (nested, plain)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prefixes", [(), (2, 4, 8)])
def test_no_logits_are_kept_for_the_backward_pass(prefixes: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_CELLS", 10_000)
    generator = torch.Generator().manual_seed(1)
    users, positives, items = (unit_vectors(rows, generator, width=16) for rows in (300, 300, 500))
    scale, kept = torch.tensor(5.0, dtype=torch.double, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda one: one
    ):
        loss = matryoshka_loss(
            users, positives, items, scale, unmasked(300, 500), prefix_scales=dict.fromkeys(prefixes, scale)
        )
    loss.backward()
    assert max(kept) == items.numel(), "300 x 500 logits are many more"


def test_gradients_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    users, positives, items = (unit_vectors(rows, generator, width=3) for rows in (4, 4, 5))
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    negatives = masked(
        torch.rand(4, 5, generator=generator) < 0.3,
        factors=torch.rand(4, 2, generator=generator, dtype=torch.double),
        expected=torch.rand(2, 5, generator=generator, dtype=torch.double),
    )
    assert torch.autograd.gradcheck(
        lambda *given: softmax_loss(*given, negatives), (users, positives, items, scale), raise_exception=True
    )


@pytest.mark.parametrize(("num_positives", "num_items"), [(1, 1), (64, 64), (65, 130), (300, 1100), (1030, 70)])
def test_bfloat16_comes_close_whatever_the_shape(
    num_positives: int, num_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK_COLUMNS", 500)
    monkeypatch.setattr(losses, "BLOCK_CELLS", 90_000)
    generator = torch.Generator().manual_seed(1)
    leaves = [
        unit_vectors(rows, generator, width=16).detach().float().requires_grad_() for rows in (num_positives,) * 2
    ]
    leaves.append(unit_vectors(num_items, generator, width=16).detach().float().requires_grad_())
    scale = torch.tensor(5.0, requires_grad=True)
    negatives = masked(torch.rand(num_positives, num_items, generator=generator) < 0.1)
    found = []
    for precision in (torch.float32, torch.bfloat16):
        loss = softmax_loss(*leaves, scale, negatives, precision=precision)
        found.append([loss, *torch.autograd.grad(loss, (*leaves, scale))])
    for exact, close in zip(*found, strict=True):
        torch.testing.assert_close(close, exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


def test_bfloat16_multiplies_in_few_shapes() -> None:
    # oneDNN keeps half a megabyte of program for each shape; see `_rounded`.
    sizes = {n: len(losses._rounded(torch.zeros(n, 1), torch.bfloat16)) for n in range(1, 16_385)}
    assert len(set(sizes.values())) <= 50
    assert all(n <= size <= max(n + 63, n * 1.125) for n, size in sizes.items())
    assert len(losses._rounded(torch.zeros(77, 1), torch.float32)) == 77


def test_a_forbidden_item_gets_no_gradient_at_all() -> None:
    users = torch.eye(2)
    items = torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    loss = softmax_loss(
        users, torch.eye(2), items, torch.tensor(20.0), masked(torch.tensor([[True, False], [True, False]]))
    )
    loss.backward()
    assert items.grad is not None
    assert items.grad[0].tolist() == [0.0, 0.0]
    assert items.grad[1].abs().sum() > 0


def test_three_equal_logits_cost_the_logarithm_of_three() -> None:
    # The user is as close to the positive as to the two negatives: -log(1/3).
    vector = torch.tensor([[1.0, 0.0]])
    loss = softmax_loss(vector, vector, vector.repeat(2, 1), torch.tensor(10.0), unmasked(1, 2))
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    users, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = softmax_loss(users, -users, items, torch.tensor(100.0), unmasked(1, 2))
    assert loss.item() == pytest.approx(200.0, rel=1e-5)


def test_a_batch_without_positives_costs_nothing_and_moves_nothing() -> None:
    items = torch.eye(3, requires_grad=True)
    loss = softmax_loss(torch.zeros(0, 3), torch.zeros(0, 3), items, torch.tensor(10.0), unmasked(0, 3))
    loss.backward()
    assert loss.item() == 0
    assert items.grad is not None
    assert items.grad.abs().sum() == 0


# From here on: one user to a batch, each with one positive, so that the positive is all that is masked.

SHARE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.double)


def one_visit_each(rows: list[int]) -> Targets:
    offsets = torch.arange(len(rows) + 1)
    items = torch.tensor(rows)
    return Targets.of(
        SequenceBatch(
            users=torch.arange(len(rows)),
            offsets=offsets,
            item_rows=items,
            times=None,
            is_target=torch.ones(len(rows), dtype=torch.bool),
            known_offsets=offsets,
            known_rows=items,
        )
    )


class Recorded:
    """A source that remembers what it drew."""

    def __init__(self, source: InBatchSampler | UniformSampler) -> None:
        self.source = source
        self.expected = source.expected

    def draw(self, targets: Targets, generator: torch.Generator) -> Tensor:
        self.drawn = self.source.draw(targets, generator)
        return self.drawn


def compared(source: InBatchSampler | UniformSampler, log_q: LogQ, formula: object) -> None:
    """Compare loss or gradients with a formula of (positive logit, logits of all items, positive, rows drawn)."""
    generator = torch.Generator().manual_seed(3)
    targets = one_visit_each([0, 1, 0, 3, 2, 1])
    recorded = Recorded(source)
    negatives = MixedSampler(4, [recorded], log_q=log_q).draw(targets, generator)
    users, catalogue = unit_vectors(6, generator), unit_vectors(4, generator)
    scale = torch.tensor(4.0, dtype=torch.double)
    found = softmax_loss(users, catalogue[targets.rows], catalogue[negatives.rows], scale, negatives)
    logits = scale * users @ catalogue.T
    rows = list(zip(logits, targets.rows.tolist(), strict=True))
    wanted = torch.stack([formula(row[positive], row, positive, recorded.drawn) for row, positive in rows]).mean()  # type: ignore[operator]
    if log_q != "negatives":  # their loss for the other has the same gradient, but another value
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (users, catalogue)) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_corrected_log_q_correction() -> None:
    def khrylchenko(positive_logit: Tensor, logits: Tensor, positive: int, drawn: Tensor) -> Tensor:
        others = drawn[drawn != positive]
        corrected = logits[others] - torch.log(SHARE[others] / (1 - SHARE[positive]))
        mean = corrected.exp().mean()
        certainty = positive_logit.exp() / (positive_logit.exp() + mean)
        return -(1 - certainty).detach() * (positive_logit - corrected.logsumexp(0))

    compared(InBatchSampler(9, SHARE), "negatives", khrylchenko)


def test_log_q_of_all_is_the_classic_correction() -> None:
    def yi(positive_logit: Tensor, logits: Tensor, positive: int, drawn: Tensor) -> Tensor:
        others = drawn[drawn != positive]
        corrected = logits[others] - torch.log(SHARE[others])
        own = positive_logit - torch.log(SHARE[positive])
        return torch.cat([own[None], corrected]).logsumexp(0) - own

    compared(InBatchSampler(9, SHARE), "all", yi)


@pytest.mark.parametrize(("source", "log_q"), [(InBatchSampler(9, SHARE), "none"), (UniformSampler(4, 9), "all")])
def test_no_correction_and_one_that_cancels_are_the_plain_sampled_softmax(
    source: InBatchSampler | UniformSampler, log_q: LogQ
) -> None:
    def plain(positive_logit: Tensor, logits: Tensor, positive: int, drawn: Tensor) -> Tensor:
        return torch.cat([positive_logit[None], logits[drawn[drawn != positive]]]).logsumexp(0) - positive_logit

    compared(source, log_q, plain)
