"""The inverted lists of a fast-scan IVF index in a file that processes map and share.

FAISS maps the lists of its other IVF indexes, but reads those of fast-scan (blocks of 32 codes, for SIMD registers)
into each process. Here they are a file of their own: of each list its blocks, then its rows. FAISS's
`OnDiskInvertedLists` finds both by offsets, which are computed from the sizes of the lists, never read from the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss as published
import numpy as np
from jaxtyping import Int32, Int64, UInt8

from features.files import mapped, save_arrays, scratch_array
from features.sequences.ragged import offsets_of
from serving.search.vectors import ItemVectors, blocks_of

faiss: Any = published  # its type hints are incomplete

FILE = "lists.safetensors"
_PLACE = np.dtype([("size", np.uint64), ("capacity", np.uint64), ("offset", np.uint64)])
_ROW_BYTES = 8


def fast_scan_of(index: Any) -> Any | None:
    """Return the index itself if it is an IVF index of fast-scan; None: it has no such lists."""
    inverted = faiss.try_extract_index_ivf(index)
    inverted = None if inverted is None else faiss.downcast_index(inverted)
    return inverted if isinstance(inverted, faiss.IndexIVFFastScan) else None


def add_to_lists(index: Any, vectors: ItemVectors, list_of_item: Int32[np.ndarray, " items"]) -> None:
    """Fill a trained IVF index whose lists are known; finding them again would take most of the time of a build.

    Args:
        index: Any IVF index of FAISS, without items.
        vectors: The items' vectors.
        list_of_item: The list of each item.
    """
    inverted, is_fast_scan = faiss.extract_index_ivf(index), fast_scan_of(index) is not None
    codes = np.empty((len(vectors) if is_fast_scan else 0, inverted.code_size), dtype=np.uint8)
    for block in blocks_of(len(vectors)):
        some = np.ascontiguousarray(vectors[block])
        rows, places = np.arange(block.start, block.stop), list_of_item[block].astype(np.int64)
        data, lists = faiss.swig_ptr(some), faiss.swig_ptr(places)
        if is_fast_scan:
            inverted.encode_vectors(len(some), data, lists, faiss.swig_ptr(codes[block]))
        else:
            inverted.add_core(len(some), data, faiss.swig_ptr(rows), lists)
    if is_fast_scan:
        _fill(fast_scan_of(index), codes, list_of_item)


def _fill(inverted: Any, codes: UInt8[np.ndarray, "items bytes"], list_of_item: Int32[np.ndarray, " items"]) -> None:
    """Put all codes into the lists of a fast-scan IVF index, in whole blocks."""
    packer = inverted.get_CodePacker()
    order = np.argsort(list_of_item, kind="stable")
    starts = offsets_of(np.bincount(list_of_item, minlength=inverted.nlist))
    for place in np.flatnonzero(np.diff(starts)).tolist():
        rows = order[starts[place] : starts[place + 1]]
        flat = np.zeros((-(-len(rows) // packer.nvec), packer.nvec * packer.code_size), dtype=np.uint8)
        flat.reshape(-1, packer.code_size)[: len(rows)] = codes[rows]
        packed = np.zeros((len(flat), packer.block_size), dtype=np.uint8)
        for some, block in zip(flat, packed, strict=True):
            packer.pack_all(faiss.swig_ptr(some), faiss.swig_ptr(block))
        inverted.invlists.add_entries(place, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(packed))
    inverted.ntotal = len(codes)


def num_list_bytes(inverted: Any) -> int:
    """Return the bytes of the lists of a fast-scan IVF index."""
    sizes = _sizes(inverted)
    return int(_starts(inverted, sizes)[-1]) + sizes.nbytes


def save_lists(inverted: Any, path: Path) -> None:
    """Write the lists of a fast-scan IVF index to a file.

    Raises:
        OSError: The file cannot be written.
    """
    lists, sizes = inverted.invlists, _sizes(inverted)
    starts, code_bytes = _starts(inverted, sizes), _capacities(inverted, sizes) * inverted.code_size
    content = scratch_array(path.parent, (int(starts[-1]),), np.uint8)
    for place in np.flatnonzero(sizes).tolist():
        rows_at = starts[place] + code_bytes[place]
        content[starts[place] : rows_at] = faiss.rev_swig_ptr(lists.get_codes(place), int(code_bytes[place]))
        rows = faiss.rev_swig_ptr(lists.get_ids(place), int(sizes[place]))
        content[rows_at : starts[place + 1]] = rows.view(np.uint8)
    save_arrays(path, {"lists": content, "sizes": sizes})


def with_lists(inverted: Any, path: Path) -> None:
    """Give a fast-scan IVF index, read without its lists, those of a file, mapped into memory.

    Raises:
        ValueError: The file is not what `save_lists` wrote for an index of this shape.
    """
    arrays, _ = mapped(path, "U8", "I64")
    content, sizes = arrays["lists"], arrays["sizes"]
    if sizes.shape != (inverted.nlist,) or sizes.dtype != np.int64 or content.ndim != 1 or content.dtype != np.uint8:
        raise ValueError(f"lists of shapes {content.shape} and {sizes.shape}, expected {inverted.nlist} lists")
    if not 0 <= sizes.min(initial=0) <= sizes.max(initial=0) <= inverted.ntotal or sizes.sum() != inverted.ntotal:
        raise ValueError(f"lists of {sizes.sum()} items, expected {inverted.ntotal}")
    starts = _starts(inverted, sizes)
    if starts[-1] != len(content):
        raise ValueError(f"lists of {len(content):,} bytes, expected {starts[-1]:,}")
    places = np.empty(len(sizes), _PLACE)
    places["size"], places["capacity"], places["offset"] = sizes, _capacities(inverted, sizes), starts[:-1]
    places["offset"] += np.uint64(_start_of(path))
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size, lists.read_only = inverted.nlist, inverted.code_size, True
    lists.lists.resize(len(places))
    faiss.memcpy(lists.lists.data(), faiss.swig_ptr(places.view(np.uint8)), places.nbytes)
    lists.filename, lists.totsize = str(path), path.stat().st_size
    lists.do_mmap()
    lists.this.disown()
    inverted.replace_invlists(lists, True)


@contextmanager
def without_lists(inverted: Any) -> Iterator[None]:
    """Let an index have empty lists inside the block, so that it is written without them."""
    lists, is_owner = inverted.invlists, inverted.own_invlists
    inverted.own_invlists = False
    empty = faiss.BlockInvertedLists(inverted.nlist, inverted.bbs, inverted.bbs * inverted.code_size)
    inverted.replace_invlists(empty, False)
    try:
        yield
    finally:
        inverted.replace_invlists(lists, False)
        inverted.own_invlists = is_owner


def _sizes(inverted: Any) -> Int64[np.ndarray, " lists"]:
    return np.array([inverted.invlists.list_size(place) for place in range(inverted.nlist)], dtype=np.int64)


def _capacities(inverted: Any, sizes: Int64[np.ndarray, " lists"]) -> Int64[np.ndarray, " lists"]:
    """Return the number of codes in whole blocks."""
    capacities: np.ndarray = -(-sizes // inverted.bbs) * inverted.bbs
    return capacities


def _starts(inverted: Any, sizes: Int64[np.ndarray, " lists"]) -> Int64[np.ndarray, " lists_plus_1"]:
    """Return where each list begins in the file's array."""
    starts: np.ndarray = offsets_of(_capacities(inverted, sizes) * inverted.code_size + sizes * _ROW_BYTES)
    return starts


def _start_of(path: Path) -> int:
    """Return where the first array of a safetensors file begins."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")
