"""Bundles on the questions that the training of one of them held out, for `towers promote` and `towers compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click
import numpy as np

from features.errors import DataError
from features.locations.table_path import table_path
from features.sequences.sequences import Queries
from features.sequences.split import Split
from features.tables.tables import Tables
from towers.bundle.bundle import ModelBundle
from training.audit.ranks import About, Ranks, RanksWriter
from training.evaluation.baselines.tuning import sample, sample_notes
from training.evaluation.evaluate import cutoffs_of, evaluate
from training.evaluation.popular_items import popular_items
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.tasks.held_out import HeldOut

MOST_CELLS = 10**9
"""Most scores that are computed for each bundle; of more questions a random sample is asked."""


def rank_bundles(held_out: HeldOut, bundles: Sequence[ModelBundle]) -> list[Ranks]:
    """Return how each bundle ranks the items for held-out questions, on today's tables.

    Every item is ranked for every question, without an index and without a re-ranker.

    Args:
        held_out: Of the first bundle.
        bundles: The bundles.

    Raises:
        DataError: Nothing was held out, or a bundle cannot read today's tables.
    """
    first = bundles[0]
    split = held_out.questions("compare it on")
    questions = sample(split.validation, len(split.candidates), most_cells=MOST_CELLS)
    for note in sample_notes(questions, split.validation, "validation"):
        click.echo(f"note: {note}", err=True)
    about = About.of(held_out.config, first.tables_folder, split.name, "validation")
    return [
        _ranks(bundle, tables_read_by(bundle, first, held_out.tables), held_out, split, questions, about)
        for bundle in bundles
    ]


def tables_read_by(bundle: ModelBundle, first: ModelBundle, tables: Tables) -> Tables:
    """Return the tables of the first bundle as another one reads them: its features, of the same rows.

    Raises:
        DataError: They lack a column that it reads, or it would read other items.
    """
    if bundle is first:
        return tables
    theirs = first.config.features
    places = {
        name: None if path is None else str(table_path(first.tables_folder, path).resolve())
        for name, path in (("interactions", theirs.interactions), ("items", theirs.items), ("users", theirs.users))
    }
    rows = {name: getattr(theirs, name) for name in ("columns", "min_rating", "unknown_items", "missing_ids")}
    read = bundle.read_tables(bundle.config.features.model_copy(update={**places, **rows}))
    if not np.array_equal(read.catalog.item_ids, tables.catalog.item_ids):
        raise DataError(
            f"{bundle.path}: reads other item ids than {first.path} in {theirs.items or theirs.interactions}, so the "
            "two cannot be compared; train one of them again"
        )
    return read


def _ranks(
    bundle: ModelBundle, own: Tables, held_out: HeldOut, split: Split, questions: Queries, about: About
) -> Ranks:
    """Return how a bundle ranks the items for the questions.

    Args:
        bundle: The bundle.
        own: The tables as it reads them.
        held_out: The same rows as the first bundle reads them.
        split: Their split.
        questions: Of the split.
        about: What is evaluated.
    """
    features = bundle.config.features
    popular_days = features.popular_days if bundle.config.towers.reads_history else None
    towers = TwoTowerRecommender(
        bundle.model,
        bundle.featurizer,
        bundle.featurizer.item_features(own.catalog),
        own.users,
        features.max_history,
        split.timeline,
        popular=popular_items(split.train, len(own.catalog), popular_days, split.timeline),
    )
    click.echo(f"evaluating {bundle.path} on {len(questions):,} held-out questions", err=True)
    evaluation = evaluate(
        towers,
        questions,
        split.candidates,
        seen_items=split.seen_items,
        cutoffs=cutoffs_of(split.name),
        progress=True,
    )
    writer = RanksWriter()
    named = replace(evaluation, name=bundle.path.name)
    writer.add(about.settings.training.seed, split, questions, [named], held_out.tables.catalog)
    return writer.ranks(about)
