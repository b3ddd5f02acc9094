"""What training saw of the columns, and how much of it other tables must still hold."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.tables.tables import read_tables

CONFIG = {
    "interactions": "i.csv",
    "items": "items.csv",
    "title": "name",
    "columns": {"timestamp": "t"},
    "item": {"item_id": {"kind": "id"}, "code": {"kind": "category"}, "price": {"kind": "number"}},
}


@pytest.fixture
def learned(tmp_path):
    """A folder with tables, their settings, and what was learned of them."""

    def learn(items: pd.DataFrame, **changes):
        items.to_csv(tmp_path / "items.csv", index=False)
        clicks = pd.DataFrame({"user_id": 1, "item_id": items["item_id"], "t": 1_700_000_000 + np.arange(len(items))})
        clicks.to_csv(tmp_path / "i.csv", index=False)
        config = FeaturesConfig.model_validate({**CONFIG, **changes})
        tables = read_tables(config, tmp_path)
        train = tables.interactions.sequences(tables.catalog)
        featurizer = Featurizer.fit(Schema.from_config(config), tables.catalog, tables.users, train)
        ColumnContract.of(featurizer, tables).save(tmp_path / "columns.json")
        return config, featurizer, ColumnContract.load(tmp_path / "columns.json")

    return learn


def items_of(size: int, codes=("1.10", "1.1", "2.0")) -> pd.DataFrame:
    return pd.DataFrame(
        {"item_id": range(size), "name": "thing", "code": np.resize(codes, size), "price": np.arange(size) / 4}
    )


def check(folder, learned, items):
    config, featurizer, contract = learned
    items.to_csv(folder / "items.csv", index=False)
    tables = read_tables(config, folder, contract.readings_to_keep)
    return contract.check(featurizer, tables, config, folder)


def test_it_is_kept_as_json(learned, tmp_path):
    _, _, contract = learned(items_of(40, ["$5", "$7"]), item={"code": {"kind": "number"}, "item_id": {"kind": "id"}})
    assert contract.readings["items"]["code"].unit == "$"
    code = contract.columns["items"]["code"]
    assert (code.kind, code.cells, code.filled, code.quantiles[2]) == ("number", 40, 1.0, 5.0)
    ids = contract.columns["items"]["item_id"]
    assert (ids.spelling, ids.known) == ("number", 1.0)
    assert json.loads((tmp_path / "columns.json").read_text())["names"]["items"][0] == "item_id"


def test_the_same_tables_say_nothing(learned, tmp_path):
    assert check(tmp_path, learned(items_of(40)), items_of(40)) == []


def test_codes_stay_text_when_all_of_todays_look_like_numbers(learned, tmp_path):
    first = learned(items_of(40))
    assert check(tmp_path, first, items_of(40, ["2.0"])) == []
    config, featurizer, contract = first
    tables = read_tables(config, tmp_path, contract.readings_to_keep)
    assert featurizer.items.sparse["code"].knows(tables.catalog.frame["code"]).all()


@pytest.mark.parametrize(("size", "is_refused"), [(19, False), (20, True)])
def test_few_cells_are_a_note_and_enough_an_error(learned, tmp_path, size, is_refused):
    first, other = learned(items_of(size)), items_of(size, ["x"])
    if is_refused:
        with pytest.raises(DataError, match=r"items.csv: column 'code': 0% of the values are known to the model, 100%"):
            check(tmp_path, first, other)
    else:
        assert len(check(tmp_path, first, other)) == 1


@pytest.mark.parametrize(("unknown", "outcome"), [(2, "nothing"), (3, "note"), (20, "note"), (21, "error")])
def test_a_small_fall_is_nothing_a_larger_one_a_note_more_than_half_an_error(learned, tmp_path, unknown, outcome):
    first, other = learned(items_of(40)), items_of(40)
    other.loc[: unknown - 1, "code"] = "x"
    if outcome == "error":
        with pytest.raises(DataError, match="column 'code': 48% of the values"):
            check(tmp_path, first, other)
    else:
        assert bool(check(tmp_path, first, other)) == (outcome == "note")


def test_a_column_that_is_shown_must_be_there_as_well(learned, tmp_path):
    first = learned(items_of(40))
    with pytest.raises(DataError, match=r"no column 'name', which the model shows as title; .*rename 'Name' to it"):
        check(tmp_path, first, items_of(40).rename(columns={"name": "Name"}))


def test_a_column_that_said_little_in_training_cannot_collapse(learned, tmp_path):
    sparse = items_of(40).assign(code=["a", "b", "c"] + [None] * 37)
    assert check(tmp_path, learned(sparse), sparse.assign(code=["a"] + [None] * 39)) == []
