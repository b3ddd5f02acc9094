"""Evaluation protocols: how interactions are split into training data and held-out queries with targets.

`leave_one_out` (a user's next item), `leave_one_basket_out` (a user's next order), `time_split` (one cut in time for
all users), `held_out_users` (users not in training), `held_out_queries` (the same, without a history) and `cold_items`
(items not in training) each turn `Sequences` into a `Split`. Selection is done on `validation`; `test` is looked at
once. What is true of all:

- Nothing of a question, its answer or anything the same user did later, is in `train`.
- An item that the policy for seen items (`SeenItems`) excludes from the ranking is not an answer. By default, every
  answer is an item that was new to the user when it came.
- Every user in `train` has events there; every user is asked at most once in `validation` and once in `test`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

from features.errors import DataError
from features.sequences.ragged import offsets_of, ragged_arange
from features.sequences.seen_items import EXCLUDE, SeenItems
from features.sequences.sequences import UNKNOWN_TIME, Queries, QueriesOf, Sequences, SequencesOf
from features.sequences.timeline import Timeline

MIN_ITEMS_TO_HOLD_OUT = 5
"""Minimum distinct items of a user for `held_out_users`, as in Mult-VAE: of fewer, a fifth is less than one item."""


@dataclass(frozen=True)
class Split:
    """One division of the interactions.

    Attributes:
        train: What may be learnt from. Vocabularies, counts and statistics come from here too.
        validation: Questions for early stopping and for choosing settings.
        test: Questions for the final judgement; None where nothing was held out for it.
        candidates: Which catalogue rows are ranked, `[items]`.
        name: The protocol, as the command line calls it.
        seen_items: Which items of a history are excluded from its ranking; the targets were chosen accordingly.
        timeline: Events of all users, held-out ones among them, for what is known at the time of a question; what is
            later must not be read. Only those of `train` where whole users are held out; none of cold items. None where
            the data has no times.
    """

    train: Sequences
    validation: Queries
    test: Queries | None
    candidates: Bool[np.ndarray, "items"]
    name: str
    seen_items: SeenItems
    timeline: Timeline | None

    @property
    def warm_items(self) -> Bool[np.ndarray, "items"]:
        """Which catalogue rows occur in the training data, `[items]`; the others are cold."""
        return _occurring(self.train, len(self.candidates))


def leave_one_out(
    sequences: Sequences, num_items: int, *, seen_items: SeenItems = EXCLUDE, test: bool = True, seed: int = 0
) -> Split:
    """Hold out every user's last item for the test and the one before it for validation (protocol L).

    The history of a question is everything before its answer, so the test history includes the validation item.
    Only items that occur in the interactions are ranked, as in the published tables. Users with too few items (three,
    or two without a test) stay in the training data whole.

    Args:
        sequences: All interactions. Where they have no order, each user's events are shuffled first: the last one of
            an arbitrary order would often be the last in the alphabet.
        num_items: Size of the catalogue.
        seen_items: Which items of a history may be its answer. With `EXCLUDE` the answers are the last two items that
            were new to the user; repeated items after the answer are left out.
        test: Whether to hold out test items at all. Without them the last item is the validation item.
        seed: For the shuffle of unordered data.

    Raises:
        DataError: No user has enough items.

    Example:
        >>> ones = np.array([7])
        >>> events = Sequences(ones, np.array([0, 5]), np.array([3, 1, 3, 0, 2]), times=None, is_ordered=True)
        >>> split = leave_one_out(events, num_items=4)
        >>> split.train.item_rows.tolist(), split.validation.target_rows.tolist()
        ([3, 1, 3], [0])
        >>> split.test.history.item_rows.tolist(), split.test.target_rows.tolist()
        ([3, 1, 3, 0], [2])
    """
    rng = np.random.default_rng(seed)
    train, validation, tested = SequencesOf(sequences), QueriesOf(sequences), QueriesOf(sequences)
    num_asked = most = 0
    for events in sequences.blocks():
        block = events if events.is_ordered else events.shuffled(rng)
        held_out = _hold_out_last(block, seen_items.possible_targets(block), test=test)
        train.append(held_out.train)
        validation.append(_next_item(block, held_out.users, held_out.validation))
        if held_out.test is not None:
            tested.append(_next_item(block, held_out.users, held_out.test))
        num_asked, most = num_asked + len(held_out.users), max(most, held_out.most)
    if not num_asked:
        raise DataError(
            f"leave-one-out needs a user with at least {_needed(test=test)} different items, found at most {most} per "
            "user; give more interactions"
        )
    return Split(
        train=train.whole(),
        validation=validation.whole(),
        test=tested.whole() if test else None,
        candidates=_occurring(sequences, num_items),
        name="leave-one-out",
        seen_items=seen_items,
        timeline=Timeline.of(sequences),
    )


def leave_one_basket_out(
    sequences: Sequences, num_items: int, *, seen_items: SeenItems = EXCLUDE, test: bool = True
) -> Split:
    """Hold out every user's last order for the test and the one before it for validation (protocol B).

    An order, or basket, is a run of events of a user with the same known time. All of it is asked for, at its time,
    from everything before it, where leave-one-out would show a part of the order and ask for the rest. Only items that
    occur in the interactions are ranked. Users with too few baskets (three, or two without a test) stay in the training
    data whole.

    Args:
        sequences: All interactions, with times and in their order.
        num_items: Size of the catalogue.
        seen_items: Which items of a history may be answers. With `EXCLUDE` the answers of a basket are its items that
            were new to the user; a basket without any is passed over.
        test: Whether to hold out test baskets at all. Without them the last basket is the validation basket.

    Raises:
        DataError: There are no times, or no user has enough baskets.

    Example:
        >>> times = np.array([1, 2, 2, 3, 3])
        >>> events = Sequences(np.array([7]), np.array([0, 5]), np.array([3, 1, 0, 3, 2]), times, is_ordered=True)
        >>> split = leave_one_basket_out(events, num_items=4)
        >>> split.train.item_rows.tolist(), split.validation.target_rows.tolist(), split.test.target_rows.tolist()
        ([3], [1, 0], [2])
    """
    if sequences.times is None:
        raise DataError(
            "leave-one-basket-out needs the time of every interaction, found none; name the column in "
            "[features.columns] timestamp, or use another protocol"
        )
    possible = seen_items.possible_targets(sequences)
    baskets = _baskets(sequences)
    has_answer = np.bincount(baskets[possible], minlength=baskets.max(initial=-1) + 1) > 0
    begins = np.diff(baskets, prepend=-1) > 0
    held_out = _hold_out_last(sequences, begins & has_answer[baskets], test=test)
    if not len(held_out.users):
        raise DataError(
            f"leave-one-basket-out needs a user with at least {_needed(test=test)} baskets (interactions at one time) "
            f"with new items, found at most {held_out.most} per user; give more interactions or use another protocol"
        )

    def asked(begins: Int[np.ndarray, "chosen"]) -> Queries:
        return _next_basket(sequences, held_out.users, begins, baskets, possible)

    return Split(
        train=held_out.train,
        validation=asked(held_out.validation),
        test=None if held_out.test is None else asked(held_out.test),
        candidates=_occurring(sequences, num_items),
        name="leave-one-basket-out",
        seen_items=seen_items,
        timeline=Timeline.of(sequences),
    )


def time_split(
    sequences: Sequences,
    num_items: int,
    *,
    seen_items: SeenItems = EXCLUDE,
    test: bool = True,
    test_share: float = 0.1,
    validation_share: float = 0.1,
) -> Split:
    """Split at one point in time for all users: train on what is before, evaluate on what is after (protocol T).

    The newest `test_share` of all events are the test window, the `validation_share` before them the validation
    window, what is older is the training data. A question is asked at the beginning of its window: the history is all
    of the user's interactions before it, the answers are the items of the window that were new to the user. Users
    without a history are included (cold users); items that training has not seen can be answers (cold items). The
    whole catalogue is ranked. Events at the very moment of a cut count as after it.

    Settings are chosen on validation for the test: where more of the validation questions than of the test's come from
    cold users, as in data whose users leave after a session, so many of them are left out at random that the share is
    the same. That share is all that is taken from the test window.

    Args:
        sequences: All interactions, with times.
        num_items: Size of the catalogue.
        seen_items: Which items of a history may be its answers.
        test: Whether to hold out a test window at all. Without it the newest events are the validation window.
        test_share: Share of the events in the test window.
        validation_share: Share of the events in the validation window.

    Raises:
        DataError: There are no times, or they do not differ enough to cut between them.
    """
    if sequences.times is None:
        raise DataError(
            "the time protocol needs the time of every interaction, found none; name the column in "
            "[features.columns] timestamp, or use another protocol"
        )
    cuts = _cuts(sequences.times, [validation_share, test_share] if test else [validation_share])
    windows = [window_questions(sequences, start, end, seen_items) for start, end in pairwise(cuts)]
    for window, name in zip(windows, ("validation", "test"), strict=False):
        if not len(window):
            raise DataError(f"the time protocol found no user with a new item in the {name} window; give more events")
    return Split(
        train=_with_events(sequences.keep(sequences.times < cuts[0])),
        validation=_with_as_few_cold_users(windows[0], windows[1]) if test else windows[0],
        test=windows[1] if test else None,
        candidates=np.ones(num_items, dtype=bool),
        name="time",
        seen_items=seen_items,
        timeline=Timeline.of(sequences),
    )


def held_out_users(
    sequences: Sequences,
    num_items: int,
    *,
    seen_items: SeenItems = EXCLUDE,
    test: bool = True,
    seed: int = 0,
    share: float = 0.1,
    history_share: float = 0.8,
    least: int = MIN_ITEMS_TO_HOLD_OUT,
    validation_users: Bool[np.ndarray, "users"] | None = None,
) -> Split:
    """Hold out whole users, use most of each one's items as history, and predict the rest (protocol S).

    A tenth of the users with at least five different items is held out for the test and a tenth for validation.
    `history_share` of each one's items, drawn at random, is the history (in the user's order, with its repeats); the
    rest must be found. Random even where there is an order, as in Mult-VAE, so that figures can be compared with the
    papers that followed it; it therefore measures taste, not what comes next: for that there are L and T. The question
    is asked at the user's last event. The whole catalogue is ranked.

    Args:
        sequences: All interactions.
        num_items: Size of the catalogue.
        seen_items: Which items of a history are excluded from its ranking. The targets do not depend on it: no hidden
            item is in the history.
        test: Whether to hold out test users at all.
        seed: Chooses the users and their hidden items.
        share: Share of the users for each of test and validation.
        history_share: Share of a held-out user's items that is shown.
        least: Minimum number of distinct items of a user that may be held out.
        validation_users: Users to hold out for validation, those of an earlier split, without a test. None: drawn.

    Raises:
        DataError: Fewer than three users have so many different items, or none of the given ones has.
    """
    rng = np.random.default_rng(seed)
    first = sequences.first_visits()
    able = np.flatnonzero(np.bincount(sequences.event_users[first], minlength=len(sequences)) >= least)
    if len(able) < 3:
        raise DataError(
            f"this protocol needs at least 3 users with {least} different items, found {len(able)}; give more "
            "interactions or use another protocol"
        )
    size = max(1, round(share * len(able)))
    chosen = rng.permutation(able)
    held_out = [np.sort(chosen[:size]), np.sort(chosen[size : 2 * size])]
    gone = np.concatenate(held_out if test else held_out[1:])
    if validation_users is not None:
        assert not test, "users of an earlier split are for validation alone"
        gone = np.flatnonzero(validation_users)
        held_out[1] = np.intersect1d(able, gone)
        if not len(held_out[1]):
            raise DataError(f"none of the users that were held out has {least} different items in the tables")
    hidden = _hidden_items(sequences, first, history_share, rng)
    train = _with_events(sequences.take(np.setdiff1d(np.arange(len(sequences)), gone)))
    return Split(
        train=train,
        validation=_hidden_part(sequences, held_out[1], hidden),
        test=_hidden_part(sequences, held_out[0], hidden) if test else None,
        candidates=np.ones(num_items, dtype=bool),
        name="users",
        seen_items=seen_items,
        timeline=Timeline.of(train),
    )


def held_out_queries(
    sequences: Sequences,
    num_items: int,
    *,
    test: bool = True,
    seed: int = 0,
    validation_users: Bool[np.ndarray, "users"] | None = None,
) -> Split:
    """Hold out whole queries and predict all their documents from their text alone (protocol Q).

    A tenth of the queries is held out for the test and a tenth for validation. The whole catalogue is ranked, and what
    answers one query may answer another.

    Args:
        sequences: Which documents answer which query.
        num_items: How many documents there are.
        test: Whether to hold out test queries at all.
        seed: Chooses the queries.
        validation_users: See `held_out_users`.

    Raises:
        DataError: There are fewer than three queries, or none of the given ones has a document.
    """
    split = held_out_users(
        sequences, num_items, test=test, seed=seed, history_share=0.0, least=1, validation_users=validation_users
    )
    return replace(split, name="queries")


def cold_items(
    sequences: Sequences,
    num_items: int,
    *,
    seen_items: SeenItems = EXCLUDE,
    test: bool = True,
    seed: int = 0,
    test_share: float = 0.1,
    validation_share: float = 0.1,
) -> Split:
    """Remove items from the training data, and predict them for users whose last item is one of them (protocol C).

    Of the items that occur, `test_share` are cold for the test and another `validation_share` for validation, drawn at
    random. The questions are those of leave-one-out whose answer is such an item, so that nothing that came after a
    question is learnt from. Histories hold no cold item. The whole catalogue is ranked, cold and warm together.

    Args:
        sequences: All interactions. Without an order each user's events are shuffled first.
        num_items: Size of the catalogue.
        seen_items: Which items of a history may be its answer.
        test: Whether to take test items out at all.
        seed: Chooses the items.
        test_share: Share of the items that is cold for the test.
        validation_share: Share of the items that is cold for validation.

    Raises:
        DataError: No user's last item is cold.
    """
    rng = np.random.default_rng(seed)
    sequences = sequences if sequences.is_ordered else sequences.shuffled(rng)
    occurring = rng.permutation(np.flatnonzero(_occurring(sequences, num_items)))
    num_test, num_validation = (max(1, round(part * len(occurring))) for part in (test_share, validation_share))
    num_test *= test
    cold_rows = (occurring[num_test : num_test + num_validation], occurring[:num_test])
    is_warm = ~np.isin(sequences.item_rows, np.concatenate(cold_rows))
    ends = sequences.offsets[1:].copy()
    questions = []
    for rows in cold_rows[: 1 + test]:
        users, events = _last_answers_among(sequences, rows, seen_items)
        kept = _next_item(sequences, users, events, is_warm)
        questions.append(kept)
        ends[users] = events
        if not len(kept):
            raise DataError(
                f"the cold-items protocol found no user whose last item is among the {len(rows):,} cold ones; give "
                "more interactions or use another protocol"
            )
    return Split(
        train=_with_events(_heads(sequences, np.arange(len(sequences)), ends, is_warm)),
        validation=questions[0],
        test=questions[1] if test else None,
        candidates=np.ones(num_items, dtype=bool),
        name="cold-items",
        seen_items=seen_items,
        timeline=Timeline.of(sequences.keep(is_warm)),
    )


def _occurring(sequences: Sequences, num_items: int) -> Bool[np.ndarray, "items"]:
    found: np.ndarray = sequences.item_counts(num_items) > 0
    return found


def _with_events(sequences: Sequences) -> Sequences:
    """Return only the users who have events: an id without any would reveal a future user."""
    return sequences.take(np.flatnonzero(sequences.lengths > 0))


@dataclass(frozen=True)
class _HeldOut:
    """The users who are asked, the event at which each question begins, and what is before all of them.

    Attributes:
        most: Most chosen events of a user.
    """

    users: Int[np.ndarray, "chosen"]
    validation: Int[np.ndarray, "chosen"]
    test: Int[np.ndarray, "chosen"] | None
    train: Sequences
    most: int


def _needed(*, test: bool) -> int:
    """Return how many events, at which a question may begin, a user needs to be asked."""
    return 3 if test else 2


def _hold_out_last(sequences: Sequences, chosen: Bool[np.ndarray, "events"], *, test: bool) -> _HeldOut:
    """Hold out each user from the last but one chosen event on, without a test from the last one on.

    Args:
        sequences: All interactions.
        chosen: At which events a question may begin. Users with too few of them are trained on whole.
        test: Whether to hold out test questions at all.
    """
    remaining, counts = _from_end(sequences, chosen)
    users = np.flatnonzero(counts >= _needed(test=test))
    asked = np.isin(sequences.event_users, users)
    last, before_last = (np.flatnonzero(asked & (remaining == place)) for place in (0, 1))
    validation = before_last if test else last
    ends = sequences.offsets[1:].copy()
    ends[users] = validation
    train = _with_events(_heads(sequences, np.arange(len(sequences)), ends))
    return _HeldOut(users, validation, last if test else None, train, int(counts.max(initial=0)))


def _from_end(
    sequences: Sequences, chosen: Bool[np.ndarray, "events"]
) -> tuple[Int[np.ndarray, "events"], Int[np.ndarray, "users"]]:
    """Return how many chosen events of the user follow each of them (-1: not chosen itself), and each user's number."""
    users = sequences.event_users
    counts = np.bincount(users[chosen], minlength=len(sequences))
    so_far = np.cumsum(chosen)
    return np.where(chosen, np.cumsum(counts)[users] - so_far, -1), counts


def _heads(
    sequences: Sequences,
    users: Int[np.ndarray, "chosen"],
    ends: Int[np.ndarray, "chosen"],
    allowed: Bool[np.ndarray, "events"] | None = None,
) -> Sequences:
    """Return the events of the given users before the event `ends`, and of these only the allowed ones."""
    starts = sequences.offsets[:-1][users]
    events = ragged_arange(starts, ends - starts)
    heads = Sequences(
        user_ids=sequences.user_ids[users],
        offsets=offsets_of(ends - starts),
        item_rows=sequences.item_rows[events],
        times=None if sequences.times is None else sequences.times[events],
        is_ordered=sequences.is_ordered,
    )
    return heads if allowed is None else heads.keep(allowed[events])


def _next_item(
    sequences: Sequences,
    users: Int[np.ndarray, "chosen"],
    events: Int[np.ndarray, "chosen"],
    allowed: Bool[np.ndarray, "all_events"] | None = None,
) -> Queries:
    """Return a query per user, with the item of one event as target; users without a history are left out."""
    queries = Queries(
        history=_heads(sequences, users, events, allowed),
        target_offsets=np.arange(len(users) + 1),
        target_rows=sequences.item_rows[events],
        times=None if sequences.times is None else sequences.times[events],
    )
    return queries.take(np.flatnonzero(queries.history.lengths > 0))


def _baskets(sequences: Sequences) -> Int[np.ndarray, "events"]:
    """Return the basket of each event, from 0: a run of events of one user at one known time."""
    assert sequences.times is not None
    continues = np.zeros(sequences.num_events, dtype=bool)
    is_same = (np.diff(sequences.event_users) == 0) & (np.diff(sequences.times) == 0)
    continues[1:] = is_same & (sequences.times[1:] != UNKNOWN_TIME)
    return np.cumsum(~continues) - 1


def _next_basket(
    sequences: Sequences,
    users: Int[np.ndarray, "chosen"],
    begins: Int[np.ndarray, "chosen"],
    baskets: Int[np.ndarray, "events"],
    possible: Bool[np.ndarray, "events"],
) -> Queries:
    """Return a query per user, with the possible targets of the basket that begins at an event, each once."""
    assert sequences.times is not None
    answers = np.flatnonzero(possible & np.isin(baskets, baskets[begins]))
    pairs = baskets[answers] * (sequences.item_rows.max(initial=0) + 1) + sequences.item_rows[answers]
    answers = answers[np.sort(np.unique(pairs, return_index=True)[1])]
    return Queries(
        history=_heads(sequences, users, begins),
        target_offsets=offsets_of(np.bincount(sequences.event_users[answers], minlength=len(sequences))[users]),
        target_rows=sequences.item_rows[answers],
        times=sequences.times[begins],
    )


def _last_answers_among(
    sequences: Sequences, item_rows: Int[np.ndarray, "cold"], seen_items: SeenItems
) -> tuple[Int[np.ndarray, "chosen"], Int[np.ndarray, "chosen"]]:
    """Return the users whose last possible target is one of the given items, and that event of each."""
    remaining, _ = _from_end(sequences, seen_items.possible_targets(sequences))
    events = np.flatnonzero((remaining == 0) & np.isin(sequences.item_rows, item_rows))
    return sequences.event_users[events], events


def _cuts(times: Int[np.ndarray, "events"], shares: list[float]) -> list[int]:
    """Return the moments at which the newest windows begin, each holding its share of the events, and the end."""
    ordered = np.sort(times)
    places = [int(len(ordered) * (1 - sum(shares[place:]))) for place in range(len(shares))]
    cuts = [*ordered[places].tolist(), int(ordered[-1]) + 1] if len(ordered) else []
    if len({*ordered[:1].tolist(), *cuts}) < len(shares) + 2:
        raise DataError(
            f"the time protocol needs events at many different times, found {len(np.unique(ordered)):,} different "
            f"times for {len(ordered):,} events; use another protocol"
        )
    return cuts


def window_questions(sequences: Sequences, start: int, end: int, seen_items: SeenItems) -> Queries:
    """Return the queries at time `start`, with the user's new items before `end` as targets.

    Args:
        sequences: Interactions with times, those of the window among them.
        start: Unix seconds. A history is what the user did before.
        end: Unix seconds.
        seen_items: Which items of a history cannot be targets.
    """
    assert sequences.times is not None
    before = sequences.times < start
    history = sequences.keep(before)
    excluded = seen_items.excluded(history, start)
    width = sequences.item_rows.max(initial=0) + 1
    is_excluded = np.isin(
        sequences.event_users * width + sequences.item_rows, excluded.row_of_value * width + excluded.values
    )
    answers = sequences.keep(~before & (sequences.times < end) & ~is_excluded)
    answers = answers.keep(answers.first_visits())
    asked = np.flatnonzero(answers.lengths > 0)
    return Queries(
        history=history.take(asked),
        target_offsets=offsets_of(answers.lengths[asked]),
        target_rows=answers.item_rows,
        times=np.full(len(asked), start, dtype=np.int64),
    )


def _with_as_few_cold_users(queries: Queries, like: Queries) -> Queries:
    """Return the queries without some of those that have no history, so that their share is at most that of `like`."""
    has_history = queries.history.lengths > 0
    warm, cold = np.flatnonzero(has_history), np.flatnonzero(~has_history)
    num_warm_like = np.count_nonzero(like.history.lengths)
    if not len(warm) or not num_warm_like:
        return queries
    most = len(warm) * (len(like) - num_warm_like) // num_warm_like
    if len(cold) <= most:
        return queries
    kept = np.random.default_rng(0).choice(cold, most, replace=False)
    return queries.take(np.sort(np.concatenate([warm, kept])))


def _hidden_items(
    sequences: Sequences, first: Bool[np.ndarray, "events"], history_share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "events"]:
    """Return which events are targets: the same random fraction of each user's items."""
    users = sequences.event_users
    order = np.lexsort((rng.random(sequences.num_events), ~first, users))
    place = np.empty(sequences.num_events, dtype=np.int64)
    place[order] = ragged_arange(np.zeros(len(sequences), dtype=np.int64), sequences.lengths)
    num_items = np.bincount(users[first], minlength=len(sequences))
    num_hidden = np.floor((1 - history_share) * num_items + 1e-9).astype(np.int64)
    chosen = first & (place < num_hidden[users])
    pairs = users * (sequences.item_rows.max(initial=0) + 1) + sequences.item_rows
    return np.isin(pairs, pairs[chosen])


def _hidden_part(sequences: Sequences, users: Int[np.ndarray, "chosen"], hidden: Bool[np.ndarray, "events"]) -> Queries:
    """Return one query per user: the hidden items are the targets, the other events the history."""
    answers = sequences.keep(hidden & sequences.first_visits()).take(users)
    everything = sequences.take(users)
    newest = None if everything.times is None else np.maximum.reduceat(everything.times, everything.offsets[:-1])
    return Queries(
        history=sequences.keep(~hidden).take(users),
        target_offsets=answers.offsets,
        target_rows=answers.item_rows,
        times=newest,
    )
