"""Everything that a report shows beyond the metrics, collected from a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from features.redaction import redacted
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split
from features.tables.tables import Tables
from training.config import RunConfig
from training.details.data_profile import data_facts, data_warnings, table_profiles
from training.details.examples import Examples, Sample
from training.details.figures import (
    Compared,
    learning_curve,
    most_shown,
    popularity_of,
    rank_ranges,
    score_ranges,
    slices_of,
)
from training.details.item_map import report_map
from training.details.origin import changed_settings, commit_of, versions
from training.evaluation.details import Fact, LearningCurve, ReportDetails
from training.evaluation.evaluate import Evaluation, ScoringModel
from training.evaluation.report_rows import PRIMARY_METRIC
from training.loop.trainer import Progress


@dataclass
class DetailsCollector:
    """Collects the details of a report while a command trains and evaluates.

    Attributes:
        config: The settings.
        folder: What the paths in them are relative to.
        tables: As they were read.
        sequences: The interactions in them.
        digests: SHA-256 of each table.
        title: What is evaluated.
        began: When the command began.
    """

    config: RunConfig
    folder: Path
    tables: Tables
    sequences: Sequences
    digests: Mapping[str, str]
    title: str
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _curves: list[LearningCurve] = field(default_factory=list)
    _trained: list[Fact] = field(default_factory=list)
    _details: ReportDetails | None = None

    def add_training(self, seed: int, progress: Progress, seconds: float, device: str) -> None:
        """Take in a training that has ended.

        Args:
            seed: Of the training.
            progress: As it was at the end.
            seconds: Its duration.
            device: Where it computed.
        """
        self._curves.append(learning_curve(seed, progress))
        text = f"{progress.epoch:,} epochs, best at step {progress.best_step:,}, {seconds:,.0f} seconds on {device}"
        self._trained.append(Fact(f"Training, seed {seed}", text))

    def add_evaluation(
        self,
        recommender: ScoringModel,
        evaluations: Sequence[Evaluation],
        questions: Queries,
        split: Split,
        *,
        num_ours: int = 1,
        bounds: Sequence[str] = (),
    ) -> None:
        """Take in an evaluation; only the first is looked at in detail.

        Args:
            recommender: The evaluated one.
            evaluations: Of all recommenders, the evaluated one first.
            questions: Their questions.
            split: Where these are from.
            num_ours: How many of the first are of the same model.
            bounds: Names of those that are upper bounds.
        """
        if self._details is not None:
            return
        baselines = [one for one in evaluations[num_ours:] if one.name not in bounds]
        strongest = max(baselines, key=lambda one: one.means[PRIMARY_METRIC], default=None)
        compared = Compared(evaluations[0], strongest, questions, split)
        features, catalog = self.config.features, self.tables.catalog
        sample = Sample.draw(recommender, evaluations[0], questions, split, self.config.training.seed)
        examples = Examples(sample, self.tables, features, compared.interactions, self.config.training.report_people)
        profiles = table_profiles(self.tables, features, self.digests)
        self._details = ReportDetails(
            title=self.title,
            settings=changed_settings(self.config),
            other_name=None if strongest is None else strongest.name,
            slices=slices_of(compared),
            popularity=popularity_of(compared),
            most_shown=most_shown(compared, catalog, features.title),
            ranks=rank_ranges(compared),
            scores=score_ranges(sample.scores, sample.is_right),
            num_sampled=len(sample.questions),
            people=examples.people(),
            near_misses=examples.near_misses(),
            failures=examples.failures(),
            item_map=report_map(recommender, self.tables.catalog, features.title, compared.interactions, examples),
            data=data_facts(self.sequences, len(catalog), compared),
            tables=profiles,
            warnings=data_warnings(self.tables, profiles, compared),
        )

    def details(self, command: Sequence[str]) -> ReportDetails:
        """Return what was collected; at least one evaluation was.

        Args:
            command: The words of the command that was run.
        """
        assert self._details is not None, "an evaluation comes first"
        ended = datetime.now(UTC)
        commit = commit_of(self.folder)
        run = [
            Fact("Command", redacted(shlex.join(command))),
            *self._trained,
            *([Fact("Commit of the settings' folder", commit)] if commit else []),
            *versions(),
        ]
        took = f"{ended:%Y-%m-%d %H:%M} UTC, after {(ended - self.began).total_seconds():,.0f} seconds"
        made = " · ".join([took, f"two-towers {version('two-towers')}", *([f"commit {commit}"] if commit else [])])
        return replace(self._details, made=made, run=tuple(run), curves=tuple(self._curves))
