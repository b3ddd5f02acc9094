"""Experiment tracking in MLflow; the only file that imports it.

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
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from features.files import create_once
from features.redaction import passwords_of, redacted
from towers.warnings_filter import quiet_imports

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
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
LIBRARIES = ("two-towers", "torch", "torchrec", "mlflow")
SYSTEM_SECONDS = 10
"""Time between two readings of processor, memory, disk and network."""

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
    ) -> Tracker:
        """Start a run, or continue one.

        Args:
            enabled: False: nothing is recorded, and MLflow is not even imported.
            experiment: Made if there is none of this name.
            run_name: What the run is called in the list.
            params: The settings, tables within tables; recorded as `table.key`.
            tags: Digests of the data and the like. Versions of the libraries are added.
            run_id: Id of an interrupted run to continue. If the store no longer has it, a new run starts.
            folder: Where the default store lies. None: the working directory.
        """
        tracker = cls()
        if enabled:
            tracker.uri = (
                os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder or Path.cwd()).resolve()}/mlflow.db"
            )
            tracker._wait_at_most(ANSWER_SECONDS)
            try:
                tracker._try(lambda: tracker._begin(experiment, run_name, params, dict(tags or {}), run_id))
            except BaseException:
                tracker.close("KILLED")
                raise
            if tracker._client is None:
                tracker._forget_limits()
        return tracker

    @property
    def how_to_look(self) -> str | None:
        """The command or address that shows the run; None where nothing is recorded."""
        if self.run_id is None or self.uri is None:
            return None
        if self.uri.startswith("sqlite:"):
            return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"
        return redacted(self.uri)

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

    def log_artifacts(self, folder: Path, name: str = "bundle") -> None:
        """Record the files of a folder under `name`."""
        if self._client is None or self.run_id is None:
            return
        client, run_id = self._client, self.run_id
        self._wait_at_most(UPLOAD_SECONDS)
        self._try(lambda: client.log_artifacts(run_id, str(folder), name))
        self._wait_at_most(ANSWER_SECONDS)

    def log_artifact(self, path: Path, name: str) -> None:
        """Record one file in the folder `name`."""
        if self._client is None or self.run_id is None:
            return
        client, run_id = self._client, self.run_id
        self._wait_at_most(UPLOAD_SECONDS)
        self._try(lambda: client.log_artifact(run_id, str(path), name))
        self._wait_at_most(ANSWER_SECONDS)

    def close(self, status: Status = "FINISHED") -> None:
        """Send the remaining values and end the run. May be called again."""
        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return
        if self._monitor is not None:
            self._try(self._monitor.finish)
        self._write()
        self._try(lambda: client.set_terminated(run_id, status))
        self._client = None
        self._forget_limits()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run as it went."""
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _begin(
        self, experiment: str, run_name: str, params: Mapping[str, Any], tags: dict[str, str], run_id: str | None
    ) -> None:
        assert self.uri is not None
        client = _client(self.uri)
        run = _resumed(client, run_id)
        if run is None:
            experiment_id = _experiment_id(client, experiment, self.uri)
            run = str(client.create_run(experiment_id, tags=_tags(tags), run_name=run_name).info.run_id)
        # From here on `close` ends the run, whatever else goes wrong.
        self._client, self.run_id = client, run
        if run != run_id:
            for batch in _params(params):
                self._send(params=batch)
        self._try(lambda: self._watch_machine(run, is_resumed=run == run_id))

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


def _client(uri: str) -> MlflowClient:
    """Return a client of the store; importing MLflow takes a second, so not before it is needed."""
    quiet_imports()
    for name in ("alembic", "mlflow.store", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.system_metrics", "urllib3.connectionpool"):  # we say ourselves that the store is away
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from mlflow import MlflowClient

    place = uri.removeprefix("sqlite:///").partition("?")[0] if uri.startswith("sqlite:///") else ""
    if place not in ("", ":memory:"):
        create_once(Path(place), _make_store)
    return MlflowClient(uri)


def _make_store(path: Path) -> None:
    """Make an empty SQLite store. To make one takes dozens of migrations, which spoil each other if two run at once."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{path.resolve()}", "./mlruns").engine.dispose()


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the experiment; a new one in SQLite keeps its files next to the database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        made_meanwhile = client.get_experiment_by_name(name)
        if made_meanwhile is None:
            raise
        return str(made_meanwhile.experiment_id)


def _resumed(client: MlflowClient, run_id: str | None) -> str | None:
    """Return the id of an interrupted run, running again; None if there is none or the store has lost it."""
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
    return run_id


def _tags(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags and the versions of the libraries that decide the result."""
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = version(library)
        except PackageNotFoundError:  # run from the sources without installing them
            continue
    return {"mlflow.source.name": "towers", "mlflow.source.type": "LOCAL", **tags}


def _params(values: Mapping[str, Any]) -> Iterator[list[Param]]:
    """Yield the settings as parameters, as many at a time as a request takes."""
    from mlflow.entities import Param

    flat = {_name(name): value[:MAX_PARAM_CHARACTERS] for name, value in flattened(values).items()}
    params = [Param(name, value) for name, value in flat.items()]
    for start in range(0, len(params), PARAMS_BATCH):
        yield params[start : start + PARAMS_BATCH]
