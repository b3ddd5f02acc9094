"""`towers train`: hold out validation data, train, report the model and the baselines, and write the bundle."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from features.columns import item_texts
from features.errors import DataError
from features.featurizer import profile
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.sequences.split import Split
from features.sequences.timeline import Timeline
from features.sequences.trained_events import TrainedEvents
from features.tables.tables import Tables, unchanged_tables
from towers.bundle.bundle import library_versions, write_bundle
from towers.bundle.continuation import Continuation
from towers.bundle.manifest import verify
from towers.bundle.signature import signing_key
from towers.model.two_tower import TwoTower
from towers.tracking.logged_model import Examples, card_of, registered_name
from training.config import RunConfig, read_run_config
from training.details.collect import DetailsCollector
from training.distributed.launch import is_launched, processes_of, was_restarted
from training.evaluation.advice import Facts, advise, as_flags
from training.evaluation.baselines.baseline import GIB
from training.evaluation.baselines.bm25 import fit_query_baselines
from training.evaluation.baselines.suite import Budget, fit_baselines
from training.evaluation.baselines.tuning import sample, sample_notes
from training.evaluation.evaluate import Evaluation, ScoringModel, cutoffs_of, evaluate
from training.evaluation.report import PRIMARY_METRIC, EvaluationReport
from training.loop.fit import TrainedModel, check_choices, choose_device, fit, fit_featurizer, refit
from training.loop.processes import Processes
from training.prepared.prepare import training_tables
from training.runs.mlflow_tracker import Tracker
from training.runs.model_card import model_card, unlearned_card
from training.runs.progress import describe, log_plots, report_epochs, report_steps, start_tracking
from training.runs.provenance import data_sets
from training.runs.run_folder import Run, deciding_settings
from training.tasks.protocols import early_stopping_split, holds_out_users

SELECTED = (
    "Chosen on these questions: they decided early stopping and the baselines' hyperparameters, so that the figures "
    "are somewhat too high; `towers evaluate` measures on questions that chose nothing."
)
REFITTED = (
    "These are the figures of the training that was stopped early. The weights of the bundle are those of a second one "
    "on all interactions (`refit`), which leaves no questions to measure them on."
)

BASELINE_MINUTES = 2.0
"""Default time for choosing the hyperparameters of the baselines of the report; `towers evaluate` gives them more."""
BASELINE_BYTES = 3 * GIB
"""Most memory for the matrices of one of them."""
MOST_EVENTS = 10**7
"""Most interactions that baselines are fitted on, if all of them are on disk; of more, those of a sample of users."""
MOST_CELLS = 10**9
"""Most scores that the report computes for each recommender; of more validation questions a sample is asked."""


def train_and_bundle(
    settings: Path,
    overrides: Sequence[str],
    *,
    output: Path | None,
    resume: bool,
    device: str,
    baselines: bool = True,
    baseline_minutes: float = BASELINE_MINUTES,
) -> Path:
    """Train on the tables of run.toml and return the folder of the bundle.

    Of several processes (`torchrun`) the first writes the bundle, and the others return before it is there.

    Args:
        settings: Path of run.toml.
        overrides: `table.key=value` each.
        output: Where the bundle goes; None: the next free `runs/run-N`.
        resume: Whether to go on with the newest unfinished run of these settings.
        device: `auto`, `cpu` or `cuda`.
        baselines: Whether the report compares with baselines.
        baseline_minutes: Time for choosing their hyperparameters.

    Raises:
        DataError: Something in the settings or the tables is wrong, there is nothing to resume, or the key that is to
            sign the bundle cannot be used.
        Stopped: A signal ended the training; it can be resumed from the checkpoint that was written.
    """
    signing_key()  # an unusable key is an error now rather than after the training
    config = read_run_config(settings, tuple(overrides))
    check_choices(config)
    budget = Budget.of_minutes(baseline_minutes, BASELINE_BYTES) if baselines else None
    with processes_of(choose_device(device), config.training.table_sharding) as (processes, where):
        return _train(config, settings, overrides, output, resume, where, processes, budget)


def _train(
    config: RunConfig,
    settings: Path,
    overrides: Sequence[str],
    output: Path | None,
    resume: bool,
    where: torch.device,
    processes: Processes,
    budget: Budget | None,
) -> Path:
    with unchanged_tables(config.features, settings.parent) as digests:
        tables = training_tables(config.features, settings)
    sequences = tables.interactions.sequences(tables.catalog)
    if not sequences.num_events:
        _refuse_several("there is nothing to train on")
        return _ship_unlearned(config, settings, tables, digests, output)
    split = early_stopping_split(config, sequences, len(tables.catalog))
    processes.check_same({**library_versions(), **digests, **deciding_settings(config)})
    if config.training.refit:
        _refuse_several("[training] refit trains in one process")
    if not processes.is_first:
        folder, resume = json.loads(processes.from_first(""))
        run = Run(Path(folder))
        fit(config, tables, split, device=where, checkpoint=run.checkpoint, resume=resume, processes=processes)
        return run.folder
    run, resume = _begin(config, settings.stem, output, digests, resume=resume)
    processes.from_first(json.dumps([str(run.folder), resume]))
    describe(tables, sequences)
    command = ("towers", "train", str(settings), *as_flags(overrides))
    title = f"Training of {run.folder.name}"
    collector = DetailsCollector(config, settings.parent, tables, sequences, digests, title)
    with (
        resumable(run),
        start_tracking(config, run.folder.name, digests, run.tracked_as, folder=settings.parent) as tracker,
    ):
        run.tracked_as = tracker.run_id
        tracker.log_data(lambda: data_sets(config.features, settings.parent, tables, digests))
        learned = fit(
            config,
            tables,
            split,
            device=where,
            checkpoint=run.checkpoint,
            resume=resume,
            on_step=report_steps(tracker),
            on_epoch=report_epochs(tracker),
            processes=processes,
            say=lambda note: click.echo(f"note: {note}", err=True),
        )
        collector.add_training(config.training.seed, learned.progress, learned.seconds, where.type)
        report = _report(config, tables, split, learned, command, collector, budget)
        click.echo(f"\n{report.to_text()}\n")
        tracker.log_metrics(report.metrics(), step=learned.progress.step)
        if config.training.refit:
            click.echo(f"training again on all {sequences.num_events:,} interactions", err=True)
            learned = refit(config, tables, sequences, learned)
        held_out = split.validation.history.user_ids if holds_out_users(split) and not config.training.refit else None
        states = learned.table_states
        write_trained(
            run.folder,
            config,
            settings.parent,
            digests,
            tables,
            learned,
            report,
            validation_users=held_out,
            continuation=None if states is None else Continuation(TrainedEvents.of(learned.data.train), states),
        )
        record(tracker, config, tables, run.folder, learned)
        log_plots(tracker, report)
    run.finish()
    click.echo(f"{run.folder}: bundle written after {learned.seconds:,.0f} seconds of training")
    if tracker.how_to_look is not None:
        click.echo(f"recorded in MLflow; to show it: {tracker.how_to_look}")
    return run.folder


def _begin(
    config: RunConfig, stem: str, output: Path | None, digests: dict[str, str], *, resume: bool
) -> tuple[Run, bool]:
    """Return the run, and whether it goes on from a checkpoint.

    Under torchrun it does so if there is one: a worker's or a whole job's command stays the same when it is repeated.
    """
    if not is_launched():
        return (Run.unfinished if resume else Run.begin)(config, stem, output, digests), resume
    run = Run.find_unfinished(config, stem, output, digests) if resume or was_restarted() else None
    return run or Run.begin(config, stem, output, digests), run is not None


def _refuse_several(reason: str) -> None:
    if is_launched():
        raise DataError(f"{reason}; run `towers train` without torchrun")


def _ship_unlearned(
    config: RunConfig, settings: Path, tables: Tables, digests: Mapping[str, str], output: Path | None
) -> Path:
    """Write a bundle of untrained text vectors: there are no pairs of query and document to train on."""
    run = Run.begin(config, settings.stem, output)
    with resumable(run):
        for note in tables.notes:
            click.echo(f"note: {note}", err=True)
        featurizer = fit_featurizer(config, tables, tables.interactions.sequences(tables.catalog))
        torch.manual_seed(config.training.seed)
        model = TwoTower(config.towers, featurizer, config.features.max_history)
        write_bundle(
            run.folder,
            settings=config.model_dump(mode="json"),
            tables_folder=settings.parent,
            data_digests=digests,
            featurizer=featurizer,
            contract=ColumnContract.of(featurizer, tables),
            weights=model.state_dict(),
            report={},
            pages={"README.md": unlearned_card(config, len(tables.catalog)), **_profile(featurizer, tables)},
            primary_metric={},
        )
    run.finish()
    click.echo(f"{run.folder}: bundle written; there are no pairs, so nothing was trained")
    return run.folder


@contextmanager
def resumable(run: Run) -> Iterator[None]:
    """Print how to resume a run that was stopped, or that could not write; one without a checkpoint is removed."""
    try:
        yield
    except BaseException as error:
        if not run.checkpoint.is_file():
            run.abandon()
        elif isinstance(error, KeyboardInterrupt):
            click.echo(
                "\nstopped; the same command with --resume continues from here (in Python: resume=True)", err=True
            )
        elif isinstance(error, OSError):
            click.echo(
                f"note: {run.workspace} keeps the last checkpoint; the same command with --resume continues from it",
                err=True,
            )
        raise
    finally:
        run.release()


def next_steps(bundle: Path) -> str:
    """Return what to do with a bundle: to serve it, or, if a baseline is not beaten, what to try first."""
    name, said = shlex.quote(str(bundle)), json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    report = EvaluationReport.from_dict(said) if said else None
    if report is not None and report.unbeaten:
        tries = [one.command for one in report.advice] or [f"towers evaluate {name}/run.toml --seeds 3"]
        return "\n  ".join(["Next, because it is not ahead of every baseline (the reasons are above):", *tries])
    return (
        f"Next, to try it:\n  towers serve {name}\n"
        f"or, to let runs/production be this one, which a service in production follows:\n  towers deploy {name}"
    )


def _report(
    config: RunConfig,
    tables: Tables,
    split: Split,
    learned: TrainedModel,
    command: Sequence[str],
    collector: DetailsCollector,
    budget: Budget | None,
) -> EvaluationReport:
    """Compare the model and the baselines on validation questions, of very many on a sample.

    Without a budget there are no baselines.
    """
    split, sampled = _in_memory(split)
    baselines: list[ScoringModel] = []
    notes: list[str] = []
    if budget is not None and config.towers.reads_history:
        texts = item_texts(tables.catalog, config.features.item)
        baselines, notes = fit_baselines(split, texts=texts, budget=budget, say=partial(click.echo, err=True))
    elif budget is not None:
        baselines, notes = fit_query_baselines(split, tables, config.features)
    recommenders: list[ScoringModel] = [learned.recommender(config.features.max_history), *baselines]
    questions = sample(split.validation, len(split.candidates), most_cells=MOST_CELLS)
    notes = [*sampled, *sample_notes(questions, split.validation, "validation"), *notes]

    def answers(recommender: ScoringModel) -> Evaluation:
        return evaluate(
            recommender,
            questions,
            split.candidates,
            seen_items=split.seen_items,
            cutoffs=cutoffs_of(split.name),
            progress=True,
        )

    runs = {config.training.seed: [answers(recommender) for recommender in recommenders]}
    collector.add_evaluation(recommenders[0], runs[config.training.seed], questions, split)
    report = EvaluationReport.of(
        split.name,
        "validation",
        runs,
        notes=[*notes, *learned.notes, SELECTED, *([REFITTED] if config.training.refit else [])],
        advise=lambda rivals: advise(rivals, Facts.of(config, split), command),
    )
    return replace(report, details=collector.details(command))


def record(tracker: Tracker, config: RunConfig, tables: Tables, bundle: Path, learned: TrainedModel) -> None:
    """Record the report, the model card, and the bundle as a registered model."""
    tracker.describe(card_of(bundle))
    for name in ("report.html", "report.json"):
        tracker.log_artifact(bundle / name)
    examples = Examples.of(
        tables.catalog.item_ids,
        tables.catalog.titles(config.features.title),
        learned.data.train.user_ids,
        reads_history=config.towers.reads_history,
    )
    tags = {"bundle": bundle.name, "weights": verify(bundle).version}
    name = registered_name(config.training.experiment)
    tracker.log_bundle(bundle, examples, name, learned.progress.best_step, tags)


def _in_memory(split: Split) -> tuple[Split, list[str]]:
    """Return a split whose training data is in memory, of a sample of users if it is on disk, and a note on that."""
    train = split.train
    if train.folder is None:
        return split, []
    users = np.arange(len(train))
    if train.num_events > MOST_EVENTS:
        users = np.flatnonzero(np.random.default_rng(0).random(len(train)) < MOST_EVENTS / train.num_events)
    some = replace(train.take(users), folder=None)
    note = f"Baselines are fitted on the interactions of {len(some):,} of {len(train):,} users, a random sample."
    return replace(split, train=some, timeline=Timeline.of(some)), [note] if len(some) < len(train) else []


def write_trained(
    folder: Path,
    config: RunConfig,
    tables_folder: Path,
    digests: Mapping[str, str],
    tables: Tables,
    learned: TrainedModel,
    report: EvaluationReport,
    *,
    validation_users: np.ndarray | None,
    continuation: Continuation | None,
    origin: str | None = None,
) -> None:
    """Write the bundle of a training.

    Args:
        folder: Where it goes.
        config: The settings.
        tables_folder: What the paths in them are relative to.
        digests: SHA-256 of each table, and of what else the weights came from.
        tables: What was trained on.
        learned: The model.
        report: Its evaluation.
        validation_users: Ids of the users that were held out. None: no whole users were.
        continuation: What a training that continues this one needs. None: none can.
        origin: The model that was continued. None: none was.
    """
    primary = report.rows[0].metrics[PRIMARY_METRIC].mean
    write_bundle(
        folder,
        settings=_with_choices(config, learned).model_dump(mode="json"),
        tables_folder=tables_folder,
        data_digests=digests,
        featurizer=learned.data.featurizer,
        contract=ColumnContract.of(learned.data.featurizer, tables),
        weights=learned.model.state_dict(),
        report=report.to_dict(),
        pages={
            "report.html": report.to_html(),
            "README.md": model_card(config, learned, report, origin),
            **_profile(learned.data.featurizer, tables),
        },
        primary_metric={PRIMARY_METRIC: primary},
        validation_users=validation_users,
        continuation=continuation,
    )


def _with_choices(config: RunConfig, learned: TrainedModel) -> RunConfig:
    """Return the settings with what training chose in the place of `auto`."""
    features = config.features.model_copy(update={"popular_days": learned.popular_days or "all"})
    return config.model_copy(update={"features": features})


def _profile(featurizer: Featurizer, tables: Tables) -> dict[str, str]:
    """Return the file that `towers drift` compares later tables with."""
    return {profile.NAME: profile.Profile.of(featurizer, tables).to_json()}
