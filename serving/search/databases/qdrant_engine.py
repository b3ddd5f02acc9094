"""Collections of Qdrant's engine in the process: `index = "qdrant:///FOLDER?collection=NAME"`.

For one machine and one worker: a collection is a folder that one process at a time can open. Next to it is its seal, a
file that is written last; the alias is a link, as that to a bundle.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from features.errors import DataError, UnavailableError, needing
from features.files import atomic_file, move_link
from serving.search.databases import qdrant_points as points_module
from serving.search.databases.columns import ColumnKind
from serving.search.databases.database import Asked, LiveChange, Points, Seal
from serving.search.databases.qdrant_points import CANDIDATES_WHILE_BUILDING, INDEX_TYPES, MAX_EFFORT, NEIGHBOURS

if TYPE_CHECKING:
    from qdrant_edge import EdgeShard, Filter

_SEAL, _LIVE, _SHARD = "seal.json", "live.json", "shard"
# That of the index before is still in use while the new one is loaded.
_MOST_OPEN = 2


class QdrantEngine:
    """Collections in a folder; see `VectorDatabase`.

    Attributes:
        alias: Name of the link.
    """

    max_effort = MAX_EFFORT

    def __init__(self, address: str) -> None:
        """Prepare to open collections, at their first use.

        Args:
            address: URL of the folder, with the name of the alias in the parameter `collection`.

        Raises:
            DataError: The library is not installed, or the address is invalid.
        """
        with needing("indexes in Qdrant"):
            import qdrant_edge
        self._edge = qdrant_edge
        parts, self.alias = points_module.parsed(address)
        # As in other tools: qdrant:///vectors is relative to the working folder, qdrant:////var/vectors absolute.
        self._folder = Path(unquote(parts.path).removeprefix("/"))
        self._open: OrderedDict[str, EdgeShard] = OrderedDict()
        self._lock = threading.Lock()

    def can_hold(self, column: str) -> bool:
        """Return whether a column can have this name."""
        return points_module.can_hold(column)

    def seal(self, collection: str) -> Seal | None:
        """Return the seal of a collection; None if there is none."""
        file = self._folder / collection / _SEAL
        if not file.exists():
            return None
        try:
            return Seal.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnavailableError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from None

    def nearest(self, collection: str, kinds: dict[str, ColumnKind], asked: Asked) -> list[np.ndarray]:
        """Return the keys of each user's nearest items."""
        edge, shard = self._edge, self._shard(collection)
        nothing = np.zeros(0, np.int64)
        requests = [
            edge.QueryRequest(
                limit=asked.depth,
                query=edge.Query.Nearest(query.tolist()),
                filter=self._filter(
                    points_module.filter_of(asked.where, kinds, asked.excluded[user] if asked.excluded else nothing)
                ),
                params=edge.SearchParams(hnsw_ef=max(1, asked.effort), exact=asked.is_exact),
                with_payload=False,
                with_vector=False,
            )
            for user, query in enumerate(asked.queries)
        ]
        found = self._try(lambda: shard.query_batch(edge.QueryBatchRequest(requests)))
        return [np.array([one.id for one in hits], dtype=np.int64) for hits in found]

    def write(self, collection: str, seal: Seal, points: Points, progress: Callable[[int], None]) -> None:
        """Write a new collection, replacing an unfinished one; the seal comes last."""
        edge, folder = self._edge, self._folder / collection
        self._close(collection)
        (folder / _SEAL).unlink(missing_ok=True)  # first, so that nothing half-deleted is sealed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=seal.width, distance=edge.Distance.Dot),
            hnsw_config=edge.HnswIndexConfig(NEIGHBOURS, CANDIDATES_WHILE_BUILDING, points_module.INDEXED_KILOBYTES),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=points_module.INDEXED_KILOBYTES),
        )
        try:
            shard = self._try(lambda: edge.EdgeShard.create(str(folder / _SHARD), config))
            try:
                # Before the points: the graph gets further links for what is filtered by.
                for name, kind in seal.columns.items():
                    schema = getattr(edge.PayloadSchemaType, INDEX_TYPES[kind].capitalize())
                    operation = edge.UpdateOperation.create_field_index(points_module.path_of(name), schema)
                    self._try(partial(shard.update, operation))
                self._upsert(shard, points, progress)
                self._try(shard.optimize)
                self._try(shard.flush)
            finally:
                shard.close()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.reseal(collection, seal)

    def reseal(self, collection: str, seal: Seal) -> None:
        """Replace the seal of a collection."""
        with atomic_file(self._folder / collection / _SEAL) as file:
            file.write_text(seal.model_dump_json(), encoding="utf-8")

    def current(self) -> str | None:
        """Return the collection that the link points to."""
        link = self._folder / self.alias
        return link.readlink().name if link.is_symlink() else None

    def point_alias(self, collection: str) -> None:
        """Let the link point to a collection."""
        link = self._folder / self.alias
        if link.exists() and not link.is_symlink():
            raise DataError(f"index: {link} is no link to a collection; choose another name after ?collection=")
        move_link(link, self._folder / collection)

    def collections(self) -> dict[str, Seal]:
        """Return the sealed collections of this alias, the newest first."""
        sealed = sorted(
            self._folder.glob(f"{self.alias}_*/{_SEAL}"), key=lambda file: file.stat().st_mtime_ns, reverse=True
        )
        found = {file.parent.name: self.seal(file.parent.name) for file in sealed}
        return {name: seal for name, seal in found.items() if seal is not None}

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        self._close(collection)
        (self._folder / collection / _SEAL).unlink(missing_ok=True)
        shutil.rmtree(self._folder / collection, ignore_errors=True)

    def num_points(self, collection: str) -> int | None:
        """Return how many items a collection has; None if live writes have changed it."""
        if (self._folder / collection / _LIVE).exists():
            return None
        shard = self._shard(collection)
        return int(self._try(lambda: shard.count(self._edge.CountRequest(exact=True))))

    def apply(self, collection: str, change: LiveChange) -> bool:
        """Apply live writes; a write that was interrupted is repeated, which changes nothing more."""
        edge, shard, file = self._edge, self._shard(collection), self._folder / collection / _LIVE
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if before is not None and before["log_id"] != change.log_id:
            return False
        if before is not None and before["position"] >= change.until:
            return True
        if change.put is not None:
            self._upsert(shard, change.put, lambda _: None)
        if len(change.deleted):
            operation = edge.UpdateOperation.delete_points(change.deleted.tolist())
            self._try(partial(shard.update, operation))
        self._try(shard.flush)
        with atomic_file(file) as written:
            written.write_text(json.dumps({"log_id": change.log_id, "position": change.until}), encoding="utf-8")
        return True

    def close(self) -> None:
        """Close the collections, so that other processes can open them."""
        for collection in list(self._open):
            self._close(collection)

    def _shard(self, collection: str) -> EdgeShard:
        with self._lock:
            shard = self._open.get(collection)
            if shard is None:
                path = str(self._folder / collection / _SHARD)
                shard = self._open[collection] = self._try(lambda: self._edge.EdgeShard.load(path))
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)[1].close()
            return shard

    def _close(self, collection: str) -> None:
        with self._lock:
            shard = self._open.pop(collection, None)
            if shard is not None:
                shard.close()

    def _upsert(self, shard: EdgeShard, points: Points, progress: Callable[[int], None]) -> None:
        edge = self._edge
        for keys, vectors, payloads in points_module.batches(points):
            content = zip(keys, vectors.tolist(), payloads, strict=True)
            operation = edge.UpdateOperation.upsert_points([edge.Point(*one) for one in content])
            self._try(partial(shard.update, operation))
            progress(len(keys))

    def _filter(self, content: dict[str, Any] | None) -> Filter | None:
        """Return a filter in Qdrant's JSON as the engine takes it."""
        if content is None:
            return None
        parts: dict[str, Any] = {name: [self._condition(one) for one in some] for name, some in content.items()}
        return self._edge.Filter(**parts)

    def _condition(self, content: dict[str, Any]) -> Any:
        edge = self._edge
        match content:
            case {"should": _}:
                return self._filter(content)
            case {"has_id": keys}:
                return edge.HasIdCondition(set(keys))
            case {"key": key, "range": limits}:
                return edge.FieldCondition(key, range=edge.RangeFloat(**limits))
            case {"key": key, "match": {"any": values}}:
                return edge.FieldCondition(key, match=edge.MatchAny(values))
        raise AssertionError(f"a condition that `filter_of` does not make: {content}")

    def _try(self, action: Callable[[], Any]) -> Any:
        """Return the result of an action of the engine, which panics over damaged files: that is no `Exception`."""
        try:
            return action()
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            said = " ".join(str(error).split())
            hint = "; another process has it open, so serve with workers = 1" if "WouldBlock" in said else ""
            raise UnavailableError(f"Qdrant's engine in {self._folder} failed ({said[:300]}){hint}") from None
