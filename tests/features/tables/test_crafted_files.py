"""Files that claim what they do not hold are refused before memory is taken for it; small on the disk, each of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from features import parquet
from features.files import mapped
from features.parquet import read_parquet


def written(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


def entry(shape: object, begin: object, end: object, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


CRAFTED = {
    "a header longer than the file": ({}, b"", 1 << 50),
    "a header of nearly all there can be": ({}, b"", (1 << 64) - 1),
    "petabytes": ({"a": entry([1 << 40, 1 << 20], 0, 1 << 62)}, b"", None),
    "a shape whose size overflows": ({"a": entry([1 << 32, 1 << 32], 0, 0)}, b"", None),
    "sizes below nothing": ({"a": entry([-1, -4], 0, 16)}, b"0" * 16, None),
    "a beginning below nothing": ({"a": entry([4], -16, 0)}, b"0" * 16, None),
    "an end before its beginning": ({"a": entry([4], 16, 0)}, b"0" * 16, None),
    "two in one place": ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, b"0" * 16, None),
    "two that overlap": ({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, b"0" * 24, None),
    "a hole between": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12, None),
    "more than it says": ({"a": entry([1], 0, 4)}, b"0" * 12, None),
    "less than it says": ({"a": entry([4], 0, 16)}, b"0" * 12, None),
    "a size that is text": ({"a": entry(["4"], 0, 16)}, b"0" * 16, None),
    "a size that is true": ({"a": entry([True], 0, 4)}, b"0" * 4, None),
    "a place that is a fraction": ({"a": entry([1], 0.0, 4.0)}, b"0" * 4, None),
    "a hundred dimensions": ({"a": entry([1] * 100, 0, 4)}, b"0" * 4, None),
    "no place": ({"a": {"dtype": "F32", "shape": [1]}}, b"0" * 4, None),
    "another type": ({"a": entry([1], 0, 4, "F64")}, b"0" * 4, None),
    "a type that is a list": ({"a": entry([1], 0, 4, ["F32"])}, b"0" * 4, None),
    "an entry that is a number": ({"a": 4}, b"", None),
    "a header that is a list": ([], b"", None),
    "a header that is no JSON": (b"{", b"", None),
    "a header nested without end": (b'{"a":' * 50_000, b"", None),
    "remarks that are a list": ({"__metadata__": []}, b"", None),
    "remarks that are numbers": ({"__metadata__": {"about": 3}}, b"", None),
}


@pytest.mark.parametrize(("header", "data", "length"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_of_arrays_is_refused(tmp_path, header, data, length):
    path = written(tmp_path / "crafted", header, data, length)
    with pytest.raises(ValueError, match=r"^(?!Traceback)[^\n]+$"):
        mapped(path, "F32")


@pytest.mark.parametrize("num_bytes", range(9))
def test_a_file_of_arrays_that_ends_in_its_first_bytes_is_refused(tmp_path, num_bytes):
    path = tmp_path / "cut"
    path.write_bytes(b"\x02" + b"\0" * 7 + b"{"[: max(0, num_bytes - 8)])
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=r"cut|header|Expecting"):
        mapped(path, "F32")


def test_what_the_format_allows_is_read_as_the_library_wrote_it(tmp_path):
    arrays = {"b": np.ones((2, 3), np.float32), "a": np.zeros((0, 4), np.float32), "c": np.array(3, np.float32)}
    save_file(arrays, tmp_path / "sound", {"about": "x"})
    found, about = mapped(tmp_path / "sound", "F32")
    assert about == {"about": "x"}
    assert {name: one.tolist() for name, one in found.items()} == {name: one.tolist() for name, one in arrays.items()}


def test_a_table_of_few_bytes_and_many_values_is_refused_before_it_is_read(tmp_path, monkeypatch):
    pq.write_table(pa.table({"a": np.zeros(1_000_000, np.int64)}), tmp_path / "many.parquet", compression="zstd")
    assert (tmp_path / "many.parquet").stat().st_size < 10_000
    assert read_parquet(tmp_path / "many.parquet").num_rows == 1_000_000
    monkeypatch.setattr(parquet, "memory_bytes", lambda: 1 << 20)
    monkeypatch.setattr(pq, "read_table", pytest.fail)
    with pytest.raises(
        ValueError, match=r"many.parquet says it takes .* bytes, the memory of this machine is 1,048,576"
    ):
        read_parquet(tmp_path / "many.parquet")


def test_a_table_of_another_number_of_rows_is_refused_before_it_is_read(tmp_path, monkeypatch):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "two.parquet")
    monkeypatch.setattr(pq, "read_table", pytest.fail)
    with pytest.raises(ValueError, match=r"two.parquet has 2 rows, expected 3"):
        read_parquet(tmp_path / "two.parquet", 3)


def test_the_memory_of_a_machine_is_known():
    assert 1 << 26 < parquet.memory_bytes() < 1 << 50
