"""`[training]`, and the whole of run.toml: settings of a training, recorded in the bundle."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from features.config import FeaturesConfig
from features.errors import DataError
from features.settings import StrictTable, parse_settings, read_toml
from towers.config import TowersConfig

Sharding = Literal["auto", "table-wise", "row-wise", "column-wise"]
"""Ways to divide embedding tables among processes."""


class TrainingConfig(StrictTable):
    """`[training]`: data, loss, optimisation and tracking of a training run."""

    seed: int = Field(0, ge=0)
    """Seed of all random numbers: initial weights, order, negatives, dropout. On a CPU the same seed and number
    of threads give the same weights, bit for bit."""
    item_init: Literal["random", "spectral"] = "random"
    """How item embeddings are initialised: randomly, or from an SVD of the interaction and attribute matrix
    (`spectral`). Use `spectral`, with low learning rates, for few users without an order of interactions."""
    spectral_regularisation: float = Field(300.0, gt=0)
    """With `item_init = "spectral"`: ridge regularisation of the SVD. Higher values weaken rare co-occurrences."""
    spectral_attribute_weight: float = Field(4.0, ge=0)
    """With `item_init = "spectral"`: weight of an item's attributes against its interactions; 0 ignores attributes."""
    epochs: int = Field(100, ge=1)
    """Maximum number of epochs; early stopping usually ends training before."""
    patience: int = Field(2, ge=1)
    """Epochs without a better validation N@10 after which the learning rates are lowered; after the last decay,
    training stops."""
    lr_decays: int = Field(2, ge=0)
    """How often the learning rates are multiplied by 0.3 before training stops."""
    batch_size: int = Field(2048, ge=1)
    """Maximum interactions per step. Small tables get smaller batches, so that an epoch has about fifty steps."""
    targets: Literal["next", "future", "any"] = "next"
    """Target of each prediction: the `next` interaction; a random later one (`future`), for recommendations without a
    time horizon; or a random other one (`any`), which is always used for data without an order."""
    history_fraction: float = Field(0.5, ge=0, lt=1)
    """With `targets = "any"`: fraction of a user's items used only as input; the remaining ones are prediction targets
    as well. Keep it high, because at serving time most of the history is available."""
    loss: str = Field("softmax", examples=["softmax"])
    """Contrastive loss of each positive against its negatives: `softmax` cross-entropy, over all items or a sample. In
    Python also a loss of your own, by its name in `towers.LOSSES`."""
    negatives: Literal["auto", "all", "sampled"] = "auto"
    """Negatives of each positive: `all` items with interactions (exact softmax) or a `sampled` set. `auto`: all, up to
    30,000 items and unless hard or cross-batch negatives are set; with trained text encoders, in-batch negatives
    only."""
    uniform_negatives: int = Field(1024, ge=0)
    """Sampled softmax: items drawn uniformly from the catalogue per step, shared by the batch."""
    in_batch_negatives: int = Field(1024, ge=0)
    """Sampled softmax: items drawn from the positives of the batch per step, shared by the batch. They cost nothing to
    encode; use them together with uniform ones."""
    hard_negatives: int = Field(0, ge=0)
    """Sampled softmax: hard negatives mined per user of the batch, from the second epoch on: the highest-scoring items
    that the user has not interacted with. For catalogues that are large against the sample."""
    hard_negatives_interval: int = Field(1, ge=1)
    """Epochs between two minings of hard negatives."""
    hard_negatives_skip: int = Field(0, ge=0)
    """How many of the highest-scoring items are not used as hard negatives. Raise it against false negatives."""
    hard_negatives_score_ratio: float | None = Field(None, gt=0, le=1)
    """Upper limit for the score of a hard negative, as a fraction of the score of the user's newest positive, such as
    0.95. Set it against false negatives. None: no limit."""
    cross_batch_negatives: int = Field(0, ge=0)
    """Sampled softmax: positives of earlier batches, with their vectors at that step, used as negatives after the
    warm-up. For items that are expensive to encode."""
    log_q: Literal["negatives", "all", "none"] = "negatives"
    """Sampled softmax: log-Q correction for the sampling probability of the `negatives`, of the positive as well
    (`all`, the classic form), or of none. `none` penalises popular items."""
    symmetric_loss: bool = False
    """Add the loss in the other direction: find the user of each item among the users of the batch. For text search,
    where training pairs are few."""
    gradient_cache_chunk: int | None = Field(None, ge=1)
    """Encode histories in chunks of so many interactions (gradient caching), so that a large batch fits into memory. A
    step takes a third longer. None: the whole batch at once."""
    loss_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the matrix products in the loss. `auto`: bfloat16 where the hardware supports it, else float32."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW, for all weights but embedding tables and pretrained text encoders."""
    embedding_learning_rate: float = Field(0.1, gt=0)
    """Peak learning rate of row-wise Adagrad, for the embedding tables. Lower it for few interactions per user."""
    text_encoder_learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate of AdamW, for pretrained text encoders that are trained (`trained_layers`)."""
    gradient_checkpointing: bool = False
    """Recompute the activations of trained text encoders in the backward pass, so that a large batch fits into memory.
    A step takes a third longer."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW, for matrices; embedding tables have none."""
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the learning rates rise linearly to their peak."""
    validation: Literal["auto", "leave-one-out", "time", "users"] = "auto"
    """Validation data of early stopping: each user's last item (`leave-one-out`), all new items of the newest tenth of
    the interactions (`time`), or part of the items of held-out `users`. `auto`: leave-one-out for data with an order,
    else users."""
    refit: bool = False
    """After early stopping, train again on all data, validation included, for the best number of steps. No data is
    then left for `towers train-ranker`."""
    table_sharding: Sharding = "auto"
    """How several processes (`torchrun`) divide the embedding tables: by whole tables (`table-wise`), rows or columns.
    `auto`: torchrec's planner chooses between tables and rows, with which training is that of one process."""
    track: bool = True
    """Record the run in MLflow (`sqlite:///mlflow.db`, or the server that MLFLOW_TRACKING_URI names)."""
    experiment: str = "two-towers"
    """Name of the MLflow experiment."""
    report_people: int = Field(20, ge=0, le=100)
    """Number of users that `report.html` shows as examples, with history, recommendations and what they chose next; of
    near misses and failures at most ten each. 0: the report contains no personal data."""
    checkpoint_seconds: float = Field(60, ge=0)
    """Minimum time between two checkpoints, in seconds. A stopped run is resumed from the newest."""

    @model_validator(mode="after")
    def _settings_work_together(self) -> TrainingConfig:
        if mistakes := [*self._mistakes_of_sampling()]:
            raise ValueError("; ".join(mistakes))
        if self.gradient_cache_chunk is not None and self.gradient_cache_chunk > self.batch_size:
            raise ValueError(
                f"gradient_cache_chunk = {self.gradient_cache_chunk} exceeds batch_size = {self.batch_size} and has no "
                "effect; lower it or remove it"
            )
        return self

    def _mistakes_of_sampling(self) -> Iterator[str]:
        if self.uniform_negatives + self.in_batch_negatives == 0:
            yield "uniform_negatives and in_batch_negatives are both 0; raise one"
        if self.negatives == "all":
            sampled = {"hard_negatives": 0, "cross_batch_negatives": 0, "log_q": "negatives"}
            for name in (name for name, default in sampled.items() if getattr(self, name) != default):
                yield f'{name} needs sampled negatives, found negatives = "all"; remove it or set negatives = "sampled"'
        if self.hard_negatives == 0 and (self.hard_negatives_skip or self.hard_negatives_score_ratio is not None):
            yield "hard_negatives_skip and hard_negatives_score_ratio need hard_negatives, which is 0; raise it"


class ContinuationConfig(StrictTable):
    """`[continuation]`: what `towers train --continue` does with the interactions that came since."""

    epochs: int = Field(5, ge=0)
    """Passes over the new interactions. Raise it if the model follows them too slowly. 0: nothing is trained; new users
    and items are only taken in."""
    replay: float = Field(0.0, ge=0)
    """Old interactions that are trained on again for each new one, other ones in each pass. For layers that are
    trained, too (`layers_learning_rate_factor`), which forget what they are not trained on; training takes longer."""
    learning_rate_factor: float = Field(0.3, gt=0, le=1)
    """Factor of the learning rates of embedding tables and of trained text encoders. Lower it if the model gets worse
    on what it knew."""
    layers_learning_rate_factor: float = Field(0.0, ge=0, le=1)
    """Factor of the learning rate of the layers, which all users and items share. 0: they stay as they are, so that
    what the model knew is not forgotten. Where there are no embedding tables, `learning_rate_factor` takes its
    place."""


class PromotionConfig(StrictTable):
    """`[promotion]`: what `towers promote` demands of a bundle before it replaces the one in service."""

    metric: str = Field("ndcg_at_10", pattern=r"^[a-z]+_at_\d+$", examples=["ndcg_at_10"])
    """Metric of the comparison with the champion, such as `ndcg_at_10` or `recall_at_50`."""
    min_gain: float = 0.0
    """The whole 95 % interval of the gain on that metric, paired on the same questions, must be above this. Negative
    for a training that is repeated on new data: -0.005 demands that it is not worse by more than that."""
    guarded_facets: list[str] = Field(["activity", "popularity"])
    """Facets of an audit, such as a column, in whose slices the challenger must not be worse: the interval of the
    difference, widened for the number of slices, must not be below zero. Empty: none is guarded."""
    min_support: int = Field(30, ge=1)
    """Minimum number of queries of a guarded slice; smaller ones are not compared."""
    max_latency_ms: float = Field(50.0, gt=0)
    """Maximum p99 latency of a recommendation in milliseconds, measured in one thread, without HTTP."""
    max_size_mb: float = Field(4_000.0, gt=0)
    """Maximum size of the bundle with its index, in megabytes."""
    min_index_recall: float = Field(0.95, ge=0, le=1)
    """Minimum recall@100 of the index, as measured when it was built."""


class SearchRange(StrictTable):
    """Values between which `towers tune` looks for a setting; a list of values may stand in its place."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Look on a logarithmic scale: as often between 0.001 and 0.01 as between 0.01 and 0.1. For learning rates and
    sizes."""
    step: float | None = Field(None, gt=0)
    """Distance between two values, counted from `low`. None: any value, or every integer."""

    @model_validator(mode="after")
    def _is_a_range(self) -> SearchRange:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low above 0, found {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; remove one")
        return self


class RunConfig(StrictTable):
    """The whole of run.toml."""

    features: FeaturesConfig
    """Tables and features."""
    towers: TowersConfig = TowersConfig()
    """Architecture of the two towers."""
    training: TrainingConfig = TrainingConfig()
    """Data, loss, optimisation and tracking of training."""
    continuation: ContinuationConfig = ContinuationConfig()
    """Steps and replay of incremental training."""
    promotion: PromotionConfig = PromotionConfig()
    """Conditions under which `towers promote` replaces the bundle in service."""
    tune: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Settings that `towers tune` looks for, each with its values: `training.tuning.space` reads them. No other command
    uses them, and no bundle has them."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.features.interactions is None and self.towers.reads_history:
            raise ValueError(
                f"[towers] history_encoder = {self.towers.history_encoder!r} needs interactions, and none are given; "
                'set history_encoder = "none", or name the table under [features] interactions'
            )
        if self.training.targets == "any" and self.towers.time_bias:
            raise ValueError('[towers] time_bias needs an order, and targets = "any" has none; set time_bias = false')
        if self.towers.trend and self.features.columns.timestamp is None:
            raise ValueError(
                "[towers] trend needs the time of every interaction; name the column under [features.columns] "
                "timestamp, or remove trend"
            )
        if self.towers.trend and self.training.symmetric_loss:
            raise ValueError("symmetric_loss has no place for [towers] trend; remove one of them")
        if self.training.item_init == "spectral" and not self.towers.reads_history:
            raise ValueError(
                'item_init = "spectral" needs histories, and [towers] history_encoder = "none" reads none; set '
                'item_init = "random"'
            )
        dim = self.towers.embedding_dim
        for name, settings in {**self.features.item, **self.features.user}.items():
            if settings.frozen_dim is not None and settings.frozen_dim > dim:
                raise ValueError(
                    f"frozen_dim = {settings.frozen_dim} of {name!r} exceeds towers.embedding_dim = {dim}; set it to "
                    f"{dim} or less"
                )
        return self


def read_run_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Return the settings in `path`, with `table.key=value` overrides applied.

    Raises:
        DataError: The file or an override is wrong; every mistake is named.
    """
    values = read_run_values(path, overrides)
    return _with_places(parse_settings(RunConfig, values, str(path)), path.parent)


def read_run_values(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the content of `path` as it is written, unchecked, with `table.key=value` overrides applied.

    Raises:
        DataError: The file cannot be read, or an override is wrong.
    """
    values = read_toml(path)
    for override in overrides:
        _apply(values, override)
    return values


def with_settings(config: RunConfig, settings: Mapping[str, Any], source: str) -> RunConfig:
    """Return the settings with others in the place of some of them.

    Args:
        config: The settings.
        settings: Values, by `table.key`.
        source: What an error names.

    Raises:
        DataError: There is no such setting, or a value is wrong or does not fit the others.
    """
    values = config.model_dump(mode="json")
    for key, value in settings.items():
        *tables, name = key.split(".")
        table_in(values, tables, f"{source}: {key}")[name] = value
    return parse_settings(RunConfig, values, source)


def _with_places(config: RunConfig, folder: Path) -> RunConfig:
    """Return the settings with the folders of pretrained models in full, wherever the bundle is read later."""
    encoders = {
        name: settings.model_copy(update={"model": str((folder / settings.model).resolve())})
        if settings.url is None and (folder / settings.model).is_dir()
        else settings
        for name, settings in config.features.encoders.items()
    }
    return config.model_copy(update={"features": config.features.model_copy(update={"encoders": encoders})})


def setting_of(override: str) -> tuple[str, Any]:
    """Return the key, `table.key`, and the value of an override; a value that is not TOML is a text.

    Raises:
        DataError: It is not written as `table.key=value`.
    """
    key, equals, text = override.partition("=")
    if not equals or "." not in key:
        raise DataError(f"--set {override}: expected table.key=value, for example training.seed=1")
    try:
        return key.strip(), tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def _apply(values: dict[str, Any], override: str) -> None:
    key, value = setting_of(override)
    *tables, name = key.split(".")
    table_in(values, tables, f"--set {override}")[name] = value


def table_in(values: dict[str, Any], tables: list[str], source: str) -> dict[str, Any]:
    """Return the table at the end of a path of tables; those that are missing are made.

    Raises:
        DataError: What the path names is a value.
    """
    table = values
    for part in tables:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise DataError(f"{source}: {part!r} is a value, not a table; see the keys in run.toml")
        table = inner
    return table
