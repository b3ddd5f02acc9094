"""Files and folders appear whole or not at all."""

import errno
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from features.files import atomic_file, atomic_folder, create_once, mapped, save_arrays, scratch_array, sha256


def test_a_file_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert (tmp_path / "deep" / "a.txt").read_text() == "whole"


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail() -> None:
        with atomic_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),  # as `write` says it, without a name
        (OSError(errno.EFBIG, "File too large", "/tmp/x.partial/a"), errno.EFBIG),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("write error in /tmp/x: Disk quota exceeded"), errno.EDQUOT),  # FAISS
    ],
)
@pytest.mark.parametrize("write", [atomic_file, atomic_folder, partial(create_once, make=None)])
def test_a_full_disk_names_what_could_not_be_written_and_leaves_the_old_one(tmp_path, write, error, number) -> None:
    place = tmp_path / ("new" if isinstance(write, partial) else "old")
    if write is atomic_folder:
        place.mkdir()
    elif write is atomic_file:
        place.write_text("old")
    before = list(tmp_path.iterdir())

    def fail(path: Path) -> None:
        raise error

    def written() -> None:
        if isinstance(write, partial):
            create_once(place, fail)
            return
        with write(place) as temporary:
            fail(temporary)

    with pytest.raises(OSError, match=re.escape(str(place))) as caught:
        written()
    assert (caught.value.errno, caught.value.filename) == (number, str(place))
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone", "table.csv"), ValueError("disk full")])
def test_errors_of_other_things_stay_what_they_are(tmp_path, error) -> None:
    with pytest.raises(type(error)) as caught, atomic_file(tmp_path / "a"):
        raise error
    assert caught.value is error


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("old")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "fresh").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fresh"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "fresh").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stale"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", [1, 2])
def test_a_signal_between_two_moves_leaves_a_whole_folder(tmp_path: Path, monkeypatch, which: int, when: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "whole").write_text("old")
    replace, moves = Path.replace, []

    def interrupted(path: Path, target: Path) -> None:
        moves.append(path)
        if len(moves) == which and when == "before":
            raise KeyboardInterrupt
        replace(path, target)
        if len(moves) == which:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "whole").write_text("new")
    is_new = (which, when) == (2, "after")
    assert (tmp_path / "out" / "whole").read_text() == ("new" if is_new else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_several_make_at_once_is_that_of_the_first(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "store"

    def slowly(made: Path) -> None:
        made.write_text("slow")
        create_once(path, lambda other: other.write_text("quick"))

    create_once(path, slowly)
    create_once(path, lambda made: made.write_text("late"))
    assert path.read_text() == "quick"
    path.unlink()
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    create_once(path, lambda made: made.write_text("without links"))
    assert path.read_text() == "without links"
    assert [path.name for path in path.parent.iterdir()] == ["store"]


def test_what_a_writer_keeps_to_itself_becomes_readable_like_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "secretive").write_text("")
        (temporary / "secretive").chmod(0o600)
    assert (tmp_path / "out" / "secretive").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_arrays_are_written_as_the_library_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.random((70_000, 3)).astype(np.float16),
        "bytes": rng.integers(0, 256, 5).astype(np.uint8),
        "none": np.zeros((0, 4), np.float32),
        "rows": rng.integers(0, 9, (3, 2)),
    }
    save_arrays(tmp_path / "a.safetensors", arrays)
    library = load_file(tmp_path / "a.safetensors")
    ours, _ = mapped(tmp_path / "a.safetensors", "F16", "U8", "F32", "I64")
    for name, array in arrays.items():
        for found in (library[name], ours[name]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def test_an_array_on_disk_has_no_file_that_could_be_left_behind(tmp_path: Path) -> None:
    array = scratch_array(tmp_path, (1000, 3), np.float32)
    array[:] = 1
    assert array.sum() == 3000
    assert list(tmp_path.iterdir()) == []
