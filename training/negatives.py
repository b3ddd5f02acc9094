"""What a positive competes with: every item, or a sample of them shared by the batch.

A sample mixes items drawn uniformly with items drawn from the batch's own positives (Mixed Negative Sampling, Yang et
al. 2020). Each drawn item stands for those that were not: it is counted as often as it was drawn, divided by how often
it was expected to be (the log-Q correction), so that the sampled softmax estimates the full one.

Items that the user is known to like are never his negatives, the positive itself included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from features.batches import SequenceBatch


@dataclass(frozen=True)
class Negatives:
    """The items that every positive of a batch competes with.

    Attributes:
        rows: Catalogue rows, `[negatives]`, none twice.
        log_weight: Logarithm of how many items each stands for, `[negatives]`: times drawn / times expected. None
            where every item stands for itself.
    """

    rows: Int[Tensor, negatives]
    log_weight: Float[Tensor, negatives] | None


@dataclass(frozen=True)
class Forbidden:
    """Cells of a `[positives, negatives]` matrix that are not negatives, sorted by positive."""

    positives: Int[Tensor, cells]
    negatives: Int[Tensor, cells]


class AllItems:
    """Every item of the catalogue: the exact softmax."""

    def __init__(self, num_items: int, device: torch.device) -> None:
        self._negatives = Negatives(torch.arange(num_items, device=device), None)

    def draw(self, positives: Int[Tensor, positives], generator: torch.Generator) -> Negatives:
        """Return every item."""
        return self._negatives


class MixedSample:
    """A sample, part uniform and part from the batch's positives.

    Args:
        num_items: Items in the catalogue.
        uniform: How many are drawn uniformly.
        in_batch: How many are drawn from the batch's positives.
        item_counts: How often each item is a positive in the training data, `[items]`.
    """

    def __init__(self, num_items: int, *, uniform: int, in_batch: int, item_counts: Int[Tensor, items]) -> None:
        if uniform + in_batch == 0:
            raise ValueError("expected some negatives, found uniform_negatives = in_batch_negatives = 0; raise one")
        self.num_items = num_items
        self.uniform = uniform
        self.in_batch = in_batch
        share = item_counts.double() / item_counts.sum().clamp(min=1)
        self.log_expected = (uniform / num_items + in_batch * share).log().float()

    def draw(self, positives: Int[Tensor, positives], generator: torch.Generator) -> Negatives:
        """Return a sample; draws of the same item are one negative that weighs as much."""
        anywhere = torch.randint(self.num_items, (self.uniform,), generator=generator).to(positives.device)
        chosen = torch.randint(max(len(positives), 1), (self.in_batch,), generator=generator).to(positives.device)
        drawn = torch.cat([anywhere, positives[chosen]]) if len(positives) else anywhere
        rows, times = drawn.unique(return_counts=True)
        return Negatives(rows, times.float().log() - self.log_expected[rows])


def forbidden(
    negatives: Negatives, batch: SequenceBatch, user_of_positive: Int[Tensor, positives], num_items: int
) -> Forbidden:
    """Return which negatives are known positives of the user of each positive (the positive itself is one).

    Args:
        negatives: What was drawn.
        batch: Holds every user's known positives.
        user_of_positive: The place in the batch of each positive's user, ascending.
        num_items: Items in the catalogue.
    """
    device = negatives.rows.device
    place = torch.full((num_items,), -1, dtype=torch.long, device=device)
    place[negatives.rows] = torch.arange(len(negatives.rows), device=device)
    columns = place[batch.known_rows]
    drawn = columns >= 0
    users = torch.repeat_interleave(torch.arange(len(batch.users), device=device), batch.known_offsets.diff())
    lengths = torch.bincount(users[drawn], minlength=len(batch.users))
    starts = (lengths.cumsum(0) - lengths)[user_of_positive]
    repeats = lengths[user_of_positive]
    positives = torch.repeat_interleave(torch.arange(len(user_of_positive), device=device), repeats)
    within = torch.arange(len(positives), device=device) - (repeats.cumsum(0) - repeats)[positives]
    return Forbidden(positives, columns[drawn][starts[positives] + within])
