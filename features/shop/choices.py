"""How a person of the generated shop chooses something new, and so what the best recommender would recommend.

A person first goes to a shelf, then takes one product from it; both by a softmax, over what is on sale and not yet
known to the person. The same functions draw the choices and tell their probabilities, so that the best
possible recommendations are those by the true probabilities at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from features.sequences.ragged import offsets_of, ragged_arange
from features.sequences.sequences import Sequences
from features.shop.people import People
from features.shop.products import END, FIRST_DAY, PRICE_CARE, WEEK, Products
from features.shop.words import Words

SAME_TYPE, SAME_CATEGORY, COMPANION = 0.5, 1.9, 1.2
"""How much more people want what is like, or goes with, what they have just looked at."""
LATER = 0.4
"""What is left of that when the last look was in an earlier session."""
REPEAT = 0.06
"""Share of events that are another look at something known."""
SESSION_GAP = 30 * 60
"""Seconds without an event that end a session."""
BLOCK = 4_096
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
        progress: np.ndarray = (self.times - first) / (end - first)
        return progress[:, None]


@dataclass(frozen=True)
class World:
    """All that decides what people choose."""

    words: Words
    products: Products
    people: People

    @cached_property
    def shelf_categories(self) -> Int[np.ndarray, " shelves"]:
        """The category of each shelf."""
        categories: np.ndarray = np.array([kind.category for kind in self.words.types])[self.products.shelf_types]
        return categories

    @cached_property
    def item_shelves(self) -> Int[np.ndarray, " products"]:
        """The shelf of each product."""
        return self.products.item_shelves

    @cached_property
    def carried_on(self) -> Float[np.ndarray, "shelves_plus_1 shelves"]:
        """By shelf just looked at and shelf: how much more the second is wanted. The last row is for nothing yet."""
        kinds = self.products.shelf_types
        more = SAME_CATEGORY * (self.shelf_categories[:, None] == self.shelf_categories)
        more += COMPANION * self.products.companions[kinds[:, None], kinds] + SAME_TYPE * (kinds[:, None] == kinds)
        return np.concatenate([more, np.zeros((1, len(kinds)))])

    @cached_property
    def on_sale(self) -> Int[np.ndarray, "weeks shelves"]:
        """How many products of each shelf there are in each week."""
        launched = np.isfinite(self.products.log_popularity).astype(np.int64)
        return np.add.reduceat(launched, self.products.shelf_starts[:-1], axis=1)

    @cached_property
    def item_weights(self) -> Float[np.ndarray, "weeks products"]:
        """The weight of a product that is the same for all users: popularity, and distance from the usual price."""
        price = self.products.traits[:, len(self.words.styles)]
        return self.products.log_popularity - PRICE_CARE * price**2

    def shelf_wishes(self, moment: Moment) -> Float[np.ndarray, "moments shelves"]:
        """Return the log-weights of the shelves; minus infinity where nothing unknown is left."""
        start, end = self.people.interest[:, moment.people]
        wishes: np.ndarray = (start + moment.progress * (end - start)).take(self.shelf_categories, axis=1)
        wishes += self.people.tongue[moment.people].take(self.products.shelf_languages, axis=1)
        wishes += self.products.shelf_popularity[moment.weeks]
        last = np.where(moment.last < 0, -1, self.item_shelves[moment.last])
        wishes += np.where(moment.is_session, 1.0, LATER)[:, None] * self.carried_on[last]
        wishes[self.on_sale[moment.weeks] <= self._known(moment)] = -np.inf
        return wishes

    def _known(self, moment: Moment) -> Int[np.ndarray, "moments shelves"]:
        """Return how many products of each shelf each person knows."""
        is_there = moment.past >= 0
        row = np.repeat(np.arange(len(is_there)), is_there.sum(axis=1))
        shape = (len(is_there), len(self.products.shelf_types))
        cells = row * shape[1] + self.item_shelves[moment.past[is_there]]
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    def likings(self, moment: Moment) -> Float[np.ndarray, "moments traits"]:
        """Return what each person likes about products' traits."""
        start, end = self.people.liking[:, moment.people]
        likings: np.ndarray = start + moment.progress * (end - start)
        return likings


def choose(world: World, moment: Moment, draws: Float[np.ndarray, "moments 2"]) -> Int[np.ndarray, " moments"]:
    """Return what each person takes next, given two numbers in [0, 1) each: one for the shelf, one within it."""
    shelves = _draw(world.shelf_wishes(moment), draws[:, 0])
    first = world.products.shelf_starts[shelves]
    lengths = world.products.shelf_starts[shelves + 1] - first
    starts = offsets_of(lengths)[:-1]
    item, row = ragged_arange(first, lengths), np.repeat(np.arange(len(shelves)), lengths)
    weights = world.item_weights[moment.weeks[row], item]
    weights += np.einsum("ij,ij->i", world.likings(moment)[row], world.products.traits[item])
    is_known = (world.item_shelves[moment.past] == shelves[:, None]) & (moment.past >= 0)
    weights[(starts - first)[np.nonzero(is_known)[0]] + moment.past[is_known]] = -np.inf
    powers = np.exp(weights - np.maximum.reduceat(weights, starts)[row])
    rising = np.append(0, np.cumsum(powers))
    wanted = rising[starts] + draws[:, 1] * (rising[starts + lengths] - rising[starts])
    place = np.searchsorted(rising, wanted, side="right") - 1
    chosen: np.ndarray = item[np.clip(place, starts, starts + lengths - 1)]
    return chosen


def probabilities(world: World, moment: Moment) -> Float[np.ndarray, "moments products"]:
    """Return how probable it is that each person takes each product next. This is what `choose` draws from."""
    weights: np.ndarray = world.item_weights[moment.weeks] + world.likings(moment) @ world.products.traits.T
    row, column = np.nonzero(moment.past >= 0)
    weights[row, moment.past[row, column]] = -np.inf
    of_shelves = _softmax(world.shelf_wishes(moment))
    starts, shelves = world.products.shelf_starts[:-1], world.item_shelves
    highest = np.maximum.reduceat(weights, starts, axis=1)
    weights -= np.where(np.isfinite(highest), highest, 0.0).take(shelves, axis=1)
    np.exp(weights, out=weights)
    total = np.add.reduceat(weights, starts, axis=1)
    weights *= (of_shelves / np.where(total > 0, total, 1.0)).take(shelves, axis=1)
    return weights


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
        times, is_session = visits.times[event[new]], follows[event[new]]
        moment = Moment(people[new], times, past[new, : max(step, 1)], last[new], is_session)
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


def moments_of(visits: Sequences, people: Int[np.ndarray, " moments"], events: Int[np.ndarray, " moments"]) -> Moment:
    """Return the moments just before some events.

    Args:
        visits: What some people did.
        people: Which rows of the people these are.
        events: One event of each, in the order of `people`.
    """
    assert visits.times is not None
    person = visits.event_users
    past = np.flatnonzero((np.arange(visits.num_events) < events[person]) & visits.first_visits())
    counts = np.bincount(person[past], minlength=len(people))
    padded = np.full((len(people), max(1, int(counts.max(initial=0)))), -1)
    padded[person[past], ragged_arange(np.zeros(len(people), dtype=np.int64), counts)] = visits.item_rows[past]
    return Moment(
        people=people,
        times=visits.times[events],
        past=padded,
        last=np.where(events == visits.offsets[:-1], -1, visits.item_rows[events - 1]),
        is_session=in_session(visits)[events],
    )


def _softmax(weights: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(weights - weights.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _draw(weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return one column per row, drawn by the softmax of the log-weights."""
    rising = np.cumsum(np.exp(weights - weights.max(axis=1, keepdims=True)), axis=1)
    chosen: np.ndarray = (rising <= draws[:, None] * rising[:, -1:]).sum(axis=1)
    return chosen
