"""`towers train --continue`: a trained model goes on with the interactions that came since, as another bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from features.errors import DataError
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.sequences.sequences import Sequences
from features.sequences.split import Split
from features.sequences.trained_events import TrainedEvents
from features.tables.linked_table import linked_table
from features.tables.tables import Tables, unchanged_tables
from features.values.distinct import many
from towers.bundle.bundle import ModelBundle
from towers.bundle.continuation import Continuation
from towers.bundle.signature import signing_key
from towers.bundle.trust import Trust
from training.config import RunConfig, read_run_config
from training.details.collect import DetailsCollector
from training.distributed.launch import is_launched
from training.evaluation.advice import as_flags
from training.evaluation.baselines.tuning import sample
from training.evaluation.comparison import Comparison
from training.evaluation.evaluate import cutoffs_of, evaluate
from training.evaluation.popular_items import popular_items
from training.evaluation.report import PRIMARY_METRIC, EvaluationReport, label_of
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop.continuation import Origin, continue_fit
from training.loop.fit import TrainedModel, check_choices, choose_device
from training.prepared.prepare import are_prepared
from training.runs.progress import describe, log_plots, report_epochs, report_steps, start_tracking
from training.runs.provenance import data_sets
from training.runs.run_folder import INPUTS, Run
from training.tasks.protocols import early_stopping_split, holds_out_users
from training.tasks.train import MOST_CELLS, SELECTED, record, resumable, write_trained

TABLES = ("interactions", "items", "users")
NO_BASELINES = "A continued training fits no baselines; `towers evaluate` does."
_MAY_DIFFER = {"interactions", "items", "users", "prepare", "prepare_memory_gb", "missing_ids", "unknown_items"}
"""Settings under `[features]` that do not decide what the weights mean."""
_DECIDE_WHAT_IS_HELD_OUT = ("validation", "refit")


def continue_and_bundle(
    path: Path,
    overrides: Sequence[str],
    *,
    tables: Mapping[str, TablePath],
    output: Path | None,
    resume: bool,
    device: str,
) -> Path:
    """Continue the training of a bundle, and return the folder of the new bundle; the old one is not changed.

    Args:
        path: The bundle.
        overrides: `table.key=value` each, of `[training]`, `[continuation]` and `[promotion]`.
        tables: By name. `interactions` are added to those of the bundle; `items` and `users` take the place of those
            of the bundle. One that is not given is read again, as it is now.
        output: Where the new bundle goes; None: the next free `runs/run-N`.
        resume: Whether to go on with the newest unfinished run of these settings, tables and bundle.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        BundleError: The bundle cannot be used.
        DataError: It keeps nothing to continue from, a setting would change its model, or something in the tables is
            wrong.
        Stopped: A signal ended the training; it can be resumed from the checkpoint that was written.
    """
    signing_key()  # an unusable key is an error now rather than after the training
    if is_launched():
        raise DataError("--continue trains in one process; run `towers train` without torchrun")
    bundle = ModelBundle.open(path.resolve(), trust=Trust.from_environment())
    config = _settings(bundle, tuple(overrides))
    check_choices(config)
    origin = _origin(bundle, config)
    if output is not None and output.resolve() == bundle.path:
        raise DataError(f"{output}: the run that is continued, which stays as it is; name another folder")
    with _with_tables(config, bundle.tables_folder, tables) as config:
        if are_prepared(config.features, bundle.tables_folder):
            raise DataError(
                "--continue reads all interactions into memory, and so many are prepared on disk; add --set "
                "features.prepare=never if the memory suffices, or train from nothing"
            )
        with unchanged_tables(config.features, bundle.tables_folder) as digests:
            found = bundle.read_tables(config.features)
        sequences = found.interactions.sequences(found.catalog)
        held_out = bundle.validation_users(sequences.user_ids)
        split = early_stopping_split(config, sequences, len(found.catalog), validation_users=held_out)
    stem = re.sub(r"-\d+$", "", bundle.path.name)
    run = (Run.unfinished if resume else Run.begin)(config, stem, output, digests, bundle.weights_digest)
    describe(found, sequences)
    for line in _news(config, origin.continuation.trained, split.train):
        click.echo(line, err=True)
    flags = [word for name in TABLES if name in tables for word in (f"--{name}", str(tables[name]))]
    command = ("towers", "train", "--continue", str(path), *flags, *as_flags(overrides))
    collector = DetailsCollector(
        config, bundle.tables_folder, found, sequences, digests, f"Continued training of {run.folder.name}"
    )
    tags = {**digests, "continued_weights": bundle.weights_digest}
    with (
        resumable(run),
        start_tracking(config, run.folder.name, tags, run.tracked_as, folder=bundle.tables_folder) as tracker,
    ):
        run.tracked_as = tracker.run_id
        tracker.log_data(lambda: data_sets(config.features, bundle.tables_folder, found, digests))
        learned = continue_fit(
            config,
            found,
            split.train,
            origin,
            device=choose_device(device),
            checkpoint=run.checkpoint,
            resume=resume,
            on_step=report_steps(tracker),
            on_epoch=report_epochs(tracker),
        )
        collector.add_training(config.training.seed, learned.progress, learned.seconds, learned.device.type)
        report = _report(config, found, split, learned, origin, bundle, collector)
        report = replace(report, details=collector.details(command))
        click.echo(f"\n{report.to_text()}\n")
        tracker.log_metrics(report.metrics(), step=learned.progress.step)
        users = split.validation.history.user_ids if holds_out_users(split) else None
        write_trained(
            run.folder,
            config,
            bundle.tables_folder,
            tags,
            found,
            learned,
            report,
            validation_users=users,
            continuation=_continuation(config, origin, learned),
            origin=f"{bundle.path.name}, version {bundle.version}",
        )
        record(tracker, config, found, run.folder, learned)
        log_plots(tracker, report)
    run.finish()
    click.echo(f"{run.folder}: bundle written after {learned.seconds:,.0f} seconds of continued training")
    if tracker.how_to_look is not None:
        click.echo(f"recorded in MLflow; to show it: {tracker.how_to_look}")
    return run.folder


def _settings(bundle: ModelBundle, overrides: tuple[str, ...]) -> RunConfig:
    """Return the settings of a bundle with overrides that do not change its model."""
    settings = bundle.folder.file("run.toml")
    before, config = read_run_config(settings), read_run_config(settings, overrides)
    then, now = before.model_dump(), config.model_dump()
    fixed = [("features", key) for key in then["features"] if key not in _MAY_DIFFER]
    fixed += [("towers", key) for key in then["towers"]] + [("training", key) for key in _DECIDE_WHAT_IS_HELD_OUT]
    changed = next((f"{table}.{key}" for table, key in fixed if then[table][key] != now[table][key]), None)
    if changed is not None:
        raise DataError(
            f"{changed}: cannot change in a training that goes on, because the weights of {bundle.path} belong to it; "
            "leave it out, or train from nothing"
        )
    return config


@contextmanager
def _with_tables(config: RunConfig, folder: Path, tables: Mapping[str, TablePath]) -> Iterator[RunConfig]:
    """Yield the settings with other tables, and with interactions that are added to those of the settings."""
    paths = {name: str(path.absolute() if isinstance(path, Path) else path) for name, path in tables.items()}
    with ExitStack() as opened:
        if "interactions" in paths:
            assert config.features.interactions is not None, "without any there is nothing to continue"
            old, new = (
                _local(table_path(folder, one)) for one in (config.features.interactions, paths["interactions"])
            )
            paths["interactions"] = str(opened.enter_context(linked_table(old, new, INPUTS.absolute())))
        yield config.model_copy(update={"features": config.features.model_copy(update=paths)})


def _local(path: TablePath) -> Path:
    """Return the path of a table on this machine.

    Raises:
        DataError: It lies in an object store.
    """
    if isinstance(path, Path):
        return path
    raise DataError(
        f"{path}: in an object store, where new files are not linked to old ones; put them next to the old ones there, "
        "and leave --interactions out"
    )


def _origin(bundle: ModelBundle, config: RunConfig) -> Origin:
    if config.features.interactions is None:
        raise DataError(
            f"{bundle.path}: trained without interactions, so there is nothing to continue; train with some"
        )
    if config.training.refit:
        raise DataError(
            f"{bundle.path}: trained with `refit`, so on every interaction, and nothing would be left to measure the "
            "continued model on; train from nothing, or continue a run without refit"
        )
    continuation = bundle.continuation()
    if continuation is None:
        raise DataError(
            f"{bundle.path}: keeps nothing to continue from (it was trained in several processes, or by an earlier "
            "version); train from nothing in one process"
        )
    return Origin(bundle.model, bundle.featurizer, continuation)


def _news(config: RunConfig, trained: TrainedEvents, train: Sequences) -> Iterator[str]:
    """Yield how much of the training data is new, and how much came too late to be trained on."""
    is_new, own = trained.are_new(train), config.continuation
    num_old = np.bincount(train.event_users[~is_new], minlength=len(train))
    num_late = int(num_old.sum() - trained.total[0])
    if num_late > 0:
        yield (
            f"note: {many(num_late, 'added interaction')} older than what was trained on of the same users: part of "
            "their histories now, and trained on by the next training from nothing"
        )
    num_users = int(((train.lengths > 0) & (num_old == 0)).sum())
    said = f"{many(int(is_new.sum()), 'new interaction')} to train on, {many(num_users, 'new user')}"
    if is_new.any():
        replayed = f", with about {own.replay:g} old interactions for each new one" if own.replay else ""
        yield f"{said}; {many(own.epochs, 'epoch')}{replayed}"
    else:
        yield f"note: {said}; the weights stay as they are"


def _continuation(config: RunConfig, origin: Origin, learned: TrainedModel) -> Continuation:
    """Return what the next one continues from: without epochs, what is new today is still new tomorrow."""
    assert learned.table_states is not None, "one process trained it"
    trained = TrainedEvents.of(learned.data.train) if config.continuation.epochs else origin.continuation.trained
    return Continuation(trained, learned.table_states)


def _report(
    config: RunConfig,
    tables: Tables,
    split: Split,
    learned: TrainedModel,
    origin: Origin,
    bundle: ModelBundle,
    collector: DetailsCollector,
) -> EvaluationReport:
    """Evaluate the model on validation questions, and note by how much it is better than before."""
    history = config.features.max_history
    before = TwoTowerRecommender(
        origin.model,
        origin.featurizer,
        origin.featurizer.item_features(tables.catalog),
        tables.users,
        history,
        split.timeline,
        popular=popular_items(split.train, len(tables.catalog), learned.popular_days, split.timeline),
    )
    recommenders = [learned.recommender(history, split.timeline), before]
    questions = sample(split.validation, len(split.candidates), most_cells=MOST_CELLS)
    evaluations = [
        evaluate(
            one,
            questions,
            split.candidates,
            seen_items=split.seen_items,
            cutoffs=cutoffs_of(split.name),
            progress=True,
        )
        for one in recommenders
    ]
    collector.add_evaluation(recommenders[0], evaluations[:1], questions, split)
    lead = Comparison.of([evaluations]).lead(0, 1, PRIMARY_METRIC)
    note = (
        f"Continued from {bundle.path.name}, whose model has {label_of(PRIMARY_METRIC)} "
        f"{evaluations[1].means[PRIMARY_METRIC]:.4f} on the same questions: {lead.mean:+.4f} by continuing, 95 % "
        f"interval {lead.low:+.4f} to {lead.high:+.4f}."
    )
    if lead.high < 0:
        note += " It got worse: lower [continuation] learning_rate_factor, or train from nothing."
    return EvaluationReport.of(
        split.name,
        "validation",
        {config.training.seed: evaluations[:1]},
        notes=[note, NO_BASELINES, *learned.data.featurizer.notes, SELECTED],
    )
