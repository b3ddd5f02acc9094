"""`[towers]`: architecture of the two towers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from features.settings import StrictTable

MOST_HALF_LIVES = 8
"""How many numbers a vector has room for after its embedding (see `towers.model.trend_head`)."""


class TowersConfig(StrictTable):
    """`[towers]`: architecture of the user and the item tower. Stored in the bundle."""

    embedding_dim: int = Field(64, ge=4, le=4096)
    """Dimensions of user and item vectors, a multiple of 4. More can raise quality; memory and search time grow in
    proportion."""
    embedding_dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in embedding tables, in training, in the bundle and in the service. `float16` halves their
    bytes, which counts for millions of ids; rows are looked up and summed in `float32`."""
    matryoshka_dims: list[int] = Field(default_factory=list)
    """Shorter dimensions at which the first components of a vector are trained as a vector of their own (Matryoshka),
    ascending, such as `[16, 32]`. Set it for an index that searches short vectors first, in less memory, and re-scores
    with whole ones. Each adds one loss computation per training step."""
    history_encoder: str = Field("transformer", examples=["mean", "attention-pooling", "transformer", "hstu", "none"])
    """Encoder of a user's history: `mean` of the item vectors, or their mean with learned weights
    (`attention-pooling`), both of which ignore the order; `transformer` (causal self-attention) or `hstu` (pointwise
    attention) where the order matters; `none`: no history, only user attributes, such as the text of a search
    query. In Python also an encoder of your own, by its name in `towers.HISTORY_ENCODERS`."""
    shared_text_encoder: bool = False
    """Whether text columns of items and of users share one encoder (Siamese towers). Set it where both are written in
    the same words, such as queries and documents of a search."""
    num_layers: int = Field(2, ge=1, le=32)
    """Layers of the `transformer` or `hstu` history encoder. Training and serving time grow with it."""
    num_heads: int = Field(2, ge=1, le=64)
    """Attention heads of each layer; must divide `embedding_dim`."""
    time_bias: bool = False
    """For `transformer` and `hstu`: add a learned bias to attention for the time between each event and the request.
    User vectors then depend on the time of the request and cannot be computed in advance. Needs timestamps."""
    time_dropout: float = Field(0.1, ge=0, lt=1)
    """With `time_bias`: fraction of the users whose event times are hidden in a training step, so that requests without
    times work, too."""
    sum_residual: bool = False
    """For `transformer` and `hstu`: add a linear projection of the sum of the history's item vectors to the encoder's
    output. Helps for long-term preferences, as with `training.targets = "future"`."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout rate in the history encoder. Raise it for few interactions per user (0.5 below 20)."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of item and user ids that are hidden in a training step. Raise it where many items or users are new, so
    that the other features can represent them alone."""

    trend: list[Annotated[float, Field(gt=0, le=10_000)]] = Field(default_factory=list, max_length=MOST_HALF_LIVES)
    """Half-lives in days of the recent popularity that is part of a score, ascending, such as `[1, 7, 30]`: for each,
    the decayed number of an item's events before the request, weighted for each user by the user tower. Set it where
    new and rising items matter, and rebuild the index often, because it holds the numbers. Needs timestamps. Empty:
    none."""

    @property
    def reads_history(self) -> bool:
        """Whether the user tower reads interaction histories, and not only user attributes."""
        return self.history_encoder != "none"

    @model_validator(mode="after")
    def _fits_together(self) -> TowersConfig:
        dims = self.matryoshka_dims
        if dims != sorted({*dims}) or not all(0 < dim < self.embedding_dim for dim in dims):
            raise ValueError(
                f"matryoshka_dims = {dims} must ascend, without repeats, above 0 and below embedding_dim = "
                f"{self.embedding_dim}"
            )
        if self.trend != sorted({*self.trend}):
            raise ValueError(f"trend = {self.trend} must ascend, without repeats")
        if self.trend and not self.reads_history:
            raise ValueError('trend needs histories, and history_encoder = "none" reads none; remove trend')
        if self.embedding_dim % self.num_heads:
            raise ValueError(f"num_heads = {self.num_heads} does not divide embedding_dim = {self.embedding_dim}")
        if self.embedding_dim % 4:  # the fused kernels of embedding tables know no other rows
            raise ValueError(f"embedding_dim = {self.embedding_dim} must be a multiple of 4")
        for name in ("time_bias", "sum_residual"):
            if getattr(self, name) and self.history_encoder not in ("transformer", "hstu"):
                raise ValueError(
                    f'{name} is for history_encoder = "transformer" or "hstu", found {self.history_encoder!r}; '
                    f"set {name} = false"
                )
        return self
