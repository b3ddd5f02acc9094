"""The search space: which settings are searched, and between which values.

It is either the table `[tune]` of run.toml or chosen by the data and the settings. In both, the values of run.toml are
part of it, because the first trial is run.toml as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from features.errors import DataError, Problems
from features.messages import shown
from features.settings import parse_settings
from training.config import RunConfig, SearchRange, with_settings
from training.evaluation.advice import Facts
from training.loop.fit import check_choices
from training.loop.negatives import FULL_SOFTMAX_ITEMS

Space = Mapping[str, BaseDistribution]
"""The values of each setting, by `table.key`. Choices are JSON texts, so that a choice may be a list."""

_RANGE_KEYS = {*SearchRange.model_fields}
_TUNED_FEATURES = ("max_history", "frozen_dim", "trainable_residual")
"""Settings of `[features]` that change the model only; the others decide the tables and the questions."""
_COMPARED = {
    "training.seed": "the trials have the same seed, so that they differ by their settings; remove it",
    "training.validation": "it decides the questions, and trials on other questions cannot be compared; remove it",
    "training.refit": "a refitted model cannot be measured; set it in the run.toml that is found",
    "training.track": "it does not change the model; remove it",
    "training.experiment": "it does not change the model; remove it",
    "training.checkpoint_seconds": "it does not change the model; remove it",
    "training.loss_precision": "it decides speed rather than quality; remove it",
}


def declared_space(config: RunConfig, source: str) -> Space:
    """Return the search space of `[tune]`; empty where run.toml has no such table.

    Args:
        config: The settings of run.toml.
        source: Name of the settings file, for errors.

    Raises:
        DataError: A setting of `[tune]` does not exist, cannot be searched, or has values that are not valid; all
            mistakes at once.
    """
    space: dict[str, BaseDistribution] = {}
    problems = Problems()
    for key, values in _leaves(config.tune):
        with problems:
            space[key] = _declared(config, key, values, f"{source}: [tune]")
    problems.raise_all()
    return space


def default_space(config: RunConfig, facts: Facts, num_items: int) -> Space:
    """Return what matters for such data: learning rates, regularisation and size in any case.

    Settings that change what a service can do (`time_bias` and `trend` need the time of a request, `frozen_dim` is for
    new items, about which few validation questions are) are left to run.toml.

    Args:
        config: The settings of run.toml.
        facts: Of the data.
        num_items: Items in the catalogue.
    """
    return dict(_candidates(config, facts, num_items))


def settings_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a trial as settings, by `table.key`.

    Example:
        >>> settings_of({"towers.dropout": 0.25, "towers.trend": "[1, 7]", "towers.history_encoder": '"hstu"'})
        {'towers.dropout': 0.25, 'towers.trend': [1, 7], 'towers.history_encoder': 'hstu'}
    """
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in params.items()}


def params_of(config: RunConfig, space: Space) -> dict[str, Any]:
    """Return the values that the settings themselves have in the space."""
    current = config.model_dump(mode="json")
    return {
        key: json.dumps(_value(current, key)) if isinstance(values, CategoricalDistribution) else _value(current, key)
        for key, values in space.items()
    }


def described(values: BaseDistribution) -> str:
    """Return the values of a setting in words.

    Example:
        >>> described(FloatDistribution(0.001, 0.1, log=True)), described(CategoricalDistribution(("32", "64")))
        ('0.001 to 0.1, logarithmic', '32, 64')
    """
    if isinstance(values, CategoricalDistribution):
        return ", ".join(map(str, values.choices))
    assert isinstance(values, FloatDistribution | IntDistribution)
    scale = ", logarithmic" if values.log else ""
    step = f", step {values.step:g}" if values.step not in (None, 1) else ""
    return f"{values.low:g} to {values.high:g}{scale}{step}"


def space_in_words(space: Space) -> dict[str, str]:
    """Return the values of each setting in words."""
    return {key: described(values) for key, values in space.items()}


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of `[tune]` with what stands for its values; tables may be nested or have dotted names."""
    for name, inner in table.items():
        if isinstance(inner, Mapping) and not _RANGE_KEYS & inner.keys():
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _declared(config: RunConfig, key: str, said: Any, source: str) -> BaseDistribution:
    _check_comparable(key, source)
    values = _distribution(config, key, said, source)
    for value in _extremes(values):
        check_choices(with_settings(config, {key: value}, source))
    current = params_of(config, {key: values})[key]
    if not _contains(values, current):
        raise DataError(
            f"{source} {key}: the value in run.toml, {shown(current)}, is not one of {described(values)}; the first "
            "trial is run.toml as it is, so include it, or change it there"
        )
    return values


def _check_comparable(key: str, source: str) -> None:
    if key in _COMPARED:
        raise DataError(f"{source} {key}: {_COMPARED[key]}")
    table, _, name = key.partition(".")
    if table == "features" and name.split(".")[-1] not in _TUNED_FEATURES:
        raise DataError(
            f"{source} {key}: it may decide the tables and the questions, and trials on other questions cannot be "
            f"compared; of [features] only {', '.join(_TUNED_FEATURES)} can be searched"
        )


def _distribution(config: RunConfig, key: str, said: Any, source: str) -> BaseDistribution:
    if isinstance(said, list):
        if len(said) < 2:
            raise DataError(f"{source} {key}: expected at least two values, found {len(said)}; add one or remove it")
        return CategoricalDistribution(tuple(dict.fromkeys(_json(value, key, source) for value in said)))
    if not isinstance(said, Mapping):
        raise DataError(
            f"{source} {key}: expected a list of values, such as [1, 2], or {{ low = 1, high = 8 }}, found "
            f"{shown(said)}; write one of the two"
        )
    limits = parse_settings(SearchRange, dict(said), f"{source} {key}")
    current = _value(config.model_dump(mode="json"), key)
    is_whole = all(one is None or float(one).is_integer() for one in (limits.low, limits.high, limits.step))
    if isinstance(current, bool | str | list | dict):
        raise DataError(f"{source} {key}: it is no number, so it has no low and high; write a list of its values")
    if isinstance(current, int) and is_whole:
        return IntDistribution(int(limits.low), int(limits.high), log=limits.log, step=int(limits.step or 1))
    return FloatDistribution(limits.low, limits.high, log=limits.log, step=limits.step)


def _json(value: Any, key: str, source: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise DataError(f"{source} {key}: {shown(value)} is no value of a setting; remove it") from None


def _extremes(values: BaseDistribution) -> Sequence[Any]:
    if isinstance(values, CategoricalDistribution):
        return [json.loads(str(choice)) for choice in values.choices]
    assert isinstance(values, FloatDistribution | IntDistribution)
    return [values.low, values.high]


def _contains(values: BaseDistribution, value: Any) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    assert isinstance(values, FloatDistribution | IntDistribution)
    if not isinstance(value, int | float) or not values.low <= value <= values.high:
        return False
    steps = 0.0 if values.step is None else (value - values.low) / values.step
    return math.isclose(steps, round(steps), abs_tol=1e-6)


def _value(settings: Mapping[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _candidates(config: RunConfig, facts: Facts, num_items: int) -> Iterator[tuple[str, BaseDistribution]]:
    towers, training = config.towers, config.training
    yield "training.learning_rate", _around(training.learning_rate, 5)
    yield "training.embedding_learning_rate", _around(training.embedding_learning_rate, 5)
    if training.weight_decay:
        yield "training.weight_decay", _around(training.weight_decay, 10)
    width = towers.embedding_dim
    widths = _choices(config, "towers.embedding_dim", [width // 2, width, width * 2])
    yield from widths
    if training.item_init == "spectral":
        yield "training.spectral_regularisation", _around(training.spectral_regularisation, 10)
        if training.spectral_attribute_weight:
            yield "training.spectral_attribute_weight", _around(training.spectral_attribute_weight, 4)
    if towers.reads_history:
        yield "towers.dropout", FloatDistribution(0.0, max(0.6, towers.dropout))
        yield "towers.id_dropout", FloatDistribution(0.0, max(0.5, towers.id_dropout))
        yield from _of_histories(config, facts, [value for _, values in widths for value in _extremes(values)])
    else:
        yield from _choices(config, "training.symmetric_loss", [False, True])
        batch = training.batch_size
        yield from _choices(config, "training.batch_size", [batch // 4, batch // 2, batch])
    is_finetuned = any(encoder.is_trained for encoder in config.features.encoders.values())
    if is_finetuned:
        yield "training.text_encoder_learning_rate", _around(training.text_encoder_learning_rate, 5)
    if _samples_negatives(config, num_items, is_finetuned):
        for name in ("uniform_negatives", "in_batch_negatives"):
            if number := getattr(training, name):
                yield f"training.{name}", IntDistribution(max(1, number // 4), number * 4, log=True)
        yield from _choices(config, "training.log_q", ["negatives", "all"])


def _of_histories(config: RunConfig, facts: Facts, widths: Sequence[int]) -> Iterator[tuple[str, BaseDistribution]]:
    towers = config.towers
    if towers.history_encoder in ("transformer", "hstu"):
        yield from _choices(config, "towers.history_encoder", ["transformer", "hstu"])
        yield "towers.num_layers", IntDistribution(1, max(4, towers.num_layers))
        heads = [one for one in (1, 2, 4) if all(width % one == 0 for width in widths)]
        yield from _choices(config, "towers.num_heads", heads)
        yield from _choices(config, "towers.sum_residual", [False, True])
        if facts.is_ordered and config.training.targets != "any":
            yield from _choices(config, "training.targets", ["next", "future"])
    elif towers.history_encoder in ("mean", "attention-pooling"):
        yield from _choices(config, "towers.history_encoder", ["mean", "attention-pooling"])
    if config.training.targets == "any" or not facts.is_ordered:
        yield "training.history_fraction", FloatDistribution(0.0, max(0.9, config.training.history_fraction))


def _samples_negatives(config: RunConfig, num_items: int, is_finetuned: bool) -> bool:
    settings = config.training
    if settings.negatives == "auto":
        return is_finetuned or num_items > FULL_SOFTMAX_ITEMS or bool(settings.hard_negatives)
    return settings.negatives == "sampled"


def _around(value: float, factor: float) -> FloatDistribution:
    return FloatDistribution(value / factor, value * factor, log=True)


def _choices(config: RunConfig, key: str, values: Sequence[Any]) -> list[tuple[str, BaseDistribution]]:
    """Return the setting with those of the values that are valid, and its own; nothing if that is the only one."""
    own = _value(config.model_dump(mode="json"), key)
    valid = [value for value in values if value == own or _is_valid(config, key, value)]
    texts = tuple(dict.fromkeys(json.dumps(value) for value in (*valid, own)))
    return [(key, CategoricalDistribution(texts))] if len(texts) > 1 else []


def _is_valid(config: RunConfig, key: str, value: Any) -> bool:
    try:
        with_settings(config, {key: value}, key)
    except DataError:
        return False
    return True
