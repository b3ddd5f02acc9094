from __future__ import annotations

import gzip
import hashlib
import json
import shlex
import tomllib
import urllib.error
import zipfile
from io import BytesIO

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from click.testing import CliRunner

from features.commands import dataset
from features.config import FeaturesConfig
from features.datasets import amazon
from features.datasets.download import Original, cache_folder, download
from features.datasets.public import PUBLIC_SETS, PublicSet
from features.datasets.source import OriginalFiles
from features.errors import DataError
from features.inference.inference import Files, infer_features, render_run_toml
from features.settings import parse_settings
from features.tables.tables import read_frame, read_tables

ML_100K = {
    "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t5\t881250948\n",
    "u.item": (
        "242|Kolya (1996)|24-Jan-1997||http://a.example|0|0|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
        "302|L'Été, A.K.A. Summer (1997)|01-Jan-1997||http://b.example|0|0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0\n"
        "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    ),
    "u.user": "186|39|F|executive|00000\n196|49|M|writer|55105\n",
}
ML_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n2::661::4::978298413\n",
    "movies.dat": "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n1193::Été: One (1975)::Drama\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::02460\n",
}
ML_CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,2.5,1260759144\n1,20,3.0,1260759179\n2,20,4.0,835355493\n",
    "movies.csv": (
        'movieId,title,genres\n10,"American President, The (1995)",Comedy|Drama\n20,Babylon 5,(no genres listed)\n'
    ),
    "tags.csv": (
        "userId,movieId,tag,timestamp\n1,10,Politics,1\n2,10,funny,2\n3,10,politics,3\n3,10,a|b,3\n1,10, ,3\n"
    ),
}
GOODBOOKS = {
    "ratings.csv": "user_id,book_id,rating\n7,2,5\n3,1,4\n7,1,3\n",
    "books.csv": (
        "book_id,goodreads_book_id,isbn,isbn13,authors,original_publication_year,title,average_rating,ratings_count\n"
        "1,2767052,0439023483,9.78043902348e+12,Suzanne Collins,2008.0,The Hunger Games,4.34,4780653\n"
        '2,3,439554934,9.78043955493e+12,"J.K. Rowling, Mary GrandPré",1997.0,Philosopher\'s Stone,4.44,4602479\n'
    ),
    "book_tags.csv": "goodreads_book_id,tag_id,count\n3,11,10\n3,12,50\n3,13,700\n2767052,12,5\n",
    "tags.csv": "tag_id,tag_name\n11,magic\n12,fantasy\n13,to-read\n",
}
REVIEWS = [
    {"rating": 5.0, "title": "Good", "user_id": "AE1", "parent_asin": "B01", "timestamp": 1588687728923, "images": []},
    {"rating": 2.0, "title": "Bad", "user_id": "AE2", "parent_asin": "B02", "timestamp": 1589665266052, "images": [1]},
]
PRODUCTS = [
    {
        "main_category": "All Beauty",
        "title": "Soap",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": ["mild", "clean"],
        "description": [],
        "price": 12.5,
        "store": "Howard",
        "categories": ["Skin", "Soap"],
        "details": {"Brand": "H & Co"},
        "parent_asin": "B01",
    },
    {"title": "Comb", "price": "from $3.20", "store": "Pines", "details": {}, "parent_asin": "B02"},
]


def folder_of(path, files: dict[str, str], encoding: str = "utf-8"):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_bytes(text.encode(encoding))
    return path


def amazon_folder(path):
    path.mkdir()
    for name, rows in (("All_Beauty", REVIEWS), ("meta_All_Beauty", PRODUCTS)):
        with gzip.open(path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def written(name: str, source, tmp_path) -> dict[str, list[dict]]:
    """Return the rows of the tables that a data set is written as."""
    output = tmp_path / "out"
    rows = PublicSet.named(name).write(source, output)
    tables = {file.stem: pd.read_parquet(file) for file in output.iterdir()}
    assert rows == {table: len(frame) for table, frame in tables.items()}
    return {
        table: frame.astype(object).where(frame.notna(), None).to_dict("records") for table, frame in tables.items()
    }


def test_movielens_100k_is_read(tmp_path):
    tables = written("ml-100k", folder_of(tmp_path / "ml-100k", ML_100K, "latin-1"), tmp_path)
    assert tables["interactions"][0] == {"user_id": 196, "item_id": 242, "rating": 3.0, "timestamp": 881250949}
    assert [row["user_id"] for row in tables["interactions"]] == [196, 186, 196]
    assert tables["items"] == [
        {"item_id": 242, "title": "Kolya", "year": 1996, "genres": "Comedy"},
        {"item_id": 302, "title": "L'Été, A.K.A. Summer", "year": 1997, "genres": "Crime|Fantasy"},
        {"item_id": 267, "title": "unknown", "year": None, "genres": None},
    ]
    assert tables["users"][0] == {"user_id": 186, "age": 39, "gender": "F", "occupation": "executive", "zip": "00000"}


def test_movielens_1m_is_read(tmp_path):
    tables = written("ml-1m", folder_of(tmp_path / "ml-1m", ML_1M, "latin-1"), tmp_path)
    assert [row["item_id"] for row in tables["interactions"]] == [1193, 661, 661]
    assert tables["interactions"][0] == {"user_id": 1, "item_id": 1193, "rating": 5.0, "timestamp": 978300760}
    assert tables["items"][0]["genres"] == "Animation|Children's|Musical"
    assert tables["items"][1] == {"item_id": 1193, "title": "Été: One", "year": 1975, "genres": "Drama"}
    assert tables["users"] == [
        {"user_id": 1, "gender": "F", "age_group": "Under 18", "occupation": "K-12 student", "zip": "48067"},
        {"user_id": 2, "gender": "M", "age_group": "56+", "occupation": "self-employed", "zip": "02460"},
    ]


@pytest.mark.parametrize("name", ["ml-latest-small", "ml-latest", "ml-20m", "ml-25m", "ml-32m"])
def test_the_later_movielens_sets_are_read(name, tmp_path):
    tables = written(name, folder_of(tmp_path / name, ML_CSV), tmp_path)
    assert tables["interactions"][0] == {"user_id": 1, "item_id": 10, "rating": 2.5, "timestamp": 1260759144}
    # Two people said politics, in either case; the others are in the order of the alphabet.
    assert tables["items"] == [
        {
            "item_id": 10,
            "title": "American President, The",
            "year": 1995,
            "genres": "Comedy|Drama",
            "tags": "Politics|a b|funny",
        },
        {"item_id": 20, "title": "Babylon 5", "year": None, "genres": None, "tags": None},
    ]
    assert "users" not in tables


def test_a_zip_is_read_as_it_was_downloaded(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        for name, text in ML_1M.items():
            archive.writestr(f"ml-1m/{name}", text.encode("latin-1"))
    assert len(written("ml-1m", tmp_path / "ml-1m.zip", tmp_path)["interactions"]) == 3


def test_a_folder_may_lie_in_the_folder_given(tmp_path):
    folder_of(tmp_path / "downloads" / "ml-1m", ML_1M, "latin-1")
    assert len(written("ml-1m", tmp_path / "downloads", tmp_path)["users"]) == 2


def test_goodbooks_is_read_with_the_order_of_the_file_as_position(tmp_path):
    tables = written("goodbooks-10k", folder_of(tmp_path / "gb", GOODBOOKS), tmp_path)
    assert tables["interactions"] == [
        {"user_id": 7, "item_id": 2, "rating": 5, "position": 0},
        {"user_id": 3, "item_id": 1, "rating": 4, "position": 0},
        {"user_id": 7, "item_id": 1, "rating": 3, "position": 1},
    ]
    assert tables["items"][1]["tags"] == "fantasy|magic"
    assert tables["items"][0]["isbn"] == "0439023483"
    assert tables["items"][0]["average_rating"] == 4.34


def test_amazon_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(amazon, "BLOCK_ROWS", 1)
    tables = written("amazon-all-beauty", amazon_folder(tmp_path / "amazon"), tmp_path)
    assert tables["interactions"] == [
        {"user_id": "AE1", "item_id": "B01", "rating": 5.0, "timestamp": 1588687728},
        {"user_id": "AE2", "item_id": "B02", "rating": 2.0, "timestamp": 1589665266},
    ]
    soap, comb = tables["items"]
    assert (soap["brand"], soap["categories"], soap["features"], soap["price"]) == (
        "H & Co",
        "Skin|Soap",
        "mild clean",
        12.5,
    )
    assert (comb["brand"], comb["categories"], comb["description"], comb["price"]) == ("Pines", None, None, 3.2)


def test_a_folder_of_tables_is_read_as_it_is(tmp_path):
    first = written("ml-1m", folder_of(tmp_path / "ml-1m", ML_1M, "latin-1"), tmp_path)
    (tmp_path / "again").mkdir()
    assert written("ml-1m", tmp_path / "out", tmp_path / "again") == first


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, r"no movies\.csv in it; download https://files\.grouplens\.org/.*--from"),
        ({**ML_1M, "ratings.dat": "1::x::5::9\n"}, r"not in the format of ml-1m"),
        ({**ML_1M, "ratings.dat": "1::2::5\n"}, r"not in the format of ml-1m"),
        ({**ML_1M, "users.dat": "1::F::1\n"}, r"users\.dat, line 1: expected 5 values, found 3"),
        ({**ML_1M, "movies.dat": "661::James\n"}, r"the films are not in a MovieLens format"),
    ],
)
def test_other_files_are_refused_and_nothing_is_written(files, match, tmp_path):
    source = folder_of(tmp_path / "ml-1m", files)
    with pytest.raises(DataError, match=match) as caught:
        PublicSet.named("ml-1m").write(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("**/*"))


def test_a_product_that_is_not_json_is_named_by_its_line(tmp_path):
    source = amazon_folder(tmp_path / "amazon")
    (source / "meta_All_Beauty.jsonl.gz").write_bytes(gzip.compress(b'{"parent_asin": "B01"}\n{"parent\n'))
    with pytest.raises(DataError, match=r"the products, line 2: not JSON"):
        PublicSet.named("amazon-All_Beauty").write(source, tmp_path / "out")


def test_names_that_are_no_data_set_are_refused():
    with pytest.raises(DataError, match=r"no data set 'ml-2m'; there are shop, ml-100k, .*amazon-CATEGORY"):
        PublicSet.named("ml-2m")
    with pytest.raises(DataError, match=r"no category 'Beauty' .* All_Beauty"):
        PublicSet.named("amazon-Beauty")


def read_plays(source: OriginalFiles) -> dict[str, list[pa.Table]]:
    with source.open("plays.csv") as file:
        plays = pacsv.read_csv(file)
    return {"interactions": [plays.rename_columns(["user_id", "item_id"])]}


def test_a_data_set_is_added_by_a_reader_and_an_entry(publisher, tmp_path, monkeypatch):
    original = Original("https://a.example/plays.csv")
    monkeypatch.setitem(PUBLIC_SETS, "plays", PublicSet("plays", (original,), "CC0", read_plays))
    publisher.files = {original.url: b"listener,song\n1,7\n2,8\n"}
    result = CliRunner().invoke(dataset, ["plays", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "plays: terms of use: CC0" in result.output
    assert pd.read_parquet(tmp_path / "out" / "interactions.parquet").to_dict("list") == {
        "user_id": [1, 2],
        "item_id": [7, 8],
    }
    publisher.files = {}
    source = folder_of(tmp_path / "other", {"plays.csv": "listener\n1\n"})
    with pytest.raises(DataError, match=r"not in the format of plays .*download https://a\.example/plays\.csv"):
        PublicSet.named("plays").write(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"no data set 'games'; there are shop, ml-100k, .*amazon-CATEGORY, plays$"):
        PublicSet.named("games")


class Publisher:
    """Answers instead of the network."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []

    def __call__(self, url: str, timeout: float):
        self.asked.append(url)
        if url not in self.files:
            raise urllib.error.URLError("no route to host")
        answer = BytesIO(self.files[url])
        answer.headers = {"Content-Length": str(len(self.files[url]))}
        return answer


@pytest.fixture
def publisher(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    publisher = Publisher({})
    monkeypatch.setattr("urllib.request.urlopen", publisher)
    return publisher


def test_a_download_is_checked_and_kept(publisher, tmp_path):
    url, data = "https://a.example/x.txt", b"some data"
    publisher.files = {url: data, f"{url}.md5": hashlib.md5(data).hexdigest().encode() + b"  x.txt"}
    for original in (Original(url, has_md5_beside=True), Original(url, hashlib.md5(data).hexdigest())):
        assert download(original, cache_folder()).read_bytes() == data
    assert publisher.asked == [f"{url}.md5", url]


def test_a_download_with_another_checksum_is_refused(publisher, tmp_path):
    url = "https://a.example/x.txt"
    publisher.files = {url: b"other data"}
    with pytest.raises(DataError, match=r"expected MD5 abc, found [0-9a-f]{32}; try again, or fetch it by hand"):
        download(Original(url, "abc"), tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_without_a_network_it_is_said_what_to_fetch_by_hand(publisher, tmp_path):
    with pytest.raises(
        DataError, match=r"/ml-1m\.zip: cannot be fetched \(no route to host\); fetch it by hand .*--from"
    ):
        PublicSet.named("ml-1m").fetch()


def test_what_is_no_zip_is_refused(publisher, tmp_path):
    publisher.files = {"https://a.example/x.zip": b"<html>"}
    with pytest.raises(DataError, match=r"what came is not a zip"):
        download(Original("https://a.example/x.zip"), tmp_path)


def test_the_command_prints_a_line_for_init_that_works(tmp_path):
    source = folder_of(tmp_path / "my books", GOODBOOKS)
    output = tmp_path / "my tables"
    result = CliRunner().invoke(dataset, ["goodbooks-10k", "--from", str(source), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "interactions.parquet: 3 rows" in result.output
    line = shlex.split(result.output.splitlines()[-1])
    assert line[:2] == ["towers", "init"]
    flags = dict(zip(line[2::2], line[3::2], strict=True))
    frames = [read_frame(output / f"{name}.parquet") for name in ("interactions", "items")]
    assert flags == {f"--{name}": str(output / f"{name}.parquet") for name in ("interactions", "items")}
    text = render_run_toml(
        infer_features(*frames), Files(*(output / f"{n}.parquet" for n in ("interactions", "items"))), output
    )
    config = parse_settings(FeaturesConfig, tomllib.loads(text)["features"], "run.toml")
    assert not {"average_rating", "ratings_count"} & set(config.item)
    assert len(read_tables(config, output).interactions) == 3


def test_tables_that_are_there_are_kept_unless_forced(tmp_path):
    source, output = folder_of(tmp_path / "ml-1m", ML_1M, "latin-1"), tmp_path / "out"
    arguments = ["ml-1m", "--from", str(source), "--output", str(output)]
    assert CliRunner().invoke(dataset, arguments).exit_code == 0
    with pytest.raises(DataError, match=r"out: holds interactions, items, users\.parquet already"):
        CliRunner().invoke(dataset, arguments, catch_exceptions=False)
    other = folder_of(tmp_path / "small", ML_CSV)
    arguments = ["ml-latest-small", "--from", str(other), "--output", str(output), "--force"]
    assert CliRunner().invoke(dataset, arguments).exit_code == 0
    assert sorted(file.name for file in output.iterdir()) == ["interactions.parquet", "items.parquet"]


def test_the_shop_is_generated_and_takes_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("features.commands.SIZES", {"small": (60, 60, 400)})
    result = CliRunner().invoke(dataset, ["shop", "--output", str(tmp_path / "shop"), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "users.parquet: 60 rows" in result.output
    with pytest.raises(DataError, match=r"--from is for public sets"):
        CliRunner().invoke(
            dataset, ["shop", "--from", "x", "--output", str(tmp_path / "other")], catch_exceptions=False
        )
