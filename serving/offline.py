"""Candidates for everyone, as a table or as shortlists: what the service would answer to each user, found in one go.

Columns `user_id`, `item_id` (of the type they came in), `score` (float32) and `rank` (from 1). The file appears when it
is complete, and an interrupted run leaves none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import DataError
from features.files import atomic_file
from features.schema import ITEM_ID, USER_ID
from features.tables import read_frame
from serving.filters import Filter
from serving.hits import Hits
from serving.retriever import Retriever
from serving.shortlists import Shortlists
from serving.wanted import Wanted

BLOCK = 1024


@dataclass(frozen=True)
class Audience:
    """Who is to be recommended something, in the order of the output.

    Attributes:
        user_ids: Each once, `[users]`, int64 or object (str).
        user_rows: Their positions in the retriever's users, `[users]`, -1 where unknown.
    """

    user_ids: np.ndarray
    user_rows: np.ndarray

    @classmethod
    def everyone(cls, retriever: Retriever) -> Audience:
        """Return every known user."""
        return cls(retriever.snapshot.histories.user_ids, np.arange(len(retriever.users)))

    @classmethod
    def read(cls, path: Path, retriever: Retriever) -> Audience:
        """Return the users whom a table names, each once, in its order.

        Raises:
            DataError: There is no column of users, or its ids are missing or of another type than the known ones.
        """
        frame = read_frame(path)
        column = retriever.bundle.config.features.columns.user_id
        column = column if column in frame else USER_ID
        if column not in frame:
            raise DataError(
                f"{path}: expected a column {column!r} of users, found {', '.join(map(repr, frame.columns))}"
            )
        cells = frame[column]
        if cells.isna().any():
            raise DataError(f"{path}: column {column!r}, row {int(cells.isna().argmax()) + 1}: no id; remove the row")
        ids = [retriever.users.parse(user_id) for user_id in cells.drop_duplicates().tolist()]
        wrong = [user_id for user_id in ids if isinstance(user_id, int) != retriever.users.is_integer]
        if wrong:
            raise DataError(f"{path}: column {column!r}: expected whole numbers as in the tables, found {wrong[0]!r}")
        rows = [retriever.users.row(user_id) for user_id in ids]
        return cls(
            retriever.users.to_array(ids), np.array([-1 if row is None else row for row in rows], dtype=np.int64)
        )

    @property
    def num_unknown(self) -> int:
        """How many are unknown."""
        return int((self.user_rows < 0).sum())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.user_ids)


def write_candidates(
    retriever: Retriever,
    audience: Audience,
    k: int,
    path: Path,
    *,
    where: Filter = (),
    with_fallback: bool = False,
    progress: Callable[[int], object] = lambda num_users: None,
) -> int:
    """Write the recommendations of an audience to a Parquet file and return the number of rows.

    Args:
        retriever: Who answers.
        audience: Who asks.
        k: How many items each.
        path: The file; replaced if it is there.
        where: What must hold of the items.
        with_fallback: Whether to add the column `fallback`: what answered in the model's place, else null.
        progress: Called after each block with the number of users in it.
    """
    schema = _schema(retriever, with_fallback)
    num_rows = 0
    with atomic_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for users, hits, fallback in _answers(retriever, audience, Wanted(k, where=where)):
            table = _table(retriever, audience.user_ids[users], hits, fallback, schema)
            writer.write_table(table)
            num_rows += len(table)
            progress(len(users))
    return num_rows


def make_shortlists(
    retriever: Retriever, depth: int, progress: Callable[[int], object] = lambda num_users: None
) -> Shortlists:
    """Return what every known user gets, `depth` items each or all there are; nothing of whom nothing is known.

    Args:
        retriever: Who answers.
        depth: How many items each.
        progress: Called after each block with the number of users in it.
    """
    depth = min(depth, len(retriever.items))
    shortlists = Shortlists.empty(len(retriever.users), depth, with_seen=retriever.recommend_seen)
    for users in _blocks(len(retriever.users)):
        hits, is_fallback = retriever.recommend_rows(users, depth)
        shortlists.put(users, hits)
        shortlists.rows[users[is_fallback]] = -1
        progress(len(users))
    return shortlists


def _answers(retriever: Retriever, audience: Audience, wanted: Wanted) -> Iterator[tuple[np.ndarray, Hits, np.ndarray]]:
    """Yield blocks of the audience by position, with what they get and who got a fallback."""
    popular = retriever.popular(wanted).of(0)
    for users in _blocks(len(audience)):
        rows = audience.user_rows[users]
        known = rows >= 0
        hits, known_fallback = retriever.recommend_rows(rows[known], wanted)
        fallback = np.ones(len(users), dtype=bool)
        fallback[known] = known_fallback
        if not known.all():
            answers = (hits.of(place) for place in range(int(known.sum())))
            hits = Hits.join([next(answers) if is_known else popular for is_known in known])
        yield users, hits, fallback


def _blocks(num_users: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + BLOCK, num_users)) for start in range(0, num_users, BLOCK))


def _table(retriever: Retriever, user_ids: np.ndarray, hits: Hits, fallback: np.ndarray, schema: pa.Schema) -> pa.Table:
    lengths = np.diff(hits.offsets)
    ranks = np.arange(len(hits.rows)) - np.repeat(hits.offsets[:-1], lengths) + 1
    columns = [
        pa.array(np.repeat(user_ids, lengths), type=schema.field(USER_ID).type),
        pa.array(retriever.snapshot.catalog.item_ids[hits.rows], type=schema.field(ITEM_ID).type),
        pa.array(hits.scores),
        pa.array(ranks.astype(np.int32)),
    ]
    if "fallback" in schema.names:
        columns.append(pa.array(["popular" if given else None for given in np.repeat(fallback, lengths)], pa.string()))
    return pa.Table.from_arrays(columns, schema=schema)


def _schema(retriever: Retriever, with_fallback: bool) -> pa.Schema:
    columns = {
        USER_ID: _id_type(retriever.users.is_integer),
        ITEM_ID: _id_type(retriever.items.is_integer),
        "score": pa.float32(),
        "rank": pa.int32(),
    }
    return pa.schema(columns | ({"fallback": pa.string()} if with_fallback else {}))


def _id_type(is_integer: bool) -> pa.DataType:
    return pa.int64() if is_integer else pa.string()
