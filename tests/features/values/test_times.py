"""A single date of a request is the moment that a column of such dates holds."""

from __future__ import annotations

import pyarrow as pa
import pytest

from features.values.times import TimeFormat, moment_of, seconds_of


@pytest.mark.parametrize(
    "text",
    [
        "2024-03-31",
        "2024-03",
        "2024/3/31",
        "1500-01-02",
        "2024-03-31 18:00",
        "2024-03-31T18:00:00.25Z",
        "2024-03-31T18:00:00,123456789",
        "2024-03-31 6:05 PM",
        "2024-03-31T18:00:00+02:00",
        "2024-03-31 18:00:00 UTC",
        "20240331T180000",
        "20240331",
    ],
)
def test_one_date_is_read_as_in_a_column(text: str) -> None:
    micros, _ = TimeFormat("iso").read(pa.array([text], pa.large_string()))
    assert seconds_of(text) == micros[0] / 1e6


@pytest.mark.parametrize(
    "text", ["", "soon", "31.03.2024", "2024-02-30", "0000-01-01", "2024-W05-1", "2024-03-31T25:00", "1" * 65]
)
def test_what_is_no_date_has_no_moment(text: str) -> None:
    assert moment_of(text) is None
    assert seconds_of(text) is None
