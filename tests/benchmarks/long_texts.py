"""Whether a service goes on answering while it is sent a megabyte of anything, anywhere.

    python tests/benchmarks/long_texts.py [--bytes 1000000] [--server granian --server gunicorn] [--every 1]

Starts `towers serve` on a small bundle under each server and sends it every kind of text in every place of every
request, as its own OpenAPI document names them. Prints the slowest answer, and the slowest answer of `/healthz` to a
second client beside; ends with status 1 if one took more than a second, `/healthz` more than 0.2, or an answer was 5xx.
Where others use the machine, too, those times are also theirs: so the request is named that took the server's processes
the most processor time.
"""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit
from urllib.request import urlopen

import numpy as np
import pandas as pd
import psutil

from tests.running import SECONDS, free_port, start, wait_until_ready

MAX_SECONDS = 1.0
MAX_HEALTH_SECONDS = 0.2

UNITS = {
    "digits": "1",
    "zeros": "0",
    "blanks": " ",
    "tabs": "\t",
    "dots": ".",
    "minus signs": "-",
    "es": "e",
    "colons": ":",
    "commas": ",",
    "equals signs": "=",
    "percent escapes": "%41",
    "ampersands": "&",
    "plus signs": "+",
    "slashes": "/similar",
    "quotes": '"',
    "backslashes": "\\",
    "nulls": "\0",
    "line ends": "\r\n",
    "terminal escapes": "\x1b[31m",
    "accents": "é",
    "combining accents": "e\u0301",
    "ideographs": "漢",
    "emoji": "👍🏽",
    "reversed writing": "\u202e",
    "words": "red chair ",
    "nested lists": "[",
    "nested objects": '{"a":',
    "dates": "2024-01-01T",
}
HEADERS = ("X-Request-Id", "X-Forwarded-For", "Authorization", "Content-Type", "Accept", "User-Agent", "Cookie", "Host")
"""Those that the service or its libraries read."""

# Longer ones are refused by the servers themselves.
_QUERY_BYTES = {"granian": 60_000, "gunicorn": 3_800}
_QUIET_SECONDS = 5.0
_HOLE = b'"@@"'


@dataclass(frozen=True)
class Sent:
    """A request.

    Attributes:
        place: Where in it the text stands, and which text, for a message.
        method: GET, POST, ...
        path: As bytes, not escaped.
        query: What stands behind the `?`, escaped.
        headers: By name.
        around: JSON with a hole, or none.
        fragment: What stands in the hole.
    """

    place: str
    method: str
    path: bytes
    query: str = ""
    headers: dict[str, bytes] = field(default_factory=dict)
    around: bytes | None = None
    fragment: bytes = b""

    @property
    def body(self) -> bytes | None:
        """The body, made when it is sent: all of them together are gigabytes."""
        return None if self.around is None else self.around.replace(_HOLE, self.fragment)


def texts(size: int) -> dict[str, str]:
    """Return each kind of text, of about `size` characters; some end in what makes them useless only there."""
    found = {kind: unit * (size // len(unit)) for kind, unit in UNITS.items()}
    return found | {
        "digits and a letter": "1" * (size - 1) + "x",
        "digits, a dot, digits and a letter": "1" * (size // 2) + "." + "1" * (size // 2) + "x",
        "a minus sign and digits": "-" + "1" * (size - 1),
        "a date and blanks": "2024-01-01" + " " * (size - 10),
        "an exponent of digits": "1e" + "1" * (size - 2),
    }


def values(size: int) -> dict[str, bytes]:
    """Return what is no text, in JSON of about `size` bytes."""
    depth = min(size // 2, 1_000)  # deeper ones orjson refuses, which is what "too deep" is for
    count = size // 12

    def many(unit: bytes) -> bytes:
        return b"[" + b",".join([unit] * (size // (len(unit) + 1))) + b"]"

    return {
        "a long number": b"1" * size,
        "a long fraction": b"0." + b"1" * size,
        "a long exponent": b"1e" + b"1" * size,
        "deep lists": b"[" * depth + b"]" * depth,
        "deep objects": b'{"a":' * depth + b"1" + b"}" * depth,
        "too deep": b"[" * size,
        "many numbers": many(b"1"),
        "many fractions": many(b"1.0"),
        "many nulls": many(b"null"),
        "many texts": many(b'"a"'),
        "many lists": many(b"[]"),
        "many objects": many(b"{}"),
        "many fields": b"{" + b",".join(b'"f%08d":0' % number for number in range(count)) + b"}",
    }


def requests(document: dict[str, Any], given: dict[str, str], size: int, query_size: int) -> Iterator[Sent]:
    """Return a request for each place that an OpenAPI document names, with each kind of text there.

    Args:
        document: What the service says of itself.
        given: Parameters that must be right for anything else to be read, by name.
        size: Bytes of a text.
        query_size: The same where all of a query string may not be longer.
    """
    long, within = texts(size), texts(query_size)
    escaped = {kind: quote_from_bytes(text[:query_size].encode())[:query_size] for kind, text in within.items()}
    bodies = {kind: json.dumps(text, ensure_ascii=False).encode() for kind, text in long.items()} | values(size)
    for template, operations in document["paths"].items():
        for method, operation in operations.items():
            verb, where = method.upper(), f"{method} {template}"
            path = _filled(template, given)
            parameters = operation.get("parameters", [])
            minimal = _minimal_body(operation, document)
            needed = "&".join(f"{one['name']}={given[one['name']]}" for one in parameters if _is_needed(one))
            common = {} if minimal is None else {"Content-Type": b"application/json"}
            content = None if minimal is None else json.dumps(minimal).encode()
            for kind, text in long.items():
                for one in parameters:
                    if one["in"] == "path":
                        changed = _filled(template, given | {one["name"]: text})
                        yield Sent(f"{where} path {one['name']}: {kind}", verb, changed, needed, common, content)
                # Headers are read in the same way before all operations, and one more where there is a body.
                for name in HEADERS if minimal is not None or template == "/healthz" else ():
                    headers = common | {name: _header(name, text)}
                    yield Sent(f"{where} header {name}: {kind}", verb, path, needed, headers, content)
                yield Sent(
                    f"{where} query of any length: {kind}", verb, path, "k=" + text[:size].strip(), common, content
                )
            for kind, text in escaped.items():
                for one in parameters:
                    if one["in"] == "query":
                        others = "&".join(part for part in needed.split("&") if not part.startswith(f"{one['name']}="))
                        query = f"{one['name']}={text}&{others}"
                        yield Sent(f"{where} query {one['name']}: {kind}", verb, path, query, common, content)
                yield Sent(f"{where} name in a query: {kind}", verb, path, f"{text}=1", common, content)
            for one in parameters:
                if one["in"] == "query":
                    query = "&".join([f"{one['name']}=1"] * (query_size // (len(one["name"]) + 3)))
                    yield Sent(f"{where} query {one['name']}: many", verb, path, query, common, content)
            if minimal is not None:
                for place, body in _bodies(operation, document):
                    for kind, fragment in bodies.items():
                        if place.endswith("(name)") and not fragment.startswith(b'"'):
                            continue
                        yield Sent(f"{where} {place}: {kind}", verb, path, needed, common, body, fragment)


def _header(name: str, text: str) -> bytes:
    return (b"Bearer " if name == "Authorization" else b"") + text.encode()


def _filled(template: str, given: dict[str, str]) -> bytes:
    for name, value in given.items():
        template = template.replace(f"{{{name}}}", value)
    return template.encode()


def _is_needed(parameter: dict[str, Any]) -> bool:
    return bool(parameter["in"] == "query" and parameter.get("required"))


def _schema(operation: dict[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    schema: dict[str, Any] | None = content.get("application/json", {}).get("schema")
    return schema


def _minimal_body(operation: dict[str, Any], document: dict[str, Any]) -> Any:
    schema = _schema(operation)
    return None if schema is None else _minimal(schema, document)


def _bodies(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    schema = _schema(operation)
    assert schema is not None
    seen: set[str] = set()
    for place, put in _places(schema, document, "body", set()):
        body = json.dumps(put("@@"))
        if body not in seen:
            seen.add(body)
            yield place, body.encode()


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _places(
    schema: dict[str, Any], document: dict[str, Any], place: str, opened: set[str]
) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Return each place in a body, with what puts a value there; what a name stands for is opened once."""
    yield place, lambda value: value
    if "$ref" in schema:
        if schema["$ref"] in opened:
            return
        opened.add(schema["$ref"])
    schema = _resolved(schema, document)
    for alternative in schema.get("anyOf", []):
        yield from _places(alternative, document, place, opened)
    if "properties" in schema:
        smallest = _minimal(schema, document)
        yield f"{place} (name)", lambda value: {**smallest, value: 1}
        for name, inner in schema["properties"].items():
            for at, put in _places(inner, document, f"{place}.{name}", opened):
                yield at, lambda value, name=name, put=put: {**smallest, name: put(value)}
    if "items" in schema:
        for at, put in _places(schema["items"], document, f"{place}[]", opened):
            yield at, lambda value, put=put: [put(value)]


def _minimal(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """Return the smallest value that a schema allows; texts and numbers are those of an id."""
    schema = _resolved(schema, document)
    if "anyOf" in schema:
        return _minimal(schema["anyOf"][0], document)
    match schema.get("type"):
        case "object":
            return {name: _minimal(schema["properties"][name], document) for name in schema.get("required", [])}
        case "array":
            return [_minimal(schema["items"], document)] * schema.get("minItems", 0)
        case "integer" | "number":
            return 1
    return "1"


def _make_bundle(folder: Path) -> tuple[Path, dict[str, str]]:
    """Write a bundle that reads columns of every kind, with its index; return it, and a known user and item."""
    from serving.jobs.build_index import build_index
    from tests.serving.conftest import SETTINGS, write_shop, write_untrained
    from towers.bundle.bundle import ModelBundle

    rng = np.random.default_rng(0)
    write_shop(folder / "data")
    for name, dates in (("products.csv", "made"), ("people.csv", "joined")):
        frame = pd.read_csv(folder / "data" / name)
        frame[dates] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, len(frame)), unit="D")
        frame["about"] = rng.choice(["likes red chairs", "likes blue lamps"], len(frame))
        frame.to_csv(folder / "data" / name, index=False)
    settings = copy.deepcopy(SETTINGS)
    settings["features"]["item"] |= {"made": {"kind": "time"}, "about": {"kind": "text"}}
    settings["features"]["user"] |= {"joined": {"kind": "time"}, "about": {"kind": "text"}}
    write_untrained(folder / "bundle", folder / "data", settings)
    build_index(ModelBundle.open(folder / "bundle"), {})
    return folder / "bundle", {"user_id": "1001", "item_id": "p1", "q": "chair"}


@contextmanager
def _served(folder: Path, bundle: Path, server: str) -> Iterator[tuple[str, int]]:
    address = f"http://127.0.0.1:{(port := free_port())}"
    live = str(folder / f"{server}.db")
    process = start(folder, "serve", str(bundle), "--port", str(port), "--live", live, TOWERS_SERVER=server)
    lines: list[str] = []
    try:
        wait_until_ready(process, address)
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
        reader.start()
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)
    longest = max(map(len, lines), default=0)
    print(f"  the log: {sum(map(len, lines)):,} characters, the longest line {longest:,}")


class _Client:
    """Sends requests as they are over one connection, opened again where the server closed it."""

    def __init__(self, address: str) -> None:
        self._address = str(urlsplit(address).hostname), int(urlsplit(address).port or 80)
        self._connection: socket.socket | None = None

    def send(self, sent: Sent) -> tuple[int, int, float]:
        """Return the status of the answer, 0 where the server closed the connection, its bytes, and the seconds.

        Everything is written before the clock runs, so that what is measured is the server and not this client.
        """
        content = _written(sent)
        began = time.perf_counter()
        try:
            connection = self._connection or socket.create_connection(self._address, timeout=60)
            self._connection = None
            with suppress(ConnectionError):  # one that was refused early may have an answer all the same
                connection.sendall(content)
            answer = http.client.HTTPResponse(connection, method=sent.method)
            answer.begin()
            size = len(answer.read())
            seconds = time.perf_counter() - began
            if answer.will_close:
                connection.close()
            else:
                self._connection = connection
            return answer.status, size, seconds
        except (http.client.HTTPException, OSError):
            return 0, 0, time.perf_counter() - began


def _written(sent: Sent) -> bytes:
    """Return a request as it goes over the wire."""
    query = quote_from_bytes(sent.query.encode(), safe="%&=+")
    target = quote_from_bytes(sent.path) + (f"?{query}" if query else "")
    headers = {"Host": b"127.0.0.1"} | sent.headers
    body = sent.body
    if body is not None:
        headers["Content-Length"] = str(len(body)).encode()
    # A line's end within a header is the end of the header: nobody can send one.
    lines = [name.encode() + b": " + value.replace(b"\r", b"").replace(b"\n", b"") for name, value in headers.items()]
    return b"\r\n".join([f"{sent.method} {target} HTTP/1.1".encode(), *lines, b"", body or b""])


@contextmanager
def _health(address: str) -> Iterator[dict[str, float]]:
    """Ask for /healthz all the while, from a process of its own; at the end, what is yielded says how that went."""
    found: dict[str, float] = {}
    process = subprocess.Popen(
        [sys.executable, __file__, "--health", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield found
    finally:
        said, _ = process.communicate()
        found |= json.loads(said)


def _ask_for_health(address: str) -> None:
    """Ask for /healthz until the standard input ends; print the slowest answer in seconds, and how many there were."""
    client, slowest, count, problems = _Client(address), 0.0, 0, 0
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    while not is_over.wait(0.01):
        status, _, seconds = client.send(Sent("health", "GET", b"/healthz"))
        slowest, count = max(slowest, seconds), count + 1
        problems += status != 200
    print(json.dumps({"slowest": slowest, "count": count, "problems": problems}))


def _attack(address: str, pid: int, sent: Callable[[dict[str, Any]], Iterator[Sent]]) -> bool:
    """Send everything, print what was slowest, and return whether all bars hold."""
    with urlopen(f"{address}/openapi.json", timeout=SECONDS) as answer:
        document = json.load(answer)
    with _health(address) as quiet:
        time.sleep(_QUIET_SECONDS)
    print(f"  /healthz before: {quiet['slowest']:.3f} s at most of {quiet['count']:,}, which is what the machine takes")
    with _health(address) as beside:
        holds = _measure(_Client(address), sent(document), _Processor(pid))
    slowest, problems = beside["slowest"], beside["problems"]
    print(f"  /healthz beside: {slowest:.3f} s at most of {beside['count']:,}, {problems} not answered")
    return holds and slowest <= MAX_HEALTH_SECONDS and not problems


class _Processor:
    """The processor time of a server: its process and all that it started, to the nanosecond."""

    def __init__(self, pid: int) -> None:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        self._folders = [Path(f"/proc/{process.pid}/task") for process in processes]
        self._before = self._now()

    def spent(self) -> float:
        """Return the seconds since this was last asked."""
        before, self._before = self._before, self._now()
        return self._before - before

    def _now(self) -> float:
        spent = 0
        for file in (file for folder in self._folders for file in folder.glob("*/schedstat")):
            with suppress(OSError):  # a thread that ended
                spent += int(file.read_text(encoding="ascii").split()[0])
        return spent / 1e9


def _measure(client: _Client, sent: Iterator[Sent], processor: _Processor) -> bool:
    slowest: list[tuple[float, str, int]] = []
    statuses: dict[int, int] = {}
    seconds_in_all, largest, dearest = [], 0, (0.0, "")
    failed: list[str] = []
    for one in sent:
        processor.spent()
        status, size, seconds = client.send(one)
        dearest = max(dearest, (processor.spent(), one.place))
        statuses[status] = statuses.get(status, 0) + 1
        seconds_in_all.append(seconds)
        largest = max(largest, size)
        slowest = sorted([*slowest, (seconds, one.place, status)], reverse=True)[:5]
        if status >= 500:
            failed.append(f"{status}: {one.place}")
    print(f"  answers by status (0: the connection was closed): {dict(sorted(statuses.items()))}")
    middle, high = np.quantile(seconds_in_all, [0.5, 0.99])
    print(f"  half of them within {middle:.4f} s, 99 % within {high:.3f} s; the slowest:")
    for seconds, place, status in slowest:
        print(f"  {seconds:.3f} s ({status}): {place}")
    print(f"  the most processor time: {dearest[0]:.3f} s: {dearest[1]}")
    print(f"  the largest answer: {largest:,} bytes")
    for line in failed[:20]:
        print(f"  FAILED {line}")
    return not failed and slowest[0][0] <= MAX_SECONDS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of each text (default: %(default)s)")
    parser.add_argument("--server", action="append", choices=["granian", "gunicorn"], help="default: both")
    parser.add_argument("--every", type=int, default=1, help="send one of so many requests only (default: all)")
    parser.add_argument("--health", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.health:
        _ask_for_health(given.health)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, known = _make_bundle(folder)
        holds = True
        for server in given.server or ["granian", "gunicorn"]:
            print(f"{server}:")
            query_size = _QUERY_BYTES[server]
            with _served(folder, bundle, server) as (address, pid):
                holds &= _attack(
                    address,
                    pid,
                    lambda document, query_size=query_size: islice(
                        requests(document, known, given.bytes, query_size), 0, None, given.every
                    ),
                )
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
