from __future__ import annotations

import json
import shutil

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import FeaturesConfig
from features.errors import DataError
from features.tables.tables import read_tables
from serving.catalog.ids import IdMap
from serving.config import ServingConfig
from serving.http.app import create_app
from tests.serving.doubles import make_recommender, make_tables

WIDE = 2**53


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1))
def test_whole_numbers_are_found_as_numbers_and_as_text(numbers):
    ids = IdMap(np.array(numbers, dtype=np.int64))
    assert [ids.row(number) for number in numbers] == list(range(len(numbers)))
    assert [ids.row(str(number)) for number in numbers] == list(range(len(numbers)))
    assert ids.to_array(numbers).dtype == np.int64


@given(st.integers(-(2**54), 2**54), st.sampled_from(["", ".", ".0", ".00", ".5", "e3"]), st.sampled_from(["", "0"]))
def test_an_id_is_the_same_over_http_as_in_a_table(tmp_path_factory, number, end, begin):
    """`17850.0` is what pandas writes for the customer 17850 in a column with gaps."""
    spelled = f"{begin}{number}{end}"
    folder = tmp_path_factory.mktemp("ids")
    (folder / "i.csv").write_text(f"user_id,item_id\n{number},1\n")
    known = read_tables(FeaturesConfig(interactions="i.csv"), folder).interactions.frame["user_id"].to_numpy(np.int64)
    (folder / "t.csv").write_text(f"user_id,item_id\n{spelled},1\n1,1\n")
    try:
        read = read_tables(FeaturesConfig(interactions="t.csv"), folder).interactions.frame["user_id"].tolist()
    except DataError:
        read = []
    shutil.rmtree(folder)
    assert (IdMap(known).row(spelled) == 0) == (number in read and (number != 1 or len(read) == 1))


@given(st.lists(st.text(), unique=True))
def test_text_is_found_letter_by_letter(texts):
    ids = IdMap(np.array(texts, dtype=object))
    assert [ids.row(text) for text in texts] == list(range(len(texts)))


def test_a_number_finds_the_text_that_spells_it():
    ids = IdMap(np.array(["7", "07"], dtype=object))
    assert (ids.row(7), ids.row("7"), ids.row("07"), ids.row(8)) == (0, 0, 1, None)


def test_unknown_ids_are_named_once_in_their_order():
    ids = IdMap(np.array([1, 2, 3]))
    assert ids.rows(["3", 9, 1, "x", 9, 3]) == ([2, 0, 2], [9, "x"])


def test_repeated_ids_are_our_own_mistake():
    with pytest.raises(AssertionError, match="1 ids occur twice"):
        IdMap(np.array([1, 1]))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1), st.integers(-(2**63), 2**63 - 1))
def test_whatever_an_answer_says_is_exact_in_javascript_and_finds_its_row(numbers, later):
    ids = IdMap(np.array(numbers, dtype=np.int64))
    for row, number in enumerate(numbers):
        said = orjson.loads(orjson.dumps(ids.to_json(number)))
        assert (float(said) == said and abs(said) < 2**53) if isinstance(said, int) else said == str(number)
        assert ids.row(said) == row
    assert len({type(ids.to_json(number)) for number in numbers}) == 1, "all are numbers, or all are text"
    assert isinstance(ids.to_json(later), str) or abs(later) < 2**53
    assert ids.is_json_safe == all(ids.to_json(number) == number for number in numbers)


def javascript(response):
    """The answer as JavaScript reads it: every number is a double."""
    return json.loads(response.text, parse_int=float)


@pytest.fixture
def wide(tmp_path):
    """A service whose items and users have ids beyond 2^53, each a neighbour that JavaScript takes for another."""
    items = [WIDE + number for number in range(12)]
    recommender = make_recommender(make_tables({WIDE + 1: items[:4], 7: items[2:6]}, items))
    return create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))).test_client()


def test_ids_that_do_not_fit_are_text_in_every_answer_and_lead_back(wide):
    users = [str(WIDE + 1), WIDE + 1, 7]
    body = {"users": [*users, {"history": [str(WIDE + 1), 2**60 + 1]}], "reasons": 1}
    answers = javascript(wide.post("/recommendations", json=body))["answers"]
    assert [answer["user_id"] for answer in answers] == [str(WIDE + 1), str(WIDE + 1), "7", None]
    assert answers[3]["unknown_items"] == [str(2**60 + 1)]
    alone = javascript(wide.get(f"/recommendations/{WIDE + 1}?reasons=1"))
    assert {**answers[0], "model": alone["model"]} == alone
    named = {one["item_id"] for answer in answers for one in answer["items"]}
    reasons = {why["item_id"] for answer in answers for one in answer["items"] for why in one["because"]}
    assert named
    assert reasons
    for item_id in named | reasons:
        similar = javascript(wide.get(f"/items/{item_id}/similar?k=3"))
        assert similar["item_id"] == item_id
        assert all(isinstance(one["item_id"], str) for one in similar["items"])
    put = javascript(wide.put(f"/items/{WIDE + 50}", json={}))
    assert put["item_id"] == str(WIDE + 50)
    assert javascript(wide.delete(f"/items/{WIDE + 50}"))["item_id"] == str(WIDE + 50)


def test_an_id_that_comes_later_and_does_not_fit_is_text_beside_numbers(tmp_path):
    recommender = make_recommender(make_tables({1: [1, 2], 2: [2, 3]}, [1, 2, 3]))
    client = create_app(recommender, ServingConfig(live=str(tmp_path / "live.db"))).test_client()
    client.put(f"/items/{WIDE + 1}", json={})
    found = [one["item_id"] for one in javascript(client.get("/items/1/similar?k=10"))["items"]]
    assert sorted(found, key=str) == [2, 3, str(WIDE + 1)]
    assert javascript(client.get(f"/recommendations/{WIDE + 1}"))["user_id"] == str(WIDE + 1)


def test_the_document_of_the_service_says_which_ids_are_text(wide):
    schemas = wide.get("/openapi.json").json["components"]["schemas"]
    assert schemas["ItemBody"]["properties"]["item_id"]["anyOf"] == [{"type": "string"}]
    assert schemas["UserRecommendations"]["properties"]["user_id"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert schemas["UserRecommendations"]["properties"]["unknown_items"]["items"] == {"type": "string"}
    recommender = make_recommender(make_tables({1: [1, 2], 2: [2, 3]}, [1, 2, 3]))
    schemas = create_app(recommender).test_client().get("/openapi.json").json["components"]["schemas"]
    whole = {"type": "integer", "minimum": 1 - WIDE, "maximum": WIDE - 1}
    assert schemas["SimilarItems"]["properties"]["item_id"]["anyOf"] == [whole, {"type": "string"}]
