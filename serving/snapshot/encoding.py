"""Encodes items and users as unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float32

from features.ids import USER_ID
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog
from serving import deadline
from serving.observability.timings import timed
from serving.search.vectors import ItemVectors, blocks_of
from towers.bundle.bundle import ModelBundle

_USERS_AT_ONCE = 4096
# Number of events in a block if there is a deadline.
EVENTS_AT_ONCE = 4096

EncodedItems = tuple[slice, Float32[np.ndarray, "items width"]]
"""Rows of the catalogue, and their vectors."""
ItemEncoder = Callable[[ModelBundle, Catalog], Iterator[EncodedItems]]
"""Yields the vectors of a catalogue in parts, in any order."""


def encode_items(bundle: ModelBundle, catalog: Catalog) -> Iterator[EncodedItems]:
    """Yield the unit vectors of a catalogue in parts, encoded in this process."""
    for rows in blocks_of(len(catalog)):
        yield rows, bundle.encode_items(part_of(catalog, rows))


def part_of(catalog: Catalog, rows: slice) -> Catalog:
    """Return some rows of a catalogue as a catalogue of their own."""
    if rows == slice(0, len(catalog)):
        return catalog
    return Catalog(catalog.frame.iloc[rows].reset_index(drop=True))


def encode_users(
    bundle: ModelBundle,
    item_vectors: ItemVectors,
    histories: Sequences,
    attributes: pd.DataFrame | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    now: int | None = None,
) -> Float32[np.ndarray, "users width"]:
    """Return users' unit vectors, encoded in blocks.

    Args:
        bundle: The model.
        item_vectors: The unit vectors of the items in the histories, by row.
        histories: Each user's history, oldest first.
        attributes: One row per user; None if the model reads none.
        progress: Called with the number of users done and of all.
        now: The time of the request in Unix seconds, for models that read it.
    """
    recent = histories.last(bundle.config.features.max_history)
    vectors = np.zeros((len(histories), item_vectors.shape[1]), dtype=np.float32)
    size = EVENTS_AT_ONCE // max(1, bundle.config.features.max_history)
    for users in deadline.parts(len(histories), size, _USERS_AT_ONCE):
        is_all = users.stop - users.start == len(recent)
        block = recent if is_all else recent.take(np.arange(users.start, users.stop))
        with timed("encode"):
            vectors[users] = bundle.encode_users(
                item_vectors[block.item_rows],
                block.offsets,
                attributes=None if attributes is None else attributes.iloc[users].reset_index(drop=True),
                user_ids=block.user_ids,
                request_times=None if now is None else np.full(len(block), now, dtype=np.int64),
                event_times=block.times if bundle.config.reads_time else None,
            )
        progress(users.stop, len(histories))
    return vectors


def attribute_columns(bundle: ModelBundle) -> list[str]:
    """Return the columns of the users table that a model reads."""
    return [column for column in bundle.config.features.user if column != USER_ID]
