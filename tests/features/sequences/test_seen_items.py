"""Policies for seen items against plain Python, and one more added as CONTRIBUTING.md says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from features.errors import DataError
from features.sequences.batches import TrainingBatches
from features.sequences.ragged import Ragged, offsets_of
from features.sequences.seen_items import EXCLUDE, REPEAT, SeenItems
from features.sequences.sequences import UNKNOWN_TIME, Queries, Sequences
from features.sequences.split import leave_one_out, time_split
from features.settings import RecommendSeen
from serving.jobs.build_index import build_index
from serving.jobs.precompute import precompute_top_k
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import UserProfile
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, make_features, make_tables
from towers.config import TowersConfig
from training.config import RunConfig, TrainingConfig
from training.evaluation.evaluate import evaluate
from training.tasks.protocols import early_stopping_split, split_by

DAY = 86_400

# The policy of the text: its class, the values of its setting and `of`.


@dataclass(frozen=True)
class ReturnAfter(SeenItems):
    """Exclude an item for so many days after the user's last event with it; for good where that time is unknown."""

    days: int = 30
    depends_on_time: ClassVar[bool] = True

    def possible_targets(self, sequences: Sequences) -> np.ndarray:
        if sequences.times is None:
            return sequences.first_visits()
        pairs = [sequences.event_users, sequences.item_rows]
        newest = pd.Series(_known(sequences.times, np.inf)).groupby(pairs).cummax().groupby(pairs).shift()
        return ~(newest.to_numpy() > _known(sequences.times, -np.inf) - self.days * DAY)

    def excluded(self, histories: Sequences, request_times: np.ndarray | int | None) -> Ragged:
        seen = Ragged(histories.offsets, histories.item_rows)
        if histories.times is None or request_times is None:
            return seen
        requests = _known(np.broadcast_to(request_times, len(histories)), -np.inf)
        return seen.keep(_known(histories.times, np.inf) > requests[seen.row_of_value] - self.days * DAY)


def _known(times: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(times == UNKNOWN_TIME, otherwise, times)


TypeWithDays = RecommendSeen | Annotated[str, Field(pattern=r"^after \d+ days$")]


def of_setting(recommend_seen: bool | str) -> SeenItems:
    if isinstance(recommend_seen, str):
        return ReturnAfter(recommend_seen, int(recommend_seen.split()[1]))
    return REPEAT if recommend_seen else EXCLUDE


# Each policy against plain Python


def is_excluded_by_reference(policy: SeenItems, item: int, before: list[tuple[int, int | None]], now: int) -> bool:
    """Whether an item is excluded, by all events (item, time) before the request."""
    times = [time for other, time in before if other == item]
    if isinstance(policy, ReturnAfter):
        unknown = now == UNKNOWN_TIME
        return any(unknown or time in (None, UNKNOWN_TIME) or time > now - policy.days * DAY for time in times)
    return bool(times) and policy is EXCLUDE


@st.composite
def some_sequences(draw: st.DrawFn) -> Sequences:
    """Up to 6 users with up to 9 events over 5 items on 15 days; times are unknown, partly unknown or known."""
    rows = draw(st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=6))
    num_events = sum(map(len, rows))
    some = st.integers(0, 15).map(lambda day: day * DAY)
    moment = draw(st.sampled_from([some, some | st.just(UNKNOWN_TIME)]))
    times = draw(st.none() | st.lists(moment, min_size=num_events, max_size=num_events))
    return Sequences(
        np.arange(len(rows)),
        offsets_of(np.array([len(row) for row in rows], dtype=np.int64)),
        np.array([item for row in rows for item in row], dtype=np.int64),
        None if times is None else np.array(times, dtype=np.int64),
        is_ordered=True,
    )


def events_of(sequences: Sequences, user: int) -> list[tuple[int, int | None]]:
    mine = slice(sequences.offsets[user], sequences.offsets[user + 1])
    items = sequences.item_rows[mine].tolist()
    times = [None] * len(items) if sequences.times is None else sequences.times[mine].tolist()
    return list(zip(items, times, strict=True))


POLICIES = st.sampled_from([EXCLUDE, REPEAT, *(ReturnAfter(f"after {days} days", days) for days in (0, 1, 4, 30))])


@given(some_sequences(), POLICIES)
def test_possible_targets_are_the_events_whose_item_was_not_excluded(sequences: Sequences, policy: SeenItems):
    expected = []
    for user in range(len(sequences)):
        events = events_of(sequences, user)
        expected += [
            not is_excluded_by_reference(policy, item, events[:place], UNKNOWN_TIME if time is None else time)
            for place, (item, time) in enumerate(events)
        ]
    found = policy.possible_targets(sequences)
    assert found.dtype == bool
    assert found.tolist() == expected


@given(some_sequences(), POLICIES, st.data())
def test_excluded_items_are_those_of_each_history(sequences: Sequences, policy: SeenItems, data: st.DataObject):
    moments = st.integers(0, 40).map(lambda day: day * DAY)
    each = data.draw(st.lists(moments, min_size=len(sequences), max_size=len(sequences)))
    for request_times in (np.array(each), each[0], None):
        found = policy.excluded(sequences, request_times)
        assert len(found) == len(sequences)
        for user in range(len(sequences)):
            events = events_of(sequences, user)
            now = UNKNOWN_TIME if request_times is None else int(np.broadcast_to(request_times, len(sequences))[user])
            expected = {item for item, _ in events if is_excluded_by_reference(policy, item, events, now)}
            assert set(found.row(user).tolist()) == expected


@given(some_sequences(), POLICIES)
def test_targets_and_exclusions_agree(sequences: Sequences, policy: SeenItems):
    is_target = policy.possible_targets(sequences)
    for event, user in enumerate(sequences.event_users.tolist()):
        is_before = (sequences.event_users == user) & (np.arange(sequences.num_events) < event)
        time = None if sequences.times is None else int(sequences.times[event])
        excluded = policy.excluded(sequences.keep(is_before), time).row(user)
        assert is_target[event] == (sequences.item_rows[event] not in excluded)


def test_the_setting_names_the_policy():
    assert SeenItems.of(False) is EXCLUDE
    assert SeenItems.of(True) is REPEAT
    assert EXCLUDE.label != REPEAT.label
    assert not EXCLUDE.depends_on_time
    assert not REPEAT.depends_on_time


# Another policy


@pytest.fixture
def with_days(monkeypatch: pytest.MonkeyPatch) -> ReturnAfter:
    monkeypatch.setattr(SeenItems, "of", staticmethod(of_setting))
    policy = SeenItems.of(TypeAdapter(TypeWithDays).validate_strings("after 30 days"))
    assert isinstance(policy, ReturnAfter)
    assert SeenItems.of(TypeAdapter(TypeWithDays).validate_strings("true")) is REPEAT
    return policy


def events_on(days: dict[int, list[tuple[int, int]]]) -> Sequences:
    """Sequences of `{user: [(item, day), ...]}`."""
    events = [event for mine in days.values() for event in mine]
    return Sequences(
        np.array(list(days)),
        offsets_of(np.array([len(mine) for mine in days.values()])),
        np.array([item for item, _ in events]),
        np.array([day * DAY for _, day in events]),
        is_ordered=True,
    )


def run_config() -> RunConfig:
    config = RunConfig(features=make_features(), towers=TowersConfig(), training=TrainingConfig())
    return config.model_copy(
        update={"features": config.features.model_copy(update={"recommend_seen": "after 30 days"})}
    )


class Constant:
    """The same scores for all queries."""

    name = "constant"

    def scores(self, queries: Queries) -> np.ndarray:
        return np.tile(np.array([0, 3, 4, 2, 1], dtype=np.float32), (len(queries), 1))


def test_another_policy_splits_trains_and_evaluates(with_days: ReturnAfter):
    # User 0 gets item 1 again after 40 days, user 1 after 5 days.
    sequences = events_on({0: [(1, 0), (2, 30), (1, 40)], 1: [(2, 0), (1, 1), (3, 2), (1, 6)], 2: [(0, 0), (3, 1)]})
    split = split_by("leave-one-out", sequences, 5, run_config())
    assert split.seen_items == with_days
    assert split.test is not None
    assert split.test.target_rows.tolist() == [1, 3]
    assert early_stopping_split(run_config(), sequences, 5).validation.target_rows.tolist() == [1, 3, 3]
    assert leave_one_out(sequences, 5).test.target_rows.tolist() == [3]

    everything = np.ones(5, dtype=bool)
    found = evaluate(Constant(), split.test, everything, seen_items=split.seen_items)
    # Both users saw items 2 and 1, which have the highest scores: user 0 10 and 40 days ago, user 1 2 and 1.
    assert found.ranks.tolist() == [1, 1]
    later = replace(split.test, times=split.test.times + 40 * DAY)
    assert evaluate(Constant(), later, everything, seen_items=split.seen_items).ranks.tolist() == [2, 3]
    with pytest.raises(AssertionError, match="an answer is excluded"):
        evaluate(Constant(), split.test, everything, seen_items=EXCLUDE)

    window = time_split(sequences, 5, seen_items=with_days, test=False, validation_share=0.1)
    assert window.validation.target_rows.tolist() == [1]
    batches = TrainingBatches(sequences, history=9, batch_size=99, seen_items=with_days, seed=0)
    assert sum(int(batch.is_target.sum()) for batch in batches.epoch(0)) == sequences.num_events - 1


def bundle_with(recommend_seen: bool | str) -> FakeBundle:
    return FakeBundle("bundle", make_features().model_copy(update={"recommend_seen": recommend_seen}))


def test_another_policy_serves_by_the_time_of_each_event(with_days: ReturnAfter, tmp_path: Path):
    items = [f"item-{number}" for number in range(6)]
    tables = make_tables({1: items[:2], 2: items[2:3]}, items)
    times = pd.Series([0, 20 * DAY, 20 * DAY], dtype="int64[pyarrow]")
    tables = replace(
        tables, interactions=replace(tables.interactions, frame=tables.interactions.frame.assign(timestamp=times))
    )
    bundle = bundle_with("after 30 days")
    snapshot, clock = Snapshot.build(bundle, tables), SimpleNamespace(now=0.0)
    retriever = Recommender(bundle, snapshot, clock=lambda: clock.now)

    def missing(recommender: Recommender, user: int | UserProfile) -> set[str]:
        return set(items) - {item.item_id for item in recommender.recommend(user, 10).items}

    for day, excluded in ((21, items[:2]), (31, items[1:2]), (51, [])):
        clock.now = day * DAY
        assert missing(retriever, 1) == set(excluded)
        assert missing(retriever, UserProfile(items[:2], times=[0, 20 * DAY])) == set(excluded)
        assert missing(retriever, UserProfile(items[:2])) == set(items[:2]), "without times nothing returns"
        hits, _ = retriever.recommend_rows(np.array([0, 1]), 10)
        assert np.diff(hits.offsets).tolist() == [6 - len(excluded), 6 - (day < 50)]

    # An event that arrives live excludes its item anew.
    log = SqliteLog(tmp_path / "log.db")
    live = LiveRecommender(retriever, log)
    log.append([Write("event", {"user_id": 1, "item_id": items[4], "time": 50 * DAY})])
    assert missing(live.current(), 1) == {items[4]}
    clock.now = 81 * DAY
    assert missing(live.current(), 1) == set()

    # Nothing is precomputed, and lists of this label are not used either.
    with pytest.raises(DataError, match="depend on the time of the request"):
        build_index(bundle, {}, precomputed=5)
    listed = snapshot.with_precomputed(precompute_top_k(retriever, 3))
    clock.now = 21 * DAY
    for setting in ("after 30 days", "after 90 days", True):
        bundle = bundle_with(setting)
        looked_up, searched = (
            Recommender(bundle, of, clock=lambda: clock.now).recommend(1, 3) for of in (listed, snapshot)
        )
        assert looked_up == searched
