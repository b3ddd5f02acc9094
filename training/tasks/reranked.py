"""Bundles with their re-rankers on the questions that the training of one of them held out, for `towers promote`.

A learned re-ranker has been trained on such questions, so that its own order of them looks too good. It is trained
again here as `towers train-ranker` does it: every question is answered by members that did not learn from it. One that
reads texts is evaluated as it is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import click
import numpy as np
from jaxtyping import Float, Int

from towers.bundle.bundle import ModelBundle
from towers.rerankers.kinds import RERANKER_KINDS
from towers.rerankers.manifest import MODEL, has_ranker, open_ranker
from training.evaluation.intervals import Interval
from training.rerankers.examples import RankingDataset
from training.tasks.held_out import HeldOut
from training.tasks.rank_bundles import tables_read_by
from training.tasks.train_ranker import RANKER_TRAINERS, RankerChoice, asked, paired_gain

_CUTOFF = 10


@dataclass(frozen=True)
class ServedOrders:
    """N@10 of two bundles on the same questions, each in the order that it serves.

    Attributes:
        first: Of the first bundle, by question.
        second: Of the second one.
        fold: The fold of each question, if each fold was judged by another training. None: there was one.
    """

    first: Float[np.ndarray, " questions"]
    second: Float[np.ndarray, " questions"]
    fold: Int[np.ndarray, " questions"] | None

    def gain(self) -> Interval:
        """Return what the first adds to the second, with the paired 95 % interval."""
        return paired_gain(self.first - self.second, self.fold)


def served_orders(held_out: HeldOut, bundles: Sequence[ModelBundle], num_candidates: int | None) -> ServedOrders:
    """Return N@10 of two bundles on held-out questions, re-ranked where a bundle has a re-ranker.

    Args:
        held_out: Of the first bundle.
        bundles: The two bundles.
        num_candidates: Number of candidates to re-rank. None: as many as each re-ranker was trained for.

    Raises:
        BundleError: A re-ranker is damaged, or belongs to other weights.
        DataError: Too few targets are among the candidates, or a text model cannot be loaded.
    """
    choices = [_choice_of(bundle, num_candidates) if has_ranker(bundle.path) else None for bundle in bundles]
    most = min(RERANKER_KINDS[choice.kind].eval_queries for choice in choices if choice is not None)
    orders, folds = [], []
    for bundle, choice in zip(bundles, choices, strict=True):
        click.echo(f"evaluating {bundle.path} {'without' if choice is None else 'with'} re-ranking", err=True)
        own = replace(held_out, path=bundle.path, tables=tables_read_by(bundle, bundles[0], held_out.tables))
        order, fold = _order(bundle, own, replace(choice or RankerChoice(), eval_queries=most), choice is not None)
        orders.append(order)
        folds.append(fold)
    return ServedOrders(orders[0], orders[1], next((fold for fold in folds if fold is not None), None))


def _choice_of(bundle: ModelBundle, num_candidates: int | None) -> RankerChoice:
    """Return the options with which the re-ranker of a bundle was trained, its own model in the place of another."""
    sealed, folder = open_ranker(bundle)
    number = num_candidates or sealed.num_candidates
    if sealed.text is None:
        return RankerChoice(sealed.kind, num_candidates=number)
    return RankerChoice(
        sealed.kind,
        model=str(folder.root / MODEL),
        num_candidates=number,
        weight=sealed.text.weight,
        history_items=sealed.text.history_items,
        max_tokens=sealed.text.max_tokens,
    )


def _order(
    bundle: ModelBundle, held_out: HeldOut, choice: RankerChoice, is_reranked: bool
) -> tuple[Float[np.ndarray, " questions"], Int[np.ndarray, " questions"] | None]:
    """Return N@10 of the order that a bundle serves, by question, and the folds of its re-ranker."""
    if is_reranked:
        assert choice.num_candidates is not None, "its manifest has it"
        made = RANKER_TRAINERS[choice.kind](bundle, held_out, choice, choice.num_candidates)
        return made.after, made.fold
    questions = asked(held_out.questions("compare it on").validation, choice, held_out.config.training.seed)
    found = RankingDataset.of(
        bundle, held_out.tables, questions, _CUTOFF, lambda shortlist: np.zeros((len(shortlist), 0), dtype=np.float32)
    )
    return found.before(), None
