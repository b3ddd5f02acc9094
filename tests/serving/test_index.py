from __future__ import annotations

import itertools
import threading

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.sequences import offsets_of
from serving import index as index_module
from serving.index import ItemIndex, check_unit_length


def unit_vectors(count, width=16, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def jagged(lists):
    rows = np.array([row for one in lists for row in one], dtype=np.int64)
    return rows, offsets_of(np.array([len(one) for one in lists], dtype=np.int64))


def by_hand(vectors, query, k, excluded):
    """The reference: plain Python over double-precision scores, ties by row."""
    scores = {row: np.float32(np.dot(vectors[row].astype(float), query.astype(float))) for row in range(len(vectors))}
    eligible = [row for row in scores if row not in set(excluded)]
    return sorted(eligible, key=lambda row: (-scores[row], row))[:k]


def test_finds_the_items_with_the_highest_inner_product():
    # Three items on the axes and the diagonal of a plane; the user looks along (0.8, 0.6).
    # Scores: 0.8, 0.6, (0.8 + 0.6) / sqrt 2 = 0.98995.
    vectors = np.array([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]], dtype=np.float32)
    hits = ItemIndex.build(vectors).search(np.array([[0.8, 0.6]], dtype=np.float32), 3)
    rows, scores = hits.of(0)
    assert rows.tolist() == [2, 0, 1]
    np.testing.assert_allclose(scores, [0.98995, 0.8, 0.6], atol=1e-5)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_items=st.integers(1, 120), k=st.integers(0, 150), num_users=st.integers(0, 5))
def test_returns_exactly_the_best_eligible_items(data, num_items, k, num_users):
    vectors = unit_vectors(num_items, width=4, seed=num_items)
    queries = unit_vectors(max(1, num_users), width=4, seed=7)[:num_users]
    excluded = [data.draw(st.lists(st.integers(0, num_items - 1), max_size=150)) for _ in range(num_users)]
    hits = ItemIndex.build(vectors).search(queries, k, *jagged(excluded))
    assert len(hits.offsets) == num_users + 1
    for user in range(num_users):
        assert hits.of(user)[0].tolist() == by_hand(vectors, queries[user], k, excluded[user])


@pytest.mark.parametrize("num_excluded", [0, 5, 100, 1500, 2500, 2999, 3000])
def test_exclusions_never_make_an_answer_short(num_excluded):
    vectors, query = unit_vectors(3000), unit_vectors(1, seed=1)
    # The worst case: what is excluded is what would have come first.
    best_first = np.argsort(-(vectors @ query[0]))
    excluded = best_first[:num_excluded]
    rows, _ = ItemIndex.build(vectors).search(query, 10, *jagged([excluded])).of(0)
    assert len(rows) == min(10, 3000 - num_excluded)
    assert rows.tolist() == best_first[num_excluded : num_excluded + 10].tolist()


@pytest.mark.parametrize("k", [1, 100, 2048, 2049, 5000, 10_000])
def test_any_k_up_to_the_whole_catalogue_is_met(k):
    vectors, query = unit_vectors(5000), unit_vectors(1, seed=1)
    rows, scores = ItemIndex.build(vectors).search(query, k).of(0)
    assert len(set(rows.tolist())) == min(k, 5000)
    assert rows.min() >= 0
    assert (np.diff(scores) <= 0).all()


def test_users_with_short_and_long_exclusions_are_searched_together():
    vectors, queries = unit_vectors(4000), unit_vectors(40, seed=1)
    rng = np.random.default_rng(0)
    excluded = [rng.integers(0, 4000, size=size) for size in rng.choice([0, 3, 60, 700, 3000], size=40)]
    index = ItemIndex.build(vectors)
    together = index.search(queries, 25, *jagged(excluded))
    for user in range(40):
        alone = index.search(queries[user : user + 1], 25, *jagged([excluded[user]])).of(0)
        np.testing.assert_array_equal(together.of(user)[0], alone[0])
        np.testing.assert_array_equal(together.of(user)[1], alone[1])
        assert alone[0].tolist() == by_hand(vectors, queries[user], 25, excluded[user].tolist())


def test_search_and_scan_agree():
    vectors, queries = unit_vectors(3000), unit_vectors(30, seed=1)
    index = ItemIndex.build(vectors)
    found, scanned = index.search(queries, 50), index.scan(queries, 50)
    np.testing.assert_array_equal(found.rows, scanned.rows)
    np.testing.assert_array_equal(found.scores, scanned.scores)


def test_copies_of_an_item_come_in_the_order_of_their_rows():
    vectors, query = unit_vectors(1000, width=64), unit_vectors(1, width=64, seed=1)
    copies = np.sort(np.random.default_rng(2).choice(1000, size=200, replace=False))
    vectors[copies] = query[0]
    rows, scores = ItemIndex.build(vectors).search(query, 50).of(0)
    assert rows.tolist() == copies[:50].tolist()
    assert len(set(scores.tolist())) == 1


def test_results_that_faiss_could_not_fill_never_reach_the_caller():
    class RunsDry:
        """As an IVF index whose probed lists are empty: one result, then -1."""

        def search(self, queries, fetch):
            rows = np.full((len(queries), fetch), -1)
            rows[:, 0] = 3
            return np.full(rows.shape, np.finfo(np.float32).min), rows

    vectors, query = unit_vectors(100), unit_vectors(1, seed=1)
    rows, _ = ItemIndex(vectors, RunsDry(), "exact", on_gpu=False).search(query, 10).of(0)
    assert rows.tolist() == by_hand(vectors, query[0], 10, [])


def test_vectors_that_are_not_of_length_one_are_refused():
    vectors = unit_vectors(10)
    vectors[4] *= 2
    with pytest.raises(ValueError, match="expected vectors of length 1, found length 2 at row 4"):
        ItemIndex.build(vectors)
    vectors[4] = np.nan
    with pytest.raises(ValueError, match="found length nan at row 4"):
        check_unit_length(vectors)


def test_declares_that_it_is_exact():
    index = ItemIndex.build(unit_vectors(10))
    assert (index.kind, index.is_exact, len(index), index.width) == ("exact", True, 10, 16)


def test_a_saved_index_answers_as_before(tmp_path):
    vectors, queries = unit_vectors(500), unit_vectors(5, seed=1)
    built = ItemIndex.build(vectors)
    built.save(tmp_path / "items.faiss")
    loaded = ItemIndex.load(tmp_path / "items.faiss", vectors)
    np.testing.assert_array_equal(loaded.search(queries, 10).rows, built.search(queries, 10).rows)


def test_an_index_over_other_vectors_is_refused(tmp_path):
    ItemIndex.build(unit_vectors(500)).save(tmp_path / "items.faiss")
    with pytest.raises(ValueError, match=r"holds 500 vectors of width 16, the catalogue \(400, 16\)"):
        ItemIndex.load(tmp_path / "items.faiss", unit_vectors(400))


def test_an_index_with_another_similarity_is_refused(tmp_path):
    distances = faiss.IndexFlatL2(16)
    distances.add(unit_vectors(50))
    faiss.write_index(distances, str(tmp_path / "items.faiss"))
    with pytest.raises(ValueError, match="does not rank by inner product"):
        ItemIndex.load(tmp_path / "items.faiss", unit_vectors(50))


def test_a_file_that_is_not_an_index_is_refused(tmp_path):
    (tmp_path / "items.faiss").write_bytes(b"not an index at all")
    with pytest.raises(ValueError, match="FAISS cannot read it"):
        ItemIndex.load(tmp_path / "items.faiss", unit_vectors(50))


def test_without_a_gpu_auto_stays_and_cuda_says_so(monkeypatch):
    monkeypatch.setattr(index_module.faiss, "get_num_gpus", lambda: 0)
    index = ItemIndex.build(unit_vectors(10))
    assert index.to("auto") is index
    assert index.to("cpu") is index
    with pytest.raises(ValueError, match="FAISS finds no GPU; choose the device cpu"):
        index.to("cuda")


def test_on_a_gpu_searches_take_turns_and_never_ask_for_more_than_it_allows(monkeypatch):
    """FAISS's GPU indexes are not thread-safe and return at most 2,048 results."""
    vectors = unit_vectors(6000)
    at_once, most_at_once, fetched = itertools.count(), [0], []

    class Gpu:
        def __init__(self, index):
            self.index, self.inside = index, 0

        def search(self, queries, fetch):
            self.inside += 1
            most_at_once[0] = max(most_at_once[0], self.inside)
            fetched.append(fetch)
            next(at_once)
            result = self.index.search(queries, fetch)
            self.inside -= 1
            return result

    monkeypatch.setattr(index_module.faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(index_module.faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(index_module.faiss, "index_cpu_to_gpu", lambda _, __, index: Gpu(index), raising=False)
    index, query = ItemIndex.build(vectors).to("auto"), unit_vectors(1, seed=1)
    threads = [threading.Thread(target=index.search, args=(query, k)) for k in [5, 100, 1000, 2040, 5000] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_at_once == [1]
    assert max(fetched) <= 2048
    assert len(index.search(query, 5000).rows) == 5000


def test_threads_that_search_at_once_get_their_own_answers():
    vectors, queries = unit_vectors(3000), unit_vectors(64, seed=1)
    index = ItemIndex.build(vectors)
    expected = index.search(queries, 10)
    answers = {}

    def ask(user):
        answers[user] = index.search(queries[user : user + 1], 10).rows.tolist()

    threads = [threading.Thread(target=ask, args=(user,)) for user in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[user] == expected.of(user)[0].tolist() for user in range(64))
