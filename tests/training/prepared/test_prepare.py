"""Prepared interactions are those that are read at once, whatever the tables look like and however small the blocks."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from features.config import FeaturesConfig
from features.errors import DataError
from features.tables import table_files
from features.tables.event_blocks import EventBlocks
from features.tables.tables import Tables, read_tables
from tests.running import write_small_shop
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import MANIFEST
from training.commands import prepare, train
from training.prepared import prepare as prepare_module
from training.prepared import sorting
from training.prepared.folder import PreparedInteractions
from training.prepared.prepare import prepared_tables, training_tables


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
            (item if isinstance(item, str) else int(item), when if when is None else int(when))
            for item, when in zip(ids[sequences.item_rows[events]], times, strict=True)
        ]
    assert len(found) == len(sequences), "no user stands in two places"
    return found


def check_same(config: FeaturesConfig, folder) -> None:
    prepared = folder / "run.prepared"
    if (wrong := error_of(lambda: read_tables(config, folder))) is not None:
        found = error_of(lambda: prepared_tables(config, folder, prepared))
        assert found is not None
        assert without_counts(found) <= without_counts(wrong)
        assert not [path for path in folder.iterdir() if "partial" in path.name or path == prepared]
        return
    expected, found = read_tables(config, folder), prepared_tables(config, folder, prepared)
    assert by_user(found) == by_user(expected)
    assert found.catalog.frame.equals(expected.catalog.frame)
    assert found.interactions.is_ordered == expected.interactions.is_ordered
    assert sorted(found.notes) == sorted(expected.notes)
    assert found.readings == expected.readings
    if expected.users is not None:
        assert found.users.frame.equals(expected.users.frame)


def error_of(read) -> str | None:
    try:
        read()
    except DataError as error:
        return str(error)
    return None


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
    max_examples=30,
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


EVENTS = pd.DataFrame(
    {
        "user_id": np.repeat([f"u{number}" for number in range(9)], 6),
        "item_id": [f"i{number % 17}" for number in range(54)],
        "timestamp": np.arange(54)[::-1] + 1_600_000_000,
    }
)
CONFIG = FeaturesConfig(interactions="events.parquet", columns={"timestamp": "timestamp"})


@pytest.fixture
def events(tmp_path):
    EVENTS.to_parquet(tmp_path / "events.parquet")
    return tmp_path


def refuse(*_, **__):
    raise AssertionError("sorted again")


def test_what_is_prepared_is_used_until_tables_or_settings_change(events, monkeypatch):
    output = events / "run.prepared"
    prepared_tables(CONFIG, events, output)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "write_sorted", refuse)
        assert len(prepared_tables(CONFIG, events, output).interactions) == 54
        with pytest.raises(AssertionError, match="sorted again"):
            prepared_tables(CONFIG, events, output, again=True)
        with pytest.raises(AssertionError, match="sorted again"):
            prepared_tables(CONFIG.model_copy(update={"missing_ids": "drop"}), events, output)
    assert len(prepared_tables(CONFIG, events, output).interactions) == 54, "what failed left the old one in its place"
    EVENTS.head(20).to_parquet(events / "events.parquet")
    assert len(prepared_tables(CONFIG, events, output).interactions) == 20


@pytest.mark.parametrize("name", ["item_rows", "offsets", "user_ids"])
def test_a_file_that_is_gone_or_changed_is_named(events, name):
    output = events / "run.prepared"
    prepared_tables(CONFIG, events, output)
    path = output / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}.safetensors was changed .*; remove the folder"):
        prepared_tables(CONFIG, events, output)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}.safetensors is missing"):
        prepared_tables(CONFIG, events, output)


@pytest.mark.parametrize(
    ("name", "value"), [("user_ids", "text"), ("item_ids", "number"), ("readings", {}), ("is_ordered", False)]
)
def test_a_manifest_that_was_edited_is_refused(events, name, value):
    output = events / "run.prepared"
    prepared_tables(CONFIG, events, output)
    said = json.loads((output / MANIFEST).read_text())
    (output / MANIFEST).write_text(json.dumps({**said, name: 0 if value == said[name] else value}))
    with pytest.raises(BundleError, match=r"manifest\.json was changed after it was written.*; remove the folder"):
        prepared_tables(CONFIG, events, output)


def test_a_folder_that_cannot_be_written_is_used(events, monkeypatch):
    output = events / "run.prepared"
    prepared_tables(CONFIG, events, output)
    real = Path.open

    def opened(path, mode="r", *args, **settings):
        if mode == "w":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", opened)
    assert len(prepared_tables(CONFIG, events, output).interactions) == 54


def test_a_table_that_changes_while_it_is_prepared_is_refused_and_the_old_folder_stays(events, monkeypatch):
    output = events / "run.prepared"
    prepared_tables(CONFIG, events, output)
    before = (output / MANIFEST).read_bytes()
    EVENTS.tail(40).to_parquet(events / "events.parquet")

    def change(*_):
        EVENTS.head(20).to_parquet(events / "events.parquet")

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "_move", change)
        with pytest.raises(DataError, match=r"events.parquet: changed while it was read; run the command again"):
            prepared_tables(CONFIG, events, output)
    assert (output / MANIFEST).read_bytes() == before
    assert len(prepared_tables(CONFIG, events, output).interactions) == 20


def test_another_folder_is_not_replaced(events):
    (events / "mine").mkdir()
    (events / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="mine: exists and holds no prepared interactions; name another folder"):
        prepared_tables(CONFIG, events, events / "mine")
    assert (events / "mine" / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize("stopped", ["reading", "writing"])
def test_ctrl_c_leaves_nothing_behind_and_what_a_kill_leaves_is_removed(events, monkeypatch, stopped):
    output = events / "run.prepared"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stopped == "reading":
            patched.setattr(prepare_module, "_move", stop)
        else:
            patched.setattr(sorting._Arrays, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            prepared_tables(CONFIG, events, output)
    assert sorted(path.name for path in events.iterdir()) == [".run.prepared.lock", "events.parquet"]
    (events / ".run.prepared.killed.partial").mkdir()
    (events / ".run.prepared.killed.partial" / "item_rows.safetensors").write_bytes(bytes(100))
    prepared_tables(CONFIG, events, output)
    assert sorted(path.name for path in events.iterdir()) == [".run.prepared.lock", "events.parquet", "run.prepared"]


def test_blocks_hold_no_more_rows_than_they_may(events):
    frames = []
    EventBlocks(CONFIG, events).read(lambda blocks: frames.extend(map(len, blocks)))
    assert max(frames) <= 7
    assert sum(frames) == 54


def test_only_many_rows_are_prepared_unless_it_is_asked_for(events, monkeypatch):
    settings_file = events / "run.toml"
    assert training_tables(CONFIG, settings_file).interactions.frame is not None
    assert not (events / "run.prepared").exists()
    monkeypatch.setattr(prepare_module, "PREPARED_FROM", 54)
    never = CONFIG.model_copy(update={"prepare": "never"})
    assert len(training_tables(never, settings_file).interactions.frame) == 54
    assert not (events / "run.prepared").exists()
    assert len(training_tables(CONFIG, settings_file).interactions) == 54
    assert (events / "run.prepared").exists()


RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
prepare = "always"

[features.columns]
timestamp = "timestamp"

[features.item]
item_id = { kind = "id" }

[towers]
embedding_dim = 8

[training]
epochs = 2
track = false
"""


def test_training_from_disk_is_training_from_memory_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table_files, "BLOCK_ROWS", 100)
    monkeypatch.setattr(sorting, "_BATCH_ROWS", 64)
    write_small_shop(tmp_path / "data", users=60, items=100, interactions=650)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    said = CliRunner().invoke(prepare, ["run.toml"], catch_exceptions=False)
    assert "run.prepared: 650 interactions of 60 users, 100 items" in said.stdout
    said = CliRunner().invoke(train, ["run.toml"], catch_exceptions=False)
    assert "run.prepared: prepared already, 650 interactions of 60 users" in said.stderr

    def in_memory(interactions, catalog):
        found = interactions.prepared
        return replace(found, item_rows=found.item_rows.astype(np.int64), times=np.array(found.times), folder=None)

    monkeypatch.setattr(PreparedInteractions, "sequences", in_memory)
    CliRunner().invoke(train, ["run.toml"], catch_exceptions=False)
    weights = [load_file(tmp_path / "runs" / run / "model.safetensors") for run in ("run-1", "run-2")]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())


def test_users_whose_ids_have_one_hash_are_kept_apart(events, monkeypatch):
    """Chance makes none in billions of users; here all have one."""
    connect = duckdb.connect

    def without_hash(*args, **settings):
        connection = connect(*args, **settings)
        connection.execute("CREATE MACRO hash(cell) AS 7::UBIGINT")
        return connection

    monkeypatch.setattr(duckdb, "connect", without_hash)
    check_same(CONFIG, events)
