"""`towers recommend`: writes the recommendations of all users, the same as the service's, to a Parquet file.

Columns `user_id`, `item_id` (with the types of the tables), `score` (float32) and `rank` (from 1). The file appears
once it is complete; an interrupted run leaves none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from features.errors import DataError
from features.files import atomic_file
from features.ids import ITEM_ID, USER_ID
from features.locations.object_path import TablePath
from features.messages import shown
from features.tables.tables import read_frame
from features.values.distinct import many
from serving.catalog.ids import ExternalId
from serving.config import ServingConfig
from serving.jobs.open import open_recommender, parse_conditions
from serving.jobs.precompute import blocks
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest
from serving.search.conditions import Filter
from serving.search.results import Hits


@dataclass(frozen=True)
class Audience:
    """The users to recommend for, in the order of the output.

    Attributes:
        user_ids: Their ids, without repeats, `[users]`, int64 or object (str).
        user_rows: Their rows in the recommender, `[users]`, -1 for unknown users.
    """

    user_ids: np.ndarray
    user_rows: np.ndarray

    @classmethod
    def everyone(cls, recommender: Recommender) -> Audience:
        """Return all known users."""
        return cls(recommender.snapshot.histories.user_ids, np.arange(len(recommender.state.users)))

    @classmethod
    def read(cls, path: TablePath, recommender: Recommender) -> Audience:
        """Return the users of a table, without repeats, in its order.

        Raises:
            DataError: The table has no column of users, or its ids are missing or have another type than known ones.
        """
        frame = read_frame(path)
        column = recommender.bundle.config.features.columns.user_id
        column = column if column in frame else USER_ID
        if column not in frame:
            raise DataError(
                f"{path}: expected a column {column!r} of users, found {', '.join(map(repr, frame.columns))}"
            )
        return cls.of(frame[column], recommender, f"{path}: column {column!r}")

    @classmethod
    def of(cls, cells: pd.Series, recommender: Recommender, place: str) -> Audience:
        """Return the users with these ids, without repeats, in their order.

        Args:
            cells: The ids.
            recommender: The recommender.
            place: Where the ids are, for errors.

        Raises:
            DataError: An id is missing or has another type than known ones.
        """
        if cells.isna().any():
            raise DataError(f"{place}, row {int(cells.isna().argmax()) + 1}: no id; remove the row")
        ids = [recommender.state.users.parse(user_id) for user_id in cells.drop_duplicates().tolist()]
        wrong = [user_id for user_id in ids if isinstance(user_id, int) != recommender.state.users.is_integer]
        if wrong:
            raise DataError(f"{place}: expected whole numbers as in the tables, found {wrong[0]!r}")
        rows = [recommender.state.users.row(user_id) for user_id in ids]
        return cls(
            recommender.state.users.to_array(ids),
            np.array([-1 if row is None else row for row in rows], dtype=np.int64),
        )

    @property
    def num_unknown(self) -> int:
        """Number of unknown users."""
        return int((self.user_rows < 0).sum())

    def announce_unknown(self) -> None:
        """Print how many users are unknown."""
        if self.num_unknown:
            verb = "is" if self.num_unknown == 1 else "are"
            click.echo(f"{many(self.num_unknown, 'user')} {verb} unknown and got popular items")

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.user_ids)


@dataclass(frozen=True)
class Wanted:
    """What is recommended to each user, as the command line has it.

    Attributes:
        k: Number of items per user.
        conditions: Conditions on the items, such as `brand=Acme` and `price_max=50`.
        exclude: Ids of items to leave out for all, as text.
        with_fallback: Whether to add a column with the fallback that was used.
    """

    k: int
    conditions: Sequence[str] = ()
    exclude: Sequence[str] = ()
    with_fallback: bool = False

    def where(self, recommender: Recommender) -> Filter:
        """Return the conditions as a filter.

        Raises:
            DataError: A condition is invalid.
        """
        return parse_conditions(self.conditions, recommender)

    def opened(
        self, bundle: Path, users: TablePath | None, settings: ServingConfig | None, *, accept_changed_columns: bool
    ) -> tuple[Recommender, Audience]:
        """Open a bundle for it, and say which of the excluded items are not in the catalogue.

        Args:
            bundle: The folder of the bundle.
            users: A table with the users. None: all known users.
            settings: The settings of the service. None: the defaults.
            accept_changed_columns: Used if the index is built first; see `build_index`.

        Raises:
            BundleError: The bundle or the index cannot be used.
            DataError: A condition is invalid, or the table cannot be read.
        """
        recommender = open_recommender(bundle, settings, accept_changed_columns=accept_changed_columns)
        self.where(recommender)
        unknown = recommender.state.items.rows(self.exclude)[1]
        if unknown:
            click.echo(f"note: --exclude: not in the catalogue: {', '.join(map(shown, unknown[:10]))}", err=True)
        return recommender, Audience.read(users, recommender) if users else Audience.everyone(recommender)

    def write(
        self,
        recommender: Recommender,
        audience: Audience,
        path: Path,
        progress: Callable[[int], object] = lambda num_users: None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Write it to a Parquet file and return the number of rows; see `write_candidates`."""
        return write_candidates(
            recommender,
            audience,
            self.k,
            path,
            where=self.where(recommender),
            exclude=self.exclude,
            with_fallback=self.with_fallback,
            progress=progress,
            metadata=metadata,
        )


def write_candidates(
    recommender: Recommender,
    audience: Audience,
    k: int,
    path: Path,
    *,
    where: Filter = (),
    exclude: Sequence[ExternalId] = (),
    with_fallback: bool = False,
    progress: Callable[[int], object] = lambda num_users: None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write the recommendations of an audience to a Parquet file and return the number of rows.

    Args:
        recommender: The recommender.
        audience: The users.
        k: Number of items per user.
        path: The file; replaced if it exists.
        where: Conditions on the items.
        exclude: Ids of items to leave out for all; unknown ones are ignored.
        with_fallback: Whether to add the column `fallback`: the fallback that was used, else null.
        progress: Called after each block with the number of users in it.
        metadata: What else the file says of itself, by key.
    """
    num_rows = 0
    schema = _schema(recommender, with_fallback)
    request = RecommendRequest(k, where=where, exclude=exclude)
    how = {"compression": "zstd", "write_page_checksum": True}
    with atomic_file(path) as partial, pq.ParquetWriter(partial, schema, **how) as writer:
        writer.add_key_value_metadata(dict(metadata or {}))
        for num_users, table in candidate_tables(recommender, audience, request, schema):
            writer.write_table(table)
            num_rows += len(table)
            progress(num_users)
    return num_rows


def read_candidates(recommender: Recommender, audience: Audience, request: RecommendRequest) -> pa.Table:
    """Return the rows that `write_candidates` writes, with the column `fallback`.

    Args:
        recommender: The recommender.
        audience: The users.
        request: The parameters; reasons are not computed.
    """
    schema = _schema(recommender, with_fallback=True)
    tables = [table for _, table in candidate_tables(recommender, audience, request, schema)]
    return pa.concat_tables([schema.empty_table(), *tables])


def candidate_tables(
    recommender: Recommender, audience: Audience, request: RecommendRequest, schema: pa.Schema
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number of users and the rows of each block of an audience."""
    for users, hits, fallback in _answers(recommender, audience, request):
        yield len(users), _table(recommender, audience.user_ids[users], hits, fallback, schema, request.offset)


def _answers(
    recommender: Recommender, audience: Audience, wanted: RecommendRequest
) -> Iterator[tuple[np.ndarray, Hits, np.ndarray]]:
    """Yield blocks of users by position, with their results and which of them got a fallback."""
    popular = recommender.popular(wanted).of(0)
    for users in blocks(len(audience)):
        rows = audience.user_rows[users]
        known = rows >= 0
        hits, known_fallback = recommender.recommend_rows(rows[known], wanted)
        fallback = np.ones(len(users), dtype=bool)
        fallback[known] = known_fallback
        if not known.all():
            answers = (hits.of(place) for place in range(int(known.sum())))
            hits = Hits.join([next(answers) if is_known else popular for is_known in known])
        yield users, hits, fallback


def _table(
    recommender: Recommender, user_ids: np.ndarray, hits: Hits, fallback: np.ndarray, schema: pa.Schema, offset: int
) -> pa.Table:
    lengths = np.diff(hits.offsets)
    ranks = np.arange(len(hits.rows)) - np.repeat(hits.offsets[:-1], lengths) + 1 + offset
    columns = [
        pa.array(np.repeat(user_ids, lengths), type=schema.field(USER_ID).type),
        pa.array(recommender.snapshot.catalog.item_ids[hits.rows], type=schema.field(ITEM_ID).type),
        pa.array(hits.scores),
        pa.array(ranks.astype(np.int32)),
    ]
    if "fallback" in schema.names:
        columns.append(pa.array(["popular" if given else None for given in np.repeat(fallback, lengths)], pa.string()))
    return pa.Table.from_arrays(columns, schema=schema)


def _schema(recommender: Recommender, with_fallback: bool) -> pa.Schema:
    columns = {
        USER_ID: _id_type(recommender.state.users.is_integer),
        ITEM_ID: _id_type(recommender.state.items.is_integer),
        "score": pa.float32(),
        "rank": pa.int32(),
    }
    return pa.schema(columns | ({"fallback": pa.string()} if with_fallback else {}))


def _id_type(is_integer: bool) -> pa.DataType:
    return pa.int64() if is_integer else pa.string()


def recommend_all(
    bundle: Path,
    output: Path,
    wanted: Wanted,
    users: TablePath | None = None,
    *,
    settings: ServingConfig | None = None,
    accept_changed_columns: bool = False,
) -> None:
    """Write recommendations for each known user, or each user in a table, to a file, and print the number of rows.

    Args:
        bundle: The folder of the bundle.
        output: The file to write.
        wanted: What is recommended.
        users: A table with the users. None: all known users.
        settings: The settings of the service. None: the defaults.
        accept_changed_columns: Used if the index is built first; see `build_index`.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: The output is a folder, a table cannot be read, or a condition is invalid.
    """
    if output.is_dir():
        raise DataError(
            f"{output} is a folder; give a file to write as --output, such as {output / 'candidates.parquet'}, or an "
            "empty folder as --output-folder"
        )
    recommender, audience = wanted.opened(bundle, users, settings, accept_changed_columns=accept_changed_columns)
    started = time.perf_counter()
    with tqdm(total=len(audience), unit=" users", desc="Recommending", disable=None, leave=False) as bar:
        num_rows = wanted.write(recommender, audience, output, bar.update)
    seconds = time.perf_counter() - started
    click.echo(f"{output}: {num_rows:,} recommendations for {len(audience):,} users, {seconds:.1f} s")
    audience.announce_unknown()
