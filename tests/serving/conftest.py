from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.serving.doubles import country, make_retriever, make_tables


@pytest.fixture
def shop():
    """Ten people with integer ids, a hundred items with text ids and titles; 107 and later did nothing yet."""
    rng = np.random.default_rng(0)
    items = [f"item-{number:03d}" for number in range(100)]
    # The item of number n is n-th in popularity: the smaller, the more often.
    weights = 1 / (1 + np.arange(100.0))
    histories = {
        user: rng.choice(items, size=rng.integers(3, 30), replace=False, p=weights / weights.sum()).tolist()
        for user in range(100, 107)
    }
    users = pd.DataFrame({"user_id": list(range(100, 110)), "country": ["de", "fr"] * 4 + [None, None]})
    return make_tables(histories, items, titles=[f"Thing {item}" for item in items], users=users)


@pytest.fixture
def retriever(shop):
    return make_retriever(shop, user=country())
