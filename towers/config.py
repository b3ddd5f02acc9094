"""`[towers]`: the shape of the two towers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from features.config import StrictTable


class TowersConfig(StrictTable):
    """`[towers]`: what the model is made of. Its sizes are settings of the model and travel with it."""

    width: int = Field(64, ge=4, le=4096)
    """Numbers in a user's or an item's vector. Memory and search cost grow with it."""
    prefixes: list[int] = Field(default_factory=list)
    """Lengths at which the beginning of a vector is trained to be a vector by itself (Matryoshka), such as `[16, 32]`:
    an index can then look there first, in less memory. Training takes longer with each."""
    history: Literal["mean", "attention", "transformer", "hstu", "none"] = "transformer"
    """How a user's past is read: `mean` of the items' vectors, `attention` (a mean in which items weigh differently;
    in neither does the order matter), `transformer` (causal self-attention; the order and the newest items matter),
    `hstu` (the same with pointwise attention, which can count), or `none`: not at all, so that a user is nothing but
    attributes, such as the text of a query."""
    shared: bool = False
    """Whether all texts, of items and of users, share their encoder (Siamese towers): what a query says and what a
    document says then begin in the same place. For users who are described in the words of items."""
    blocks: int = Field(2, ge=1, le=32)
    """Layers of the transformer, or of HSTU."""
    heads: int = Field(2, ge=1, le=64)
    """Attention heads; they divide the width between them."""
    time_bias: bool = False
    """Whether the transformer (or HSTU) looks at the clock: how long before the request each event was. Then a user's
    vector depends on the time of asking and is made for each request."""
    time_dropout: float = Field(0.1, ge=0, lt=1)
    """With `time_bias`: share of the users whose times are hidden in each training step, so that histories without
    times are understood as well."""
    bag: bool = False
    """Whether the sum of a history's items goes past the layers of the transformer (or of HSTU) into the user's vector:
    what was always liked, beside what came last. For questions of what somebody will have at any time."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the numbers inside the history encoder that are set to zero in training."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the ids (items' and users') that are hidden in each training step, so that the other features learn
    to stand alone for items and users that are new."""

    @property
    def reads_history(self) -> bool:
        """Whether a user is what he did, and not only what is said of him."""
        return self.history != "none"

    @model_validator(mode="after")
    def _fits_together(self) -> TowersConfig:
        if self.prefixes != sorted({*self.prefixes}) or not all(0 < prefix < self.width for prefix in self.prefixes):
            raise ValueError(f"prefixes = {self.prefixes} are to rise from above 0 to below width = {self.width}")
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} do not divide width = {self.width}; choose heads that do")
        for name in ("time_bias", "bag"):
            if getattr(self, name) and self.history not in ("transformer", "hstu"):
                raise ValueError(f'{name} is for history = "transformer" or "hstu", found {self.history!r}')
        return self
