"""The user tower for one user at a time, in numpy: the path of requests with a history in their body.

For one user nearly all the time of the torch modules goes into calling some hundred small operations and into the
layout of batches. Here the same weights are multiplied in the same order without either, and the last layer is computed
for the last token alone, the only one that is needed. The vectors agree with those of the modules up to the
rounding of single precision; `tests/towers/model/test_numpy_user_tower.py` holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn

from features.featurizer.request_time import request_features
from features.sequences.batches import EntityFeatures
from features.sequences.sequences import UNKNOWN_TIME
from towers.model.feature_tower import SHORTEST
from towers.model.history import NUM_SPANS, UNKNOWN_SPAN, CausalAttention, TransformerBlock, time_spans
from towers.model.two_tower import UserTower

_EPSILON = np.float32(torch.finfo(torch.float32).eps)
"""Default `eps` of `nn.RMSNorm`, which is added to the mean square."""
_WIDEST = 80.0
"""So far below the greatest a logit may lie for its exponential to be a number like any other."""


class NumpyUserTower:
    """A user tower whose histories are read by a transformer, on a CPU.

    Args:
        tower: The tower, trained.
        unknown_user_features: Features of a user without attributes.
    """

    def __init__(self, tower: UserTower, unknown_user_features: EntityFeatures) -> None:
        assert self.can_be(tower), "other towers are asked as they are"
        encoder = tower.history
        assert isinstance(encoder, CausalAttention)
        self._width = tower.width
        self._beginning = _array(tower.beginning)
        self._read = _array(tower.read.weight).T * _root(tower.width)
        self._positions = _array(encoder.positions)
        self._by_span = None if encoder.by_span is None else _array(encoder.by_span)
        self._blocks = [_Block.of(block) for block in encoder.blocks if isinstance(block, TransformerBlock)]
        self._scale = _array(encoder.norm.weight) * _root(tower.width)
        self._bag = None if encoder.sum_residual is None else _matrix(encoder.sum_residual)
        self._request = None if tower.request is None else _array(tower.request.weight).T
        with torch.inference_mode():
            self._attributes = 0.0 if tower.attributes is None else _array(tower.attributes(unknown_user_features))[0]
        self._past = np.tril(np.ones((len(self._positions),) * 2, dtype=np.float32))

    @staticmethod
    def can_be(tower: UserTower) -> bool:
        """Return whether the configuration of a tower is supported."""
        encoder = tower.history
        return (
            type(encoder) is CausalAttention  # a derived class may compute something else
            and all(type(block) is TransformerBlock for block in encoder.blocks)
            and tower.beginning.device.type == "cpu"
        )

    def __call__(
        self,
        event_vectors: Float32[np.ndarray, "events width"],
        request_time: int | None = None,
        event_times: Int[np.ndarray, "events"] | None = None,
    ) -> Float32[np.ndarray, " width"]:
        """Return the user's unit vector after the whole history given, as `TwoTower.user_vectors` does.

        Args:
            event_vectors: The vectors of the items of the history, oldest first, no more than the model reads.
            request_time: Unix seconds of the request; None: unknown.
            event_times: Unix seconds of each event; None: unknown.
        """
        tokens = np.empty((len(event_vectors) + 1, self._width), dtype=np.float32)
        tokens[0] = self._beginning
        np.matmul(event_vectors, self._read, out=tokens[1:])
        bag = 0.0 if self._bag is None else tokens.sum(axis=0) / np.sqrt(np.float32(len(tokens))) @ self._bag
        tokens += self._positions[: len(tokens)]
        spans = None
        if self._by_span is not None:
            spans = _pair_spans(len(tokens), request_time, event_times)
            tokens += self._by_span[spans.diagonal()]
        with np.errstate(over="ignore"):  # the gate of a very negative number is 0, as it should be
            for block in self._blocks[:-1]:
                tokens = block(tokens, spans, self._past[: len(tokens), : len(tokens)])
            tokens = self._blocks[-1](tokens, spans)
        state = _normed(tokens)[0] * self._scale + bag + self._attributes
        if self._request is not None and request_time is not None:
            state = state + (_array(request_features(torch.tensor([request_time]))) @ self._request)[0]
        return np.asarray(state / max(SHORTEST, np.sqrt(state @ state)), dtype=np.float32)


@dataclass(frozen=True)
class _Block:
    """The weights of a `TransformerBlock`, the scales of its norms multiplied in; matrices take rows to rows.

    Attributes:
        qkv: To queries, scaled, keys and values, `[width, 3 * width]`.
        query: To the queries alone, `[width, width]`.
        key_value: To keys and values alone, `[width, 2 * width]`.
        bias: What each head adds for each span of time, `[heads, spans]`; None without a time bias.
        out: From what was attended to, `[width, width]`.
        closing: To how far the gates of the feed-forward layer are closed, `[width, hidden]`.
        hidden: To what they let through, `[width, hidden]`.
        down: From there, the other way round because gates close, `[hidden, width]`.
        heads: Attention heads.
    """

    qkv: np.ndarray
    query: np.ndarray
    key_value: np.ndarray
    bias: np.ndarray | None
    out: np.ndarray
    closing: np.ndarray
    hidden: np.ndarray
    down: np.ndarray
    heads: int

    @classmethod
    def of(cls, block: TransformerBlock) -> _Block:
        qkv = _after(block.attention_norm) * _matrix(block.qkv)
        width = len(qkv)
        qkv[:, :width] /= _root(width // block.num_heads)
        gates, hidden = np.split(_after(block.mix_norm) * _matrix(block.mix.up), 2, axis=1)
        return cls(
            qkv=qkv,
            query=np.ascontiguousarray(qkv[:, :width]),
            key_value=np.ascontiguousarray(qkv[:, width:]),
            bias=None if block.bias is None or block.bias.by_span is None else _array(block.bias.by_span),
            out=_matrix(block.out),
            closing=np.ascontiguousarray(-gates),
            hidden=np.ascontiguousarray(hidden),
            down=-_matrix(block.mix.down),
            heads=block.num_heads,
        )

    def __call__(self, tokens: np.ndarray, spans: np.ndarray | None, past: np.ndarray | None = None) -> np.ndarray:
        """Return the tokens after the layer; only the last one, unless `past` gives the causal mask."""
        normed = _normed(tokens)
        if past is None:
            tokens, (query,) = tokens[-1:], self._heads(normed[-1:] @ self.query, 1)
            key, value = self._heads(normed @ self.key_value, 2)
            spans = None if spans is None else spans[-1:]
        else:
            query, key, value = self._heads(normed @ self.qkv, 3)
        logits = query @ key.transpose(0, 2, 1)
        if self.bias is not None:
            logits += self.bias[:, spans]
        weights = _powers(logits, past)
        attended = weights @ value
        attended /= weights.sum(axis=-1, keepdims=True)
        tokens = tokens + attended.transpose(1, 0, 2).reshape(tokens.shape) @ self.out
        return np.asarray(tokens + self._mixed(_normed(tokens)) @ self.down)

    def _heads(self, tokens: np.ndarray, parts: int) -> np.ndarray:
        """Return each part of some tokens as `[parts, heads, tokens, head width]`."""
        return tokens.reshape(len(tokens), parts, self.heads, -1).transpose(1, 2, 0, 3)

    def _mixed(self, normed: np.ndarray) -> np.ndarray:
        """Return what the gates let through, with the other sign: -x / (1 + exp(-x)) times what is hidden, in place."""
        closed, mixed = normed @ self.closing, normed @ self.hidden
        mixed *= closed
        np.exp(closed, out=closed)
        closed += 1
        mixed /= closed
        return np.asarray(mixed)


def _powers(logits: np.ndarray, past: np.ndarray | None) -> np.ndarray:
    """Return the exponentials of logits up to a factor for each row, in place; of what is not in the past zeros.

    One factor does for all rows, unless the logits lie so far apart that a row would be lost.
    """
    greatest = logits.max()
    if greatest - logits.min() > _WIDEST:
        logits = logits if past is None else np.where(past > 0, logits, -np.inf)
        greatest = logits.max(axis=-1, keepdims=True)
    logits -= greatest
    np.exp(logits, out=logits)
    if past is not None:
        logits *= past
    return logits


def _normed(tokens: np.ndarray) -> np.ndarray:
    """Return the tokens at length 1; what comes after multiplies by the root of their width (`_after`)."""
    squares = np.vecdot(tokens, tokens)
    squares += tokens.shape[1] * _EPSILON
    return np.asarray(tokens / np.sqrt(squares, out=squares)[:, None])


def _after(norm: nn.RMSNorm) -> np.ndarray:
    """Return what a norm multiplies each number of a token by beyond making its length 1, `[width, 1]`."""
    scale = _array(norm.weight)[:, None]
    return scale * _root(len(scale))


def _root(width: int) -> np.float32:
    return np.float32(width**0.5)


def _pair_spans(
    num_tokens: int, request_time: int | None, event_times: Int[np.ndarray, "events"] | None
) -> Int[np.ndarray, "tokens tokens"]:
    """Return the step of the time from each token (last axis) to the request at each other, as the modules see it."""
    if request_time is None or event_times is None:
        return np.full((num_tokens, num_tokens), UNKNOWN_SPAN)
    event = np.concatenate([[UNKNOWN_TIME], event_times])
    request = np.concatenate([event_times, [request_time]])
    spans = np.searchsorted(_first_seconds(), request[:, None] - event, side="right") - 1
    spans[(event == UNKNOWN_TIME) | (request == UNKNOWN_TIME)[:, None]] = UNKNOWN_SPAN
    return np.asarray(spans)


@cache
def _first_seconds() -> Int[np.ndarray, "spans"]:
    """Return the fewest seconds of each step of time, found by asking `time_spans`; the first step has all below, too.

    Looked up, steps are the same as in the modules, however a logarithm is rounded.
    """
    steps, zero = torch.arange(1, NUM_SPANS), torch.zeros(NUM_SPANS - 1, dtype=torch.int64)
    low, high = zero, torch.full_like(zero, 2**62)
    while bool((low < high).any()):
        middle = (low + high) // 2
        is_enough = time_spans(zero, middle) >= steps
        low, high = torch.where(is_enough, low, middle + 1), torch.where(is_enough, middle, high)
    return np.concatenate([[-(2**63)], low.numpy()])


def _matrix(layer: nn.Linear) -> np.ndarray:
    return np.ascontiguousarray(_array(layer.weight).T)


def _array(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().numpy())
