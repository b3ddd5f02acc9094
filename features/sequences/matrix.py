"""Interactions as a sparse matrix."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences


def interaction_matrix(sequences: Sequences, num_items: int) -> sp.csr_array[np.float32]:
    """Return the interaction matrix, `[users, items]`: 1 for each pair of a user and an item, however often."""
    first = sequences.first_visits()
    offsets = offsets_of(np.bincount(sequences.event_users[first], minlength=len(sequences)))
    ones = np.ones(int(offsets[-1]), dtype=np.float32)
    return sp.csr_array((ones, sequences.item_rows[first], offsets), shape=(len(sequences), num_items))
