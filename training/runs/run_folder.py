"""The folder of runs: `runs/<name>/`, with `runs/latest` pointing to the newest finished one.

Training does not change what is served: `runs/latest` is the newest model, and a bundle that
another link points to, such as `runs/production`, which `towers deploy` moves, is not replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from features.errors import DataError
from features.files import LATEST, atomic_folder, move_link
from training.config import RunConfig

RUNS = Path("runs")
INPUTS = RUNS / "inputs"
"""Where tables are kept that are no files of the user, with the run.toml that was made for them."""
_SETTINGS, _TABLES = "settings.json", "tables.json"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_held: dict[Path, int] = {}
"""Open lock files of this process, by path; open until `Run.release`, or until the process ends."""


@dataclass
class Run:
    """One run's places.

    Attributes:
        folder: Where the bundle will be.
        workspace: What is kept until it is: the checkpoint, and the settings and tables it belongs to.
    """

    folder: Path

    @property
    def workspace(self) -> Path:
        """Folder of checkpoints of unfinished runs."""
        return self.folder.with_name(f".{self.folder.name}.training")

    @property
    def checkpoint(self) -> Path:
        """The file that training is resumed from."""
        return self.workspace / "checkpoint.safetensors"

    @property
    def tracked_as(self) -> str | None:
        """The run's id in MLflow, kept with the checkpoint so that a resumed training goes on in the same record."""
        path = self.workspace / "mlflow-run"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    @tracked_as.setter
    def tracked_as(self, run_id: str | None) -> None:
        if run_id is not None:
            (self.workspace / "mlflow-run").write_text(run_id, encoding="utf-8")

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        stem: str,
        output: Path | None,
        digests: Mapping[str, str] = _NOTHING,
        continued: str | None = None,
    ) -> Run:
        """Return a new run; an unfinished one of the same name is removed. No other process may train into its folder.

        Args:
            config: The settings.
            stem: What the run is called after.
            output: Where the bundle goes; None: the next free place.
            digests: SHA-256 of each table that is read.
            continued: Digest of the weights that the training goes on from; None: from none.

        Raises:
            DataError: The output cannot be replaced, see `check_replaceable`, or another process trains into it.
        """
        folder = output or _free_name(stem)
        check_replaceable(folder)
        run = cls(folder)
        run.claim()
        shutil.rmtree(run.workspace, ignore_errors=True)
        with atomic_folder(run.workspace) as workspace:
            (workspace / _SETTINGS).write_text(fingerprint(config, continued), encoding="utf-8")
            (workspace / _TABLES).write_text(json.dumps(dict(digests)), encoding="utf-8")
        return run

    @classmethod
    def unfinished(
        cls,
        config: RunConfig,
        stem: str,
        output: Path | None,
        digests: Mapping[str, str] = _NOTHING,
        continued: str | None = None,
    ) -> Run:
        """Return the newest unfinished run with the same settings; arguments as of `begin`.

        Raises:
            DataError: There is none, it began with other tables, or another process trains it.
        """
        if (run := cls.find_unfinished(config, stem, output, digests, continued)) is not None:
            return run
        where = output or RUNS / f"{stem}-*"
        others = [str(folder) for folder in cls._resumable(stem, output)]
        of_others = f" ({', '.join(others)} began with other settings, tables or weights)" if others else ""
        raise DataError(
            f"{where}: no unfinished run with these settings and a checkpoint{of_others}; train without --resume to "
            "begin one"
        )

    @classmethod
    def find_unfinished(
        cls,
        config: RunConfig,
        stem: str,
        output: Path | None,
        digests: Mapping[str, str] = _NOTHING,
        continued: str | None = None,
    ) -> Run | None:
        """Return what `unfinished` does; None if there is none.

        Raises:
            DataError: It began with other tables, or another process trains it.
        """
        mine = fingerprint(config, continued)
        for folder in cls._resumable(stem, output):
            if (folder / _SETTINGS).read_bytes() == mine.encode():
                _refuse_other_tables(folder, config, digests)
                run = cls(folder.with_name(folder.name.removeprefix(".").removesuffix(".training")))
                run.claim()
                return run
        return None

    @classmethod
    def _resumable(cls, stem: str, output: Path | None) -> list[Path]:
        """Return the workspaces that have a checkpoint, the newest first."""
        folders = [cls(output).workspace] if output else sorted(RUNS.glob(f".{stem}-*.training"), key=_age)
        needed = ("checkpoint.safetensors", _SETTINGS)
        return [folder for folder in folders if all((folder / name).is_file() for name in needed)]

    @property
    def _lock(self) -> Path:
        return self.folder.absolute().with_name(f".{self.folder.name}.lock")

    def claim(self) -> None:
        """Let no other process train into the folder until `release`, or until this process ends.

        Raises:
            DataError: Another one does.
        """
        if self._lock in _held:
            return
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise DataError(
                    f"{self.folder}: another process trains into it; wait for its end, stop it, or name another "
                    "--output"
                ) from None
            except OSError:  # a file system without locks
                pass
            if self._lock.exists() and os.path.samestat(os.fstat(file), self._lock.stat()):
                break
            os.close(file)  # it was removed by the process before
        _held[self._lock] = file

    def release(self) -> None:
        """Let other processes train into the folder again."""
        if (file := _held.pop(self._lock, None)) is not None:
            self._lock.unlink(missing_ok=True)
            os.close(file)

    def abandon(self) -> None:
        """Remove what was kept for resuming."""
        shutil.rmtree(self.workspace, ignore_errors=True)
        self.release()

    def finish(self) -> None:
        """Remove what was kept for resuming; in a folder `runs`, point `latest` here."""
        self.abandon()
        if self.folder.resolve().parent.name != RUNS.name:
            return
        link = self.folder.parent / LATEST
        if link.is_symlink() or not link.exists():
            move_link(link, self.folder)


def check_replaceable(folder: Path) -> None:
    """Check that a folder can be replaced by a bundle without losing something.

    Raises:
        DataError: It exists and is no bundle, it is a link, or a link other than `latest` points to it, so that it may
            be served.
    """
    if folder.is_symlink():
        raise DataError(f"{folder}: a link; name a folder to write to")
    if (link := _link_to(folder)) is not None:
        raise DataError(f"{folder}: {link} points to it, so it may be served; name another folder, or remove it")
    is_used = folder.exists() and not (folder / "manifest.json").is_file()
    if is_used and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not a bundle; name another folder, or remove it")


def _link_to(folder: Path) -> Path | None:
    """Return a link in the bundle's parent folder that points to it, other than `latest`; None if there is none."""
    if not folder.is_dir():
        return None
    links = (path for path in sorted(folder.parent.iterdir()) if path.is_symlink() and path.name != LATEST)
    return next((link for link in links if link.resolve() == folder.resolve()), None)


def _free_name(stem: str) -> Path:
    hidden = (path.name.removeprefix(".") for path in RUNS.glob(f"*{stem}-*"))
    taken = {name.removesuffix(".training").removesuffix(".lock") for name in hidden}
    number = next(number for number in range(1, len(taken) + 2) if f"{stem}-{number}" not in taken)
    return RUNS / f"{stem}-{number}"


def fingerprint(config: RunConfig, continued: str | None = None) -> str:
    """Return a digest of the settings that decide the weights, and of the weights that a training goes on from."""
    content = _deciding(config, continued)
    if continued is not None:
        content["continued"] = continued
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def deciding_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings that decide the weights as JSON, each by its name, such as `training.seed`."""
    return {name: json.dumps(value) for name, value in _leaves(_deciding(config))}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _deciding(config: RunConfig, continued: str | None = None) -> dict[str, Any]:
    content: dict[str, Any] = config.model_dump(
        mode="json", exclude={"promotion"} | ({"continuation"} if continued is None else set())
    )
    for name in ("track", "experiment", "checkpoint_seconds", "table_sharding", "report_people"):
        del content["training"][name]
    del content["features"]["prepare_memory_gb"]
    return content


def _refuse_other_tables(workspace: Path, config: RunConfig, digests: Mapping[str, str]) -> None:
    """Refuse tables that are not those that a run began with: its weights would be those of other rows."""
    path = workspace / _TABLES
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = [name for name in digests if before.get(name) != digests[name]]
    if changed:
        table = getattr(config.features, changed[0])
        raise DataError(
            f"{table}: not the table that the unfinished run began with ({workspace}); put that one back, or train "
            "without --resume"
        )


def _age(folder: Path) -> float:
    return -folder.stat().st_mtime
