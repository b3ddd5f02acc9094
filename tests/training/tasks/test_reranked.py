"""`towers promote` compares what two bundles serve: with their re-rankers."""

from __future__ import annotations

import shutil

import pytest

from tests.serving.conftest import write_untrained
from tests.training.rerankers.test_learned import SETTINGS, write_shop
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main
from towers.rerankers.manifest import FOLDER, read_ranker_manifest, write_ranker
from training.config import PromotionConfig
from training.tasks.promotion import Check, judge_quality
from training.tasks.train_ranker import RankerChoice, train_bundle_ranker

LIMITS = PromotionConfig(guarded_facets=[])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    """Bundles of the same weights: without a re-ranker, with one, and with one that sees fewer candidates."""
    folder = tmp_path_factory.mktemp("promotion")
    write_shop(folder)
    plain, ranked, fewer = (folder / "runs" / name for name in ("plain", "ranked", "fewer"))
    write_untrained(plain, folder, SETTINGS)
    shutil.copytree(plain, ranked)
    train_bundle_ranker(ranked, RankerChoice(num_candidates=40))
    shutil.copytree(plain, fewer)
    features = read_ranker_manifest(ModelBundle.open(ranked)).features
    write_ranker(
        ModelBundle.open(fewer),
        "learned",
        lambda into: shutil.copy(ranked / FOLDER / "ranker.safetensors", into),
        num_candidates=25,
        features=features,
    )
    return {path.name: ModelBundle.open(path) for path in (plain, ranked, fewer)}


def check_of(challenger: ModelBundle, champion: ModelBundle, *, rerank: bool = True) -> Check | None:
    checks = judge_quality(challenger, champion, LIMITS, rerank=rerank).checks
    return next((check for check in checks if check.name == "re-ranking"), None)


def test_a_challenger_that_lost_its_re_ranker_is_refused(bundles: dict[str, ModelBundle]):
    check = check_of(bundles["plain"], bundles["ranked"])
    assert check is not None
    assert not check.holds
    assert "the champion has a re-ranker and the challenger has none; towers train-ranker " in check.text


def test_what_a_re_ranker_adds_is_what_its_training_measured(bundles: dict[str, ModelBundle]):
    check = check_of(bundles["ranked"], bundles["plain"])
    judgement = read_ranker_manifest(bundles["ranked"]).judgement
    assert check is not None
    assert judgement is not None
    assert check.holds
    assert check.measured["reranked_champion"] == pytest.approx(judgement.ndcg_before)
    assert check.measured["reranked_challenger"] == pytest.approx(judgement.ndcg_after)
    assert check.measured["reranked_gain_low"] == pytest.approx(judgement.gain_low)
    assert check.measured["reranked_gain_low"] > 0


def test_a_challenger_whose_re_ranked_order_is_worse_is_refused(bundles: dict[str, ModelBundle]):
    check = check_of(bundles["fewer"], bundles["ranked"])
    assert check is not None
    assert not check.holds
    assert check.measured["reranked_gain_high"] < 0
    assert check.text.startswith("re-ranked N@10 ")


def test_re_rankers_that_cannot_be_evaluated_are_a_reason(
    bundles: dict[str, ModelBundle], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.rerankers.learned.LEAST_QUESTIONS", 1_000)
    check = check_of(bundles["ranked"], bundles["plain"])
    assert check is not None
    assert not check.holds
    assert "cannot be compared: expected at least 1000 queries" in check.text


def test_without_re_rankers_there_is_no_such_condition(bundles: dict[str, ModelBundle]):
    assert check_of(bundles["plain"], bundles["plain"]) is None
    assert check_of(bundles["plain"], bundles["ranked"], rerank=False) is None


def test_a_challenger_whose_index_is_older_than_its_re_ranker_is_refused(
    bundles: dict[str, ModelBundle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs = bundles["plain"].path.parent
    monkeypatch.chdir(runs.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(runs / "plain", runs / "late")
    assert main(["index", "runs/late"]) == 0
    shutil.copytree(runs / "ranked" / FOLDER, runs / "late" / FOLDER)
    promote = ["promote", "runs/late", "--link", "runs/production"]
    assert main([*promote, "--dry-run"]) == 3
    assert "FAILS  the index is older than the re-ranker, which would not be used; towers index " in (
        capsys.readouterr().out
    )
    assert main(["index", "runs/late"]) == 0
    assert main(promote) == 0
    assert "holds  latency with re-ranking p99 " in capsys.readouterr().out
    assert (runs / "production").resolve() == runs / "late"
