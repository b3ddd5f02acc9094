from __future__ import annotations

import functools
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.files import mapped, save_arrays
from serving.search import faiss_index as index_module
from serving.search import partitions as partitions_module
from serving.search import vectors as vectors_module
from serving.search.faiss_index import ItemIndex, _effort, check_unit_length, kmeans
from serving.search.index_config import FIRST_LEVEL, INDEX_KINDS, IndexConfig, standard
from serving.search.inverted_lists import FILE as LISTS
from serving.search.results import AllowedItems
from serving.search.vectors import HalfVectors
from tests.serving.vectors import by_hand, clustered_vectors, ragged, some_allowed, unit_vectors

ITEMS, USERS = 4000, 60
SPACES = {
    "clustered": (clustered_vectors(ITEMS), clustered_vectors(USERS, seed=1)),
    "isotropic": (unit_vectors(ITEMS), unit_vectors(USERS, seed=1)),
}
# What a kind finds with the parameters that suit the number of items, before anything is tuned.
FLOORS = {"clustered": 0.98, "isotropic": 0.85}


def loaded_from(folder, vectors, index, partitions=None):
    """The index that was saved in a folder, as a snapshot opens it."""
    lists = folder / LISTS
    return ItemIndex.load(folder / "items.faiss", vectors, index.plan, partitions, lists if lists.exists() else None)


WAYS = (*INDEX_KINDS, "hnsw, shortened", "ivf-pq, shortened", "exact, half", "ivf-pq, half")


def plan_of(way, num_items=ITEMS, width=16):
    """The standard plan of a kind, or of a kind that compares most of each vector first and all of it after."""
    kind, _, how = way.partition(", ")
    most = width * 3 // 4
    plan = standard(kind, num_items, width, prefixes=[most])
    return plan.model_copy(update={"prefix": most, "oversampling": 8}) if how == "shortened" else plan


def kept(way, vectors):
    """The vectors as an index of this sort keeps them."""
    return HalfVectors(vectors.astype(np.float16)) if way.endswith(", half") else vectors


@functools.cache
def built(way, space="clustered"):
    return ItemIndex.build(kept(way, SPACES[space][0]), plan_of(way))


@pytest.fixture
def by_partitions(monkeypatch):
    """Small catalogues are searched as large ones are."""
    monkeypatch.setattr(index_module, "_SCANNED_NUMBERS", 0)
    monkeypatch.setattr(partitions_module, "_FIRST_ROUND", 64)


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
def test_returns_exactly_the_best_allowed_items(data, num_items, k, num_users):
    vectors = unit_vectors(num_items, width=4, seed=num_items)
    queries = unit_vectors(max(1, num_users), width=4, seed=7)[:num_users]
    excluded = [data.draw(st.lists(st.integers(0, num_items - 1), max_size=150)) for _ in range(num_users)]
    hits = ItemIndex.build(vectors).search(queries, k, ragged(excluded))
    assert len(hits.offsets) == num_users + 1
    for user in range(num_users):
        assert hits.of(user)[0].tolist() == by_hand(vectors, queries[user], k, excluded[user])


@pytest.mark.parametrize("num_excluded", [0, 5, 100, 1500, 2500, 2999, 3000])
def test_exclusions_never_make_an_answer_short(num_excluded):
    vectors, query = unit_vectors(3000), unit_vectors(1, seed=1)
    # The worst case: what is excluded is what would have come first.
    best_first = np.argsort(-(vectors @ query[0]))
    excluded = best_first[:num_excluded]
    rows, _ = ItemIndex.build(vectors).search(query, 10, ragged([excluded])).of(0)
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
    together = index.search(queries, 25, ragged(excluded))
    for user in range(40):
        alone = index.search(queries[user : user + 1], 25, ragged([excluded[user]])).of(0)
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
    rows, _ = ItemIndex(vectors, RunsDry(), IndexConfig()).search(query, 10).of(0)
    assert rows.tolist() == by_hand(vectors, query[0], 10, [])


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("k", [10, 100])
def test_every_kind_finds_nearly_all_of_the_best(kind, space, k):
    index, (_, queries) = built(kind, space), SPACES[space]
    share = index.search(queries, k).share_of(index.scan(queries, k))
    assert share >= (1 if index.is_exact else FLOORS[space])


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("k", [0, 1, 100, 1999, 2500, ITEMS, 5000])
def test_every_kind_returns_as_many_as_there_are_each_once_and_in_order(kind, k):
    index, queries = built(kind), SPACES["clustered"][1]
    for asked in (queries[:3], queries[:1]):
        hits = index.search(asked, k)
        for user in range(len(asked)):
            rows, scores = hits.of(user)
            assert len(set(rows.tolist())) == len(rows) == min(k, ITEMS)
            assert ((rows >= 0) & (rows < ITEMS)).all()
            assert (np.diff(scores) <= 0).all()
            true = index.vectors[rows] @ asked[user]
            # The worst of a level, and what scores like it, stand at the head of the next.
            first = FIRST_LEVEL - 1
            np.testing.assert_allclose(scores[:first], true[:first], atol=1e-6)
            # What only a deeper search found counts as no better than what was found before.
            np.testing.assert_allclose(scores, np.minimum.accumulate(true), atol=1e-6)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("num_excluded", [5, 300, 3500, 3995, ITEMS])
def test_every_kind_leaves_out_what_is_excluded_and_still_returns_all_it_can(kind, num_excluded):
    index, (vectors, queries) = built(kind), SPACES["clustered"]
    best_first = np.argsort(-(queries[:3] @ vectors.T), axis=1)
    excluded = ragged(best_first[:, :num_excluded])
    hits, true = index.search(queries[:3], 10, excluded), index.scan(queries[:3], 10, excluded)
    np.testing.assert_array_equal(np.diff(hits.offsets), min(10, ITEMS - num_excluded))
    for user in range(3):
        assert not np.isin(hits.of(user)[0], best_first[user, :num_excluded]).any()
    assert hits.share_of(true) >= 0.9


@pytest.mark.parametrize("kind", WAYS[1:])
def test_whoever_has_seen_more_than_the_deepest_level_is_answered_exactly_at_once(kind, monkeypatch):
    index, (vectors, queries) = built(kind), SPACES["clustered"]
    seen = ragged([np.argsort(-(vectors @ query))[:2500] for query in queries[:2]])
    expected = index.scan(queries[:2], 10, seen)
    monkeypatch.setattr(ItemIndex, "_fetch", None)  # the index is not asked in vain
    hits = index.search(queries[:2], 10, seen)
    for user in range(2):
        np.testing.assert_array_equal(hits.of(user)[0], expected.of(user)[0])


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("num_excluded", [100, 200])
def test_exclusions_that_a_user_does_not_like_give_one_order_alone_and_in_a_batch(kind, num_excluded):
    vectors, queries = SPACES["isotropic"]
    excluded = [np.argsort(vectors @ query)[:num_excluded] for query in queries[:8]]
    together = built(kind, "isotropic").search(queries[:8], 60, ragged(excluded))
    for user, seen in enumerate(excluded):
        alone = built(kind, "isotropic").search(queries[user : user + 1], 60, ragged([seen])).of(0)
        np.testing.assert_array_equal(alone[0], together.of(user)[0])


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.1, 0.29, 0.4, 0.9, 0.9995, 1])
def test_every_kind_finds_as_many_allowed_items_as_there_are_at_every_selectivity(kind, space, share, by_partitions):
    index, (_, queries) = built(kind, space), SPACES[space]
    allowed = some_allowed(ITEMS, share)
    floor = 1 if index.is_exact else 0.98 if share < 0.3 else FLOORS[space]
    # Those who ask one by one are answered otherwise than many at once.
    for asked in [queries, *(queries[user : user + 1] for user in range(5))]:
        hits, true = (search(asked, 20, allowed=allowed) for search in (index.search, index.scan))
        np.testing.assert_array_equal(np.diff(hits.offsets), min(20, len(allowed)))
        assert allowed.mask[hits.rows].all()
        assert hits.share_of(true) >= (floor if len(asked) > 1 else 0.7)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_a_filter_that_lets_through_only_what_a_user_likes_or_dislikes_is_no_harder(
    kind, nearest, share, by_partitions
):
    index, (vectors, queries) = built(kind), SPACES["clustered"]
    scores = vectors @ queries[0]
    edge = np.quantile(scores, 1 - share if nearest else share)
    allowed = AllowedItems(scores > edge if nearest else scores < edge)
    found, true = (search(queries[:1], 50, allowed=allowed) for search in (index.search, index.scan))
    assert len(found.rows) == 50
    assert found.share_of(true) >= 0.96


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7])
def test_filters_and_exclusions_work_together(kind, share, by_partitions):
    index, (vectors, queries) = built(kind), SPACES["clustered"]
    allowed = some_allowed(ITEMS, share)
    best_first = np.argsort(-(queries[:4] @ vectors.T), axis=1)
    # What would come first among the allowed, all of the allowed but three, half of everything, and nothing.
    firsts = [[row for row in best_first[user] if allowed.mask[row]] for user in range(4)]
    excluded = [firsts[0][:40], firsts[1][3:], best_first[2][: ITEMS // 2], []]
    for users in [[0, 1, 2, 3], [0], [1], [2], [3]]:
        some = ragged([excluded[user] for user in users])
        hits, true = (search(queries[users], 10, some, allowed=allowed) for search in (index.search, index.scan))
        np.testing.assert_array_equal(hits.offsets, true.offsets)
        for place, user in enumerate(users):
            rows = hits.of(place)[0]
            assert allowed.mask[rows].all()
            assert not np.isin(rows, excluded[user]).any()
            assert len(rows) == (3 if user == 1 else 10)
        assert hits.share_of(true) >= 0.9


@pytest.mark.parametrize("kind", WAYS)
def test_the_same_vectors_give_the_same_index(kind, tmp_path):
    vectors = SPACES["clustered"][0]
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ItemIndex.build(kept(kind, vectors), plan_of(kind)).save(tmp_path / name / "items.faiss")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", WAYS)
def test_a_saved_index_of_any_kind_answers_as_before(kind, tmp_path, by_partitions):
    (_, queries), index = SPACES["clustered"], built(kind)
    index.save(tmp_path / "items.faiss")
    loaded = loaded_from(tmp_path, index.vectors, index, index.partitions)
    assert (loaded.plan, loaded.is_exact, loaded.num_bytes) == (index.plan, index.kind == "exact", index.num_bytes)
    for allowed in (None, some_allowed(ITEMS, 0.1), some_allowed(ITEMS, 0.6)):
        for asked in (queries, queries[:1]):
            found, again = (one.search(asked, 10, allowed=allowed) for one in (index, loaded))
            np.testing.assert_array_equal(found.rows, again.rows)
            np.testing.assert_array_equal(found.scores, again.scores)


@pytest.mark.parametrize("kind", WAYS)
def test_an_index_says_what_memory_it_takes_beside_the_vectors(kind, tmp_path):
    index = built(kind)
    index.save(tmp_path / "items.faiss")
    if index.partitions is not None:
        index.partitions.save(tmp_path / "partitions.safetensors")
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    order_of_partitions = 0 if index.is_exact else 4 * ITEMS
    assert index.num_bytes == pytest.approx(on_disk + order_of_partitions, rel=0.01)


@pytest.mark.parametrize("kind", WAYS[1:])
@pytest.mark.parametrize("width", [5, 17])
def test_vectors_of_an_odd_width_can_be_indexed(kind, width):
    index = ItemIndex.build(kept(kind, clustered_vectors(1200, width)), plan_of(kind, 1200, width))
    queries = clustered_vectors(20, width, seed=1)
    assert index.search(queries, 10).share_of(index.scan(queries, 10)) >= 0.9


@pytest.mark.parametrize("kind", WAYS)
def test_a_catalogue_of_copies_can_be_indexed(kind):
    vectors = np.repeat(unit_vectors(3), 500, axis=0)
    hits = ItemIndex.build(vectors, plan_of(kind, 1500)).search(vectors[:2], 20)
    np.testing.assert_allclose(hits.scores, 1, atol=1e-6)
    np.testing.assert_array_equal(np.diff(hits.offsets), 20)


@pytest.mark.parametrize("kind", INDEX_KINDS[1:])
def test_few_items_are_compared_rather_than_indexed(kind):
    with pytest.raises(DataError, match=f"--kind {kind}: expected at least 1,000 items, found 999; choose exact"):
        ItemIndex.build(unit_vectors(999), kind)


@pytest.mark.parametrize(("prefix", "oversampling"), [(4, 1), (4, 20), (12, 2)])
def test_what_the_first_numbers_let_through_is_ranked_by_all_of_them(prefix, oversampling):
    vectors, queries = SPACES["clustered"][0], SPACES["clustered"][1][:10]
    index = ItemIndex.build(vectors, IndexConfig(kind="matryoshka", prefix=prefix, oversampling=oversampling))
    hits = index.search(queries, 10)
    for user, query in enumerate(queries):
        beginnings = vectors[:, :prefix] / np.linalg.norm(vectors[:, :prefix], axis=1, keepdims=True)
        through = np.argsort(-(beginnings @ query[:prefix]))[: FIRST_LEVEL * oversampling]
        assert hits.of(user)[0].tolist() == by_hand(vectors, query, 10, np.setdiff1d(np.arange(ITEMS), through))


def test_a_vector_that_begins_with_zeros_is_found_where_all_is_looked_at():
    vectors = unit_vectors(1000)
    vectors[5] = 0
    vectors[5, -1] = 1
    index = ItemIndex.build(vectors, IndexConfig(kind="matryoshka", prefix=4, oversampling=100))
    assert index.search(vectors[5:6], 10).of(0)[0].tolist() == by_hand(vectors, vectors[5], 10)


def test_an_index_of_another_prefix_is_refused(tmp_path):
    vectors, index = SPACES["clustered"][0], built("matryoshka")
    index.save(tmp_path / "items.faiss")
    with pytest.raises(ValueError, match=r"has 4000 vectors of dimension 12, the catalogue \(4000, 8\)"):
        ItemIndex.load(tmp_path / "items.faiss", vectors, index.plan.model_copy(update={"prefix": 8}))


def test_more_effort_finds_more():
    index, (_, queries) = built("ivf", "isotropic"), SPACES["isotropic"]
    true = index.scan(queries, 5)
    shares = [
        index.with_effort(index.plan.model_copy(update={"nprobe": probes})).search(queries, 5).share_of(true)
        for probes in (1, 4, 16, 64, index.plan.nlist)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.3
    assert shares[-1] == 1


def test_an_index_is_not_searched_as_another_kind():
    with pytest.raises(AssertionError, match="differs in build parameters from ivf"):
        built("ivf").with_effort(standard("hnsw", ITEMS, 16))


def test_partitions_can_be_shared_by_several_kinds():
    vectors, queries = SPACES["clustered"]
    partitions = kmeans(vectors, 128)
    for kind in ("ivf", "ivf-sq8", "ivf-pq"):
        index = ItemIndex.build(vectors, kind, partitions)
        assert index.partitions is partitions
        np.testing.assert_array_equal(index.search(queries, 10).rows, built(kind).search(queries, 10).rows)


@pytest.mark.parametrize("kind", ["exact", "ivf", "ivf-sq8", "ivf-pq", "sq8"])
def test_an_index_built_in_blocks_is_the_one_that_faiss_builds_at_once(kind, monkeypatch, tmp_path):
    vectors = SPACES["clustered"][0]
    partitions = None if kind in ("exact", "sq8") else kmeans(vectors, 64)
    plan = plan_of(kind).model_copy(update={"nlist": 64 if partitions else 0})
    at_once = index_module._empty(16, plan, partitions)
    at_once.train(vectors)
    at_once.add(vectors)
    monkeypatch.setattr(vectors_module, "BLOCK", 700)
    index = ItemIndex.build(vectors, plan, partitions)
    for name, one in (("blocks", index), ("at_once", ItemIndex(vectors, at_once, plan, partitions))):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name / "items.faiss")
    for path in (tmp_path / "blocks").iterdir():
        assert path.read_bytes() == (tmp_path / "at_once" / path.name).read_bytes()


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left on device"):
        built("exact").save(Path("/dev/full"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-64]), "its arrays are not what the file is made of"),
        (lambda file: file.write_bytes(b"x" * 99), "a header of"),
        (lambda file: save_arrays(file, {"lists": np.zeros(9, np.uint8), "sizes": np.ones(3, np.int64)}), "3,"),
        (lambda file: save_lists_of(file, 3000), "lists of 3000 items, expected 4000"),
        (lambda file: resized(file, [5000, -1000]), "lists of"),
        (lambda file: resized(file, [4000, 0]), "bytes, expected"),
    ],
)
def test_a_file_of_lists_that_does_not_fit_is_refused(damage, message, tmp_path):
    index = built("ivf-pq")
    index.save(tmp_path / "items.faiss")
    damage(tmp_path / LISTS)
    with pytest.raises(ValueError, match=message):
        loaded_from(tmp_path, index.vectors, index)


def test_an_index_without_its_lists_is_refused(tmp_path):
    index = built("ivf-pq")
    index.save(tmp_path / "items.faiss")
    (tmp_path / LISTS).unlink()
    with pytest.raises(ValueError, match="it lacks row 0"):
        loaded_from(tmp_path, index.vectors, index)


def save_lists_of(path, num_items):
    """Write the lists of an index of fewer items."""
    (path.parent / "other").mkdir()
    plan = built("ivf-pq").plan
    ItemIndex.build(SPACES["clustered"][0][:num_items], plan).save(path.parent / "other" / "items.faiss")
    (path.parent / "other" / LISTS).replace(path)


def resized(path, first):
    """Say that the first lists have other sizes."""
    arrays = {name: array.copy() for name, array in mapped(path, "U8", "I64")[0].items()}
    arrays["sizes"][:] = 0
    arrays["sizes"][: len(first)] = first
    save_arrays(path, arrays)


def test_processes_share_the_memory_of_a_loaded_index(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "_SMALL", 0)
    vectors = SPACES["clustered"][0]
    built("ivf-pq").save(tmp_path / "items.faiss")
    loaded = loaded_from(tmp_path, vectors, built("ivf-pq"))
    with open("/proc/self/maps") as maps:  # noqa: PTH123 (not a file of ours)
        places = maps.read()
    assert str(tmp_path / "items.faiss") in places
    assert str(tmp_path / LISTS) in places
    assert len(loaded) == ITEMS


def test_a_loaded_index_whose_partitions_are_of_another_catalogue_is_refused(tmp_path):
    built("ivf").save(tmp_path / "items.faiss")
    partitions = kmeans(unit_vectors(1500), 4)
    with pytest.raises(ValueError, match="its partitions have 1500 items, the catalogue 4000"):
        ItemIndex.load(tmp_path / "items.faiss", SPACES["clustered"][0], built("ivf").plan, partitions)


def test_vectors_that_are_not_of_length_one_are_refused():
    vectors = unit_vectors(10)
    vectors[4] *= 2
    with pytest.raises(ValueError, match="expected vectors of length 1, found length 2 at row 4"):
        ItemIndex.build(vectors)
    vectors[4] = np.nan
    with pytest.raises(ValueError, match="found length nan at row 4"):
        check_unit_length(vectors)


def test_an_item_of_which_nothing_is_known_is_near_to_nobody():
    vectors = unit_vectors(10)
    vectors[4] = 0
    found = ItemIndex.build(vectors).search(unit_vectors(1, seed=3), 10)
    assert found.scores[found.rows.tolist().index(4)] == 0
    with pytest.raises(ValueError, match="found length 0 at row 4"):
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
    with pytest.raises(ValueError, match=r"has 500 vectors of dimension 16, the catalogue \(400, 16\)"):
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
    with pytest.raises(ValueError, match='device = "cuda": FAISS finds no GPU; use "cpu"'):
        index.to("cuda")


def test_a_kind_that_has_no_gpu_version_stays_or_says_so(monkeypatch):
    monkeypatch.setattr(index_module.faiss, "get_num_gpus", lambda: 1)
    index = built("hnsw")
    assert index.to("auto") is index
    with pytest.raises(
        ValueError, match=r"kind hnsw can only search on a CPU; .* --kind exact, matryoshka, ivf or ivf-sq8"
    ):
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


def test_on_a_gpu_a_search_probes_no_more_lists_than_it_allows():
    """FAISS's GPU indexes refuse more than 2,048 probes, as a deep search in many lists would have."""
    plan = IndexConfig(kind="ivf", nlist=4000, nprobe=1000)
    probes = [_effort(plan, 1024, on_gpu=on_gpu)["params"].nprobe for on_gpu in (False, True)]
    assert probes == [4000, 2048]


@pytest.mark.parametrize("kind", ["exact", "ivf", "ivf-sq8"])
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda-shards"])
def test_several_gpus_answer_as_a_cpu(kind, device, monkeypatch, tmp_path):
    """GPUs are stood in for by FAISS's indexes for CPUs: copies of the index, or its parts in FAISS's own shards."""
    (_, queries), index = SPACES["clustered"], built(kind)
    index.save(tmp_path / "items.faiss")
    copies, parts = [], []

    def copied(_, gpu, index):
        copies.append(gpu)
        return faiss.clone_index(index)

    def divided(index, options):
        assert options.shard
        shards = faiss.IndexShards(16, True, kind == "exact")
        for first in range(0, ITEMS, 1000):
            part = faiss.read_index(str(tmp_path / "items.faiss"))
            kept = faiss.IDSelectorRange(first, first + 1000)
            part.remove_ids(faiss.IDSelectorNot(kept))
            shards.add_shard(part)
            parts.append(part)
        return shards

    monkeypatch.setattr(index_module.faiss, "get_num_gpus", lambda: 4)
    monkeypatch.setattr(index_module.faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(index_module.faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(index_module.faiss, "index_cpu_to_gpu", copied, raising=False)
    monkeypatch.setattr(index_module.faiss, "index_cpu_to_all_gpus", divided)
    moved = index.to(device)
    assert copies == ([] if device == "cuda-shards" else [0, 1, 2, 3])
    for allowed in (None, some_allowed(ITEMS, 0.5)):
        found, expected = (one.search(queries, 20, allowed=allowed) for one in (moved, index))
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)


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
