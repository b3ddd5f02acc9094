"""Columns to numbers: known values derived by hand, and the same result after saving and loading."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.featurizer.request_time import request_features
from features.featurizer.vocabulary import Vocabulary
from features.schema import Feature, Schema
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Users
from features.values.text import HashedText

ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c", "new"],
        "brand": ["X", "Y", "X", "unheard of"],
        "tags": ["red|soft", "red", None, "blue|red"],
        "price": [1.0, 3.0, None, 2.0],
        "title": ["red shirt", "red fox", "fox", "blue fox"],
        "vector": [[3.0, 4.0], [0.0, 2.0], None, [1.0, 0.0]],
        "launched": ["2024-01-01", "2024-01-03", None, "2024-01-02"],
    }
)
SCHEMA = Schema(
    item=(
        Feature("item_id", "id"),
        Feature("brand", "category"),
        Feature("price", "number"),
        Feature("tags", "categories", "|"),
        Feature("title", "text"),
        Feature("vector", "vector"),
        Feature("launched", "time"),
    ),
    user=(Feature("country", "category"),),
)
PEOPLE = pd.DataFrame({"user_id": [1, 2, 3], "country": ["de", "fr", "only in the test set"]})


def sequences() -> Sequences:
    """User 1 had a and b, user 2 had c; nobody had `new`, and user 3 did nothing."""
    return Sequences(np.array([1, 2]), np.array([0, 2, 3]), np.array([0, 1, 2]), None, is_ordered=True)


@pytest.fixture
def featurizer() -> Featurizer:
    return Featurizer.fit(SCHEMA, Catalog(ITEMS), Users(PEOPLE), sequences())


def bags(featurizer: Featurizer, key: str) -> list[list[int]]:
    features = featurizer.item_features(Catalog(ITEMS)).sparse
    assert features is not None
    jagged = features.select([key])
    return [bag.tolist() for bag in jagged.values.split(jagged.lengths.tolist())]


def test_an_item_without_training_interactions_has_no_id_and_no_unseen_category(featurizer: Featurizer) -> None:
    assert bags(featurizer, "item_id") == [[1], [2], [3], []]
    assert bags(featurizer, "brand") == [[1], [2], [1], []]


def test_a_cell_of_several_categories_is_a_bag_of_those_that_are_known(featurizer: Featurizer) -> None:
    red, soft = 1, 2  # red is the more frequent one; blue belongs to the item that training does not know
    assert bags(featurizer, "tags") == [[red, soft], [red], [], [red]]


def test_numbers_say_how_far_they_came_through_each_quantile(featurizer: Featurizer) -> None:
    # Known prices 1 and 3: 16 spans of 1/8 between them. 2.0 has come through the first 8; nothing is known of c.
    width = 17
    price = featurizer.item_features(Catalog(ITEMS)).dense[:, :width]
    assert price[0].tolist() == [1.0] + [0.0] * 16
    assert price[1].tolist() == [1.0] * 17
    assert price[2].tolist() == [0.0] * 17
    np.testing.assert_allclose(price[3], [1.0] + [1.0] * 8 + [0.0] * 8, atol=1e-6)


def test_vectors_are_brought_to_unit_length_and_missing_ones_are_zero(featurizer: Featurizer) -> None:
    vectors = featurizer.item_features(Catalog(ITEMS)).dense[:, 17:19]
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1], [0, 0], [1, 0]], atol=1e-6)


def test_dates_are_read_as_numbers(featurizer: Featurizer) -> None:
    launched = featurizer.item_features(Catalog(ITEMS)).dense[:, 19:]
    np.testing.assert_allclose(launched[3], [1.0] + [1.0] * 8 + [0.0] * 8, atol=1e-5)
    assert not launched[2].any()


def test_nothing_is_learned_from_users_and_items_outside_the_training_data(featurizer: Featurizer) -> None:
    assert featurizer.users.sizes.tables == {"country": 3}  # unknown, de, fr
    changed = ITEMS.assign(title=[*ITEMS["title"][:3], "quite other words"], price=[1.0, 3.0, None, 1e9])
    other = Featurizer.fit(SCHEMA, Catalog(changed), Users(PEOPLE), sequences())
    before, after = featurizer.item_features(Catalog(ITEMS)), other.item_features(Catalog(ITEMS))
    assert torch.equal(before.dense, after.dense)
    assert before.sparse is not None
    assert after.sparse is not None
    assert torch.equal(before.sparse.values, after.sparse.values)


def test_a_saved_featurizer_gives_the_same_features(featurizer: Featurizer, tmp_path: Path) -> None:
    featurizer.save(tmp_path)
    loaded = Featurizer.load(tmp_path, {})
    assert loaded.schema == featurizer.schema
    before, after = featurizer.item_features(Catalog(ITEMS)), loaded.item_features(Catalog(ITEMS))
    assert torch.equal(before.dense, after.dense)
    assert before.sparse is not None
    assert after.sparse is not None
    assert torch.equal(before.sparse.values, after.sparse.values)
    assert torch.equal(before.sparse.lengths, after.sparse.lengths)


def test_taking_rows_of_features_equals_featurizing_those_rows(featurizer: Featurizer) -> None:
    rows = [3, 0, 0]
    taken = featurizer.item_features(Catalog(ITEMS)).take(torch.tensor(rows))
    alone = featurizer.items.encode(ITEMS.iloc[rows].reset_index(drop=True))
    assert torch.equal(taken.dense, alone.dense)
    assert taken.sparse is not None
    assert alone.sparse is not None
    for part in ("values", "lengths"):
        assert torch.equal(getattr(taken.sparse, part), getattr(alone.sparse, part)), part


def test_attributes_that_are_missing_are_unknown_not_wrong(featurizer: Featurizer) -> None:
    known = featurizer.user_features([1], pd.DataFrame({"country": ["de"]})).sparse
    unknown = featurizer.user_features([1], pd.DataFrame({"shoe size": [44]})).sparse
    nobody = featurizer.user_features([99], None).sparse
    assert known is not None
    assert known.values.tolist() == [1]
    assert unknown is not None
    assert unknown.values.tolist() == []
    assert nobody is not None
    assert nobody.values.tolist() == []


def test_a_declared_column_that_does_not_exist_is_named() -> None:
    schema = Schema(item=(Feature("colour", "category"),))
    with pytest.raises(DataError, match=r"\[features.item\] names column 'colour', but the items' table has only"):
        Featurizer.fit(schema, Catalog(ITEMS), None, sequences())


def test_vectors_of_different_lengths_are_refused() -> None:
    items = ITEMS.assign(vector=[[1.0], [1.0, 2.0], None, None])
    with pytest.raises(DataError, match=r"column 'vector': expected vectors of one length, found 1, 2"):
        Featurizer.fit(Schema(item=(Feature("vector", "vector"),)), Catalog(items), None, sequences())


def test_text_keeps_its_most_telling_ngrams() -> None:
    texts = ["common words here", "common words there", "common rare"]
    hashed = HashedText.fit(texts, max_ngrams=5)
    lengths, buckets = hashed.bags(["common rare", "", "common"])
    assert lengths[0] == 5
    assert lengths[1] == 0
    in_one_of_three = np.log(4 / 2) + 1  # against ln(4 / 4) + 1 = 1 for the n-grams of "common"
    np.testing.assert_allclose(hashed.inverse_document_frequency[buckets[: lengths[0]]], in_one_of_three, rtol=1e-6)


def test_text_never_seen_shares_ngrams_with_text_that_was() -> None:
    hashed = HashedText.fit(["kettles", "spoons"])
    known, unseen = hashed.bags(["kettles"])[1], hashed.bags(["kettle"])[1]
    assert set(known.tolist()) & set(unseen.tolist())


def test_vocabularies_order_by_frequency_and_survive_saving(tmp_path: Path) -> None:
    vocabulary = Vocabulary.fit(["b", "a", "a", None, "c", "b", "a"])
    assert vocabulary.values.tolist() == ["a", "b", "c"]
    vocabulary.save(tmp_path / "v.parquet")
    assert Vocabulary.load(tmp_path / "v.parquet").rows(["a", "b", "c", "zzz"]).tolist() == [1, 2, 3, 0]


def test_request_times_lie_on_circles() -> None:
    day = 86_400
    features = request_features(torch.tensor([0, day // 4, 7 * day]))
    np.testing.assert_allclose(features[0], [0, 0, 0, 1, 1, 1], atol=1e-6)
    assert features[1, 0] == pytest.approx(1.0, abs=1e-6)  # a quarter of a day: the sine is at its height
    np.testing.assert_allclose(features[2, [0, 1, 3, 4]], [0, 0, 1, 1], atol=1e-5)


@pytest.mark.parametrize("reads_ids", [True, False])
def test_a_stranger_has_the_features_of_a_table_that_says_nothing(reads_ids):
    user = (*SCHEMA.user, Feature("user_id", "id")) if reads_ids else SCHEMA.user
    featurizer = Featurizer.fit(Schema(item=SCHEMA.item, user=user), Catalog(ITEMS), Users(PEOPLE), sequences())
    nothing = featurizer.user_features([None, None], pd.DataFrame({"country": [None, None]}))
    for ids in ([None, None], np.full(2, None), *([] if reads_ids else [[1, 2]])):
        found = featurizer.user_features(ids, None)
        assert found.sparse.keys == nothing.sparse.keys
        assert found.sparse.values.tolist() == nothing.sparse.values.tolist()
        assert found.sparse.lengths.tolist() == nothing.sparse.lengths.tolist()
        assert torch.equal(found.dense, nothing.dense)
    if reads_ids:
        known = featurizer.user_features([1, 2], None)
        assert known.sparse.values.tolist() != nothing.sparse.values.tolist()
