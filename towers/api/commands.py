"""Flags of the command `towers promote`, which needs both training and serving."""

from __future__ import annotations

from pathlib import Path

import click

REFUSED = 3
"""Exit status of `towers promote` where a condition does not hold."""

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", metavar="DIR", type=_FILE)
@click.option(
    "--link",
    metavar="LINK",
    type=_FILE,
    help="The alias or link that the service follows, such as runs/production.  [default: models:/NAME@champion, NAME "
    "being the experiment of the training]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="promotion.key=value",
    help="Override a setting of [promotion] in the bundle's run.toml; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Decide and record the decision, but change nothing that is served.")
@click.option("--config", type=_FILE, help="The service's serving.toml.  [default: ./serving.toml, if there is one]")
def promote(bundle: Path, link: Path | None, overrides: tuple[str, ...], dry_run: bool, config: Path | None) -> None:
    """Deploy a bundle if it is better than the one in service, and within limits.

    DIR is the bundle, the challenger. It and the champion, the bundle that LINK points to, rank all items for the
    questions that the training of DIR held out; the paired 95 % interval of the gain has to be above
    promotion.min_gain, no slice of promotion.guarded_facets may be worse, and latency, size and recall of the index
    have to be within their limits. Decision and reasons are recorded in MLflow. If a condition does not hold, nothing
    that is served changes, and the exit status is 3; `towers rollback --link LINK` undoes a promotion.
    """
    from serving.config import settings_here
    from towers.api.promotion import promote_bundle

    decision = promote_bundle(bundle, link, overrides, dry_run=dry_run, settings=settings_here(config))
    if not decision.is_granted:
        raise click.exceptions.Exit(REFUSED)
