"""The rerankers that read texts, beside loops over the same models, and their patience."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.errors import DataError
from tests.tiny_models import WORDS, tiny_cross_encoder, tiny_model
from towers.rerankers.manifest import TextSettings
from towers.rerankers.reranker import Deadline, OutOfTimeError, Reranker, Shortlist, order_of
from towers.rerankers.text import CrossEncoderRanker, LateInteractionRanker, mixed, open_cross_encoder
from towers.rerankers.token_embeddings import TokenReader, TokenVectors, rounded

pytest.importorskip("sentence_transformers", reason="the extra `text`")

NUM_ITEMS = 30


def make_texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 12))) for _ in range(NUM_ITEMS)]


TEXTS = make_texts()


def settings(**changes: float) -> TextSettings:
    return TextSettings.model_validate({"weight": 0.5, "history_items": 3, "max_tokens": 48} | changes)


def make_shortlist(rows: list[int], history: list[int], words: str = "") -> Shortlist:
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
        words=words,
    )


@pytest.fixture(scope="module")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cross_encoder(bi_encoder: Path) -> Path:
    """A cross-encoder with random weights, on the transformer of the tiny model."""
    return tiny_cross_encoder(bi_encoder)


@pytest.fixture(scope="module")
def reader(bi_encoder: Path) -> TokenReader:
    return TokenReader.open(bi_encoder, max_tokens=8, precision=torch.float32)


@pytest.fixture(scope="module")
def tokens(reader: TokenReader) -> TokenVectors:
    return TokenVectors.of(reader, TEXTS)


def test_late_interaction_is_maxsim_token_by_token(tokens: TokenVectors):
    shortlist = make_shortlist([4, 9, 2, 20, 11], [7, 3, 5, 6])
    ranker = LateInteractionRanker(tokens, None, settings(weight=1.0, history_items=2), batch=2)
    found = ranker.scores(shortlist, Deadline(None))
    asked = [*vectors_of(tokens, 6), *vectors_of(tokens, 5)]
    np.testing.assert_allclose(found, in_spreads(maxsim(tokens, asked, shortlist)), atol=1e-4)


def vectors_of(tokens: TokenVectors, row: int) -> np.ndarray:
    return tokens.take(np.array([row]))[1]


def maxsim(tokens: TokenVectors, asked: list[np.ndarray], shortlist: Shortlist) -> list[float]:
    nearest = [
        [max(float(one @ other) for other in vectors_of(tokens, row)) for one in asked] for row in shortlist.rows
    ]
    return [float(np.mean(one)) for one in nearest]


def in_spreads(values: list[float]) -> np.ndarray:
    return (np.array(values) - np.mean(values)) / (np.std(values) + 1e-6)


def test_words_are_read_as_a_query_and_in_the_place_of_what_was_had(
    bi_encoder: Path, tokens: TokenVectors, reader: TokenReader
):
    from sentence_transformers import SentenceTransformer

    shortlist = make_shortlist([4, 9, 2, 20, 11], [7, 3], words="red lamp runs")
    found = LateInteractionRanker(tokens, reader, settings(weight=1.0)).scores(shortlist, Deadline(None))
    model = SentenceTransformer(str(bi_encoder), device="cpu", local_files_only=True)
    model.max_seq_length = 8
    (asked,) = model.encode(
        ["red lamp runs"], prompt_name="query", output_value="token_embeddings", convert_to_numpy=False
    )
    unit = asked.numpy() / np.linalg.norm(asked.numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(found, in_spreads(maxsim(tokens, list(unit), shortlist)), atol=1e-4)


def test_the_vectors_of_tokens_are_those_of_the_model_to_a_byte_a_number(bi_encoder: Path, tokens: TokenVectors):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bi_encoder), device="cpu", local_files_only=True)
    model.max_seq_length = 8
    assert np.diff(tokens.offsets).max() == 8
    assert tokens.values.dtype == np.int8
    for row in (0, 5, 17):
        (whole,) = model.encode([TEXTS[row]], output_value="token_embeddings", convert_to_numpy=False)
        unit = whole.numpy() / np.linalg.norm(whole.numpy(), axis=1, keepdims=True)
        # A number is off by half a step at most, and a step is a 127th of the greatest number of its vector.
        np.testing.assert_allclose(vectors_of(tokens, row), unit, atol=np.abs(unit).max() / 127 / 2 + 1e-6)


def test_vectors_of_tokens_are_read_from_where_they_lie_on_disk(tokens: TokenVectors, tmp_path: Path):
    replace(tokens, made_by="somebody").save(tmp_path / "tokens.safetensors")
    again = TokenVectors.load(tmp_path / "tokens.safetensors")
    assert again.made_by == "somebody"
    assert len(again) == NUM_ITEMS
    rows = np.array([3, 0, 29, 3])
    for one, other in zip(tokens.take(rows), again.take(rows), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(again.values.base, np.memmap)
    assert (tmp_path / "tokens.safetensors").stat().st_size - again.num_bytes < 1000


def test_a_vector_of_zeros_stays_one():
    values, scales = rounded(np.zeros((2, 4), np.float32))
    np.testing.assert_array_equal(values * scales[:, None], np.zeros((2, 4)))


def test_the_processors_fastest_numbers_make_nearly_the_same_vectors(bi_encoder: Path, tokens: TokenVectors):
    quick = TokenVectors.of(TokenReader.open(bi_encoder, max_tokens=8, precision=torch.bfloat16), TEXTS)
    rows = np.arange(NUM_ITEMS)
    cosines = (quick.take(rows)[1] * tokens.take(rows)[1]).sum(axis=1)
    assert cosines.min() > 0.99
    assert not np.array_equal(quick.values, tokens.values), "or they were made in the same numbers"


def test_items_without_a_text_have_no_tokens(reader: TokenReader):
    tokens = TokenVectors.of(reader, ["red", "", "blue lamp"])
    assert np.diff(tokens.offsets).tolist() == [3, 0, 4], "with what stands at the beginning and the end"
    none = TokenVectors.of(reader, [])
    assert (len(none), none.values.shape) == (0, (0, 16))


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_the_cross_encoder_reads_the_newest_texts_and_each_candidate(cross_encoder: Path, precision, tolerance):
    model = open_cross_encoder(cross_encoder, max_tokens=48)
    ranker = CrossEncoderRanker(model, TEXTS, settings(weight=1.0, history_items=2), batch=3, precision=precision)
    for words, asked in (("", f"{TEXTS[6]}; {TEXTS[5]}"), ("red lamp", "red lamp")):
        shortlist = make_shortlist([4, 9, 2, 20, 11, 13, 1], [7, 3, 5, 6], words)
        found = ranker.scores(shortlist, Deadline(None))
        pairs = [(asked, TEXTS[row]) for row in shortlist.rows]
        raw = np.array([float(model.predict([pair], activation_fn=torch.nn.Identity())[0]) for pair in pairs])
        np.testing.assert_allclose(found, in_spreads(raw.tolist()), atol=tolerance)
        assert raw.std() > 1e-3, "or there is nothing to compare"


def test_the_cross_encoder_computes_in_the_numbers_that_it_is_told(cross_encoder: Path):
    model, shortlist = open_cross_encoder(cross_encoder, max_tokens=48), make_shortlist([4, 9, 2, 20], [7, 3])
    exact, quick = (
        CrossEncoderRanker(model, TEXTS, settings(), precision=precision).opinions(shortlist, Deadline(None))[0]
        for precision in (torch.float32, torch.bfloat16)
    )
    assert not np.array_equal(exact, quick)


def test_texts_that_are_too_long_are_cut(cross_encoder: Path):
    model = open_cross_encoder(cross_encoder, max_tokens=16)
    endless = ["red " * 100_000, *TEXTS[1:]]
    ranker = CrossEncoderRanker(model, endless, settings(weight=1.0))
    assert np.isfinite(ranker.scores(make_shortlist([0, 1, 2], [0, 3]), Deadline(None))).all()


@pytest.fixture(params=["cross-encoder", "late interaction"])
def ranker(request: pytest.FixtureRequest) -> Reranker:
    if request.param == "cross-encoder":
        model = open_cross_encoder(request.getfixturevalue("cross_encoder"), max_tokens=48)
        return CrossEncoderRanker(model, TEXTS, settings(), batch=4)
    return LateInteractionRanker(request.getfixturevalue("tokens"), None, settings(), batch=4)


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


def test_without_a_history_or_words_the_retrievers_order_stands(ranker: Reranker):
    shortlist = make_shortlist([4, 9, 2, 20], [])
    assert order_of(ranker.scores(shortlist, Deadline(None))).tolist() == [0, 1, 2, 3]


def test_time_that_is_up_between_batches_ends_it(ranker: Reranker):
    ticks = iter(range(100))
    shortlist = make_shortlist(list(range(20)), [7, 3])
    with pytest.raises(OutOfTimeError):
        ranker.scores(shortlist, Deadline(2.5, clock=lambda: next(ticks)))
    assert 3 <= next(ticks) <= 5, "it is ended at the first look after the end, not when all is done"


def test_a_batch_that_would_come_too_late_is_not_begun(cross_encoder: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    model = open_cross_encoder(cross_encoder, max_tokens=48)
    ranker = CrossEncoderRanker(model, TEXTS, settings(), batch=4)
    asked = []

    def slow(pairs: list[tuple[str, str]]) -> np.ndarray:
        asked.append(len(pairs))
        now[0] += 1.0
        return np.zeros(len(pairs), np.float32)

    monkeypatch.setattr(ranker, "_logits", slow)
    monkeypatch.setattr("towers.rerankers.text.perf_counter", lambda: now[0])
    with pytest.raises(OutOfTimeError):
        ranker.scores(make_shortlist(list(range(20)), [7]), Deadline(2.5, clock=lambda: now[0]))
    assert asked == [4, 4]
    ranker.scores(make_shortlist(list(range(20)), [7]), Deadline(None, clock=lambda: now[0]))
    asked.clear()
    with pytest.raises(OutOfTimeError):
        ranker.scores(make_shortlist(list(range(20)), [7]), Deadline(2.5, clock=lambda: now[0]))
    assert asked == [], "it knows by now that 5 batches take 5 seconds"
    ranker.scores(make_shortlist(list(range(8)), [7]), Deadline(2.5, clock=lambda: now[0]))
    assert asked == [4, 4], "and that 2 batches take 2"


def test_what_is_no_cross_encoder_is_refused(bi_encoder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="not a cross-encoder that sentence-transformers can load"):
        open_cross_encoder(tmp_path / "nothing", max_tokens=48)
    with pytest.raises(DataError, match="expected a cross-encoder with one output, found 3"):
        open_cross_encoder(tiny_cross_encoder(bi_encoder, num_labels=3), max_tokens=48)


def test_a_share_of_nothing_is_the_retrievers_opinion_and_of_all_the_other():
    scores, opinions = np.array([3.0, 2.0, 1.0], np.float32), np.array([0.0, 5.0, 1.0], np.float32)
    known = np.ones(3, dtype=bool)
    assert order_of(mixed(scores, opinions, known, 0.0)).tolist() == [0, 1, 2]
    assert order_of(mixed(scores, opinions, known, 1.0)).tolist() == [1, 2, 0]
