"""The index on a large catalogue: our tuned choice against FAISS tuned by hand, the smallest index, filtered search.

    python tests/benchmarks/index.py --only speed     [--items 1000000] [--width 64] [--bundle runs/latest]
    python tests/benchmarks/index.py --only memory
    python tests/benchmarks/index.py --only filters

Without `--bundle` the vectors are made to look like those of trained towers (`made`): families of groups of items, the
groups of very uneven size, a direction that all share, numbers of falling variance; users are mixtures of three items
with noise. With `--bundle` they are a bundle's own, its catalogue grown to `--items` by moving items by the difference
of two others of their partition.

Searches are one at a time, in one thread, for 100 items, as in a server. Each index, ours and FAISS's, is tuned with
two thirds of the users and judged with the last. What is compared is measured in turns, so that all see the same
machine.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file
from tqdm import tqdm

from serving.search.faiss_index import ItemIndex, kmeans, num_threads_set
from serving.search.index_config import IndexKind, default_nlist
from serving.search.results import AllowedItems, Hits
from serving.search.tuning import Measured, Tuning, sample_of, thirds, tune
from serving.search.vectors import blocks_of
from towers.bundle.bundle import ModelBundle

K = 100
# From so many items on, what is tried by hand is tried on a tenth of them first, and those that come so near to the
# fastest of their family are built in full.
MANY, NEAR = 500_000, 0.7
SHARES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0)
Search = Callable[[np.ndarray], np.ndarray]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made(
    items: int, users: int, width: int, seed: int = 0, catalogue: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of items and users as trained towers make them, those of items in the given array; see above."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, width + 1) ** -0.25
    scale /= np.linalg.norm(scale)

    def drawn(count: int) -> np.ndarray:
        return (rng.standard_normal((count, width), dtype=np.float32) * scale).astype(np.float32)

    families = drawn(max(4, items // 1000))
    sizes = rng.pareto(1.2, size=max(8, items // 40)) + 1
    groups = families[rng.integers(len(families), size=len(sizes))] + 0.75 * drawn(len(sizes))
    chosen = rng.choice(len(sizes), size=items, p=sizes / sizes.sum())
    common = 0.7 * drawn(1)
    catalogue = np.empty((items, width), np.float32) if catalogue is None else catalogue
    for block in blocks_of(items):
        catalogue[block] = unit(common + groups[chosen[block]] + 0.65 * drawn(block.stop - block.start))
    tastes = sum(
        catalogue[rng.integers(items, size=users)] * rng.exponential(size=(users, 1)).astype(np.float32)
        for _ in range(3)
    )
    return catalogue, unit(unit(np.asarray(tastes)) + 0.75 * drawn(users))


def of_bundle(path: Path, items: int, users: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of a bundle's index, its items grown to a number; see above."""
    vectors = load_file(path / "index" / "vectors.safetensors")
    if "users" not in vectors:
        raise SystemExit(f"{path}: its users' vectors depend on the time of asking and are not in its index")
    catalogue, rng = vectors["items"], np.random.default_rng(seed)
    missing = max(0, items - len(catalogue))
    partitions = kmeans(catalogue, default_nlist(len(catalogue)))
    order = np.argsort(partitions.of_item, kind="stable")
    starts = np.searchsorted(partitions.of_item[order], np.arange(len(partitions.centres) + 1))
    moved = rng.integers(len(catalogue), size=missing)
    first, size = starts[partitions.of_item[moved]], np.diff(starts)[partitions.of_item[moved]]
    one, other = (order[first + (rng.random(missing) * size).astype(int)] for _ in range(2))
    grown = unit(catalogue[moved] + catalogue[one] - catalogue[other]) if missing else catalogue[:0]
    return np.concatenate([catalogue, grown]), sample_of(vectors["users"])[:users]


@dataclass(frozen=True)
class Rival:
    """An index of FAISS as a person would build it.

    Attributes:
        family: Which sort of index.
        size: Links of an item, or how many times the root of the number of items there are lists.
        code: How FAISS's factory calls what an item is in a list.
    """

    family: str
    size: int
    code: str = ""

    def build(self, vectors: np.ndarray) -> faiss.Index:
        """Return the index over the vectors."""
        items, width = vectors.shape
        if self.family == "HNSW":
            index = faiss.IndexHNSWFlat(width, self.size, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 200
        else:
            lists = 2 ** round(np.log2(items**0.5 * self.size))
            index = faiss.index_factory(width, f"IVF{lists},{self.code}", faiss.METRIC_INNER_PRODUCT)
            faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1
        index.train(vectors)
        index.add(vectors)
        return index

    def ladders(self, index: faiss.Index) -> list[list[tuple[str, object]]]:
        """Return efforts of a search by name, in ladders that find more on each rung."""
        if self.family == "HNSW":
            beams = [round(64 * 2 ** (step / 4)) for step in range(25)]
            return [[(f"efSearch={beam}", faiss.SearchParametersHNSW(efSearch=beam)) for beam in beams]]
        most = faiss.extract_index_ivf(index).nlist
        counts = sorted({round(2 ** (step / 4)) for step in range(4, int(4 * np.log2(most)) + 1)})
        probes = [(f"nprobe={count}", faiss.SearchParametersIVF(nprobe=count)) for count in counts]
        if self.family == "IVF":
            return [probes]
        return [
            [
                (
                    f"{name} k_factor={factor}",
                    faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=parameters),
                )
                for name, parameters in probes
            ]
            for factor in (1, 2, 4, 8, 16)
        ]

    def __str__(self) -> str:
        """Return its name."""
        return f"HNSW{self.size}" if self.family == "HNSW" else f"IVF {self.size} x root,{self.code}"


BAR = [
    *(Rival("HNSW", links) for links in (16, 32, 64)),
    *(Rival("IVF", factor, code) for factor in (1, 2, 4) for code in ("Flat", "SQ8")),
]
"""What the bar is about."""
SCANNING = "IVF with fast scan"
"""The sort that ours is nearest to; shown beside, since few build it by hand."""


def rivals(width: int) -> list[Rival]:
    """Return every index that is tried for vectors of a width."""
    scanning = [
        Rival(SCANNING, factor, f"PQ{width // share}x4fs,RFlat")
        for factor in (1, 2, 4)
        for share in (1, 2)
        if width % 2 == 0
    ]
    return [*BAR, *scanning]


@dataclass(frozen=True)
class Tuned:
    """A rival at the least effort that finds enough: how it searches, what it finds, how many times a second."""

    rival: Rival
    effort: str
    search: Search
    recall: float
    speed: float

    def __str__(self) -> str:
        """Return a line for people."""
        return f"{f'{self.rival} {self.effort}':54}{self.recall:.4f}{self.speed:10,.0f}"


def recall(rows: np.ndarray, true: Hits) -> float:
    """Return the share of the true items that are among the found ones."""
    return float(np.mean([len(np.intersect1d(found, true.of(user)[0])) / K for user, found in enumerate(rows)]))


def tuned(
    rival: Rival, vectors: np.ndarray, users: list[np.ndarray], truths: list[Hits], wanted: float
) -> Tuned | None:
    """Return a rival at the fastest of its least efforts that find enough for each part of the users, if any does."""
    index = rival.build(vectors)
    best: Tuned | None = None
    for ladder in rival.ladders(index):

        def searching(parameters: object) -> Search:
            return lambda queries: np.asarray(index.search(queries, K, params=parameters)[1])

        def found(rung: int, ladder: list[tuple[str, object]] = ladder) -> float:
            return min(recall(searching(ladder[rung][1])(part), true) for part, true in zip(users, truths, strict=True))

        rung = bisect.bisect_left(range(len(ladder)), wanted, key=found)
        if rung < len(ladder):
            effort, parameters = ladder[rung]
            speed = in_turns(users[-1], {"it": searching(parameters)}, users=64)["it"]
            if best is None or speed > best.speed:
                best = Tuned(rival, effort, searching(parameters), found(rung), speed)
    return best


def tuned_by_hand(vectors: np.ndarray, users: list[np.ndarray], truths: list[Hits], wanted: float) -> list[Tuned]:
    """Return the fastest of each family that finds enough.

    Where items are many, all are tried on a tenth of them first, and of each family only those that come near its
    fastest there are built in full.
    """
    trying = rivals(vectors.shape[1])
    if len(vectors) >= MANY:
        some = np.ascontiguousarray(vectors[::10])
        exact = ItemIndex.build(some)
        rough = _each(trying, some, users, [exact.scan(part, K) for part in users], wanted, "on a tenth")
        fastest = {one.rival.family: one.speed for one in sorted(rough, key=lambda one: one.speed)}
        trying = [one.rival for one in rough if one.speed >= NEAR * fastest[one.rival.family]]
    full = _each(trying, vectors, users, truths, wanted, "in full")
    return list({one.rival.family: one for one in sorted(full, key=lambda one: one.speed)}.values())


def _each(
    trying: list[Rival], vectors: np.ndarray, users: list[np.ndarray], truths: list[Hits], wanted: float, what: str
) -> list[Tuned]:
    results = []
    print(f"FAISS by hand {what}, the least effort of each that finds enough:")
    for rival in tqdm(trying, desc=f"FAISS by hand, {what}", unit=" indexes", disable=None, leave=False):
        result = tuned(rival, vectors, users, truths, wanted)
        print(f"  {result}" if result else f"  {rival}: finds too little", flush=True)
        results += [result] if result else []
    return results


def in_turns(queries: np.ndarray, searches: dict[str, Search], users: int = 200, rounds: int = 6) -> dict[str, float]:
    """Return searches per second, one user at a time in one thread; each user is searched for by each in turn.

    In several rounds, of which each user's fastest counts: what else the machine does only slows.
    """
    fastest = {name: np.full(min(users, len(queries)), np.inf) for name in searches}
    with num_threads_set(1):
        for turn in range(rounds):
            for user in range(min(users, len(queries))):
                # Whoever comes second finds the user's surroundings in the cache.
                for name, search in sorted(searches.items(), reverse=bool((turn + user) % 2)):
                    began = time.perf_counter()
                    search(queries[user : user + 1])
                    fastest[name][user] = min(fastest[name][user], time.perf_counter() - began)
    return {name: float(1 / seconds.mean()) for name, seconds in fastest.items()}


def compare_speed(vectors: np.ndarray, queries: np.ndarray, wanted: float, prefixes: list[int]) -> None:
    """Print our tuned choice beside the best of each family of FAISS's."""
    print(f"\nSearches a second at recall@{K} of {wanted:g}")
    tuning = _tuned(vectors, queries, wanted, prefixes=prefixes)
    *deciding, judging = thirds(sample_of(queries))
    by_hand = tuned_by_hand(vectors, deciding, [tuning.index.scan(part, K) for part in deciding], wanted)
    ours: Search = lambda queries: tuning.index.search(queries, K).rows.reshape(len(queries), K)  # noqa: E731
    searches = {"ours": ours} | {one.rival.family: one.search for one in by_hand}
    speeds = in_turns(judging, searches)
    true = tuning.index.scan(judging, K)
    print("In turns, with users who had no part in tuning any of them:")
    plans = {"ours": str(tuning.chosen.plan)} | {one.rival.family: f"{one.rival} {one.effort}" for one in by_hand}
    for name, what in plans.items():
        print(f"  {name:20}{what:54}{recall(searches[name](judging), true):.4f}{speeds[name]:10,.0f}")
    best = max(speeds[family] for family in {rival.family for rival in BAR} & speeds.keys())
    print(f"ours / the best HNSW or IVF by hand: {speeds['ours'] / best:.2f} (bar 0.95, moonshot 1.2)")
    if SCANNING in speeds:
        print(f"ours / the best {SCANNING} by hand: {speeds['ours'] / speeds[SCANNING]:.2f} (no bar)")


def compare_memory(vectors: np.ndarray, queries: np.ndarray, wanted: float, prefixes: list[int]) -> None:
    """Print the smallest index that finds enough: of the kinds that keep the least of each item, then of the others."""
    print(f"\nThe smallest index with recall@{K} of {wanted:g} after re-scoring")
    smallest: Measured | None = None
    kinds: list[IndexKind] = ["pq", "rabitq", "sq4", "sq8"]
    for kind in kinds:
        tuning = _tuned(vectors, queries, wanted, kind, prefixes)
        enough = [one for one in (*tuning.tried, *([smallest] if smallest else [])) if one.recall >= wanted]
        smallest = min(enough, key=lambda one: one.num_bytes, default=None)
        if smallest is not None and kind == "rabitq":
            break
    assert smallest is not None, "a byte a number, compared again with the vectors, finds enough"
    megabytes, share = smallest.num_bytes / 1e6, smallest.num_bytes / vectors.nbytes
    print(
        f"{smallest.plan}: {megabytes:,.1f} MB, {share:.3f} of the vectors' {vectors.nbytes / 1e6:,.1f} MB (bar 0.25, "
        f"moonshot 0.1), recall {smallest.recall:.4f}, {smallest.searches_per_second:,.0f} searches a second; the "
        f"vectors stay on disk, and a search reads {smallest.plan.oversampling * K:,} of them"
    )


def _tuned(
    vectors: np.ndarray, queries: np.ndarray, wanted: float, kind: IndexKind | None = None, prefixes: Sequence[int] = ()
) -> Tuning:
    with tqdm(desc="Ours", unit=" kinds", disable=None, leave=False) as bar:
        show = functools.partial(_show, bar)
        tuning = tune(vectors, queries, wanted, kind, prefixes=prefixes, trying=show)
    print(tuning.table(), flush=True)
    return tuning


def compare_filters(vectors: np.ndarray, queries: np.ndarray, wanted: float) -> None:
    """Print recall and speed of filtered searches beside comparing every allowed item."""
    index = _tuned(vectors, queries, wanted, "ivf-pq").index
    asking = thirds(sample_of(queries))[-1][:100]
    print(f"\nFiltered search with {index.plan}, beside comparing every allowed item (bars: recall 0.98, speed 1)")
    print(f"{'filter':30}{'allowed':>12}{'recall@10':>11}{'recall@100':>12}{'speed@10':>10}{'speed@100':>11}")
    rng = np.random.default_rng(11)
    partitions = kmeans(index.vectors, 64).of_item
    lines = []
    for kind in ("of any sort", "of some partitions"):
        for share in SHARES:
            mask = rng.random(len(index)) < share
            if kind == "of some partitions":
                # What fits lies together, as a category does, and a few users are near it.
                order = rng.permutation(64)
                near = np.cumsum(np.bincount(partitions, minlength=64)[order]) <= share * len(index)
                mask = np.isin(partitions, order[near]) if near.any() else mask & (partitions == order[0])
            if mask.any():
                lines.append(_filtered(index, asking, AllowedItems(mask)))
                found, speed = (
                    "".join(f"{one:11.{digits}f}" for one in half)
                    for half, digits in zip(lines[-1], (4, 2), strict=True)
                )
                print(f"{f'{share:8.2%} {kind}':30}{np.count_nonzero(mask):12,}{found}{speed}", flush=True)
    recalls, speeds = (np.array([line[half] for line in lines]) for half in (0, 1))
    print(f"the least recall {recalls.min():.4f} (bar 0.98), the least speed {speeds.min():.2f} (bar 1)")


def _filtered(index: ItemIndex, queries: np.ndarray, allowed: AllowedItems) -> tuple[list[float], list[float]]:
    """Return recall and relative speed for 10 and for 100 items."""
    found, ratios = [], []
    for k in (10, K):
        true = index.scan(queries, k, allowed=allowed)
        hits = Hits.join([index.search(query[None], k, allowed=allowed).of(0) for query in queries])
        assert (np.diff(hits.offsets) == min(k, len(allowed))).all(), "an answer came back short"
        assert allowed.mask[hits.rows].all(), "an answer holds what does not fit"
        found.append(hits.share_of(true))
        searches: dict[str, Search] = {
            "search": lambda query, k=k: index.search(query, k, allowed=allowed).rows,  # type: ignore[misc]
            "scan": lambda query, k=k: index.scan(query, k, allowed=allowed).rows,  # type: ignore[misc]
        }
        speeds = in_turns(queries, searches, users=40)
        ratios.append(speeds["search"] / speeds["scan"])
    return found, ratios


def _show(bar: tqdm, done: int, total: int, what: str) -> None:
    bar.total = total
    bar.set_description(f"Trying {what}", refresh=False)
    bar.update(done - bar.n)


def main() -> None:
    """Make or read the vectors, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64, help="numbers in a vector, without --bundle")
    parser.add_argument("--users", type=int, default=1500)
    parser.add_argument(
        "--prefixes", type=int, nargs="*", default=[], help="as towers.matryoshka_dims, without --bundle"
    )
    parser.add_argument("--bundle", type=Path, help="a bundle with an index, whose vectors are taken")
    parser.add_argument("--recall", type=float, default=0.99, help="for the comparison of speed")
    parser.add_argument(
        "--only", nargs="+", choices=["speed", "memory", "filters"], default=["speed", "memory", "filters"]
    )
    given = parser.parse_args()
    prefixes = given.prefixes
    if given.bundle:
        vectors, queries = of_bundle(given.bundle, given.items, given.users)
        prefixes = ModelBundle.open(given.bundle).config.towers.matryoshka_dims
    else:
        vectors, queries = made(given.items, given.users, given.width)
    print(f"{len(vectors):,} items of {vectors.shape[1]}, {len(queries):,} users, {given.bundle or 'made'}")
    if "speed" in given.only:
        compare_speed(vectors, queries, given.recall, prefixes)
    if "memory" in given.only:
        compare_memory(vectors, queries, 0.98, prefixes)
    if "filters" in given.only:
        compare_filters(vectors, queries, given.recall)


if __name__ == "__main__":
    main()
