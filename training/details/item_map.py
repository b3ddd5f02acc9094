"""The map of the items in a report: the service's, of the items with most interactions, with one person's on it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from features.ids import ITEM_ID
from features.messages import cut
from features.tables.tables import Catalog
from features.values.cells import are_short, text_of
from towers.item_map import MAX_SHOWN, Colouring, ItemMap, drawn_at
from training.details.examples import Examples
from training.details.figures import titles_of
from training.evaluation.details import MapGroup, MapPoint, ReportMap
from training.evaluation.evaluate import ScoringModel
from training.evaluation.two_tower_recommender import TwoTowerRecommender

_MAX_TITLE = 48


def report_map(
    recommender: ScoringModel,
    catalog: Catalog,
    title: str | None,
    interactions: Int[np.ndarray, "items"],
    examples: Examples,
) -> ReportMap | None:
    """Return the map of a report; None of a recommender without vectors of items.

    Args:
        recommender: The evaluated one.
        catalog: The items.
        title: Column of their titles.
        interactions: How many each has in the training data.
        examples: The first of the people in it is marked on the map.
    """
    if not isinstance(recommender, TwoTowerRecommender):
        return None
    marked = examples.marked()
    own = [] if marked is None else [marked.history, marked.recommended, marked.held_out]
    # Only those that are drawn are placed: a catalogue of millions takes no longer.
    popular = np.argsort(-interactions, kind="stable")[:MAX_SHOWN]
    rows = np.unique(np.concatenate([popular, *own])).astype(np.int64)
    vectors = recommender.item_vectors[rows].float().cpu().numpy()
    placed = ItemMap.of(vectors, interactions[rows])
    titles = titles_of(catalog, title, rows)
    points = [
        MapPoint(*drawn_at(position), cut(" ".join(titles[row].split()), _MAX_TITLE))
        for row, position in zip(rows.tolist(), placed.positions, strict=True)
    ]
    shown = [points[place] for place in placed.shown.tolist()]
    colours = Colouring.of(_texts(catalog.frame.iloc[rows[placed.shown]], title), len(shown))
    groups = tuple(MapGroup(value, tuple(shown[place] for place in places)) for value, places in colours.groups)
    if marked is None:
        return ReportMap(colours.column, groups, len(catalog))
    history, recommended, held_out = (
        tuple(points[place] for place in np.searchsorted(rows, some).tolist()) for some in own
    )
    return ReportMap(colours.column, groups, len(catalog), marked.user_id, history, recommended, held_out)


def _texts(items: pd.DataFrame, title: str | None) -> dict[str, list[str]]:
    """Return the cells of the columns that items may be coloured by: short ones, neither numbers nor dates."""
    columns = {name: items[name] for name in items.columns if name not in (ITEM_ID, title)}
    return {
        name: [text_of(cell) for cell in cells]
        for name, cells in columns.items()
        if not pd.api.types.is_any_real_numeric_dtype(cells)
        and not pd.api.types.is_datetime64_any_dtype(cells)
        and are_short(cells)
    }
