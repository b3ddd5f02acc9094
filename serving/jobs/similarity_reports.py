"""`towers duplicates` and `towers clusters`: write tables, and print a summary."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from features.columns import item_texts
from features.errors import DataError
from features.files import atomic_file
from features.ids import ITEM_ID
from serving.config import ServingConfig
from serving.jobs.clusters import Clusters, make_clusters, typical_words
from serving.jobs.duplicates import Duplicates, find_duplicates
from serving.jobs.open import open_recommender
from serving.recommend.recommender import Recommender

_SHOWN = 10
_EXAMPLES = 3
_LETTERS = 40


def report_duplicates(
    bundle: Path, threshold: float, output: Path, pairs: Path | None, settings: ServingConfig | None = None
) -> None:
    """Find the near-duplicates in a bundle's index, write their groups, and print a summary.

    Args:
        bundle: The folder of the bundle; its index is built if there is none.
        threshold: The minimum cosine of a pair.
        output: The file of groups.
        pairs: The file of pairs. None: they are not written.
        settings: The settings of the service. None: the defaults.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: A file cannot be written, or there are too many pairs.
    """
    for path in (output, *([] if pairs is None else [pairs])):
        _refuse_folder(path)
    recommender = open_recommender(bundle, settings)
    index = recommender.snapshot.index
    started = time.perf_counter()
    with tqdm(unit=" partitions", desc="Comparing", disable=None, leave=False) as bar:
        partitions = None if index.plan.tail else index.partitions  # those of an index are of whole vectors
        found = find_duplicates(index.embeddings, threshold, partitions, lambda done, total: _show(bar, done, total))
    seconds = time.perf_counter() - started
    _write(output, _groups_table(recommender, found))
    if pairs is not None:
        _write(pairs, _pairs_table(recommender, found))
    click.echo(_summary(found, len(index), seconds))
    for line in _group_lines(recommender, found):
        click.echo(line)
    click.echo(f"\n{output}: {found.num_grouped:,} items in {found.num_groups:,} groups")
    if pairs is not None:
        click.echo(f"{pairs}: {len(found.rows):,} pairs")


def report_clusters(
    bundle: Path, num_clusters: int | None, output: Path, settings: ServingConfig | None = None
) -> None:
    """Divide the items of a bundle's index into clusters, name, write and print them.

    Args:
        bundle: The folder of the bundle; its index is built if there is none.
        num_clusters: Number of clusters. None: a default by the size of the catalogue.
        output: The file to write.
        settings: The settings of the service. None: the defaults.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: The file cannot be written, or there are fewer items than clusters.
    """
    _refuse_folder(output)
    recommender = open_recommender(bundle, settings)
    num_items = len(recommender.state.items)
    if num_clusters is not None and num_clusters > num_items:
        raise DataError(
            f"--clusters {num_clusters:,}: expected at most the number of items, {num_items:,}; choose a lower number"
        )
    clusters = make_clusters(recommender.snapshot.index.embeddings, num_clusters)
    titles = recommender.snapshot.catalog.titles(recommender.bundle.config.features.title)
    names = _names(recommender, clusters, titles)
    ids = pa.array(recommender.state.items.ids)
    name_of_item = pa.array(names).take(pa.array(clusters.of_item))
    columns = {ITEM_ID: ids, "cluster": clusters.of_item, "name": name_of_item, "score": clusters.scores}
    _write(output, pa.table(columns))
    for line in _cluster_lines(recommender, clusters, names, titles):
        click.echo(line)
    click.echo(f"\n{output}: {num_items:,} items in {clusters.num_clusters:,} clusters")


def _groups_table(recommender: Recommender, found: Duplicates) -> pa.Table:
    """Return the items of the groups, within a group by falling number of interactions."""
    interactions = recommender.snapshot.interactions
    rows = np.flatnonzero(found.group_of >= 0)
    rows = rows[np.lexsort((rows, -interactions[rows], found.group_of[rows]))]
    groups = found.group_of[rows]
    nearest, scores = _nearest(found)
    ids = pa.array(recommender.state.items.ids)
    return pa.table(
        {
            "group": groups,
            "place": np.arange(len(rows)) - np.searchsorted(groups, groups) + 1,
            ITEM_ID: ids.take(pa.array(rows)),
            "interactions": interactions[rows],
            "nearest_id": ids.take(pa.array(nearest[rows])),
            "score": scores[rows],
        }
    )


def _nearest(found: Duplicates) -> tuple[np.ndarray, np.ndarray]:
    """Return the most similar item of each item, and their cosine; undefined for items without a pair."""
    one, other = np.concatenate([found.rows, found.others]), np.concatenate([found.others, found.rows])
    both = np.concatenate([found.scores, found.scores])
    best_last = np.lexsort((-other, both))
    nearest = np.zeros(len(found.group_of), dtype=np.int64)
    scores = np.zeros(len(found.group_of), dtype=np.float32)
    nearest[one[best_last]], scores[one[best_last]] = other[best_last], both[best_last]
    return nearest, scores


def _pairs_table(recommender: Recommender, found: Duplicates) -> pa.Table:
    ids = pa.array(recommender.state.items.ids)
    one, other = ids.take(pa.array(found.rows)), ids.take(pa.array(found.others))
    return pa.table({ITEM_ID: one, "other_id": other, "score": found.scores})


def _summary(found: Duplicates, num_items: int, seconds: float) -> str:
    redundant = found.num_grouped - found.num_groups
    measured = "not measured, too few pairs" if found.recall is None else f"{found.recall:.3f}"
    middle, high = (float(np.quantile(found.nearest, share)) for share in (0.5, 0.99))
    return (
        f"{num_items:,} items: {found.num_grouped:,} in {found.num_groups:,} groups of near-duplicates at threshold "
        f"{found.threshold:g}, {redundant:,} of them redundant; {seconds:.1f} s, recall of pairs {measured}\n"
        f"Cosine with the nearest other item: median {middle:.3f}, 99th percentile {high:.3f}."
    )


def _group_lines(recommender: Recommender, found: Duplicates) -> list[str]:
    """Return a line for each of the largest groups: its size, and its items with the most interactions."""
    titles = recommender.snapshot.catalog.titles(recommender.bundle.config.features.title)
    interactions = recommender.snapshot.interactions
    lines = []
    for group in range(min(_SHOWN, found.num_groups)):
        rows = np.flatnonzero(found.group_of == group)
        lines.append(f"{len(rows):8,}  {_examples(titles, rows[np.argsort(-interactions[rows], kind='stable')])}")
    return [f"{'items':>8}  the largest groups", *lines] if lines else []


def _names(recommender: Recommender, clusters: Clusters, titles: list[str]) -> list[str]:
    """Return the typical words of each cluster; the title of its most central item if the items have no texts."""
    features = recommender.bundle.config.features
    texts = item_texts(recommender.snapshot.catalog, features.item)
    if texts is None:
        texts = titles if features.title is not None else [""] * len(titles)
    words = typical_words(clusters, texts)
    return [
        ", ".join(some) if some else f"like {titles[clusters.nearest(cluster, 1)[0]]}"
        for cluster, some in enumerate(words)
    ]


def _cluster_lines(recommender: Recommender, clusters: Clusters, names: list[str], titles: list[str]) -> list[str]:
    """Return a line for each cluster: its size, its share of all interactions, its name, and typical items."""
    counts = np.bincount(clusters.of_item, weights=recommender.snapshot.interactions, minlength=clusters.num_clusters)
    shares = counts / max(1.0, counts.sum())
    sizes = np.bincount(clusters.of_item, minlength=clusters.num_clusters)
    lines = [f"{'items':>8} {'share':>7}  name and typical items (share: of all interactions)"]
    for cluster, name in enumerate(names):
        typical = _examples(titles, clusters.nearest(cluster, _EXAMPLES))
        lines.append(f"{sizes[cluster]:8,} {shares[cluster]:7.1%}  {name}: {typical}")
    return lines


def _examples(titles: list[str], rows: np.ndarray) -> str:
    shown = [_short(titles[row]) for row in rows[:_EXAMPLES].tolist()]
    return " | ".join(shown) + (" | ..." if len(rows) > _EXAMPLES else "")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file to write, such as {path / 'items.parquet'}")


def _write(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
