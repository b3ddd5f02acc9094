"""Near-duplicate items: pairs whose cosine is above a threshold, and groups connected by pairs.

The cost of comparing every pair is quadratic. Instead the items are divided into partitions, and each is compared with
the items of the few partitions nearest to it: a pair is found if either of the two visits the partition of the other.
The necessary number of visited partitions is measured with a sample that is compared with all items. For a million
items, 2,048 partitions and 8 visited partitions, an item is compared with about ten thousand others, in matrix
products, instead of a million.

Items whose vectors agree to four decimals count as copies of the first of them, and each copy has one pair, with that
one: so ten thousand copies are ten thousand pairs and not fifty million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float32, Int64
from scipy.sparse.csgraph import connected_components

from features.errors import DataError
from serving.search.faiss_index import kmeans
from serving.search.index_config import default_nlist
from serving.search.partitions import Partitions
from serving.search.results import ROUNDING

Progress = Callable[[int, int], None]

MAX_PAIRS = 20_000_000
"""Maximum number of pairs; if there are more, the threshold is too low."""

# Up to this number of items every pair is compared, which takes about a second.
_COMPARED_ALL = 20_000
_SAMPLE = 2_000
_MEASURED_PAIRS = 20_000
# Target recall for the true pairs of one half of the sample; the recall that is reported is that of the other half.
_WANTED = 0.98
# With fewer true pairs than this, recall is not measured, and the usual number of partitions is visited.
_FEWEST_PAIRS = 40
_USUAL_LOOKS = 8
_MOST_LOOKS = 64
# Number of scores in memory at a time, 16 MB, so that they stay in the processor's cache.
_CELLS = 1 << 22
_ROWS = 1 << 16
_DECIMALS = 4
_SEED = 2


@dataclass(frozen=True)
class Duplicates:
    """The near-duplicates of a catalogue.

    Attributes:
        threshold: The minimum cosine of a pair.
        rows: Catalogue row of the first item of each pair, `[pairs]`, in ascending order.
        others: Catalogue row of the second item, which is a later row, `[pairs]`.
        scores: Their cosine, `[pairs]`. Copies of an item have one pair each, with the first of them.
        group_of: The group of each item, `[items]`, -1 for items without a pair. Groups are connected by pairs, and
            numbered from 0, the largest first.
        recall: The share of the true pairs of a sample that were found; 1 if all pairs were compared, None if there
            were too few to measure.
        nearest: The cosine of each item of a sample with its nearest other item, in ascending order, `[sample]`.
    """

    threshold: float
    rows: Int64[np.ndarray, " pairs"]
    others: Int64[np.ndarray, " pairs"]
    scores: Float32[np.ndarray, " pairs"]
    group_of: Int64[np.ndarray, " items"]
    recall: float | None
    nearest: Float32[np.ndarray, " sample"]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.group_of.max(initial=-1)) + 1

    @property
    def num_grouped(self) -> int:
        """Number of items in groups."""
        return int((self.group_of >= 0).sum())


def find_duplicates(
    vectors: Float32[np.ndarray, "items width"],
    threshold: float,
    partitions: Partitions | None = None,
    progress: Progress = lambda done, total: None,
) -> Duplicates:
    """Return the near-duplicates of a catalogue.

    Args:
        vectors: Unit vectors by catalogue row.
        threshold: The minimum cosine of a pair, above 0.
        partitions: IVF lists of the same vectors, if there are any.
        progress: Called with the number of partitions done and of all partitions.

    Raises:
        DataError: There are more than `MAX_PAIRS` pairs.
    """
    vectors = np.require(vectors, np.float32, ["C"])
    first = _first_copies(vectors)
    is_copy = first != np.arange(len(vectors))
    distinct, copies = np.flatnonzero(~is_copy), np.flatnonzero(is_copy)
    search = _Search.over(vectors, distinct, threshold, partitions)
    found = np.concatenate([np.zeros((2, 0), np.int64), *search.pairs(progress)], axis=1)
    pairs = np.concatenate([distinct[found], np.stack([first[copies], copies])], axis=1)
    rows, others, scores = _scored(vectors, pairs, threshold)
    return Duplicates(
        threshold, rows, others, scores, _groups(rows, others, len(vectors)), search.recall, search.nearest
    )


class _Search:
    """Unit vectors in partitions, and the number of partitions that each item visits."""

    def __init__(self, vectors: np.ndarray, threshold: float, partitions: Partitions) -> None:
        self.vectors = torch.from_numpy(vectors)
        self.threshold = threshold
        self.centres = torch.from_numpy(partitions.centres)
        self.of_item = torch.from_numpy(partitions.of_item.astype(np.int64))
        self.looks = 1
        self.recall: float | None = 1.0
        self.nearest = np.zeros(0, dtype=np.float32)

    @classmethod
    def over(cls, vectors: np.ndarray, rows: np.ndarray, threshold: float, partitions: Partitions | None) -> _Search:
        """Return the search among some of the rows, with the number of visited partitions measured on a sample."""
        chosen = vectors if len(rows) == len(vectors) else vectors[rows]
        if len(rows) <= _COMPARED_ALL:
            partitions = Partitions(chosen[:1], np.zeros(len(rows), dtype=np.int32))
        elif partitions is None:
            partitions = kmeans(chosen, default_nlist(len(rows)))
        else:
            partitions = Partitions(partitions.centres, partitions.of_item[rows])
        search = cls(chosen, threshold, partitions)
        search._measure()
        return search

    def pairs(self, progress: Progress) -> Iterator[np.ndarray]:
        """Yield pairs, `[2, some]`, perhaps repeated, and perhaps a rounding error below the threshold."""
        members, visitors = self._by_partition()
        num_found = 0
        for partition in range(len(self.centres)):
            for pairs in self._among(members[partition], visitors[partition]):
                num_found += pairs.shape[1]
                if num_found > MAX_PAIRS:
                    raise DataError(
                        f"expected at most {MAX_PAIRS:,} pairs of similar items, found more with a threshold of "
                        f"{self.threshold:g}; raise --threshold"
                    )
                yield pairs
            progress(partition + 1, len(self.centres))

    def _among(self, members: torch.Tensor, visitors: torch.Tensor) -> Iterator[np.ndarray]:
        """Yield the pairs among the members of a partition, and of these with its visitors."""
        if not len(members):
            return
        inside = self.vectors[members]
        for asking, are_members in ((members, True), (visitors, False)):
            for part in _parts(len(asking), _CELLS // len(members)):
                block = asking[part]
                alike = self.vectors[block] @ inside.T >= self.threshold - ROUNDING
                here, there = alike.nonzero(as_tuple=True)
                one, other = block[here], members[there]
                pairs = torch.stack([torch.minimum(one, other), torch.maximum(one, other)])
                # Among members, every pair is met from both sides.
                yield pairs[:, one < other if are_members else slice(None)].numpy()

    def _by_partition(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the items of each partition, and the items of other partitions that visit it."""
        members = _divided(torch.arange(len(self.vectors)), self.of_item, len(self.centres))
        blocks = []
        for part in _parts(len(self.vectors), 4 * _CELLS // len(self.centres)):
            looks = (self.vectors[part] @ self.centres.T).topk(self.looks, dim=1).indices.to(torch.int32)
            asking, place = (looks != self.of_item[part, None]).nonzero(as_tuple=True)
            blocks.append(((asking + part.start).to(torch.int32), looks[asking, place]))
        asking, partition = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return members, _divided(asking.long(), partition, len(self.centres))

    def _measure(self) -> None:
        """Compare a sample with all items, and choose the number of visited partitions by its true pairs."""
        rng = np.random.default_rng(_SEED)
        sample = torch.from_numpy(np.sort(rng.permutation(len(self.vectors))[:_SAMPLE]))
        pairs, nearest = self._true_pairs(sample)
        self.nearest = np.sort(nearest)
        if len(self.centres) == 1:
            return
        pairs = pairs[rng.permutation(len(pairs))[:_MEASURED_PAIRS]]
        needed = np.sort(np.minimum(self._looks_needed(pairs), self._looks_needed(pairs[:, [1, 0]])))
        is_tuning = rng.permutation(len(pairs)) % 2 == 0
        self.looks, self.recall = min(_USUAL_LOOKS, len(self.centres)), None
        if len(pairs) >= _FEWEST_PAIRS:
            enough = int(np.quantile(needed[is_tuning], _WANTED, method="higher"))
            self.looks = min(enough, _MOST_LOOKS, len(self.centres))
            self.recall = float(np.mean(needed[~is_tuning] <= self.looks))

    def _true_pairs(self, sample: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of the sample's items with any other, `[pairs, 2]`, and the best score of each of them."""
        queries = self.vectors[sample]
        nearest = torch.full((len(sample),), -1.0)
        parts = []
        for part in _parts(len(self.vectors), _CELLS // max(1, len(sample))):
            scores = queries @ self.vectors[part].T
            itself = torch.nonzero((sample >= part.start) & (sample < part.stop))[:, 0]
            scores[itself, sample[itself] - part.start] = -1.0
            nearest = torch.maximum(nearest, scores.amax(dim=1))
            one, other = (scores >= self.threshold).nonzero(as_tuple=True)
            parts.append(torch.stack([sample[one], other + part.start], dim=1))
        return torch.cat(parts).numpy(), nearest.numpy()

    def _looks_needed(self, pairs: np.ndarray) -> np.ndarray:
        """Return how many of the nearest partitions the first item of each pair must visit to find the second."""
        needed = [torch.zeros(0, dtype=torch.int64)]
        for part in _parts(len(pairs), _CELLS // len(self.centres)):
            block = torch.from_numpy(pairs[part])
            scores = self.vectors[block[:, 0]] @ self.centres.T
            own = scores.gather(1, self.of_item[block[:, 1], None])
            needed.append((scores > own).sum(dim=1) + 1)
        return torch.cat(needed).numpy()


def _parts(length: int, step: int) -> Iterator[slice]:
    """Yield slices that divide a length into steps, each of at least one."""
    step = max(1, step)
    yield from (slice(start, min(start + step, length)) for start in range(0, length, step))


def _divided(values: torch.Tensor, partition: torch.Tensor, num_partitions: int) -> list[torch.Tensor]:
    """Return the values of each partition."""
    arranged = values[torch.argsort(partition, stable=True)]
    ends = torch.bincount(partition, minlength=num_partitions).cumsum(0).tolist()
    return [arranged[start:end] for start, end in pairwise([0, *ends])]


def _first_copies(vectors: np.ndarray) -> np.ndarray:
    """Return the first row whose vector is the same to four decimals, for each row."""
    factors = np.random.default_rng(_SEED).integers(1, 2**63, size=vectors.shape[1], dtype=np.int64)
    codes = np.empty(len(vectors), dtype=np.int64)
    for block in _parts(len(vectors), _ROWS):
        codes[block] = (np.rint(vectors[block] * 10**_DECIMALS).astype(np.int64) * factors).sum(axis=1)
    _, first, place = np.unique(codes, return_index=True, return_inverse=True)
    return np.asarray(first[place], dtype=np.int64)


def _scored(vectors: np.ndarray, pairs: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each pair once, in order, with its score in double precision, without those below the threshold."""
    rows, others = np.divmod(np.unique(pairs[0] * len(vectors) + pairs[1]), len(vectors))
    scores = np.empty(len(rows))
    for block in _parts(len(rows), _ROWS):
        scores[block] = np.vecdot(vectors[rows[block]].astype(np.float64), vectors[others[block]].astype(np.float64))
    alike = scores >= threshold
    return rows[alike], others[alike], scores[alike].astype(np.float32)


def _groups(rows: np.ndarray, others: np.ndarray, num_items: int) -> np.ndarray:
    """Return the group of each item, -1 for items without a pair."""
    links = sp.coo_array((np.ones(len(rows), dtype=np.int8), (rows, others)), shape=(num_items, num_items))
    _, component = connected_components(links, directed=False)
    sizes = np.bincount(component)
    order = np.argsort(-sizes, kind="stable")
    number = np.full(len(sizes), -1)
    number[order] = np.arange(len(sizes))
    return np.where(sizes[component] > 1, number[component], -1).astype(np.int64)
