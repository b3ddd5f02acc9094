"""A folder of Parquet files that a job fills, file by file; another run of the same job makes only the missing ones.

```
part-00000.parquet ...  the parts; each appears complete
_manifest.json          what the job was started with
_SUCCESS                empty; there once no part is missing
```

Readers of partitioned Parquet (pyarrow, pandas, DuckDB, Spark) ignore names that begin with `_` or a dot.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import DataError
from features.files import atomic_file
from features.messages import cut

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
_LOCK = ".lock"
PART_LABEL = "towers_part"
"""Key in the metadata of a part's file, for `PartsFolder.label`."""
_MOST_NAMED = 60


@dataclass(frozen=True)
class PartsFolder:
    """A folder of parts.

    Attributes:
        path: The folder.
        num_parts: Number of parts of the whole job.
        started: When the job was first started, in Unix seconds: what recommendations depend on that read the time.
        digest: Of what the job was started with.
    """

    path: Path
    num_parts: int
    started: float
    digest: str

    @classmethod
    @contextmanager
    def opened(cls, path: Path, num_parts: int, options: Mapping[str, Any], now: float) -> Iterator[PartsFolder]:
        """Yield the folder of a job, new or begun, which no other run may use meanwhile.

        Args:
            path: The folder; made if there is none.
            num_parts: Number of parts of the job.
            options: All that the content depends on, by name, as JSON has it.
            now: The time in Unix seconds, kept if the folder is new.

        Raises:
            DataError: The folder holds something else, was begun with other options, or is in use.
        """
        if path.is_file():
            raise DataError(f"{path} is a file; give a folder as --output-folder, or the file as --output")
        is_new = not (path / MANIFEST).exists()
        if is_new and path.exists() and any(one.name != _LOCK for one in path.iterdir()):
            raise DataError(f"{path}: not empty, and not a folder of `towers recommend`; give an empty or a new one")
        path.mkdir(parents=True, exist_ok=True)
        with (path / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"{path}: another run is writing there; wait for it, or give another folder") from None
            if not (path / MANIFEST).exists():
                with atomic_file(path / MANIFEST) as partial:
                    partial.write_text(json.dumps({"started": now, **options}, indent=2), encoding="utf-8")
            started = _started(path, options)
            for left in path.glob(".part-*.partial"):  # of a run that was killed
                left.unlink(missing_ok=True)
            digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()[:16]
            found = cls(path, num_parts, started, digest)
            found._refuse_others()
            yield found

    def part(self, number: int) -> Path:
        """Return the path of a part."""
        return self.path / f"part-{number:05d}.parquet"

    def label(self, number: int) -> str:
        """Return what the file of a part says of itself: of which job it is, and which part."""
        return f"{self.digest} {number}"

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there, are of another job or number, or were damaged.

        Where there are some, the folder no longer says that none is missing.
        """
        found = [number for number in range(self.num_parts) if not self._is_whole(number)]
        if found:
            (self.path / SUCCESS).unlink(missing_ok=True)
        return found

    def finish(self) -> int:
        """Write that no part is missing, and return the number of rows of all.

        Raises:
            DataError: A part is missing, as where the machines of a cluster do not share the folder.
        """
        counts = [self._num_rows(number) for number in range(self.num_parts)]
        if None in counts:
            raise DataError(
                f"{self.part(counts.index(None))}: missing though it was written; the folder must be one that all "
                "machines of the cluster share"
            )
        (self.path / SUCCESS).touch()
        return sum(count for count in counts if count is not None)

    def _num_rows(self, number: int) -> int | None:
        try:
            about = pq.read_metadata(self.part(number))
        except (OSError, pa.ArrowInvalid):
            return None
        is_ours = (about.metadata or {}).get(PART_LABEL.encode()) == self.label(number).encode()
        return int(about.num_rows) if is_ours else None

    def _is_whole(self, number: int) -> bool:
        """Return whether a part is there, and its content is what was written."""
        if (num_rows := self._num_rows(number)) is None:
            return False
        try:
            with pq.ParquetFile(self.part(number), page_checksum_verification=True) as file:
                return sum(map(len, file.iter_batches())) == num_rows
        except (OSError, pa.ArrowInvalid):
            return False

    def _refuse_others(self) -> None:
        """Refuse Parquet files that are no parts of the job, which readers of the folder would take for such.

        Raises:
            DataError: There is one.
        """
        expected = {self.part(number).name for number in range(self.num_parts)}
        others = sorted({one.name for one in self.path.glob("[!._]*")} - expected)
        if others:
            raise DataError(
                f"{self.path / cut(others[0], _MOST_NAMED)}: no part of this job, and readers of the folder would read "
                "it; remove it, or give another folder"
            )


def _started(path: Path, options: Mapping[str, Any]) -> float:
    """Return when the job of a folder was first started.

    Raises:
        DataError: It was started with other options.
    """
    remedy = "give another folder, or delete this one"
    try:
        known = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        started = float(known.pop("started"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path / MANIFEST}: cannot be read; {remedy}") from None
    wanted = json.loads(json.dumps(options))
    for name in sorted({*known, *wanted}):
        if known.get(name) != wanted.get(name):
            raise DataError(
                f"{path}: begun with {name} = {json.dumps(known.get(name))}, and this run has "
                f"{json.dumps(wanted.get(name))}; {remedy}"
            )
    return started
