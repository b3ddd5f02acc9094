"""What an operator says of a vector database: its address, and what to do when it is slow or away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fallback = Literal["local", "none"]


@dataclass(frozen=True)
class DatabaseSettings:
    """The operator's settings of a vector database.

    Attributes:
        address: Its address, with the name of the collection, perhaps with a password.
        key: API key of a Qdrant server. None: none is sent.
        timeout_seconds: How long one attempt to search may take, in seconds.
        retries: Further attempts after one that failed at once.
        fallback: Answers while the database is away: `local`, from the bundle's own index, or `none`.
        keep: How many collections of one model are kept, the newest first, at least 1.
    """

    address: str
    key: str | None = None
    timeout_seconds: float = 0.5
    retries: int = 1
    fallback: Fallback = "local"
    keep: int = 2
