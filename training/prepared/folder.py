"""A folder of prepared interactions: sorted arrays, what they were made of, and a seal of each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.files import mapped
from features.ids import ITEM_ID
from features.parquet import read_parquet
from features.sequences.ragged import check_offsets
from features.sequences.sequences import Sequences
from features.tables.tables import Catalog, Interactions, Readings, Tables
from features.values.readings import reading_from_json, reading_to_json
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import MANIFEST, SealedFolder, read_manifest, said_of, seal
from training.prepared.sorting import Sorted, texts_of

FORMAT = 2
ITEMS = "items.parquet"


@dataclass(frozen=True)
class PreparedInteractions(Interactions):
    """Interactions whose rows are on disk; `frame` has none of them.

    Attributes:
        prepared: The interactions as they are there.
    """

    prepared: Sequences

    def __len__(self) -> int:
        """Return the number of events."""
        return self.prepared.num_events

    def sequences(self, catalog: Catalog) -> Sequences:
        """Return the events, users in the order of the shards; the catalogue is that of the same tables."""
        return self.prepared


@dataclass(frozen=True)
class PreparedFolder:
    """A folder that was opened and verified.

    Attributes:
        path: The folder.
        sequences: The interactions, mapped into memory.
        shards: Users and events of each shard, in the order of the arrays.
        notes: What was repaired in the tables.
        readings: What was decided of columns, see `Tables.readings`.
        ids_are_text: Whether the ids of users and of items are text.
        item_ids: Ids of the catalogue; None: they are those of the table of items.
    """

    path: Path
    sequences: Sequences
    shards: list[tuple[int, int]]
    notes: tuple[str, ...]
    readings: Mapping[str, Readings]
    ids_are_text: tuple[bool, bool]
    item_ids: pa.Array | None

    @classmethod
    def open(cls, path: Path, digest: str) -> PreparedFolder | None:
        """Return a folder, None where there is none, or one that was made of other tables or settings.

        Args:
            path: The folder.
            digest: That of what it has to be made of.

        Raises:
            BundleError: A file of it is missing or was changed.
        """
        try:
            said = read_manifest(path)
            if said.get("format") != FORMAT or said.get("digest") != digest:
                return None
            if said.get("seal") != _seal_of(said):
                raise ValueError(f"{MANIFEST} was changed after it was written")
            sealed = SealedFolder.open(path, said.get("files"))
            return cls(
                path,
                _sequences(sealed, is_ordered=said["is_ordered"] is True),
                [(int(users), int(events)) for users, events in said["shards"]],
                tuple(map(str, said["notes"])),
                {
                    table: {name: reading_from_json(one) for name, one in some.items()}
                    for table, some in said["readings"].items()
                },
                (said["user_ids"] == "text", said["item_ids"] == "text"),
                read_parquet(sealed.file(ITEMS))[ITEM_ID].combine_chunks() if ITEMS in sealed else None,
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{path}: prepared interactions that cannot be used ({said_of(error)}); remove the folder, to have "
                "them prepared again"
            ) from error


def seal_prepared(folder: Path, digest: str, written: Sorted, tables: Tables, ids_are_text: tuple[bool, bool]) -> None:
    """Write the manifest of a folder of arrays.

    Args:
        folder: The folder.
        digest: That of what it was made of.
        written: What `write_sorted` wrote.
        tables: What was read with it.
        ids_are_text: Whether the ids of users and of items are text.
    """
    user_ids, item_ids = ("text" if is_text else "number" for is_text in ids_are_text)
    said: dict[str, Any] = {
        "format": FORMAT,
        "digest": digest,
        "is_ordered": written.is_ordered,
        "shards": written.shards,
        "user_ids": user_ids,
        "item_ids": item_ids,
        "notes": tables.notes,
        "readings": {
            table: {name: reading_to_json(one) for name, one in some.items()} for table, some in tables.readings.items()
        },
        "files": seal(folder),
    }
    (folder / MANIFEST).write_text(json.dumps({**said, "seal": _seal_of(said)}, indent=1), encoding="utf-8")


def _seal_of(said: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a manifest says but this."""
    content = json.dumps({name: one for name, one in said.items() if name != "seal"}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _sequences(sealed: SealedFolder, *, is_ordered: bool) -> Sequences:
    def array(name: str, kind: str) -> np.ndarray:
        found, _ = mapped(sealed.file(f"{name}.safetensors"), kind)
        return found[name]

    item_rows = array("item_rows", "I32")
    times = array("times", "I64") if "times.safetensors" in sealed else None
    offsets = array("offsets", "I64")
    if "user_id_offsets.safetensors" in sealed:
        user_ids = texts_of(array("user_ids", "I8"), array("user_id_offsets", "I64").tolist())
    else:
        user_ids = array("user_ids", "I64")
    check_offsets(offsets, len(user_ids), len(item_rows))
    return Sequences(user_ids, offsets, item_rows, times, is_ordered, folder=sealed.path)
