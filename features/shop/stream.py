"""A generated shop of any number of people and interactions, written block by block of people, in bounded memory.

The products are those of `generate_shop`; people of a block are drawn from a seed of their own, and share what people
of an age or a country share. The best possible lists are not made: `generate_shop` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.files import atomic_file, atomic_folder
from features.shop.choices import World, visit
from features.shop.people import FIRST_USER, make_people, make_visits
from features.shop.products import Products, make_products
from features.shop.shop import Size, check_size, interactions_of
from features.shop.words import load_words

PEOPLE_PER_BLOCK = 8_192


def write_shop_stream(
    folder: Path,
    seed: int,
    size: Size,
    on_written: Callable[[int], object] = lambda interactions: None,
    people_per_block: int = PEOPLE_PER_BLOCK,
) -> None:
    """Write `interactions/`, a folder of Parquet files, `items.parquet` and `users.parquet`.

    The interactions are in blocks of people, and within a block in the order of the times.

    Args:
        folder: Where to write.
        seed: Another seed, another shop.
        size: How large it is.
        on_written: Called with the number of interactions of each block that is written.
        people_per_block: People who are simulated at once; other blocks make another shop.

    Raises:
        DataError: The numbers do not make a shop.
    """
    check_size(*size)
    products = make_products(load_words(), size.items, np.random.default_rng(seed).spawn(1)[0])
    counts = np.zeros(size.items, dtype=np.int64)
    users: list[pd.DataFrame] = []
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder / "interactions") as parts:
        for place, (people, item_rows, events) in enumerate(_blocks(products, seed, size, people_per_block)):
            table = pa.Table.from_pandas(events, preserve_index=False)
            pq.write_table(table, parts / f"part-{place:05d}.parquet")
            counts += np.bincount(item_rows, minlength=size.items)
            users.append(people)
            on_written(len(events))
    reviews = np.random.default_rng([seed, 1]).binomial(counts, 0.35)
    items = products.frame.assign(num_reviews=reviews).sort_values("item_id", ignore_index=True)
    for name, frame in (("items", items), ("users", pd.concat(users, ignore_index=True))):
        with atomic_file(folder / f"{name}.parquet") as file:
            frame.to_parquet(file, index=False)


def _blocks(
    products: Products, seed: int, size: Size, people_per_block: int
) -> Iterator[tuple[pd.DataFrame, np.ndarray, pd.DataFrame]]:
    """Yield the people, the products that they looked at, and the table of that."""
    words = load_words()
    for first in range(0, size.users, people_per_block):
        end = min(first + people_per_block, size.users)
        for_people, for_visits, for_choices = np.random.default_rng([seed, first + 2]).spawn(3)
        shared = np.random.default_rng([seed, 0])
        people = make_people(words, end - first, for_people, first_user=FIRST_USER + first, shared=shared)
        # Each block has its part of the interactions; what does not divide evenly is spread over all blocks.
        events = size.interactions * end // size.users - size.interactions * first // size.users
        visits = make_visits(words, people, events, size.items // 4, for_visits)
        visits = visit(World(words, products, people), visits, for_choices)
        yield people.frame, visits.item_rows, interactions_of(visits, products.frame["item_id"])
