"""The running average of the weights: the paper's, and never mixed up with the weights themselves."""

import pytest
import torch
from torch import nn

from training.loop.weight_averaging import EVERY, NUMBERS_A_STEP, RECENCY, WeightAverage, steps_between


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(1, 1, bias=False)


def put(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_average_is_the_papers(model: nn.Module) -> None:
    put(model, 7.0)
    average, expected = WeightAverage(model.state_dict), 7.0
    values = torch.randn(40 * EVERY, generator=torch.Generator().manual_seed(0))
    for step, value in enumerate(values.tolist(), start=1):
        put(model, value)
        average.add(step)
        if step % EVERY == 1:
            t = step // EVERY + 1
            share = (RECENCY + 1) / (t + RECENCY)
            expected = (1 - share) * expected + share * value
    assert average.tensors["weight"].item() == pytest.approx(expected, abs=1e-6)


def test_averaging_goes_through_no_more_numbers_a_step_however_large_the_tables() -> None:
    assert steps_between(EVERY * NUMBERS_A_STEP) == EVERY, "of others nothing has changed"
    for numbers in (10**8, 10**9, 10**11):
        assert numbers / steps_between(numbers) <= NUMBERS_A_STEP


def test_of_large_tables_every_so_manieth_step_is_averaged(model: nn.Module) -> None:
    often, rarely = WeightAverage(model.state_dict), WeightAverage(model.state_dict, 3 * EVERY)
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    for place, value in enumerate(values):
        put(model, value)
        often.add(1 + place * EVERY)
        for between in range(3 * EVERY):
            put(model, value if between == 0 else 1e6)
            rarely.add(1 + place * 3 * EVERY + between)
    assert rarely.tensors["weight"].item() == often.tensors["weight"].item()


def test_the_first_weights_take_the_place_of_the_random_ones(model: nn.Module) -> None:
    put(model, 1e6)
    average = WeightAverage(model.state_dict)
    put(model, 3.0)
    average.add(1)  # its share is (8 + 1) / (1 + 8) = 1
    assert average.tensors["weight"].item() == 3.0


def test_the_mean_weight_is_a_tenth_of_the_run_old(model: nn.Module) -> None:
    average = WeightAverage(model.state_dict)
    for step in range(1, 2000 * EVERY + 1):
        put(model, float(step))
        average.add(step)
    age = 1 - average.tensors["weight"].item() / (2000 * EVERY)
    assert age == pytest.approx(1 / (RECENCY + 2), rel=0.01)


def test_the_model_gets_its_own_weights_back_whatever_happens(model: nn.Module) -> None:
    put(model, 1.0)
    average = WeightAverage(model.state_dict)
    put(model, 5.0)
    with average.in_place():
        assert model.weight.item() == 1.0
    assert model.weight.item() == 5.0
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert model.weight.item() == 5.0
    assert average.tensors["weight"].item() == 1.0


def test_the_average_of_16_bits_follows_steps_that_16_bits_cannot_tell_apart() -> None:
    weight = torch.full((3,), 0.2).half()
    average = WeightAverage(lambda: {"weight": weight})
    start = average.tensors["weight"].clone()
    assert start.dtype == torch.float32
    for step in range(1, 2000 * EVERY, EVERY):
        average.add(step)  # later shares are below half of what 16 bits can tell apart
    weight += 2**-13  # the next number in 16 bits
    average.add(2000 * EVERY + 1)
    moved = average.tensors["weight"] - start
    torch.testing.assert_close(moved, torch.full((3,), 2**-13 * (RECENCY + 1) / (2001 + RECENCY)), rtol=1e-2, atol=0)
    with average.in_place():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, average.tensors["weight"].half())


def test_a_restored_average_goes_on_as_if_nothing_had_happened(model: nn.Module) -> None:
    first = WeightAverage(model.state_dict)
    for step in range(1, 101):
        put(model, step**0.5)
        first.add(step)
    other = nn.Linear(1, 1, bias=False)
    second = WeightAverage(other.state_dict)
    other.load_state_dict(model.state_dict())
    second.restore({name: value.clone() for name, value in first.tensors.items()})
    for averaged, average in ((model, first), (other, second)):
        with torch.no_grad():
            averaged.weight.fill_(2.0)
        average.add(101)
    assert first.tensors["weight"].item() == second.tensors["weight"].item()
