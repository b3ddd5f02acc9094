"""The learned ranker: from a bundle's held-out questions to a folder that puts its shortlists into a better order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.errors import DataError
from features.tables.tables import read_tables
from tests.serving.conftest import write_untrained
from towers.bundle.bundle import ModelBundle
from towers.bundle.manifest import BundleError, sign_bundle
from towers.bundle.signature import make_key, read_signing_key, signature_of
from towers.bundle.trust import Trust
from towers.rerankers.item_statistics import ItemStatistics
from towers.rerankers.learned import LearnedRanker, ListDropout
from towers.rerankers.manifest import FOLDER, NAME, open_ranker, read_ranker_manifest
from towers.rerankers.opening import ItemInputs
from towers.rerankers.reranker import Deadline, OutOfTimeError, order_of
from training.config import RunConfig
from training.evaluation.metrics import ndcg_at
from training.rerankers import learned as ranking
from training.rerankers.candidates import shortlists
from training.rerankers.examples import RankingDataset
from training.rerankers.learned import fit_ranker
from training.tasks.held_out import HeldOut
from training.tasks.protocols import early_stopping_split
from training.tasks.train_ranker import GATE_LEVEL, RankerChoice, TrainedRanker, train_bundle_ranker

SETTINGS = {
    "features": {
        "interactions": "clicks.csv",
        "items": "products.csv",
        "columns": {"user_id": "user", "item_id": "product", "timestamp": "time"},
        "max_history": 20,
        "item": {"item_id": {"kind": "id"}, "colour": {"kind": "category"}},
    },
    "towers": {"embedding_dim": 8, "num_layers": 1, "num_heads": 1, "time_bias": True},
    "training": {"track": False},
}
NUM_ITEMS, NUM_USERS = 60, 150


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows nothing, of the shop."""
    folder = tmp_path_factory.mktemp("ranking")
    write_shop(folder)
    write_untrained(folder / "runs" / "one", folder, SETTINGS)
    return folder / "runs" / "one"


def write_shop(folder: Path) -> None:
    """Write the tables of a shop where people take what comes next in the catalogue."""
    rng = np.random.default_rng(3)
    colours = rng.choice(["red", "green"], size=NUM_ITEMS)
    pd.DataFrame({"product": range(NUM_ITEMS), "colour": colours}).to_csv(folder / "products.csv", index=False)
    starts, lengths = rng.integers(0, NUM_ITEMS, NUM_USERS), rng.integers(5, 12, NUM_USERS)
    users = np.repeat(np.arange(NUM_USERS), lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    clicks = pd.DataFrame({"user": users, "product": (starts[users] + places) % NUM_ITEMS})
    clicks["time"] = 1_700_000_000 + rng.integers(0, 10**6, NUM_USERS)[users] + 60 * places
    clicks.to_csv(folder / "clicks.csv", index=False)


@pytest.fixture(scope="module")
def trained(bundle_path: Path) -> Path:
    """The same with a ranker."""
    copy = bundle_path.with_name("trained")
    shutil.copytree(bundle_path, copy)
    train_bundle_ranker(copy, RankerChoice(num_candidates=40))
    return copy


def questions_of(bundle: ModelBundle):
    tables = read_tables(bundle.config.features, bundle.tables_folder)
    sequences = tables.interactions.sequences(tables.catalog)
    config = RunConfig(features=bundle.config.features, towers=bundle.config.towers)
    return tables, early_stopping_split(config, sequences, len(tables.catalog))


def test_a_shortlist_is_what_the_whole_order_begins_with_and_knows_nothing_of_the_answer(bundle_path: Path):
    bundle = ModelBundle.open(bundle_path)
    tables, split = questions_of(bundle)
    vectors = bundle.encode_items(tables.catalog)
    found = list(shortlists(bundle, tables, split.validation, 40))
    assert len(found) == len(split.validation) == NUM_USERS
    for question, (shortlist, is_answer) in enumerate(found):
        history = split.validation.history.items_of(question)
        target = int(split.validation.target_rows[question])
        scores = vectors @ shortlist.user_vector
        scores[history] = -np.inf
        expected = sorted(range(NUM_ITEMS), key=lambda row: (-scores[row], row))[:40]
        np.testing.assert_allclose(scores[shortlist.rows], scores[expected], atol=1e-6)
        assert shortlist.rows[is_answer].tolist() == [target] * (target in shortlist.rows)
        assert shortlist.history_rows.tolist() == history.tolist()
        assert target not in shortlist.history_rows
        assert shortlist.history_times is not None
        assert shortlist.history_times.max() < shortlist.now == split.validation.times[question]
        np.testing.assert_array_equal(shortlist.history_vectors, vectors[history])


def test_a_ranker_learns_what_the_model_does_not_know(trained: Path, capsys: pytest.CaptureFixture[str]):
    bundle = ModelBundle.open(trained)
    sealed = read_ranker_manifest(bundle)
    assert sealed.judgement is not None
    assert sealed.judgement.ndcg_after > 2 * sealed.judgement.ndcg_before
    assert 0 < sealed.judgement.gain_low < sealed.judgement.ndcg_after - sealed.judgement.ndcg_before
    assert 0 < sealed.judgement.milliseconds <= sealed.judgement.milliseconds_p99
    assert (sealed.kind, sealed.num_candidates, sealed.judgement.num_questions) == ("learned", 40, NUM_USERS)
    tables, split = questions_of(bundle)
    facts = ItemStatistics.of(split.train, tables.catalog, bundle.config.features.item)
    ranker = LearnedRanker.open(bundle, *open_ranker(bundle), ItemInputs(facts))
    assert ranker is not None
    firsts = []
    for shortlist, is_answer in shortlists(bundle, tables, split.validation, 40):
        if is_answer.any():
            order = order_of(ranker.scores(shortlist, Deadline(None)))
            assert sorted(order.tolist()) == list(range(len(shortlist)))
            firsts.append(int(np.flatnonzero(is_answer[order])[0]) < 3)
    assert np.mean(firsts) > 0.5


def test_it_says_what_it_gains_and_the_same_seed_teaches_the_same(
    trained: Path, bundle_path: Path, capsys: pytest.CaptureFixture[str]
):
    again = bundle_path.with_name("again")
    shutil.copytree(bundle_path, again)
    train_bundle_ranker(again, RankerChoice(num_candidates=40))
    said = capsys.readouterr().out
    assert f"{NUM_USERS} held-out queries, " in said
    assert "95 % interval +" in said
    assert f"towers index {again}" in said
    first, second = (json.loads((path / FOLDER / NAME).read_text()) for path in (trained, again))
    assert first["files"] == second["files"]


def test_each_question_judges_a_member_that_did_not_learn_from_it(monkeypatch: pytest.MonkeyPatch):
    """Answers at random can be learned by heart, and then tell nothing of other questions."""
    rng = np.random.default_rng(0)
    is_answer = np.zeros((100, 20), dtype=bool)
    is_answer[np.arange(100), rng.integers(0, 20, 100)] = True
    features = rng.normal(size=(100, 20, 12)).astype(np.float32)
    dataset = RankingDataset(features, np.ones((100, 20), dtype=bool), is_answer, np.ones(100, dtype=np.int64))
    monkeypatch.setattr(ranking, "EPOCHS", 25)
    monkeypatch.setattr(ranking, "PATIENCE", 25)
    monkeypatch.setattr(ranking, "LEARNING_RATE", 5e-3)
    monkeypatch.setattr(ranking._FoldTrainer, "ndcg", judged_by_the_last)
    fitted = fit_ranker(dataset, 0)
    with torch.inference_mode():
        scores = torch.stack([fitted.network(torch.from_numpy(one)) for one in features]).numpy()
    chance = (1 / np.log2(2 + np.arange(10))).sum() / 20
    assert dataset.ndcg(np.arange(100), scores).mean() > 2 * chance
    assert fitted.after.mean() < 1.4 * chance


_ndcg = ranking._FoldTrainer.ndcg


def judged_by_the_last(pupil, member, judged):
    """Judge as always, a little better each time, so that nothing is stopped and the last weights are kept."""
    member.judgements = getattr(member, "judgements", 0) + 1
    return _ndcg(pupil, member, judged) + member.judgements * 10


def test_what_is_reported_on_noise_is_chance():
    """Answers at random: the best of many epochs looks better than chance on the queries that chose it, and is not."""
    found, num_written, num_runs = [], 0, 12
    for seed in range(num_runs):
        rng = np.random.default_rng(seed)
        is_answer = np.zeros((200, 20), dtype=bool)
        is_answer[np.arange(200), rng.integers(0, 20, 200)] = True
        features = rng.normal(size=(200, 20, 6)).astype(np.float32)
        dataset = RankingDataset(features, np.ones((200, 20), dtype=bool), is_answer, np.ones(200, dtype=np.int64))
        fitted = fit_ranker(dataset, seed)
        made = TrainedRanker(None, None, dataset, fitted.after, fitted.fold)  # type: ignore[arg-type]
        num_written += made.gain(dataset, GATE_LEVEL).low > 0
        found.append(fitted.after.mean())
    discounts = 1 / np.log2(2 + np.arange(10))
    chance = discounts.sum() / 20
    error = np.sqrt(((discounts**2).sum() / 20 - chance**2) / (200 * num_runs))
    assert np.mean(found) == pytest.approx(chance, abs=2.5 * error)
    assert num_written == 0


def test_no_query_judges_what_learned_from_it_or_was_stopped_by_it(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    is_answer = rng.random((100, 20)) < 0.1
    is_answer[:, 0] = True
    features = rng.normal(size=(100, 20, 3)).astype(np.float32)
    dataset = RankingDataset(features, np.ones((100, 20), dtype=bool), is_answer, is_answer.sum(axis=1))
    uses: dict[str, set[int]] = {}  # by member as it was stopped: the queries it learned from and was stopped by
    judged: dict[int, list[str]] = {query: [] for query in range(100)}

    def fit(trainer, member, fit_rows, left_out, seed):
        assert [len(fit_rows), *map(len, left_out)] == [60, 20, 20]
        for place, stops in enumerate(left_out):
            uses[f"{seed} {place}"] = {*fit_rows.tolist(), *stops.tolist()}
        return [{"name": f"{seed} {place}"} for place in range(2)]

    def scores(trainer, member, queries):
        for query in queries.tolist():
            judged[query].append(member.loaded)
        return np.zeros((len(queries), 20))

    monkeypatch.setattr(ranking._FoldTrainer, "fit", fit)
    monkeypatch.setattr(ranking._FoldTrainer, "scores", scores)
    monkeypatch.setattr(
        torch.nn.Sequential, "load_state_dict", lambda self, weights: setattr(self, "loaded", weights["name"])
    )
    fit_ranker(dataset, 0)
    assert len(uses) == 20
    for query, members in judged.items():
        assert len({*members}) == 4
        assert all(query not in uses[member] for member in members)


def test_one_user_more_does_not_change_who_was_held_out(tmp_path: Path):
    """Users who had been trained on would be ranked too well by the retriever."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 8)
    clicks = pd.DataFrame({"user": users, "product": np.concatenate([rng.permutation(60)[:8] for _ in range(200)])})
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    pd.DataFrame({"product": range(60), "colour": "red"}).to_csv(tmp_path / "products.csv", index=False)
    columns = {"user_id": "user", "item_id": "product"}
    settings = {
        **SETTINGS,
        "features": {**SETTINGS["features"], "columns": columns},
        "towers": {**SETTINGS["towers"], "time_bias": False},
    }
    write_untrained(tmp_path / "runs" / "one", tmp_path, settings)
    bundle = ModelBundle.open(tmp_path / "runs" / "one")
    before = HeldOut.of(bundle).questions().validation.history.user_ids
    one_more = pd.DataFrame({"user": -1, "product": range(8)})
    pd.concat([one_more, clicks]).to_csv(tmp_path / "clicks.csv", index=False)
    split = HeldOut.of(bundle).questions()
    assert split.validation.history.user_ids.tolist() == before.tolist()
    assert len(before) == 20
    assert not {*split.train.user_ids.tolist()} & {*before.tolist()}
    # A user of the bundle's validation who has gone is neither asked nor learned from; ids may have become texts.
    clicks = clicks[clicks["user"] != before[0]]
    clicks["user"] = clicks["user"].astype(str).replace("199", "199a")
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    left = HeldOut.of(bundle).questions().validation.history.user_ids
    assert {*left.tolist()} == {str(user) for user in before[1:]} - {"199"}


def test_a_bundle_that_does_not_say_who_was_held_out_is_refused(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tests.serving.conftest.validation_users_of", lambda *_: None)
    by_users = {**SETTINGS, "training": {"validation": "users", "track": False}}
    write_untrained(tmp_path / "silent", bundle_path.parents[1], by_users)
    with pytest.raises(DataError, match="does not say which users its training held out; train again"):
        train_bundle_ranker(tmp_path / "silent", RankerChoice(num_candidates=40))


def test_ndcg_is_that_of_the_metrics_answers_that_were_missed_included():
    rng = np.random.default_rng(1)
    is_there = np.arange(25) < rng.integers(12, 26, 50)[:, None]
    is_answer = (rng.random((50, 25)) < 0.1) & is_there
    missed = rng.integers(0, 3, 50)
    dataset = RankingDataset(np.zeros((50, 25, 1), np.float32), is_there, is_answer, is_answer.sum(axis=1) + missed)
    asked = np.flatnonzero(dataset.num_answers > 0)
    scores = rng.normal(size=(len(asked), 25))
    expected = []
    for question, given in zip(asked, scores, strict=True):
        order = sorted(np.flatnonzero(is_there[question]), key=lambda place: -given[place])
        ranks = [1 + order.index(place) for place in np.flatnonzero(is_answer[question])]
        ranks += [10**9] * int(missed[question])
        expected.append(ndcg_at(np.array(ranks), np.array([0, len(ranks)]), 10)[0])
    np.testing.assert_allclose(dataset.ndcg(asked, scores), expected)


def test_a_bundle_that_has_seen_all_answers_is_refused(bundle_path: Path):
    copy = bundle_path.with_name("refitted")
    write_untrained(copy, bundle_path.parents[1], {**SETTINGS, "training": {"refit": True, "track": False}})
    with pytest.raises(DataError, match=r"trained with `refit`.*--set training.refit=false"):
        train_bundle_ranker(copy, RankerChoice(num_candidates=40))


def test_too_few_answers_to_learn_from_are_refused(bundle_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "LEAST_QUESTIONS", 1000)
    with pytest.raises(DataError, match="expected at least 1000 queries with a target among the candidates"):
        train_bundle_ranker(bundle_path, RankerChoice(num_candidates=40))


def facts_of(bundle: ModelBundle) -> ItemStatistics:
    tables, split = questions_of(bundle)
    return ItemStatistics.of(split.train, tables.catalog, bundle.config.features.item)


def opened(bundle: ModelBundle) -> LearnedRanker:
    ranker = LearnedRanker.open(bundle, *open_ranker(bundle), ItemInputs(facts_of(bundle)))
    assert ranker is not None
    return ranker


def damaged(trained: Path, tmp_path: Path, **changes: object) -> ModelBundle:
    copy = tmp_path / "damaged"
    shutil.copytree(trained, copy)
    seal = copy / FOLDER / NAME
    seal.write_text(json.dumps(json.loads(seal.read_text()) | changes))
    return ModelBundle.open(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_digest": "0" * 64}, "trained with other weights"),
        ({"format_version": 9}, "expected ranker format 2, found 9"),
        ({"features": ["score"]}, "reads other features"),
        ({"kind": "oracle"}, "manifest.json is damaged"),
    ],
)
def test_a_ranker_that_does_not_belong_here_is_refused(trained: Path, tmp_path: Path, changes, message: str):
    bundle = damaged(trained, tmp_path, **changes)
    with pytest.raises(BundleError, match=f"{message}.*towers train-ranker"):
        opened(bundle)


def test_a_ranker_with_a_changed_byte_is_refused(trained: Path, tmp_path: Path):
    bundle = damaged(trained, tmp_path)
    weights = bundle.path / FOLDER / "ranker.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"ranker\.safetensors was changed after it was written"):
        opened(bundle)


def test_a_ranker_has_to_be_signed_where_its_bundle_has_to_be(trained: Path, tmp_path: Path):
    copy = tmp_path / "signed"
    shutil.copytree(trained, copy)
    trust = Trust(keys=make_key(tmp_path / "key"))
    sign_bundle(copy, read_signing_key(tmp_path / "key"))
    assert read_ranker_manifest(ModelBundle.open(copy, trust=trust)).kind == "learned"
    signature_of(copy / FOLDER / NAME).unlink()
    with pytest.raises(BundleError, match=r"ranker/manifest.json: not signed"):
        read_ranker_manifest(ModelBundle.open(copy, trust=trust))


def test_a_ranker_without_time_says_so(trained: Path):
    bundle = ModelBundle.open(trained)
    tables, split = questions_of(bundle)
    shortlist, _ = next(shortlists(bundle, tables, split.validation, 40))
    with pytest.raises(OutOfTimeError):
        opened(bundle).scores(shortlist, Deadline(0.0))


def test_dropout_leaves_the_same_units_to_all_candidates_of_a_list_and_keeps_the_mean():
    torch.manual_seed(0)
    dropout, units = ListDropout(0.25), torch.ones(500, 7, 16)
    kept = dropout(units)
    assert torch.equal(kept, kept[:, :1].expand(-1, 7, -1))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(dropout.eval()(units), units)
