"""`towers dataset`: writes a public set or a generated shop as tables."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from features.datasets.public import TABLES, PublicSet, public_names
from features.errors import DataError
from features.shop import SIZES, generate_shop, write_shop


@click.command(
    epilog=f"NAME is shop, {', '.join(public_names())}. Public sets are downloaded from their publishers, or read from "
    "the folder or zip given with --from."
)
@click.argument("name")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Folder or zip of the original files. [default: download]"
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder to write. [default: data/NAME]"
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the shop: another seed, another shop."
)
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True, help="Of the shop.")
@click.option("--force", is_flag=True, help="Write over tables that are in the folder already.")
def dataset(name: str, source: Path | None, output: Path | None, seed: int, size: str, force: bool) -> None:
    """Write a public data set or a generated shop as tables, ready for `towers init`."""
    public = None if name == "shop" else PublicSet.named(name)
    folder = output or Path("data") / (public.name if public else name)
    there = [table for table in TABLES if (folder / f"{table}.parquet").exists()]
    if there and not force:
        raise DataError(f"{folder}: holds {', '.join(there)}.parquet already; name another --output, or use --force")
    if public is None:
        if source is not None:
            raise DataError("--from is for public sets; the shop is generated, so leave it out")
        rows = _write_shop(folder, seed, size)
    else:
        click.echo(f"{public.name}: terms of use: {public.terms}", err=True)
        rows = public.write(source or public.fetch(), folder)
    for table in set(there) - set(rows):
        (folder / f"{table}.parquet").unlink()
    for table, count in rows.items():
        click.echo(f"{folder / table}.parquet: {count:,} rows")
    click.echo(f"\nNext:\n  {init_line(folder, list(rows))}")


def init_line(folder: Path, tables: list[str]) -> str:
    """Return the `towers init` line that reads the tables in a folder."""
    flags = [f"--{table} {shlex.quote(f'{folder / table}.parquet')}" for table in TABLES if table in tables]
    return " ".join(["towers init", *flags])


def _write_shop(folder: Path, seed: int, size: str) -> dict[str, int]:
    shop = generate_shop(seed, *SIZES[size])
    write_shop(shop, folder)
    return {"interactions": len(shop.interactions), "items": len(shop.items), "users": len(shop.users)}
