"""What smaller embedding tables cost in quality: 16 bits, frequency cut-off, ids that share rows by hash functions.

    python tests/benchmarks/large_vocabularies.py run.toml [--seeds 3] [--protocol leave-one-out] [--only NAME ...]
        [--set table.key=value ...]

`hashed, 1/4, 2 hashes`: no id has an embedding of its own; each is the sum of two of a quarter as many as there are ids
in training. Judged on validation, as ablations.py, whose `lead` is that of the whole vocabulary. Items need columns
besides their id, because with a cut-off alone rare items have nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from features.ids import ITEM_ID
from features.tables.tables import Tables, read_tables
from tests.benchmarks.ablations import judge, row
from towers.warnings_filter import quiet_imports
from training.config import RunConfig, read_run_config, with_settings
from training.evaluation.evaluate import Evaluation
from training.loop.fit import fit_featurizer
from training.tasks.protocols import split_by

CUT_OFFS = (2, 5)
PARTS = (Fraction(1, 2), Fraction(1, 4), Fraction(1, 10))
HASHES = (1, 2)
EVERY_ID_IS_RARE = 1_000_000_000
"""A cut-off that no id reaches, so that all of them share the hashed rows."""


def main() -> None:
    """Train every variant with every seed and print the rows of the ids' table, and N@10 and R@10 of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--protocol", default="leave-one-out")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    quiet_imports()
    config = read_run_config(given.settings, tuple(given.overrides))
    tables = read_tables(config.features, given.settings.parent)
    whole: Sequence[Evaluation] = []
    print(f"{'':28s}{'rows':>10s}{'N@10':>8s}{'R@10':>8s}{'lead of the whole vocabulary':>30s}", flush=True)
    for name, variant in variants(config, rows_of_ids(config, tables, given.protocol)):
        if given.only and name not in ("whole vocabulary", *given.only):
            continue
        found = [judge(variant, tables, given.protocol, seed) for seed in range(given.seeds)]
        whole = whole or found
        rows = rows_of_ids(variant, tables, given.protocol)
        print(f"{name:28s}{rows:10,}{row(whole, found)}", flush=True)


def rows_of_ids(config: RunConfig, tables: Tables, protocol: str) -> int:
    """Return the rows of the table of item ids."""
    split = split_by(protocol, tables.interactions.sequences(tables.catalog), len(tables.catalog), config)
    return fit_featurizer(config, tables, split.train).items.sizes.tables[ITEM_ID]


def variants(config: RunConfig, num_rows: int) -> Iterator[tuple[str, RunConfig]]:
    """Yield the settings as they are, and with smaller tables of item ids, each with a name.

    Args:
        config: The settings.
        num_rows: Rows of the table of ids with them.
    """
    yield "whole vocabulary", config
    yield "float16", with_settings(config, {"towers.embedding_dtype": "float16"}, "large_vocabularies.py")
    for count in CUT_OFFS:
        yield f"min_count {count}", _with(config, min_count=count)
    tenth = num_rows // 10
    yield f"min_count {CUT_OFFS[-1]}, hashed, 1/10", _with(config, min_count=CUT_OFFS[-1], hashed_rows=tenth)
    for part in PARTS:
        for hashes in HASHES:
            name = f"hashed, {part}, {hashes} hash{'es' if hashes > 1 else ''}"
            shared = {"hashed_rows": int(num_rows * part), "hashes": hashes}
            yield name, _with(config, min_count=EVERY_ID_IS_RARE, **shared)


def _with(config: RunConfig, **settings: int) -> RunConfig:
    changed = {f"features.item.{ITEM_ID}.{key}": value for key, value in settings.items()}
    return with_settings(config, changed, "large_vocabularies.py")


if __name__ == "__main__":
    main()
