"""Nothing but what a manifest names is read, and what is not as it was sealed is one line, at once."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from features.files import mapped
from tests.broken_files import DAMAGES, damaged, files_in
from towers.bundle import private_copies
from towers.bundle.private_copies import PrivateCopies
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import MANIFEST, SealedFolder, read_manifest, reading, seal


@pytest.fixture
def folder(tmp_path) -> Path:
    """Some files, one of them in a folder, sealed."""
    return sealed(tmp_path / "sealed", b"first")


def sealed(folder: Path, content: bytes) -> Path:
    (folder / "inside").mkdir(parents=True)
    for name in ("one", "inside/two"):
        (folder / name).write_bytes(content * 1000)
    (folder / MANIFEST).write_text(json.dumps({"files": seal(folder)}))
    return folder


@pytest.fixture(params=["where it lies", "in a copy"])
def copies(request, tmp_path) -> PrivateCopies | None:
    (tmp_path / "copies").mkdir()
    return PrivateCopies(tmp_path / "copies") if request.param == "in a copy" else None


def opened(folder: Path, copies: PrivateCopies | None = None) -> SealedFolder:
    return SealedFolder.open(folder, read_manifest(folder)["files"], copies)


def test_what_is_as_it_was_sealed_is_read(folder, copies):
    found = opened(folder, copies)
    assert found.file("inside/two").read_bytes() == b"first" * 1000
    assert "one" in found
    assert found.names("inside") == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_becomes_of_a_file_is_one_line_at_once(folder, tmp_path, damage, copies):
    other = sealed(tmp_path / "other", b"other")
    began = time.monotonic()
    for name in files_in(folder):
        with damaged(folder, name, damage, other), pytest.raises((ValueError, OSError)) as caught:
            opened(folder, copies)
        assert "\n" not in str(caught.value)
        assert Path(name).name in str(caught.value) or name == MANIFEST
        opened(folder)
    assert time.monotonic() - began < 10


ELSEWHERE = [
    "../outside",
    "/etc/passwd",
    "inside/../../outside",
    "a\\b",
    "a\0b",
    "",
    ".",
    "./one",
    "inside//two",
    "one/",
]


@pytest.mark.parametrize("name", [*ELSEWHERE, MANIFEST, "x" * 2000, "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_is_opened(folder, name):
    (folder.parent / "outside").write_bytes(b"first" * 1000)
    said = read_manifest(folder)["files"]
    with pytest.raises(ValueError, match="is not the path of a file in the folder"):
        SealedFolder.open(folder, {name: said["one"], **said})


def test_a_folder_on_the_way_that_is_a_link_is_refused(folder):
    (folder / "inside").rename(folder.parent / "moved")
    (folder / "inside").symlink_to(folder.parent / "moved")
    with pytest.raises(ValueError, match="inside/two lies behind a link"):
        opened(folder)


@pytest.mark.parametrize("said", [[], "x", {"one": 3}, {"one": {"bytes": -1, "sha256": ""}}, {"one": {"bytes": True}}])
def test_a_list_of_files_that_is_none_is_refused(folder, said):
    with pytest.raises(ValueError, match="files"):
        SealedFolder.open(folder, said)


@pytest.mark.parametrize("content", ["[" * 100_000, "{" + '"a":{' * 100_000, "3", "", "\x00", " " * ((16 << 20) + 1)])
def test_a_manifest_that_is_none_is_one_line(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        read_manifest(folder)


def test_what_the_manifest_does_not_name_is_never_opened(folder, copies):
    os.mkfifo(folder / "unnamed")  # to open it would wait for ever
    (folder / "evil").symlink_to("/dev/zero")
    found = opened(folder, copies)
    with pytest.raises(ValueError, match=r"unnamed is not in manifest.json"):
        found.file("unnamed")


def test_a_folder_that_a_library_reads_as_a_whole_holds_nothing_unnamed(folder, copies):
    found = opened(folder, copies)
    assert [path.name for path in found.folder("inside").iterdir()] == ["two"]
    (folder / "inside" / "three").write_text("{}")
    if copies is None:
        with pytest.raises(ValueError, match=r"inside/three is not in manifest.json; remove it"):
            opened(folder).folder("inside")
    else:
        assert [path.name for path in found.folder("inside").iterdir()] == ["two"]


def test_what_is_sealed_though_it_is_nearly_all_holes_is_refused(folder):
    os.truncate(folder / "one", 2 << 30)
    said = read_manifest(folder)["files"] | {"one": {"bytes": 2 << 30, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match="one says it has 2,147,483,648 bytes and is nearly all holes"):
        SealedFolder.open(folder, said)


def test_any_exception_of_a_reader_is_one_line_with_the_remedy():
    for error in (MemoryError(), RecursionError("deep"), KeyError("x"), ValueError("a\nb"), AssertionError()):
        with (
            pytest.raises(BundleError, match=r"^place: cannot be read \([^\n]+\); remedy$"),
            reading(Path("place"), "remedy"),
        ):
            raise error


def test_a_copy_is_shared_outlives_what_becomes_of_the_folder_and_is_removed_after_its_last_use(tmp_path):
    folder, place = tmp_path / "sealed", tmp_path / "copies"
    folder.mkdir()
    place.mkdir()
    from safetensors.numpy import save_file

    save_file({"numbers": np.arange(100_000, dtype=np.float32)}, folder / "numbers")
    (folder / MANIFEST).write_text(json.dumps({"files": seal(folder)}))
    one, other = (opened(folder, PrivateCopies(place)) for _ in range(2))
    assert one.root == other.root != folder
    arrays, _ = mapped(one.file("numbers"), "F32")
    os.truncate(folder / "numbers", 0)  # where it is mapped itself, the next line would end this process
    assert arrays["numbers"].sum() == pytest.approx(np.arange(100_000).sum())
    again = opened(folder, PrivateCopies(place))
    assert again.root == one.root, "who comes later reads what was verified"
    del one, again
    gc.collect()
    assert other.root.exists()
    root = other.root
    del other
    gc.collect()
    assert not root.exists()


def test_where_there_is_no_room_for_a_copy_it_says_so_and_reads_where_the_files_lie(
    folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(private_copies, "_ROOM_LEFT", 1 << 60)
    found = opened(folder, PrivateCopies(tmp_path))
    assert found.root == folder
    assert "is read where it lies" in caplog.text
    with damaged(folder, "one", DAMAGES["one bit turned"], folder), pytest.raises(ValueError, match="was changed"):
        opened(folder, PrivateCopies(tmp_path))
