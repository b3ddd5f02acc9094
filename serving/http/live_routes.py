"""Endpoints for live writes: put and delete items, append events.

A write is validated as the tables are, then stored durably in the log, and only then acknowledged. From then on the
responses of every worker reflect it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pandas as pd
from jaxtyping import Float32

from features.errors import DataError
from features.ids import ITEM_ID, MAX_ID_CHARACTERS, USER_ID
from features.messages import shown
from features.tables.rows import typed_rows
from features.tables.tables import SECONDS_PER_DAY
from features.values.cells import size_of
from serving.bounds import MAX_TEXT_CHARACTERS
from serving.catalog.ids import ExternalId, IdMap
from serving.deadline import check, watched
from serving.http.contract.problems import Problem
from serving.http.contract.requests import read
from serving.http.contract.schemas import EventBody, EventsAccepted, EventsRequest, ItemWritten
from serving.http.router import Reply
from serving.http.service import ApiRequest, Service, json_reply
from serving.live.follower import encoded, vector_to_json
from serving.live.log import AppendResult, EventLog, Write
from serving.recommend.recommender import Recommender


def put_item(service: Service, request: ApiRequest) -> Reply:
    """Add an item to the catalogue, or replace it; the body holds its columns."""
    store, recommender, item_id = _store(service), request.recommender, request.path_value
    known = recommender.state.items.row(item_id) is not None
    own_id = _checked("item_id", recommender.state.items, item_id)
    cells = request.json()
    if not isinstance(cells, dict):
        raise Problem(422, 'body: expected an object with the columns of the item, such as {"title": "Wooden chair"}')
    if recommender.state.items.parse(cells.pop(ITEM_ID, own_id)) != own_id:
        raise Problem(422, f"item_id: expected {own_id!r}, as in the path; correct it, or leave it out")
    row, own_vector = _encoded_item(recommender, own_id, cells)
    # Stored with its vector, so that the other workers need not encode the item while their requests wait.
    vector = vector_to_json(recommender.model, own_vector)
    done = _appended(store, [Write("item", {ITEM_ID: own_id, "cells": cells, "vector": vector})])
    content = ItemWritten(item_id=recommender.state.items.to_json(own_id), position=done.position)
    if unknown := recommender.bundle.unknown_values_of_items(row)[0]:
        content["unknown_values"] = {column: list(values) for column, values in unknown.items()}
    return json_reply(content, 200 if known else 201)


def delete_item(service: Service, request: ApiRequest) -> Reply:
    """Delete an item from the catalogue."""
    store, recommender, item_id = _store(service), request.recommender, request.path_value
    if recommender.state.items.row(item_id) is None:
        raise Problem(404, f"no item {shown(item_id)} in the catalogue")
    own_id = recommender.state.items.parse(item_id)
    done = _appended(store, [Write("deletion", {ITEM_ID: own_id})])
    return json_reply(ItemWritten(item_id=recommender.state.items.to_json(own_id), position=done.position))


def post_events(service: Service, request: ApiRequest) -> Reply:
    """Append events to the histories of users; new users are added."""
    store, recommender = _store(service), request.recommender
    body = read(EventsRequest, request.json())
    now = int(store.clock.now())
    events = watched(enumerate(body.events))
    found = [_write(event, f"events.{place}", recommender, now) for place, event in events]
    done = _appended(store, found)
    accepted = len(found) - done.num_repeated
    return json_reply(EventsAccepted(accepted=accepted, repeated=done.num_repeated, position=done.position))


def _appended(store: EventLog, writes: list[Write]) -> AppendResult:
    """Append writes unless the deadline has passed: what is refused must not have been written."""
    check()
    return store.append(writes)


def _write(event: EventBody, where: str, recommender: Recommender, now: int) -> Write:
    user_id = _checked(f"{where}.user_id", recommender.state.users, event.user_id)
    if recommender.state.items.row(event.item_id) is None:
        raise Problem(422, f"{where}.item_id: no item {shown(event.item_id)} in the catalogue; add the item first")
    if event.time is not None and event.time > now + SECONDS_PER_DAY:
        raise Problem(
            422, f"{where}.time: expected Unix seconds in the past, found {event.time}, which is in the future"
        )
    item_id = recommender.state.items.parse(event.item_id)
    key = None
    if event.event_id is not None:
        key = f"named {event.event_id}"
    elif event.time is not None:
        key = f"at {orjson.dumps([user_id, item_id, event.time]).decode()}"
    return Write("event", {USER_ID: user_id, ITEM_ID: item_id, "time": now if event.time is None else event.time}, key)


def _checked(where: str, ids: IdMap, external_id: ExternalId) -> ExternalId:
    """Return an id in the type of the table's ids.

    Raises:
        Problem: The id does not have that type, or is too long.
    """
    parsed = ids.parse(external_id)
    if not ids.fits(parsed):
        text = "text without surrounding whitespace"
        limit = "" if ids.is_integer else f" and at most {MAX_ID_CHARACTERS} characters long"
        expected = f"{'a whole number' if ids.is_integer else text}, as in the tables{limit}"
        raise Problem(422, f"{where}: expected {expected}, found {shown(external_id)}")
    return parsed


def _encoded_item(
    recommender: Recommender, item_id: ExternalId, cells: dict[str, Any]
) -> tuple[pd.DataFrame, Float32[np.ndarray, " dim"]]:
    """Return an item as a row of the catalogue, and its unit vector.

    Raises:
        Problem: A column is not in the catalogue, a cell has another type than its column, the texts are too long in
            total, or the model reads none of the columns.
    """
    characters = sum(size_of(cell)[0] for cell in cells.values())
    if characters > MAX_TEXT_CHARACTERS:
        detail = f"expected at most {MAX_TEXT_CHARACTERS:,} characters in all cells together, found {characters:,}"
        raise Problem(422, f"body: {detail}")
    like, spellings = recommender.snapshot.catalog.frame, recommender.bundle.spellings
    try:
        row = typed_rows(like, [{ITEM_ID: item_id, **cells}], spellings)
        return row, encoded(recommender.bundle, row)[0]
    except DataError as error:
        raise Problem(422, str(error)) from None


def _store(service: Service) -> EventLog:
    store = service.provider.store
    if store is None:
        raise Problem(
            403, "this service accepts no live writes; to enable them, start it with --live FILE or set `live`"
        )
    return store
