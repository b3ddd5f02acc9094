"""How long the worst request takes that each rule and each limit of the service allows.

    python tests/benchmarks/worst_requests.py [--only distinct search] [--kinds exact ivf hnsw live] [--items 100000]

A catalogue of 100,000 items of width 64 whose vectors look like those of trained towers (`made` in index.py), with
brands, tags and prices; a third of the items are near copies of others, and brands are families of items, so that
`distinct` and `at_most` have much to pass over. Of the 2,000 known users some have 10,000 events. The model is a real
one that was not trained. `live` is the exact index with 3,000 items put, 300 deleted and 2,000 events on top.

Every request goes through the application with the settings it has when nobody changes them, but for two: the deadline
is far off, so that what it would end is seen, and the answer is read to its end. A request fails that takes longer than
the deadline is by default, unless it is refused with an error that names the limit. What is measured is the time of one
processor, which is what a request takes on a machine where nothing else runs: all of it is computed in one thread. The
best of three tries counts; a first request warms what is read once (columns, groups). At the end the largest request is
made where next to no memory is left: it must be refused, and the next one answered.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import torch
from flask.testing import FlaskClient

from features.config import FeaturesConfig
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from serving.bounds import MAX_SEARCH_CHARACTERS
from serving.config import ServingConfig
from serving.http.app import create_app
from serving.live.log import Write
from serving.live.open_log import open_log
from serving.recommend.recommender import Recommender
from serving.search.faiss_index import ItemIndex, set_num_threads
from serving.snapshot.manifest import IndexManifest
from serving.snapshot.snapshot import Snapshot
from tests.benchmarks.index import made, unit
from towers.bundle.bundle import ModelBundle, write_bundle
from towers.config import TowersConfig
from towers.model.two_tower import TwoTower

KINDS = ("exact", "ivf", "hnsw", "live")
ITEMS, USERS, WIDTH, HISTORY = 100_000, 2_000, 64, 200
LONG_HISTORIES, LONG = 100, 10_000
PUT, DELETED, EVENTS = 3_000, 300, 2_000
FIRST_USER = 1_000_000
BAR = ServingConfig().timeout_seconds
FAR_OFF = 600.0
TRIES = 3
SPARE_BYTES = 24 << 20

SETTINGS = {
    "features": {
        "interactions": "interactions.parquet",
        "items": "items.parquet",
        "users": "users.parquet",
        "title": "title",
        "max_history": HISTORY,
        "item": {
            "item_id": {"kind": "id"},
            "title": {"kind": "text"},
            "tags": {"kind": "categories", "separator": "|"},
        },
        "user": {"country": {"kind": "category"}, "age": {"kind": "number"}},
    },
    "towers": {"embedding_dim": WIDTH},
}
_WORDS = np.array("red green blue steel wooden large small lamp chair table cup bowl bag coat".split())  # noqa: SIM905


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        name: What is at its limit.
        path: With the query.
        body: None: it is a GET.
    """

    name: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass
class World:
    """What requests may speak of.

    Attributes:
        known: Ids of known users with long histories.
        items: Ids of items.
        brands: The brands, those of the most items first.
    """

    known: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    brands: list[str] = field(default_factory=list)


def catalogue_of(items: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return the items' vectors, the users', and the table of the items."""
    rng = np.random.default_rng(0)
    vectors, tastes = made(items, USERS, WIDTH)
    copies = rng.permutation(items)[: items // 3]
    vectors[copies] = unit(vectors[rng.choice(items, items // 300)[rng.integers(items // 300, size=len(copies))]])
    vectors[copies] = unit(vectors[copies] + 1e-3 * rng.standard_normal((len(copies), WIDTH), dtype=np.float32))
    centres = vectors[rng.choice(items, 200, replace=False)]
    brands = (vectors @ centres.T).argmax(axis=1)
    frame = pd.DataFrame({"item_id": pd.array(np.arange(items), dtype=pd.ArrowDtype(pa.int64()))})
    text = pd.ArrowDtype(pa.large_string())
    frame["title"] = pd.Series([" ".join(rng.choice(_WORDS, size=6)) for _ in range(items)], dtype=text)
    frame["brand"] = pd.Series([f"b{brand}" for brand in brands], dtype=text)
    frame["maker"] = pd.Series([f"m{number}" for number in rng.integers(5000, size=items)], dtype=text)
    frame["colour"] = pd.Series(rng.choice(_WORDS, size=items), dtype=text)
    frame["tags"] = pd.Series(["|".join(tags) for tags in rng.choice(_WORDS, size=(items, 4))], dtype=text)
    frame["price"] = pd.array(rng.lognormal(3, 1, size=items).round(2), dtype=pd.ArrowDtype(pa.float64()))
    return vectors, tastes, frame


def retriever_of(folder: Path, kind: str, vectors: np.ndarray, tastes: np.ndarray, frame: pd.DataFrame) -> Recommender:
    """Return a recommender over the items with an index of a kind."""
    rng = np.random.default_rng(1)
    lengths = np.append(np.full(LONG_HISTORIES, LONG), rng.integers(5, 100, size=USERS - LONG_HISTORIES))
    rows = rng.integers(len(vectors), size=lengths.sum())
    histories = Sequences(np.arange(USERS) + FIRST_USER, offsets_of(lengths), rows, None, is_ordered=True)
    attributes = pd.DataFrame(
        {
            "country": pd.Series(rng.choice(["de", "fr", "pl"], size=USERS), dtype=pd.ArrowDtype(pa.large_string())),
            "age": pd.array(rng.integers(18, 80, size=USERS).astype(float), dtype=pd.ArrowDtype(pa.float64())),
        }
    )
    catalog, people = Catalog(frame), Users(attributes.assign(user_id=histories.user_ids))
    bundle = write_model(folder, catalog, people, histories)
    index = ItemIndex.build(vectors, kind)  # type: ignore[arg-type]
    seal = IndexManifest.of(
        bundle,
        catalog_digest="made",
        plan=index.plan,
        recall_at_100=1.0,
        recall_wanted=None,
        recall_users=0,
        num_items=len(vectors),
        num_users=USERS,
        num_interactions=len(rows),
        width=WIDTH,
    )
    counts = np.bincount(rows, minlength=len(vectors)).astype(np.int64)
    return Recommender(bundle, Snapshot(catalog, index, histories, attributes, tastes, counts, seal))


def write_model(folder: Path, catalog: Catalog, people: Users, histories: Sequences) -> ModelBundle:
    """Return a bundle of random weights."""
    features, towers = FeaturesConfig(**SETTINGS["features"]), TowersConfig(**SETTINGS["towers"])
    featurizer = Featurizer.fit(Schema.from_config(features), catalog, people, histories)
    torch.manual_seed(0)
    write_bundle(
        folder,
        settings=SETTINGS,
        tables_folder=folder,
        data_digests={},
        featurizer=featurizer,
        contract=ColumnContract({}, {}),
        weights=TwoTower(towers, featurizer, features.max_history).state_dict(),
        report={},
        pages={},
        primary_metric={"ndcg_at_10": 0.0},
    )
    return ModelBundle.open(folder)


def write_live(path: Path, items: int) -> None:
    """Write a log of live writes."""
    rng = np.random.default_rng(2)
    writes = [
        Write("item", {"item_id": int(item), "cells": {"title": " ".join(rng.choice(_WORDS, size=6)), "brand": "b1"}})
        for item in [*range(items, items + PUT // 2), *rng.choice(items, PUT // 2, replace=False)]
    ]
    writes += [Write("deletion", {"item_id": int(item)}) for item in rng.choice(items, DELETED, replace=False)]
    writes += [
        Write("event", {"user_id": FIRST_USER + int(user), "item_id": int(item), "time": 10**9 + number})
        for number, (user, item) in enumerate(
            zip(rng.integers(LONG_HISTORIES, size=EVENTS), rng.integers(items, size=EVENTS), strict=True)
        )
    ]
    open_log(str(path)).append(writes)


def cases(settings: ServingConfig, world: World) -> Iterator[Case]:
    """Yield the worst request of every rule and limit, and of some together."""
    most_k, most_offset, most_users = settings.max_k, settings.max_offset, settings.max_users
    items = world.items
    history = items[: settings.max_history]
    known = world.known[:most_users]
    strangers = [f"nobody{number}" for number in range(most_users)]
    described = _described(settings, items)
    page = {"k": most_k, "offset": most_offset}
    everywhere = {"k": most_k, "exclude": items[-settings.max_history :]}

    def one(name: str, **body: Any) -> Case:
        return Case(name, "/recommendations", body)

    yield Case("known, last page", f"/recommendations/{known[0]}?{urlencode(page)}")
    yield Case("unknown, last page", f"/recommendations/nobody?{urlencode(page)}")
    yield Case("similar, last page", f"/items/{items[0]}/similar?{urlencode(page)}")
    words = {"q": "steel cup " * (MAX_SEARCH_CHARACTERS // 10)}
    yield Case("search, the most letters", f"/search?{urlencode(words | page)}")
    yield Case("search, distinct", f"/search?{urlencode(words | {'k': most_k, 'distinct': 0.5})}")
    yield one("described, longest history", history=history, attributes={"country": "de"}, **page)
    for name, users in (("known", known), ("unknown", strangers), ("described", described)):
        yield one(f"{len(users)} {name}", users=users, k=most_k)
        yield one(f"{len(users)} {name}, last page", users=users, **page)
    yield one("100 known, exclude 10,000", users=known, **everywhere)
    fewer = _described(settings, items, taken=len(orjson.dumps(everywhere)))
    yield one("100 described, exclude 10,000", users=fewer, **everywhere)
    many, prices = items[:10_000], [number / 100 for number in range(10_000)]
    yield one("filter by 10,000 ids", history=history[:200], filter={"item_id": many}, k=most_k)
    yield one("filter by 10,000 numbers", history=history[:200], filter={"price": prices}, k=most_k)
    yield one("100 known, filter not 10,000 ids", users=known, filter={"item_id": {"not": many}}, k=most_k)
    yield one("100 known, filter by a tag", users=known, filter={"tags": "red"}, k=most_k)
    yield one("100 known, filter by a brand", users=known, filter={"brand": world.brands[:3]}, k=most_k)
    yield one("reasons for one", history=history, reasons=10, k=most_k)
    yield one("reasons for the most", users=known[: settings.max_explained_users], reasons=10, k=most_k)
    yield one("reasons for the most described", users=described[: settings.max_explained_users], reasons=10, k=most_k)

    boosts = [{"filter": {"tags": word}, "by": 2 - 4 * place / 7} for place, word in enumerate(_WORDS[:8].tolist())]
    demote = [{"colour": word} for word in _WORDS[:8].tolist()]
    rules: dict[str, dict[str, Any]] = {
        "diversity": {"diversity": 0.5},
        "diversity 1": {"diversity": 1.0},
        "distinct 0.99": {"distinct": 0.99},
        "distinct 0.5": {"distinct": 0.5},
        "distinct 0.1": {"distinct": 0.1},
        "diversity and distinct": {"diversity": 0.5, "distinct": 0.99},
        "diversity and distinct 0.5": {"diversity": 0.5, "distinct": 0.5},
        "pin": {"pin": items[:100]},
        "boost": {"boost": boosts},
        "demote": {"demote": demote},
        "demote 10,000 ids, 8 times": {"demote": [{"item_id": items[:10_000]}] * 8},
        "boost and demote": {"boost": boosts, "demote": demote},
        "at most 1 of a brand": {"at_most": {"brand": 1}},
        "at most 3 of 4 columns": {"at_most": {"brand": 3, "maker": 3, "colour": 3, "tags": 3}},
        "at most 20 of 4 columns": {"at_most": {"brand": 20, "maker": 20, "colour": 200, "tags": 800}},
        "all rules": {
            "diversity": 0.5,
            "distinct": 0.95,
            "pin": items[:100],
            "boost": boosts,
            "demote": demote,
            "at_most": {"brand": 20, "maker": 20, "colour": 200, "tags": 800},
        },
    }
    most = settings.max_slate_slots
    for name, rule in rules.items():
        k = min(most_k, most)
        each = max(1, most // most_users)
        yield one(f"{name}: one, last page", users=known[:1], k=k, offset=min(most - k, most_offset), **rule)
        yield one(f"{name}: described, k", history=history, k=k, **rule)
        yield one(f"{name}: {most // k} known, k", users=known[: most // k], k=k, **rule)
        described = _described(settings, items, taken=len(orjson.dumps(rule)))
        for kind, users in (("known", known), ("described", described), ("unknown", strangers)):
            yield one(f"{name}: {most_users} {kind}", users=users, k=min(most_k, each), **rule)
            some = settings.max_limited_users
            if {"at_most", "distinct"} & rule.keys():
                yield one(f"{name}: {some} {kind}", users=users[:some], k=min(most_k, most // some), **rule)
                yield one(f"{name}: {some} {kind}, k=10", users=users[:some], k=10, **rule)


def _described(settings: ServingConfig, items: Sequence[int], taken: int = 0) -> list[dict[str, Any]]:
    """Return as many people with histories as long as the largest body has room for."""
    room = settings.max_body_bytes - taken - 4096
    bytes_each = len(str(items[-1])) + 1
    length = min(settings.max_history, int(room / settings.max_users / bytes_each) - 20)
    starts = range(0, settings.max_users * 100, 100)
    return [{"history": list(items[start : start + length]), "attributes": {"age": 30}} for start in starts]


def answer(client: FlaskClient, case: Case) -> tuple[float, int, bytes]:
    """Return the seconds of processor time, the status and the body of an answer."""
    gc.collect()
    began = time.process_time()
    if case.body is None:
        response = client.get(case.path)
    else:
        response = client.post(case.path, data=orjson.dumps(case.body), content_type="application/json")
    return time.process_time() - began, response.status_code, response.data


def run(kind: str, client: FlaskClient, world: World, only: Sequence[str]) -> tuple[list[str], float]:
    """Ask everything of one application; return what failed, and the longest time of what did not."""
    failed, longest = [], 0.0
    for case in cases(ServingConfig(), world):
        if not _is_wanted(case.name, only):
            continue
        seconds, status, said = answer(client, case)
        for _ in range(TRIES - 1):
            if seconds > BAR / 2:
                seconds = min(seconds, answer(client, case)[0])
        refusal = "" if status == 200 else orjson.loads(said)["detail"][:90]
        is_good = seconds <= BAR and status in (200, 422)
        longest = max(longest, seconds) if is_good else longest
        verdict = "" if is_good else "FAILED "
        print(f"{kind:6} {case.name:52} {seconds:8.3f} s  {status}  {verdict}{refusal}", flush=True)
        if not is_good:
            failed.append(f"{kind}: {case.name}: {seconds:.2f} s, {status}")
    return failed, longest


def _is_wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(part in name for part in only)


def without_memory(client: FlaskClient, world: World) -> list[str]:
    """Ask for the most where next to no memory is left, in a process of its own, and then for little; return failures.

    What may be allocated is bounded by the address space of the process (`RLIMIT_AS`).
    """
    child = os.fork()
    if not child:
        _take_what_was_freed()
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))
        most = ServingConfig()
        large = {"users": world.known[: most.max_users], "k": most.max_k, "offset": most.max_offset}
        _, status, said = answer(client, Case("most", "/recommendations", large))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        _, after, _ = answer(client, Case("little", f"/recommendations/{world.known[0]}"))
        print(f"without memory: {status} {said[:300].decode()}, and then {after}", flush=True)
        os._exit(0 if (status, after) == (503, 200) and b"out_of_memory" in said else 1)
    _, ended = os.waitpid(child, 0)
    return [] if ended == 0 else [f"without memory: the process ended with {ended}"]


class _MallocInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _take_what_was_freed() -> None:
    """Allocate what earlier requests have freed and the process has kept, so that it is no memory that is left."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype = _MallocInfo, ctypes.c_void_p
    libc.malloc_trim(0)
    for size in (1 << 20, 1 << 16, 1 << 12):
        for _ in range(libc.mallinfo2().fordblks // size):
            libc.malloc(ctypes.c_size_t(size))


def main() -> None:
    """Ask, print, and exit with 1 where a request took too long."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of requests")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--items", type=int, default=ITEMS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    vectors, tastes, frame = catalogue_of(given.items)
    world = World(
        known=[FIRST_USER + user for user in range(LONG_HISTORIES)],
        items=list(range(given.items)),
        brands=frame["brand"].value_counts().index.tolist(),
    )
    failed: list[str] = []
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            plan = "exact" if kind == "live" else kind
            recommender = retriever_of(Path(folder) / kind, plan, vectors, tastes, frame)
            live = Path(folder) / "live.db" if kind == "live" else None
            if live is not None:
                write_live(live, given.items)
            where = None if live is None else str(live)
            settings = ServingConfig(timeout_seconds=FAR_OFF, log_requests="none", live=where)
            client = create_app(recommender, settings).test_client()
            columns = dict.fromkeys(("brand", "maker", "colour", "tags"), 1)
            warm = {"history": [1], "at_most": columns, "filter": {"price": {"min": 1}}}
            answer(client, Case("warm", "/recommendations", warm))
            some, most = run(kind, client, world, given.only)
            failed += some + (without_memory(client, world) if _is_wanted("without memory", given.only) else [])
            longest = max(longest, most)
    print(f"longest of what passed: {longest:.3f} s of {BAR:g} s")
    if failed:
        raise SystemExit(f"{len(failed)} exceeded the deadline {BAR:g} s:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
