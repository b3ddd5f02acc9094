"""The commands of an operator: from `towers index` and `towers serve` to `towers rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from features.messages import ACCEPT
from features.redaction import has_password
from serving.config import PRODUCTION, ServingConfig, read_settings
from serving.search.index_config import INDEX_KINDS, IndexKind

SETTINGS_FILE = Path("serving.toml")

_file = click.Path(path_type=Path)
_config = click.option(
    "--config", metavar="FILE", type=_file, help="Settings. [default: serving.toml, if there is one in this folder]"
)
_accept = click.option(
    ACCEPT,
    "accept_changed_columns",
    is_flag=True,
    help="Go on where far less of a column is filled, or known to the model, than in training.",
)
_tables = {
    "interactions": "Interactions table, instead of the one used in training.",
    "items": "Items table, instead of the one used in training.",
    "users": "Users table, instead of the one used in training.",
}


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option("--interactions", metavar="FILE", type=_file, help=_tables["interactions"])
@click.option("--items", metavar="FILE", type=_file, help=_tables["items"])
@click.option("--users", metavar="FILE", type=_file, help=_tables["users"])
@click.option(
    "--recall",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Try each kind, measure it with users, and keep the fastest that finds this share of their best 100 items.",
)
@click.option(
    "--kind", type=click.Choice(INDEX_KINDS), help="How to search; with --recall, the only kind that is tuned."
)
@click.option("--live", metavar="STORE", help="Merge the live-update log (the setting `live`) into the index.")
@_config
@click.option(
    "--precompute",
    metavar="N",
    type=click.IntRange(min=0),
    help="Number of recommendations per user to precompute, 8 bytes each; 0 for none.  [default: 100, "
    "where that takes minutes and no more than 1 GB]",
)
@_accept
def index(
    bundle: Path,
    interactions: Path | None,
    items: Path | None,
    users: Path | None,
    recall: float | None,
    kind: IndexKind | None,
    live: str | None,
    config: Path | None,
    precompute: int | None,
    *,
    accept_changed_columns: bool,
) -> None:
    """Make the index of a bundle from today's tables: items, histories, popularity, what each user gets.

    DIR is a bundle, such as runs/latest. Without flags the tables are those that training read, as they are now, and
    each search compares every item, which is right up to some hundred thousand. The columns are held to what training
    saw in them.
    """
    from serving.jobs.build_index import build_index
    from towers.bundle.bundle import ModelBundle

    _warn_of_password(live)
    tables = {"interactions": interactions, "items": items, "users": users}
    opened = ModelBundle.open(bundle, trust=_settings(config).trust)
    build_index(opened, tables, kind, recall, live, precompute, accept_changed_columns=accept_changed_columns)


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option("--output", metavar="FILE", type=_file, required=True, help="The Parquet file to write.")
@click.option("--k", default=100, show_default=True, type=click.IntRange(min=1), help="Items for each user.")
@click.option("--users", metavar="FILE", type=_file, help="Table with the user_id to recommend for. Default: all.")
@click.option(
    "--where",
    "conditions",
    metavar="NAME=VALUE",
    multiple=True,
    help="Only items of which this holds: brand=Acme, price_max=50, ... as in a query to the service; may be repeated.",
)
@click.option("--with-fallback", is_flag=True, help="Add a column that says what answered in the model's place.")
@_accept
@_config
def recommend(
    bundle: Path,
    output: Path,
    k: int,
    users: Path | None,
    conditions: tuple[str, ...],
    config: Path | None,
    **flags: bool,
) -> None:
    """Write recommendations for everyone: columns user_id, item_id, score, rank.

    DIR is a bundle, such as runs/latest. The answers are those that the service gives with the same settings, but that
    a ranker has all the time it takes.
    """
    from serving.jobs.recommend_all import recommend_all

    recommend_all(bundle, output, k, users, conditions, settings=_settings(config), **flags)


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.argument("words")
@click.option("--k", default=10, show_default=True, type=click.IntRange(min=1), help="How many items.")
@click.option("--where", "conditions", metavar="NAME=VALUE", multiple=True, help="As of `towers recommend`.")
@_config
def search(bundle: Path, words: str, k: int, conditions: tuple[str, ...], config: Path | None) -> None:
    """Show the items nearest to some words, as the service finds them: rank, score, id and title.

    DIR is a bundle, such as runs/latest. Its index is made if there is none.
    """
    from serving.jobs.search_text import show_search

    show_search(bundle, words, k, conditions, _settings(config))


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option("--host", metavar="HOST", help="The address to listen at. [default: 127.0.0.1]")
@click.option("--port", metavar="PORT", type=int, help="The port; 0 for any that is free. [default: 8000]")
@click.option("--workers", metavar="N", type=int, help="Processes that answer. [default: 1]")
@click.option("--threads", metavar="N", type=int, help="Requests that one of them takes at a time. [default: 4]")
@click.option(
    "--server",
    type=click.Choice(get_args(ServingConfig.model_fields["server"].annotation)),
    help="What runs them. [default: granian]",
)
@click.option("--live", metavar="STORE", help="Where live writes are kept: a file, or postgresql://... [default: none]")
@_config
def serve(bundle: Path, config: Path | None, **flags: Any) -> None:
    """Answer over HTTP, until Ctrl-C.

    DIR is a bundle, such as runs/run-1; or a link that `towers deploy` moves, such as runs/production, or an alias of
    MLflow's registry, such as models:/two-towers@champion, which are followed. The index is made if there is none.
    """
    from serving.server.launch import serve_bundle

    _warn_of_password(flags["live"])
    serve_bundle(bundle, _settings(config, flags))


def _settings(config: Path | None, flags: dict[str, Any] | None = None) -> ServingConfig:
    return read_settings(config or (SETTINGS_FILE if SETTINGS_FILE.exists() else None), flags=flags)


_keys = click.option(
    "--file", "path", metavar="FILE", type=_file, default=Path("keys.toml"), show_default=True, help="Where they are."
)


def _warn_of_password(live: str | None) -> None:
    """Say where a password is better kept than on the command line."""
    if live is not None and has_password(live):
        click.echo(
            "note: --live holds a password, which every user of this machine can see in the list of processes; leave "
            "it out there and set PGPASSWORD, or for `towers serve` set TOWERS_LIVE or live in serving.toml",
            err=True,
        )


@click.group()
def key() -> None:
    """Make, list and remove the keys of a service.

    The file holds hashes only. A service that runs takes changes up within a second; `api_keys_file = "keys.toml"` in
    serving.toml makes it ask for keys at all.
    """


@key.command("add")
@click.argument("name")
@click.option("--write", is_flag=True, help="Let the key write items and events, not only read.")
@_keys
def add(name: str, path: Path, *, write: bool) -> None:
    """Make a key for NAME and show it, this once."""
    from serving.http.key_file import add_key

    click.echo(add_key(path, name, "write" if write else "read"))
    click.echo(f"Shown only now; {path} holds its hash. Send it as `Authorization: Bearer <key>`.", err=True)


@key.command("list")
@_keys
def list_keys(path: Path) -> None:
    """Show whose keys there are, and what they are good for."""
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
    help="The cosine from which on two items are alike.",
)
@click.option(
    "--output", metavar="FILE", type=_file, default=Path("duplicates.parquet"), show_default=True, help="The groups."
)
@click.option("--pairs", metavar="FILE", type=_file, help="Write every pair as well: item_id, other_id, score.")
@_config
def duplicates(bundle: Path, threshold: float, output: Path, pairs: Path | None, config: Path | None) -> None:
    """Find items that are nearly the same, in groups: what pairs connect, the largest group first.

    DIR is a bundle, such as runs/latest. The file has a row for each item in a group: group, place (1 is the item that
    has the most interactions, the one to keep), item_id, interactions, nearest_id and the score with it.

    What is alike depends on what the model reads: with texts and attributes it is what is described alike, by id alone
    items of the same users. The nearest scores of a sample, which are printed, show where to set the threshold.
    """
    from serving.jobs.similarity_reports import report_duplicates

    report_duplicates(bundle, threshold, output, pairs, _settings(config))


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@click.option(
    "--clusters",
    "num_clusters",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many.  [default: half the square root of the number of items, at most 500]",
)
@click.option(
    "--output", metavar="FILE", type=_file, default=Path("clusters.parquet"), show_default=True, help="What is written."
)
@_config
def clusters(bundle: Path, num_clusters: int | None, output: Path, config: Path | None) -> None:
    """Divide the catalogue into clusters of items that are alike, named by their most typical words.

    DIR is a bundle, such as runs/latest. The file has a row for each item: item_id, cluster (0 is the largest), name,
    and the score with the centre of the cluster: the lower, the less typical.
    """
    from serving.jobs.similarity_reports import report_clusters

    report_clusters(bundle, num_clusters, output, _settings(config))


_link = click.option(
    "--link",
    metavar="LINK",
    type=_file,
    default=PRODUCTION,
    show_default=True,
    help="What is served: a link, or an alias such as models:/two-towers@champion.",
)


@click.command()
@click.argument("bundle", metavar="DIR", type=_file)
@_link
@_config
def deploy(bundle: Path, link: Path, config: Path | None) -> None:
    """Deploy a bundle to a running service, without a failed request.

    DIR is the bundle, such as runs/run-7. It is verified first, and its index made if there is none; then LINK, which
    the service was started with, points to it, and every worker goes over by itself within seconds. Where LINK is an
    alias, the bundle is registered in MLflow as a new version, and the services that follow the alias fetch it.
    """
    from serving.deploy.swap import swap_bundle

    swap_bundle(bundle, link, _settings(config))


@click.command()
@_link
@_config
def rollback(link: Path, config: Path | None) -> None:
    """Let a running service go back to the bundle that it served before.

    A second rollback goes forward again.
    """
    from serving.deploy.swap import roll_back

    roll_back(link, _settings(config))
