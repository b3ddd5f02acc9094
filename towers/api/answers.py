"""The answers of a `Recommender` as tables, and what a notebook shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from features.ids import ITEM_ID, USER_ID
from serving.catalog.ids import ExternalId
from serving.jobs.recommend_all import Audience, read_candidates
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.response import Recommendation, RecommendResponse
from towers.api.results import Card, Recommendations, Shelf, picture_column, picture_of

_SHOWN_USERS = 5
_SHOWN_ITEMS = 12
_SHOWN_HISTORY = 6
_NAMED = 3
"""How many ids a note names."""


class Answers:
    """Makes tables of what a recommender returns.

    Args:
        recommender: The recommender.
    """

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        self._state = recommender.state
        self._catalog = recommender.snapshot.catalog

    def for_audience(self, audience: Audience, request: RecommendRequest) -> Recommendations:
        """Return the rows that `towers recommend` writes for these users; with reasons those of the service."""
        frame, popular = (
            self._with_reasons(audience, request)
            if request.reasons and len(audience)
            else self._rows(audience, request)
        )

        def shelves() -> list[Shelf]:
            users = audience.user_ids[:_SHOWN_USERS].tolist()
            return [
                Shelf(f"user {user}", self._cards(frame[frame[USER_ID] == user]), self._history(user)) for user in users
            ]

        return Recommendations.of(frame, _note_of_popular(popular), shelves)

    def for_profile(self, profile: UserProfile, request: RecommendRequest) -> Recommendations:
        """Return the recommendations for a described user, whose `user_id` is missing."""
        response = self._recommender.recommend(profile, request)
        frame = self._frame(response.items, {USER_ID: pd.Series([None] * len(response.items), dtype=object)})

        def shelves() -> list[Shelf]:
            known = [item_id for item_id in reversed(profile.history) if self._state.items.row(item_id) is not None]
            heading = ", ".join(["described user", *(f"{name} {value}" for name, value in profile.attributes.items())])
            return [Shelf(heading, self._cards(frame), tuple(map(self._card, known[:_SHOWN_HISTORY])))]

        return Recommendations.of(frame, _notes_of(response), shelves)

    def listed(
        self, items: Sequence[Recommendation], heading: str, notes: Sequence[str] = (), *, is_history: bool = False
    ) -> Recommendations:
        """Return items that are not for a user.

        Args:
            items: The items.
            heading: What they are, for a notebook.
            notes: Sentences for the reader.
            is_history: Whether they have no scores.
        """
        frame = self._frame(items, {})
        frame = frame.drop(columns=["score"]) if is_history else frame
        return Recommendations.of(frame, notes, lambda: [Shelf(heading, self._cards(frame), label="items")])

    def title(self, item_id: ExternalId) -> str:
        """Return the title of an item; its id if it has none."""
        row, titles = self._state.items.row(item_id), self._state.titles
        return str(item_id) if row is None or titles is None else titles[row]

    def _rows(self, audience: Audience, request: RecommendRequest) -> tuple[pd.DataFrame, list[Any]]:
        frame = read_candidates(self._recommender, audience, request).to_pandas()
        popular = frame.loc[frame.pop("fallback").notna(), USER_ID].unique()
        if self._state.titles is not None:
            rows = self._catalog.rows_of(frame[ITEM_ID].to_numpy(self._catalog.item_ids.dtype))
            frame["title"] = [self._state.titles[row] for row in rows.tolist()]
        return frame, popular.tolist()

    def _with_reasons(self, audience: Audience, request: RecommendRequest) -> tuple[pd.DataFrame, list[Any]]:
        users = audience.user_ids.tolist()
        responses = self._recommender.recommend_many(users, request)
        frames = [self._frame(one.items, {USER_ID: user}) for user, one in zip(users, responses, strict=True)]
        popular = [user for user, response in zip(users, responses, strict=True) if response.fallback is not None]
        return pd.concat(frames, ignore_index=True), popular

    def _frame(self, items: Sequence[Recommendation], first: dict[str, Any]) -> pd.DataFrame:
        columns: dict[str, Any] = {
            ITEM_ID: [item.item_id for item in items],
            "score": np.array([item.score for item in items], dtype=np.float32),
            "rank": np.array([item.rank for item in items], dtype=np.int32),
        }
        if self._state.titles is not None:
            columns["title"] = [item.title for item in items]
        if any(item.because is not None for item in items):
            columns["because"] = [[asdict(reason) for reason in item.because or ()] for item in items]
        return pd.DataFrame({**first, **columns})

    def _history(self, user_id: ExternalId) -> tuple[Card, ...]:
        history = self._recommender.history(user_id, _SHOWN_HISTORY) or []
        return tuple(self._card(item.item_id) for item in history)

    def _cards(self, frame: pd.DataFrame) -> tuple[Card, ...]:
        cards = []
        for row in frame.head(_SHOWN_ITEMS).to_dict("records"):
            because = tuple(str(reason["title"] or reason["item_id"]) for reason in row.get("because", ()))
            cards.append(self._card(row[ITEM_ID], f"{row['score']:.3f}" if "score" in row else "", because))
        return tuple(cards)

    def _card(self, item_id: ExternalId, score: str = "", because: tuple[str, ...] = ()) -> Card:
        row, picture = self._state.items.row(item_id), None
        if self._pictures is not None and row is not None:
            picture = picture_of(self._catalog.frame[self._pictures].iloc[row])
        return Card(self.title(item_id), score, picture, because)

    @cached_property
    def _pictures(self) -> str | None:
        return picture_column(self._catalog)


def _note_of_popular(users: Sequence[Any]) -> list[str]:
    if not users:
        return []
    named = ", ".join(map(repr, users[:_NAMED])) + (", ..." if len(users) > _NAMED else "")
    which = f"{len(users):,} users" if len(users) > 1 else "a user"
    return [f"the model knows nothing about {which} ({named}): popular items"]


def _notes_of(response: RecommendResponse) -> list[str]:
    notes = []
    if response.unknown_items:
        notes.append(f"history: not in the catalogue and ignored: {', '.join(map(repr, response.unknown_items))}")
    for column, values in response.unknown_values.items():
        notes.append(f"attributes: {column}: unknown in training and ignored: {', '.join(map(repr, values))}")
    if response.fallback is not None:
        notes.append("the model knows nothing about this user: popular items")
    return notes
