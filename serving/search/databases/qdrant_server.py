"""Collections of a Qdrant server, 1.16 or later: `index = "qdrant://HOST:PORT?collection=NAME"`.

The seal and the position in the log of live writes are in the metadata of the collection, the alias is one of Qdrant's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import numpy as np
from pydantic import ValidationError

from features.errors import DataError, UnavailableError, needing
from features.redaction import redacted
from serving.search.databases import qdrant_points as points_module
from serving.search.databases.columns import ColumnKind
from serving.search.databases.database import Asked, LiveChange, Points, Seal
from serving.search.databases.qdrant_points import CANDIDATES_WHILE_BUILDING, INDEX_TYPES, MAX_EFFORT, NEIGHBOURS

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_DEFAULT_PORT = 6333
_ENDS = "towers_ends"  # among the extensions of a request: when its time is over
_SEAL, _LOG, _POSITION = "towers_seal", "towers_log", "towers_position"
_SECONDS_TO_WRITE = 120.0
# How often, and how long, to look whether the graph is built.
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_BUILD = 6 * 3600.0
_LOOKS_THAT_AGREE = 2
# What the client raises for content that is no JSON (a web page of a proxy), without a result, or with other ids.
_NOT_AN_ANSWER = (ValueError, AssertionError, OverflowError, RecursionError)


class QdrantServer:
    """Collections of a server; see `VectorDatabase`.

    Attributes:
        alias: Name of the alias.
    """

    max_effort = MAX_EFFORT

    def __init__(
        self,
        address: str,
        key: str | None,
        timeout_seconds: float,
        make_client: Callable[[float], QdrantClient] | None = None,
    ) -> None:
        """Prepare the client, which connects at its first use.

        Args:
            address: URL of the server, with the name of the alias in the parameter `collection`, and `tls=true` for an
                encrypted connection.
            key: API key. None: none is sent.
            timeout_seconds: Maximum duration of a search.
            make_client: Returns a client whose requests may take so many seconds. None: one of the server.

        Raises:
            DataError: The library is not installed, or the address is invalid.
        """
        with needing("indexes in Qdrant"):
            from qdrant_client import models
        self._models = models
        parts, self.alias = points_module.parsed(address)
        self._key = key
        tls = parse_qs(parts.query).get("tls", ["false"])[-1]
        try:
            port = parts.port or _DEFAULT_PORT
        except ValueError:
            port = 0
        if not port or not parts.hostname or parts.username or parts.path.strip("/") or tls not in ("true", "false"):
            raise DataError(f"index: {points_module.EXPECTED}; a key belongs into index_key or TOWERS_INDEX_KEY")
        make = make_client or partial(_client, parts.hostname, port, key, is_encrypted=tls == "true")
        self._reader, self._writer = make(timeout_seconds), make(_SECONDS_TO_WRITE)

    def can_hold(self, column: str) -> bool:
        """Return whether a column can have this name."""
        return points_module.can_hold(column)

    def seal(self, collection: str) -> Seal | None:
        """Return the seal of a collection; None if there is none."""
        found = self._metadata(collection)
        return None if found is None or _SEAL not in found else self._parsed(found[_SEAL])

    def nearest(self, collection: str, kinds: dict[str, ColumnKind], asked: Asked) -> list[np.ndarray]:
        """Return the keys of each user's nearest items."""
        models, nothing = self._models, np.zeros(0, np.int64)
        requests = []
        for user, query in enumerate(asked.queries):
            content = points_module.filter_of(asked.where, kinds, asked.excluded[user] if asked.excluded else nothing)
            requests.append(
                models.QueryRequest(
                    query=query.tolist(),
                    filter=None if content is None else models.Filter.model_validate(content),
                    params=models.SearchParams(hnsw_ef=max(1, asked.effort), exact=asked.is_exact),
                    limit=asked.depth,
                    with_payload=False,
                    with_vector=False,
                )
            )
        with self._telling():
            responses = self._reader.query_batch_points(collection, requests)
            return [np.array([point.id for point in one.points], dtype=np.int64) for one in responses]

    def write(self, collection: str, seal: Seal, points: Points, progress: Callable[[int], None]) -> None:
        """Write a new collection, and wait until its graph is built; the seal comes last."""
        models = self._models
        with self._telling():
            self._writer.delete_collection(collection)  # an unfinished one; Qdrant does not mind if there is none
            self._writer.create_collection(
                collection,
                vectors_config=models.VectorParams(size=seal.width, distance=models.Distance.DOT),
                hnsw_config=models.HnswConfigDiff(m=NEIGHBOURS, ef_construct=CANDIDATES_WHILE_BUILDING),
                optimizers_config=models.OptimizersConfigDiff(indexing_threshold=points_module.INDEXED_KILOBYTES),
            )
        try:
            with self._telling():
                # Before the points: the graph gets further links for what is filtered by.
                for name, kind in seal.columns.items():
                    schema = models.PayloadSchemaType(INDEX_TYPES[kind])
                    self._writer.create_payload_index(collection, points_module.path_of(name), schema)
                self._upsert(collection, points, progress)
                self._wait_for_graph(collection, len(points))
        except BaseException:
            with self._telling():
                self._writer.delete_collection(collection)
            raise
        self.reseal(collection, seal)
        if self.seal(collection) != seal:
            raise DataError("index: Qdrant does not keep the metadata of a collection; version 1.16 or later is needed")

    def reseal(self, collection: str, seal: Seal) -> None:
        """Replace the seal of a collection."""
        with self._telling():
            self._writer.update_collection(collection, metadata={_SEAL: seal.model_dump_json()})

    def current(self) -> str | None:
        """Return the collection that the alias names."""
        with self._telling():
            aliases = self._writer.get_aliases().aliases
        return next((one.collection_name for one in aliases if one.alias_name == self.alias), None)

    def point_alias(self, collection: str) -> None:
        """Let the alias name a collection; Qdrant does both operations in one step."""
        models, before = self._models, self.current()
        operations: list[Any] = []
        if before is not None:
            operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.alias)))
        create = models.CreateAlias(collection_name=collection, alias_name=self.alias)
        operations.append(models.CreateAliasOperation(create_alias=create))
        with self._telling():
            self._writer.update_collection_aliases(operations)

    def collections(self) -> dict[str, Seal]:
        """Return the sealed collections of this alias, the newest first."""
        with self._telling():
            names = [one.name for one in self._writer.get_collections().collections]
        found = {name: self.seal(name) for name in names if name.startswith(f"{self.alias}_")}
        sealed = {name: seal for name, seal in found.items() if seal is not None}
        return dict(sorted(sealed.items(), key=lambda one: one[1].created, reverse=True))

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        with self._telling():
            self._writer.delete_collection(collection)

    def num_points(self, collection: str) -> int | None:
        """Return how many items a collection has; None if live writes have changed it."""
        if _LOG in (self._metadata(collection) or {}):
            return None
        with self._telling():
            return int(self._writer.count(collection, exact=True).count)

    def apply(self, collection: str, change: LiveChange) -> bool:
        """Apply live writes; a write that was interrupted is repeated, which changes nothing more."""
        before = self._metadata(collection)
        if before is None:
            raise UnavailableError(f"Qdrant has no collection {collection}")
        if before.get(_LOG, change.log_id) != change.log_id:
            return False
        if before.get(_POSITION, -1) >= change.until:
            return True
        with self._telling():
            if change.put is not None:
                self._upsert(collection, change.put, lambda _: None)
            if len(change.deleted):
                selector = self._models.PointIdsList(points=change.deleted.tolist())
                self._writer.delete(collection, selector)
            self._writer.update_collection(collection, metadata={_LOG: change.log_id, _POSITION: change.until})
        return True

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
        self._writer.close()

    def _metadata(self, collection: str) -> dict[str, Any] | None:
        """Return the metadata of a collection; None if there is no such collection."""
        with self._telling():
            if not self._reader.collection_exists(collection):
                return None
            return self._reader.get_collection(collection).config.metadata or {}

    def _parsed(self, text: str) -> Seal:
        try:
            return Seal.model_validate_json(text)
        except ValidationError as error:
            raise UnavailableError(f"the seal of a collection cannot be read ({error.errors()[0]['msg']})") from None

    def _upsert(self, collection: str, points: Points, progress: Callable[[int], None]) -> None:
        for keys, vectors, payloads in points_module.batches(points):
            batch = self._models.Batch(ids=keys, vectors=vectors.tolist(), payloads=payloads)
            self._writer.upsert(collection, batch, wait=True)
            progress(len(keys))

    def _wait_for_graph(self, collection: str, num_points: int) -> None:
        ends, agreed = time.monotonic() + _SECONDS_TO_BUILD, 0
        while agreed < _LOOKS_THAT_AGREE:
            info = self._writer.get_collection(collection)
            is_done = info.status == self._models.CollectionStatus.GREEN and (info.points_count or 0) >= num_points
            agreed = agreed + 1 if is_done else 0
            if time.monotonic() > ends:
                raise UnavailableError(
                    f"Qdrant did not build the graph of {collection} in time; its status is {info.status}"
                )
            if agreed < _LOOKS_THAT_AGREE:
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn the client's errors into one line without the key."""
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, QdrantException, OSError) as error:
            said = redacted(" ".join(str(error).split())[:300], self._key)
            raise UnavailableError(f"the Qdrant server cannot be used ({said})") from None
        except _NOT_AN_ANSWER as error:
            said = redacted(" ".join(str(error).split())[:300], self._key)
            raise UnavailableError(
                f"the Qdrant server cannot be used (its answer is not one of Qdrant's: {said}); check the address"
            ) from None


def _client(host: str, port: int, key: str | None, seconds: float, *, is_encrypted: bool) -> QdrantClient:
    """Return a client whose requests may take so many seconds."""
    from qdrant_client import QdrantClient

    # Its own `timeout` is rounded up to whole seconds; httpx takes another from each request.
    limits = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    def within(request: Any, send: Callable[[Any], Any]) -> Any:
        request.extensions["timeout"] = limits
        request.extensions[_ENDS] = time.monotonic() + seconds
        return send(request)

    client = QdrantClient(
        host=host,
        port=port,
        https=is_encrypted,
        api_key=key,
        check_compatibility=False,
        event_hooks={"response": [partial(_read_in_time, seconds=seconds)]},
    )
    client.http.client.add_middleware(within)
    return client


def _read_in_time(response: Any, seconds: float) -> None:
    """End the reading of a response when its request's time is over: httpx limits only the wait for each part."""
    import httpx

    class InTime(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for part in stream:
                if time.monotonic() > response.request.extensions[_ENDS]:
                    raise httpx.ReadTimeout(f"the server did not respond within {seconds:g} s")
                yield part

        def close(self) -> None:
            stream.close()

    stream, response.stream = response.stream, InTime()
