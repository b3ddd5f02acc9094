"""Changed tables against those of the training: each change is refused, noted or harmless, as columns.md says.

    python tests/benchmarks/changed_tables.py

makes the index and the recommendations after each change, by the operations behind `towers index` and `recommend`.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.errors import DataError
from features.tables.tables import Catalog
from serving.jobs.build_index import build_index
from serving.jobs.recommend_all import Wanted, recommend_all
from tests.serving.conftest import write_untrained
from towers.bundle.bundle import ModelBundle

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "columns.md"
FEATURES = {
    "interactions": "clicks.csv",
    "items": "products.csv",
    "users": "people.csv",
    "columns": {"user_id": "user", "item_id": "product", "timestamp": "time"},
    "max_history": 20,
    "item": {
        "item_id": {"kind": "id"},
        "title": {"kind": "text"},
        "brand": {"kind": "category"},
        "colour": {"kind": "category"},
        "year": {"kind": "category"},
        "is_new": {"kind": "category"},
        "tags": {"kind": "categories", "separator": "|"},
        "price": {"kind": "number"},
        "weight": {"kind": "number"},
        "launched": {"kind": "time"},
        "look": {"kind": "vector"},
    },
    "user": {"country": {"kind": "category"}, "age": {"kind": "number"}},
}
NUM_ITEMS, NUM_USERS = 60, 30
WRITTEN = ("title", "brand", "colour", "tags")
BRANDS = [f"Brand {letter}" for letter in "ABCDEFGH"]
COLOURS = {"red": "rot", "green": "gruen", "blue": "blau"}
GERMAN = {
    "large": "grosse", "small": "kleine", "wooden": "holzerne", "steel": "stahlerne",
    "lamp": "leuchte", "chair": "stuhl", "table": "tisch", "bowl": "schale",
}  # fmt: skip


@dataclass
class Tables:
    """The three tables, and how the items are written."""

    items: pd.DataFrame
    users: pd.DataFrame
    clicks: pd.DataFrame

    def write(self, folder: Path) -> None:
        self.items.to_csv(folder / "products.csv", index=False)
        self.users.to_csv(folder / "people.csv", index=False)
        self.clicks.to_csv(folder / "clicks.csv", index=False)


def make_tables() -> Tables:
    rng = np.random.default_rng(11)
    words = np.array(list(GERMAN))
    items = pd.DataFrame({"product": [f"p{number}" for number in range(NUM_ITEMS)]})
    items["title"] = [" ".join(rng.choice(words, size=4)) for _ in range(NUM_ITEMS)]
    items["brand"] = np.resize(BRANDS, NUM_ITEMS)
    items["colour"] = rng.choice(list(COLOURS), size=NUM_ITEMS)
    items["year"] = rng.integers(1995, 2003, size=NUM_ITEMS)
    items["is_new"] = rng.random(NUM_ITEMS) < 0.5
    items["tags"] = ["|".join(rng.choice(words, size=2, replace=False)) for _ in range(NUM_ITEMS)]
    items["price"] = rng.uniform(1000, 9000, size=NUM_ITEMS).round(2)
    items["weight"] = rng.lognormal(1, 1, size=NUM_ITEMS).round(3)
    days = pd.Timestamp("2023-01-01") + pd.to_timedelta(np.arange(NUM_ITEMS), unit="D")
    items["launched"] = days.strftime("%Y-%m-%d")
    items["look"] = [str([round(float(number), 3) for number in rng.normal(size=4)]) for _ in range(NUM_ITEMS)]
    items["stock"] = rng.integers(0, 50, size=NUM_ITEMS)
    users = pd.DataFrame({"user": range(1000, 1000 + NUM_USERS)})
    users["country"] = rng.choice(["de", "fr", "pl"], size=NUM_USERS)
    users["age"] = rng.integers(18, 80, size=NUM_USERS)
    clicks = pd.DataFrame({"user": rng.integers(1000, 1000 + NUM_USERS, size=600)})
    clicks["product"] = [f"p{number}" for number in rng.integers(0, NUM_ITEMS, size=600)]
    clicks["time"] = 1_700_000_000 + np.arange(600) * 60
    return Tables(items, users, clicks)


def _items(change):
    """A change of the items' frame."""

    def apply(tables, folder):
        tables.items = change(tables.items)
        tables.write(folder)

    return apply


def _column(name, change):
    return _items(lambda items: items.assign(**{name: change(items[name])}))


def _user_column(name, change):
    def apply(tables, folder):
        tables.users[name] = change(tables.users[name])
        tables.write(folder)

    return apply


def _click_column(name, change):
    def apply(tables, folder):
        tables.clicks[name] = change(tables.clicks[name])
        tables.write(folder)

    return apply


def _empty(share):
    return lambda cells: cells.mask(np.arange(len(cells)) % 20 < 20 * share)


def _as_parquet(change=lambda items: items):
    def apply(tables, folder):
        tables.write(folder)
        change(tables.items).to_parquet(folder / "products.parquet", index=False)
        return {"items": folder / "products.parquet"}

    return apply


def _csv(**options):
    def apply(tables, folder):
        tables.write(folder)
        tables.items.to_csv(folder / "products.csv", index=False, **options)

    return apply


def _drop_of_users(tables, folder):
    tables.users = tables.users.drop(columns="country")
    tables.write(folder)


def _other_item_ids(tables, folder):
    tables.items["product"] = "x" + tables.items["product"]
    tables.clicks["product"] = "x" + tables.clicks["product"]
    tables.write(folder)


def _more_users(tables, folder):
    more = tables.users.assign(user=tables.users["user"] + 5000)
    tables.users = pd.concat([tables.users, more])
    tables.write(folder)


def _with_twin(items):
    return pd.concat([items, items.head(1).assign(price=1.0)])


def _with_gap(items):
    """One more item, of which nothing but the id is known: whole numbers become fractions."""
    return pd.concat([items, pd.DataFrame({"product": ["new"]})], ignore_index=True)


def _in_two_currencies(prices):
    return np.resize(["$", "€"], len(prices)) + prices.astype(str)


def _milliseconds(days):
    return [int(day.timestamp() * 1000) for day in pd.to_datetime(days)]


def _latin(tables, folder):
    tables.items.loc[0, "brand"] = "Café"
    tables.write(folder)
    tables.items.to_csv(folder / "products.csv", index=False, encoding="latin-1")


CHANGES = {
    "a column is renamed": _items(lambda items: items.rename(columns={"brand": "marke"})),
    "a column is dropped": _items(lambda items: items.drop(columns="brand")),
    "column names in upper case": _items(
        lambda items: items.set_axis(["product", *items.columns[1:].str.upper()], axis=1)
    ),
    "a blank in a column name": _items(lambda items: items.rename(columns={"is_new": "is new"})),
    "a column of the users' table is dropped": _drop_of_users,
    "the id column is renamed": _items(lambda items: items.rename(columns={"product": "sku"})),
    "values in upper case": _column("brand", lambda cells: cells.str.upper()),
    "values of users in upper case": _user_column("country", lambda cells: cells.str.upper()),
    "values in another language": _column("colour", lambda cells: cells.map(COLOURS)),
    "numbers for names": _column("brand", lambda cells: cells.map(BRANDS.index)),
    "a prefix before numbers that are values": _column("year", lambda cells: "Y" + cells.astype(str)),
    "two columns changed places": _items(lambda items: items.rename(columns={"brand": "colour", "colour": "brand"})),
    "another separator between values": _column("tags", lambda cells: cells.str.replace("|", "/")),
    "other ids of items, everywhere": _other_item_ids,
    "other ids of users, in their table only": _user_column("user", lambda cells: cells + 100_000),
    "prices in cents": _column("price", lambda cells: (cells * 100).round()),
    "prices in thousands": _column("price", lambda cells: cells / 1000),
    "ages in months": _user_column("age", lambda cells: cells * 12),
    "a column is empty": _column("brand", _empty(1)),
    "three quarters of a column are empty": _column("brand", _empty(0.75)),
    "words in a column of numbers": _column("price", lambda cells: np.where(cells > 0, "cheap", "dear")),
    "two currencies in one column": _column("price", _in_two_currencies),
    "titles in another language": _column("title", lambda cells: cells.replace(GERMAN, regex=True)),
    "vectors of another length": _column("look", lambda cells: cells.str.replace(r", [^,]*\]", "]", regex=True)),
    "items are gone that have interactions": _items(lambda items: items.head(NUM_ITEMS - 20)),
    "an id twice, with different cells": _items(_with_twin),
    "a file in Latin-1": _latin,
    "interactions in milliseconds": _click_column("time", lambda cells: cells * 1000),
    "interactions with dates for Unix seconds": _click_column("time", lambda cells: pd.to_datetime(cells, unit="s")),
    "`$` before prices": _column("price", lambda cells: "$" + cells.astype(str)),
    "a decimal comma": _column("price", lambda cells: cells.map("{:.2f}".format).str.replace(".", ",")),
    "another unit, kg to lb": _column("weight", lambda cells: (cells * 2.2046).round(3)),
    "dates as dd.mm.yyyy": _column("launched", lambda cells: pd.to_datetime(cells).dt.strftime("%d.%m.%Y")),
    "dates in milliseconds": _column("launched", _milliseconds),
    "a tenth of a column is empty": _column("brand", _empty(0.1)),
    "half of a column is empty": _column("brand", _empty(0.5)),
    "a tenth of the values are new": _column("brand", lambda cells: cells.mask(cells.index % 10 == 0, "New brand")),
    "a column is dropped that the model does not read": _items(lambda items: items.drop(columns="stock")),
    "whole numbers as fractions, for want of one": _items(_with_gap),
    "whole numbers as text in Parquet": _as_parquet(lambda items: items.assign(year=items["year"].astype(str))),
    "booleans as 1 and 0": _column("is_new", lambda cells: cells.astype(int)),
    "booleans as yes and no": _column("is_new", lambda cells: cells.map({True: "yes", False: "no"})),
    "blanks around values": _items(
        lambda items: items.assign(**{name: " " + items[name] + " " for name in WRITTEN})
    ),
    "thousands separators in prices": _column("price", lambda cells: cells.map("{:,.2f}".format)),
    "vectors as text": _as_parquet(),
    "lists for values with separators": _as_parquet(lambda items: items.assign(tags=items["tags"].str.split("|"))),
    "Parquet for CSV": _as_parquet(lambda items: items.assign(launched=pd.to_datetime(items["launched"]))),
    "NaN for empty cells in Parquet": _as_parquet(_with_gap),
    "dictionaries of values in Parquet": _as_parquet(
        lambda items: items.astype(dict.fromkeys(["brand", "colour", "year"], "category"))
    ),
    "semicolons between columns": _csv(sep=";"),
    "everything in quotes": _csv(quoting=1),
    "a byte-order mark": _csv(encoding="utf-8-sig"),
    "columns in another order": _items(lambda items: items[items.columns[::-1]]),
    "rows in another order": _items(lambda items: items.sample(frac=1, random_state=3)),
    "a column is added": _items(lambda items: items.assign(note="anything")),
    "items are added": _items(lambda items: pd.concat([items, items.assign(product="n" + items["product"])])),
    "users are added": _more_users,
}  # fmt: skip


def documented() -> dict[str, tuple[str, str]]:
    """The rows of the document's table: by change, the outcome and what is said."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.partition("<!-- changes -->\n")[2].partition("<!-- /changes -->")[0]
    rows = [re.findall(r"(?<=\| )[^|]*(?=\|)", line) for line in table.strip().splitlines()[2:]]
    return {change.strip(): (outcome.strip(), said.strip()) for change, outcome, said in rows}


class Shop:
    """A bundle, the vectors of its items by id, and the notes on its own tables."""

    def __init__(self, folder: Path) -> None:
        make_tables().write(folder)
        settings = {"features": FEATURES, "towers": {"embedding_dim": 8, "num_layers": 1, "num_heads": 1}}
        write_untrained(folder / "bundle", folder, settings)
        self.bundle = ModelBundle.open(folder / "bundle")
        tables = self.bundle.read_tables()
        self.vectors, self.notes = self.vectors_of(tables.catalog), tables.notes

    def vectors_of(self, catalog: Catalog) -> dict[str, np.ndarray]:
        """Return the vectors of items by id."""
        return dict(zip(catalog.item_ids.tolist(), self.bundle.encode_items(catalog), strict=True))

    def read(self, files: dict[str, Path]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return what the model makes of other tables: the items' vectors, and the notes."""
        names = {key: str(path) for key, path in files.items()}
        tables = self.bundle.read_tables(self.bundle.config.features.model_copy(update=names))
        return self.vectors_of(tables.catalog), list(tables.notes)

    def make_all(self, files: dict[str, Path]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Do the same by the operations: make the index, recommend to everyone, take the notes from the terminal."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            snapshot = build_index(self.bundle, files)
            output = self.bundle.path.parent / "candidates.parquet"
            recommend_all(self.bundle.path, output, Wanted(5, with_fallback=True))
        assert len(pd.read_parquet(output)) == 5 * snapshot.manifest.num_users
        notes = [line.removeprefix("note: ") for line in said.getvalue().splitlines() if line.startswith("note: ")]
        return dict(zip(snapshot.catalog.item_ids.tolist(), np.asarray(snapshot.index.vectors), strict=True)), notes

    def check(self, change: str, folder: Path, make: Callable[[dict[str, Path]], Any]) -> None:
        """Apply a change to the tables, and compare what happens with the document.

        Args:
            change: Its name there.
            folder: Where the changed tables are written.
            make: `read`, `make_all`, or whatever else reads tables.
        """
        outcome, said = documented()[change]
        files = {"interactions": "clicks.csv", "items": "products.csv", "users": "people.csv"}
        files = {key: folder / name for key, name in files.items()} | (CHANGES[change](make_tables(), folder) or {})
        now: dict[str, np.ndarray] = {}
        notes: list[str] = []
        line = None
        try:
            now, notes = make(files)
        except DataError as error:
            line = str(error)
        if line is not None:
            assert outcome == "refused", f"{change}: {line}"
            assert said in line, f"{change}: {line}"
            assert line.startswith(str(folder)), line
            assert "\n" not in line, line
            return
        new = [note for note in notes if note.replace(".parquet", ".csv") not in self.notes]
        assert outcome in ("noted", "harmless"), f"{change}: {outcome}, found {new}"
        if outcome == "noted":
            assert [note for note in new if said in note], f"{change}: {new}"
            return
        assert not new, f"{change}: {new}"
        # To the last bits, which on some processors depend on the place in a batch.
        assert all(np.allclose(now[item], vector, rtol=0, atol=1e-6) for item, vector in self.vectors.items()), change


def main() -> None:
    """Apply every change."""
    with tempfile.TemporaryDirectory() as name:
        shop = Shop(Path(name))
        for place, change in enumerate(CHANGES):
            folder = Path(name) / f"{place}"
            folder.mkdir()
            shop.check(change, folder, shop.make_all)
            print(f"{documented()[change][0]:10}{change}")
    print(f"{len(CHANGES)} changes as {DOCUMENT.name} says")


if __name__ == "__main__":
    main()
