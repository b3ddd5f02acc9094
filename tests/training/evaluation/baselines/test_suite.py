"""All baselines together: which are fitted, with which hyperparameters, and what the report says of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE, REPEAT
from features.sequences.sequences import Queries, Sequences
from features.sequences.split import Split, cold_items, held_out_users, leave_one_out, time_split
from training.evaluation.baselines import suite
from training.evaluation.baselines.baseline import Baseline, BaselineData
from training.evaluation.baselines.ease import Ease
from training.evaluation.baselines.recency import decayed_history
from training.evaluation.baselines.suite import Budget, fit_baselines
from training.evaluation.baselines.tuning import Grid, sample
from training.evaluation.evaluate import ScoringModel, evaluate


def sequences(*rows: list[int], times: np.ndarray | None = None) -> Sequences:
    offsets = offsets_of(np.array([len(row) for row in rows], dtype=np.int64))
    items = np.array([item for row in rows for item in row], dtype=np.int64)
    return Sequences(np.arange(len(rows)), offsets, items, times, is_ordered=True)


def chosen(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let only some baselines be fitted."""
    monkeypatch.setattr(suite, "BASELINES", tuple(one for one in suite.BASELINES if one.name in names))


def ndcg(recommender: ScoringModel, split: Split) -> float:
    return evaluate(recommender, split.validation, split.candidates, seen_items=split.seen_items).means["ndcg_at_10"]


@pytest.fixture
def planted() -> Sequences:
    """Two tastes with 20 items each; everyone has 10 of one of them."""
    rng = np.random.default_rng(2)
    return sequences(*[(20 * (user % 2) + rng.permutation(20)[:10]).tolist() for user in range(200)])


def test_all_baselines_stand_beside_a_result_and_beat_popularity_where_tastes_differ(planted: Sequences):
    split = leave_one_out(planted, num_items=45)
    recommenders, notes = fit_baselines(split)
    recall = {
        recommender.name: evaluate(recommender, split.test, split.candidates, seen_items=EXCLUDE).means["recall_at_10"]
        for recommender in recommenders
    }
    personal = ["item-item cosine", "sequential neighbours", "session kNN", "EASE", "iALS"]
    assert list(recall) == ["popularity", *personal, "mix of two"]
    # Eleven items of the right taste are left: 10/11 by chance, about a third among all.
    assert recall["popularity"] < 0.5
    assert min(recall[name] for name in [*personal, "mix of two"]) > 0.8
    assert notes[0] == "recent popularity is left out: it needs the times of the interactions."
    assert notes[4].startswith("EASE: half-life ")
    assert "the best on 200 validation questions of half-life " in notes[4]
    assert notes[-1].startswith("mix of two: ")
    assert ", standardised scores, the second counting " in notes[-1]


def test_a_baseline_does_not_look_at_the_answers_or_at_what_is_later():
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 10**7, (80, 12)), axis=1).ravel()
    events = sequences(*rng.integers(0, 30, (80, 12)).tolist(), times=times)
    split = time_split(events, num_items=30)
    begins = split.test.times[0]
    later = replace(events, item_rows=np.where(times < begins, events.item_rows, (events.item_rows + 1) % 30))
    queries = replace(split.test, target_rows=(split.test.target_rows + 1) % 30)
    changed = replace(split, test=queries, timeline=time_split(later, num_items=30).timeline)
    assert not np.array_equal(changed.timeline.item_rows, split.timeline.item_rows)
    for first, second in zip(fit_baselines(split)[0], fit_baselines(changed)[0], strict=True):
        assert np.array_equal(first.scores(split.test), second.scores(queries))


def test_recent_popularity_finds_what_is_new_and_knows_more_at_the_question(monkeypatch: pytest.MonkeyPatch):
    # In each of ten weeks another item is what everybody has.
    rng = np.random.default_rng(3)
    weeks = np.sort(rng.integers(0, 10, (300, 4)), axis=1)
    times = (weeks * 7 + rng.random(weeks.shape) * 7) * 86_400
    order = np.argsort(times, axis=1)
    weeks, times = np.take_along_axis(weeks, order, 1), np.take_along_axis(times, order, 1)
    split = leave_one_out(sequences(*weeks.tolist(), times=times.astype(np.int64).ravel()), 12, seen_items=REPEAT)
    chosen(monkeypatch, "popularity", "popularity (end of training)", "recent popularity")
    everything, at_end, at_question, _ = (ndcg(one, split) for one in fit_baselines(split)[0])
    assert everything < 0.6 < 0.9 < at_question
    assert at_end < at_question


def test_the_hyperparameters_are_those_that_do_best_on_validation(planted: Sequences, monkeypatch: pytest.MonkeyPatch):
    split = leave_one_out(planted, num_items=45)
    chosen(monkeypatch, "EASE")
    (ease,), (note,) = fit_baselines(split)
    trials = [
        Ease.fit(split.train, 45, regularisation=regularisation, half_life=half_life)
        for regularisation in suite.REGULARISATION.values
        for half_life in (1, 4, math.inf)
    ]
    assert ndcg(ease, split) >= max(ndcg(trial, split) for trial in trials) - 0.01
    assert note.startswith("EASE: half-life ")


def test_the_notes_say_what_was_left_out_or_not_tuned(planted: Sequences, monkeypatch: pytest.MonkeyPatch):
    split = leave_one_out(planted, num_items=45)
    chosen(monkeypatch, "EASE", "iALS")
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)  # as if it were not installed
    recommenders, notes = fit_baselines(split, budget=Budget(seconds=0, memory_bytes=10_000))
    assert recommenders == []
    assert notes[0].startswith("EASE is left out: matrices of 40 x 40 items would take ")
    assert notes[1].startswith("iALS is left out: it needs the library implicit (")
    assert notes[1].endswith("); pip install implicit adds it.")
    _, notes = fit_baselines(split, budget=Budget(seconds=0))
    assert notes[0] == (
        "EASE: half-life inf events, regularisation 300, the best on 200 validation questions of half-life inf; "
        "regularisation 300 until the time was over."
    )


def test_settings_are_chosen_by_a_sample_where_there_are_many_questions(
    planted: Sequences, monkeypatch: pytest.MonkeyPatch
):
    asked = set()
    scores = Ease.scores

    def counted(own: Ease, queries: Queries) -> np.ndarray:
        asked.add(len(queries))
        return scores(own, queries)

    monkeypatch.setattr("training.evaluation.baselines.tuning.LEAST_QUESTIONS", 0)
    monkeypatch.setattr(suite, "sample", partial(sample, most_cells=45 * 20))
    monkeypatch.setattr(Ease, "scores", counted)
    chosen(monkeypatch, "EASE")
    fit_baselines(leave_one_out(planted, num_items=45))
    assert asked == {20}


def test_the_half_life_needs_an_order(monkeypatch: pytest.MonkeyPatch):
    # Everybody ends with a run of one taste: the newest events tell most.
    rng = np.random.default_rng(5)
    texts = [f"kind{item % 4} thing{item}" for item in range(40)]
    rows = [
        [*rng.permutation(40)[:12].tolist(), *(4 * rng.permutation(10)[:4] + taste).tolist()]
        for taste in rng.integers(0, 4, 200)
    ]
    chosen(monkeypatch, "sequential neighbours", "TF-IDF")
    events = sequences(*rows)
    recommenders, _ = fit_baselines(leave_one_out(events, num_items=40, seen_items=REPEAT), texts=texts)
    assert recommenders[1].half_life < math.inf
    split = held_out_users(replace(events, is_ordered=False), 40, seen_items=REPEAT)
    (neighbours,), notes = fit_baselines(split, texts=texts)
    assert neighbours.half_life == math.inf
    assert notes == [
        "sequential neighbours is left out: it needs the order of the interactions.",
        "TF-IDF: half-life inf events.",
    ]


def test_only_what_reads_texts_finds_what_nobody_had(planted: Sequences):
    texts = [f"taste{item // 20}" for item in range(40)] + [""] * 5
    split = cold_items(planted, num_items=45)
    recommenders, notes = fit_baselines(split, texts=texts)
    assert (
        "EASE: half-life inf events, regularisation 300, not tuned, as training has seen none of the answers." in notes
    )
    found = {
        recommender.name: evaluate(recommender, split.test, split.candidates, seen_items=EXCLUDE)
        for recommender in recommenders
    }
    # The 20 items of the taste, less the history, come before all others.
    worst = {name: evaluation.ranks.max() for name, evaluation in found.items() if name != "mix of two"}
    assert {name for name, rank in worst.items() if rank <= 20} == {"TF-IDF", "CEASE"}


@pytest.mark.parametrize("texts", [None, [""] * 45, ["..."] * 45, ["", *["a word"] * 44]])
def test_without_a_word_about_any_known_item_there_are_no_neighbours_by_text(
    planted: Sequences, texts: list[str] | None, monkeypatch: pytest.MonkeyPatch
):
    if texts and texts[1]:
        texts = [text if row >= 40 else "" for row, text in enumerate(texts)]  # nobody had the items from 40 on
    chosen(monkeypatch, "TF-IDF")
    assert fit_baselines(leave_one_out(planted, num_items=45), texts=texts) == ([], [])


def test_the_best_mix_is_at_least_as_good_on_validation_as_each_of_its_parts(monkeypatch: pytest.MonkeyPatch):
    # Half of what comes next is what is popular in that week, half follows the last item.
    rng = np.random.default_rng(6)
    rows, times = [], []
    for _ in range(400):
        weeks, row = np.sort(rng.integers(0, 8, 8)), [int(rng.integers(0, 40))]
        for week in weeks[1:]:
            row.append(40 + week if rng.random() < 0.5 else (row[-1] * 7 + 3) % 40)
        rows.append(row)
        times.append(np.sort(weeks * 7 * 86_400 + rng.integers(0, 86_400, 8)))
    split = leave_one_out(sequences(*rows, times=np.concatenate(times)), 50, seen_items=REPEAT)
    chosen(monkeypatch, "popularity", "recent popularity", "sequential neighbours")
    *single, mix = fit_baselines(split)[0]
    assert set(mix.parts.split(" + ")) == {"recent popularity", "sequential neighbours"}
    assert ndcg(mix, split) > max(ndcg(one, split) for one in single) + 0.05


class _Newest:
    """The last item of the history again, or the one before it, and so on: `scores = 2 ** (-age * steepness)`."""

    name = "newest"

    def __init__(self, num_items: int, steepness: float) -> None:
        self.num_items, self.steepness = num_items, steepness

    def scores(self, queries: Queries) -> np.ndarray:
        return decayed_history(queries.history, self.num_items, 1 / self.steepness).toarray()


def test_a_baseline_is_added_by_a_class_and_an_entry(planted: Sequences, monkeypatch: pytest.MonkeyPatch):
    def prepare(data: BaselineData) -> Callable[..., _Newest]:
        data.check_memory(4 * data.num_items, "a number for each item")
        return lambda steepness: _Newest(data.num_items, steepness)

    entry = Baseline("newest", prepare, {"steepness": Grid((0.5, 1, 2), 1, lowest=0.5, highest=2)})
    monkeypatch.setattr(suite, "BASELINES", (suite.BASELINES[0], entry))
    split = leave_one_out(planted, num_items=45, seen_items=REPEAT)
    recommenders, notes = fit_baselines(split)
    assert [one.name for one in recommenders[:2]] == ["popularity", "newest"]
    assert notes[0].startswith("newest: steepness ")
    assert ", the best on 200 validation questions of steepness 0.5, 1, 2." in notes[0]
    assert set(recommenders[2].parts.split(" + ")) == {"popularity", "newest"}
    _, notes = fit_baselines(split, budget=Budget(memory_bytes=100))
    assert notes[0].startswith("newest is left out: a number for each item would take 0.0 GiB, more than the ")
