"""Deployment and rollback: lets a link or an alias point to another bundle, or to the previous one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import click

from features.errors import DataError, UnavailableError
from features.files import LATEST, move_link
from serving.config import PRODUCTION, ServingConfig
from serving.deploy.hot_reload import warm
from serving.deploy.mlflow_registry import Alias, fetch, is_set, point_back, publish
from serving.jobs.open import open_recommender
from serving.recommend.recommender import Recommender
from serving.search.databases.database_search import DatabaseSearch
from towers.tracking.logged_model import Examples


def swap_bundle(
    bundle: Path, link: Path, settings: ServingConfig | None = None, tags: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Verify a bundle, build its index if there is none, and let a link or an alias point to it.

    Args:
        bundle: The folder of the bundle.
        link: The link or the alias.
        settings: The settings of the service. None: the defaults.
        tags: Tags of the version that is registered, if it is an alias.

    Raises:
        BundleError: The bundle or the index cannot be used; the link is unchanged.
        DataError: `link` exists but is not a link, there is no index and the tables cannot be read, or the registry
            does not respond.
    """
    alias = Alias.parse(link)
    if alias is not None:
        recommender = _tried(bundle, settings)
        version = publish(bundle, alias, _examples(recommender), settings, tags)
        _move_database_alias(recommender)
        click.echo(f"{alias}: version {version}, from {bundle}; to undo: towers rollback --link {alias}")
        return
    if link.exists() and not link.is_symlink():
        raise DataError(
            f"{link}: expected a link to a bundle, found a file or folder; deploy to a link such as {PRODUCTION}, with "
            "which the service is started"
        )
    if link.name == LATEST:
        raise DataError(f"{link}: this link is set by each training run; deploy to another link, such as {PRODUCTION}")
    before = link.resolve().name if link.is_symlink() else "nothing"
    recommender = _tried(bundle, settings)
    move_link(link, bundle.resolve(), _previous(link))  # to the bundle itself, not to another link
    _move_database_alias(recommender)
    click.echo(f"{link}: {before} -> {bundle.resolve().name}; to undo: towers rollback{_link_flag(link)}")


def roll_back(link: Path, settings: ServingConfig | None = None) -> None:
    """Let a link or an alias point to its previous bundle.

    Args:
        link: The link or the alias.
        settings: The settings of the service. None: the defaults.

    Raises:
        BundleError: The previous bundle can no longer be used; the link is unchanged.
        DataError: There is no previous bundle.
    """
    alias = Alias.parse(link)
    if alias is not None:
        click.echo(f"{alias}: version {point_back(alias)}")
        return
    previous = _previous(link)
    if not previous.is_symlink():
        raise DataError(
            f"{previous}: no such link, so {link} has no previous bundle; deploy one instead: towers deploy DIR"
        )
    swap_bundle(previous.parent / previous.readlink(), link, settings)


def _tried(bundle: Path, settings: ServingConfig | None) -> Recommender:
    """Return the recommender of a bundle after it answered."""
    recommender = open_recommender(bundle.resolve(), settings, with_database=True)
    warm(recommender)
    return recommender


def _move_database_alias(recommender: Recommender) -> None:
    """Let the alias in the vector database, if there is one, name the collection that is served."""
    search = recommender.indexed.search
    if isinstance(search, DatabaseSearch):
        try:
            search.make_current()
        except UnavailableError as error:
            click.echo(f"note: services use the new collection, but its alias could not be moved: {error}", err=True)
        finally:
            search.database.close()


def in_service(link: Path, settings: ServingConfig | None = None) -> Path | None:
    """Return the bundle that a link or an alias points to, downloaded if it is an alias; None if it points nowhere.

    Args:
        link: The link or the alias.
        settings: The settings of the service. None: the defaults.

    Raises:
        BundleError: The version cannot be used.
        DataError: The registry does not respond.
    """
    alias = Alias.parse(link)
    if alias is None:
        return link.resolve() if link.is_symlink() and link.exists() else None
    if not is_set(alias):
        return None
    fetch(alias, settings)
    return alias.link.resolve()


def _examples(recommender: Recommender) -> Examples:
    catalog, features = recommender.snapshot.catalog, recommender.bundle.config.features
    return Examples.of(
        catalog.item_ids,
        catalog.titles(features.title),
        recommender.snapshot.histories.user_ids,
        reads_history=recommender.bundle.config.towers.reads_history,
    )


def _previous(link: Path) -> Path:
    return link.with_name(f"{link.name}.previous")


def _link_flag(link: Path) -> str:
    return "" if link == PRODUCTION else f" --link {link}"
