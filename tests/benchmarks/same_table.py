"""One table by every way in: CSV as several programs write it, Parquet in several types, HTTP attributes, live items.

Whatever it was trained on, and whatever it reads, the model gives the same vectors, to the bit. All combinations:

    python tests/benchmarks/same_table.py
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.ids import ITEM_ID
from features.tables.rows import typed_rows
from features.tables.tables import Catalog, Tables
from serving.catalog.ids import IdMap
from serving.recommend.request import UserProfile
from serving.recommend.users import EncodedProfiles
from tests.serving.conftest import write_untrained
from towers.bundle.bundle import ModelBundle

NUM_ITEMS, NUM_USERS = 40, 30
FEATURES = {
    "interactions": "clicks.csv",
    "columns": {"user_id": "user", "item_id": "product", "timestamp": "time"},
    "max_history": 20,
    "item": {
        "item_id": {"kind": "id"},
        "title": {"kind": "text"},
        "year": {"kind": "category"},
        "grade": {"kind": "category"},
        "is_new": {"kind": "category"},
        "released": {"kind": "category"},
        "codes": {"kind": "categories", "separator": "|"},
        "price": {"kind": "number"},
        "launched": {"kind": "time"},
        "look": {"kind": "vector"},
    },
    "user": {
        "segment": {"kind": "category"},
        "member": {"kind": "category"},
        "city": {"kind": "category"},
        "score": {"kind": "category"},
        "likes": {"kind": "categories", "separator": "|"},
        "age": {"kind": "number"},
        "joined": {"kind": "time"},
    },
}


def _some(rng: np.random.Generator, values: list[Any], size: int) -> list[Any]:
    chosen = [values[at] for at in rng.integers(len(values), size=size)]
    return [None if rng.random() < 0.1 else value for value in chosen]


def plain_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables as Python has them: every cell of one type, None where it is empty."""
    rng = np.random.default_rng(7)
    words = ["red lamp", "blue chair 7", "steel bowl", "12", "wooden table"]
    days = [date(2023, 1 + month, 3) for month in range(6)]
    moments = [datetime(2024, 2, day, 18, day, 5) for day in range(1, 20)]  # noqa: DTZ001
    items = {
        "product": list(range(100, 100 + NUM_ITEMS)),
        "title": _some(rng, words, NUM_ITEMS),
        "year": _some(rng, [1998, 2003, 2010, 0], NUM_ITEMS),
        "grade": _some(rng, [1.5, 2.0, 3.25, 0.1], NUM_ITEMS),
        "is_new": _some(rng, [True, False], NUM_ITEMS),
        "released": _some(rng, days, NUM_ITEMS),
        "codes": [list(dict.fromkeys(rng.integers(1, 9, size=2).tolist())) for _ in range(NUM_ITEMS)],
        "price": _some(rng, [0.1, 19.99, 7.0, 1e-3, 1234.5, 3.3], NUM_ITEMS),
        "launched": _some(rng, moments, NUM_ITEMS),
        "look": [[round(float(number), 3) for number in rng.normal(size=3)] for _ in range(NUM_ITEMS)],
    }
    users = {
        "user": list(range(1, 1 + NUM_USERS)),
        "segment": _some(rng, [1, 2, 3], NUM_USERS),
        "member": _some(rng, [True, False], NUM_USERS),
        "city": _some(rng, ["Paris", "Łódź", "007"], NUM_USERS),
        "score": _some(rng, [0.5, 1.0, 2.5], NUM_USERS),
        "likes": [rng.choice(["a", "b", "c"], size=2, replace=False).tolist() for _ in range(NUM_USERS)],
        "age": _some(rng, [18, 30, 44, 71], NUM_USERS),
        "joined": _some(rng, days, NUM_USERS),
    }
    return pd.DataFrame(items, dtype=object), pd.DataFrame(users, dtype=object)


def _text(value: Any) -> Any:
    """A cell as a careful program writes it."""
    if value is None:
        return None
    if isinstance(value, list):
        is_vector = isinstance(value[0], float)
        return json.dumps(value) if is_vector else "|".join(map(str, value))
    return str(value)


def _by_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    """As pandas types it: whole numbers with a gap are fractions."""
    listed = {name for name in frame if any(isinstance(cell, list) for cell in frame[name])}
    return frame.assign(**{name: frame[name].map(_text) for name in listed}).infer_objects()


def _csv_of_pandas(frame: pd.DataFrame, path: Path) -> None:
    _by_pandas(frame).to_csv(path.with_suffix(".csv"), index=False)


def _plain_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.map(lambda cell: str(cell).lower() if isinstance(cell, bool) else _text(cell)).to_csv(
        path.with_suffix(".csv"), index=False
    )


def _quoted_csv(frame: pd.DataFrame, path: Path) -> None:
    """Everything in quotes, blanks around values that are not empty, semicolons."""
    texts = frame.map(lambda cell: None if cell is None else f" {_text(cell)} ")
    texts.to_csv(path.with_suffix(".csv"), index=False, quoting=1, sep=";")


def _parquet_of_pandas(frame: pd.DataFrame, path: Path) -> None:
    _by_pandas(frame).to_parquet(path.with_suffix(".parquet"), index=False)


def _typed_parquet(frame: pd.DataFrame, path: Path) -> None:
    """The types that fit best: nullable, lists, days and moments; fractions in 32 bits."""
    small = {"price": pa.float32(), "grade": pa.float32(), "score": pa.float32(), "look": pa.list_(pa.float32())}
    cells = {name: pa.array(frame[name].tolist(), type=small.get(name)) for name in frame}
    pq.write_table(pa.table(cells), path.with_suffix(".parquet"))


def _dictionaries(frame: pd.DataFrame, path: Path) -> None:
    """Values as pandas' categories."""
    plain = _by_pandas(frame)
    names = [name for name in ("title", "year", "grade", "city", "segment", "score", "is_new") if name in plain]
    plain.assign(**{name: plain[name].astype("category") for name in names}).to_parquet(
        path.with_suffix(".parquet"), index=False
    )


def _texts_in_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.map(_text).to_parquet(path.with_suffix(".parquet"), index=False)


WAYS = {
    "csv of pandas": _csv_of_pandas,
    "plain csv": _plain_csv,
    "quoted csv": _quoted_csv,
    "parquet of pandas": _parquet_of_pandas,
    "typed parquet": _typed_parquet,
    "dictionaries": _dictionaries,
    "texts in parquet": _texts_in_parquet,
}
TRAINED = ("csv of pandas", "quoted csv", "typed parquet", "texts in parquet")


SPELLINGS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda value: value,
    "fractions": lambda value: float(value) if isinstance(value, int) and not isinstance(value, bool) else value,
    "texts": lambda value: value if isinstance(value, list) else str(value),
    "numbers": lambda value: int(value) if isinstance(value, bool) else value,
    "blanks": lambda value: value if isinstance(value, list) else f" {value} ",
}
"""How a value of a column of values is written in JSON."""


class Shop:
    """The tables by every way, and a bundle for each that a model was trained on; all of the same random weights."""

    def __init__(self, folder: Path, trained: Iterable[str] = TRAINED) -> None:
        self.folder = folder
        items, users = plain_tables()
        rng = np.random.default_rng(3)
        events = {"user": rng.integers(1, 1 + NUM_USERS, 300), "product": 100 + rng.integers(0, NUM_ITEMS, 300)}
        pd.DataFrame(events).assign(time=1_700_000_000 + np.arange(300)).to_csv(folder / "clicks.csv", index=False)
        for name, write in WAYS.items():
            write(items, folder / f"items-{_slug(name)}")
            write(users, folder / f"users-{_slug(name)}")
        self.bundles = {}
        for name in trained:
            features = {**FEATURES, **self._files(name)}
            settings = {"features": features, "towers": {"embedding_dim": 8, "num_layers": 1, "num_heads": 1}}
            write_untrained(folder / "runs" / _slug(name), folder, settings)
            self.bundles[name] = ModelBundle.open(folder / "runs" / _slug(name))
        first = next(iter(self.bundles))
        self.expected = self.vectors(first, self.tables(first, first))

    def _files(self, name: str) -> dict[str, str]:
        return {side: next(self.folder.glob(f"{side}-{_slug(name)}.*")).name for side in ("items", "users")}

    def tables(self, trained: str, name: str) -> Tables:
        """Return the tables by one way, as the model that was trained on another reads them."""
        bundle = self.bundles[trained]
        return bundle.read_tables(bundle.config.features.model_copy(update=self._files(name)))

    def vectors(self, trained: str, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of all items and of all users."""
        assert tables.users is not None
        items = self.bundles[trained].encode_items(tables.catalog)
        return items, self._of_users(trained, tables.users.frame.drop(columns="user_id"))

    def _of_users(self, trained: str, attributes: pd.DataFrame) -> np.ndarray:
        nothing, offsets = np.zeros((0, 8), np.float32), np.zeros(len(attributes) + 1, np.int64)
        return self.bundles[trained].encode_users(nothing, offsets, attributes)

    def check_table(self, trained: str, name: str) -> None:
        """Compare what a model makes of the tables by one way."""
        tables = self.tables(trained, name)
        for found, expected in zip(self.vectors(trained, tables), self.expected, strict=True):
            assert np.array_equal(found, expected), (trained, name)
        assert not [note for note in tables.notes if "in training" in note], tables.notes

    def check_attributes(self, trained: str, spelling: str) -> None:
        """Compare what a model makes of the users where they are described over HTTP."""
        bundle = self.bundles[trained]
        kinds, spell = bundle.config.features.user, SPELLINGS[spelling]
        people = []
        for row in plain_tables()[1].drop(columns="user").to_dict("records"):
            said = {
                name: _in_json(spell(value) if kinds[str(name)].kind == "category" else value)
                for name, value in row.items()
                if value is not None
            }
            people.append(UserProfile([], json.loads(json.dumps(said))))
        described = EncodedProfiles.of(people, IdMap(np.array([1])), kinds, bundle)
        assert described.is_known.all()
        assert described.attributes is not None
        assert described.unknown_values == [{}] * NUM_USERS, (trained, spelling)
        assert np.array_equal(self._of_users(trained, described.attributes), self.expected[1]), (trained, spelling)

    def check_live(self, trained: str, name: str, spelling: str) -> None:
        """Compare what a model makes of the items where each is put into the catalogue that was read by one way."""
        bundle = self.bundles[trained]
        like = self.tables(trained, name).catalog.frame
        rows = []
        for row in plain_tables()[0].rename(columns={"product": ITEM_ID}).to_dict("records"):
            said = {}
            for column, value in row.items():
                is_spelt = bundle.spellings.get(str(column)) is not None and column != ITEM_ID
                if isinstance(value, list) and pa.types.is_large_string(like[column].dtype.pyarrow_dtype):
                    value = _text(value)
                if value is not None:
                    said[column] = _in_json(SPELLINGS[spelling](value) if is_spelt else value)
            rows.append(json.loads(json.dumps(said)))
        frame = typed_rows(like, rows, bundle.spellings)
        assert list(frame.dtypes) == list(like.dtypes)
        assert np.array_equal(bundle.encode_items(Catalog(frame)), self.expected[0]), (trained, name, spelling)


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _in_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime | date) else value


def main() -> None:
    """Compare all combinations."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder))
        for trained, name in itertools.product(TRAINED, WAYS):
            shop.check_table(trained, name)
            for spelling in SPELLINGS:
                shop.check_live(trained, name, spelling)
        for trained, spelling in itertools.product(TRAINED, SPELLINGS):
            shop.check_attributes(trained, spelling)
    tables, attributes = len(TRAINED) * len(WAYS), len(TRAINED) * len(SPELLINGS)
    live = tables * len(SPELLINGS)
    print(f"{tables} pairs of tables, {live} of live items, {attributes} of attributes: the same bits")


if __name__ == "__main__":
    main()
