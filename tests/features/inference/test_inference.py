from __future__ import annotations

import datetime as dt
import tomllib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from features.inference.inference import FeatureChoice, Files, infer_features, render_run_toml
from features.settings import parse_settings
from features.tables.tables import read_frame, read_tables

WORDS = ["amber", "birch", "cedar", "dune", "ember", "fern", "grove", "heath"]
WORDS += ["iris", "jade", "kelp", "lilac", "moss", "north", "opal", "pine"]
LEAKS = ["average_rating", "ratings_count", "num_ratings", "ratingNumber", "avg-score", "popularity", "sales_rank"]
LEAKS += ["viewCount", "total_orders", "num_reviews", "work_text_reviews_count", "ratings_5", "vote_average"]


def frame(**columns) -> pd.DataFrame:
    return pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)


def events(**columns) -> pd.DataFrame:
    return frame(**({"user_id": [1, 1, 2], "item_id": [0, 1, 0]} | columns))


def decide(values, name: str = "column", who: str = "item", counts: list[int] | None = None) -> FeatureChoice:
    """Return what becomes of one column of a table of items or users."""
    ids = list(range(len(values)))
    happened = [row for row, count in enumerate(counts or [1] * len(values)) for _ in range(count)]
    interactions = frame(user_id=happened, item_id=happened)
    table = frame(**{f"{who}_id": ids, name: pa.array(values)})
    inference = infer_features(interactions, **{f"{who}s": table})
    return (inference.item if who == "item" else inference.user)[0]


@pytest.mark.parametrize(
    ("columns", "user", "item"),
    [
        (["userId", "movieId"], "userId", "movieId"),
        (["asin", "parent_asin", "user_id"], "user_id", "parent_asin"),
        (["sku", "customer"], "customer", "sku"),
        (["id", "Product ID", "Customer ID"], "Customer ID", "Product ID"),
        (["session", "video"], "session", "video"),
        (["left", "right"], "left", "right"),
    ],
)
def test_who_and_what_are_found_by_their_names(columns, user, item):
    inference = infer_features(frame(**{name: [1, 2, 3] for name in columns}))
    assert (inference.column("user_id"), inference.column("item_id")) == (user, item)


def test_the_name_that_the_items_table_has_comes_first():
    interactions = frame(user=["a", "b"], asin=["x", "y"], product_id=[1, 2])
    assert infer_features(interactions).column("item_id") == "product_id"
    assert infer_features(interactions, frame(asin=["x", "y"])).column("item_id") == "asin"


def test_ids_without_telling_names_are_found_by_their_values():
    interactions = frame(a=["u1", "u1", "u2"], b=["p1", "p2", "p1"], c=["s1", "s2", "s3"])
    items = frame(code=["p1", "p2", "p3"], title=["One", "Two", "Three"])
    users = frame(nick=["u1", "u2", "u9"])
    inference = infer_features(interactions, items, users)
    assert (inference.column("item_id"), inference.column("items_item_id")) == ("b", "code")
    assert (inference.column("user_id"), inference.column("users_user_id")) == ("a", "nick")


def test_interactions_without_ids_are_refused():
    with pytest.raises(
        DataError,
        match=r"no column that looks like user_id and item_id among x; say --user-column NAME and --item-column NAME",
    ):
        infer_features(frame(x=[1.5, 2.5]))


@pytest.mark.parametrize(
    ("name", "values", "setting"),
    [
        ("timestamp", [1700000000] * 3, "timestamp"),
        ("ts", [1700000000.5] * 3, "timestamp"),
        ("when", [dt.datetime(2024, 1, 1, tzinfo=dt.UTC)] * 3, "timestamp"),
        ("watched_at", ["2024-01-01"] * 3, "timestamp"),
        ("timestamp", [3, 1, 2], "timestamp"),
        ("time", [23, 11, 12], None),
        ("date", ["Monday"] * 3, None),
        ("watch_time", [30, 40, 50], None),
        ("position", [0, 1, 0], "position"),
        ("position", [3, 3, 3], None),
        ("stars", [1, 2, 5], "rating"),
        ("score", [0.5, 2.5, 5.0], "rating"),
        ("rating", ["good", "bad", "good"], None),
    ],
)
def test_time_position_and_rating_are_found_by_name_and_content(name, values, setting):
    inference = infer_features(events(**{name: values}))
    assert [role.setting for role in inference.roles[2:]] == ([setting] if setting else [])
    assert inference.unread == (() if setting else (name,))


def test_items_of_another_shop_are_refused():
    with pytest.raises(
        DataError, match=r"none of the items of the interactions \(item_id such as 0\) is in the items'"
    ):
        infer_features(events(), frame(item_id=[7, 8, 9]))


TITLES = [f"{a} {b} of the {c}" for a in WORDS for b in WORDS[:4] for c in WORDS[:4]]
NUMBERS = np.random.default_rng(0).permutation(256)


@pytest.mark.parametrize(
    ("name", "values", "kind", "separator"),
    [
        ("colour", WORDS[:4] * 50, "category", None),
        ("genres", [f"{a}|{b}" for a in WORDS[:6] for b in WORDS[:6]], "categories", "|"),
        ("tags", [f"{a}; {b}" for a in WORDS[:6] for b in WORDS[:6]], "categories", ";"),
        ("tags", [f"{a}, {b}" for a in WORDS[:6] for b in WORDS[:6]], "categories", ","),
        ("path", [f"{a} > {b}" for a in WORDS[:6] for b in WORDS[:6]], "categories", " > "),
        ("tags", [WORDS[:2], WORDS[1:4], []], "categories", None),
        ("title", TITLES, "text", None),
        ("name", WORDS, "text", None),
        ("about", [f"{title}, {title[::-1]}" for title in TITLES], "text", None),
        ("price", (NUMBERS * 1.5).tolist(), "number", None),
        ("year", (1900 + NUMBERS % 100).tolist(), "number", None),
        ("brand_id", [101, 205, 307, 409] * 20, "category", None),
        ("fragile", [True, False, True], "category", None),
        ("released", [dt.date(2024, 1, 1), dt.date(2023, 1, 1)], "time", None),
        ("released", ["2024-01-01", "2023-05-06"], "time", None),
        ("created_at", [1700000000, 1600000000], "time", None),
        ("image_vector", [[0.1, 0.2], [0.3, 0.4]], "vector", None),
        ("occupation", ["editor/writer", "clerk/sales", "actor/singer", "none"] * 9, "category", None),
    ],
)
def test_the_kind_of_a_column_is_seen_in_its_cells(name, values, kind, separator):
    choice = decide(values, name)
    assert choice.settings is not None, choice.reason
    assert (choice.settings.kind, choice.settings.separator) == (kind, separator)
    assert choice.reason


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("nothing", pa.nulls(3, pa.string()), "it is empty"),
        ("shop", ["main"] * 30, r"the same in every row \(main\)"),
        ("zip", [f"{number:05d}" for number in range(60)], "a code that is nearly different in every row"),
        ("isbn", list(range(9_000_000, 9_000_060)), "a code that is nearly different in every row"),
        ("line", list(range(60)), "it only counts the rows"),
        ("image", [f"https://a.example/{number}.jpg" for number in range(60)], "addresses of pages or pictures"),
        ("cover", [f"img/{number}.png" for number in range(60)], "addresses of pages or pictures"),
        ("mail", [f"a{number}@b.example" for number in range(60)], "it says who someone is"),
        ("details", [{"a": 1}, {"a": 2}], "cells of type struct"),
        ("vectors", [[0.1], [0.2, 0.3]], "lists of numbers that differ in length"),
        ("features", [["it is made of very good wood"], ["it is made of very bad wood"]], "lists of sentences"),
    ],
)
def test_what_cannot_be_learned_from_is_left_out_with_the_reason(name, values, reason):
    choice = decide(values, name)
    assert choice.settings is None
    assert reason.replace("\\", "") in choice.reason
    assert not choice.is_warning


@pytest.mark.parametrize("name", LEAKS)
def test_sums_of_behaviour_are_left_out_as_leaks(name):
    choice = decide([3.5, 4.5, 2.5, 1.5], name)
    assert choice.settings is None
    assert choice.is_warning
    assert "LEAK by its name" in choice.reason


@pytest.mark.parametrize("name", ["age_rating", "weight", "book_count", "view"])
def test_other_numbers_are_no_leaks(name):
    assert decide([3.5, 4.5, 2.5, 1.5], name).settings is not None


def test_a_number_that_goes_with_the_number_of_interactions_is_a_leak():
    counts = [row // 2 for row in range(100)]
    choice = decide([100.0 - row for row in range(100)], "mystery", counts=counts)
    assert choice.is_warning
    assert "rank correlation -1.00" in choice.reason
    assert decide(np.random.default_rng(0).random(100).tolist(), "mystery", counts=counts).settings is not None


def test_what_a_user_did_is_a_leak_and_a_name_is_private():
    assert decide([dt.date(2024, 1, 1), dt.date(2024, 1, 2)], "last_login", who="user").is_warning
    assert decide([f"{word} {word[::-1]}" for word in WORDS], "name", who="user").settings is None


def test_the_title_is_found_by_its_name_or_is_the_shortest_text():
    items = frame(item_id=list(range(16)), blurb=[" ".join(WORDS)] * 15 + ["x"], headline=WORDS)
    assert infer_features(events(), items).title == "headline"
    items = frame(item_id=list(range(256)), long=[f"{title} {title}" for title in TITLES], brief=TITLES)
    assert infer_features(events(), items).title == "brief"


def render(tmp_path, interactions, items=None, users=None) -> str:
    tables = {"interactions": interactions, "items": items, "users": users}
    for name, table in tables.items():
        if table is not None:
            table.to_parquet(tmp_path / f"{name}.parquet")
    files = Files(*(None if table is None else tmp_path / f"{name}.parquet" for name, table in tables.items()))
    return render_run_toml(infer_features(*tables.values()), files, tmp_path)


def test_what_is_written_reads_the_tables_it_was_made_from(tmp_path):
    interactions = events(
        customer=[1, 1, 2], when=[1700000000, 1700000020, 1700000020], **{"odd name": [1, 2, 3]}
    ).drop(columns="user_id")
    items = frame(id=[0, 5, 6], **{'a "quoted" name': TITLES[:3], "average_rating": [1.5, 2.5, 3.5]})
    text = render(tmp_path, interactions, items, frame(customer=[1, 7], gender=["f", "m"]))
    config = parse_settings(FeaturesConfig, tomllib.loads(text)["features"], "run.toml")
    assert config.interactions == "interactions.parquet"
    assert config.columns.items_item_id == "id"
    assert config.unknown_items == "drop"
    assert config.title == 'a "quoted" name'
    assert list(config.item) == ["item_id", 'a "quoted" name']
    assert list(config.user) == ["gender"]
    assert read_tables(config, tmp_path).notes == ("1 interaction of items that are not in the catalogue left out",)
    assert "# average_rating" in text
    assert "# not read: odd name" in text
    assert '# user_id = { kind = "id" }' in text


def test_interactions_alone_are_enough_and_a_missing_order_is_said(tmp_path):
    text = render(tmp_path, events())
    config = parse_settings(FeaturesConfig, tomllib.loads(text)["features"], "run.toml")
    assert list(config.item) == ["item_id"]
    assert config.items is config.title is None
    assert "no time and no position found" in text
    (warning,) = infer_features(events()).warnings
    assert warning == "no time and no position: what came first is not known; --time-column names a time"


def test_paths_outside_the_folder_are_written_in_full(tmp_path):
    (tmp_path / "there").mkdir()
    events().to_parquet(tmp_path / "there" / "i.parquet")
    for folder, shown in ((tmp_path, "there/i.parquet"), (tmp_path / "here", str(tmp_path / "there" / "i.parquet"))):
        text = render_run_toml(infer_features(events()), Files(tmp_path / "there" / "i.parquet"), folder)
        assert tomllib.loads(text)["features"]["interactions"] == shown


EXPECTED = {
    "ml-1m": {"item_id": "id", "title": "text", "year": "number", "genres": "categories", "abstract": "text"},
    "amazon-beauty": {"item_id": "id", "title": "text", "brand": "category", "categories": "categories"},
    "goodbooks": {
        "item_id": "id",
        "title": "text",
        "original_title": "text",
        "authors": "categories",
        "original_publication_year": "number",
        "language_code": "category",
        "tags": "categories",
    },
    "ml-latest-small": {"item_id": "id", "title": "text", "genres": "categories", "tags": "categories"},
}


@pytest.mark.data
@pytest.mark.parametrize("name", EXPECTED)
def test_the_public_sets_are_understood(name, public_data):
    folder = public_data / name
    users = folder / "users.parquet" if (folder / "users.parquet").exists() else None
    files = Files(folder / "interactions.parquet", folder / "items.parquet", users)
    frames = [None if path is None else read_frame(path) for path in (files.interactions, files.items, files.users)]
    text = render_run_toml(infer_features(*frames), files, folder)
    config = parse_settings(FeaturesConfig, tomllib.loads(text)["features"], "run.toml")
    assert {column: settings.kind for column, settings in config.item.items()} == EXPECTED[name]
    assert list(config.user) == (["gender", "age_group", "occupation"] if users else [])
    assert len(read_tables(config, folder).interactions) > 90_000
