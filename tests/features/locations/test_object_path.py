"""Tables of an object store, over HTTP: read as those of this machine are; and each failure has its line."""

from __future__ import annotations

import gzip
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError, UnavailableError
from features.locations import object_stores
from features.locations.table_path import table_path
from features.tables import table_files
from features.tables.table_files import approximate_rows, place, read_blocks, read_table
from features.tables.table_parts import table_digest, table_exists, table_parts
from tests.object_store import BUCKET, SECRET, google_store, object_store, put_folder

ROWS = pd.DataFrame(
    {"user_id": [1, 2, 3, 1, 2, 3], "item_id": list("abcabc"), "price": ["1.5", "NA", "", "2", "3", "4"]}
)


@pytest.fixture(scope="module")
def running():
    with object_store() as store:
        yield store


@pytest.fixture
def store(running, monkeypatch):
    """The store, as this process reads it, with time-outs that a test can wait for."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_stores, "SILENT_SECONDS", 1)
    monkeypatch.setattr(object_stores, "ATTEMPTS", 1)
    running.fault = None
    object_stores._file_system.cache_clear()
    yield running
    running.fault = None
    object_stores._file_system.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, running) -> Path:
    """A folder of tables; `s3://shop/all` is a copy of it."""
    folder = tmp_path_factory.mktemp("tables")
    for name, rows in (("country=de", ROWS[:4]), ("country=fr", ROWS[4:])):
        for kind in ("csv", "parquet"):
            (folder / kind / name).mkdir(parents=True)
        rows.to_csv(folder / "csv" / name / "part-0.csv", index=False)
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / "parquet" / name / "part-0.parquet")
    (folder / "csv" / "_SUCCESS").touch()
    (folder / "csv" / ".part-0.csv.crc").write_bytes(b"crc")
    (folder / "csv" / "_temporary").mkdir()
    (folder / "csv" / "_temporary" / "part-1.csv").write_bytes(b"half")
    (folder / "packed-orders.csv.gz").write_bytes(gzip.compress(ROWS.to_csv(index=False).encode()))
    (folder / "docs" / "deep").mkdir(parents=True)
    (folder / "docs" / "tea.md").write_bytes(b"\xef\xbb\xbf# Tea\r\nBoil water.\r\n")
    (folder / "docs" / "deep" / "oil.txt").write_text("Press olives.", encoding="utf-8")
    put_folder(running, "all", folder)
    return folder


TABLES = [
    "csv",
    "csv/",
    "csv/*/part-0.csv",
    "csv/country=d[ef]",
    "csv/**/part-0.csv",
    "**/part-0.parquet",
    "parquet",
    "parquet/country=fr/part-0.parquet",
    "packed-*.csv.gz",
    "packed-orders.csv.gz",
    "docs",
]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_one_of_this_machine(store, folder, name):
    here, there = table_path(folder, name), table_path(folder, f"s3://{BUCKET}/all/{name}")
    expected, found = read_table(here), read_table(there)
    pd.testing.assert_frame_equal(found.frame, expected.frame)
    assert [note.partition(":")[2] for note in found.notes] == [note.partition(":")[2] for note in expected.notes]
    assert table_exists(there)
    if name == "docs":
        return
    assert [part.values for part in table_parts(there)] == [part.values for part in table_parts(here)]
    assert approximate_rows(there) == approximate_rows(here)
    assert place(there, 1) == place(here, 1)


def test_a_table_of_google_is_read_as_one_of_this_machine(folder, monkeypatch):
    with google_store() as store:
        put_folder(store, "all", folder)
        for variable, value in store.environment.items():
            monkeypatch.setenv(variable, value)
        for name in TABLES:
            path = table_path(folder, f"gs://anonymous@{BUCKET}/all/{name}")
            pd.testing.assert_frame_equal(read_table(path).frame, read_table(table_path(folder, name)).frame)
            assert table_exists(path)
        path = table_path(folder, f"gs://anonymous@{BUCKET}/all/csv")
        before = table_digest(path)
        store.put("all/csv/country=de/part-0.csv", ROWS[:2].to_csv(index=False).encode())
        assert table_digest(path) != before
        with pytest.raises(DataError, match=r"all/none\.csv: no such object"):
            read_table(table_path(folder, f"{path.parent}/none.csv"))
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 1)
    object_stores._file_system.cache_clear()
    with pytest.raises(UnavailableError, match="does not answer"):
        read_table(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_is_read_in_parts_of_a_block(store, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 1 << 20)
    rows = pd.DataFrame({"user_id": np.arange(250_000), "text": ["twelve bytes"] * 250_000, "unread": 1 / 3})
    path = tmp_path / f"large.{kind}"
    if kind == "csv":
        rows.to_csv(path, index=False)
    else:
        pq.write_table(
            pa.Table.from_pandas(rows), path, row_group_size=50_000, compression="none", use_dictionary=False
        )
    store.put(path.name, path.read_bytes())
    store.requests.clear()
    blocks = list(read_blocks(table_path(tmp_path, f"s3://{BUCKET}/{path.name}"), {"user_id", "text"}, []))
    pd.testing.assert_frame_equal(pd.concat(blocks), pd.concat(read_blocks(path, {"user_id", "text"}, [])))
    ends = [one.removeprefix("bytes=").split("-") for _, _, one in store.requests if one]
    sizes = [int(end) - int(start) + 1 for start, end in ends]
    assert len(sizes) > 2
    assert max(sizes) <= 5 << 20
    if kind == "parquet":
        assert sum(sizes) < path.stat().st_size * 0.85, "a column that nobody wants is not fetched"


def test_the_digest_changes_with_an_object_and_needs_no_content(store, folder):
    name = f"s3://{BUCKET}/digest"
    store.put("digest/a.csv", b"a,b\n1,2\n")
    first = table_digest(table_path(folder, name))
    store.requests.clear()
    assert table_digest(table_path(folder, name)) == table_digest(table_path(folder, f"{name}/")) == first
    assert {method for method, path, _ in store.requests if path.endswith(".csv")} == set()
    single = table_digest(table_path(folder, f"{name}/a.csv"))
    store.put("digest/a.csv", b"a,b\n1,22\n")
    assert table_digest(table_path(folder, name)) != first
    assert table_digest(table_path(folder, f"{name}/a.csv")) != single
    changed = table_digest(table_path(folder, name))
    store.put("digest/b.csv", b"a,b\n1,2\n")
    assert table_digest(table_path(folder, name)) != changed


def test_an_object_that_changes_while_it_is_read_is_an_error(store, folder):
    name = f"s3://{BUCKET}/changing/a.csv"
    store.put("changing/a.csv", b"a,b\n1,2\n")
    (part,) = table_parts(table_path(folder, f"s3://{BUCKET}/changing"))
    store.put("changing/a.csv", b"a,b\n1,2\n3,4\n")
    with pytest.raises(DataError, match=f"{name}: changed while it was read; run the command again"):
        part.path.read_bytes()
    with pytest.raises(DataError, match=f"{name}: changed while it was read"), table_path(folder, name).open() as file:
        store.put("changing/a.csv", file.read() + b"5,6\n")
    store.put("changing/a.parquet", b"PAR1")
    listed = next(one for one in table_path(folder, f"s3://{BUCKET}/changing").files() if one.suffix == ".parquet")
    store.put("changing/a.parquet", b"no Parquet")
    with pytest.raises(DataError, match=r"a\.parquet: changed while it was read"):
        table_files._num_rows(table_files.Part(listed))


def test_what_is_not_there_is_named(store, folder):
    with pytest.raises(
        DataError, match=r"s3://shop/all/packed-order.csv.gz: no such object; check the address; did you"
    ):
        read_table(table_path(folder, f"s3://{BUCKET}/all/packed-order.csv.gz"))
    with pytest.raises(DataError, match=r"s3://shop/all/x-\*.csv: no CSV or Parquet file there"):
        read_table(table_path(folder, f"s3://{BUCKET}/all/x-*.csv"))
    with pytest.raises(DataError, match=r"s3://no-such-bucket: no such bucket \(.*\); check the name"):
        read_table(table_path(folder, "s3://no-such-bucket/orders.csv"))
    with pytest.raises(DataError, match=r"s3://shop/all/gone.csv: no such object"):
        table_path(folder, f"s3://{BUCKET}/all/gone.csv").read_bytes()
    assert not table_exists(table_path(folder, f"s3://{BUCKET}/all/none"))


def answering(status: str, body: str = "", **headers: str):
    """A store that answers everything in one way, as S3 does."""

    def answer(app, environ, start):
        content = f"<Error>{body}</Error>".encode() if environ["REQUEST_METHOD"] != "HEAD" else b""
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content))), *headers.items()])
        return [content]

    return answer


def silent(app, environ, start):
    time.sleep(3)
    with suppress(OSError):
        return app(environ, start)


def cut(app, environ, start):
    content = b"".join(app(environ, start))
    return (
        [content[: len(content) // 2]]
        if environ["REQUEST_METHOD"] == "GET" and "csv" in environ["PATH_INFO"]
        else [content]
    )


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (answering("403 Forbidden", "<Code>AccessDenied</Code>"), DataError, "access is denied .*AWS_PROFILE"),
        (
            answering("301 Moved", **{"x-amz-bucket-region": "eu-west-1"}),
            DataError,
            "in another region .*set AWS_REGION",
        ),
        (answering("503 Slow Down", "<Code>SlowDown</Code>"), UnavailableError, "overloaded or fails .*again later"),
        (silent, UnavailableError, "does not answer .*check the network"),
        (cut, UnavailableError, "download was cut off .*run the command again"),
    ],
)
def test_a_failure_is_one_line_with_its_remedy_and_soon(store, folder, fault, kind, said):
    store.fault = fault
    begun = time.monotonic()
    with pytest.raises(kind, match=rf"^s3://shop/all/csv/country=de/part-0.csv: .*{said}") as error:
        read_table(table_path(folder, f"s3://{BUCKET}/all/csv/country=de/part-0.csv"))
    assert time.monotonic() - begun < 10
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)


def test_wrong_keys_have_their_remedy(store, folder):
    store.fault = answering("403 Forbidden", "<Code>InvalidAccessKeyId</Code><Message>no such key</Message>")
    with pytest.raises(DataError, match=r"credentials are wrong or have expired .*renew AWS_ACCESS_KEY_ID"):
        table_path(folder, f"s3://{BUCKET}/all").files()


def test_a_store_that_is_not_there(store, folder, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="does not answer"):
        read_table(table_path(folder, f"s3://{BUCKET}/all/csv"))


@pytest.mark.parametrize("address", ["localhost:9000", "http://ann:pa55word@localhost", "http://localhost/path"])
def test_an_endpoint_that_is_none(store, folder, monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    with pytest.raises(DataError, match=r"AWS_ENDPOINT_URL_S3: expected http://HOST:PORT") as error:
        read_table(table_path(folder, f"s3://{BUCKET}/all/csv"))
    assert "pa55word" not in str(error.value)


def test_anonymous_reading_signs_nothing(store, folder):
    signed = []

    def look(app, environ, start):
        signed.append("HTTP_AUTHORIZATION" in environ)
        return app(environ, start)

    store.put("open/a.csv", b"a,b\n1,2\n")
    store.client.put_object_acl(Bucket=BUCKET, Key="open/a.csv", ACL="public-read")
    store.fault = look
    read_table(table_path(folder, f"s3://{BUCKET}/open/a.csv"))
    assert all(signed)
    signed.clear()
    read_table(table_path(folder, f"s3://anonymous@{BUCKET}/open/a.csv"))
    assert signed
    assert not any(signed)
    with pytest.raises(DataError, match=r"^s3://anonymous@shop/all/packed-orders\.csv\.gz: access is denied"):
        read_table(table_path(folder, f"s3://anonymous@{BUCKET}/all/packed-orders.csv.gz"))
