"""Samples of negatives: what they estimate, what they must never hold against a user, and counting by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from features.sequences.batches import SequenceBatch, TrainingBatches
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE, REPEAT, SeenItems
from features.sequences.sequences import Sequences
from training.loop.losses import softmax_loss
from training.loop.negatives import (
    AllItems,
    CrossBatchMemory,
    HardNegatives,
    InBatchSampler,
    LogQ,
    MixedSampler,
    Negatives,
    Targets,
    UniformSampler,
    reversed_negatives,
    target_shares,
)

CPU = torch.device("cpu")


def batch_of(known: list[list[int]], users: list[int] | None = None) -> SequenceBatch:
    """A batch in which everybody's items are his targets and all that is known of him."""
    rows = torch.tensor([row for rows in known for row in rows], dtype=torch.long)
    offsets = torch.tensor([0, *np.cumsum([len(rows) for rows in known]).tolist()])
    return SequenceBatch(
        users=torch.arange(len(known)) if users is None else torch.tensor(users),
        offsets=offsets,
        item_rows=rows,
        times=None,
        is_target=torch.ones(len(rows), dtype=torch.bool),
        known_offsets=offsets,
        known_rows=rows,
    )


def cells(negatives: Negatives) -> set[tuple[int, int]]:
    """The forbidden cells as pairs of a positive and a catalogue row."""
    found = negatives.forbidden
    return set(zip(found.positives.tolist(), negatives.rows[found.negatives].tolist(), strict=True))


def mined(table: list[list[int]]) -> HardNegatives:
    hard = HardNegatives()
    hard.table = torch.tensor(table, dtype=torch.int32)
    return hard


def remembering(rows: list[int], share: Tensor, vectors: Tensor | None = None) -> CrossBatchMemory:
    memory = CrossBatchMemory(len(rows), share, 2, CPU)
    memory.remember(torch.tensor(rows, dtype=torch.long), torch.zeros(len(rows), 2) if vectors is None else vectors)
    return memory


def weights(negatives: Negatives) -> Tensor:
    """How many items each negative stands for, `[positives, negatives]`."""
    assert negatives.expected is not None
    assert negatives.factors is not None
    return 1 / (negatives.factors @ negatives.expected)


uniform_share = torch.full((10,), 0.1, dtype=torch.double)
known_items = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5)


@given(known_items, st.sampled_from(["all", "sampled", "remembered", "hard"]), st.integers(0, 99))
def test_exactly_the_known_positives_of_the_user_are_forbidden(known: list[list[int]], kind: str, seed: int) -> None:
    targets = Targets.of(batch_of(known))
    sources = [UniformSampler(10, 6), InBatchSampler(3, uniform_share)]
    memory = remembering([3, 3, 7, 1], uniform_share) if kind == "remembered" else None
    hard = mined([[1, 2, -1]] * len(known)) if kind == "hard" else None
    sampler = AllItems(10) if kind == "all" else MixedSampler(10, sources, memory=memory, hard=hard)
    negatives = sampler.draw(targets, torch.Generator().manual_seed(seed))
    rows = negatives.rows.tolist()
    assert len(set(rows)) == len(rows)
    of_positive = [user for user, rows in enumerate(known) for _ in rows]
    assert cells(negatives) == {(p, row) for p, user in enumerate(of_positive) for row in rows if row in known[user]}
    found = negatives.forbidden
    assert len(found.positives) == len(cells(negatives)), "no cell twice"
    counts = torch.bincount(found.positives, minlength=len(of_positive))
    assert found.positives.tolist() == sorted(found.positives.tolist())
    assert found.starts.tolist() == [0, *counts.cumsum(0).tolist()]


@given(known_items)
def test_an_item_has_to_find_its_user_among_those_who_are_not_known_to_like_it(known: list[list[int]]) -> None:
    targets = Targets.of(batch_of(known))
    negatives = reversed_negatives(targets, num_predictions=1_000)
    predictions = [(user, row) for user, rows in enumerate(known) for row in rows]
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(2, len(predictions), 4, generator=generator, dtype=torch.double)
    losses = []
    for place, (_, row) in enumerate(predictions):
        logits = 3 * users @ items[place]
        others = [logits[other].exp() for other, (user, _) in enumerate(predictions) if row not in known[user]]
        # Of 1,000 predictions the batch has a few, so each of these stands for many.
        among = logits[place].exp() + sum(others) * 1_000 / len(predictions)
        losses.append(among.log() - logits[place])
    found = softmax_loss(items, users, users, torch.tensor(3.0, dtype=torch.double), negatives)
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("log_q", ["negatives", "all", "none"])
def test_copies_of_the_positive_and_the_other_positives_of_the_user_have_probability_zero(log_q: LogQ) -> None:
    # One user, who had 0, 1 and 2; the sample, the memory and the hard items are full of them.
    targets = Targets.of(batch_of([[0, 1, 2]]))
    share = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.double)
    sampler = MixedSampler(
        4,
        [UniformSampler(4, 20), InBatchSampler(20, share)],
        memory=remembering([0, 2, 2, 1, 3], share),
        hard=mined([[2, 3]]),
        log_q=log_q,
    )
    negatives = sampler.draw(targets, torch.Generator().manual_seed(0))
    assert set(negatives.rows.tolist()) == {0, 1, 2, 3}
    generator = torch.Generator().manual_seed(1)
    vectors = functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    items = vectors[negatives.rows].requires_grad_()
    users = functional.normalize(torch.randn(3, 3, generator=generator), dim=1)
    loss = softmax_loss(users, vectors[targets.rows], items, torch.tensor(20.0), negatives)
    (gradient,) = torch.autograd.grad(loss, items)
    own = negatives.rows < 3
    assert gradient[own].abs().max().item() == 0.0
    assert gradient[~own].abs().min().item() > 0.0
    elsewhere = torch.where(own[:, None], -items, items)
    assert softmax_loss(users, vectors[targets.rows], elsewhere, torch.tensor(20.0), negatives).item() == loss.item()


class World:
    """Twenty people who had some of fifty items, popular ones more often; the first is the one we ask about."""

    num_items = 50

    def __init__(self) -> None:
        self.numbers = np.random.default_rng(0)
        popularity = 1 / np.arange(1, self.num_items + 1)
        self.people = [
            self.numbers.choice(self.num_items, 6, replace=False, p=popularity / popularity.sum()).tolist()
            for _ in range(20)
        ]
        counts = np.bincount(np.concatenate(self.people), minlength=self.num_items)
        self.share = torch.from_numpy(counts / counts.sum())
        self.terms = torch.from_numpy(self.numbers.random(self.num_items) * 3).exp()
        is_negative = torch.ones(self.num_items, dtype=torch.bool)
        is_negative[self.people[0]] = False
        self.total = self.terms[is_negative].sum()

    def batch(self, of_first: bool = True) -> SequenceBatch:
        """The first person and two others, or three others."""
        others = 1 + self.numbers.choice(19, 2 if of_first else 3, replace=False)
        users = [0, *others.tolist()] if of_first else others.tolist()
        return batch_of([self.people[user] for user in users], users)

    def estimate(self, negatives: Negatives, *, with_factors: bool = True) -> Tensor:
        """The sum over the first positive's negatives, as the loss makes it."""
        if not with_factors:
            assert negatives.factors is not None
            negatives = replace(negatives, factors=torch.ones_like(negatives.factors))
        weight = weights(negatives)[0]
        weight[negatives.forbidden.negatives[: negatives.forbidden.starts[1]]] = 0.0
        return (weight.double() * self.terms[negatives.rows]).sum()


def error_of(estimates: list[Tensor], truth: Tensor) -> tuple[float, float]:
    """The mean's relative error, and its standard error."""
    values = torch.stack(estimates) / truth
    return values.mean().item() - 1, (values.std() / len(values) ** 0.5).item()


@pytest.mark.parametrize("kind", ["uniform", "in-batch", "mixed", "remembered", "hard"])
def test_the_sampled_sum_estimates_the_sum_over_all_negatives(kind: str) -> None:
    world, generator = World(), torch.Generator().manual_seed(0)
    uniform, in_batch = UniformSampler(50, 60), InBatchSampler(60, world.share)
    memory = CrossBatchMemory(90, world.share, 2, CPU) if kind == "remembered" else None
    hard = mined([[3, 9, 17], *([4, 9, 40] for _ in range(19))]) if kind == "hard" else None
    sources = {"uniform": [uniform], "in-batch": [in_batch]}.get(kind, [uniform, in_batch])
    sampler = MixedSampler(50, sources, memory=memory, hard=hard)
    missing = world.share == 0  # items that nobody had are never drawn from a batch
    if kind == "in-batch":
        world.total -= world.terms[missing].sum()
    estimates = []
    for _ in range(600):
        if memory is not None:
            others = Targets.of(world.batch(of_first=False))
            memory.remember(others.rows, torch.zeros(len(others.rows), 2))
        estimates.append(world.estimate(sampler.draw(Targets.of(world.batch()), generator)))
    error, deviation = error_of(estimates, world.total)
    assert abs(error) < 4 * deviation
    assert deviation < 0.02


def test_without_its_factor_an_in_batch_sample_forgets_that_a_third_of_it_was_the_users_own() -> None:
    world, generator = World(), torch.Generator().manual_seed(0)
    sampler = MixedSampler(50, [InBatchSampler(60, world.share)])
    world.total -= world.terms[world.share == 0].sum()
    drawn = [sampler.draw(Targets.of(world.batch()), generator) for _ in range(300)]
    error, deviation = error_of([world.estimate(negatives, with_factors=False) for negatives in drawn], world.total)
    assert error < -0.2
    assert deviation < 0.02
    # Items had by the other two are taken as they come: 1/3 own, so about 2/3 of what the shares promise.


def test_the_variance_falls_when_the_largest_terms_are_hard_items() -> None:
    world, generator = World(), torch.Generator().manual_seed(0)
    largest = world.terms.argsort(descending=True)[:12].tolist()
    spread = []
    for hard in (None, mined([largest] * 20)):
        sampler = MixedSampler(50, [UniformSampler(50, 20)], hard=hard)
        estimates = [
            world.estimate(sampler.draw(Targets.of(world.batch()), generator)) / world.total for _ in range(300)
        ]
        spread.append(torch.stack(estimates).std().item())
    assert spread[1] < 0.6 * spread[0]


def test_all_items_are_negatives_without_correction() -> None:
    negatives = AllItems(4).draw(Targets.of(batch_of([[1]])), torch.Generator())
    assert negatives.rows.tolist() == [0, 1, 2, 3]
    assert negatives.expected is None
    assert negatives.factors is None


@pytest.mark.parametrize(
    ("log_q", "wanted"), [("negatives", {1.0}), ("none", {1.0, 2.0, 3.0}), ("all", {2.1 / 2.9, 4.2 / 2.9, 6.3 / 2.9})]
)
def test_draws_of_an_item_are_one_negative_that_weighs_as_much(log_q: LogQ, wanted: set[float]) -> None:
    # Two items, the user had item 1. Drawn 3 times anywhere and twice from the batch, which is item 1 only.
    # Item 0, drawn n times, is all that there is beside what he had, and must stand for itself.
    # As Yi has it: it was expected 3/2 + 2 * 0.7 = 2.9 times, the positive 3/2 + 2 * 0.3 = 2.1 times: 2.1 n / 2.9.
    share = torch.tensor([0.7, 0.3], dtype=torch.double)
    sampler = MixedSampler(2, [UniformSampler(2, 3), InBatchSampler(2, share)], log_q=log_q)
    found = []
    for seed in range(40):
        negatives = sampler.draw(Targets.of(batch_of([[1]])), torch.Generator().manual_seed(seed))
        found += weights(negatives)[0, negatives.rows == 0].tolist()
    assert {round(weight, 4) for weight in found} == {round(weight, 4) for weight in wanted}


def test_a_hard_item_stands_for_itself_and_is_not_counted_among_the_draws() -> None:
    # Of three items one is hard, one is the user's own: the third is all that the draws stand for.
    sampler = MixedSampler(3, [UniformSampler(3, 50)], hard=mined([[2, -1], [0, 1]]))
    negatives = sampler.draw(Targets.of(batch_of([[0]], users=[0])), torch.Generator().manual_seed(0))
    assert negatives.rows.tolist() == [2, 0, 1]
    assert weights(negatives)[0, [0, 2]].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_hard_items_of_all_users_of_the_batch_are_shared() -> None:
    sampler = MixedSampler(9, [UniformSampler(9, 2)], hard=mined([[8, 7], [6, 8], [0, 0], [5, -1]]))
    negatives = sampler.draw(Targets.of(batch_of([[1], [2], [3]], users=[3, 0, 1])), torch.Generator().manual_seed(0))
    assert negatives.rows[:4].tolist() == [5, 6, 7, 8]
    assert weights(negatives)[:, :4].tolist() == [[1.0] * 4] * 3


def test_a_remembered_vector_is_the_newest_and_gives_way_to_one_that_is_made_anew() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [5.0, 0.0]])
    memory = remembering([7, 5, 7, 2, 8], torch.full((10,), 0.1, dtype=torch.double), vectors)
    negatives = MixedSampler(10, [InBatchSampler(4, uniform_share)], memory=memory).draw(
        Targets.of(batch_of([[2, 9]])), torch.Generator().manual_seed(0)
    )
    # 2 is remembered, too, but the step encodes it, drawn or not.
    assert negatives.remembered is not None
    old = negatives.rows[-len(negatives.remembered) :].tolist()
    assert old == [5, 7, 8]
    assert set(negatives.fresh.tolist()) <= {2, 9}
    assert 2 in negatives.fresh.tolist()
    assert memory.recall(negatives)[:, 0].tolist() == [2.0, 3.0, 5.0]
    # 7 is remembered twice. All 4 draws from the batch are the user's own; of 5 remembered 4 are not, where of items
    # like 7, eight of ten, 4 were expected, half a one of each: it stands for 2 / 0.5 items.
    assert weights(negatives)[0, negatives.rows == 7].item() == pytest.approx(4.0, rel=1e-5)


def test_the_memory_forgets_the_oldest() -> None:
    memory = CrossBatchMemory(3, uniform_share, 1, CPU)
    for rows in ([1, 2], [3], [4]):
        memory.remember(torch.tensor(rows), torch.tensor(rows, dtype=torch.float)[:, None])
    assert memory.rows.tolist() == [2, 3, 4]
    assert memory.vectors[:, 0].tolist() == [2.0, 3.0, 4.0]


def test_a_sample_goes_on_from_its_state() -> None:
    def fresh() -> MixedSampler:
        return MixedSampler(
            10, [UniformSampler(10, 3)], memory=CrossBatchMemory(3, uniform_share, 2, CPU), hard=HardNegatives()
        )

    first, second = fresh(), fresh()
    assert first.hard is not None
    assert first.memory is not None
    first.hard.table = torch.tensor([[9]], dtype=torch.int32)
    first.memory.remember(torch.tensor([5]), torch.ones(1, 2))
    second.restore(first.state())
    targets = Targets.of(batch_of([[1, 2]]))
    one, other = (sampler.draw(targets, torch.Generator().manual_seed(0)) for sampler in (first, second))
    assert one.rows.tolist() == other.rows.tolist()
    assert other.rows[0].item() == 9
    assert 5 in other.rows.tolist()
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
    assert AllItems(3).state() == {}


@pytest.mark.parametrize("recommend_seen", [False, True])
@pytest.mark.parametrize("lengths", [[3, 9, 4, 5], [1, 4]])
def test_shares_are_those_of_the_targets_of_an_epoch(lengths: list[int], recommend_seen: bool) -> None:
    rows = np.random.default_rng(0).integers(5, size=sum(lengths))
    sequences = Sequences(np.arange(len(lengths)), offsets_of(np.array(lengths)), rows, None, is_ordered=True)
    batches = TrainingBatches(sequences, history=3, batch_size=6, seen_items=SeenItems.of(recommend_seen), seed=0)
    asked = torch.cat([Targets.of(batch).rows for batch in batches.epoch(0)])
    expected = torch.bincount(asked, minlength=6).double() / len(asked)
    torch.testing.assert_close(target_shares(batches, 6), expected)


@pytest.mark.parametrize("shown", [0.0, 0.5])
def test_shares_of_shuffled_data_are_those_of_many_epochs(shown: float) -> None:
    offsets = np.array([0, 1, 4, 13])
    rows = np.array([0, 0, 1, 2, *range(9)])
    sequences = Sequences(np.arange(3), offsets, rows, None, is_ordered=False)
    batches = TrainingBatches(sequences, history=5, batch_size=9, seen_items=EXCLUDE, seed=0, history_fraction=shown)
    asked = torch.cat([Targets.of(batch).rows for epoch in range(1500) for batch in batches.epoch(epoch)])
    torch.testing.assert_close(
        target_shares(batches, 9), torch.bincount(asked, minlength=9).double() / len(asked), atol=0.01, rtol=0
    )


def test_shares_of_what_is_yet_to_come_are_those_of_many_epochs() -> None:
    rows = np.random.default_rng(0).integers(5, size=12)
    sequences = Sequences(np.arange(3), np.array([0, 2, 3, 12]), rows, None, is_ordered=True)
    batches = TrainingBatches(sequences, history=6, batch_size=9, seen_items=REPEAT, seed=0, targets="future")
    asked = torch.cat([Targets.of(batch).rows for epoch in range(1500) for batch in batches.epoch(epoch)])
    torch.testing.assert_close(
        target_shares(batches, 6), torch.bincount(asked, minlength=6).double() / len(asked), atol=0.01, rtol=0
    )
