"""What `towers drift` finds: a measure of a column then and today, the limits, and both in words."""

from __future__ import annotations

from dataclasses import dataclass

from features.errors import DataError

FILLED, KNOWN, ANSWERED, FULL, CLICKS = "filled", "known", "answered", "full", "clicks"
PSI, HOURS, LATENCY = "psi", "hours", "p99 ms"
SHARES = (FILLED, KNOWN, ANSWERED, FULL, CLICKS)
"""The measures that are shares, 0 to 1; the others are compared with a limit."""


@dataclass(frozen=True)
class Limits:
    """What counts as drift.

    Attributes:
        psi: Population stability index, unless it is within the noise of samples of this size.
        fall: Fall of a share, such as of cells that are filled or of values that are known, 0 to 1; of click-through
            the fall as a share of what it was.
        index_hours: Age of the index.
        latency_ms: Duration in milliseconds that 99 % of the logged requests do not exceed.
    """

    psi: float = 0.2
    fall: float = 0.1
    index_hours: float = 48.0
    latency_ms: float = 1000.0

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            DataError: One of them is out of its range.
        """
        for name in ("psi", "index_hours", "latency_ms"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name}: expected a number above 0, found {getattr(self, name)!r}")
        if not 0 <= self.fall <= 1:
            raise DataError(f"fall: expected a share from 0 to 1, found {self.fall!r}")


@dataclass(frozen=True)
class Finding:
    """One measure of one column, in training and today.

    Attributes:
        table: `items`, `users`, `interactions`, `index` or `requests`.
        column: The column; "age in hours" of the index; of requests what they have, such as "position 1".
        measure: `filled`, `known`, `answered`, `full`, `clicks` (shares); `psi`, `hours` or `p99 ms`.
        training: A share in training, or in the earlier part of the request log (None: there is nothing to compare
            with); of other measures the limit.
        today: Its value today.
        cells: Cells, values or numbers of today that it is about.
        is_drift: Whether it is beyond the limit.
        interval: Of a share of requests, which are a sample: the ends of its 95 % interval. None: of other measures.
    """

    table: str
    column: str
    measure: str
    training: float | None
    today: float
    cells: int
    is_drift: bool
    interval: tuple[float, float] | None = None


def said_of(one: Finding) -> str:
    """Return a measure in words.

    Example:
        >>> said_of(Finding("items", "brand", "known", 1.0, 0.61, 200, True))
        'items.brand: 61% known, 100% in training'
    """
    name = f"{one.table}.{one.column}"
    if one.measure == PSI:
        return f"{name}: the values changed, PSI {one.today:.3f}, limit {one.training:.3f}"
    if one.measure not in SHARES:
        return f"{name}: {one.today:.1f}, limit {one.training:g}"
    if one.interval is None:
        return f"{name}: {one.today:.0%} {one.measure}, {one.training:.0%} in training"
    share = f"{one.today:.1%} {one.measure} ({one.interval[0]:.1%} to {one.interval[1]:.1%})"
    return f"{name}: {share}" if one.training is None else f"{name}: {share}, {one.training:.1%} before"
