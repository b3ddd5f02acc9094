"""Which column says who, what and when: by flags, by names in several languages, and by shape."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import FeaturesConfig
from features.errors import CombinedDataError, DataError
from features.inference.column_names import is_rating, is_stock, item_rank, time_rank, user_rank
from features.inference.inference import infer_features, render_table
from features.tables.tables import read_tables

USERS = (
    "cust_no customer_number Kunden-Nr. kundennummer N°_client id_cliente código_cliente User-ID user_pseudo_id 顧客ID"
)
ITEMS = "StockCode product_code artikelnummer Artikel-Nr. Réf._article codigo_producto ISBN itemNo 商品コード"
TIMES = "order_timestamp event_timestamp rating_timestamp time_ms dt epoch kaufdatum Fecha_de_compra InvoiceDate 注文日"
RATINGS = "Book-Rating review_score rate stars Bewertung user_rating valoración"
OTHERS = "customer_name customer_city product_category item_price tax_rate data_type weight description country Menge"


def test_names_of_exports_say_their_role_and_no_other():
    ranks = {"user": user_rank, "item": item_rank, "time": time_rank, "rating": lambda name: is_rating(name) or None}
    for role, names in (("user", USERS), ("item", ITEMS), ("time", TIMES), ("rating", RATINGS), ("", OTHERS)):
        for name in names.split():
            assert {one for one, rank in ranks.items() if rank(name) is not None} == ({role} if role else set()), name


@given(
    st.sampled_from(["customer", "kunden", "cliente"]), st.sampled_from(["id", "no", "nr", "number", "code"]), st.data()
)
def test_a_name_says_the_same_however_it_is_written(thing, number, data):
    words = data.draw(st.permutations([thing, number]))
    spelled = [separator.join(words) for separator in ("_", "-", " ", ".", "")]
    spelled += ["".join(word.title() for word in words), "_".join(words).upper()]
    assert len({user_rank(name) for name in spelled}) == 1
    assert user_rank(spelled[0]) is not None
    assert all(item_rank(name) is None for name in spelled)


def test_stock_is_what_is_there_today_and_no_code():
    assert all(
        map(
            is_stock,
            ["stock", "stock_level", "in_stock", "In_stock?", "Lagerbestand", "inventory_quantity", "availability"],
        )
    )
    assert not any(map(is_stock, ["StockCode", "stock_no", "livestock", "stocking"]))


def events(**columns: list) -> pd.DataFrame:
    return pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)


def orders() -> dict[str, list]:
    """Orders of several items each: who ordered, what, what it is called, when."""
    rng = np.random.default_rng(0)
    of_order = np.repeat(np.arange(30), 3)
    users, items = of_order % 11 + 500, rng.integers(0, 12, 90)
    return {
        "who": [f"k{user}" for user in users],
        "what": [f"a{item}" for item in items],
        "order": (of_order + 9000).tolist(),
        "called": [f"lamp of type {item}" for item in items],
        "moment": [f"2024-{1 + order // 28:02d}-{1 + order % 28:02d} 10:00" for order in of_order],
        "amount": rng.integers(1, 5, 90).tolist(),
    }


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::97])
def test_without_names_ids_and_times_are_found_by_their_shape_wherever_they_stand(order):
    columns = orders()
    names = [list(columns)[place] for place in order]
    anonymous = {name: f"f{place}" for place, name in enumerate(names)}
    inference = infer_features(events(**{anonymous[name]: columns[name] for name in names}))
    found = {role.setting: role.column for role in inference.roles}
    assert found["item_id"] == anonymous["what"]
    assert found["user_id"] == anonymous["who"]
    assert found["timestamp"] == anonymous["moment"]
    for setting, flag in (("user_id", "--user-column"), ("item_id", "--item-column"), ("timestamp", "--time-column")):
        said = f"{found[setting]!r} is taken for {setting} by a guess"
        ways = f"say {flag} NAME, in Python {flag[2:].replace('-', '_')}="
        assert any(said in warning and warning.endswith(ways) for warning in inference.warnings)


def test_columns_may_be_named_and_a_wrong_name_is_said():
    columns = {f"f{place}": values for place, values in enumerate(orders().values())}
    named = {"user_id": "f1", "item_id": "f0", "timestamp": "f4"}
    inference = infer_features(events(**columns), named=named)
    assert {role.setting: role.column for role in inference.roles}.items() >= named.items()
    assert not any("guess" in warning for warning in inference.warnings)
    with pytest.raises(DataError, match=r"--user-column: the interactions have no column 'f9', they have f0, f1"):
        infer_features(events(**columns), named={"user_id": "f9"})


def test_the_time_of_something_else_is_not_taken_by_itself():
    columns = {"user_id": [1, 1, 2], "item_id": [1, 2, 3], "birth_date": ["1980-01-01", "1980-01-01", "1990-02-02"]}
    inference = infer_features(events(**columns))
    assert inference.column("timestamp") is None
    assert "birth_date not taken for the time: it may be the time of something else" in "\n".join(inference.warnings)
    assert infer_features(events(**columns), named={"timestamp": "birth_date"}).column("timestamp") == "birth_date"


def test_every_column_has_a_line():
    items = events(what=[f"a{item}" for item in range(12)], colour=["red", "blue"] * 6, stock=list(range(12)))
    inference = infer_features(events(**orders()), items)
    table = render_table(inference)
    lines = {line.split()[0] for line in table.splitlines() if line}
    assert lines == {"interactions", "items", *orders(), *items.columns}
    assert "a LEAK by its name: today's stock" in table


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    (tmp_path / "i.csv").write_text("user_id,item_id,when,stars\nu,1,2999-01-01,many\nu,2,2024-01-01,5\n")
    (tmp_path / "items.csv").write_text("item_id,price,size\n1,2.5,big\n2,cheap,\n2,3,7\n")
    config = FeaturesConfig.model_validate(
        {
            "interactions": "i.csv",
            "items": "items.csv",
            "columns": {"timestamp": "when", "rating": "stars"},
            "item": {"price": {"kind": "number"}, "size": {"kind": "number"}},
        }
    )
    with pytest.raises(CombinedDataError) as caught:
        read_tables(config, tmp_path)
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 4
    for part in ("'price', line 3", "'size', line 2", "'when', line 2: expected a time in the past", "'stars', line 2"):
        assert sum(part in one for one in told) == 1, told
