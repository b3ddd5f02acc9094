"""Private copies of sealed folders, which the workers of a server read and map into memory.

Where a mapped file is cut off in its place, the next look at what is gone ends the process (SIGBUS), and no check
before it helps. Of a copy that only the server knows that cannot happen. The workers share one, so that its pages are
in memory once, and who comes second need not read and verify everything again; it is removed when none of them uses it
any more. What a file holds is verified in the copy, so that nothing can change in between.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from towers.bundle.sealed_file import SealedFile, check_digest, opened_as_sealed

_ROOM_LEFT = 2
_LOCK = ".lock"
_PARTIAL = ".partial"
# What says that a file cannot be copied within the kernel, as between some file systems.
_NOT_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_log = logging.getLogger(__name__)


class PrivateCopies:
    """The copies of one server.

    Args:
        folder: Folder of the copies; no other user may write to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: Path, files: Mapping[str, SealedFile]) -> PrivateCopy | None:
        """Return a verified copy of a folder, made now if no worker has made it; None where there is no room for it.

        Args:
            path: The folder.
            files: What its manifest names.

        Raises:
            ValueError: Says which file is not as it was sealed.
        """
        name = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:32]
        lock = os.open(self._folder / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            place = self._folder / name
            fcntl.flock(lock, fcntl.LOCK_SH)
            # In a loop: between unlocking and locking again, another process may remove an unused copy.
            while not place.exists():
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not place.exists() and not self._make(path, files, place):
                    os.close(lock)
                    return None
                fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(lock)
            raise
        return PrivateCopy(place, lock)

    def _make(self, path: Path, files: Mapping[str, SealedFile], place: Path) -> bool:
        needed = sum(sealed.num_bytes for sealed in files.values())
        _remove_unused(self._folder)
        if shutil.disk_usage(self._folder).free < _ROOM_LEFT * needed:
            _log.warning(
                "%s is read where it lies: a copy of %d MB is more than half of what is free in %s (TMPDIR); as long "
                "as it is served, replace it and never write into it",
                path,
                needed / 1e6,
                self._folder.parent,
            )
            return False
        partial = Path(tempfile.mkdtemp(suffix=_PARTIAL, dir=self._folder))
        try:
            for name, sealed in files.items():
                _copy(path, name, sealed, partial / name)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True


class PrivateCopy:
    """A copy in use; it is removed when no worker refers to it any more.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        # When the process ends the lock goes with it, and the server removes the whole folder.
        weakref.finalize(self, _let_go, path.parent, lock).atexit = False


def _let_go(folder: Path, lock: int) -> None:
    os.close(lock)
    _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    """Remove unused copies. Their lock files stay: a lock file that is removed while it is opened locks nothing."""
    for path in folder.glob(f"*{_LOCK}"):
        place = path.with_suffix("")
        if not place.exists():
            continue
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _copy(folder: Path, name: str, sealed: SealedFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened_as_sealed(folder, name, sealed) as source, target.open("w+b") as copy:
        left = sealed.num_bytes
        try:
            while left and (num_bytes := os.copy_file_range(source.fileno(), copy.fileno(), left)):
                left -= num_bytes
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
            shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        copy.seek(0)
        check_digest(copy, name, sealed)
