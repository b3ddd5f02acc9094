from __future__ import annotations

import numpy as np
import pytest

from features.errors import DataError
from serving.search import tuning as tuning_module
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import IndexConfig, candidates
from serving.search.tuning import (
    Measured,
    choose,
    partitions_pay,
    recall_of,
    sample_of,
    searches_per_second,
    thirds,
    tune,
)
from tests.serving.vectors import clustered_vectors, unit_vectors

ITEMS = clustered_vectors(3000)
USERS = clustered_vectors(300, seed=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(tuning_module, "_TIMED_USERS", 2)
    monkeypatch.setattr(tuning_module, "_ROUNDS", 1)


def speeds(monkeypatch, speed_of):
    """Let each plan have the speed that a test says."""
    monkeypatch.setattr(tuning_module, "searches_per_second", lambda index, queries, k: speed_of(index.plan))


def test_the_fastest_that_finds_enough_is_kept(monkeypatch):
    speeds(monkeypatch, lambda plan: {"ivf-pq": 5000, "pq": 4000, "sq8": 3000}.get(plan.kind, 1000) + plan.bits)
    found = tune(ITEMS, USERS, 0.95)
    assert [one.plan.structure for one in found.tried] == [plan.structure for plan in candidates(3000, 16)]
    assert all(one.recall >= 0.95 for one in found.tried)
    assert (found.chosen.plan.kind, found.chosen.plan.bits) == ("ivf-pq", 4)
    assert found.index.plan == found.chosen.plan
    _, checking, judging = thirds(sample_of(USERS))
    assert found.chosen.recall == pytest.approx(recall_of(found.index, checking))
    assert found.recall == pytest.approx(recall_of(found.index, judging))
    assert found.num_users == len(judging) == 100


def test_one_that_finds_less_is_not_kept_however_fast(monkeypatch):
    """Ten thousand searches a second with one partition; but that finds little, and all need every one."""
    vectors, queries = unit_vectors(3000), unit_vectors(200, seed=1)
    speeds(monkeypatch, lambda plan: 1e4 / plan.nprobe)
    found = tune(vectors, queries, 0.9, "ivf")
    by_probes = {
        probes: recall_of(ItemIndex.build(vectors, found.chosen.plan.model_copy(update={"nprobe": probes})), queries)
        for probes in (found.chosen.plan.nprobe, found.chosen.plan.nprobe // 2)
    }
    enough, half = by_probes.values()
    assert enough >= 0.895
    assert half < 0.9


def test_an_index_that_may_miss_something_must_be_worth_it(monkeypatch):
    speeds(monkeypatch, lambda plan: 1000 if plan.is_exact else 1050)
    assert tune(ITEMS, USERS, 0.9).chosen.plan == IndexConfig()
    speeds(monkeypatch, lambda plan: 1000 if plan.is_exact else 1150)
    assert tune(ITEMS, USERS, 0.9).chosen.plan != IndexConfig()


def test_everything_means_comparing_everything():
    assert tune(ITEMS, USERS, 1).chosen.plan == IndexConfig()


def test_users_by_whom_the_index_is_judged_had_no_part_in_choosing_it(monkeypatch):
    asked = []
    search = ItemIndex.search
    monkeypatch.setattr(
        ItemIndex, "search", lambda index, queries, *given: asked.append(queries) or search(index, queries, *given)
    )
    tune(ITEMS, USERS, 0.95, "ivf")
    *before, judging = ({vector.tobytes() for vector in queries} for queries in asked)
    parts = [{vector.tobytes() for vector in part} for part in thirds(sample_of(USERS))]
    assert judging == parts[2]
    assert not judging & set().union(*before)
    assert set().union(*before) <= parts[0] | parts[1]
    assert not parts[0] & parts[1]
    assert [len(part) for part in parts] == [100] * 3


@pytest.mark.parametrize("length", [1, 2, 8, 9, 30])
def test_the_least_effort_is_the_lowest_rung_that_finds_enough(length, monkeypatch):
    index, trial = ItemIndex.build(ITEMS[:1000]), tuning_module._Trial.of(ITEMS[:1000], USERS, 0.9)
    ladder = [IndexConfig(kind="ivf", nlist=50, nprobe=rung) for rung in range(length)]
    for lowest in range(length + 1):
        monkeypatch.setattr(type(trial), "_recall", lambda *given, least=lowest: float(given[-1].nprobe >= least))
        assert trial._least(index, ladder) == (lowest if lowest < length else None)


def test_two_users_are_tuned_for_and_judged_by():
    assert tune(ITEMS, USERS[:2], 0.9, "ivf").num_users == 2


@pytest.mark.parametrize("prefixes", [[], [8, 12]])
def test_prefixes_of_a_model_are_in_the_trade_off(prefixes):
    found = tune(ITEMS, USERS, 0.9, "ivf", prefixes=prefixes)
    assert [one.plan.prefix for one in found.tried] == [0, *prefixes]
    assert all(one.recall >= 0.9 for one in found.tried)
    table = found.table()
    assert all(f" ivf prefix={prefix} " in table for prefix in prefixes)
    # 3,000 items as 4-byte numbers, 16 or as many as the prefix has, each with an id of 8 bytes.
    whole, *short = (one.num_bytes for one in found.tried)
    assert [whole - one for one in short] == pytest.approx([4 * 3000 * (16 - prefix) for prefix in prefixes], rel=0.05)


def test_an_index_on_a_prefix_can_be_asked_for_and_is_measured():
    chosen = choose(ITEMS, USERS, kind="matryoshka", prefixes=[8, 12])
    assert str(chosen.index.plan) == "matryoshka prefix=12 oversampling=8"
    assert 0.9 < chosen.recall == recall_of(chosen.index, USERS)


def test_a_kind_that_cannot_find_enough_is_shown_as_it_is(monkeypatch):
    monkeypatch.setattr(
        tuning_module, "efforts", lambda plan, num_items: iter([[plan.model_copy(update={"nprobe": 8})]])
    )
    found = tune(unit_vectors(3000), unit_vectors(100, seed=1), 0.99, "ivf-pq")
    assert found.chosen.recall < 0.99
    assert found.table().splitlines()[1].startswith("* ivf-pq bits=4")


def test_the_table_says_what_each_costs_and_marks_what_is_kept():
    found = tune(ITEMS, USERS, 0.9, "rabitq")
    lines = found.table().splitlines()
    assert lines[0].split() == ["index", "recall@100", "searches/s", "memory", "MB", "build", "s"]
    assert sum(line.startswith("* rabitq bits=") for line in lines) == 1
    assert sum("rabitq bits=" in line for line in lines) == 3
    assert lines[-3].startswith("* chosen: RaBitQ: random rotation, 1 to 4 bits per dimension; recall@100 is ")
    assert lines[-3].endswith(f" {found.recall:.4f} for 100 users who were not used in the choice.")
    assert lines[-2].startswith("- recall below 0.9.")
    assert lines[-1] == "Each index also needs the vectors themselves, 0.2 MB."  # 3,000 x 16 x 4 bytes


def test_lines_that_find_enough_come_first_the_fastest_at_the_top(monkeypatch):
    found = tune(ITEMS, USERS, 0.9, "rabitq")
    tried = tuple(
        Measured(IndexConfig(), recall, speed, 10**6, 1.0) for recall, speed in [(0.8, 9), (0.9, 3), (0.95, 7)]
    )
    table = type(found)(0.9, tried, tried[2], found.index, 0.9, 5).table().splitlines()
    assert [(line[0], line.split()[-4]) for line in table[1:4]] == [("*", "0.9500"), (" ", "0.9000"), ("-", "0.8000")]


def test_each_trial_is_announced():
    said = []
    tune(ITEMS, USERS, 0.9, "rabitq", trying=lambda *given: said.append(given))
    assert said == [(0, 3, "rabitq"), (1, 3, "rabitq"), (2, 3, "rabitq")]


def test_an_index_that_is_not_tuned_is_measured():
    chosen = choose(ITEMS, USERS, kind="hnsw")
    assert (chosen.index.kind, chosen.wanted, chosen.num_users) == ("hnsw", None, 300)
    assert chosen.recall == recall_of(chosen.index, USERS) > 0.95
    assert choose(ITEMS, USERS).index.is_exact


def test_where_nobody_is_known_items_stand_in():
    nobody = np.zeros((0, 16), np.float32)
    for chosen in (choose(ITEMS, nobody), choose(ITEMS, nobody, kind="ivf", recall=0.9)):
        assert chosen.num_users == 0
        assert chosen.recall >= 0.9


def test_a_kind_for_more_items_than_there_are_is_refused():
    for recall in (None, 0.9):
        with pytest.raises(DataError, match="--kind ivf: expected at least 1,000 items, found 50; choose exact"):
            choose(ITEMS[:50], USERS, kind="ivf", recall=recall)


def test_few_items_are_compared_whatever_is_asked():
    assert choose(ITEMS[:50], USERS, recall=0.5).index.is_exact


def test_users_of_whom_nothing_is_known_are_no_measure():
    users = USERS.copy()
    users[::2] = 0
    assert np.linalg.norm(sample_of(users), axis=1) == pytest.approx(1)
    assert len(sample_of(users)) == 150


def test_partitions_are_kept_for_filters_where_items_cluster_and_only_there(monkeypatch):
    for name, small in [("partitions._FIRST_ROUND", 64), ("partitions._JUDGED", 10), ("tuning.FIRST_LEVEL", 10)]:
        monkeypatch.setattr(f"serving.search.{name}", small)
    assert partitions_pay(ItemIndex.build(clustered_vectors(20_000), "ivf-sq8"), USERS)
    isotropic = unit_vectors(5000)
    assert not partitions_pay(ItemIndex.build(isotropic, "ivf-sq8"), USERS)
    assert not partitions_pay(ItemIndex.build(isotropic), USERS)
    assert tune(isotropic, unit_vectors(50, seed=1), 0.9, "ivf").index.partitions is None


def test_the_fastest_of_several_searches_for_each_user_counts(monkeypatch):
    """Two users in three rounds: 5, 9, 3, 4, 8 and 9 seconds; the fastest are 3 and 4, on average 3.5."""
    index, asked = ItemIndex.build(ITEMS), []
    monkeypatch.setattr(index, "search", lambda queries, k: asked.append(len(queries)))
    monkeypatch.setattr(tuning_module, "_ROUNDS", 3)
    ends = np.cumsum([5, 9, 3, 4, 8, 9])
    clock = iter([0, *np.repeat(ends, 2).tolist()])
    monkeypatch.setattr(tuning_module.time, "perf_counter", lambda: next(clock))
    assert searches_per_second(index, USERS, 10) == pytest.approx(1 / 3.5)
    assert asked == [1] * 6
