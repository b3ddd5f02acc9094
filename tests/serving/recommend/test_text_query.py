"""Words to items: over HTTP, on the page and on the command line; with filters, rules and live items."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from serving.config import ServingConfig
from serving.http.app import create_app
from serving.jobs.build_index import build_index
from serving.recommend.recommender import Recommender
from towers.bundle.bundle import ModelBundle
from towers.cli.main import main


@pytest.fixture(scope="module")
def bundle(pristine, tmp_path_factory):
    """A real bundle with its index; the weights are those that training begins with, so that words are themselves."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(pristine, folder, dirs_exist_ok=True)
    build_index(ModelBundle.open(folder / "runs" / "model"), {})
    return folder / "runs" / "model"


@pytest.fixture
def client(bundle, tmp_path):
    settings = ServingConfig(live=str(tmp_path / "live.db"), default_k=5, max_k=120)
    return create_app(Recommender.open(bundle), settings).test_client()


def found(client, query):
    response = client.get(f"/search?{query}")
    assert response.status_code == 200, response.text
    return response.json


def test_items_are_found_by_their_words(client):
    answer = found(client, "q=wooden%20lamp&k=3")
    assert answer["q"] == "wooden lamp"
    assert answer["fallback"] is None
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
    assert all({"wooden", "lamp"} & set(item["title"].split()) for item in answer["items"])


def test_words_are_where_an_item_is_that_says_nothing_else(client, bundle):
    client.put("/items/lamp", json={"title": "zebra striped lamp"})
    best = found(client, "q=Zebra%20striped%20LAMP&k=1")["items"][0]
    assert best["item_id"] == "lamp"
    # The score is the part of the item's vector that is its text: this item has nothing else but an unknown id.
    assert best["score"] == pytest.approx(1.0, abs=1e-5)


def test_an_item_put_with_only_a_title_is_found_and_recommended(client):
    before = found(client, "q=violet%20accordion&k=120")
    client.put("/items/new", json={"title": "violet accordion"})
    assert "new" not in [item["item_id"] for item in before["items"]]
    assert found(client, "q=violet%20accordion&k=1")["items"][0]["item_id"] == "new"
    everything = client.get("/recommendations/1001?k=120").json["items"]
    assert "new" in [item["item_id"] for item in everything]
    assert client.get("/items/new/similar?k=1").status_code == 200
    client.delete("/items/new")
    assert "new" not in [item["item_id"] for item in found(client, "q=accordion&k=120")["items"]]


def test_filters_exclusions_and_pages_are_those_of_other_requests(client):
    cheap = found(client, "q=red%20chair&k=120&price_max=20")["items"]
    everything = found(client, "q=red%20chair&k=120")["items"]
    assert 0 < len(cheap) < len(everything) == 120
    pages = [item for offset in (0, 3) for item in found(client, f"q=red%20chair&k=3&offset={offset}")["items"]]
    assert pages == everything[:6]
    first = everything[0]["item_id"]
    assert found(client, f"q=red%20chair&k=5&exclude={first}")["items"][0]["item_id"] == everything[1]["item_id"]


def test_what_is_nearly_the_same_is_given_once(client):
    for number in range(3):
        client.put(f"/items/copy-{number}", json={"title": "zebra striped lamp"})
    plain = [item["item_id"] for item in found(client, "q=zebra%20striped%20lamp&k=4")["items"]]
    once = [item["item_id"] for item in found(client, "q=zebra%20striped%20lamp&k=4&distinct=0.99")["items"]]
    assert set(plain[:3]) == {"copy-0", "copy-1", "copy-2"}
    assert len(once) == 4
    assert len({"copy-0", "copy-1", "copy-2"} & set(once)) == 1


@pytest.mark.parametrize("written", ["42", "true", "null", '"quoted"', "[1]", "1e5"])
def test_whatever_it_looks_like_it_is_text(client, written):
    assert client.get("/search", query_string={"q": written}).json["q"] == written


@pytest.mark.parametrize(
    ("query", "field"), [("", "q"), ("q=", "q"), ("q=a&q=b", "q"), (f"q={'a' * 10_001}", "q"), ("q=a&k=0", "k")]
)
def test_what_cannot_be_asked_is_told(client, query, field):
    response = client.get(f"/search?{query}")
    assert response.status_code == 422
    assert [mistake["field"] for mistake in response.json["errors"]] == [field]


def test_words_that_say_nothing_get_what_is_popular(client):
    answer = found(client, "q=%21%3F&k=3")
    assert answer["fallback"] == "popular"
    assert len(answer["items"]) == 3
    metrics = client.get("/metrics").text
    assert 'towers_fallbacks_total{fallback="popular"} 1.0' in metrics


def test_a_model_that_reads_no_texts_says_so(recommender):
    answer = create_app(recommender).test_client().get("/search?q=lamp")
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == "q"
    assert "no text features" in answer.json["errors"][0]["detail"]


def test_the_page_has_a_box_for_words_where_they_lead_somewhere(client, recommender):
    page = client.get("/?q=%3Cb%3Ewooden%20lamp").text
    assert "Search results" in page
    assert "&lt;b&gt;wooden lamp" in page
    assert page.count('<li class="card"') == 12
    assert 'type="search"' not in create_app(recommender).test_client().get("/?q=lamp").text


def test_the_command_line_finds_what_the_service_finds(client, bundle, capsys):
    assert main(["search", str(bundle), "wooden lamp", "--k", "3", "--where", "price_max=50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    answer = found(client, "q=wooden%20lamp&k=3&price_max=50")["items"]
    assert [line.split()[2] for line in lines] == [item["item_id"] for item in answer]
    np.testing.assert_allclose(
        [float(line.split()[1]) for line in lines], [item["score"] for item in answer], atol=6e-4
    )
