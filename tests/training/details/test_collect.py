"""What a report shows beyond the metrics: it agrees with the evaluation, is bounded, and shows nobody on demand."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeaturesConfig
from features.sequences.sequences import Queries
from features.sequences.split import Split, leave_one_out
from features.tables.tables import Catalog, Interactions, Tables, Users
from training.config import RunConfig, TrainingConfig
from training.details.collect import DetailsCollector
from training.details.examples import FAR, MOST_CHARACTERS, MOST_MISSES, SHOWN_HISTORY
from training.details.figures import learning_curve, score_ranges
from training.details.origin import changed_settings, commit_of
from training.evaluation.baselines.item_cosine import ItemCosine
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.details import ReportDetails
from training.evaluation.evaluate import ScoringModel, evaluate
from training.evaluation.report import EvaluationReport
from training.evaluation.two_tower_recommender import TwoTowerRecommender
from training.loop.trainer import Progress

COMMAND = ("towers", "evaluate", "run.toml")


def tables_of(num_users: int, num_items: int, title: str, per_user: int = 6) -> Tables:
    """A shop whose users choose neighbouring items, with a note and a title for every item."""
    rng = np.random.default_rng(0)
    begins = (num_items * rng.random(num_users) ** 2).astype(int)
    items = (begins[:, None] + rng.permuted(np.tile(np.arange(per_user + 4), (num_users, 1)), axis=1)) % num_items
    frame = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_users), per_user),
            "item_id": items[:, :per_user].ravel(),
            "timestamp": 1_700_000_000 + np.arange(num_users * per_user),
        }
    )
    catalog = pd.DataFrame({"item_id": np.arange(num_items), "title": [f"{title} {row}" for row in range(num_items)]})
    catalog["shelf"] = np.where(np.arange(num_items) % 3, "upper", "lower")
    users = pd.DataFrame({"user_id": np.arange(num_users), "country": "<i>FR</i>", "note": None})
    return Tables(Interactions(frame, is_ordered=True), Catalog(catalog), Users(users), ("3 duplicates merged",))


class Vectors(TwoTowerRecommender):
    """Scores items by vectors that were never trained, as far as a report looks at two towers."""

    def __init__(self, item_vectors: torch.Tensor) -> None:
        self.name, self.item_vectors = "two towers", item_vectors

    def scores(self, queries: Queries) -> np.ndarray:
        newest = queries.history.item_rows[queries.history.offsets[1:] - 1]
        return (self.item_vectors[newest] @ self.item_vectors.T).numpy()


def with_vectors(num_items: int) -> Vectors:
    angles = torch.linspace(0, 3, num_items)
    return Vectors(torch.stack([angles.cos(), angles.sin()], dim=1))


def collected(
    tables: Tables, most: int = 20, seed: int = 0, recommender: ScoringModel | None = None
) -> tuple[ReportDetails, EvaluationReport, Split]:
    config = RunConfig(
        features=FeaturesConfig(interactions="interactions.parquet", title="title"),
        training=TrainingConfig(report_people=most, seed=seed),
    )
    sequences = tables.interactions.sequences(tables.catalog)
    split = leave_one_out(sequences, len(tables.catalog))
    assert split.test is not None
    models = [
        recommender or ItemCosine.fit(split.train, len(tables.catalog)),
        PopularityBaseline.fit(split.train, len(tables.catalog)),
    ]
    runs = [evaluate(one, split.test, split.candidates, seen_items=split.seen_items) for one in models]
    collector = DetailsCollector(config, Path("/"), tables, sequences, {"items": "abc"}, "Evaluation of run.toml")
    collector.add_training(0, Progress(epoch=2, best_step=20, epochs=EPOCHS), 3.0, "cpu")
    collector.add_evaluation(models[0], runs, split.test, split)
    return collector.details(COMMAND), EvaluationReport.of("leave-one-out", "test", {0: runs}), split


EPOCHS = [
    {"epoch": 1, "step": 10, "loss": 4.0, "validation_ndcg_at_10": 0.1},
    {"epoch": 2, "step": 20, "loss": 3.0, "validation_ndcg_at_10": 0.2},
]


@pytest.fixture(scope="module")
def shop() -> Tables:
    return tables_of(200, 200, "Thing")


@pytest.fixture(scope="module")
def found(shop: Tables) -> tuple[ReportDetails, EvaluationReport, Split]:
    return collected(shop)


def test_an_example_says_what_was_chosen_what_was_recommended_and_what_came_next(
    found: tuple[ReportDetails, EvaluationReport, Split],
):
    details, _, split = found
    assert split.test is not None
    assert len(details.people) == 20
    assert len({one.user_id for one in details.people}) == 20
    for one in details.people:
        question = split.test.history.user_ids.tolist().index(int(one.user_id))
        history = split.test.history.items_of(question)
        assert one.history == tuple(f"Thing {row}" for row in history[::-1][:SHOWN_HISTORY])
        assert [item.title for item in one.held_out] == [f"Thing {split.test.target_rows[question]}"]
        right = [place for place, item in enumerate(one.recommended, 1) if item.is_right]
        rank = one.held_out[0].rank
        assert right == ([rank] if rank is not None and rank <= 10 else [])
        assert not {item.title for item in one.recommended} & set(one.history)
        assert [(fact.label, fact.text) for fact in one.attributes] == [("country", "<i>FR</i>")]


def test_a_map_has_the_most_popular_items_and_the_first_person_on_it(
    shop: Tables, found: tuple[ReportDetails, EvaluationReport, Split], monkeypatch: pytest.MonkeyPatch
):
    details, _, split = found
    assert details.item_map is None  # neighbours have no vectors
    monkeypatch.setattr("towers.item_map.MAX_SHOWN", 150)
    monkeypatch.setattr("training.details.item_map.MAX_SHOWN", 150)
    drawn = collected(shop, recommender=with_vectors(len(shop.catalog)))[0]
    item_map, person = drawn.item_map, drawn.people[0]
    assert item_map is not None
    assert (item_map.num_shown, item_map.num_items, item_map.column) == (150, 200, "shelf")
    counts = np.bincount(split.train.item_rows, minlength=200)
    shown = [int(point.title.split()[-1]) for group in item_map.groups for point in group.points]
    assert counts[shown].min() >= np.delete(counts, shown).max()
    assert [group.value for group in item_map.groups] == ["upper", "lower"]
    for group in item_map.groups:
        assert {int(point.title.split()[-1]) % 3 == 0 for point in group.points} == {group.value == "lower"}
    assert item_map.user_id == person.user_id
    assert tuple(point.title for point in item_map.history) == person.history
    assert [point.title for point in item_map.recommended] == [item.title for item in person.recommended]
    assert [point.title for point in item_map.held_out] == [item.title for item in person.held_out]
    everybody = collected(shop, most=0, recommender=with_vectors(len(shop.catalog)))[0].item_map
    assert everybody is not None
    assert (everybody.user_id, everybody.history, everybody.recommended) == ("", (), ())


def test_misses_are_those_of_their_ranks_and_in_order(found: tuple[ReportDetails, EvaluationReport, Split]):
    details, _, _ = found
    near = [one.held_out[0].rank for one in details.near_misses]
    assert near == sorted(near)
    assert near
    assert set(near) <= set(range(11, 21))
    far = [one.held_out[0].rank or np.inf for one in details.failures]
    assert far == sorted(far, reverse=True)
    assert all(rank > FAR for rank in far)
    assert max(len(near), len(far)) <= MOST_MISSES


def test_the_figures_add_up(found: tuple[ReportDetails, EvaluationReport, Split]):
    details, report, split = found
    assert split.test is not None
    assert sum(one.ours for one in details.ranks) == len(split.test.target_rows)
    ten = sum(one.ours for one in details.ranks[:2]) / len(split.test.target_rows)
    assert ten == pytest.approx(report.rows[0].metrics["recall_at_10"].mean)
    for shares in zip(*((one.catalog, one.chosen, one.ours, one.other) for one in details.popularity), strict=True):
        assert sum(shares) == pytest.approx(1)
    assert sum(one.num_questions for one in details.slices if one.facet == "activity") == len(split.test)
    assert all(one.ours.low - 1e-9 <= one.ours.mean <= one.ours.high + 1e-9 for one in details.slices)
    assert sum(one.num_items * one.right.mean for one in details.scores) <= len(split.test.target_rows)
    assert details.other_name == "popularity"
    assert "3 duplicates merged" in details.warnings
    assert details.tables[1].digest == "abc"
    assert [column.filled for column in details.tables[2].columns] == [1, 1, 0]


def test_the_same_seed_draws_the_same_people(shop: Tables, found: tuple[ReportDetails, EvaluationReport, Split]):
    assert collected(shop)[0].people == found[0].people
    assert collected(shop, seed=1)[0].people != found[0].people


def test_no_personal_data_is_shown_where_none_is_wanted(shop: Tables):
    details, report, _ = collected(shop, most=0)
    assert (details.people, details.near_misses, details.failures) == ((), (), ())
    page = replace(report, details=details).to_html()
    assert "User " not in page
    assert "FR" not in page


def test_a_report_of_many_users_with_long_titles_is_as_small_as_one_of_few():
    details, report, _ = collected(tables_of(1_100, 40, "<b>x</b>" * 100), most=100)
    page = replace(report, details=details).to_html()
    assert len(page.encode()) < 1_000_000
    assert "<b>x" not in page
    assert all(len(title) <= MOST_CHARACTERS for one in details.people for title in one.history)


def test_higher_scores_are_in_later_ranges():
    scores = np.array([[0.9, 0.5, -np.inf], [0.8, 0.1, 0.2]], dtype=np.float32)
    ranges = score_ranges(scores, np.array([[True, False, False], [True, False, False]]))
    assert [(one.low, one.num_items, one.right.mean) for one in ranges] == [
        (pytest.approx(score), 1, right) for score, right in ((0.1, 0), (0.2, 0), (0.5, 0), (0.8, 1), (0.9, 1))
    ]


def test_a_learning_curve_marks_the_epoch_that_was_kept():
    curve = learning_curve(3, Progress(epoch=2, best_step=10, decay_steps=[20], epochs=EPOCHS))
    assert [(point.epoch, point.loss, point.quality) for point in curve.points] == [(1, 4.0, 0.1), (2, 3.0, 0.2)]
    assert (curve.seed, curve.best_epoch, curve.decay_epochs) == (3, 1, (2,))


def test_settings_are_listed_where_they_differ_from_their_defaults():
    config = RunConfig.model_validate(
        {
            "features": {"interactions": "a.csv", "item": {"title": {"kind": "text"}}},
            "towers": {"embedding_dim": 8},
            "training": {"seed": 1},
        }
    )
    found = {one.name: (one.value, one.default) for one in changed_settings(config)}
    assert found == {
        "features.interactions": ('"a.csv"', "none"),
        "features.item.title": ('{ kind = "text" }', None),
        "towers.embedding_dim": ("8", "64"),
        "training.seed": ("1", "0"),
    }


def test_the_commit_is_that_of_the_folder(tmp_path: Path):
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    (tmp_path / "run.toml").write_text("a")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = commit_of(tmp_path)
    assert commit is not None
    assert len(commit) == 12
    (tmp_path / "run.toml").write_text("b")
    assert commit_of(tmp_path) == f"{commit} with changes"
