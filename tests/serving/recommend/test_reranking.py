"""What a service does with a reranker: a better order of the first, while there is time, and every rule still holds."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.errors import DataError
from features.sequences.sequences import Queries
from features.tables.tables import read_tables
from serving.config import ServingConfig
from serving.deploy.hot_reload import identity_of
from serving.http.app import create_app
from serving.jobs.open import open_recommender
from serving.jobs.recommend_all import Audience, write_candidates
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.reranking import RerankStage
from serving.recommend.rules import Boost, Rules
from serving.search.faiss_index import ItemIndex
from serving.search.results import Hits
from tests.serving.doubles import country, make_recommender
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError
from towers.bundle.sealed_folder import SealedFolder
from towers.rerankers.candidate_features import RankFeatures
from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.kinds import RERANKER_KINDS, RerankerKind
from towers.rerankers.learned import LearnedRanker, RankNetwork
from towers.rerankers.manifest import FOLDER, RankerManifest, write_ranker
from towers.rerankers.opening import ItemInputs
from towers.rerankers.reranker import Deadline, Shortlist, order_of
from training.rerankers.candidates import shortlists
from training.tasks.held_out import HeldOut
from training.tasks.train_ranker import RANKER_TRAINERS, RankerChoice, TrainedRanker, train_bundle_ranker


class Backwards:
    """A reranker that turns the order round, after a while, and remembers what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[Shortlist] = []

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> np.ndarray:
        self.asked.append(shortlist)
        time.sleep(self.seconds)
        deadline.check()
        return np.arange(len(shortlist), dtype=np.float32)


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.items]


@pytest.fixture
def plain(shop) -> Recommender:
    return make_recommender(shop, user=country())


@pytest.fixture
def backwards(shop) -> Recommender:
    recommender = make_recommender(shop, user=country())
    recommender.rerank = RerankStage(Backwards(), 10, None)
    return recommender


def test_the_first_candidates_are_in_the_new_order_and_the_others_where_they_were(plain, backwards):
    for user_id in range(100, 108):
        found = ids(plain.recommend(user_id, 30))
        answer = backwards.recommend(user_id, 30)
        assert ids(answer) == [*found[:10][::-1], *found[10:]]
        assert answer.reranked is True
        assert [item.rank for item in answer.items] == list(range(1, 31))


def test_a_request_may_do_without_it(plain, backwards):
    answer = backwards.recommend(100, RecommendRequest(30, rerank=False))
    assert ids(answer) == ids(plain.recommend(100, 30))
    assert answer.reranked is None
    client = create_app(backwards).test_client()
    assert "reranked" not in client.get("/recommendations/100?rerank=false").json
    assert client.get("/recommendations/100?rerank=true").json["reranked"] is True
    assert client.get("/?user=100&rerank=false").status_code == 200


def test_a_score_stays_the_models(plain, backwards):
    scores = {item.item_id: item.score for item in plain.recommend(100, 30).items}
    assert {item.item_id: item.score for item in backwards.recommend(100, 30).items} == scores


def test_a_short_answer_is_the_beginning_of_a_long_one_and_pages_fit_together(backwards):
    whole = ids(backwards.recommend(100, 30))
    assert ids(backwards.recommend(100, 3)) == whole[:3]
    pages = [ids(backwards.recommend(100, RecommendRequest(7, offset))) for offset in range(0, 28, 7)]
    assert [item for page in pages for item in page] == whole[:28]


def test_a_reranker_that_is_too_slow_leaves_the_order_as_it_was(plain, shop):
    slow = make_recommender(shop, user=country())
    slow.rerank = RerankStage(Backwards(seconds=0.05), 10, 0.01)
    answer = slow.recommend(100, 20)
    assert ids(answer) == ids(plain.recommend(100, 20))
    assert answer.reranked is False


def test_time_is_for_all_users_of_a_request_together(plain, shop):
    slow = make_recommender(shop, user=country())
    reranker = Backwards(seconds=0.1)
    slow.rerank = RerankStage(reranker, 10, 0.25)
    answers = slow.recommend_many([100, 101, 102, 103, 104, 105], 20)
    is_moved = [answer.reranked for answer in answers]
    assert is_moved == sorted(is_moved, reverse=True)
    assert 1 <= sum(is_moved) <= 2
    assert len(reranker.asked) <= 3, "whoever's turn comes too late is not begun with"
    for user_id, answer in zip(range(100, 106), answers, strict=True):
        found = ids(plain.recommend(user_id, 20))
        assert ids(answer) == ([*found[:10][::-1], *found[10:]] if answer.reranked else found)


def test_it_is_asked_about_what_may_be_recommended_and_nothing_else(shop, plain, backwards):
    where = plain.state.filters.parse({"item_id": {"not": ids(plain.recommend(100, 5))[:2]}})
    excluded = ids(plain.recommend(100, 5))[3]
    answer = backwards.recommend(100, RecommendRequest(100, where=where, exclude=[excluded]))
    had = set(shop.interactions.frame.query("user_id == 100")["item_id"])
    (shortlist,) = backwards.rerank.reranker.asked
    asked = [plain.state.items.ids[row] for row in shortlist.rows.tolist()]
    assert len(asked) == 10
    for items in (asked, ids(answer)):
        assert not set(items) & (had | {excluded, *ids(plain.recommend(100, 5))[:2]})
    assert ids(answer) == [
        *asked[::-1],
        *ids(plain.recommend(100, RecommendRequest(100, where=where, exclude=[excluded])))[10:],
    ]


def test_it_is_told_who_asks(shop, backwards):
    backwards.recommend(UserProfile(history=["item-003", "gone", "item-050"]), 5)
    backwards.recommend(100, 5)
    described, known = backwards.rerank.reranker.asked
    assert [backwards.state.items.ids[row] for row in described.history_rows] == ["item-003", "item-050"]
    np.testing.assert_array_equal(described.history_vectors, backwards.state.vectors[described.history_rows])
    np.testing.assert_allclose(described.vectors @ described.user_vector, described.scores, atol=1e-6)
    mine = shop.interactions.frame.query("user_id == 100")["item_id"].tolist()
    assert [backwards.state.items.ids[row] for row in known.history_rows] == mine


def test_what_is_popular_and_what_is_similar_keep_their_order(plain, backwards):
    assert ids(backwards.recommend("nobody", 20)) == ids(plain.recommend("nobody", 20))
    assert backwards.recommend("nobody", 20).reranked is False
    assert ids(backwards.similar("item-003", 20)) == ids(plain.similar("item-003", 20))
    assert plain.recommend(100, 20).reranked is None


def test_rules_hold_of_the_new_order(plain, backwards):
    found = ids(backwards.recommend(100, 100))
    filters = backwards.state.filters

    def arranged(**rules) -> list[str]:
        return ids(backwards.recommend(100, RecommendRequest(100, rules=Rules(**rules))))

    assert arranged(pin=[found[40]]) == [found[40], *found[:40], *found[41:]]
    demoted = filters.parse({"item_id": found[:3]})
    assert arranged(demote=[demoted]) == [*found[3:], *found[:3]]
    boosted = Boost(filters.parse({"item_id": [found[50], found[7]]}), 2.0)
    assert arranged(boosts=[boosted]) == [found[7], found[50], *(one for one in found if one not in found[7:51:43])]
    # The relevance of a place is that of the recommender's order, whoever comes to it.
    best = ids(plain.recommend(100, RecommendRequest(100, rules=Rules(diversity=0.3))))
    varied = arranged(diversity=0.3)
    assert sorted(varied) == sorted(best)
    assert varied[0] == found[0]


def test_rules_without_effect_change_nothing_however_deep_the_answer(backwards):
    nothing = backwards.state.filters.parse({"item_id": "item-000"})
    for k in (3, 10, 30, 100):
        rules = Rules(boosts=[Boost(nothing, 0.0)], at_most=[("item_id", 1)])
        assert ids(backwards.recommend(100, RecommendRequest(k, rules=rules))) == ids(backwards.recommend(100, k))


def test_an_answer_says_whether_it_was_reranked(backwards, plain):
    client = create_app(backwards).test_client()
    assert client.get("/recommendations/100?k=3").json["reranked"] is True
    assert client.get("/recommendations/nobody?k=3").json["reranked"] is False
    several = client.post("/recommendations", json={"users": [100, {"history": ["item-001"]}], "k": 3}).json
    assert [answer["reranked"] for answer in several["answers"]] == [True, True]
    assert 'towers_stage_duration_seconds_count{stage="rerank"} 3' in client.get("/metrics").text
    assert "reranked" not in create_app(plain).test_client().get("/recommendations/100?k=3").json


def test_what_arrives_while_serving_is_reranked_and_known_as_far_as_the_index_was(backwards, tmp_path):
    store = SqliteLog(tmp_path / "live.db")
    live = LiveRecommender(backwards, store)
    store.append(
        [
            Write("item", {"item_id": "new-1", "cells": {"title": "Lamp"}}),
            Write("item", {"item_id": "item-004", "cells": {"title": "Other"}}),
            Write("event", {"user_id": 100, "item_id": "new-1", "time": 5}),
        ]
    )
    recommender = live.current()
    answer = recommender.recommend(UserProfile(history=["new-1", "item-004", "item-007"]), 100)
    assert answer.reranked is True
    shortlist = backwards.rerank.reranker.asked[-1]
    assert shortlist.history_rows.tolist() == [-1, 4, 7]
    rows = [recommender.state.items.row(item) for item in ("new-1", "item-004", "item-007")]
    np.testing.assert_array_equal(shortlist.history_vectors, recommender.state.vectors[rows])
    recommender.recommend(100, 5)
    assert backwards.rerank.reranker.asked[-1].history_rows[-1] == -1
    assert not {"new-1", "item-004", "item-007"} & set(ids(answer))


def test_the_nightly_file_is_in_the_order_of_the_service(backwards, tmp_path):
    write_candidates(backwards, Audience.everyone(backwards), 15, tmp_path / "c.parquet")
    written = pd.read_parquet(tmp_path / "c.parquet")
    for user_id, mine in written.groupby("user_id"):
        assert mine["item_id"].tolist() == ids(backwards.recommend(user_id, 15))


def add_ranker(path: Path) -> None:
    """Give a bundle a ranker with random weights."""
    bundle = ModelBundle.open(path)
    tables = read_tables(bundle.config.features, bundle.tables_folder)
    sequences = tables.interactions.sequences(tables.catalog)
    names = RankFeatures(ItemStatistics.of(sequences, tables.catalog, bundle.config.features.item)).names
    torch.manual_seed(0)
    write_ranker(bundle, "learned", RankNetwork(len(names), 2).save, num_candidates=200, features=names)


@pytest.fixture(params=["model", "timed"])
def real(pristine: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A real bundle with a ranker and no index."""
    shutil.copytree(pristine / "runs" / request.param, tmp_path / "runs" / "one")
    add_ranker(tmp_path / "runs" / "one")
    return tmp_path / "runs" / "one"


def test_a_bundle_with_a_ranker_is_served_by_it(real: Path):
    recommender = open_recommender(real)
    opened = Recommender.open(real, open_rerank=lambda bundle, snapshot: RerankStage.open(bundle, snapshot, 50, None))
    assert opened.rerank is not None
    plain = Recommender.open(real)
    moved = 0
    for user_id in plain.state.users.ids[:10]:
        answer, found = opened.recommend(user_id, 60), plain.recommend(user_id, 60)
        if answer.fallback is None:
            assert set(ids(answer)[:50]) == set(ids(found)[:50])
            assert ids(answer)[50:] == ids(found)[50:]
            moved += ids(answer) != ids(found)
    assert moved > 5
    assert isinstance(recommender.rerank.reranker, LearnedRanker)
    app = create_app(real, ServingConfig(rerank_budget_ms=60_000, watch_seconds=0))
    assert app.test_client().get("/recommendations/1001?k=3").json["reranked"] is True
    off = create_app(real, ServingConfig(rerank=False, watch_seconds=0))
    assert "reranked" not in off.test_client().get("/recommendations/1001?k=3").json


def test_the_service_and_training_see_the_same_of_the_same_person(real: Path):
    """No skew: the features that the service makes of somebody are those that training would make."""
    opened = open_recommender(real)
    tables = read_tables(opened.bundle.config.features, opened.bundle.tables_folder)
    sequences = tables.interactions.sequences(tables.catalog)
    asked: list[Shortlist] = []

    class Listening:
        def scores(self, shortlist: Shortlist, deadline: Deadline) -> np.ndarray:
            asked.append(shortlist)
            return shortlist.scores

    clock = lambda: 1_700_000_000 + 2500 * 60  # noqa: E731
    stage = RerankStage(Listening(), 50, None)
    recommender = Recommender(opened.bundle, opened.snapshot, rerank=stage, clock=clock)
    some = np.arange(8)
    now = np.full(8, clock())
    questions = Queries(sequences.take(some), np.arange(9), np.zeros(8, dtype=np.int64), now)
    maker = RankFeatures(recommender.snapshot.item_statistics)
    for user_id, (mine, _) in zip(
        sequences.user_ids[some], shortlists(recommender.bundle, tables, questions, 50), strict=True
    ):
        recommender.recommend(int(user_id), 5)
        np.testing.assert_array_equal(asked[-1].rows, mine.rows)
        np.testing.assert_allclose(maker.of(asked[-1]), maker.of(mine), rtol=1e-4, atol=1e-5)


def test_an_index_older_than_the_ranker_is_served_without_it_and_the_log_says_so(
    pristine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "one"
    shutil.copytree(pristine / "runs" / "model", path)
    open_recommender(path)
    before = identity_of(path)
    add_ranker(path)
    assert identity_of(path) != before
    app = create_app(path, ServingConfig(watch_seconds=0))
    assert "reranked" not in app.test_client().get("/recommendations/1001?k=3").json
    assert f"towers index {path}" in caplog.text


def test_a_damaged_ranker_is_not_served(real: Path):
    open_recommender(real)
    weights = real / FOLDER / "ranker.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"ranker\.safetensors has .* bytes, expected .*train-ranker"):
        open_recommender(real)


def test_equal_scores_keep_the_order_of_retrieval():
    assert order_of(np.array([1.0, 2.0, 1.0, 2.0], dtype=np.float32)).tolist() == [1, 3, 0, 2]


def test_pages_fit_together_where_what_was_moved_comes_after_what_a_part_of_the_rules_still_has(backwards, monkeypatch):
    """As with an approximate index, whose scores of the first candidates and of a filter's best are not the same."""
    search = ItemIndex.search

    def searched(index, queries, k, excluded=None, allowed=None, closed=None):
        hits = search(index, queries, k, excluded, allowed, closed)
        found = [hits.of(user) for user in range(len(hits))]
        return hits if allowed is not None else Hits.join([(some, scores - 2) for some, scores in found])

    monkeypatch.setattr(ItemIndex, "search", searched)
    lifted = backwards.state.filters.parse({"item_id": {"not": [backwards.state.items.ids[0]]}})
    rules = Rules(boosts=[Boost(lifted, 0.1)])
    for user_id in range(100, 104):
        whole = ids(backwards.recommend(user_id, RecommendRequest(60, rules=rules)))
        pages = [
            ids(backwards.recommend(user_id, RecommendRequest(15, offset, rules=rules))) for offset in range(0, 60, 15)
        ]
        assert [item for page in pages for item in page] == whole


class Constant(Backwards):
    """A kind of re-ranker as CONTRIBUTING.md describes it: its file holds the order."""

    @classmethod
    def open(cls, bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder, items: ItemInputs) -> Constant:
        assert folder.file("order.txt").read_bytes() == b"backwards"
        assert len(items.texts()) == len(bundle.read_tables(bundle.config.features).catalog)
        return cls()


def train_constant(bundle: ModelBundle, held_out: HeldOut, choice: RankerChoice, num_candidates: int) -> TrainedRanker:
    """Its training, which needs no data and has held out none."""
    assert num_candidates == 20

    def save(folder: Path) -> None:
        (folder / "order.txt").write_text("backwards")

    return TrainedRanker(Constant(), save, dataset=None, after=np.zeros(0))


def test_a_kind_of_reranker_is_added_by_a_class_and_two_entries(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = RerankerKind(
        "constant",
        "gives every candidate one score",
        f"{__name__}:Constant",
        "texts",
        num_candidates=20,
        eval_queries=100,
    )
    monkeypatch.setitem(RERANKER_KINDS, "constant", kind)
    path = tmp_path / "runs" / "one"
    shutil.copytree(pristine / "runs" / "model", path)
    with pytest.raises(DataError, match="--kind constant: cannot be trained; expected one of learned, cross-encoder"):
        train_bundle_ranker(path, RankerChoice("constant"))
    monkeypatch.setitem(RANKER_TRAINERS, "constant", train_constant)
    train_bundle_ranker(path, RankerChoice("constant"))
    open_recommender(path)
    plain = Recommender.open(path)
    opened = Recommender.open(path, open_rerank=lambda bundle, snapshot: RerankStage.open(bundle, snapshot, None, None))
    user_id = plain.state.users.ids[0]
    found = ids(plain.recommend(user_id, 30))
    assert ids(opened.recommend(user_id, 30)) == [*found[:20][::-1], *found[20:]]


def test_every_kind_can_be_trained() -> None:
    assert RANKER_TRAINERS.keys() == RERANKER_KINDS.keys()
