"""A shop that is written block by block is a shop like another."""

from __future__ import annotations

import pandas as pd
import pytest

from features.errors import DataError
from features.shop import Size, write_shop_stream

SIZE = Size(120, 400, 2_000)


def test_a_streamed_shop_has_the_numbers_asked_for_whatever_the_blocks(tmp_path):
    written = []
    write_shop_stream(tmp_path, 3, SIZE, written.append, people_per_block=50)
    events = pd.read_parquet(tmp_path / "interactions")
    items, users = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("items", "users"))
    assert (len(users), len(items), len(events), sum(written)) == (*SIZE, SIZE.interactions)
    assert len(written) == 3
    assert users["user_id"].is_unique
    assert set(events["user_id"]) == set(users["user_id"])
    assert set(events["item_id"]) <= set(items["item_id"])
    assert events.groupby("user_id").size().min() >= 5
    assert not events.duplicated(["user_id", "timestamp"]).any()


def test_the_same_seed_makes_the_same_shop(tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_shop_stream(tmp_path / name, seed, SIZE, people_per_block=50)
    one, same, other = (pd.read_parquet(tmp_path / name / "interactions") for name in ("one", "same", "other"))
    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)


def test_numbers_that_make_no_shop_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"has 50 to 120 interactions, found 20"):
        write_shop_stream(tmp_path / "shop", 0, Size(10, 100, 20))
    assert not (tmp_path / "shop").exists()
