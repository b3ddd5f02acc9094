"""Searches on the device and on the CPU: exact search, FAISS's indexes, `towers recommend`, Ray, the service."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tests.benchmarks.gpu.lines import Line, at_least, difference, measured, same
from tests.benchmarks.gpu.run import Run, SkippedError, seconds_of

if TYPE_CHECKING:
    from serving.search.faiss_index import ItemIndex
    from serving.search.results import Hits

K = 100
DEEP = 1000
"""Results of a search that goes through several levels of an approximate index."""
LOST = 0.01
"""How much lower the recall on a GPU may be than on the CPU: both probe the same lists, but round otherwise."""
NEAR = 1e-4


def exact_search(run: Run) -> Iterator[Line]:
    """Exact search for many users: the same rows, with and without exclusions, filter and half precision."""
    import torch

    from serving.search.brute_force import BruteForce
    from serving.search.results import AllowedItems, ExcludedPairs
    from serving.search.top_scores import top_scores
    from serving.search.vectors import HalfVectors
    from tests.serving.vectors import ragged

    num_users, num_items, _ = run.sizes.search
    vectors, queries = _vectors(run, num_items, num_users)
    on = {name: BruteForce(vectors, device) for name, device in run.devices.items()}
    drawn = np.random.default_rng(1)
    most = AllowedItems(drawn.random(num_items) < 0.7)
    few = AllowedItems(drawn.random(num_items) < 0.01)
    own = ragged([drawn.choice(num_items, 20, replace=False) for _ in range(num_users)])
    half = HalfVectors(vectors.astype(np.float16))
    halves = {name: BruteForce(half, device) for name, device in run.devices.items()}
    for what, search, excluded, allowed in (
        ("all items", on, None, None),
        ("without 20 items of each user", on, own, None),
        ("70 % of the items", on, own, most),
        ("1 % of the items", on, None, few),
        ("vectors in half precision", halves, None, None),
    ):
        pairs = ExcludedPairs.of(excluded, num_users, num_items, allowed)
        needed = np.minimum(K, (num_items if allowed is None else len(allowed)) - pairs.counts)
        found = {
            name: [rows.tolist() for rows, _ in one.best(queries, np.arange(num_users), needed, pairs, allowed)]
            for name, one in search.items()
        }
        yield same(f"exact search, {what}: users with the same rows", found["device"], found["cpu"])
    cost = {"flop": 2.0 * num_users * num_items * run.sizes.width, "num_bytes": 4.0 * num_items * run.sizes.width}
    scores = 4.0 * num_users * num_items
    nobody = ExcludedPairs.of(None, num_users, num_items)
    for name, device in run.devices.items():
        where = "the device" if name == "device" else "the CPU"
        bound = run.rate_bound(num_users, cost["flop"], cost["num_bytes"] + 2 * scores) if name == "device" else None
        note = "product, and scores written and read" if bound else ""
        items, users = (torch.from_numpy(one).to(device) for one in (vectors, queries[:256]))
        seconds = seconds_of(device, lambda users=users, items=items: top_scores(users, items, K, None, None))
        yield measured(f"top {K} of {num_items:,} items on {where}", len(users) / seconds, "users/s", bound, note=note)
        needed = np.full(num_users, K)
        began = time.perf_counter()
        for _ in on[name].best(queries, np.arange(num_users), needed, nobody):
            pass
        rate = num_users / (time.perf_counter() - began)
        yield measured(f"the same, ranked in double precision, on {where}", rate, "users/s", bound)


def _vectors(run: Run, items: int, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of items and users as trained towers make them, with copies of an item."""
    from tests.benchmarks.index import made

    vectors, queries = made(items, users, run.sizes.width)
    vectors[5:25] = vectors[3]
    return vectors, queries


def faiss_indexes(run: Run) -> Iterator[Line]:
    """Each kind of index that FAISS has on a GPU: as a copy and divided, against the CPU and exact search."""
    from serving.search.faiss_index import _ON_GPU, ItemIndex
    from serving.search.index_config import standard
    from tests.serving.vectors import some_allowed

    need_faiss(run)
    num_users, _, num_items = run.sizes.search
    vectors, queries = _vectors(run, num_items, min(num_users, 512))
    allowed, width = some_allowed(num_items, 0.5), run.sizes.width
    truth = ItemIndex.build(vectors).scan(queries, K)
    for kind in _ON_GPU:
        here = ItemIndex.build(vectors, standard(kind, num_items, width, [width // 2]))
        yield measured(f"{kind}: recall@{K} on the CPU", here.search(queries, K).share_of(truth))
        yield measured(f"{kind}: searches one by one on the CPU", _searches_per_second(here, queries), "searches/s")
        for device in ("cuda", "cuda-shards") if run.is_gpu else ("cpu",):
            there, name = here.to(device), f"{kind} on {device}"
            yield from _compared(run, name, there, here, queries, truth)
            exact = here.scan(queries[:64], K, None, allowed)
            shares = [one.search(queries[:64], K, allowed=allowed).share_of(exact) for one in (there, here)]
            yield at_least(f"{name}: recall with a filter", shares[0], shares[1] - LOST)


def _compared(
    run: Run, name: str, there: ItemIndex, here: ItemIndex, queries: np.ndarray, truth: Hits
) -> Iterator[Line]:
    """Compare an index on the device with the same on the CPU and with exact results, and say how fast it is."""
    found = there.search(queries, K)
    yield at_least(f"{name}: recall@{K}", found.share_of(truth), here.search(queries, K).share_of(truth) - LOST)
    alone = [_lists(there.search(queries[place : place + 1], K))[0] for place in range(8)]
    if here.is_exact:
        yield same(f"{name}: users with the same rows", *(_lists(one) for one in (found, truth)))
        yield same(f"{name}: users with the same rows, asked for alone", alone, _lists(found)[:8])
    else:  # which lists are probed is found by a matrix product, whose rounding depends on how many ask
        equal = np.mean([one == other for one, other in zip(alone, _lists(found), strict=False)])
        yield measured(f"{name}: users with the same rows, asked for alone", float(equal))
    deep = there.search(queries[:32], DEEP).share_of(here.search(queries[:32], DEEP))
    yield at_least(f"{name}: share of the CPU's results among {DEEP}", deep, 1 - 5 * LOST)
    compared = len(here) * (here.plan.prefix or here.width) if not here.plan.nlist else 0
    bound = run.rate_bound(1, num_bytes=4.0 * compared) if compared else None
    yield measured(f"{name}: searches one by one", _searches_per_second(there, queries), "searches/s", bound)
    seconds = seconds_of("cpu", lambda: there.search(queries, K), 1)  # which waits for the GPU by itself
    bound = run.rate_bound(len(queries), 2.0 * len(queries) * compared, 4.0 * compared) if compared else None
    yield measured(f"{name}: searches of {len(queries)} together", len(queries) / seconds, "searches/s", bound)


def _lists(hits: Hits) -> list[list[int]]:
    return [hits.of(user)[0].tolist() for user in range(len(hits))]


def _searches_per_second(index: ItemIndex, queries: np.ndarray, most: int = 64) -> float:
    some = [queries[place : place + 1] for place in range(min(most, len(queries)))]
    return len(some) / seconds_of("cpu", lambda: [index.search(one, K) for one in some], 1)


def need_faiss(run: Run) -> None:
    """Skip the step where FAISS cannot search on the device.

    Raises:
        SkippedError: It finds no GPU.
    """
    import faiss

    if run.is_gpu and faiss.get_num_gpus() == 0:
        built = "built for CPUs" if not hasattr(faiss, "StandardGpuResources") else "built for GPUs"
        raise SkippedError(
            f"FAISS {faiss.__version__} is {built} and finds no GPU; `make install DEVICE=gpu` brings faiss-gpu"
        )


def recommend(run: Run) -> Iterator[Line]:
    """`towers index`, then `towers recommend` with the setting `device` for either: the same rows and scores."""
    need_faiss(run)
    run.towers("index", "runs/cpu", "--precompute", "0")
    found = {}
    for name, device in run.devices.items():
        output = f"recommended-{name}.parquet"
        began = time.perf_counter()
        run.towers("recommend", "runs/cpu", "--k", "20", "--output", output, TOWERS_DEVICE=device)
        found[name] = pd.read_parquet(run.shop / output)
        where = "device" if name == "device" else "CPU"
        yield measured(f"towers recommend on the {where}, with its start", time.perf_counter() - began, "s")
    for column in found["cpu"]:
        yield same(f"towers recommend: {column}", *(one[column].tolist() for one in found.values()))


def ray(run: Run) -> Iterator[Line]:
    """`towers index --engine ray`: an actor on the device encodes the items, with the vectors of the CPU."""
    if find_spec("ray") is None:
        raise SkippedError("Ray is not installed; the extra `ray` brings it")
    from safetensors.numpy import load_file

    found = []
    for engine in (("--engine", "ray", "--actors", "1"), ()):
        shutil.rmtree(run.shop / "runs" / "cpu" / "index", ignore_errors=True)
        run.towers("index", "runs/cpu", "--precompute", "0", *engine, TOWERS_DEVICE=run.device)
        found.append(load_file(run.shop / "runs" / "cpu" / "index" / "vectors.safetensors")["items"])
    yield difference("towers index --engine ray: vectors of items", *found, NEAR)


def service(run: Run) -> Iterator[Line]:
    """A service with the setting `device` for either: the same answers to requests of every kind."""
    from tests.benchmarks.harness import ask, serving

    need_faiss(run)
    run.towers("index", "runs/cpu", "--precompute", "0")
    events = pd.read_parquet(run.shop / "events.parquet")
    users, items = events["user_id"].unique()[:10].tolist(), events["item_id"].unique()[:20].tolist()
    brand = pd.read_parquet(run.shop / "items.parquet")["brand"].iloc[0]
    requests: list[tuple[str, str, Any]] = [
        *(("GET", f"/recommendations/{user}?k=20", None) for user in users),
        ("POST", "/recommendations", {"history": items[:5], "k": 20}),
        ("POST", "/recommendations", {"users": users, "k": 20, "exclude": items}),
        ("POST", "/recommendations", {"history": items[:5], "filter": {"brand": brand}}),
        ("GET", f"/items/{items[0]}/similar?k=20", None),
    ]
    answers: dict[str, list[Any]] = {}
    for name, device in run.devices.items():
        with serving(run.shop, {"device": device}, "runs/cpu") as server:
            asked = [ask(server.port, *request) for request in requests]
            answers[name] = [(one.status, json.loads(one.body)) for one in asked]
            seconds = seconds_of("cpu", lambda port=server.port: [ask(port, *one) for one in requests[:10]])
        where = "device" if name == "device" else "CPU"
        yield measured(f"requests one by one, searched on the {where}", 10 / seconds, "requests/s")
    statuses = [status for status, _ in answers["cpu"]]
    yield same("requests that are answered", statuses, [200] * len(requests))
    yield same("answers of the service", answers["device"], answers["cpu"])
