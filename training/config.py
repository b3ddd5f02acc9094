"""`[training]`, and the whole of run.toml: what the experimenter decides, recorded in the bundle."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from features.config import FeaturesConfig, StrictTable, parse_settings, read_toml
from features.errors import DataError
from towers.config import TowersConfig


class TrainingConfig(StrictTable):
    """`[training]`: how the towers learn."""

    seed: int = Field(0, ge=0)
    """Decides every draw: initial weights, order, negatives, dropout. Same seed, same weights, bit for bit on a CPU."""
    start: Literal["random", "spectral"] = "random"
    """Where items begin: at `random`, or where a decomposition of who had what and of the items' attributes puts them
    (`spectral`), for data of few users without order, with low learning rates."""
    start_regularisation: float = Field(300.0, gt=0)
    """Spectral start: the more, the less rare co-occurrences count."""
    start_attributes: float = Field(4.0, ge=0)
    """Spectral start: how many users an attribute of an item counts for."""
    epochs: int = Field(100, ge=1)
    """The most passes over the training data; early stopping usually ends before."""
    patience: int = Field(2, ge=1)
    """Epochs without a better validation N@10 after which the learning rates are lowered, and in the end training
    stops."""
    rate_cuts: int = Field(2, ge=0)
    """How often the learning rates are lowered before training stops."""
    batch_events: int = Field(2048, ge=1)
    """Interactions per step, at most: small tables take smaller steps, so that an epoch has about fifty."""
    targets: Literal["next", "future", "any"] = "next"
    """What is predicted at each point of a history: the `next` interaction, what comes within the hour; one drawn from
    all that are yet to come (`future`), asked for when it came, what somebody will have at some time; or `any` of the
    others from a random part of them, as always of data without an order."""
    shown: float = Field(0.5, ge=0, lt=1)
    """With targets `any`: share of a user's items that is read before the first is predicted. Whoever asks a service
    has most of his past with him."""
    negatives: Literal["auto", "all", "sampled"] = "auto"
    """What the positive competes with: `all` items (exact softmax), or `sampled` ones. `auto`: all of them up to
    30,000 items, unless hard or remembered ones are asked for; where items' texts go through a model that is trained,
    the others of the batch."""
    uniform_negatives: int = Field(1024, ge=0)
    """Sampled softmax: items drawn uniformly from the catalogue, shared by the batch."""
    in_batch_negatives: int = Field(1024, ge=0)
    """Sampled softmax: items drawn from the batch's own positives, shared by the batch."""
    hard_negatives: int = Field(0, ge=0)
    """Sampled softmax: items mined for each user of the batch for being nearest to him and not his, shared by the
    batch; beside draws. From the second epoch on."""
    hard_negatives_epochs: int = Field(1, ge=1)
    """Epochs from one mining to the next."""
    hard_negatives_skip: int = Field(0, ge=0)
    """How many of the nearest items are not mined, because the user might like them after all."""
    hard_negatives_below: float | None = Field(None, gt=0, le=1)
    """Mine only items that score below this share of the user's newest positive. None: however high they score."""
    memory_negatives: int = Field(0, ge=0)
    """Sampled softmax: positives of earlier batches, with the vectors they had then; beside draws.
    After the warm-up."""
    log_q: Literal["negatives", "all", "none"] = "negatives"
    """Sampled softmax: what is corrected for how often items are drawn: the `negatives`, the positive as well (`all`,
    the classic form), or nothing."""
    symmetric: bool = False
    """Whether the item, too, has to find who chose it, among all who choose in the batch. For searches by texts: a pair
    teaches more, and queries are found by documents as well."""
    chunk_events: int | None = Field(None, ge=1)
    """Histories are read in chunks of so many interactions, so that a large batch fits into memory. A step takes a
    third longer, and more where a chunk is a few histories only. None: at once."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products of the loss. `auto`: bfloat16 where the processor computes in it, else float32."""
    learning_rate: float = Field(2e-3, gt=0)
    """Of AdamW, for everything but the embedding tables."""
    table_learning_rate: float = Field(0.1, gt=0)
    """Of row-wise Adagrad, for the embedding tables."""
    encoder_learning_rate: float = Field(5e-5, gt=0)
    """Of AdamW, for pretrained models of texts that are trained."""
    recompute_texts: bool = False
    """Whether these models compute what lies between words and vector again for the gradient rather than keep it, so
    that a large batch fits into memory. A step takes a third longer."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW."""
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the learning rates rise to their values."""
    validation: Literal["auto", "leave-one-out", "users"] = "auto"
    """What is held out for early stopping: every user's last item, or a part of the items of some users. `auto`: the
    first where the data has an order, the second where it has none."""
    refit: bool = False
    """After early stopping, train once more on everything, validation data included, for the steps found best."""
    track: bool = True
    """Record the run in MLflow (`sqlite:///mlflow.db`, or the server that MLFLOW_TRACKING_URI names)."""
    experiment: str = "two-towers"
    """The MLflow experiment."""
    checkpoint_seconds: float = Field(60, ge=0)
    """How often training can be resumed from: at least this many seconds lie between two checkpoints."""

    @model_validator(mode="after")
    def _settings_work_together(self) -> TrainingConfig:
        if mistakes := [*self._mistakes_of_sampling()]:
            raise ValueError("; ".join(mistakes))
        if self.chunk_events is not None and self.chunk_events > self.batch_events:
            raise ValueError(
                f"chunk_events = {self.chunk_events} is more than batch_events = {self.batch_events} and would divide "
                "nothing; lower it or leave it out"
            )
        return self

    def _mistakes_of_sampling(self) -> Iterator[str]:
        if self.uniform_negatives + self.in_batch_negatives == 0:
            yield "uniform_negatives and in_batch_negatives are both 0; raise one"
        if self.negatives == "all":
            sampled = {"hard_negatives": 0, "memory_negatives": 0, "log_q": "negatives"}
            for name in (name for name, usual in sampled.items() if getattr(self, name) != usual):
                yield f'{name} is about a sample, and negatives = "all" draws none; leave it out or set "sampled"'
        if self.hard_negatives == 0 and (self.hard_negatives_skip or self.hard_negatives_below is not None):
            yield "hard_negatives_skip and hard_negatives_below say what is mined, and hard_negatives is 0; raise it"


class RunConfig(StrictTable):
    """The whole of run.toml."""

    features: FeaturesConfig
    """The tables, and what is read from them."""
    towers: TowersConfig = TowersConfig()
    """The shape of the two towers."""
    training: TrainingConfig = TrainingConfig()
    """How they learn."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        if self.features.interactions is None and self.towers.reads_history:
            raise ValueError(
                'without interactions nobody has a history: set [towers] history = "none", or name them under '
                "[features] interactions"
            )
        if self.training.targets == "any" and self.towers.time_bias:
            raise ValueError(
                'targets = "any" has no order and [towers] time_bias looks at times; set time_bias = false'
            )
        if self.training.start == "spectral" and not self.towers.reads_history:
            raise ValueError(
                'start = "spectral" puts items where histories find them, and [towers] history = "none" reads none; '
                'set start = "random"'
            )
        width = self.towers.width
        for name, settings in {**self.features.item, **self.features.user}.items():
            if settings.fixed is not None and settings.fixed > width:
                raise ValueError(
                    f"fixed = {settings.fixed} of {name!r} is more than towers.width = {width}; make it {width} or less"
                )
        return self


def read_run_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Return the settings in `path`, with `table.key=value` overrides applied.

    Raises:
        DataError: The file or an override is wrong; every mistake is named.
    """
    values = read_toml(path)
    for override in overrides:
        _apply(values, override)
    return _with_places(parse_settings(RunConfig, values, str(path)), path.parent)


def _with_places(config: RunConfig, folder: Path) -> RunConfig:
    """Return the settings with the folders of pretrained models in full, wherever the bundle is read later."""
    encoders = {
        name: settings.model_copy(update={"model": str((folder / settings.model).resolve())})
        if settings.url is None and (folder / settings.model).is_dir()
        else settings
        for name, settings in config.features.encoders.items()
    }
    return config.model_copy(update={"features": config.features.model_copy(update={"encoders": encoders})})


def _apply(values: dict[str, object], override: str) -> None:
    key, equals, text = override.partition("=")
    *tables, name = key.strip().split(".")
    if not equals or not tables:
        raise DataError(f"--set {override}: expected table.key=value, for example training.seed=1")
    table = values
    for part in tables:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise DataError(f"--set {override}: {part!r} is a value, not a table; see the keys in run.toml")
        table = inner
    try:
        table[name] = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        table[name] = text.strip()
