"""The encoders of one side, items or users: which are there, how large, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int

from features.encoders.encoder import PretrainedText
from features.encoders.model import Role
from features.featurizer.dense import DENSE_ENCODERS, DenseEncoder
from features.featurizer.sparse import SPARSE_ENCODERS, Bags, CutOff, HashedTextEncoder, SparseEncoder, ValueEncoder
from features.featurizer.text import FixedTextEncoder, PretrainedColumn, TrainedText, is_fixed, pretrained_column
from features.ids import ITEM_ID, USER_ID
from features.schema import Feature
from features.sequences.batches import EntityFeatures, JaggedFeatures


@dataclass(frozen=True)
class FeatureSizes:
    """Sizes of the inputs of a tower.

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
        events: Int[np.ndarray, "rows"],
        unseen_words: bool = False,
    ) -> SideEncoders:
        """Return encoders fitted on the rows of `frame`.

        Args:
            features: What is read.
            frame: The rows.
            pretrained: The pretrained models that the features name.
            role: What the texts of this side are to these.
            texts: What the encoders of texts are fitted on. None: on the texts of the rows.
            events: Training interactions of each row.
            unseen_words: Whether words that none of these has count in fixed texts.

        Raises:
            DataError: More numbers are wanted of a pretrained model than it has, or vectors differ in length.
        """
        columns = {
            feature.name: frame[feature.name] if texts is None or feature.definition.content != "texts" else texts
            for feature in features
        }
        return cls(
            {
                one.name: SPARSE_ENCODERS[one.definition.encoder].fit(one, columns[one.name], events)
                for one in features
                if one.is_sparse
            },
            _dense_encoders(
                features,
                pretrained,
                role,
                lambda one: (
                    FixedTextEncoder.fit(one, columns[one.name], unseen_words=unseen_words)
                    if one.frozen_dim is not None
                    else DENSE_ENCODERS[one.definition.encoder].fit(one, columns[one.name])
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
        """Read what `save` wrote; the pretrained models are saved elsewhere."""
        files = _files(features, folder, side)
        return cls(
            {
                one.name: SPARSE_ENCODERS[one.definition.encoder].load(one, files[one.name])
                for one in features
                if one.is_sparse
            },
            _dense_encoders(
                features,
                pretrained,
                role,
                lambda one: (
                    FixedTextEncoder if one.frozen_dim is not None else DENSE_ENCODERS[one.definition.encoder]
                ).load(one, _of_place(one, files)),
            ),
        )

    def grown(self, frame: pd.DataFrame, events: Int[np.ndarray, "rows"]) -> SideEncoders:
        """Return encoders whose vocabularies also hold the values in the rows of `frame`; all else stays as fitted.

        `events` are the training interactions of each row.
        """
        sparse = {
            name: encoder.grown(frame[name], events) if isinstance(encoder, ValueEncoder) else encoder
            for name, encoder in self.sparse.items()
        }
        return SideEncoders(sparse, self.dense)

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
        """Sizes of the inputs of this side's tower."""
        tables = {name: encoder.num_rows for name, encoder in self.sparse.items()}
        fixed = tuple(one.width for one in self.dense.values() if is_fixed(one))
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

    @property
    def cut(self) -> dict[str, CutOff]:
        """The columns with values that are too rare for a row of their own, as training found them."""
        return {
            name: encoder.cut
            for name, encoder in self.sparse.items()
            if isinstance(encoder, ValueEncoder) and encoder.cut is not None and encoder.cut.values
        }

    def knows(self, frame: pd.DataFrame) -> Bool[np.ndarray, "entities"]:
        """Return which rows of `frame` have a cell with a known value; columns that are no features are ignored."""
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


def _jagged(bags: Mapping[str, Bags]) -> JaggedFeatures | None:
    """Return bags of rows, or tokens, by feature; None where there is no feature."""
    if not bags:
        return None
    lengths, values = (np.concatenate(parts) for parts in zip(*bags.values(), strict=True))
    return JaggedFeatures(
        tuple(bags), torch.from_numpy(values.astype(np.int64)), torch.from_numpy(lengths.astype(np.int32))
    )


def _dense_encoders(
    features: Sequence[Feature],
    pretrained: Mapping[str, PretrainedText] | None,
    role: Role,
    ordinary: Callable[[Feature], Any],
) -> dict[str, Any]:
    """Return the dense encoders, those of fixed texts after those whose numbers are projected."""
    dense = sorted((one for one in features if one.is_dense), key=lambda feature: feature.frozen_dim is not None)
    return {
        one.name: ordinary(one) if one.encoder is None else pretrained_column(one, pretrained or {}, role)
        for one in dense
    }


def _files(features: Sequence[Feature], folder: Path, side: str) -> dict[str, Path]:
    return {feature.name: folder / f"{side}-{place:02d}.parquet" for place, feature in enumerate(features)}


def _of_place(feature: Feature, files: Mapping[str, Path]) -> Path:
    """Return the file of a feature's dense encoder, which differs from that of its embedding table."""
    path = files[feature.name]
    return path.with_stem(f"{path.stem}-fixed") if feature.is_sparse else path
