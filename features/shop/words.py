"""The words of the generated shop, and how a product is said in four languages.

The words themselves are data, in `words.toml` in this folder. Nothing in a sentence has to agree with anything
else in gender or number, so that every combination is a grammatical one.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float

FOUR = tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """A shelf of the shop.

    Attributes:
        path: `Department > Category`.
        age: The age band, from 0, that likes it most.
        season: The month in which it sells best, from 1; 0 for all the year.
        interest: What people who like it call their interest, per language.
    """

    path: str
    age: int
    season: int
    interest: FOUR

    @property
    def department(self) -> str:
        """The first step of the path."""
        return self.path.split(" > ")[0]


@dataclass(frozen=True)
class ProductType:
    """What a product is: the last step of the path, with its category's row, usual price, sizes and materials."""

    path: str
    category: int
    price: float
    sizes: str
    names: FOUR
    materials: FOUR


@dataclass(frozen=True)
class Style:
    """A look that people like or not: words for it, sentences about it and colours it comes in."""

    colours: FOUR
    phrases: dict[str, list[str]]
    sentences: dict[str, list[str]]


@dataclass(frozen=True)
class Words:
    """Everything in `words.toml`. Lists of four follow `languages`."""

    languages: FOUR
    age_bands: FOUR
    countries: dict[str, dict[str, Any]]
    titles: dict[str, str]
    openings: dict[str, list[str]]
    styles: tuple[Style, ...]
    colours: dict[str, FOUR]
    materials: dict[str, FOUR]
    sizes: dict[str, dict[str, list[str]]]
    departments: dict[str, dict[str, list[str]]]
    categories: tuple[Category, ...]
    types: tuple[ProductType, ...]
    names: dict[str, list[str]]


@cache
def load_words() -> Words:
    """Return the words, read once."""
    raw = tomllib.loads(files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))
    return Words(
        languages=tuple(raw["languages"]),
        age_bands=tuple(raw["age_bands"]),
        countries=raw["countries"],
        titles=raw["titles"],
        openings=raw["openings"],
        styles=tuple(_style(raw["styles"][name], raw["languages"]) for name in raw["styles"]),
        colours={name: tuple(words) for name, words in raw["colours"].items()},
        materials={name: tuple(words) for name, words in raw["materials"].items()},
        sizes=raw["sizes"],
        departments=raw["departments"],
        categories=tuple(
            Category(row["path"], row["age"], row.get("season", 0), tuple(row["interest"])) for row in raw["categories"]
        ),
        types=tuple(
            _product_type(number, row, kind) for number, row in enumerate(raw["categories"]) for kind in row["types"]
        ),
        names=raw["names"],
    )


def _style(row: dict[str, Any], languages: list[str]) -> Style:
    return Style(tuple(row["colours"]), {name: row[name] for name in languages}, row["sentences"])


def _product_type(number: int, category: dict[str, Any], kind: list[Any]) -> ProductType:
    last_step, price, sizes, *names = kind[:7]
    materials = kind[7] if len(kind) > 7 else category["materials"]
    return ProductType(f"{category['path']} > {last_step}", number, float(price), sizes, tuple(names), tuple(materials))


def say_product(
    words: Words, kind: ProductType, style: int, language: int, brand: str, line: str, draws: Float[np.ndarray, "8"]
) -> tuple[str, str, str]:
    """Return the title and the description of one product in one language, and the English name of its colour.

    Args:
        words: The words to choose from.
        kind: What the product is.
        style: Row of its style.
        language: Row of its language.
        brand: Who makes it.
        line: The maker's name for the range it belongs to.
        draws: Eight numbers in [0, 1) that decide between the words.
    """
    code = words.languages[language]
    look = words.styles[style]
    size = _pick(words.sizes[kind.sizes]["values"], draws[3])
    colour = _pick(look.colours, draws[2])
    phrase = words.sizes[kind.sizes]["phrases"][language]
    parts = {
        "brand": brand,
        "line": line,
        "type": kind.names[language],
        "material": words.materials[_pick(kind.materials, draws[0])][language],
        "style": _pick(look.phrases[code], draws[1]),
        "colour": words.colours[colour][language],
        "size": f", {phrase.format(size if code == 'en' else size.replace('.', ','))}" if phrase else "",
    }
    title_parts = {name: _title_case(part) for name, part in parts.items()} if code == "en" else parts
    sentences = [
        _pick(words.openings[code], draws[4]).format(**parts),
        _pick(look.sentences[code], draws[5]),
        _pick(words.departments[words.categories[kind.category].department][code], draws[6]),
    ]
    title = words.titles[code].format(**title_parts)
    return _capital(title), " ".join(_capital(sentence) for sentence in sentences), colour


def make_names(words: Words, kind: str, number: int, rng: np.random.Generator) -> list[str]:
    """Return `number` different invented names of brands (`kind="brand"`) or of ranges (`kind="line"`)."""
    parts = [words.names[f"{kind}_{part}"] for part in ("starts", "middles", "ends") if f"{kind}_{part}" in words.names]
    names: dict[str, None] = {}
    while len(names) < number:
        name = "".join(_pick(choices, rng.random()) for choices in parts)
        # When the syllables run out, a second word keeps the names apart.
        if name in names:
            name += f" {_pick(words.names['line_starts'], rng.random())}{_pick(words.names['line_ends'], rng.random())}"
        names[name] = None
    return list(names)


def _pick(choices: list[str] | FOUR, draw: float) -> str:
    return choices[int(draw * len(choices))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title_case(text: str) -> str:
    return " ".join(word if word in ("l", "cm", "x", "of", "for") else _capital(word) for word in text.split(" "))
