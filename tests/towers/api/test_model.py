from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import towers
from features.errors import DataError
from serving.commands import drift as drift_command
from serving.commands import recommend as recommend_command
from serving.http.app import create_app
from serving.search.tuning import COLUMNS
from tests.towers.api.test_train import command, frames_of_ours
from towers.api.model import Model, open_model
from towers.api.results import picture_column, picture_of
from towers.bundle.sealed_file import BundleError
from training.commands import audit as audit_command
from training.commands import compare as compare_command
from training.commands import evaluate as evaluate_command
from training.evaluation.report import EvaluationReport


@pytest.fixture
def service(model):
    return create_app(model.recommender).test_client()


def rows_of(answer, columns=("item_id", "score", "rank", "title")):
    return [[np.float32(item[name]) if name == "score" else item[name] for name in columns] for item in answer["items"]]


def rows(frame, columns=("item_id", "score", "rank", "title")):
    return frame[list(columns)].to_numpy(dtype=object).tolist()


def test_recommendations_for_all_are_the_file_of_the_command(model, tmp_path):
    command(recommend_command, model.path, "--output", tmp_path / "all.parquet", "--k", 7)
    expected = pd.read_parquet(tmp_path / "all.parquet")
    found = model.recommend(k=7)
    pd.testing.assert_frame_equal(pd.DataFrame(found.drop(columns="title")), expected)
    assert found.columns.tolist() == ["user_id", "item_id", "score", "rank", "title"]
    assert not found.notes


def test_recommendations_for_some_are_the_file_of_the_command(model, tmp_path):
    pd.DataFrame({"user_id": [10005, 1, 10002]}).to_csv(tmp_path / "some.csv", index=False)
    words = (
        "--output",
        tmp_path / "some.parquet",
        "--k",
        3,
        "--users",
        tmp_path / "some.csv",
        "--where",
        "price_max=50",
    )
    command(recommend_command, model.path, *words)
    found = model.recommend(np.array([10005, 1, 10005, 10002]), k=3, filter={"price": {"max": 50}})
    expected = pd.read_parquet(tmp_path / "some.parquet")
    pd.testing.assert_frame_equal(pd.DataFrame(found.drop(columns="title")), expected)
    assert found.notes == ("the model knows nothing about a user (1): popular items",)
    assert all(str(name) in repr(found) for name in [*found.columns, *found["item_id"]]), "no column is left out"
    assert repr(found).endswith("\nnote: the model knows nothing about a user (1): popular items")


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 5},
        {"k": 3, "offset": 4},
        {"k": 4, "filter": {"price": {"max": 60}}, "diversity": 0.4, "at_most": {"brand": 1}},
        {"k": 4, "reasons": 2, "boost": [{"filter": {"price": {"min": 40}}, "by": 0.3}], "distinct": 0.99},
    ],
    ids=str,
)
def test_recommendations_are_those_of_the_service(model, service, parameters):
    answers = service.post("/recommendations", json={"users": [10002, 10007], **parameters}).json["answers"]
    found = model.recommend([10002, 10007], **parameters)
    for answer, (user_id, mine) in zip(answers, found.groupby("user_id"), strict=True):
        assert answer["user_id"] == user_id
        assert rows(mine) == rows_of(answer)
        if "reasons" in parameters:
            assert mine["because"].tolist() == [item["because"] for item in answer["items"]]


def test_a_described_user_gets_what_the_service_gives(model, service):
    history = model.history(10002, 3)["item_id"]
    given = {"history": [*history, "gone"], "attributes": {"country": "IE"}, "k": 4}
    answer = service.post("/recommendations", json=given).json
    found = model.recommend(history=pd.Series(given["history"]), attributes=given["attributes"], k=4)
    assert rows(found) == rows_of(answer)
    assert found["user_id"].isna().all()
    assert found.notes == ("history: not in the catalogue and ignored: 'gone'",)
    nobody = model.recommend(history=[], attributes={"country": "Atlantis"}, k=2)
    assert nobody.notes == (
        "attributes: country: unknown in training and ignored: 'Atlantis'",
        "the model knows nothing about this user: popular items",
    )


def test_similar_and_found_items_are_those_of_the_service(model, service):
    item_id = model.recommend(10002, k=1)["item_id"].item()
    similar = model.similar(item_id, k=4, filter={"price": {"max": 80}})
    assert rows(similar) == rows_of(service.get(f"/items/{item_id}/similar?k=4&price_max=80").json)
    found = model.search("wooden table", k=4)
    assert rows(found) == rows_of(service.get("/search?q=wooden+table&k=4").json)
    assert model.search("...", k=2).notes == ("the model knows none of the words: popular items",)


@pytest.mark.slow
def test_an_evaluation_is_that_of_the_command_to_the_last_digit(model, shop, tmp_path):
    bound = tmp_path / "best.parquet"
    shop.best_possible.to_parquet(bound, index=False)
    words = ("--protocol", "users", "--split", "validation", "--upper-bound", f"best={bound}")
    printed = command(
        evaluate_command, model.path / "run.toml", *words, "--output", tmp_path / "report", *tables_of(model)
    )
    report = model.evaluate("users", split="validation", upper_bound={"best": shop.best_possible}, output="again")
    expected = EvaluationReport.read(tmp_path / "report" / "report.json")
    assert without_advice(report).to_dict() == without_advice(expected).to_dict()
    assert [one.reason for one in report.advice] == [one.reason for one in expected.advice]
    assert repr(without_advice(report)) in printed
    assert report.to_frame().loc["two towers", "recall_at_10"] == expected.rows[0].metrics["recall_at_10"].mean
    assert Path("again/ranks/about.json").is_file()
    assert "<table>" in report._repr_html_()
    assert "<html" not in report._repr_html_()


def without_advice(report):
    """The advice has the command that was given, which names the tables."""
    return replace(report, advice=())


def tables_of(model):
    """The tables of a bundle's run.toml in full, as its paths are relative to another folder."""
    tables = {name: model.bundle.tables_folder / f"{name}.parquet" for name in ("interactions", "items", "users")}
    return [word for name, path in tables.items() for word in ("--set", f"features.{name}={path}")]


def test_a_report_of_the_training_comes_with_the_model(model):
    assert model.report.part == "validation"
    assert model.report.rows[0].name == "two towers"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda model: model.recommend(pd.Series([10002, None], dtype=object)),
            r"^users, row 2: no id; remove the row$",
        ),
        (lambda model: model.recommend("Ann"), r"^users: expected whole numbers as in the tables, found 'Ann'$"),
        (lambda model: model.recommend(10002, k=0), r"^k: input should be greater than or equal to 1, found 0$"),
        (lambda model: model.recommend(10002, filter={"colour": "red"}), r"^filter.colour: .*expected one of|colour"),
        (lambda model: model.recommend(10002, history=["P1"]), r"^users: not together with history, attributes"),
        (lambda model: model.recommend(history=["P1"], attributes={"shoe": 3}), r"shoe"),
        (lambda model: model.similar("P0"), r"^item_id: no item 'P0' in the catalogue"),
        (lambda model: model.search(""), r"^q: string should have at least 1 character, found ''$"),
        (lambda model: model.history(1), r"^user_id: no user 1; give an id as in the interactions$"),
        (lambda model: model.evaluate(compare={"others": "none.csv"}), r"^none.csv: no such file; check the path"),
        (lambda model: model.evaluate(compare={"others": pd.DataFrame({"user_id": [1]})}), r"^others: "),
        (lambda model: model.evaluate(baseline_minutes=-1), r"^baseline_minutes: expected a number from 0 on"),
        (lambda model: model.index(recall=2), r"^recall: expected a share above 0, at most 1, found 2$"),
        (lambda model: model.index(items="none.csv"), r"none.csv: no such file"),
        (lambda model: model.drift(psi=0), r"^psi: expected a number above 0, found 0$"),
        (lambda model: model.drift(fall=2), r"^fall: expected a share from 0 to 1, found 2$"),
        (lambda model: model.drift(items=pd.DataFrame({"title": ["a"]})), r"^items: "),
        (lambda model: towers.audit("runs"), r"^runs: no ranks of an evaluation in it"),
        (lambda model: towers.compare("runs"), r"^runs: nothing to compare it with; give two runs or more$"),
        (lambda model: model.save(Path("runs")), r"^runs: exists and is not a bundle; name another folder"),
        (lambda model: model.serve(wokers=2), r"wokers: no such setting"),
        (lambda model: open_model(model.path, rerankk=False), r"rerankk: no such setting"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(model, ask, said):
    with pytest.raises(DataError, match=said) as raised:
        ask(model)
    assert frames_of_ours(raised) <= {"errors.py"}


def test_a_bundle_that_is_not_there_is_told(here):
    with pytest.raises(BundleError, match=r"^runs/none: no such bundle; `towers train run.toml` writes one$"):
        open_model("runs/none")


def test_a_model_is_opened_by_text_path_and_link_and_is_saved(model, tmp_path, folder):
    model.recommend(10002)
    model.save(tmp_path / "mine")
    saved = open_model(str(tmp_path / "mine"))
    assert saved.version == model.version
    pd.testing.assert_frame_equal(saved.recommend(10002), model.recommend(10002))
    latest = open_model(Path("runs/latest"))
    assert latest.path.name == model.path.name, "the link is followed at once"
    model.save(tmp_path / "mine")
    assert open_model(model.path, recommend_seen=True).settings.recommend_seen


def test_a_model_says_what_it_is(model):
    model.recommend(10002)
    assert repr(model).startswith(f"<Model runs/run-1: items 100, users 150, dimensions 16, version {model.version}, ")
    assert "validation N@10 0." in repr(model)
    assert "(best baseline: " in repr(model)
    assert model.version in model._repr_html_()
    assert repr(Model(model.bundle)) == repr(model), "before it is asked anything, too"


def test_a_notebook_shows_titles_pictures_and_histories_escaped(model):
    page = model.recommend([10002, 1], k=2, reasons=1)._repr_html_()
    assert "<b>user 10002</b>" in page
    assert "history, newest first" in page
    assert "&lt;b&gt;" in page
    assert "<b><b>" not in page
    assert page.count("<img ") == len(model.history(10002, 6)) + 4
    assert "size=s&amp;x=1" in page
    assert "because of " in page
    assert "the model knows nothing about a user (1)" in page
    assert "and 145 more; 300 rows in all" in model.recommend(k=2)._repr_html_()
    assert "similar to &lt;b&gt;" in model.similar(model.history(10002, 1)["item_id"].item())._repr_html_()
    assert type(model.recommend(10002).head(1)) is pd.DataFrame


def test_a_picture_is_an_address_and_nothing_else(trained):
    catalog = trained.recommender.snapshot.catalog
    assert picture_column(catalog) == "image_url"
    assert picture_of("javascript:alert(1)") is None
    assert picture_of(None) is None
    assert picture_of(" https://pictures.test/1.png ") == "https://pictures.test/1.png"


class Newest:
    """Puts candidates that are like the newest item of the history first."""

    def scores(self, shortlist, deadline):
        return (shortlist.vectors @ shortlist.history_vectors[-1]).astype(np.float32)


def test_a_re_ranker_of_ones_own_orders_the_best_candidates(model):
    mine = model.with_reranker(Newest(), candidates=20)
    best = model.recommend(10002, k=20)["item_id"]
    found = mine.recommend(10002, k=20)["item_id"]
    assert set(found) == set(best)
    assert found.tolist() != best.tolist()
    with pytest.raises(DataError, match="cannot be served over HTTP"):
        mine.serve()


@pytest.fixture
def copied(model, tmp_path):
    """A copy of the model, to be changed."""
    model.save(tmp_path / "copied")
    return open_model(tmp_path / "copied")


@pytest.mark.slow
def test_an_index_is_built_again_from_other_tables_and_of_another_kind(copied, interactions, capsys):
    fewer = interactions.iloc[:1_000]
    copied.recommend(10002)
    capsys.readouterr()
    assert copied.index(interactions=fewer, progress=False).empty
    assert capsys.readouterr().out == ""
    assert copied.recommender.snapshot.manifest.num_interactions == len(fewer)
    tried = copied.index(recall=0.5, progress=False)
    manifest = copied.recommender.snapshot.manifest
    assert tried.columns.tolist() == COLUMNS
    assert tried["kind"].tolist()[0] == manifest.plan.kind
    assert (tried["searches_per_second"] > 0).all()
    assert manifest.num_interactions == len(interactions)


@pytest.mark.slow
def test_drift_is_that_of_the_command(copied, items, tmp_path):
    changed = items.assign(price=items["price"] * 3)
    changed.to_parquet(tmp_path / "changed.parquet", index=False)
    report = copied.drift(items=changed)
    assert {one.column for one in report.drifted} == {"price"}
    said = CliRunner().invoke(drift_command, [str(copied.path), "--items", str(tmp_path / "changed.parquet")])
    assert (said.exit_code, said.output.strip()) == (3, repr(report))
    assert report.to_frame()["is_drift"].sum() == len(report.drifted)


@pytest.mark.slow
def test_an_audit_and_a_comparison_are_those_of_the_commands(model, tmp_path):
    for name in ("one", "other"):
        report = model.evaluate(output=tmp_path / name, baselines=False, progress=False)
    assert ([row.name for row in report.rows], report.verdict.standing) == (["two towers"], None)
    command(audit_command, tmp_path / "one", "--min-support", "10")
    audit = towers.audit(tmp_path / "one", min_support=10)
    pd.testing.assert_frame_equal(audit.slices, pd.read_parquet(tmp_path / "one" / "slices.parquet"))
    assert audit.headline in repr(audit)
    command(compare_command, tmp_path / "one", tmp_path / "other", "--output", tmp_path / "compared")
    compared = towers.compare(tmp_path / "one", tmp_path / "other")
    pd.testing.assert_frame_equal(compared.to_frame(), pd.read_parquet(tmp_path / "compared" / "differences.parquet"))
    assert "other and one are not distinguishable" in repr(compared)


@pytest.mark.slow
def test_it_is_served_as_by_the_command(model, capfd):
    expected = model.recommend(10002, k=3)
    with model.serving() as service:
        with build_opener(ProxyHandler({})).open(
            f"{service.address}/recommendations/10002?k=3", timeout=30
        ) as response:
            answer = json.load(response)
        assert (answer["model"], rows(expected)) == (model.version, rows_of(answer))
        port = int(service.address.rpartition(":")[2])
        with pytest.raises(DataError, match=rf"^port {port} of 127.0.0.1 is already in use; choose another"):
            model.serve(port)
    assert f"Serving runs/run-1 (model {model.version})" in capfd.readouterr().out
    assert service.wait() == 0


@pytest.mark.slow
def test_a_service_that_cannot_start_says_why(model, tmp_path, monkeypatch):
    model.save(tmp_path / "broken")
    broken = open_model(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"model.safetensors"), broken.serving():
        pass


def test_the_command_says_how_many_are_unknown(model, tmp_path):
    pd.DataFrame({"user_id": [1]}).to_csv(tmp_path / "some.csv", index=False)
    words = [str(model.path), "--output", str(tmp_path / "a.parquet"), "--users", str(tmp_path / "some.csv")]
    assert "1 user is unknown" in CliRunner().invoke(recommend_command, words).output


def test_a_kind_of_index_that_does_not_exist_is_refused_with_those_that_do(model):
    index = inspect.unwrap(towers.Model.index)  # without the tests' own check of signatures, which users do not have
    with pytest.raises(towers.DataError, match=r"^kind: expected one of exact, .*, found 'flat'$"):
        index(model, kind="flat")
