"""The `[features]` table of run.toml: the files, the columns, and what is read from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from features.feature_kinds import FEATURE_KINDS, FeatureKind
from features.locations.table_path import table_path
from features.messages import did_you_mean, shown
from features.settings import RecommendSeen, StrictTable


def _known_kind(name: str) -> str:
    if name not in FEATURE_KINDS:
        kinds = ", ".join(FEATURE_KINDS)
        raise ValueError(f"expected one of {kinds}; found {shown(name)}{did_you_mean(name, list(FEATURE_KINDS))}")
    return name


FeatureKindName = Annotated[str, AfterValidator(_known_kind)]
"""A name in `FEATURE_KINDS`."""
TimeFormatName = Annotated[
    str, Field(pattern=r"^(iso|dmy|mdy|digits|seconds|milliseconds|microseconds|nanoseconds|excel|.*%.*)$")
]


# Strict, so that no two libraries can take such an address for different hosts.
_ADDRESS = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?(?:/[\w.~%+/-]*)?", re.ASCII)


class FeatureSettings(StrictTable):
    """One feature: a column and how it is encoded."""

    kind: FeatureKindName
    """`id` (an embedding per value, hidden at random in training: `towers.id_dropout`), `category`, `categories`
    (several values in one cell), `number`, `text`, `vector` (a precomputed list of numbers), `time` (a date or Unix
    seconds)."""
    separator: str | None = None
    """For `categories` in text cells: the separator of the values, such as `|`."""
    frozen_dim: int | None = Field(None, ge=4, le=4096)
    """For `text`: use a vector of so many dimensions that is not trained, at most `towers.embedding_dim`: the TF-IDF of
    the words, randomly projected, or, with an `encoder`, the first principal components of its vectors. Set it for
    new items (cold start) and for text search. None: trained word embeddings, better for items with interactions."""
    encoder: str | None = None
    """For `text`: the pretrained model that encodes it, a name below `[features.encoders]`. Without `frozen_dim` a
    projection of its vectors is trained. None: embeddings of words and parts of words, which need no model."""
    trainable_residual: bool = False
    """With `frozen_dim`: add trained word embeddings, initialised to zero, to the frozen vector. Set it for a search
    with few training pairs: the frozen vector decides until training has found something better."""
    min_count: int | None = Field(None, ge=1)
    """For `id`, `category` and `categories`: minimum number of training interactions of a value with an embedding of
    its own; rarer values are treated as new ones. Raise it for very many ids, where the table is too large or rare ids
    are learned badly. None: that of `features.min_count`."""
    hashed_rows: int | None = Field(None, ge=1)
    """For `id`, `category` and `categories`: embeddings that rare and new values share, chosen by a hash of the value.
    None: they have none, and are represented by the other columns alone."""
    hashes: int | None = Field(None, ge=1, le=8)
    """With `hashed_rows`: number of hash functions; a value is the sum of as many shared embeddings, so that fewer
    values have the same vector. None: 2."""

    decimal: Literal[".", ","] | None = None
    """For `number` in text cells such as `19,99 €`: the decimal separator. None: inferred from all cells of the
    column; if they are ambiguous (`1,234`), an error asks for it."""
    time_format: TimeFormatName | None = None
    """For `time`: how times are written: `iso`, `dmy` (14.11.2023, 14/11/2023), `mdy` (11/14/2023), `digits`
    (20231114), `seconds`, `milliseconds`, `microseconds` or `nanoseconds` since 1970, `excel` (days), or a pattern
    such as `%d %b %y`. None: inferred from all cells of the column; if they are ambiguous, an error asks for it."""

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureSettings:
        for name in dict.fromkeys(name for kind in FEATURE_KINDS.values() for name in kind.settings):
            if getattr(self, name) is not None and name not in self.definition.settings:
                kinds = " or ".join(f'"{kind.name}"' for kind in FEATURE_KINDS.values() if name in kind.settings)
                raise ValueError(f"{name} is for kind = {kinds}, found kind = {self.kind!r}; leave it out")
        if self.hashes is not None and self.hashed_rows is None:
            raise ValueError("hashes needs hashed_rows, which is not set; set hashed_rows, or remove it")
        if self.trainable_residual and self.frozen_dim is None:
            raise ValueError("trainable_residual needs frozen_dim, which is not set; set frozen_dim, or remove it")
        return self

    @property
    def definition(self) -> FeatureKind:
        """The entry of its kind."""
        return FEATURE_KINDS[self.kind]


class EncoderSettings(StrictTable):
    """A pretrained text encoder: a local model of sentence-transformers, or an embeddings service."""

    model: str
    """A folder in sentence-transformers' format, relative to that of run.toml; or a name on the Hugging Face hub
    (without a slash one of `sentence-transformers/`); with `url`, the name that the service knows."""
    revision: str | None = None
    """For a name on the hub: commit, tag or branch. None: the newest."""
    pooling: Literal["model", "mean", "cls", "last", "attention"] = "model"
    """Pooling of token embeddings: that of the `model`, their `mean`, the first (`cls`) or `last` token, or, if layers
    are trained, attention pooling with trained weights (`attention`)."""
    query_prompt: str | None = None
    """Prefix of each user text (query). None: the model's own, often empty."""
    document_prompt: str | None = None
    """Prefix of each item text (document). None: the model's own, often empty."""
    max_tokens: int | None = Field(None, ge=8)
    """Maximum tokens of a text; longer texts are truncated. None: the model's maximum."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Precision of the computation. `bfloat16` is faster on processors that support it, with cosines of 0.9999 to the
    vectors of float32; `int8` (a quantised ONNX graph, on the CPU) is faster still, with cosines of 0.99."""
    trained_layers: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Fine-tune the last so many layers of the model with the towers, or `all`, word embeddings included. 0: none; each
    text is then encoded once, otherwise in each step that needs it."""
    lora_rank: int = Field(0, ge=0, le=1024)
    """Rank of LoRA: train low-rank corrections of these layers instead of their weights, for far less memory and
    smaller bundles. 0: train the weights."""
    bundled: bool = True
    """Whether the bundle contains the model's files. Otherwise it has their digest, and needs them when opened."""
    url: str | None = None
    """Address of an embeddings service, such as `https://api.openai.com/v1`. None: a local model. A service
    with this model must allow the host and `key_variable` in serving.toml."""
    protocol: Literal["openai", "cohere"] = "openai"
    """Protocol of the service: OpenAI's `POST /embeddings`, as most have, or Cohere's `POST /embed`."""
    key_variable: str | None = None
    """Environment variable with the service's API key. None: it needs none."""
    dimensions: int | None = Field(None, ge=1)
    """Dimensions of the vectors to request. None: those of the model."""

    @model_validator(mode="after")
    def _fits_together(self) -> EncoderSettings:
        here = {"revision", "pooling", "max_tokens", "precision", "bundled", "trained_layers", "lora_rank"}
        there = {"protocol", "key_variable", "dimensions"}
        fields = type(self).model_fields
        set_in_vain = [
            name for name in sorted(there if self.url is None else here) if getattr(self, name) != fields[name].default
        ]
        if set_in_vain:
            what = "a service, and there is no url" if self.url is None else "a model here, and there is a url"
            raise ValueError(f"{', '.join(set_in_vain)}: for {what}; leave it out")
        if self.url is not None and not _is_address(self.url):
            raise ValueError(
                "url: expected https://HOST/PATH (or http://HOST:PORT/PATH) without a user, a password or a query, "
                "which the bundle would carry; put the key into an environment variable and name it in key_variable"
            )
        if not self.is_trained and (self.lora_rank or self.pooling == "attention"):
            raise ValueError('lora_rank and pooling = "attention" are trained, and trained_layers is 0; raise it')
        if self.is_trained and self.precision == "int8":
            raise ValueError('precision = "int8" cannot be trained; set "bfloat16" or trained_layers = 0')
        return self

    @property
    def is_trained(self) -> bool:
        """Whether the model is trained with the towers."""
        return self.trained_layers != 0


class ColumnSettings(StrictTable):
    """Names of the columns of users, items, times, positions and ratings."""

    user_id: str = "user_id"
    """Name of the user-id column in the interactions table."""
    item_id: str = "item_id"
    """Name of the item-id column in the interactions table."""
    items_item_id: str | None = None
    """Name of the item-id column in the items table. None: as in the interactions."""
    users_user_id: str | None = None
    """Name of the user-id column in the users table. None: as in the interactions."""
    timestamp: str | None = None
    """Name of the time column in the interactions table: dates or Unix seconds. None: there are no times."""
    time_format: TimeFormatName | None = None
    """Format of the times: `iso`, `dmy`, `mdy`, `digits`, `seconds`, `milliseconds`, `microseconds`,
    `nanoseconds`, `excel`, or a pattern such as `%d %b %y`, as for features of kind `time`. None: inferred from
    all cells of the column; if they are ambiguous (02/03/2024), an error asks for it."""
    position: str | None = None
    """Name of a column with the position in the user's history, from 0. It takes precedence over the timestamp; rows
    where it is empty are left out. None: order by timestamp."""
    rating: str | None = None
    """Name of the rating column; only `min_rating` uses it."""


class FeaturesConfig(StrictTable):
    """`[features]`: tables and features."""

    interactions: str | None = None
    """Path of the interactions: a CSV or Parquet file, a folder of such files, or a pattern such as `orders-*.csv`,
    relative to the folder of run.toml; or an address of an object store that names the same, such as
    `s3://bucket/orders/`. Of a search: pairs of query and relevant document. None: there are no interactions, so
    nothing is trained, and items are found by their untrained text vectors."""
    items: str | None = None
    """Path of the items table (catalogue), likewise, or a folder of documents (`.md`, `.txt`). None: the items are
    those of the interactions, with their id as only feature."""
    users: str | None = None
    """Path of the users table (attributes), or of the queries of a search. None: users have histories only."""
    columns: ColumnSettings = ColumnSettings()
    """Names of columns."""
    min_rating: float | None = None
    """Leave out interactions with a lower rating. None: use all."""
    unknown_items: Literal["error", "drop"] = "error"
    """Interactions whose item is not in the items table: raise an `error`, or `drop` them and count them in a note."""
    missing_ids: Literal["error", "drop"] = "error"
    """Rows without an id, such as orders of guests: raise an `error`, or `drop` them and count them in a note."""
    recommend_seen: RecommendSeen = False
    """Whether items in a user's history may be recommended again (shops with repeat purchases)."""
    title: str | None = None
    """Column of the items table with a display name, such as the title."""
    item: dict[str, FeatureSettings] = Field(default_factory=dict)
    """Item features, by column of the items' table, or `item_id`."""
    user: dict[str, FeatureSettings] = Field(default_factory=dict)
    """User features, by column of the users' table, or `user_id`."""
    context: dict[Literal["time"], FeatureSettings] = Field(default_factory=dict)
    """Features of the request: `time` (hour, weekday, season of the request)."""
    popular_days: Annotated[float, Field(gt=0)] | Literal["auto", "all"] = "auto"
    """Users without a history or a known attribute get popular items: those with the most interactions in so many days
    before the newest one. `all`: in the whole table. `auto`: training chooses, by validation questions of such users;
    without times it is `all`."""
    max_history: int = Field(200, ge=1, le=10_000)
    """Maximum length of a history, in interactions; older ones are ignored. Training and serving cost grow with it."""
    min_count: int = Field(1, ge=1)
    """Minimum number of training interactions of an id or a category with an embedding of its own, for all columns that
    set no `min_count`. 1: every value that occurs in training has one."""
    encoders: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], EncoderSettings] = Field(
        default_factory=dict
    )
    """Pretrained text encoders, by a name of your choice. Columns with the same encoder share its weights."""
    prepare: Literal["auto", "always", "never"] = "auto"
    """Whether training sorts the interactions on disk and reads them from there (`towers prepare`), instead of from
    memory. `auto`: from 20 million rows on. It needs the libraries of `two-towers[scale]`."""
    prepare_memory_gb: float = Field(2.0, ge=0.25, le=65_536)
    """Memory limit of that sort, in gigabytes. What does not fit is kept on the disk; raise it for speed."""

    @model_validator(mode="after")
    def _encoders_are_there(self) -> FeaturesConfig:
        for column, settings in (*self.item.items(), *self.user.items()):
            if settings.encoder is not None and settings.encoder not in self.encoders:
                raise ValueError(
                    f"column {column!r} is to be read by encoder {settings.encoder!r}, and there is no "
                    f"[features.encoders.{settings.encoder}]; write it, with a model"
                )
        return self

    @field_validator("interactions", "items", "users")
    @classmethod
    def _can_be_read(cls, name: str | None) -> str | None:
        if name is not None:
            table_path(Path(), name)
        return name

    @model_validator(mode="after")
    def _has_a_table(self) -> FeaturesConfig:
        if self.interactions is None and self.items is None:
            raise ValueError("interactions: missing; name the table of interactions, or of items alone")
        return self


def _is_address(url: str) -> bool:
    found = _ADDRESS.fullmatch(url)
    return found is not None and int(found[1] or 0) <= 65_535
