"""The reference of the HTTP API, from the route table and the types of its requests and responses."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from serving.config import ServingConfig
from serving.http.contract.openapi import ANYWHERE, statuses_of_errors
from serving.http.contract.problems import CODES, CODES_OF_503
from serving.http.contract.requests import Contract
from serving.http.contract.schemas import NAMED, ItemQuery
from serving.http.router import Route
from serving.http.routes import ROUTES
from tests.documentation.pages import slug

_INTRODUCTION = """\
# HTTP API

Every endpoint of the service, with its parameters and responses, and the limits of a service with the default
[settings](settings.md#servingtoml). `GET /openapi.json` of a running service returns the same as an OpenAPI 3.1
document, with the columns and attributes of its catalogue; [Serve](../guides/serve.md) shows requests and responses.

*API key* is the scope that a key must have where `api_keys_file` is set; `none` needs no key.

"""
_PARAMETERS = """\
A parameter has the same name in a query string and in a body. In a query string lists are repeated parameters
(`pin=P000024&pin=P000055`), other values that are not text or numbers are JSON, URL-encoded (`at_most={"brand":2}`),
and conditions on columns are parameters of their own (`category=shoes&price_max=50`); see
[Filters and rules](../guides/filters-and-rules.md). An *id* is an integer, or text of at most 512 characters, as in the
tables.
"""
_ERRORS = """\
## Errors

Every error has the shape of RFC 9457, `application/problem+json`: `type`, `title`, `status`, `detail` for people,
`code` for programs, and `errors`, a list of up to twenty mistakes with `field` and `detail`.

| status | `code` | title | which requests |
|---|---|---|---|
"""
_OF_503 = """\
A 503 says in `code` and `detail` what was not available;
[503: where to begin](../guides/troubleshooting.md#503-where-to-begin) says what to do.

| `code` of a 503 | meaning |
|---|---|
"""
_HEADERS = """\
## Headers

| header of a response | meaning |
|---|---|
| `Towers-Model`, `Towers-Index` | versions of the model and of the index that produced it |
| `Towers-Live` | with live writes: the position of the log that it reflects |
| `X-Request-Id` | the request's id: that of the request's own header, if it is short and plain, else a new one |
| `Retry-After` | with 429 and 503: seconds after which the request may be repeated |
"""
_CELLS = 'an object of the cells of the item, by column of the items table: `{"title": "Chair", "price": 39.9}`'
_NAMED_TYPES = {
    "Filter": "[conditions](../guides/filters-and-rules.md#conditions)",
    "Attributes": "object of values by column of the users table",
    "AtMost": "object of integers by column of the catalogue",
    "UserId": "id",
    "ItemId": "id",
}


def http_page() -> str:
    """Return the page."""
    contract, types = Contract.of(ServingConfig()), Types()
    rows = ["| endpoint | API key | what it does |", "|---|---|---|"]
    rows += [f"| {_endpoint(route)} | {route.scope} | {route.summary} |" for route in ROUTES]
    parts = [_INTRODUCTION + "\n".join(rows) + "\n", _PARAMETERS]
    parts += [_section(route, contract, types) for route in ROUTES if route.name is not None]
    parts.append("## Types\n")
    parts += [f"### {name}\n\n{_about(schema)}\n\n{_fields(schema)}" for name, schema in sorted(types.items())]
    codes = {status: f"`{code}`" for status, (code, _) in CODES.items()} | {503: "see below"}
    rows = [f"| {status} | {codes[status]} | {title} | {_where(status)} |" for status, (_, title) in CODES.items()]
    reasons = [f"| `{code}` | {meaning} |" for code, meaning in CODES_OF_503.items()]
    return "\n".join([*parts, _ERRORS + "\n".join(rows) + "\n", _OF_503 + "\n".join(reasons) + "\n", _HEADERS])


class Types(dict[str, Any]):
    """JSON schemas of the types of bodies and responses, by name."""

    def add(self, kind: type) -> dict[str, Any]:
        """Return the schema of a type, after adding those that it refers to."""
        schema = TypeAdapter(kind).json_schema()
        self.update(schema.pop("$defs", {}))
        for base in getattr(kind, "__orig_bases__", ()):
            if is_typeddict(base):  # pydantic reads the docstrings of a TypedDict's own fields only
                schema["properties"] |= self.add(base)["properties"]
        return schema

    def named(self, kind: type) -> str:
        """Return a link to the section of a type, after adding it."""
        schema = self.add(kind)
        self[schema["title"]] = schema
        return _link(schema["title"])


def _endpoint(route: Route) -> str:
    shown = f"`{route.method} {route.path}`"
    return shown if route.name is None else f"[{shown}](#{slug(f'{route.method} {route.path}')})"


def _section(route: Route, contract: Contract, types: Types) -> str:
    parts = [f"## {route.method} {route.path}\n", f"{route.summary}.\n"]
    if route.query is not None:
        common = types.named(contract.limited(ItemQuery))
        schema = types.add(contract.limited(route.query))
        own = {name: one for name, one in schema["properties"].items() if name not in ItemQuery.model_fields}
        parts.append(f"Query parameters: those of {common}{', and' if own else '.'}\n")
        parts += [_fields(schema | {"properties": own})] if own else []
    bodies = [_CELLS if isinstance(kind, str) else types.named(contract.limited(kind)) for kind in route.body]
    if bodies:
        parts.append(f"Body: {' or '.join(bodies)}.\n")
    answers = [f"200 with {' or '.join(map(types.named, route.responses))}" if route.responses else "200"]
    answers += [f"201: {route.created[0].lower()}{route.created[1:]}"] if route.created else []
    problems = ", ".join(map(str, statuses_of_errors(route)))
    return "\n".join([*parts, f"Response: {'; '.join(answers)}. Errors: {problems}.\n"])


def _where(status: int) -> str:
    if status in ANYWHERE:
        return "any"
    if status == 405:
        return "any path, with a method that it does not have"
    if status in (401, 429):
        return "any but `/healthz` and `/readyz`"
    if status == 403:
        return "those that need a key of the scope write"
    return ", ".join(f"`{route.method} {route.path}`" for route in ROUTES if status in route.problems)


def _about(schema: dict[str, Any]) -> str:
    return " ".join(schema.get("description", "").split())


def _fields(schema: dict[str, Any]) -> str:
    is_request = schema.get("additionalProperties") is False
    rows = [f"| name | type | {'default' if is_request else 'present'} | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if name in schema.get("required", ()):
            default = "required" if is_request else "always"
        elif is_request:
            default = f"`{json.dumps(field['default'])}`" if "default" in field else "empty"
        else:
            default = "sometimes"
        rows.append(f"| `{name}` | {_type(field)} | {default} | {_about(field)} |")
    return "\n".join(rows) + "\n"


def _type(field: dict[str, Any]) -> str:
    if NAMED in field:
        return _NAMED_TYPES[field[NAMED]]
    if "$ref" in field:
        return _link(field["$ref"].rpartition("/")[2])
    if "oneOf" in field:
        return " or ".join(map(_type, field["oneOf"]))
    if "anyOf" in field:
        kinds = {one.get("type") for one in field["anyOf"]}
        if kinds >= {"integer", "string"}:
            return "id or null" if "null" in kinds else "id"
        return " or ".join(dict.fromkeys(map(_type, field["anyOf"])))
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    kind = field.get("type")
    if kind == "array":
        return f"list of {_type(field['items'])}{_limits(field, 'minItems', 'maxItems', 'elements')}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"object of {_type(inner)}" if isinstance(inner, dict) else "object"
    if kind == "string":
        return f"text{_limits(field, 'minLength', 'maxLength', 'characters')}"
    if kind in ("integer", "number"):
        shown = dict(field)
        for open_end, end in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if open_end in field:
                shown[end] = field[open_end]
        return f"{kind}{_limits(shown, 'minimum', 'maximum', '')}"
    return str(kind)


def _limits(field: dict[str, Any], least: str, most: str, unit: str) -> str:
    low, high = field.get(least), field.get(most)
    if high is not None and high >= 2**40:
        return ""  # only what the format of the log or of an index can hold
    if low is None and high is None:
        return ""
    said = f"{low} to {high}" if low is not None and high is not None else f"≤ {high}" if low is None else f"≥ {low}"
    return f", {said} {unit}".rstrip()


def _link(name: str) -> str:
    return f"[{name}](#{slug(name)})"
