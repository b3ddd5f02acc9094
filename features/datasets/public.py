"""The public data sets by name: their original files become `interactions`, `items` and `users`, as Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
_MOVIELENS_TERMS = (
    "GroupLens: research use, no redistribution without permission, no commercial use; cite Harper and Konstan 2015"
)
_MD5 = {
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-latest-small": None,
    "ml-latest": None,
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}
NAMES = (*_MD5, "goodbooks-10k", f"{AMAZON}CATEGORY")
"""The names, for messages."""


@dataclass(frozen=True)
class PublicSet:
    """A data set that anybody can get.

    Attributes:
        name: As on the command line.
        originals: The files at the publisher's.
        terms: What its publisher asks for, in a line.
    """

    name: str
    originals: tuple[Original, ...]
    terms: str

    @classmethod
    def named(cls, name: str) -> PublicSet:
        """Return the data set of this name.

        Raises:
            DataError: There is none.
        """
        if name in _MD5:
            original = Original(f"{_GROUPLENS}/{name}.zip", _MD5[name], has_md5_beside=True)
            return cls(name, (original,), _MOVIELENS_TERMS)
        if name == "goodbooks-10k":
            release = "https://github.com/zygmuntz/goodbooks-10k/releases/download/v1.0/goodbooks-10k.zip"
            return cls(name, (Original(release),), "CC BY-SA 4.0, Zygmunt Zajac 2017")
        if name.startswith(AMAZON):
            category = amazon.category_of(name.removeprefix(AMAZON))
            files = (f"review_categories/{category}.jsonl.gz", f"meta_categories/meta_{category}.jsonl.gz")
            originals = tuple(Original(f"{_AMAZON}/{file}") for file in files)
            return cls(f"{AMAZON}{category}", originals, "none stated; cite Hou et al. 2024, arXiv:2403.03952")
        raise DataError(f"no data set {name!r}; there are shop, {', '.join(NAMES)}")

    def fetch(self) -> Path:
        """Return the original files, downloaded unless an earlier call did.

        Raises:
            DataError: They cannot be fetched.
        """
        folder = cache_folder() / self.name
        files = [download(original, folder) for original in self.originals]
        return files[0] if len(files) == 1 else folder

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
            return _write(self._tables(source), output)
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not in the format of {self.name} ({reason}); {source.hint}") from None

    def _tables(self, source: OriginalFiles) -> dict[str, Iterable[pa.Table]]:
        if source.has("interactions.parquet"):
            return {name: _parquet(source, name) for name in TABLES if source.has(f"{name}.parquet")}
        if self.name.startswith(AMAZON):
            category = self.name.removeprefix(AMAZON)
            return {"interactions": amazon.interactions(source, category), "items": amazon.items(source, category)}
        if self.name == "goodbooks-10k":
            return {"interactions": [goodbooks.interactions(source)], "items": [goodbooks.items(source)]}
        users = movielens.users(source)
        tables = {"interactions": movielens.interactions(source), "items": [movielens.items(source)]}
        return tables if users is None else {**tables, "users": [users]}


def _parquet(source: OriginalFiles, name: str) -> Iterator[pa.Table]:
    with source.open(f"{name}.parquet") as file:
        for batch in pq.ParquetFile(file).iter_batches():
            yield pa.Table.from_batches([batch])


def _write(tables: dict[str, Iterable[pa.Table]], output: Path) -> dict[str, int]:
    with ExitStack() as files:
        partial = {name: files.enter_context(atomic_file(output / f"{name}.parquet")) for name in tables}
        return {name: _write_blocks(blocks, partial[name]) for name, blocks in tables.items()}


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
