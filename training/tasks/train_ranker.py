"""`towers train-ranker`: train a re-ranker for a bundle, evaluate it on held-out queries, and write it.

`RANKER_TRAINERS` says how each kind is trained. Each is evaluated alike: the candidates that the bundle retrieves for
the queries that its training held out, N@10 of their order before and after, with the paired interval, and the latency
of a request in one thread. A re-ranker whose interval includes zero is not written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from features.columns import item_texts
from features.errors import DataError
from features.sequences.sequences import Queries
from towers.bundle.bundle import ModelBundle, check_can_sign
from towers.bundle.trust import Trust
from towers.rerankers.candidate_features import RankFeatures
from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.kinds import RERANKER_KINDS, RerankerKind
from towers.rerankers.learned import LearnedRanker
from towers.rerankers.manifest import Judgement, TextSettings, write_ranker
from towers.rerankers.reranker import Deadline, Reranker, Shortlist
from towers.rerankers.text import TextRanker
from training.config import RunConfig
from training.evaluation.intervals import Answered, Interval, Resampled
from training.rerankers.examples import RankingDataset
from training.rerankers.learned import fit_ranker
from training.rerankers.text import (
    SHARES,
    Save,
    choose_weight,
    comparisons_of,
    make_cross_encoder,
    make_late_interaction,
    scores_of,
)
from training.runs.progress import start_tracking
from training.tasks.held_out import HeldOut
from training.tasks.protocols import early_stopping_split

GATE_LEVEL = 0.99
"""Confidence of the interval of the gain that has to lie above zero for a ranker to be written. At 95 %, one of forty
that learned from noise would be written, so that of twenty attempts two in five would end with one."""
BUDGET_MS = 20.0
"""Default of `rerank_budget_ms` in serving.toml."""

PURPOSE = ("train or evaluate a re-ranker on", ", or set the weight of one that reads texts: --weight 0.5")

_WARM_UPS = 3


@dataclass(frozen=True)
class RankerChoice:
    """Which re-ranker to train. None stands for the default of its kind.

    Attributes:
        kind: A name in `RERANKER_KINDS`.
        model: Folder or hub name of the pretrained model; for kinds that read texts.
        num_candidates: Number of retrieved items to re-rank.
        eval_queries: Maximum number of held-out queries; the learned re-ranker is also trained on them.
        weight: Weight of a text model's score against the retriever's, 0 to 1. None: the best on held-out queries.
        history_items: Number of the newest history items whose texts are read.
        max_tokens: Maximum tokens of a pair of texts, or of a text.
        train_queries: Number of training queries to fine-tune a cross-encoder on. None: no fine-tuning.
    """

    kind: str = "learned"
    model: str | None = None
    num_candidates: int | None = None
    eval_queries: int | None = None
    weight: float | None = None
    history_items: int = 3
    max_tokens: int | None = None
    train_queries: int | None = None

    @property
    def definition(self) -> RerankerKind:
        """The entry of its kind."""
        return RERANKER_KINDS[self.kind]


@dataclass(frozen=True)
class TrainedRanker:
    """A trained re-ranker that is not yet written.

    Attributes:
        reranker: Model that scores candidates.
        save: Writes its files into a folder.
        dataset: Queries it was evaluated on, with their candidates. None: nothing was held out.
        after: N@10 of its order, by query, as found by what neither learned from the query nor was selected by it.
        fold: The fold of each query, if each fold evaluated other trainings. None: there was one.
        features: Names of the candidate features it reads, for kinds that read features.
        text: Text settings, for kinds that read texts.
    """

    reranker: Reranker
    save: Save
    dataset: RankingDataset | None
    after: Float[np.ndarray, " questions"]
    fold: Int[np.ndarray, " questions"] | None = None
    features: Sequence[str] = ()
    text: TextSettings | None = None

    def gain(self, dataset: RankingDataset, level: float = 0.95) -> Interval:
        """Return what it adds to N@10 of the retriever's order, with the paired interval over queries and trainings."""
        return paired_gain(self.after - dataset.before(), self.fold, level)


def paired_gain(
    gains: Float[np.ndarray, " questions"], fold: Int[np.ndarray, " questions"] | None, level: float = 0.95
) -> Interval:
    """Return the mean gain with its interval over queries and trainings.

    Args:
        gains: Difference in N@10 by query.
        fold: The fold of each query, if each fold evaluated another training. None: there was one.
        level: Confidence.
    """
    if fold is None:
        fold = np.zeros(len(gains), dtype=np.int64)
    parts = [np.flatnonzero(fold == one) for one in np.unique(fold)]
    return Resampled.of([Answered([gains[part]], part) for part in parts]).interval(0, level=level)


TrainRanker = Callable[[ModelBundle, HeldOut, RankerChoice, int], TrainedRanker]
MakeTextRanker = Callable[
    [ModelBundle, HeldOut, RankerChoice, Sequence[str], TextSettings, int], tuple[TextRanker, Save]
]
"""Makes a re-ranker from bundle, held-out data, options, texts of the items, text settings and number of candidates."""


def train_bundle_ranker(path: Path, choice: RankerChoice) -> None:
    """Train the re-ranker of a bundle, print its gain and latency on held-out queries, and write it.

    Raises:
        BundleError: The bundle cannot be used.
        DataError: The tables cannot be read, nothing was held out, too few targets are among the candidates, or the
            text model cannot be loaded.
    """
    _check(choice)
    bundle = ModelBundle.open(path, trust=Trust.from_environment())
    check_can_sign(bundle)
    held_out = HeldOut.of(bundle)
    num_candidates = choice.num_candidates or choice.definition.num_candidates
    made = RANKER_TRAINERS[choice.kind](bundle, held_out, choice, num_candidates)
    judgement = None if made.dataset is None else _evaluated(made, made.dataset)
    if judgement is not None and made.dataset is not None:
        _print_evaluation(judgement, made.dataset, num_candidates)
        if made.gain(made.dataset, GATE_LEVEL).low <= 0 and choice.weight is None:
            click.echo(
                f"not written: the {GATE_LEVEL:.0%} interval of the gain is not above zero, so it may be no better "
                "than the retriever's order; more held-out queries make the interval narrower"
            )
            return
    folder = write_ranker(
        bundle,
        choice.kind,
        made.save,
        num_candidates=num_candidates,
        features=made.features,
        text=made.text,
        judgement=judgement,
    )
    _record(held_out.config, bundle, folder, choice, made, judgement)
    if made.text is not None:
        click.echo(f"weight of its score: {made.text.weight:g}; of the retriever's: {1 - made.text.weight:g}")
    click.echo(f"{folder}: written\n\nNext:\n  towers index {path}")


def _check(choice: RankerChoice) -> None:
    if choice.kind not in RANKER_TRAINERS:
        raise DataError(f"--kind {choice.kind}: cannot be trained; expected one of {', '.join(RANKER_TRAINERS)}")
    needed = choice.definition.model
    if needed is None and (choice.model is not None or choice.weight is not None):
        raise DataError("--model and --weight are for re-rankers that read texts; add --kind, or leave them out")
    if needed is not None and choice.model is None:
        raise DataError(f"--kind {choice.kind} needs {needed}: give its folder or its name by --model")
    if choice.train_queries and not choice.definition.can_fine_tune:
        kinds = " or ".join(kind.name for kind in RERANKER_KINDS.values() if kind.can_fine_tune)
        raise DataError(f"--train-queries is for --kind {kinds}; leave it out")


def _train_learned(bundle: ModelBundle, held_out: HeldOut, choice: RankerChoice, num_candidates: int) -> TrainedRanker:
    split, tables, seed = held_out.questions(*PURPOSE), held_out.tables, held_out.config.training.seed
    statistics = ItemStatistics.of(split.train, tables.catalog, bundle.config.features.item)
    maker = RankFeatures(statistics)
    dataset = RankingDataset.of(bundle, tables, asked(split.validation, choice, seed), num_candidates, maker.of)
    fitted = fit_ranker(dataset, seed)
    return TrainedRanker(
        LearnedRanker(fitted.network, statistics),
        fitted.network.save,
        dataset,
        fitted.after,
        fitted.fold,
        maker.names,
    )


def _train_text_ranker(
    bundle: ModelBundle, held_out: HeldOut, choice: RankerChoice, num_candidates: int, *, make: MakeTextRanker
) -> TrainedRanker:
    """Return a re-ranker that reads texts, with the weight of its score that was set or is best on held-out queries."""
    tables, seed = held_out.tables, held_out.config.training.seed
    texts = item_texts(tables.catalog, bundle.config.features.item)
    if texts is None:
        raise DataError(f"{bundle.path}: the model has no text features of items, which this kind of re-ranker needs")
    split = held_out.split if choice.weight is not None else held_out.questions(*PURPOSE)
    most_tokens = choice.max_tokens or choice.definition.max_tokens
    assert most_tokens is not None, "kinds that read texts have a default"
    settings = TextSettings(
        weight=0.5 if choice.weight is None else choice.weight,
        history_items=choice.history_items,
        max_tokens=most_tokens,
    )
    ranker, save = make(bundle, held_out, choice, texts, settings, num_candidates)
    if split is None:
        return TrainedRanker(ranker, save, None, np.zeros(0), text=settings)
    shares = SHARES if choice.weight is None else (choice.weight,)
    read = scores_of(ranker, shares)
    dataset = RankingDataset.of(bundle, tables, asked(split.validation, choice, seed), num_candidates, read)
    share, after = choose_weight(dataset, shares, seed)
    return TrainedRanker(ranker, save, dataset, after, text=settings.model_copy(update={"weight": share}))


def _make_late_interaction(
    bundle: ModelBundle,
    held_out: HeldOut,
    choice: RankerChoice,
    texts: Sequence[str],
    settings: TextSettings,
    num_candidates: int,
) -> tuple[TextRanker, Save]:
    assert choice.model is not None, "_check has required it"
    return make_late_interaction(choice.model, texts, settings)


def _make_cross_encoder(
    bundle: ModelBundle,
    held_out: HeldOut,
    choice: RankerChoice,
    texts: Sequence[str],
    settings: TextSettings,
    num_candidates: int,
) -> tuple[TextRanker, Save]:
    assert choice.model is not None, "_check has required it"
    seed = held_out.config.training.seed
    comparisons = None
    if choice.train_queries:
        questions = _sample(_of_training(held_out), choice.train_queries, seed)
        comparisons = partial(
            comparisons_of,
            bundle,
            held_out.tables,
            questions,
            held_out.known,
            texts,
            history_items=settings.history_items,
            num_candidates=num_candidates,
            seed=seed,
        )
    return make_cross_encoder(choice.model, texts, settings, comparisons, seed)


RANKER_TRAINERS: dict[str, TrainRanker] = {
    "learned": _train_learned,
    "cross-encoder": partial(_train_text_ranker, make=_make_cross_encoder),
    "late-interaction": partial(_train_text_ranker, make=_make_late_interaction),
}
"""How each kind in `RERANKER_KINDS` is trained, by its name. Arguments: bundle, held-out data, options, number of
candidates."""


def _of_training(held_out: HeldOut) -> Queries:
    """Return queries of the training data: one per user, with the newest item as target, or every text query."""
    train = held_out.questions(*PURPOSE).train
    if held_out.config.towers.reads_history:
        return early_stopping_split(held_out.config, train, len(held_out.tables.catalog)).validation
    asked = train.take(np.flatnonzero(train.lengths > 0))
    nothing = asked.keep(np.zeros(asked.num_events, dtype=bool))
    return Queries(nothing, asked.offsets, asked.item_rows, times=None)


def asked(questions: Queries, choice: RankerChoice, seed: int) -> Queries:
    """Return the held-out queries that a re-ranker is evaluated on, of many a sample."""
    return _sample(questions, choice.eval_queries or choice.definition.eval_queries, seed)


def _sample(questions: Queries, most: int, seed: int) -> Queries:
    if len(questions) <= most:
        return questions
    return questions.take(np.sort(np.random.default_rng(seed).choice(len(questions), most, replace=False)))


def _evaluated(made: TrainedRanker, dataset: RankingDataset) -> Judgement:
    gain = made.gain(dataset)
    taken = milliseconds(made.reranker, dataset.examples)
    return Judgement(
        num_questions=len(dataset),
        ndcg_before=float(dataset.before().mean()),
        ndcg_after=float(made.after.mean()),
        gain_low=gain.low,
        gain_high=gain.high,
        milliseconds=float(np.median(taken)),
        milliseconds_p99=float(np.quantile(taken, 0.99)),
    )


def milliseconds(reranker: Reranker, shortlists: Sequence[Shortlist]) -> Float[np.ndarray, " shortlists"]:
    """Return the milliseconds that a re-ranker takes for each shortlist, in one thread, as in a worker of a service."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            for shortlist in shortlists[:_WARM_UPS]:
                reranker.scores(shortlist, Deadline(None))
            taken = []
            for shortlist in shortlists:
                began = time.perf_counter()
                reranker.scores(shortlist, Deadline(None))
                taken.append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return np.array(taken)


def _print_evaluation(judgement: Judgement, dataset: RankingDataset, num_candidates: int) -> None:
    before, after = judgement.ndcg_before, judgement.ndcg_after
    click.echo(
        f"{judgement.num_questions:,} held-out queries, {int(dataset.is_answerable.sum()):,} with a target among "
        f"the first {num_candidates}\n"
        f"N@10 {before:.4f} -> {after:.4f} ({after / max(before, 1e-9) - 1:+.1%}; the gain is {after - before:+.4f}, "
        f"95 % interval {judgement.gain_low:+.4f} to {judgement.gain_high:+.4f})\n"
        f"latency of a request in one thread: p50 {judgement.milliseconds:.1f} ms, p99 "
        f"{judgement.milliseconds_p99:.1f} ms"
    )
    if judgement.milliseconds_p99 > BUDGET_MS:
        click.echo(
            f"note: the default budget of a service is {BUDGET_MS:g} ms; in serving.toml raise rerank_budget_ms above "
            f"{judgement.milliseconds_p99:.0f}, or lower rerank_candidates"
        )


def _record(
    config: RunConfig,
    bundle: ModelBundle,
    folder: Path,
    choice: RankerChoice,
    made: TrainedRanker,
    judgement: Judgement | None,
) -> None:
    """Record an MLflow run with the settings, the evaluation and the files."""
    params = {"bundle": bundle.version, **asdict(choice)} | ({} if made.text is None else made.text.model_dump())
    name = f"{bundle.path.resolve().name}-ranker"
    tags = {"bundle": bundle.version}
    with start_tracking(config, name, tags, params={"ranker": params}, folder=bundle.tables_folder) as tracker:
        if judgement is not None:
            tracker.log_metrics({f"ranker/{key}": value for key, value in judgement.model_dump().items()}, step=0)
        tracker.log_artifacts(folder, "ranker")
