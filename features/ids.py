"""Ids of users and items: their columns, how long they may be, and digests in their place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64

ITEM_ID = "item_id"
USER_ID = "user_id"
MAX_ID_CHARACTERS = 512
"""The longest id of a user or an item: in tables, in requests and in live writes."""


def id_digests(ids: Iterable[object]) -> Int64[np.ndarray, " ids"]:
    """Return the first 8 bytes of BLAKE2b of each id, written as text: ids that were integers may be texts later."""
    joined = b"".join(hashlib.blake2b(str(one).encode("utf-8", "surrogatepass"), digest_size=8).digest() for one in ids)
    return np.frombuffer(joined, dtype="<i8").astype(np.int64)
