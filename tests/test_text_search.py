"""A search from end to end: queries, documents and pairs, or documents alone, through the same commands."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flask.testing import FlaskClient

from serving.http.app import create_app
from serving.jobs.open import open_recommender
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main

TOPICS = {
    "bicycle": "wheel pedal saddle chain gear brake tyre spoke frame handlebar",
    "kitchen": "oven flour knife butter sugar whisk pan kettle spoon recipe",
    "garden": "soil seed rake hedge lawn compost tulip spade weed greenhouse",
    "ocean": "wave reef tide whale sail anchor harbour coral gull lighthouse",
}
ASKED = {"bicycle": "velo", "kitchen": "cuisine", "garden": "jardin", "ocean": "mer"}
"""Words of queries that no document has: what they mean can only be learned."""
ASKING = "please find show a the some best new about for with need want look buy cheap".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables of a search, what `towers init` makes of them, and a bundle."""
    folder = tmp_path_factory.mktemp("search")
    rng = np.random.default_rng(0)
    topics = rng.choice(list(TOPICS), size=240)
    texts = [" ".join(rng.choice(TOPICS[topic].split(), size=6)) for topic in topics]
    documents = pd.DataFrame({"document_id": [f"d{row}" for row in range(240)], "text": texts})
    documents["topic"] = topics
    documents["pages"] = rng.integers(1, 900, size=240)
    queries = pd.DataFrame({"query_id": range(160), "text": ""})
    pairs = []
    for query in range(160):
        topic = list(TOPICS)[query % 4]
        about = rng.choice(np.flatnonzero(topics == topic), size=2, replace=False)
        queries.loc[query, "text"] = " ".join([ASKED[topic], *rng.choice(ASKING, size=2)])
        pairs += [{"query_id": query, "document_id": f"d{row}"} for row in about]
    for name, frame in (("documents", documents), ("queries", queries), ("pairs", pd.DataFrame(pairs))):
        frame.to_parquet(folder / f"{name}.parquet")
    flags = [word for name in ("documents", "queries", "pairs") for word in (f"--{name}", f"{name}.parquet")]
    said = towers(folder, "init", *flags)
    assert "320 pairs of 160 queries with 174 documents" in said
    settings = (folder / "run.toml").read_text().replace("1024", "256").replace("epochs = 100", "epochs = 10")
    (folder / "run.toml").write_text(settings.replace("track = true", "track = false"))
    said = towers(folder, "train", "run.toml")
    return folder


def test_texts_are_all_that_is_read(search: Path) -> None:
    settings = tomllib.loads((search / "run.toml").read_text())
    read = {"text": {"kind": "text", "frozen_dim": 256, "trainable_residual": True}}
    assert (settings["features"]["item"], settings["features"]["user"]) == (read, read)
    assert (settings["towers"]["history_encoder"], settings["towers"]["shared_text_encoder"]) == ("none", True)
    names = ModelBundle.open(search / "runs" / "latest").model.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"log_scale", "texts"}, "one table, and no ids"


def test_what_a_query_means_is_learned_from_pairs(search: Path) -> None:
    client = _client(search / "runs" / "latest")
    for topic, word in ASKED.items():
        answer = client.get(f"/search?q={word}&k=20").json
        assert answer["fallback"] is None
        about = [_topic(search, item["item_id"]) for item in answer["items"]]
        assert about.count(topic) >= 15, f"{word}: {about}"


def test_queries_are_asked_again_and_described_and_filtered(search: Path) -> None:
    client = _client(search / "runs" / "latest")
    known = client.get("/recommendations/0?k=5").json
    text = pd.read_parquet(search / "queries.parquet")["text"][0]
    described = client.post("/recommendations", json={"attributes": {"text": text}, "k": 5}).json
    searched = client.get("/search", query_string={"q": text, "k": 5}).json
    assert known["items"] == described["items"] == searched["items"]
    assert client.post("/recommendations", json={"history": ["d1"]}).json["fallback"] == "popular"
    few = client.get("/search", query_string={"q": text, "k": 240, "pages_max": 100}).json["items"]
    documents = pd.read_parquet(search / "documents.parquet")
    assert len(few) == (documents["pages"] <= 100).sum()


def test_it_is_judged_by_queries_never_seen_beside_bm25(search: Path) -> None:
    towers(search, "evaluate", "run.toml", "--output", "evaluation")
    report = json.loads((search / "evaluation" / "report.json").read_text())
    assert (report["protocol"], report["num_questions"]) == ("queries", [16])
    recall = {row["name"]: row["metrics"]["recall_at_50"]["mean"] for row in report["rows"]}
    assert recall["two towers"] > recall["words (BM25)"] + 0.2
    assert "R@50" in towers(search, "audit", "evaluation", "--min-support", "1")


def test_new_documents_need_no_training(search: Path) -> None:
    documents = pd.read_parquet(search / "documents.parquet")
    new = pd.DataFrame({"document_id": ["new"], "text": ["pedal wheel brake"], "topic": ["bicycle"], "pages": [3]})
    pd.concat([documents, new], ignore_index=True).to_parquet(search / "more.parquet")
    towers(search, "index", "runs/latest", "--items", "more.parquet")
    found = towers(search, "search", "runs/latest", "pedal wheel brake", "--k", "1")
    assert found.split()[2] == "new"


def test_a_folder_of_documents_is_searched_without_any_pair(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "tea.md").write_text("# Tea\nBoil water and wait.\n\n## Green\nCooler water will do.\n")
    (tmp_path / "notes" / "bike.txt").write_text("Bicycles need air in their tyres.\n")
    towers(tmp_path, "init", "--documents", "notes")
    said = towers(tmp_path, "train", "run.toml")
    assert "nothing was trained" in said
    lines = towers(tmp_path, "search", "runs/latest", "cooler water for green tea", "--k", "2").splitlines()
    assert [line.split()[2] for line in lines[-2:]] == ["tea.md#2", "tea.md#1"]
    (tmp_path / "notes" / "bus.txt").write_text("The bus leaves at noon.\n")
    towers(tmp_path, "index", "runs/latest")
    client = _client(tmp_path / "runs" / "latest")
    assert client.get("/search?q=when does the bus leave&k=1").json["items"][0]["item_id"] == "bus.txt#1"
    assert client.get("/search?q=bus&file=tea.md").json["items"][0]["item_id"].startswith("tea.md")
    assert client.get("/search?q=%3F%21").json["fallback"] == "popular"
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name the tables"),
        (["--queries", "queries.parquet"], "name the tables"),
        (["--documents", "documents.parquet", "--queries", "queries.parquet"], "give both, or documents alone"),
        (["--documents", "documents.parquet", "--items", "documents.parquet"], "no other table"),
        (["--documents", "pairs.parquet"], "no column that tells them apart|needs texts"),
    ],
)
def test_tables_that_make_no_search_are_refused(
    search: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(search)
    assert main(["init", *flags, "--output", "other.toml"]) == 2
    assert re.search(said, capsys.readouterr().err)


def towers(folder: Path, *words: str) -> str:
    """Run a command in a folder, within this process, and return what it says."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        assert main(words) == 0
    return said.getvalue()


def _client(bundle: Path) -> FlaskClient:
    return create_app(open_recommender(bundle)).test_client()


def _topic(folder: Path, document_id: str) -> str:
    documents = pd.read_parquet(folder / "documents.parquet").set_index("document_id")
    return str(documents.loc[document_id, "topic"])
