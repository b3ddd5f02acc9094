"""The profile of the training data: how often which values and numbers occur, for `towers drift` to compare with.

It is a file of the bundle, `profile.json`. It has frequent values of the columns that the model reads and quantiles of
numbers, and nothing about a single user.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import chdtri

from features.columns import numbers_of, values_of
from features.featurizer.featurizer import Featurizer
from features.ids import ITEM_ID, USER_ID
from features.tables.tables import Tables

NAME = "profile.json"
INTERACTIONS = "interactions"
MOST_VALUES = 50
"""Frequent values of a column that are counted each; the rest is counted together."""
LONGEST_VALUE = 200
"""Longer values are counted with the rest."""
QUANTILES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
"""Limits of the ten ranges of numbers."""
CERTAINTY = 0.999
"""How rarely chance alone may exceed `Distribution.noise`."""


@dataclass(frozen=True)
class Distribution:
    """How often values, or numbers in ranges, occur.

    Attributes:
        count: Number of values.
        shares: Share of each value or range, the last that of all other values; they sum to 1.
        names: The values, the most frequent first. None: numbers.
        limits: Of numbers: the limits between the ranges, ascending.
    """

    count: int
    shares: tuple[float, ...]
    names: tuple[str, ...] | None = None
    limits: tuple[float, ...] | None = None

    @classmethod
    def of_values(cls, values: Iterable[str] | Mapping[str, int], like: Distribution | None = None) -> Distribution:
        """Return how often each value occurs: the most frequent ones, or those of another distribution.

        Args:
            values: The values, or how often each occurs.
            like: The other distribution. None: this is training.
        """
        counts = Counter(values)
        if like is None:
            short = Counter({value: count for value, count in counts.items() if len(value) <= LONGEST_VALUE})
            names = tuple(value for value, _ in short.most_common(MOST_VALUES))
        else:
            names = like.names or ()
        found = np.array([*(counts[name] for name in names), 0], dtype=np.float64)
        found[-1] = counts.total() - found.sum()
        return cls(counts.total(), _shares(found), names=names)

    @classmethod
    def of_numbers(cls, numbers: Float[np.ndarray, " numbers"], like: Distribution | None = None) -> Distribution:
        """Return how many numbers are in each range: tenths of them, or the ranges of another distribution."""
        if like is None:
            limits = tuple(np.unique(np.quantile(numbers, QUANTILES, method="inverted_cdf")).tolist())
        else:
            limits = like.limits or ()
        # A limit belongs to the range below it, so that a frequent number has its own range.
        found = np.bincount(np.searchsorted(limits, numbers, side="left"), minlength=len(limits) + 1)
        return cls(len(numbers), _shares(found.astype(np.float64)), limits=limits)

    def psi(self, today: Distribution) -> float:
        """Return the population stability index of another distribution with the same values or ranges.

        The sum of (q - p) ln(q / p) over the shares p and q; 0 where they are equal. Half an occurrence is added to
        each, so that a value that does not occur does not make it infinite.
        """
        p, q = (_smoothed(one) for one in (self, today))
        return float(((q - p) * np.log(q / p)).sum())

    def noise(self, today: Distribution) -> float:
        """Return what the index exceeds once in a thousand times between two samples of one distribution.

        For samples of n and m values in b ranges it is (1/n + 1/m) times a chi-square variable of b - 1 degrees of
        freedom (Yurdakul 2018).
        """
        freedom = max(sum(share > 0 for share in self.shares) - 1, 1)
        quantile = chdtri(freedom, 1 - CERTAINTY)  # of chi-squared
        return float((1 / max(self.count, 1) + 1 / max(today.count, 1)) * quantile)


@dataclass(frozen=True)
class Profile:
    """Distributions of the columns that a model reads, and of the items of the interactions.

    Attributes:
        columns: By table (`items`, `users`, `interactions`) and column; of the interactions the items.
    """

    columns: Mapping[str, Mapping[str, Distribution]]

    @classmethod
    def of(cls, featurizer: Featurizer, tables: Tables, like: Profile | None = None) -> Profile:
        """Return the profile of tables.

        Args:
            featurizer: How the columns are read.
            tables: The tables.
            like: The profile to compare with: values and ranges are then those of it. None: this is training.
        """
        known = {} if like is None else like.columns
        frames = {"items": (tables.catalog.frame, featurizer.schema.item)}
        if tables.users is not None:
            frames["users"] = (tables.users.frame, featurizer.schema.user)
        found: dict[str, dict[str, Distribution]] = {}
        for table, (frame, features) in frames.items():
            for feature in features:
                if feature.name in (ITEM_ID, USER_ID) or feature.name not in frame:
                    continue
                before = known.get(table, {}).get(feature.name)
                content = feature.definition.content
                if content == "values":
                    _, values = values_of(feature, frame[feature.name])
                    found.setdefault(table, {})[feature.name] = Distribution.of_values(values, before)
                elif content in ("numbers", "times"):
                    numbers = numbers_of(feature, frame[feature.name])
                    numbers = numbers[np.isfinite(numbers)]
                    if len(numbers):
                        found.setdefault(table, {})[feature.name] = Distribution.of_numbers(numbers, before)
        if len(tables.interactions):
            before = known.get(INTERACTIONS, {}).get(ITEM_ID)
            counts = tables.interactions.sequences(tables.catalog).item_counts(len(tables.catalog))
            some = np.flatnonzero(counts)
            some = some[np.argsort(-counts[some], kind="stable")]
            items = dict(zip(map(str, tables.catalog.item_ids[some].tolist()), counts[some].tolist(), strict=True))
            found[INTERACTIONS] = {ITEM_ID: Distribution.of_values(items, before)}
        return cls(found)

    def to_json(self) -> str:
        """Return the content of `profile.json`."""
        content = {
            table: {name: asdict(one) for name, one in columns.items()} for table, columns in self.columns.items()
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read `profile.json`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {table: {name: _from_json(one) for name, one in columns.items()} for table, columns in content.items()}
        )


def _from_json(values: Mapping[str, Any]) -> Distribution:
    tuples: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
    return Distribution(**tuples)


def _shares(counts: Float[np.ndarray, " bins"]) -> tuple[float, ...]:
    return tuple((counts / max(counts.sum(), 1)).tolist())


def _smoothed(one: Distribution) -> Float[np.ndarray, " bins"]:
    counts = np.array(one.shares) * one.count + 0.5
    return np.asarray(counts / counts.sum())
