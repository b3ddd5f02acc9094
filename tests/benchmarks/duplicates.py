"""Near-duplicates among a million items: how long it takes, and which share of the true pairs is found.

    python tests/benchmarks/duplicates.py [--items 1000000] [--width 64] [--threshold 0.95] [--copies 0.1]
                                          [--bundle runs/latest] [--rival]

Vectors are those of tests/benchmarks/index.py, made to look like trained ones, or a bundle's own grown to a number. A
share of them is replaced by near-copies of others, whose cosines with these spread from 0.9 to 1. The truth is FAISS's
exact range search for a sample of items, other ones than those by which the search tunes itself. Its time for the whole
catalogue is that of the sample times their ratio: what comparing every pair would take. With `--rival` FAISS's IVF is
also run, over as many partitions, with the least probes of a doubling ladder that find as many of the sample's pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from tqdm import tqdm

from serving.jobs.duplicates import Duplicates, find_duplicates
from serving.search.index_config import default_nlist
from tests.benchmarks.index import made, of_bundle, unit

SAMPLE = 1000
SECONDS, RECALL = 300, 0.95
"""The bars, for a million items of 64 numbers on two cores."""
Pairs = set[tuple[int, int]]


def with_near_copies(vectors: np.ndarray, share: float, seed: int = 3) -> np.ndarray:
    """Return the vectors, a share of them replaced by near-copies of others with cosines from 0.9 to 1."""
    rng = np.random.default_rng(seed)
    copies = rng.permutation(len(vectors))[: int(share * len(vectors))]
    originals = vectors[rng.integers(len(vectors), size=len(copies))]
    aside = rng.standard_normal(originals.shape, dtype=np.float32)
    aside = unit(aside - np.vecdot(aside, originals)[:, None] * originals)
    cosines = rng.uniform(0.9, 1.0, size=(len(copies), 1)).astype(np.float32)
    changed = vectors.copy()
    changed[copies] = unit(cosines * originals + np.sqrt(1 - cosines**2) * aside)
    return changed


def pairs_of(sample: np.ndarray, search: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Pairs:
    """Return the pairs that a range search of FAISS found for the sample."""
    limits, _, rows = search()
    asked = np.repeat(sample, np.diff(limits.astype(np.int64)))
    pairs = np.sort(np.stack([asked, rows], axis=1)[asked != rows], axis=1)
    return set(map(tuple, pairs.tolist()))


def of_sample(found: Duplicates, sample: np.ndarray) -> Pairs:
    """Return the pairs that were found with an item of the sample."""
    chosen = np.isin(found.rows, sample) | np.isin(found.others, sample)
    return set(zip(found.rows[chosen].tolist(), found.others[chosen].tolist(), strict=True))


def rival(vectors: np.ndarray, sample: np.ndarray, threshold: float, truth: Pairs, wanted: float) -> tuple[str, float]:
    """Return what FAISS's IVF needs to find as many of the sample's pairs, and its seconds for the whole catalogue."""
    began = time.perf_counter()
    index = faiss.index_factory(vectors.shape[1], f"IVF{default_nlist(len(vectors))},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    built = time.perf_counter() - began
    index.nprobe = 1
    while True:
        found = pairs_of(sample, lambda: index.range_search(vectors[sample], threshold))
        recall = len(found & truth) / len(truth)
        if recall >= wanted or index.nprobe >= index.nlist:
            break
        index.nprobe *= 2
    began = time.perf_counter()
    for start in tqdm(range(0, len(vectors), 1 << 15), desc="FAISS IVF", disable=None, leave=False):
        index.range_search(vectors[start : start + (1 << 15)], threshold)
    return f"IVF{index.nlist},Flat nprobe={index.nprobe}, recall {recall:.4f}", built + time.perf_counter() - began


def main() -> None:
    """Make or read the vectors, find what is alike, and compare with the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64, help="numbers in a vector, without --bundle")
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--copies", type=float, default=0.1, help="the share of near-copies")
    parser.add_argument("--bundle", type=Path, help="a bundle with an index, whose vectors are taken")
    parser.add_argument("--rival", action="store_true", help="run FAISS's IVF beside ours")
    given = parser.parse_args()
    vectors = of_bundle(given.bundle, given.items, 1)[0] if given.bundle else made(given.items, 1, given.width)[0]
    vectors = with_near_copies(vectors, given.copies)
    print(f"{len(vectors):,} items of {vectors.shape[1]}, {given.bundle or 'made'}, {given.copies:.0%} near-copies")
    began = time.perf_counter()
    with tqdm(unit=" partitions", desc="Ours", disable=None, leave=False) as bar:
        found = find_duplicates(vectors, given.threshold, progress=lambda done, total: _show(bar, done, total))
    seconds = time.perf_counter() - began
    sample = np.sort(np.random.default_rng(99).permutation(len(vectors))[:SAMPLE])
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    began = time.perf_counter()
    truth = pairs_of(sample, lambda: flat.range_search(vectors[sample], given.threshold))
    exact = (time.perf_counter() - began) * len(vectors) / len(sample)
    ours = of_sample(found, sample)
    recall = len(ours & truth) / max(1, len(truth))
    own = "not measured" if found.recall is None else f"{found.recall:.4f}"
    groups = f"{found.num_groups:,} groups of {found.num_grouped:,} items"
    print(f"{len(found.rows):,} pairs at {given.threshold:g} in {groups}")
    print(f"ours                      {seconds:10.1f} s   (bar {SECONDS} for a million items of 64)")
    print(f"recall of pairs           {recall:10.4f}     of {len(truth):,} of a sample (bar {RECALL}); it says {own}")
    print(f"FAISS, every pair         {exact:10.1f} s   by {len(sample):,} items; {exact / seconds:.1f} times as long")
    if given.rival:
        name, taken = rival(vectors, sample, given.threshold, truth, recall)
        print(f"FAISS, {name} {taken:10.1f} s   {taken / seconds:.1f} times as long")


def _show(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


if __name__ == "__main__":
    main()
