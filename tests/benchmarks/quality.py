"""How good the recommendations are, on public data under the protocols of the literature, the baselines beside.

    python tests/benchmarks/quality.py [ROW ...] [--as-proposed] [--seeds N] [--folder evaluation]

Each row is `towers init` on the tables as they are and `towers evaluate` with the settings shown, or with
`--as-proposed` with none: then the settings are those that `init` wrote. The commands are printed, and a report stands
in the row's folder. Without a row the list of them is shown. The tables are read from the folder that TOWERS_DATA
names.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the tables in docs/benchmarks.md.

    Attributes:
        data: The folder of the tables.
        protocol: As `towers evaluate` calls it.
        about: What the row shows.
        settings: Further words for `towers evaluate`.
        seeds: How many trainings.
        without: Roles of columns that are not told, so that the model does without them.
    """

    data: str
    protocol: str
    about: str
    settings: tuple[str, ...] = ()
    seeds: int = 1
    without: tuple[str, ...] = ()


BEAUTY = ("features.max_history=50", "training.epochs=20")
# What is written of an item stays where it is, and little else is learned: a new product is nothing but its title.
COLD = (
    "features.max_history=50",
    "features.item.title.frozen_dim=512",
    "towers.embedding_dim=512",
    "towers.id_dropout=0.0",
    "training.learning_rate=0.0002",
    "training.embedding_learning_rate=0.02",
    "training.epochs=1",
)
# Asked is for all that somebody will have, not for what comes within the hour.
TIME = ("training.targets=future", "towers.sum_residual=true", "towers.embedding_dim=128", "training.epochs=6")
# Few people: where items belong is decomposed rather than learned, and what is learned is learned very slowly.
BOOKS = (
    'features.item.tags={kind = "categories", separator = "|"}',
    "features.max_history=1000",
    "towers.history_encoder=mean",
    "towers.embedding_dim=1024",
    "towers.dropout=0.0",
    "towers.id_dropout=0.0",
    "training.item_init=spectral",
    "training.spectral_attribute_weight=5",
    "training.batch_size=16384",
    "training.learning_rate=0.000003",
    "training.embedding_learning_rate=0.00001",
    "training.epochs=1",
)
# Recent popularity is a part of the score; the other settings are those of init.
TREND = ("towers.trend=[1, 7, 30]", "training.epochs=6")
TEXTS = ("title = { kind", "brand", "categories")
UNREAD = ("position", "title = { kind", "original_title", "original_publication_year", "language_code")

ROWS = {
    "ml-1m-small": Row(
        "ml-1m", "leave-one-out", "MovieLens-1M, next item, small", ("--preset", "small", "training.epochs=12")
    ),
    "ml-1m-base": Row("ml-1m", "leave-one-out", "MovieLens-1M, next item, base", ("training.epochs=6",)),
    "ml-1m-large": Row(
        "ml-1m", "leave-one-out", "MovieLens-1M, next item, large", ("--preset", "large", "training.epochs=15")
    ),
    "beauty": Row("amazon-beauty", "leave-one-out", "Amazon Beauty, next item", BEAUTY, seeds=3),
    "beauty-ids": Row("amazon-beauty", "leave-one-out", "the same, ids alone", BEAUTY, seeds=3, without=TEXTS),
    "goodbooks": Row("goodbooks", "users", "goodbooks, people never seen", BOOKS, seeds=5, without=UNREAD),
    "ml-1m-time": Row("ml-1m", "time", "MovieLens-1M, one cut in time", TIME, seeds=3),
    "movietweetings": Row("movietweetings", "leave-one-out", "MovieTweetings, next item", TREND, seeds=3),
    "movietweetings-time": Row("movietweetings", "time", "MovieTweetings, one cut in time", TREND, seeds=3),
    "ml-latest-small": Row("ml-latest-small", "leave-one-out", "MovieLens latest-small, next item", seeds=3),
    "ml-latest-small-time": Row("ml-latest-small", "time", "MovieLens latest-small, one cut in time", seeds=3),
    "beauty-cold": Row("amazon-beauty", "cold-items", "Amazon Beauty, products never seen", COLD, seeds=3),
}


def main() -> None:
    """Run the rows asked for, or list them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW")
    parser.add_argument("--seeds", type=int, help="Instead of the row's own number.")
    parser.add_argument("--as-proposed", action="store_true", help="with the settings that init proposes, unchanged")
    parser.add_argument("--folder", type=Path, default=Path("evaluation"))
    given = parser.parse_args()
    if not given.rows:
        for name, row in ROWS.items():
            print(f"{name:16s} {row.about}; seeds: {row.seeds}; {' '.join(row.settings) or 'as proposed by init'}")
    for name in given.rows:
        row = replace(ROWS[name], settings=(), without=()) if given.as_proposed else ROWS[name]
        judge(row, given.seeds or row.seeds, given.folder / (f"{name}-as-proposed" if given.as_proposed else name))


def judge(row: Row, seeds: int, folder: Path) -> None:
    """Write the settings of a row and evaluate them."""
    data = Path(os.environ.get("TOWERS_DATA") or Path(__file__).parents[3] / "shared" / "data") / row.data
    if not data.is_dir():
        sys.exit(f"{data}: no such folder; set TOWERS_DATA to the folder of the public data sets")
    folder.mkdir(parents=True, exist_ok=True)
    tables = [f"--{table}={data / table}.parquet" for table in ("interactions", "items", "users")]
    towers("init", *(one for one in tables if Path(one.partition("=")[2]).exists()), "--force", folder=folder)
    settings = folder / "run.toml"
    lines = settings.read_text(encoding="utf-8").splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if not line.startswith(row.without or "\0")), encoding="utf-8")
    words = [word for setting in row.settings for word in (("--set", setting) if "=" in setting else (setting,))]
    protocol = ("--protocol", row.protocol, "--seeds", str(seeds))
    towers("evaluate", "run.toml", *protocol, *words, "--output", "report", folder=folder)


def towers(*words: str, folder: Path) -> None:
    """Show a command and run it."""
    print(f"$ towers {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "towers", *words], cwd=folder, check=True)


if __name__ == "__main__":
    main()
