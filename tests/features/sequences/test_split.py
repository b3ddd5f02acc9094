"""The protocols keep their word: nothing of the future in the past, nobody asked twice, answers that can be found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import REPEAT, SeenItems
from features.sequences.sequences import UNKNOWN_TIME, Queries, Sequences
from features.sequences.split import (
    Split,
    cold_items,
    held_out_users,
    leave_one_basket_out,
    leave_one_out,
    time_split,
)


def sequences(*rows: list[int], times: list[list[int]] | None = None, is_ordered: bool = True) -> Sequences:
    return Sequences(
        user_ids=100 + np.arange(len(rows)),
        offsets=offsets_of(np.array([len(row) for row in rows], dtype=np.int64)),
        item_rows=np.array([item for row in rows for item in row], dtype=np.int64),
        times=None if times is None else np.array([time for row in times for time in row], dtype=np.int64),
        is_ordered=is_ordered,
    )


def answers(queries: Queries) -> dict[int, list[int]]:
    parts = np.split(queries.target_rows, queries.target_offsets[1:-1])
    return {int(user): part.tolist() for user, part in zip(queries.history.user_ids, parts, strict=True)}


def events(rows: Sequences) -> dict[int, list[int]]:
    return {int(user): rows.items_of(place).tolist() for place, user in enumerate(rows.user_ids)}


def moments(rows: Sequences) -> dict[int, list[int]]:
    assert rows.times is not None
    return {
        int(user): rows.times[rows.offsets[place] : rows.offsets[place + 1]].tolist()
        for place, user in enumerate(rows.user_ids)
    }


@st.composite
def histories(draw: st.DrawFn) -> Sequences:
    """Up to 12 users with up to 12 events over 8 items, and times that rise within a user, with ties."""
    rows = draw(st.lists(st.lists(st.integers(0, 7), max_size=12), min_size=1, max_size=12))
    times = [sorted(draw(st.lists(st.integers(0, 30), min_size=len(row), max_size=len(row)))) for row in rows]
    return sequences(*rows, times=times)


def check_what_holds_for_every_split(split: Split, whole: Sequences, recommend_seen: bool) -> None:
    everything = events(whole)
    assert (split.train.lengths > 0).all()
    for rows in (split.train, split.validation.history, *([split.test.history] if split.test else [])):
        assert len(set(rows.user_ids.tolist())) == len(rows)
        assert set(rows.user_ids.tolist()) <= set(everything)
    for queries in (split.validation, *([split.test] if split.test else [])):
        assert len(queries) > 0
        assert (np.diff(queries.target_offsets) > 0).all()
        assert queries.target_offsets[-1] == len(queries.target_rows)
        assert split.candidates[queries.target_rows].all()
        seen = events(queries.history)
        for user, found in answers(queries).items():
            assert len(set(found)) == len(found)
            assert set(found) <= set(everything[user])
            if not recommend_seen:
                assert not set(found) & set(seen[user])


# Leave-one-out


def test_leave_one_out_holds_out_the_last_two_items_that_were_new():
    # User 100: first visits are 3, 1, 0, 2 (in this order); the second 3 and the last 1 are repeats.
    split = leave_one_out(sequences([3, 1, 3, 0, 2, 1], [4, 4, 4], [5, 6]), num_items=9)
    assert answers(split.test) == {100: [2]}
    assert events(split.test.history) == {100: [3, 1, 3, 0]}
    assert answers(split.validation) == {100: [0]}
    assert events(split.validation.history) == {100: [3, 1, 3]}
    assert events(split.train) == {100: [3, 1, 3], 101: [4, 4, 4], 102: [5, 6]}
    assert split.candidates.tolist() == [True] * 7 + [False] * 2
    assert split.name == "leave-one-out"


def test_leave_one_out_takes_the_last_events_where_people_buy_again():
    split = leave_one_out(sequences([3, 1, 3, 0, 2, 1], [4, 4, 4], [5, 6]), num_items=7, seen_items=REPEAT)
    assert answers(split.test) == {100: [1], 101: [4]}
    assert answers(split.validation) == {100: [2], 101: [4]}
    assert events(split.train) == {100: [3, 1, 3, 0], 101: [4], 102: [5, 6]}


def test_leave_one_out_without_a_test_holds_out_only_the_last_item():
    split = leave_one_out(sequences([3, 1, 0], [4], [5, 6]), num_items=7, test=False)
    assert split.test is None
    assert answers(split.validation) == {100: [0], 102: [6]}
    assert events(split.train) == {100: [3, 1], 101: [4], 102: [5]}


def test_leave_one_out_asks_at_the_time_of_the_answer():
    split = leave_one_out(sequences([3, 1, 0], times=[[10, 20, 30]]), num_items=4)
    assert split.test.times.tolist() == [30]
    assert split.validation.times.tolist() == [20]
    assert split.train.times.tolist() == [10]


def test_leave_one_out_keeps_the_order_of_ties():
    split = leave_one_out(sequences([3, 1, 0, 2], times=[[10, 10, 10, 10]]), num_items=4)
    assert (answers(split.test), answers(split.validation)) == ({100: [2]}, {100: [0]})


def test_leave_one_out_without_an_order_does_not_take_the_end_of_the_file():
    rows = sequences(*[[0, 1, 2, 3, 4, 5, 6, 7]] * 400, is_ordered=False)
    split = leave_one_out(rows, num_items=8)
    counts = np.bincount(split.test.target_rows, minlength=8)
    # 400 draws among 8 items: 50 each, with a standard deviation of 6.6.
    assert counts.min() > 20
    assert counts.max() < 80
    again = leave_one_out(rows, num_items=8)
    assert np.array_equal(split.test.target_rows, again.test.target_rows)


def test_leave_one_out_says_when_nobody_has_enough_items():
    with pytest.raises(
        DataError, match=r"needs a user with at least 3 different items, found at most 2 per user; give"
    ):
        leave_one_out(sequences([1, 1, 1, 2], [3]), num_items=4)


@given(histories(), st.booleans(), st.booleans())
def test_leave_one_out_shows_only_what_came_before_the_answer(whole: Sequences, recommend_seen: bool, test: bool):
    try:
        split = leave_one_out(whole, 8, seen_items=SeenItems.of(recommend_seen), test=test)
    except DataError:
        return
    check_what_holds_for_every_split(split, whole, recommend_seen)
    everything, learnt, shown = events(whole), events(split.train), events(split.validation.history)
    for user, target in answers(split.validation).items():
        assert everything[user][: len(shown[user])] == shown[user]
        assert everything[user][len(shown[user])] == target[0]
        assert learnt[user] == shown[user]
    for user in set(learnt) - set(shown):
        assert learnt[user] == everything[user]
    if split.test is not None:
        for user, history in events(split.test.history).items():
            assert history[: len(shown[user]) + 1] == [*shown[user], *answers(split.validation)[user]]
            assert everything[user][: len(history) + 1] == [*history, *answers(split.test)[user]]


# Leave one basket out


def test_the_last_order_is_asked_for_as_a_whole():
    # User 100 has orders at 1, 2, 3 and 4; what is not new in the last one is no answer. User 101 has only two orders.
    rows = sequences([0, 1, 2, 3, 4, 0, 5, 6], [1, 2, 3], times=[[1, 1, 2, 3, 3, 4, 4, 4], [7, 7, 8]])
    split = leave_one_basket_out(rows, num_items=9)
    assert events(split.train) == {100: [0, 1, 2], 101: [1, 2, 3]}
    assert (answers(split.validation), events(split.validation.history)) == ({100: [3, 4]}, {100: [0, 1, 2]})
    assert (answers(split.test), events(split.test.history)) == ({100: [5, 6]}, {100: [0, 1, 2, 3, 4]})
    assert (split.validation.times.tolist(), split.test.times.tolist()) == ([3], [4])
    assert split.candidates.tolist() == [True] * 7 + [False] * 2
    again = leave_one_basket_out(rows, num_items=9, seen_items=REPEAT)
    assert answers(again.test) == {100: [0, 5, 6]}
    assert answers(leave_one_basket_out(rows, 9, test=False).validation) == {100: [5, 6], 101: [3]}


def test_an_order_without_a_new_item_is_passed_over_and_unknown_times_are_no_order():
    rows = sequences([0, 1, 2, 0, 1], [0, 1, 2], times=[[1, 2, 3, 4, 4], [UNKNOWN_TIME] * 3])
    split = leave_one_basket_out(rows, num_items=3)
    assert answers(split.test) == {100: [2], 101: [2]}
    assert answers(split.validation) == {100: [1], 101: [1]}


def test_leave_one_basket_out_says_what_it_needs():
    with pytest.raises(DataError, match=r"leave-one-basket-out needs the time of every interaction, found none"):
        leave_one_basket_out(sequences([0, 1, 2]), 3)
    with pytest.raises(DataError, match=r"needs a user with at least 3 baskets .* found at most 2 per user"):
        leave_one_basket_out(sequences([0, 1, 2], times=[[1, 1, 2]]), 3)


@given(histories(), st.booleans(), st.booleans())
def test_leave_one_basket_out_hides_all_of_the_last_orders(whole: Sequences, recommend_seen: bool, test: bool):
    try:
        split = leave_one_basket_out(whole, 8, seen_items=SeenItems.of(recommend_seen), test=test)
    except DataError:
        return
    check_what_holds_for_every_split(split, whole, recommend_seen)
    everything, when = events(whole), moments(whole)
    for queries in (split.validation, split.test):
        if queries is None:
            continue
        for (user, asked), history, time in zip(
            answers(queries).items(), events(queries.history).values(), queries.times, strict=True
        ):
            same_time = [item for item, at in zip(everything[user], when[user], strict=True) if at == time]
            assert history == [item for item, at in zip(everything[user], when[user], strict=True) if at < time]
            assert asked == [item for item in dict.fromkeys(same_time) if recommend_seen or item not in history]


# One cut in time


def test_time_split_cuts_everybody_at_one_moment():
    # Ten events at the times 0 ... 9: training below 8, validation at 8, test at 9.
    rows = sequences([0, 1, 2, 3], [4, 5, 6], [7, 8, 0], times=[[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]])
    split = time_split(rows, num_items=12)
    assert moments(split.train) == {100: [0, 3, 6], 101: [1, 4, 7], 102: [2, 5]}
    assert (answers(split.validation), split.validation.times.tolist()) == ({102: [0]}, [8])
    assert (answers(split.test), split.test.times.tolist()) == ({100: [3]}, [9])
    assert split.candidates.tolist() == [True] * 12
    assert split.name == "time"


def test_time_split_asks_cold_users_and_knows_cold_items():
    # Nobody knows user 102 or item 5 before the test; user 101 has a history, but only since the validation.
    rows = sequences([0, 1, 2, 3, 4, 0, 1], [2, 5], [0], times=[[0, 1, 2, 3, 4, 5, 6], [7, 8], [9]])
    split = time_split(rows, num_items=7, test_share=0.2, validation_share=0.1)
    assert events(split.train) == {100: [0, 1, 2, 3, 4, 0, 1]}
    assert answers(split.validation) == {101: [2]}
    assert events(split.validation.history) == {101: []}
    assert answers(split.test) == {101: [5], 102: [0]}
    assert events(split.test.history) == {101: [2], 102: []}
    assert split.warm_items.tolist() == [True] * 5 + [False] * 2


def test_time_split_puts_everything_at_the_moment_of_the_cut_after_it():
    rows = sequences([0, 1, 2, 3, 4, 5, 6, 7], times=[[0, 1, 2, 3, 4, 5, 5, 5]])
    split = time_split(rows, num_items=8, test=False, validation_share=0.1)
    assert moments(split.train) == {100: [0, 1, 2, 3, 4]}
    assert answers(split.validation) == {100: [5, 6, 7]}


def test_time_split_counts_an_item_that_was_had_before_only_where_people_buy_again():
    rows = sequences([0, 1, 2, 3, 4, 0, 0, 5], times=[[0, 1, 2, 3, 4, 8, 8, 9]])
    new = time_split(rows, num_items=6, test=False, validation_share=0.3)
    again = time_split(rows, num_items=6, test=False, validation_share=0.3, seen_items=REPEAT)
    assert (answers(new.validation), answers(again.validation)) == ({100: [5]}, {100: [0, 5]})


def test_time_split_validates_on_as_many_users_with_a_history_as_it_tests_on():
    # In the test window three of four users were there before; in the validation window one of four.
    early = [[0, 1, 2, 3, 4, 5, 6, 7]]
    rows = sequences(
        [*early[0], 8, 9], [8, 9], [8, 0], [8, 1], [9], times=[[*range(8), 10, 20], [10, 20], [11, 21], [12, 22], [20]]
    )
    assert rows.num_events == 17
    split = time_split(rows, num_items=10, test_share=0.29, validation_share=0.23)
    assert split.test.history.lengths.tolist() == [9, 1, 1, 1, 0]
    assert split.validation.history.lengths.tolist() == [8]
    without_test = time_split(rows, num_items=10, test=False, validation_share=0.52)
    assert without_test.validation.history.lengths.tolist() == [8, 0, 0, 0, 0]


def test_time_split_needs_times():
    with pytest.raises(DataError, match=r"needs the time of every interaction, found none; name the column"):
        time_split(sequences([1, 2, 3]), num_items=4)


def test_time_split_needs_times_that_differ():
    with pytest.raises(DataError, match=r"needs events at many different times, found 1 different times for 3 events"):
        time_split(sequences([1, 2, 3], times=[[5, 5, 5]]), num_items=4)


@given(histories(), st.booleans(), st.booleans())
def test_time_split_shows_nothing_after_the_cut_in_any_form(whole: Sequences, recommend_seen: bool, test: bool):
    try:
        split = time_split(
            whole, 8, seen_items=SeenItems.of(recommend_seen), test=test, test_share=0.25, validation_share=0.25
        )
    except DataError:
        return
    check_what_holds_for_every_split(split, whole, recommend_seen)
    when = moments(whole)
    cuts = [int(queries.times[0]) for queries in (split.validation, split.test) if queries is not None]
    assert max(split.train.times) < cuts[0]
    assert split.train.num_events == int((whole.times < cuts[0]).sum())
    assert set(split.train.user_ids.tolist()) == {user for user in when if any(time < cuts[0] for time in when[user])}
    for queries, cut, end in zip((split.validation, split.test), cuts, [*cuts[1:], 31], strict=False):
        assert set(queries.times.tolist()) == {cut}
        for user, history in events(queries.history).items():
            before = [item for item, time in zip(events(whole)[user], when[user], strict=True) if time < cut]
            assert history == before
            inside = {item for item, time in zip(events(whole)[user], when[user], strict=True) if cut <= time < end}
            assert set(answers(queries)[user]) == (inside if recommend_seen else inside - set(before))


# People never seen


def test_held_out_users_shows_four_fifths_of_the_items_and_asks_for_the_rest():
    rows = sequences(*[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] * 20, [1, 2])
    split = held_out_users(rows, num_items=10)
    assert (len(split.test), len(split.validation), len(split.train)) == (2, 2, 17)
    for queries in (split.test, split.validation):
        assert np.diff(queries.target_offsets).tolist() == [2, 2]
        for user, history in events(queries.history).items():
            rest = [item for item in range(10) if item not in answers(queries)[user]]
            assert history == rest * 2
    assert split.name == "users"


def test_held_out_users_is_another_draw_with_another_seed():
    rows = sequences(*[list(range(10))] * 50)
    first, again, other = (held_out_users(rows, 10, seed=seed) for seed in (0, 0, 1))
    assert answers(first.test) == answers(again.test)
    assert answers(first.test) != answers(other.test)


def test_held_out_users_leaves_those_with_few_items_in_training():
    split = held_out_users(sequences([1, 2, 3, 4], *[[0, 1, 2, 3, 4]] * 3), num_items=5)
    assert 100 in split.train.user_ids


def test_held_out_users_needs_people_with_several_items():
    with pytest.raises(DataError, match=r"needs at least 3 users with 5 different items, found 1; give more"):
        held_out_users(sequences([1, 2, 3, 4, 5], [1, 2]), num_items=6)


@given(histories(), st.booleans(), st.booleans(), st.integers(0, 3))
def test_held_out_users_are_in_no_other_part(whole: Sequences, recommend_seen: bool, test: bool, seed: int):
    try:
        split = held_out_users(whole, 8, seen_items=SeenItems.of(recommend_seen), test=test, seed=seed)
    except DataError:
        return
    check_what_holds_for_every_split(split, whole, recommend_seen=False)
    learnt, validated = set(split.train.user_ids.tolist()), set(split.validation.history.user_ids.tolist())
    tested = set(split.test.history.user_ids.tolist()) if split.test is not None else set()
    assert len(learnt) + len(validated) + len(tested) == len(learnt | validated | tested)
    for queries in (split.validation, *([split.test] if split.test else [])):
        for user, history in events(queries.history).items():
            assert history == [item for item in events(whole)[user] if item not in answers(queries)[user]]
            assert len(answers(queries)[user]) == len(set(events(whole)[user])) // 5


# Products never seen


def test_cold_items_asks_those_whose_last_item_is_one():
    # Ten items; each of the ten users ends with another one, so that the two cold items make one question each.
    rows = sequences(*[[*(item for item in range(10) if item != last), last] for last in range(10)])
    split = cold_items(rows, num_items=11)
    (tested,), (validated,) = answers(split.test).values(), answers(split.validation).values()
    cold = {*tested, *validated}
    assert len(cold) == 2
    assert not cold & set(split.train.item_rows.tolist())
    assert len(split.train) == 10
    assert split.train.num_events == 10 * 8
    assert split.candidates.tolist() == [True] * 11
    assert np.flatnonzero(~split.warm_items).tolist() == sorted({*cold, 10})
    assert split.name == "cold-items"


def test_cold_items_says_when_nobody_can_be_asked():
    with pytest.raises(DataError, match=r"no user whose last item is among the 1 cold ones; give more"):
        cold_items(sequences([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), num_items=10, seed=0)


@given(histories(), st.booleans(), st.booleans(), st.integers(0, 3))
def test_cold_items_are_nowhere_in_training_or_histories(whole: Sequences, recommend_seen: bool, test: bool, seed: int):
    try:
        split = cold_items(whole, 8, seen_items=SeenItems.of(recommend_seen), test=test, seed=seed, test_share=0.3)
    except DataError:
        return
    check_what_holds_for_every_split(split, whole, recommend_seen)
    parts = [split.validation, *([split.test] if split.test else [])]
    cold = set(np.concatenate([queries.target_rows for queries in parts]).tolist())
    assert not cold & set(split.train.item_rows.tolist())
    for queries in parts:
        assert not cold & set(queries.history.item_rows.tolist())
        for user, history in events(queries.history).items():
            assert history
            assert events(split.train)[user] == history  # nothing that the user did later is learnt


# Real data


def read(folder: Path) -> tuple[Sequences, int]:
    frame = pd.read_parquet(folder / "interactions.parquet").dropna(subset="position")
    frame = frame.sort_values(["user_id", "position"], kind="stable")
    ids = pd.read_parquet(folder / "items.parquet")["item_id"]
    users, counts = np.unique(frame["user_id"], return_counts=True)
    item_rows = pd.Index(ids).get_indexer(pd.Index(frame["item_id"])).astype(np.int64)
    return Sequences(users, offsets_of(counts), item_rows, times=None, is_ordered=True), len(ids)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "questions", "candidates"), [("ml-1m", 6_040, 3_416), ("amazon-beauty", 22_363, 12_101)]
)
def test_leave_one_out_has_the_published_questions_and_candidates(
    name: str, questions: int, candidates: int, public_data: Path
):
    whole, num_items = read(public_data / name)
    split = leave_one_out(whole, num_items)
    assert (len(split.test), len(split.validation), len(split.train)) == (questions, questions, questions)
    assert split.candidates.sum() == candidates
    assert split.train.num_events == whole.num_events - 2 * questions
    last = whole.item_rows[whole.offsets[1:] - 1]
    assert np.array_equal(split.test.target_rows, last)
    assert np.array_equal(split.test.history.lengths, whole.lengths - 1)
