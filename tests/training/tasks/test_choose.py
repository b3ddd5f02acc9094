"""`towers init --minutes`: what is tried in short trainings, what is kept, and that run.toml says so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from features.errors import DataError
from features.tables.tables import read_tables
from training.commands import init
from training.config import read_run_config
from training.evaluation.advice import RULES, Facts
from training.tasks import choose as module
from training.tasks.choose import choose
from training.tasks.init import propose, write_proposal
from training.tasks.protocols import early_stopping_split

ITEMS = 12


@pytest.fixture
def folder(tmp_path):
    """Users who go round a circle of items, a step at a time: the order says it all, the sum of the history nothing."""
    lines = ["user_id,item_id,timestamp"]
    steps = [(user, (user + step) % ITEMS, 1_700_000_000 + 90_000 * step) for user in range(60) for step in range(10)]
    lines += [f"{user},i{item},{moment}" for user, item, moment in steps]
    (tmp_path / "events.csv").write_text("\n".join(lines))
    settings, none = tmp_path / "run.toml", dict.fromkeys(("items", "users", "documents", "queries", "pairs"))
    write_proposal(propose(settings, interactions=tmp_path / "events.csv", **none), settings)
    text = (
        settings.read_text().replace("embedding_dim = 64", "embedding_dim = 16").replace("epochs = 100", "epochs = 4")
    )
    settings.write_text(text)
    return tmp_path


def only(monkeypatch, *settings):
    """Let nothing but these be tried."""
    rules = [module.Rule(None, lambda facts: True, lambda facts, one=one: one, "") for one in settings]
    monkeypatch.setattr(module, "RULES", tuple(rules))


def test_what_raises_validation_is_kept_and_written_beside_the_comments_and_the_rest_is_not(folder, monkeypatch):
    before = (folder / "run.toml").read_text()
    only(
        monkeypatch,
        ("training.embedding_learning_rate=1e-9",),
        ("training.learning_rate=0.02", "towers.dropout=0.0"),
    )
    settings = folder / "run.toml"
    text = before.replace("[training]\n", "[training]\nlearning_rate = 0.000001  # slow\n")
    settings.write_text(text)
    first, still, quick = choose(settings, minutes=5, device="cpu")
    assert first.settings == ()
    assert not still.is_kept
    assert quick.is_kept
    assert quick.ndcg > first.ndcg
    lines = settings.read_text().splitlines()
    changed = [line for line in lines if line not in text.splitlines()]
    assert [line.partition(" #")[0].strip() for line in changed] == ["dropout = 0.0", "learning_rate = 0.02"]
    assert all("chosen by validation" in line for line in changed)
    assert len(lines) == len(text.splitlines())
    config = read_run_config(settings)
    assert (config.training.learning_rate, config.towers.dropout) == (0.02, 0.0)


def test_what_cannot_be_trained_is_left_out_with_its_reason(folder, monkeypatch):
    only(monkeypatch, ("training.learning_rate=1e30",), ("towers.num_heads=5",))
    before = (folder / "run.toml").read_text()
    trials = choose(folder / "run.toml", minutes=5, device="cpu")
    assert len(trials) == 2, "five heads do not divide sixteen dimensions, so that is not tried"
    assert not trials[1].is_kept
    assert (folder / "run.toml").read_text() == before


def test_the_rules_that_are_tried_ask_the_same_questions(folder):
    config = read_run_config(folder / "run.toml")
    facts = Facts(config, 60, 600, repeats=0.5, is_ordered=True, has_times=True)
    tried = [text for rule in RULES if rule.is_tried and rule.applies(facts) for text in rule.settings(facts)]
    assert "towers.trend=[1, 7, 30]" in tried
    assert not [text for text in tried if "recommend_seen" in text or "validation" in text or "patience" in text]


def test_too_little_time_is_one_clear_line(folder):
    with pytest.raises(DataError, match=r"no epoch ended in its time; give more --minutes"):
        choose(folder / "run.toml", minutes=1e-4, device="cpu")


def test_the_command_says_what_was_tried_and_which_question_was_asked(folder, monkeypatch):
    only(monkeypatch)
    monkeypatch.chdir(folder)
    words = ["--interactions", "events.csv", "--force", "--validation", "time", "--minutes", "0.2", "--device", "cpu"]
    ended = CliRunner().invoke(init, words, catch_exceptions=False)
    assert ended.exit_code == 0
    assert "on the validation questions of time" in ended.stderr
    assert "as proposed\n    validation N@10" in ended.stdout
    assert tomllib.loads(Path("run.toml").read_text())["training"]["validation"] == "time"


def test_a_search_has_one_question_only(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="--validation is about a recommender; a search holds out queries"):
        init.main(["--documents", "events.csv", "--force", "--validation", "time"], standalone_mode=False)


def test_training_stops_by_the_question_that_is_asked(folder):
    config = read_run_config(folder / "run.toml", ("training.validation=time",))
    tables = read_tables(config.features, folder)
    sequences = tables.interactions.sequences(tables.catalog)
    split = early_stopping_split(config, sequences, ITEMS)
    assert (split.name, split.test) == ("time", None)
    assert split.train.num_events == pytest.approx(0.9 * sequences.num_events, rel=0.02)
