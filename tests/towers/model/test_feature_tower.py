"""Vectors at length one: the same as torch makes, gradients included."""

import torch
from torch.nn import functional

from towers.model.feature_tower import unit


def test_the_length_is_one_and_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    vectors = (torch.randn(7, 5, dtype=torch.double) * 3).requires_grad_()
    weights = torch.randn(7, 5, dtype=torch.double)
    ours, theirs = unit(vectors), functional.normalize(vectors, dim=-1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), vectors), torch.autograd.grad((theirs * weights).sum(), vectors)
    )
    assert torch.autograd.gradcheck(unit, vectors)


def test_zeros_stay_zeros_and_have_finite_gradients() -> None:
    zeros = torch.zeros(2, 3, requires_grad=True)
    result = unit(zeros)
    assert not result.any()
    result.sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()
