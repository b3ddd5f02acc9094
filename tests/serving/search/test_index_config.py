from __future__ import annotations

import pytest

from features.errors import DataError
from serving.search.index_config import (
    DESCRIPTIONS,
    INDEX_KINDS,
    IndexConfig,
    candidates,
    default_nlist,
    efforts,
    standard,
)


@pytest.mark.parametrize("kind", INDEX_KINDS)
@pytest.mark.parametrize("num_items", [1000, 20_000, 1_000_000])
def test_every_kind_has_parameters_for_every_size(kind, num_items):
    plan = standard(kind, num_items, 64, prefixes=[16, 32])
    assert plan.kind == kind
    assert plan.prefix == (32 if kind == "matryoshka" else 0)
    assert plan.is_exact == (kind == "exact")
    assert plan.nprobe <= plan.nlist
    assert plan.nlist == (default_nlist(num_items) if kind.startswith("ivf") else 0)
    assert DESCRIPTIONS[kind]


@pytest.mark.parametrize(
    # Twice the root: 632, 2,000, 6,325; the nearest powers of two. 1,000 items in partitions of at least 30: 33.
    ("num_items", "expected"),
    [(1, 1), (1000, 33), (100_000, 512), (1_000_000, 2048), (10_000_000, 8192)],
)
def test_partitions_grow_with_the_root_of_the_catalogue(num_items, expected):
    assert default_nlist(num_items) == expected


def test_a_plan_is_said_in_a_few_words():
    assert str(IndexConfig()) == "exact"
    assert str(standard("hnsw", 5000, 64)) == "hnsw m=32 ef_search=256"
    assert str(standard("ivf-pq", 20_000, 64)) == "ivf-pq bits=4 nlist=256 nprobe=64 oversampling=6"
    assert str(standard("matryoshka", 20_000, 64, prefixes=[16])) == "matryoshka prefix=16 oversampling=8"


def test_small_catalogues_are_only_compared():
    assert candidates(999, 64) == [IndexConfig()]
    with pytest.raises(DataError, match="--kind hnsw: expected at least 1,000 items, found 999; choose exact"):
        candidates(999, 64, "hnsw")


def test_every_structure_worth_building_is_tried_once():
    plans = candidates(100_000, 64)
    assert {plan.kind for plan in plans} == {*INDEX_KINDS} - {"matryoshka"}
    assert not any(plan.prefix for plan in plans)
    assert len({plan.structure for plan in plans}) == len(plans)
    assert [plan.bits for plan in plans if plan.kind == "ivf-pq"] == [4, 2]
    assert [plan.bits for plan in candidates(100_000, 33) if plan.kind == "ivf-pq"] == [4], "an odd width has no pairs"
    assert {plan.kind for plan in candidates(100_000, 64, "rabitq")} == {"rabitq"}


def test_structures_on_the_prefixes_of_a_model_are_tried_too():
    plans = candidates(100_000, 64, prefixes=[16, 32])
    assert {plan.kind for plan in plans} == set(INDEX_KINDS)
    assert len({plan.structure for plan in plans}) == len(plans)
    prefixes = {kind: [plan.prefix for plan in plans if plan.kind == kind] for kind in INDEX_KINDS}
    assert prefixes["matryoshka"] == [16, 32], "without a prefix that would be exact"
    assert prefixes["ivf"] == prefixes["hnsw"] == [0, 16, 32]
    assert prefixes["ivf-pq"] == [0, 0, 16, 32]
    assert prefixes["exact"] == prefixes["sq8"] == [0]
    assert [plan.prefix for plan in candidates(100_000, 64, "hnsw", [8])] == [0, 8]
    assert candidates(999, 64, prefixes=[16]) == [IndexConfig()]


def test_a_prefix_is_for_models_that_were_trained_for_it():
    with pytest.raises(
        DataError,
        match=r"--kind matryoshka: expected a model trained with prefixes of its vectors; set towers.matryoshka_dims",
    ):
        candidates(100_000, 64, "matryoshka")


@pytest.mark.parametrize("prefix", [0, 16])
@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_each_rung_of_a_ladder_searches_harder_than_the_one_before(kind, prefix):
    plan = standard(kind, 50_000, 64, prefixes=[16]).model_copy(update={"prefix": prefix})
    ladders = list(efforts(plan, 50_000))
    assert ladders
    for ladder in ladders:
        assert all(rung.structure == plan.structure for rung in ladder)
        effort = [(rung.nprobe, rung.ef_search, rung.oversampling) for rung in ladder]
        assert effort == sorted(effort)
        assert len(set(effort)) == len(effort)
    assert ladders[0][0].nprobe * 50_000 >= 200 * plan.nlist, "the least effort looks at enough items"
    hardest = ladders[-1][-1]
    assert hardest.nprobe == plan.nlist
    assert (hardest.oversampling > 1) == plan.is_rescored
