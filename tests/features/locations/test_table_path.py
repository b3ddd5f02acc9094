"""What names a table: paths of this machine, and addresses of object stores that hold no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from features.locations.object_path import ObjectPath
from features.locations.table_path import table_path
from features.settings import parse_settings

SECRET = "wJalrXUt/FEMI:K7MDENG"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("s3://shop/orders/", "s3://shop/orders"),
        ("s3://shop/2024/orders-*.csv", "s3://shop/2024/orders-*.csv"),
        ("s3://shop/user@example/time=10:00/part?.csv", "s3://shop/user@example/time=10:00/part?.csv"),
        ("s3://anonymous@open-data/items.parquet", "s3://anonymous@open-data/items.parquet"),
        ("gs://shop", "gs://shop"),
    ],
)
def test_an_address_is_relative_to_nothing(name, address):
    path = table_path(Path("folder"), name)
    assert isinstance(path, ObjectPath)
    assert str(path) == str(path.absolute()) == str(path.resolve()) == address


@pytest.mark.parametrize("name", ["orders.csv", "a/b:c/*.csv", "/data/s3/x.csv"])
def test_a_path_is_relative_to_the_folder(name):
    assert table_path(Path("folder"), name) == Path("folder") / name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hdfs://node/orders", "hdfs://node/orders: hdfs:// cannot be read; expected s3:// or gs:// or a path"),
        (f"http://ann:{SECRET}@web/orders.csv", "http://ann:***@web/orders.csv: http:// cannot be read"),
        (f"s3://AKIA:{SECRET}@shop/orders", "s3://***: an address with a key"),
        ("s3://AKIA@shop/orders", "s3://***: an address with a key"),
        (f"s3://shop/orders?secret_key={SECRET}", "s3://***: an address with a key"),
        ("s3://localhost:9000/shop/orders", "AWS_ENDPOINT_URL_S3 in the environment"),
        ("s3:/shop/orders", "write s3://shop/orders, and not as a Path"),
        ("s3://", "expected s3://BUCKET/NAME"),
        ("s3://sh*p/orders", "expected s3://BUCKET/NAME"),
        ("gs://shop//orders", "expected gs://BUCKET/NAME, with no empty part"),
    ],
)
def test_another_address_is_refused_without_its_secret(name, said):
    with pytest.raises(DataError) as error:
        table_path(Path(), name)
    assert said in str(error.value)
    assert SECRET not in str(error.value)
    with pytest.raises(DataError) as again:
        parse_settings(FeaturesConfig, {"interactions": "a.csv", "items": name}, "run.toml")
    assert str(again.value) == f"run.toml: items: {error.value}"


def test_the_parts_of_an_address():
    path = table_path(Path(), "s3://shop/2024/orders.csv.gz")
    assert (path.name, path.stem, path.suffix) == ("orders.csv.gz", "orders.csv", ".gz")
    assert [str(folder) for folder in path.parents] == ["s3://shop/2024", "s3://shop"]
    assert path.relative_to(path.parents[1]).as_posix() == "2024/orders.csv.gz"
    assert path == table_path(Path("elsewhere"), str(path))
    assert not path.is_relative_to(Path("/"))
    with pytest.raises(ValueError, match=r"s3://shop/2024/orders\.csv\.gz is not in gs://shop"):
        path.relative_to(table_path(Path(), "gs://shop"))
