"""`towers evaluate`: for each seed, split, train, and evaluate the model and the baselines on held-out queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from features.columns import item_texts
from features.errors import DataError
from features.locations.object_path import TablePath
from features.locations.table_path import table_path
from features.sequences.sequences import UNKNOWN_TIME, Queries
from features.sequences.split import Split
from features.tables.table_files import read_frame
from features.tables.tables import Tables, read_tables, unchanged_tables
from training.audit.ranks import About, RanksWriter
from training.config import RunConfig, read_run_config
from training.details.collect import DetailsCollector
from training.evaluation.advice import Facts, advise, as_flags
from training.evaluation.baselines.bm25 import fit_query_baselines
from training.evaluation.baselines.suite import Budget, fit_baselines
from training.evaluation.baselines.tuning import sample, sample_notes
from training.evaluation.evaluate import Evaluation, ScoringModel, TableRecommender, cutoffs_of, evaluate, slices
from training.evaluation.report import EvaluationReport
from training.loop.fit import check_choices, choose_device, fit
from training.runs.mlflow_tracker import Tracker
from training.runs.progress import describe, log_plots, report_epochs, report_steps, start_tracking
from training.runs.provenance import data_sets
from training.tasks.protocols import QuestionSet, is_drawn, split_by, usual_protocol

NamedFile = tuple[str, TablePath]
"""What recommendations of another system are called in the report, and their table."""
BASELINE_MINUTES = 15.0
"""Default time for choosing the hyperparameters of the baselines, for each split."""
MOST_CELLS = 2 * 10**9
"""Most scores that are computed for each recommender; of more questions a random sample is evaluated."""
SELECTED = (
    "Chosen on these questions: they decided early stopping and the baselines' hyperparameters, so that the figures "
    "are good for comparing settings and somewhat too high; `towers evaluate` with --split test gives a final one."
)

NOT_REFITTED = (
    "[training] refit has no effect here: the towers learn from the training part alone, as the baselines do, and not "
    "from the validation part, which `towers train` adds before it writes a bundle."
)


def evaluate_run(
    settings: Path,
    overrides: Sequence[str],
    protocol: str | None,
    *,
    seeds: int,
    device: str,
    part: QuestionSet = "test",
    compare: Sequence[str] = (),
    upper_bound: Sequence[str] = (),
    output: Path | None = None,
    baselines: bool = True,
    baseline_minutes: float = BASELINE_MINUTES,
) -> EvaluationReport:
    """Return the evaluation of the settings of a run.toml; see `evaluate_settings`.

    Args:
        settings: Path of run.toml.
        overrides: `table.key=value` each.
        protocol: As the command line calls it.
        seeds: Number of trainings.
        device: `auto`, `cpu` or `cuda`.
        part: Held-out data to evaluate on.
        compare: `NAME=FILE` each: other recommendations to evaluate.
        upper_bound: The same, for recommendations shown as an upper bound.
        output: Folder for the report and the ranks.
        baselines: Whether to compare with baselines.
        baseline_minutes: Time for choosing their hyperparameters.

    Raises:
        DataError: Something in the settings, the tables or the files is wrong.
    """
    return evaluate_settings(
        read_run_config(settings, tuple(overrides)),
        settings.parent,
        protocol,
        seeds=seeds,
        device=device,
        part=part,
        compare=[_named_file(text) for text in compare],
        upper_bound=[_named_file(text) for text in upper_bound],
        output=output,
        command=("towers", "evaluate", str(settings), *as_flags(overrides)),
        baselines=baselines,
        baseline_minutes=baseline_minutes,
    )


def evaluate_settings(
    config: RunConfig,
    folder: Path,
    protocol: str | None,
    *,
    seeds: int,
    device: str,
    part: QuestionSet = "test",
    compare: Sequence[NamedFile] = (),
    upper_bound: Sequence[NamedFile] = (),
    output: Path | None = None,
    command: Sequence[str] = ("towers", "evaluate", "run.toml"),
    baselines: bool = True,
    baseline_minutes: float = BASELINE_MINUTES,
) -> EvaluationReport:
    """Return the evaluation of settings under a protocol.

    Args:
        config: The settings.
        folder: What the paths in them are relative to.
        protocol: As the command line calls it; None: see `usual_protocol`.
        seeds: Number of trainings; the first has the seed of the settings.
        device: `auto`, `cpu` or `cuda`.
        part: Held-out data to evaluate on.
        compare: Names and files of other recommendations to evaluate.
        upper_bound: The same, for recommendations shown as an upper bound.
        output: Folder for the report and the ranks that `towers audit` reads. None: neither is written.
        command: The command that evaluates these settings, for advice on others.
        baselines: Whether to compare with baselines.
        baseline_minutes: Time for choosing their hyperparameters, for each split.

    Raises:
        DataError: Something in the settings, the tables or the files is wrong.
    """
    check_choices(config)
    budget = Budget.of_minutes(baseline_minutes) if baselines else None
    where = choose_device(device)
    with unchanged_tables(config.features, folder) as digests:
        tables = read_tables(config.features, folder)
    sequences = tables.interactions.sequences(tables.catalog)
    protocol = protocol or usual_protocol(config, sequences)
    given = [
        TableRecommender(name, read_frame(file), tables.catalog.item_ids) for name, file in (*compare, *upper_bound)
    ]
    bounds = [name for name, _ in upper_bound]
    describe(tables, sequences)
    ranks = None if output is None else RanksWriter()
    runs: dict[int, list[Evaluation]] = {}
    parts: dict[int, dict[str, dict[str, Evaluation]]] = {}
    notes: dict[int, list[str]] = {}
    others: _Others | None = None
    tags = {**digests, "protocol": protocol, "part": part}
    title = f"Evaluation of {command[2]}" if len(command) > 2 else "Evaluation"
    collector = DetailsCollector(config, folder, tables, sequences, digests, title)
    with start_tracking(config, f"evaluate {protocol}", tags, folder=folder) as tracker:
        tracker.log_data(lambda: data_sets(config.features, folder, tables, digests))
        for seed in range(config.training.seed, config.training.seed + seeds):
            seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
            split = split_by(protocol, sequences, len(tables.catalog), seeded)
            trained_on = f"{split.train.num_events:,} training interactions{_cut(split, part)}"
            click.echo(f"\n{protocol}, seed {seed}: {trained_on}", err=True)
            with _of_seed(tracker, seeded) if seeds > 1 else nullcontext(tracker) as own:
                towers = _trained(seeded, tables, split, where, own, collector)
                ours = [_answers(one, split, part) for one in towers]
                own.log_metrics(ours[0].means, step=0)
            if others is None or is_drawn(protocol, sequences):
                others = _Others.fit(split, part, config, tables, given, budget)
            runs[seed], notes[seed] = [*ours, *others.evaluations], others.notes
            parts[seed] = {run.name: slices(run, _questions(split, part), split.warm_items) for run in runs[seed]}
            collector.add_evaluation(
                towers[0], runs[seed], _questions(split, part), split, num_ours=len(ours), bounds=bounds
            )
            if ranks is not None:
                ranks.add(seed, split, _questions(split, part), runs[seed], tables.catalog)
        report = EvaluationReport.of(
            protocol,
            part,
            runs,
            slices=parts if protocol in ("time", "cold-items") else None,
            bounds=bounds,
            notes=[
                *_merged(notes),
                *([SELECTED] if part == "validation" else []),
                *([NOT_REFITTED] if config.training.refit else []),
            ],
            advise=lambda rivals: advise(
                rivals, Facts.of(config, split), [*command, "--protocol", protocol, "--split", "validation"]
            ),
        )
        asked = [*command, "--protocol", protocol, "--split", part, "--seeds", str(seeds)]
        report = replace(report, details=collector.details(asked))
        if output is not None and ranks is not None:
            output.mkdir(parents=True, exist_ok=True)
            report.write(output)
            ranks.write(output, About.of(config, folder, report.protocol, report.part))
        _record(tracker, report)
    return report


def _of_seed(tracker: Tracker, config: RunConfig) -> Tracker:
    """Start a run for a training among several, within that of the evaluation."""
    return tracker.nested(f"seed {config.training.seed}", config.model_dump(mode="json"))


def _record(tracker: Tracker, report: EvaluationReport) -> None:
    """Record the report, with its metrics and its first line."""
    tracker.log_metrics(report.metrics(), step=0)
    tracker.describe(report.to_markdown())
    for name, text in report.texts().items():
        tracker.log_text(text, name)
    log_plots(tracker, report)


def _trained(
    config: RunConfig,
    tables: Tables,
    split: Split,
    device: torch.device,
    tracker: Tracker,
    collector: DetailsCollector,
) -> list[ScoringModel]:
    """Return the trained model; if it reads recent popularity, first as it is known at each question.

    Under the time protocol a second one has it as it was at the end of the training data, as in an index made then.
    """
    learned = fit(
        config,
        tables,
        split,
        device=device,
        on_step=report_steps(tracker),
        on_epoch=report_epochs(tracker),
        say=lambda note: click.echo(f"note: {note}", err=True),
    )
    collector.add_training(config.training.seed, learned.progress, learned.seconds, device.type)
    history = config.features.max_history
    towers: list[ScoringModel] = [learned.recommender(history, split.timeline)]
    if config.towers.trend and split.name == "time":
        towers.append(learned.recommender(history, end_of_training=True))
    return towers


@dataclass(frozen=True)
class _Others:
    """The evaluations of all other recommenders on a split, and notes on them."""

    evaluations: list[Evaluation]
    notes: list[str]

    @classmethod
    def fit(
        cls,
        split: Split,
        part: QuestionSet,
        config: RunConfig,
        tables: Tables,
        given: Sequence[TableRecommender],
        budget: Budget | None,
    ) -> _Others:
        """Fit the baselines, unless there is no budget for them, and evaluate them and the given tables."""
        baselines: list[ScoringModel] = []
        notes: list[str] = []
        if budget is not None and config.towers.reads_history:
            texts = item_texts(tables.catalog, config.features.item)
            click.echo("choosing the hyperparameters of the baselines", err=True)
            baselines, notes = fit_baselines(split, texts=texts, budget=budget, say=partial(click.echo, err=True))
        elif budget is not None:
            baselines, notes = fit_query_baselines(split, tables, config.features)
        evaluations = [_answers(recommender, split, part) for recommender in (*baselines, *given)]
        sampled = sample_notes(_questions(split, part), _all_questions(split, part), part)
        return cls(evaluations, [*sampled, *_baskets_note(split, part), *notes])


def _questions(split: Split, part: QuestionSet) -> Queries:
    return sample(_all_questions(split, part), len(split.candidates), most_cells=MOST_CELLS)


def _all_questions(split: Split, part: QuestionSet) -> Queries:
    questions = split.test if part == "test" else split.validation
    assert questions is not None, "every protocol of this command holds out a test part"
    return questions


def _baskets_note(split: Split, part: QuestionSet) -> list[str]:
    """Return what leave-one-out asks where interactions of a user share a time, such as the lines of an order."""
    questions = _questions(split, part)
    if split.name != "leave-one-out" or questions.times is None or questions.history.times is None:
        return []
    before = questions.history.times[questions.history.offsets[1:] - 1]
    num_tied = int(np.count_nonzero((before == questions.times) & (before != UNKNOWN_TIME)))
    note = (
        f"{num_tied:,} of the {len(questions):,} answers ({num_tied / len(questions):.0%}) have the same time as the "
        "interaction before them, so that a part of an order is shown and the rest asked for; --protocol "
        "leave-one-basket-out hides all of the last order."
    )
    return [note] if num_tied else []


def _cut(split: Split, part: QuestionSet) -> str:
    """Return when the held-out data of the time protocol begins: other systems must not have seen what is newer."""
    times = _questions(split, part).times
    if split.name != "time" or times is None:
        return ""
    return f"; the {part} data begins at {datetime.fromtimestamp(int(times[0]), UTC):%Y-%m-%d %H:%M:%S} UTC"


def _answers(recommender: ScoringModel, split: Split, part: QuestionSet) -> Evaluation:
    click.echo(f"evaluating {recommender.name}", err=True)
    return evaluate(
        recommender,
        _questions(split, part),
        split.candidates,
        seen_items=split.seen_items,
        cutoffs=cutoffs_of(split.name),
        progress=True,
    )


def _merged(notes: Mapping[int, Sequence[str]]) -> list[str]:
    """Return the notes of all seeds, each once; what only some seeds say with the seeds that do."""
    seeds_of: dict[str, list[int]] = {}
    for seed, lines in notes.items():
        for line in lines:
            seeds_of.setdefault(line, []).append(seed)
    return [
        line if len(seeds) == len(notes) else f"seed {', '.join(map(str, seeds))}: {line}"
        for line, seeds in seeds_of.items()
    ]


def _named_file(text: str) -> NamedFile:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise DataError(f"expected NAME=FILE, found {text!r}; for example 'last week=candidates.parquet'")
    return name, table_path(Path(), file)
