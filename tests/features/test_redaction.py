"""Secrets are hidden wherever they stand, and nothing else is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.redaction import has_password, passwords_of, redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at postgresql://ann:pa55@db:5432/shop (refused)", "at postgresql://ann:***@db:5432/shop (refused)"),
        ("postgresql://ann:p/a@5:5@db/shop", "postgresql://ann:***@db/shop"),
        ("postgresql://:pa55@db", "postgresql://:***@db"),
        ("'https://token@host/x', again", "'https://***@host/x', again"),
        ("host=db password=pa55 dbname=x", "host=db password=*** dbname=x"),
        ("password = 'p a\\'5' x", "password = *** x"),
        ("PGPASSWORD=pa55", "PGPASSWORD=***"),
        ("https://host/x?api_key=pa55&k=5", "https://host/x?api_key=***&k=5"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        (f"the key tt_{'x' * 43} is unknown", "the key tt_*** is unknown"),
    ],
)  # fmt: skip
def test_secrets_are_hidden(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ann@db/shop", "http://127.0.0.1:8000/items/a", "MLflow at http://127.0.0.1:9 says: ann@host",
        "k=5 tokens=7", "the bearer of this", "models:/two-towers@champion", "sqlite:////var/live.db",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text
    assert not has_password(text)


word = st.text(st.characters(codec="ascii", exclude_characters=" '\"\t\r\n\x0b\x0c\x1c\x1d\x1e\x1f"), max_size=8)


@settings(max_examples=20)
@given(before=word, secret=word, after=word)
def test_a_password_is_hidden_whatever_is_in_it(before, secret, after):
    planted = f"Planted{secret}Secret"
    text = redacted(f"{before} postgresql://ann:{planted}@db/{after}")
    assert "Planted" not in text
    assert "Secret" not in text
    assert "postgresql://ann:***@" in text


@pytest.mark.parametrize("piece", ["http://", "a://b:", "password=", "password", "tt_", "bearer ", "=", "://x:y@"])
def test_the_time_is_linear_in_the_text(piece):
    began = time.perf_counter()
    redacted(piece * 30_000 + "@")
    assert time.perf_counter() - began < 2  # milliseconds; to look at each place to the end would take minutes


def test_the_secrets_of_an_environment_are_known():
    environment = {
        "MLFLOW_TRACKING_URI": "https://ann:p%40ss@host", "MLFLOW_TRACKING_PASSWORD": "other", "PATH": "/bin",
        "OPENAI_API_KEY": "sk-1234",
    }  # fmt: skip
    assert set(passwords_of(environment)) == {"p%40ss", "p@ss", "other", "sk-1234"}
    assert redacted("wrong: other, p@ss", *passwords_of(environment)) == "wrong: ***, ***"
