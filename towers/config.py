"""`[towers]`: the shape of the two towers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from features.config import StrictTable


class TowersConfig(StrictTable):
    """`[towers]`: what the model is made of. Its sizes are settings of the model and travel with it."""

    width: int = Field(64, ge=4, le=4096)
    """Numbers in a user's or an item's vector. Memory and search cost grow with it."""
    history: Literal["mean", "transformer"] = "transformer"
    """How a user's past is read: `mean` of the items' vectors (the order does not matter), or `transformer` (causal
    self-attention; the order and the newest items matter)."""
    blocks: int = Field(2, ge=1, le=32)
    """Layers of the transformer."""
    heads: int = Field(2, ge=1, le=64)
    """Attention heads of each layer; they divide the width between them."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the numbers inside the history encoder that are set to zero in training."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the ids (items' and users') that are hidden in each training step, so that the other features learn
    to stand alone for items and users that are new."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TowersConfig:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} do not divide width = {self.width}; choose heads that do")
        return self
