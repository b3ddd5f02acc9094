"""The address of the page as a request of the API: its subject, its parameters, and the links of the page.

All names but those in `OWN` are query parameters of the API, so that the page can be asked everything that the API can.
Fields of a form that were left empty are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from features.ids import MAX_ID_CHARACTERS
from serving.bounds import MAX_SEARCH_CHARACTERS, json_value
from serving.http.contract.problems import Mistake, Problem
from serving.http.contract.requests import AS_WRITTEN, REPEATED
from serving.http.contract.schemas import UserQuery
from serving.http.page.columns import CatalogColumns
from serving.search.conditions import DEFAULT_OPERATOR, OPERATORS

MAX_PICKED = 50
"""Maximum number of items that a user is made of in the page."""
NUM_ITEMS = 12
"""Number of items that are shown by default."""
DIVERSITY = "0.2"
"""Diversity of recommendations by default, of which people see more kinds of items.

On the generated shop (size tiny, 300 users) ten recommendations are then of 4.2 categories instead of 2.5, and their
expected recall@10 is 0.569 instead of 0.577, within the interval of +-0.025. With 0.3 they are of 5.4 categories, and
it is 0.535; leaving out near-duplicates (`distinct = 0.9`) costs far more, 0.346, because people choose them.
"""
OWN = ("user", "item", "q", "history", "random", "view", "show", "most", "per", "colour")
"""Names of the page's own parameters."""

Given = Mapping[str, Sequence[str]]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PageQuery:
    """What the page shows.

    Attributes:
        user_id: The user; empty: none.
        item_id: The item whose similar items are shown; empty: none.
        q: The text that is searched for; empty: none.
        history: Ids of the items that a user is made of, oldest first.
        view: `map`, or empty for lists.
        settings: All other parameters, as they stand in the address.
    """

    user_id: str
    item_id: str
    q: str
    history: tuple[str, ...]
    view: str
    settings: Pairs

    @classmethod
    def of(cls, given: Given) -> PageQuery:
        """Return the query of an address, bounded.

        Raises:
            Problem: There are too many items to make a user of.
        """
        history = tuple(dict.fromkeys(one[:MAX_ID_CHARACTERS] for one in given.get("history", ()) if one))
        if len(history) > MAX_PICKED:
            detail = f"expected at most {MAX_PICKED} items, found {len(history):,}; remove some"
            raise Problem.invalid(Mistake(field="history", detail=detail))
        subjects = ("user", "item", "q", "history", "random", "view")
        return cls(
            _first(given, "user")[:MAX_ID_CHARACTERS],
            _first(given, "item")[:MAX_ID_CHARACTERS],
            _first(given, "q")[:MAX_SEARCH_CHARACTERS],
            history,
            "map" if _first(given, "view") == "map" else "",
            tuple((name, text) for name in given if name not in subjects for text in given[name] if text.strip()),
        )

    @property
    def kind(self) -> str:
        """What is shown: `search`, `similar`, `user`, `profile`, or `start` if nothing is asked for."""
        named = (("search", self.q), ("similar", self.item_id), ("user", self.user_id), ("profile", self.history))
        return next((kind for kind, value in named if value), "start")

    def about(self, **subject: Any) -> PageQuery:
        """Return the query with the same settings for another user, item, text or history."""
        return replace(self, **{"user_id": "", "item_id": "", "q": "", "view": "", **subject})

    def picking(self, item_id: str) -> PageQuery:
        """Return the query for a user made of one more item, the newest."""
        kept = [one for one in self.history if one != item_id]
        return self.about(history=(*kept, item_id)[-MAX_PICKED:])

    def without(self, item_id: str) -> PageQuery:
        """Return the query for a user made of one item less."""
        return replace(self, history=tuple(one for one in self.history if one != item_id))

    @property
    def subject(self) -> Pairs:
        """The parameters that say what is shown."""
        named = (("user", self.user_id), ("item", self.item_id), ("q", self.q), ("view", self.view))
        return (*((name, value) for name, value in named if value), *(("history", one) for one in self.history))

    @property
    def as_map(self) -> PageQuery:
        """The same query, shown on the map."""
        return replace(self, view="map")

    @property
    def as_list(self) -> PageQuery:
        """The same query, shown as lists."""
        return replace(self, view="")

    @property
    def plain(self) -> PageQuery:
        """The query without any settings."""
        return replace(self, settings=())

    @property
    def pairs(self) -> Pairs:
        """All parameters of the address."""
        return (*self.subject, *self.settings)

    def values(self, name: str) -> list[str]:
        """Return the values of a setting."""
        return [value for own, value in self.settings if own == name]

    def value(self, name: str) -> str:
        """Return the value of a setting that has one; empty if it is not set."""
        return next(iter(self.values(name)), self.defaults.get(name, ""))

    @property
    def defaults(self) -> dict[str, str]:
        """The parameters of which the page has defaults of its own."""
        found = {"k": str(NUM_ITEMS), "reasons": "1"}
        return found if self.kind in ("search", "similar") else {**found, "diversity": DIVERSITY}

    def api(self, kind: type[UserQuery] | Any, max_k: int) -> dict[str, list[str]]:
        """Return the parameters of the API, those left out that its endpoint does not have.

        Args:
            kind: Schema of the endpoint's query parameters.
            max_k: Maximum of `k`, to which the page's default is limited.
        """
        given = {name: [value] for name, value in self.defaults.items()}
        given["k"] = [str(min(NUM_ITEMS, max_k))]
        for name in dict.fromkeys(name for name, _ in self.settings if name not in OWN):
            given[name] = self.values(name)
        if self.value("per") and self.value("most"):
            given["at_most"] = [orjson.dumps({self.value("per"): _json(self.value("most"))}).decode()]
        if self.q:
            given["q"] = [self.q]
        absent = UserQuery.model_fields.keys() - kind.model_fields.keys()
        return {name: values for name, values in given.items() if name not in absent}


def body_of(given: Given, columns: CatalogColumns) -> dict[str, Any]:
    """Return query parameters as the fields of a request body: the conditions on columns become `filter`."""
    body: dict[str, Any] = {}
    conditions: dict[str, dict[str, Any]] = {}
    for name, texts in given.items():
        if name not in UserQuery.model_fields and name in columns.conditions:
            column, operator = columns.conditions[name]
            several = OPERATORS[operator].takes_list
            conditions.setdefault(column, {})[operator] = list(texts) if several else texts[0]
        elif name in REPEATED:
            body[name] = list(texts)
        else:
            body[name] = texts[0] if name in AS_WRITTEN else _json(texts[0])
    shortened = {
        column: found[DEFAULT_OPERATOR] if found.keys() == {DEFAULT_OPERATOR} else found
        for column, found in conditions.items()
    }
    written = body.get("filter", {})
    if shortened and isinstance(written, dict):  # what is no object stays as it is, for the API to refuse
        body["filter"] = {**written, **shortened}
    return body


def _json(text: str) -> Any:
    try:
        return json_value(text)
    except ValueError:
        return text


def _first(given: Given, name: str) -> str:
    values: Iterable[str] = given.get(name, ())
    return next(iter(values), "").strip()
