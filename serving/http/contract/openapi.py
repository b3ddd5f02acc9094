"""The OpenAPI 3.1 document, generated from the route table and the types of `serving.http.contract.schemas`.

The columns to filter by and the attributes of users depend on the catalogue and the model, so each service has its own
document.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from features.ids import ITEM_ID, MAX_ID_CHARACTERS, USER_ID
from features.tables.rows import cell_schemas
from serving.bounds import MAX_CONDITIONS, MAX_FILTER_VALUES
from serving.catalog.filters import ColumnSchema
from serving.catalog.ids import LARGEST_EXACT, ExternalId, IdMap
from serving.http.contract.problems import CODES, PROBLEM_TYPE, ProblemContent
from serving.http.contract.requests import AS_WRITTEN, REPEATED, Contract
from serving.http.contract.schemas import (
    MOST_LIMITS,
    MOST_OF_A_VALUE,
    NAMED,
    EventsRequest,
    ItemBody,
    ItemWritten,
    ReasonBody,
    RecommendationsBody,
    SimilarItems,
    UserRecommendations,
)
from serving.http.key_file import Scope
from serving.http.router import Route
from serving.recommend.recommender import Recommender
from serving.recommend.users import attribute_schema
from serving.search.conditions import DEFAULT_OPERATOR, OPERATORS, Operator
from serving.snapshot.snapshot import Snapshot

Schema = dict[str, Any]

ANYWHERE = (414, 500, 503)
"""Statuses of errors that any request may have: a query string that is too long, an internal error, overload."""
BY_SCOPE: dict[Scope, tuple[int, ...]] = {"none": (), "read": (401, 429), "write": (401, 403, 429)}
"""By the scope of an endpoint, the statuses of errors of a client: no API key, one that may only read, a rate limit."""

_REF = "#/components/schemas/{model}"
_MODELS_WITH_IDS = {
    one.__name__ for one in (ItemBody, ReasonBody, SimilarItems, RecommendationsBody, UserRecommendations, ItemWritten)
}
_SHORT = 80
"""Maximum length of a text in an example."""
_WHOLE_ID = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_DIGITS = r"^(0|-?[1-9][0-9]{0,17})$"
# Without surrounding whitespace, of which Python knows more characters than the patterns of JSON schemas.
_TRIMMED = r"^[^\s\x1c-\x1f\x85]([\s\S]*[^\s\x1c-\x1f\x85])?$"


class _Untitled(GenerateJsonSchema):
    """Leaves out titles, which only repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Documents:
    """The document of a service as JSON, generated once for each index, because that takes half a second.

    Args:
        routes: The route table.
        contract: Request schemas and limits.
        takes_writes: Whether the service accepts live writes.
    """

    def __init__(self, routes: Sequence[Route], contract: Contract, *, takes_writes: bool) -> None:
        self._routes = routes
        self._contract = contract
        self._takes_writes = takes_writes
        self._snapshot: Callable[[], Snapshot | None] = lambda: None
        self._content = b""
        self._lock = threading.Lock()

    def of(self, recommender: Recommender) -> bytes:
        """Return the document for a recommender's model and catalogue."""
        with self._lock:
            if self._snapshot() is not recommender.snapshot:
                self._content = orjson.dumps(
                    document(self._routes, self._contract, recommender, takes_writes=self._takes_writes)
                )
                # A weak reference, so that an index that is no longer served can be freed.
                self._snapshot = weakref.ref(recommender.snapshot)
            return self._content


def document(
    routes: Sequence[Route], contract: Contract, recommender: Recommender, *, takes_writes: bool = False
) -> Schema:
    """Return the OpenAPI document of a service that has these routes."""
    columns = recommender.state.filters.columns()
    shown = [route for route in routes if route.name is not None and (takes_writes or not route.is_write)]
    paths: Schema = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, contract, columns, recommender)
    info = {"title": "Two Towers", "version": version("two-towers"), "description": "Recommendations."}
    schemas = _schemas(shown, contract, columns, recommender) | (_write_schemas(recommender) if takes_writes else {})
    _set_id_types(schemas, recommender)
    key = {"type": "http", "scheme": "bearer", "description": "An API key, if the service requires keys."}
    components = {"schemas": schemas, "securitySchemes": {"key": key}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components, "security": [{}, {"key": []}]}


def statuses_of_errors(route: Route) -> list[int]:
    """Return the statuses of all errors of an endpoint, ascending."""
    return sorted({*route.problems, *BY_SCOPE[route.scope], *ANYWHERE})


def _operation(
    route: Route, contract: Contract, columns: Mapping[str, ColumnSchema], recommender: Recommender
) -> Schema:
    """Return the OpenAPI operation of a route."""
    content = _json(*route.responses)
    responses: Schema = {"200": {"description": route.summary, "content": content}}
    if route.created is not None:
        responses["201"] = {"description": route.created, "content": content}
    for status in statuses_of_errors(route):
        problem = {PROBLEM_TYPE: {"schema": _ref(ProblemContent.__name__)}}
        responses[str(status)] = {"description": CODES[status][1], "content": problem}
    operation: Schema = {"operationId": route.name, "summary": route.summary, "responses": responses}
    parameters = [_in_path(found, route, recommender) for found in re.findall(r"{(\w+)}", route.path)]
    if route.query is not None:
        parameters += _parameters(contract.limited(route.query), columns)
        parameters = [_with_example(one, recommender) for one in parameters]
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        content = _json(*route.body)
        content["application/json"]["example"] = _example_body(route, contract, recommender)
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _example_body(route: Route, contract: Contract, recommender: Recommender) -> Schema:
    """Return a body that this service accepts, with ids and cells of its own tables."""
    ids = _example_ids(recommender.indexed.items)
    if route.body[0] is EventsRequest:
        users = _example_ids(recommender.indexed.users) or ["new-user"]
        return {"events": [{"user_id": users[0], "item_id": item_id} for item_id in ids[:1]]}
    if route.body[0] == "Cells":
        frame = recommender.snapshot.catalog.frame
        cells = {name: frame[name].iloc[0] for name in frame.columns if name != ITEM_ID and len(frame)}
        return {name: cell for name, cell in cells.items() if isinstance(cell, str) and len(cell) <= _SHORT}
    return {"history": ids[: contract.settings.max_history]}


def _example_ids(ids: IdMap) -> list[ExternalId]:
    return [ids.to_json(one) for one in ids.ids[:3]]


def _with_example(parameter: Schema, recommender: Recommender) -> Schema:
    """Return a parameter of a query with an example, where any is better than the default."""
    titles = recommender.indexed.titles
    if parameter["name"] == "q" and titles:
        return {**parameter, "example": titles[0][:_SHORT]}
    return parameter


def _write_schemas(recommender: Recommender) -> Schema:
    """Return the schemas of write requests: ids as in the tables, and the columns of an item."""
    cells = cell_schemas(recommender.snapshot.catalog.frame, recommender.bundle.spellings)
    return {
        "UserId": _id(recommender.state.users.is_integer),
        "ItemId": _id(recommender.state.items.is_integer),
        "Cells": _table({name: schema for name, schema in cells.items() if name != ITEM_ID}),
    }


def _path_id(is_integer: bool) -> Schema:
    return {"type": "string", "pattern": _DIGITS if is_integer else _TRIMMED, "maxLength": MAX_ID_CHARACTERS}


def _id(is_integer: bool) -> Schema:
    return {"anyOf": [_WHOLE_ID, _path_id(is_integer)]}


def _json(*types: type | str) -> Schema:
    named = [_ref(one if isinstance(one, str) else one.__name__) for one in types]
    return {"application/json": {"schema": named[0] if len(named) == 1 else {"anyOf": named}}}


def _ref(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}


def _in_path(name: str, route: Route, recommender: Recommender) -> Schema:
    """Return the path parameter of an id: any text for reads; for writes only ids that fit the table."""
    ids = recommender.indexed.users if name == USER_ID else recommender.indexed.items
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARACTERS}
    if route.is_write:
        schema = _path_id(ids.is_integer)
    description = "The user's id in the tables." if name == USER_ID else "The item's id in the catalogue."
    parameter = {"name": name, "in": "path", "required": True, "description": description, "schema": schema}
    return {**parameter, "example": str(ids.ids[0])} if ids.ids else parameter


def _parameters(query: type[BaseModel], columns: Mapping[str, ColumnSchema]) -> list[Schema]:
    """Return the query parameters: the fields of a schema, and conditions on columns."""
    resolved = _resolved(query.model_json_schema(ref_template=_REF, schema_generator=_Untitled))
    fields, needed = resolved["properties"], resolved.get("required", [])
    found = [{**_parameter(name, schema), "required": name in needed} for name, schema in fields.items()]
    for name, column in columns.items():
        for operator in column.operators:
            parameter = name if operator == DEFAULT_OPERATOR else f"{name}_{operator}"
            # A parameter comes before a column of its name, and a column before a condition on another.
            if parameter not in fields and (parameter == name or parameter not in columns):
                found.append(_condition(parameter, name, OPERATORS[operator], column))
    return found


def _parameter(name: str, schema: Schema) -> Schema:
    described = {"name": name, "in": "query", "description": schema.pop("description")}
    if name in REPEATED or name in AS_WRITTEN or schema.get("type") in ("integer", "number"):
        return {**described, "schema": schema}
    return {**described, "content": {"application/json": {"schema": schema}}}


def _condition(parameter: str, column: str, operator: Operator, schema: ColumnSchema) -> Schema:
    return {
        "name": parameter,
        "in": "query",
        "description": f"Only items whose {column!r} {operator.says}.",
        "schema": _values(schema) if operator.takes_list else schema.value,
    }


def _schemas(
    routes: Sequence[Route], contract: Contract, columns: Mapping[str, ColumnSchema], recommender: Recommender
) -> Schema:
    """Return the schemas of the bodies of requests and responses, and those that depend on the catalogue."""
    bodies = dict.fromkeys(one for route in routes for one in (*route.body, *route.responses) if isinstance(one, type))
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_OF_A_VALUE}
    return {
        **_models([*map(contract.limited, bodies), ProblemContent]),
        "Filter": {
            **_table({name: _column_conditions(column) for name, column in columns.items()}),
            "maxProperties": MAX_CONDITIONS,
            "description": f"Conditions, with at most {MAX_FILTER_VALUES:,} values in total.",
        },
        "Attributes": _table(attribute_schema(recommender.attributes)),
        "AtMost": {**_table(dict.fromkeys(columns, limit)), "maxProperties": MOST_LIMITS},
    }


def _set_id_types(schemas: Schema, recommender: Recommender) -> None:
    """Set the types of ids in the schemas of responses: integers, or text where integers would be rounded (`IdMap`)."""
    types = {USER_ID: _response_id(recommender.state.users), ITEM_ID: _response_id(recommender.state.items)}
    for name in _MODELS_WITH_IDS & schemas.keys():
        for field, schema in schemas[name]["properties"].items():
            if field in types:
                kinds = [types[field], *(one for one in schema["anyOf"] if one["type"] == "null")]
                schema["anyOf"] = [kind for one in kinds for kind in one.get("anyOf", [one])]
            elif field == "unknown_items" and recommender.state.items.is_wide:
                schema["items"] = {"type": "string"}


def _response_id(ids: IdMap) -> Schema:
    if ids.is_wide or not ids.is_integer:
        return {"type": "string"}
    whole = {"type": "integer", "minimum": -LARGEST_EXACT, "maximum": LARGEST_EXACT}
    return {"anyOf": [whole, {"type": "string"}]}  # text: an unknown user, or a large id that was added later


def _models(types: Sequence[Any]) -> Schema:
    """Return the schemas of some types and of the types that they use, by name."""
    adapters = [(one.__name__, "validation", TypeAdapter(one)) for one in types]
    _, made = TypeAdapter.json_schemas(adapters, ref_template=_REF, schema_generator=_Untitled)  # type: ignore[arg-type]
    schemas: Schema = _resolved(made["$defs"])
    return schemas


def _column_conditions(column: ColumnSchema) -> Schema:
    """Return the schema of a column's conditions in a body: a value, a list of values, or an object by operator."""
    several = {"anyOf": [column.value, _values(column)]}
    conditions = {name: several if OPERATORS[name].takes_list else column.value for name in column.operators}
    return {"anyOf": [*several["anyOf"], {**_table(conditions), "minProperties": 1}]}


def _values(column: ColumnSchema) -> Schema:
    return {"type": "array", "items": column.value, "maxItems": MAX_FILTER_VALUES}


def _table(properties: Mapping[str, Any]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _resolved(schema: Any) -> Any:
    """Return a schema with names (`NAMED`) replaced by references."""
    if isinstance(schema, list):
        return [_resolved(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _resolved(value) for key, value in schema.items() if key != NAMED}
    return {**_ref(schema[NAMED]), **inner} if NAMED in schema else inner
