"""The users that a training held out for validation, in its bundle.

They are neither drawn again from later tables, in which one user more would change the draw, nor kept by their ids, but
by digests: eight bytes a user, so a megabyte or less where a million users have interactions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from safetensors.torch import load_file, save_file

from features.ids import id_digests

VALIDATION_USERS = "validation_users.safetensors"
"""Name of the file. Bundles whose training held out each user's last item instead have none."""

_DIGESTS = "digests"


def write_validation_users(folder: Path, user_ids: Iterable[object]) -> None:
    """Write the digests of the ids into the folder of a bundle."""
    digests = np.unique(id_digests(user_ids))
    save_file({_DIGESTS: torch.from_numpy(digests)}, folder / VALIDATION_USERS)


def are_validation_users(file: Path, user_ids: Iterable[object]) -> Bool[np.ndarray, " users"]:
    """Return which users the file names."""
    return np.isin(id_digests(user_ids), load_file(file)[_DIGESTS].numpy())
