"""Nobody, nothing, and no one known: every selection may be empty."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from serving.jobs.open import open_recommender
from serving.jobs.precompute import BLOCK
from serving.jobs.recommend_all import Wanted, recommend_all
from serving.live.follower import LiveRecommender
from serving.live.open_log import open_log
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.rules import Rules

NOBODY = np.zeros(0, dtype=np.int64)
NOTHING = {"price_max": ["-1"]}


@pytest.fixture(scope="module")
def bundles(pristine, two_models, tmp_path_factory):
    """A bundle with an index, and one that looks at the clock."""
    folder = tmp_path_factory.mktemp("empty")
    shutil.copytree(pristine / "runs" / "timed", folder / "timed")
    open_recommender(folder / "timed")
    return {"model": two_models / "one", "timed": folder / "timed"}


@pytest.fixture(params=["model", "timed", "live"])
def recommender(bundles, request, tmp_path) -> Recommender:
    if request.param != "live":
        return Recommender.open(bundles[request.param])
    return LiveRecommender(Recommender.open(bundles["timed"]), open_log(str(tmp_path / "live.db"))).latest


@pytest.mark.parametrize("rules", [None, Rules()])
@pytest.mark.parametrize("where", [None, NOTHING])
def test_nobody_gets_nothing_and_nothing_is_for_nobody(recommender, rules, where):
    wanted = RecommendRequest(
        5, where=() if where is None else recommender.state.filters.from_query(where), rules=rules
    )
    hits, is_fallback = recommender.recommend_rows(NOBODY, wanted)
    assert (len(hits), len(is_fallback)) == (0, 0)
    assert recommender.recommend_many([], wanted) == []
    answers = recommender.recommend_many(
        [1001, "nobody", UserProfile([], {"country": "Atlantis"}), UserProfile()], wanted
    )
    assert [len(answer.items) for answer in answers] == [0 if where else 5] * 4
    assert [answer.fallback for answer in answers] == [None, "popular", "popular", "popular"]


@pytest.mark.parametrize("name", ["model", "timed"])
@pytest.mark.parametrize("known", [0, 3])
def test_a_file_of_users_of_whom_nobody_or_no_more_is_known_gets_what_is_popular(bundles, name, known, tmp_path):
    strangers = BLOCK + 5 if known else 5  # a last block without anybody known
    users = [*range(1001, 1001 + known), *range(5000, 5000 + strangers)]
    pd.DataFrame({"user": users}).to_csv(tmp_path / "users.csv", index=False)
    recommend_all(bundles[name], tmp_path / "out.parquet", Wanted(2, with_fallback=True), tmp_path / "users.csv")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert found["user_id"].tolist() == np.repeat(users, 2).tolist()
    assert found["fallback"].notna().sum() == 2 * strangers


def test_someone_described_by_unknown_values_only_is_a_fallback_and_told_which(recommender):
    answer = recommender.recommend(UserProfile([], {"country": " Atlantis "}), 5)
    assert (answer.fallback, dict(answer.unknown_values)) == ("popular", {"country": ("Atlantis",)})
    answer = recommender.recommend(UserProfile([], {"country": "Atlantis", "age": 30}), 5)
    assert (answer.fallback, dict(answer.unknown_values)) == (None, {"country": ("Atlantis",)})
    answer = recommender.recommend(UserProfile(["p1"], {"country": "de"}), 5)
    assert (answer.fallback, dict(answer.unknown_values)) == (None, {})
