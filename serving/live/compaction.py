"""Merges the log of live writes into the tables, so that the index built from them already contains its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.schema import ITEM_ID, USER_ID
from features.spelling import Spelling
from features.tables.rows import NO_SPELLINGS
from features.tables.tables import Tables
from features.tables.updates import LoggedEvent, apply_updates
from serving.catalog.ids import ExternalId, IdMap
from serving.live.log import EventLog, readable
from serving.snapshot.manifest import LogOffset


def compact(
    tables: Tables, store: EventLog, spellings: Mapping[str, Spelling] = NO_SPELLINGS
) -> tuple[Tables, LogOffset]:
    """Return the tables with all records of a log applied, and the position of the last of them.

    Args:
        tables: The current tables. For an item in both, the log takes precedence.
        store: The log.
        spellings: Spellings of values, by column of the items.

    Raises:
        DataError: All items were deleted.
    """
    items = IdMap(tables.catalog.item_ids)
    users = IdMap(tables.interactions.sequences(tables.catalog).user_ids)
    put: dict[ExternalId, dict[str, Any] | None] = {}
    events: list[LoggedEvent] = []
    log_id, position = store.state().log_id, 0
    while records := store.read_after(position):
        for record in readable(records):
            item_id = items.parse(record.body[ITEM_ID])
            if record.kind != "event":
                put.pop(item_id, None)
                put[item_id] = record.body["cells"] if record.kind == "item" else None
            else:
                events.append((users.parse(record.body[USER_ID]), item_id, record.body["time"]))
        position = records[-1].position
    put = {item_id: cells for item_id, cells in put.items() if items.fits(item_id)}
    events = [event for event in dict.fromkeys(events) if users.fits(event[0]) and items.fits(event[1])]
    return apply_updates(tables, put, events, spellings), LogOffset(log_id=log_id, position=position)
