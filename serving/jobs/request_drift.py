"""The part of `towers drift` about requests: which users ask, what the answers are like, what is chosen of them.

The ids in posted histories are compared with training, which knew all items. The rest has no counterpart there, as
those who ask are not the users of the tables in equal shares: it is compared with the earlier part of the log, scores
only with those of the same model, route and kind of request. A fall counts only beyond the noise of samples of this
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from features.errors import DataError
from features.featurizer.column_contract import ENOUGH
from features.featurizer.profile import Distribution
from features.ids import ITEM_ID, USER_ID
from features.tables.tables import Tables
from serving.catalog.ids import IdMap
from serving.config import ServingConfig
from serving.jobs.click_through import chosen, wilson_interval
from serving.jobs.findings import ANSWERED, CLICKS, FULL, KNOWN, LATENCY, PSI, Finding, Limits
from serving.live.log import readable
from serving.live.open_log import open_log
from serving.observability.logged_requests import LoggedRequests, read_requests
from serving.observability.request_log import user_hash
from towers.bundle.bundle import ModelBundle

REQUESTS = "requests"
_HOUR = 3600.0
_ENOUGH_FOR_P99 = 100
_IN_TRAINING = (1.0, 1.0)
_POSITIONS = (1, 2, 3, 5, 10, 20, 50, 100)
"""The last position of each group of positions."""


@dataclass(frozen=True)
class RequestSource:
    """A request log, and how to read it.

    Attributes:
        path: The file of the setting `request_log`.
        key: The setting `request_log_key`. None: there is no click-through.
        live: Address of the log of live writes, whose events count as choices. None: only those of the tables do.
        recent_hours: How much of the end of the log is compared with what is before it.
        window_hours: How long after an answer an event counts as a choice.
    """

    path: Path
    key: str | None = None
    live: str | None = None
    recent_hours: float = 24.0
    window_hours: float = 24.0

    @classmethod
    def of(
        cls, settings: ServingConfig, path: Path | None, recent_hours: float, window_hours: float
    ) -> RequestSource | None:
        """Return the log of a service, or another one that was written with its settings; None if there is none.

        Args:
            settings: The settings of the service.
            path: The log. None: that of the settings.
            recent_hours: As the attribute.
            window_hours: As the attribute.
        """
        path = Path(settings.request_log) if path is None and settings.request_log is not None else path
        if path is None:
            return None
        key, live = (
            None if secret is None else secret.get_secret_value()
            for secret in (settings.request_log_key, settings.live)
        )
        return cls(path, key, live, recent_hours, window_hours)

    def __post_init__(self) -> None:
        """Check the hours.

        Raises:
            DataError: They are not above 0.
        """
        for name, hours in (("recent", self.recent_hours), ("window", self.window_hours)):
            if not hours > 0:
                raise DataError(f"{name}: expected a number of hours above 0, found {hours!r}")


def findings_of_requests(
    source: RequestSource, bundle: ModelBundle, tables: Tables, limits: Limits
) -> tuple[list[Finding], list[str]]:
    """Return what the request log says, and what could not be read or compared.

    Args:
        source: The log.
        bundle: The model that is served.
        tables: Today's tables.
        limits: What counts as drift.

    Raises:
        DataError: The log, or the log of live writes, cannot be read.
    """
    log = read_requests(source.path)
    if log.answers.empty:
        return [], ["request log: no request is logged yet"]
    begin = log.answers["time"].iloc[-1] - source.recent_hours * _HOUR
    is_recent = (log.answers["time"] >= begin).to_numpy()
    notes = log.notes
    if is_recent.all():
        notes.append(
            f"request log: nothing is older than the {source.recent_hours:g} hours at its end, so these are compared "
            "with nothing before; keep more of it, or give fewer hours (--recent)"
        )
    found = [
        *_of_users(log, is_recent, limits),
        *_of_attributes(log.attributes, begin, limits),
        *_of_answers(log.answers, is_recent, limits),
        *_of_scores(log.answers, is_recent, bundle.version, limits),
    ]
    clicks, said = _of_clicks(log, source, tables, limits)
    return [*found, *clicks], [*notes, *said]


def _of_users(log: LoggedRequests, is_recent: Bool[np.ndarray, " answers"], limits: Limits) -> Iterator[Finding]:
    """Yield the share of users by id who are known, that of known items of posted histories, and their lengths."""
    user, history = log.answers["user"].to_numpy(object), log.answers["history"].to_numpy(np.float64)
    by_id = np.isin(user.astype(str), ("known", "unknown"))
    yield from _share("users by id", KNOWN, user[by_id] == "known", is_recent[by_id], limits)
    described = (user == "described") & is_recent
    items, unknown = int(history[described].sum()), int(log.answers["unknown_items"][described].sum())
    yield from _fall("items of histories", KNOWN, _Counted(items - unknown, items), _IN_TRAINING, limits)
    has_length = np.isfinite(history)
    yield from _change("length of histories", history[has_length], is_recent[has_length], limits)


def _of_attributes(attributes: pd.DataFrame, begin: float, limits: Limits) -> Iterator[Finding]:
    """Yield, by column, the share of described users all of whose values, or words, training knew."""
    for name, one in attributes.groupby("column"):
        is_recent = (one["time"] >= begin).to_numpy()
        yield from _share(f"{name} of described users", KNOWN, one["is_known"].to_numpy(), is_recent, limits)


def _of_answers(answers: pd.DataFrame, is_recent: Bool[np.ndarray, " answers"], limits: Limits) -> Iterator[Finding]:
    returned = answers["returned"].to_numpy()
    yield from _share("answers", ANSWERED, returned > 0, is_recent, limits)
    yield from _share("answers", FULL, returned >= answers["k"].to_numpy(), is_recent, limits)
    durations = answers["milliseconds"][is_recent & answers["is_first"]].to_numpy()
    if len(durations) >= _ENOUGH_FOR_P99:
        p99 = float(np.quantile(durations, 0.99))
        yield Finding(REQUESTS, "duration", LATENCY, limits.latency_ms, p99, len(durations), p99 > limits.latency_ms)


def _of_scores(
    answers: pd.DataFrame, is_recent: Bool[np.ndarray, " answers"], model: str, limits: Limits
) -> Iterator[Finding]:
    """Yield, by route, how the best scores of first pages changed; filters and fall-backs have scores of their own."""
    is_like = (
        ~answers["is_filtered"] & answers["fallback"].isna() & (answers["offset"] == 0) & (answers["returned"] > 0)
    )
    is_like &= answers["model"] == model
    for route, best in answers["best"][is_like].groupby(answers["route"][is_like]):
        yield from _change(f"best score of {route}", best.to_numpy(np.float64), is_recent[best.index], limits)


def _of_clicks(
    log: LoggedRequests, source: RequestSource, tables: Tables, limits: Limits
) -> tuple[list[Finding], list[str]]:
    """Return the click-through by position of answers whose window is over, and why there is none."""
    if source.key is None or log.shown.empty:
        return [], ["click-through: the request log has no hashes of ids; set request_log_key in serving.toml"]
    events = _events(source, tables, since=float(log.shown["time"].iloc[0]))
    window = source.window_hours * _HOUR
    until = -np.inf if events.empty else float(events["time"].max()) - window
    shown = log.shown[log.shown["time"] <= until]
    if shown.empty:
        said = (
            f"click-through: no event comes more than {source.window_hours:g} hours (--window) after an answer, so "
            "nothing can be said yet; give today's table with times (--interactions), or the setting live"
        )
        return [], [said]
    is_chosen = chosen(shown, events, window)
    is_recent = (shown["time"] >= shown["time"].iloc[-1] - source.recent_hours * _HOUR).to_numpy()
    group = np.searchsorted(_POSITIONS, shown["position"].to_numpy(), side="left")
    found: list[Finding] = []
    for place in np.unique(group):
        mine = group == place
        found += _share(_positions(int(place)), CLICKS, is_chosen[mine], is_recent[mine], limits)
    return found, []


def _events(source: RequestSource, tables: Tables, since: float) -> pd.DataFrame:
    """Return the events from a moment on, with hashes of ids as in the request log."""
    frame = tables.interactions.frame
    users, items = (IdMap(frame[name].drop_duplicates().to_numpy()) for name in (USER_ID, ITEM_ID))
    rows: list[tuple[int, object, str]] = []
    if "timestamp" in frame:
        later = frame[frame["timestamp"] >= int(since)]
        rows += zip(later["timestamp"].tolist(), later[USER_ID].tolist(), later[ITEM_ID].astype(str), strict=True)
    if source.live is not None:
        live = open_log(source.live, create=False)
        position = 0
        while records := live.read_after(position):
            bodies = (record.body for record in readable(records) if record.kind == "event")
            rows += (
                (body["time"], users.parse(body[USER_ID]), str(items.parse(body[ITEM_ID])))
                for body in bodies
                if body["time"] >= int(since)
            )
            position = records[-1].position
        live.close()
    events = pd.DataFrame(rows, columns=["time", "user_hash", "item_id"])
    assert source.key is not None, "without a key there is no click-through"
    hashes = {user_id: user_hash(source.key, user_id) for user_id in events["user_hash"].unique().tolist()}
    return events.assign(user_hash=events["user_hash"].map(hashes))


def _positions(place: int) -> str:
    first = 1 if place == 0 else _POSITIONS[place - 1] + 1
    if place == len(_POSITIONS):
        return f"positions from {first}"
    return f"position {first}" if first == _POSITIONS[place] else f"positions {first} to {_POSITIONS[place]}"


@dataclass(frozen=True)
class _Counted:
    """How often something held."""

    hits: int
    number: int

    @classmethod
    def of(cls, held: Bool[np.ndarray, " cases"]) -> _Counted:
        return cls(int(held.sum()), len(held))

    @property
    def share(self) -> float:
        return self.hits / self.number

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.hits, self.number)


def _share(
    column: str, measure: str, held: Bool[np.ndarray, " cases"], is_recent: Bool[np.ndarray, " cases"], limits: Limits
) -> Iterator[Finding]:
    """Yield a share of the recent part of the log next to that of the earlier part."""
    before, today = _Counted.of(held[~is_recent]), _Counted.of(held[is_recent])
    if before.number < ENOUGH:
        yield from _fall(column, measure, today, None, limits)
    else:
        yield from _fall(column, measure, today, (before.share, before.interval[0]), limits)


def _fall(
    column: str, measure: str, today: _Counted, before: tuple[float, float] | None, limits: Limits
) -> Iterator[Finding]:
    """Yield a share; it is drift if it fell by more than the limit, and the intervals of 95 % do not overlap.

    Args:
        column: What it is a share of.
        measure: Which share it is.
        today: How often it held.
        before: The share before, and the lower end of its interval. None: there is nothing to compare with.
        limits: What counts as drift.
    """
    if today.number < ENOUGH:
        return
    is_drift = False
    if before is not None:
        # Few of the shown items are chosen, so that of clicks the limit is a share of what they were.
        allowed = limits.fall * before[0] if measure == CLICKS else limits.fall
        is_drift = before[0] - today.share > allowed and today.interval[1] < before[1]
    then = None if before is None else before[0]
    yield Finding(REQUESTS, column, measure, then, today.share, today.number, is_drift, today.interval)


def _change(
    column: str, numbers: np.ndarray, is_recent: Bool[np.ndarray, " numbers"], limits: Limits
) -> Iterator[Finding]:
    """Yield how much the distribution of numbers changed since the earlier part of the log."""
    if min(is_recent.sum(), (~is_recent).sum()) < ENOUGH:
        return
    before = Distribution.of_numbers(numbers[~is_recent])
    today = Distribution.of_numbers(numbers[is_recent], before)
    limit, psi = max(limits.psi, before.noise(today)), before.psi(today)
    yield Finding(REQUESTS, column, PSI, limit, psi, today.count, psi > limit)
