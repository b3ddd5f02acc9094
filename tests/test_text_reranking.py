"""Rankers that read texts, from the command that makes them to the answers of a service that uses them."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import torch
from flask.testing import FlaskClient

from serving.config import ServingConfig
from serving.http.app import create_app
from tests.serving.conftest import write_untrained
from tests.serving.server.test_server import Served
from tests.tiny_models import tiny_cross_encoder, tiny_model
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main
from towers.rerankers.manifest import read_ranker_manifest
from towers.rerankers.text import open_cross_encoder
from training.rerankers import text as text_ranking
from training.rerankers.text import Comparison, fit_cross_encoder

pytest.importorskip("sentence_transformers", reason="the extra `text`")

TEXTS = [
    " ".join(words)
    for words in itertools.product(
        ("red", "green", "blue"), ("small", "large"), ("wooden", "steel"), ("lamp", "chair", "table", "cup", "bowl")
    )
]
TEXT = {"kind": "text"}
SETTINGS = {
    "features": {
        "interactions": "pairs.csv",
        "items": "documents.csv",
        "users": "queries.csv",
        "columns": {"user_id": "query", "item_id": "document"},
        "title": "text",
        "recommend_seen": True,
        "item": {"text": TEXT},
        "user": {"text": TEXT},
    },
    "towers": {"embedding_dim": 8, "history_encoder": "none"},
    "training": {"track": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that knows nothing, in which every query has the words of its answer in another order."""
    folder = tmp_path_factory.mktemp("reranking")
    rng = np.random.default_rng(0)
    documents = pd.DataFrame({"document": range(len(TEXTS)), "text": TEXTS})
    documents.to_csv(folder / "documents.csv", index=False)
    answers = rng.integers(0, len(TEXTS), 300)
    asked = [" ".join(rng.permutation(TEXTS[answer].split())) for answer in answers]
    pd.DataFrame({"query": range(300), "text": asked}).to_csv(folder / "queries.csv", index=False)
    pd.DataFrame({"query": range(300), "document": answers}).to_csv(folder / "pairs.csv", index=False)
    write_untrained(folder / "runs" / "plain", folder, SETTINGS, seed=1)
    tiny_model(folder / "tiny", layers=1)
    tiny_cross_encoder(folder / "tiny" / "model")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_queries() -> Iterator[None]:
    """Thirty held-out queries are too few for an interval of 99 %."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.tasks.train_ranker.GATE_LEVEL", 0.95)
        yield


@pytest.fixture(scope="module")
def late(folder: Path) -> Path:
    """The same with late interaction."""
    shutil.copytree(folder / "runs" / "plain", folder / "runs" / "late")
    said = towers(folder, "train-ranker", "runs/late", *kind("late-interaction", "tiny/model"), "--candidates", "40")
    assert "30 held-out queries, " in said
    assert "95 % interval +" in said
    assert "towers index runs/late" in said
    said = towers(folder, "index", "runs/late")
    assert f"{len(TEXTS) * 6:,} tokens of the items, one byte per dimension, 0.0 MB" in said
    return folder / "runs" / "late"


@pytest.fixture(scope="module")
def cross(folder: Path) -> Path:
    """The same with a cross-encoder of random opinions."""
    shutil.copytree(folder / "runs" / "plain", folder / "runs" / "cross")
    model = kind("cross-encoder", "tiny/cross-1")
    said = towers(folder, "train-ranker", "runs/cross", *model, "--weight", "0.9", "--candidates", "20")
    assert "weight of its score: 0.9" in said
    towers(folder, "index", "runs/cross")
    return folder / "runs" / "cross"


def kind(name: str, model: str) -> list[str]:
    return ["--kind", name, "--model", model]


def towers(folder: Path, *words: str) -> str:
    """Run a command in a folder, within this process, and return what it says."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert main(words) == 0
    return said.getvalue()


def client_of(bundle: Path, **settings: object) -> FlaskClient:
    return create_app(bundle, ServingConfig(watch_seconds=0, **settings)).test_client()


def found(client: FlaskClient, words: str, k: int = 60) -> dict:
    return client.get("/search", query_string={"q": words, "k": k}).json


def ids(answer: dict) -> list[int]:
    return [item["item_id"] for item in answer["items"]]


def test_its_seal_says_what_it_gains_and_costs(late: Path):
    sealed = read_ranker_manifest(ModelBundle.open(late))
    assert (sealed.kind, sealed.num_candidates) == ("late-interaction", 40)
    judgement = sealed.judgement
    assert judgement is not None
    assert judgement.num_questions == 30
    assert judgement.ndcg_after > 1.5 * judgement.ndcg_before
    assert 0 < judgement.gain_low < judgement.ndcg_after - judgement.ndcg_before < judgement.gain_high
    assert 0 < judgement.milliseconds <= judgement.milliseconds_p99
    assert sealed.text is not None
    assert sealed.text.weight > 0.3, "the retriever knows nothing here"


def test_what_is_found_for_words_is_in_its_order_however_they_are_asked(late: Path, folder: Path):
    towers(folder, "index", "runs/plain")
    plain, client = client_of(folder / "runs" / "plain"), client_of(late, rerank_budget_ms=60_000)
    queries = pd.read_csv(folder / "queries.csv")["text"]
    before, after = [], []
    for query in range(20):
        words = str(queries[query])
        retrieved, answer = found(plain, words), found(client, words)
        assert "reranked" not in retrieved
        assert answer["reranked"] is True
        assert sorted(ids(answer)[:40]) == sorted(ids(retrieved)[:40]), "as many as it is made for"
        assert ids(answer)[40:] == ids(retrieved)[40:]
        described = client.post("/recommendations", json={"attributes": {"text": words}, "k": 60}).json
        known = client.get(f"/recommendations/{query}?k=60").json
        assert described["reranked"] is known["reranked"] is True
        assert described["items"] == known["items"] == answer["items"]
        is_wanted = [sorted(item["title"].split()) == sorted(words.split()) for item in answer["items"]]
        after.append(is_wanted.index(True))
        before.append(ids(retrieved).index(ids(answer)[is_wanted.index(True)]))
    assert np.mean(after) < np.mean(before) - 5


def test_words_that_the_model_does_not_know_get_what_is_popular(late: Path):
    answer = found(client_of(late, rerank_budget_ms=60_000), "?!")
    assert (answer["fallback"], answer["reranked"]) == ("popular", False)


def test_time_that_is_up_leaves_the_retrievers_order_and_is_counted(late: Path, caplog: pytest.LogCaptureFixture):
    client = client_of(late, rerank_budget_ms=0.001)
    assert "most answers will not be re-ranked" in caplog.text
    answer = found(client, "red lamp")
    assert answer["reranked"] is False
    off = found(client_of(late, rerank=False), "red lamp")
    assert ids(answer) == ids(off)
    assert "reranked" not in off
    assert found(client, "?!")["fallback"] == "popular"
    metrics = client.get("/metrics").text
    assert 'towers_rerank_total{outcome="timeout"} 1.0' in metrics
    assert 'outcome="done"' not in metrics
    in_time = client_of(late, rerank_budget_ms=60_000)
    in_time.get("/recommendations/3")
    found(in_time, "red lamp")
    assert 'towers_rerank_total{outcome="done"} 2.0' in in_time.get("/metrics").text


def test_commands_re_rank_what_serving_toml_says(late: Path, folder: Path):
    shutil.copytree(late, folder / "runs" / "asked", dirs_exist_ok=True)

    def first(settings: str) -> tuple[list[int], list[str]]:
        (folder / "other.toml").write_text(settings)
        words = ("runs/asked", "--config", "other.toml", "--k", "20")
        towers(folder, "recommend", *words, "--output", "candidates.parquet")
        written = pd.read_parquet(folder / "candidates.parquet").query("user_id == 7")["item_id"].tolist()
        shown = towers(folder, "search", *words[:3], "wooden blue lamp", "--k", "20").splitlines()
        return written, [line.split()[2] for line in shown]

    off, ten, all_of_it = first("rerank = false"), first("rerank_candidates = 10"), first("")
    for plain, some, more in zip(off, ten, all_of_it, strict=True):
        assert sorted(some[:10]) == sorted(plain[:10])
        assert some[:10] != plain[:10]
        assert some[10:] == plain[10:]
        assert sorted(more[:10]) != sorted(plain[:10])


def test_a_cross_encoder_is_served_the_same_way(cross: Path):
    sealed = read_ranker_manifest(ModelBundle.open(cross))
    assert (sealed.kind, sealed.num_candidates) == ("cross-encoder", 20)
    answer, plain = (found(client_of(cross, rerank=on, rerank_budget_ms=60_000), "red lamp") for on in (True, False))
    assert answer["reranked"] is True
    assert sorted(ids(answer)[:20]) == sorted(ids(plain)[:20])
    assert ids(answer)[:20] != ids(plain)[:20]
    assert ids(answer)[20:] == ids(plain)[20:]


@pytest.mark.parametrize("bundle", ["late", "cross"])
def test_a_real_server_with_two_workers_answers_many_at_a_time_as_one_process_does(
    folder: Path, request: pytest.FixtureRequest, bundle: str
):
    path = request.getfixturevalue(bundle)
    asked = ["red lamp", "wooden blue chair", "steel cup", "small green table"]
    expected = {words: found(client_of(path, rerank_budget_ms=60_000), words) for words in asked}
    served = Served(folder, "--workers", "2", bundle=str(path), TOWERS_RERANK_BUDGET_MS="60000")
    try:
        served.wait_until_ready(workers=2)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda words: served.ask(f"/search?q={quote(words)}&k=60"), asked * 6))
    finally:
        code, output = served.stop(signal.SIGTERM)
    assert code == 0, output
    for words, (status, answer) in zip(asked * 6, answers, strict=True):
        assert status == 200
        assert answer["reranked"] is True
        assert ids(answer) == ids(expected[words])


def test_a_model_that_is_no_cross_encoder_becomes_one_by_learning(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(folder / "runs" / "plain", folder / "runs" / "taught")
    words = ("runs/taught", *kind("cross-encoder", "tiny/model"), "--weight", "0.5", "--eval-queries", "5")
    with contextlib.chdir(folder):
        assert main(["train-ranker", *words]) == 2
    towers(folder, "train-ranker", *words, "--train-queries", "16")
    made = folder / "runs" / "taught" / "ranker" / "model"
    assert open_cross_encoder(made, max_tokens=32).num_labels == 1


def test_a_cross_encoder_learns_to_tell_answers_from_others(folder: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)

    def comparison() -> Comparison:
        asked, *others = rng.permutation(["lamp", "chair", "table", "cup", "bowl"])
        return Comparison(str(asked), [f"red {asked}", *(f"red {other}" for other in others)])

    monkeypatch.setattr(text_ranking, "LEARNING_RATE", 3e-3)
    torch.manual_seed(0)
    model = open_cross_encoder(folder / "tiny" / "model", max_tokens=16, with_new_head=True)

    def first() -> float:
        firsts = []
        for one in [comparison() for _ in range(40)]:
            scores = model.predict([(one.asked, text) for text in one.candidates])
            firsts.append(int(np.argmax(scores)) == 0)
        return float(np.mean(firsts))

    before = first()
    fit_cross_encoder(model, [comparison() for _ in range(1200)], seed=0)
    assert first() > before + 0.3


def test_nothing_is_written_that_gains_nothing(folder: Path):
    shutil.copytree(folder / "runs" / "plain", folder / "runs" / "useless")
    words = (*kind("cross-encoder", "tiny/cross-1"), "--eval-queries", "1", "--candidates", "10")
    said = towers(folder, "train-ranker", "runs/useless", *words)
    assert "not written" in said
    assert not (folder / "runs" / "useless" / "ranker").exists()


def test_without_anything_held_out_somebody_must_say_how_much_it_counts(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    refitted = {**SETTINGS, "training": {"refit": True, "track": False}}
    write_untrained(folder / "runs" / "refitted", folder, refitted)
    words = ["train-ranker", "runs/refitted", *kind("late-interaction", "tiny/model")]
    with contextlib.chdir(folder):
        assert main(words) == 2
    assert "trained with `refit`" in capsys.readouterr().err
    said = towers(folder, *words, "--weight", "0.7")
    assert "N@10" not in said
    sealed = read_ranker_manifest(ModelBundle.open(folder / "runs" / "refitted"))
    assert sealed.judgement is None
    assert sealed.text is not None
    assert sealed.text.weight == 0.7


def test_documents_that_nobody_asked_for_yet_are_re_ranked_and_mlflow_has_the_ranker(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient

    features = {"items": "documents.csv", "columns": {"item_id": "document"}, "item": {"text": TEXT}}
    alone = {"features": features, "towers": SETTINGS["towers"]}
    write_untrained(folder / "runs" / "alone", folder, alone)
    towers(folder, "train-ranker", "runs/alone", *kind("late-interaction", "tiny/model"), "--weight", "0.5")
    towers(folder, "index", "runs/alone")
    assert found(client_of(folder / "runs" / "alone", rerank_budget_ms=60_000), "red lamp")["reranked"] is True
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("two-towers")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name.startswith("alone-ranker (")
    assert (run.data.params["ranker.kind"], run.data.params["ranker.weight"]) == ("late-interaction", "0.5")
    assert run.data.tags["bundle"] == ModelBundle.open(folder / "runs" / "alone").version
    assert {file.path for file in client.list_artifacts(run.info.run_id, "ranker")} == {
        "ranker/manifest.json",
        "ranker/model",
    }


def test_an_index_of_another_model_of_tokens_is_served_without_it(
    late: Path, folder: Path, caplog: pytest.LogCaptureFixture
):
    other = folder / "runs" / "other"
    shutil.copytree(late, other)
    words = ("runs/other", *kind("late-interaction", "tiny/model"), "--max-tokens", "4", "--weight", "0.5")
    towers(folder, "train-ranker", *words)
    assert "reranked" not in found(client_of(other), "red lamp")
    assert f"towers index {other}" in caplog.text
    towers(folder, "index", "runs/other")
    assert found(client_of(other, rerank_budget_ms=60_000), "red lamp")["reranked"] is True


def test_a_changed_model_is_refused(late: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    changed = folder / "runs" / "changed"
    shutil.copytree(late, changed)
    config = changed / "ranker" / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    with contextlib.chdir(folder):
        assert main(["search", "runs/changed", "red lamp"]) == 2
    assert "model/config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "late-interaction"], "needs a bi-encoder of sentence-transformers"),
        (["--kind", "cross-encoder"], "needs a cross-encoder"),
        (["--model", "tiny/model"], "for re-rankers that read texts"),
        (
            [*kind("late-interaction", "tiny/model"), "--train-queries", "3"],
            "--train-queries is for --kind cross-encoder",
        ),
        (kind("late-interaction", "./nowhere"), "./nowhere: no such folder"),
        (kind("cross-encoder", "tiny/model"), "tiny/model: not a cross-encoder"),
    ],
)
def test_what_cannot_be_is_told(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with contextlib.chdir(folder):
        assert main(["train-ranker", "runs/plain", *words]) == 2
    assert said in capsys.readouterr().err
