"""The pair: an item tower, a user tower that reads the items' own vectors, and the similarity between them.

Neither tower sees the other's input. An item's vector is made once and used everywhere: the index holds it, the loss
scores it, the history encoder reads it. So an item that did not exist in training can be searched, recommended and be
part of a history, and at request time the user tower needs no item features, only vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from features.featurizer.featurizer import Featurizer
from features.featurizer.request_time import CONTEXT_WIDTH, request_features
from features.sequences.batches import EntityFeatures
from features.sequences.sequences import UNKNOWN_TIME
from towers.config import TowersConfig
from towers.model.embeddings import FeatureEmbeddings
from towers.model.feature_tower import TEXT, FeatureTower, unit
from towers.model.history import Moments, make_history_encoder
from towers.model.text_encoder import trained_encoders
from towers.model.trend_head import TrendHead

INITIAL_TEMPERATURE = 0.05
LOWEST_TEMPERATURE = 0.01
TABLE_DTYPES = {"float32": torch.float32, "float16": torch.float16}
"""Types of embedding tables, by `[towers] embedding_dtype`."""


class UserTower(nn.Module):
    """A user's past, attributes and request to unit vectors, one for every point in the past.

    Args:
        config: `[towers]`.
        featurizer: Says which user and request features there are.
        length: How many events of a history are read.
        learning_rate: Of the embedding tables; None: not trained.
        encoders: Models of texts that are trained, by name; shared with the item tower.
        texts: The encoder of texts that is shared with the item tower. None: there is none.
    """

    def __init__(
        self,
        config: TowersConfig,
        featurizer: Featurizer,
        length: int,
        *,
        learning_rate: float | None,
        encoders: Mapping[str, nn.Module] | None = None,
        texts: FeatureEmbeddings | None = None,
    ) -> None:
        super().__init__()
        width = config.embedding_dim
        self.width = width
        self.time_dropout = config.time_dropout
        if config.reads_history:
            self.beginning = nn.Parameter(torch.randn(width) * width**-0.5)
            self.read = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.read.weight)  # identity: history items start with their candidate vectors
        self.history = make_history_encoder(config, length + 1)
        schema, sizes = featurizer.schema, featurizer.users.sizes
        self.attributes = (
            FeatureTower(
                schema.user,
                sizes,
                width,
                id_dropout=config.id_dropout,
                learning_rate=learning_rate,
                dtype=TABLE_DTYPES[config.embedding_dtype],
                encoders=encoders,
                texts=texts,
            )
            if schema.user
            else None
        )
        self.request = nn.Linear(CONTEXT_WIDTH, width, bias=False) if schema.context else None

    def forward(
        self,
        event_vectors: Float[Tensor, "events width"],
        offsets: Int[Tensor, "users_plus_1"],
        users: EntityFeatures,
        *,
        request_times: Int[Tensor, "tokens"] | None = None,
        event_times: Int[Tensor, "events"] | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Return each user's states, before the first event and after each event: `events + users` unit vectors.

        See `features.sequences.batches.SequenceBatch` for which state sees which events.

        Args:
            event_vectors: The vectors of the items of all histories, oldest first.
            offsets: Where each user's events begin.
            users: The attributes of the users.
            request_times: Unix seconds of the request that each result is for; None: unknown.
            event_times: Unix seconds of each event; None: unknown.
        """
        num_users, num_tokens = len(offsets) - 1, len(event_vectors) + len(offsets) - 1
        lengths = offsets.diff() + 1
        user_of_token = torch.repeat_interleave(
            torch.arange(num_users, device=offsets.device), lengths, output_size=num_tokens
        )
        if self.history is None:
            state = event_vectors.new_zeros(num_tokens, self.width)
        else:
            token_offsets = offsets + torch.arange(num_users + 1, device=offsets.device)
            source = torch.arange(num_tokens, device=offsets.device) - user_of_token
            source[token_offsets[:-1]] = 0
            scaled = torch.cat([self.beginning[None], self.read(event_vectors * self.width**0.5)])
            moments = self._moments(request_times, event_times, source, token_offsets, user_of_token)
            state = self.history(scaled[source], token_offsets, moments)
        if self.attributes is not None:
            state = state + self.attributes(users)[user_of_token]
        if self.request is not None and request_times is not None:
            state = state + self.request(request_features(request_times))
        return unit(state)

    def _moments(
        self,
        request_times: Int[Tensor, "tokens"] | None,
        event_times: Int[Tensor, "events"] | None,
        source: Int[Tensor, "tokens"],
        token_offsets: Int[Tensor, "users_plus_1"],
        user_of_token: Int[Tensor, "tokens"],
    ) -> Moments | None:
        """Return when each token was; the beginning of a history was at no known time."""
        if request_times is None or event_times is None:
            return None
        event = functional.pad(event_times, (1, 0), value=UNKNOWN_TIME)[source]
        if self.training and self.time_dropout:
            hidden = torch.rand(len(token_offsets) - 1, device=source.device) < self.time_dropout
            event = event.masked_fill(hidden[user_of_token], UNKNOWN_TIME)
        return Moments(event, request_times)


class TwoTower(nn.Module):
    """Two encoders into one space; the similarity is the dot product of unit vectors.

    Args:
        config: `[towers]`.
        featurizer: Says which features there are and how large their tables are.
        length: How many events of a history are read.
        learning_rate: Of the embedding tables (row-wise Adagrad in the backward pass); None: a model for inference.
    """

    def __init__(
        self, config: TowersConfig, featurizer: Featurizer, length: int, *, learning_rate: float | None = None
    ) -> None:
        super().__init__()
        self.encoders = trained_encoders(featurizer.pretrained)
        encoders = dict(self.encoders.items())
        self.texts = _shared_texts(config, featurizer, learning_rate) if config.shared_text_encoder else None
        self.item_tower = FeatureTower(
            featurizer.schema.item,
            featurizer.items.sizes,
            config.embedding_dim,
            id_dropout=config.id_dropout,
            learning_rate=learning_rate,
            dtype=TABLE_DTYPES[config.embedding_dtype],
            encoders=encoders,
            texts=self.texts,
        )
        self.user_tower = UserTower(
            config, featurizer, length, learning_rate=learning_rate, encoders=encoders, texts=self.texts
        )
        self.trend = TrendHead(config.embedding_dim, config.trend) if config.trend else None
        self.log_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))
        self.prefixes = config.matryoshka_dims
        self.prefix_log_scales = (
            nn.Parameter(self.log_scale.detach().repeat(len(self.prefixes))) if self.prefixes else None
        )

    @property
    def scale(self) -> Tensor:
        """Factor from similarity to logit: 1 / temperature, learned, at most 100."""
        return _scale(self.log_scale)

    @property
    def prefix_scales(self) -> dict[int, Tensor]:
        """The same for each length at which the beginning of a vector is a vector, too."""
        if self.prefix_log_scales is None:
            return {}
        return dict(zip(self.prefixes, _scale(self.prefix_log_scales).unbind(), strict=True))

    def item_vectors(self, features: EntityFeatures) -> Float[Tensor, "items width"]:
        """Return the items' unit vectors."""
        return unit(self.item_tower(features))

    def user_vectors(
        self,
        event_vectors: Float[Tensor, "events width"],
        offsets: Int[Tensor, "users_plus_1"],
        users: EntityFeatures,
        *,
        request_times: Int[Tensor, "users"] | None = None,
        event_times: Int[Tensor, "events"] | None = None,
    ) -> Float[Tensor, "users width"]:
        """Return each user's unit vector after the whole history given.

        Args:
            event_vectors: The vectors of the items of all histories, oldest first.
            offsets: Where each user's events begin.
            users: The attributes of the users.
            request_times: Unix seconds of each user's request; None: unknown.
            event_times: Unix seconds of each event; None: unknown.
        """
        last = offsets[1:] + torch.arange(len(offsets) - 1, device=offsets.device)
        if request_times is not None:
            request_times = _token_requests(request_times, offsets, last, event_times)
        states: Tensor = self.user_tower(
            event_vectors, offsets, users, request_times=request_times, event_times=event_times
        )
        return states[last]


def _shared_texts(config: TowersConfig, featurizer: Featurizer, rate: float | None) -> FeatureEmbeddings | None:
    """Return the word embedding table shared by both towers; None if no text feature has one."""
    sizes = (featurizer.items.sizes, featurizer.users.sizes)
    rows = {size.tables[name] for size in sizes for name in size.texts}
    if not rows:
        return None
    assert len(rows) == 1, "shared texts are hashed into as many buckets, whatever their column"
    is_correction = all(set(size.texts) <= set(size.corrections) for size in sizes)
    return FeatureEmbeddings(
        {TEXT: rows.pop()},
        config.embedding_dim,
        learning_rate=rate,
        corrections=[TEXT] if is_correction else [],
        dtype=TABLE_DTYPES[config.embedding_dtype],
    )


def _scale(log_scale: Tensor) -> Tensor:
    return log_scale.clamp(max=-math.log(LOWEST_TEMPERATURE)).exp()


def _token_requests(
    request_times: Int[Tensor, "users"],
    offsets: Int[Tensor, "users_plus_1"],
    last: Int[Tensor, "users"],
    event_times: Int[Tensor, "events"] | None,
) -> Int[Tensor, "tokens"]:
    """Return the request time of each state: that of the next event, as in training; for the last, the request."""
    tokens = torch.repeat_interleave(request_times, offsets.diff() + 1)
    if event_times is not None:
        is_last = torch.zeros_like(tokens, dtype=torch.bool)
        is_last[last] = True
        tokens[~is_last] = event_times
    return tokens
