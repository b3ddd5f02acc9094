"""What every result has beside it: popularity, item-item cosine, EASE, iALS, and neighbours by the items' texts.

Each learns from the same `Sequences` as the model and takes seconds, with its settings chosen on validation questions.
A model that does not beat them is not worth serving. All of them answer people whom they have never seen, from their
history. Items that training has not seen get the score 0, except from the texts, which is what that one is for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float32, Int
from scipy.linalg import lapack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from tqdm import TqdmWarning, tqdm

from features.sequences import Queries, Sequences, offsets_of
from features.split import Split
from features.text import words, words_and_pairs
from training.evaluation import Recommender, evaluate

MOST_QUESTIONS = 2_000
"""Validation questions by which settings are chosen; a sample where there are more."""
MAX_EASE_ITEMS = 20_000
"""Most items that EASE takes: its matrix is square and dense, 1.6 GB at this size."""
MAX_EASE_TRIALS_ITEMS = 15_000
"""Most items for which several regularisations are tried: each costs the cube of the number of items."""
REGULARISATION = 300.0
"""For EASE where none is chosen: the best of `REGULARISATIONS` on MovieLens 1M."""
REGULARISATIONS = (10.0, 100.0, 300.0, 1_000.0)
"""What is tried for EASE where there are questions to choose by."""
MAX_IALS_TRIALS_EVENTS = 3_000_000
"""Most interactions for which several settings are tried for iALS: seven fits, five seconds each for a million."""
IALS_TRIALS: dict[str, tuple[Any, ...]] = {
    "confidence": (1.0, 3.0, 10.0, 40.0),
    "regularisation": (1.0, 10.0),
    "factors": (64, 128, 256),
}
"""What is tried for iALS, one setting after the other."""
HALF_LIVES = (1.0, 2.0, 4.0, 16.0, math.inf)
"""What is tried for the neighbours by text: events after which a history's event counts half; inf: all count alike."""
MOST_TERMS = 500_000
"""Most words and pairs of words that texts are compared by; the most frequent ones where there are more."""

Trial = TypeVar("Trial", bound=Recommender)


def fit_baselines(
    split: Split, *, recommend_seen: bool, texts: Sequence[str] | None = None
) -> tuple[list[Recommender], list[str]]:
    """Fit every baseline on the training data, with the settings that do best on the validation questions.

    Args:
        split: What is learned from, and the questions to choose by.
        recommend_seen: Whether items of a question's history stay in its ranking.
        texts: What is written of each item, `[items]`, as `item_texts` gives it; None: nothing is.

    Returns:
        The recommenders, and what a reader of the report should know about them, one line each.
    """
    num_items = len(split.candidates)
    recommenders: list[Recommender] = [Popularity.fit(split.train, num_items), ItemCosine.fit(split.train, num_items)]
    chosen = [
        _ease(split, recommend_seen),
        _ials(split, recommend_seen),
        _text_neighbours(split, recommend_seen, texts),
    ]
    recommenders += [recommender for recommender, _ in chosen if recommender is not None]
    return recommenders, [note for _, note in chosen if note]


def choose_ease(split: Split, *, recommend_seen: bool, regularisations: Sequence[float] = REGULARISATIONS) -> Ease:
    """Return EASE with the regularisation that has the best NDCG@10 on the validation questions."""
    num_items = len(split.candidates)
    item_rows, gram = _gram(split.train, num_items)
    trials = (Ease(_ease_weights(gram, value), item_rows, num_items, value) for value in regularisations)
    return _best(trials, len(regularisations), split, recommend_seen)


def choose_ials(split: Split, *, recommend_seen: bool) -> Ials:
    """Return iALS with the settings that have the best NDCG@10 on the validation questions.

    One after the other: the confidence, which matters most, the regularisation, and the factors.
    """
    num_items = len(split.candidates)
    best = Ials.fit(split.train, num_items)
    for name, values in IALS_TRIALS.items():
        others = [replace(best.settings, **{name: value}) for value in values]
        trials = (Ials.fit(split.train, num_items, settings) for settings in others if settings != best.settings)
        best = _best(chain([best], trials), len(others), split, recommend_seen)
    return best


def choose_text_neighbours(split: Split, texts: Sequence[str], *, recommend_seen: bool) -> TextNeighbours:
    """Return the neighbours by text with the half-life that has the best NDCG@10 on the validation questions."""
    half_lives = HALF_LIVES if split.train.is_ordered else (math.inf,)
    vectors = _text_vectors(texts, split.warm_items)
    return _best((TextNeighbours(vectors, value) for value in half_lives), len(half_lives), split, recommend_seen)


class Popularity:
    """Everybody gets what most people had."""

    name = "popularity"

    def __init__(self, num_users: Float32[np.ndarray, "items"]) -> None:
        """Take the number of different users of each item, `[items]`."""
        self._num_users = num_users

    @classmethod
    def fit(cls, train: Sequences, num_items: int) -> Popularity:
        """Count the different users of each item: somebody who comes back for one item every week is one vote."""
        first = train.item_rows[train.first_visits()]
        return cls(np.bincount(first, minlength=num_items).astype(np.float32))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the same row for every question."""
        return np.broadcast_to(self._num_users, (len(queries), len(self._num_users)))


class ItemCosine:
    """Items are alike if the same people had them; a person gets what is most like the history, summed over it.

    `similarity(i, j) = users of both / sqrt(users of i * users of j)`, 0 of an item with itself, and for each
    recommended item only the `neighbours` most alike count.
    """

    name = "item-item cosine"

    def __init__(self, similarity: sp.csr_array[np.float32]) -> None:
        """Take the similarity of every history item (row) with every recommended one (column)."""
        self._similarity = similarity

    @classmethod
    def fit(cls, train: Sequences, num_items: int, *, neighbours: int | None = 100) -> ItemCosine:
        """Compute the similarities.

        Args:
            train: Who had what.
            num_items: Size of the catalogue.
            neighbours: How many similar items of each recommended item count. None: all of them, which takes memory of
                the order of the square of the catalogue.
        """
        had = interaction_matrix(train, num_items)
        norms = np.sqrt(np.bincount(had.indices, minlength=num_items))
        had.data /= norms[had.indices].astype(np.float32)
        by_item = sp.csr_array(had.T)
        block = max(1, 8_000_000 // max(1, num_items))
        parts = [
            _nearest(sp.csr_array(by_item[start : start + block] @ had), start, neighbours)
            for start in range(0, num_items, block)
        ]
        return cls(sp.csr_array(sp.vstack(parts).T))

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed similarity of each item with the items of the history."""
        return (interaction_matrix(queries.history, self._similarity.shape[0]) @ self._similarity).toarray()


class Ease:
    """The linear model that best rebuilds everyone's items from their other items; strong, and in closed form.

    Minimises `|X - X B|² + regularisation * |B|²` with a zero diagonal of B, where X is who had what: with
    `P = inverse(XᵀX + regularisation * 1)`, `B[i, j] = -P[i, j] / P[j, j]` (Steck, "Embarrassingly Shallow
    Autoencoders for Sparse Data", 2019). The score of an item is the sum of its column over the history.

    In single precision, which is twice as fast and half as large as double: on MovieLens 1M the weights differ by
    0.00001 at most, even with a regularisation of 10.
    """

    name = "EASE"

    def __init__(
        self,
        weights: Float32[np.ndarray, "known known"],
        item_rows: Int[np.ndarray, "known"],
        num_items: int,
        regularisation: float,
    ) -> None:
        """Take the weights between the items that training knows, whose catalogue rows are `item_rows`."""
        self.regularisation = regularisation
        self._weights = weights
        self._item_rows = item_rows
        self._num_items = num_items

    @classmethod
    def fit(cls, train: Sequences, num_items: int, *, regularisation: float = REGULARISATION) -> Ease:
        """Solve for the weights between the items that occur.

        Raises:
            ValueError: More than `MAX_EASE_ITEMS` items occur.
        """
        item_rows, gram = _gram(train, num_items)
        return cls(_ease_weights(gram, regularisation), item_rows, num_items, regularisation)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the summed weights of the history's items for each item."""
        had = interaction_matrix(queries.history, self._num_items)[:, self._item_rows]
        scores = np.zeros((len(queries), self._num_items), dtype=np.float32)
        scores[:, self._item_rows] = had @ self._weights
        return scores


@dataclass(frozen=True)
class IalsSettings:
    """How iALS factorises.

    Attributes:
        factors: Numbers in a user's and an item's vector.
        regularisation: What the squares of these numbers cost.
        confidence: How much more an item counts that somebody had than one that he had not.
    """

    factors: int = 128
    regularisation: float = 10.0
    confidence: float = 3.0

    def __str__(self) -> str:
        return f"{self.factors} factors, regularisation {self.regularisation:g}, confidence {self.confidence:g}"


class Ials:
    """Matrix factorisation for who had what: vectors of users and items whose products are 1 where somebody had it.

    Minimises, over users u and items i, `sum of c(u, i) * (x(u, i) - p_u · q_i)² + regularisation * (|p|² + |q|²)`,
    where x is 1 for what somebody had and 0 for all else, and c is `confidence` for the former and 1 for the latter, in
    turns for users and items (Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", 2008;
    15 rounds by the library `implicit`). Whoever asks gets the vector that is the exact minimum for the history given,
    so that it makes no difference whether training has seen him.
    """

    name = "iALS"

    def __init__(self, model: Any, num_items: int, settings: IalsSettings) -> None:
        """Take implicit's fitted model."""
        self.settings = settings
        self._model = model
        self._num_items = num_items

    @classmethod
    def fit(cls, train: Sequences, num_items: int, settings: IalsSettings | None = None, *, seed: int = 0) -> Ials:
        """Factorise; the seed decides the vectors begun with.

        Raises:
            ImportError: The library `implicit` is not installed.
        """
        settings = settings or IalsSettings()
        with _one_blas_thread():
            model = _implicit_als()(
                factors=settings.factors,
                regularization=settings.regularisation,
                alpha=settings.confidence,
                random_state=seed,
            )
            model.fit(sp.csr_matrix(interaction_matrix(train, num_items)), show_progress=False)
        return cls(model, num_items, settings)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the product of each item's vector with the vector that the history makes."""
        had = sp.csr_matrix(interaction_matrix(queries.history, self._num_items))
        with _one_blas_thread():
            users = self._model.recalculate_user(np.arange(len(queries)), had)
        scores: np.ndarray = users @ self._model.item_factors.T
        return scores


class TextNeighbours:
    """Items are alike if the same words are written of them; a person gets what is like the newest of the history.

    An item's vector holds the TF-IDF of the words and the pairs of neighbouring words in its texts, at unit length. A
    user's is the mean of the history's, where an event counts half as much as one that came `half_life` events later;
    items without a known word are passed over. The score is the cosine of the two. Items that nobody had yet are found
    as well as any other, and only by this baseline.
    """

    name = "TF-IDF"

    def __init__(self, vectors: sp.csr_array[np.float32], half_life: float) -> None:
        """Take the items' unit vectors, `[items, terms]`, and the half-life in events."""
        self.half_life = half_life
        self._vectors = vectors
        self._transposed = sp.csr_array(vectors.T)
        self._is_written = np.diff(vectors.indptr) > 0

    @classmethod
    def fit(cls, texts: Sequence[str], warm_items: Bool[np.ndarray, "items"], *, half_life: float) -> TextNeighbours:
        """Compare all items by the words in the texts of the warm ones: what is not known yet has no part in it."""
        return cls(_text_vectors(texts, warm_items), half_life)

    def scores(self, queries: Queries) -> Float32[np.ndarray, "questions items"]:
        """Return the cosine of each item with the history, 0 where nothing is written of either."""
        past = queries.history.keep(self._is_written[queries.history.item_rows])
        if math.isfinite(self.half_life):
            past = past.last(math.ceil(10 * self.half_life))  # each older one counts less than a thousandth
        age = np.repeat(past.offsets[1:], past.lengths) - 1 - np.arange(past.num_events)
        weights = np.exp2(-age / self.half_life).astype(np.float32)
        histories = sp.csr_array((weights, past.item_rows, past.offsets), shape=(len(past), self._vectors.shape[0]))
        scores: np.ndarray = (normalize(histories @ self._vectors) @ self._transposed).toarray()
        return scores


def _ease(split: Split, recommend_seen: bool) -> tuple[Ease | None, str]:
    """Return EASE, tuned where that is affordable, and what the report says of it."""
    num_known = int(split.warm_items.sum())
    if num_known > MAX_EASE_ITEMS:
        return None, f"EASE is left out: {num_known:,} items are more than the {MAX_EASE_ITEMS:,} that it can take."
    if num_known > MAX_EASE_TRIALS_ITEMS or not _has_warm_answers(split):
        ease = Ease.fit(split.train, len(split.candidates))
        return (
            ease,
            f"EASE: regularisation {ease.regularisation:g}, not tuned {_reason(split, f'{num_known:,} items')}.",
        )
    ease = choose_ease(split, recommend_seen=recommend_seen)
    tried = ", ".join(f"{value:g}" for value in REGULARISATIONS)
    return ease, f"EASE: regularisation {ease.regularisation:g}, the best of {tried} on validation data."


def _ials(split: Split, recommend_seen: bool) -> tuple[Ials | None, str]:
    """Return iALS, tuned where that is affordable, and what the report says of it."""
    try:
        _implicit_als()
    except ImportError as error:
        return None, f"iALS is left out: it needs the library implicit ({error}); pip install implicit adds it."
    num_events = split.train.num_events
    if num_events > MAX_IALS_TRIALS_EVENTS or not _has_warm_answers(split):
        ials = Ials.fit(split.train, len(split.candidates))
        return ials, f"iALS: {ials.settings}, not tuned {_reason(split, f'{num_events:,} interactions')}."
    ials = choose_ials(split, recommend_seen=recommend_seen)
    tried = "; ".join(f"{name} {', '.join(f'{value:g}' for value in values)}" for name, values in IALS_TRIALS.items())
    return ials, f"iALS: {ials.settings}, the best of {tried} on validation data."


def _text_neighbours(
    split: Split, recommend_seen: bool, texts: Sequence[str] | None
) -> tuple[TextNeighbours | None, str]:
    """Return the neighbours by text, if there are texts, and what the report says of them."""
    if texts is None or not any(map(words, compress(texts, split.warm_items))):
        return None, ""
    neighbours = choose_text_neighbours(split, texts, recommend_seen=recommend_seen)
    found = (
        "all events count alike" if math.isinf(neighbours.half_life) else f"half-life {neighbours.half_life:g} events"
    )
    if not split.train.is_ordered:
        return neighbours, "TF-IDF: all events count alike, there being no order."
    tried = ", ".join(f"{value:g}" for value in HALF_LIVES)
    return neighbours, f"TF-IDF: {found}, the best of {tried} on validation data."


def _has_warm_answers(split: Split) -> bool:
    return bool(split.warm_items[split.validation.target_rows].any())


def _reason(split: Split, size: str) -> str:
    return f"at {size}" if _has_warm_answers(split) else "for answers that training has never seen"


def _best(trials: Iterable[Trial], count: int, split: Split, recommend_seen: bool) -> Trial:
    """Return the recommender with the best NDCG@10 on the validation questions, the first among equals."""
    questions = split.validation
    if len(questions) > MOST_QUESTIONS:
        chosen = np.random.default_rng(0).choice(len(questions), MOST_QUESTIONS, replace=False)
        questions = questions.take(np.sort(chosen))
    best, best_ndcg = None, -1.0
    for trial in tqdm(trials, total=count, desc="choosing settings", unit=" settings", leave=False, disable=None):
        result = evaluate(
            trial, questions, split.candidates, recommend_seen=recommend_seen, cutoffs=(10,), with_coverage=False
        )
        if result.means["ndcg_at_10"] > best_ndcg:
            best, best_ndcg = trial, result.means["ndcg_at_10"]
    assert best is not None, "nothing to try"
    return best


def _implicit_als() -> Any:
    """Return implicit's class, without the advice on widgets for progress bars that its import gives in a notebook."""
    with warnings.catch_warnings(action="ignore", category=TqdmWarning):
        from implicit.cpu.als import AlternatingLeastSquares
    return AlternatingLeastSquares


def _one_blas_thread() -> threadpool_limits:
    """Return a context in which implicit's own threads are the only ones; with both, it is many times slower."""
    return threadpool_limits(1, user_api="blas")


def _text_vectors(texts: Sequence[str], warm_items: Bool[np.ndarray, "items"]) -> sp.csr_array[np.float32]:
    """Return the TF-IDF of each item's words and pairs of words, at unit length."""
    vectorizer = TfidfVectorizer(analyzer=words_and_pairs, sublinear_tf=True, max_features=MOST_TERMS, dtype=np.float32)
    vectorizer.fit(compress(texts, warm_items))
    return sp.csr_array(vectorizer.transform(texts))


def interaction_matrix(sequences: Sequences, num_items: int) -> sp.csr_array[np.float32]:
    """Return who had what, `[users, items]`, as ones."""
    first = sequences.first_visits()
    offsets = offsets_of(np.bincount(sequences.event_users[first], minlength=len(sequences)))
    ones = np.ones(int(offsets[-1]), dtype=np.float32)
    return sp.csr_array((ones, sequences.item_rows[first], offsets), shape=(len(sequences), num_items))


def _nearest(similarity: sp.csr_array[np.float32], first_row: int, count: int | None) -> sp.csr_array[np.float32]:
    """Return only the largest `count` entries of each row, without the item itself; row 0 is the item `first_row`."""
    rows = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    similarity.data[similarity.indices == rows + first_row] = 0
    if count is not None:
        for row in np.flatnonzero(np.diff(similarity.indptr) > count):
            values = similarity.data[similarity.indptr[row] : similarity.indptr[row + 1]]
            values[np.argpartition(values, -count)[:-count]] = 0
    similarity.eliminate_zeros()
    return similarity


def _gram(train: Sequences, num_items: int) -> tuple[Int[np.ndarray, "known"], Float32[np.ndarray, "known known"]]:
    """Return the catalogue rows of the items that occur, and how many users had each two of them."""
    had = interaction_matrix(train, num_items)
    item_rows = np.unique(had.indices).astype(np.int64)
    if len(item_rows) > MAX_EASE_ITEMS:
        raise ValueError(f"EASE takes at most {MAX_EASE_ITEMS:,} items, found {len(item_rows):,}; leave it out")
    known = had[:, item_rows]
    return item_rows, (known.T @ known).toarray()


def _ease_weights(
    gram: Float32[np.ndarray, "known known"], regularisation: float
) -> Float32[np.ndarray, "known known"]:
    """Return EASE's weights; takes one more matrix of the size of `gram`."""
    if not len(gram):
        return gram
    regularised = gram.copy(order="F")
    regularised[np.diag_indices_from(regularised)] += regularisation
    factor, failed = lapack.spotrf(regularised, lower=1, overwrite_a=1)
    assert failed == 0, "XᵀX plus a positive diagonal is positive definite"
    inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    assert failed == 0, "the factor of a positive definite matrix can be inverted"
    _mirror_lower(inverse)
    weights: np.ndarray = inverse.T  # the same, being symmetric, but with rows one after another
    weights /= -weights.diagonal().copy()
    np.fill_diagonal(weights, 0)
    return weights


def _mirror_lower(matrix: Float32[np.ndarray, "known known"], block: int = 1_024) -> None:
    """Copy what is below the diagonal to above it, in blocks, so that no second matrix is needed."""
    for start in range(0, len(matrix), block):
        end = start + block
        matrix[start:end, end:] = matrix[end:, start:end].T
        square = matrix[start:end, start:end]
        square[...] = np.tril(square) + np.tril(square, -1).T
