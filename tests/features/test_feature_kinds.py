"""A new kind of feature needs what CONTRIBUTING.md says and no more: it is read, trained, requested and audited."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError

from features.columns import numbers_of
from features.config import FeatureSettings
from features.errors import CellError, DataError
from features.feature_kinds import FEATURE_KINDS, FeatureKind
from features.featurizer.dense import DENSE_ENCODERS
from features.featurizer.sparse import SPARSE_ENCODERS
from features.parquet import read_parquet
from features.schema import Feature
from features.values.distinct import first, text_cells
from features.values.readings import ReadColumn, Reading, ReadOptions
from serving.jobs.open import open_recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.users import attribute_schema
from towers.cli.main import main
from training.audit.facets import column_facets

CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
RUN = """
[features]
interactions = "clicks.csv"
users = "people.csv"

[features.user]
wakes = { kind = "clock" }

[towers]
embedding_dim = 8
num_layers = 1
num_heads = 1

[training]
epochs = 1
"""


def hours(value: Any) -> float | None:
    """18:30 as 18.5; None where it is no time of the day."""
    found = CLOCK.fullmatch(value) if isinstance(value, str) else None
    return None if found is None else int(found[1]) + int(found[2]) / 60


def read_clock(cells: pa.Array, options: ReadOptions, earlier: Reading | None) -> ReadColumn:
    texts = text_cells(cells)
    if texts is None:
        return ReadColumn(cells)
    read = [None if text is None else hours(text) for text in texts.to_pylist()]
    wrong = np.array([one is None and text is not None for one, text in zip(read, texts.to_pylist(), strict=True)])
    if wrong.any():
        found = texts[first(wrong)].as_py()
        raise CellError(f"expected a time such as 18:30, found {found!r}", "correct the cell", first(wrong))
    return ReadColumn(pa.array(read, pa.float64()))


@dataclass(frozen=True)
class CircleEncoder:
    """The time of the day as a point on a circle; zeros where it is missing."""

    feature: Feature
    width: int = 2

    @classmethod
    def fit(cls, feature: Feature, column: pd.Series) -> CircleEncoder:
        return cls(feature)

    def numbers(self, column: pd.Series) -> np.ndarray:
        turns = numbers_of(self.feature, column) / 24 * 2 * np.pi
        return np.nan_to_num(np.stack([np.sin(turns), np.cos(turns)], axis=1)).astype(np.float32)

    def knows(self, column: pd.Series) -> np.ndarray:
        return np.isfinite(numbers_of(self.feature, column))

    def save(self, path: Path) -> None:
        pd.DataFrame({"width": [self.width]}).to_parquet(path, index=False)

    @classmethod
    def load(cls, feature: Feature, path: Path) -> CircleEncoder:
        return cls(feature, int(read_parquet(path).to_pandas()["width"].iloc[0]))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FeatureKind:
    kind = FeatureKind(
        "clock",
        "numbers",
        "circle",
        request_schemas=({"type": "string", "pattern": f"^{CLOCK.pattern}$"},),
        parse=hours,
        expected="a time of the day such as 18:30",
        read=read_clock,
    )
    monkeypatch.setitem(FEATURE_KINDS, "clock", kind)
    monkeypatch.setitem(DENSE_ENCODERS, "circle", CircleEncoder)
    return kind


def write_tables(folder: Path) -> None:
    rng = np.random.default_rng(0)
    people = pd.DataFrame({"user_id": range(60), "wakes": [f"{hour}:30" for hour in rng.integers(24, size=60)]})
    people.to_csv(folder / "people.csv", index=False)
    clicks = pd.DataFrame({"user_id": rng.integers(60, size=600), "item_id": rng.integers(20, size=600)})
    clicks.to_csv(folder / "clicks.csv", index=False)
    (folder / "run.toml").write_text(RUN, encoding="utf-8")


def test_a_new_kind_is_read_trained_and_requested(clock: FeatureKind, tmp_path: Path) -> None:
    write_tables(tmp_path)
    assert main(["train", str(tmp_path / "run.toml"), "--output", str(tmp_path / "bundle"), "--device", "cpu"]) == 0
    recommender = open_recommender(tmp_path / "bundle")
    early, late, unknown = (
        recommender.recommend(UserProfile(attributes={"wakes": wakes}), RecommendRequest(k=20))
        for wakes in ("6:00", "18:00", None)
    )
    assert [one.score for one in early.items] != [one.score for one in late.items]
    assert early.fallback is None
    assert unknown.fallback is not None
    with pytest.raises(DataError, match=r"attributes.wakes: expected a time of the day such as 18:30, found '25:00'"):
        recommender.recommend(UserProfile(attributes={"wakes": "25:00"}), RecommendRequest(k=20))


def test_a_new_kind_has_a_schema_for_requests_and_slices_in_an_audit(clock: FeatureKind) -> None:
    settings = {"wakes": FeatureSettings(kind="clock")}
    assert attribute_schema(settings)["wakes"]["anyOf"] == [*clock.request_schemas, {"type": "null"}]
    frame = pd.DataFrame({"user_id": range(4), "wakes": [6.5, 6.5, 18.0, None]})
    assert column_facets(frame, settings, "user")[0].labels == ("6.5", "18", "(missing)")


def test_cells_that_a_new_kind_cannot_read_are_named(clock: FeatureKind, tmp_path: Path, capsys: Any) -> None:
    write_tables(tmp_path)
    with (tmp_path / "people.csv").open("a") as file:
        file.write("60,noon\n")
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert re.search(r"people.csv.*'wakes'.*expected a time such as 18:30, found 'noon'", capsys.readouterr().err)


def test_a_kind_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"expected one of id, .*; found 'numbr'; did you mean 'number'\?"):
        FeatureSettings(kind="numbr")


def test_each_kind_names_an_encoder_that_there_is_and_settings_that_there_are() -> None:
    for kind in FEATURE_KINDS.values():
        assert kind.encoder in (SPARSE_ENCODERS if kind.is_sparse else DENSE_ENCODERS)
        assert set(kind.settings) <= set(FeatureSettings.model_fields)
        assert kind.parse({"no": "cell"}) is None
        assert f"`{kind.name}`" in str(FeatureSettings.model_fields["kind"].description)


def test_each_setting_reaches_the_encoders() -> None:
    assert {one.name for one in fields(Feature)} == {"name", "spelling", *FeatureSettings.model_fields}


def test_the_text_names_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Add a feature kind")[2].partition("## ")[0]
    files = re.findall(r"`((?:features|tests)/[\w/]+\.py)`", section)
    assert [file for file in files if not (Path(__file__).parents[2] / file).exists()] == []
    assert {"features/feature_kinds.py", "features/values/readings.py", "features/featurizer/dense.py"} <= set(files)
    assert {"features/config.py", "features/schema.py"} <= set(files)
