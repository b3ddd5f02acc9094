"""Bundles behind an alias of MLflow's model registry, `models:/two-towers@champion`: the only file here that knows it.

A version that the alias points to is fetched into `models/NAME/version-N` and verified, its index made if it has none;
then the link `models/NAME/ALIAS` moves there, and the workers follow the link as they follow any other. A process
beside the server looks at the alias, so that the workers need not load MLflow. Where the registry is out of reach, what
was fetched before goes on being served.
"""

from __future__ import annotations

import logging
import logging.config
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from features.errors import DataError
from features.files import move_link
from features.redaction import passwords_of, redacted
from serving.config import ServingConfig
from serving.deploy.prepare import ensure_index
from towers.bundle.manifest import BundleError, verify
from towers.process import own_python
from towers.warnings_filter import quiet_imports

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = Path("models")
"""Where versions are fetched to, in the working folder."""

_ADDRESS = re.compile(r"models:/+(?P<name>[^@/:]*[^@/:.][^@/:]*)@(?P<alias>\w[\w.-]*)")
_PREVIOUS = "previous"
# Left to itself, MLflow waits for minutes where a server does not answer.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_SECONDS_TO_END = 5
_log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Alias:
    """Where a registry says which version of a model is meant.

    Attributes:
        name: The registered model.
        alias: Which of its aliases.
    """

    name: str
    alias: str

    @classmethod
    def parse(cls, address: str | Path) -> Alias | None:
        """Return the alias of an address `models:/NAME@ALIAS`; None where it is something else.

        Example:
            >>> Alias.parse("models:/two-towers@champion")
            Alias(name='two-towers', alias='champion')
            >>> Alias.parse("runs/latest") is None
            True
        """
        found = _ADDRESS.fullmatch(str(address))
        return None if found is None else cls(found["name"], found["alias"])

    def __str__(self) -> str:
        """Return the address."""
        return f"models:/{self.name}@{self.alias}"

    @property
    def link(self) -> Path:
        """What points to the version that was fetched."""
        return FOLDER / self.name / self.alias


def fetch(alias: Alias, settings: ServingConfig | None = None) -> bool:
    """Fetch the version that an alias points to, unless it is there, and move the link; return whether it moved.

    Args:
        alias: The alias.
        settings: What a version is trusted with. None: the defaults.

    Raises:
        BundleError: What was fetched is not a bundle, or cannot be used.
        DataError: There is no such alias or version, the registry does not answer, or the index cannot be made.
    """
    return _fetch(alias, _version(alias), settings or ServingConfig())


def _fetch(alias: Alias, version: str, settings: ServingConfig) -> bool:
    folder = alias.link.with_name(f"version-{version}")
    if alias.link.is_symlink() and alias.link.resolve() == folder.resolve():
        return False
    if not folder.exists():
        _download(alias, version, folder, settings)
    ensure_index(folder, settings)
    move_link(alias.link, folder)
    return True


def fetched(alias: Alias, settings: ServingConfig | None = None) -> Path:
    """Return the link to the version that an alias points to, or to an older one if the registry does not answer.

    Args:
        alias: The alias.
        settings: What a version is trusted with. None: the defaults.

    Raises:
        BundleError: What was fetched cannot be used.
        DataError: There is no such alias, or the registry does not answer and nothing was fetched before.
    """
    try:
        fetch(alias, settings)
    except DataError as error:
        if not alias.link.exists():
            raise
        _log.warning("%s is served, as it was fetched before: %s", alias.link.resolve(), error)
    return alias.link


def promote(bundle: Path, alias: Alias, settings: ServingConfig | None = None) -> str:
    """Register a bundle with its index as a new version, let an alias point to it, and return the version.

    Args:
        bundle: The bundle.
        alias: The alias.
        settings: What the bundle is trusted with. None: the defaults.

    Raises:
        BundleError: It is not a bundle, or damaged.
        DataError: The registry does not answer.
    """
    verify(bundle, (settings or ServingConfig()).trust)
    version = _asked(alias, lambda client: _register(client, bundle.resolve(), alias))
    _asked(alias, lambda client: _point(client, alias, version))
    return version


def point_back(alias: Alias) -> str:
    """Let an alias point to the version that it pointed to before, and return that; once more, and it is undone.

    Raises:
        DataError: It is not known what it pointed to before, or the registry does not answer.
    """

    def back(client: MlflowClient) -> str | None:
        model = client.get_registered_model(alias.name)
        before: str | None = model.tags.get(f"{alias.alias}.{_PREVIOUS}")
        if before is None or before == str(model.aliases.get(alias.alias)):
            return None
        _point(client, alias, before)
        return before

    version = _asked(alias, back)
    if version is None:
        raise DataError(
            f"{alias}: `towers deploy` never moved it elsewhere; name a bundle to `towers deploy`, or set it in MLflow"
        )
    return version


@contextmanager
def followed(told: Path) -> Iterator[None]:
    """Let a process of its own look at an alias every so many seconds while the block runs.

    Args:
        told: What the server has told its workers; see `serving.server.server.WorkerInstructions`.
    """
    command = own_python("-m", "serving.server.follow_alias", str(told), str(os.getpid()))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def follow(alias: Alias, settings: ServingConfig, is_wanted: Callable[[], bool]) -> None:
    """Fetch whatever an alias points to, every `watch_seconds`, as long as that is wanted."""
    said = refused = ""
    while is_wanted():
        try:
            version = _version(alias)
            if version != refused and _fetch(alias, version, settings):
                _log.warning("%s: fetched version %s", alias, version)
            said = ""
        except BundleError as error:
            _log.error("version %s of %s is left alone, what was served goes on: %s", version, alias.name, error)
            refused = version  # to fetch it again would not mend it
        except Exception as error:  # a process that ended would never look again
            if str(error) != said:
                _log.error("what was served goes on: %s", error)
            said = str(error)
        time.sleep(settings.watch_seconds)


def _version(alias: Alias) -> str:
    return _asked(alias, lambda client: str(client.get_model_version_by_alias(alias.name, alias.alias).version))


def _register(client: MlflowClient, bundle: Path, alias: Alias) -> str:
    run = client.create_run(_experiment_id(client, alias.name), run_name=bundle.name)
    try:
        client.log_artifacts(run.info.run_id, str(bundle), "bundle")
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    if not client.search_registered_models(f"name = '{alias.name}'"):
        client.create_registered_model(alias.name)
    source = f"{run.info.artifact_uri}/bundle"
    return str(client.create_model_version(alias.name, source, run.info.run_id).version)


def _point(client: MlflowClient, alias: Alias, version: str) -> None:
    aliases = client.get_registered_model(alias.name).aliases
    client.set_registered_model_alias(alias.name, alias.alias, version)
    if alias.alias in aliases:
        client.set_registered_model_tag(alias.name, f"{alias.alias}.{_PREVIOUS}", str(aliases[alias.alias]))


def _download(alias: Alias, version: str, folder: Path, settings: ServingConfig) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))

    def download(client: MlflowClient) -> Path:
        from mlflow.artifacts import download_artifacts

        address, uri = f"models:/{alias.name}/{version}", _uri()
        return Path(download_artifacts(address, dst_path=str(temporary), tracking_uri=uri, registry_uri=uri))

    try:
        found = _asked(alias, download)
        # What MLflow adds of its own does not belong to the bundle.
        (found / "registered_model_meta").unlink(missing_ok=True)
        verify(found, settings.trust)
        found.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _asked(alias: Alias, question: Callable[[MlflowClient], Result]) -> Result:
    """Return what the registry answers.

    Raises:
        DataError: It does not answer, or has no such thing.
    """
    try:
        client = _client()
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise DataError(f"{alias}: MLflow is not installed ({error}); pip install mlflow") from None
    try:
        with _patience():
            return question(client)
    except (MlflowException, OSError) as error:
        said = redacted(" ".join(str(error).split()), *passwords_of(os.environ))[:300]
        raise DataError(
            f"{alias}: MLflow at {redacted(_uri())} says: {said}; see that MLFLOW_TRACKING_URI names the right one"
        ) from None


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd().resolve()}/mlflow.db"


def _client() -> MlflowClient:
    quiet_imports()
    for name in ("alembic", "mlflow.store", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(_uri(), _uri())


@contextmanager
def _patience() -> Iterator[None]:
    """Let MLflow, which reads such settings from the environment, wait no longer than that for a server."""
    own = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


def _experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment; a new one in SQLite keeps its files beside the database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if _uri().startswith("sqlite:///"):
        location = (Path(_uri().removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))
