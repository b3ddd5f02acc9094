"""The negatives of a positive: every item, or a sample of the items shared by the batch.

A sample is made of sources, and each source says how often it expects to draw an item. Draws of all sources are put
together: an item counts as often as it was drawn, divided by how often it was expected to be (the log-Q correction), so
that the sampled softmax estimates the full one whatever the sources. Items mined for being hard are not drawn: they
stand for themselves, and the sample for the others.

Items in a user's training data are never negatives of that user, the positive itself included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from features.sequences.batches import SequenceBatch, TrainingBatches
from features.sequences.sequences import Sequences
from training.config import TrainingConfig

FULL_SOFTMAX_ITEMS = 30_000
"""Up to so many items `negatives = "auto"` is the exact softmax."""

LogQ = Literal["negatives", "all", "none"]


@dataclass(frozen=True)
class Targets:
    """The predictions of a batch.

    Attributes:
        batch: Where the targets are from; on the host.
        places: Which events of the batch are targets, `[positives]`, ascending.
        rows: The catalogue row of each, `[positives]`.
        users: The place in the batch of each one's user, `[positives]`, ascending.
    """

    batch: SequenceBatch
    places: Int[Tensor, "positives"]
    rows: Int[Tensor, "positives"]
    users: Int[Tensor, "positives"]

    @classmethod
    def of(cls, batch: SequenceBatch) -> Targets:
        """Return the targets of a batch."""
        places = batch.is_target.nonzero()[:, 0]
        users = torch.repeat_interleave(torch.arange(len(batch.users)), batch.offsets.diff())
        answers = batch.item_rows if batch.answer_rows is None else batch.answer_rows
        return cls(batch, places, answers[places], users[places])

    def only(self, part: slice) -> Targets:
        """Return some predictions that follow one another, of the same batch."""
        return replace(self, places=self.places[part], rows=self.rows[part], users=self.users[part])

    @cached_property
    def known(self) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
        """Pairs of a user (position in the batch) and an item of their training data, each once, sorted by user."""
        batch = self.batch
        users = torch.repeat_interleave(torch.arange(len(batch.users)), batch.known_offsets.diff())
        base = int(batch.known_rows.max()) + 1
        pairs = (users * base + batch.known_rows).unique()
        return pairs // base, pairs % base


@dataclass(frozen=True)
class MaskedPairs:
    """Cells of a `[positives, negatives]` matrix that are not negatives, sorted by positive.

    Attributes:
        positives: The row of each cell, `[cells]`.
        negatives: The column of each cell, `[cells]`.
        starts: Where each positive's cells begin, `[positives + 1]`; on the host, wherever the others are.
    """

    positives: Int[Tensor, "cells"]
    negatives: Int[Tensor, "cells"]
    starts: Int[Tensor, "positives_plus_1"]

    @classmethod
    def of(cls, targets: Targets, users: Int[Tensor, "pairs"], columns: Int[Tensor, "pairs"]) -> MaskedPairs:
        """Return the cells of each positive, given pairs of a user and a column, sorted by user."""
        lengths = torch.bincount(users, minlength=len(targets.batch.users))
        repeats = lengths[targets.users]
        starts = torch.cat([repeats.new_zeros(1), repeats.cumsum(0)])
        positives = torch.repeat_interleave(torch.arange(len(repeats)), repeats)
        first_pair = (lengths.cumsum(0) - lengths)[targets.users]
        pairs = torch.arange(len(positives)) + (first_pair - starts[:-1])[positives]
        return cls(positives, columns[pairs], starts)

    def only(self, part: slice) -> MaskedPairs:
        """Return the cells of some positives that follow one another."""
        first, last, _ = part.indices(len(self.starts) - 1)
        begin, end = self.starts[[first, last]].tolist()
        return MaskedPairs(
            self.positives[begin:end] - first, self.negatives[begin:end], self.starts[first : last + 1] - begin
        )


@dataclass(frozen=True)
class TrendNumbers:
    """Recent popularity of the negatives at the time of each positive (see `features.sequences.trend`).

    Attributes:
        numbers: In steps of 1 / 255, `[half_lives, moments, negatives]`.
        moments: Which of these moments is that of each positive, `[positives]`.
    """

    numbers: UInt8[Tensor, "half_lives moments negatives"]
    moments: Int[Tensor, "positives"]

    def to(self, device: torch.device) -> TrendNumbers:
        """Return the same numbers on `device`."""
        return TrendNumbers(to_device(self.numbers, device), to_device(self.moments, device))


@dataclass(frozen=True)
class Negatives:
    """The items that every positive of a batch competes with.

    In the loss of positive `p` the term of item `j` has the weight `w_pj = 1 / sum_s factors_ps expected_sj`, a sum
    over the ways in which the item could have been drawn.

    Attributes:
        rows: Catalogue rows, `[negatives]`, none twice. First those that were not drawn (weight 1), then those drawn
            and encoded in this step, last those drawn whose vectors are from earlier steps.
        forbidden: Which of them are not negatives of which positive.
        expected: How often each way of drawing was expected to draw each item, over how often it was drawn, `[ways,
            negatives]`. None: each item stands for itself.
        factors: What the expectations of each way have to be multiplied by for each positive, `[positives, ways]`.
        remembered: Where in the memory the vectors of the last rows are, `[remembered]`. None: all are encoded in this
            step.
        trend: Their recent popularity at the time of each positive. None: it is no part of the score.
    """

    rows: Int[Tensor, "negatives"]
    forbidden: MaskedPairs
    expected: Float[Tensor, "ways negatives"] | None = None
    factors: Float[Tensor, "positives ways"] | None = None
    remembered: Int[Tensor, "remembered"] | None = None
    trend: TrendNumbers | None = None

    @property
    def fresh(self) -> Int[Tensor, "fresh"]:
        """The rows whose vectors have to be made."""
        return self.rows if self.remembered is None else self.rows[: len(self.rows) - len(self.remembered)]

    def only(self, part: slice) -> Negatives:
        """Return the same negatives for some positives that follow one another; without a trend, which comes later."""
        assert self.trend is None, "the trend is looked up for the positives that it is for"
        if part == slice(None):
            return self
        factors = None if self.factors is None else self.factors[part]
        return replace(self, forbidden=self.forbidden.only(part), factors=factors)

    def to(self, device: torch.device) -> Negatives:
        """Return the same negatives with all that the loss computes with on `device`."""
        cells = replace(
            self.forbidden,
            positives=to_device(self.forbidden.positives, device),
            negatives=to_device(self.forbidden.negatives, device),
        )
        trend = None if self.trend is None else self.trend.to(device)
        if self.expected is None or self.factors is None:
            return replace(self, forbidden=cells, trend=trend)
        expected, factors = to_device(self.expected, device), to_device(self.factors, device)
        return replace(self, forbidden=cells, expected=expected, factors=factors, trend=trend)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without waiting for what the device does."""
    if device.type == "cpu" or tensor.device.type == device.type:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class AllItems:
    """Every item of the catalogue: the exact softmax.

    **When:** wherever it can be afforded, up to some 30,000 items: nothing is drawn, so nothing has to be corrected and
    nothing varies. **Cost:** a step encodes the whole catalogue and multiplies it with every prediction. **Relations:**
    what every `MixedSampler` estimates.
    """

    hard = None
    memory = None

    def __init__(self, num_items: int) -> None:
        self._rows = torch.arange(num_items)

    def draw(self, targets: Targets, generator: torch.Generator) -> Negatives:
        """Return every item."""
        return Negatives(self._rows, MaskedPairs.of(targets, *targets.known))

    def state(self) -> dict[str, Tensor]:
        """Return no tensors: there is no state."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""


class NegativeSampler(Protocol):
    """Something that draws items, and knows how often it draws which."""

    def draw(self, targets: Targets, generator: torch.Generator) -> Int[Tensor, "draws"]:
        """Return the catalogue rows drawn, as often as they were."""

    def expected(self, rows: Int[Tensor, "items"]) -> Float[Tensor, "items"]:
        """Return how often each item is expected in one `draw`; over the whole catalogue that is the draws."""


class UniformSampler:
    """Items drawn uniformly from the catalogue.

    **When:** always a part of a sample: it is the only source that draws rare items as often as popular ones.
    Where items are cheap to encode it may be all of it: on two of three public data sets the authors of eSASRec (RecSys
    2025) found uniform draws better than mixed ones. **Cost:** each item drawn is encoded for the purpose. **Source:**
    Bengio and Senecal 2008 for the correction.

    Args:
        num_items: Items in the catalogue.
        draws: How many are drawn for a batch.
    """

    def __init__(self, num_items: int, draws: int) -> None:
        self.num_items = num_items
        self.draws = draws

    def draw(self, targets: Targets, generator: torch.Generator) -> Int[Tensor, "draws"]:
        """Draw with replacement."""
        return torch.randint(self.num_items, (self.draws,), generator=generator)

    def expected(self, rows: Int[Tensor, "items"]) -> Float[Tensor, "items"]:
        """Return the same for each item."""
        return torch.full((len(rows),), self.draws / self.num_items, dtype=torch.double)


class InBatchSampler:
    """Items drawn from the positives of the batch, in proportion to their popularity.

    **When:** on large catalogues with features to read, where a vector that the batch makes anyway costs nothing more;
    together with uniform draws, not alone: rare items would be drawn rarely, and each time with a large weight.
    **Cost:** next to none. **Relations:** with `UniformSampler` it is Mixed Negative Sampling (Yang et al. 2020); alone
    the in-batch softmax of Yi et al. 2019, which without log-Q correction can collapse.

    Args:
        draws: How many are drawn for a batch.
        share: Share of each item in all positives, `[items]`.
    """

    def __init__(self, draws: int, share: Float[Tensor, "items"]) -> None:
        self.draws = draws
        self.share = share

    def draw(self, targets: Targets, generator: torch.Generator) -> Int[Tensor, "draws"]:
        """Draw with replacement; nothing from a batch without positives."""
        if not len(targets.rows):
            return targets.rows
        return targets.rows[torch.randint(len(targets.rows), (self.draws,), generator=generator)]

    def expected(self, rows: Int[Tensor, "items"]) -> Float[Tensor, "items"]:
        """Return the draws, as often as the items are positives."""
        return self.draws * self.share[rows]


class CrossBatchMemory:
    """Positives of earlier batches, with their vectors at that step (cross-batch memory).

    Vectors drift slowly once training has warmed up, so yesterday's are good enough to push away from, though nothing
    is learned of the items themselves. An item that the step encodes in any case is represented by its new vector.

    **When:** encoding an item is expensive (long texts, many features) and the batch is small, so that there is no
    other way to many negatives. Where items are an id and a few words, fresh draws cost little more and are better.
    **Cost:** one matrix product; the memory is `size` x width numbers, in the checkpoint as well. **Relations:** more
    `InBatchSampler` draws, stale. **Source:** XBM (Wang et al. 2020, arXiv 1912.06798); for two towers CBNS (Wang et
    al. 2021, arXiv 2110.15154).

    Args:
        size: How many positives are remembered.
        share: Share of each item in all positives, `[items]`.
        width: Numbers in a vector.
        device: Where the vectors are kept.
    """

    def __init__(self, size: int, share: Float[Tensor, "items"], width: int, device: torch.device) -> None:
        self.size = size
        self.share = share
        self.rows = torch.zeros(0, dtype=torch.long)
        self.vectors = torch.zeros(0, width, device=device)

    def draw(self, targets: Targets, generator: torch.Generator) -> Int[Tensor, "draws"]:
        """Return all rows in the memory."""
        return self.rows

    def expected(self, rows: Int[Tensor, "items"]) -> Float[Tensor, "items"]:
        """Return the expected count of each item in the memory, by its share of the positives."""
        return len(self.rows) * self.share[rows]

    def remember(self, rows: Int[Tensor, "positives"], vectors: Float[Tensor, "positives width"]) -> None:
        """Add the positives of a step, and forget the oldest beyond the size."""
        self.rows = torch.cat([self.rows, rows])[-self.size :]
        self.vectors = torch.cat([self.vectors, vectors.detach()])[-self.size :]

    def recall(self, negatives: Negatives) -> Float[Tensor, "remembered width"]:
        """Return the vectors from the memory for a sample."""
        assert negatives.remembered is not None, "a sample with a memory says what it remembers"
        return self.vectors[to_device(negatives.remembered, self.vectors.device)]

    def newest(self, rows: Int[Tensor, "chosen"]) -> Int[Tensor, "chosen"]:
        """Return the position of the newest vector of each of these items in the memory."""
        distinct, inverse = self.rows.unique(return_inverse=True)
        places = torch.arange(len(self.rows))
        newest: Tensor = torch.zeros_like(distinct).scatter_reduce(0, inverse, places, "amax")
        return newest[torch.searchsorted(distinct, rows)]


class HardNegatives:
    """Hard negatives mined for each user (see `hard_negatives.py`); each has weight 1.

    The softmax is ruled by its largest terms. Those of the mined items enter it exactly, and only the rest of the
    catalogue is estimated by drawing: the estimate of the whole stays unbiased, and varies less.

    **When:** the catalogue is large against the sample, so that drawing seldom meets an item that matters. They need
    random negatives as well: hard negatives alone teach the model nothing of the rest of the catalogue and ruin it
    (Huang et al. 2020, arXiv 2006.11632). **Cost:** the mining (users x items dot products every so many epochs, up to
    a limit), a table of users x `hard_negatives` rows, in the checkpoint as well, and up to `hard_negatives` columns
    per user of the batch.
    **Relations:** what is `hard_negatives` for one user is a negative of all others in the batch, too.
    """

    def __init__(self) -> None:
        self.table = torch.zeros(0, 0, dtype=torch.int32)

    def of(self, targets: Targets) -> Int[Tensor, "hard"]:
        """Return the hard items of the users of a batch; none before the first mining."""
        if not len(self.table):
            return torch.zeros(0, dtype=torch.long)
        rows: Tensor = self.table[targets.batch.users].unique()
        return rows[rows >= 0].long()


class MixedSampler:
    """Random negatives of several sources, merged, together with hard negatives.

    The positive is no draw: it is there in any case and stands for itself. How many items a drawn one stands for is a
    choice (`log_q`). With `n_j` the times item `j` was drawn by any source, `e_sj` the times that source `s` was
    expected to draw it, and `e_j` their sum over the sources:

    * `negatives`: `n_j / sum_s f_us e_sj`. Here `f_us` is the number of draws that source `s` made, over the number it
      was expected to make, among the items that are negatives of user `u` at all. It says what happened, not what could
      have: of what is drawn from a batch of ten users, a tenth are the user's own and count for nothing. The sum over
      the draws is then an unbiased estimate of the one over the catalogue, whatever the mixture (multiple importance
      sampling with the balance heuristic: Veach and Guibas 1995). With one source it is the corrected log-Q correction
      of Khrylchenko et al. 2025 (arXiv 2507.09331), whose `Q'` is renormalised without the positive and whose mean is
      over the draws that differ from it.
    * `all`: `e_p n_j / e_j` for positive `p`, the classic correction of Yi et al. 2019: the positive is weighted as if
      it were drawn. Against the full softmax popular positives learn too much and rare ones too little. With
      uniform draws alone every weight cancels, and what remains is the plain sampled softmax of much of the literature.
    * `none`: `n_j`. Popular items are then pushed away for being popular.

    Args:
        num_items: Items in the catalogue.
        sources: What draws items whose vectors are then made.
        memory: Remembered positives.
        hard: Mined items.
        log_q: What is corrected.
    """

    def __init__(
        self,
        num_items: int,
        sources: Sequence[NegativeSampler],
        *,
        memory: CrossBatchMemory | None = None,
        hard: HardNegatives | None = None,
        log_q: LogQ = "negatives",
    ) -> None:
        assert sources, "a sample is drawn from somewhere"
        self.num_items = num_items
        self.sources: tuple[NegativeSampler, ...] = tuple(sources) if memory is None else (*sources, memory)
        self.memory = memory
        self.hard = hard
        self.log_q = log_q

    def draw(self, targets: Targets, generator: torch.Generator) -> Negatives:
        """Return a sample; draws of the same item are one negative that weighs as much."""
        exact = torch.zeros(0, dtype=torch.long) if self.hard is None else self.hard.of(targets)
        draws = [source.draw(targets, generator) for source in self.sources]
        drawn, remembered = self._distinct(draws, targets, exact)
        rows = torch.cat([exact, drawn])
        column = torch.full((self.num_items,), -1)
        column[rows] = torch.arange(len(rows))
        users, known = targets.known
        place = column[known]
        expected, factors = self._weights(targets, rows, len(exact), [column[drawn] for drawn in draws], place)
        forbidden = MaskedPairs.of(targets, users[place >= 0], place[place >= 0])
        return Negatives(rows, forbidden, expected.float(), factors.float(), remembered)

    def state(self) -> dict[str, Tensor]:
        """Return what the next draw depends on, apart from the batch and the generator."""
        state = {} if self.hard is None else {"hard": self.hard.table}
        if self.memory is not None:
            state |= {"memory_rows": self.memory.rows, "memory_vectors": self.memory.vectors}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state`."""
        if self.hard is not None:
            self.hard.table = state["hard"]
        if self.memory is not None:
            self.memory.rows = state["memory_rows"]
            self.memory.vectors = state["memory_vectors"].to(self.memory.vectors.device)

    def _distinct(
        self, draws: list[Tensor], targets: Targets, exact: Int[Tensor, "hard"]
    ) -> tuple[Int[Tensor, "drawn"], Int[Tensor, "remembered"] | None]:
        """Return the items drawn, without the hard negatives; and positions in the memory for the last of them."""
        rows = torch.cat(draws).unique()
        rows = rows[~torch.isin(rows, exact)]
        if self.memory is None:
            return rows, None
        is_new = torch.isin(rows, torch.cat([*draws[:-1], targets.batch.item_rows]))
        return torch.cat([rows[is_new], rows[~is_new]]), self.memory.newest(rows[~is_new])

    def _weights(
        self,
        targets: Targets,
        rows: Int[Tensor, "negatives"],
        num_exact: int,
        columns: list[Tensor],
        known_columns: Int[Tensor, "pairs"],
    ) -> tuple[Float[Tensor, "ways negatives"], Float[Tensor, "positives ways"]]:
        """Return `expected` and `factors`; the last way is that of the exact items, drawn once and expected once.

        Args:
            targets: The predictions of the batch.
            rows: The negatives, the exact ones first.
            num_exact: How many these are.
            columns: Where among the negatives each draw is, by source.
            known_columns: Where each known item is; -1 where it is none of them.
        """
        made = torch.stack([torch.bincount(column, minlength=len(rows)) for column in columns]).double()
        made[:, :num_exact] = 0.0
        expected = self._expected(rows)
        match self.log_q:
            case "none":
                ways, factors = torch.ones(1, len(rows)), torch.ones(len(targets.rows), 1)
            case "all":
                of_positive = self._expected(targets.rows).sum(0)
                of_positive[torch.isin(targets.rows, rows[:num_exact])] = 1.0
                ways, factors = expected.sum(0, keepdim=True), 1 / of_positive[:, None]
            case "negatives":
                num_draws = torch.tensor([len(column) for column in columns]) - expected[:, :num_exact].sum(1)
                factor = self._made_to_expected(targets, made, num_draws, num_exact, known_columns)
                ways, factors = expected, factor[targets.users]
        is_exact = (torch.arange(len(rows)) < num_exact).double()
        ways = torch.where(is_exact > 0, 0.0, ways / made.sum(0))
        return torch.cat([ways, is_exact[None]]), functional.pad(factors, (0, 1), value=1.0)

    def _made_to_expected(
        self,
        targets: Targets,
        made: Float[Tensor, "sources negatives"],
        num_expected: Float[Tensor, "sources"],
        num_exact: int,
        known_columns: Int[Tensor, "pairs"],
    ) -> Float[Tensor, "users sources"]:
        """Return the draws that each source made for each user, over those expected, among the user's negatives."""
        users, known = targets.known
        is_exact = (known_columns >= 0) & (known_columns < num_exact)
        expected_of_known = self._expected(known).masked_fill(is_exact, 0.0)
        made_of_known = made[:, known_columns.clamp(min=0)].masked_fill(known_columns < 0, 0.0)
        none = torch.zeros(len(self.sources), len(targets.batch.users), dtype=torch.double)
        num_expected_left = num_expected[:, None] - none.index_add(1, users, expected_of_known)
        num_made_left = made.sum(1, keepdim=True) - none.index_add(1, users, made_of_known)
        return (num_made_left / num_expected_left.clamp(min=torch.finfo(torch.double).tiny)).T

    def _expected(self, rows: Int[Tensor, "items"]) -> Float[Tensor, "sources items"]:
        return torch.stack([source.expected(rows) for source in self.sources])


def reversed_negatives(targets: Targets, num_predictions: int) -> Negatives:
    """Return the negatives of the reverse direction: for each item, the users of the other predictions of the batch.

    **What it does.** The predictions of a batch are a sample of all that there are to learn from, and each of their
    users stands for as many. Users whose training data holds the item are not negatives of it.

    **When to use it.** Where users are retrieved by items as well, and where pairs are few: each is used twice,
    and users move apart, not only items. **Cost:** one more matrix product. **Relations:** with `InBatchSampler`
    negatives the symmetric loss of CLIP (Radford et al. 2021, arXiv 2103.00020) and MultipleNegativesSymmetricRanking.

    Args:
        targets: The predictions of a batch.
        num_predictions: How many there are to learn from.

    Returns:
        Negatives whose rows are places among the batch's predictions.
    """
    users, items = targets.known
    base = int(items.max()) + 1
    is_known = torch.isin(targets.users * base + targets.rows[:, None], users * base + items)
    positives, negatives = is_known.nonzero().unbind(1)
    forbidden = MaskedPairs(positives, negatives, functional.pad(is_known.sum(1).cumsum(0), (1, 0)))
    rows = torch.arange(len(targets.rows))
    share = len(rows) / num_predictions
    return Negatives(rows, forbidden, torch.full((1, len(rows)), share), torch.ones(len(rows), 1))


def choose_negatives(
    settings: TrainingConfig,
    batches: TrainingBatches,
    num_items: int,
    *,
    width: int,
    device: torch.device,
    is_expensive: bool = False,
) -> AllItems | MixedSampler:
    """Return the negatives of the settings; `auto` decides by the size of the catalogue.

    Args:
        settings: `[training]`.
        batches: The batches of the training data.
        num_items: Items in the catalogue.
        width: Numbers in a vector.
        device: Where remembered vectors are kept.
        is_expensive: Whether encoding an item is expensive, as with a trained text encoder; `auto` then uses in-batch
            negatives.
    """
    if is_expensive and settings.negatives == "auto":
        draws = settings.in_batch_negatives or settings.uniform_negatives
        settings = settings.model_copy(
            update={"negatives": "sampled", "uniform_negatives": 0, "in_batch_negatives": draws}
        )
    asks_for_sample = (
        settings.negatives == "sampled" or settings.hard_negatives > 0 or settings.cross_batch_negatives > 0
    )
    if settings.negatives == "all" or (not asks_for_sample and num_items <= FULL_SOFTMAX_ITEMS):
        return AllItems(num_items)
    share = target_shares(batches, num_items)
    sources: list[NegativeSampler] = []
    if settings.uniform_negatives:
        sources.append(UniformSampler(num_items, settings.uniform_negatives))
    if settings.in_batch_negatives:
        sources.append(InBatchSampler(settings.in_batch_negatives, share))
    return MixedSampler(
        num_items,
        sources,
        memory=CrossBatchMemory(settings.cross_batch_negatives, share, width, device)
        if settings.cross_batch_negatives
        else None,
        hard=HardNegatives() if settings.hard_negatives else None,
        log_q=settings.log_q,
    )


def target_shares(batches: TrainingBatches, num_items: int) -> Float[Tensor, "items"]:
    """Return the share of each item in all positives of an epoch, `[items]`; the expected one where they are drawn.

    Args:
        batches: The batches of the training data.
        num_items: Items in the catalogue.
    """
    counts, first = np.zeros(num_items), 0
    for block in batches.sequences.blocks():
        events = slice(first, first + block.num_events)
        chances = np.ones(block.num_events) if batches.replay is None else batches.replay.chances(events)
        counts += _target_counts(batches, block, chances, num_items)
        first = events.stop
    return torch.from_numpy(counts / max(counts.sum(), 1)).double()


def _target_counts(
    batches: TrainingBatches, sequences: Sequences, chances: Float[np.ndarray, "events"], num_items: int
) -> Float[np.ndarray, "items"]:
    """Return how often each item is expected to be a target of some users in an epoch.

    Where later targets are drawn among those of an epoch that replays some, it is an approximation.
    """
    if batches.is_shuffled:
        is_target = batches.seen_items.possible_targets(sequences)
        times_asked = np.repeat(_times_shuffled(batches, sequences.lengths), sequences.lengths)[is_target]
    else:
        is_target = batches.are_possible_targets(sequences)
        users = sequences.event_users[is_target]
        times_asked = _times_drawn(users) if batches.is_future else np.ones(len(users))
    times_asked = times_asked * chances[is_target]
    counts: np.ndarray = np.bincount(sequences.item_rows[is_target], times_asked, minlength=num_items)
    return counts


def _times_shuffled(batches: TrainingBatches, lengths: Int[np.ndarray, "users"]) -> Float[np.ndarray, "users"]:
    """Return how often each item of a user is expected to be a target when they are shuffled, if none repeats."""
    read = np.minimum(lengths, batches.history + 1)
    first = np.maximum((read * batches.history_fraction).astype(np.int64), lengths > read)
    times: np.ndarray = (read - first) / np.maximum(lengths, 1)
    return times


def _times_drawn(users: Int[np.ndarray, "targets"]) -> Float[np.ndarray, "targets"]:
    """Return how often each target is expected to be drawn when at each a later one, or itself, of its user is."""
    ends = np.searchsorted(users, users, side="right")
    chances = np.cumsum(1 / (ends - np.arange(len(users))))
    before = np.concatenate([[0.0], chances])[np.searchsorted(users, users)]
    drawn: np.ndarray = chances - before
    return drawn
