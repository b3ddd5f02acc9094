"""How a person of the generated shop chooses something new, and so what the best recommender would recommend.

A person first wants a type of product, then takes one product of that type; both by a softmax, over what is on sale
and not yet known to the person. The same functions draw the choices and tell their probabilities, so that the best
possible recommendations are those of somebody who can look into the person's head at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from features.sequences import Sequences
from features.shop.people import People
from features.shop.products import END, FIRST_DAY, WEEK, Products
from features.shop.words import Words

PRICE_CARE = 0.45
"""How much a price that does not fit puts people off, per squared standard deviation."""
SAME_TYPE, SAME_CATEGORY, COMPANION = 1.9, 1.5, 1.6
"""How much more people want what is like, or goes with, what they have just looked at."""
LATER = 0.4
"""What is left of that when the last look was in an earlier session."""
REPEAT = 0.06
"""Share of events that are another look at something known."""
SESSION_GAP = 30 * 60
"""Seconds without an event that end a session."""
BLOCK = 8_192
"""People who are simulated at once."""
RECENT = 30
"""Another look is at one of this many newest events."""


@dataclass(frozen=True)
class Moment:
    """Some people, each at some moment, about to choose something new.

    Attributes:
        people: Rows of the people, `[moments]`.
        times: Unix seconds, `[moments]`.
        past: The products each knows, each once, `[moments, longest past]`; -1 after the last.
        last: The one looked at just before, `[moments]`; -1 for nothing yet.
        is_session: Whether that was in the same session, `[moments]`.
    """

    people: Int[np.ndarray, " moments"]
    times: Int[np.ndarray, " moments"]
    past: Int[np.ndarray, "moments longest"]
    last: Int[np.ndarray, " moments"]
    is_session: Bool[np.ndarray, " moments"]

    def take(self, rows: np.ndarray) -> Moment:
        """Return some of the moments."""
        return Moment(self.people[rows], self.times[rows], self.past[rows], self.last[rows], self.is_session[rows])

    @property
    def weeks(self) -> Int[np.ndarray, " moments"]:
        """The week of each moment, counted from the first day."""
        return (self.times - int(FIRST_DAY.astype(np.int64))) // WEEK

    @property
    def progress(self) -> Float[np.ndarray, "moments 1"]:
        """How far each moment lies between the first day, 0, and the last, 1."""
        first, end = int(FIRST_DAY.astype(np.int64)), int(END.astype(np.int64))
        return ((self.times - first) / (end - first))[:, None]


@dataclass(frozen=True)
class World:
    """All that decides what people choose."""

    words: Words
    products: Products
    people: People

    @cached_property
    def type_categories(self) -> Int[np.ndarray, " types"]:
        """The category of each type."""
        return np.array([self.words.types[row].category for row in self.products.type_rows])

    @cached_property
    def item_types(self) -> Int[np.ndarray, " products"]:
        """The type of each product."""
        return self.products.item_types

    @cached_property
    def carried_on(self) -> Float[np.ndarray, "types_plus_1 types"]:
        """By type just looked at and type: how much more the second is wanted. The last row is for nothing yet."""
        same_category = self.type_categories[:, None] == self.type_categories
        more = SAME_CATEGORY * same_category + COMPANION * self.products.companions
        more += SAME_TYPE * np.eye(len(more))
        return np.concatenate([more, np.zeros((1, len(more)))])

    @cached_property
    def on_sale(self) -> Int[np.ndarray, "weeks types"]:
        """How many products of each type there are in each week."""
        launched = np.isfinite(self.products.log_popularity).astype(np.int64)
        return np.add.reduceat(launched, self.products.type_starts[:-1], axis=1)

    @cached_property
    def item_weights(self) -> Float[np.ndarray, "weeks products"]:
        """What a product weighs for everybody: its popularity, and its price's distance from the usual one."""
        price = self.products.traits[:, len(self.words.styles) + len(self.words.languages)]
        return self.products.log_popularity - PRICE_CARE * price**2

    def type_wishes(self, moment: Moment) -> Float[np.ndarray, "moments types"]:
        """Return the log-weights of the types; minus infinity where nothing unknown is left."""
        start, end = self.people.interest[:, moment.people]
        wishes = (start + moment.progress * (end - start))[:, self.type_categories]
        wishes = wishes + self.products.type_popularity[moment.weeks]
        last_type = np.where(moment.last < 0, len(self.products.type_rows), self.item_types[moment.last])
        wishes += np.where(moment.is_session, 1.0, LATER)[:, None] * self.carried_on[last_type]
        return np.where(self.on_sale[moment.weeks] > self.known(moment), wishes, -np.inf)

    def known(self, moment: Moment) -> Int[np.ndarray, "moments types"]:
        """Return how many products of each type each person knows."""
        is_there = moment.past >= 0
        row = np.repeat(np.arange(len(is_there)), is_there.sum(axis=1))
        shape = (len(is_there), len(self.products.type_rows))
        cells = row * shape[1] + self.item_types[moment.past[is_there]]
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    def likings(self, moment: Moment) -> Float[np.ndarray, "moments traits"]:
        """Return what each person likes about products' traits."""
        start, end = self.people.liking[:, moment.people]
        likings: np.ndarray = start + moment.progress * (end - start)
        budget_column = len(self.words.styles) + len(self.words.languages)
        likings[:, budget_column] = 2 * PRICE_CARE * self.people.budget[moment.people]
        return likings


def choose(world: World, moment: Moment, draws: Float[np.ndarray, "moments 2"]) -> Int[np.ndarray, " moments"]:
    """Return what each person takes next, given two numbers in [0, 1) each: one for the type, one within it."""
    chosen_types = _draw(world.type_wishes(moment), draws[:, 0])
    order = np.argsort(chosen_types, kind="stable")
    moment, sorted_types = moment.take(order), chosen_types[order]
    likings, weeks, within = world.likings(moment), moment.weeks, draws[order, 1]
    known_row, known_column = np.nonzero((world.item_types[moment.past] == sorted_types[:, None]) & (moment.past >= 0))
    known_item = moment.past[known_row, known_column]
    bounds = np.flatnonzero(np.diff(sorted_types, prepend=-1, append=len(world.products.type_rows)))
    known_bounds = np.searchsorted(known_row, bounds)
    items = np.empty(len(order), dtype=np.int64)
    for group in range(len(bounds) - 1):
        rows = slice(bounds[group], bounds[group + 1])
        known = slice(known_bounds[group], known_bounds[group + 1])
        kind = sorted_types[bounds[group]]
        first, end = world.products.type_starts[kind : kind + 2]
        weights = world.item_weights[weeks[rows], first:end] + likings[rows] @ world.products.traits[first:end].T
        weights[known_row[known] - bounds[group], known_item[known] - first] = -np.inf
        items[order[rows]] = first + _draw(weights, within[rows])
    return items


def probabilities(world: World, moment: Moment) -> Float[np.ndarray, "moments products"]:
    """Return how probable it is that each person takes each product next. This is what `choose` draws from."""
    weights = world.item_weights[moment.weeks] + world.likings(moment) @ world.products.traits.T
    row, column = np.nonzero(moment.past >= 0)
    weights[row, moment.past[row, column]] = -np.inf
    of_types = _softmax(world.type_wishes(moment))
    starts, kinds = world.products.type_starts[:-1], world.item_types
    highest = np.maximum.reduceat(weights, starts, axis=1)
    weights = np.exp(weights - np.where(np.isfinite(highest), highest, 0.0)[:, kinds])
    total = np.add.reduceat(weights, starts, axis=1)
    share: np.ndarray = (of_types / np.where(total > 0, total, 1.0))[:, kinds]
    return weights * share


def visit(world: World, visits: Sequences, rng: np.random.Generator) -> Sequences:
    """Return the visits with products chosen: step by step, all people of a block at once."""
    is_new = rng.random(visits.num_events) >= REPEAT
    # Three new products at least, so that there is one to test, one to validate and one to learn from.
    is_new[np.arange(visits.num_events) - np.repeat(visits.offsets[:-1], visits.lengths) < 3] = True
    draws = rng.random((visits.num_events, 2))
    items = np.full(visits.num_events, -1)
    for first in range(0, len(visits), BLOCK):
        people = np.arange(first, min(first + BLOCK, len(visits)))
        _visit_block(world, visits, people, is_new, draws, items)
    return Sequences(visits.user_ids, visits.offsets, items, visits.times, is_ordered=True)


def _visit_block(
    world: World, visits: Sequences, people: np.ndarray, is_new: np.ndarray, draws: np.ndarray, items: np.ndarray
) -> None:
    """Fill in `items` for a block of people."""
    assert visits.times is not None
    people = people[np.argsort(-visits.lengths[people], kind="stable")]
    lengths, starts = visits.lengths[people], visits.offsets[people]
    past = np.full((len(people), int(lengths.max(initial=0))), -1)
    number_known = np.zeros(len(people), dtype=np.int64)
    last = np.full(len(people), -1)
    follows = in_session(visits)
    for step in range(past.shape[1]):
        event = starts[: np.searchsorted(-lengths, -step)] + step
        new = np.flatnonzero(is_new[event])
        old = np.flatnonzero(~is_new[event])
        moment = Moment(people[new], visits.times[event[new]], past[new, : max(step, 1)], last[new], follows[event[new]])
        chosen = choose(world, moment, draws[event[new]])
        back = 1 + (draws[event[old], 0] * np.minimum(number_known[old], RECENT)).astype(np.int64)
        last[new], last[old] = chosen, past[old, number_known[old] - back]
        past[new, number_known[new]] = chosen
        number_known[new] += 1
        items[event] = last[: len(event)]


def in_session(visits: Sequences) -> Bool[np.ndarray, " events"]:
    """Return whether each event follows another of the same person within the same session."""
    assert visits.times is not None
    follows = np.diff(visits.times, prepend=0) < SESSION_GAP
    follows[visits.offsets[:-1]] = False
    return follows


def moments_of(visits: Sequences, events: Int[np.ndarray, " moments"]) -> Moment:
    """Return the moments just before the given events, one per person at most, in the order of the people."""
    assert visits.times is not None
    person = visits.event_users
    before = np.arange(visits.num_events) < _spread(events, person, len(visits))
    past = np.flatnonzero(before & visits.first_visits())
    row = np.searchsorted(person[events], person[past])
    counts = np.bincount(row, minlength=len(events))
    padded = np.full((len(events), max(1, int(counts.max(initial=0)))), -1)
    padded[row, np.arange(len(past)) - np.repeat(np.cumsum(counts) - counts, counts)] = visits.item_rows[past]
    is_first = events == visits.offsets[person[events]]
    return Moment(
        people=person[events],
        times=visits.times[events],
        past=padded,
        last=np.where(is_first, -1, visits.item_rows[events - 1]),
        is_session=in_session(visits)[events],
    )


def _spread(events: np.ndarray, person: np.ndarray, number: int) -> np.ndarray:
    """Return for every event the chosen event of its person, or 0 where there is none."""
    chosen = np.zeros(number, dtype=np.int64)
    chosen[person[events]] = events
    return chosen[person]


def _softmax(weights: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(weights - weights.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _draw(weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return one column per row, drawn by the softmax of the log-weights."""
    rising = np.cumsum(np.exp(weights - weights.max(axis=1, keepdims=True)), axis=1)
    chosen: np.ndarray = (rising <= draws[:, None] * rising[:, -1:]).sum(axis=1)
    return chosen
