from __future__ import annotations

import pytest

from features.shop import generate_shop
from towers.api.train import train

QUICK = {"epochs": 2, "embedding_dim": 16, "num_layers": 1, "track": False}
"""Settings of a model that is trained in seconds."""


@pytest.fixture(scope="session")
def shop():
    return generate_shop(0, 150, 100, 1_500)


@pytest.fixture(scope="session")
def interactions(shop):
    return shop.interactions


@pytest.fixture(scope="session")
def items(shop):
    """The catalogue, with a column of pictures and titles that are markup."""
    frame = shop.items.copy()
    frame["image_url"] = [f"https://pictures.test/{item_id}.jpg?size=s&x=1" for item_id in frame["item_id"]]
    frame["title"] = [f"<b>{title}</b>" for title in frame["title"]]
    return frame


@pytest.fixture(scope="session")
def users(shop):
    return shop.users


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The working folder of the trained model; not to be changed."""
    return tmp_path_factory.mktemp("python")


@pytest.fixture
def here(folder, monkeypatch):
    """Work in that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TOWERS_TRACEBACK", raising=False)


@pytest.fixture(scope="session")
def trained(folder, interactions, items, users):
    """A model trained from DataFrames, in `runs/run-1`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return train(interactions, items=items, users=users, progress=False, **QUICK)


@pytest.fixture
def model(trained, here):
    return trained
