"""What was found before anybody asked, beside what is found when somebody does."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load_file, save_file

from serving.http.app import create_app
from serving.jobs.precompute import precompute_top_k
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.rules import Rules
from serving.search.faiss_index import ItemIndex
from serving.search.index_config import IndexConfig
from serving.search.tuning import Chosen
from serving.snapshot.manifest import IndexManifest
from serving.snapshot.snapshot import Snapshot
from tests.serving.doubles import FakeBundle, country, make_features, make_tables
from towers.bundle.manifest import BundleError
from towers.cli.main import main

DEPTH, MANY = 25, 400
PEOPLE = [*range(100, 112), "103", "nobody", UserProfile(["item-001"]), UserProfile()]


def many_tables():
    """Twelve people and 400 items, some of them copies in other words; 110 did nothing, 111 nearly everything."""
    rng = np.random.default_rng(0)
    items = [f"item-{number:03d}" for number in range(MANY)]
    histories = {user: rng.choice(items, size=rng.integers(1, 60), replace=False).tolist() for user in range(100, 110)}
    histories[111] = items[:390]
    users = pd.DataFrame({"user_id": list(range(100, 112)), "country": [*["de", "fr"] * 4, None, None, None, "de"]})
    return make_tables(histories, items, titles=[f"Thing {item}" for item in items], users=users)


def snapshot_of(tables, plan=None, **features):
    bundle = FakeBundle("bundle", make_features(user=country(), **features))

    def chosen(vectors, asking):
        return Chosen(ItemIndex.build(vectors, plan or IndexConfig()), 1.0, None, len(asking))

    return bundle, Snapshot.build(bundle, tables, choose=chosen)


def listed(bundle, snapshot, depth=DEPTH):
    return snapshot.with_precomputed(precompute_top_k(Recommender(bundle, snapshot), depth))


def both(bundle, snapshot):
    """Who looks up, and who searches."""
    return Recommender(bundle, listed(bundle, snapshot)), Recommender(bundle, snapshot)


LOOKING, SEARCHING = both(*snapshot_of(many_tables()))
AGAIN, SEARCHING_AGAIN = both(*snapshot_of(many_tables(), recommend_seen=True))


@given(
    st.sampled_from([(LOOKING, SEARCHING), (AGAIN, SEARCHING_AGAIN)]),
    st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=5),
    st.integers(1, DEPTH + 3),
    st.integers(0, DEPTH + 3),
)
@settings(max_examples=80, deadline=None)
def test_what_is_looked_up_is_what_an_exact_search_finds(pair, whom, k, offset):
    """To the last bit of each score; of people unknown and described, too, who stand in no list."""
    looking, searching = pair
    assert looking.recommend_many(whom, RecommendRequest(k, offset)) == searching.recommend_many(
        whom, RecommendRequest(k, offset)
    )


@given(
    st.sampled_from(PEOPLE),
    st.integers(1, 12),
    st.integers(0, 5),
    st.fixed_dictionaries(
        {
            "where": st.sampled_from([(), LOOKING.state.filters.parse({"title": {"not": ["Thing item-007"]}})]),
            "exclude": st.sampled_from([(), ("item-001", "item-002")]),
            "rules": st.sampled_from([None, Rules(diversity=0.4), Rules(pin=["item-300"])]),
            "reasons": st.sampled_from([0, 2]),
        }
    ),
)
@settings(max_examples=30, deadline=None)
def test_what_is_asked_beside_a_page_of_the_best_is_heard(who, k, offset, wishes):
    wanted = RecommendRequest(k, offset, **wishes)
    assert LOOKING.recommend(who, wanted) == SEARCHING.recommend(who, wanted)


@pytest.mark.parametrize(
    "plan", [IndexConfig(kind="hnsw", m=4, ef_search=8), IndexConfig(kind="ivf", nlist=20, nprobe=2)]
)
def test_of_an_index_that_may_miss_something_it_is_the_beginning_of_what_it_finds(plan):
    bundle, snapshot = snapshot_of(many_tables(), plan)
    looking, searching = both(bundle, snapshot)
    hits, is_fallback = searching.recommend_rows(np.arange(len(searching.state.users)), DEPTH)
    for user, user_id in enumerate(searching.state.users.ids):
        if not is_fallback[user] and user_id != 111:
            rows, scores = hits.of(user)
            found = [
                (looking.state.items.row(item.item_id), item.score) for item in looking.recommend(user_id, 10).items
            ]
            assert found == list(zip(rows[:10].tolist(), scores[:10].tolist(), strict=True))


def stages(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [
        sample
        for family in families
        for sample in family.samples
        if sample.name == "towers_stage_duration_seconds_count"
    ]
    return {sample.labels["stage"]: sample.value for sample in samples}


def test_nothing_is_searched_for_what_is_listed_and_no_list_is_read_beyond_its_end():
    client = create_app(LOOKING).test_client()
    for query in ("k=10", "k=5&offset=20", f"k={DEPTH}"):
        assert client.get(f"/recommendations/103?{query}").status_code == 200
    assert stages(client) == {"serialise": 3}
    assert len(client.get(f"/recommendations/103?k={DEPTH + 1}").json["items"]) == DEPTH + 1
    assert client.get("/recommendations/110").json["fallback"] == "popular"
    assert len(client.get("/recommendations/111?k=15").json["items"]) == 10
    assert stages(client)["search"] == 2


def test_lists_that_were_made_with_other_wishes_are_left_aside():
    bundle, snapshot = snapshot_of(many_tables())
    other = Recommender(bundle, listed(bundle, snapshot), recommend_seen=True)
    assert other.recommend(103, 20) == Recommender(bundle, snapshot, recommend_seen=True).recommend(103, 20)
    assert other.recommend(103, 20) != SEARCHING.recommend(103, 20)


@pytest.fixture
def saved(tmp_path):
    """A bundle with shortlists in its index, and the folder of that."""
    bundle, snapshot = snapshot_of(many_tables())
    bundle = FakeBundle(tmp_path / "run", bundle.config.features)
    return bundle, listed(bundle, snapshot).save(bundle.path)


def test_lists_come_back_from_the_disk_in_memory_that_processes_share(saved):
    bundle, folder = saved
    again = Snapshot.open(bundle)
    np.testing.assert_array_equal(again.precomputed.rows, LOOKING.snapshot.precomputed.rows)
    np.testing.assert_array_equal(again.precomputed.scores, LOOKING.snapshot.precomputed.scores)
    assert again.manifest.precomputed == LOOKING.snapshot.manifest.precomputed
    assert again.manifest.precomputed.depth == DEPTH
    with open("/proc/self/maps") as maps:  # noqa: PTH123 (not a file of ours)
        assert str(folder / "precomputed.safetensors") in maps.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lists: {name: array[:-1] for name, array in lists.items()}, r"of users \[11, 12\]"),
        (
            lambda lists: {name: np.ascontiguousarray(array[:, :3]) for name, array in lists.items()},
            "precomputed recommendations 25 deep",
        ),
        (lambda lists: {**lists, "scores": lists["scores"][:-1]}, "precomputed recommendations 25 deep"),
        (lambda lists: {**lists, "rows": lists["rows"].astype(np.int64)}, "rows is of type I64, expected F32 or I32"),
    ],
    ids=["a user less", "not so deep", "a line of scores less", "another type"],
)
def test_lists_that_do_not_fit_are_refused(saved, change, message):
    bundle, folder = saved
    lists = {name: array.copy() for name, array in load_file(folder / "precomputed.safetensors").items()}
    save_file(change(lists), folder / "precomputed.safetensors")
    seal = IndexManifest.model_validate_json((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    seal.write(folder)
    with pytest.raises(BundleError, match=f"do not fit together.*{message}"):
        Snapshot.open(bundle)


@pytest.fixture
def runs(pristine, tmp_path, monkeypatch):
    shutil.copytree(pristine / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def sealed(runs, name="model"):
    return json.loads((runs / name / "index" / "manifest.json").read_text())["precomputed"]


def test_the_index_lists_as_many_as_it_is_told(runs, capsys):
    assert run("index", "runs/model", "--precompute", 7) == 0
    assert "7 precomputed recommendations per user" in capsys.readouterr().out
    assert sealed(runs) == {"depth": 7, "seen_items": "exclude"}
    assert run("index", "runs/model", "--precompute", 0) == 0
    assert "precomputed" not in capsys.readouterr().out
    assert sealed(runs) is None
    assert not (runs / "model" / "index" / "precomputed.safetensors").exists()


def test_untold_it_lists_a_hundred_where_that_is_soon_done(runs, capsys, monkeypatch):
    assert run("index", "runs/model") == 0
    assert sealed(runs)["depth"] == 100
    for limit in ("_MAX_LISTED_BYTES", "_MAX_COMPARED"):
        with monkeypatch.context() as patch:
            patch.setattr(f"serving.jobs.build_index.{limit}", 100)
            assert run("index", "runs/model") == 0
            assert "--precompute 100\n" in capsys.readouterr().out
            assert sealed(runs) is None


def test_a_model_that_looks_at_the_clock_has_no_lists(runs, capsys):
    assert run("index", "runs/timed") == 0
    assert sealed(runs, "timed") is None
    assert run("index", "runs/timed", "--precompute", 10) == 2
    assert "--precompute 10: recommendations of this model depend on the time of the request" in capsys.readouterr().err
