"""Two rerankers that read texts: a cross-encoder over pairs, and late interaction over the vectors of tokens.

The cross-encoder reads what somebody had and a candidate together, which is the closest look there is and takes a
transformer for each candidate at each request. Late interaction (Khattab and Zaharia 2020, ColBERT) reads each text
once, beforehand: every token of the history finds its nearest of the candidate, and the score is the mean of these
(MaxSim). Both are mixed with the retriever's opinion, as they know nothing of who had what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int64

from features.errors import DataError
from features.sequences import offsets_of, ragged_arange
from towers.reranking import Deadline, Shortlist

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

MOST_CHARACTERS = 2000
"""Of a text; more is not read, as no model reads so many tokens."""


class CrossEncoderRanker:
    """A cross-encoder over (what was had, candidate), a batch of candidates at a time; a `Reranker`.

    Args:
        model: Of sentence-transformers, with one output; higher is better.
        texts: What is written of each item, by row of the catalogue.
        num_read: How many of the newest items of a history are read.
        share: How much its opinion counts beside the retriever's, 0 to 1.
        batch: Candidates at a time; the deadline is looked at between batches.
    """

    def __init__(
        self, model: CrossEncoder, texts: Sequence[str], *, num_read: int = 3, share: float = 0.5, batch: int = 16
    ) -> None:
        self._model = model
        self._texts = texts
        self._num_read = num_read
        self._share = share
        self._batch = batch

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`.

        A batch that would not be done in time, were it to take as long as the longest before it, is not begun.
        """
        had = "; ".join(self._text(row) for row in _newest(shortlist, self._num_read))
        pairs = [(had[:MOST_CHARACTERS], self._text(row)) for row in shortlist.rows.tolist()]
        opinions, longest = [], 0.0
        for start in range(0, len(pairs), self._batch):
            deadline.check(longest)
            began = perf_counter()
            opinions.append(self._opinions(pairs[start : start + self._batch]))
            longest = max(longest, perf_counter() - began)
        deadline.check()
        return mixed(shortlist.scores, np.concatenate(opinions), shortlist.rows >= 0, self._share)

    def _opinions(self, pairs: list[tuple[str, str]]) -> Float32[np.ndarray, " pairs"]:
        found = self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, dtype=np.float32).reshape(len(pairs))

    def _text(self, row: int) -> str:
        return self._texts[row][:MOST_CHARACTERS] if row >= 0 else ""


def open_cross_encoder(folder: Path, max_length: int = 256) -> CrossEncoder:
    """Return the cross-encoder in a folder, on the CPU.

    Args:
        folder: As sentence-transformers writes it, with safetensors.
        max_length: Tokens that are read of a pair, at most.

    Raises:
        DataError: It cannot be loaded, has more than one output, or the library for it is not there.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise DataError("cross-encoders need more libraries; type: pip install 'two-towers[text]'") from None
    try:
        chosen = {"use_safetensors": True}
        model: CrossEncoder = CrossEncoder(
            str(folder), max_length=max_length, device="cpu", local_files_only=True, model_kwargs=chosen
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{folder}: not a cross-encoder that sentence-transformers can load ({said})") from None
    if model.num_labels != 1:
        raise DataError(f"{folder}: expected a cross-encoder with one output, found {model.num_labels}")
    return model


@dataclass(frozen=True)
class TokenVectors:
    """The vectors of the tokens of texts; jagged.

    Attributes:
        offsets: Where each text's begin, `[texts + 1]`.
        vectors: Unit vectors, `[tokens, width]`.
    """

    offsets: Int64[np.ndarray, " texts_plus_1"]
    vectors: Float32[np.ndarray, "tokens width"]

    @classmethod
    def of(cls, model: SentenceTransformer, texts: Sequence[str], most: int = 32) -> TokenVectors:
        """Return the vectors of the first tokens of texts.

        Args:
            model: Of sentence-transformers.
            texts: They.
            most: Tokens of each that are kept.
        """
        found = model.encode(
            [text[:MOST_CHARACTERS] for text in texts],
            output_value="token_embeddings",
            show_progress_bar=False,
            convert_to_numpy=False,
        )
        parts = [torch.nn.functional.normalize(one[:most].float(), dim=-1).cpu().numpy() for one in found]
        return cls(offsets_of(np.array([len(one) for one in parts], dtype=np.int64)), np.concatenate(parts))

    def take(
        self, rows: Int64[np.ndarray, " rows"]
    ) -> tuple[Int64[np.ndarray, " rows_plus_1"], Float32[np.ndarray, "tokens width"]]:
        """Return where each text's vectors begin, of some texts, and their vectors."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        return offsets_of(lengths), self.vectors[ragged_arange(self.offsets[rows], lengths)]


class LateInteractionRanker:
    """The mean, over the tokens of what was had, of the likeness of each to its nearest of a candidate; a `Reranker`.

    Args:
        tokens: The vectors of the items' tokens, by row of the catalogue.
        num_read: How many of the newest items of a history are read.
        share: How much its opinion counts beside the retriever's, 0 to 1.
        batch: Candidates at a time; the deadline is looked at between batches.
    """

    def __init__(self, tokens: TokenVectors, *, num_read: int = 3, share: float = 0.5, batch: int = 50) -> None:
        self._tokens = tokens
        self._num_read = num_read
        self._share = share
        self._batch = batch

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> Float32[np.ndarray, " candidates"]:
        """Return a score for each candidate; see `Reranker.scores`."""
        _, asked = self._tokens.take(np.array(_newest(shortlist, self._num_read), dtype=np.int64))
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
        return mixed(shortlist.scores, opinions, has_opinion, self._share)


def mixed(
    scores: Float32[np.ndarray, " candidates"],
    opinions: Float32[np.ndarray, " candidates"],
    has_opinion: np.ndarray,
    share: float,
) -> Float32[np.ndarray, " candidates"]:
    """Return two opinions of candidates as one, each in units of its spread among them.

    Args:
        scores: The retriever's.
        opinions: The other.
        has_opinion: Of which candidates there is another, `[candidates]`; of those without, it is taken to be average.
        share: How much that counts, 0 to 1.
    """
    other = np.zeros(len(opinions), dtype=np.float32)
    other[has_opinion] = _in_spreads(opinions[has_opinion])
    return np.asarray((1 - share) * _in_spreads(scores) + share * other, dtype=np.float32)


def _in_spreads(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return values
    return np.asarray((values - values.mean()) / (values.std() + 1e-6))


def _newest(shortlist: Shortlist, most: int) -> list[int]:
    """Return the rows of the newest items of a history that were there when texts were read, the newest first."""
    rows: list[int] = shortlist.history_rows[shortlist.history_rows >= 0][::-1][:most].tolist()
    return rows
