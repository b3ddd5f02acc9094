"""What `towers init` proposes for the model: settings that can be read, and that fit what the tables say."""

import tomllib

import pandas as pd
import pytest

from features.inference.inference import infer_features
from towers.config import TowersConfig
from training.config import TrainingConfig
from training.evaluation.popular_items import PopularityGain
from training.tasks.init import render_model_settings


def interactions(per_user: int, **columns: str) -> pd.DataFrame:
    """Thirty users with so many interactions each; `columns` names what tells their order, if anything does."""
    events = pd.DataFrame([(user, item) for user in range(30) for item in range(per_user)], columns=["user", "item"])
    events["item"] = (events["item"] * 7 + events["user"]) % 50
    if "timestamp" in columns:
        events[columns["timestamp"]] = 1_700_000_000 + events.index * 1000
    if "position" in columns:
        events[columns["position"]] = events.groupby("user").cumcount()
    return events.rename(columns={"user": "user_id", "item": "item_id"})


def proposed(frame: pd.DataFrame, gain: PopularityGain | None = None) -> tuple[TowersConfig, TrainingConfig]:
    settings = tomllib.loads(render_model_settings(infer_features(frame, None, None), gain))
    return TowersConfig(**settings["towers"]), TrainingConfig(**settings["training"])


def test_with_times_the_clock_is_looked_at() -> None:
    towers, _ = proposed(interactions(5, timestamp="timestamp"))
    assert (towers.history_encoder, towers.time_bias) == ("transformer", True)


@pytest.mark.parametrize(("recent", "trend"), [(0.15, [1, 7, 30]), (0.08, [])])
def test_recent_popularity_is_part_of_the_score_where_it_is_far_better_than_popularity(
    recent: float, trend: list[float]
) -> None:
    towers, _ = proposed(interactions(5, timestamp="timestamp"), PopularityGain(recent, 0.07, num_questions=500))
    assert towers.trend == trend


def test_with_positions_alone_the_order_is_read_without_a_clock() -> None:
    towers, _ = proposed(interactions(5, position="position"))
    assert (towers.history_encoder, towers.time_bias) == ("transformer", False)


def test_without_an_order_the_mean_is_read() -> None:
    towers, _ = proposed(interactions(5))
    assert (towers.history_encoder, towers.time_bias) == ("mean", False)


@pytest.mark.parametrize(
    ("per_user", "dropout", "rate"), [(6, 0.5, 0.05), (19, 0.5, 0.05), (20, 0.2, 0.1), (45, 0.2, 0.1)]
)
def test_where_little_is_known_of_each_user_the_model_is_held_back(per_user: int, dropout: float, rate: float) -> None:
    towers, training = proposed(interactions(per_user, timestamp="timestamp"))
    assert towers.dropout == dropout
    assert training.embedding_learning_rate == rate
