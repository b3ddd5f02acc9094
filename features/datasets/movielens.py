"""MovieLens, in each of the formats that GroupLens has used: 100K, 1M (and 10M), and the CSV of all later sets.

Titles lose the year at their end, which becomes a column; people's free tags become one cell per film. Everything
else stays as it is, rows in the order of the original file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from features.datasets.source import OriginalFiles
from features.errors import DataError

MAX_TAGS = 30
"""Tags kept per film, the most frequent ones."""
AGE_GROUPS = {1: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
OCCUPATIONS = (
    "other/not specified",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
GENRES_100K = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_TYPES = {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
_YEAR = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})(?:[-\u2013]\d{0,4})?\)\s*$")


def interactions(source: OriginalFiles) -> Iterator[pa.Table]:
    """Yield `user_id, item_id, rating, timestamp` in blocks, in the order of the file.

    Raises:
        DataError: No ratings are there, or they are not in a MovieLens format.
    """
    if source.has("u.data"):
        yield _ratings(source.read("u.data"), "\t")
    elif source.has("ratings.dat"):
        yield _ratings(source.read("ratings.dat").replace(b"::", b"\t"), "\t")
    else:
        yield from _rating_blocks(source)


def items(source: OriginalFiles) -> pa.Table:
    """Return `item_id, title, year, genres` and, where people gave tags, `tags`.

    Raises:
        DataError: No films are there, or they are not in a MovieLens format.
    """
    if source.has("u.item"):
        films = _films_100k(source.text("u.item"))
    elif source.has("movies.dat"):
        films = [tuple(line.split("::", 2)) for line in source.text("movies.dat").splitlines() if line]
    else:
        table = _csv(source, "movies.csv", {"movieId": pa.string(), "title": pa.string(), "genres": pa.string()})
        columns = [table[name].to_pylist() for name in ("movieId", "title", "genres")]
        films = list(zip(*columns, strict=True))
    frame = _film_frame(source, films)
    if source.has("tags.csv"):
        frame["tags"] = frame["item_id"].map(_tags(source))
    return pa.Table.from_pandas(frame, preserve_index=False)


def users(source: OriginalFiles) -> pa.Table | None:
    """Return the user attributes; None for the sets without any."""
    if source.has("u.user"):
        rows = _split(source, "u.user", "|", 5)
        frame = pd.DataFrame(rows, columns=["user_id", "age", "gender", "occupation", "zip"])
        frame = frame.astype({"user_id": "int64", "age": "int64"})
    elif source.has("users.dat"):
        rows = _split(source, "users.dat", "::", 5)
        frame = pd.DataFrame(rows, columns=["user_id", "gender", "age_group", "occupation", "zip"])
        frame["age_group"] = frame["age_group"].astype(int).map(AGE_GROUPS)
        frame["occupation"] = frame["occupation"].astype(int).map(dict(enumerate(OCCUPATIONS)))
        frame = frame.astype({"user_id": "int64"})
    else:
        return None
    return pa.Table.from_pandas(frame, preserve_index=False)


def _ratings(data: bytes, separator: str) -> pa.Table:
    return pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(column_names=list(_TYPES)),
        parse_options=pacsv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=pacsv.ConvertOptions(column_types=_TYPES),
    )


def _rating_blocks(source: OriginalFiles) -> Iterator[pa.Table]:
    names = {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"}
    convert = pacsv.ConvertOptions(
        column_types={name: _TYPES[ours] for name, ours in names.items()}, include_columns=list(names)
    )
    with (
        source.open("ratings.csv") as file,
        pacsv.open_csv(file, read_options=pacsv.ReadOptions(block_size=1 << 24), convert_options=convert) as reader,
    ):
        for batch in reader:
            yield pa.Table.from_batches([batch]).rename_columns(list(names.values()))


def _split(source: OriginalFiles, name: str, separator: str, width: int) -> list[list[str]]:
    rows = [line.split(separator) for line in source.text(name).splitlines() if line]
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise DataError(f"{source.path}: {name}, line {number:,}: expected {width} values, found {len(row)}")
    return rows


def _films_100k(text: str) -> list[tuple[str, ...]]:
    films: list[tuple[str, ...]] = []
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) > 6:  # id, title, release date, video date, address, unknown, then a flag for each genre
            flags = zip(GENRES_100K, cells[6:], strict=False)
            films.append((cells[0], cells[1], "|".join(genre for genre, flag in flags if flag == "1")))
    return films


def _film_frame(source: OriginalFiles, films: list[tuple[str, ...]]) -> pd.DataFrame:
    if not films or any(len(film) != 3 for film in films):
        raise DataError(f"{source.path}: the films are not in a MovieLens format; {source.hint}")
    named = [_YEAR.match(title) for _, title, _ in films]
    return pd.DataFrame(
        {
            "item_id": [int(film) for film, _, _ in films],
            "title": [
                found["title"] if found else title.strip() for found, (_, title, _) in zip(named, films, strict=True)
            ],
            "year": pd.array([int(found["year"]) if found else None for found in named], dtype="Int64"),
            "genres": [genres if genres and genres != "(no genres listed)" else None for _, _, genres in films],
        }
    )


def _tags(source: OriginalFiles) -> pd.Series:
    """Return, by film, the tags that most people gave it, most often given first, separated by `|`."""
    table = _csv(source, "tags.csv", {"movieId": pa.int64(), "tag": pa.string()})
    tags = table.to_pandas()
    tags["tag"] = tags["tag"].str.replace("|", " ", regex=False).str.strip()
    tags["key"] = tags["tag"].str.lower()
    tags = tags[tags["key"] != ""]
    counted = tags.groupby(["movieId", "key"], sort=True)["tag"].agg(["size", "first"]).reset_index()
    counted = counted.sort_values(["movieId", "size"], ascending=[True, False], kind="stable")
    joined: pd.Series = counted.groupby("movieId").head(MAX_TAGS).groupby("movieId")["first"].agg("|".join)
    return joined


def _csv(source: OriginalFiles, name: str, types: dict[str, pa.DataType]) -> pa.Table:
    options = pacsv.ConvertOptions(column_types=types, include_columns=list(types))
    with source.open(name) as file:
        return pacsv.read_csv(file, parse_options=pacsv.ParseOptions(newlines_in_values=True), convert_options=options)
