from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from features.errors import DataError
from features.settings import parse_settings
from training.config import RunConfig, with_settings
from training.evaluation.advice import Facts
from training.tuning.space import declared_space, default_space, params_of, settings_of


def config(**tables: dict[str, Any]) -> RunConfig:
    return parse_settings(RunConfig, {"features": {"interactions": "i.parquet"}, **tables}, "run.toml")


def facts(config: RunConfig, *, is_ordered: bool = True) -> Facts:
    return Facts(config, 1_000, 20_000, 0.0, is_ordered, is_ordered)


def test_a_declared_space_is_read_from_nested_and_dotted_tables():
    said = {
        "training": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        "towers": {
            "num_layers": {"low": 1, "high": 4},
            "matryoshka_dims": [[], [16]],
            "dropout": {"low": 0, "high": 0.4},
        },
    }
    found = declared_space(config(tune=said, towers={"num_heads": 1}), "run.toml")
    assert found == {
        "training.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "towers.num_layers": IntDistribution(1, 4),
        "towers.matryoshka_dims": CategoricalDistribution(("[]", "[16]")),
        "towers.dropout": FloatDistribution(0, 0.4),
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"training": {"learning_rat": [1e-3, 2e-3]}}, r"\[tune\].*no such setting; did you mean 'learning_rate'"),
        ({"training": {"learning_rate": 0.1}}, r"expected a list of values, such as \[1, 2\], or .*found 0.1"),
        ({"training": {"learning_rate": {"low": 1.0}}}, "learning_rate: high: missing"),
        ({"training": {"learning_rate": {"low": 1e-3, "high": 1e-2, "logs": True}}}, "logs: no such setting; did you"),
        ({"training": {"learning_rate": {"low": 1e-2, "high": 1e-3}}}, "low = 0.01 must be below high = 0.001"),
        ({"towers": {"dropout": {"low": 0.0, "high": 1.5}}}, "towers.dropout: input should be less than 1, found 1.5"),
        ({"towers": {"dropout": [0.3, 0.4]}}, "the value in run.toml, .*0.2.*, is not one of 0.3, 0.4.*include it"),
        ({"towers": {"dropout": {"low": 0.3, "high": 0.4}}}, "the value in run.toml, 0.2, is not one of 0.3 to 0.4"),
        ({"towers": {"dropout": [0.2]}}, "expected at least two values, found 1"),
        ({"towers": {"embedding_dim": [64, 34]}}, "embedding_dim = 34 must be a multiple of 4"),
        ({"towers": {"embedding_dim": [64, 33]}}, "num_heads = 2 does not divide embedding_dim = 33"),
        ({"towers": {"history_encoder": ["transformer", "transfomer"]}}, "transfomer"),
        ({"towers": {"history_encoder": {"low": 1, "high": 2}}}, "history_encoder: it is no number, so it has no low"),
        ({"training": {"seed": [0, 1]}}, "training.seed: the trials have the same seed"),
        ({"features": {"min_rating": [1.0, 2.0]}}, "of .features. only max_history, frozen_dim"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(said: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message) as found:
        declared_space(config(tune=said), "run.toml")
    assert "\n" not in str(found.value)


def test_all_mistakes_are_said_at_once():
    with pytest.raises(DataError) as found:
        declared_space(config(tune={"towers": {"dropout": [0.2], "num_layer": [1, 2]}}), "run.toml")
    assert len(str(found.value).splitlines()) == 2


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"towers": {"embedding_dim": 12, "num_heads": 3}},
        {"towers": {"history_encoder": "mean", "matryoshka_dims": [16, 48]}, "training": {"targets": "any"}},
        {"towers": {"history_encoder": "mean"}, "training": {"item_init": "spectral", "negatives": "sampled"}},
        {"towers": {"history_encoder": "none"}, "training": {"negatives": "sampled", "batch_size": 3}},
        {"towers": {"dropout": 0.7, "num_layers": 9}, "training": {"weight_decay": 0.0, "hard_negatives": 4}},
    ],
)
def test_every_value_of_a_default_space_is_valid_and_run_toml_is_in_it(tables: dict[str, Any], is_ordered: bool):
    settings = config(**tables)
    space = default_space(settings, facts(settings, is_ordered=is_ordered), 500)
    assert {"training.learning_rate", "training.embedding_learning_rate", "towers.embedding_dim"} <= {*space}
    defaults = params_of(settings, space)
    assert with_settings(settings, settings_of(defaults), "run.toml") == settings
    for key, values in space.items():
        ends = values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)
        for end in ends:
            with_settings(settings, settings_of({key: end}), key)


def test_a_default_space_is_chosen_by_the_data():
    ordered, unordered = (
        {*default_space(one, facts(one, is_ordered=is_ordered), 500)}
        for one, is_ordered in ((config(), True), (config(towers={"history_encoder": "mean"}), False))
    )
    assert ordered - unordered == {
        *("towers.num_layers", "towers.num_heads", "towers.sum_residual", "training.targets"),
    }
    assert unordered - ordered == {"training.history_fraction"}
    large = default_space(config(), facts(config()), 50_000)
    assert {*large} - ordered == {"training.uniform_negatives", "training.in_batch_negatives", "training.log_q"}
