"""`towers dataset`: writes a public set or a generated shop as tables."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from tqdm import tqdm

from features.datasets.public import TABLES, PublicSet, public_names
from features.errors import DataError
from features.shop import SIZES, Size, generate_shop, write_shop, write_shop_stream

_STREAMED = {"interactions": "interactions", "items": "items.parquet", "users": "users.parquet"}


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
@click.option(
    "--users", type=click.IntRange(min=1), help="Of the shop, with --items and --interactions instead of --size."
)
@click.option("--items", type=click.IntRange(min=50), help="Of the shop.")
@click.option(
    "--interactions", type=click.IntRange(min=1), help="Of the shop; written block by block, however many they are."
)
@click.option("--force", is_flag=True, help="Write over tables that are in the folder already.")
def dataset(
    name: str,
    source: Path | None,
    output: Path | None,
    seed: int,
    size: str,
    users: int | None,
    items: int | None,
    interactions: int | None,
    force: bool,
) -> None:
    """Write a public data set or a generated shop as tables, ready for `towers init`."""
    public = None if name == "shop" else PublicSet.named(name)
    folder = output or Path("data") / (public.name if public else name)
    numbers = (users, items, interactions)
    if any(numbers) and (public is not None or not all(numbers)):
        raise DataError("--users, --items and --interactions are for the shop, all three; leave them out, or set all")
    there = [table for table in TABLES if (folder / f"{table}.parquet").exists()]
    if there and not force:
        raise DataError(f"{folder}: holds {', '.join(there)}.parquet already; name another --output, or use --force")
    if users and items and interactions:
        _stream_shop(folder, seed, Size(users, items, interactions))
        flags = [f"--{table} {shlex.quote(str(folder / file))}" for table, file in _STREAMED.items()]
        click.echo(f"\nNext:\n  {' '.join(['towers init', *flags])}")
        return
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


def _stream_shop(folder: Path, seed: int, size: Size) -> None:
    with tqdm(total=size.interactions, unit=" rows", unit_scale=True, desc="interactions", disable=None) as bar:
        write_shop_stream(folder, seed, size, bar.update)
    for table, count in (("interactions", size.interactions), ("items", size.items), ("users", size.users)):
        click.echo(f"{folder / _STREAMED[table]}: {count:,} rows")
