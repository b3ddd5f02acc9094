"""`towers search`: shows the items most relevant to a text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from serving.config import ServingConfig
from serving.jobs.open import open_recommender, parse_conditions
from serving.recommend.request import RecommendRequest


def show_search(
    bundle: Path, words: str, k: int, conditions: Sequence[str] = (), settings: ServingConfig | None = None
) -> None:
    """Print the k items most relevant to a text, as a service with these settings returns them.

    Raises:
        BundleError: The bundle or the index cannot be used.
        DataError: The model has no text features, or a condition is invalid.
    """
    recommender = open_recommender(bundle, settings)
    answer = recommender.search(words, RecommendRequest(k, where=parse_conditions(conditions, recommender)))
    if answer.fallback is not None:
        click.echo(f"note: the model knows none of the words; showing {answer.fallback} items instead", err=True)
    for item in answer.items:
        title = "" if item.title is None else f"  {textwrap.shorten(item.title, 80, placeholder='...')}"
        click.echo(f"{item.rank:4}  {item.score:.3f}  {item.item_id}{title}")
