"""The catalogue of the generated shop: what is on the shelves, since when, and how its popularity moves.

Products stand sorted by type, so that the products of a type are one slice. Their looks, languages and prices, which
decide who likes them, can be read from their texts; their character cannot, and shows only in who chose them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from features.sequences import offsets_of
from features.shop.words import Words, make_names, say_product

FIRST_DAY = np.datetime64("2024-07-01", "s")
"""A Monday. Nothing happens before it, though goods and people may have been there."""
END = np.datetime64("2026-07-01", "s")
"""The first moment after everything: the last day is 2026-06-30."""
WEEK = 7 * 24 * 3600
NUM_WEEKS = -(-int((END - FIRST_DAY).astype(np.int64)) // WEEK)
CHARACTER = 4
"""Numbers that describe what cannot be read from a product's texts."""
LANGUAGE_SHARES = (0.34, 0.25, 0.22, 0.19)
ENDINGS = (0.99, 0.95, 0.90, 0.00)


@dataclass(frozen=True)
class Products:
    """All products, sorted by type.

    Attributes:
        frame: The public table, one row per product, in this order.
        type_starts: Where each type's products begin, `[types + 1]`.
        type_rows: The row in `Words.types` of each type that the shop sells, `[types]`.
        traits: What people like or dislike, `[products, traits]`: styles and languages as indicators, price against
            the usual price of the type (in standard deviations), character.
        log_popularity: By week and product, `[weeks, products]`; minus infinity before the launch.
        type_popularity: By week and type, `[weeks, types]`.
        companions: By type and type, `[types, types]`, whether the second goes well with the first.
    """

    frame: pd.DataFrame
    type_starts: Int[np.ndarray, "types_plus_1"]
    type_rows: Int[np.ndarray, " types"]
    traits: Float[np.ndarray, "products traits"]
    log_popularity: Float[np.ndarray, "weeks products"]
    type_popularity: Float[np.ndarray, "weeks types"]
    companions: Bool[np.ndarray, "types types"]

    def __len__(self) -> int:
        """Return the number of products."""
        return len(self.traits)

    @property
    def item_types(self) -> Int[np.ndarray, " products"]:
        """The type of each product, as a row of `type_rows`."""
        return np.repeat(np.arange(len(self.type_rows)), np.diff(self.type_starts))


def make_products(words: Words, number: int, rng: np.random.Generator) -> Products:
    """Return a catalogue of `number` products."""
    type_rows = np.sort(rng.permutation(len(words.types))[: min(len(words.types), max(1, number // 5))])
    shares = np.exp(0.4 * rng.standard_normal(len(type_rows)))
    counts = 1 + rng.multinomial(number - len(type_rows), shares / shares.sum())
    item_types = np.repeat(np.arange(len(type_rows)), counts)
    brand, tier, style, character, names = _make_brands(words, type_rows[item_types], rng)
    language = rng.choice(len(words.languages), size=number, p=LANGUAGE_SHARES)
    price_level = (0.8 * tier + 0.6 * rng.standard_normal(number)).clip(-2.5, 2.5)
    launch_week = _launch_weeks(counts, rng)
    frame = pd.DataFrame(_tell(words, type_rows[item_types], style, language, names[0][brand], names[1][brand], rng))
    frame["brand"] = names[0][brand]
    frame["category"] = [words.types[row].path for row in type_rows[item_types]]
    frame["price"] = _prices(np.array([words.types[row].price for row in type_rows])[item_types], price_level, rng)
    frame["language"] = np.array(words.languages, dtype=object)[language]
    frame["launched"] = (FIRST_DAY + launch_week * np.timedelta64(WEEK, "s")).astype("datetime64[D]")
    frame.insert(0, "item_id", _item_ids(launch_week, rng))
    return Products(
        frame=frame,
        type_starts=offsets_of(counts),
        type_rows=type_rows,
        traits=np.concatenate(
            [np.eye(len(words.styles))[style], np.eye(len(words.languages))[language], price_level[:, None], character],
            axis=1,
        ),
        log_popularity=_item_popularity(counts, launch_week, rng),
        type_popularity=_type_popularity(words, type_rows, counts, rng),
        companions=_companions(words, type_rows, rng),
    )


def _make_brands(
    words: Words, type_rows: Int[np.ndarray, " products"], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return brand, tier, style and character of each product, and the names of brands and their ranges."""
    departments = list(words.departments)
    of_type = np.array([departments.index(words.categories[kind.category].department) for kind in words.types])
    per_department = int(np.clip(round(len(type_rows) / 300), 5, 40))
    brand_shares = 1 / np.arange(1, per_department + 1) ** 0.7
    number = per_department * len(departments)
    names = np.array(make_names(words, "brand", number, rng), dtype=object)
    lines = np.array(make_names(words, "line", number, rng), dtype=object)
    brand_tier = rng.standard_normal(number)
    brand_style = rng.integers(len(words.styles), size=number)
    brand_character = rng.standard_normal((number, CHARACTER))
    rank = rng.choice(per_department, size=len(type_rows), p=brand_shares / brand_shares.sum())
    brand = of_type[type_rows] * per_department + rank
    is_typical = rng.random(len(type_rows)) < 0.6
    style = np.where(is_typical, brand_style[brand], rng.integers(len(words.styles), size=len(type_rows)))
    character = 0.75 * brand_character[brand] + 0.66 * rng.standard_normal((len(type_rows), CHARACTER))
    return brand, brand_tier[brand], style, character, (names, lines)


def _launch_weeks(counts: Int[np.ndarray, " types"], rng: np.random.Generator) -> Int[np.ndarray, " products"]:
    """Return when each product came: a good half before the first day, the first of every type among them."""
    number = int(counts.sum())
    weeks = np.where(
        rng.random(number) < 0.55, -rng.integers(1, 150, size=number), rng.integers(1, NUM_WEEKS - 4, size=number)
    )
    first = offsets_of(counts)[:-1]
    weeks[first] = -1 - np.abs(weeks[first])
    return weeks


def _item_popularity(
    counts: Int[np.ndarray, " types"], launch_week: Int[np.ndarray, " products"], rng: np.random.Generator
) -> Float[np.ndarray, "weeks products"]:
    """Return Zipf's law within each type, with fashions that come and go and the charm of the new."""
    number = len(launch_week)
    rank = np.concatenate([rng.permutation(count) for count in counts]) + 1.0
    weeks = np.arange(NUM_WEEKS)[:, None]
    period, phase = rng.uniform(30, 120, size=number), rng.uniform(0, 1, size=number)
    fashion = rng.uniform(0.1, 0.7, size=number) * np.sin(2 * np.pi * (weeks / period + phase))
    age = weeks - launch_week
    novelty = 0.9 * np.exp(-np.maximum(age, 0) / 8)
    return np.where(age >= 0, -0.7 * np.log(rank) + fashion + novelty, -np.inf)


def _type_popularity(
    words: Words, type_rows: Int[np.ndarray, " types"], counts: Int[np.ndarray, " types"], rng: np.random.Generator
) -> Float[np.ndarray, "weeks types"]:
    """Return how much a type is in demand: more with more goods, in its season, and by chance."""
    categories = [words.categories[words.types[row].category] for row in type_rows]
    season = np.array([category.season for category in categories])
    month = (FIRST_DAY + np.arange(NUM_WEEKS) * np.timedelta64(WEEK, "s")).astype("datetime64[M]").astype(np.int64) % 12
    wave = np.cos(2 * np.pi * (month[:, None] + 1 - season) / 12) * (season > 0)
    return 0.5 * np.log(counts) + 0.35 * rng.standard_normal(len(counts)) + 0.5 * wave


def _companions(words: Words, type_rows: Int[np.ndarray, " types"], rng: np.random.Generator) -> np.ndarray:
    """Return, for each type, two types of the same department that people look at next."""
    departments = np.array([words.categories[words.types[row].category].department for row in type_rows])
    nearness = rng.random((len(type_rows), len(type_rows))) + (departments[:, None] == departments)
    np.fill_diagonal(nearness, -1)
    companions = np.zeros(nearness.shape, dtype=bool)
    np.put_along_axis(companions, np.argsort(-nearness, axis=1)[:, :2], True, axis=1)
    return companions


def _prices(usual: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return prices that a shop would write, log-normal around the usual ones."""
    endings = np.array(ENDINGS)[rng.integers(len(ENDINGS), size=len(usual))]
    whole = np.maximum(np.round(usual * np.exp(0.4 * level)), 2)
    return np.round(whole - 1 + endings + (endings == 0), 2)


def _item_ids(launch_week: Int[np.ndarray, " products"], rng: np.random.Generator) -> list[str]:
    """Return ids that count the products in the order of their launch."""
    order = np.lexsort((rng.random(len(launch_week)), launch_week))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(1, len(order) + 1)
    return [f"P{number:06d}" for number in place]


def _tell(
    words: Words,
    type_rows: np.ndarray,
    style: np.ndarray,
    language: np.ndarray,
    brands: np.ndarray,
    lines: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, list[str]]:
    """Return the titles and descriptions."""
    draws = rng.random((len(type_rows), 8))
    texts = [
        say_product(words, words.types[kind], look, tongue, brand, line, row)
        for kind, look, tongue, brand, line, row in zip(
            type_rows, style.tolist(), language.tolist(), brands, lines, draws, strict=True
        )
    ]
    return {"title": [title for title, _ in texts], "description": [description for _, description in texts]}
