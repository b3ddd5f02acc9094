"""`towers init --minutes`: which settings help on the data at hand, found by short trainings.

The advice after a training names settings that help on some data (`training.evaluation.advice`). Here each that is of
use for the tables is tried, one after the other and on top of those kept so far, in equal time; it is kept where the
validation N@10 is higher. The test part of the protocol's split is not read: `towers evaluate` can still ask it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import tomlkit
import torch

from features.errors import DataError
from features.files import atomic_file
from features.sequences.split import Split
from features.tables.tables import Tables, read_tables
from training.config import RunConfig, read_run_config, setting_of, table_in, with_settings
from training.evaluation.advice import RULES, Facts, Rule, as_flags
from training.loop.fit import check_choices, choose_device, fit
from training.loop.trainer import Progress
from training.tasks.protocols import split_by, usual_protocol


@dataclass(frozen=True)
class Trial:
    """A short training.

    Attributes:
        settings: What was changed, `table.key=value` each; empty: run.toml as it was proposed.
        ndcg: The best validation N@10; None: no epoch ended in time, or the training failed.
        epochs: Epochs trained.
        seconds: How long it took.
        is_kept: Whether the settings are kept.
        reason: Why there is no result; empty where there is one.
    """

    settings: tuple[str, ...]
    ndcg: float | None
    epochs: int
    seconds: float
    is_kept: bool
    reason: str = ""

    @property
    def in_words(self) -> str:
        """What came of it, in a line."""
        if self.ndcg is None:
            return self.reason
        verdict = "kept" if self.is_kept else "not better"
        return f"validation N@10 {self.ndcg:.4f} after {self.epochs} epochs, {self.seconds:.0f} s: {verdict}"


class _TimeIsUpError(Exception):
    """The time of a trial is over."""


class _Clock:
    """Ends a training when its time is over, and keeps what it reached until then."""

    def __init__(self, seconds: float, first_epoch: float) -> None:
        self._began = time.monotonic()
        self._seconds, self._first_epoch = seconds, first_epoch
        self.ndcg: float | None = None
        self.epochs = 0

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    def on_step(self, step: int, loss: float) -> None:
        if self.spent > (self._seconds if self.epochs else self._first_epoch):
            raise _TimeIsUpError

    def on_epoch(self, progress: Progress, measured: dict[str, float]) -> None:
        self.ndcg, self.epochs = progress.best, progress.epoch


def choose(settings: Path, *, minutes: float, device: str = "auto") -> list[Trial]:
    """Try what may help, and write what does into run.toml, whose comments stay.

    Args:
        settings: Path of run.toml.
        minutes: Time for all trainings together.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The trials, that with run.toml as it was first.

    Raises:
        DataError: The settings or the tables are wrong, or no epoch ended within the time.
        KeyboardInterrupt: It was stopped; what was kept until then is written.
    """
    deadline = time.monotonic() + 60 * minutes
    config = read_run_config(settings)
    check_choices(config)
    tables = read_tables(config.features, settings.parent)
    sequences = tables.interactions.sequences(tables.catalog)
    if not sequences.num_events:
        raise DataError(f"{settings}: there are no interactions, so nothing is trained and nothing can be tried")
    asked = config.training.validation
    protocol = usual_protocol(config, sequences) if asked == "auto" else asked
    split = split_by(protocol, sequences, len(tables.catalog), config)
    click.echo(f"trying settings for {minutes:g} minutes, on the validation questions of {protocol}", err=True)
    return _Choice(settings, tables, split, choose_device(device), deadline, Facts.of(config, split)).run()


def trials_in_words(trials: Sequence[Trial]) -> str:
    """Return a line for each trial, with what was changed."""
    return "\n".join(f"{' '.join(one.settings) or 'as proposed'}\n    {one.in_words}" for one in trials)


@dataclass
class _Choice:
    """What has been tried and kept so far.

    Attributes:
        settings: Path of run.toml.
        tables: Source of the features.
        split: Training and validation data.
        device: Device to train on.
        deadline: When to stop, on the monotonic clock.
        facts: Of the data, and the settings that were kept.
        best: Validation N@10 of those.
        trials: All trials.
    """

    settings: Path
    tables: Tables
    split: Split
    device: torch.device
    deadline: float
    facts: Facts
    best: float = -1.0
    trials: list[Trial] = field(default_factory=list)

    def run(self) -> list[Trial]:
        """Train as proposed, then with each rule that applies by then."""
        first = self._train(self.facts.config, ())
        if first.ndcg is None:
            raise DataError(
                f"{self.settings}: nothing was tried: after {first.seconds:.0f} s the first training gave no result, "
                f"because {first.reason}; give more --minutes"
            )
        for place, rule in enumerate(RULES):
            candidate = self._candidate(rule)
            if candidate is not None and time.monotonic() < self.deadline:
                changed = tuple(rule.settings(self.facts))
                if self._train(candidate, changed, RULES[place:]).is_kept:
                    self.facts = replace(self.facts, config=candidate)
                    _write(self.settings, changed)
        return self.trials

    def _candidate(self, rule: Rule) -> RunConfig | None:
        """Return the settings with those of a rule; None if it does not apply to what has been kept."""
        if not (rule.is_tried and rule.applies(self.facts)):
            return None
        values = dict(setting_of(text) for text in rule.settings(self.facts))
        try:
            candidate = with_settings(self.facts.config, values, str(self.settings))
            check_choices(candidate)
        except DataError:  # it does not fit what was kept
            return None
        return candidate

    def _train(self, config: RunConfig, changed: tuple[str, ...], rules: Sequence[Rule] = RULES) -> Trial:
        """Train for an equal share of the time that is left, and say what came of it."""
        left = self.deadline - time.monotonic()
        is_first = not self.trials
        share = left / (is_first + sum(self._candidate(rule) is not None for rule in rules))
        # Without a result of the first training nothing can be compared, so its first epoch may take all the time.
        clock = _Clock(share, first_epoch=left if is_first else share)
        reason = ""
        click.echo(f"\n{' '.join(as_flags(changed)) or 'as proposed'}", err=True)
        try:
            fit(config, self.tables, self.split, device=self.device, on_step=clock.on_step, on_epoch=clock.on_epoch)
        except _TimeIsUpError:
            reason = "" if clock.epochs else "no epoch ended in its time"
        except (ValueError, MemoryError) as error:  # such as scores that are not numbers
            reason = f"failed: {error}"
        ndcg = None if reason else clock.ndcg
        trial = Trial(changed, ndcg, clock.epochs, clock.spent, ndcg is not None and ndcg > self.best, reason)
        self.trials.append(trial)
        if ndcg is not None and trial.is_kept:
            self.best = ndcg
        click.echo(f"  {trial.in_words}", err=True)
        return trial


def _write(settings: Path, changed: Sequence[str]) -> None:
    """Write settings into run.toml, each with a comment; what else is written there stays as it is."""
    document = tomlkit.parse(settings.read_text(encoding="utf-8"))
    for text in changed:
        key, value = setting_of(text)
        *tables, name = key.split(".")
        table: Any = table_in(document, tables, key)
        table[name] = value
        if not isinstance(table, tomlkit.items.InlineTable):
            table[name].comment("chosen by validation")
    with atomic_file(settings) as temporary:
        temporary.write_text(tomlkit.dumps(document), encoding="utf-8")
