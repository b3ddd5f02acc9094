"""What `towers evaluate` does: for every seed split, learn, and answer the test questions, the baselines beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from features.errors import DataError
from features.sequences import Sequences
from features.split import Split, cold_items, held_out_users, leave_one_out, time_split
from features.table_files import read_frame
from features.tables import Tables, read_tables
from training.baselines import fit_baselines
from training.config import RunConfig, read_run_config
from training.evaluation import CUTOFFS, Evaluation, Recommender, TableRecommender, evaluate, slices
from training.learning import choose_device, learn
from training.progress import describe, start_tracking, told_of_epochs
from training.report import EvaluationReport


def assess(
    settings: Path,
    overrides: Sequence[str],
    protocol: str | None,
    *,
    seeds: int,
    device: str,
    beside: Sequence[str] = (),
    bound: Sequence[str] = (),
) -> EvaluationReport:
    """Return the judgement of the settings under a protocol.

    Args:
        settings: Path of run.toml.
        overrides: `table.key=value` each.
        protocol: As the command line calls it; None: leave-one-out where there is an order, else users.
        seeds: How many trainings; the first has the seed of the settings.
        device: `auto`, `cpu` or `cuda`.
        beside: `NAME=FILE` each: recommendations to judge with the rest.
        bound: The same, for limits.

    Raises:
        DataError: Something in the settings, the tables or the files is wrong.
    """
    config = read_run_config(settings, tuple(overrides))
    tables = read_tables(config.features, settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    protocol = protocol or ("leave-one-out" if sequences.is_ordered else "users")
    given = [_table(text, tables) for text in (*beside, *bound)]
    describe(tables, sequences)
    runs: dict[int, list[Evaluation]] = {}
    parts: dict[int, dict[str, dict[str, Evaluation]]] = {}
    notes: list[str] = []
    where = choose_device(device)
    for seed in range(config.training.seed, config.training.seed + seeds):
        seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        split = split_by(protocol, sequences, len(tables.catalog), seeded)
        click.echo(f"\n{protocol}, seed {seed}: {split.train.num_events:,} interactions to learn from", err=True)
        towers = _trained(seeded, tables, split, where, f"{protocol} seed {seed}")
        baselines, notes = fit_baselines(split, recommend_seen=config.features.recommend_seen)
        recommenders: list[Recommender] = [towers, *baselines, *given]
        runs[seed] = [_answers(recommender, split, seeded) for recommender in recommenders]
        assert split.test is not None
        parts[seed] = {run.name: slices(run, split.test, split.warm_items) for run in runs[seed]}
    sliced = parts if protocol in ("time", "cold-items") else None
    bounds = [text.partition("=")[0] for text in bound]
    return EvaluationReport.of(protocol, "test", runs, slices=sliced, bounds=bounds, notes=notes)


def split_by(protocol: str, sequences: Sequences, num_items: int, config: RunConfig) -> Split:
    """Return the split of a protocol, as the command line calls it."""
    seen, seed = config.features.recommend_seen, config.training.seed
    match protocol:
        case "leave-one-out":
            return leave_one_out(sequences, num_items, recommend_seen=seen, seed=seed)
        case "time":
            return time_split(sequences, num_items, recommend_seen=seen)
        case "users":
            return held_out_users(sequences, num_items, recommend_seen=seen, seed=seed)
        case "cold-items":
            return cold_items(sequences, num_items, recommend_seen=seen, seed=seed)
    raise DataError(f"expected a protocol, found {protocol!r}; see towers evaluate --help")


def _trained(config: RunConfig, tables: Tables, split: Split, device: torch.device, name: str) -> Recommender:
    with start_tracking(config, f"evaluate {name}") as tracker:
        learned = learn(
            config,
            tables,
            split,
            device=device,
            on_step=lambda step, loss: tracker.log_metrics({"train/loss": loss}, step),
            on_epoch=told_of_epochs(tracker),
        )
    return learned.recommender(config.features.history)


def _answers(recommender: Recommender, split: Split, config: RunConfig) -> Evaluation:
    assert split.test is not None, "every protocol of this command holds out a test part"
    return evaluate(
        recommender,
        split.test,
        split.candidates,
        recommend_seen=config.features.recommend_seen,
        cutoffs=CUTOFFS,
        progress=True,
    )


def _table(text: str, tables: Tables) -> TableRecommender:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise DataError(f"expected NAME=FILE, found {text!r}; for example 'last week=candidates.parquet'")
    return TableRecommender(name, read_frame(Path(file)), tables.catalog.item_ids)
