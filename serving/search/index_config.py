"""Index kinds and their parameters: defaults for a catalogue, and the variants that tuning tries.

Every kind except `exact` finds candidates approximately and re-scores them with the full vectors, so scores are always
exact and only recall can be below 1. Speed and recall depend on build parameters (`prefix`, `bits`, `nlist` of IVF, `m`
of HNSW) and on search parameters (`nprobe` of IVF, `ef_search` of HNSW, `oversampling`). `exact` is FAISS's flat index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from pydantic import Field

from features.errors import DataError
from features.settings import StrictTable

IndexKind = Literal["exact", "matryoshka", "hnsw", "ivf", "ivf-sq8", "ivf-pq", "pq", "sq8", "sq4", "rabitq"]

INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
DESCRIPTIONS: dict[IndexKind, str] = {
    "exact": "brute force over all items",
    "matryoshka": "brute force over prefixes of the vectors",
    "hnsw": "an HNSW graph",
    "ivf": "an inverted file (IVF)",
    "ivf-sq8": "IVF with 8-bit scalar quantisation",
    "ivf-pq": "IVF with product quantisation, 4 or 2 bits per dimension, in SIMD registers",
    "pq": "product quantisation of all items, 4 or 2 bits per dimension, in SIMD registers",
    "sq8": "8-bit scalar quantisation of all items",
    "sq4": "4-bit scalar quantisation of all items",
    "rabitq": "RaBitQ: random rotation, 1 to 4 bits per dimension",
}
"""How each kind finds candidates, of which the best are re-scored with their full vectors."""

TUNED_CUTOFF = 100
"""Number of results that parameters are tuned for."""

FIRST_LEVEL = 128
"""Number of candidates of the first search in an approximate index, even if fewer are needed: the results that
parameters are tuned for, and some for exclusions. A deeper search uses proportionally more effort."""

# Fewer items are too few for clustering or quantisation, and brute force takes a tenth of a millisecond.
_FEWEST_ITEMS = 1000
_ITEMS_PER_PARTITION = 30
_OVERSAMPLING = {"matryoshka": 8, "ivf-sq8": 2, "sq8": 2, "sq4": 8, "ivf-pq": 6, "pq": 8, "rabitq": 24}
_MAX_OVERSAMPLING = 128
# Kinds that are also tried on prefixes of a model's vectors.
_SHORTENED: tuple[IndexKind, ...] = ("matryoshka", "hnsw", "ivf", "ivf-pq", "pq")


class IndexConfig(StrictTable):
    """Parameters of an index and of its searches. 0 where a kind has no such parameter."""

    kind: IndexKind = "exact"
    """How candidates are found, see `DESCRIPTIONS`."""
    prefix: int = Field(0, ge=0)
    """Dimensions that are compared first, from the beginning of each vector (Matryoshka). 0: all."""
    bits: int = Field(32, ge=1, le=32)
    """Bits per dimension in the index (quantisation). 32: not quantised."""
    nlist: int = Field(0, ge=0)
    """IVF: number of partitions (inverted lists) that the items are divided into."""
    m: int = Field(0, ge=0)
    """HNSW: number of neighbours that each item is linked to. M of FAISS and hnswlib."""
    nprobe: int = Field(0, ge=0)
    """IVF: number of partitions that a search compares. More find more and take longer."""
    ef_search: int = Field(0, ge=0)
    """HNSW: number of candidates that a search keeps in view. More find more and take longer."""
    oversampling: int = Field(1, ge=1)
    """Number of candidates per result that are re-scored with their full vectors. FAISS: `k_factor`."""
    tail: int = Field(0, ge=0)
    """Numbers behind each unit vector that are part of the inner product: recent popularity. No prefix cuts them."""

    @property
    def is_exact(self) -> bool:
        """Whether results are exact by construction."""
        return self.kind == "exact"

    @property
    def is_rescored(self) -> bool:
        """Whether the index holds less than the full vectors, so that candidates have to be re-scored."""
        return self.bits < 32 or self.prefix > 0

    @property
    def structure(self) -> tuple[str, int, int, int, int]:
        """The build parameters; configurations that share them differ only in their search parameters."""
        return self.kind, self.prefix, self.bits, self.nlist, self.m

    def __str__(self) -> str:
        """Return the configuration as text, such as `ivf-pq bits=4 nlist=512 nprobe=64 oversampling=2`."""
        default = IndexConfig(kind=self.kind)
        numbers = [name for name in type(self).model_fields if name != "kind"]
        parts = [f"{name}={getattr(self, name)}" for name in numbers if getattr(self, name) != getattr(default, name)]
        return " ".join([self.kind, *parts])


def standard(kind: IndexKind, num_items: int, width: int, prefixes: Sequence[int] = ()) -> IndexConfig:
    """Return the default parameters of a kind for a catalogue, chosen for high recall.

    Args:
        kind: The index kind.
        num_items: Number of items.
        width: Dimension of the vectors.
        prefixes: Dimensions of the model's Matryoshka prefixes, in ascending order.

    Raises:
        DataError: The kind needs more items, or prefixes.
    """
    if kind != "exact" and num_items < _FEWEST_ITEMS:
        raise DataError(f"--kind {kind}: expected at least {_FEWEST_ITEMS:,} items, found {num_items:,}; choose exact")
    if kind == "matryoshka" and not prefixes:
        raise DataError(
            "--kind matryoshka: expected a model trained with prefixes of its vectors; set towers.matryoshka_dims, "
            "such as [16, 32], and train again, or choose another kind"
        )
    nlist = default_nlist(num_items)
    oversampling = _OVERSAMPLING.get(kind, 1)
    match kind:
        case "exact":
            return IndexConfig()
        case "matryoshka":
            return IndexConfig(kind=kind, prefix=prefixes[-1], oversampling=oversampling)
        case "hnsw":
            return IndexConfig(kind=kind, m=32, ef_search=256)
        case "ivf":
            return IndexConfig(kind=kind, nlist=nlist, nprobe=_generous(nlist))
        case "ivf-sq8" | "ivf-pq":
            bits = 8 if kind == "ivf-sq8" else 4
            return IndexConfig(kind=kind, bits=bits, nlist=nlist, nprobe=_generous(nlist), oversampling=oversampling)
        case "pq" | "sq4":
            return IndexConfig(kind=kind, bits=4, oversampling=oversampling)
        case "sq8":
            return IndexConfig(kind=kind, bits=8, oversampling=oversampling)
        case "rabitq":
            return IndexConfig(kind=kind, bits=2, oversampling=oversampling)


def candidates(
    num_items: int, width: int, kind: IndexKind | None = None, prefixes: Sequence[int] = ()
) -> list[IndexConfig]:
    """Return the configurations worth building for a catalogue, the simplest first, with default search parameters.

    Args:
        num_items: Number of items.
        width: Dimension of the vectors.
        kind: Only this kind. None: every kind.
        prefixes: Dimensions of the model's Matryoshka prefixes, in ascending order.

    Raises:
        DataError: The kind needs more items, or prefixes.
    """
    possible = INDEX_KINDS if num_items >= _FEWEST_ITEMS else ("exact",)
    kinds = [kind] if kind else [one for one in possible if one != "matryoshka" or prefixes]
    return [
        plan for one in kinds for plan in _variants(standard(one, num_items, width, prefixes), width, list(prefixes))
    ]


def efforts(plan: IndexConfig, num_items: int) -> Iterator[list[IndexConfig]]:
    """Yield lists of configurations with the same build parameters, each with increasing search effort and recall."""
    most = min(_MAX_OVERSAMPLING, max(1, num_items // (2 * TUNED_CUTOFF)))
    oversampling = _steps(1, most, per_doubling=1 if plan.nlist else 2) if plan.is_rescored else [1]
    if plan.m:
        # All candidates of an HNSW search were compared already; re-scoring them costs little in addition.
        yield [
            plan.model_copy(update={"ef_search": ef, "oversampling": max(1, min(oversampling[-1], ef // TUNED_CUTOFF))})
            for ef in _steps(16, 4096, 4)
        ]
    elif plan.nlist:
        # Fewer lists would often contain too few items, and then the search falls back to brute force.
        least = min(plan.nlist, math.ceil(2 * TUNED_CUTOFF * plan.nlist / num_items))
        for times in oversampling:
            found = {"oversampling": times}
            yield [plan.model_copy(update=found | {"nprobe": nprobe}) for nprobe in _steps(least, plan.nlist, 8)]
    else:
        yield [plan.model_copy(update={"oversampling": times}) for times in oversampling]


def default_nlist(num_items: int) -> int:
    """Return the default number of IVF lists: about twice the square root of the number of items, a power of two."""
    wanted = 1 << round(math.log2(2 * max(1, num_items) ** 0.5))
    return max(1, min(wanted, num_items // _ITEMS_PER_PARTITION))


def _variants(plan: IndexConfig, width: int, prefixes: list[int]) -> list[IndexConfig]:
    whole = [] if plan.prefix else _coded(plan, width)
    shorter = prefixes if plan.kind in _SHORTENED else []
    return [*whole, *(plan.model_copy(update={"prefix": prefix}) for prefix in shorter)]


def _coded(plan: IndexConfig, width: int) -> list[IndexConfig]:
    match plan.kind:
        # At 2 bits, two dimensions share a code of four bits.
        case "ivf-pq" | "pq" if width % 2 == 0:
            return [plan, plan.model_copy(update={"bits": 2})]
        case "rabitq":
            return [plan.model_copy(update={"bits": bits}) for bits in (4, 2, 1)]
        case _:
            return [plan]


def _generous(nlist: int) -> int:
    return max(1, min(nlist, max(8, nlist // 4)))


def _steps(least: int, most: int, per_doubling: int = 2) -> list[int]:
    """Return whole numbers from `least` to `most`, evenly spread over each doubling.

    Example:
        >>> _steps(1, 20), _steps(1, 20, per_doubling=1)
        ([1, 2, 3, 4, 6, 8, 11, 16, 20], [1, 2, 4, 8, 16, 20])
    """
    num_steps = int(per_doubling * math.log2(max(1, most / least)) + 1e-9)
    return sorted({*(round(least * 2 ** (step / per_doubling)) for step in range(num_steps + 1)), max(least, most)})
