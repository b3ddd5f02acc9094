"""goodbooks-10k: ratings of ten thousand books, whose file is in the order of time but has no times."""

from __future__ import annotations

import re

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from features.datasets.source import OriginalFiles

MAX_TAGS = 20
"""Tags kept per book: those given most often."""
SHELF = re.compile(
    r"(?:^|-)(?:to-read|currently-reading|re-read|reread|own|owned|i-own|my|have|favou?rites?|fav|faves|wish-?list|"
    r"default|library|kindle|ebooks?|e-books?|audiobooks?|audio|did-not-finish|dnf|to-buy|finished|\d{4})(?:$|-)|^\d+$"
)
"""Tags that say what someone did with their copy rather than what the book is about."""


def interactions(source: OriginalFiles) -> pa.Table:
    """Return `user_id, item_id, rating, position`: the place in the file is the place in time."""
    ratings = _read(source, "ratings.csv").to_pandas()
    ratings = ratings.rename(columns={"book_id": "item_id"})[["user_id", "item_id", "rating"]]
    ratings["position"] = ratings.groupby("user_id").cumcount()
    return pa.Table.from_pandas(ratings, preserve_index=False)


def items(source: OriginalFiles) -> pa.Table:
    """Return every column of the books, and `tags` where there are any.

    Sums of what readers did (`average_rating`, `ratings_count` and the like) are kept: `towers init` warns of them.
    """
    books = _read(source, "books.csv").to_pandas().rename(columns={"book_id": "item_id"})
    books = books[["item_id", *books.columns.drop("item_id")]]
    if source.has("book_tags.csv") and source.has("tags.csv"):
        books["tags"] = books["goodreads_book_id"].map(_tags(source))
    return pa.Table.from_pandas(books, preserve_index=False)


def _tags(source: OriginalFiles) -> pd.Series:
    """Return, by Goodreads' number of the book, its tags, most often given first, separated by `|`."""
    names = _read(source, "tags.csv").to_pandas().set_index("tag_id")["tag_name"].astype(str)
    names = names[(names.str.len() > 1) & ~names.str.contains(SHELF)]
    given = _read(source, "book_tags.csv").to_pandas()
    given["tag"] = given["tag_id"].map(names)
    given = given.dropna(subset="tag").sort_values("count", ascending=False, kind="stable")
    given = given.drop_duplicates(["goodreads_book_id", "tag"])
    joined: pd.Series = (
        given.groupby("goodreads_book_id").head(MAX_TAGS).groupby("goodreads_book_id")["tag"].agg("|".join)
    )
    return joined


def _read(source: OriginalFiles, name: str) -> pa.Table:
    options = pacsv.ParseOptions(newlines_in_values=True)
    types = {"isbn": pa.string(), "isbn13": pa.string(), "title": pa.string(), "original_title": pa.string()}
    with source.open(name) as file:
        return pacsv.read_csv(
            file,
            parse_options=options,
            convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=True),
        )
