"""`towers keygen` and `towers sign`: the commands; the work is in `towers.bundle.signature`."""

from __future__ import annotations

from pathlib import Path

import click

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("path", metavar="FILE", type=_file, default=Path("signing.key"))
def keygen(path: Path) -> None:
    """Make the keys with which bundles are signed, and trusted: FILE and FILE.pub.

    FILE (signing.key, unless named otherwise) stays where bundles are made and goes nowhere else. Services get
    FILE.pub, and name it in serving.toml as `trusted_keys`; such a file may hold several keys, one after another.
    """
    from towers.bundle.signature import KEY_VARIABLE, make_key

    public = make_key(path)
    click.echo(f"{path}: the private key; {KEY_VARIABLE}={path} lets `towers train`, `index` and `train-ranker` sign")
    click.echo(f'{public}: the public key; trusted_keys = "{public.name}" in serving.toml lets in what it signed')


@click.command()
@click.argument("bundle", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--key",
    metavar="FILE",
    type=_file,
    envvar="TOWERS_SIGNING_KEY",
    required=True,
    help="The private key.",
    show_envvar=True,
)
def sign(bundle: Path, key: Path) -> None:
    """Sign a bundle, its index and its ranker, whichever there are, after seeing that they are intact.

    DIR is a bundle, such as runs/latest. A signature says that the owner of the key vouches for the files as they
    are now.
    """
    from towers.bundle.manifest import sign_bundle
    from towers.bundle.signature import key_id, read_signing_key

    private = read_signing_key(key)
    for folder in sign_bundle(bundle, private):
        click.echo(f"{folder}: signed with the key {key_id(private.public_key())}")
