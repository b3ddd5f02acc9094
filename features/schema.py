"""The features of a model: one `Feature` per column of items, users or requests.

The experimenter declares them in `[features]` of run.toml (`towers init` proposes them); the featurizer fits each on
the training data; the towers make one embedding table or one projection of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from features.config import EncoderSettings, FeaturesConfig, FeatureSettings
from features.feature_kinds import FEATURE_KINDS, FeatureKind
from features.ids import ITEM_ID
from features.spelling import Spelling


@dataclass(frozen=True)
class Feature:
    """One feature: a column and how it is encoded.

    Attributes:
        name: The column.
        kind: A name in `features.feature_kinds.FEATURE_KINDS`.
        separator: For `categories` in text cells: what stands between the values. None: the cells are lists.
        frozen_dim: Of a text: how many numbers it becomes, of which none is trained. None: an embedding table.
        encoder: Of a text: the name of the pretrained model that reads it. None: its words are read.
        trainable_residual: Of a text with `frozen_dim`: whether it also has an embedding table, which is added.
        decimal: Of numbers that are text: the decimal separator. None: decided by the column.
        time_format: Of times: how they are written. None: decided by the column.
        min_count: Of values: training interactions from which on a value has a row of its own. None: 1.
        hashed_rows: Of values: rows that all others share, by their hashes. None: they have none.
        hashes: Of values: how many of these rows each takes. None: `HASHES`.
        spelling: Of values and texts: how they are spelt, as training decided. None: decided by the column.
    """

    name: str
    kind: str
    separator: str | None = None
    frozen_dim: int | None = None
    encoder: str | None = None
    trainable_residual: bool = False
    decimal: Literal[".", ","] | None = None
    time_format: str | None = None
    spelling: Spelling | None = None
    min_count: int | None = None
    hashed_rows: int | None = None
    hashes: int | None = None

    @property
    def definition(self) -> FeatureKind:
        """The entry of its kind."""
        return FEATURE_KINDS[self.kind]

    @property
    def is_sparse(self) -> bool:
        """Whether the feature is looked up in an embedding table."""
        return self.definition.is_sparse and (
            self.trainable_residual or (self.frozen_dim is None and self.encoder is None)
        )

    @property
    def is_dense(self) -> bool:
        """Whether the feature is numbers: to be projected, or a place."""
        return not self.definition.is_sparse or self.frozen_dim is not None or self.encoder is not None


@dataclass(frozen=True)
class Schema:
    """The features of items, of users and of requests, in the order in which the model reads them.

    Attributes:
        item: Of an item.
        user: Of a user.
        context: Of a request.
        encoders: The pretrained models that texts among them are read by, by name.
    """

    item: tuple[Feature, ...]
    user: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()
    encoders: Mapping[str, EncoderSettings] = field(default_factory=dict)

    @property
    def item_spellings(self) -> dict[str, Spelling]:
        """Spelling of the values of item columns, by column, as decided in training."""
        return {one.name: one.spelling for one in self.item if one.spelling is not None}

    @classmethod
    def from_config(cls, config: FeaturesConfig) -> Schema:
        """Return the schema of `[features]`; without item features, items have their id as only feature."""
        item = _features(config.item or {ITEM_ID: FeatureSettings(kind="id")}, config.min_count)
        context = _features({str(name): setting for name, setting in config.context.items()}, config.min_count)
        user = _features(config.user, config.min_count)
        used = {feature.encoder for feature in (*item, *user)}
        encoders = {name: settings for name, settings in config.encoders.items() if name in used}
        return cls(item=item, user=user, context=context, encoders=encoders)


def _features(settings: Mapping[str, FeatureSettings], min_count: int) -> tuple[Feature, ...]:
    features = tuple(Feature(name, **dict(setting)) for name, setting in settings.items())
    return tuple(
        replace(one, min_count=min_count) if one.definition.content == "values" and one.min_count is None else one
        for one in features
    )
