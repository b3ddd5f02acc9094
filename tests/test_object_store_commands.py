"""The commands on tables of an object store, from `init` to an index."""

from __future__ import annotations

import pytest

from features.config import FeaturesConfig
from features.tables.tables import data_digests, read_tables
from tests.object_store import BUCKET, SECRET, object_store, put_folder
from tests.running import quicker, write_small_shop
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main
from training.runs.provenance import data_sets


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    write_small_shop(folder, users=60, items=80, interactions=500)
    with object_store() as store:
        put_folder(store, "tables", folder)
        yield store


@pytest.fixture
def here(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def towers(capsys, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


def contents_fetched(store) -> list[str]:
    return [path for method, path, _ in store.requests if method == "GET" and path.endswith(".parquet")]


@pytest.mark.slow
def test_from_init_to_an_index(store, here, capsys):
    tables = f"s3://{BUCKET}/tables"
    words = ["--interactions", f"{tables}/inter*.parquet", "--items", f"{tables}/items.parquet"]
    assert towers(capsys, "init", *words, "--users", f"{tables}/users.parquet")[0] == 0
    settings = (here / "run.toml").read_text(encoding="utf-8")
    assert f'interactions = "{tables}/inter*.parquet"' in settings
    assert f'users = "{tables}/users.parquet"' in settings

    assert towers(capsys, "prepare", "run.toml")[0] == 0
    store.requests.clear()
    status, _, said = towers(capsys, "prepare", "run.toml")
    assert (status, "prepared already" in said) == (0, True)
    assert not [path for path in contents_fetched(store) if "interactions" in path], "a digest needs no content"
    content = store.client.get_object(Bucket=BUCKET, Key="tables/interactions.parquet")["Body"].read()
    store.put("tables/interactions-2.parquet", content)
    status, _, said = towers(capsys, "prepare", "run.toml")
    assert (status, "prepared already" in said) == (0, False)

    quicker(here / "run.toml", epochs=1, embedding_dim=8)
    text = (here / "run.toml").read_text(encoding="utf-8").replace("track = true", "track = false")
    (here / "run.toml").write_text(text, encoding="utf-8")
    status, _, said = towers(capsys, "train", "run.toml", "--no-baselines")
    assert status == 0, said
    assert towers(capsys, "index", "runs/run-1", "--items", f"{tables}/items.parquet", "--precompute", "0")[0] == 0
    assert ModelBundle.open(here / "runs" / "run-1").config.features.items == f"{tables}/items.parquet"
    written = [path for path in here.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not written, "keys are nowhere written down"


def test_the_record_of_a_run_names_the_object(store, here):
    address = f"s3://{BUCKET}/tables/interactions.parquet"
    config = FeaturesConfig(interactions=address)
    (found,) = data_sets(config, here, read_tables(config, here), data_digests(config, here))
    assert (found.dataset.source_type, found.dataset.source) == ("s3", f'{{"uri": "{address}"}}')
    assert found.dataset.name == "tables interactions"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://no-such-bucket/a.csv", "error: s3://no-such-bucket: no such bucket"),
        (f"s3://{BUCKET}/tables/none.csv", f"error: s3://{BUCKET}/tables/none.csv: no such object"),
        ("hdfs://node/a.csv", "error: hdfs://node/a.csv: hdfs:// cannot be read"),
        (f"s3://AKIA:{SECRET}@{BUCKET}/a.csv", "error: s3://***: an address with a key"),
        (
            f"s3://anonymous@{BUCKET}/tables/items.parquet",
            f"error: s3://anonymous@{BUCKET}/tables/items.parquet: access",
        ),
    ],
)
def test_an_error_is_one_line(store, here, capsys, address, said):
    status, out, err = towers(capsys, "init", "--interactions", address)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(said)
    assert SECRET not in err
    assert not list(here.iterdir())
