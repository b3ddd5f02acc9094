"""`towers tune`: train with other settings, one trial after the other, and write the best as a run.toml.

A trial is a training on the training part of a protocol's split, judged by its best validation N@10. The test part is
asked once, at the end, about the best trial and about run.toml as it is.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import optuna
import tomlkit
import torch

from features.errors import DataError
from features.files import atomic_file
from features.sequences.sequences import Sequences
from features.sequences.split import Split
from features.tables.tables import Tables, data_digests, read_tables
from training.config import RunConfig, read_run_config, read_run_values, table_in, with_settings
from training.evaluation.advice import Facts
from training.evaluation.baselines.tuning import sample
from training.evaluation.evaluate import Evaluation, cutoffs_of, evaluate
from training.evaluation.report import EvaluationReport
from training.loop.fit import TrainedModel, check_choices, choose_device, fit
from training.loop.trainer import Progress
from training.runs.mlflow_tracker import Tracker
from training.runs.progress import describe, start_tracking
from training.runs.run_folder import RUNS
from training.tasks.protocols import is_drawn, split_by, usual_protocol
from training.tuning.charts import said_value
from training.tuning.report import CHOSEN, DEFAULT, TUNED, TuningReport, earlier_comparisons, earlier_tests
from training.tuning.space import Space, declared_space, default_space, params_of, settings_of, space_in_words
from training.tuning.study import Claim, PrunerName, TrialRecord, Tuning

WINNER = "run.toml"
"""Name of the best settings in the folder of a tuning."""
MOST_CELLS = 2 * 10**9
"""Most scores that are computed for each model; of more questions a random sample is evaluated."""
_UNTUNED = ("track", "experiment", "checkpoint_seconds")
"""Settings of `[training]` that do not change a model, so that they may change while a tuning goes on."""


class _TimeIsUpError(Exception):
    """The minutes of this worker are over; its trial can be continued."""


@dataclass(frozen=True)
class _Task:
    """What all trials share.

    Attributes:
        settings: Path of run.toml.
        values: Its content as it is written, with the overrides of the command.
        config: The settings.
        tables: What was read.
        sequences: All interactions.
        protocol: As the command line calls it.
        split: Training, validation and test data.
        device: Device to train on.
        space: The search space.
        deadline: When to stop, on the monotonic clock.
    """

    settings: Path
    values: dict[str, Any]
    config: RunConfig
    tables: Tables
    sequences: Sequences
    protocol: str
    split: Split
    device: torch.device
    space: Space
    deadline: float

    def config_of(self, params: Mapping[str, Any], name: str) -> RunConfig:
        """Return the settings of a trial.

        Raises:
            DataError: Its values do not fit each other.
        """
        config = with_settings(self.config, settings_of(params), name)
        check_choices(config)
        return config

    def split_of(self, seed: int) -> Split:
        """Return the split of a seed: the same for all seeds unless it is random."""
        if seed == self.config.training.seed or not is_drawn(self.protocol, self.sequences):
            return self.split
        return split_by(self.protocol, self.sequences, len(self.tables.catalog), _with_seed(self.config, seed))


def tune(
    settings: Path,
    overrides: Sequence[str],
    *,
    trials: int,
    minutes: float | None,
    output: Path | None,
    protocol: str | None,
    seeds: int,
    pruner: PrunerName,
    device: str,
) -> tuple[TuningReport, Path] | None:
    """Search for better settings, and return what was found and the folder that it was written into.

    Args:
        settings: Path of run.toml.
        overrides: `table.key=value` each.
        trials: Number of trials of the tuning, those of earlier calls and of other workers included.
        minutes: After which this worker stops; None: no limit.
        output: Folder of the tuning; None: `runs/NAME-tuning`. A tuning that is there is continued, or joined.
        protocol: As the command line calls it; None: see `usual_protocol`.
        seeds: Number of trainings of the best settings and of run.toml for the comparison.
        pruner: When a trial is ended early.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        None if other workers are still training; the last one compares and reports.

    Raises:
        DataError: Something in the settings, the tables or the folder is wrong, or there was no time to train with
            run.toml as it is.
        Stopped: A signal ended it; the same command continues.
    """
    deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    config = read_run_config(settings, tuple(overrides))
    check_choices(config)
    declared = declared_space(config, str(settings))  # a mistake in it is an error before the tables are read
    where = choose_device(device)
    tables = read_tables(config.features, settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    if not sequences.num_events:
        raise DataError(f"{settings}: there are no interactions, so nothing is trained and nothing can be tuned")
    protocol = protocol or usual_protocol(config, sequences)
    split = split_by(protocol, sequences, len(tables.catalog), config)
    space = declared or default_space(config, Facts.of(config, split), len(tables.catalog))
    values = read_run_values(settings, tuple(overrides))
    task = _Task(settings, values, config, tables, sequences, protocol, split, where, space, deadline)
    folder = output or RUNS / f"{settings.stem}-tuning"
    tuning = Tuning.open(
        folder,
        _about(task),
        space=space,
        defaults=params_of(config, space),
        seed=config.training.seed,
        pruner=pruner,
    )
    describe(tables, sequences)
    try:
        with tuning:
            _say_where(tuning, trials)
            with _parent(task, tuning, is_wanted=not tuning.joined) as parent:
                for number in _train_trials(task, tuning, trials):
                    _keep_best(task, tuning, parent, number)
            if not tuning.leave_as_last():
                click.echo("another worker is still training; it will compare and write the report", err=True)
                return None
            return _report(task, tuning, seeds), folder
    except KeyboardInterrupt:
        click.echo(f"\nstopped; {folder} has all trials, and the same command continues from here", err=True)
        raise


def _about(task: _Task) -> dict[str, Any]:
    """Return what all workers of a tuning must agree on."""
    settings = task.config.model_dump(mode="json")
    for name in _UNTUNED:
        del settings["training"][name]
    return {
        "settings": settings,
        "space": space_in_words(task.space),
        "protocol": task.protocol,
        "digests": data_digests(task.config.features, task.settings.parent),
    }


def _say_where(tuning: Tuning, trials: int) -> None:
    done = sum(one.state != "running" for one in tuning.records)
    if tuning.joined:
        said = f"joining the tuning in {tuning.folder}, which another worker is at"
    elif tuning.records:
        said = f"continuing the tuning in {tuning.folder}"
    else:
        said = f"tuning in {tuning.folder}"
    click.echo(f"{said}: {done} of {trials} trials done", err=True)


def _parent(task: _Task, tuning: Tuning, *, is_wanted: bool) -> Tracker:
    """Start the MLflow run that those of the trials are nested in, or continue it; none for a worker that joins."""
    if not is_wanted:
        return Tracker()
    tracker = start_tracking(task.config, tuning.folder.name, run_id=tuning.tracked_as)
    if tracker.run_id is not None and tracker.run_id != tuning.tracked_as:
        tuning.tracked_as = tracker.run_id
    return tracker


def _train_trials(task: _Task, tuning: Tuning, trials: int) -> Iterator[int]:
    """Train one trial after the other until there are enough or the time is over; yield the number of each."""
    while time.monotonic() < task.deadline and (claim := tuning.claim(trials)) is not None:
        try:
            with claim:
                _train(task, claim, tuning.tracked_as)
        except _TimeIsUpError:
            click.echo(f"the time is over; trial {claim.number} can be continued", err=True)
            return
        _say_trial(task, tuning, claim.number, trials)
        yield claim.number


def _train(task: _Task, claim: Claim, parent: str | None) -> None:
    """Train a trial, and record its result, or why it has none."""
    try:
        config = task.config_of(claim.params, f"trial {claim.number}")
    except DataError as error:
        claim.prune(f"not valid: {error}")
        return
    tags = {} if parent is None else {"mlflow.parentRunId": parent}
    name = f"{task.settings.stem} trial {claim.number}"
    with start_tracking(config, name, tags, claim.tracked_as) as tracker:
        claim.tracked_as = tracker.run_id
        try:
            learned = _fit(
                task, config, task.split, claim.folder / "checkpoint.safetensors", _Listener(task, claim, tracker)
            )
        except optuna.TrialPruned as reason:
            if claim.is_default:
                raise DataError(f"{task.settings}: {reason}; lower the learning rates") from None
            tracker.close("KILLED")
            claim.prune(str(reason))
            return
        except (MemoryError, torch.OutOfMemoryError):
            if claim.is_default:
                raise
            tracker.close("FAILED")
            claim.prune("out of memory")
            return
        except _TimeIsUpError:
            tracker.close("KILLED")
            raise
        except ValueError as error:  # such as scores that are not numbers, or settings that the tables do not fit
            if claim.is_default:
                raise
            tracker.close("FAILED")
            claim.prune(f"failed: {error}")
            return
        tracker.log_metrics({"validation_ndcg_at_10": learned.progress.best}, step=learned.progress.step)
    claim.finish(learned.progress.best)


@dataclass(frozen=True)
class _Listener:
    """Looks on while a trial is trained: records it, and ends it where it is not worth going on."""

    task: _Task
    claim: Claim
    tracker: Tracker

    def on_step(self, step: int, loss: float) -> None:
        """Record the loss of a step."""
        self.tracker.log_metrics({"train/loss": loss}, step)
        if not math.isfinite(loss):
            raise optuna.TrialPruned("diverged: the loss is no longer a number")
        self._look_at_the_clock()

    def on_epoch(self, progress: Progress, measured: dict[str, float]) -> None:
        """Record the metrics of an epoch, and ask the pruner."""
        self.tracker.log_metrics({f"epoch/{name}": value for name, value in measured.items()}, step=progress.epoch)
        self.claim.report(progress.epoch, progress.best)
        if not progress.finished:
            self.claim.check_promising()
            self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        if time.monotonic() >= self.task.deadline:
            raise _TimeIsUpError


def _fit(
    task: _Task, config: RunConfig, split: Split, checkpoint: Path, listener: _Listener | None = None
) -> TrainedModel:
    """Train, or continue from the checkpoint; of a training that is finished nothing but its weights is read."""
    return fit(
        config,
        task.tables,
        split,
        device=task.device,
        checkpoint=checkpoint,
        resume=checkpoint.is_file(),
        on_step=None if listener is None else listener.on_step,
        on_epoch=None if listener is None else listener.on_epoch,
    )


def _say_trial(task: _Task, tuning: Tuning, number: int, trials: int) -> None:
    records = tuning.records
    one, best = next(one for one in records if one.number == number), tuning.best
    value = "no result" if one.value is None else f"N@10 {one.value:.4f}"
    how = f" ({one.reason})" if one.reason else ""
    so_far = "" if best is None or best.value is None else f"; best {best.value:.4f} (trial {best.number})"
    left = (task.deadline - time.monotonic()) / 60
    clock = "" if left == float("inf") else f"; {max(left, 0):.0f} minutes left"
    done = sum(other.state != "running" for other in records)
    spent = f"after {one.epochs} epochs, {one.seconds:.0f} s{how}"
    click.echo(f"trial {number}: {value} {spent}{so_far}; {done} of {trials}{clock}", err=True)


def _keep_best(task: _Task, tuning: Tuning, parent: Tracker, number: int) -> None:
    """Write the best settings so far, and record their result."""
    best, default = tuning.best, tuning.default
    if best is not None and default is not None:
        _write_winner(task, tuning.folder, best, default)
        parent.log_metrics({"best_validation_ndcg_at_10": best.value or 0.0}, step=number)


def _write_winner(task: _Task, folder: Path, best: TrialRecord, default: TrialRecord) -> None:
    """Write the settings of a trial as a run.toml that trains alone: what was written, with the trial's values."""
    values = copy.deepcopy(task.values)
    values.pop("tune", None)
    features = values["features"]
    for name in ("interactions", "items", "users"):
        if name in features:
            features[name] = _seen_from(folder, task.settings.parent, features[name])
    for encoder in features.get("encoders", {}).values():
        if (task.settings.parent / encoder["model"]).is_dir():
            encoder["model"] = _seen_from(folder, task.settings.parent, encoder["model"])
    head = [f"# The best of the trials of `towers tune {task.settings}`: trial {best.number}, N@10 {best.value:.4f} on"]
    head += [f"# validation, {default.value:.4f} with the settings as they were. What is changed:"]
    for key, value in settings_of(best.params).items():
        before = settings_of(default.params)[key]
        if value == before:
            continue
        head.append(f"#   {key} = {said_value(value)}, was {said_value(before)}")
        *tables, name = key.split(".")
        table_in(values, tables, key)[name] = value
    with atomic_file(folder / WINNER) as temporary:
        temporary.write_text("\n".join(head) + "\n\n" + tomlkit.dumps(values), encoding="utf-8")


def _seen_from(folder: Path, base: Path, path: str) -> str:
    """Return a path that is relative to `base` as one that is relative to `folder`; an absolute one stays."""
    return path if Path(path).is_absolute() else os.path.relpath(base.resolve() / path, folder.resolve())


def _report(task: _Task, tuning: Tuning, seeds: int) -> TuningReport:
    """Compare the best trial with run.toml as it is, and write everything."""
    best, default = tuning.best, tuning.default
    if best is None or default is None:
        raise DataError(
            f"{tuning.folder}: there was no time to train with {task.settings} as it is, which all trials are compared "
            "with; the same command continues from its checkpoint; raise --minutes"
        )
    _write_winner(task, tuning.folder, best, default)
    own = task.config.training.seed
    compared = None
    notes = [*earlier_tests(tuning.folder, best)]
    if not best.is_default:
        compared = earlier_comparisons(tuning.folder, best, tuple(range(own, own + seeds))) or _compare(
            task, tuning, best, default, seeds
        )
    if tuning.num_given_up:
        notes.append(f"{tuning.num_given_up} trials were given up, because their process died three times.")
    report = TuningReport(
        settings=task.settings.name,
        records=tuning.records,
        best=best,
        default=default,
        space=task.space,
        importances=tuning.importances(),
        validation=None if compared is None else compared[0],
        test=None if compared is None else compared[1],
        notes=tuple(notes),
    )
    report.write(tuning.folder)
    with _parent(task, tuning, is_wanted=True) as parent:
        parent.log_metrics(report.metrics(), step=len(report.records))
        for name in ("report.html", WINNER):
            parent.log_artifact(tuning.folder / name, "tuning")
    return report


def _compare(
    task: _Task, tuning: Tuning, best: TrialRecord, default: TrialRecord, seeds: int
) -> tuple[EvaluationReport, EvaluationReport]:
    """Return the best trial and run.toml as it is on the validation and on the test questions, under each seed."""
    runs: dict[str, dict[int, list[Evaluation]]] = {"validation": {}, "test": {}}
    own = task.config.training.seed
    for seed in range(own, own + seeds):
        split = task.split_of(seed)
        for name, trial in ((TUNED, best), (DEFAULT, default)):
            click.echo(f"comparing: {name}, seed {seed}", err=True)
            config = _with_seed(task.config_of(trial.params, f"trial {trial.number}"), seed)
            file = "checkpoint.safetensors" if seed == own else f"seed-{seed}.safetensors"
            learned = _fit(task, config, split, tuning.checkpoints_of(trial) / file)
            for part, evaluations in _answers(learned, config, split).items():
                runs[part].setdefault(seed, []).append(replace(evaluations, name=name))
    protocol = task.split.name
    return (
        EvaluationReport.of(protocol, "validation", runs["validation"], notes=[CHOSEN]),
        EvaluationReport.of(protocol, "test", runs["test"]),
    )


def _answers(learned: TrainedModel, config: RunConfig, split: Split) -> dict[str, Evaluation]:
    """Return the evaluation of a model on both parts."""
    assert split.test is not None, "every protocol of this command holds out a test part"
    recommender = learned.recommender(config.features.max_history, split.timeline)
    return {
        part: evaluate(
            recommender,
            sample(questions, len(split.candidates), most_cells=MOST_CELLS),
            split.candidates,
            seen_items=split.seen_items,
            cutoffs=cutoffs_of(split.name),
            progress=True,
        )
        for part, questions in (("validation", split.validation), ("test", split.test))
    }


def _with_seed(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
