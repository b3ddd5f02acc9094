"""The public data sets by name, `PUBLIC_SETS`: their original files become `interactions`, `items` and `users`.

CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.datasets import amazon, goodbooks, movielens
from features.datasets.download import Original, cache_folder, download
from features.datasets.source import OriginalFiles
from features.errors import DataError
from features.files import atomic_file

TABLES = ("interactions", "items", "users")
AMAZON = "amazon-"

TableBlocks = dict[str, Iterable[pa.Table]]
"""The tables of a data set by name, among `TABLES`: each in blocks of rows, which are written one at a time."""


@dataclass(frozen=True)
class PublicSet:
    """A data set that anybody can get.

    Attributes:
        name: As on the command line.
        originals: The files to download from the publisher.
        terms: Licence or terms of use, and what to cite, in one line.
        tables: Reads the tables from the original files. It raises `DataError` for a missing file, and any of
            `KeyError`, `ValueError`, `EOFError` or pyarrow's errors for a file in another format.
        family: Name of the family in messages, where it has many members: `amazon-CATEGORY`.
    """

    name: str
    originals: tuple[Original, ...]
    terms: str
    tables: Callable[[OriginalFiles], TableBlocks]
    family: str | None = None

    @classmethod
    def named(cls, name: str) -> PublicSet:
        """Return the data set of this name.

        Raises:
            DataError: There is none.
        """
        if name.startswith(AMAZON):
            name = f"{AMAZON}{amazon.category_of(name.removeprefix(AMAZON))}"
        if name not in PUBLIC_SETS:
            raise DataError(f"no data set {name!r}; there are shop, {', '.join(public_names())}")
        return PUBLIC_SETS[name]

    def fetch(self) -> Path:
        """Return the original files, downloaded unless an earlier call did.

        Raises:
            DataError: They cannot be fetched.
        """
        folder = cache_folder() / self.name
        files = [download(original, folder) for original in self.originals]
        return files[0] if len(files) == 1 and files[0].suffix == ".zip" else folder

    def write(self, path: Path, output: Path) -> dict[str, int]:
        """Write the tables of the original files in a folder or zip; all of them or none.

        Args:
            path: The folder or zip of the original files, or a folder of tables as this method writes them.
            output: The folder to write to.

        Returns:
            The number of rows of each table written, by its name.

        Raises:
            DataError: A file is missing or not in its format.
        """
        links = " and ".join(original.url for original in self.originals)
        source = OriginalFiles(path, f"download {links} and give the folder or the zip with --from")
        try:
            is_converted = source.has("interactions.parquet")
            return _write(_parquet_tables(source) if is_converted else self.tables(source), output)
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not in the format of {self.name} ({reason}); {source.hint}") from None


def _movielens(name: str, md5: str | None) -> PublicSet:
    return PublicSet(
        name,
        (Original(f"https://files.grouplens.org/datasets/movielens/{name}.zip", md5, has_md5_beside=True),),
        "GroupLens: research use, no redistribution without permission, no commercial use; cite Harper and Konstan "
        "2015",
        _movielens_tables,
    )


def _movielens_tables(source: OriginalFiles) -> TableBlocks:
    users = movielens.users(source)
    tables: TableBlocks = {"interactions": movielens.interactions(source), "items": [movielens.items(source)]}
    return tables if users is None else {**tables, "users": [users]}


def _goodbooks_tables(source: OriginalFiles) -> TableBlocks:
    return {"interactions": [goodbooks.interactions(source)], "items": [goodbooks.items(source)]}


def _amazon(category: str) -> PublicSet:
    folder = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
    files = (f"review_categories/{category}.jsonl.gz", f"meta_categories/meta_{category}.jsonl.gz")
    return PublicSet(
        f"{AMAZON}{category}",
        tuple(Original(f"{folder}/{file}") for file in files),
        "none stated; cite Hou et al. 2024, arXiv:2403.03952",
        partial(_amazon_tables, category=category),
        family=f"{AMAZON}CATEGORY",
    )


def _amazon_tables(source: OriginalFiles, category: str) -> TableBlocks:
    return {"interactions": amazon.interactions(source, category), "items": amazon.items(source, category)}


PUBLIC_SETS: dict[str, PublicSet] = {
    public.name: public
    for public in (
        _movielens("ml-100k", "0e33842e24a9c977be4e0107933c0723"),
        _movielens("ml-1m", "c4d9eecfca2ab87c1945afe126590906"),
        _movielens("ml-latest-small", None),
        _movielens("ml-latest", None),
        _movielens("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3"),
        _movielens("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada"),
        _movielens("ml-32m", "d472be332d4daa821edc399621853b57"),
        PublicSet(
            "goodbooks-10k",
            (Original("https://github.com/zygmuntz/goodbooks-10k/releases/download/v1.0/goodbooks-10k.zip"),),
            "CC BY-SA 4.0, Zygmunt Zajac 2017",
            _goodbooks_tables,
        ),
        *(_amazon(category) for category in amazon.CATEGORIES),
    )
}
"""By name."""


def public_names() -> list[str]:
    """Return the names for messages; the members of a family share one."""
    return list(dict.fromkeys(public.family or public.name for public in PUBLIC_SETS.values()))


def _parquet_tables(source: OriginalFiles) -> TableBlocks:
    return {name: _parquet(source, name) for name in TABLES if source.has(f"{name}.parquet")}


def _parquet(source: OriginalFiles, name: str) -> Iterator[pa.Table]:
    with source.open(f"{name}.parquet") as file:
        for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches():
            yield pa.Table.from_batches([batch])


def _write(tables: TableBlocks, output: Path) -> dict[str, int]:
    with ExitStack() as files:
        unfinished = {name: files.enter_context(atomic_file(output / f"{name}.parquet")) for name in tables}
        return {name: _write_blocks(blocks, unfinished[name]) for name, blocks in tables.items()}


def _write_blocks(blocks: Iterable[pa.Table], path: Path) -> int:
    rows = 0
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for block in blocks:
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, block.schema, compression="zstd"))
            writer.write_table(block)
            rows += block.num_rows
    if not rows:
        raise ValueError("no rows")
    return rows
