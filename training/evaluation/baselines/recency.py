"""Histories in which what is older counts less."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32

from features.sequences.matrix import interaction_matrix
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences

OLDEST = 10
"""Half-lives after which an event no longer counts: less than a thousandth of the newest."""


def decayed_history(histories: Sequences, num_items: int, half_life: float) -> sp.csr_array[np.float32]:
    """Return the weight of each item in each history, `[histories, items]`: `2 ** (-age / half_life)`.

    The age is the number of events after the item's last one. What is ten half-lives old is left out.

    Args:
        histories: Oldest first.
        num_items: Size of the catalogue.
        half_life: In events; inf: all items of a history count 1.
    """
    if math.isinf(half_life):
        return interaction_matrix(histories, num_items)
    recent = histories.last(math.ceil(OLDEST * half_life))
    ages = _ages(recent)
    pairs = recent.event_users * np.int64(num_items) + recent.item_rows
    newest = recent.num_events - 1 - np.unique(pairs[::-1], return_index=True)[1]
    lengths = np.bincount(recent.event_users[newest], minlength=len(recent))
    weights: Float32[np.ndarray, "items_of_histories"] = np.exp2(-ages[newest] / half_life).astype(np.float32)
    return sp.csr_array((weights, recent.item_rows[newest], offsets_of(lengths)), shape=(len(recent), num_items))


def _ages(histories: Sequences) -> np.ndarray:
    """Return how many events of the same history come after each one."""
    ages: np.ndarray = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(histories.num_events)
    return ages
