"""The model card: README.md of a bundle."""

from __future__ import annotations

from features.config import FeatureSettings
from training.config import RunConfig
from training.evaluation.report import EvaluationReport
from training.loop.fit import TrainedModel


def model_card(config: RunConfig, learned: TrainedModel, report: EvaluationReport, origin: str | None = None) -> str:
    """Return what a bundle is, what it was trained on, how good it was found, and what to do with it, in Markdown.

    `origin` is the model whose training was continued, None if none was.
    """
    train = learned.data.train
    continued = "" if origin is None else f", continued from {origin}"
    return f"""\
# A two-tower recommender

A user tower and an item tower with vectors of {config.towers.embedding_dim} dimensions, trained by Two Towers. The
score of an item for a user is the dot product of their unit vectors.

## Trained on

- {train.num_events:,} interactions of {len(train):,} users with {len(learned.data.catalog):,} items; the newest \
{config.features.max_history} of each user are read.
- Item features: {_listed(config.features.item) or "`item_id` (id)"}.
- User features: {_listed(config.features.user) or "none; users are represented by their history"}.
- {learned.progress.best_step:,} steps, seed {config.training.seed}{continued}.

## Evaluation

{report.to_markdown()}

## Use

```
towers serve .
towers recommend . --output candidates.parquet
```
"""


def unlearned_card(config: RunConfig, num_items: int) -> str:
    """Return the model card of an untrained bundle, in Markdown."""
    return f"""\
# A search by words

Text vectors of {config.towers.embedding_dim} dimensions, made from words by Two Towers. The score of an item for a
query is the dot product of their unit vectors. Nothing was trained: there were no pairs of query and item.

- {num_items:,} items; what is read of them: {_listed(config.features.item)}.

## Use

```
towers serve .
towers search . "some words"
```
"""


def _listed(features: dict[str, FeatureSettings]) -> str:
    return ", ".join(f"`{name}` ({setting.kind})" for name, setting in features.items())
