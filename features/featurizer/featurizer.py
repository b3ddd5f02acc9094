"""Columns to numbers, the same way in training and in the server: fitted on the training data, saved in the bundle.

Every kind of feature has an encoder. Sparse ones turn a column into bags of rows of an embedding table, dense ones
into a few numbers. A value that is missing or was never seen adds nothing to the
vector it would be part of: an empty bag, or zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from features.columns import spelling_of, texts_of
from features.encoders.encoder import PretrainedText, save_encoders
from features.errors import DataError
from features.featurizer.side_encoders import SideEncoders
from features.ids import ITEM_ID, USER_ID
from features.messages import nearest
from features.schema import Feature, Schema
from features.sequences.batches import EntityFeatures
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users

SIDES = ("item", "user", "context")


class Featurizer:
    """Everything that is fitted on the training tables before the model: vocabularies, IDF weights, quantiles."""

    def __init__(
        self,
        schema: Schema,
        items: SideEncoders,
        users: SideEncoders,
        pretrained: Mapping[str, PretrainedText] | None = None,
    ) -> None:
        self.schema = schema
        self.items = items
        self.users = users
        self.pretrained = dict(pretrained or {})

    @classmethod
    def fit(
        cls,
        schema: Schema,
        catalog: Catalog,
        users: Users | None,
        train: Sequences,
        *,
        whole_catalog: bool = False,
        shared_texts: bool = False,
    ) -> Featurizer:
        """Fit on the items and users of the training sequences only.

        Args:
            schema: The features.
            catalog: Where the items are.
            users: Where the users' attributes are; None: nowhere.
            train: The training data.
            whole_catalog: Whether the other items are looked at as well, as where documents are known before queries;
                words that none of them has then count as rare ones.
            shared_texts: Whether what is written of users is read as what is written of items.

        Raises:
            DataError: A declared column does not exist.
        """
        items, people = _trained_rows(schema, catalog, users, train, whole_catalog=whole_catalog)
        schema = replace(
            schema,
            item=_spelt(schema.item, catalog.frame),
            user=_spelt(schema.user, people.frame if users is None else users.frame),
        )
        pretrained = _fit_pretrained(schema, items.frame, people.frame)
        written = (
            [items.frame[feature.name] for feature in schema.item if feature.definition.content == "texts"]
            if shared_texts
            else []
        )
        texts = pd.concat(written, ignore_index=True) if written else None
        fit = partial(SideEncoders.fit, pretrained=pretrained, texts=texts, unseen_words=whole_catalog)
        fitted = cls(
            schema,
            fit(schema.item, items.frame, role="document", events=items.events),
            fit(schema.user, people.frame, role="query", events=people.events),
            pretrained,
        )
        _refuse_nothing_left(fitted)
        return fitted

    @property
    def notes(self) -> list[str]:
        """What the vocabularies leave out, by column, as training found it."""
        return [
            f"{side} column {name!r}: {cut.values:,} of {cut.of_values:,} values have fewer than {cut.min_count} "
            f"interactions, and no embedding of their own; they are {cut.share:.1%} of the interactions"
            for side, encoders in (("items", self.items), ("users", self.users))
            for name, cut in encoders.cut.items()
        ]

    def grown(
        self, catalog: Catalog, users: Users | None, train: Sequences, *, whole_catalog: bool = False
    ) -> Featurizer:
        """Return the featurizer with new ids and categories behind those it knows, which keep their rows.

        With `min_count`, a value joins once it has that many interactions, old and new. What else was fitted (word
        weights, quantiles, projections) stays: the weights of the model belong to it.

        Args:
            catalog: Where the items are.
            users: Where the users' attributes are; None: nowhere.
            train: The training data, whose items and users are looked at, as by `fit`.
            whole_catalog: As for `fit`.

        Raises:
            DataError: A declared column does not exist, or a new item would have no feature at all.
        """
        items, people = _trained_rows(self.schema, catalog, users, train, whole_catalog=whole_catalog)
        grown = Featurizer(
            self.schema,
            self.items.grown(items.frame, items.events),
            self.users.grown(people.frame, people.events),
            self.pretrained,
        )
        _refuse_nothing_left(grown)
        return grown

    def item_features(self, catalog: Catalog) -> EntityFeatures:
        """Return the features of every item of a catalogue, also of items that training did not know."""
        return self.items.encode(catalog.frame)

    def user_features(self, user_ids: Sequence[Any] | np.ndarray, attributes: pd.DataFrame | None) -> EntityFeatures:
        """Return the features of users.

        Args:
            user_ids: Their ids, `[users]`; an id that training did not know is unknown, not an error.
            attributes: One row per user, in the same order, with columns as in the users' table. None: nothing known.
        """
        if self.have_no_features(user_ids, attributes):
            return self.unknown_user_features.take(torch.zeros(len(user_ids), dtype=torch.int64))
        frame = pd.DataFrame(index=range(len(user_ids))) if attributes is None else attributes.reset_index(drop=True)
        return self.users.encode(frame.assign(**{USER_ID: list(user_ids)}))

    def have_no_features(self, user_ids: Sequence[Any] | np.ndarray, attributes: pd.DataFrame | None) -> bool:
        """Return whether no user, given as for `user_features`, has a known value, so that all are encoded alike."""
        return attributes is None and (not self._reads_user_ids or all(user_id is None for user_id in user_ids))

    @cached_property
    def _reads_user_ids(self) -> bool:
        return any(feature.name == USER_ID for feature in self.schema.user)

    @cached_property
    def unknown_user_features(self) -> EntityFeatures:
        """Features of one unknown user, cached because encoding them takes half the time of a request."""
        return self.users.encode(pd.DataFrame({USER_ID: [None]}))

    def save(self, folder: Path) -> None:
        """Write `schema.json`, `vocabularies/*.parquet` and `encoders/` into `folder`."""
        sides = {side: [asdict(feature) for feature in getattr(self.schema, side)] for side in SIDES}
        (folder / "schema.json").write_text(json.dumps(sides, indent=1), encoding="utf-8")
        save_encoders(self.pretrained, folder / "encoders")
        vocabularies = folder / "vocabularies"
        vocabularies.mkdir()
        self.items.save(self.schema.item, vocabularies, "item")
        self.users.save(self.schema.user, vocabularies, "user")

    @classmethod
    def load(cls, folder: Path, pretrained: Mapping[str, PretrainedText]) -> Featurizer:
        """Read what `save` wrote; the pretrained models are read by `load_encoders`."""
        sides = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        schema = Schema(
            **{side: tuple(Feature(**feature) for feature in sides[side]) for side in SIDES},
            encoders={name: encoder.settings for name, encoder in pretrained.items()},
        )
        vocabularies = folder / "vocabularies"
        return cls(
            schema,
            SideEncoders.load(schema.item, vocabularies, "item", pretrained),
            SideEncoders.load(schema.user, vocabularies, "user", pretrained, "query"),
            pretrained,
        )


@dataclass(frozen=True)
class _TrainedRows:
    """The rows of a table that are trained on, and how many training interactions each of them has."""

    frame: pd.DataFrame
    events: Int[np.ndarray, "rows"]


def _trained_rows(
    schema: Schema, catalog: Catalog, users: Users | None, train: Sequences, *, whole_catalog: bool
) -> tuple[_TrainedRows, _TrainedRows]:
    """Return the items and the users that have training interactions; of a whole catalogue the other items as well."""
    item_events = train.item_counts(len(catalog))
    chosen = (item_events > 0) | whole_catalog
    items = _declared(schema.item, catalog.frame, "items", ITEM_ID)[chosen]
    active = pd.DataFrame({USER_ID: train.user_ids[train.lengths > 0]})
    people = _declared(schema.user, active if users is None else users.frame, "users", USER_ID)
    people = people[people[USER_ID].isin(active[USER_ID].tolist())]
    user_events = pd.Series(train.lengths, index=pd.Index(train.user_ids, dtype=object))
    return (
        _TrainedRows(items, item_events[chosen]),
        _TrainedRows(people, user_events.reindex(people[USER_ID].tolist()).to_numpy()),
    )


def _refuse_nothing_left(fitted: Featurizer) -> None:
    """Refuse items whose only feature is an id that is too rare for an embedding of its own."""
    for name, cut in fitted.items.cut.items():
        if len(fitted.schema.item) == 1 and fitted.schema.item[0].hashed_rows is None:
            raise DataError(
                f"[features] min_count = {cut.min_count} leaves {cut.values:,} items without a vector: they have no "
                f"feature but {name!r}; add hashed_rows = {min(cut.values, 1000)} to [features.item.{name}], or more "
                "columns to [features.item]"
            )


def _fit_pretrained(schema: Schema, items: pd.DataFrame, people: pd.DataFrame) -> dict[str, PretrainedText]:
    """Return the pretrained models, each turned to the texts that it will read: the items', if it reads any."""
    fitted = {}
    for name, settings in schema.encoders.items():
        documents = [text for one in schema.item if one.encoder == name for text in texts_of(one, items[one.name])]
        queries = [text for one in schema.user if one.encoder == name for text in texts_of(one, people[one.name])]
        fitted[name] = PretrainedText.fit(settings, documents or queries, "document" if documents else "query")
    return fitted


def _spelt(features: Sequence[Feature], frame: pd.DataFrame) -> tuple[Feature, ...]:
    """Return features with how their values are spelt in a table, all of it."""
    return tuple(
        replace(one, spelling=spelling_of(one, frame[one.name])) if one.definition.is_sparse else one
        for one in features
    )


def _declared(features: Sequence[Feature], frame: pd.DataFrame, table: str, own_id: str) -> pd.DataFrame:
    missing = [feature.name for feature in features if feature.name not in frame.columns]
    if missing:
        near = nearest(missing[0], list(map(str, frame.columns)))
        raise DataError(
            f"[features.{table[:-1]}] names column {missing[0]!r}, but the {table}' table has only "
            f"{', '.join(map(repr, frame.columns))}; "
            f"{f'write {near!r}' if near is not None else 'correct the name'} or remove the line"
        )
    return frame
