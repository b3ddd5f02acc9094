"""Random tables through everything that reads them: `init`, `train`, `index`, `recommend` and HTTP.

    python -m tests.benchmarks.random_tables [COUNT] [--seed 0]

Hypothesis makes COUNT cases (2,000, unless said): tables with columns of every kind, with gaps, in any spelling, as CSV
(separators, encodings, quotes, in parts) and as Parquet (`tests.random_tables`). Each goes through `towers init`,
and, where that is content, one epoch of `train`, `index`, `recommend`, and a request for each user as the file spells
the id.

Right is, for every column: its cells reach the model as they were meant; or the table that `init` prints says that it
is left out; or `init` ends with status 2 and lines that name the file. Rows that are not read are counted in a note.
The first case that is otherwise is shown, and the program ends with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase, given, seed, settings

from features.config import FeaturesConfig
from features.settings import parse_settings
from features.tables.table_files import read_frame
from features.tables.tables import Tables, read_tables
from serving.config import ServingConfig
from serving.http.app import create_app
from tests.random_tables import Case, Column, cases, wrong_cells
from towers.cli.main import main as towers

_QUICK = """
[towers]
embedding_dim = 16
history_encoder = "mean"

[training]
epochs = 1
batch_size = 64
track = false
"""


class WrongReadingError(AssertionError):
    """Something that must not be."""


def check(case: Case, folder: Path, *, whole_way: bool = True) -> str:
    """Send a case through everything, and return how it ended, in a few words.

    Args:
        case: The tables.
        folder: An empty folder.
        whole_way: Whether a model is trained, too, and asked.

    Raises:
        WrongReadingError: A cell says something else than was meant, or something is lost without a word.
    """
    paths = case.write(folder)
    with contextlib.chdir(folder):
        flags = [word for name, path in paths.items() for word in (f"--{name}", path.name)]
        status, out, err = _run("init", *flags)
        if status:
            return _refused(status, err, [path.name for path in paths.values()])
        text = Path("run.toml").read_text(encoding="utf-8")
        config = parse_settings(FeaturesConfig, tomllib.loads(text)["features"], "run.toml")
        tables = read_tables(config, folder)
        _check_items(case, config, tables, out)
        _check_events(case, config, tables, out + err)
        if whole_way:
            # Of few items, some users have had all.
            again = text[: text.index("[towers]")].replace("recommend_seen = false", "recommend_seen = true ")
            Path("run.toml").write_text(again + _QUICK, encoding="utf-8")
            _check_answers(case, config, tables)
    return "read"


def _run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = towers(list(words))
    if status not in (0, 2) or "Traceback" in err.getvalue() or "this is a bug" in err.getvalue():
        raise WrongReadingError(f"towers {' '.join(words)} ended with {status}: {err.getvalue()}")
    return status, out.getvalue(), err.getvalue()


def _refused(status: int, err: str, names: list[str]) -> str:
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    nameless = [line for line in errors if not any(name in line for name in names) and "--" not in line]
    if status != 2 or not errors or nameless or Path("run.toml").exists():
        raise WrongReadingError(f"init ended with {status}, and said {err!r}")
    return re.sub(r"[^a-z ]+", " ", errors[0].partition(": ")[2].rpartition(":")[2])[:60].strip()


def _check_items(case: Case, config: FeaturesConfig, tables: Tables, out: str) -> None:
    frame = tables.catalog.frame
    order = {str(item_id): row for row, item_id in enumerate(tables.catalog.item_ids.tolist())}
    rows = [order[str(value)] for value in case.items[0].values]
    for column in case.items[1:]:
        if not any(line.startswith(column.name) for line in out.splitlines()):
            raise WrongReadingError(f"{column.name!r} is lost without a line:\n{out}")
        if column.name in config.item:
            cells = [_plain(cell) for cell in frame[column.name].iloc[rows].astype(object)]
            wrong = wrong_cells(_as_read(column), cells, config.item[column.name].model_dump())
            if wrong:
                raise WrongReadingError("; ".join(wrong))


def _as_read(column: Column) -> Column:
    """Return a column as an obvious reader takes it: empty text is missing."""
    values = tuple(None if value in ("", []) else value for value in column.values)
    return Column(column.name, column.means, values, column.cells)


def _plain(cell: object) -> object:
    if isinstance(cell, list | np.ndarray):
        return list(cell)
    is_missing = cell is None or cell is pd.NA or cell is pd.NaT or cell != cell
    return None if is_missing else cell.to_pydatetime() if isinstance(cell, pd.Timestamp) else cell


def _check_events(case: Case, config: FeaturesConfig, tables: Tables, said: str) -> None:
    users, items, whens = case.interactions
    expected = Counter(
        (str(user), str(item), int(when.timestamp() if when.tzinfo else pd.Timestamp(when, tz="UTC").timestamp()))
        for user, item, when in zip(users.values, items.values, whens.values, strict=True)
        if user is not None
    )
    frame = tables.interactions.frame
    if config.columns.timestamp is None:
        if whens.name not in said:
            raise WrongReadingError(f"the times were not taken, and nothing says so: {said}")
        times = [0] * len(frame)
        expected = Counter({(user, item, 0): 1 for user, item, _ in expected})
    else:
        times = frame["timestamp"].tolist()
    read = Counter(zip(map(str, frame["user_id"]), map(str, frame["item_id"]), times, strict=True))
    if read != expected:
        raise WrongReadingError(
            f"interactions: {list((expected - read).items())[:3]} became {list((read - expected).items())[:3]}"
        )
    guests = sum(user is None for user in users.values)
    if guests and f"{guests} row{'s' * (guests > 1)} without an id" not in said:
        raise WrongReadingError(f"{guests} rows were dropped without a note: {said}")


def _check_answers(case: Case, config: FeaturesConfig, tables: Tables) -> None:
    for words in (
        ("train", "run.toml", "--output", "bundle"),
        ("index", "bundle"),
        ("recommend", "bundle", "--output", "all.parquet", "--k", "5"),
    ):
        status, _, err = _run(*words)
        if status:
            raise WrongReadingError(f"{words[0]} refused what init was content with: {err}")
    known = set(map(str, tables.interactions.frame["user_id"]))
    answered = set(map(str, read_frame(Path("all.parquet"))["user_id"]))
    if answered != known:
        raise WrongReadingError(f"recommend: users {sorted(known - answered)} of {sorted(known)} are not in the file")
    client = create_app(Path("bundle"), ServingConfig(watch_seconds=0)).test_client()
    for written, user in dict(zip(case.interactions[0].cells, case.interactions[0].values, strict=True)).items():
        if user is not None:
            cell = str(user) if case.kind == "parquet" else written
            answer = client.get(f"/recommendations/{quote(cell, safe='')}?k=3")
            if answer.status_code != 200 or answer.json["fallback"] is not None:
                raise WrongReadingError(f"user {cell!r} as the file has it: {answer.status_code} {answer.text[:200]}")


def main() -> int:
    """Check as many cases as are asked for, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0, help="Decides the tables.")
    parser.add_argument("--init-only", action="store_true", help="Train no model.")
    given_words = parser.parse_args()
    ended: Counter[str] = Counter()
    started = time.perf_counter()

    @seed(given_words.seed)
    @settings(
        max_examples=given_words.count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(cases())
    def check_one(case: Case) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            ended[check(case, folder, whole_way=not given_words.init_only)] += 1
            if ended.total() % 100 == 0:
                print(f"{ended.total():,} cases in {time.perf_counter() - started:,.0f} s", flush=True)
        finally:
            shutil.rmtree(folder)

    try:
        check_one()
    except WrongReadingError as wrong:
        print(f"WRONG {wrong}", *getattr(wrong, "__notes__", []), sep="\n")
        return 1
    finally:
        for how, count in ended.most_common():
            print(f"{count:>6}  {how}")
        print(f"{sum(ended.values()):,} cases in {time.perf_counter() - started:,.0f} s")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
