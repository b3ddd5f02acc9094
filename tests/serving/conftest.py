from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.config import FeaturesConfig
from features.errors import DataError
from features.featurizer.column_contract import ColumnContract
from features.featurizer.featurizer import Featurizer
from features.schema import Schema
from features.sequences.sequences import Sequences
from features.tables.tables import read_tables
from serving.jobs.build_index import build_index
from tests import postgres as postgres_server
from tests.serving.doubles import country, make_recommender, make_tables
from towers.bundle.bundle import ModelBundle, write_bundle
from towers.config import TowersConfig
from towers.model.two_tower import TwoTower
from training.config import RunConfig
from training.tasks.protocols import early_stopping_split, holds_out_users


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
def recommender(shop):
    return make_recommender(shop, user=country())


SETTINGS = {
    "features": {
        "interactions": "clicks.csv",
        "items": "products.csv",
        "users": "people.csv",
        "columns": {"user_id": "user", "item_id": "product", "timestamp": "time"},
        "title": "title",
        "max_history": 20,
        "item": {
            "item_id": {"kind": "id"},
            "title": {"kind": "text"},
            "price": {"kind": "number"},
            "tags": {"kind": "categories", "separator": "|"},
        },
        "user": {"country": {"kind": "category"}, "age": {"kind": "number"}},
    },
    "towers": {"embedding_dim": 16, "num_layers": 1, "num_heads": 2},
}


def write_shop(folder: Path) -> None:
    """120 products, 80 people (every tenth without a click), some people without a row."""
    rng = np.random.default_rng(5)
    words = np.array("red green blue small large wooden steel lamp chair table cup bowl".split())  # noqa: SIM905
    folder.mkdir(parents=True, exist_ok=True)
    products = pd.DataFrame({"product": [f"p{number}" for number in rng.permutation(120)]})
    products["title"] = [" ".join(rng.choice(words, size=3)) for _ in range(120)]
    products["price"] = rng.lognormal(3, 1, size=120).round(2)
    products["tags"] = ["|".join(rng.choice(words, size=2)) for _ in range(120)]
    products.to_csv(folder / "products.csv", index=False)
    people = pd.DataFrame({"user": range(1000, 1080)})
    people["country"] = rng.choice(["de", "fr", "pl"], size=80)
    people["age"] = rng.integers(18, 80, size=80)
    people.to_csv(folder / "people.csv", index=False)
    active = [user for user in range(1000, 1090) if user % 10]
    clicks = pd.DataFrame({"user": rng.choice(active, size=2500)})
    clicks["product"] = [f"p{number}" for number in np.minimum(119, rng.exponential(25, size=2500)).astype(int)]
    clicks["time"] = 1_700_000_000 + np.arange(2500) * 60
    clicks.to_csv(folder / "clicks.csv", index=False)


def write_untrained(folder: Path, tables_folder: Path, settings: dict, seed: int = 0) -> None:
    """A bundle whose weights are the random ones that training would begin with: real in all but its taste."""
    features, towers = FeaturesConfig(**_typed(settings["features"])), TowersConfig(**settings["towers"])
    tables = read_tables(features, tables_folder)
    train = tables.interactions.sequences(tables.catalog)
    featurizer = Featurizer.fit(Schema.from_config(features), tables.catalog, tables.users, train)
    torch.manual_seed(seed)
    model = TwoTower(towers, featurizer, features.max_history)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)  # zeros would say nothing of order and time
    write_bundle(
        folder,
        settings=settings,
        tables_folder=tables_folder,
        data_digests={},
        featurizer=featurizer,
        contract=ColumnContract.of(featurizer, tables),
        weights=model.state_dict(),
        report={},
        pages={},
        primary_metric={"ndcg_at_10": 0.0},
        validation_users=validation_users_of(settings, train, len(tables.catalog)),
    )


def validation_users_of(settings: dict, sequences: Sequences, num_items: int) -> np.ndarray | None:
    """The users that a training with these settings would hold out; None where it holds out interactions of all."""
    config = RunConfig(**_typed(settings))
    if config.training.refit:
        return None
    try:
        split = early_stopping_split(config, sequences, num_items)
    except DataError:  # too few for any training
        return None
    return split.validation.history.user_ids if holds_out_users(split) else None


def _typed(features: dict) -> dict:
    return json.loads(json.dumps(features))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """Real bundles in `runs/model` and, looking at the clock, `runs/timed`; no index; the tables in `data`. Not to be
    changed."""
    folder = tmp_path_factory.mktemp("pristine")
    write_shop(folder / "data")
    write_untrained(folder / "runs" / "model", folder / "data", SETTINGS)
    timed = {**SETTINGS, "towers": {**SETTINGS["towers"], "time_bias": True}}
    write_untrained(folder / "runs" / "timed", folder / "data", timed)
    return folder


@pytest.fixture
def real_bundle(pristine) -> ModelBundle:
    return ModelBundle.open(pristine / "runs" / "model")


@pytest.fixture(scope="session")
def two_models(pristine, tmp_path_factory):
    """`runs/one` and `runs/two` with their indexes; not to be changed."""
    folder = tmp_path_factory.mktemp("two") / "runs"
    for seed, name in enumerate(("one", "two")):
        write_untrained(folder / name, pristine / "data", SETTINGS, seed)
        build_index(ModelBundle.open(folder / name), {})
    return folder


def model_of(runs, name):
    return ModelBundle.open(runs / name).version


@pytest.fixture(scope="session")
def pgvector():
    """The address of a PostgreSQL server with pgvector; the test is skipped where there is none."""
    pytest.importorskip("pgvector", reason="pgvector is not installed")
    programs = postgres_server.with_pgvector()
    initdb, postgres = (str(programs / name) for name in ("initdb", "postgres"))
    with postgres_server.server(initdb, postgres, "-c", "fsync=off") as (address, _):
        yield address


@pytest.fixture(params=["pgvector", "qdrant"])
def index_address(request, tmp_path):
    """The setting `index` for each engine that tests can start."""
    if request.param == "pgvector":
        name = f"t{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
        return f"{request.getfixturevalue('pgvector')}?table={name}"
    pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    return f"qdrant:///{tmp_path / 'vectors'}?collection=items"
