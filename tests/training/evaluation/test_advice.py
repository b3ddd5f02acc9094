"""Advice: settings that exist, fit together and change something, for what the baselines ahead know."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import numpy as np
import pytest

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.sequences.split import leave_one_out
from training.config import RunConfig, read_run_config
from training.evaluation.advice import MOST, RULES, Facts, advise

RUN = """\
[features]
interactions = "clicks.csv"
items = "products.csv"
item = { item_id = { kind = "id" }, title = { kind = "text" }, story = { kind = "text" } }
columns = { timestamp = "time" }

[towers]
history_encoder = "transformer"
time_bias = true
"""
COMMAND = ("towers", "train", "run.toml", "--set", "training.seed=1")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding="utf-8")
    return path


def facts(config: RunConfig, **changed: object) -> Facts:
    usual = {"num_users": 10_000, "num_events": 1_000_000, "repeats": 0.0, "is_ordered": True, "has_times": True}
    return Facts(config, **{**usual, **changed})


def overrides_in(command: str) -> tuple[str, ...]:
    words = shlex.split(command)
    return tuple(word for flag, word in itertools.pairwise(words) if flag == "--set")


@pytest.mark.parametrize(
    ("rivals", "changed", "first"),
    [
        (["sequential neighbours"], {"towers.history_encoder": "mean"}, "towers.history_encoder=transformer"),
        (["session neighbours"], {}, "towers.num_layers=4"),
        (["TF-IDF"], {}, "features.item.title.frozen_dim=64"),
        (["EASE"], {"is_ordered": False, "towers.history_encoder": "mean"}, "training.item_init=spectral"),
        (["iALS"], {"num_users": 500}, "training.item_init=spectral"),
        (["EASE"], {}, "training.targets=future"),
        (["popularity"], {"training.log_q": "none"}, "training.log_q=negatives"),
        (["last week's system"], {"num_events": 70_000}, "towers.dropout=0.5"),
        (["last week's system"], {"repeats": 0.38}, "features.recommend_seen=true"),
    ],
)
def test_what_is_ahead_and_the_data_decide(settings: Path, rivals: list[str], changed: dict, first: str):
    overrides = [f"{name}={value}" for name, value in changed.items() if "." in name]
    if "towers.history_encoder=mean" in overrides:
        overrides.append("towers.time_bias=false")
    config = read_run_config(settings, tuple(overrides))
    found = advise(rivals, facts(config, **{name: one for name, one in changed.items() if "." not in name}), COMMAND)
    assert first in found[0].command
    assert found[0].reason.startswith(f"{rivals[0]} ")
    assert found[0].command.startswith("towers train run.toml --set training.seed=1 --set ")


def test_what_is_popular_is_read_by_the_score_and_then_by_a_ranker(settings: Path):
    config = read_run_config(settings)
    first, second, *_ = advise(["recent popularity"], facts(config), COMMAND)
    assert overrides_in(first.command)[1:] == ("towers.trend=[1, 7, 30]",)
    assert second.command == "towers train-ranker runs/latest"
    config = read_run_config(settings, ("towers.trend=[1, 7, 30]",))
    (first, *_) = advise(["recent popularity"], facts(config), COMMAND)
    assert first.command == "towers train-ranker runs/latest"
    told = str(advise(["popularity"], facts(config, has_times=False), COMMAND))
    assert "train-ranker" not in told
    assert "trend" not in told


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("encoder", ["transformer", "mean", "hstu"])
@pytest.mark.parametrize("num_users", [100, 10_000])
def test_every_command_is_of_settings_that_fit_together_and_change_something(
    settings: Path, encoder: str, is_ordered: bool, num_users: int
):
    bias = "true" if encoder != "mean" else "false"
    config = read_run_config(settings, (f"towers.history_encoder={encoder}", f"towers.time_bias={bias}"))
    told = Facts(config, num_users, 5 * num_users, 0.5, is_ordered, has_times=True)
    for rivals in (["EASE"], ["sequential neighbours"], ["TF-IDF"], ["popularity"], ["CEASE"], ["mix of two"]):
        found = advise(rivals, told, COMMAND)
        assert 2 <= len(found) <= MOST
        for one in found:
            if overrides := overrides_in(one.command)[1:]:
                given = (f"towers.history_encoder={encoder}", f"towers.time_bias={bias}", *overrides)
                assert read_run_config(settings, given) != config
        keys = [override.partition("=")[0] for one in found for override in overrides_in(one.command)[1:]]
        assert len({*keys}) == len(keys), "two of them change the same setting"


def test_a_search_is_told_of_its_words(settings: Path):
    settings.write_text(
        """[features]
interactions = "pairs.csv"
items = "documents.csv"
users = "queries.csv"
item = { text = { kind = "text", frozen_dim = 64 } }
user = { text = { kind = "text", frozen_dim = 64 } }
[towers]
history_encoder = "none"
"""
    )
    config = read_run_config(settings)
    (first, *_) = advise(["words (BM25)"], facts(config, is_ordered=False, has_times=False), COMMAND)
    assert "features.item.text.trainable_residual=true" in first.command
    assert "features.user.text.trainable_residual=true" in first.command
    assert read_run_config(settings, overrides_in(first.command)).features.item["text"].trainable_residual


def test_facts_are_those_of_the_training_data(settings: Path):
    rows = np.array([0, 1, 0, 2, 0, 3, 1, 1, 4])
    events = Sequences(np.array([7, 8]), offsets_of(np.array([5, 4])), rows, times=None, is_ordered=True)
    found = Facts.of(read_run_config(settings), leave_one_out(events, 5, test=False))
    # Before the last new item: 0 1 0, and 3 1 1.
    assert (found.num_users, found.num_events, found.repeats) == (2, 6, pytest.approx(1 / 3))
    assert (found.is_ordered, found.has_times) == (True, False)


def test_every_rule_has_a_reason_that_follows_a_name() -> None:
    assert all(rule.reason[0].islower() for rule in RULES)
