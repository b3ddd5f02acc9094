"""`towers serve` for real: another process, a free port, several workers, HTTP, signals."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from features.errors import DataError
from serving.config import ServingConfig
from serving.server.server import address_of, find_port

SECONDS_TO_START = 180
TOWERS = Path(sys.executable).with_name("towers")
HOSTILE = ("features/__init__.py", "serving.py", "towers.py", "training.py", "json.py", "torch.py", "click.py")


def write_hostile_modules(folder: Path) -> None:
    """Put modules into a folder that have the names of ours and others', and leave a file behind if one is imported."""
    for name in HOSTILE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(folder / 'imported')!r}, 'a').write(__name__)\n")


class Served:
    """A running `towers serve`."""

    def __init__(self, folder: Path, *flags: str, bundle: str = "runs/latest", **settings: str) -> None:
        self.folder, self.said = folder, ""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        write_hostile_modules(folder)
        command = [str(TOWERS), "serve", bundle, "--port", str(self.port), *flags]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TOWERS_")} | settings
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def ask(self, path, method="GET", body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def count(self, **labels):
        """How many requests all workers together have answered, by `route` and `status`."""
        wanted = ",".join(f'{name}="{value}"' for name, value in labels.items())
        return self.metric(f"towers_requests_total{{{wanted}}}")

    def metric(self, sample):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))

    def wait_until_said(self):
        """Wait for the lines that say the address."""
        line = "..."
        while line and not line.startswith("Ctrl-C "):
            line = self.process.stdout.readline()
            self.said += line

    def wait_until_ready(self, workers=1):
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                status, content = self.ask("/readyz")
                if status == 200 and content["workers"] == {"ready": workers, "living": workers}:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"not ready: {self.process.communicate()[0]}")

    def stop(self, how):
        self.process.send_signal(how)
        output, _ = self.process.communicate(timeout=60)
        assert not (self.folder / "imported").exists(), "the working folder was imported from"
        return self.process.returncode, self.said + output


def copy(pristine: Path, folder: Path) -> Path:
    shutil.copytree(pristine / "runs", folder / "runs")
    (folder / "runs" / "latest").symlink_to("model")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("server", "how"), [("granian", signal.SIGTERM), ("gunicorn", signal.SIGINT)])
def test_it_answers_under_each_server_with_several_workers_and_ends_in_peace(pristine, tmp_path, server, how):
    planted = "sqlite:///planted-live.db"
    served = Served(copy(pristine, tmp_path), "--server", server, "--workers", "2", TOWERS_LIVE=planted)
    try:
        served.wait_until_said()
        assert served.ask("/healthz")[0] == 200, "it listens before it says so"
        served.wait_until_ready(workers=2)
        status, known = served.ask("/recommendations/1001?k=5")
        assert (status, known["user_id"], known["fallback"], len(known["items"])) == (200, 1001, None, 5)

        # Every worker must really search and encode, not just answer: a search that hangs after a fork shows here.
        body = json.dumps({"history": ["p1", "p2"], "k": 5})
        with ThreadPoolExecutor(8) as pool:
            asked = list(pool.map(lambda _: served.ask("/recommendations/1001?k=5"), range(40)))
            described = list(
                pool.map(
                    lambda _: served.ask("/recommendations", "POST", body, {"Content-Type": "application/json"}),
                    range(40),
                )
            )
        assert all(answer == (200, known) for answer in asked)
        assert all(answer == described[0] and answer[0] == 200 for answer in described)

        # What takes seconds to import and is not needed for that was not imported.
        for worker in psutil.Process(served.process.pid).children():
            loaded = {part for file in worker.memory_maps() for part in Path(file.path).parts}
            assert "torch" in loaded
            assert not loaded & {"fbgemm_gpu", "sklearn", "mlflow"}

        # Whichever worker is asked, it tells the counts of both, also after one of them was killed.
        route = "/recommendations/{user_id}"
        assert all(served.count(route=route, status=200) == 41 for _ in range(6))
        assert served.count(route="/recommendations", status=200) == 40
        worker = psutil.Process(served.process.pid).children()[0]
        worker.kill()
        worker.wait(30)
        served.wait_until_ready(workers=2)
        assert all(served.count(route=route, status=200) == 41 for _ in range(6))

        # No process has the settings, among them a database's password, in its environment or on its command line.
        master = psutil.Process(served.process.pid)
        for process in (master, *master.children(recursive=True)):
            assert "planted" not in f"{process.environ()} {process.cmdline()}"
            # What keeps their memory flat (see soak.py among the benchmarks).
            assert process.environ()["MALLOC_ARENA_MAX"] == process.environ()["MKL_DISABLE_FAST_MM"] == "1"
            assert process.environ()["ARROW_DEFAULT_MEMORY_POOL"] == "system"

        # What servers make of paths and errors is theirs, so it is tried under each of them.
        for odd in ("a/b", "ä ö", "100%", "/a//b/"):
            assert served.ask(f"/recommendations/{quote(odd, safe='')}")[1]["user_id"] == odd
        assert served.ask("/recommendations/1001?k=x")[0] == 422
        assert served.ask("/recommendations", "POST", b"{}", {"Content-Type": "text/plain"})[0] == 415
        assert served.ask("/recommendations", "POST", b"x" * 2**21, {"Content-Type": "application/json"})[0] == 413
        assert served.ask("/items/gone/similar")[0] == 404
        assert served.ask("/recommendations/1001", "DELETE")[0] == 405
    finally:
        code, output = served.stop(how)
    assert code == 0, output
    assert f"http://127.0.0.1:{served.port}" in output
    assert "curl 'http://127.0.0.1" in output
    assert "2 workers" in output
    assert "Traceback" not in output
    assert (tmp_path / "runs" / "model" / "index" / "manifest.json").exists()


class Slow:
    """A request that is begun, and ends when it is told to."""

    BODY = b'{"history": ["p1"], "k": 3}'

    def __init__(self, served):
        self.connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
        head = f"POST /recommendations HTTP/1.1\r\nHost: here\r\nContent-Length: {len(self.BODY)}\r\n"
        self.connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + self.BODY[:5])

    def end(self):
        self.connection.sendall(self.BODY[5:])

    def answer(self):
        response = http.client.HTTPResponse(self.connection)
        response.begin()
        return response.status, json.loads(response.read())


STALLED = (
    b"GET /recommendations/1001 HTTP/1.1\r\nHost: here\r\n",
    b"POST /recommendations HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{",
    b"GET /recommendations/1001 HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    b"POST /recommendations HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000\r\n\r\n{",
)
"""Beginnings of requests after which nothing comes."""


@pytest.mark.slow
@pytest.mark.parametrize("server", ["granian", "gunicorn"])
def test_senders_who_stall_keep_nobody_waiting_and_what_was_begun_is_finished_before_the_end(
    pristine, tmp_path, server
):
    served = Served(
        copy(pristine, tmp_path),
        *("--server", server, "--threads", "1", "--workers", "2"),
        TOWERS_LOG_REQUESTS="all",
        TOWERS_BODY_SECONDS="4",
    )
    connections = []
    try:
        served.wait_until_ready(workers=2)
        for turn in range(80):
            connections.append(socket.create_connection(("127.0.0.1", served.port), timeout=30))
            connections[-1].sendall(STALLED[turn % len(STALLED)])
        for _ in range(3):
            for path in ("/recommendations/1001", "/healthz", "/readyz"):
                began = time.monotonic()
                assert served.ask(path)[0] == 200
                assert time.monotonic() - began < 3
            began = time.monotonic()
            posted = served.ask("/recommendations", "POST", Slow.BODY, {"Content-Type": "application/json"})
            assert posted[0] == 200
            assert time.monotonic() - began < 3
        for turn, connection in enumerate(connections):
            if turn % len(STALLED) in (1, 2):  # of the others the headers have longer, or they were answered
                while connection.recv(4096):
                    pass
        deadline = time.monotonic() + 20
        while served.metric('towers_rejected_total{reason="slow"}') < 40 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert served.metric('towers_rejected_total{reason="slow"}') == 40

        slow = [Slow(served) for _ in range(16)]
        connections += [one.connection for one in slow]
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        for one in slow:
            one.end()
        for one in slow:
            status, content = one.answer()
            assert (status, len(content["items"])) == (200, 3)
    finally:
        for connection in connections:
            connection.close()
        code, output = served.stop(signal.SIGTERM)
    assert code == 0, output
    assert "Traceback" not in output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert not [line for line in lines if line["logger"].endswith(".access")]
    described = [line for line in lines if line.get("route") == "/recommendations" and line["status"] == 200]
    assert len(described) == 3 + 16
    assert all(line["request_id"] and line["stages"]["encode"] for line in described)


SUPERVISED = """
import logging, os, sys, time
from pathlib import Path
from granian.constants import Interfaces
from serving.server import granian_server
from serving.server.server import STARTED
logging.basicConfig(format="%(message)s")
granian_server._FIRST_PAUSE, granian_server._LONGEST_PAUSE = 0.05, 0.2
shared, port, dies = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "dies"

def load():
    if dies:
        raise SystemExit(7)
    (shared / STARTED).touch()
    (shared / str(os.getpid())).touch()
    return lambda environ, start: start("200 OK", []) or []

granian_server.Supervised(
    "app", started=shared / STARTED, port=port, interface=Interfaces.WSGI, workers=2, blocking_threads=2,
    workers_kill_timeout=5,  # as of the service: the signal may come before a new worker listens to it
).serve(target_loader=load, wrap_loader=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["lives", "dies"])
def test_workers_are_replaced_however_often_they_are_killed_unless_none_can_start(tmp_path, dies):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(tmp_path), port, dies], stderr=subprocess.PIPE, text=True
    )
    if dies == "dies":
        assert "started" not in server.communicate(timeout=60)[1]
        assert server.returncode == 1
        return
    killed = set()
    deadline = time.monotonic() + 60
    while len(killed) < 12 and time.monotonic() < deadline:
        for pid in {int(path.name) for path in tmp_path.glob("[0-9]*")} - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    assert len(killed) == 12
    while len(list(tmp_path.glob("[0-9]*"))) < 14 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.poll() is None
    server.send_signal(signal.SIGTERM)
    said = server.communicate(timeout=60)[1]
    assert server.returncode == 0, said
    assert said.count("exited (signal 9); it is restarted in") == 12


def test_a_port_in_use_is_one_clear_line(pristine, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} of 127.0.0.1 is already in use; choose another with --port"):
            find_port(ServingConfig(port=port))


def test_port_zero_is_any_that_is_free():
    assert find_port(ServingConfig(port=0)) > 0


@pytest.mark.parametrize("host", ["no.such.host.invalid", "not a host"])
def test_a_host_that_does_not_exist_is_one_clear_line(host):
    with pytest.raises(DataError, match=r"use 127.0.0.1, or 0.0.0.0 for all"):
        find_port(ServingConfig(host=host))


def test_a_host_of_another_machine_is_one_clear_line():
    with pytest.raises(DataError, match=r"cannot listen on port 8000 of 192.0.2.1"):
        find_port(ServingConfig(host="192.0.2.1"))


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_the_address_is_one_that_a_browser_takes(host, address):
    assert address_of(ServingConfig(host=host, port=80)) == address
