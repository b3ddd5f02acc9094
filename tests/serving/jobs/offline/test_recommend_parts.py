"""Recommendations in parts: the same as in one file, by either engine, whatever happens on the way."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from features.errors import DataError, UnavailableError
from serving.config import ServingConfig
from serving.jobs.build_index import build_index
from serving.jobs.offline import ray_engine
from serving.jobs.offline.parts import MANIFEST, SUCCESS
from serving.jobs.offline.ray_engine import RayEngine, connected
from serving.jobs.offline.recommend_parts import RecommendWork, recommend_into_parts
from serving.jobs.recommend_all import Wanted, recommend_all
from tests import running
from tests.serving.conftest import SETTINGS, write_untrained
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from training.tasks.train_ranker import RankerChoice, train_bundle_ranker

SOON_AFTER = 1_700_200_000.0
"""A time within a day after the last interaction of the shop."""
WANTED = Wanted(7, conditions=("price_max=40",), exclude=("p0", "p3"), with_fallback=True)


@pytest.fixture(scope="module")
def bundle(pristine, tmp_path_factory) -> Path:
    """A bundle that looks at the clock, with a re-ranker and its index."""
    folder = tmp_path_factory.mktemp("parts") / "timed"
    timed = {**SETTINGS, "towers": {**SETTINGS["towers"], "time_bias": True}}
    write_untrained(folder, pristine / "data", timed)
    train_bundle_ranker(folder, RankerChoice())
    build_index(ModelBundle.open(folder), {})
    return folder


@pytest.fixture
def audience(tmp_path) -> Path:
    """Sixty known users, backwards, and some that nobody knows."""
    path = tmp_path / "users.csv"
    pd.DataFrame({"user": [*range(1059, 999, -1), *range(5000, 5007)]}).to_csv(path, index=False)
    return path


def content(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder)


def at(patch: pytest.MonkeyPatch, now: float) -> None:
    """Let jobs that begin do so at a time."""
    patch.setattr("serving.jobs.offline.recommend_parts.time.time", lambda: now)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected)
    assert len(found)


def test_the_parts_are_what_is_in_one_file(two_models, audience, tmp_path, capsys):
    recommend_all(two_models / "one", tmp_path / "one.parquet", WANTED, audience)
    recommend_into_parts(two_models / "one", tmp_path / "parts", WANTED, audience, users_per_part=8)
    said = capsys.readouterr().out
    assert_same(content(tmp_path / "parts"), content(tmp_path / "one.parquet"))
    assert not set(content(tmp_path / "parts")["item_id"]) & {"p0", "p3"}
    assert len(list((tmp_path / "parts").glob("part-*.parquet"))) == 9
    assert (tmp_path / "parts" / SUCCESS).exists()
    assert "469 recommendations for 67 users in 9 parts" in said
    assert said.count("7 users are unknown and got popular items") == 2


def test_another_run_makes_what_is_missing_and_as_of_the_first(bundle, audience, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "parts"
    at(monkeypatch, SOON_AFTER)
    recommend_into_parts(bundle, folder, WANTED, audience, users_per_part=8)
    before, times = content(folder), {part: part.stat().st_mtime_ns for part in folder.glob("part-*")}
    (folder / "part-00002.parquet").unlink()
    (folder / "part-00005.parquet").write_bytes(b"half of it")
    (folder / ".part-00002.parquet.1.partial").write_bytes(b"half of it")
    (folder / SUCCESS).unlink()
    at(monkeypatch, SOON_AFTER + 100 * 86_400)
    recommend_into_parts(bundle, folder, WANTED, audience, users_per_part=8)
    assert "7 of 9 parts are there already" in capsys.readouterr().out
    assert_same(content(folder), before)
    assert {part.stat().st_mtime_ns == times[part] for part in times if part.name[9] not in "25"} == {True}
    assert not list(folder.glob(".part-*"))
    recommend_into_parts(bundle, tmp_path / "later", WANTED, audience, users_per_part=8)
    assert not content(tmp_path / "later").equals(before), "the model does not look at the clock"


@pytest.mark.parametrize("damage", ["another part", "another job", "one byte", "a file of somebody else"])
def test_a_part_that_is_not_as_it_was_written_is_made_again(bundle, audience, tmp_path, damage):
    folder, part = tmp_path / "parts", tmp_path / "parts" / "part-00002.parquet"
    recommend_into_parts(bundle, folder, WANTED, audience, users_per_part=8)
    before = content(folder)
    if damage == "another part":
        shutil.copyfile(folder / "part-00001.parquet", part)
    elif damage == "another job":
        recommend_into_parts(bundle, tmp_path / "other", Wanted(3), audience, users_per_part=8)
        shutil.copyfile(tmp_path / "other" / part.name, part)
    elif damage == "one byte":
        changed = bytearray(part.read_bytes())
        changed[len(changed) // 8] ^= 1
        part.write_bytes(changed)
    else:
        pd.DataFrame({"user_id": [1]}).to_parquet(part)
    made_again = []

    def seen(self, *words, **settings):
        made_again.append((folder / SUCCESS).exists())
        return written(self, *words, **settings)

    written = Wanted.write
    with pytest.MonkeyPatch.context() as patch:
        at(patch, json.loads((folder / MANIFEST).read_text())["started"])
        patch.setattr(Wanted, "write", seen)
        recommend_into_parts(bundle, folder, WANTED, audience, users_per_part=8)
    assert made_again == [False], "one part, while the folder does not say that it is complete"
    assert_same(content(folder), before)
    assert (folder / SUCCESS).exists()


def test_a_file_that_readers_would_take_for_a_part_is_refused(bundle, audience, tmp_path):
    folder = tmp_path / "parts"
    recommend_into_parts(bundle, folder, WANTED, audience, users_per_part=8)
    shutil.copyfile(folder / "part-00001.parquet", folder / "part-00099.parquet")
    with pytest.raises(DataError, match=r"part-00099\.parquet: no part of this job.*; remove it"):
        recommend_into_parts(bundle, folder, WANTED, audience, users_per_part=8)


def test_a_job_that_is_killed_is_continued(bundle, tmp_path):
    folder = tmp_path / "killed"
    words = ["--k", "7", "--where", "price_max=40", "--exclude", "p0", "--exclude", "p3", "--with-fallback"]
    command = ["recommend", str(bundle), "--output-folder", str(folder), "--part-users", "1", *words]
    process = running.start(tmp_path, *command)
    ends = time.monotonic() + running.SECONDS
    while len(list(folder.glob("part-*"))) < 5 and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, said
    there = len(list(folder.glob("part-*")))
    assert 5 <= there < 89
    assert not (folder / SUCCESS).exists()
    started = json.loads((folder / MANIFEST).read_text())["started"]
    recommend_into_parts(bundle, folder, WANTED, users_per_part=1)
    with pytest.MonkeyPatch.context() as patch:
        at(patch, started)
        recommend_into_parts(bundle, tmp_path / "whole", WANTED, users_per_part=1)
    assert_same(content(folder), content(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wanted": Wanted(8)}, "begun with k = 7, and this run has 8; give another folder, or delete this one"),
        ({"wanted": Wanted(7, exclude=("p1",))}, r'begun with exclude = \[\], and this run has \["p1"\]'),
        ({"users_per_part": 9}, "begun with users_per_part = 40, and this run has 9"),
        ({"settings": ServingConfig(recommend_seen=True)}, "begun with recommend_seen = null, and this run has true"),
        ({"bundle": "two"}, "begun with (index|model) = "),
        ({"users": True}, "begun with users = "),
    ],
)
def test_a_folder_of_another_job_is_refused(two_models, audience, tmp_path, change, said):
    given = {"bundle": "one", "wanted": Wanted(7), "users_per_part": 40, **change}
    recommend_into_parts(two_models / "one", tmp_path / "parts", Wanted(7), users_per_part=40)
    before = content(tmp_path / "parts")
    if given.pop("users", False):
        given["users"] = audience
    with pytest.raises(DataError, match=said):
        recommend_into_parts(two_models / given.pop("bundle"), tmp_path / "parts", given.pop("wanted"), **given)
    assert_same(content(tmp_path / "parts"), before)


def test_a_folder_that_holds_something_else_or_is_in_use_is_refused(two_models, tmp_path):
    def refused(folder: Path, said: str) -> None:
        with pytest.raises(DataError, match=said):
            recommend_into_parts(two_models / "one", folder, Wanted(3))

    (tmp_path / "file").write_text("a")
    refused(tmp_path / "file", "is a file; give a folder as --output-folder")
    refused(tmp_path, "not empty, and not a folder of `towers recommend`")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    recommend_into_parts(two_models / "one", tmp_path / "parts", Wanted(3))
    (tmp_path / "parts" / MANIFEST).write_text("[")
    refused(tmp_path / "parts", "cannot be read; give another folder, or delete this one")
    with (tmp_path / "parts" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(tmp_path / "parts", "another run is writing there")


def test_excluded_items_that_do_not_exist_are_named(two_models, tmp_path, capsys):
    recommend_all(two_models / "one", tmp_path / "c.parquet", Wanted(3, exclude=("p0", "lamp")))
    assert "note: --exclude: not in the catalogue: 'lamp'" in capsys.readouterr().err


ANOTHER = r"^\S+ on \S+: found model \w{12} with index \w{12}, expected model \w{12} with index 0{12}; all machines"


def work_of_another_index(runs: Path) -> RecommendWork:
    model = ModelBundle.open(runs / "one").version
    return RecommendWork(runs / "one", model, "0" * 12, ServingConfig(), Wanted(3), 0.0)


def test_the_bundle_of_another_machine_is_checked(two_models):
    with pytest.raises(BundleError, match=ANOTHER):
        work_of_another_index(two_models).open()


def test_without_ray_the_remedy_is_one_line(two_models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("features.errors.requires", lambda name: ['ray>=2.60,<3 ; extra == "ray"'])
    monkeypatch.setattr("features.errors._is_installed", lambda name: False)
    with pytest.raises(
        DataError, match=r"^offline jobs on Ray need more libraries; type: pip install 'ray<3,>=2\.60'$"
    ):
        recommend_into_parts(two_models / "one", tmp_path / "parts", Wanted(3), engine=RayEngine())


def test_ray_writes_the_same(ray, bundle, audience, tmp_path, monkeypatch):
    at(monkeypatch, SOON_AFTER)
    recommend_into_parts(bundle, tmp_path / "single", WANTED, audience, users_per_part=8)
    recommend_into_parts(bundle, tmp_path / "ray", WANTED, audience, users_per_part=8, engine=RayEngine(num_actors=2))
    assert_same(content(tmp_path / "ray"), content(tmp_path / "single"))
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ray", "single")]
    assert names[0] == names[1]


def test_what_the_work_raises_arrives_as_it_is(ray, two_models):
    with pytest.raises(BundleError, match=ANOTHER):
        list(RayEngine(num_actors=1).run(work_of_another_index(two_models), [1, 2]))


def test_ray_is_for_this_machine_alone_and_says_nothing_to_its_makers(ray):
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert ray.util.get_node_ip_address() == "127.0.0.1"
    of_ray = [one for one in psutil.Process().children(recursive=True) if "ray" in " ".join(one.cmdline())]
    places = [found.laddr.ip for one in of_ray for found in one.net_connections() if found.status == "LISTEN"]
    assert places
    assert {place.removeprefix("::ffff:") for place in places} == {"127.0.0.1"}
    assert not usage_stats_enabled()


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:1", "refused"), ("ray://there", "expected HOST:PORT")])
def test_a_cluster_that_is_not_there_is_told(address, said):
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(UnavailableError, match=f"no Ray cluster can be used there .*{said}"), connected(address):
        pass


def test_an_address_that_listens_and_does_not_answer_is_not_waited_for(monkeypatch):
    """Ray itself takes 40 s for each of its attempts, so that a stand-in is joined here."""
    pytest.importorskip("ray", reason="ray is not installed")

    def tries_for_ever(*_):
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            with suppress(Exception):
                time.sleep(1)

    monkeypatch.setattr(ray_engine, "_SECONDS_TO_JOIN", 0.2)
    monkeypatch.setattr(ray_engine, "_initialise", tries_for_ever)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=rf"--address {address}: .*no answer within 0\.2 s"):
            connected(address).__enter__()
