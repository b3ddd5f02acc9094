"""Columns to numbers, the same way in training and in the server: fitted on the training data, saved in the bundle.

Every kind of feature has an encoder. Sparse ones turn a column into bags of rows of an embedding table, dense ones
into a few numbers. A value that is missing or was never seen adds nothing to the
vector it would be part of: an empty bag, or zeros.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchrec import KeyedJaggedTensor

from features.encoders.encoder import PretrainedText, save_encoders
from features.encoders.model import Role
from features.errors import DataError
from features.featurizer.vocabulary import UNKNOWN, Vocabulary
from features.messages import nearest
from features.parquet import read_parquet
from features.schema import ITEM_ID, SPELT_KINDS, USER_ID, Feature, Schema
from features.sequences.batches import EntityFeatures
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from features.values.cells import is_missing, numbers_of, spelling_of, texts_of, values_of
from features.values.readings import is_list
from features.values.text import HashedText, ProjectedText, words

NUM_QUANTILES = 16
SECONDS_A_DAY = 86_400
CONTEXT_WIDTH = 6
SIDES = ("item", "user", "context")

Bags = tuple[Int[np.ndarray, "entities"], Int[np.ndarray, "values"]]


class SparseEncoder(Protocol):
    """A column to one bag of rows per entity: the sizes of the bags, and all rows one after another."""

    @property
    def num_rows(self) -> int:
        """How many rows the embedding table needs."""

    def bags(self, column: pd.Series) -> Bags:
        """Return the bags of a column."""

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells say something that was there in training."""

    def save(self, path: Path) -> None:
        """Write the fitted state as one Parquet file."""


class DenseEncoder(Protocol):
    """A column to `width` numbers per entity."""

    @property
    def width(self) -> int:
        """How many numbers one value becomes."""

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the numbers of a column."""

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells say something that the model can read."""

    def save(self, path: Path) -> None:
        """Write the fitted state as one Parquet file."""


@dataclass(frozen=True)
class ValueEncoder:
    """Ids and categories: every value a row; a cell of several values a bag of them."""

    vocabulary: Vocabulary
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> ValueEncoder:
        """Return the encoder of the values in `column`."""
        return cls(Vocabulary.fit(values_of(feature, column)[1]), feature)

    @property
    def num_rows(self) -> int:
        """How many rows the embedding table needs, the unknown one included."""
        return len(self.vocabulary)

    def bags(self, column: pd.Series) -> Bags:
        """Return the known values of each cell."""
        lengths, values = values_of(self.feature, column)
        rows = self.vocabulary.rows(values)
        known = rows != UNKNOWN
        lengths = np.bincount(np.repeat(np.arange(len(column)), lengths)[known], minlength=len(column))
        return lengths, rows[known]

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a known value; of many equal cells one is looked at."""
        if column.dtype == object or (isinstance(column.dtype, pd.ArrowDtype) and is_list(column.dtype.pyarrow_dtype)):
            return np.asarray(self.bags(column)[0] > 0)
        codes, distinct = pd.factorize(column)
        is_known = self.bags(pd.Series(distinct))[0] > 0
        known: np.ndarray = np.append(is_known, False)[codes]
        return known

    def unknown(self, column: pd.Series) -> list[tuple[str, ...]]:
        """Return the values of each cell that are not known, each once."""
        lengths, values = values_of(self.feature, column)
        is_unknown = self.vocabulary.rows(values) == UNKNOWN
        ends = np.cumsum(lengths)
        return [
            tuple(
                value
                for value, unknown in zip(values[end - length : end], is_unknown[end - length : end], strict=True)
                if unknown
            )
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write the vocabulary."""
        self.vocabulary.save(path)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> ValueEncoder:
        """Read what `save` wrote."""
        return cls(Vocabulary.load(path), feature)


@dataclass(frozen=True)
class HashedTextEncoder:
    """Text: bags of hashed n-grams."""

    hashed: HashedText
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> HashedTextEncoder:
        """Return the encoder whose n-gram weights come from the texts of `column`."""
        return cls(HashedText.fit(texts_of(feature, column)), feature)

    @property
    def num_rows(self) -> int:
        """How many buckets there are."""
        return len(self.hashed.inverse_document_frequency)

    def bags(self, column: pd.Series) -> Bags:
        """Return the most telling n-grams of each text."""
        return self.hashed.bags(texts_of(self.feature, column))

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells have words; parts of words that training did not have count, too."""
        return _have_words(self.feature, column)

    def save(self, path: Path) -> None:
        """Write the weight of each bucket."""
        frame = pd.DataFrame({"weight": self.hashed.inverse_document_frequency})
        frame.assign(max_ngrams=self.hashed.max_ngrams).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> HashedTextEncoder:
        """Read what `save` wrote."""
        frame = read_parquet(path).to_pandas()
        weights = frame["weight"].to_numpy(np.float32)
        return cls(HashedText(weights, int(frame["max_ngrams"].iloc[0])), feature)


@dataclass(frozen=True)
class FixedTextEncoder:
    """Text: a place that is not trained."""

    projected: ProjectedText
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series, *, unseen_words: bool = False) -> FixedTextEncoder:
        """Return the encoder whose word weights come from the texts of `column`, and perhaps those of other words."""
        assert feature.frozen_dim is not None, "the schema says which texts are fixed"
        return cls(ProjectedText.fit(texts_of(feature, column), feature.frozen_dim, unseen_words=unseen_words), feature)

    @property
    def width(self) -> int:
        """How many numbers a text becomes."""
        return self.projected.width

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the place of each text."""
        return self.projected.numbers(texts_of(self.feature, column))

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells have a place: a known word."""
        return np.asarray(self.numbers(column).any(axis=1))

    def save(self, path: Path) -> None:
        """Write the weight of each bucket."""
        pd.DataFrame({"weight": self.projected.inverse_document_frequency}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> FixedTextEncoder:
        """Read what `save` wrote."""
        assert feature.frozen_dim is not None, "the schema says which texts are fixed"
        weights = read_parquet(path).to_pandas()["weight"].to_numpy(np.float32)
        return cls(ProjectedText(weights, feature.frozen_dim), feature)


@dataclass(frozen=True)
class PretrainedColumn:
    """Text: the vectors of a pretrained model, which may read other columns, too."""

    pretrained: PretrainedText
    role: Role
    feature: Feature

    @property
    def width(self) -> int:
        """How many of its numbers are read."""
        return self.pretrained.width if self.feature.frozen_dim is None else self.feature.frozen_dim

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the beginning of each text's vector, zeros where there is none; nothing of one that is trained."""
        if self.is_trained:
            return np.zeros((len(column), 0), dtype=np.float32)
        return self.pretrained.numbers(texts_of(self.feature, column), self.role, self.width)

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells have words; the model is not asked."""
        return _have_words(self.feature, column)

    @property
    def is_trained(self) -> bool:
        """Whether the towers make the vectors, of tokens."""
        return self.pretrained.settings.is_trained

    def tokens(self, column: pd.Series) -> Bags:
        """Return how many tokens each text has, and all of them one after another."""
        tokens = self.pretrained.tokens(texts_of(self.feature, column), self.role)
        lengths = np.array([len(one) for one in tokens], dtype=np.int64)
        return lengths, np.array([token for one in tokens for token in one], dtype=np.int64)


@dataclass(frozen=True)
class NumberEncoder:
    """Numbers and times: how far the value has come through each of its quantiles, 0 to 1 in each.

    The piecewise linear encoding of Gorishniy et al. 2022 (arXiv 2203.05556): no scale or outlier can hurt, and a
    linear layer after it can follow any shape. A missing value is all zeros, a known one begins with a 1.
    """

    edges: Float[np.ndarray, edges]
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> NumberEncoder:
        """Return the encoder whose edges are the quantiles of `column`."""
        values = numbers_of(feature, column)
        known = values[np.isfinite(values)]
        quantiles = np.quantile(known, np.linspace(0, 1, NUM_QUANTILES + 1)) if len(known) else np.array([0.0, 1.0])
        edges = np.unique(quantiles)
        return cls(edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1]), feature)

    @property
    def width(self) -> int:
        """One number for each span between edges, and one that says the value is known."""
        return len(self.edges)

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the encoded values."""
        values = numbers_of(self.feature, column)[:, None]
        spans = np.clip((values - self.edges[:-1]) / np.diff(self.edges), 0, 1)
        known = np.isfinite(values)
        return np.where(known, np.hstack([known, spans]), 0).astype(np.float32)

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a number."""
        known: np.ndarray = np.isfinite(numbers_of(self.feature, column))
        return known

    def save(self, path: Path) -> None:
        """Write the edges."""
        pd.DataFrame({"edge": self.edges}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> NumberEncoder:
        """Read what `save` wrote."""
        return cls(read_parquet(path).to_pandas()["edge"].to_numpy(), feature)


@dataclass(frozen=True)
class VectorEncoder:
    """Ready-made vectors, brought to unit length; a missing one is all zeros."""

    width: int
    feature: Feature

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> VectorEncoder:
        """Return the encoder for vectors as long as those of `column`."""
        widths = column.dropna().map(len).unique()
        if len(widths) != 1:
            raise DataError(
                f"column {feature.name!r}: expected vectors of one length, found "
                f"{', '.join(map(str, sorted(widths))) or 'none'}; make them equally long or remove the feature"
            )
        return cls(int(widths[0]), feature)

    def numbers(self, column: pd.Series) -> Float[np.ndarray, "entities width"]:
        """Return the vectors."""
        vectors = np.zeros((len(column), self.width), dtype=np.float32)
        for row, value in enumerate(column):
            if not is_missing(value):
                if len(value) != self.width:
                    raise DataError(
                        f"column {self.feature.name!r}, row {row + 1}: expected a vector of {self.width} numbers, "
                        f"found {len(value)}; make it as long as in training"
                    )
                vectors[row] = value
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(norms))
        if len(wrong):
            raise DataError(
                f"column {self.feature.name!r}, row {wrong[0] + 1:,}: expected a vector of numbers, found one with a "
                "number that is missing or too large; correct it or leave the cell empty"
            )
        unit: np.ndarray = vectors / np.maximum(norms, 1e-12)
        return unit

    def knows(self, column: pd.Series) -> Bool[np.ndarray, "entities"]:
        """Return which cells hold a vector other than zero."""
        return np.asarray(self.numbers(column).any(axis=1))

    def save(self, path: Path) -> None:
        """Write the width."""
        pd.DataFrame({"width": [self.width]}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> VectorEncoder:
        """Read what `save` wrote."""
        return cls(int(read_parquet(path).to_pandas()["width"].iloc[0]), feature)


@dataclass(frozen=True)
class TrainedText:
    """A text whose encoder is trained, and where its numbers belong among the dense ones.

    Attributes:
        name: The column.
        encoder: The name of its encoder.
        begin: The place of its first number.
        width: How many numbers it has.
    """

    name: str
    encoder: str
    begin: int
    width: int


@dataclass(frozen=True)
class FeatureSizes:
    """What a tower must be built for.

    Attributes:
        tables: Rows of each sparse feature's table.
        dense: How many dense numbers there are to be projected.
        fixed: How many numbers each fixed text has; they come after the others.
        trained: The texts among all of these that are to be encoded first.
        texts: Which of the tables are of texts.
        corrections: Which of these begin at nothing, because the text has a place as well.
    """

    tables: dict[str, int]
    dense: int
    fixed: tuple[int, ...] = ()
    trained: tuple[TrainedText, ...] = ()
    texts: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ()


@dataclass(frozen=True)
class SideEncoders:
    """The encoders of one side (items or users), in the order of the schema."""

    sparse: dict[str, SparseEncoder]
    dense: dict[str, DenseEncoder]

    @classmethod
    def fit(
        cls,
        features: Sequence[Feature],
        frame: pd.DataFrame,
        pretrained: Mapping[str, PretrainedText] | None = None,
        role: Role = "document",
        texts: pd.Series | None = None,
        *,
        unseen_words: bool = False,
    ) -> SideEncoders:
        """Return encoders fitted on the rows of `frame`.

        Args:
            features: What is read.
            frame: The rows.
            pretrained: The pretrained models that the features name.
            role: What the texts of this side are to these.
            texts: What the encoders of texts are fitted on. None: on the texts of the rows.
            unseen_words: Whether words that none of these has count in fixed texts.

        Raises:
            DataError: More numbers are wanted of a pretrained model than it has, or vectors differ in length.
        """
        columns = {
            feature.name: frame[feature.name] if texts is None or feature.kind != "text" else texts
            for feature in features
        }
        return cls(
            {one.name: _SPARSE[one.kind].fit(one, columns[one.name]) for one in features if one.is_sparse},
            _dense_encoders(
                features,
                pretrained,
                role,
                lambda one: (
                    FixedTextEncoder.fit(one, columns[one.name], unseen_words=unseen_words)
                    if one.frozen_dim is not None
                    else _dense(one).fit(one, columns[one.name])
                ),
            ),
        )

    @classmethod
    def load(
        cls,
        features: Sequence[Feature],
        folder: Path,
        side: str,
        pretrained: Mapping[str, PretrainedText] | None = None,
        role: Role = "document",
    ) -> SideEncoders:
        """Read what `save` wrote, beside the pretrained models that were saved elsewhere."""
        files = _files(features, folder, side)
        return cls(
            {one.name: _SPARSE[one.kind].load(one, files[one.name]) for one in features if one.is_sparse},
            _dense_encoders(features, pretrained, role, lambda one: _dense(one).load(one, _of_place(one, files))),
        )

    def save(self, features: Sequence[Feature], folder: Path, side: str) -> None:
        """Write one Parquet file per feature into `folder`, two of a fixed text that is corrected.

        What pretrained models read has none.
        """
        files = _files(features, folder, side)
        for feature in features:
            if feature.is_sparse:
                self.sparse[feature.name].save(files[feature.name])
            if feature.is_dense and feature.encoder is None:
                self.dense[feature.name].save(_of_place(feature, files))

    @property
    def sizes(self) -> FeatureSizes:
        """What the tower of this side must be built for."""
        tables = {name: encoder.num_rows for name, encoder in self.sparse.items()}
        fixed = tuple(one.width for one in self.dense.values() if _is_fixed(one))
        texts = tuple(name for name, encoder in self.sparse.items() if isinstance(encoder, HashedTextEncoder))
        corrections = tuple(name for name in texts if name in self.dense)
        dense = sum(encoder.width for encoder in self.dense.values()) - sum(fixed)
        return FeatureSizes(tables, dense, fixed, tuple(self._trained_texts()), texts, corrections)

    def _trained_texts(self) -> Iterator[TrainedText]:
        begin = 0
        for name, encoder in self.dense.items():
            if isinstance(encoder, PretrainedColumn) and encoder.is_trained:
                assert encoder.feature.encoder is not None, "the schema says what reads a text"
                yield TrainedText(name, encoder.feature.encoder, begin, encoder.width)
            begin += encoder.width

    def knows(self, frame: pd.DataFrame) -> Bool[np.ndarray, "entities"]:
        """Return which rows of `frame` have a cell that says something to the model; other columns say nothing."""
        known = np.zeros(len(frame), dtype=bool)
        encoders: tuple[tuple[str, SparseEncoder | DenseEncoder], ...] = (*self.sparse.items(), *self.dense.items())
        for name, encoder in encoders:
            if name in frame and not known.all():
                known |= encoder.knows(frame[name])
        return known

    def unknown(self, frame: pd.DataFrame) -> list[dict[str, tuple[str, ...]]]:
        """Return the values in each row of `frame` that the model does not know, by column; its own ids apart."""
        columns = {
            name: encoder.unknown(frame[name])
            for name, encoder in self.sparse.items()
            if isinstance(encoder, ValueEncoder) and name in frame and name not in (ITEM_ID, USER_ID)
        }
        return [{name: cells[row] for name, cells in columns.items() if cells[row]} for row in range(len(frame))]

    def encode(self, frame: pd.DataFrame) -> EntityFeatures:
        """Return the features of the rows of `frame`; a column it lacks is unknown everywhere."""
        absent = pd.Series([None] * len(frame), dtype="object")
        columns = {name: frame.get(name, absent) for name in {**self.sparse, **self.dense}}
        numbers = [encoder.numbers(columns[name]) for name, encoder in self.dense.items()]
        dense = np.hstack(numbers) if numbers else np.zeros((len(frame), 0), dtype=np.float32)
        bags = {name: encoder.bags(columns[name]) for name, encoder in self.sparse.items()}
        tokens = {
            name: encoder.tokens(columns[name])
            for name, encoder in self.dense.items()
            if isinstance(encoder, PretrainedColumn) and encoder.is_trained
        }
        return EntityFeatures(_jagged(bags), torch.from_numpy(dense), _jagged(tokens))


class Featurizer:
    """Everything that was learned from the training tables before the model: vocabularies, weights, quantiles."""

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
        """Return the featurizer of the items and users that the training sequences hold; nothing else is looked at.

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
        known_items = np.bincount(train.item_rows, minlength=len(catalog)) > 0
        items = _declared(schema.item, catalog.frame, "items", ITEM_ID)[known_items | whole_catalog]
        active = pd.DataFrame({USER_ID: train.user_ids[train.lengths > 0]})
        people = _declared(schema.user, active if users is None else users.frame, "users", USER_ID)
        schema = replace(schema, item=_spelt(schema.item, catalog.frame), user=_spelt(schema.user, people))
        people = people[people[USER_ID].isin(active[USER_ID].tolist())]
        pretrained = _fit_pretrained(schema, items, people)
        written = [items[feature.name] for feature in schema.item if feature.kind == "text"] if shared_texts else []
        texts = pd.concat(written, ignore_index=True) if written else None
        return cls(
            schema,
            SideEncoders.fit(schema.item, items, pretrained, "document", texts, unseen_words=whole_catalog),
            SideEncoders.fit(schema.user, people, pretrained, "query", texts, unseen_words=whole_catalog),
            pretrained,
        )

    def item_features(self, catalog: Catalog) -> EntityFeatures:
        """Return the features of every item of a catalogue, also of items that training did not know."""
        return self.items.encode(catalog.frame)

    def user_features(self, user_ids: Sequence[Any] | np.ndarray, attributes: pd.DataFrame | None) -> EntityFeatures:
        """Return the features of users.

        Args:
            user_ids: Their ids, `[users]`; an id that training did not know is unknown, not an error.
            attributes: One row per user, in the same order, with columns as in the users' table. None: nothing known.
        """
        if self.are_strangers(user_ids, attributes):
            return self.stranger.take(torch.zeros(len(user_ids), dtype=torch.int64))
        frame = pd.DataFrame(index=range(len(user_ids))) if attributes is None else attributes.reset_index(drop=True)
        return self.users.encode(frame.assign(**{USER_ID: list(user_ids)}))

    def are_strangers(self, user_ids: Sequence[Any] | np.ndarray, attributes: pd.DataFrame | None) -> bool:
        """Return whether nothing is known of users, given as for `user_features`, that could tell them apart."""
        return attributes is None and (not self._reads_user_ids or all(user_id is None for user_id in user_ids))

    @cached_property
    def _reads_user_ids(self) -> bool:
        return any(feature.name == USER_ID for feature in self.schema.user)

    @cached_property
    def stranger(self) -> EntityFeatures:
        """The features of one user of whom nothing is known; to make a table for that is half the work of a request."""
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
        """Read what `save` wrote, beside the pretrained models, which `load_encoders` reads."""
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


def request_features(times: Int[Tensor, requests]) -> Float[Tensor, "requests 6"]:
    """Return the hour, the weekday and the season of Unix times (UTC), each as a point on a circle."""
    days = times.double() / SECONDS_A_DAY
    turns = torch.stack([days % 1, (days / 7) % 1, (days / 365.2425) % 1], dim=-1) * 2 * torch.pi
    return torch.cat([turns.sin(), turns.cos()], dim=-1).float()


_SPARSE: dict[str, Any] = {
    "id": ValueEncoder,
    "category": ValueEncoder,
    "categories": ValueEncoder,
    "text": HashedTextEncoder,
}


def _have_words(feature: Feature, column: pd.Series) -> Bool[np.ndarray, "entities"]:
    return np.array([bool(words(text)) for text in texts_of(feature, column)], dtype=bool)


def _jagged(bags: Mapping[str, Bags]) -> KeyedJaggedTensor | None:
    """Return bags of rows, or tokens, by feature; None where there is no feature."""
    if not bags:
        return None
    lengths, values = (np.concatenate(parts) for parts in zip(*bags.values(), strict=True))
    return KeyedJaggedTensor(
        keys=list(bags),
        values=torch.from_numpy(values.astype(np.int64)),
        lengths=torch.from_numpy(lengths.astype(np.int32)),
    )


def _dense(feature: Feature) -> Any:
    if feature.frozen_dim is not None:
        return FixedTextEncoder
    return VectorEncoder if feature.kind == "vector" else NumberEncoder


def _pretrained(feature: Feature, pretrained: Mapping[str, PretrainedText], role: Role) -> PretrainedColumn:
    assert feature.encoder is not None, "the schema says which texts are read by a pretrained model"
    encoder = pretrained[feature.encoder]
    if feature.frozen_dim is not None and feature.frozen_dim > encoder.width:
        raise DataError(
            f"frozen_dim = {feature.frozen_dim} of {feature.name!r} is more than the {encoder.width} numbers of "
            f"encoder {feature.encoder!r}; make it {encoder.width} or less"
        )
    return PretrainedColumn(encoder, role, feature)


def _fit_pretrained(schema: Schema, items: pd.DataFrame, people: pd.DataFrame) -> dict[str, PretrainedText]:
    """Return the pretrained models, each turned to the texts that it will read: the items', if it reads any."""
    fitted = {}
    for name, settings in schema.encoders.items():
        documents = [text for one in schema.item if one.encoder == name for text in texts_of(one, items[one.name])]
        queries = [text for one in schema.user if one.encoder == name for text in texts_of(one, people[one.name])]
        fitted[name] = PretrainedText.fit(settings, documents or queries, "document" if documents else "query")
    return fitted


def _is_fixed(encoder: DenseEncoder) -> bool:
    if isinstance(encoder, PretrainedColumn):
        return encoder.feature.frozen_dim is not None
    return isinstance(encoder, FixedTextEncoder)


def _dense_encoders(
    features: Sequence[Feature],
    pretrained: Mapping[str, PretrainedText] | None,
    role: Role,
    ordinary: Callable[[Feature], Any],
) -> dict[str, Any]:
    """Return the dense encoders, those of fixed texts after those whose numbers are projected."""
    dense = sorted((one for one in features if one.is_dense), key=lambda feature: feature.frozen_dim is not None)
    return {
        one.name: ordinary(one) if one.encoder is None else _pretrained(one, pretrained or {}, role) for one in dense
    }


def _files(features: Sequence[Feature], folder: Path, side: str) -> dict[str, Path]:
    return {feature.name: folder / f"{side}-{place:02d}.parquet" for place, feature in enumerate(features)}


def _of_place(feature: Feature, files: Mapping[str, Path]) -> Path:
    """Return where the numbers of a feature are kept, beside its table if it has one."""
    path = files[feature.name]
    return path.with_stem(f"{path.stem}-fixed") if feature.is_sparse else path


def _spelt(features: Sequence[Feature], frame: pd.DataFrame) -> tuple[Feature, ...]:
    """Return features with how their values are spelt in a table, all of it."""
    return tuple(
        replace(one, spelling=spelling_of(one, frame[one.name])) if one.kind in SPELT_KINDS else one for one in features
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
