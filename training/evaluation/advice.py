"""What to try where a baseline is ahead of the model or level with it: a table of rules, each with its reason.

A baseline that is ahead knows something that the model does not use. A rule names it, says for which data and settings
it is of use, and what to set. `advise` returns at most three, the likeliest first, each with its command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from features.sequences.split import Split
from training.config import RunConfig

MOST = 3
FEW_EVENTS = 20
"""Interactions per user below which a model is easily too large for them."""
FEW_USERS = 5_000
MANY_REPEATS = 0.2
"""Share of the interactions that repeat an earlier one from which repeats are worth asking for."""

KNOWLEDGE = {
    "order": ("sequential", "session", "transition"),
    "words": ("tf-idf", "bm25"),
    "together": ("ease", "ials", "cosine"),
    "popularity": ("popular",),
}
"""What a baseline knows, and parts of the names of baselines that know it. The mix of two names neither part; which of
the others are ahead says more."""


@dataclass(frozen=True)
class Advice:
    """Settings to try.

    Attributes:
        reason: Why they may help here.
        command: The command that tries them.
    """

    reason: str
    command: str


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        config: The settings of the training.
        num_users: Users in the training data.
        num_events: Interactions in the training data.
        repeats: Share of the interactions whose item was in the user's history already.
        is_ordered: Whether the order of a user's interactions is known.
        has_times: Whether their times are.
    """

    config: RunConfig
    num_users: int
    num_events: int
    repeats: float
    is_ordered: bool
    has_times: bool

    @classmethod
    def of(cls, config: RunConfig, split: Split) -> Facts:
        """Return those of a split's training data."""
        train = split.train
        repeats = 1 - float(train.first_visits().mean()) if train.num_events else 0.0
        return cls(config, len(train), train.num_events, repeats, train.is_ordered, train.times is not None)

    @property
    def reads_order(self) -> bool:
        """Whether the history encoder reads the order of the interactions."""
        return self.config.towers.history_encoder not in ("mean", "attention-pooling", "none")

    @property
    def texts(self) -> list[str]:
        """Text columns of items that no pretrained model encodes."""
        return [name for name, one in self.config.features.item.items() if one.kind == "text" and one.encoder is None]


@dataclass(frozen=True)
class Rule:
    """Something to try.

    Attributes:
        knowledge: Of baselines that know this; None: of any.
        applies: Whether it is of use for such data and changes these settings.
        settings: `table.key=value` each, for `--set`; none: the command is `instead`.
        reason: Why, after the names of the baselines.
        instead: Another command than that with the settings.
        is_tried: Whether a short training shows if it helps: it asks the same questions, and takes no longer.
    """

    knowledge: str | None
    applies: Callable[[Facts], bool]
    settings: Callable[[Facts], Iterable[str]]
    reason: str
    instead: str = ""
    is_tried: bool = True


def _fixed_words(facts: Facts) -> Iterator[str]:
    dim = min(64, facts.config.towers.embedding_dim)
    for name in facts.texts:
        if facts.config.features.item[name].frozen_dim is None:
            yield f"features.item.{name}.frozen_dim={dim}"
    yield f"towers.id_dropout={max(0.3, facts.config.towers.id_dropout)}"


def _trained_words(facts: Facts) -> Iterator[str]:
    features = facts.config.features
    for side, columns in (("item", features.item), ("user", features.user)):
        for name, one in columns.items():
            if one.frozen_dim is not None and not one.trainable_residual:
                yield f"features.{side}.{name}.trainable_residual=true"


def _decomposed(facts: Facts) -> Iterator[str]:
    yield from ("training.item_init=spectral", "towers.history_encoder=mean", "training.targets=any")
    yield from (f"towers.{name}=false" for name in ("time_bias", "sum_residual") if getattr(facts.config.towers, name))
    heads = facts.config.towers.num_heads
    yield from (f"towers.embedding_dim={heads * -(-512 // heads)}", "towers.dropout=0.0")
    yield from ("towers.id_dropout=0.0", "training.learning_rate=0.00001", "training.embedding_learning_rate=0.00003")


RULES: tuple[Rule, ...] = (
    Rule(
        "order",
        lambda facts: facts.is_ordered and (not facts.reads_order or facts.config.training.targets != "next"),
        lambda facts: ("towers.history_encoder=transformer", "training.targets=next"),
        "knows which item follows which; let the model read the order and predict the next item",
    ),
    Rule(
        "order",
        lambda facts: facts.reads_order and facts.config.towers.embedding_dim < 128,
        lambda facts: (
            "towers.embedding_dim=128",
            "towers.num_layers=4",
            "towers.num_heads=4",
            f"towers.dropout={max(0.3, facts.config.towers.dropout)}",
        ),
        "knows which item follows which; a larger model, as that of --preset large, learns more of it",
    ),
    Rule(
        "words",
        lambda facts: any(facts.config.features.item[name].frozen_dim is None for name in facts.texts),
        _fixed_words,
        "finds items, new ones among them, by their words; let text vectors that are not trained place them",
    ),
    Rule(
        "words",
        lambda facts: not facts.config.towers.reads_history and any(_trained_words(facts)),
        _trained_words,
        "compares words as they are; let training correct the text vectors instead of replacing them",
    ),
    Rule(
        "together",
        lambda facts: (
            facts.config.training.item_init == "random"
            and facts.config.towers.reads_history
            and (not facts.is_ordered or facts.num_users < FEW_USERS)
        ),
        _decomposed,
        "knows which items occur together; with few users or no order start from a decomposition that knows it, too, "
        "and change it slowly",
    ),
    Rule(
        "together",
        lambda facts: facts.is_ordered and facts.reads_order and facts.config.training.targets == "next",
        lambda facts: ("training.targets=future", "towers.sum_residual=true"),
        "reads the whole history and ignores its order; predict any later item instead of the next one, and add the "
        "sum of the history",
    ),
    Rule(
        "popularity",
        lambda facts: facts.config.training.log_q == "none",
        lambda facts: ("training.log_q=negatives",),
        'is ahead, and log_q = "none" penalises popular items',
    ),
    Rule(
        "popularity",
        lambda facts: facts.has_times and facts.config.towers.reads_history and not facts.config.towers.trend,
        lambda facts: ("towers.trend=[1, 7, 30]",),
        "knows what is popular at the time; let the score read the popularity of the last day, week and month",
    ),
    Rule(
        "popularity",
        lambda facts: facts.has_times and facts.config.towers.reads_history and not facts.config.training.refit,
        lambda facts: (),
        "knows what is popular at the time; a ranker reads the popularity of the last day, week and month",
        instead="towers train-ranker runs/latest",
        is_tried=False,
    ),
    Rule(
        None,
        lambda facts: (
            facts.config.towers.reads_history
            and facts.num_events < FEW_EVENTS * facts.num_users
            and (facts.config.towers.dropout < 0.5 or facts.config.training.embedding_learning_rate > 0.05)
        ),
        lambda facts: ("towers.dropout=0.5", "training.embedding_learning_rate=0.05"),
        f"is ahead or level, and there are fewer than {FEW_EVENTS} interactions per user; learn them more slowly",
    ),
    Rule(
        None,
        lambda facts: facts.repeats >= MANY_REPEATS and facts.config.features.recommend_seen is False,
        lambda facts: ("features.recommend_seen=true",),
        "is ahead or level where repeats are left out, and many interactions are repeats; see whether they are wanted",
        is_tried=False,
    ),
    Rule(
        None,
        lambda facts: facts.config.towers.time_bias,
        lambda facts: ("towers.time_bias=false",),
        "is ahead or level; see whether it does better without the times",
    ),
    Rule(
        None,
        lambda facts: facts.config.training.patience < 4,
        lambda facts: ("training.patience=4",),
        "is ahead or level; training may have stopped before it learned enough",
        is_tried=False,
    ),
)
"""The rules, the likeliest to help first."""


def advise(rivals: Collection[str], facts: Facts, command: Sequence[str]) -> tuple[Advice, ...]:
    """Return what to try, at most `MOST`, the likeliest first.

    Args:
        rivals: Names of the recommenders that the model is not ahead of.
        facts: Of the data and the settings.
        command: The words of the command that trains or evaluates with other settings, without these.
    """
    found: list[Advice] = []
    changed: set[str] = set()
    for rule in RULES:
        names = [name for name in rivals if rule.knowledge is None or _knows(name, rule.knowledge)]
        if not names or not rule.applies(facts):
            continue
        settings = list(rule.settings(facts))
        keys = {setting.partition("=")[0] for setting in settings}
        if keys & changed or len(found) == MOST:
            continue
        changed |= keys
        words = shlex.join([*command, *as_flags(settings)])
        found.append(Advice(f"{names[0]} {rule.reason}:", rule.instead or words))
    return tuple(found)


def as_flags(settings: Iterable[str]) -> list[str]:
    """Return settings, `table.key=value` each, as words of a command."""
    return [word for setting in settings for word in ("--set", setting)]


def _knows(name: str, knowledge: str) -> bool:
    return any(part in name.lower() for part in KNOWLEDGE[knowledge])
