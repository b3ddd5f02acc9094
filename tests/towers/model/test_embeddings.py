"""Embedding tables: those that are only looked up compute what torchrec's compute, to the last bit."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from features.sequences.batches import JaggedFeatures
from towers.model.embeddings import FeatureEmbeddings

ROWS = {"tags": 7, "brand": 3, "words": 50}


def bags_of(rows: int, entities: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, rows - 1), max_size=4), min_size=entities, max_size=entities)


FEATURES = st.integers(1, 5).flatmap(lambda entities: st.tuples(*(bags_of(rows, entities) for rows in ROWS.values())))


def jagged(features: tuple[list[list[int]], ...]) -> JaggedFeatures:
    bags = [bag for feature in features for bag in feature]
    values = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
    return JaggedFeatures(tuple(ROWS), values, torch.tensor([len(bag) for bag in bags], dtype=torch.int32))


def keyed(features: JaggedFeatures) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=list(features.keys), values=features.values, lengths=features.lengths)


@given(bags=FEATURES)
def test_tables_pool_as_those_of_torchrec_do(bags: tuple[list[list[int]], ...]) -> None:
    features = jagged(bags)
    ours = FeatureEmbeddings(ROWS, 4)
    configs = [
        EmbeddingBagConfig(
            name=f"table_{place}",
            embedding_dim=4,
            num_embeddings=rows,
            feature_names=[name],
            pooling=PoolingType.SUM,
        )
        for place, (name, rows) in enumerate(ROWS.items())
    ]
    theirs = EmbeddingBagCollection(tables=configs, is_weighted=False)
    theirs.load_state_dict(ours.collection.state_dict())
    assert torch.equal(ours.collection(features), theirs(keyed(features)).values())


def test_the_weights_of_a_training_fit_the_tables_that_are_only_looked_up() -> None:
    trained, served = FeatureEmbeddings(ROWS, 4, learning_rate=0.1), FeatureEmbeddings(ROWS, 4)
    served.load_state_dict(trained.state_dict())
    features = JaggedFeatures(tuple(ROWS), torch.tensor([1, 2, 2, 49]), torch.tensor([2, 0, 1, 0, 0, 1]).int())
    torch.testing.assert_close(served(features), trained(features))


@given(bags=FEATURES)
def test_tables_of_16_bits_are_summed_in_32_as_in_training(bags: tuple[list[list[int]], ...]) -> None:
    trained = FeatureEmbeddings(ROWS, 4, learning_rate=0.1, dtype=torch.float16)
    served, whole = FeatureEmbeddings(ROWS, 4, dtype=torch.float16), FeatureEmbeddings(ROWS, 4)
    served.load_state_dict(trained.state_dict())
    whole.load_state_dict(trained.state_dict())
    found = served(jagged(bags))
    assert found.dtype == torch.float32
    assert torch.equal(found, whole(jagged(bags)))
    torch.testing.assert_close(found, trained(jagged(bags)))


def test_tables_of_16_bits_have_half_the_bytes_and_are_trained_with_a_state_of_32() -> None:
    halves, whole = (
        FeatureEmbeddings(ROWS, 4, learning_rate=0.1, dtype=kind) for kind in (torch.float16, torch.float32)
    )
    whole.load_state_dict(halves.state_dict())
    weights, others = (list(one.state_dict().values()) for one in (halves, whole))
    assert [2 * weight.nbytes for weight in weights] == [weight.nbytes for weight in others]
    features = JaggedFeatures(tuple(ROWS), torch.tensor([1, 2, 2, 49]), torch.tensor([2, 0, 1, 0, 0, 1]).int())
    for one in (halves, whole):
        one(features).sum().backward()
    states = [list(one.fused_optimizer.state_dict()["state"].values()) for one in (halves, whole)]
    for of_table, expected in zip(*states, strict=True):
        for state, wanted in zip(of_table.values(), expected.values(), strict=True):
            assert state.dtype == torch.float32
            assert torch.equal(state, wanted)
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight.float(), other, rtol=2**-10, atol=0)  # rounded once


@given(bags=FEATURES, places=st.lists(st.integers(0, len(ROWS) - 1), min_size=1, unique=True))
def test_features_are_selected_as_torchrec_permutes_them(bags: tuple[list[list[int]], ...], places: list[int]) -> None:
    features = jagged(bags)
    found, expected = features.select([features.keys[place] for place in places]), keyed(features).permute(places)
    assert list(found.keys) == expected.keys()
    assert torch.equal(found.values, expected.values())
    assert torch.equal(found.lengths, expected.lengths())


@given(bags=FEATURES, data=st.data())
def test_entities_are_taken_with_their_bags(bags: tuple[list[list[int]], ...], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(bags[0]) - 1)))
    found = keyed(jagged(bags).take(torch.tensor(rows, dtype=torch.int64)))
    for name, feature in zip(ROWS, bags, strict=True):
        assert [bag.tolist() for bag in found[name].to_dense()] == [feature[row] for row in rows]
