"""Which split an evaluation uses."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool

from features.errors import DataError
from features.sequences.seen_items import SeenItems
from features.sequences.sequences import Sequences
from features.sequences.split import (
    Split,
    cold_items,
    held_out_queries,
    held_out_users,
    leave_one_basket_out,
    leave_one_out,
    time_split,
)
from training.config import RunConfig

QuestionSet = Literal["test", "validation"]


def usual_protocol(config: RunConfig, sequences: Sequences) -> str:
    """Return the default protocol: queries without histories, else leave-one-out with an order, else users."""
    if not config.towers.reads_history:
        return "queries"
    return "leave-one-out" if sequences.is_ordered else "users"


def is_drawn(protocol: str, sequences: Sequences) -> bool:
    """Whether the split of a protocol is random, so that each seed has its own."""
    return protocol in ("users", "queries", "cold-items") or (protocol == "leave-one-out" and not sequences.is_ordered)


def split_by(protocol: str, sequences: Sequences, num_items: int, config: RunConfig) -> Split:
    """Return the split of a protocol, as the command line calls it."""
    seen_items, seed = SeenItems.of(config.features.recommend_seen), config.training.seed
    match protocol:
        case "leave-one-out":
            return leave_one_out(sequences, num_items, seen_items=seen_items, seed=seed)
        case "leave-one-basket-out":
            return leave_one_basket_out(sequences, num_items, seen_items=seen_items)
        case "time":
            return time_split(sequences, num_items, seen_items=seen_items)
        case "users":
            return held_out_users(sequences, num_items, seen_items=seen_items, seed=seed)
        case "queries":
            return held_out_queries(sequences, num_items, seed=seed)
        case "cold-items":
            return cold_items(sequences, num_items, seen_items=seen_items, seed=seed)
    raise DataError(f"expected a protocol, found {protocol!r}; see towers evaluate --help")


def early_stopping_split(
    config: RunConfig,
    sequences: Sequences,
    num_items: int,
    *,
    validation_users: Bool[np.ndarray, " users"] | None = None,
) -> Split:
    """Hold out validation data only, as `[training] validation` says.

    By default that is each user's last item, or, without an order, a part of some users' items. Where no history is
    read, whole users are held out: queries.

    Args:
        config: The settings.
        sequences: All interactions.
        num_items: Size of the catalogue.
        validation_users: If whole users are held out: those of an earlier split. None: drawn.
    """
    if not config.towers.reads_history:
        return held_out_queries(
            sequences, num_items, test=False, seed=config.training.seed, validation_users=validation_users
        )
    chosen, seen_items = config.training.validation, SeenItems.of(config.features.recommend_seen)
    if chosen == "leave-one-out" or (chosen == "auto" and sequences.is_ordered):
        return leave_one_out(sequences, num_items, seen_items=seen_items, test=False)
    if chosen == "time":
        return time_split(sequences, num_items, seen_items=seen_items, test=False)
    return held_out_users(
        sequences,
        num_items,
        seen_items=seen_items,
        test=False,
        seed=config.training.seed,
        validation_users=validation_users,
    )


def holds_out_users(split: Split) -> bool:
    """Whether the validation questions of a split are about whole users that are not in its training data."""
    return split.name in ("users", "queries")
