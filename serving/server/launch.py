"""`towers serve` until the server starts: verifies the bundle and the settings, and prepares the startup message.

It imports no heavy libraries: the workers load them anyway, and after a crash the service should be back quickly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from features.files import LATEST
from features.ids import ITEM_ID, USER_ID
from serving.catalog.ids import fits_json
from serving.config import PRODUCTION, ServingConfig
from serving.deploy.mlflow_registry import Alias, fetched
from serving.deploy.prepare import ensure_index
from serving.live.open_log import open_log
from serving.observability.request_log import RotatedFile
from serving.server.server import address_of, become_server, find_port
from serving.snapshot.manifest import FOLDER


def serve_bundle(bundle: Path, settings: ServingConfig) -> None:
    """Become the server, which prints its address and an example request once it is ready; does not return.

    Args:
        bundle: A bundle, a link to one, or an alias such as `models:/two-towers@champion`.
        settings: The operator's settings.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: There is no index and the tables cannot be read, the port is in use, the file of API keys is invalid,
            the log of live writes or the request log cannot be opened, there is no GPU to search on, or the registry
            does not respond.
    """
    if settings.api_keys_file is not None:
        from serving.http.key_file import read_keys

        read_keys(Path(settings.api_keys_file))
    if settings.request_log is not None:
        RotatedFile(Path(settings.request_log), settings.request_log_max_bytes, settings.request_log_files).check()
    if settings.device == "cuda":
        from serving.search.faiss_index import check_device

        check_device(settings.device)
    settings = settings.model_copy(update={"port": find_port(settings)})
    alias = Alias.parse(bundle)
    if alias is not None:
        bundle = fetched(alias, settings)
    elif bundle.name == LATEST and bundle.is_symlink():
        newest, bundle = bundle, bundle.parent / bundle.readlink()
        click.echo(
            f"note: {newest} is {bundle}, which is served until the next start, even if a newer run is trained; in "
            f"production serve {PRODUCTION}, which only `towers deploy` changes"
        )
    manifest = ensure_index(bundle, settings)
    if settings.live is not None:
        # Created here, not by the workers: if the log is lost, a restarted worker must not silently create another.
        open_log(settings.live.get_secret_value()).close()
    _note_wide_ids(bundle)
    become_server(bundle, settings, alias, greeting=_greeting(bundle, settings, manifest.version))


def _greeting(bundle: Path, settings: ServingConfig, version: str) -> str:
    address = address_of(settings)
    workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
    return (
        f"Serving {bundle} (model {version}) at {address} with {settings.server}, {workers}. Try:\n"
        f"  {address}/   in a browser\n"
        f"  curl '{address}/recommendations/{quote(str(_example_user(bundle)), safe='')}?k=10'\n"
        "Ctrl-C stops it."
    )


def _note_wide_ids(bundle: Path) -> None:
    for name, column in (("users", USER_ID), ("items", ITEM_ID)):
        wide = _too_wide(bundle / FOLDER / f"{name}.parquet", column)
        if wide is not None:
            click.echo(
                f"note: ids of {name} are text in responses, because JavaScript rounds numbers beyond 2^53, such as "
                f"{wide}; send them as text, too"
            )


def _too_wide(path: Path, column: str) -> int | None:
    """Return an id that does not fit into a JSON number, from the statistics of a Parquet file; None if all do."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for found in map(group.column, range(group.num_columns)):
            if found.path_in_schema == column and found.statistics is not None and found.statistics.has_min_max:
                for number in (found.statistics.min, found.statistics.max):
                    if isinstance(number, int) and not fits_json(number):
                        return number
    return None


def _example_user(bundle: Path) -> Any:
    """Return the id of a known user; a placeholder if there is none."""
    import pyarrow.parquet as pq

    rows = next(pq.ParquetFile(bundle / FOLDER / "users.parquet").iter_batches(1, columns=[USER_ID]), None)
    return "example" if rows is None or not len(rows) else rows[USER_ID][0].as_py()
