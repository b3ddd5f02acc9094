"""The judge is fair: whole catalogue, no luck from ties, nothing seen, nothing that depends on how it was asked."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.sequences.ragged import offsets_of
from features.sequences.seen_items import EXCLUDE, REPEAT
from features.sequences.sequences import Queries, Sequences
from training.evaluation import evaluate as evaluate_module
from training.evaluation.comparison import Comparison
from training.evaluation.evaluate import TableRecommender, _Lots, _top, evaluate, slices
from training.evaluation.metrics import NEVER


def questions(histories: list[list[int]], targets: list[list[int]]) -> Queries:
    def offsets(rows: list[list[int]]) -> np.ndarray:
        return offsets_of(np.array([len(row) for row in rows], dtype=np.int64))

    def flat(rows: list[list[int]]) -> np.ndarray:
        return np.array([item for row in rows for item in row], dtype=np.int64)

    users = np.arange(len(histories))
    history = Sequences(users, offsets(histories), flat(histories), times=None, is_ordered=True)
    return Queries(history, offsets(targets), flat(targets), times=None)


class Fixed:
    """The scores that it was given, by user."""

    name = "fixed"

    def __init__(self, table: object) -> None:
        self.table = np.asarray(table, dtype=np.float32)

    def scores(self, queries: Queries) -> np.ndarray:
        return self.table[queries.history.user_ids]


ALL = np.ones(6, dtype=bool)


def test_the_rank_is_among_the_whole_catalogue_without_what_was_seen():
    # User 0 had item 5, the best scored: without it, items 4 and 3 are above item 2.
    queries = questions([[5], []], [[2], [0, 5]])
    result = evaluate(Fixed([[0, 1, 2, 3, 4, 5]] * 2), queries, ALL, seen_items=EXCLUDE)
    assert result.ranks.tolist() == [3, 6, 1]
    assert result.per_question["recall_at_10"].tolist() == [1, 1]
    assert result.means["ndcg_at_10"] == pytest.approx((0.5 + (1 + 1 / np.log2(7)) / (1 + 1 / np.log2(3))) / 2)


def test_what_was_seen_stays_where_people_buy_again():
    result = evaluate(Fixed([[0, 1, 2, 3, 4, 5]]), questions([[5, 2]], [[2]]), ALL, seen_items=REPEAT)
    assert result.ranks.tolist() == [4]


@pytest.mark.parametrize("block", [1, 3, 512])
def test_exposure_counts_the_lists_that_an_item_is_in(block: int):
    rng = np.random.default_rng(0)
    table, candidates = rng.random((7, 6)), np.array([True, True, False, True, True, True])
    table[3] = 0.5  # a tie of all, broken by lot
    queries = questions([[user % 2] for user in range(7)], [[3]] * 7)
    result = evaluate(Fixed(table), queries, candidates, seen_items=EXCLUDE, cutoffs=(2, 10), block=block)
    shown = np.zeros(6, dtype=int)
    for user in range(7):
        ranked = sorted({0, 1, 3, 4, 5} - {user % 2}, key=lambda item: -table[user, item])
        shown[ranked[:2]] += user != 3
    drawn = result.exposure[2] - shown
    assert drawn.min() >= 0
    assert drawn.sum() == 2
    assert drawn[[1, 2]].sum() == 0, "what was seen is not shown, and what is no candidate"
    # Four are left of five candidates, fewer than ten: everybody is shown all of them.
    assert result.exposure[10].tolist() == [3, 4, 0, 7, 7, 7]
    assert result.coverage["coverage_at_2"] == np.mean(result.exposure[2][candidates] > 0)


def test_only_candidates_are_ranked():
    candidates = np.array([True, True, True, False, False, True])
    result = evaluate(Fixed([[0, 1, 2, 3, 4, 5]]), questions([[]], [[1]]), candidates, seen_items=EXCLUDE)
    assert result.ranks.tolist() == [3]
    assert result.num_candidates == 4
    assert result.coverage["coverage_at_10"] == 1


def test_a_recommender_that_says_nothing_does_as_well_as_chance():
    # A target tied with 99 others is in the first ten one time in ten: 2,000 of 20,000, standard deviation 42.
    queries = questions([[]] * 20_000, [[7]] * 20_000)
    result = evaluate(Fixed(np.zeros((20_000, 100))), queries, np.ones(100, dtype=bool), seen_items=EXCLUDE)
    assert result.means["recall_at_10"] == pytest.approx(0.1, abs=0.01)
    assert result.ranks.mean() == pytest.approx(50.5, abs=1)
    assert (result.ranks.min(), result.ranks.max()) == (1, 100)
    assert result.coverage["coverage_at_10"] == 1


def test_answers_that_tie_with_each_other_never_share_a_rank():
    queries = questions([[]] * 200, [[0, 1, 2]] * 200)
    result = evaluate(Fixed(np.zeros((200, 6))), queries, ALL, seen_items=EXCLUDE)
    assert all(len(set(row)) == 3 for row in result.ranks.reshape(200, 3).tolist())


@given(st.lists(st.integers(0, 2), min_size=6, max_size=6), st.integers(0, 3))
def test_the_lot_that_breaks_ties_for_a_rank_breaks_them_for_the_list_too(scores: list[int], seed: int):
    # All items as answers of one question: their ranks say what the list must be, for every length of the list.
    queries, recommender = questions([[]], [list(range(6))]), Fixed([scores])
    ranks = evaluate(recommender, queries, ALL, seen_items=EXCLUDE, seed=seed).ranks
    assert sorted(ranks.tolist()) == [1, 2, 3, 4, 5, 6]
    for length in range(1, 7):
        top = _top(recommender.table, length, _Lots(seed, np.arange(1), 6))
        assert top.tolist() == [np.argsort(ranks)[:length].tolist()]


@pytest.mark.parametrize("cost", [10**9, 0], ids=["all drawn", "jumped over"])
def test_the_lots_of_some_items_are_those_among_the_lots_of_all(cost: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate_module, "COST_OF_A_JUMP", cost)
    items = np.array([0, 3, 4, 17, 99])
    expected = np.random.default_rng([7, 5]).random(100)[items]
    assert _Lots(7, np.array([2, 5]), 100).of(1, items).tolist() == expected.tolist()


def test_coverage_can_be_left_out():
    queries, recommender = questions([[5]], [[2]]), Fixed([[0, 1, 2, 3, 4, 5]])
    with_it, without = (
        evaluate(recommender, queries, ALL, seen_items=EXCLUDE, with_coverage=value) for value in (True, False)
    )
    assert set(with_it.means) - set(without.means) == {"coverage_at_10", "coverage_at_50", "coverage_at_100"}
    assert np.array_equal(with_it.ranks, without.ranks)


def test_everyone_getting_the_same_list_shows_in_the_coverage():
    scores = np.tile(np.arange(50), (30, 1))
    result = evaluate(Fixed(scores), questions([[]] * 30, [[0]] * 30), np.ones(50, dtype=bool), seen_items=EXCLUDE)
    assert result.coverage == {"coverage_at_10": 0.2, "coverage_at_50": 1.0, "coverage_at_100": 1.0}


def test_a_zero_is_a_zero_whatever_its_sign():
    queries = questions([[]] * 2_000, [[0]] * 2_000)
    result = evaluate(Fixed(np.tile([-0.0, 0.0], (2_000, 1))), queries, ALL[:2], seen_items=EXCLUDE)
    assert result.ranks.mean() == pytest.approx(1.5, abs=0.06)


@given(st.data())
def test_ranks_agree_with_sorting(data: st.DataObject):
    scores = data.draw(
        st.lists(
            st.floats(-(2.0**100), 2.0**100, width=32), min_size=6, max_size=6, unique_by=lambda score: score + 0.0
        )
    )
    items = data.draw(st.permutations(range(6)))
    num_seen, num_targets = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    seen, targets = list(items[:num_seen]), list(items[num_seen : num_seen + num_targets])
    result = evaluate(Fixed([scores]), questions([seen], [targets]), ALL, seen_items=EXCLUDE)
    left = sorted((item for item in range(6) if item not in seen), key=lambda item: -scores[item])
    assert result.ranks.tolist() == [left.index(item) + 1 for item in targets]


@pytest.mark.parametrize("block", [1, 3, 7, 512])
def test_the_result_does_not_depend_on_the_size_of_the_blocks(block: int):
    rng = np.random.default_rng(0)
    queries = questions([[0], [1, 2], []] * 7, [[5], [3, 4], [0, 1, 2]] * 7)
    recommender = Fixed(rng.integers(0, 3, (21, 6)))  # many ties
    expected = evaluate(recommender, queries, ALL, seen_items=EXCLUDE, cutoffs=(2,))
    result = evaluate(recommender, queries, ALL, seen_items=EXCLUDE, cutoffs=(2,), block=block)
    assert np.array_equal(result.ranks, expected.ranks)
    assert result.means == expected.means


def test_another_seed_breaks_ties_differently():
    queries = questions([[]] * 50, [[0]] * 50)
    first, other = (evaluate(Fixed(np.zeros((50, 6))), queries, ALL, seen_items=EXCLUDE, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.ranks, other.ranks)


def test_the_scores_of_the_recommender_are_left_alone():
    recommender = Fixed([[0, 1, 2, 3, 4, 5]])
    recommender.table.flags.writeable = False
    evaluate(recommender, questions([[5]], [[2]]), ALL, seen_items=EXCLUDE)
    assert recommender.table.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_what_a_recommender_rules_out_is_never_found():
    scores = [[-np.inf, 1, -np.inf, -np.inf, -np.inf, -np.inf]]
    result = evaluate(Fixed(scores), questions([[]], [[0, 1]]), ALL, seen_items=EXCLUDE, cutoffs=(10,))
    assert result.ranks.tolist() == [NEVER, 1]
    assert result.coverage["coverage_at_10"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float):
    with pytest.raises(ValueError, match=r"fixed: expected finite scores, found NaN or \+inf; the model has diverged"):
        evaluate(Fixed([[0, bad, 2, 3, 4, 5]]), questions([[]], [[0]]), ALL, seen_items=EXCLUDE)


def test_an_answer_in_the_history_is_our_own_mistake():
    with pytest.raises(AssertionError, match="an answer is excluded from its question's ranking"):
        evaluate(Fixed([[0, 1, 2, 3, 4, 5]]), questions([[1, 2]], [[2]]), ALL, seen_items=EXCLUDE)


def test_an_answer_that_is_no_candidate_is_our_own_mistake():
    with pytest.raises(AssertionError, match="an answer is no candidate"):
        evaluate(Fixed([[0, 1, 2, 3, 4, 5]]), questions([[]], [[2]]), np.arange(6) < 2, seen_items=EXCLUDE)


def test_scores_of_the_wrong_shape_are_our_own_mistake():
    with pytest.raises(AssertionError, match=r"fixed: wrong shape \(1, 5\)"):
        evaluate(Fixed([[0, 1, 2, 3, 4]]), questions([[]], [[2]]), ALL, seen_items=EXCLUDE)


def test_a_lead_on_the_same_questions_is_surer_than_two_intervals_suggest():
    # Every other question is easy for both (rank 1); on the rest ours puts the answer 2nd and the other 3rd:
    # the means are 3/4 and 2/3, the lead is 1/12.
    queries = questions([[]] * 100, [[0]] * 100)
    easy, ours, other = [5, 4, 3, 2, 1, 0], [4, 5, 3, 2, 1, 0], [3, 4, 5, 2, 1, 0]
    first = evaluate(Fixed([easy, ours] * 50), queries, ALL, seen_items=EXCLUDE)
    second = evaluate(Fixed([easy, other] * 50), queries, ALL, seen_items=EXCLUDE)
    compared = Comparison.of([[first, second]])
    assert compared.metric(0, "mrr_at_10").low < compared.metric(1, "mrr_at_10").high
    lead = compared.lead(0, 1, "mrr_at_10")
    assert lead.mean == pytest.approx(1 / 12)
    assert 0.05 < lead.low < lead.mean < lead.high < 0.11


def test_slices_tell_cold_from_warm():
    queries = questions([[5], [], [4]], [[0], [1, 2], [3]])
    warm = np.array([True, True, False, False, True, True])
    result = evaluate(Fixed([[0, 1, 2, 3, 4, 5]] * 3), queries, ALL, seen_items=EXCLUDE)
    parts = slices(result, queries, warm)
    assert {name: part.num_questions for name, part in parts.items()} == {
        "warm users": 2,
        "cold users": 1,
        "warm items": 2,
        "cold items": 2,
    }
    assert parts["warm users"].ranks.tolist() == [5, 2]
    assert parts["cold users"].ranks.tolist() == [5, 4]
    assert parts["cold items"].ranks.tolist() == [4, 2]
    assert parts["cold items"].means["mrr_at_10"] == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_slices_without_an_answer_are_left_out():
    queries = questions([[5]], [[0]])
    result = evaluate(Fixed([[0, 1, 2, 3, 4, 5]]), queries, ALL, seen_items=EXCLUDE)
    assert set(slices(result, queries, ALL)) == {"warm users", "warm items"}


def test_a_progress_bar_goes_to_the_terminal_only_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    queries, recommender = questions([[]], [[0]]), Fixed([[0, 1, 2, 3, 4, 5]])
    evaluate(recommender, queries, ALL, seen_items=EXCLUDE)
    assert capsys.readouterr().err == ""
    evaluate(recommender, queries, ALL, seen_items=EXCLUDE, progress=True)
    assert "fixed" in capsys.readouterr().err


# Tables


def table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"user_id": [1, 0, 1, 0], "item_id": ["f", "a", "b", "c"], **columns})


IDS = np.array(list("abcdef"), dtype=object)


def test_a_table_is_ranked_by_its_ranks_and_the_rest_is_not_found():
    queries = questions([[], [5], []], [[2, 3], [1], [0]])
    for columns in ({"rank": [1, 2, 2, 1], "score": [0.5, 0.5, 0.5, 0.5]}, {"score": [0.9, 0.1, 0.8, 0.2]}):
        served = TableRecommender("served", table(**columns), IDS)
        result = evaluate(served, queries, ALL, seen_items=EXCLUDE)
        # User 0 was given c, a; user 1 f (seen), b; user 2 nothing.
        assert result.ranks.tolist() == [1, NEVER, 1, NEVER]


def test_a_table_may_hold_arrow_types():
    frame = table(rank=[1, 2, 2, 1]).convert_dtypes(dtype_backend="pyarrow")
    result = evaluate(TableRecommender("served", frame, IDS), questions([[]], [[2]]), ALL, seen_items=EXCLUDE)
    assert result.ranks.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frame: frame.drop(columns="rank"),
            r"served: expected the columns .* rank or score, found user_id, item_id",
        ),
        (lambda frame: frame.replace({"f": "z"}), r"served: item 'z' is not in the catalogue; use the catalogue"),
        (
            lambda frame: frame.assign(rank=[1, None, 2, 1]),
            r"served: column 'rank', row 2: expected a number",
        ),
        (lambda frame: frame.assign(rank=[1, 2**63, 2, 1]), r"served: column 'rank', row 2: expected numbers from"),
        (lambda frame: pd.concat([frame, frame]), r"served: a user has the same item twice; keep one"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame], message: str):
    with pytest.raises(DataError, match=message):
        TableRecommender("served", change(table(rank=[1, 2, 2, 1])), IDS)
