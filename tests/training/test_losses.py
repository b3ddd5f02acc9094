"""The loss and its gradients against a slow, obvious reference; the negatives against counting by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from features.batches import SequenceBatch
from training import losses
from training.losses import softmax_loss
from training.negatives import AllItems, Forbidden, MixedSample, Negatives, forbidden


def reference(users: Tensor, positives: Tensor, items: Tensor, scale: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """One positive at a time, in the words of the docstring."""
    total = users.new_zeros(())
    for row in range(len(users)):
        positive = scale * users[row] @ positives[row]
        others = [
            weight[j] * torch.exp(scale * users[row] @ items[j]) for j in range(len(items)) if not bool(mask[row, j])
        ]
        total = total + torch.log(torch.exp(positive) + sum(others)) - positive
    return total / len(users)


@given(st.integers(1, 9), st.integers(1, 12), st.booleans(), st.integers(0, 1000), st.integers(1, 40))
def test_loss_and_gradients_equal_the_reference(
    num_positives: int, num_items: int, weighted: bool, seed: int, cells: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        vectors = torch.randn(rows, 4, generator=generator, dtype=torch.double)
        return functional.normalize(vectors, dim=1).requires_grad_()

    users, positives, items = draw(num_positives), draw(num_positives), draw(num_items)
    scale = torch.tensor(6.0, dtype=torch.double, requires_grad=True)
    log_weight = torch.randn(num_items, generator=generator, dtype=torch.double) if weighted else None
    mask = torch.rand(num_positives, num_items, generator=generator) < 0.3
    given_cells = Forbidden(*mask.nonzero(as_tuple=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "BLOCK_CELLS", cells)
        patch.setattr(losses, "BLOCK_COLUMNS", max(1, cells // 3))
        loss = softmax_loss(users, positives, items, scale, Negatives(torch.arange(num_items), log_weight), given_cells)
        gradients = torch.autograd.grad(loss, (users, positives, items, scale))
    weight = torch.ones(num_items, dtype=torch.double) if log_weight is None else log_weight.exp()
    expected = reference(users, positives, items, scale, weight, mask)
    torch.testing.assert_close(loss, expected)
    expected_gradients = torch.autograd.grad(expected, (users, positives, items, scale), allow_unused=True)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if wanted is None else wanted)


def test_a_forbidden_item_gets_no_gradient_at_all() -> None:
    users = torch.eye(2)
    items = torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    forbidden_cells = Forbidden(torch.tensor([0, 1]), torch.tensor([0, 0]))
    negatives = Negatives(torch.tensor([5, 7]), None)
    loss = softmax_loss(users, torch.eye(2), items, torch.tensor(20.0), negatives, forbidden_cells)
    loss.backward()
    assert items.grad is not None
    assert items.grad[0].tolist() == [0.0, 0.0]
    assert items.grad[1].abs().sum() > 0


def test_three_equal_logits_cost_the_logarithm_of_three() -> None:
    # The user is as close to the positive as to the two negatives: -log(1/3).
    vector = torch.tensor([[1.0, 0.0]])
    negatives = Negatives(torch.tensor([1, 2]), None)
    nothing = Forbidden(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    loss = softmax_loss(vector, vector, vector.repeat(2, 1), torch.tensor(10.0), negatives, nothing)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    users, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    nothing = Forbidden(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    loss = softmax_loss(users, -users, items, torch.tensor(100.0), Negatives(torch.arange(2), None), nothing)
    assert loss.item() == pytest.approx(200.0, rel=1e-5)


def test_the_sampled_sum_estimates_the_sum_over_the_catalogue() -> None:
    # sum_j exp(s_j) over 50 items, against the mean of 4,000 corrected samples of 8 + 8 draws.
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, generator=generator) * 3
    counts = torch.randint(1, 30, (50,), generator=generator)
    positives = torch.repeat_interleave(torch.arange(50), counts)
    sampler = MixedSample(50, uniform=8, in_batch=8, item_counts=counts)
    sums = []
    for _ in range(4000):
        drawn = sampler.draw(positives, generator)
        assert drawn.log_weight is not None
        sums.append((drawn.log_weight.exp() * values[drawn.rows].exp()).sum())
    estimates = torch.stack(sums)
    error = estimates.std() / 4000**0.5
    assert abs(estimates.mean() - values.exp().sum()) < 4 * error


def batch_of(known: list[list[int]]) -> SequenceBatch:
    rows = torch.tensor([row for rows in known for row in rows])
    offsets = torch.tensor([0, *torch.tensor([len(rows) for rows in known]).cumsum(0).tolist()])
    return SequenceBatch(
        users=torch.arange(len(known)),
        offsets=offsets,
        item_rows=rows,
        times=None,
        is_target=torch.ones(len(rows), dtype=torch.bool),
        known_offsets=offsets,
        known_rows=rows,
    )


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5),
    st.sets(st.integers(0, 9), min_size=1),
    st.data(),
)
def test_exactly_the_known_positives_of_the_user_are_forbidden(
    known: list[list[int]], drawn: set[int], data: st.DataObject
) -> None:
    users = sorted(data.draw(st.lists(st.integers(0, len(known) - 1), max_size=8)))
    rows = sorted(drawn)
    found = forbidden(Negatives(torch.tensor(rows), None), batch_of(known), torch.tensor(users, dtype=torch.long), 10)
    cells = set(zip(found.positives.tolist(), found.negatives.tolist(), strict=True))
    expected = {(p, c) for p, user in enumerate(users) for c, row in enumerate(rows) if row in known[user]}
    assert cells == expected
    assert found.positives.tolist() == sorted(found.positives.tolist())


def test_all_items_are_negatives_without_correction() -> None:
    negatives = AllItems(4, torch.device("cpu")).draw(torch.tensor([1]), torch.Generator())
    assert negatives.rows.tolist() == [0, 1, 2, 3]
    assert negatives.log_weight is None


def test_an_item_drawn_twice_is_one_negative_that_weighs_twice() -> None:
    # One item only: drawn 3 times uniformly and twice from the batch, expected 3/1 + 2 * 1 = 5 times: weight 5/5.
    sampler = MixedSample(1, uniform=3, in_batch=2, item_counts=torch.tensor([7]))
    negatives = sampler.draw(torch.tensor([0, 0]), torch.Generator().manual_seed(0))
    assert negatives.rows.tolist() == [0]
    assert negatives.log_weight is not None
    assert negatives.log_weight.tolist() == pytest.approx([0.0], abs=1e-6)


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected some negatives, found uniform_negatives = in_batch_negatives = 0"):
        MixedSample(5, uniform=0, in_batch=0, item_counts=torch.ones(5, dtype=torch.long))
