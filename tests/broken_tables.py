"""Folders of tables that are broken in one way each, and what the error must say.

Used through `read_tables` and through the command line, so that both keep the same promise: one line, naming the
place and the remedy. Each case starts from `write_sound`, a small shop without faults, and breaks one thing.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

SOUND = {
    "interactions.csv": (
        "user_id,item_id,timestamp,rating\n"
        "ann,lamp,1700000000,5\n"
        "ann,chair,1700000100,4\n"
        "bob,chair,1700000200,3\n"
        "bob,table,1700000300,5\n"
        "cat,lamp,1700000400,1\n"
    ),
    "items.csv": "item_id,title,price\nlamp,A lamp,19.5\nchair,A chair,40\ntable,A table,120\n",
    "users.csv": "user_id,city\nann,Oslo\nbob,Rome\n",
}


@dataclass(frozen=True)
class BrokenTables:
    """One way in which tables can be broken.

    Attributes:
        name: A few words, for the test's name.
        match: A regular expression that the one-line error must match.
        write: Breaks the sound tables in a folder.
        settings: What `[features]` says beside the defaults of `settings_of`.
    """

    name: str
    match: str
    write: Callable[[Path], object]
    settings: dict[str, object] = field(default_factory=dict)


def write_sound(folder: Path) -> Path:
    """Write tables without faults and return the folder."""
    for name, text in SOUND.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def settings_of(case: BrokenTables | None = None) -> dict[str, Any]:
    """Return the `[features]` table that reads a folder written by `write_sound` and broken by `case`."""
    return {
        "interactions": "interactions.csv",
        "items": "items.csv",
        "users": "users.csv",
        "columns": {"timestamp": "timestamp", "rating": "rating"},
        "title": "title",
        **(case.settings if case else {}),
    }


def write_run_toml(folder: Path, case: BrokenTables | None = None) -> Path:
    """Write the settings of a case as run.toml beside its tables and return its path."""
    settings = settings_of(case)
    lines = ["[features]"]
    lines += [
        f"{key} = {json.dumps(value)}" for key, value in settings.items() if key != "columns" and value is not None
    ]
    lines += ["[features.columns]", *(f"{key} = {json.dumps(value)}" for key, value in settings["columns"].items())]
    (folder / "run.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "run.toml"


def _put(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _swap(name: str, old: str, new: str) -> Callable[[Path], object]:
    assert SOUND[name].count(old) >= 1, f"{old!r} must be in {name}"
    return _put(name, SOUND[name].replace(old, new, 1))


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _folder(folder: Path) -> None:
    (folder / "items.csv").unlink()
    (folder / "items.csv").mkdir()
    (folder / "items.csv" / "part-0.json").write_text(SOUND["items.csv"])


def _parquet(table: dict[str, list[object]]) -> Callable[[Path], object]:
    return lambda folder: pd.DataFrame(table).to_parquet(folder / "interactions.parquet")


def _cut_parquet(folder: Path) -> None:
    path = folder / "interactions.parquet"
    pd.DataFrame({"user_id": range(1000), "item_id": range(1000)}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])


_PARQUET = {"interactions": "interactions.parquet", "columns": {}, "users": None}
_FUTURE = str(int(time.time()) + 10 * 86_400)

BROKEN = (
    BrokenTables(
        "the interactions are missing", r"interactions\.csv: no such file; check the path", _remove("interactions.csv")
    ),
    BrokenTables("the items are missing", r"items\.csv: no such file", _remove("items.csv")),
    BrokenTables("a folder without a table", r"items\.csv: a folder, expected .*part-0\.json", _folder),
    BrokenTables("an empty file", r"items\.csv: the file is empty \(0 bytes\)", _put("items.csv", "")),
    BrokenTables("only blank lines", r"items\.csv: the file holds only blank lines", _put("items.csv", "\n\n \n")),
    BrokenTables(
        "a header and nothing below",
        r"users\.csv: no rows below the column names user_id, city",
        _put("users.csv", "user_id,city\n"),
    ),
    BrokenTables(
        "Latin-1 text",
        r"items\.csv: byte 0xe9 on line 3 is not UTF-8 \(in Latin-1 it is 'é'\); save the file as UTF-8",
        _put("items.csv", SOUND["items.csv"].replace("A chair", "Un siège é").encode("latin-1").replace(b"\xe8", b"e")),
    ),
    BrokenTables(
        "a header in Latin-1",
        r"users\.csv: byte 0xe9 on line 1",
        _put("users.csv", "user_id,cité\nann,Oslo\n".encode("latin-1")),
    ),
    BrokenTables(
        "UTF-16 text", r"items\.csv: the text is UTF-16", _put("items.csv", SOUND["items.csv"].encode("utf-16"))
    ),
    BrokenTables(
        "an unknown kind of file",
        r"items\.xlsx: expected a file ending in \.csv",
        _put("items.xlsx", b"PK\x03\x04"),
        {"items": "items.xlsx"},
    ),
    BrokenTables(
        "binary data", r"items\.csv: binary data, expected text", _put("items.csv", b"PK\x03\x04\x00\x00\x08")
    ),
    BrokenTables(
        "Parquet that is not",
        r"interactions\.parquet: not a Parquet file, or cut off",
        _put("interactions.parquet", SOUND["interactions.csv"]),
        _PARQUET,
    ),
    BrokenTables("Parquet cut off", r"interactions\.parquet: not a Parquet file, or cut off", _cut_parquet, _PARQUET),
    BrokenTables(
        "a damaged gzip file",
        r"items\.csv\.gz: a damaged gzip file",
        _put("items.csv.gz", gzip.compress(SOUND["items.csv"].encode())[:-9]),
        {"items": "items.csv.gz"},
    ),
    BrokenTables(
        "a missing column",
        r"interactions\.csv: no column 'user_id'; it has userId, item_id, timestamp, rating; "
        r'set `user_id = "userId"` under \[features\.columns\]',
        _swap("interactions.csv", "user_id", "userId"),
    ),
    BrokenTables(
        "no time column",
        r"interactions\.csv: no column 'timestamp'.*set `timestamp = ",
        _swap("interactions.csv", "timestamp", "when"),
    ),
    BrokenTables(
        "a column name twice", r"items\.csv: the column name 'title' occurs twice", _swap("items.csv", "price", "title")
    ),
    BrokenTables(
        "an empty user id",
        r"interactions\.csv: column 'user_id', line 3: no id \(1 of 5 rows have none\)",
        _swap("interactions.csv", "ann,chair", ",chair"),
    ),
    BrokenTables(
        "an empty item id in the catalogue",
        r"items\.csv: column 'item_id', line 4: no id",
        _swap("items.csv", "table,", ","),
    ),
    BrokenTables(
        "the same item twice",
        r"items\.csv: column 'item_id', line 4: the id 'lamp' stood in line 2 already",
        _swap("items.csv", "table,", "lamp,"),
    ),
    BrokenTables(
        "the same user twice",
        r"users\.csv: column 'user_id', line 3: the id 'ann' stood in line 2 already .*keep one row per id",
        _swap("users.csv", "bob", "ann"),
    ),
    BrokenTables(
        "numbers here and padded text there",
        r"items\.csv: column 'item_id', line 2: ids are text, such as '007', but numbers in interactions\.csv",
        lambda folder: (
            _put("interactions.csv", "user_id,item_id\nann,7\nbob,8\n")(folder),
            _put("items.csv", "item_id,title\n007,Bond\n8,Eight\n")(folder),
        ),
        {"columns": {}},
    ),
    BrokenTables(
        "ids that are fractions",
        r"interactions\.parquet: column 'user_id', row 2: expected ids as whole numbers or text, found 1\.5",
        _parquet({"user_id": [1.0, 1.5], "item_id": ["lamp", "chair"]}),
        _PARQUET,
    ),
    BrokenTables(
        "ids that are dates",
        r"interactions\.parquet: column 'user_id': expected ids as whole numbers or text, found timestamp",
        _parquet({"user_id": [pd.Timestamp("2024-01-01")], "item_id": ["lamp"]}),
        _PARQUET,
    ),
    BrokenTables(
        "a time that is no time",
        r"interactions\.csv: column 'timestamp', line 4: expected a time as a number, as in the other cells of the "
        r"column, found 'yesterday'",
        _swap("interactions.csv", "1700000200", "yesterday"),
    ),
    BrokenTables(
        "a day that does not exist",
        r"column 'timestamp', line 3: expected a date such as .*found '2024-02-30'",
        _put("interactions.csv", "user_id,item_id,timestamp,rating\nann,lamp,2024-02-29,1\nbob,lamp,2024-02-30,2\n"),
    ),
    BrokenTables(
        "a time in the future",
        r"column 'timestamp', line 4: expected a time in the past, found \d+, in the future \(1 such row\)",
        _swap("interactions.csv", "1700000200", _FUTURE),
    ),
    BrokenTables(
        "a negative time",
        r"column 'timestamp', line 4: .*found -1, before 1970",
        _swap("interactions.csv", "1700000200", "-1"),
    ),
    BrokenTables(
        "a time beyond all times",
        r"column 'timestamp', line 4: .*found '1e30', in the future",
        _swap("interactions.csv", "1700000200", "1e30"),
    ),
    BrokenTables(
        "a position that is a fraction",
        r"column 'position', line 3: expected a whole number, found 1\.5",
        _put("interactions.csv", "user_id,item_id,position\nann,lamp,0\nann,chair,1.5\n"),
        {"columns": {"position": "position"}},
    ),
    BrokenTables(
        "a fault below cells of several lines",
        r"items\.csv: column 'item_id', line 6: no id",
        _put("items.csv", 'item_id,title\n\nlamp,"A\nlamp"\nchair,A chair\n,Nothing\n'),
    ),
    BrokenTables(
        "no times at all",
        r"column 'timestamp': no times at all; leave out `timestamp`",
        _put("interactions.csv", "user_id,item_id,timestamp,rating\nann,lamp,,1\nbob,lamp,,2\n"),
    ),
    BrokenTables(
        "an item that is not in the catalogue",
        r"column 'item_id', line 3: 1 interaction with 1 item that are not in items\.csv, such as 'sofa'; "
        r'add them there, or set `unknown_items = "drop"`',
        _swap("interactions.csv", "chair", "sofa"),
    ),
    BrokenTables(
        "no item that is in the catalogue",
        r"no interactions left after leaving out those of items that are not in the catalogue",
        _put("items.csv", "item_id,title\nA1,One\n"),
        {"unknown_items": "drop"},
    ),
    BrokenTables(
        "no user that is in the users' table",
        r"users\.csv: none of the users of the interactions is in it \(expected ids such as 'ann', found 'x1'\)",
        _put("users.csv", "user_id,city\nx1,Oslo\n"),
    ),
    BrokenTables(
        "a rating that is no number",
        r"column 'rating', line 5: expected a number, found 'great' \(1 such row\)",
        _swap("interactions.csv", "1700000300,5", "1700000300,great"),
    ),
    BrokenTables(
        "nothing rated well enough",
        r"no interactions left after leaving out those rated below 6",
        lambda _: None,
        {"min_rating": 6.0},
    ),
    BrokenTables(
        "a least rating without ratings",
        r"`min_rating` is set but no column holds ratings",
        lambda _: None,
        {"min_rating": 3.0, "columns": {}},
    ),
    BrokenTables(
        "a line with too many values",
        r"items\.csv: line 3 has 4 values, the header 3; put quotes round cells that hold a comma",
        _swap("items.csv", "A chair", "A chair, red"),
    ),
    BrokenTables(
        "a line with too few values", r"items\.csv: line 3 has 2 values, the header 3", _swap("items.csv", ",40", "")
    ),
    BrokenTables(
        "a quote that is never closed",
        r"items\.csv: a quote opened on line 3 is never closed",
        _swap("items.csv", "A chair", '"A chair'),
    ),
)
