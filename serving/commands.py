"""The commands of an operator: from `towers index` and `towers serve` to `towers rollback`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from features.locations.object_path import TablePath
from features.locations.table_path import TABLE_FILE
from features.messages import ACCEPT
from features.redaction import has_password
from serving.config import PRODUCTION, USERS_PER_PART, ServingConfig, settings_here
from serving.search.index_config import INDEX_KINDS, IndexKind
from towers.process import garbage_collection_paused

if TYPE_CHECKING:
    from serving.jobs.offline.ray_engine import RayEngine

_Command = TypeVar("_Command", bound=Callable[..., Any])

DRIFT_FOUND = 3
"""Exit status of `towers drift` when something is beyond its limit, as of `towers audit`; 1 would be a bug of ours."""

_file = click.Path(path_type=Path)
_config = click.option(
    "--config", metavar="FILE", type=_file, help="Settings. [default: serving.toml, if there is one in this folder]"
)
_accept = click.option(
    ACCEPT,
    "accept_changed_columns",
    is_flag=True,
    help="Continue even if a column has far more empty or unknown values than in training.",
)
_tables = {
    "interactions": "Interactions table, instead of the one used in training.",
    "items": "Items table, instead of the one used in training.",
    "users": "Users table, instead of the one used in training.",
}


def _on_ray(engine: str) -> Callable[[_Command], _Command]:
    """Return the flags of a command that can work on Ray, whose first has this help."""
    flags = (
        click.option(
            "--engine", type=click.Choice(["process", "ray"]), default="process", show_default=True, help=engine
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            help="With --engine ray: the Ray cluster; auto: the one of this machine.  [default: Ray is started here]",
        ),
        click.option(
            "--actors",
            metavar="N",
            type=click.IntRange(min=1),
            help="With --engine ray: number of actors, each with one core and the model.  [default: one for each core]",
        ),
    )
    return lambda command: reduce(lambda found, flag: flag(found), reversed(flags), command)


def _engine(
    engine: str, address: str | None, actors: int | None, settings: ServingConfig
) -> RayEngine[Any, Any] | None:
    """Return what these flags ask for; None: this process."""
    if engine == "process":
        if address or actors:
            raise click.UsageError("--address and --actors need --engine ray")
        return None
    from serving.jobs.offline.ray_engine import RayEngine

    return RayEngine(address, actors, 1 if settings.device == "cuda" else 0)


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option("--interactions", metavar="FILE", type=TABLE_FILE, help=_tables["interactions"])
@click.option("--items", metavar="FILE", type=TABLE_FILE, help=_tables["items"])
@click.option("--users", metavar="FILE", type=TABLE_FILE, help=_tables["users"])
@click.option(
    "--recall",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Target recall@100, 0 to 1: tune each index kind on queries of users and keep the fastest that reaches it.",
)
@click.option("--kind", type=click.Choice(INDEX_KINDS), help="Index kind; with --recall, the only kind that is tuned.")
@click.option("--live", metavar="STORE", help="Merge the live-update log (the setting `live`) into the index.")
@_config
@click.option(
    "--precompute",
    metavar="N",
    type=click.IntRange(min=0),
    help="Number of recommendations per user to precompute, 8 bytes each; 0 for none.  [default: 100; "
    "none if they would take more than 1 GB or, with exact search, more than some minutes]",
)
@click.option(
    "--half-precision",
    is_flag=True,
    help="Keep item vectors in float16: half the disk and memory; scores change in the fourth decimal place.",
)
@_on_ray("What encodes the items, with their texts: this process, or actors of Ray on several cores or machines.")
@_accept
def index(
    bundle: Path,
    interactions: TablePath | None,
    items: TablePath | None,
    users: TablePath | None,
    recall: float | None,
    kind: IndexKind | None,
    live: str | None,
    config: Path | None,
    precompute: int | None,
    engine: str,
    address: str | None,
    actors: int | None,
    *,
    half_precision: bool,
    accept_changed_columns: bool,
) -> None:
    """Build the index of a bundle from the current tables: item vectors, histories, popularity, recommendations.

    DIR is a bundle, such as runs/latest. Without flags the tables are those that training read, in their current
    state, and searches are exact (brute force), which is fast enough for up to some hundred thousand items. The columns
    are checked against those of training. With the setting `index` the vectors are written to a vector database, too.
    """
    from serving.jobs.build_index import build_index
    from serving.jobs.offline.encode_items import RayItemEncoder
    from serving.snapshot.encoding import encode_items
    from towers.bundle.bundle import ModelBundle

    _warn_of_password(live)
    tables = {"interactions": interactions, "items": items, "users": users}
    settings = settings_here(config)
    ray = _engine(engine, address, actors, settings)
    build_index(
        ModelBundle.open(bundle, trust=settings.trust),
        tables,
        kind,
        recall,
        live,
        precompute,
        half_precision=half_precision,
        database=settings.database,
        filter_columns=settings.filter_columns,
        accept_changed_columns=accept_changed_columns,
        encode=encode_items if ray is None else RayItemEncoder(settings, ray),
    )


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option("--output", metavar="FILE", type=_file, help="Parquet file to write.")
@click.option(
    "--output-folder",
    metavar="FOLDER",
    type=_file,
    help="Folder to write instead, a Parquet file for each part of the users; a run that was interrupted is continued.",
)
@click.option("--k", default=100, show_default=True, type=click.IntRange(min=1), help="Number of items per user.")
@click.option("--users", metavar="FILE", type=TABLE_FILE, help="Table with the user_id to recommend for. Default: all.")
@click.option(
    "--where",
    "conditions",
    metavar="NAME=VALUE",
    multiple=True,
    help="Condition on the items, such as brand=Acme or price_max=50, as in a query to the service; may be repeated.",
)
@click.option("--exclude", metavar="ID", multiple=True, help="Item to leave out; may be repeated.")
@click.option("--with-fallback", is_flag=True, help="Add a column with the fallback used, empty if there was none.")
@click.option(
    "--part-users",
    metavar="N",
    type=click.IntRange(min=1),
    default=USERS_PER_PART,
    show_default=True,
    help="With --output-folder: number of users of one part.",
)
@_on_ray("With --output-folder: what computes the parts, this process or actors of Ray on several cores or machines.")
@_accept
@_config
def recommend(
    bundle: Path,
    output: Path | None,
    output_folder: Path | None,
    users: TablePath | None,
    part_users: int,
    engine: str,
    address: str | None,
    actors: int | None,
    config: Path | None,
    *,
    accept_changed_columns: bool,
    **wanted: Any,
) -> None:
    """Write recommendations for all users: columns user_id, item_id, score, rank.

    DIR is a bundle, such as runs/latest. The recommendations are those of the service with the same settings, except
    that re-ranking has no time budget.

    --output writes one file, once it is complete. --output-folder writes a folder of parts: an interrupted run is
    continued by the same command, and --engine ray computes the parts on all cores, or with --address on a cluster.
    """
    from serving.jobs.recommend_all import Wanted, recommend_all

    if (output is None) == (output_folder is None):
        raise click.UsageError("give either --output FILE or --output-folder FOLDER")
    settings = settings_here(config)
    ray = _engine(engine, address, actors, settings)
    if ray is not None and output_folder is None:
        raise click.UsageError("--engine ray writes parts; give --output-folder FOLDER instead of --output")
    what = Wanted(**wanted)
    if output is not None:
        recommend_all(bundle, output, what, users, settings=settings, accept_changed_columns=accept_changed_columns)
        return
    from serving.jobs.offline.recommend_parts import recommend_into_parts

    assert output_folder is not None
    recommend_into_parts(
        bundle,
        output_folder,
        what,
        users,
        settings=settings,
        accept_changed_columns=accept_changed_columns,
        users_per_part=part_users,
        engine=ray,
    )


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.argument("words")
@click.option("--k", default=10, show_default=True, type=click.IntRange(min=1), help="Number of items.")
@click.option("--where", "conditions", metavar="NAME=VALUE", multiple=True, help="As for `towers recommend`.")
@_config
def search(bundle: Path, words: str, k: int, conditions: tuple[str, ...], config: Path | None) -> None:
    """Show the items most relevant to a text, as the service does: rank, score, id and title.

    DIR is a bundle, such as runs/latest. Its index is built if there is none.
    """
    from serving.jobs.search_text import show_search

    show_search(bundle, words, k, conditions, settings_here(config))


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option(
    "--interactions", metavar="FILE", type=TABLE_FILE, help="Today's interactions.  [default: as in training]"
)
@click.option("--items", metavar="FILE", type=TABLE_FILE, help="Today's items.  [default: as in training]")
@click.option("--users", metavar="FILE", type=TABLE_FILE, help="Today's users.  [default: as in training]")
@click.option(
    "--psi",
    type=click.FloatRange(min=0, min_open=True),
    default=0.2,
    show_default=True,
    help="Limit of the population stability index of a column.",
)
@click.option(
    "--fall",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Limit of the fall of a share of filled cells or known values since the training.",
)
@click.option(
    "--index-hours",
    type=click.FloatRange(min=0, min_open=True),
    default=48,
    show_default=True,
    help="Limit of the age of the index.",
)
@click.option(
    "--requests",
    metavar="FILE",
    type=_file,
    help="Request log of the service; FILE.1, FILE.2 ... are read, too.  [default: the setting request_log]",
)
@click.option(
    "--recent",
    metavar="HOURS",
    type=click.FloatRange(min=0, min_open=True),
    default=24,
    show_default=True,
    help="How much of the end of the request log is compared with what is before it.",
)
@click.option(
    "--window",
    metavar="HOURS",
    type=click.FloatRange(min=0, min_open=True),
    default=24,
    show_default=True,
    help="How long after an answer an event of a returned item counts as a click.",
)
@click.option(
    "--latency",
    metavar="MS",
    type=click.FloatRange(min=0, min_open=True),
    default=1000,
    show_default=True,
    help="Limit of the duration that 99 % of the logged requests do not exceed.",
)
@click.option("--output", metavar="FOLDER", type=_file, help="Folder for drift.html, drift.json and drift.prom.")
@_config
def drift(
    bundle: Path,
    interactions: TablePath | None,
    items: TablePath | None,
    users: TablePath | None,
    psi: float,
    fall: float,
    index_hours: float,
    requests: Path | None,
    recent: float,
    window: float,
    latency: float,
    output: Path | None,
    config: Path | None,
) -> None:
    """Compare today's tables with those of the training; exit with status 3 if they drifted.

    DIR is a bundle, such as runs/latest. Compared are the columns that the model reads: filled cells, values, words and
    ids that the model knows, and how often values and numbers occur; the items of the interactions; and the age of the
    index. Of a request log: which users ask, what the answers and their scores are like, how long they take, and
    click-through by position. drift.prom is for the textfile collector of Prometheus.
    """
    from serving.jobs.drift import find_drift
    from serving.jobs.findings import Limits
    from serving.jobs.request_drift import RequestSource
    from towers.bundle.bundle import ModelBundle

    settings = settings_here(config)
    opened = ModelBundle.open(bundle, trust=settings.trust)
    tables = {"interactions": interactions, "items": items, "users": users}
    source = RequestSource.of(settings, requests, recent, window)
    report = find_drift(opened, tables, Limits(psi, fall, index_hours, latency), source)
    if output is not None:
        report.write(output)
    click.echo(report.to_text())
    if report.drifted:
        raise click.exceptions.Exit(DRIFT_FOUND)


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option("--host", metavar="HOST", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", metavar="PORT", type=int, help="Port to listen on; 0 for any free port. [default: 8000]")
@click.option("--workers", metavar="N", type=int, help="Number of worker processes. [default: 1]")
@click.option("--threads", metavar="N", type=int, help="Requests that one worker answers at a time. [default: 4]")
@click.option(
    "--server",
    type=click.Choice(get_args(ServingConfig.model_fields["server"].annotation)),
    help="WSGI server that runs the workers. [default: granian]",
)
@click.option("--live", metavar="STORE", help="Store of live writes: a file, or postgresql://... [default: none]")
@_config
def serve(bundle: Path, config: Path | None, **flags: Any) -> None:
    """Serve recommendations over HTTP, until Ctrl-C.

    DIR is a bundle, such as runs/run-1; or a link that `towers deploy` changes, such as runs/production, or an alias of
    MLflow's registry, such as models:/two-towers@champion. Changes of a link or an alias are loaded without a restart.
    The index is built if there is none.
    """
    with garbage_collection_paused():
        from serving.server.launch import serve_bundle

    _warn_of_password(flags["live"])
    serve_bundle(bundle, settings_here(config, flags))


_keys = click.option(
    "--file", "path", metavar="FILE", type=_file, default=Path("keys.toml"), show_default=True, help="File of API keys."
)


def _warn_of_password(live: str | None) -> None:
    """Warn about a password on the command line, and suggest safer places for it."""
    if live is not None and has_password(live):
        click.echo(
            "note: --live contains a password, which every user of this machine can see in the list of processes; set "
            "PGPASSWORD instead, or for `towers serve` TOWERS_LIVE or live in serving.toml",
            err=True,
        )


@click.group()
def key() -> None:
    """Create, list and revoke API keys of a service.

    The file holds only hashes. A running service applies changes within a second. The service requires keys only if
    serving.toml has `api_keys_file = "keys.toml"`.
    """


@key.command("add")
@click.argument("name")
@click.option("--write", is_flag=True, help="Let the key write items and events, not only read.")
@_keys
def add(name: str, path: Path, *, write: bool) -> None:
    """Create an API key for NAME, and show it once."""
    from serving.http.key_file import add_key

    click.echo(add_key(path, name, "write" if write else "read"))
    click.echo(
        f"The key is not shown again; {path} holds only its hash. Send it as `Authorization: Bearer <key>`.", err=True
    )


@key.command("list")
@_keys
def list_keys(path: Path) -> None:
    """List the API keys: name, scope and time of creation."""
    from serving.http.key_file import read_keys

    for known in read_keys(path):
        click.echo(f"{known.name}\t{known.scope}\t{known.created}")


@key.command("remove")
@click.argument("name")
@_keys
def remove(name: str, path: Path) -> None:
    """Revoke the API key NAME."""
    from serving.http.key_file import remove_key

    remove_key(path, name)
    click.echo(f"{path}: the key {name!r} is no longer accepted")


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option(
    "--threshold",
    metavar="SCORE",
    type=click.FloatRange(0, 0.9999, min_open=True),
    default=0.95,
    show_default=True,
    help="Minimum cosine similarity of near-duplicates.",
)
@click.option(
    "--output",
    metavar="FILE",
    type=_file,
    default=Path("duplicates.parquet"),
    show_default=True,
    help="File to write the groups to.",
)
@click.option("--pairs", metavar="FILE", type=_file, help="File to write every pair to: item_id, other_id, score.")
@_config
def duplicates(bundle: Path, threshold: float, output: Path, pairs: Path | None, config: Path | None) -> None:
    """Find near-duplicate items, in groups connected by pairs, the largest group first.

    DIR is a bundle, such as runs/latest. The file has a row for each item in a group: group, place (1 is the item with
    the most interactions, the one to keep), item_id, interactions, nearest_id and the score of the two.

    Similarity depends on the model's features: with texts and attributes, items with similar descriptions are similar;
    with ids alone, items of the same users. The printed nearest-neighbour scores of a sample help to set the threshold.
    """
    from serving.jobs.similarity_reports import report_duplicates

    report_duplicates(bundle, threshold, output, pairs, settings_here(config))


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option(
    "--clusters",
    "num_clusters",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of clusters.  [default: half the square root of the number of items, at most 500]",
)
@click.option(
    "--output", metavar="FILE", type=_file, default=Path("clusters.parquet"), show_default=True, help="File to write."
)
@_config
def clusters(bundle: Path, num_clusters: int | None, output: Path, config: Path | None) -> None:
    """Divide the catalogue into clusters of similar items, named by their most typical words.

    DIR is a bundle, such as runs/latest. The file has a row for each item: item_id, cluster (0 is the largest), name,
    and score, the cosine similarity to the cluster's centre: low for items that are not typical.
    """
    from serving.jobs.similarity_reports import report_clusters

    report_clusters(bundle, num_clusters, output, settings_here(config))


_link = click.option(
    "--link",
    metavar="LINK",
    type=_file,
    default=PRODUCTION,
    show_default=True,
    help="The link or alias that the service follows, such as models:/two-towers@champion.",
)


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@_link
@_config
def deploy(bundle: Path, link: Path, config: Path | None) -> None:
    """Deploy a bundle to a running service, without a failed request.

    DIR is the bundle, such as runs/run-7. It is verified first, and its index built if there is none; then LINK, which
    the service was started with, is set to it, and every worker loads it within seconds. If LINK is an alias, the
    bundle is registered in MLflow as a new version, which the services that follow the alias download.
    """
    from serving.deploy.swap import swap_bundle

    swap_bundle(bundle, link, settings_here(config))


@click.command()
@_link
@_config
def rollback(link: Path, config: Path | None) -> None:
    """Roll a running service back to the bundle that it served before.

    A second rollback returns to the newer bundle.
    """
    from serving.deploy.swap import roll_back

    roll_back(link, settings_here(config))
