"""The arguments of a Python call as a request of the service: the same names, checks and errors as over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from features.errors import DataError
from serving.config import ServingConfig
from serving.http.contract.problems import Problem
from serving.http.contract.requests import Contract, read
from serving.http.contract.schemas import ItemQuery
from serving.recommend.interfaces import ItemFilters
from serving.recommend.request import RecommendRequest, UserProfile
from towers.api.tables import plain

_MOST = 2**31 - 1
_LIMITS = ("max_k", "max_offset", "max_users", "max_history", "max_slate_slots", "max_limited_users")
_Kind = TypeVar("_Kind", bound=ItemQuery)


def contract_of(settings: ServingConfig) -> Contract:
    """Return the request schemas without the limits that protect a service from its clients."""
    limits = dict.fromkeys((*_LIMITS, "max_explained_users"), _MOST)
    return Contract.of(settings.model_copy(update=limits))


def for_users(contract: Contract, filters: ItemFilters, given: Mapping[str, Any]) -> RecommendRequest:
    """Return the request for users by id.

    Args:
        contract: The request schemas.
        filters: The columns that conditions may name.
        given: The parameters; those that are None are left to their defaults.

    Raises:
        DataError: A parameter is invalid.
    """
    return _request(contract, contract.query_for_user, filters, given)[1]


def for_profile(
    contract: Contract, filters: ItemFilters, given: Mapping[str, Any]
) -> tuple[UserProfile, RecommendRequest]:
    """Return a described user, and the request; arguments as of `for_users`.

    Raises:
        DataError: A parameter is invalid.
    """
    body, request = _request(contract, contract.one, filters, given)
    return body.profile(), request


def for_item(contract: Contract, filters: ItemFilters, given: Mapping[str, Any]) -> RecommendRequest:
    """Return the request for similar items; arguments as of `for_users`.

    Raises:
        DataError: A parameter is invalid.
    """
    return _request(contract, contract.query, filters, given)[1]


def for_text(contract: Contract, filters: ItemFilters, given: Mapping[str, Any]) -> tuple[str, RecommendRequest]:
    """Return the text, the parameter `q`, and the request; arguments as of `for_users`.

    Raises:
        DataError: A parameter is invalid.
    """
    query, request = _request(contract, contract.text_query, filters, given)
    return query.q, request


def _request(
    contract: Contract, kind: type[_Kind], filters: ItemFilters, given: Mapping[str, Any]
) -> tuple[_Kind, RecommendRequest]:
    content = {name: plain(value) for name, value in given.items() if value is not None}
    try:
        query = read(kind, content)
        return query, contract.wanted(query, filters)
    except Problem as problem:
        mistakes = [f"{mistake['field']}: {mistake['detail']}" for mistake in problem.errors]
        raise DataError("; ".join(mistakes) or problem.detail) from None


Filter: TypeAlias = Mapping[str, Any]
"""Conditions on the items, by column of the catalogue: `{"brand": "Acme", "price": {"max": 50}}`."""
Ids: TypeAlias = Sequence[int | str] | np.ndarray | pd.Series | pd.Index
"""Ids, as in the tables."""
