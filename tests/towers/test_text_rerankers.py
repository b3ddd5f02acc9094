"""The rerankers that read texts, beside loops over the same models, and their patience."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.errors import DataError
from tests.tiny_models import WORDS, tiny_model
from towers.reranking import Deadline, OutOfTimeError, Reranker, Shortlist, order_of
from towers.text_rerankers import (
    CrossEncoderRanker,
    LateInteractionRanker,
    TokenVectors,
    mixed,
    open_cross_encoder,
)

pytest.importorskip("sentence_transformers", reason="the extra `text`")

NUM_ITEMS = 30


def make_texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 12))) for _ in range(NUM_ITEMS)]


TEXTS = make_texts()


def make_shortlist(rows: list[int], history: list[int]) -> Shortlist:
    vectors = np.eye(NUM_ITEMS, dtype=np.float32)
    return Shortlist(
        user_vector=vectors[0],
        history_rows=np.array(history, dtype=np.int64),
        history_vectors=vectors[np.maximum(np.array(history, dtype=np.int64), 0)],
        history_times=None,
        now=None,
        rows=np.array(rows, dtype=np.int64),
        vectors=vectors[np.maximum(rows, 0)],
        scores=np.linspace(0.9, 0.1, len(rows)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cross_encoder(bi_encoder: Path) -> Path:
    """A cross-encoder with random weights, on the transformer of the tiny model."""
    return write_cross_encoder(bi_encoder, num_labels=1)


def write_cross_encoder(bi_encoder: Path, num_labels: int) -> Path:
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    folder, bare = bi_encoder.parent / f"cross-{num_labels}", bi_encoder.parent / "bare"
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(bare, num_labels=num_labels)
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    AutoTokenizer.from_pretrained(bare).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(bi_encoder: Path) -> TokenVectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bi_encoder), device="cpu", local_files_only=True)
    return TokenVectors.of(model, TEXTS, most=8)


def test_late_interaction_is_maxsim_token_by_token(tokens: TokenVectors):
    shortlist = make_shortlist([4, 9, 2, 20, 11], [7, 3, 5, 6])
    found = LateInteractionRanker(tokens, num_read=2, share=1.0, batch=2).scores(shortlist, Deadline(None))

    def vectors_of(row: int) -> np.ndarray:
        return tokens.vectors[tokens.offsets[row] : tokens.offsets[row + 1]]

    asked = [*vectors_of(6), *vectors_of(5)]
    sums = [np.mean([max(float(one @ other) for other in vectors_of(row)) for one in asked]) for row in shortlist.rows]
    expected = (np.array(sums) - np.mean(sums)) / (np.std(sums) + 1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_vectors_of_tokens_are_those_of_the_model_cut_to_so_many(bi_encoder: Path, tokens: TokenVectors):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bi_encoder), device="cpu", local_files_only=True)
    assert np.diff(tokens.offsets).max() == 8
    for row in (0, 5, 17):
        whole = model.encode(TEXTS[row], output_value="token_embeddings", convert_to_numpy=False).numpy()[:8]
        own = tokens.vectors[tokens.offsets[row] : tokens.offsets[row + 1]]
        np.testing.assert_allclose(own, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-4)


def test_the_cross_encoder_reads_the_newest_texts_and_each_candidate(cross_encoder: Path):
    model = open_cross_encoder(cross_encoder, max_length=48)
    shortlist = make_shortlist([4, 9, 2, 20, 11, 13, 1], [7, 3, 5, 6])
    ranker = CrossEncoderRanker(model, TEXTS, num_read=2, share=1.0, batch=3)
    found = ranker.scores(shortlist, Deadline(None))
    raw = np.array([float(model.predict([(f"{TEXTS[6]}; {TEXTS[5]}", TEXTS[row])])[0]) for row in shortlist.rows])
    np.testing.assert_allclose(found, (raw - raw.mean()) / (raw.std() + 1e-6), atol=1e-3)
    assert raw.std() > 1e-3, "or there is nothing to compare"


def test_texts_that_are_too_long_are_cut(cross_encoder: Path):
    model = open_cross_encoder(cross_encoder, max_length=16)
    endless = ["red " * 100_000, *TEXTS[1:]]
    ranker = CrossEncoderRanker(model, endless, share=1.0)
    assert np.isfinite(ranker.scores(make_shortlist([0, 1, 2], [0, 3]), Deadline(None))).all()


@pytest.fixture(params=["cross-encoder", "late interaction"])
def ranker(request: pytest.FixtureRequest) -> Reranker:
    if request.param == "cross-encoder":
        model = open_cross_encoder(request.getfixturevalue("cross_encoder"), max_length=48)
        return CrossEncoderRanker(model, TEXTS, batch=4)
    return LateInteractionRanker(request.getfixturevalue("tokens"), batch=4)


def test_every_candidate_has_a_score_and_equal_texts_stay_in_order(ranker: Reranker):
    shortlist = make_shortlist([4, 9, 2, 20, 11, 13], [7, 3])
    scores = ranker.scores(shortlist, Deadline(None))
    assert scores.shape == (6,)
    assert scores.dtype == np.float32
    same = ranker.scores(make_shortlist([5, 5, 5, 5], [7, 3]), Deadline(None))
    assert order_of(same).tolist() == [0, 1, 2, 3]


def test_items_without_a_text_stand_where_the_retriever_puts_them(ranker: Reranker):
    rows = [4, -1, 2, 20]
    scores = ranker.scores(make_shortlist(rows, [7, -1, 3]), Deadline(None))
    assert np.isfinite(scores).all()
    retrieved = make_shortlist(rows, [7]).scores
    expected = 0.5 * (retrieved - retrieved.mean()) / retrieved.std()
    assert scores[1] == pytest.approx(expected[1], abs=1e-4)


def test_without_a_history_the_retrievers_order_stands(tokens: TokenVectors):
    shortlist = make_shortlist([4, 9, 2, 20], [])
    assert order_of(LateInteractionRanker(tokens).scores(shortlist, Deadline(None))).tolist() == [0, 1, 2, 3]


def test_time_that_is_up_between_batches_ends_it(ranker: Reranker):
    ticks = iter(range(100))
    shortlist = make_shortlist(list(range(20)), [7, 3])
    with pytest.raises(OutOfTimeError):
        ranker.scores(shortlist, Deadline(2.5, clock=lambda: next(ticks)))
    assert 3 <= next(ticks) <= 5, "it is ended at the first look after the end, not when all is done"


def test_a_batch_that_would_come_too_late_is_not_begun(cross_encoder: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    model = open_cross_encoder(cross_encoder, max_length=48)
    ranker = CrossEncoderRanker(model, TEXTS, batch=4)
    asked = []

    def slow(pairs: list[tuple[str, str]]) -> np.ndarray:
        asked.append(len(pairs))
        now[0] += 1.0
        return np.zeros(len(pairs), np.float32)

    monkeypatch.setattr(ranker, "_opinions", slow)
    monkeypatch.setattr("towers.text_rerankers.perf_counter", lambda: now[0])
    with pytest.raises(OutOfTimeError):
        ranker.scores(make_shortlist(list(range(20)), [7]), Deadline(2.5, clock=lambda: now[0]))
    assert asked == [4, 4]


def test_what_is_no_cross_encoder_is_refused(bi_encoder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="not a cross-encoder that sentence-transformers can load"):
        open_cross_encoder(tmp_path / "nothing")
    with pytest.raises(DataError, match="expected a cross-encoder with one output, found 3"):
        open_cross_encoder(write_cross_encoder(bi_encoder, num_labels=3))


def test_a_share_of_nothing_is_the_retrievers_opinion_and_of_all_the_other():
    scores, opinions = np.array([3.0, 2.0, 1.0], np.float32), np.array([0.0, 5.0, 1.0], np.float32)
    known = np.ones(3, dtype=bool)
    assert order_of(mixed(scores, opinions, known, 0.0)).tolist() == [0, 1, 2]
    assert order_of(mixed(scores, opinions, known, 1.0)).tolist() == [1, 2, 0]
