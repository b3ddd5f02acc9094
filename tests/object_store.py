"""Object stores on this machine: moto's server, which speaks S3, with faults in front of it; and Google's, emulated."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.running import SECONDS, free_port

App = Callable[[dict[str, Any], Any], Iterable[bytes]]
Fault = Callable[[App, dict[str, Any], Any], Iterable[bytes]]
"""Answers a request, with or without the store behind it."""

BUCKET = "shop"
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@dataclass
class ObjectStore:
    """A running store.

    Attributes:
        client: Writes objects.
        environment: What a program that reads the store needs in its environment.
        requests: Method, path and range of bytes of each request so far.
        fault: What answers instead of the store. None: the store does.
    """

    client: Any
    environment: dict[str, str]
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    fault: Fault | None = None

    def put(self, key: str, content: bytes) -> None:
        """Write an object into the bucket."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)


@dataclass
class GoogleStore:
    """An emulated Google Cloud Storage.

    Attributes:
        address: Where it answers.
        environment: What a program that reads the store needs in its environment.
    """

    address: str
    environment: dict[str, str]

    def put(self, key: str, content: bytes) -> None:
        """Write an object into the bucket."""
        name = quote(key, safe="")
        address = f"{self.address}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}"
        content = content or b"\n"  # the emulator takes no empty object
        urlopen(Request(address, content, {"Content-Type": "application/octet-stream"}), timeout=10).close()


def put_folder(store: ObjectStore | GoogleStore, key: str, folder: Path) -> None:
    """Write all files of a folder, hidden ones, too."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@contextmanager
def google_store() -> Iterator[GoogleStore]:
    """Run a store with one empty bucket while the block runs; in another process, as reading holds Python's lock."""
    port = free_port()
    program = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [*program, "--in-memory", "--default-bucket", BUCKET], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait(address)
            yield GoogleStore(address, {"STORAGE_EMULATOR_HOST": address})
        finally:
            process.terminate()


def _wait(address: str) -> None:
    """Return as soon as there is a bucket."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urlopen(f"{address}/storage/v1/b/{BUCKET}", timeout=10):
            return
        time.sleep(0.05)
    raise AssertionError("the emulator does not answer")


class _Silent(WSGIRequestHandler):
    def log(self, *said: Any) -> None:
        """Say nothing."""


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run a store with one empty bucket while the block runs."""
    moto = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, lambda environ, start: answer(environ, start), True, request_handler=_Silent)
    address = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client("s3", "us-east-1", endpoint_url=address, aws_access_key_id=KEY, aws_secret_access_key=SECRET)
    names = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    store = ObjectStore(client, {"AWS_ENDPOINT_URL_S3": address, **names})

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        store.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        return moto(environ, start) if store.fault is None else store.fault(moto, environ, start)

    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()
