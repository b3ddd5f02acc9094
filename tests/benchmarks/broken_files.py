"""What becomes of a service and of its commands when any file that they read from is damaged, in any way.

    python -m tests.benchmarks.broken_files [--quick]

A small bundle with an index, shortlists, a learned ranker and, where the libraries are there, a pretrained model of
texts is made, and a log of live writes. Then each file of them is damaged in each way (`tests.broken_files`), and put
back:

- before serving: what `towers serve`, `index` and `recommend` open is opened. Right is one line: a `BundleError` or
  `DataError`, which the command line prints and ends with status 2. Of each damage one file goes through the command
  itself as well.
- while serving: `towers serve` with two workers is asked while the file is damaged and written to. Right is an answer
  from what was served, or a 503 with its reason; after it was put back, everything as before, by the same processes.

It ends with status 1 where anything else happened: a traceback, a 500, a worker that ended, an answer that did not
come, a write that was acknowledged and is not there.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
import torch

from features.errors import DataError
from serving.errors import NotReady
from serving.jobs.build_index import build_index
from serving.live.open_log import open_log
from serving.recommend.recommender import Recommender
from serving.recommend.reranking import RerankStage
from tests import running
from tests.broken_files import DAMAGES, Damage, damaged, files_in
from tests.serving.conftest import SETTINGS, write_shop, write_untrained
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError
from towers.rerankers.candidate_features import RankFeatures
from towers.rerankers.learned import RankNetwork
from towers.rerankers.manifest import write_ranker

LIVE = "live.db"
SECONDS = 60
"""How long an answer, or a command that ends, may take on a machine that is busy."""
_NUM_ASKED = 8


class Outcomes:
    """What happened, counted by damage."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.wrong: list[str] = []

    def add(self, damage: str, outcome: str) -> None:
        """Count what is as it ought to be."""
        self.counts[damage][outcome] += 1

    def add_wrong(self, damage: str, what: str) -> None:
        """Count what is not."""
        self.counts[damage]["WRONG"] += 1
        self.wrong.append(f"{damage}: {what}")
        print(f"WRONG {self.wrong[-1]}", flush=True)

    def show(self, title: str) -> None:
        """Print a table: a line for each damage, a column for each outcome."""
        columns = sorted({outcome for counts in self.counts.values() for outcome in counts})
        print(f"\n{title}\n{'':22}" + "".join(f"{column:>14}" for column in columns))
        for damage, counts in self.counts.items():
            print(f"{damage:22}" + "".join(f"{counts[column]:>14}" for column in columns), flush=True)


def make_bundle(folder: Path, tables: Path, seed: int, encoder: Path | None) -> None:
    """Write a bundle with all that can be in one."""
    settings = json.loads(json.dumps(SETTINGS))
    if encoder is not None:
        settings["features"]["encoders"] = {"words": {"model": str(encoder), "bundled": True}}
        settings["features"]["item"]["title"] = {"kind": "text", "encoder": "words"}
    write_untrained(folder, tables, settings, seed)
    bundle = ModelBundle.open(folder)
    write_ranker(bundle, "learned", RankNetwork(3, 2).save, num_candidates=100)
    names = RankFeatures(build_index(bundle, {}, precomputed=5).item_statistics).names  # type: ignore[arg-type]
    torch.manual_seed(seed)
    write_ranker(bundle, "learned", RankNetwork(len(names), 2).save, num_candidates=100, features=names)


def make_log(path: Path) -> None:
    """Write a log with a few items in it, all of it in the one file."""
    store = open_log(str(path))
    from serving.live.log import Write

    store.append([Write("item", {"item_id": f"new-{number}", "cells": {"title": "red lamp"}}) for number in range(3)])
    store.close()
    del store
    with closing(sqlite3.connect(path)) as log:
        log.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def before_serving(one: Path, other: Path, damages: dict[str, Damage]) -> Outcomes:
    """Open what is damaged as the commands do."""
    outcomes = Outcomes()
    for damage_name, damage in damages.items():
        for name in files_in(one / "model"):
            with damaged(one / "model", name, damage, other / "model"):
                outcome = _outcome(lambda: _open(one / "model"))
            if outcome == "one line":
                outcomes.add(damage_name, outcome)
            else:
                outcomes.add_wrong(damage_name, f"{name}: {outcome}")
        with damaged(one, LIVE, damage, other):
            outcome = _outcome(lambda: open_log(str(one / LIVE)).close())
        # A log that is not there, or empty, is begun; what is damaged further in is seen when it is read.
        outcomes.add(damage_name, outcome) if outcome in ("one line", "opened") else outcomes.add_wrong(
            damage_name, f"{LIVE}: {outcome}"
        )
        for file in one.glob(f"{LIVE}-*"):
            file.unlink()
        for command in (("index", "model"), ("recommend", "model", "--output", "all.parquet"), ("serve", "model")):
            with damaged(one / "model", "model.safetensors", damage, other / "model"):
                ended = running.towers(one, *command)
            said = ended.stderr.strip()
            if ended.returncode == 2 and said.startswith("error: ") and "\n" not in said:
                outcomes.add(damage_name, "status 2")
            else:
                outcomes.add_wrong(damage_name, f"towers {command[0]}: status {ended.returncode}: {said[-300:]}")
    return outcomes


def _open(path: Path) -> None:
    Recommender.open(path, open_rerank=lambda bundle, snapshot: RerankStage.open(bundle, snapshot, None, None))


def _outcome(action: Any) -> str:
    began = time.monotonic()
    try:
        action()
    except (BundleError, DataError) as error:
        if "\n" in str(error):
            return f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "opened"
    return "one line" if time.monotonic() - began < SECONDS else f"{time.monotonic() - began:.0f} s"


class Served:
    """`towers serve` with two workers, asked as its clients would."""

    def __init__(self, folder: Path) -> None:
        port = running.free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._log = (folder / "server.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "towers", "serve", "model", "--port", str(port), "--workers", "2", "--live", LIVE],
            cwd=folder,
            env=running.environment(TOWERS_WATCH_SECONDS="0.2", TOWERS_LOG_FORMAT="json"),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 4 * SECONDS
        while self._num_ready() < 2:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)
        self.workers = {child.pid for child in psutil.Process(self.process.pid).children()}

    def _num_ready(self) -> int:
        try:
            return int(self.ask("GET", "/readyz")[1]["workers"]["ready"])
        except OSError:
            return 0

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and content of an answer; each time by a connection of its own, to whichever worker."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Connection": "close"}
        request = Request(f"{self.address}{path}", content, headers, method=method)
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=SECONDS) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    def said(self) -> str:
        """Return its log."""
        return (Path(self._log.name)).read_text()

    def living(self) -> set[int]:
        """Return the processes that answer."""
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(SECONDS)
        self._log.close()


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve while the block runs."""
    served = Served(folder)
    try:
        yield served
    finally:
        served.close()


def while_serving(one: Path, other: Path, damages: dict[str, Damage], ending: str = "") -> Outcomes:
    """Damage what is served."""
    outcomes = Outcomes()
    with serving(one) as served:
        names = [f"model/{name}" for name in files_in(one / "model")] + [LIVE]
        names = [name for name in names if name.endswith(ending)]
        written: list[str] = []
        for damage_name, damage in damages.items():
            for name in names:
                lines = len(served.said().splitlines())
                with _set_aside(one) if name == LIVE else damaged(one, name, damage, other):
                    if name == LIVE:
                        damage(one / LIVE, other / LIVE)
                    time.sleep(0.3)
                    taken: list[str] = []
                    found = _asked(served, damage_name.replace(" ", "-"), taken)
                    if name == LIVE:
                        # Put back is the log of before. So what was acknowledged must be in the file until then.
                        found += _missing_in(one / LIVE, taken)
                    else:
                        written += taken
                time.sleep(0.3 if name != LIVE else 1.2)
                found += _asked(served, f"{damage_name.replace(' ', '-')}-after", written, well=True)
                fresh = served.said().splitlines()[lines:]
                found += [line for line in fresh if "Traceback" in line or '"status":500' in line.replace(" ", "")]
                if served.living() != served.workers:
                    found.append(f"workers {served.workers} became {served.living()}")
                    served.workers = served.living()
                wrong = [one for one in found if one not in ("answered", "503", "written")]
                for what in found:
                    if what not in wrong:
                        outcomes.add(damage_name, what)
                for what in wrong:
                    outcomes.add_wrong(damage_name, f"{name}: {what}")
        for item_id in dict.fromkeys(written):
            if served.ask("GET", f"/items/{item_id}/similar")[0] != 200:
                outcomes.add_wrong("(all)", f"{item_id} was acknowledged and is not there")
        print(f"log: {len(served.said().splitlines())} lines")
    return outcomes


def _missing_in(path: Path, item_ids: list[str]) -> list[str]:
    """Return what is wrong where items are not in a log, as whoever opens it next finds it."""
    if not item_ids:
        return []
    there, position = set(), 0
    try:
        with closing(open_log(str(path))) as log:
            while records := log.read_after(position):
                there |= {record.body.get("item_id") for record in records}
                position = records[-1].position
    except (NotReady, DataError) as error:
        return [f"{', '.join(item_ids)} acknowledged, and the file cannot be read: {error}"]
    return [f"{item_id} was acknowledged and is not in the file" for item_id in item_ids if item_id not in there]


def _asked(served: Served, name: str, written: list[str], *, well: bool = False) -> list[str]:
    """Return what came of some questions and a write."""
    found = []
    paths = ["/recommendations/1001?k=50", "/items/p3/similar?price_max=30", "/recommendations/1004?k=3", "/readyz"]
    for place in range(_NUM_ASKED):
        status, content = served.ask("GET", paths[place % len(paths)])
        found.append("answered" if status == 200 else f"{paths[place % len(paths)]}: {status}: {content}")
    item_id = f"item-{name}-{len(written)}"
    for _ in range(4 if well else 1):
        status, content = served.ask("PUT", f"/items/{item_id}", {"title": "red lamp"})
        if status in (200, 201):
            written.append(item_id)
            found.append("written")
            if {served.ask("GET", f"/items/{item_id}/similar")[0] for _ in range(4)} != {200}:
                found.append(f"{item_id} was acknowledged and is not in the next answer")
            return found
        if not well:
            break
        time.sleep(0.5)
    found.append("503" if status == 503 and content.get("detail") and not well else f"PUT: {status}: {content}")
    return found


@contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Let a log be damaged inside the block; put it back as an operator does from a copy that is whole."""
    copy = folder / "copy.db"
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / LIVE)) as log, closing(sqlite3.connect(copy)) as to:
        log.backup(to)
    try:
        yield
    finally:
        for path in folder.glob(f"{LIVE}*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        copy.rename(folder / LIVE)


def main() -> None:
    """Damage everything and say what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="only some of the damages")
    parser.add_argument("--only", choices=("before", "while"), help="only this part")
    parser.add_argument("--file", help="only files whose path ends like this, while serving")
    parser.add_argument("--encoder", type=Path, help="folder of a sentence-transformers model to be in the bundle")
    given = parser.parse_args()
    damages = {name: DAMAGES[name] for name in list(DAMAGES)[:: 4 if given.quick else 1]}
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        write_shop(Path(folder) / "data")
        for seed, place in enumerate((one, other)):
            make_bundle(place / "model", Path(folder) / "data", seed, given.encoder)
            make_log(place / LIVE)
        print(f"{len(files_in(one / 'model'))} files of a bundle and a log, {len(damages)} damages")
        parts = {"before": before_serving, "while": partial(while_serving, ending=given.file or "")}
        wrong = []
        for name, part in parts.items():
            if given.only in (None, name):
                outcomes = part(one, other, damages)
                outcomes.show(f"{name} serving")
                wrong += outcomes.wrong
    print(f"\n{len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
