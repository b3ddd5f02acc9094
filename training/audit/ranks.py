"""Ranks that `towers evaluate` stores: the rank of each target, what was recommended, and how often each item was.

`towers audit` computes metrics by slice from it without ranking again, and `towers compare` the differences of two
evaluations. So can your own group-by; these are plain tables:

```
ranks/
  about.json       protocol, part, settings, digests of the tables
  answers.parquet  a row per held-out target: seed, recommender, question, user_id, item_id, rank (from 1; null: never
                   recommended), history (events known of the user), last_time (of these), time (of the question;
                   both in Unix seconds, null: none or unknown)
  items.parquet    a row per candidate: seed, recommender, item_id, interactions (in the training data), first_time
                   (of these; null: none, or unknown), and shown_at_10, ...: how many questions were shown it
  lists.parquet    a row per question, of the evaluated recommender only: seed, recommender, question, user_id, items
                   (the ten recommended, best first) and recent (the ten newest items of the history, oldest first)
```
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import DataError
from features.files import atomic_folder
from features.sequences.ragged import Ragged, offsets_of, ragged_arange
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split
from features.settings import StrictTable
from features.tables.tables import Catalog, data_digests
from training.config import RunConfig
from training.evaluation.evaluate import LISTED, Evaluation
from training.evaluation.metrics import NEVER

FOLDER = "ranks"
FORMAT = 2

_UNSEEN = np.iinfo(np.int64).max


class About(StrictTable):
    """The evaluation that the ranks are from."""

    format: int
    """Format of the folder; this version reads 2."""
    protocol: str
    """`leave-one-out`, `leave-one-basket-out`, `time`, `users`, `queries` or `cold-items`."""
    part: str
    """`test` or `validation`."""
    settings: RunConfig
    """As they were used."""
    tables_folder: str
    """Base folder of relative paths in the settings."""
    digests: dict[str, str]
    """SHA-256 of each table, by its key in `[features]`."""

    @classmethod
    def of(cls, config: RunConfig, folder: Path, protocol: str, part: str) -> About:
        """Return what there is to say of an evaluation whose settings are relative to `folder`."""
        return cls(
            format=FORMAT,
            protocol=protocol,
            part=part,
            settings=config,
            tables_folder=str(folder.resolve()),
            digests=data_digests(config.features, folder),
        )


class RanksWriter:
    """Collects the judgements of one evaluation, seed after seed, and writes them."""

    def __init__(self) -> None:
        self._answers: list[pa.Table] = []
        self._items: list[pa.Table] = []
        self._lists: list[pa.Table] = []

    def add(
        self, seed: int, split: Split, questions: Queries, evaluations: Sequence[Evaluation], catalog: Catalog
    ) -> None:
        """Take in what was found with one seed.

        Args:
            seed: Of the split and the training.
            split: Training data and queries of the evaluation.
            questions: The evaluated queries.
            evaluations: How each recommender answered, with its exposure, the evaluated one first.
            catalog: The items.
        """
        first = evaluations[0]
        self._lists.append(_lists(first, questions, catalog, {"seed": seed, "recommender": first.name}))
        for evaluation in evaluations:
            given = {"seed": seed, "recommender": evaluation.name}
            self._answers.append(_answers(evaluation, questions, catalog, given))
            self._items.append(_items(evaluation, split, catalog, given))

    def write(self, output: Path, about: About) -> None:
        """Write the folder `ranks/` into `output`, complete or not at all."""
        with atomic_folder(output / FOLDER) as folder:
            (folder / "about.json").write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
            for name, table in self._tables().items():
                pq.write_table(table, folder / f"{name}.parquet", compression="zstd")

    def ranks(self, about: About) -> Ranks:
        """Return what `Ranks.read` would return of the folder."""
        return Ranks.of_tables(about, **self._tables())

    def _tables(self) -> dict[str, pa.Table]:
        parts = {"answers": self._answers, "items": self._items, "lists": self._lists}
        return {name: pa.concat_tables(tables) for name, tables in parts.items()}


@dataclass(frozen=True)
class Ranks:
    """The judgements of one evaluation.

    Attributes:
        about: What was judged.
        answers: One row per recommender and hidden answer; see above. `NEVER` where it is not recommended.
        items: One row per recommender and candidate.
        lists: One row per question of the evaluated recommender.
    """

    about: About
    answers: pd.DataFrame
    items: pd.DataFrame
    lists: pd.DataFrame

    @classmethod
    def of_tables(cls, about: About, answers: pa.Table, items: pa.Table, lists: pa.Table) -> Ranks:
        """Return what the tables of the files say."""
        ranked, shown, listed = (table.to_pandas(types_mapper=_plain) for table in (answers, items, lists))
        return cls(about, ranked.assign(rank=ranked["rank"].fillna(NEVER).astype(np.int64)), shown, listed)

    @classmethod
    def read(cls, output: Path) -> Ranks:
        """Return what an evaluation wrote to `output`.

        Raises:
            DataError: There is nothing, or nothing that this version can read.
        """
        folder = output / FOLDER
        about = _read_about(folder / "about.json", output)
        try:
            tables = {name: pq.read_table(folder / f"{name}.parquet") for name in ("answers", "items", "lists")}
        except (OSError, pa.ArrowInvalid) as error:
            said = " ".join(str(error).split())[:200]
            raise DataError(f"{folder}: cannot be read ({said}); evaluate again") from None
        return cls.of_tables(about, **tables)

    @property
    def recommenders(self) -> list[str]:
        """Names of the evaluated recommenders, the audited one first."""
        return [str(name) for name in self.answers["recommender"].unique()]

    def of(self, recommender: str) -> Ranks:
        """Return the part of one recommender.

        Raises:
            DataError: There is none of this name.
        """
        if recommender not in self.recommenders:
            known = ", ".join(map(repr, self.recommenders))
            raise DataError(f"recommender {recommender!r}: was not evaluated; there are {known}")
        parts = [
            frame[frame["recommender"] == recommender].reset_index(drop=True)
            for frame in (self.answers, self.items, self.lists)
        ]
        return Ranks(self.about, *parts)


def _answers(evaluation: Evaluation, questions: Queries, catalog: Catalog, given: dict[str, Any]) -> pa.Table:
    asked = np.repeat(np.arange(len(questions)), np.diff(questions.target_offsets))
    times = None if questions.times is None else questions.times[asked]
    columns = {
        "question": pa.array(asked),
        "user_id": _ids(questions.history.user_ids[asked]),
        "item_id": _ids(catalog.item_ids[questions.target_rows]),
        "rank": pa.array(evaluation.ranks, mask=evaluation.ranks == NEVER),
        "history": pa.array(questions.history.lengths[asked]),
        "last_time": _last_times(questions.history).take(pa.array(asked)),
        "time": pa.nulls(len(asked), pa.int64()) if times is None else pa.array(times.astype(np.int64)),
    }
    return _with(given, columns)


def _items(evaluation: Evaluation, split: Split, catalog: Catalog, given: dict[str, Any]) -> pa.Table:
    candidates = np.flatnonzero(split.candidates)
    first = _first_times(split.train, len(catalog))[candidates]
    shown = {f"shown_at_{k}": pa.array(counts[candidates]) for k, counts in evaluation.exposure.items()}
    columns = {
        "item_id": _ids(catalog.item_ids[candidates]),
        "interactions": pa.array(np.bincount(split.train.item_rows, minlength=len(catalog))[candidates]),
        "first_time": pa.array(first, mask=first == _UNSEEN),
    }
    return _with(given, columns | shown)


def _lists(evaluation: Evaluation, questions: Queries, catalog: Catalog, given: dict[str, Any]) -> pa.Table:
    history, top = questions.history, evaluation.top
    lengths = np.minimum(history.lengths, LISTED)
    newest = history.item_rows[ragged_arange(history.offsets[1:] - lengths, lengths)]
    columns = {
        "question": pa.array(np.arange(len(questions))),
        "user_id": _ids(history.user_ids),
        "items": _id_lists(Ragged(offsets_of((top >= 0).sum(axis=1)), top[top >= 0]), catalog),
        "recent": _id_lists(Ragged(offsets_of(lengths), newest), catalog),
    }
    return _with(given, columns)


def _id_lists(rows: Ragged, catalog: Catalog) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(rows.offsets.astype(np.int32)), _ids(catalog.item_ids[rows.values]))


def _last_times(history: Sequences) -> pa.Array:
    """Return the time of each user's newest event, null where there is none or it is unknown."""
    if history.times is None:
        return pa.nulls(len(history), pa.int64())
    newest = history.times[np.maximum(history.offsets[1:], 1) - 1] if history.num_events else np.zeros(len(history))
    return pa.array(newest.astype(np.int64), mask=history.lengths == 0)


def _first_times(train: Sequences, num_items: int) -> np.ndarray:
    first = np.full(num_items, _UNSEEN, dtype=np.int64)
    if train.times is not None:
        np.minimum.at(first, train.item_rows, train.times)
    return first


def _with(given: dict[str, Any], columns: dict[str, pa.Array]) -> pa.Table:
    length = len(next(iter(columns.values())))
    return pa.table({name: pa.repeat(pa.scalar(value), length) for name, value in given.items()} | columns)


def _ids(ids: np.ndarray) -> pa.Array:
    return pa.array(ids) if ids.dtype != object else pa.array(ids, type=pa.string())


def _plain(kind: pa.DataType) -> Any:
    """Keep whole numbers whole where some are missing."""
    return pd.Int64Dtype() if pa.types.is_int64(kind) else None


def _read_about(path: Path, output: Path) -> About:
    remedy = f"`towers evaluate run.toml --output {output}` writes it"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        found = content["format"] if isinstance(content, dict) else None
        if found != FORMAT:
            raise DataError(f"{path}: expected format {FORMAT}, found {found!r}; evaluate again")
        return About.model_validate_json(text)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{output}: no ranks of an evaluation in it; {remedy}") from None
    except DataError:
        raise
    except (ValueError, KeyError) as error:  # not JSON, or not of this form
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not as `towers evaluate` writes it ({said}); evaluate again") from None
