"""The catalogue of the generated shop: what is on the shelves, since when, and how its popularity moves.

A shelf holds the products of one type in one language; products stand sorted by shelf. Their looks, languages and
prices, which decide who likes them, can be read from the table; their character cannot, and shows only in who chose
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from features.sequences.ragged import offsets_of
from features.shop.pictures import picture
from features.shop.words import Words, make_names, say_product

FIRST_DAY = np.datetime64("2024-07-01", "s")
"""A Monday. Nothing happens before it, though goods and people may have been there."""
END = np.datetime64("2026-07-01", "s")
"""The first moment after everything: the last day is 2026-06-30."""
WEEK = 7 * 24 * 3600
NUM_WEEKS = -(-int((END - FIRST_DAY).astype(np.int64)) // WEEK)
CHARACTER = 4
"""Numbers that describe what cannot be read from a product's texts."""
ITEMS_PER_TYPE = 36
"""A shop has at least so many products per type, until it has all types."""
PRICE_CARE = 0.35
"""How much a price that does not fit puts people off, per squared standard deviation."""
LANGUAGE_SHARES = (0.34, 0.25, 0.22, 0.19)
ENDINGS = (0.99, 0.95, 0.90, 0.00)


@dataclass(frozen=True)
class Products:
    """All products, sorted by shelf.

    Attributes:
        frame: The public table, one row per product, in this order.
        shelf_starts: Where each shelf's products begin, `[shelves + 1]`.
        shelf_types: What each shelf holds, as a row of `Words.types`, `[shelves]`.
        shelf_languages: In which language, as a row of `Words.languages`, `[shelves]`.
        traits: What people like or dislike, `[products, traits]`: styles as indicators, price against the usual
            price of the type (in standard deviations), character.
        log_popularity: By week and product, `[weeks, products]`; minus infinity before the launch.
        shelf_popularity: By week and shelf, `[weeks, shelves]`.
        companions: By type and type of `Words.types`, `[types, types]`, whether the second goes with the first.
    """

    frame: pd.DataFrame
    shelf_starts: Int[np.ndarray, "shelves_plus_1"]
    shelf_types: Int[np.ndarray, " shelves"]
    shelf_languages: Int[np.ndarray, " shelves"]
    traits: Float[np.ndarray, "products traits"]
    log_popularity: Float[np.ndarray, "weeks products"]
    shelf_popularity: Float[np.ndarray, "weeks shelves"]
    companions: Bool[np.ndarray, "types types"]

    def __len__(self) -> int:
        """Return the number of products."""
        return len(self.traits)

    @property
    def item_shelves(self) -> Int[np.ndarray, " products"]:
        """The shelf of each product."""
        return np.repeat(np.arange(len(self.shelf_types)), np.diff(self.shelf_starts))


def make_products(words: Words, number: int, rng: np.random.Generator) -> Products:
    """Return a catalogue of `number` products."""
    shelf_types, shelf_languages, counts = _make_shelves(words, number, rng)
    kinds, language = np.repeat(shelf_types, counts), np.repeat(shelf_languages, counts)
    makers = _make_brands(words, kinds, rng)
    price_level = (0.8 * makers.tier + 0.6 * rng.standard_normal(number)).clip(-2.5, 2.5)
    launch_week = _launch_weeks(counts, rng)
    frame = pd.DataFrame(_tell(words, kinds, language, makers, rng))
    frame["brand"] = makers.brand
    frame["category"] = pd.Series([kind.path for kind in words.types], dtype="str").take(kinds).array
    frame["price"] = _prices(np.array([kind.price for kind in words.types])[kinds], price_level, rng)
    frame["language"] = pd.Series(words.languages, dtype="str").take(language).array
    frame["launched"] = (FIRST_DAY + launch_week * np.timedelta64(WEEK, "s")).astype("datetime64[ms]")
    frame.insert(0, "item_id", _item_ids(launch_week, rng))
    return Products(
        frame=frame,
        shelf_starts=offsets_of(counts),
        shelf_types=shelf_types,
        shelf_languages=shelf_languages,
        traits=np.concatenate(
            [np.eye(len(words.styles))[makers.style], price_level[:, None], makers.character], axis=1
        ),
        log_popularity=_item_popularity(counts, launch_week, rng),
        shelf_popularity=_shelf_popularity(words, shelf_types, counts, rng),
        companions=_companions(words, rng),
    )


def _make_shelves(words: Words, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return type, language and number of products of each shelf: a small shop has fewer types, of many categories."""
    categories = np.array([kind.category for kind in words.types])
    shuffled = rng.permutation(len(categories))
    place = np.empty(len(categories), dtype=np.int64)
    for category in range(len(words.categories)):
        members = shuffled[categories[shuffled] == category]
        place[members] = np.arange(len(members))
    wanted = max(3, number // ITEMS_PER_TYPE)
    types = np.sort(shuffled[np.argsort(place[shuffled], kind="stable")][:wanted])
    shelf_types = np.repeat(types, len(words.languages))
    shelf_languages = np.tile(np.arange(len(words.languages)), len(types))
    shares = np.array(LANGUAGE_SHARES)[shelf_languages] * np.repeat(
        np.exp(0.3 * rng.standard_normal(len(types))), len(words.languages)
    )
    counts = 1 + rng.multinomial(number - len(shares), shares / shares.sum())
    return shelf_types, shelf_languages, counts


@dataclass(frozen=True)
class _Makers:
    """Who made each product, and what that says about it: all `[products]`, character `[products, numbers]`."""

    brand: list[str]
    line: list[str]
    tier: np.ndarray
    style: np.ndarray
    character: np.ndarray


def _make_brands(words: Words, kinds: Int[np.ndarray, " products"], rng: np.random.Generator) -> _Makers:
    """Return a maker for each product: at home in one department, with a price tier and mostly one style."""
    departments = list(words.departments)
    of_type = np.array([departments.index(words.categories[kind.category].department) for kind in words.types])
    per_department = int(np.clip(round(len(kinds) / 300), 5, 40))
    shares = 1 / np.arange(1, per_department + 1) ** 0.7
    number, products, styles = per_department * len(departments), len(kinds), len(words.styles)
    names = make_names(words, "brand", number, rng)
    lines = make_names(words, "line", 120, rng)
    line_of = rng.integers(len(lines), size=(number, styles))
    tier, usual_style = rng.standard_normal(number), rng.integers(styles, size=number)
    usual_character = rng.standard_normal((number, CHARACTER))
    brand = of_type[kinds] * per_department + rng.choice(per_department, size=products, p=shares / shares.sum())
    style = np.where(rng.random(products) < 0.6, usual_style[brand], rng.integers(styles, size=products))
    return _Makers(
        brand=[names[row] for row in brand],
        line=[lines[row] for row in line_of[brand, style]],
        tier=tier[brand],
        style=style,
        character=0.75 * usual_character[brand] + 0.66 * rng.standard_normal((products, CHARACTER)),
    )


def _launch_weeks(counts: Int[np.ndarray, " shelves"], rng: np.random.Generator) -> Int[np.ndarray, " products"]:
    """Return when each product came: a good half before the first day, the first of every shelf among them."""
    number = int(counts.sum())
    weeks = np.where(
        rng.random(number) < 0.55, -rng.integers(1, 150, size=number), rng.integers(1, NUM_WEEKS - 4, size=number)
    )
    first = offsets_of(counts)[:-1]
    weeks[first] = -1 - np.abs(weeks[first])
    return weeks


def _item_popularity(
    counts: Int[np.ndarray, " shelves"], launch_week: Int[np.ndarray, " products"], rng: np.random.Generator
) -> Float[np.ndarray, "weeks products"]:
    """Return Zipf's law within each shelf, with fashions that come and go and the charm of the new."""
    number = len(launch_week)
    rank = np.concatenate([rng.permutation(count) for count in counts]) + 1.0
    weeks = np.arange(NUM_WEEKS)[:, None]
    period, phase = rng.uniform(30, 120, size=number), rng.uniform(0, 1, size=number)
    fashion = rng.uniform(0.1, 0.7, size=number) * np.sin(2 * np.pi * (weeks / period + phase))
    age = weeks - launch_week
    novelty = 0.9 * np.exp(-np.maximum(age, 0) / 8)
    return np.where(age >= 0, -1.1 * np.log(rank) + fashion + novelty, -np.inf)


def _shelf_popularity(
    words: Words,
    shelf_types: Int[np.ndarray, " shelves"],
    counts: Int[np.ndarray, " shelves"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "weeks shelves"]:
    """Return how much a shelf is in demand: more with more goods, in its season, and by chance."""
    season = np.array([words.categories[words.types[row].category].season for row in shelf_types])
    mondays = FIRST_DAY + np.arange(NUM_WEEKS) * np.timedelta64(WEEK, "s")
    months = mondays.astype("datetime64[M]").astype(np.int64) % 12
    wave = np.cos(2 * np.pi * (months[:, None] + 1 - season) / 12) * (season > 0)
    demand: np.ndarray = 0.5 * np.log(counts) + 0.8 * rng.standard_normal(len(words.types))[shelf_types] + 0.5 * wave
    return demand


def _companions(words: Words, rng: np.random.Generator) -> np.ndarray:
    """Return, for each type, two types of the same department that people look at next."""
    departments = np.array([words.categories[kind.category].department for kind in words.types])
    nearness = rng.random((len(departments), len(departments))) + (departments[:, None] == departments)
    np.fill_diagonal(nearness, -1)
    companions = np.zeros(nearness.shape, dtype=bool)
    np.put_along_axis(companions, np.argsort(-nearness, axis=1)[:, :2], True, axis=1)
    return companions


def _prices(usual: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return prices that a shop would write, log-normal around the usual ones."""
    endings = np.array(ENDINGS)[rng.integers(len(ENDINGS), size=len(usual))]
    whole = np.maximum(np.round(usual * np.exp(0.4 * level)), 2)
    prices: np.ndarray = np.round(whole - 1 + endings + (endings == 0), 2)
    return prices


def _item_ids(launch_week: Int[np.ndarray, " products"], rng: np.random.Generator) -> list[str]:
    """Return ids that count the products in the order of their launch."""
    order = np.lexsort((rng.random(len(launch_week)), launch_week))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(1, len(order) + 1)
    return [f"P{number:06d}" for number in place]


def _tell(
    words: Words, kinds: np.ndarray, language: np.ndarray, makers: _Makers, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Return the titles, descriptions and pictures."""
    draws = rng.random((len(kinds), 8))
    texts = [
        say_product(words, words.types[kind], style, tongue, brand, line, row)
        for kind, style, tongue, brand, line, row in zip(
            kinds, makers.style.tolist(), language.tolist(), makers.brand, makers.line, draws, strict=True
        )
    ]
    titles, descriptions, colours = (list(part) for part in zip(*texts, strict=True))
    paths = [words.categories[words.types[kind].category].path for kind in kinds]
    pictures = [picture(path, colour) for path, colour in zip(paths, colours, strict=True)]
    return {"title": titles, "description": descriptions, "image": pictures}
