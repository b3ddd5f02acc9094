"""The people of the generated shop: who they are, what they like, how that changes, and when they come.

Tastes follow from age and country and from nothing the tables say; between the first day and the last each person
moves from one taste to another. Times are drawn before anybody chooses anything, so that how often and when a person
comes says nothing about what is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.shop.products import CHARACTER, END, FIRST_DAY, PRICE_CARE
from features.shop.words import Words

DAY = 24 * 3600
TASTE = 5
"""Directions in which people's liking of whole categories varies."""
LEAST_EVENTS = 5
EVENTS_PER_SESSION = 5
SESSION_SECONDS = 25 * 60
FIRST_USER = 10_001
HOURS = (1, 1, 0.5, 0.5, 0.5, 1, 2, 4, 5, 6, 6, 6, 7, 7, 6, 6, 6, 7, 9, 11, 13, 12, 8, 4)
"""How busy each hour of the local day is."""
WEEKDAYS = (1.0, 0.95, 0.95, 1.0, 1.05, 1.3, 1.4)
"""How busy each day of the week is, from Monday."""


@dataclass(frozen=True)
class People:
    """All people, in the order of their ids.

    Attributes:
        frame: The public table, one row per person.
        interest: What they like about categories on the first day and on the last, `[2, people, categories]`.
        liking: What they like about products' traits on the first day and on the last, `[2, people, traits]`.
        tongue: How readily they look at goods in each language, `[people, languages]`.
    """

    frame: pd.DataFrame
    interest: Float[np.ndarray, "2 people categories"]
    liking: Float[np.ndarray, "2 people traits"]
    tongue: Float[np.ndarray, "people languages"]

    def __len__(self) -> int:
        """Return the number of people."""
        return len(self.tongue)


def make_people(
    words: Words,
    number: int,
    rng: np.random.Generator,
    *,
    first_user: int = FIRST_USER,
    shared: np.random.Generator | None = None,
) -> People:
    """Return `number` people.

    Args:
        words: What there is to like.
        number: How many people.
        rng: Where chance comes from.
        first_user: Id of the first.
        shared: Where tastes come from that people of an age or a country share, if other people share them, too.
    """
    shared = rng if shared is None else shared
    country = rng.choice(len(words.countries), size=number, p=[row["share"] for row in words.countries.values()])
    shares = np.array([row["languages"] for row in words.countries.values()])
    languages_up_to = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
    language = (rng.random((number, 1)) > languages_up_to[country]).sum(axis=1)
    age = rng.choice(len(words.age_bands), size=number, p=(0.14, 0.24, 0.21, 0.17, 0.14, 0.10))
    days = int((END - FIRST_DAY).astype(np.int64)) // DAY
    is_old = rng.random(number) < 0.5
    joined_day = np.where(is_old, -rng.integers(1, 900, size=number), rng.integers(0, days - 30, size=number))
    interest = _interests(words, country, age, rng, shared)
    frame = pd.DataFrame(
        {
            "user_id": np.arange(first_user, first_user + number),
            "country": pd.Series(list(words.countries), dtype="str").take(country).array,
            "language": pd.Series(words.languages, dtype="str").take(language).array,
            "age_band": pd.Series(words.age_bands, dtype="str").take(age).array,
            "joined": (FIRST_DAY + joined_day * np.timedelta64(DAY, "s")).astype("datetime64[ms]"),
            "interests": pd.array(_profile(words, interest[0], language, rng), dtype="str"),
        }
    )
    frame.loc[rng.random(number) < 0.08, "age_band"] = None
    return People(frame, interest, _likings(words, country, age, rng, shared), _tongues(words, language))


def _interests(
    words: Words, country: np.ndarray, age: np.ndarray, rng: np.random.Generator, shared: np.random.Generator
) -> np.ndarray:
    """Return likings of categories, `[2, people, categories]`: by age and country, by temper, and four favourites."""
    number, kinds = len(age), len(words.categories)
    by_age = -0.10 * np.minimum((age[:, None] - np.array([category.age for category in words.categories])) ** 2, 9)
    by_country = 0.4 * shared.standard_normal((len(words.countries), kinds))[country]
    directions = shared.standard_normal((TASTE, kinds)) / np.sqrt(TASTE)
    temper = rng.standard_normal((number, TASTE))
    general = by_age + by_country + 0.7 * temper @ directions
    weights = np.array([1.9, 1.7, 1.5, 1.3])
    # Favourites are what is liked most after a great deal of chance; half of them give way to others in time.
    order = np.argsort(-(general + 1.3 * rng.gumbel(size=(number, kinds))), axis=1)
    first, last = order[:, :4], order[:, [0, 2, 4, 5]]
    interest = np.stack([general, general])
    for moment, favourites in enumerate((first, last)):
        people = np.arange(number)[:, None]
        interest[moment, people, favourites] += weights[rng.permuted(np.tile(np.arange(4), (number, 1)), axis=1)]
    return interest


def _likings(
    words: Words, country: np.ndarray, age: np.ndarray, rng: np.random.Generator, shared: np.random.Generator
) -> np.ndarray:
    """Return likings of traits, `[2, people, traits]`, in the order of `Products.traits`."""
    number, styles = len(age), len(words.styles)
    typical = 0.5 * shared.standard_normal((len(words.age_bands), styles))[age]
    typical += 0.3 * shared.standard_normal((len(words.countries), styles))[country]
    style = 1.1 * rng.standard_normal((number, styles))
    budget = (0.8 * rng.standard_normal((number, 1)) + 0.2 * (age[:, None] - 2)).clip(-2, 2)
    character = 0.55 * rng.standard_normal((number, CHARACTER))

    def at(moved: float) -> np.ndarray:
        looks = typical + np.sqrt(1 - moved**2) * style + moved * 1.1 * rng.standard_normal(style.shape)
        inner = np.sqrt(1 - moved**2) * character + moved * 0.55 * rng.standard_normal(character.shape)
        return np.concatenate([looks, 2 * PRICE_CARE * budget, inner], axis=1)

    return np.stack([at(0.0), at(0.6)])


def _tongues(words: Words, language: np.ndarray) -> np.ndarray:
    """Return how readily people look at goods in each language: their own, then English."""
    tongue = np.full((len(language), len(words.languages)), -4.0)
    tongue[:, 0] = -2.0
    tongue[np.arange(len(language)), language] = 0.0
    return tongue


def _profile(words: Words, interest: np.ndarray, language: np.ndarray, rng: np.random.Generator) -> list[str | None]:
    """Return what people say they are interested in: one to three favourites in their language; a tenth say nothing."""
    favourites = np.argsort(-interest, axis=1)[:, :3].tolist()
    said = rng.choice(4, size=len(language), p=(0.1, 0.25, 0.35, 0.3)).tolist()
    return [
        ", ".join(words.categories[row].interest[tongue] for row in rows[:count]) if count else None
        for rows, tongue, count in zip(favourites, language.tolist(), said, strict=True)
    ]


def make_visits(words: Words, people: People, events: int, longest: int, rng: np.random.Generator) -> Sequences:
    """Return the times of all interactions, with items still to be chosen (`item_rows` are -1).

    Args:
        words: Says in which time zone a country lies.
        people: Who comes.
        events: How many events there are in all.
        longest: No person has more events than this.
        rng: Where chance comes from.
    """
    lengths = _lengths(len(people), events, longest, rng)
    user = np.repeat(np.arange(len(people)), lengths)
    sessions = np.maximum(1, np.rint(lengths / EVENTS_PER_SESSION).astype(np.int64))
    starts = _session_starts(words, people.frame, np.repeat(np.arange(len(people)), sessions), rng)
    session = offsets_of(sessions)[user] + (rng.random(len(user)) * sessions[user]).astype(np.int64)
    times = starts[session] + rng.integers(SESSION_SECONDS, size=len(user))
    times = times[np.lexsort((times, user))]
    # No two events of a person in the same second: each is at least a second after the one before.
    place = np.arange(len(user))
    floor = user * (1 << 40)
    times = np.maximum.accumulate(times - place + floor) + place - floor
    return Sequences(people.frame["user_id"].to_numpy(), offsets_of(lengths), np.full(len(user), -1), times, True)


def _lengths(people: int, events: int, longest: int, rng: np.random.Generator) -> Int[np.ndarray, " people"]:
    """Return how many events each has: log-normal above five, at most `longest`, `events` in all."""
    wish = np.exp(0.7 * rng.standard_normal(people))
    lengths = np.full(people, float(LEAST_EVENTS))
    while (spare := events - lengths.sum()) > 0.5:
        # What the longest may not have goes to the others, round by round.
        is_open = lengths < longest
        lengths = np.minimum(lengths + spare * wish * is_open / wish[is_open].sum(), longest)
    whole = np.floor(lengths + 1e-9).astype(np.int64)
    missing = events - int(whole.sum())
    whole[np.argsort(whole - lengths, kind="stable")[:missing]] += 1
    return whole


def _session_starts(
    words: Words, frame: pd.DataFrame, person: np.ndarray, rng: np.random.Generator
) -> Int[np.ndarray, " sessions"]:
    """Return when each session begins, in Unix seconds: after the person joined, by day of the week and hour."""
    first = int(FIRST_DAY.astype(np.int64))
    days = int((END - FIRST_DAY).astype(np.int64)) // DAY - 1
    busy = np.array(WEEKDAYS)[np.arange(days) % 7] * np.linspace(0.9, 1.1, days)
    passed = np.append(0, np.cumsum(busy) / busy.sum())
    joined = (frame["joined"].to_numpy().astype("datetime64[D]") - FIRST_DAY.astype("datetime64[D]")).astype(np.int64)
    begin = passed[(joined + 1).clip(0, days - 1)][person]
    day = np.searchsorted(passed, begin + rng.random(len(person)) * (1 - begin), side="right") - 1
    hour = np.searchsorted(np.cumsum(HOURS) / np.sum(HOURS), rng.random(len(person)), side="right")
    away = np.array([row["hours"] for row in words.countries.values()])
    zone = away[pd.Categorical(frame["country"], list(words.countries)).codes][person]
    starts: np.ndarray = first + day * DAY + ((hour - zone) % 24) * 3600 + rng.integers(3600, size=len(person))
    return starts
