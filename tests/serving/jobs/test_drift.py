"""`towers drift`: the tables of the training are no drift, changed ones are, and bad input is one line."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from features.errors import DataError
from serving.commands import DRIFT_FOUND, drift
from serving.jobs.build_index import build_index
from serving.jobs.click_through import chosen, wilson_interval
from serving.observability.logged_requests import read_requests
from serving.observability.request_log import LoggedAnswer, LoggedRequest, user_hash
from tests.running import SECONDS, ask, free_port, start, wait_until_ready, write_small_shop
from towers.bundle.bundle import ModelBundle
from training.commands import train

RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
recommend_seen = true
columns = { timestamp = "timestamp" }

[features.item]
item_id = { kind = "id" }
title = { kind = "text" }
brand = { kind = "category" }
price = { kind = "number" }
launched = { kind = "time" }

[towers]
embedding_dim = 8
history_encoder = "mean"

[training]
epochs = 1
track = false
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, `runs/run-1`, and its tables."""
    folder = tmp_path_factory.mktemp("shop")
    write_small_shop(folder / "data", users=80, items=150, interactions=900)
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        CliRunner().invoke(train, ["run.toml", "--no-baselines"], catch_exceptions=False)
        build_index(ModelBundle.open(folder / "runs" / "run-1"), {})
    return folder


@pytest.fixture
def here(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shop)
    return shop


def run(*words: str) -> Result:
    return CliRunner().invoke(drift, ["runs/run-1", *words], catch_exceptions=False)


def written(frame: pd.DataFrame, path: Path) -> str:
    frame.to_parquet(path, index=False)
    return str(path)


def found_in(folder: Path) -> set[tuple[str, str, str]]:
    content = json.loads((folder / "drift.json").read_text(encoding="utf-8"))
    return {(one["table"], one["column"], one["measure"]) for one in content["findings"] if one["is_drift"]}


def test_the_tables_of_the_training_are_no_drift(here: Path, tmp_path: Path):
    said = run("--output", str(tmp_path / "out"))
    assert (said.exit_code, said.stdout.splitlines()[0][:8]) == (0, "No drift")
    content = json.loads((tmp_path / "out" / "drift.json").read_text(encoding="utf-8"))
    psi = {(one["table"], one["column"]): one["today"] for one in content["findings"] if one["measure"] == "psi"}
    assert set(psi) == {
        *(("items", name) for name in ("brand", "price", "launched")),
        ("interactions", "item_id"),
    }
    assert set(psi.values()) == {0.0}


def test_what_changed_is_named_with_status_3_and_goes_to_prometheus(here: Path, tmp_path: Path):
    items = pd.read_parquet("data/items.parquet")
    events = pd.read_parquet("data/interactions.parquet")
    rng = np.random.default_rng(0)
    changed = items.assign(
        brand=items["brand"].where(rng.random(len(items)) < 0.7, "a new brand"),
        price=items["price"] * 3,
        title=items["title"].where(rng.random(len(items)) < 0.7, "zzyzx qwyjibo"),
    )
    today = events[events["item_id"].isin(items["item_id"][:60])]  # the others are no longer bought
    out = tmp_path / "out"
    said = run(
        *("--items", written(changed, tmp_path / "items.parquet")),
        *("--interactions", written(today, tmp_path / "events.parquet")),
        *("--output", str(out)),
    )
    assert said.exit_code == DRIFT_FOUND
    assert "items.brand" in said.stdout.splitlines()[0]
    assert {
        ("items", "brand", "known"),
        ("items", "price", "psi"),
        ("items", "title", "known"),
        ("interactions", "item_id", "psi"),
    } <= found_in(out)
    assert ("items", "launched", "psi") not in found_in(out)
    prometheus = (out / "drift.prom").read_text(encoding="utf-8")
    assert f"towers_drift_findings {float(len(found_in(out)))}" in prometheus
    assert 'towers_drift_psi{column="price",table="items"}' in prometheus
    page = (out / "drift.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "items.price" in page


def test_interactions_with_items_that_the_model_does_not_know_are_drift(here: Path, tmp_path: Path):
    items, events = pd.read_parquet("data/items.parquet"), pd.read_parquet("data/interactions.parquet")
    new = items.head(30).assign(item_id=[f"new-{number}" for number in range(30)])
    later = events.assign(
        item_id=[new["item_id"][place % 30] if place % 3 == 0 else one for place, one in enumerate(events["item_id"])]
    )
    run(
        *("--items", written(pd.concat([items, new]), tmp_path / "items.parquet")),
        *("--interactions", written(later, tmp_path / "events.parquet")),
        *("--output", str(tmp_path / "out")),
    )
    assert ("interactions", "item_id", "known") in found_in(tmp_path / "out")


def test_an_old_index_is_drift(here: Path, tmp_path: Path):
    said = run("--index-hours", "0.0000001")
    assert said.exit_code == DRIFT_FOUND
    assert "index.age in hours" in said.stdout


def test_bad_input_is_one_line_and_writes_nothing(here: Path, tmp_path: Path):
    items = pd.read_parquet("data/items.parquet").rename(columns={"brand": "make"})
    with pytest.raises(DataError, match="no column 'brand', which the model reads"):
        run("--items", written(items, tmp_path / "items.parquet"), "--output", str(tmp_path / "out"))
    with pytest.raises(DataError, match="no such file"):
        run("--interactions", "nowhere.parquet", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


KEY = "a key of sixteen characters"
NOW = 1_790_000_000


def written_log(path: Path, lines: list[LoggedRequest]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def line_of(moment: float, answer: dict, **request) -> LoggedRequest:
    """A line of the request log for a known user."""
    usual = LoggedAnswer(
        user="known",
        user_hash=None,
        history=8,
        unknown_items=0,
        attributes={},
        fallback=None,
        reranked=None,
        returned=10,
        scores=(0.5, 0.4, 0.3),
        items=[f"item-{place}" for place in range(10)],
    )
    usual.update(answer)
    line = LoggedRequest(
        time=moment,
        route="/recommendations/{user_id}",
        model="a model",
        index="an index",
        k=10,
        offset=0,
        filters=[],
        milliseconds=2.0,
        answers=[usual],
    )
    line.update(request)
    return line


def compared(here: Path, tmp_path: Path, before: list[dict], today: list[dict], *words: str, **request) -> dict:
    """The findings about requests by column and measure; ten answers a minute were like `before`, then `today`."""
    model = ModelBundle.open(here / "runs" / "run-1").version
    lines = [line_of(NOW - 7200 + 60 * place / 10, answer, model=model) for place, answer in enumerate(before)]
    request = {"model": model, **request}
    lines += [line_of(NOW + 60 * place / 10, answer, **request) for place, answer in enumerate(today)]
    log = written_log(tmp_path / "requests.jsonl", lines)
    said = run("--requests", log, "--recent", "1", "--output", str(tmp_path / "out"), *words)
    content = json.loads((tmp_path / "out" / "drift.json").read_text(encoding="utf-8"))
    found = {(one["column"], one["measure"]): one for one in content["findings"] if one["table"] == "requests"}
    assert said.exit_code == (DRIFT_FOUND if any(one["is_drift"] for one in content["findings"]) else 0)
    for one in found.values():
        if one["measure"] != "psi":
            low, high = one["interval"] or (one["today"], one["today"])
            assert low <= one["today"] <= high
    return found


def drifted_of(found: dict) -> set[tuple[str, str]]:
    return {place for place, one in found.items() if one["is_drift"]}


def test_requests_like_before_are_no_drift(here: Path, tmp_path: Path):
    rng = np.random.default_rng(3)
    alike = [
        {"history": int(rng.integers(3, 40)), "scores": (float(rng.normal(0.5, 0.1)), 0.3, 0.2)} for _ in range(400)
    ]
    found = compared(here, tmp_path, alike[:200], alike[200:])
    assert drifted_of(found) == set()
    assert {measure for _, measure in found} == {"known", "psi", "answered", "full", "p99 ms"}


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"user": "unknown", "history": None, "fallback": "popular"}, ("users by id", "known")),
        ({"user": "described", "history": 5, "unknown_items": 3}, ("items of histories", "known")),
        ({"user": "described", "history": 1, "attributes": {"country": 1}}, ("country of described users", "known")),
        ({"history": 100}, ("length of histories", "psi")),
        ({"returned": 0, "scores": None, "items": []}, ("answers", "answered")),
        ({"returned": 4}, ("answers", "full")),
        ({"scores": (0.1, 0.1, 0.1)}, ("best score of /recommendations/{user_id}", "psi")),
    ],
)
def test_what_changed_in_half_of_the_requests_is_named(here: Path, tmp_path: Path, changed: dict, place: tuple):
    kinds = [{}, {"user": "described", "attributes": {"country": 0}}] * 60
    usual = [{**one, "scores": (0.4 + at / 600, 0.3, 0.2)} for at, one in enumerate(kinds)]
    found = compared(here, tmp_path, usual, [{**one, **changed} if at % 4 < 2 else one for at, one in enumerate(usual)])
    assert place in drifted_of(found)
    if place[1] == "known":
        assert found[place]["today"] < 0.7


def test_scores_of_another_model_or_with_filters_are_not_compared(here: Path, tmp_path: Path):
    low = [{"scores": (0.1, 0.1, 0.1)}] * 100
    assert drifted_of(compared(here, tmp_path, [{}] * 100, low, model="another")) == set()
    assert drifted_of(compared(here, tmp_path, [{}] * 100, low, filters=["brand"])) == set()
    assert drifted_of(compared(here, tmp_path, [{}] * 100, low, offset=10)) == set()


def test_slow_requests_are_drift_beyond_the_limit(here: Path, tmp_path: Path):
    assert drifted_of(compared(here, tmp_path, [], [{}] * 100, milliseconds=1500.0)) == {("duration", "p99 ms")}
    assert drifted_of(compared(here, tmp_path, [], [{}] * 100, "--latency", "2000", milliseconds=1500.0)) == set()


def test_noise_of_few_requests_is_no_drift(here: Path, tmp_path: Path):
    unknown = {"user": "unknown", "history": None}
    few = compared(here, tmp_path, [{}] * 20 + [unknown] * 6, [{}] * 18 + [unknown] * 9)
    assert few["users by id", "known"]["training"] - few["users by id", "known"]["today"] > 0.1
    assert ("users by id", "known") not in drifted_of(few)


def test_clicks_by_position_are_counted_within_the_window(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOWERS_REQUEST_LOG_KEY", KEY)
    events = pd.read_parquet("data/interactions.parquet")
    user, items = int(events["user_id"].iloc[0]), pd.read_parquet("data/items.parquet")["item_id"].tolist()[:10]
    answer = {"user_hash": user_hash(KEY, user), "items": items}
    clicked = []
    for place in range(100):
        # Before, position 1 is chosen every second time; today never, but position 2 is, and what is too late or early.
        clicked += [(NOW - 7200 + 6 * place + 3, 0)] if place % 2 == 0 else []
        clicked += [(NOW + 6 * place + 3, 1)] if place % 2 == 0 else []
    clicked += [(NOW - 7200 - 50, 2), (NOW + 100_000, 3)]
    times, places = zip(*clicked, strict=True)
    new = pd.DataFrame({"user_id": user, "item_id": [items[place] for place in places], "timestamp": times})
    today = pd.concat([events, new.astype({"timestamp": events["timestamp"].dtype})])
    words = ("--interactions", written(today, tmp_path / "today.parquet"), "--window", "0.0014")  # 5 seconds
    found = compared(here, tmp_path, [answer] * 100, [answer] * 100, *words)
    clicks = {column: one for (column, measure), one in found.items() if measure == "clicks"}
    assert list(clicks) == ["position 1", "position 2", "position 3", "positions 4 to 5", "positions 6 to 10"]
    assert (clicks["position 1"]["training"], clicks["position 1"]["today"]) == (0.5, 0.0)
    assert (clicks["position 2"]["training"], clicks["position 2"]["today"]) == (0.0, 0.5)
    assert clicks["position 2"]["interval"] == list(wilson_interval(50, 100))
    assert (clicks["position 3"]["today"], clicks["positions 4 to 5"]["today"]) == (0.0, 0.0)
    assert clicks["positions 6 to 10"]["cells"] == 500
    assert drifted_of(found) == {("position 1", "clicks")}
    prometheus = (tmp_path / "out" / "drift.prom").read_text(encoding="utf-8")
    assert 'towers_drift_click_through_share{column="position 2",table="requests"} 0.5' in prometheus
    assert "0.500 (0.404 to 0.596)" in (tmp_path / "out" / "drift.html").read_text(encoding="utf-8")


def test_an_event_counts_for_the_last_answer_that_showed_its_item():
    shown = pd.DataFrame(
        {"time": [10.9, 20.2, 20.2, 30.0], "user_hash": ["a", "a", "b", "a"], "item_id": ["x", "x", "x", "y"]}
    )
    events = pd.DataFrame(
        {"time": [25, 26, 10, 99, 20], "user_hash": ["a", "a", "a", "a", "c"], "item_id": ["x", "x", "x", "y", "x"]}
    )
    assert chosen(shown, events, 50).tolist() == [True, True, False, False]
    assert chosen(shown, events, 4).tolist() == [True, False, False, False]


def test_a_log_that_cannot_be_used_is_one_line(here: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such file; a service with the setting request_log writes it"):
        run("--requests", str(tmp_path / "none"))
    (tmp_path / "empty").touch()
    assert "no request is logged yet" in run("--requests", str(tmp_path / "empty")).stdout
    assert "set request_log_key" in run("--requests", written_log(tmp_path / "log", [line_of(NOW, {})])).stdout


@pytest.mark.slow
def test_the_log_of_two_workers_shows_planted_drift_and_no_other(here: Path, tmp_path: Path):
    log, address = tmp_path / "requests.jsonl", f"http://127.0.0.1:{(port := free_port())}"
    settings = {"TOWERS_REQUEST_LOG": str(log), "TOWERS_REQUEST_LOG_SHARE": "1", "TOWERS_REQUEST_LOG_KEY": KEY}
    settings["TOWERS_LIVE"] = str(tmp_path / "live.db")
    events = pd.read_parquet("data/interactions.parquet")
    users, items = events["user_id"].unique().tolist()[:40], events["item_id"].unique().tolist()

    def ask_all(prefix: str = "") -> list[dict]:
        """Ask for 40 users by id and 40 described ones; ids with the prefix are unknown."""
        bodies = [{"history": [f"{prefix}{item}" for item in items[at : at + 4]], "k": 5} for at in range(40)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda body: ask(f"{address}/recommendations", body), bodies))
            return list(pool.map(lambda user: ask(f"{address}/recommendations/{prefix}{user}?k=5"), users))

    process = start(here, "serve", "runs/run-1", "--port", str(port), "--workers", "2", **settings)
    try:
        wait_until_ready(process, address)
        while ask(f"{address}/readyz")["workers"]["ready"] < 2:
            time.sleep(0.1)
        ask_all()
        time.sleep(2)
        answers = ask_all()
        chosen_first = [
            {"user_id": one["user_id"], "item_id": one["items"][0]["item_id"], "time": int(time.time())}
            for one in answers[:20]
        ]
        ask(f"{address}/events", {"events": chosen_first})
        time.sleep(2)
        ask_all("planted-")
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said

    moments = read_requests(log).answers["time"].to_numpy()
    assert len(moments) == 240, "what was answered before SIGTERM is in the log"
    late = {"user_id": users[0], "item_id": items[0], "timestamp": int(time.time()) + 100}
    today = written(pd.concat([events, pd.DataFrame([late])]), tmp_path / "today.parquet")
    lines = log.read_text().splitlines(keepends=True)
    (tmp_path / "usual.jsonl").write_text("".join(lines[:160]))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        for name, num_lines in (("usual.jsonl", 160), ("requests.jsonl", 240)):
            gap = (moments[num_lines - 80] - moments[num_lines - 81]) / 2
            recent = (moments[num_lines - 1] - moments[num_lines - 80] + gap) / 3600
            run(
                *("--requests", str(tmp_path / name), "--recent", str(recent), "--window", "0.02"),
                *("--interactions", today, "--output", str(tmp_path / name[:5])),
            )
            found[name] = {place for place in found_in(tmp_path / name[:5]) if place[0] == "requests"}
    assert found["usual.jsonl"] == set()
    planted = {("requests", "users by id", "known"), ("requests", "items of histories", "known")}
    assert planted <= found["requests.jsonl"]
    content = json.loads((tmp_path / "usual" / "drift.json").read_text(encoding="utf-8"))
    assert not [note for note in content["notes"] if "click" in note], content["notes"]
    clicks = {one["column"]: one["today"] for one in content["findings"] if one["measure"] == "clicks"}
    assert clicks["position 1"] == 0.5
    assert clicks["position 2"] == 0.0
