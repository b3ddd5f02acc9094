"""What `towers evaluate` does: for every seed split, learn, and answer the questions held out, the baselines beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import torch

from features.cells import item_texts
from features.errors import DataError
from features.sequences import Queries, Sequences
from features.split import Split, cold_items, held_out_queries, held_out_users, leave_one_out, time_split
from features.table_files import read_frame
from features.tables import Tables, read_tables
from training.baselines import fit_baselines
from training.config import RunConfig, read_run_config
from training.evaluation import Evaluation, Recommender, TableRecommender, cutoffs_of, evaluate, slices
from training.learning import choose_device, learn
from training.lexical import fit_query_baselines
from training.progress import describe, start_tracking, told_of_epochs
from training.ranks import RanksWriter
from training.report import EvaluationReport

Part = Literal["test", "validation"]
SELECTED = (
    "Asked on validation, by which training was stopped and the settings of the baselines were chosen: good for "
    "comparing settings, a little flattering as a measure; --on test is the measure."
)


def assess(
    settings: Path,
    overrides: Sequence[str],
    protocol: str | None,
    *,
    seeds: int,
    device: str,
    part: Part = "test",
    beside: Sequence[str] = (),
    bound: Sequence[str] = (),
    ranks: RanksWriter | None = None,
) -> EvaluationReport:
    """Return the judgement of the settings under a protocol.

    Args:
        settings: Path of run.toml.
        overrides: `table.key=value` each.
        protocol: As the command line calls it; None: see `usual_protocol`.
        seeds: How many trainings; the first has the seed of the settings.
        device: `auto`, `cpu` or `cuda`.
        part: Which of the questions held out are asked.
        beside: `NAME=FILE` each: recommendations to judge with the rest.
        bound: The same, for limits.
        ranks: Where the rank of each answer is kept for an audit. None: nowhere.

    Raises:
        DataError: Something in the settings, the tables or the files is wrong.
    """
    config = read_run_config(settings, tuple(overrides))
    where = choose_device(device)
    tables = read_tables(config.features, settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    protocol = protocol or usual_protocol(config, sequences)
    given = [_table(text, tables) for text in (*beside, *bound)]
    describe(tables, sequences)
    runs: dict[int, list[Evaluation]] = {}
    parts: dict[int, dict[str, dict[str, Evaluation]]] = {}
    notes: dict[int, list[str]] = {}
    others: _Others | None = None
    for seed in range(config.training.seed, config.training.seed + seeds):
        seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        split = split_by(protocol, sequences, len(tables.catalog), seeded)
        click.echo(f"\n{protocol}, seed {seed}: {split.train.num_events:,} interactions to learn from", err=True)
        towers = _trained(seeded, tables, split, where, f"{protocol} seed {seed}")
        ours = _answers(towers, split, part, config)
        if others is None or is_drawn(protocol, sequences):
            others = _Others.fit(split, part, config, tables, given)
        runs[seed], notes[seed] = [ours, *others.evaluations], others.notes
        parts[seed] = {run.name: slices(run, _questions(split, part), split.warm_items) for run in runs[seed]}
        if ranks is not None:
            ranks.add(seed, split, _questions(split, part), runs[seed], tables.catalog)
    return EvaluationReport.of(
        protocol,
        part,
        runs,
        slices=parts if protocol in ("time", "cold-items") else None,
        bounds=[text.partition("=")[0] for text in bound],
        notes=[*_merged(notes), *([SELECTED] if part == "validation" else [])],
    )


def usual_protocol(config: RunConfig, sequences: Sequences) -> str:
    """Return the protocol of whoever asks for none: queries where no history is read, else as there is an order."""
    if not config.towers.reads_history:
        return "queries"
    return "leave-one-out" if sequences.is_ordered else "users"


def is_drawn(protocol: str, sequences: Sequences) -> bool:
    """Whether the split of a protocol is drawn by lot, so that each seed has its own."""
    return protocol in ("users", "queries", "cold-items") or (protocol == "leave-one-out" and not sequences.is_ordered)


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
        case "queries":
            return held_out_queries(sequences, num_items, seed=seed)
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


@dataclass(frozen=True)
class _Others:
    """What stands beside the towers: the judgements of all other recommenders on a split, and the notes on them."""

    evaluations: list[Evaluation]
    notes: list[str]

    @classmethod
    def fit(
        cls, split: Split, part: Part, config: RunConfig, tables: Tables, given: Sequence[TableRecommender]
    ) -> _Others:
        """Fit the baselines, and judge them and the tables that were given."""
        if config.towers.reads_history:
            texts = item_texts(tables.catalog, config.features.item)
            baselines, notes = fit_baselines(split, recommend_seen=config.features.recommend_seen, texts=texts)
        else:
            baselines, notes = fit_query_baselines(split, tables, config.features)
        return cls([_answers(recommender, split, part, config) for recommender in (*baselines, *given)], notes)


def _questions(split: Split, part: Part) -> Queries:
    questions = split.test if part == "test" else split.validation
    assert questions is not None, "every protocol of this command holds out a test part"
    return questions


def _answers(recommender: Recommender, split: Split, part: Part, config: RunConfig) -> Evaluation:
    return evaluate(
        recommender,
        _questions(split, part),
        split.candidates,
        recommend_seen=config.features.recommend_seen,
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


def _table(text: str, tables: Tables) -> TableRecommender:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise DataError(f"expected NAME=FILE, found {text!r}; for example 'last week=candidates.parquet'")
    return TableRecommender(name, read_frame(Path(file)), tables.catalog.item_ids)
