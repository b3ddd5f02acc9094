"""Experiment tracking in MLflow.

By default runs go into `mlflow.db` (SQLite) in the working directory, and their files into `mlartifacts/`; the
environment variable `MLFLOW_TRACKING_URI` sends them anywhere else. Recording never stops a training run: when the
store does not answer, a one-line warning is printed and training continues. Values are collected and sent every few
seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import psutil

from features.redaction import passwords_of, redacted
from towers.process import Stopped
from towers.tracking.logged_model import Examples, log_bundle
from towers.tracking.store import experiment_id, how_to_open, make_client, tracking_uri
from training.runs.cost import Cost
from training.runs.provenance import code_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Param, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

WRITE_SECONDS = 5.0
"""Time between two writings of the collected values."""
PAUSE_SECONDS = 60.0
"""Seconds without another attempt after the store did not answer."""
ANSWER_SECONDS = 3
"""Timeout of requests to a server, in seconds, unless MLFLOW_HTTP_REQUEST_TIMEOUT is set."""
UPLOAD_SECONDS = 120
"""The same for files."""
SERVER_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""While a run is recorded MLflow waits no longer than this, in its threads as well; by itself it waits for minutes."""
MAX_WAITING = 50_000
"""Maximum values kept while the store does not answer; the oldest are dropped first."""
BATCH = 1_000
"""Most values in one request; MLflow's own limit."""
PARAMS_BATCH = 100
"""Most parameters in one request; MLflow's own limit."""
MAX_PARAM_CHARACTERS = 6_000
"""Longest parameter; MLflow's own limit."""
MAX_NAME_CHARACTERS = 250
"""Longest name of a parameter or a metric; MLflow's own limit."""
MAX_TAG_CHARACTERS = 8_000
"""Longest tag; MLflow's own limit."""
SYSTEM_SECONDS = 10
"""Time between two readings of processor, memory, disk and network."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run, in Markdown."""
ENDED_BY = "ended_by"
"""The tag that says why a run failed or was killed."""
MAX_REASON_CHARACTERS = 1_000
PROCESS = "process"
"""The tag that says which process writes a run, so that one that ended without a word can be found."""
LOST = "its process ended without a word: killed (out of memory, kill -9), or the machine stopped"

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(AbstractContextManager["Tracker"]):
    """One run in MLflow; does nothing if tracking is off or the store is unreachable.

    As a context manager it ends the run as finished, failed (an exception) or killed (Ctrl-C, SIGTERM). An error of the
    store never stops training.

    Example:
        >>> with Tracker.start(enabled=False, experiment="demo", run_name="first", params={}) as tracker:
        ...     tracker.log_metrics({"loss": 0.5}, step=1)
        >>> tracker.run_id is None
        True
    """

    def __init__(self) -> None:
        """Record nothing; `start` returns one that does."""
        self.run_id: str | None = None
        self.uri: str | None = None
        self._client: MlflowClient | None = None
        self._waiting: list[Metric] = []
        self._next_write = 0.0
        self._told: set[str] = set()
        self._monitor: SystemMetricsMonitor | None = None
        self._limits = [name for name in SERVER_LIMITS if name not in os.environ]
        self._experiment = ""
        self._experiment_id: str | None = None
        self._folder = Path.cwd()
        self._cost = Cost()

    @classmethod
    def start(
        cls,
        *,
        enabled: bool,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        folder: Path | None = None,
        parent: str | None = None,
    ) -> Tracker:
        """Start a run, or continue one.

        Args:
            enabled: False: nothing is recorded, and MLflow is not even imported.
            experiment: Made if there is none of this name.
            run_name: What the run is called in the list.
            params: The settings, tables within tables; recorded as `table.key`.
            tags: Digests of the data and the like. Versions of the libraries and of the code are added.
            run_id: Id of an interrupted run to continue. If the store no longer has it, a new run starts.
            folder: Whose version in Git is recorded. None: the working directory.
            parent: Id of the run that this one is nested in.
        """
        tracker = cls()
        tracker._experiment, tracker._folder = experiment, folder or Path.cwd()
        if enabled:
            tracker.uri = tracking_uri()
            tracker._wait_at_most(ANSWER_SECONDS)
            try:
                nested = {} if parent is None else {"mlflow.parentRunId": parent}
                tracker._try(lambda: tracker._begin(experiment, run_name, params, {**(tags or {}), **nested}, run_id))
            except BaseException as error:
                tracker.close("KILLED", _reason(error))
                raise
            if tracker._client is None:
                tracker._forget_limits()
        return tracker

    @property
    def how_to_look(self) -> str | None:
        """The page of the run, with the command that shows it where no server does; None where nothing is recorded."""
        if self.run_id is None or self.uri is None or self._experiment_id is None:
            return None
        return how_to_open(self.uri, self._experiment_id, self.run_id)

    def nested(self, run_name: str, params: Mapping[str, Any]) -> Tracker:
        """Start a run within this one; it does nothing if this one does nothing."""
        return Tracker.start(
            enabled=self._client is not None,
            experiment=self._experiment,
            run_name=run_name,
            params=params,
            folder=self._folder,
            parent=self.run_id,
        )

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values of one step; they are sent with the next few seconds' worth."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1_000)
        self._waiting += [Metric(_name(name), float(value), now, step) for name, value in values.items()]
        del self._waiting[:-MAX_WAITING]
        if time.monotonic() >= self._next_write:
            self._write()

    def log_data(self, make: Callable[[], list[DatasetInput]]) -> None:
        """Record the data sets that a function returns, which is called only if anything is recorded."""
        self._do(lambda client, run_id: client.log_inputs(run_id, make()))

    def describe(self, text: str) -> None:
        """Set the description that MLflow shows above a run, in Markdown."""
        self._do(lambda client, run_id: client.set_tag(run_id, NOTE, text[:MAX_TAG_CHARACTERS]))

    def log_text(self, text: str, name: str) -> None:
        """Record a text as the file `name`."""
        self._upload(lambda client, run_id: client.log_text(run_id, text, name))

    def log_artifacts(self, folder: Path, name: str) -> None:
        """Record the files of a folder under `name`."""
        self._upload(lambda client, run_id: client.log_artifacts(run_id, str(folder), name))

    def log_artifact(self, path: Path, name: str | None = None) -> None:
        """Record one file in the folder `name`; None: next to such folders."""
        self._upload(lambda client, run_id: client.log_artifact(run_id, str(path), name))

    def log_bundle(self, bundle: Path, examples: Examples, name: str, step: int, tags: Mapping[str, str]) -> None:
        """Record a bundle as the model of this run, and register it.

        Args:
            bundle: The folder.
            examples: Inputs that it answers.
            name: Name of the registered model.
            step: Training steps at which the weights were taken.
            tags: Tags of the model and of its version.
        """
        experiment = self._experiment_id or ""
        self._upload(
            lambda client, run_id: log_bundle(
                client, experiment, run_id, bundle, examples, name=name, tags=tags, step=step
            )
        )

    def close(self, status: Status = "FINISHED", why: str | None = None) -> None:
        """Send the remaining values and end the run. May be called again.

        Args:
            status: How it ended.
            why: Of a run that did not finish: what ended it.
        """
        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return
        try:
            if why is not None:
                self._try(lambda: _explain(client, run_id, why))
            if self._monitor is not None:
                self._try(self._monitor.finish)
            self._try(self._add_cost)
            self._write()
        finally:  # a second Ctrl-C leaves no run that seems to go on
            self._try(lambda: client.set_terminated(run_id, status))
            self._client = None
            self._forget_limits()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run as it went."""
        if error is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", _reason(error))

    def _begin(
        self, experiment: str, run_name: str, params: Mapping[str, Any], tags: dict[str, str], run_id: str | None
    ) -> None:
        assert self.uri is not None
        client = make_client(self.uri)
        for name in ("mlflow.system_metrics", "urllib3.connectionpool"):  # we say ourselves that the store is away
            logging.getLogger(name).setLevel(logging.CRITICAL)
        run = _resumed(client, run_id)
        if run is None:
            own = experiment_id(client, experiment, self.uri)
            self._try(lambda: _end_lost_runs(client, own))
            tags = {**code_tags(self._folder), PROCESS: _this_process(), **tags}
            run = client.create_run(own, tags=tags, run_name=run_name)
        # From here on `close` ends the run, whatever else goes wrong.
        self._client, self.run_id, self._experiment_id = client, str(run.info.run_id), str(run.info.experiment_id)
        if self.run_id != run_id:
            for batch in _params(params):
                self._send(params=batch)
        own_id = self.run_id
        self._try(lambda: self._watch_machine(own_id, is_resumed=own_id == run_id))

    def _add_cost(self) -> None:
        """Add what this process spent to what earlier ones spent on the run."""
        client, run_id = self._client, self.run_id
        assert client is not None
        assert run_id is not None
        before = client.get_run(run_id).data.metrics
        spent = self._cost.metrics()
        added = {name: value + before.get(name, 0.0) for name, value in spent.items() if name.endswith("seconds")}
        self.log_metrics(spent | added, step=0)

    def _watch_machine(self, run: str, *, is_resumed: bool) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run, SYSTEM_SECONDS, resume_logging=is_resumed, tracking_uri=self.uri)
        monitor.start()
        self._monitor = monitor

    def _write(self) -> bool:
        """Send the waiting values; return whether the store took them."""
        self._next_write = time.monotonic() + WRITE_SECONDS
        while self._waiting:
            batch = self._waiting[:BATCH]
            if not self._send(metrics=batch):
                self._next_write = time.monotonic() + PAUSE_SECONDS
                return False
            del self._waiting[: len(batch)]
        return True

    def _send(self, **batch: Sequence[Metric | Param]) -> bool:
        """Send `metrics` or `params`, and return whether the store answered.

        Values that it refuses are left out and reported: a refused batch is halved until only those remain.
        """
        client, run_id = self._client, self.run_id
        assert client is not None
        assert run_id is not None
        ((kind, entities),) = batch.items()
        try:
            with warnings.catch_warnings(action="ignore"):
                client.log_batch(run_id, **batch)  # type: ignore[arg-type]
        except Exception as error:
            if not _is_refusal(error):
                self._warn(error)
                return False
            if len(entities) > 1:
                middle = len(entities) // 2
                return self._send(**{kind: entities[:middle]}) and self._send(**{kind: entities[middle:]})
            self._warn(error, refused=entities[0].key)
        return True

    def _wait_at_most(self, seconds: int) -> None:
        """Set MLflow's request timeout; a value in the environment takes precedence."""
        os.environ.update({name: SERVER_LIMITS[name] for name in self._limits})
        if "MLFLOW_HTTP_REQUEST_TIMEOUT" in self._limits:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds)

    def _forget_limits(self) -> None:
        for name in self._limits:
            os.environ.pop(name, None)

    def _do(self, action: Callable[[MlflowClient, str], object]) -> None:
        """Run an action on the run, if there is one."""
        client, run_id = self._client, self.run_id
        if client is not None and run_id is not None:
            self._try(lambda: action(client, run_id))

    def _upload(self, action: Callable[[MlflowClient, str], object]) -> None:
        """Run an action that sends files."""
        if self._client is None:
            return
        self._wait_at_most(UPLOAD_SECONDS)
        self._do(action)
        self._wait_at_most(ANSWER_SECONDS)

    def _try(self, action: Callable[[], object]) -> None:
        """Run an action on the store; an error is reported and does not stop training."""
        try:
            with warnings.catch_warnings(action="ignore"):
                action()
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception, refused: str | None = None) -> None:
        """Tell once that the store fails, and once what it refuses first."""
        if refused is not None:
            kind, what = "refusal", f"refuses {refused!r}, and records the rest"
        else:
            kind, what = "failure", f"does not record {'this run' if self.run_id is None else 'all of this run'}"
        if kind not in self._told:
            reason = redacted(" ".join(str(error).split()), *passwords_of(os.environ))[:200]
            logger.warning("MLflow at %s %s; training continues (%s)", redacted(self.uri or ""), what, reason)
        self._told.add(kind)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return tables within tables as one, `table.key`; lists as JSON.

    Example:
        >>> flattened({"towers": {"embedding_dim": 64, "layers": [1, 2]}, "seed": None})
        {'towers.embedding_dim': '64', 'towers.layers': '[1, 2]', 'seed': 'None'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | tuple) else str(value)
    return flat


def _name(name: str) -> str:
    """Return a name that MLflow takes: without characters such as `@`, a path that is written plainly, and not long.

    Example:
        >>> _name("slice/Home//Kitchen/ndcg@10"), _name("../x")
        ('slice/Home/_/Kitchen/ndcg_at_10', '_/x')
    """
    plain = re.sub(r"[^\w\-. /:]", "_", name.replace("@", "_at_"))
    path = "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))
    if len(path) <= MAX_NAME_CHARACTERS:
        return path
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]  # names that begin alike stay apart
    return f"{path[: MAX_NAME_CHARACTERS - len(digest) - 1]}-{digest}"


def _is_refusal(error: Exception) -> bool:
    """Whether a store rejected the values themselves, so that a retry would fail as well."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.get_http_status_code() == 400


def _resumed(client: MlflowClient, run_id: str | None) -> Run | None:
    """Return an interrupted run, running again; None if there is none or the store has lost it."""
    if run_id is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if run.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, PROCESS, _this_process())
    for name in (ENDED_BY, NOTE):
        if name in run.data.tags:
            client.delete_tag(run_id, name)
    return run


def _this_process() -> str:
    """Return what tells this process from all others: host, id and start."""
    own = psutil.Process()
    return f"{socket.gethostname()} {own.pid} {own.create_time():.0f}"


def _is_alive(process: str) -> bool:
    """Return whether a process of this machine runs, as `_this_process` describes it."""
    _, pid, started = process.rsplit(" ", 2)
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, ValueError):
        return True  # what cannot be known is left as it is


def _end_lost_runs(client: MlflowClient, experiment: str) -> None:
    """Mark the runs of an experiment whose process on this machine is gone as killed: it could not do so itself."""
    here = f"{socket.gethostname()} "
    running = f"attributes.status = 'RUNNING' and tags.{PROCESS} LIKE '{here}%'"
    for run in client.search_runs([experiment], running, max_results=100):
        process = run.data.tags[PROCESS]
        if process.startswith(here) and not _is_alive(process):
            _explain(client, run.info.run_id, LOST)
            client.set_terminated(run.info.run_id, "KILLED")


def _explain(client: MlflowClient, run_id: str, why: str) -> None:
    """Say why a run did not finish: in a tag, to be searched, and in the description, to be read."""
    client.set_tag(run_id, ENDED_BY, why)
    client.set_tag(run_id, NOTE, f"**Not finished**: {why}")


def _reason(error: BaseException) -> str:
    """Return what ended a run, in one line without secrets."""
    if isinstance(error, KeyboardInterrupt):
        return signal.Signals(error.signal if isinstance(error, Stopped) else signal.SIGINT).name
    said = redacted(" ".join(str(error).split()), *passwords_of(os.environ))[:MAX_REASON_CHARACTERS]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _params(values: Mapping[str, Any]) -> Iterator[list[Param]]:
    """Yield the settings as parameters, as many at a time as a request takes."""
    from mlflow.entities import Param

    flat = {_name(name): value[:MAX_PARAM_CHARACTERS] for name, value in flattened(values).items()}
    params = [Param(name, value) for name, value in flat.items()]
    for start in range(0, len(params), PARAMS_BATCH):
        yield params[start : start + PARAMS_BATCH]
