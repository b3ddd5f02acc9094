"""Requests for fuzz.py: valid ones made from a service's own OpenAPI document, and what becomes of them when mutated.

Everything is drawn from one `random.Random`, so that the same seed makes the same requests.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from tests.benchmarks.harness import ITEMS, USERS, VECTOR_SIZE

PROBES = ("/healthz", "/readyz")
"""Paths that need no key."""
OTHERS = (
    "/",
    "/?user=1001",
    "/?q=red+lamp",
    "/metrics",
    "/openapi.json",
    "/static/page.css",
    "/favicon.ico",
    "/nothing",
)
OWN_ITEMS = [f"own-{number}" for number in range(60)]
NEW_USERS = list(range(5000, 5060))
NUM_EVENT_IDS = 400
METHODS = ("HEAD", "OPTIONS", "TRACE", "PATCH", "PUT", "DELETE", "POST", "GET", "CONNECT", "PROPFIND", "get", "G" * 300)
WORDS = ("red", "green", "wooden", "steel", "lamp", "chair", "zzz", "日本", "a", "-")


@dataclass(frozen=True)
class Raw:
    """A piece of a JSON text that `json.dumps` would not write.

    Attributes:
        text: It.
    """

    text: str


@dataclass
class Message:
    """A request before it goes over the wire.

    Attributes:
        kind: How it was made: `valid`, `mutated`, `greedy`, `wire`.
        operation: Path as in the document and method in lower case; None where it is none of the document's.
        role: Which key it bears: `none`, `wrong`, `read`, `write`.
        is_framed: Whether an HTTP server can tell where it ends, so that there must be a whole answer.
    """

    method: str
    path: str
    query: list[tuple[str, str]] = field(default_factory=list)
    body: Any = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    kind: str = "valid"
    operation: tuple[str, str] | None = None
    role: str = "none"
    is_framed: bool = True

    def target(self) -> str:
        """Return path and query as they stand in the first line."""
        pairs = "&".join(f"{name}={value}" for name, value in self.query)
        return f"{self.path}?{pairs}" if pairs else self.path

    def wire(self) -> bytes:
        """Return its bytes; `{key}` stands where the key is to be put."""
        headers = [("Host", "127.0.0.1")]
        if self.role != "none":
            headers.append(("Authorization", "Bearer {key}"))
        content = b""
        if self.body is not None:
            content = self.body if isinstance(self.body, bytes) else dumps(self.body).encode("utf-8", "surrogatepass")
            if not any(name.lower() == "content-type" for name, _ in self.headers):
                headers.append(("Content-Type", "application/json"))
            if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in self.headers):
                headers.append(("Content-Length", str(len(content))))
        lines = [
            f"{self.method} {self.target()} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers + self.headers),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogatepass") + content


def dumps(value: Any) -> str:
    """Return JSON, with `Raw` pieces as they are."""
    match value:
        case Raw():
            return value.text
        case dict():
            pairs = (
                f"{name.text if isinstance(name, Raw) else json.dumps(name)}:{dumps(one)}"
                for name, one in value.items()
            )
            return "{" + ",".join(pairs) + "}"
        case list():
            return "[" + ",".join(map(dumps, value)) + "]"
    return json.dumps(value)


HUGE = "9" * 5000
NASTY: tuple[Any, ...] = (
    *(
        Raw(text)
        for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "-0", "-0.0", HUGE, "0" * 50)
    ),
    *(
        Raw(text)
        for text in ("9223372036854775807", "9223372036854775808", "-9223372036854775809", "1.0", "1e3", "0x10")
    ),
    *(
        Raw(text)
        for text in ('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"a\\u0000b"', '"\\x00"', "'a'", "[1,]", "{,}")
    ),
    *(Raw(text) for text in ("[" * 200 + "]" * 200, "[" * 20_000 + "]" * 20_000, '{"a":' * 5000 + "1" + "}" * 5000)),
    *(
        Raw(text)
        for text in ('{"a":1,"a":2}', '{"k":1,"k":1000}', "\ufeff1", "tru", "nul", "", "[1 2]", '"', "\\", "1//2")
    ),
    *(
        "",
        " ",
        "\u0000",
        "\u202e",
        "é",
        "日本語",
        "😀" * 100,
        "a" * 9_999,
        "a" * 100_000,
        "../../etc/passwd",
        "%00",
        "'; --",
    ),
    *(
        "{{7*7}}",
        "${jndi:x}",
        "<script>alert(1)</script>",
        "\r\nX-Injected: 1",
        "1" * 400,
        "NaN",
        "null",
        "true",
        "0",
        "-1",
    ),
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, -(2**63), 10**30, 0.1, -0.5, 1e300, 1e-300, 1.5),
    *([], {}, [[]], [None], {"": 1}, {"min": 2, "max": 1}, {"not": []}, {"any": {}}, ["a"] * 5000, list(range(20_000))),
    *({str(number): number for number in range(2000)}, [{"filter": {}, "by": 0}] * 50, "2024-02-30", "0000-00-00"),
    *("2024-01-01T00:00:00Z", "99999-01-01", "1" * 19, "1" * 20, "١٢٣", "1_000", " 1", "1 ", "+1", "1e5", ".5", "5."),
)

_NASTY_TEXTS = (
    *(
        "%00",
        "%",
        "%G1",
        "%FF%FE",
        "%ED%A0%80",
        "%C0%AF",
        "..%2f..%2f",
        "%2e%2e",
        "%0d%0aX-Injected:%201",
        "+",
        "%20",
        "",
    ),
    *(
        "NaN",
        "Infinity",
        "1e400",
        "-1",
        "9" * 400,
        "0x10",
        "1.0",
        "true",
        "null",
        "[]",
        "{}",
        "%5B" * 500,
        "%7B%22a%22:" * 300,
    ),
    *(
        "a" * 3000,
        "%F0%9F%98%80" * 50,
        "%22%5Cud800%22",
        "[1,2",
        "%7B%22min%22:1%7D",
        "%7B%22brand%22:%7B%22not%22:[]%7D%7D",
    ),
    *(
        "2024-02-30",
        "24:00",
        "1" * 19,
        "1" * 25,
        "%D9%A1%D9%A2",
        "1_0",
        "p1",
        "p1&k=2",
        "p1%26k=2",
        "=",
        "a=b",
        "%EF%BB%BFp1",
    ),
)
_PATHS = (
    *(
        "/",
        "//",
        "/.",
        "/..",
        "/../recommendations/1001",
        "/recommendations/",
        "/recommendations//",
        "/recommendations/1001/",
    ),
    *("/items//similar", "/items/similar", "/items/p1/similar/", "/items/p1/similar/similar", "/items/%2F/similar"),
    *(
        "/items/..%2f..%2fetc%2fpasswd/similar",
        "/recommendations/%00",
        "/recommendations/%ff",
        "/recommendations/\u00e9",
    ),
    *(
        "/static/../keys.toml",
        "/static/..%2f..%2fkeys.toml",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/healthz/",
        "/metrics/",
    ),
    *(
        "/recommendations/" + "9" * 6000,
        "/items/" + "a" * 6000 + "/similar",
        "/items/" + "/" * 500 + "/similar",
        "/search/",
    ),
    *("/recommendations;x=1", "/RECOMMENDATIONS/1001", "/recommendations/1001#frag", "/%72ecommendations/1001", "*"),
)
_HEADERS: tuple[tuple[str, str], ...] = (
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-Original-URL", "/metrics"),
    ("X-Forwarded-For", "1.2.3.4, , \t"),
    ("X-Forwarded-For", "a" * 5000),
    ("X-Request-Id", "id\u00e9 with blanks"),
    ("X-Request-Id", "a" * 4000),
    ("Host", "evil.example"),
    ("Accept", "text/html;q=nan, */*;q=1e400"),
    ("Accept", ",".join(["application/openmetrics-text;version=1.0.0"] * 100)),
    ("Accept-Encoding", "gzip, br, zstd"),
    ("Content-Encoding", "gzip"),
    ("Content-Type", "application/json; charset=utf-16"),
    ("Content-Type", 'application/json; charset="nothing"'),
    ("Content-Type", "text/plain"),
    ("Content-Type", "multipart/form-data; boundary=x"),
    ("Content-Type", "application/x-www-form-urlencoded"),
    ("Content-Type", ";" * 500),
    ("Expect", "100-continue"),
    ("Expect", "200-nothing"),
    ("Range", "bytes=0-0,5-" + ",1-2" * 300),
    ("If-None-Match", "*"),
    ("If-Modified-Since", "never"),
    ("Connection", "Upgrade, HTTP2-Settings"),
    ("Upgrade", "websocket"),
    ("Cookie", "a=" + "b" * 6000),
    ("Authorization", "Basic " + "=" * 100),
    ("Authorization", "Basic \u00ff\u00fe"),
    ("Authorization", "Bearer " + "a" * 8000),
    ("Authorization", 'Digest nonce="x'),
    ("Authorization", ""),
    ("Referer", "\u0007"),
    ("TE", "trailers, deflate;q=0.5"),
    ("Forwarded", 'for="[::1]";proto=https'),
    ("Transfer-Encoding", "identity"),
)


class Maker:
    """Requests to a service.

    Args:
        document: Its OpenAPI document.
        chance: What decides.
    """

    def __init__(self, document: dict[str, Any], chance: random.Random) -> None:
        self._chance = chance
        self._schemas = document["components"]["schemas"]
        self._operations = [
            (path, method, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        self.documented = {
            (path, method): {int(status) for status in operation["responses"]}
            for path, method, operation in self._operations
        }
        self._nasty_headers = _HEADERS

    def make(self) -> Message:
        """Return the next request."""
        share = self._chance.random()
        if share < 0.35:
            return self.valid()
        if share < 0.80:
            return self.mutated()
        if share < 0.83:
            return self.greedy()
        return replace(self.mutated() if self._chance.random() < 0.3 else self.valid(), kind="wire", is_framed=False)

    def valid(self) -> Message:
        """Return a request that the document allows, mostly with a key that is good for it."""
        path, method, operation = self._chance.choice(self._operations)
        message = Message(method.upper(), path, operation=(path, method), role=self._role(method, path))
        for parameter in operation.get("parameters", ()):
            self._take(message, parameter)
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            message.body = self._value(schema, "body")
            if path == "/events":
                message.body["events"] = [self._event() for _ in range(self._chance.choice((1, 1, 1, 2, 5)))]
            if path == "/items/{item_id}":
                message.body = self._cells()
        return message

    def greedy(self) -> Message:
        """Return a request that asks for as much as may be asked for at once, or a little more."""
        chance = self._chance
        history = chance.choices(ITEMS, k=chance.choice((500, 9_999, 10_000, 10_001)))
        every: dict[str, Any] = {"k": chance.choice((1000, 100)), "offset": chance.choice((0, 9_000, 10_000))}
        rules = {
            "diversity": 0.5,
            "distinct": 0.9,
            "at_most": {"brand": 1, "tags": 2},
            "demote": [{"brand": ["Acme"] * 500}] * 8,
            "boost": [{"filter": {"price": {"min": place}}, "by": 0.1} for place in range(8)],
            "exclude": history[:5000],
            "reasons": 10,
            "filter": {"title": {"not": [f"no {number}" for number in range(3000)]}},
        }
        every |= {name: rules[name] for name in chance.sample(sorted(rules), chance.randrange(len(rules)))}
        match chance.randrange(4):
            case 0:
                body: Any = {"history": history, **every}
            case 1:
                body = {"users": [{"history": history[:200]}] * chance.choice((10, 100, 101)), **every}
            case 2:
                body = {"users": chance.choices(USERS, k=chance.choice((10, 100))), **every}
            case _:
                event = {"user_id": 1001, "item_id": "p1", "event_id": "greedy"}
                return Message(
                    "POST",
                    "/events",
                    body={"events": [event] * chance.choice((9_999, 10_001))},
                    kind="greedy",
                    role="write",
                )
        return Message("POST", "/recommendations", body=body, kind="greedy", role="read")

    def mutated(self) -> Message:
        """Return a valid request with one to three changes."""
        message = self.valid()
        if self._chance.random() < 0.1:
            message = Message("GET", self._chance.choice(OTHERS), role=self._chance.choice(("read", "none")))
        message.kind = "mutated"
        changes: list[Callable[[Message], None]] = [self._in_query, self._in_path, self._in_headers, self._in_method]
        weights = [3, 2, 2, 1]
        if message.body is not None:
            changes += [self._in_body, self._around_body]
            weights += [8, 2]
        for change in self._chance.choices(changes, weights, k=self._chance.choice((1, 1, 1, 2, 3))):
            change(message)
        return message

    def _role(self, method: str, path: str) -> str:
        if path in PROBES:
            return self._chance.choice(("none", "read", "wrong"))
        own = "read" if method in ("get", "head") or path == "/recommendations" else "write"
        return self._chance.choices((own, "none", "wrong", "read", "write"), (20, 1, 1, 1, 1))[0]

    def _take(self, message: Message, parameter: dict[str, Any]) -> None:
        chance, name = self._chance, parameter["name"]
        if parameter["in"] == "path":
            message.path = message.path.replace(f"{{{name}}}", quote(str(self._id(name)), safe=""))
            return
        if not parameter.get("required") and chance.random() > 0.12:
            return
        if "content" in parameter:
            value = self._value(parameter["content"]["application/json"]["schema"], name)
            message.query.append((name, quote(dumps(value), safe="")))
            return
        value = self._value(parameter["schema"], name)
        for one in value if isinstance(value, list) else [value]:
            message.query.append((name, quote(one if isinstance(one, str) else dumps(one), safe="")))

    def _id(self, name: str) -> int | str:
        chance = self._chance
        if "user" in name:
            return chance.choice(USERS) if chance.random() < 0.8 else chance.choice(NEW_USERS)
        return chance.choice(ITEMS) if chance.random() < 0.75 else chance.choice(OWN_ITEMS)

    def _event(self) -> dict[str, Any]:
        chance = self._chance
        event: dict[str, Any] = {"user_id": self._id("user"), "item_id": chance.choice(ITEMS)}
        if chance.random() < 0.9:  # or the histories would grow without end, and memory with them
            event["event_id"] = f"e{chance.randrange(NUM_EVENT_IDS)}"
        else:
            event["time"] = 1_700_000_000 + chance.randrange(100)
        return event

    def _cells(self) -> dict[str, Any]:
        chance = self._chance
        cells = {
            "title": " ".join(chance.choices(WORDS, k=3)),
            "price": round(chance.uniform(1, 100), 2),
            "tags": "|".join(chance.choices(WORDS[:5], k=2)),
            "since": f"202{chance.randrange(5)}-0{chance.randrange(1, 10)}-1{chance.randrange(10)}",
            "picture": [round(chance.gauss(0, 1), 3) for _ in range(VECTOR_SIZE)],
            "brand": chance.choice(("Acme", "Brenko", "New")),
            "stock": chance.randrange(100),
        }
        return {
            name: cells[name]
            for name in ["title", *(other for other in cells if chance.random() < 0.7 and other != "title")]
        }

    def _value(self, schema: dict[str, Any], name: str) -> Any:
        """Return a value that a schema allows."""
        chance = self._chance
        if "$ref" in schema:
            named = schema["$ref"].rpartition("/")[2]
            return self._id(named.lower()) if named in ("UserId", "ItemId") else self._value(self._schemas[named], name)
        for many in ("anyOf", "oneOf"):
            if many in schema:
                return self._value(chance.choice(schema[many]), name)
        if "enum" in schema:
            return chance.choice(schema["enum"])
        kind = schema.get("type", "string")
        match chance.choice(kind) if isinstance(kind, list) else kind:
            case "null":
                return None
            case "boolean":
                return chance.random() < 0.5
            case "integer":
                least, most = int(schema.get("minimum", 0)), int(schema.get("maximum", 50))
                return chance.randint(max(least, -5), max(max(least, -5), min(most, 60)))
            case "number":
                least, most = schema.get("minimum", schema.get("exclusiveMinimum", -9)), schema.get("maximum", 9)
                return round(chance.uniform(max(least, -9) + 0.01, min(most, 9)), 2)
            case "array":
                size = chance.randint(schema.get("minItems", 0), max(schema.get("minItems", 0), 4))
                size = min(size, schema.get("maxItems", size))
                return [self._value(schema.get("items", {}), name) for _ in range(size)]
            case "object":
                return self._object(schema)
        if name in ("history", "exclude", "pin", "item_id"):
            return chance.choice(ITEMS)
        if name == "users":
            return str(chance.choice(USERS))
        if "pattern" in schema:
            return "2024-01-12" if "19|20" in schema["pattern"] else "7"
        return " ".join(chance.choices(WORDS, k=chance.choice((1, 2, 6))))

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties, needed = schema.get("properties", {}), set(schema.get("required", ()))
        share = min(1.0, 2.5 / max(1, len(properties)))
        chosen = [name for name in properties if name in needed or self._chance.random() < share]
        if not chosen and schema.get("minProperties"):
            chosen = [self._chance.choice(list(properties))]
        chosen = chosen[: schema.get("maxProperties", len(chosen))]
        value = {name: self._value(properties[name], name) for name in chosen}
        if value.get("times") is not None and "history" in value:
            value["times"] = [1_700_000_000 + place for place in range(len(value["history"]))]
        return value

    def _in_query(self, message: Message) -> None:
        chance = self._chance
        value = chance.choice(_NASTY_TEXTS)
        names = [name for name, _ in message.query] or [
            "k",
            "offset",
            "q",
            "filter",
            "price_min",
            "since_max",
            "at_most",
        ]
        match chance.randrange(4):
            case 0:
                message.query.append((chance.choice(names), value))
            case 1 if message.query:
                place = chance.randrange(len(message.query))
                message.query[place] = (message.query[place][0], value)
            case 2:
                message.query.append((value, chance.choice(_NASTY_TEXTS)))
            case _:
                message.query += [(chance.choice(names), value)] * chance.choice((2, 50, 400))

    def _in_path(self, message: Message) -> None:
        if self._chance.random() < 0.5:
            message.path = self._chance.choice(_PATHS)
        else:
            parts = message.path.split("/")
            parts[self._chance.randrange(len(parts))] = self._chance.choice(_NASTY_TEXTS)
            message.path = "/".join(parts) or "/"
        if message.path == "*" or not message.path.startswith("/"):
            message.is_framed = False

    def _in_headers(self, message: Message) -> None:
        chance = self._chance
        for name, value in chance.sample(self._nasty_headers, chance.choice((1, 1, 2, 4))):
            message.headers.append((name, value))
            if name in ("Transfer-Encoding", "Expect", "Upgrade", "Connection", "Host", "Authorization", "Referer"):
                message.is_framed = False  # a server may refuse these as it likes
        if chance.random() < 0.1:
            message.headers += [(f"X-Flood-{number}", "x" * 50) for number in range(chance.choice((90, 150, 2000)))]
            message.is_framed = False

    def _in_method(self, message: Message) -> None:
        message.method = self._chance.choice(METHODS)
        if message.method in ("CONNECT", "G" * 300):
            message.is_framed = False

    def _in_body(self, message: Message) -> None:
        """Put something nasty somewhere into the body, or leave a part of it out."""
        chance = self._chance
        if isinstance(message.body, bytes):
            return
        body = deepcopy(message.body)
        holders = list(_holders(body))
        nasty = chance.choice(NASTY)
        if not holders:
            message.body = nasty
            return
        holder = chance.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        match chance.randrange(5):
            case 0 if keys:
                del holder[chance.choice(keys)]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("unknown", "", "__proto__", "k\u0000", "users", "history", "item_id"))] = nasty
            case 2:
                body = nasty
            case 3 if keys:
                key = chance.choice(keys)
                holder[key] = [holder[key]]
            case _:
                if keys:
                    holder[chance.choice(keys)] = nasty
                elif isinstance(holder, list):
                    holder.append(nasty)
        message.body = body

    def _around_body(self, message: Message) -> None:
        """Change how the body is written."""
        chance = self._chance
        if any(name == "Transfer-Encoding" for name, _ in message.headers):
            message.is_framed = False  # what is changed now was in chunks, and its end may get lost
        text = message.body if isinstance(message.body, bytes) else dumps(message.body).encode("utf-8", "surrogatepass")
        match chance.randrange(9):
            case 0:
                message.body = b"\xef\xbb\xbf" + text
            case 1:
                message.body = gzip.compress(text)
                message.headers.append(("Content-Encoding", "gzip"))
            case 2:
                message.body = text[: chance.randrange(len(text) + 1)]
            case 3:
                message.body = text.decode("utf-8", "replace").encode("utf-16")
            case 4:
                place = chance.randrange(len(text) + 1)
                message.body = text[:place] + chance.randbytes(chance.choice((1, 4, 64))) + text[place:]
            case 5:
                message.body = text + b" " * chance.choice((1, 2**20, 2**21))
            case 6:
                message.body = b""
            case 7:
                message.body = chance.randbytes(chance.choice((1, 100, 10_000)))
            case _:
                message.headers.append(("Transfer-Encoding", "chunked"))
                message.body = _chunked(text, chance)


def _holders(value: Any) -> list[Any]:
    """Return every table and list of a body."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [holder for one in inner for holder in _holders(one)]
    return [value, *found] if isinstance(value, dict | list) else found


def _chunked(text: bytes, chance: random.Random) -> bytes:
    parts = []
    while text:
        size = chance.choice((1, 7, 4096))
        parts.append(b"%x\r\n%s\r\n" % (len(text[:size]), text[:size]))
        text = text[size:]
        if len(parts) > 200:
            size = len(text)
            parts.append(b"%x\r\n%s\r\n" % (size, text) if size else b"")
            break
    return b"".join(parts) + b"0\r\n\r\n"


def broken(wire: bytes, chance: random.Random) -> bytes:
    """Return the bytes of a request with something that is not HTTP in them."""
    head, _, body = wire.partition(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    method, target = first.split(b" ")[0], b" ".join(first.split(b" ")[1:-1])
    made: Sequence[Callable[[], bytes]] = (
        lambda: wire[: chance.randrange(len(wire))],
        lambda: _flipped(wire, chance),
        lambda: first + b"\r\n" + rest + b"\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\nContent-Length: -1\r\n\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\nContent-Length: 99999999999999999999\r\n\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\nContent-Length: 100000\r\n\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        lambda: first + b"\r\n" + rest + b"\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\n : x\r\n\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\nX\x00Y: \x01\x02\r\n\r\n" + body,
        lambda: first + b"\r\n" + rest + b"\r\n folded\r\n\r\n" + body,
        lambda: first.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + rest + b"\r\n\r\n" + body,
        lambda: (
            first.replace(b"HTTP/1.1", chance.choice((b"HTTP/9.9", b"HTTP/2.0", b"HTP", b"")))
            + b"\r\n"
            + rest
            + b"\r\n\r\n"
        ),
        lambda: method + b" http://127.0.0.1" + target + b" HTTP/1.1\r\n" + rest + b"\r\n\r\n" + body,
        lambda: method + b" http://evil.example:99999" + target + b" HTTP/1.1\r\n" + rest + b"\r\n\r\n" + body,
        lambda: method + b"  " + target + b"\t HTTP/1.1\r\n" + rest + b"\r\n\r\n" + body,
        lambda: method + b" " + target + b"\xff\xfe HTTP/1.1\r\n" + rest + b"\r\n\r\n" + body,
        lambda: method + b" " + target + b"%00%ff\x00 HTTP/1.1\r\n" + rest + b"\r\n\r\n" + body,
        lambda: method + b" /" + b"a" * chance.choice((9_000, 70_000, 500_000)) + b" HTTP/1.1\r\n" + rest + b"\r\n\r\n",
        lambda: first + b"\r\n" + rest + b"\r\nX: " + b"x" * chance.choice((9_000, 70_000, 500_000)) + b"\r\n\r\n",
        lambda: first + b"\r\n" + b"".join(b"H%d: x\r\n" % number for number in range(5000)) + b"\r\n",
        lambda: wire.replace(b"\r\n", b"\n"),
        lambda: b"\r\n\r\n" + wire,
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200),
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(40),
        lambda: chance.randbytes(chance.choice((1, 50, 5000))),
        lambda: first + b"\r\n" + re.sub(rb"(?i)host: [^\r]*", b"Host: a\r\nHost: b", rest) + b"\r\n\r\n" + body,
        lambda: first + b"\r\n" + re.sub(rb"(?i)host: [^\r]*\r?\n?", b"", rest) + b"\r\n\r\n" + body,
    )
    return chance.choice(made)()


def _flipped(wire: bytes, chance: random.Random) -> bytes:
    changed = bytearray(wire)
    for _ in range(chance.choice((1, 3, 20))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)
