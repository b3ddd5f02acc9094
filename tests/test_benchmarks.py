"""The benchmarks measure what they say: the same work on both sides, and figures that add up."""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE
from features.sequences.sequences import Queries, Sequences
from features.tables.tables import SECONDS_PER_DAY
from serving.config import ServingConfig
from serving.http.app import create_app
from tests.benchmarks import (
    ablations,
    agreement,
    continued,
    duplicates,
    encoding,
    evenness,
    fuzz,
    kills,
    large_vocabularies,
    leads,
    quantisation,
    ranker,
    soak,
    speed,
    table,
    text_search,
)
from tests.benchmarks.fuzz_requests import Maker, Message
from tests.benchmarks.harness import Answer, Reader, make_keys, request_bytes, traces_in
from tests.benchmarks.ids_only import Measured, Task, measure, read, spread
from tests.benchmarks.speed import OURS, RIVAL, RIVALS, Contestant, events_of_a_step, task_of
from training.config import RunConfig
from training.evaluation.evaluate import TableRecommender

GIVEN = argparse.Namespace(threads=1, epochs=2, rounds=2, goals=None)


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of public data sets with a small one that is called Beauty: 60 users with 3 to 70 of 90 items."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 71, 60)
    frame = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(60) + 500, lengths),
            "item_id": np.concatenate([rng.permutation(90)[:length] for length in lengths]),
            "position": np.concatenate([np.arange(length) for length in lengths]),
        }
    )
    (tmp_path / "amazon-beauty").mkdir()
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "amazon-beauty" / "interactions.parquet")
    monkeypatch.setenv("TOWERS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("benchmark", [speed, evenness], ids=["speed", "evenness"])
def test_without_the_data_a_benchmark_says_what_it_wants(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOWERS_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", "ml-1m"])
    monkeypatch.setattr(speed, "RIVAL", tmp_path / ".rivals" / "bin" / "python")
    benchmark.main()
    said = capsys.readouterr().out.splitlines()
    wanted = f"ml-1m: left out, there is no {tmp_path / 'ml-1m'}; set TOWERS_DATA to the folder of the public data sets"
    assert said[-1] == wanted
    if benchmark is speed:
        assert said[0] == f"RecTools: left out, there is no {tmp_path / '.rivals'}; `make rivals` makes it"


def test_one_epoch_is_refused_because_the_first_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for benchmark in (speed, evenness):
        monkeypatch.setattr(sys, "argv", ["benchmark", "--epochs", "1"])
        with pytest.raises(SystemExit, match="2"):
            benchmark.main()
        assert "expected at least 2, the first of which is not counted" in capsys.readouterr().err


def test_positions_are_the_predictions_of_the_histories_as_they_are_read(public: Path):
    task = task_of("amazon-beauty", {})
    expected = events = 0
    for user in range(len(task.split.train)):
        read_items = task.split.train.items_of(user)[-51:]  # 50 that are read, and the one before them
        events += len(read_items)
        expected += len(read_items) - 1
    assert (task.num_positions, task.num_events) == (expected, events)
    assert task.num_positions < task.split.train.num_events - len(task.split.train), "some history is cut"


def test_the_rival_gets_the_same_interactions_in_the_same_order(public: Path):
    task = task_of("amazon-beauty", {})
    table = speed._interactions_of(task).sample(frac=1, random_state=1).sort_values(["user_id", "position"])
    train = task.split.train
    assert table["user_id"].to_list() == train.user_ids[train.event_users].tolist()
    assert table["item_id"].to_list() == task.tables.catalog.item_ids[train.item_rows].tolist()
    assert (table.groupby("user_id")["position"].min() == 0).all()


def test_ours_takes_as_many_steps_as_there_are_batches_of_sequences(public: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "SEQUENCES", 6)
    task = task_of("amazon-beauty", {})
    measured = measure(task_of("amazon-beauty", {"epochs": 2, "batch_size": events_of_a_step(task)}))
    assert 10 <= measured.steps <= 12  # 60 users by 6; the last of a step may not fit into it
    assert len(measured.seconds) == 2
    assert min(measured.seconds) > 0
    assert measured.epoch_seconds == measured.seconds[1]
    assert measured.peak_bytes > 2**27
    assert 0 < measured.ndcg < 0.5


def test_more_epochs_of_the_same_learn_more(public: Path):
    # Everybody takes the items in the order of their numbers, so that the next one can be known.
    path = public / "amazon-beauty" / "interactions.parquet"
    frame = pd.read_parquet(path)
    frame["item_id"] = (frame["user_id"] + frame["position"]) % 90
    frame.to_parquet(path)
    towers = {"embedding_dim": 16, "dropout": 0.0}
    training = {"negatives": "sampled", "uniform_negatives": 16, "batch_size": 256, "warmup_steps": 5}
    few, many = (measure(read("amazon-beauty", towers, {**training, "epochs": epochs})) for epochs in (2, 12))
    assert many.ndcg > few.ndcg


def test_the_table_says_how_many_times_as_fast_in_the_same_round(public: Path):
    task = task_of("amazon-beauty", {})
    contestants = [RIVALS["float32"], OURS[0]]
    rounds = [
        {contestants[0].name: run(40.0, 0.01), contestants[1].name: run(10.0, 0.03)},
        {contestants[0].name: run(20.0, 0.01), contestants[1].name: run(10.0, 0.05)},
    ]
    lines = speed._table("amazon-beauty", task, contestants, rounds, GIVEN)
    # 4 and 2 times: a mean of 3, and sqrt(2 * 1²) = 1.41 between rounds.
    assert lines[-1].split("  ")[0] == "ours, float32"
    assert "3.00 ± 1.41" in lines[-1]
    assert "10.00 ± 0.00" in lines[-1]
    assert "0.0400 ± 0.0141" in lines[-1]
    assert "1.00 ± 0.00" in lines[-2]
    assert "30.00 ± 14.14" in lines[-2]
    alone = speed._table("amazon-beauty", task, [OURS[0]], [{OURS[0].name: run(10.0, 0.03)}], GIVEN)
    assert " – " in alone[-1]


def test_the_time_to_a_quality_is_that_of_the_epochs_until_it(monkeypatch: pytest.MonkeyPatch):
    measured = Measured([10.0, 8.0, 8.0], 3, 2**30, 0.05, [0.02, 0.05, 0.05])
    assert [measured.seconds_to(goal) for goal in (0.01, 0.03, 0.05, 0.06)] == [10.0, 18.0, 18.0, None]
    slower = replace(measured, ndcg_after=[0.01, 0.01, 0.03])
    found = {RIVALS["float32"].name: slower, OURS[2].name: measured}
    monkeypatch.setattr(speed, "_round", lambda *_: found)
    given = argparse.Namespace(threads=1, epochs=3, rounds=2, goals=[0.03, 0.04])
    lines = speed.time_to_quality("amazon-beauty", None, [RIVALS["float32"], OURS[2]], given)  # type: ignore[arg-type]
    assert lines[-2].split("  ")[0] == "RecTools SASRec, float32"
    assert lines[-2].split()[-8:] == ["26", "±", "0", "not", "reached", "0.0300", "±", "0.0000"]
    assert lines[-1].split()[-9:] == ["18", "±", "0", "18", "±", "0", "0.0500", "±", "0.0000"]
    assert any("row-wise Adagrad" in line for line in lines)


def run(seconds: float, ndcg: float) -> Measured:
    return Measured([99.0, seconds], 3, 2**30, ndcg)


def test_evenness_is_the_cost_beside_the_cheapest(public: Path):
    tasks = {"amazon-beauty": evenness.task_of("amazon-beauty", {})}
    tasks["ml-1m"] = tasks["amazon-beauty"]
    given = argparse.Namespace(negatives=10, batch_size=20, threads=1, rounds=2, epochs=2)
    lines = evenness._table(tasks, {"amazon-beauty": [30.0, 32.0], "ml-1m": [20.0, 20.0]}, given)
    assert lines[-2].split()[-4:] == ["31.0", "±", "1.4", "1.55"]
    assert lines[-1].split()[-4:] == ["20.0", "±", "0.0", "1.00"]


def test_a_spread_of_one_is_the_number_itself():
    assert spread([2.0], ".1f") == "2.0"
    assert spread([1.0, 3.0], ".1f") == "2.0 ± 1.4"


@pytest.mark.slow
@pytest.mark.skipif(not RIVAL.is_file(), reason="no RecTools here; `make rivals` makes its environment")
def test_the_rival_trains_and_answers_everybody_with_items_that_are_new(public: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "SEQUENCES", 16)
    task = task_of("amazon-beauty", {})
    tables = []

    def keeping(own: Task, recommender: TableRecommender) -> float:
        tables.append(recommender.scores(own.split.validation))
        return 0.0

    monkeypatch.setattr(Task, "ndcg", keeping)
    measured = speed._train_rival(Contestant("RecTools", "32-true"), 0, task, "amazon-beauty", GIVEN)
    assert len(measured.seconds) == 2
    assert measured.steps == 4  # 60 users with several items, by 16
    (scores,) = tables
    assert ((scores > -np.inf).sum(axis=1) == 10).all()
    history = task.split.validation.history
    assert (scores[history.event_users, history.item_rows] == -np.inf).all()


@pytest.mark.parametrize("rival", [[], ["--rival"]])
def test_the_benchmark_of_duplicates_counts_true_pairs(
    rival: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["duplicates", "--items", "4000", "--width", "16", *rival])
    duplicates.main()
    said = capsys.readouterr().out
    assert "4,000 items of 16, made, 10% near-copies" in said
    # So few are compared one and all.
    assert "recall of pairs               1.0000" in said
    assert ("nprobe=" in said) == bool(rival)


def test_near_copies_are_as_near_as_they_should_be():
    rng = np.random.default_rng(0)
    vectors = duplicates.unit(rng.standard_normal((2000, 64)))
    changed = duplicates.with_near_copies(vectors, 0.1)
    moved = np.flatnonzero((changed != vectors).any(axis=1))
    assert len(moved) == 200
    np.testing.assert_allclose(np.linalg.norm(changed, axis=1), 1, atol=1e-5)
    nearest = (changed[moved] @ vectors.T).max(axis=1)
    assert nearest.min() >= 0.9 - 1e-5
    assert np.mean(nearest) == pytest.approx(0.95, abs=0.01)


def test_texts_a_second_are_those_of_the_median_round_and_ratios_those_of_neighbours() -> None:
    vectors = {encoding.PLAIN: np.eye(2), "ours": np.array([[0.8, 0.6], [0.0, 1.0]])}
    lines = encoding.table({encoding.PLAIN: [4.0, 6.0, 9.0], "ours": [2.0, 2.0, 3.0]}, vectors, 60)
    plain = ["SentenceTransformer.encode", "10.0", "1.00", "(1.00", "to", "1.00)", "1.00000", "1.0000", "1.0000"]
    assert lines[1].split() == plain
    # Cosines 0.8 and 1: their mean is 0.9, and one in a hundred lies a hundredth of the way from the lowest.
    assert lines[2].split() == ["ours", "30.0", "3.00", "(2.00", "to", "3.00)", "0.90000", "0.8020", "0.8000"]


def test_rounds_in_which_threads_shared_a_core_stand_apart() -> None:
    seconds = {encoding.PLAIN: [4.0, 6.0, 9.0, 8.0], "ours": [2.0, 2.0, 2.0, 4.0]}
    assert encoding.by_cores(seconds, np.array([1.4, 1.7, 1.9, 1.5]), 2) == [
        "2 rounds with whole cores (2 threads encode 1.70 to 1.90 times what one does): ours 3.75",
        "2 rounds with shared cores (2 threads encode 1.40 to 1.50 times what one does): ours 2.00",
    ]
    assert len(encoding.by_cores(seconds, np.full(4, 0.99), 1)) == 1


def test_the_benchmark_of_the_ranker_compares_the_same_users_and_knows_its_bar():
    before = np.tile([0.0, 0.5, 1.0], 100)
    cost = np.linspace(0.001, 0.010, 300)
    alone = ranker.Judged("retrieval alone", before, np.zeros(300), cost)
    better = ranker.Judged("learned, 200", np.tile([0.1, 0.5, 1.0], 100), cost, 2 * cost)
    lines = ranker.table([alone, better])
    assert lines[-2].split() == ["retrieval", "alone", "300", "0.5000", "0.5000", "0.00", "0.00", "5.50", "9.91"]
    # (0.1 + 0.5 + 1) / 3 over 0.5 is 1.0667; the difference is 0.1 for a third, 0 for others.
    assert lines[-1].split()[:6] == ["learned,", "200", "300", "0.5333", "0.5000", "+6.7%"]
    assert lines[-1].split()[-4:] == ["5.50", "9.91", "11.00", "19.82"]
    assert ranker.holds([alone, better])
    assert not ranker.holds([alone, replace(better, seconds=10 * cost)])
    assert not ranker.holds([alone, replace(better, ndcg=before * 1.04)])
    # Where only some were asked, they are compared with themselves: 1.1 of the first two beside 0.5.
    few = ranker.table([alone, replace(better, ndcg=np.array([0.1, 1.0]), seconds=cost[:2])])[-1]
    assert few.split()[2:6] == ["2", "0.5500", "0.2500", "+120.0%"]


def test_the_benchmark_of_the_ranker_hides_the_last_of_each_user(public: Path, tmp_path: Path):
    data = public / "amazon-beauty"
    events = pd.read_parquet(data / "interactions.parquet").assign(timestamp=5)
    events.to_parquet(data / "interactions.parquet")
    pd.DataFrame({"item_id": range(95)}).to_parquet(data / "items.parquet")
    pd.DataFrame({"user_id": events["user_id"].unique()}).to_parquet(data / "users.parquet")
    asked = ranker.hide_last(tmp_path / "bench", data)
    rest = pd.read_parquet(tmp_path / "bench" / "data" / "interactions.parquet")
    assert len(asked) == 60
    assert len(rest) + 60 == len(events)
    last = events.set_index(["user_id", "position"])["item_id"]
    newest = rest.groupby("user_id")["position"].max()
    assert all(last[one.who, newest[one.who] + 1] == one.item for one in asked)
    assert {one.time for one in asked} == {5.0}
    items = pd.read_parquet(tmp_path / "bench" / "data" / "items.parquet")["item_id"]
    assert set(items) == set(events["item_id"])


def test_the_fewer_bits_are_kept_the_more_is_lost_and_rescoring_brings_most_of_it_back():
    drawn = np.random.default_rng(0).normal(size=(2100, 32))
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    lines = [line.split() for line in quantisation.measure(vectors[100:], vectors[:100], [])[1:]]
    found = {(line[0], line[1]): [float(number) for number in line[3:]] for line in lines}
    sizes = {name: numbers[0] for name, numbers in found.items()}
    assert sizes == {
        ("sq8", "bits=8"): 32,
        ("sq4", "bits=4"): 16,
        ("rabitq", "bits=4"): 16,
        ("rabitq", "bits=2"): 8,
        ("rabitq", "bits=1"): 4,
    }
    as_is = [found["rabitq", f"bits={bits}"][3] for bits in (4, 2, 1)]
    assert as_is == sorted(as_is, reverse=True)
    assert found["rabitq", "bits=1"][3] < 0.7 < 0.9 < found["rabitq", "bits=1"][5]


def search_of(answered: list[int], queries: int) -> text_search.Search:
    documents = ["a document"] * len(answered)
    return text_search.Search(["a query"] * queries, documents, np.array(answered), ("there", "back"))


def test_what_is_even_with_others_comes_after_half_of_them() -> None:
    there = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [5.0, 9.0, 4.0, 6.0], [1.0, 1.0, 2.0, 1.0]])
    search = search_of([0, 1, 2, 3], 4)
    ranks = text_search.ranks_of(search, there, there.T, np.array([0, 1, 2, 3]))
    # First; even with three others; behind 9, 6 and 5; behind the 2 and even with two others.
    assert ranks["there"].tolist() == [0, 1, 3, 2]
    # Down the columns: behind the 5; even with none and behind 9, 1 and 1; first; behind the 6 and the 1.
    assert text_search.ranks_of(search, there, there.T, np.array([0, 2]))["back"].tolist() == [1, 0]


def test_any_document_of_a_query_is_right_and_those_of_no_query_only_stand_before_it() -> None:
    scores = np.array([[1.0, 4.0, 3.0, 2.0, 5.0], [9.0, 0.0, 0.0, 0.0, 8.0]])
    ranks = text_search.ranks_of(search_of([1, 0, 1, 0, -1], 2), scores, scores.T, np.array([0, 1]))
    # The first query is answered by 4 and 2, behind the 5 of none; the second by 9 and 0, of which the 9 is first.
    assert ranks["there"].tolist() == [1, 0]
    # The first documents of the two queries are the ones with 4 against 0, and with 9 against 1.
    assert ranks["back"].tolist() == [0, 0]


def test_no_seed_asks_for_what_settings_are_chosen_by() -> None:
    by_seed = [text_search.divided(1_000, 600, seed, validate=False) for seed in (0, 1)]
    assert [(len(learned), len(asked)) for learned, asked in by_seed] == [(600, 400), (600, 400)]
    assert len({*by_seed[0][1], *by_seed[1][1]}) == 600  # all but those that settings are chosen by
    first, chosen_by = text_search.divided(1_000, 600, 0, validate=True)
    assert (len(first), len(chosen_by)) == (200, text_search.FOR_VALIDATION)
    for learned, asked in (*by_seed, (first, chosen_by)):
        assert not set(learned) & set(asked)
    assert all(set(chosen_by) <= set(learned) for learned, _ in by_seed)


def test_a_lead_is_marked_only_where_the_intervals_are_apart() -> None:
    bad, good = np.array([60, 0] * 200), np.array([0] * 399 + [60])
    found = {name: {"there": ranks} for name, ranks in ((text_search.AS_IT_IS, bad), (text_search.LEARNED, good))}
    *_, marked, difference = text_search.table(found, np.arange(400))
    assert marked.count("*") == 3
    # 399 of 400 are found instead of 200.
    assert difference.split()[5].startswith("+0.497")
    found[text_search.AS_IT_IS]["there"] = np.array([0] * 398 + [60] * 2)
    assert "*" not in text_search.table(found, np.arange(400))[-2]


def test_a_query_that_several_seeds_ask_for_counts_once() -> None:
    ranks = {"there": np.array([0, 0, 99, 0])}
    found = {text_search.AS_IT_IS: ranks, text_search.LEARNED: ranks}
    # Of the four ranks the first three are of one query: 2/3 of it and the whole of the other, 5/6 on average.
    assert "0.8333" in text_search.table(found, np.array([4, 4, 4, 7]))[1]


def test_an_ablation_leaves_out_one_feature_at_a_time_and_then_all_but_the_id() -> None:
    features = {
        "interactions": "none.parquet",
        "item": {"item_id": {"kind": "id"}, "title": {"kind": "text"}, "brand": {"kind": "category"}},
        "user": {"country": {"kind": "category"}},
    }
    read_by = {
        name: ([*variant.features.item], [*variant.features.user])
        for name, variant in ablations.variants(RunConfig.model_validate({"features": features}))
    }
    assert read_by == {
        "all": (["item_id", "title", "brand"], ["country"]),
        "without item.title": (["item_id", "brand"], ["country"]),
        "without item.brand": (["item_id", "title"], ["country"]),
        "without the users' attributes": (["item_id", "title", "brand"], []),
        "ids alone": (["item_id"], []),
    }


def test_smaller_tables_of_ids_are_those_that_their_names_say() -> None:
    features = {"interactions": "none.csv", "items": "none.csv", "item": {"item_id": {"kind": "id"}}}
    config = RunConfig.model_validate({"features": features})
    found = {
        name: (one.towers.embedding_dtype, ids.min_count, ids.hashed_rows, ids.hashes)
        for name, one in large_vocabularies.variants(config, 1001)
        for ids in [one.features.item["item_id"]]
    }
    every = large_vocabularies.EVERY_ID_IS_RARE
    assert found == {
        "whole vocabulary": ("float32", None, None, None),
        "float16": ("float16", None, None, None),
        "min_count 2": ("float32", 2, None, None),
        "min_count 5": ("float32", 5, None, None),
        "min_count 5, hashed, 1/10": ("float32", 5, 100, None),
        "hashed, 1/2, 1 hash": ("float32", every, 500, 1),
        "hashed, 1/2, 2 hashes": ("float32", every, 500, 2),
        "hashed, 1/4, 1 hash": ("float32", every, 250, 1),
        "hashed, 1/4, 2 hashes": ("float32", every, 250, 2),
        "hashed, 1/10, 1 hash": ("float32", every, 100, 1),
        "hashed, 1/10, 2 hashes": ("float32", every, 100, 2),
    }


def test_a_lead_is_that_on_the_same_questions_in_the_mean_over_seeds() -> None:
    # Two questions, the first with two answers; ranks of ours with seeds 0 and 1, and of another, which has no seeds.
    ranks = {("ours", 0): [1, 2, 1], ("ours", 1): [1, 2, 3], ("other", 0): [1, 9, 9], ("other", 1): [1, 9, 9]}
    answers = pd.DataFrame(
        {"recommender": name, "seed": seed, "question": question, "user_id": 7 + question, "rank": rank}
        for (name, seed), found in ranks.items()
        for question, rank in zip([0, 0, 1], found, strict=True)
    )
    found = leads.by_question(answers, 3)
    ideal = 1 + 1 / np.log2(3)
    assert found["seed"].tolist() == [0, 0, 1, 1]
    assert found["ours"].tolist() == pytest.approx([1, 1, 1, 1 / 2])
    assert found["other"].tolist() == pytest.approx([1 / ideal, 0] * 2)
    first, second = leads.leads(found, ["ours", "other"])
    assert "0.8750" in first
    assert f"lead {0.875 - 0.5 / ideal:+.4f}" in second


@pytest.mark.parametrize("benchmark", [fuzz, kills, soak], ids=["fuzz", "kills", "soak"])
def test_an_attack_says_what_it_does_and_when_it_fails(
    benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        benchmark.main()
    said = capsys.readouterr().out
    assert benchmark.__doc__.splitlines()[0] in said
    assert "with status 1" in said


class _KeepsAlive(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_: Any) -> None:
        pass

    log = log_request


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """Run an application in this process while the block runs, and yield the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_KeepsAlive)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def broken_app(environ, start_response):
    """Answers right things wrong: a stack trace, and no problem."""
    start_response("500 Oh", [("Content-Type", "text/html"), ("Content-Length", "33")])
    return [b"Traceback (most recent call last)"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> SimpleNamespace:
    """A service in this process with keys and live writes, its keys and its document."""
    from tests.serving.http.contract.test_openapi import make_shop

    folder = tmp_path_factory.mktemp("attacked")
    keys = make_keys(folder)
    settings = ServingConfig(api_keys_file=str(folder / "keys.toml"), live=str(folder / "live.db"))
    app = create_app(make_shop(), settings)
    headers = {"Authorization": f"Bearer {keys['read']}"}
    return SimpleNamespace(app=app, keys=keys, document=app.test_client().get("/openapi.json", headers=headers).json)


def attacked(app: Any, written: SimpleNamespace, path: Path, requests: int) -> fuzz.Found:
    """What the fuzzer finds in an application with its first requests."""
    found = fuzz.Found(path)
    with listening(app) as port:
        server = SimpleNamespace(port=port)
        client = fuzz.Client(server, written.keys, written.document, 0, 0, found, threading.Event())
        for client.num_sent in range(requests):
            client._send_one()
        client._close()
    return found


def test_the_fuzzer_finds_nothing_in_the_service_and_everything_in_one_that_is_broken(written, tmp_path, monkeypatch):
    # What is no HTTP at all is for the production server, which does not run here.
    monkeypatch.setattr(fuzz, "broken", lambda wire, chance: wire)
    monkeypatch.setattr(fuzz, "_SECONDS_UNTIL_CLOSED", 0.05)
    found = attacked(written.app, written, tmp_path / "right.jsonl", 120)
    assert found.failures == []
    statuses = {status for _, status in found.counts}
    assert {200, 401, 422} <= statuses
    assert {kind for kind, _ in found.counts} >= {"valid", "mutated", "wire"}
    found = attacked(broken_app, written, tmp_path / "wrong.jsonl", 10)
    assert {check for check, _ in found.failures} >= {"no 500", "no stack trace", "errors are problems"}
    lines = [json.loads(line) for line in (tmp_path / "wrong.jsonl").read_text().splitlines()]
    assert len(lines) == len(found.failures)
    assert not [line for line in lines if written.keys["write"] in json.dumps(line)]


def test_the_same_seed_makes_the_same_requests_of_each_operation(written):
    def first(seed):
        return Maker(written.document, random.Random(seed)).make().wire()

    assert [first(seed) for seed in range(40)] == [first(seed) for seed in range(40)]
    maker = Maker(written.document, random.Random(0))
    asked = {maker.valid().operation for _ in range(300)}
    assert asked == {(path, method) for path, methods in written.document["paths"].items() for method in methods}


@pytest.mark.parametrize(
    ("message", "answer", "check"),
    [
        (Message("GET", "/search", role="read"), Answer(0, {}, b"", 9.0, "silent"), "answers within 3 s"),
        (Message("GET", "/search", role="read"), Answer(0, {}, b"", 0.1, "closed"), "whole answers"),
        (Message("GET", "/search", role="none"), Answer(200, {}, b"{}", 0.1, "whole"), "keys"),
        (Message("PUT", "/items/p1", role="read"), Answer(201, {}, b"{}", 0.1, "whole"), "keys"),
        (Message("GET", "/a", role="read"), Answer(502, {}, b"", 0.1, "whole"), "no 500"),
        (Message("GET", "/a", role="read"), Answer(404, {}, b"{}", 0.1, "whole"), "errors are problems"),
    ],
)
def test_the_fuzzer_knows_what_is_wrong(message, answer, check):
    assert check in {failed for failed, _ in fuzz.problems(message, answer)}


def test_answers_are_read_as_they_come_whatever_their_framing():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nno"
        )
        theirs.shutdown(socket.SHUT_WR)
        reader, now = Reader(ours), time.monotonic()
        first, second = reader.read(now, 5), reader.read(now, 5)
        assert (first.status, first.body, second.status, second.body) == (200, b"ok", 404, b"abc")
        assert reader.read(now, 5, is_head=True).end == "whole"
        last = reader.read(now, 5)
        assert (last.status, last.end) == (200, "closed")


def test_stack_traces_are_found_in_both_forms_of_a_log():
    lines = [json.dumps({"message": "x", "exception": "Traceback\nValueError"}), "Traceback (most recent", "fine"]
    assert len(traces_in("\n".join(lines))) == 2
    assert traces_in('{"message": "an exception"}') == []


def test_a_write_that_is_lost_elsewhere_or_doubled_is_noticed():
    event = ("POST", "/events", {"events": [{"event_id": "e1"}]}, {"accepted": 1, "position": 3})
    put = ("PUT", "/items/p1", {"title": "a"}, {"item_id": "p1", "position": 4})
    rows = {3: ("event", {}, "named e1"), 4: ("item", {"item_id": "p1", "cells": {"title": "a"}}, None)}
    tally = SimpleNamespace(acknowledged=[event, put])
    assert kills._lost(rows, tally) == []
    assert len(kills._lost({}, tally)) == 2
    assert len(kills._lost({**rows, 4: ("item", {"item_id": "p1", "cells": {"title": "b"}}, None)}, tally)) == 1
    assert len(kills._lost({5: rows[3], 4: rows[4]}, tally)) == 1
    assert len(kills._lost({**rows, 9: rows[3]}, tally)) == 2  # it is there twice, and not where it was acknowledged
    again = ("POST", "/events", event[2], {"accepted": 0, "repeated": 1, "position": 7})
    assert kills._lost(rows, SimpleNamespace(acknowledged=[event, again])) == []
    other = ("PUT", "/items/p2", {"title": "a"}, {"item_id": "p2", "position": 4})
    assert any("two at one position" in line for line in kills._lost(rows, SimpleNamespace(acknowledged=[put, other])))


def test_an_open_loop_holds_its_rate_and_counts_from_the_moment_a_request_was_due():
    def app(environ, start_response):
        is_bad = environ["PATH_INFO"] == "/bad"
        start_response("404 Not Found" if is_bad else "200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with listening(app) as port:
        wires = [("known", request_bytes("GET", "/good")), ("bad", request_bytes("GET", "/bad"))]
        load = soak.Load(port, wires, 4)
        record = load.run(1.0, 100)
        load.close()
    assert 60 < len(record.seconds) + len(record.failures) < 150
    assert 20 < len(record.failures) < 110
    assert all("404" in said for _, said in record.failures)
    assert 0 < np.median(record.seconds) < 0.5


def test_a_soak_says_what_each_ten_seconds_were_like_and_draws_it(tmp_path: Path):
    record = soak.Record(array("d", [1.0, 2.0, 11.0]), array("f", [0.001, 0.003, 0.5]), [(12.0, "known: 503")])
    memory = SimpleNamespace(samples={1: [(0.0, 2**20), (15.0, 3 * 2**20)]})
    rows = list(soak.rows_of(record, memory, 20.0))
    assert [row["rate"] for row in rows] == [0.2, 0.1]
    assert [row["failures"] for row in rows] == [0, 1]
    assert [row["worker_0_mib"] for row in rows] == [1.0, 3.0]
    assert rows[0]["p50_ms"] == pytest.approx(2.0, abs=1e-3)
    assert soak.p99_of(record, 10, 20) == pytest.approx(500)
    soak.draw(rows, tmp_path / "soak.png", "a title")
    assert (tmp_path / "soak.png").stat().st_size > 5_000


def test_answers_agree_by_every_way_in() -> None:
    assert agreement.compare(100, seed=7) == (100, [])


def test_a_day_is_asked_about_what_comes_after_all_that_is_known() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, 40)
    users = np.repeat(np.arange(40), lengths)
    times = np.concatenate([np.sort(rng.integers(0, 8 * SECONDS_PER_DAY, length)) for length in lengths])
    items = rng.integers(0, 15, lengths.sum())
    sequences = Sequences(np.arange(40), offsets_of(lengths), items, times, is_ordered=True)
    days = list(continued.days_of(sequences, 4, every=2, ahead=2, before=1, seen_items=EXCLUDE))
    last_day = int(times.max()) // SECONDS_PER_DAY
    assert [day.end // SECONDS_PER_DAY for day in days] == list(range(last_day - 6, last_day - 1))
    assert [day.questions is not None for day in days] == [False, False, True, False, True]
    for day in days:
        assert day.known.num_events == (times < day.end).sum()
        assert day.known.times is not None
        assert day.known.times.max() < day.end
        if day.questions is None:
            continue
        assert (day.questions.times == day.end).all()
        wanted = {}
        for user in range(40):
            seen, later = (items[(users == user) & part] for part in (times < day.end, times >= day.end))
            is_in_time = times[(users == user) & (times >= day.end)] < day.end + 2 * SECONDS_PER_DAY
            if found := set(later[is_in_time].tolist()) - set(seen.tolist()):
                wanted[user] = (seen.tolist(), found)
        asked = day.questions
        assert asked.history.user_ids.tolist() == list(wanted)
        for place, (seen, found) in enumerate(wanted.values()):
            assert asked.history.items_of(place).tolist() == seen
            assert set(asked.target_rows[slice(*asked.target_offsets[place : place + 2])].tolist()) == found


def test_the_lines_on_days_add_up() -> None:
    first = continued.Answers(np.array([1, 2]), np.array([[0.1, 0.2, 0.1], [0.1, 0.2, 0.0]]))
    second = continued.Answers(np.array([1, 3]), np.array([[0.2, 0.1, 0.1], [0.2, 0.1, 0.0]]))
    nothing = continued.Answers.of([None, None, None])
    days = [
        continued.Measured((1.0, 0.0)),
        continued.Measured((2.0, 20.0), (first, nothing)),
        continued.Measured((3.0, 10.0), (second, nothing)),
    ]
    every, old, seconds = continued.lines(days)
    assert "N@10 continued 0.1500, from nothing 0.1500, left 0.0500; continued / from nothing 1.000 (" in every
    assert "left / from nothing 0.333 (4 questions)" in every
    assert old == "old: no questions"
    assert seconds.endswith("continued 2.0, from nothing 15.0, ratio 0.133 (3 days, 2 compared)")


def test_old_are_the_questions_that_the_first_day_could_have_been_asked() -> None:
    beginning = Sequences(np.array([5, 7]), offsets_of(np.array([2, 1])), np.array([0, 1, 1]), None, is_ordered=False)
    history = Sequences(np.array([5, 6]), offsets_of(np.array([0, 0])), np.zeros(0, np.int64), None, is_ordered=False)
    questions = Queries(history, offsets_of(np.array([3, 1])), np.array([0, 2, 1, 0]), None)
    assert continued._are_old(questions, beginning).tolist() == [True, False, True, False]


def test_reports_become_a_table_with_the_lead_over_the_best_baseline():
    def row(name: str, mean: float, lead: float | None) -> dict[str, Any]:
        metrics = {metric: {"mean": mean} for metric in ("recall_at_10", "ndcg_at_10", "recall_at_20", "ndcg_at_100")}
        between = None if lead is None else {"mean": lead, "low": lead - 0.02, "high": lead + 0.04}
        return {"name": name, "metrics": metrics, "lead": between, "is_bound": name == "best possible"}

    rows = [
        row("two towers", 0.3, None),
        row("EASE", 0.25, 0.05),
        row("CEASE", 0.2, 0.1),
        row("best possible", 1, -0.7),
    ]
    some = {"protocol": "time", "primary_metric": "ndcg_at_10", "rows": rows}
    lines = table.table({"some": some, "other": {**some, "protocol": "users", "rows": rows[:2]}})
    assert lines[0] == "| | `some` | `other` |"
    assert lines[4] == "| CEASE | 0.200 / 0.200 | |"
    assert lines[-1] == "| lead over the best | +0.0500 ± 0.0300 (EASE) | +0.0500 ± 0.0300 (EASE) |"
