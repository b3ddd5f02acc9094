"""Another bundle to serve, and the one before it again."""

from __future__ import annotations

from pathlib import Path

import click

from features.errors import DataError
from features.files import LATEST, move_link
from serving.config import PRODUCTION, ServingConfig
from serving.deploy.hot_reload import warm
from serving.deploy.mlflow_registry import Alias, point_back, promote
from serving.jobs.open import open_recommender


def swap_bundle(bundle: Path, link: Path, settings: ServingConfig | None = None) -> None:
    """Verify a bundle, make its index if there is none, and let a link or an alias point to it.

    Args:
        bundle: The bundle.
        link: What is to point to it.
        settings: Those of the service that serves it. None: the defaults.

    Raises:
        BundleError: The bundle or the index cannot be used; the link stays as it is.
        DataError: What should be a link is something else, there is no index and the tables cannot be read, or the
            registry does not answer.
    """
    alias = Alias.parse(link)
    if alias is not None:
        warm(open_recommender(bundle.resolve(), settings))
        version = promote(bundle, alias, settings)
        click.echo(f"{alias}: version {version}, from {bundle}; `towers rollback --link {alias}` goes back")
        return
    if link.exists() and not link.is_symlink():
        raise DataError(f"{link}: expected a link to a bundle, found no link; serve one, such as {PRODUCTION}")
    if link.name == LATEST:
        raise DataError(
            f"{link}: the newest training's; it is moved by trainings. Swap another link, such as {PRODUCTION}"
        )
    before = link.resolve().name if link.is_symlink() else "nothing"
    warm(open_recommender(bundle.resolve(), settings))
    move_link(link, bundle.resolve(), _previous(link))  # to the bundle, and not to a link that moves
    click.echo(f"{link}: {before} -> {bundle.resolve().name}; `towers rollback{_said(link)}` goes back")


def roll_back(link: Path, settings: ServingConfig | None = None) -> None:
    """Let a link or an alias point to what it pointed to before.

    Args:
        link: The link or the alias.
        settings: Those of the service that serves it. None: the defaults.

    Raises:
        BundleError: What it pointed to cannot be used any more; the link stays as it is.
        DataError: It is not known what it pointed to before.
    """
    alias = Alias.parse(link)
    if alias is not None:
        click.echo(f"{alias}: version {point_back(alias)}")
        return
    previous = _previous(link)
    if not previous.is_symlink():
        raise DataError(
            f"{previous}: no such link, so {link} never pointed elsewhere; name a bundle to `towers deploy`"
        )
    swap_bundle(previous.parent / previous.readlink(), link, settings)


def _previous(link: Path) -> Path:
    return link.with_name(f"{link.name}.previous")


def _said(link: Path) -> str:
    return "" if link == PRODUCTION else f" --link {link}"
