"""All data that a server needs besides the model, in one folder: `index/` inside a bundle.

A bundle is the model; a snapshot is the current tables, encoded by the model: the catalogue with its vectors and their
index, users' histories, and popularity. Weights may change weekly and tables daily, so the folder has its own manifest,
and a snapshot opens only together with the bundle that built it.

```
index/
  manifest.json                digests of weights and catalogue, kind, measured recall, size and SHA-256 of each file
  items.parquet                the catalogue, in the order of rows
  interactions.parquet         the number of interactions of each item, and of recent ones
  vectors.safetensors          `items` by row, float32 or float16; `users` as users.parquet (not for models that read
                               request times)
  items.faiss                  the index
  lists.safetensors            its inverted lists, if FAISS itself cannot map them
  partitions.safetensors       its IVF lists for filtered searches, if it has any
  users.parquet                user_id, history (item ids, oldest first) and times, if the tables have them
  attributes.parquet           the users' attributes that the model reads
  item_statistics.safetensors  statistics for a learned ranker, if the bundle has one
  tokens.safetensors           token vectors for a late-interaction ranker, if the bundle has one
  precomputed.safetensors      precomputed recommendations of each user, `rows` and `scores`, if requested
  map.safetensors              positions of the items on a map, for the web page
```
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Float64, Int64
from tqdm import tqdm

from features.columns import item_texts
from features.errors import DataError
from features.files import atomic_folder, mapped, save_arrays, scratch_array
from features.ids import ITEM_ID, USER_ID
from features.parquet import read_parquet
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.sequences.timeline import Timeline
from features.tables.tables import Catalog, Interactions, Tables, Users
from serving.catalog.popularity import popularity_of
from serving.search.faiss_index import ItemIndex, check_unit_length
from serving.search.inverted_lists import FILE as LISTS
from serving.search.partitions import FILE as PARTITIONS
from serving.search.partitions import Partitions
from serving.search.tuning import SAMPLE, Chooser, sample_of
from serving.search.tuning import choose as default_choice
from serving.search.vectors import BLOCK, ItemVectors, leading_dims, stored_array, stored_as
from serving.snapshot.encoding import ItemEncoder, attribute_columns, encode_items, encode_users
from serving.snapshot.manifest import FOLDER as FOLDER
from serving.snapshot.manifest import IndexManifest, LogOffset, PrecomputedInfo
from serving.snapshot.precomputed import FILE as PRECOMPUTED
from serving.snapshot.precomputed import PrecomputedTopK
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, reading
from towers.item_map import FILE as MAP
from towers.item_map import ItemMap
from towers.model.trend_head import as_fractions, searched_dim, with_numbers
from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.kinds import RERANKER_KINDS
from towers.rerankers.manifest import MODEL, RankerManifest, has_ranker, open_ranker
from towers.rerankers.token_embeddings import TokenReader, TokenVectors


@dataclass(frozen=True)
class Snapshot:
    """The current tables, encoded by a model. Rows of items are positions in `catalog`, of users in `histories`.

    Attributes:
        catalog: The items.
        index: Index of the items' vectors.
        histories: The history of each known user, oldest first; users sorted by id, some perhaps without events.
        attributes: The users' attributes that the model reads, one row each; None if it reads none.
        user_vectors: The users' unit vectors, `[users, dim]`; None if they depend on the time of a request.
        interactions: Number of interactions of each item, `[items]`.
        popularity: The same of recent ones, by `[features] popular_days`: what unknown users get.
        manifest: The manifest.
        item_statistics: Item statistics for a learned ranker; None if the bundle contained none when this was built.
        tokens: Token vectors of the items for a late-interaction ranker; likewise.
        precomputed: Precomputed recommendations of each user; None if not requested.
        item_map: Positions of the items on a map; None if there are none.
        folder: The folder that it was read from; None if it was built now.
    """

    catalog: Catalog
    index: ItemIndex
    histories: Sequences
    attributes: pd.DataFrame | None
    user_vectors: Float32[np.ndarray, "users width"] | None
    interactions: Int64[np.ndarray, " items"]
    popularity: Float64[np.ndarray, " items"]
    manifest: IndexManifest
    item_statistics: ItemStatistics | None = None
    tokens: TokenVectors | None = None
    precomputed: PrecomputedTopK | None = None
    item_map: ItemMap | None = None
    folder: SealedFolder | None = None

    @classmethod
    def build(
        cls,
        bundle: ModelBundle,
        tables: Tables,
        choose: Chooser | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        live: LogOffset | None = None,
        *,
        half_precision: bool = False,
        encode: ItemEncoder = encode_items,
    ) -> Snapshot:
        """Encode tables and build their index.

        Args:
            bundle: The model.
            tables: The current tables; they may have items and users that were not in training.
            choose: Chooses the index over the items' vectors, given vectors of some users. None: brute force.
            progress: Called with the number of users encoded so far and of all users.
            live: The part of a log of live writes that is in the tables. None: none is.
            half_precision: Whether the items' vectors are kept in float16.
            encode: Encodes the items.

        Raises:
            BundleError: The model's vectors do not have length 1, as after a training that diverged.
            OSError: There is no room on disk for the vectors.
        """
        catalog = tables.catalog
        histories, attributes = _users(tables, bundle)
        trend, trend_until = _trend(bundle, histories, len(catalog))
        vectors = _encoded(bundle, catalog, trend, half_precision, encode)
        user_vectors = (
            None if bundle.config.reads_time else encode_users(bundle, vectors, histories, attributes, progress)
        )
        queries = _query_sample(bundle, vectors, histories, attributes, user_vectors)
        tail = vectors.shape[1] - bundle.config.towers.embedding_dim
        chosen = (choose or partial(default_choice, tail=tail))(vectors, queries)
        manifest = IndexManifest.of(
            bundle,
            catalog_digest=_digest(catalog),
            plan=chosen.index.plan,
            recall_at_100=chosen.recall,
            recall_wanted=chosen.wanted,
            recall_users=chosen.num_users,
            num_items=len(catalog),
            num_users=len(histories),
            num_interactions=histories.num_events,
            width=vectors.shape[1],
            newest_event=_newest(tables.interactions),
            trend_until=trend_until,
            live=live,
        )
        days = bundle.config.features.popular_days
        popularity = popularity_of(histories, len(catalog), math.inf if isinstance(days, str) else days)
        ranker = open_ranker(bundle) if has_ranker(bundle.path) else None
        reads = None if ranker is None else RERANKER_KINDS[ranker[0].kind].reads
        return cls(
            catalog,
            chosen.index,
            histories,
            attributes,
            user_vectors,
            histories.item_counts(len(catalog)),
            popularity,
            manifest,
            item_statistics=_item_statistics(tables, bundle) if reads == "statistics" else None,
            tokens=_tokens(catalog, bundle, *ranker) if ranker and reads == "tokens" else None,
        )

    def query_sample(self, bundle: ModelBundle) -> Float32[np.ndarray, "sample width"]:
        """Return the vectors of some users, or of items if no users are known, to measure a search with."""
        queries = _query_sample(bundle, self.index.vectors, self.histories, self.attributes, self.user_vectors)
        return queries if len(queries) else sample_of(self.index.vectors)

    def with_precomputed(self, precomputed: PrecomputedTopK) -> Snapshot:
        """Return this snapshot with precomputed recommendations."""
        manifest = self.manifest.model_copy(update={"precomputed": precomputed.listed})
        return replace(self, precomputed=precomputed, manifest=manifest)

    def with_map(self, dim: int) -> Snapshot:
        """Return this snapshot with a map of its items.

        Args:
            dim: Number of leading dimensions of the searched vectors that make an item's unit vector.
        """
        return replace(self, item_map=ItemMap.of(leading_dims(self.index.vectors, dim), self.interactions))

    def save(self, bundle_path: Path) -> Path:
        """Write the folder `index/` into a bundle, replacing an existing one, and return its path."""
        with atomic_folder(bundle_path / FOLDER) as folder:
            _write(folder / "items.parquet", _arrow(self.catalog.frame))
            counts = {"interactions": self.interactions, "popularity": self.popularity}
            _write(folder / "interactions.parquet", pa.table(counts))
            _write(folder / "users.parquet", self._users_table())
            if self.attributes is not None:
                _write(folder / "attributes.parquet", _arrow(self.attributes))
            users = {} if self.user_vectors is None else {"users": self.user_vectors}
            save_arrays(folder / "vectors.safetensors", {"items": stored_array(self.index.vectors), **users})
            self.index.save(folder / "items.faiss")
            if self.index.partitions is not None:
                self.index.partitions.save(folder / PARTITIONS)
            if self.item_statistics is not None:
                self.item_statistics.save(folder / "item_statistics.safetensors")
            if self.tokens is not None:
                self.tokens.save(folder / "tokens.safetensors")
            if self.precomputed is not None:
                self.precomputed.save(folder)
            if self.item_map is not None:
                self.item_map.save(folder)
            self.manifest.write(folder)
        return bundle_path / FOLDER

    @classmethod
    def open(cls, bundle: ModelBundle) -> Snapshot:
        """Read the folder `index/` of a bundle.

        Raises:
            BundleError: There is none, it is damaged or of another format, or was built with other weights.
        """
        manifest, folder = IndexManifest.open(bundle.path / FOLDER, bundle, bundle.copies, bundle.trust.keys)
        with reading(folder.path, manifest.remedy(bundle.path), "its files do not fit together"):
            return cls._read(folder, manifest)

    @classmethod
    def _read(cls, folder: SealedFolder, manifest: IndexManifest) -> Snapshot:
        # Vectors first: their file's size proves their number, against which the sizes claimed by others are checked.
        vectors = _vectors(folder.file("vectors.safetensors"), manifest)
        catalog = Catalog(_frame(folder.file("items.parquet"), manifest.num_items))
        partitions = Partitions.load(folder.file(PARTITIONS)) if PARTITIONS in folder else None
        lists = folder.file(LISTS) if LISTS in folder else None
        index = ItemIndex.load(
            folder.file("items.faiss"), stored_as(vectors["items"]), manifest.plan, partitions, lists
        )
        histories = _histories(read_parquet(folder.file("users.parquet"), manifest.num_users), catalog)
        attributes = None
        if "attributes.parquet" in folder:
            attributes = _frame(folder.file("attributes.parquet"), manifest.num_users)
        counts = read_parquet(folder.file("interactions.parquet"), manifest.num_items)
        interactions, popularity = counts["interactions"].to_numpy(), counts["popularity"].to_numpy()
        item_statistics = (
            ItemStatistics.load(folder.file("item_statistics.safetensors"))
            if "item_statistics.safetensors" in folder
            else None
        )
        tokens = TokenVectors.load(folder.file("tokens.safetensors")) if "tokens.safetensors" in folder else None
        precomputed = None
        if manifest.precomputed is not None:
            precomputed = _precomputed(folder.file(PRECOMPUTED), manifest.precomputed, manifest.num_items)
        item_map = ItemMap.load(folder.file(MAP), manifest.num_items) if MAP in folder else None
        read = [len(one) for one in (item_statistics, tokens) if one is not None]
        item_counts = {len(catalog), len(index), len(interactions), manifest.num_items, *read}
        user_counts = {
            len(histories),
            manifest.num_users,
            *(len(one) for one in (attributes, vectors.get("users"), precomputed) if one is not None),
        }
        if len(item_counts) > 1 or len(user_counts) > 1:
            raise ValueError(f"numbers of items differ {sorted(item_counts)}, or of users {sorted(user_counts)}")
        users = vectors.get("users")
        return cls(
            catalog,
            index,
            histories,
            attributes,
            users,
            interactions,
            popularity,
            manifest,
            item_statistics,
            tokens,
            precomputed,
            item_map,
            folder,
        )

    def _users_table(self) -> pa.Table:
        item_ids = _arrow(self.catalog.frame[[ITEM_ID]])[ITEM_ID].combine_chunks()
        history = pa.LargeListArray.from_arrays(
            pa.array(self.histories.offsets), item_ids.take(self.histories.item_rows)
        )
        columns = {USER_ID: pa.array(self.histories.user_ids.tolist()), "history": history}
        if self.histories.times is not None:
            columns["times"] = pa.LargeListArray.from_arrays(pa.array(self.histories.offsets), self.histories.times)
        return pa.table(columns)


def _users(tables: Tables, bundle: ModelBundle) -> tuple[Sequences, pd.DataFrame | None]:
    """Return the histories of the users of either table, sorted by id, and the attributes that the model reads."""
    active = tables.interactions.sequences(tables.catalog)
    columns = attribute_columns(bundle)
    if tables.users is None:
        return active, pd.DataFrame({column: [None] * len(active) for column in columns}) if columns else None
    histories = _with_inactive(active, tables.users)
    if not columns:
        return histories, None
    known = tables.users.frame.reindex(columns=columns)
    return histories, known.reindex(tables.users.rows_of(histories.user_ids)).reset_index(drop=True)


def _encoded(
    bundle: ModelBundle,
    catalog: Catalog,
    trend: Float32[np.ndarray, "items tail"] | None,
    half_precision: bool,
    encode: ItemEncoder,
) -> ItemVectors:
    """Return the items' vectors as they are searched; those of a large catalogue are on disk, and mapped.

    Raises:
        BundleError: A vector has not length 1.
        OSError: There is no room on disk.
    """
    kind = np.float16 if half_precision else np.float32
    towers = bundle.config.towers
    shape = len(catalog), searched_dim(towers)
    stored = np.empty(shape, kind) if len(catalog) <= BLOCK else scratch_array(bundle.path, shape, kind)
    with tqdm(total=len(catalog), unit=" items", desc="Encoding", disable=None, leave=False) as bar:
        for rows, vectors in encode(bundle, catalog):
            try:
                check_unit_length(vectors, or_zero=True)
            except ValueError as error:
                raise BundleError(f"{bundle.path}: the model cannot rank: {error}; train again") from error
            stored[rows] = vectors if trend is None else with_numbers(vectors, trend[rows])
            bar.update(len(vectors))
    return stored_as(stored)


def _trend(
    bundle: ModelBundle, histories: Sequences, num_items: int
) -> tuple[Float32[np.ndarray, "items tail"] | None, float | None]:
    """Return the recent popularity of the items as it is searched, and its moment; None if the model reads none."""
    if not bundle.config.towers.trend:
        return None, None
    timeline = Timeline.of(histories)
    if timeline is None:
        raise DataError(
            "this model reads the recent popularity of items, which needs the time of every interaction; the table of "
            "interactions has none"
        )
    trend = bundle.trend(timeline, num_items)
    numbers = trend.numbers(np.array([trend.end]))[:, 0]
    return as_fractions(numbers), float(trend.end)


def _item_statistics(tables: Tables, bundle: ModelBundle) -> ItemStatistics:
    return ItemStatistics.of(tables.interactions.sequences(tables.catalog), tables.catalog, bundle.config.features.item)


def _tokens(catalog: Catalog, bundle: ModelBundle, sealed: RankerManifest, folder: SealedFolder) -> TokenVectors:
    """Return the vectors of the items' tokens, encoded by the bundle's ranker."""
    assert sealed.text is not None, "a late-interaction ranker reads texts"
    reader = TokenReader.open(folder.folder(MODEL), sealed.text.max_tokens)
    texts = item_texts(catalog, bundle.config.features.item) or []
    with tqdm(total=len(texts), unit=" texts", desc="Reading", disable=None, leave=False) as bar:
        return TokenVectors.of(reader, texts, sealed.digest, bar.update)


def _newest(interactions: Interactions) -> float | None:
    """Return the time of the newest interaction in Unix seconds; None if there are no times."""
    if "timestamp" not in interactions.frame or not len(interactions):
        return None
    return float(interactions.frame["timestamp"].max())


def _with_inactive(active: Sequences, users: Users) -> Sequences:
    """Return the sequences with users without events added, sorted by id."""
    inactive = np.setdiff1d(users.user_ids, active.user_ids)
    user_ids = np.concatenate([active.user_ids, inactive])
    offsets = np.concatenate([active.offsets, np.full(len(inactive), active.num_events)])
    return Sequences(user_ids, offsets, active.item_rows, active.times, active.is_ordered).take(
        np.argsort(user_ids, kind="stable")
    )


def _query_sample(
    bundle: ModelBundle,
    item_vectors: ItemVectors,
    histories: Sequences,
    attributes: pd.DataFrame | None,
    user_vectors: Float32[np.ndarray, "users width"] | None,
) -> Float32[np.ndarray, "sample width"]:
    """Return the vectors of some users; of models that read the time of a request, as of now."""
    if user_vectors is not None:
        return sample_of(user_vectors)
    users = np.random.default_rng(0).permutation(np.flatnonzero(histories.lengths > 0))[:SAMPLE]
    known = None if attributes is None else attributes.iloc[users].reset_index(drop=True)
    vectors = encode_users(bundle, item_vectors, histories.take(users), known, now=int(time.time()))
    return sample_of(vectors)


def _histories(table: pa.Table, catalog: Catalog) -> Sequences:
    history = table["history"].combine_chunks()
    lengths = pc.list_value_length(history).to_numpy(zero_copy_only=False)
    value_set = _arrow(catalog.frame[[ITEM_ID]])[ITEM_ID].combine_chunks()
    rows = pc.index_in(history.flatten().cast(value_set.type), value_set=value_set)
    if rows.null_count:
        raise ValueError(f"{rows.null_count} items of histories are not in the catalogue")
    times = None
    if "times" in table.column_names:
        times = table["times"].combine_chunks().flatten().to_numpy()
        if len(times) != len(rows):
            raise ValueError(f"{len(rows)} items of histories, {len(times)} times")
    user_ids = table[USER_ID].to_numpy()
    return Sequences(user_ids, offsets_of(lengths), rows.to_numpy().astype(np.int64), times, is_ordered=True)


def _digest(catalog: Catalog) -> str:
    """Return the SHA-256 of the catalogue's content, independent of its file format."""
    digest = hashlib.sha256()
    table = _arrow(catalog.frame)
    with pa.ipc.new_stream(_HashSink(digest), table.schema) as stream:
        stream.write_table(table)
    return digest.hexdigest()


class _HashSink:
    """A file object that only hashes what is written to it."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(memoryview(data))

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None).combine_chunks()


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")


def _frame(path: Path, num_rows: int) -> pd.DataFrame:
    frame: pd.DataFrame = read_parquet(path, num_rows).to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    return frame


def _vectors(path: Path, manifest: IndexManifest) -> dict[str, Float[np.ndarray, "rows width"]]:
    vectors, _ = mapped(path, "F32", "F16")
    for name, num_rows in (("items", manifest.num_items), ("users", manifest.num_users)):
        expected = num_rows, manifest.width
        if name in vectors and vectors[name].shape != expected:
            raise ValueError(f"vectors of {name}: found {vectors[name].shape}, expected {expected}")
    if "users" in vectors and vectors["users"].dtype != np.float32:
        raise ValueError(f"vectors of users: found {vectors['users'].dtype}, expected float32")
    return vectors


def _precomputed(path: Path, listed: PrecomputedInfo, num_items: int) -> PrecomputedTopK:
    arrays, _ = mapped(path, "F32", "I32")
    rows, scores = arrays["rows"], arrays["scores"]
    if rows.shape[1:] != (listed.depth,) or rows.shape != scores.shape or rows.dtype != np.int32:
        raise ValueError(
            f"precomputed recommendations {listed.depth} deep, {rows.shape} rows and {scores.shape} scores"
        )
    if rows.size and not -1 <= rows.min() <= rows.max() < num_items:
        raise ValueError(f"precomputed recommendations with row {rows.max()} of {num_items}")
    return PrecomputedTopK(rows, scores, listed.seen_items)
