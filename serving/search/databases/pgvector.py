"""Collections in PostgreSQL with pgvector: `index = "postgresql://USER@HOST/DATABASE?table=NAME"`.

A collection is a table with a row for each item: its key, its vector, and a column for each column that requests filter
by. The table `towers_indexes` has the seals. The alias is a view of the current collection, which a transaction
replaces: a query finds the old or the new one, never none. Everything that is written comes with one transaction.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, LiteralString

import numpy as np
from pydantic import ValidationError

from features.errors import DataError, UnavailableError, needing
from serving import deadline
from serving.postgres import connection_while_alive, connection_with_timeout, one_line, password_of
from serving.search.conditions import Condition
from serving.search.databases.columns import ColumnKind
from serving.search.databases.database import Asked, LiveChange, Points, Seal

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

_EXPECTED = "expected postgresql://USER@HOST/DATABASE?table=NAME"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_KEY, _VECTOR = "towers_key", "towers_vector"
_SECONDS_TO_CONNECT = 2
_SECONDS_TO_APPLY = 120.0
# Building a graph may take hours without a word from the server. After so long it is asked over another connection.
_SECONDS_OF_SILENCE = 60.0
_SECONDS_TO_PROVE_ALIVE = 20
# The key of the advisory lock; an arbitrary number that other applications are unlikely to use.
_LOCK = 0x746F7766
_LONGEST_NAME = 63  # in bytes; PostgreSQL cuts longer ones
_TAKEN_NAMES = (_KEY, _VECTOR, "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
_MOST_DIMENSIONS = 2000  # that pgvector's HNSW can index
_CANDIDATES_WHILE_BUILDING = 128
_MOST_SCANNED = 40_000
_MOST_MEMORY_KB = 1 << 21
_ROWS_AT_ONCE = 5000

_TYPES: dict[ColumnKind, LiteralString] = {
    "whole": "bigint",
    "float32": "real",
    "float64": "double precision",
    "text": "text",
    "truth": "boolean",
    "texts": "text[]",
    "wholes": "bigint[]",
}
_ABOUT = """
CREATE TABLE IF NOT EXISTS towers_indexes (
    collection TEXT PRIMARY KEY,
    alias TEXT NOT NULL,
    seal TEXT NOT NULL,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    log_id TEXT,
    position BIGINT NOT NULL DEFAULT 0
)
"""


class PgVector:
    """Collections in a database with pgvector; see `VectorDatabase`.

    Attributes:
        alias: Name of the view.
    """

    max_effort = 1000  # of pgvector's hnsw.ef_search

    def __init__(self, address: str, timeout_seconds: float) -> None:
        """Prepare the connections, which are opened when they are used.

        Args:
            address: URL of the database, with the name of the alias in the parameter `table`.
            timeout_seconds: Maximum duration of a search.

        Raises:
            DataError: A library is not installed, or the address is invalid.
        """
        with needing("indexes in PostgreSQL"):
            import pgvector.psycopg  # noqa: F401
            import psycopg
        self._address, self.alias = _parsed(address)
        self._password = password_of(self._address, "index")
        self._error, self._lost = psycopg.Error, psycopg.OperationalError
        self._seconds = timeout_seconds
        self._idle: list[Connection[Any]] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(4, "towers-connect")

    def can_hold(self, column: str) -> bool:
        """Return whether a column can have this name in PostgreSQL."""
        return 0 < len(column.encode()) <= _LONGEST_NAME and "\0" not in column and column not in _TAKEN_NAMES

    def seal(self, collection: str) -> Seal | None:
        """Return the seal of a collection; None if there is none."""
        with self._reading() as connection:
            if not _exists(connection, "towers_indexes"):
                return None
            found = connection.execute(
                "SELECT seal FROM towers_indexes WHERE collection = %s AND to_regclass(%s) IS NOT NULL",
                (collection, collection),
            ).fetchone()
        return None if found is None else _parsed_seal(found[0])

    def nearest(self, collection: str, kinds: dict[str, ColumnKind], asked: Asked) -> list[np.ndarray]:
        """Return the keys of each user's nearest items."""
        from psycopg.sql import SQL, Identifier

        where, values = _where(asked.where, kinds)
        found = []
        with self._reading() as connection:
            if not asked.is_exact:
                connection.execute(f"SET hnsw.ef_search = {max(1, asked.effort)}".encode())
            for user, query in deadline.watched(enumerate(asked.queries)):
                excluded = asked.excluded[user] if asked.excluded else np.zeros(0, np.int64)
                more = [*where, SQL("{} <> ALL(%s)").format(Identifier(_KEY))] if len(excluded) else where
                parts = {
                    "key": Identifier(_KEY),
                    "vector": Identifier(_VECTOR),
                    "table": Identifier(collection),
                    "where": SQL(" AND ").join(more) if more else SQL("true"),
                }
                statement = _EXACT if asked.is_exact else _BY_GRAPH
                given = [*values, *([excluded.tolist()] if len(excluded) else []), query, asked.depth]
                rows = connection.execute(SQL(statement).format(**parts), given).fetchall()
                found.append(np.array([row[0] for row in rows], dtype=np.int64))
        return found

    def write(self, collection: str, seal: Seal, points: Points, progress: Callable[[int], None]) -> None:
        """Write a new collection in one transaction."""
        from psycopg.sql import SQL, Identifier, Literal

        if seal.width > _MOST_DIMENSIONS:
            raise DataError(
                f"index: pgvector's index takes vectors of at most {_MOST_DIMENSIONS:,} dimensions, found "
                f"{seal.width:,}; train with fewer (towers.embedding_dim), or use another index"
            )
        with self._writing() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(_ABOUT)
            self._refuse_other(connection)
            table = Identifier(collection)
            connection.execute(SQL("DROP TABLE IF EXISTS {} CASCADE").format(table))
            connection.execute("DELETE FROM towers_indexes WHERE collection = %s", (collection,))
            columns = [SQL("{} {}").format(Identifier(name), SQL(_TYPES[kind])) for name, kind in seal.columns.items()]
            width = SQL("vector({})").format(Literal(seal.width))
            connection.execute(
                SQL("CREATE TABLE {} ({})").format(
                    table,
                    SQL(", ").join(
                        [
                            SQL("{} bigint NOT NULL").format(Identifier(_KEY)),
                            SQL("{} {} NOT NULL").format(Identifier(_VECTOR), width),
                            *columns,
                        ]
                    ),
                )
            )
            _copy(connection, table, seal, points, progress)
            _make_indexes(connection, collection, seal)
            connection.execute(
                "INSERT INTO towers_indexes (collection, alias, seal) VALUES (%s, %s, %s)",
                (collection, self.alias, seal.model_dump_json()),
            )
        with self._writing() as connection:
            connection.execute(SQL("ANALYZE {}").format(Identifier(collection)))

    def reseal(self, collection: str, seal: Seal) -> None:
        """Replace the seal of a collection."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE towers_indexes SET seal = %s WHERE collection = %s", (seal.model_dump_json(), collection)
            )

    def current(self) -> str | None:
        """Return the collection that the view shows."""
        with self._writing() as connection:
            if not _exists(connection, "towers_indexes"):
                return None
            shown = "SELECT obj_description(to_regclass(%s), 'pg_class')"
            found = connection.execute(shown, (self.alias,)).fetchone()
        return None if found is None or found[0] is None else str(found[0])

    def point_alias(self, collection: str) -> None:
        """Let the view show a collection."""
        from psycopg.sql import SQL, Identifier, Literal

        alias = Identifier(self.alias)
        with self._writing() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            self._refuse_other(connection)
            connection.execute(SQL("DROP VIEW IF EXISTS {}").format(alias))
            connection.execute(SQL("CREATE VIEW {} AS SELECT * FROM {}").format(alias, Identifier(collection)))
            connection.execute(SQL("COMMENT ON VIEW {} IS {}").format(alias, Literal(collection)))

    def collections(self) -> dict[str, Seal]:
        """Return the sealed collections of this alias, the newest first."""
        with self._writing() as connection:
            if not _exists(connection, "towers_indexes"):
                return {}
            found = connection.execute(
                "SELECT collection, seal FROM towers_indexes WHERE alias = %s ORDER BY number DESC", (self.alias,)
            ).fetchall()
        return {collection: _parsed_seal(seal) for collection, seal in found}

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        from psycopg.sql import SQL, Identifier

        with self._writing() as connection, connection.transaction():
            connection.execute("DELETE FROM towers_indexes WHERE collection = %s", (collection,))
            connection.execute(SQL("DROP TABLE IF EXISTS {}").format(Identifier(collection)))

    def num_points(self, collection: str) -> int | None:
        """Return how many items a collection has; None if live writes have changed it."""
        from psycopg.sql import SQL, Identifier

        with self._writing(_SECONDS_TO_APPLY) as connection:
            query = "SELECT log_id FROM towers_indexes WHERE collection = %s"
            if connection.execute(query, (collection,)).fetchone() != (None,):
                return None
            found = connection.execute(SQL("SELECT count(*) FROM {}").format(Identifier(collection))).fetchone()
        return None if found is None else int(found[0])

    def apply(self, collection: str, change: LiveChange) -> bool:
        """Apply live writes in one transaction, in which one process at a time brings the collection up to date."""
        from psycopg.sql import SQL, Identifier, Placeholder

        with self._writing(_SECONDS_TO_APPLY) as connection, connection.transaction():
            found = connection.execute(
                "SELECT log_id, position, seal FROM towers_indexes WHERE collection = %s FOR UPDATE", (collection,)
            ).fetchone()
            if found is None:
                raise UnavailableError(f"the database has no collection {collection}")
            log_id, position, seal = found
            if log_id is not None and log_id != change.log_id:
                return False
            if log_id is not None and position >= change.until:
                return True
            table, columns = Identifier(collection), _parsed_seal(seal).columns
            if change.put is not None:
                names = [_KEY, _VECTOR, *columns]
                cursor = connection.cursor()
                cursor.executemany(
                    SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO NOTHING").format(
                        table,
                        SQL(", ").join(map(Identifier, names)),
                        SQL(", ").join(Placeholder() * len(names)),
                        Identifier(_KEY),
                    ),
                    list(_rows(change.put, list(columns))),
                )
            if len(change.deleted):
                connection.execute(
                    SQL("DELETE FROM {} WHERE {} = ANY(%s)").format(table, Identifier(_KEY)),
                    (change.deleted.tolist(),),
                )
            connection.execute(
                "UPDATE towers_indexes SET log_id = %s, position = %s WHERE collection = %s",
                (change.log_id, change.until, collection),
            )
        return True

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection[Any]]:
        """Lend a connection whose statements may not take longer than a search may."""
        try:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or connection.closed:
                connection = self._connected_in_time()
            try:
                yield connection
            except BaseException as error:
                connection.close()  # a statement may still be running
                if isinstance(error, self._lost):
                    self.close()  # a server that was restarted has closed them all, a network that is cut lost them
                raise
            with self._lock:
                self._idle.append(connection)
        except self._error as error:
            raise self._unavailable(error) from None

    @contextmanager
    def _writing(self, seconds: float | None = None) -> Iterator[Connection[Any]]:
        """Open a connection that may take so many seconds, or as long as the server is alive."""
        try:
            with self._connect(seconds) as connection:
                yield connection
        except self._error as error:
            raise self._unavailable(error) from None

    def _connected_in_time(self) -> Connection[Any]:
        """Open a connection in another thread, as libpq waits for at least two seconds for a host that is silent."""
        connecting = self._threads.submit(self._connect, self._seconds)
        try:
            return connecting.result(self._seconds)
        except TimeoutError:
            connecting.add_done_callback(_close_late)
            raise UnavailableError(f"the vector database did not respond within {self._seconds:g} s") from None

    def _connect(self, seconds: float | None) -> Connection[Any]:
        import psycopg
        from pgvector.psycopg import register_vector

        if seconds is None:
            kind = connection_while_alive(_SECONDS_OF_SILENCE, self._is_alive)
        else:
            kind = connection_with_timeout(seconds)
        # Each statement is planned with its values: how many items a filter leaves decides how to search.
        options = f"-c plan_cache_mode=force_custom_plan -c statement_timeout={(seconds or 0):g}s"
        options += f" -c hnsw.iterative_scan=strict_order -c hnsw.max_scan_tuples={_MOST_SCANNED}"
        connection = kind.connect(
            self._address,
            autocommit=True,
            connect_timeout=_SECONDS_TO_CONNECT,
            client_encoding="utf8",
            prepare_threshold=None,  # poolers in between have no prepared statements
            options=options,
            keepalives_idle=60,  # or a firewall may forget the connection while a graph is built
            keepalives_interval=20,
            keepalives_count=5,
        )
        try:
            if seconds is None:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except psycopg.ProgrammingError as error:
            connection.close()
            raise DataError(
                f"index: the database has no pgvector ({one_line(error, self._password)}); install it there, and let "
                "an administrator run: CREATE EXTENSION vector"
            ) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_alive(self) -> bool:
        """Return whether the server responds to another connection, if only by refusing it."""
        import psycopg

        try:
            psycopg.connect(self._address, connect_timeout=_SECONDS_TO_PROVE_ALIVE).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except self._error:
            return True
        return True

    def _refuse_other(self, connection: Connection[Any]) -> None:
        """Refuse an alias that is the name of something else than our view."""
        found = connection.execute(
            "SELECT relkind, obj_description(oid, 'pg_class') FROM pg_class WHERE oid = to_regclass(%s)", (self.alias,)
        ).fetchone()
        if found is not None and (found[0] not in ("v", b"v") or found[1] is None):
            raise DataError(
                f"index: the database has a table or view {self.alias!r} that `towers index` did not make; choose "
                "another name after ?table="
            )

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"the vector database cannot be used ({one_line(error, self._password)})")


_BY_GRAPH: LiteralString = "SELECT {key} FROM {table} WHERE {where} ORDER BY {vector} <#> %s LIMIT %s"
# Found first, then sorted: PostgreSQL would otherwise be free to use the graph.
_EXACT: LiteralString = (
    "WITH found AS MATERIALIZED (SELECT {key}, {vector} FROM {table} WHERE {where}) "
    "SELECT {key} FROM found ORDER BY {vector} <#> %s LIMIT %s"
)


def _parsed(address: str) -> tuple[str, str]:
    """Return the address of the database alone, and the name of the alias.

    Raises:
        DataError: There is no such name, or it is invalid.
    """
    base, _, query = address.partition("?")
    parameters = [one for one in query.split("&") if one]
    names = [one.removeprefix("table=") for one in parameters if one.startswith("table=")]
    if len(names) != 1 or not _NAME.fullmatch(names[0]):
        raise DataError(
            f"index: {_EXPECTED}, with a name of at most 40 small letters, digits and _, that begins with a letter"
        )
    rest = "&".join(one for one in parameters if not one.startswith("table="))
    return f"{base}?{rest}" if rest else base, names[0]


def _close_late(connecting: Future[Connection[Any]]) -> None:
    """Close a connection that came too late."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


def _parsed_seal(text: str) -> Seal:
    try:
        return Seal.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UnavailableError(f"a seal in towers_indexes cannot be read ({where}: {first['msg'].lower()})") from None


def _exists(connection: Connection[Any], name: str) -> bool:
    found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
    return found is not None and bool(found[0])


def _where(conditions: Sequence[Condition], kinds: dict[str, ColumnKind]) -> tuple[list[Composed], list[Any]]:
    """Return conditions as SQL, and their values."""
    from psycopg.sql import SQL, Identifier

    parts, values = [], []
    for one in conditions:
        kind = kinds[one.column]
        is_list = kind in ("texts", "wholes")
        has_any: LiteralString = "{column} && {values}" if is_list else "{column} = ANY({values})"
        statements: dict[str, LiteralString] = {
            "any": has_any,
            "not": "({column} IS NULL OR NOT " + has_any + ")",
            "min": "{column} >= {value}",
            "max": "{column} <= {value}",
        }
        column_type = _TYPES[kind]
        parts.append(
            SQL(statements[one.operator]).format(
                column=Identifier(one.column),
                values=SQL(f"%s::{column_type}" if is_list else f"%s::{column_type}[]"),
                value=SQL(f"%s::{column_type}"),
            )
        )
        values.append(one.values[0] if one.operator in ("min", "max") else list(one.values))
    return parts, values


def _rows(points: Points, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each item's row, some thousand items at a time."""
    for start in range(0, len(points), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cells = [points.cells[name][part].to_pylist() for name in columns]
        yield from zip(points.keys[part].tolist(), points.vectors[part], *cells, strict=True)


def _copy(connection: Connection[Any], table: Any, seal: Seal, points: Points, progress: Callable[[int], None]) -> None:
    from psycopg.sql import SQL

    statement = SQL("COPY {} FROM STDIN WITH (FORMAT BINARY)").format(table)
    written = 0
    with connection.cursor().copy(statement) as copy:
        copy.set_types(["bigint", "vector", *(_TYPES[kind] for kind in seal.columns.values())])
        for row in _rows(points, list(seal.columns)):
            copy.write_row(row)
            written += 1
            if written % _ROWS_AT_ONCE == 0:
                progress(_ROWS_AT_ONCE)
    progress(written % _ROWS_AT_ONCE)


def _make_indexes(connection: Connection[Any], collection: str, seal: Seal) -> None:
    """Make the graph and the indexes of the columns."""
    from psycopg.sql import SQL, Identifier, Literal

    table = Identifier(collection)
    # The graph is built in this memory, or else slowly: vectors, and 16 neighbours of each item on two layers or more.
    kilobytes = min(_MOST_MEMORY_KB, max(1 << 16, 2 * seal.num_items * (4 * seal.width + 400) // 1024))
    connection.execute(SQL("SET LOCAL maintenance_work_mem = {}").format(Literal(f"{kilobytes}kB")))
    connection.execute(SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(table, Identifier(_KEY)))
    connection.execute(
        SQL("CREATE INDEX ON {} USING hnsw ({} vector_ip_ops) WITH (m = 16, ef_construction = {})").format(
            table, Identifier(_VECTOR), Literal(_CANDIDATES_WHILE_BUILDING)
        )
    )
    for name, kind in seal.columns.items():
        method: LiteralString = "gin" if kind in ("texts", "wholes") else "btree"
        connection.execute(SQL("CREATE INDEX ON {} USING {} ({})").format(table, SQL(method), Identifier(name)))
