"""From a split to a trained model, and from a model to an evaluation: shared by `train` and `evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from features.errors import DataError
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split
from features.sequences.timeline import Timeline
from features.tables.tables import Tables
from towers.model.history import check_history_encoder
from towers.model.two_tower import TwoTower
from training.config import RunConfig
from training.evaluation.evaluate import Evaluation, evaluate
from training.evaluation.popular_items import choose_popular_days, popular_items
from training.evaluation.report import PRIMARY_METRIC
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop.build import TrainingData, build
from training.loop.losses import check_loss
from training.loop.processes import OneProcess, Processes, encode_items
from training.loop.trainer import Progress, Trainer

MOST_VALIDATION_QUESTIONS, LEAST_VALIDATION_QUESTIONS = 10_000, 1_000
"""Maximum number of validation queries after each epoch, a sample; and how many of them are left of a catalogue of more
than a million items."""
MOST_VALIDATION_CELLS = MOST_VALIDATION_QUESTIONS * 10**6
"""Scores of queries and items that a validation computes at most, some two minutes."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and what it was trained on.

    Attributes:
        model: With the best weights, in evaluation mode; of several processes the first alone can use it.
        data: Its training data.
        progress: Counters at the end of training.
        seconds: Duration of training, validation included.
        notes: What vocabularies and training leave out, a line each.
        popular_days: Over how many days popular items are counted for unknown users. None: it is a search, whose
            users are queries.
        table_states: What the optimisers of the embedding tables have summed up (`Trainer.table_states`), for a
            training that continues this one. None after `refit`, which leaves nothing to measure that one on, and of
            several processes, each of which has a part.
    """

    model: TwoTower
    data: TrainingData
    progress: Progress
    seconds: float
    notes: Sequence[str] = ()
    popular_days: float | Literal["all"] | None = "all"
    table_states: dict[str, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.log_scale.device

    def recommender(
        self, history: int, timeline: Timeline | None = None, *, end_of_training: bool = False
    ) -> TwoTowerRecommender:
        """Return the model as a `ScoringModel`.

        Args:
            history: Maximum length of a history.
            timeline: The events that recent popularity and popular items are counted from: of a question, those before
                it. None: those of the training data.
            end_of_training: Whether both are as they were at the end of the training data, as in an index made then.
        """
        data = self.data
        known = None if end_of_training else timeline
        if timeline is None and self.model.trend is not None:
            timeline = Timeline.of(data.train)
        return TwoTowerRecommender(
            self.model,
            data.featurizer,
            data.item_features,
            data.users,
            history,
            timeline,
            end_of_training=end_of_training,
            popular=popular_items(data.train, len(data.item_features), self.popular_days, known),
        )


def check_choices(config: RunConfig) -> None:
    """Check that the loss and the history encoder of the settings exist, before tables are read.

    Raises:
        DataError: One of them does not.
    """
    check_loss(config.training.loss)
    check_history_encoder(config.towers)


def fit(
    config: RunConfig,
    tables: Tables,
    split: Split,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Progress, dict[str, float]], None] | None = None,
    processes: Processes | None = None,
    say: Say = lambda note: None,
) -> TrainedModel:
    """Train on the split's training data until its validation N@10 has stopped rising.

    Args:
        config: The settings.
        tables: Source of the features.
        split: Training and held-out data.
        device: Device to train on.
        checkpoint: File to resume from later; None: no checkpoints.
        resume: Whether to continue from that file.
        on_step: Called with the step and the mean loss of the epoch so far.
        on_epoch: Called with the progress and the metrics of the epoch.
        processes: Those that train together. None: this one alone.
        say: Called with what vocabularies and training leave out, a line each.

    Raises:
        DataError: The settings need timestamps that the tables do not have.
    """
    for name in ("time_bias", "trend"):
        if getattr(config.towers, name) and split.train.times is None:
            raise DataError(
                f"[towers] {name} needs the time of every interaction, found none; name the column under "
                f"[features.columns] timestamp, or leave {name} out"
            )
    if split.train.folder is not None:
        _refuse_whole_data(config)
    began = time.monotonic()
    together = processes or OneProcess()
    featurizer = fit_featurizer(config, tables, split.train)
    data = TrainingData.prepare(split.train, tables.catalog, tables.users, featurizer)
    popular_days = _popular_days(config, split)
    popular = popular_items(split.train, len(tables.catalog), popular_days, split.timeline)
    questions = split.validation.sample(_validation_questions(len(tables.catalog)), config.training.seed)

    def validate(model: TwoTower) -> float:
        history, timeline = config.features.max_history, split.timeline
        with torch.no_grad():  # not inference_mode: fbgemm's fused kernel on a CPU exists for autograd only
            vectors = encode_items(model, data.item_features, together)
        towers = TwoTowerRecommender(
            model,
            featurizer,
            data.item_features,
            tables.users,
            history,
            timeline,
            item_vectors=vectors,
            popular=popular,
        )

        def answer(part: Queries, first: int) -> np.ndarray:
            judged = judge(towers, part, split, cutoffs=(10,), first_question=first)
            return judged.per_question[PRIMARY_METRIC]

        return together.mean(questions, answer)

    trainer = Trainer(
        build(config, data, device),
        checkpoint=checkpoint,
        validate=validate,
        on_step=on_step,
        on_epoch=on_epoch,
        quiet=not together.is_first,
        processes=together,
    )
    notes = (*featurizer.notes, *trainer.notes, *_early_stopping_notes(questions, split.validation))
    for note in notes:
        say(note)
    if resume:
        trainer.resume()
    model = together.whole(
        trainer.fit(), lambda: TwoTower(config.towers, featurizer, config.features.max_history).eval()
    )
    states = trainer.table_states() if isinstance(together, OneProcess) else None
    return TrainedModel(model, data, trainer.progress, time.monotonic() - began, notes, popular_days, states)


def _popular_days(config: RunConfig, split: Split) -> float | Literal["all"] | None:
    """Return the window of popular items that the settings name, or the one that is best on validation questions."""
    if not config.towers.reads_history:
        return None
    days = config.features.popular_days
    return choose_popular_days(split) if days == "auto" else days


def _validation_questions(num_items: int) -> int:
    """Return the maximum number of validation queries after each epoch."""
    most = min(MOST_VALIDATION_QUESTIONS, MOST_VALIDATION_CELLS // max(1, num_items))
    return max(LEAST_VALIDATION_QUESTIONS, most)


def _early_stopping_notes(asked: Queries, everything: Queries) -> list[str]:
    """Return whether not all validation queries decide early stopping."""
    if len(asked) == len(everything):
        return []
    return [f"{len(asked):,} of the {len(everything):,} validation questions, drawn at random, decide early stopping."]


def _refuse_whole_data(config: RunConfig) -> None:
    """Refuse settings that need all interactions in memory, where they are on disk."""
    for name, is_set in (
        ("[towers] trend", bool(config.towers.trend)),
        ('[training] item_init = "spectral"', config.training.item_init == "spectral"),
    ):
        if is_set:
            raise DataError(
                f"{name} needs all interactions in memory, and they are read from disk; leave it out, or set prepare = "
                '"never" under [features], if the memory suffices'
            )


def refit(config: RunConfig, tables: Tables, sequences: Sequences, first: TrainedModel) -> TrainedModel:
    """Train again on all `sequences`, for the best number of epochs and with the learning rates of the first run."""
    began = time.monotonic()
    featurizer = fit_featurizer(config, tables, sequences)
    data = TrainingData.prepare(sequences, tables.catalog, tables.users, featurizer)
    growth = sequences.num_events / first.data.train.num_events
    trainer = Trainer(
        build(config, data, first.device),
        steps=round(first.progress.best_step * growth),
        decay_steps=[round(step * growth) for step in first.progress.decay_steps],
    )
    model = trainer.fit()
    seconds = first.seconds + time.monotonic() - began
    notes = (*featurizer.notes, *trainer.notes)
    return TrainedModel(model, data, trainer.progress, seconds, notes, first.popular_days)


def fit_featurizer(config: RunConfig, tables: Tables, train: Sequences) -> Featurizer:
    """Return the featurizer of the training data; without histories it is fitted on the whole catalogue."""
    return Featurizer.fit(
        Schema.from_config(config.features),
        tables.catalog,
        tables.users,
        train,
        whole_catalog=not config.towers.reads_history,
        shared_texts=config.towers.shared_text_encoder,
    )


def judge(
    towers: TwoTowerRecommender, questions: Queries, split: Split, *, cutoffs: tuple[int, ...], first_question: int = 0
) -> Evaluation:
    """Return the evaluation of the towers on queries of the split; for `first_question` see `evaluate`."""
    return evaluate(
        towers,
        questions,
        split.candidates,
        seen_items=split.seen_items,
        cutoffs=cutoffs,
        with_coverage=False,
        first_question=first_question,
    )


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for here.

    Raises:
        DataError: It is `cuda`, and torch cannot use a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        found = f"built for CUDA {torch.version.cuda}, but finds no GPU" if torch.version.cuda else "built for a CPU"
        raise DataError(
            f"--device cuda: torch {torch.__version__} is {found}; leave --device out, or see `towers doctor`"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
