"""Applies live updates to tables: items put and deleted, and new events, as if the files contained them.

An item that is put again moves to the end of the catalogue, so that rows say in which order things arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from features.errors import DataError
from features.ids import ITEM_ID, USER_ID
from features.spelling import Spelling
from features.tables.rows import NO_SPELLINGS, fitting_rows
from features.tables.tables import Catalog, Interactions, Tables

LoggedEvent = tuple[int | str, int | str, int]
"""User id, item id and Unix seconds."""


def apply_updates(
    tables: Tables,
    items: Mapping[int | str, Mapping[str, Any] | None],
    events: Sequence[LoggedEvent],
    spellings: Mapping[str, Spelling] = NO_SPELLINGS,
) -> Tables:
    """Return tables that hold what came after them.

    Args:
        tables: The tables.
        items: The cells of each item that came or was changed, None for one that was deleted. Ids are of the type in
            the tables; cells that the table has no column for, or that do not fit there, are left out with a note.
        events: What happened, in the order in which it became known. Each stands in its user's history after all that
            was no later; those of items that are not there are left out, and exact repeats are merged, as those
            within the tables were. Where the tables have no times, they stand after what the tables have.
        spellings: How the values of the items' columns are spelt, see `typed_rows`.
    """
    catalog, left_out = _with_items(tables.catalog, items, spellings)
    interactions = _with_events(tables.interactions, catalog, events)
    num_deleted = sum(cells is None for cells in items.values())
    note = (
        f"folded in what arrived since: {len(items) - num_deleted:,} items put, {num_deleted:,} deleted, "
        f"{len(events):,} events"
    )
    return replace(tables, catalog=catalog, interactions=interactions, notes=(*tables.notes, note, *left_out))


def _with_items(
    catalog: Catalog, items: Mapping[int | str, Mapping[str, Any] | None], spellings: Mapping[str, Spelling]
) -> tuple[Catalog, Sequence[str]]:
    kept = catalog.frame[~catalog.frame[ITEM_ID].isin(list(items))]
    rows = [{**cells, ITEM_ID: item_id} for item_id, cells in items.items() if cells is not None]
    added, left_out = fitting_rows(catalog.frame, rows, spellings)
    frame = pd.concat([kept, added], ignore_index=True)
    if not len(frame):
        raise DataError("every item of the catalogue was deleted by live writes; put some, or name other tables")
    return Catalog(frame), [f"items put since: {line}" for line in left_out]


def _with_events(interactions: Interactions, catalog: Catalog, events: Sequence[LoggedEvent]) -> Interactions:
    old = interactions.frame
    there = {
        USER_ID: [user_id for user_id, _, _ in events],
        ITEM_ID: [item_id for _, item_id, _ in events],
        "timestamp": [time for _, _, time in events],
    }
    added = pd.DataFrame(
        {name: pd.Series(there.get(name, [None] * len(events)), dtype=old[name].dtype) for name in old.columns}
    )
    frame = pd.concat([old, added], ignore_index=True)
    users = pd.factorize(frame[USER_ID], sort=True)[0]
    if "timestamp" in frame:
        # The events of the tables stay in their order; one that came since stands after all that were no later.
        after = frame["timestamp"].to_numpy(np.int64).copy()
        after[: len(old)] = pd.Series(after[: len(old)]).groupby(users[: len(old)]).cummax()
        order = np.lexsort([after, users])
        is_first = ~frame.duplicated(subset=[USER_ID, ITEM_ID, "timestamp"]).to_numpy(bool)
        frame = frame.take(order[is_first[order]])
    else:
        times = np.concatenate([np.zeros(len(old), np.int64), np.array(there["timestamp"], dtype=np.int64)])
        frame = frame.take(np.lexsort([times, np.arange(len(frame)) >= len(old), users]))
    if "position" in frame:
        frame["position"] = pd.Series(np.arange(len(frame)), dtype=old["position"].dtype, index=frame.index)
    frame = frame[catalog.rows_of(frame[ITEM_ID]) >= 0]
    return replace(interactions, frame=frame.reset_index(drop=True))
