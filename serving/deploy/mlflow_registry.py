"""Bundles behind an alias of MLflow's model registry, such as `models:/two-towers@champion`.

The version that the alias points to is downloaded to `models/NAME/version-N` and verified, and its index built if it
has none; then the link `models/NAME/ALIAS` is set to it, which the workers follow like any other link. A separate
process polls the alias, so that the workers need not import MLflow. While the registry does not respond, the version
downloaded last is served. No other file of `serving` imports MLflow.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from features.errors import DataError
from features.files import move_link
from features.redaction import passwords_of, redacted
from serving.config import ServingConfig
from serving.deploy.prepare import ensure_index
from towers.bundle.manifest import BundleError, verify
from towers.process import own_python
from towers.tracking.logged_model import Examples, bundle_in, log_bundle
from towers.tracking.store import experiment_id, make_client, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = Path("models")
"""Folder for downloaded versions, within the working directory."""

_ADDRESS = re.compile(r"models:/+(?P<name>[^@/:]*[^@/:.][^@/:]*)@(?P<alias>\w[\w.-]*)")
_PREVIOUS = "previous"
_ROLLED_BACK = "rolled_back"
# By default, MLflow waits for minutes for a server that does not respond.
_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_SECONDS_TO_END = 5
_log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Alias:
    """An alias of a registered model, which points to one of its versions.

    Attributes:
        name: Name of the registered model.
        alias: Name of the alias.
    """

    name: str
    alias: str

    @classmethod
    def parse(cls, address: str | Path) -> Alias | None:
        """Return the alias of an address `models:/NAME@ALIAS`; None for any other address.

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
        """The link to the downloaded version."""
        return FOLDER / self.name / self.alias


def fetch(alias: Alias, settings: ServingConfig | None = None) -> bool:
    """Download the version that an alias points to, if necessary, and set the link; return whether the link changed.

    Args:
        alias: The alias.
        settings: The settings of the service, of which its `trust` counts. None: the defaults.

    Raises:
        BundleError: The version is not a bundle, or cannot be used.
        DataError: There is no such alias or version, the registry does not respond, or the index cannot be built.
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
    """Return the link to the version that an alias points to, or to an older one if the registry does not respond.

    Args:
        alias: The alias.
        settings: The settings of the service, of which its `trust` counts. None: the defaults.

    Raises:
        BundleError: The version cannot be used.
        DataError: There is no such alias, or the registry does not respond and no version was downloaded before.
    """
    try:
        fetch(alias, settings)
    except DataError as error:
        if not alias.link.exists():
            raise
        _log.warning("serving %s, which was downloaded before: %s", alias.link.resolve(), error)
    return alias.link


def is_set(alias: Alias) -> bool:
    """Return whether there is a model of this name with this alias.

    Raises:
        DataError: The registry does not respond.
    """

    def look(client: MlflowClient) -> bool:
        found = client.search_registered_models(f"name = '{alias.name}'")
        return any(alias.alias in model.aliases for model in found)

    return _call(alias, look)


def publish(
    bundle: Path,
    alias: Alias,
    examples: Examples,
    settings: ServingConfig | None = None,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Register a bundle with its index as a new version, let an alias point to it, and return the version.

    Args:
        bundle: The folder of the bundle.
        alias: The alias.
        examples: Inputs that the model answers.
        settings: The settings of the service, of which its `trust` counts. None: the defaults.
        tags: Tags of the version, such as the reasons for which it was promoted.

    Raises:
        BundleError: The folder is not a bundle, or is damaged.
        DataError: The registry does not respond.
    """
    manifest = verify(bundle, (settings or ServingConfig()).trust)
    own = {"bundle": bundle.resolve().name, "weights": manifest.version, **tags}
    version = _call(alias, lambda client: _register(client, bundle.resolve(), alias, examples, own))
    _call(alias, lambda client: _point(client, alias, version))
    return version


def point_back(alias: Alias) -> str:
    """Let an alias point to its previous version, and return that version; a second call undoes it.

    Raises:
        DataError: There is no previous version, or the registry does not respond.
    """

    def back(client: MlflowClient) -> str | None:
        model = client.get_registered_model(alias.name)
        before: str | None = model.tags.get(f"{alias.alias}.{_PREVIOUS}")
        if before is None or alias.alias not in model.aliases or before == str(model.aliases[alias.alias]):
            return None
        _point(client, alias, before)
        left, now = str(model.aliases[alias.alias]), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        client.set_model_version_tag(alias.name, left, f"{alias.alias}.{_ROLLED_BACK}", now)
        return before

    version = _call(alias, back)
    if version is None:
        raise DataError(
            f"{alias}: no previous version is recorded; deploy a bundle with `towers deploy DIR --link {alias}`, or "
            "set the alias in MLflow"
        )
    return version


@contextmanager
def followed(instructions: Path) -> Iterator[None]:
    """Run a separate process that follows an alias while the block runs.

    Args:
        instructions: The file with `serving.server.instructions.WorkerInstructions`.
    """
    command = own_python("-m", "serving.server.follow_alias", str(instructions), str(os.getpid()))
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
    """Download the version that an alias points to, every `watch_seconds`, as long as `is_wanted` returns True."""
    last_error = rejected = ""
    while is_wanted():
        try:
            version = _version(alias)
            if version != rejected and _fetch(alias, version, settings):
                _log.warning("%s: downloaded version %s", alias, version)
            last_error = ""
        except BundleError as error:
            _log.error(
                "version %s of %s cannot be used; still serving the previous one: %s", version, alias.name, error
            )
            rejected = version  # another download would not help
        except Exception as error:  # the process must not end, or no new version would ever be served
            if str(error) != last_error:
                _log.error("the alias cannot be followed; still serving the previous version: %s", error)
            last_error = str(error)
        time.sleep(settings.watch_seconds)


def _version(alias: Alias) -> str:
    return _call(alias, lambda client: str(client.get_model_version_by_alias(alias.name, alias.alias).version))


def _register(client: MlflowClient, bundle: Path, alias: Alias, examples: Examples, tags: Mapping[str, str]) -> str:
    experiment = experiment_id(client, alias.name, tracking_uri())
    run = client.create_run(experiment, run_name=f"deploy {bundle.name}")
    try:
        version = log_bundle(client, experiment, run.info.run_id, bundle, examples, name=alias.name, tags=tags)
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    return version


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

        address, uri = f"models:/{alias.name}/{version}", tracking_uri()
        return Path(download_artifacts(address, dst_path=str(temporary), tracking_uri=uri, registry_uri=uri))

    try:
        found = _call(alias, download)
        # A file that MLflow adds, which does not belong to the bundle.
        (found / "registered_model_meta").unlink(missing_ok=True)
        bundle = bundle_in(found)
        verify(bundle, settings.trust)
        bundle.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _call(alias: Alias, action: Callable[[MlflowClient], Result]) -> Result:
    """Return the result of an action on the registry.

    Raises:
        DataError: MLflow is not installed, or the registry does not respond or reports an error.
    """
    try:
        client = make_client(tracking_uri())
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise DataError(f"{alias}: MLflow is not installed ({error}); pip install mlflow") from None
    try:
        with _timeouts():
            return action(client)
    except (MlflowException, OSError) as error:
        message = redacted(" ".join(str(error).split()), *passwords_of(os.environ))[:300]
        where = redacted(tracking_uri())
        raise DataError(
            f"{alias}: error from MLflow at {where}: {message}; check that MLFLOW_TRACKING_URI is right"
        ) from None


@contextmanager
def _timeouts() -> Iterator[None]:
    """Set MLflow's timeouts, which it reads from the environment, unless the operator has set them."""
    own = {name: value for name, value in _TIMEOUTS.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
