"""`towers train`: what its report says, and what it proposes next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.running import write_small_shop
from towers.bundle.bundle import ModelBundle
from training.commands import train
from training.evaluation.advice import Advice
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import metrics_per_question
from training.evaluation.report import EvaluationReport
from training.tasks.train import next_steps

RUN = """\
[features]
interactions = "data/interactions.parquet"
recommend_seen = true

[towers]
embedding_dim = 8
history_encoder = "mean"

[training]
epochs = 1
refit = true
track = false
"""


def evaluation(name: str, rank: int) -> Evaluation:
    ranks, offsets = np.full(50, rank), np.arange(51)
    return Evaluation(name, ranks, offsets, metrics_per_question(ranks, offsets, (10,)), {}, 100, np.arange(50))


def write_report(folder: Path, ours: int, other: int, advice: tuple[Advice, ...]) -> Path:
    runs = {0: [evaluation("two towers", ours), evaluation("EASE", other)]}
    report = EvaluationReport.of("leave-one-out", "validation", runs, advise=lambda rivals: advice)
    (folder / "report.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    return folder


def test_a_model_that_is_ahead_is_to_be_served(tmp_path: Path):
    said = next_steps(write_report(tmp_path, 1, 2, ()))
    assert f"  towers serve {tmp_path}\n" in said
    assert said.endswith(f"  towers deploy {tmp_path}")
    (tmp_path / "report.json").write_text("{}")  # of a search without pairs
    assert "towers serve" in next_steps(tmp_path)


@pytest.mark.parametrize(("ours", "other"), [(2, 1), (2, 2)], ids=["behind", "level"])
def test_one_that_is_not_ahead_is_to_be_improved_first(tmp_path: Path, ours: int, other: int):
    command = "towers train run.toml --set training.targets=future"
    said = next_steps(write_report(tmp_path, ours, other, (Advice("because:", command),)))
    assert "towers serve" not in said
    assert said.endswith(f"\n  {command}")
    said = next_steps(write_report(tmp_path, ours, other, ()))
    assert said.endswith(f"\n  towers evaluate {tmp_path}/run.toml --seeds 3")


def test_the_report_of_a_refitted_model_says_that_it_is_of_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_small_shop(tmp_path / "data", users=60, items=100, interactions=650)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    said = CliRunner().invoke(train, ["run.toml"], catch_exceptions=False).stdout
    card = (tmp_path / "runs" / "run-1" / "README.md").read_text(encoding="utf-8")
    for text in (said, card):
        assert "chosen on these questions" in text
        assert "These are the figures of the training that was stopped early." in text
    # Nothing was held out of the weights that are kept, so nobody is named.
    assert ModelBundle.open(tmp_path / "runs" / "run-1").validation_users(np.arange(10_000, 10_061)) is None
    words = ["run.toml", "--no-baselines", "--set", "training.refit=false"]
    said = CliRunner().invoke(train, words, catch_exceptions=False).stdout
    assert "stopped early." not in said
    assert "two towers" in said
    assert "popularity" not in said
    assert ModelBundle.open(tmp_path / "runs" / "run-2").validation_users(np.arange(10_000, 10_061)).sum() in (5, 6)
