"""How many requests a second the service answers, beside a bare Flask route and a rival, and how even its answers are.

    apt-get install wrk redis-server; make rivals
    python tests/benchmarks/service.py [--only known described latency rival servers batching] [--seconds 8]

A catalogue of 100,000 items of width 64, and 20,000 users who had about 50 items each; the vectors look like those of
trained towers (`made` in index.py), the model that reads posted histories is a real one that was not trained. What is
served is a bundle on disk, by `towers serve` with one worker, on the first core; `wrk` asks from the second. `bare` is
a Flask route that returns a constant of the size of our answer, under the same server with the same settings, on the
same core. Whatever is compared is asked in turns, and the best of the rounds counts: a disturbance only ever slows.

    known      GET /recommendations/<user>?k=10, users drawn at random; bars 0.6 of bare, and 0.85. `listed` is what
               `towers index --recall 0.99` makes; without shortlists `tuned` searches, and `exact` compares all items
    described  POST /recommendations with a history of 50, drawn at random; bars 0.3 and 0.6
    latency    known users at half of the highest rate, pauses drawn at random: p99 over the median; bars 4 and 2.5
    rival      the same vectors behind Sanic, Redis and FAISS (rivals/served_sanic.py); bars 3 and 10 times
    servers    granian and gunicorn
    batching   searches and encodings of several requests together, on and off
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from features.config import FeaturesConfig
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog
from serving.config import ServingConfig
from serving.jobs.build_index import LISTED
from serving.jobs.precompute import precompute_top_k
from serving.recommend.recommender import Recommender
from serving.search.tuning import choose, sample_of
from serving.server.instructions import WorkerInstructions
from serving.snapshot.manifest import IndexManifest
from serving.snapshot.snapshot import Snapshot
from tests.benchmarks.ids_only import ROOT, processor
from tests.benchmarks.index import made
from towers.bundle.bundle import ModelBundle, write_bundle
from towers.config import TowersConfig
from towers.model.two_tower import TwoTower

RIVAL = ROOT / ".rivals" / "bin" / "python"
PARTS = ("known", "described", "latency", "rival", "servers", "batching")
ITEMS, USERS, WIDTH, HISTORY = 100_000, 20_000, 64, 50
CONNECTIONS = 32
FIRST_USER = 1_000_000
RECALL = 0.99

SETTINGS = {
    "features": {
        "interactions": "interactions.parquet",
        "items": "items.parquet",
        "title": "title",
        "max_history": 200,
        "item": {"item_id": {"kind": "id"}},
    },
    "towers": {"embedding_dim": WIDTH},
}
_WORDS = np.array("red green blue steel wooden large small lamp chair table cup bowl bag coat".split())  # noqa: SIM905


@dataclass(frozen=True)
class Asked:
    """What wrk found.

    Attributes:
        rate: Answers a second.
        median: Seconds from a request to its answer.
        p99: The same, of the slowest hundredth.
        failed: Answers that were not 200, and connections that broke.
    """

    rate: float
    median: float
    p99: float
    failed: int


def write_bundles(folder: Path, items: int, users: int) -> None:
    """Write bundles of the same model and vectors: `exact`, `tuned` to find 99 % of the best 100, and that `listed`."""
    rng = np.random.default_rng(0)
    catalogue, tastes = made(items, users, WIDTH)
    lengths = np.clip(rng.lognormal(np.log(HISTORY), 0.5, size=users), 5, 200).astype(np.int64)
    histories = Sequences(
        np.arange(users) + FIRST_USER,
        offsets_of(lengths),
        np.minimum(items - 1, rng.exponential(items / 8, size=lengths.sum())).astype(np.int64),
        None,
        is_ordered=True,
    )
    titles = [" ".join(rng.choice(_WORDS, size=6)) for _ in range(items)]
    frame = pd.DataFrame({"item_id": pd.array(np.arange(items), dtype=pd.ArrowDtype(pa.int64()))})
    frame["title"] = pd.Series(titles, dtype=pd.ArrowDtype(pa.large_string()))
    catalog = Catalog(frame)
    for name, recall in (("exact", None), ("tuned", RECALL), ("listed", RECALL)):
        bundle = _write_model(folder / name, catalog, histories)
        if name != "listed":
            chosen = choose(catalogue, sample_of(tastes), recall=recall)
        seal = IndexManifest.of(
            bundle,
            catalog_digest="made",
            plan=chosen.index.plan,
            recall_at_100=chosen.recall,
            recall_wanted=recall,
            recall_users=chosen.num_users,
            num_items=items,
            num_users=users,
            num_interactions=histories.num_events,
            width=WIDTH,
        )
        counts = np.bincount(histories.item_rows, minlength=items).astype(np.int64)
        snapshot = Snapshot(catalog, chosen.index, histories, None, tastes, counts, counts.astype(np.float64), seal)
        if name == "listed":
            snapshot = snapshot.with_precomputed(precompute_top_k(Recommender(bundle, snapshot), LISTED))
        snapshot.save(bundle.path)
        print(f"{name}: {seal.plan}, recall@100 {seal.recall_at_100:.4f}")


def _write_model(folder: Path, catalog: Catalog, histories: Sequences) -> ModelBundle:
    features, towers = FeaturesConfig(**SETTINGS["features"]), TowersConfig(**SETTINGS["towers"])
    featurizer = Featurizer.fit(Schema.from_config(features), catalog, None, histories)
    torch.manual_seed(0)
    write_bundle(
        folder,
        settings=SETTINGS,
        tables_folder=folder,
        data_digests={},
        featurizer=featurizer,
        contract=ColumnContract({}, {}),
        weights=TwoTower(towers, featurizer, features.max_history).state_dict(),
        report={},
        pages={},
        primary_metric={"ndcg_at_10": 0.0},
    )
    return ModelBundle.open(folder)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], ready: str, core: int = 0, **environment: str) -> Iterator[None]:
    """Run a server on one core while the block runs."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOWERS_")}
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        cwd=ROOT,
        env={**own, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _wait_until(process, ready)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        if "Traceback" in said:
            print(said)


def _wait_until(process: subprocess.Popen[str], ready: str) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urlopen(ready, timeout=5)
            return
        except OSError as error:
            if hasattr(error, "code") and error.code < 500:
                return
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"{process.args}: {process.communicate()[0]}")


@contextmanager
def ours(bundle: Path, **settings: str) -> Iterator[str]:
    """Serve a bundle while the block runs, and yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "towers", "serve", str(bundle), "--port", str(port)]
    changed = {f"TOWERS_{name.upper()}": str(value) for name, value in settings.items()}
    with running(command, f"http://127.0.0.1:{port}/readyz", **changed):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def bare(body_bytes: int, **settings: str) -> Iterator[str]:
    """Serve a constant under our server while the block runs, and yield its address."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as told:
        WorkerInstructions(Path(), ServingConfig(port=port, **settings)).write(told.fileno())
        command = [sys.executable, "-m", "tests.benchmarks.rivals.bare_flask", told.name]
        with running(command, f"http://127.0.0.1:{port}/readyz", BODY_BYTES=str(body_bytes)):
            yield f"http://127.0.0.1:{port}"


def known(num_users: int, path: str = "/recommendations/%d?k=10") -> str:
    """Return wrk's script that asks for users at random."""
    return f"""
math.randomseed(1)
function request()
  return wrk.format("GET", string.format("{path}", {FIRST_USER} + math.random(0, {num_users - 1})))
end
"""


def described(num_items: int) -> str:
    """Return wrk's script that posts histories at random."""
    rng = np.random.default_rng(2)
    bodies = [json.dumps({"history": rng.integers(num_items, size=HISTORY).tolist(), "k": 10}) for _ in range(500)]
    listed = ",\n".join(f"[[{body}]]" for body in bodies)
    return f"""
local bodies = {{ {listed} }}
local headers = {{ ["Content-Type"] = "application/json" }}
math.randomseed(1)
function request()
  return wrk.format("POST", "/recommendations", headers, bodies[math.random(#bodies)])
end
"""


def paused(script: str, milliseconds: float) -> str:
    """Return a script whose connections pause after each answer, for times drawn at random with that mean."""
    return f"{script}\nfunction delay() return math.floor(-{milliseconds} * math.log(1 - math.random()) + 0.5) end\n"


def ask(address: str, script: str, seconds: float, connections: int = CONNECTIONS) -> Asked:
    """Let wrk ask for a while, from the second core."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _DONE)
        file.flush()
        command = ["taskset", "-c", "1", "wrk", "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
        said = subprocess.run([*command, "-s", file.name, address], capture_output=True, text=True, check=True).stdout
    found = re.search(r"asked (\S+) (\S+) (\S+) (\S+)", said)
    assert found, said
    answers, duration, median, p99 = map(float, found.groups())
    failed = sum(map(int, re.findall(r"(?:Non-2xx or 3xx responses: |connect |read |write |timeout )(\d+)", said)))
    return Asked(answers / duration * 1e6, median / 1e6, p99 / 1e6, failed)


_DONE = """
function done(summary, latency, requests)
  io.write(string.format("asked %d %d %f %f\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99)))
end
"""


def in_turns(addresses: Mapping[str, str], scripts: Mapping[str, str], given: argparse.Namespace) -> dict[str, Asked]:
    """Return the best round of each, asked in turns."""
    for name, address in addresses.items():
        ask(address, scripts[name], min(2.0, given.seconds))
    rounds: dict[str, list[Asked]] = {name: [] for name in addresses}
    for turn in range(given.rounds):
        for name, address in sorted(addresses.items(), reverse=bool(turn % 2)):
            rounds[name].append(ask(address, scripts[name], given.seconds))
    for name, found in rounds.items():
        if any(one.failed for one in found):
            raise SystemExit(f"{name}: requests failed: {found}")
    return {name: max(found, key=lambda one: one.rate) for name, found in rounds.items()}


def beside_bare(what: str, bundle: Path, script: str, bars: str, given: argparse.Namespace) -> None:
    """Print ours beside the bare route."""
    with ours(bundle) as address:
        body_bytes = _size_of(address, what, given)
    with ours(bundle) as one, bare(body_bytes) as other:
        found = in_turns({"ours": one, "bare": other}, {"ours": script, "bare": script}, given)
    ratio = found["ours"].rate / found["bare"].rate
    print(
        f"{what:10} {bundle.name:6} {body_bytes:5} bytes  ours {found['ours'].rate:8,.0f}/s  bare "
        f"{found['bare'].rate:8,.0f}/s  ratio {ratio:.2f} (bars {bars})"
    )


def _size_of(address: str, what: str, given: argparse.Namespace) -> int:
    if what == "known":
        return len(urlopen(f"{address}/recommendations/{FIRST_USER + 7}?k=10").read())
    from urllib.request import Request

    body = json.dumps({"history": list(range(HISTORY)), "k": 10}).encode()
    return len(
        urlopen(Request(f"{address}/recommendations", body, headers={"Content-Type": "application/json"})).read()
    )


def latency(bundle: Path, given: argparse.Namespace) -> None:
    """Print how even the answers are at half of the highest rate."""
    with ours(bundle) as address:
        highest = in_turns({"ours": address}, {"ours": known(given.users)}, given)["ours"].rate
        connections = 64
        pause = connections / (highest / 2) * 1e3
        for _ in range(4):  # what an answer takes is part of the cycle, so the pause is found by trial
            found = ask(address, paused(known(given.users), pause), given.seconds, connections)
            pause *= found.rate / (highest / 2)
        rounds = [ask(address, paused(known(given.users), pause), given.seconds, connections) for _ in range(3)]
    for found in rounds:
        print(
            f"latency    {bundle.name:6} {found.rate:8,.0f}/s of {highest:8,.0f}/s  median {found.median * 1e3:.3f} ms"
            f"  p99 {found.p99 * 1e3:.3f} ms  ratio {found.p99 / found.median:.2f} (bars 4 and 2.5)"
        )


def rival(folder: Path, given: argparse.Namespace) -> None:
    """Print ours beside the same vectors behind Sanic, Redis and FAISS."""
    missing = [name for name in ("redis-server",) if not shutil.which(name)]
    if missing or not RIVAL.exists():
        print(f"rival      left out: there is no {(missing or [RIVAL])[0]}")
        return
    bundle = folder / "tuned"
    snapshot = Snapshot.open(ModelBundle.open(bundle))
    histories = snapshot.histories
    told = [[int(user), histories.items_of(row).tolist()] for row, user in enumerate(histories.user_ids)]
    (folder / "users.json").write_text(json.dumps(told))
    (folder / "items.json").write_text(json.dumps(snapshot.catalog.item_ids.tolist()))
    np.savez(folder / "vectors.npz", users=snapshot.user_vectors, items=snapshot.index.vectors)
    program = str(Path(__file__).parent / "rivals" / "served_sanic.py")
    redis_port, port = free_port(), free_port()
    with ExitStack() as stack:
        redis = ["redis-server", "--port", str(redis_port), "--save", "", "--dir", str(folder)]
        store = subprocess.Popen(["taskset", "-c", "1", *redis], stdout=subprocess.DEVNULL)  # the core of wrk
        stack.callback(store.wait)
        stack.callback(store.terminate)
        time.sleep(1)
        subprocess.run([str(RIVAL), program, "fill", str(folder), str(redis_port)], check=True)
        command = [str(RIVAL), program, "serve", str(folder), str(redis_port), str(port)]
        stack.enter_context(running(command, f"http://127.0.0.1:{port}/recommend/{FIRST_USER}"))
        one = stack.enter_context(ours(bundle))
        scripts = {"ours": known(given.users), "rival": known(given.users, "/recommend/%d")}
        found = in_turns({"ours": one, "rival": f"http://127.0.0.1:{port}"}, scripts, given)
    print(
        f"rival      ours {found['ours'].rate:8,.0f}/s  Sanic, Redis and FAISS {found['rival'].rate:8,.0f}/s  "
        f"times {found['ours'].rate / found['rival'].rate:.1f} (bars 3 and 10)"
    )


def servers(bundle: Path, given: argparse.Namespace) -> None:
    """Print the same service under each server."""
    with ours(bundle, server="granian") as one, ours(bundle, server="gunicorn") as other:
        scripts = dict.fromkeys(("granian", "gunicorn"), known(given.users))
        found = in_turns({"granian": one, "gunicorn": other}, scripts, given)
    for name, asked in found.items():
        print(
            f"servers    {name:8} {asked.rate:8,.0f}/s  median {asked.median * 1e3:.2f} ms  "
            f"p99 {asked.p99 * 1e3:.2f} ms"
        )


def batching(folder: Path, given: argparse.Namespace) -> None:
    """Print what answering several requests together does to their rate."""
    for what, bundle, script in (
        ("known", "exact", known(given.users)),
        ("known", "tuned", known(given.users)),
        ("described", "tuned", described(given.items)),
    ):
        with ours(folder / bundle, micro_batching="off") as one, ours(folder / bundle, micro_batching="on") as other:
            found = in_turns({"off": one, "on": other}, dict.fromkeys(("off", "on"), script), given)
        print(
            f"batching   {what:9} {bundle:6} off {found['off'].rate:8,.0f}/s  on {found['on'].rate:8,.0f}/s  times "
            f"{found['on'].rate / found['off'].rate:.2f}"
        )


def main() -> None:
    """Write the bundles if they are not there, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--folder", type=Path, help="where the bundles are, or will be; made anew without")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("there is no wrk, which asks; apt-get install wrk")
    print(processor())
    with tempfile.TemporaryDirectory() as own:
        folder = (given.folder or Path(own)).absolute()
        if not (folder / "listed" / "index").exists():
            write_bundles(folder, given.items, given.users)
        for part in given.only:
            match part:
                case "known":
                    for name in ("listed", "tuned", "exact"):
                        beside_bare("known", folder / name, known(given.users), "0.6 and 0.85", given)
                case "described":
                    beside_bare("described", folder / "tuned", described(given.items), "0.3 and 0.6", given)
                case "latency":
                    latency(folder / "listed", given)
                case "rival":
                    rival(folder, given)
                case "servers":
                    servers(folder / "tuned", given)
                case "batching":
                    batching(folder, given)


if __name__ == "__main__":
    main()
