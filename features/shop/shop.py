"""A generated shop: products, people and what they looked at, with the best recommendations anybody could give.

The embedded default data and the test bed. Because the taste behind every choice is known, so is the recall that no
recommender can exceed: `Shop.best_recall` is what one would reach who knew each person's taste at that moment, which
a recommender has to guess from the past. Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from features.errors import DataError
from features.files import atomic_file
from features.sequences.sequences import Sequences
from features.shop.choices import World, moments_of, probabilities, visit
from features.shop.people import LEAST_EVENTS, make_people, make_visits
from features.shop.products import make_products
from features.shop.words import load_words


class Size(NamedTuple):
    """How large a shop is."""

    users: int
    items: int
    interactions: int


SIZES = {
    "mini": Size(150, 400, 4_000),
    "tiny": Size(300, 400, 12_000),
    "small": Size(3_000, 2_000, 150_000),
    "medium": Size(20_000, 10_000, 1_500_000),
    "large": Size(200_000, 100_000, 15_000_000),
}
BEST_LISTS = 100
"""Length of the best possible lists."""
CELLS_AT_ONCE = 16_000_000
"""Probabilities that are held in memory at once."""
BEST_USERS = 10_000
"""The best possible lists are made for this many people at most, drawn by chance."""


@dataclass(frozen=True)
class Shop:
    """The tables of a generated shop.

    Attributes:
        interactions: `user_id` (int), `item_id` (str), `timestamp` (Unix seconds), in the order of the times.
        items: `item_id`, `title`, `description`, `image` (a drawing as address), `brand`, `category`, `price`,
            `language`, `launched`, `num_reviews` (counted over all time: it knows the future, as such columns do).
        users: `user_id`, `country`, `language`, `age_band`, `joined`, `interests`.
        best_possible: `user_id`, `item_id`, `score`, `rank`: the hundred products that each person was most likely
            to take as the last one new to them, with the probability, for one who knows their taste.
        best_possible_validation: The same for the last new product but one.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    best_possible: pd.DataFrame
    best_possible_validation: pd.DataFrame

    def best_recall(self, k: int = 10) -> float:
        """Return the expected recall at `k` (up to 100) of the best possible recommendations, leave-one-out."""
        return expected_recall(self.best_possible, k)


def expected_recall(best_possible: pd.DataFrame, k: int = 10) -> float:
    """Return the expected recall at `k` of best possible recommendations: the mean of their probabilities."""
    listed = best_possible["score"][best_possible["rank"] <= k]
    return float(listed.sum() / best_possible["user_id"].nunique())


def generate_shop(seed: int = 0, users: int = 3_000, items: int = 2_000, interactions: int = 150_000) -> Shop:
    """Return a shop; the same one for the same numbers.

    Raises:
        DataError: The numbers do not make a shop.
    """
    check_size(users, items, interactions)
    words = load_words()
    for_products, for_people, for_visits, for_choices, for_rest = np.random.default_rng(seed).spawn(5)
    products = make_products(words, items, for_products)
    people = make_people(words, users, for_people)
    world = World(words, products, people)
    visits = visit(world, make_visits(words, people, interactions, items // 4, for_visits), for_choices)
    item_ids = products.frame["item_id"]
    best = for_rest.permutation(users)[:BEST_USERS]
    counts = np.bincount(visits.item_rows, minlength=items)
    catalog = products.frame.assign(num_reviews=for_rest.binomial(counts, 0.35))
    return Shop(
        interactions=interactions_of(visits, item_ids),
        items=catalog.sort_values("item_id", ignore_index=True),
        users=people.frame,
        best_possible=_best_possible(world, visits, best, 1),
        best_possible_validation=_best_possible(world, visits, best, 2),
    )


def write_shop(shop: Shop, folder: Path) -> None:
    """Write `interactions.parquet`, `items.parquet`, `users.parquet` and `best_possible.parquet` to a folder."""
    for name in ("interactions", "items", "users", "best_possible"):
        with atomic_file(folder / f"{name}.parquet") as file:
            getattr(shop, name).to_parquet(file, index=False)


def check_size(users: int, items: int, interactions: int) -> None:
    """Check that numbers make a shop.

    Raises:
        DataError: They do not.
    """
    if users < 1 or items < 50:
        raise DataError(f"a shop has at least 1 user and 50 items, found {users} and {items}; ask for more")
    if not LEAST_EVENTS * users <= interactions <= users * (items // 8):
        raise DataError(
            f"a shop of {users:,} users and {items:,} items has {LEAST_EVENTS * users:,} to {users * (items // 8):,} "
            f"interactions, found {interactions:,}; choose between them"
        )


def interactions_of(visits: Sequences, item_ids: pd.Series) -> pd.DataFrame:
    """Return visits as a table, in the order of the times."""
    frame = pd.DataFrame(
        {
            "user_id": visits.user_ids[visits.event_users],
            "item_id": item_ids.take(visits.item_rows).array,
            "timestamp": visits.times,
        }
    )
    return frame.sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)


def _best_possible(world: World, visits: Sequences, people: np.ndarray, place_from_end: int) -> pd.DataFrame:
    """Return the best lists for the last new product of each person (1) or the one before (2)."""
    people = np.sort(people)
    block = max(1, CELLS_AT_ONCE // len(world.products))
    lists = [
        _best_lists(world, visits, people[first : first + block], place_from_end)
        for first in range(0, len(people), block)
    ]
    rows, scores = (np.concatenate(part) for part in zip(*lists, strict=True))
    length = rows.shape[1]
    return pd.DataFrame(
        {
            "user_id": np.repeat(visits.user_ids[people], length),
            "item_id": world.products.frame["item_id"].take(rows.ravel()).array,
            "score": scores.ravel(),
            "rank": np.tile(np.arange(1, length + 1), len(rows)),
        }
    )


def _best_lists(
    world: World, visits: Sequences, people: np.ndarray, place_from_end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return product rows and their probabilities, most probable first, `[people, length]` each."""
    own = visits.take(people)
    moments = moments_of(own, people, _new_events(own, place_from_end))
    # Rounded, so that the last bit of another machine's arithmetic changes neither scores nor order.
    chances = np.round(probabilities(world, moments), 12)
    length = min(BEST_LISTS, chances.shape[1] // 2)
    rows = np.sort(np.argpartition(-chances, length - 1, axis=1)[:, :length], axis=1)
    order = np.argsort(-np.take_along_axis(chances, rows, axis=1), axis=1, kind="stable")
    rows = np.take_along_axis(rows, order, axis=1)
    return rows, np.take_along_axis(chances, rows, axis=1)


def _new_events(visits: Sequences, place_from_end: int) -> np.ndarray:
    """Return each person's last event with a new product (1), the one before it (2), and so on."""
    new = np.flatnonzero(visits.first_visits())
    ends = np.cumsum(np.bincount(visits.event_users[new], minlength=len(visits)))
    last: np.ndarray = new[ends - place_from_end]
    return last
