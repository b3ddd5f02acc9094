"""Two rankers that read texts: a cross-encoder over pairs, and late interaction over the vectors of tokens.

Either looks at what was asked in words, or else at what is written of the newest items of a history. The cross-encoder
reads that and a candidate together, which is the closest look there is and takes a transformer for each candidate at
each request. Late interaction (Khattab and Zaharia 2020, ColBERT) reads each item once, beforehand (`TokenVectors`):
every token of what was asked finds its nearest of the candidate, and the score is the mean of these (MaxSim). Both are
mixed with the retriever's score, as they do not know the interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float32

from features.encoders.folder import check_model
from features.encoders.local import quiet_models
from features.errors import DataError, needing
from towers.bundle.bundle import ModelBundle
from towers.bundle.sealed_file import BundleError
from towers.bundle.sealed_folder import SealedFolder, reading
from towers.model.precision import fastest_precision
from towers.rerankers.manifest import MODEL, RankerManifest, TextSettings, remedy_of
from towers.rerankers.opening import ItemInputs
from towers.rerankers.reranker import MOST_CHARACTERS, Deadline, Shortlist
from towers.rerankers.token_embeddings import TokenReader, TokenVectors

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

PairScores = tuple[Float32[np.ndarray, " candidates"], Bool[np.ndarray, " candidates"]]
"""A score of each candidate, and which candidates have one."""


class TextRanker(Protocol):
    """A `Reranker` that reads texts."""

    def opinions(self, shortlist: Shortlist, deadline: Deadline) -> PairScores:
        """Return its own score of each candidate, before it is mixed with the retriever's.

        Raises:
            OutOfTimeError: The deadline has passed.
        """

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`."""


class CrossEncoderRanker:
    """A cross-encoder over (query, candidate), a batch of candidates at a time; a `Reranker`.

    Args:
        model: Of sentence-transformers, with one output; higher is better.
        texts: What is written of each item, by row of the catalogue.
        settings: Its weight, and how much of a history and of a text it reads.
        batch: Candidates at a time, few enough for what flows between layers to stay in a processor's caches; the
            deadline is looked at between batches.
        precision: Of the computation. None: the fastest of this processor.
    """

    def __init__(
        self,
        model: CrossEncoder,
        texts: Sequence[str],
        settings: TextSettings,
        *,
        batch: int = 4,
        precision: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._texts = texts
        self._settings = settings
        self._batch = batch
        self._precision = precision or fastest_precision(torch.device("cpu"))
        self._fastest = 0.0
        """Seconds that a pair takes at best; what cannot be done in time even so is not begun."""

    @classmethod
    def open(
        cls, bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder, items: ItemInputs
    ) -> CrossEncoderRanker:
        """Return the re-ranker of a bundle; see `OpenableReranker.open`."""
        model, settings = _model_of(bundle, manifest, folder)
        return cls(open_cross_encoder(model, settings.max_tokens), items.texts(), settings)

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`."""
        return mixed(shortlist.scores, *self.opinions(shortlist, deadline), self._settings.weight)

    def opinions(self, shortlist: Shortlist, deadline: Deadline) -> PairScores:
        """Return its own opinion of each candidate.

        A batch that would not be done in time, were it to take as long as the longest before it, is not begun.
        """
        asked = asked_text(shortlist, self._texts, self._settings.history_items)
        candidates = [self._texts[row] if row >= 0 else "" for row in shortlist.rows.tolist()]
        has_opinion = np.array([bool(asked and text) for text in candidates], dtype=bool)
        opinions = np.zeros(len(candidates), dtype=np.float32)
        # The longest first, so that texts of about one length are read together.
        places = sorted(np.flatnonzero(has_opinion).tolist(), key=lambda place: -len(candidates[place]))
        deadline.check(self._fastest * len(places))
        longest, began = 0.0, perf_counter()
        with torch.autocast("cpu", self._precision, enabled=self._precision != torch.float32):
            for start in range(0, len(places), self._batch):
                deadline.check(longest)
                some, begun = places[start : start + self._batch], perf_counter()
                opinions[some] = self._logits([(asked, candidates[place][:MOST_CHARACTERS]) for place in some])
                longest = max(longest, perf_counter() - begun)
        if len(places) > self._batch:
            pace = (perf_counter() - began) / len(places)
            self._fastest = min(self._fastest or pace, pace)
        deadline.check()
        return opinions, has_opinion

    def _logits(self, pairs: list[tuple[str, str]]) -> Float32[np.ndarray, " pairs"]:
        found = self._model.predict(
            pairs,
            batch_size=len(pairs),
            show_progress_bar=False,
            activation_fn=torch.nn.Identity(),
            convert_to_tensor=True,
        )
        return np.asarray(found.float().numpy()).reshape(len(pairs))


class LateInteractionRanker:
    """The mean, over the query's tokens, of each one's similarity to the candidate's nearest token; a `Reranker`.

    Args:
        tokens: The vectors of the items' tokens, by row of the catalogue.
        reader: Encodes text queries. None: there are none.
        settings: Its weight, and how much of a history and of a text it reads.
        batch: Candidates at a time; the deadline is looked at between batches.
    """

    def __init__(
        self, tokens: TokenVectors, reader: TokenReader | None, settings: TextSettings, *, batch: int = 50
    ) -> None:
        self._tokens = tokens
        self._reader = reader
        self._settings = settings
        self._batch = batch

    @classmethod
    def open(
        cls, bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder, items: ItemInputs
    ) -> LateInteractionRanker | None:
        """Return the re-ranker of a bundle, or None without token embeddings of its model; see `OpenableReranker`."""
        model, settings = _model_of(bundle, manifest, folder)
        if items.tokens is None or items.tokens.made_by != manifest.digest:
            return None
        return cls(items.tokens, TokenReader.open(model, settings.max_tokens), settings)

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`."""
        return mixed(shortlist.scores, *self.opinions(shortlist, deadline), self._settings.weight)

    def opinions(self, shortlist: Shortlist, deadline: Deadline) -> PairScores:
        """Return its own opinion of each candidate."""
        deadline.check()
        asked = self._asked(shortlist)
        known = np.flatnonzero(shortlist.rows >= 0)
        opinions, has_opinion = np.zeros(len(shortlist), np.float32), np.zeros(len(shortlist), dtype=bool)
        for start in range(0, len(known) if len(asked) else 0, self._batch):
            deadline.check()
            places = known[start : start + self._batch]
            offsets, vectors = self._tokens.take(shortlist.rows[places])
            is_written = np.diff(offsets) > 0
            if is_written.any():
                nearest = np.maximum.reduceat(asked @ vectors.T, offsets[:-1][is_written], axis=1)
                opinions[places[is_written]] = nearest.mean(axis=0)
                has_opinion[places[is_written]] = True
        deadline.check()
        return opinions, has_opinion

    def _asked(self, shortlist: Shortlist) -> Float32[np.ndarray, "tokens width"]:
        if shortlist.words and self._reader is not None:
            return self._reader.read([shortlist.words], "query")[0]
        return self._tokens.take(np.array(newest_rows(shortlist, self._settings.history_items), dtype=np.int64))[1]


def _model_of(bundle: ModelBundle, manifest: RankerManifest, folder: SealedFolder) -> tuple[Path, TextSettings]:
    """Return the folder of a re-ranker's text model, and how it reads texts."""
    remedy = remedy_of(bundle.path)
    if manifest.text is None:
        raise BundleError(f"{folder.path}: does not say how it reads texts; {remedy}")
    with reading(folder.path, remedy):
        model = folder.folder(MODEL)
    return model, manifest.text


def open_cross_encoder(folder: Path, max_tokens: int, *, with_new_head: bool = False) -> CrossEncoder:
    """Return the cross-encoder in a folder, on the CPU.

    Args:
        folder: As sentence-transformers writes it, with safetensors.
        max_tokens: Tokens that are read of a pair, at most.
        with_new_head: Whether it may be any transformer, which gets an output that has yet to learn.

    Raises:
        DataError: It cannot be loaded, has more than one output, or the library for it is not there.
    """
    with needing("cross-encoders"):
        from sentence_transformers import CrossEncoder
    check_model(folder)
    try:
        with quiet_models():
            model: CrossEncoder = CrossEncoder(
                str(folder),
                max_length=max_tokens,
                num_labels=1 if with_new_head else None,
                device="cpu",
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:  # the files may say anything
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{folder}: not a cross-encoder that sentence-transformers can load ({said})") from None
    if model.num_labels != 1:
        raise DataError(f"{folder}: expected a cross-encoder with one output, found {model.num_labels}")
    return model


def asked_text(shortlist: Shortlist, texts: Sequence[str], history_items: int) -> str:
    """Return the text of the query, or else the texts of the newest history items."""
    had = "; ".join(texts[row] for row in newest_rows(shortlist, history_items) if texts[row])
    return (shortlist.words or had)[:MOST_CHARACTERS]


def newest_rows(shortlist: Shortlist, most: int) -> list[int]:
    """Return the rows of the newest items of a history that were there when texts were read, the newest first."""
    rows: list[int] = shortlist.history_rows[shortlist.history_rows >= 0][::-1][:most].tolist()
    return rows


def mixed(
    scores: Float32[np.ndarray, " candidates"],
    opinions: Float32[np.ndarray, " candidates"],
    has_opinion: Bool[np.ndarray, " candidates"],
    share: float,
) -> Float32[np.ndarray, " candidates"]:
    """Return two opinions of candidates as one, each in units of its spread among them.

    Args:
        scores: The retriever's.
        opinions: The other.
        has_opinion: Of which candidates there is another; of those without, it is taken to be average.
        share: How much that counts, 0 to 1.
    """
    other = np.zeros(len(opinions), dtype=np.float32)
    other[has_opinion] = _in_spreads(opinions[has_opinion])
    return np.asarray((1 - share) * _in_spreads(scores) + share * other, dtype=np.float32)


def _in_spreads(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return values
    return np.asarray((values - values.mean()) / (values.std() + 1e-6))
