from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from serving.http.app import create_app
from serving.jobs.recommend_all import Audience, write_candidates
from tests.serving.doubles import best, make_recommender, make_tables, unit, vector_of


def lists(path):
    frame = pd.read_parquet(path)
    return {
        user: list(zip(group["item_id"], group["score"], group["rank"], strict=True))
        for user, group in frame.groupby("user_id", sort=False)
    }


def users_file(tmp_path, ids, column="user_id"):
    path = tmp_path / "who.parquet"
    pd.DataFrame({column: ids}).to_parquet(path)
    return path


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr("serving.jobs.precompute.BLOCK", 3)


def test_everyone_gets_what_the_service_answers(recommender, tmp_path):
    path = tmp_path / "candidates.parquet"
    num_rows = write_candidates(recommender, Audience.everyone(recommender), 20, path)
    written = lists(path)
    client = create_app(recommender).test_client()
    assert list(written) == list(range(100, 110))
    assert sum(map(len, written.values())) == num_rows
    for user_id, items in written.items():
        served = client.get(f"/recommendations/{user_id}?k=20").json["items"]
        assert [(item["item_id"], np.float32(item["score"]), item["rank"]) for item in served] == items


def test_everyone_gets_what_brute_force_finds(tmp_path):
    rng = np.random.default_rng(3)
    items = [f"i{number}" for number in range(300)]
    histories = {user: rng.choice(items, size=rng.integers(1, 150), replace=False).tolist() for user in range(20)}
    tables = make_tables(histories, items)
    recommender = make_recommender(tables)
    write_candidates(recommender, Audience.everyone(recommender), 100, tmp_path / "c.parquet")
    for user_id, found in lists(tmp_path / "c.parquet").items():
        vector = unit(np.sum([vector_of(item) for item in histories[user_id][-200:]], axis=0))
        assert [item for item, _, _ in found] == best(tables, vector, 100, excluded=histories[user_id])
        assert [rank for _, _, rank in found] == list(range(1, 101))


@pytest.mark.parametrize(
    ("histories", "items", "types"),
    [
        ({7: [1], 8: [2]}, [1, 2, 3], (pa.int64(), pa.int64())),
        ({"7": ["1"], "8": ["2"]}, ["1", "2", "3"], (pa.string(), pa.string())),
        ({"a": [1], "b": [2]}, [1, 2, 3], (pa.string(), pa.int64())),
    ],
)
def test_ids_are_of_the_type_they_came_in(histories, items, types, tmp_path):
    recommender = make_recommender(make_tables(histories, items))
    write_candidates(recommender, Audience.everyone(recommender), 2, tmp_path / "c.parquet")
    schema = pq.read_schema(tmp_path / "c.parquet")
    assert schema.names == ["user_id", "item_id", "score", "rank"]
    assert (schema.field("user_id").type, schema.field("item_id").type) == types
    assert schema.field("score").type == pa.float32()


def test_a_file_of_users_decides_who_and_in_which_order(recommender, tmp_path):
    audience = Audience.read(users_file(tmp_path, [105, 999, 101, 105, 1]), recommender)
    assert audience.user_ids.tolist() == [105, 999, 101, 1]
    assert audience.num_unknown == 2
    write_candidates(recommender, audience, 5, tmp_path / "c.parquet", with_fallback=True)
    written = lists(tmp_path / "c.parquet")
    assert list(written) == [105, 999, 101, 1]
    for user_id in written:
        assert [item for item, _, _ in written[user_id]] == [
            item.item_id for item in recommender.recommend(user_id, 5).items
        ]
    fallback = pd.read_parquet(tmp_path / "c.parquet").groupby("user_id")["fallback"].first()
    assert fallback.isna().to_dict() == {105: True, 999: False, 101: True, 1: False}


def test_a_file_of_users_may_spell_numbers_as_text(recommender, tmp_path):
    assert Audience.read(users_file(tmp_path, ["105", "101"]), recommender).user_rows.tolist() == [5, 1]


@pytest.mark.parametrize(
    ("ids", "column", "message"),
    [
        (["Ann"], "user_id", "expected whole numbers as in the tables, found 'Ann'"),
        ([1.0, None], "user_id", "row 2: no id; remove the row"),
        ([1], "who", "expected a column 'user_id' of users, found 'who'"),
    ],
)
def test_a_file_of_users_that_cannot_be_used_says_why(recommender, tmp_path, ids, column, message):
    with pytest.raises(DataError, match=message):
        Audience.read(users_file(tmp_path, ids, column), recommender)


def test_an_interrupted_run_leaves_no_file_and_keeps_the_old_one(recommender, tmp_path):
    path = tmp_path / "candidates.parquet"
    path.write_text("of yesterday")

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_candidates(recommender, Audience.everyone(recommender), 5, path, progress=interrupt)
    assert path.read_text() == "of yesterday"
    assert [file.name for file in tmp_path.iterdir()] == ["candidates.parquet"]


def test_progress_counts_every_user(recommender, tmp_path):
    done = []
    write_candidates(recommender, Audience.everyone(recommender), 5, tmp_path / "c.parquet", progress=done.append)
    assert done == [3, 3, 3, 1]
