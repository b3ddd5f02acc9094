"""Rare values have no row of their own, and share hashed rows if there are some; a bundle serves the same vectors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from features.config import FeaturesConfig, FeatureSettings
from features.errors import DataError
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.featurizer.sparse import HASHES, CutOff, ValueEncoder
from features.schema import Feature, Schema
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Interactions, Tables, Users
from towers.bundle.bundle import ModelBundle, write_bundle
from towers.config import TowersConfig
from towers.model.two_tower import TwoTower

NUM_ITEMS, NUM_USERS = 40, 25
CATALOG = Catalog(
    pd.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(NUM_ITEMS)],
            "tags": [f"t{row % 7}|t{row % 11}|t{row}" for row in range(NUM_ITEMS)],
            "brand": [f"b{row % 5}" if row % 3 else None for row in range(NUM_ITEMS)],
        }
    )
)


def interactions() -> Sequences:
    """Items are the rarer the higher their number; the last five have no interactions."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, NUM_USERS)
    rows = np.minimum(rng.geometric(0.12, int(lengths.sum())) - 1, NUM_ITEMS - 6)
    return Sequences(np.arange(NUM_USERS), np.append(0, lengths.cumsum()), rows, None, is_ordered=True)


def fitted(**item_id: int) -> Featurizer:
    item = (
        Feature("item_id", "id", **item_id),
        Feature("tags", "categories", "|", min_count=4),
        Feature("brand", "category"),
    )
    people = Users(pd.DataFrame({"user_id": range(NUM_USERS), "team": [f"t{n % 6}" for n in range(NUM_USERS)]}))
    return Featurizer.fit(Schema(item, (Feature("team", "category", min_count=10),)), CATALOG, people, interactions())


def bags(featurizer: Featurizer, key: str, catalog: Catalog = CATALOG) -> list[list[int]]:
    features = featurizer.item_features(catalog).sparse
    assert features is not None
    jagged = features.select([key])
    return [bag.tolist() for bag in jagged.values.split(jagged.lengths.tolist())]


@pytest.mark.parametrize("min_count", [1, 2, 3, 5])
def test_values_with_enough_interactions_have_a_row_each_and_others_none(min_count: int) -> None:
    train, featurizer = interactions(), fitted(min_count=min_count)
    frame = CATALOG.frame
    ids = Counter(frame["item_id"][row] for row in train.item_rows)
    tags = Counter(tag for row in train.item_rows for tag in {*frame["tags"][row].split("|")})
    teams = Counter(f"t{user % 6}" for user in np.repeat(np.arange(NUM_USERS), train.lengths))
    for encoders, name, counts, least in (
        (featurizer.items, "item_id", ids, min_count),
        (featurizer.items, "tags", tags, 4),
        (featurizer.users, "team", teams, 10),
    ):
        encoder = encoders.sparse[name]
        assert isinstance(encoder, ValueEncoder)
        assert {*encoder.vocabulary.values} == {value for value, count in counts.items() if count >= least}
        rare = {value: count for value, count in counts.items() if count < least}
        if least > 1:
            assert encoder.cut == CutOff(least, len(rare), len(counts), sum(rare.values()) / sum(counts.values()))
    own = [*map(len, bags(featurizer, "item_id"))]
    assert own == [int(ids[name] >= min_count) for name in frame["item_id"]]


def test_a_note_says_how_many_values_and_what_share_of_interactions_are_left_out() -> None:
    counts = np.bincount(interactions().item_rows)
    rare = counts[(counts > 0) & (counts < 3)]
    expected = (
        f"items column 'item_id': {len(rare)} of {(counts > 0).sum()} values have fewer than 3 interactions, and no "
        f"embedding of their own; they are {rare.sum() / counts.sum():.1%} of the interactions"
    )
    assert fitted(min_count=3).notes[0] == expected
    assert not [note for note in fitted().notes if "item_id" in note]


@pytest.mark.parametrize("hashes", [1, 2, 3])
def test_rare_and_new_values_are_bags_of_shared_rows(hashes: int) -> None:
    featurizer = fitted(min_count=3, hashed_rows=8, hashes=hashes)
    encoder = featurizer.items.sparse["item_id"]
    assert isinstance(encoder, ValueEncoder)
    num_rows = encoder.num_rows
    assert num_rows == len(encoder.vocabulary) + 8 == featurizer.items.sizes.tables["item_id"]
    known = encoder.knows(CATALOG.frame["item_id"])
    assert 0 < known.sum() < len(known)
    for bag, is_known in zip(bags(featurizer, "item_id"), known, strict=True):
        assert len(bag) == (1 if is_known else hashes)
        assert all((row > 8) == is_known and 0 < row < num_rows for row in bag)
    assert encoder.knows(pd.Series(["never seen", None, "i0"], dtype=object)).tolist() == [False, False, True]
    lengths, rows = encoder.bags(pd.Series(["never seen", None, "i0"], dtype=object))
    assert lengths.tolist() == [hashes, 0, 1]
    assert rows[-1] == encoder.vocabulary.rows(["i0"])[0] + 8


def test_two_hashes_tell_more_values_apart_than_one() -> None:
    column = pd.Series([f"new {number}" for number in range(500)])
    distinct = {}
    for hashes in (1, 2):
        encoder = fitted(min_count=3, hashed_rows=100, hashes=hashes).items.sparse["item_id"]
        _, rows = encoder.bags(column)
        distinct[hashes] = len({tuple(sorted(bag)) for bag in rows.reshape(-1, hashes).tolist()})
    assert distinct[1] <= 100
    assert distinct[2] > 450  # of 5,050 pairs 500 are drawn: 476 different ones are expected


def test_a_bundle_serves_the_vectors_of_training_those_of_rare_and_new_items_included(tmp_path: Path) -> None:
    featurizer = fitted(min_count=3, hashed_rows=8)
    config = FeaturesConfig(
        interactions="none.csv",
        item={"item_id": FeatureSettings(kind="id", min_count=3, hashed_rows=8)},
        user={"team": FeatureSettings(kind="category")},
    )
    towers = TowersConfig(embedding_dim=8, history_encoder="mean", num_heads=1)
    model = TwoTower(towers, featurizer, config.max_history, learning_rate=0.1).eval()
    tables = Tables(Interactions(pd.DataFrame(), is_ordered=True), CATALOG, None, notes=())
    write_bundle(
        tmp_path / "bundle",
        settings={"features": config.model_dump(mode="json"), "towers": towers.model_dump(mode="json")},
        tables_folder=tmp_path,
        data_digests={},
        featurizer=featurizer,
        contract=ColumnContract.of(featurizer, tables),
        weights=model.state_dict(),
        report={},
        pages={"README.md": ""},
        primary_metric={},
    )
    bundle = ModelBundle.open(tmp_path / "bundle")
    today = Catalog(pd.concat([CATALOG.frame, pd.DataFrame({"item_id": ["new 1", "new 2"]})], ignore_index=True))
    assert bags(bundle.featurizer, "item_id", today) == bags(featurizer, "item_id", today)
    with torch.no_grad():
        expected = model.item_vectors(featurizer.item_features(today)).numpy()
    served = bundle.encode_items(today)
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(served[-2:], axis=1), 1, atol=1e-5)  # new ids have a vector


def test_items_that_would_have_no_vector_at_all_are_refused() -> None:
    schema = Schema((Feature("item_id", "id", min_count=3),))
    with pytest.raises(DataError, match=r"items without a vector.*add hashed_rows = \d+ to \[features.item.item_id\]"):
        Featurizer.fit(schema, CATALOG, None, interactions())
    hashed = Schema((Feature("item_id", "id", min_count=3, hashed_rows=5),))
    assert Featurizer.fit(hashed, CATALOG, None, interactions()).items.sizes.tables["item_id"] > 5


def test_min_count_of_all_columns_is_that_of_each_that_sets_none() -> None:
    item = {
        "item_id": FeatureSettings(kind="id"),
        "brand": FeatureSettings(kind="category", min_count=1),
        "title": FeatureSettings(kind="text"),
    }
    schema = Schema.from_config(FeaturesConfig(interactions="none.csv", min_count=7, item=item))
    assert [one.min_count for one in schema.item] == [7, 1, None]
    assert Schema.from_config(FeaturesConfig(interactions="none.csv", min_count=7)).item[0].min_count == 7


def test_settings_that_have_no_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match="hashes needs hashed_rows"):
        FeatureSettings(kind="id", hashes=2)
    with pytest.raises(ValidationError, match='min_count is for kind = "id" or "category" or "categories"'):
        FeatureSettings(kind="text", min_count=2)
    assert HASHES == 2
