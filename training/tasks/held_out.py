"""The data that the training of a bundle held out, found again in today's tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from features.errors import DataError
from features.sequences.sequences import Sequences
from features.sequences.split import Split
from features.tables.tables import Tables, data_digests
from towers.bundle.bundle import ModelBundle
from training.config import RunConfig, read_run_config
from training.tasks.protocols import early_stopping_split, holds_out_users


@dataclass(frozen=True)
class HeldOut:
    """Data that the training of a bundle did not learn from.

    Attributes:
        path: The bundle.
        config: The settings of the training.
        tables: Today's tables.
        known: All interactions.
        split: The interactions, split as in the training of the bundle. None: nothing was held out.
    """

    path: Path
    config: RunConfig
    tables: Tables
    known: Sequences
    split: Split | None

    @classmethod
    def of(cls, bundle: ModelBundle) -> HeldOut:
        """Return today's tables, split as in the training of the bundle."""
        config = read_run_config(bundle.path / "run.toml")
        tables = bundle.read_tables(config.features)
        digests = data_digests(config.features, bundle.tables_folder)
        if any(bundle.manifest.digests.get(name) not in (None, digest) for name, digest in digests.items()):
            click.echo(
                "note: the tables have changed since the model was trained; of the users that were held out, or, if "
                "there are none, of all users, today's items are held out"
            )
        known = tables.interactions.sequences(tables.catalog)
        if not known.num_events or config.training.refit:
            return cls(bundle.path, config, tables, known, None)
        users = bundle.validation_users(known.user_ids)
        split = early_stopping_split(config, known, len(tables.catalog), validation_users=users)
        if holds_out_users(split) and users is None:
            raise DataError(f"{bundle.path}: does not say which users its training held out; train again")
        return cls(bundle.path, config, tables, known, split)

    def questions(self, purpose: str = "evaluate it on", other_cure: str = "") -> Split:
        """Return the split of the training.

        Args:
            purpose: What the data is needed to do, for the error where there is none.
            other_cure: What else than another training helps, for the same.

        Raises:
            DataError: Nothing was held out.
        """
        if self.split is None:
            why = "trained with `refit`, so on every interaction" if self.known.num_events else "trained without pairs"
            cure = "train again with --set training.refit=false" if self.known.num_events else "give it pairs"
            raise DataError(f"{self.path}: {why}, so no held-out data is left to {purpose}; {cure}{other_cure}")
        return self.split
