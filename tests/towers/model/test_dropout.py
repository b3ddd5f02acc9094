"""Dropout: how much of it, and that the rest makes up for it."""

import pytest
import torch

from towers.model.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(400, 500), (100_001,)])
def test_a_share_is_zero_and_the_mean_stays(share: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dropped = Dropout(share)(torch.ones(shape))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - share)])
    assert (dropped == 0).double().mean().item() == pytest.approx(share, abs=5 * (share / dropped.numel()) ** 0.5)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(100_000)) > 0).double()
    for distance in range(1, 9):
        both = (kept[distance:] * kept[:-distance]).mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


def test_gradients_flow_where_numbers_were_kept() -> None:
    x = torch.randn(50, 8, requires_grad=True)
    dropped = Dropout(0.3)(x)
    dropped.sum().backward()
    assert torch.equal(x.grad != 0, dropped != 0)
    torch.testing.assert_close(dropped, x * x.grad)


def test_the_same_seed_drops_the_same() -> None:
    layer = Dropout(0.5)
    torch.manual_seed(3)
    once = layer(torch.ones(1000))
    torch.manual_seed(3)
    assert torch.equal(once, layer(torch.ones(1000)))
    assert not torch.equal(once, layer(torch.ones(1000)))


def test_nothing_is_dropped_outside_of_training() -> None:
    x = torch.randn(7)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
