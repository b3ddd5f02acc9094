from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from features.errors import DataError
from training.tuning.study import MAX_ATTEMPTS, Tuning

SPACE = {"a": FloatDistribution(0, 1), "b": CategoricalDistribution(("1", "2"))}
DEFAULTS = {"a": 0.5, "b": "2"}


def opened(folder: Path, **about: str) -> Tuning:
    return Tuning.open(folder, {"settings": "these", **about}, space=SPACE, defaults=DEFAULTS, seed=3, pruner="none")


def train(tuning: Tuning, most: int, value: float = 0.0) -> int | None:
    claim = tuning.claim(most)
    if claim is None:
        return None
    with claim:
        claim.finish(value or claim.params["a"])
    return claim.number


def test_the_first_trial_is_the_default_and_the_last_is_the_number_asked_for(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        assert [train(tuning, 3) for _ in range(4)] == [0, 1, 2, None]
        assert tuning.default is not None
        assert tuning.default.params == DEFAULTS
        assert train(tuning, 4) == 3
        assert len(tuning.records) == 4


def test_of_equals_the_default_is_the_best(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        for _ in range(3):
            train(tuning, 3, 0.25)
        assert tuning.best == tuning.default


def test_a_trial_of_a_dead_worker_is_continued_in_its_folder(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        train(tuning, 9)
        with tuning.claim(9) as claim:  # given back without a result, as by a process that dies
            claim.report(1, 0.25)
            claim.tracked_as = "run"
            (claim.folder / "checkpoint.safetensors").write_text("")
    with opened(tmp_path / "t") as tuning:
        assert not tuning.joined
        with tuning.claim(9) as again:
            assert (again.number, again.params, again.folder) == (claim.number, claim.params, claim.folder)
            assert again.tracked_as == "run"
            assert (again.folder / "checkpoint.safetensors").exists()
            again.finish(0.1)
        assert [(one.number, one.state) for one in tuning.records] == [(0, "complete"), (1, "complete")]
        assert train(tuning, 9) == 2


def test_the_default_is_continued_as_the_default(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        with tuning.claim(9):
            pass
        assert train(tuning, 9) == 0
        assert tuning.default is not None


def test_a_trial_whose_workers_die_each_time_is_given_up(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        train(tuning, 9)
        numbers = []
        for _ in range(MAX_ATTEMPTS + 1):
            with tuning.claim(9) as claim:
                numbers.append(claim.number)
        assert numbers == [*[1] * MAX_ATTEMPTS, 2]
        assert tuning.num_given_up == 1


def test_a_second_worker_joins_and_leaves_the_trial_of_the_first_alone(tmp_path: Path):
    with opened(tmp_path / "t") as first, first.claim(9) as claim:
        with opened(tmp_path / "t") as second:
            assert second.joined
            assert train(second, 9) == 1
            assert not second.leave_as_last()
        claim.finish(0.5)
        assert len(first.records) == 2
        assert first.leave_as_last()


def test_a_trial_that_is_worse_than_most_ends_early_and_the_default_never(tmp_path: Path):
    about = {"settings": "these"}
    with Tuning.open(tmp_path, about, space=SPACE, defaults=DEFAULTS, seed=0, pruner="median") as tuning:
        for place, value in enumerate((0.0, 0.5, 0.6, 0.7, 0.1)):
            with tuning.claim(9) as claim:
                for epoch in range(1, 6):
                    claim.report(epoch, value)
                    if place < 4:
                        claim.check_promising()
                if place < 4:
                    claim.finish(value)
                else:
                    with pytest.raises(optuna.TrialPruned, match="not promising"):
                        claim.check_promising()
                    claim.prune("not promising")
        assert [one.state for one in tuning.records] == [*["complete"] * 4, "pruned"]
        assert tuning.records[-1].value == 0.1


def test_an_interrupted_search_tries_the_same_values(tmp_path: Path):
    found = []
    for place, is_interrupted in (("a", False), ("b", True)):
        for _ in range(13):
            with opened(tmp_path / place) as tuning:
                if is_interrupted:
                    with tuning.claim(13):
                        pass
                train(tuning, 13)
        with opened(tmp_path / place) as tuning:
            found.append([one.params for one in tuning.records])
    assert found[0] == found[1]
    assert len({json.dumps(params) for params in found[0]}) == 13


def test_checkpoints_are_kept_of_the_default_and_the_best_only(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        for value in (0.1, 0.3, 0.2, 0.4, 0.1):
            train(tuning, 9, value)
        with tuning.claim(9):
            kept = {path.name for path in (tmp_path / "t" / "trials").glob("[0-9]*")}
    assert kept == {"0000", "0003", "0005"}


def test_a_folder_of_something_else_and_other_settings_are_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="not the folder of a tuning; name another --output"):
        opened(tmp_path)
    with opened(tmp_path / "t"):
        pass
    with pytest.raises(DataError, match=r"began with other tables; .*name another --output"):
        opened(tmp_path / "t", digests="others")
    (tmp_path / "t" / "tuning.json").write_text("[")
    with pytest.raises(DataError, match=r"tuning\.json: cannot be read"):
        opened(tmp_path / "t")


def test_a_line_that_was_not_written_to_its_end_is_cut_and_a_spoilt_file_is_refused(tmp_path: Path):
    with opened(tmp_path / "t") as tuning:
        train(tuning, 9)
    journal = tmp_path / "t" / "study.jsonl"
    with journal.open("a") as file:
        file.write('{"op_code": 4, "wor')
    with opened(tmp_path / "t") as tuning:
        assert train(tuning, 9) == 1
    journal.write_text("spoilt\nspoilt\n")
    with pytest.raises(DataError, match=r"study\.jsonl: cannot be read"):
        opened(tmp_path / "t")
