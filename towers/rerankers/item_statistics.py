"""Statistics of items: times of interactions, co-occurrence, and columns of categories and numbers.

A reranker looks at them for the few items that retrieval found. They are computed from interactions alone, so the
caller decides which: training computes them without the held-out interactions, and `towers index` makes them
from all there are. Counts are as of a moment: nothing that came later is in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import safe_open
from safetensors.numpy import save_file

from features.columns import numbers_of, values_of
from features.config import FeatureSettings
from features.schema import Feature
from features.sequences.cooccurrence import Matrix, neighbour_counts, rows_of, strongest
from features.sequences.ragged import check_offsets, offsets_of, ragged_arange
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog

FOLLOWING = 3
"""Maximum distance, in places, at which an item follows another; nearer ones have more weight."""
TOGETHER = 20
"""Maximum distance, in places of a history, at which two items co-occur."""
NEIGHBOURS = 100
"""Items kept for each item, of those that follow it and of those that co-occur with it."""


@dataclass(frozen=True)
class Neighbours:
    """For each item some others, with a weight each; jagged.

    Attributes:
        offsets: Where each item's begin, `[items + 1]`.
        rows: The others, `[neighbours]`, rising within an item.
        weights: `[neighbours]`.
    """

    offsets: Int64[np.ndarray, " items_plus_1"]
    rows: Int64[np.ndarray, " neighbours"]
    weights: Float32[np.ndarray, " neighbours"]

    @classmethod
    def of(cls, blocks: Iterable[Matrix]) -> Neighbours:
        """Return the neighbours of the greatest weights.

        Args:
            blocks: The weight of each item (column) for those of a block (rows), in the order of the catalogue.
        """
        kept = [strongest(weights, NEIGHBOURS) for weights in blocks]
        return cls(
            offsets_of(np.concatenate([np.diff(part.indptr) for part in kept])),
            np.concatenate([part.indices for part in kept]).astype(np.int64),
            np.concatenate([part.data for part in kept]).astype(np.float32),
        )

    def sums(
        self,
        rows: Int64[np.ndarray, " some"],
        shares: Float32[np.ndarray, " some"],
        candidates: Int64[np.ndarray, " candidates"],
    ) -> Float32[np.ndarray, " candidates"]:
        """Return the sum of each candidate's weights as a neighbour of some items, of each by its share."""
        if not len(candidates):
            return np.zeros(0, dtype=np.float32)
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        places = ragged_arange(self.offsets[rows], lengths)
        weights = self.weights[places] * np.repeat(shares, lengths)
        order = np.argsort(candidates, kind="stable")
        ordered = candidates[order]
        found = np.minimum(np.searchsorted(ordered, self.rows[places]), len(ordered) - 1)
        is_one = ordered[found] == self.rows[places]
        sums = np.zeros(len(candidates), dtype=np.float32)
        sums[order] = np.bincount(found[is_one], weights[is_one], minlength=len(candidates))
        return sums


@dataclass(frozen=True)
class Values:
    """The values of a column, several to an item; jagged.

    Attributes:
        offsets: Where each item's begin, `[items + 1]`.
        codes: `[values]`, from 0.
        num_codes: How many different ones there are.
    """

    offsets: Int64[np.ndarray, " items_plus_1"]
    codes: Int64[np.ndarray, " values"]
    num_codes: int

    def shared(
        self, rows: Int64[np.ndarray, " some"], candidates: Int64[np.ndarray, " candidates"]
    ) -> Float32[np.ndarray, " candidates"]:
        """Return the share of `rows` that a value of a candidate occurs in, the mean over its values; NaN without."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        codes = self.codes[ragged_arange(self.offsets[rows], lengths)]
        profile = np.bincount(codes, minlength=self.num_codes) / max(1, len(rows))
        lengths = self.offsets[candidates + 1] - self.offsets[candidates]
        own = self.codes[ragged_arange(self.offsets[candidates], lengths)]
        sums = np.bincount(np.repeat(np.arange(len(candidates)), lengths), profile[own], minlength=len(candidates))
        return np.where(lengths > 0, sums / np.maximum(lengths, 1), np.nan).astype(np.float32)


@dataclass(frozen=True)
class ItemStatistics:
    """Statistics of each item, by its row in the catalogue.

    Attributes:
        offsets: Where each item's events begin, `[items + 1]`.
        times: Times of its events, Unix seconds, ascending within an item, `[events]`; zeros without timestamps.
        has_times: Whether there are timestamps.
        follows: What came soon after each item, weighted by how likely that was.
        together: Items that co-occur with each item, weighted by the cosine.
        values: The columns of categories.
        numbers: The columns of numbers and times, `[items]` each, in units of their spread; NaN where unknown.
    """

    offsets: Int64[np.ndarray, " items_plus_1"]
    times: Int64[np.ndarray, " events"]
    has_times: bool
    follows: Neighbours
    together: Neighbours
    values: Mapping[str, Values]
    numbers: Mapping[str, Float32[np.ndarray, " items"]]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.offsets) - 1

    @classmethod
    def of(cls, sequences: Sequences, catalog: Catalog, settings: Mapping[str, FeatureSettings]) -> ItemStatistics:
        """Return what interactions and a catalogue say.

        Args:
            sequences: The interactions; nothing else is counted.
            catalog: The items.
            settings: The columns that the model reads of them; categories, numbers and times are taken.
        """
        num_items = len(catalog)
        times = np.zeros(sequences.num_events, np.int64) if sequences.times is None else sequences.times
        order = np.lexsort((times, sequences.item_rows))
        features = [Feature(name, one.kind, one.separator) for name, one in settings.items() if name in catalog.frame]
        return cls(
            offsets_of(np.bincount(sequences.item_rows, minlength=num_items)),
            times[order].astype(np.int64),
            sequences.times is not None,
            _follows(sequences, num_items),
            _together(sequences, num_items),
            {
                one.name: _values(one, catalog)
                for one in features
                if one.definition.content == "values" and not one.definition.is_id
            },
            {one.name: _numbers(one, catalog) for one in features if one.definition.content in ("numbers", "times")},
        )

    @cached_property
    def newest(self) -> int:
        """The time of the newest event."""
        return int(self.times.max(initial=0))

    def counts(self, rows: Int64[np.ndarray, " rows"], before: int) -> Int64[np.ndarray, " rows"]:
        """Return the number of events of each item before a moment; without timestamps, of all events."""
        if not self.has_times:
            return np.asarray(np.diff(self.offsets)[rows])
        start, span = self._span
        places = np.searchsorted(self._keys, rows * span + min(max(before - start, 0), span - 1))
        return np.asarray(places - self.offsets[rows])

    def first(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return the time of each item's first event; that of the newest event of all for items without any."""
        return self._time_at(self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows] > 0)

    def last(self, rows: Int64[np.ndarray, " rows"], counts: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return the time of each item's `counts`-th event; that of the newest event of all where it is 0."""
        return self._time_at(self.offsets[rows] + counts - 1, counts > 0)

    def _time_at(self, places: np.ndarray, is_known: np.ndarray) -> Int64[np.ndarray, " rows"]:
        found = np.full(len(places), self.newest, dtype=np.int64)
        found[is_known] = self.times[places[is_known]]
        return found

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The time of the oldest event, and a number beyond all times that are counted from there."""
        start = int(self.times.min(initial=self.newest))
        return start, self.newest - start + 2

    @cached_property
    def _keys(self) -> Int64[np.ndarray, " events"]:
        """Item and time of each event as one rising number."""
        start, span = self._span
        return np.asarray(np.repeat(np.arange(len(self)), np.diff(self.offsets)) * span + (self.times - start))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays = {"offsets": self.offsets, "times": self.times}
        for name, one in (("follows", self.follows), ("together", self.together)):
            arrays |= {f"{name}.offsets": one.offsets, f"{name}.rows": one.rows, f"{name}.weights": one.weights}
        for name, values in self.values.items():
            arrays |= {f"values.{name}.offsets": values.offsets, f"values.{name}.codes": values.codes}
        arrays |= {f"numbers.{name}": numbers for name, numbers in self.numbers.items()}
        about = {
            "has_times": self.has_times,
            "values": {name: values.num_codes for name, values in self.values.items()},
            "numbers": list(self.numbers),
        }
        save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, path, {"about": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> ItemStatistics:
        """Read what `save` wrote.

        Raises:
            ValueError: Its parts do not fit together.
        """
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        follows, together = (
            Neighbours(arrays[f"{name}.offsets"], arrays[f"{name}.rows"], arrays[f"{name}.weights"])
            for name in ("follows", "together")
        )
        values = {
            name: Values(arrays[f"values.{name}.offsets"], arrays[f"values.{name}.codes"], num_codes)
            for name, num_codes in about["values"].items()
        }
        numbers = {name: arrays[f"numbers.{name}"] for name in about["numbers"]}
        statistics = cls(arrays["offsets"], arrays["times"], about["has_times"], follows, together, values, numbers)
        statistics._check()
        return statistics

    def _check(self) -> None:
        """Make sure that what was read fits together.

        Raises:
            ValueError: It does not.
        """
        check_offsets(self.offsets, len(self), len(self.times))
        for beside in (self.follows, self.together):
            check_offsets(beside.offsets, len(self), len(beside.rows))
            if len(beside.rows) != len(beside.weights) or not _are_below(beside.rows, len(self)):
                raise ValueError(f"neighbours that are none of the {len(self)} items")
        for name, values in self.values.items():
            check_offsets(values.offsets, len(self), len(values.codes))
            if not 0 <= values.num_codes <= len(values.codes) or not _are_below(values.codes, values.num_codes):
                raise ValueError(f"values of {name} that are none of {values.num_codes}")
        for name, numbers in self.numbers.items():
            if numbers.shape != (len(self),):
                raise ValueError(f"{len(numbers)} numbers of {name}, expected {len(self)}")


def _are_below(codes: np.ndarray, most: int) -> bool:
    return not len(codes) or bool(codes.min() >= 0 and codes.max() < most)


def _follows(sequences: Sequences, num_items: int) -> Neighbours:
    """Return what came within `FOLLOWING` places after each item, as a share of the item's events."""
    whole = math.lcm(*range(1, FOLLOWING + 1))
    had = whole * sequences.item_counts(num_items)
    after = {apart: whole // apart for apart in range(1, FOLLOWING + 1)}
    return Neighbours.of(_weighed(sequences, num_items, after, lambda counts, rows: counts.data / had[rows]))


def _together(sequences: Sequences, num_items: int) -> Neighbours:
    """Return the cosine between items, of how often they occur within `TOGETHER` places of each other."""
    roots = np.sqrt(sequences.item_counts(num_items))
    around = {way * apart: 1 for apart in range(1, TOGETHER + 1) for way in (1, -1)}
    return Neighbours.of(
        _weighed(sequences, num_items, around, lambda counts, rows: counts.data / (roots[rows] * roots[counts.indices]))
    )


def _weighed(
    sequences: Sequences,
    num_items: int,
    distances: Mapping[int, int],
    weights: Callable[[Matrix, Int64[np.ndarray, " counts"]], np.ndarray],
) -> Iterator[Matrix]:
    """Yield what `neighbour_counts` counts of other items, weighed.

    Args:
        sequences: The interactions.
        num_items: Size of the catalogue.
        distances: As of `neighbour_counts`.
        weights: Gets counts, and the item that each is about.
    """
    for first, counts in neighbour_counts(sequences, num_items, distances):
        counts.data[counts.indices == first + rows_of(counts)] = 0
        counts.eliminate_zeros()
        counts.data = weights(counts, first + rows_of(counts))
        yield counts


def _values(feature: Feature, catalog: Catalog) -> Values:
    lengths, texts = values_of(feature, catalog.frame[feature.name])
    different, codes = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return Values(offsets_of(lengths), codes.astype(np.int64), len(different))


def _numbers(feature: Feature, catalog: Catalog) -> Float32[np.ndarray, " items"]:
    numbers = numbers_of(feature, catalog.frame[feature.name])
    known = numbers[np.isfinite(numbers)]
    spread = float(known.std()) if len(known) else 0.0
    centred = (numbers - (known.mean() if len(known) else 0.0)) / (spread or 1.0)
    return np.where(np.isfinite(centred), centred, np.nan).astype(np.float32)
