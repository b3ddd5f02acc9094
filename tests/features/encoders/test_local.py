"""Texts at places that are not trained: against TF-IDF itself, and the same after saving and loading."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from features.config import FeatureSettings
from features.errors import DataError
from features.featurizer.side_encoders import SideEncoders
from features.schema import Feature
from features.settings import parse_settings
from features.values.text import ProjectedText, words_and_pairs

TITLE, YEAR = Feature("title", "text", frozen_dim=32), Feature("year", "number")
TITLES = pd.DataFrame({"title": ["red fox", "A red fox runs", None, "blue whale"], "year": [1, 2, 3, None]})


def some_texts(rng: np.random.Generator, how_many: int) -> list[str]:
    words = [f"word{place}" for place in range(60)]
    return [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(how_many)]


def test_cosines_are_those_of_tf_idf_but_for_noise_as_small_as_promised() -> None:
    rng = np.random.default_rng(0)
    known, asked, width = some_texts(rng, 300), some_texts(rng, 80), 4096
    vectorizer = TfidfVectorizer(analyzer=words_and_pairs, sublinear_tf=True).fit(known)
    exact = vectorizer.transform(asked)
    ours = ProjectedText.fit(known, width).numbers(asked)
    noise = ours @ ours.T - (exact @ exact.T).toarray()
    assert np.sqrt((noise**2).mean()) < 1.5 / width**0.5
    assert abs(noise.mean()) < 0.1 / width**0.5


def test_words_that_were_not_known_say_nothing() -> None:
    projected = ProjectedText.fit(["red fox", "blue whale"], 16)
    red, red_and_new, new, nothing = projected.numbers(["red", "zzyzx red", "zzyzx", ""])
    assert np.array_equal(red, red_and_new)
    assert np.linalg.norm(red) == pytest.approx(1, abs=0.5)
    assert not new.any()
    assert not nothing.any()


def test_a_word_has_the_same_place_on_every_machine() -> None:
    (place,) = ProjectedText.fit(["fox"], 8).numbers(["fox"])
    assert (place * 4).round().astype(int).tolist() == [-2, 2, 1, 1, 2, -1, 1, -2]


def test_it_is_saved_and_read_back_and_stands_behind_the_numbers(tmp_path: Path) -> None:
    fitted = SideEncoders.fit([TITLE, YEAR], TITLES, events=np.ones(len(TITLES), np.int64))
    fitted.save([TITLE, YEAR], tmp_path, "item")
    read = SideEncoders.load([TITLE, YEAR], tmp_path, "item")
    assert fitted.sizes == read.sizes
    assert fitted.sizes.fixed == (32,)
    numbers = fitted.encode(TITLES).dense
    assert np.array_equal(numbers, read.encode(TITLES).dense)
    assert not numbers[2, fitted.sizes.dense :].any()
    assert numbers[0, fitted.sizes.dense :].any()


def test_only_text_can_be_fixed() -> None:
    with pytest.raises(DataError, match="frozen_dim is for kind"):
        parse_settings(FeatureSettings, {"kind": "number", "frozen_dim": 8}, "run.toml")
