from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.featurizer.profile import MOST_VALUES, Distribution, Profile


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60))
def test_a_distribution_of_values_sums_to_one_and_equals_itself(values: list[str]):
    found = Distribution.of_values(values)
    assert np.isclose(sum(found.shares), 1)
    assert found.psi(Distribution.of_values(values, found)) == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_a_distribution_of_numbers_sums_to_one_and_equals_itself(numbers: list[float]):
    found = Distribution.of_numbers(np.array(numbers))
    assert np.isclose(sum(found.shares), 1)
    assert list(found.limits or ()) == sorted({*(found.limits or ())})
    assert found.psi(Distribution.of_numbers(np.array(numbers), found)) == 0


def test_rare_and_new_values_are_counted_together():
    found = Distribution.of_values(["a"] * 5 + [str(number) for number in range(70)])
    assert found.names is not None
    assert len(found.names) == MOST_VALUES
    today = Distribution.of_values(["new", "a", "a", "a"], found)
    assert today.shares[0] == 0.75
    assert today.shares[-1] == 0.25


def test_chance_alone_is_within_the_noise_and_a_change_is_not():
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(300):
        then = Distribution.of_values(rng.choice(list("abcdefgh"), 200).tolist())
        now = Distribution.of_values(rng.choice(list("abcdefgh"), 60).tolist(), then)
        beyond += then.psi(now) > then.noise(now)
    assert beyond <= 3
    then = Distribution.of_numbers(rng.normal(size=500))
    now = Distribution.of_numbers(rng.normal(1.0, 1.0, size=200), then)
    assert then.psi(now) > max(0.2, then.noise(now))


def test_a_frequent_number_has_its_own_range():
    found = Distribution.of_numbers(np.array([0.0] * 80 + [1.0] * 20))
    assert found.shares == (0.8, 0.2, 0.0) or found.shares == (0.8, 0.2)
    assert found.psi(Distribution.of_numbers(np.array([0.0] * 20 + [1.0] * 80), found)) > 0.2


def test_a_profile_is_kept_as_json(tmp_path: Path):
    profile = Profile({"items": {"brand": Distribution.of_values(["a", "b", "a"])}, "users": {}})
    (tmp_path / "profile.json").write_text(profile.to_json(), encoding="utf-8")
    assert Profile.load(tmp_path / "profile.json") == profile
