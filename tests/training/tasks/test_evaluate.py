"""`towers evaluate`: which questions are asked, and that nothing is fitted twice that would come out the same."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from features.sequences.sequences import UNKNOWN_TIME, Queries, Sequences
from features.sequences.split import Split, leave_one_basket_out, leave_one_out
from tests.running import write_small_shop
from training.commands import evaluate
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.evaluate import Evaluation, ScoringModel
from training.tasks import evaluate as judging
from training.tasks.evaluate import NOT_REFITTED, SELECTED, evaluate_run

RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
item = { title = { kind = "text" } }
columns = { timestamp = "timestamp" }

[training]
seed = 5
"""
PROTOCOLS = ["leave-one-out", "leave-one-basket-out", "time", "users", "cold-items"]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A run.toml beside a small shop."""
    write_small_shop(tmp_path / "data", users=150, items=100, interactions=1_600)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    return tmp_path / "run.toml"


@pytest.fixture
def learned_from(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """The splits that towers were trained on; popularity stands in for the towers, and for all baselines."""
    splits = []

    def trained(config: Any, tables: Any, split: Split, *_: Any) -> list[ScoringModel]:
        splits.append(split)
        return [named("two towers", split)]

    monkeypatch.setattr(judging, "_trained", trained)
    return splits


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Split]:
    """The splits that baselines were fitted on."""
    splits = []

    def fit(split: Split, *, texts: list[str] | None, **budget: Any) -> tuple[list[ScoringModel], list[str]]:
        assert texts is not None
        assert len(texts) == 100
        splits.append(split)
        return [named("popularity", split)], ["The same for all.", f"Fit {len(splits)}."]

    monkeypatch.setattr(judging, "fit_baselines", fit)
    return splits


def named(name: str, split: Split) -> PopularityBaseline:
    recommender = PopularityBaseline.fit(split.train, len(split.candidates))
    recommender.name = name
    return recommender


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_baselines_are_fitted_once_where_every_seed_has_the_same_split(
    settings: Path, learned_from: list[Split], fitted: list[Split], protocol: str
):
    report = evaluate_run(settings, (), protocol, seeds=3, device="cpu")
    assert len(learned_from) == 3
    assert report.seeds == (5, 6, 7)
    if protocol in ("users", "cold-items"):
        assert len(fitted) == 3
        assert report.notes == ("The same for all.", "seed 5: Fit 1.", "seed 6: Fit 2.", "seed 7: Fit 3.")
        assert not np.array_equal(learned_from[0].train.item_rows, learned_from[1].train.item_rows)
    else:
        assert len(fitted) == 1
        assert report.notes == ("The same for all.", "Fit 1.")
        assert all(np.array_equal(learned_from[0].train.item_rows, other.train.item_rows) for other in learned_from)
    assert report.rows[1].metrics["ndcg_at_10"] == report.rows[0].metrics["ndcg_at_10"]


def test_without_baselines_none_is_fitted(settings: Path, learned_from: list[Split], fitted: list[Split]):
    said = CliRunner().invoke(evaluate, [str(settings), "--no-baselines"], catch_exceptions=False).stdout
    assert len(learned_from) == 1
    assert fitted == []
    assert "two towers" in said
    assert "popularity" not in said


def test_the_time_at_which_the_test_data_begins_is_printed(
    settings: Path, learned_from: list[Split], fitted: list[Split], capsys: pytest.CaptureFixture[str]
):
    evaluate_run(settings, (), "time", seeds=1, device="cpu")
    (said,) = re.findall("the test data begins at (.*) UTC", capsys.readouterr().err)
    begins = datetime.fromisoformat(said).replace(tzinfo=UTC).timestamp()
    (split,) = learned_from
    assert split.test is not None
    assert split.train.times.max() < split.validation.times[0] < begins == split.test.times[0]


def test_leave_one_out_says_how_many_answers_share_their_time_with_what_is_shown():
    rows, times = np.tile(np.arange(4), 3), np.array([1, 2, 3, 3, 1, 2, 3, 4, 1, 2, *[UNKNOWN_TIME] * 2])
    events = Sequences(np.arange(3), np.array([0, 4, 8, 12]), rows, times, is_ordered=True)
    split = leave_one_out(events, num_items=4)
    (note,) = judging._baskets_note(split, "test")
    assert note.startswith("1 of the 3 answers (33%) have the same time as the interaction before them, ")
    assert judging._baskets_note(split, "validation") == []
    assert judging._baskets_note(leave_one_basket_out(events, num_items=4), "test") == []


def test_without_an_order_each_seed_has_its_own_last_items(
    settings: Path, learned_from: list[Split], fitted: list[Split]
):
    settings.write_text(RUN.replace('columns = { timestamp = "timestamp" }', ""), encoding="utf-8")
    evaluate_run(settings, (), "leave-one-out", seeds=2, device="cpu")
    assert len(fitted) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_on_validation_the_test_questions_are_never_asked(
    settings: Path, learned_from: list[Split], fitted: list[Split], protocol: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    ask = judging.evaluate

    def listening(recommender: ScoringModel, questions: Queries, *rest: Any, **more: Any) -> Evaluation:
        asked.append(questions)
        return ask(recommender, questions, *rest, **more)

    monkeypatch.setattr(judging, "evaluate", listening)
    report = evaluate_run(settings, (), protocol, part="validation", seeds=1, device="cpu")
    (split,) = learned_from
    assert all(questions is split.validation for questions in asked)
    assert report.headline.startswith(f"{protocol} · validation · {len(split.validation):,} questions")
    assert report.notes[-1] == SELECTED
    on_test = evaluate_run(settings, (), protocol, seeds=1, device="cpu")
    assert asked[-1] is learned_from[-1].test
    assert on_test.part == "test"
    assert SELECTED not in on_test.notes
    # Whichever part is asked, the same is learned from.
    assert np.array_equal(learned_from[0].train.item_rows, learned_from[1].train.item_rows)


def test_the_report_says_that_a_refit_has_no_part_in_it(settings: Path, learned_from: list[Split], fitted: list[Split]):
    report = evaluate_run(settings, ("training.refit=true",), "leave-one-out", seeds=1, device="cpu")
    assert NOT_REFITTED in report.notes
    assert NOT_REFITTED not in evaluate_run(settings, (), "leave-one-out", seeds=1, device="cpu").notes


def test_people_who_were_held_out_are_also_judged_by_twenty(
    settings: Path, learned_from: list[Split], fitted: list[Split]
):
    metrics = evaluate_run(settings, (), "users", seeds=1, device="cpu").rows[0].metrics
    assert {"recall_at_20", "recall_at_50", "ndcg_at_100"} <= metrics.keys()
    assert "recall_at_20" not in evaluate_run(settings, (), "time", seeds=1, device="cpu").rows[0].metrics


def test_the_flag_chooses_the_questions(settings: Path, learned_from: list[Split], fitted: list[Split]):
    said = CliRunner().invoke(evaluate, [str(settings), "--split", "validation"], catch_exceptions=False).stdout
    assert "\nleave-one-out · validation · " in said
    assert "To try next, the likeliest to help first:\n- popularity " in said
    command = f"    towers evaluate {settings} --protocol leave-one-out --split validation --set "
    assert command in said
    said = CliRunner().invoke(evaluate, [str(settings)], catch_exceptions=False).stdout
    assert "\nleave-one-out · test · " in said
    wrong = CliRunner().invoke(evaluate, [str(settings), "--split", "training"])
    assert "'training' is not one of 'test', 'validation'" in wrong.output
