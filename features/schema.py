"""What features exist: one `Feature` per column that becomes part of an item's, a user's or a request's vector.

The experimenter declares them in `[features]` of run.toml (`towers init` proposes them); the featurizer fits each on
the training data; the towers make one embedding table or one projection of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from features.config import FeaturesConfig, FeatureSettings, Kind

ITEM_ID = "item_id"
USER_ID = "user_id"
SPARSE_KINDS: tuple[Kind, ...] = ("id", "category", "categories", "text")
DENSE_KINDS: tuple[Kind, ...] = ("number", "vector", "time")


@dataclass(frozen=True)
class Feature:
    """One column and how it is read.

    Attributes:
        name: The column.
        kind: See `features.config.FeatureSettings`.
        separator: For `categories` in text cells: what stands between the values. None: the cells are lists.
        fixed: Of a text: how many numbers it becomes, of which none is trained. None: a table.
    """

    name: str
    kind: Kind
    separator: str | None = None
    fixed: int | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether the feature is looked up in an embedding table (as against projected from numbers)."""
        return self.kind in SPARSE_KINDS and self.fixed is None


@dataclass(frozen=True)
class Schema:
    """The features of items, of users and of requests, in the order in which the model reads them."""

    item: tuple[Feature, ...]
    user: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()

    @classmethod
    def from_config(cls, config: FeaturesConfig) -> Schema:
        """Return the schema that `[features]` declares; items are known by their id where nothing is declared."""
        item = _features(config.item) or (Feature(ITEM_ID, "id"),)
        context = _features({str(name): setting for name, setting in config.context.items()})
        return cls(item=item, user=_features(config.user), context=context)


def _features(settings: Mapping[str, FeatureSettings]) -> tuple[Feature, ...]:
    return tuple(Feature(name, setting.kind, setting.separator, setting.fixed) for name, setting in settings.items())
