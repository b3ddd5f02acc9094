"""The folder of a tuning: its trials, and which worker trains which of them.

The trials are in Optuna's journal (`study.jsonl`), which several processes may append to. A worker holds a lock of the
operating system on each trial that it trains, so that a trial whose worker was killed is recognised at once: it is
marked as failed and continued, from its checkpoint, as a new trial with the same values.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from features.errors import DataError
from features.files import create_once
from training.tuning.space import Space

PrunerName = Literal["median", "halving", "none"]
PRUNERS: tuple[str, ...] = get_args(PrunerName)
MAX_ATTEMPTS = 3
"""How often a trial is begun whose worker dies; a model that does not fit into memory would be begun for ever."""
SECONDS_TO_ENTER = 10
WARMUP_EPOCHS = 3
"""Epochs before a trial may be pruned: the learning rates are still rising."""
STARTUP_TRIALS = 4
"""Trials before one may be pruned."""

_ABOUT, _JOURNAL, _TRIALS = "tuning.json", "study.jsonl", "trials"
_NAME = "towers tune"
_FORMAT = 1


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as it ended or is.

    Attributes:
        number: Its number, from 0; all attempts of a trial have the same.
        state: `complete`, `pruned`, or `running`.
        value: Best validation N@10; None where no epoch ended.
        params: Its values in the search space.
        epochs: Epochs of its last attempt.
        seconds: Duration of its last attempt.
        reason: Why it was pruned.
        is_default: Whether its values are those of run.toml.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    epochs: int
    seconds: float
    reason: str
    is_default: bool

    @classmethod
    def of(cls, trial: FrozenTrial, number: int) -> TrialRecord:
        """Return an attempt of Optuna's."""
        values = trial.intermediate_values
        return cls(
            number=number,
            state=trial.state.name.lower(),
            value=trial.value if trial.state == TrialState.COMPLETE else max(values.values(), default=None),
            params=dict(trial.params),
            epochs=max(values, default=0),
            seconds=0.0 if trial.duration is None else trial.duration.total_seconds(),
            reason=str(trial.user_attrs.get("reason", "")),
            is_default=bool(trial.user_attrs.get("is_default")),
        )


class Claim(AbstractContextManager["Claim"]):
    """A trial that this worker trains. As a context manager it gives the trial back, finished or not."""

    def __init__(self, trial: Trial, number: int, folder: Path, lock: int) -> None:
        self._trial = trial
        self._lock = lock
        self.number = number
        """Its number; all attempts of a trial have the same."""
        self.folder = folder
        """Folder of its checkpoints."""

    @property
    def params(self) -> dict[str, Any]:
        """Its values in the search space."""
        return self._trial.params

    @property
    def is_default(self) -> bool:
        """Whether it is run.toml as it is; such a trial is never pruned."""
        return bool(self._trial.user_attrs.get("is_default"))

    @property
    def tracked_as(self) -> str | None:
        """Its id in MLflow."""
        run_id = self._trial.user_attrs.get("mlflow_run")
        return None if run_id is None else str(run_id)

    @tracked_as.setter
    def tracked_as(self, run_id: str | None) -> None:
        if run_id != self.tracked_as:
            self._trial.set_user_attr("mlflow_run", run_id)

    def report(self, epoch: int, best: float) -> None:
        """Record the best validation N@10 so far."""
        self._trial.report(best, epoch)

    def check_promising(self) -> None:
        """Compare what was reported with other trials.

        Raises:
            optuna.TrialPruned: The trial is not promising.
        """
        if not self.is_default and self._trial.should_prune():
            raise optuna.TrialPruned("not promising")

    def finish(self, value: float) -> None:
        """Record the result."""
        self._trial.study.tell(self._trial, value)

    def prune(self, reason: str) -> None:
        """Record that the trial ended early."""
        self._trial.set_user_attr("reason", reason)
        self._trial.study.tell(self._trial, state=TrialState.PRUNED)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the trial: where it is not finished, the next worker continues it."""
        os.close(self._lock)


class Tuning(AbstractContextManager["Tuning"]):
    """An open folder of a tuning, which other workers may have open, too.

    Attributes:
        folder: The folder.
        joined: Whether another worker was at work when this one opened it.
    """

    def __init__(
        self, folder: Path, study: optuna.Study, space: Space, defaults: Mapping[str, Any], seed: int, workers: int
    ) -> None:
        self.folder = folder
        self.joined = False
        self._study = study
        self._space = dict(space)
        self._defaults = dict(defaults)
        self._seed = seed
        self._workers = workers

    @classmethod
    def open(
        cls,
        folder: Path,
        about: Mapping[str, Any],
        *,
        space: Space,
        defaults: Mapping[str, Any],
        seed: int,
        pruner: PrunerName,
    ) -> Tuning:
        """Open the folder, or make it.

        Args:
            folder: The folder.
            about: What all workers must agree on, such as the settings and the digests of the tables; JSON.
            space: The search space.
            defaults: The values of run.toml in it, for the first trial.
            seed: For the choice of values.
            pruner: When a trial is ended early.

        Raises:
            DataError: The folder has something else in it, or a tuning of other settings, tables or values.
        """
        _agree(folder, {"format": _FORMAT, **about})
        (folder / _TRIALS).mkdir(exist_ok=True)
        workers = os.open(folder / ".workers.lock", os.O_RDWR | os.O_CREAT)
        try:
            is_alone = _try_lock(workers, fcntl.LOCK_EX)
            if is_alone:
                _cut_torn_line(folder / _JOURNAL)
            _share(workers, folder)
            tuning = cls(folder, _open_study(folder / _JOURNAL, pruner), space, defaults, seed, workers)
        except BaseException:
            os.close(workers)
            raise
        tuning.joined = not is_alone
        return tuning

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the folder."""
        os.close(self._workers)

    @property
    def tracked_as(self) -> str | None:
        """The id of the whole tuning in MLflow."""
        run_id = self._study.user_attrs.get("mlflow_run")
        return None if run_id is None else str(run_id)

    @tracked_as.setter
    def tracked_as(self, run_id: str | None) -> None:
        self._study.set_user_attr("mlflow_run", run_id)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials but failed attempts, by number."""
        trials = self._trials()
        numbers = _numbers(trials)
        found = [TrialRecord.of(trial, numbers[trial.number]) for trial in trials if trial.state in _COUNTED]
        return tuple(sorted(found, key=lambda one: one.number))

    @property
    def num_given_up(self) -> int:
        """Trials that were not continued, because their workers died each time."""
        return sum(_attempt(one) >= MAX_ATTEMPTS for one in self._trials() if one.state == TrialState.FAIL)

    @property
    def default(self) -> TrialRecord | None:
        """The trial of run.toml as it is; None until it is complete."""
        return next((one for one in self.records if one.is_default and one.state == "complete"), None)

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the highest validation N@10, of several the default, then the first; None: none."""
        complete = [one for one in self.records if one.state == "complete"]
        return max(complete, key=lambda one: (one.value or 0.0, one.is_default, -one.number), default=None)

    def importances(self) -> dict[str, float]:
        """Return how much each setting decides the result, 0 to 1, the most important first (PED-ANOVA).

        Empty for fewer than four complete trials, of which it could say nothing.
        """
        complete = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        if len(complete) < 4 or len({trial.value for trial in complete}) == 1:
            return {}
        return optuna.importance.get_param_importances(self._study)

    def checkpoints_of(self, trial: TrialRecord) -> Path:
        """Return the folder of a trial's checkpoints."""
        return self._checkpoints(trial.number)

    def claim(self, most: int) -> Claim | None:
        """Return a trial for this worker: one that was interrupted, else a new one.

        Args:
            most: Number of trials of the tuning, running ones included; None is returned where there are so many.
        """
        with self._locked():
            self._continue_interrupted()
            self._remove_checkpoints()
            trials = self._trials()
            counted = sum(trial.state in _COUNTED for trial in trials)
            if counted >= most:
                return None
            wanted = (*_COUNTED, TrialState.WAITING)
            if not any(trial.user_attrs.get("is_default") for trial in trials if trial.state in wanted):
                self._study.enqueue_trial(self._defaults, user_attrs={"is_default": True})
            # Decided by the trials there are, not by how often the search was interrupted.
            self._study.sampler = TPESampler(seed=self._seed * 1_000_003 + counted + self.num_given_up)
            trial = self._study.ask(self._space)
            lock = os.open(self._lock_of(trial.number), os.O_RDWR | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX)
            number = _numbers(self._trials())[trial.number]
        folder = self._checkpoints(number)
        folder.mkdir(exist_ok=True)
        return Claim(trial, number, folder, lock)

    def leave_as_last(self) -> bool:
        """Leave the workers, and return whether this was the last one; none can enter until it closes the folder."""
        return _try_lock(self._workers, fcntl.LOCK_EX)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.folder / ".claims.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _continue_interrupted(self) -> None:
        """Mark the trials of dead workers as failed, and queue them again; each step can be repeated."""
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and self._is_free(trial.number):
                self._study.tell(trial.number, state=TrialState.FAIL)
        trials = self._trials()
        continued = {trial.user_attrs.get("continues") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.number not in continued and _attempt(trial) < MAX_ATTEMPTS:
                known = {
                    **trial.user_attrs,
                    "continues": trial.number,
                    "attempt": _attempt(trial) + 1,
                }
                params = self._defaults if trial.user_attrs.get("is_default") else trial.params
                self._study.enqueue_trial(params, user_attrs=known)

    def _remove_checkpoints(self) -> None:
        """Keep only the checkpoints that are still needed: of the best, of the default, and of unfinished trials."""
        needed = {one.number for one in (self.best, self.default) if one is not None}
        for one in self.records:
            if one.state != "running" and one.number not in needed:
                shutil.rmtree(self.checkpoints_of(one), ignore_errors=True)
        for trial in self._trials():
            if trial.state.is_finished():
                self._lock_of(trial.number).unlink(missing_ok=True)

    def _checkpoints(self, number: int) -> Path:
        return self.folder / _TRIALS / f"{number:04d}"

    def _lock_of(self, number: int) -> Path:
        return self.folder / _TRIALS / f".{number:04d}.lock"

    def _is_free(self, number: int) -> bool:
        try:
            lock = os.open(self._lock_of(number), os.O_RDWR)
        except FileNotFoundError:  # its worker died before it locked the trial
            return True
        try:
            return _try_lock(lock, fcntl.LOCK_EX)
        finally:
            os.close(lock)


_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def _numbers(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Return the number of the trial of each attempt, by the number of the attempt."""
    numbers: dict[int, int] = {}
    for trial in trials:
        continued = trial.user_attrs.get("continues")
        numbers[trial.number] = len({*numbers.values()}) if continued is None else numbers[continued]
    return numbers


def _attempt(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempt", 1))


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _share(workers: int, folder: Path) -> None:
    """Enter the workers of a folder; another one that enters at the same moment holds the lock for less than a second.

    Raises:
        DataError: The last worker of the folder is comparing, and takes no more trials.
    """
    deadline = time.monotonic() + SECONDS_TO_ENTER
    while not _try_lock(workers, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            raise DataError(f"{folder}: another worker is comparing the best settings; start again when it has ended")
        time.sleep(0.1)


def _agree(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what the tuning is about, or compare it with what is written.

    Raises:
        DataError: The folder has something else in it, or is about something else.
    """
    path, text = folder / _ABOUT, json.dumps(about, indent=1, sort_keys=True)
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: exists and is not the folder of a tuning; name another --output")
        create_once(path, lambda made: made.write_text(text, encoding="utf-8"))
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in {**there, **about} if there.get(name) != json.loads(text).get(name)]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); name another --output") from None
    if changed:
        raise DataError(
            f"{folder}: the tuning there began with other {_CALLED.get(changed[0], changed[0])}; its trials cannot be "
            "compared with new ones; put them back, or name another --output"
        )


_CALLED = {"digests": "tables", "space": "values to search ([tune])", "format": "files (another version of towers)"}


def _open_study(path: Path, pruner: PrunerName) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(pruner),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); name another --output to begin again") from None


def _pruner(name: PrunerName) -> BasePruner:
    match name:
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS)
        case "halving":
            return SuccessiveHalvingPruner(min_resource=WARMUP_EPOCHS, reduction_factor=3)
        case "none":
            return NopPruner()


def _cut_torn_line(path: Path) -> None:
    """Remove the last line of the journal if it was not written to its end, as on a full disk."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
