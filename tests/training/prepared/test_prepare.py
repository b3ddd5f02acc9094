"""Prepared interactions are those that are read at once, whatever the tables look like and however small the blocks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from features.config import FeaturesConfig
from features.errors import DataError
from features.sequences import sequences as sequences_module
from features.sequences.split import leave_one_out
from features.tables import table_files
from features.tables.tables import Tables, read_tables
from towers.bundle.sealed_file import BundleError
from training.prepared import prepare as prepare_module
from training.prepared import sorting
from training.prepared.folder import PreparedFolder, PreparedInteractions
from training.prepared.prepare import prepared_folder, prepared_tables, training_tables


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, shards and batches even of small tables; no bars of progress."""
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 7)
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 90)
    monkeypatch.setattr(sorting, "_BATCH_ROWS", 5)
    monkeypatch.setattr(prepare_module, "SHARD_EVENTS", 11)
    monkeypatch.setitem(os.environ, "TQDM_DISABLE", "1")


def by_user(tables: Tables) -> dict[object, list[tuple[object, int | None]]]:
    """The items and times of each user, in their order."""
    sequences = tables.interactions.sequences(tables.catalog)
    ids = tables.catalog.item_ids
    found = {}
    for user in range(len(sequences)):
        events = slice(sequences.offsets[user], sequences.offsets[user + 1])
        times = [None] * len(ids[sequences.item_rows[events]]) if sequences.times is None else sequences.times[events]
        user_id = sequences.user_ids[user]
        found[user_id if isinstance(user_id, str) else int(user_id)] = [
            (item if isinstance(item, str) else int(item), time if time is None else int(time))
            for item, time in zip(ids[sequences.item_rows[events]], times, strict=True)
        ]
    assert len(found) == len(sequences), "no user stands in two places"
    return found


def check_same(config: FeaturesConfig, folder) -> None:
    try:
        expected = read_tables(config, folder)
    except DataError as error:
        with pytest.raises(DataError) as raised:
            prepared_tables(config, folder, folder / "run.prepared")
        assert without_counts(str(raised.value)) <= without_counts(str(error))
        assert not [path for path in folder.iterdir() if "partial" in path.name or path.name == "run.prepared"]
        return
    found = prepared_tables(config, folder, folder / "run.prepared")
    assert by_user(found) == by_user(expected)
    assert found.catalog.frame.equals(expected.catalog.frame)
    assert found.interactions.is_ordered == expected.interactions.is_ordered
    assert sorted(found.notes) == sorted(expected.notes)
    assert found.readings == expected.readings
    if expected.users is not None:
        assert found.users.frame.equals(expected.users.frame)


def without_counts(message: str) -> set[str]:
    """The lines of a message without how many rows are such: those of a block are counted, not those of the table."""
    return {re.sub(r"[0-9,]+ (such row|interaction|item|row)s?", r"# \1", line) for line in message.splitlines()}


IDS = {
    "numbers": st.integers(1, 12),
    "texts": st.sampled_from(["a", "b", " b", "ü", "x y", "7"]),
    "late text": st.sampled_from(["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "z"]),
    "zeros": st.sampled_from(["1", "07", "8"]),
}


@st.composite
def shops(draw):
    rows = draw(st.integers(1, 60))
    users, items = draw(st.sampled_from(sorted(IDS))), draw(st.sampled_from(sorted(IDS)))
    frame = pd.DataFrame(
        {
            "user_id": draw(st.lists(IDS[users], min_size=rows, max_size=rows)),
            "item_id": draw(st.lists(IDS[items], min_size=rows, max_size=rows)),
        }
    )
    columns, settings_ = {}, {}
    if draw(st.booleans()):
        frame["timestamp"] = draw(st.lists(st.integers(1_600_000_000, 1_600_000_020), min_size=rows, max_size=rows))
        columns["timestamp"] = "timestamp"
        if draw(st.booleans()):
            frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s").dt.strftime("%d.%m.%Y %H:%M:%S")
    if draw(st.booleans()):
        frame["rating"] = draw(st.lists(st.integers(1, 5), min_size=rows, max_size=rows))
        columns["rating"], settings_["min_rating"] = "rating", 3
    if draw(st.booleans()):
        frame["position"] = draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
        columns["position"] = "position"
    catalog = None
    if draw(st.booleans()):
        catalog = pd.DataFrame({"item_id": draw(st.permutations(sorted({*frame["item_id"]}, key=str)))})
        catalog["item_id"] = catalog["item_id"].map(lambda one: one.strip() if isinstance(one, str) else one)
        catalog = catalog.drop_duplicates()
        settings_["items"] = "items.parquet"
        if draw(st.booleans()):
            catalog = catalog.iloc[: len(catalog) // 2 + 1]
            settings_["unknown_items"] = draw(st.sampled_from(["drop", "error"]))
    people = pd.DataFrame({"user_id": frame["user_id"].unique()}) if draw(st.booleans()) else None
    if people is not None:
        settings_["users"] = "users.parquet"
    kind = draw(st.sampled_from(["events.csv", "events.csv.gz", "events.parquet", "parts"]))
    config = FeaturesConfig(interactions=kind, columns=columns, **settings_)
    return config, frame, catalog, people


@settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)
@given(shops())
def test_prepared_interactions_are_those_that_are_read_at_once(tmp_path_factory, shop):
    config, frame, catalog, people = shop
    folder = tmp_path_factory.mktemp("shop")
    if config.interactions == "parts":
        for place, part in enumerate(np.array_split(np.arange(len(frame)), 3)):
            path = folder / "parts" / f"part-{place}.parquet"
            path.parent.mkdir(exist_ok=True)
            frame.iloc[part].to_parquet(path)
    elif config.interactions.endswith(".parquet"):
        frame.to_parquet(folder / config.interactions)
    else:
        frame.to_csv(folder / config.interactions, index=False)
    for name, table in (("items", catalog), ("users", people)):
        if table is not None:
            table.to_parquet(folder / f"{name}.parquet")
    check_same(config, folder)
