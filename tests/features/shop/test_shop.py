"""The generated shop: the same everywhere, believable, and honest about the best recall."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.errors import DataError
from features.sequences.ragged import offsets_of
from features.sequences.sequences import Sequences
from features.shop import SIZES, Shop, expected_recall, generate_shop, write_shop
from features.shop.choices import REPEAT, Moment, World, choose, in_session, moments_of, probabilities
from features.shop.people import make_people
from features.shop.products import make_products
from features.shop.words import load_words, say_product

TINY = {"users": 40, "items": 200, "interactions": 800}
DIGESTS = {
    "interactions": "5b02d2397d0ef350",
    "items": "f7ad8ddeff431638",
    "users": "b650b9d06506c59f",
    "best_possible": "da89bbff70b1687f",
}
"""Of the default shop. Found equal with and without AVX, and on one thread and two."""


@pytest.fixture(scope="module")
def shop() -> Shop:
    """The default shop."""
    return generate_shop()


@pytest.fixture(scope="module")
def tiny() -> Shop:
    return generate_shop(seed=3, **TINY)


@pytest.fixture(scope="module")
def targets(shop: Shop) -> pd.Series:
    """What protocol L asks for: each person's last product that was new to them, by user id."""
    first = shop.interactions.drop_duplicates(["user_id", "item_id"])
    return first.groupby("user_id")["item_id"].last()


@pytest.fixture(scope="module")
def world() -> World:
    words = load_words()
    rng = np.random.default_rng(5)
    return World(words, make_products(words, 60, rng), make_people(words, 8, rng))


def digest(frame: pd.DataFrame) -> str:
    """Return a digest of what a table says, whatever its types in memory are."""
    return hashlib.sha256(frame.to_csv(index=False, float_format="%.6g").encode()).hexdigest()[:16]


def top_ten(lists: pd.DataFrame) -> pd.DataFrame:
    return lists[lists["rank"] <= 10]


def hits(lists: pd.DataFrame, targets: pd.Series) -> pd.Series:
    """Return for each user whether the target is among the listed items."""
    return (lists["item_id"] == lists["user_id"].map(targets)).groupby(lists["user_id"]).any()


def test_the_seed_decides_everything(tiny: Shop) -> None:
    again = generate_shop(seed=3, **TINY)
    other = generate_shop(seed=4, **TINY)
    for name in ("interactions", "items", "users", "best_possible", "best_possible_validation"):
        pd.testing.assert_frame_equal(getattr(tiny, name), getattr(again, name))
        assert not getattr(tiny, name).equals(getattr(other, name))


def test_the_default_shop_is_the_same_on_every_machine(shop: Shop) -> None:
    assert {name: digest(getattr(shop, name)) for name in DIGESTS} == DIGESTS


def test_the_default_shop_has_the_size_it_says(shop: Shop) -> None:
    assert (len(shop.users), len(shop.items), len(shop.interactions)) == SIZES["small"]
    assert shop.items["item_id"].is_unique
    assert shop.users["user_id"].is_unique
    assert set(shop.interactions["user_id"]) == set(shop.users["user_id"])
    assert set(shop.interactions["item_id"]) <= set(shop.items["item_id"])
    assert shop.interactions.groupby("user_id").size().min() >= 5


def test_nobody_comes_before_joining_and_nothing_is_seen_before_its_launch(shop: Shop) -> None:
    events = shop.interactions.merge(shop.users, on="user_id").merge(shop.items, on="item_id")
    moment = events["timestamp"].to_numpy().astype("datetime64[s]")
    assert (moment >= events["joined"].to_numpy()).all()
    assert (moment >= events["launched"].to_numpy()).all()
    assert moment.min() >= np.datetime64("2024-07-01")
    assert moment.max() < np.datetime64("2026-07-01")


def test_a_person_does_one_thing_at_a_time_and_mostly_in_sessions(shop: Shop) -> None:
    gaps = shop.interactions.groupby("user_id")["timestamp"].diff().dropna()
    assert gaps.min() >= 1
    assert 0.6 < (gaps < 30 * 60).mean() < 0.9


def test_evenings_and_weekends_are_busier(shop: Shop) -> None:
    moment = pd.to_datetime(shop.interactions["timestamp"], unit="s")
    by_hour = moment.dt.hour.value_counts()
    by_day = moment.dt.day_of_week.value_counts()
    assert by_hour[19] > 5 * by_hour[2]
    assert by_day[6] > 1.2 * by_day[1]


def test_some_come_back_to_what_they_know(shop: Shop) -> None:
    known = shop.interactions.duplicated(["user_id", "item_id"]).mean()
    assert REPEAT - 0.02 < known < REPEAT + 0.01


def test_a_fifth_of_the_items_draws_half_of_the_interest_and_fashion_moves(shop: Shop) -> None:
    counts = shop.interactions["item_id"].value_counts().reindex(shop.items["item_id"], fill_value=0)
    assert counts.nlargest(400).sum() > 0.5 * counts.sum()
    assert (counts > 0).mean() > 0.95
    half = shop.interactions["timestamp"] < shop.interactions["timestamp"].median()
    early = shop.interactions["item_id"][half].value_counts().nlargest(100).index
    late = shop.interactions["item_id"][~half].value_counts().nlargest(100).index
    assert 20 < len(early.intersection(late)) < 85


def test_people_mostly_look_at_goods_in_their_language(shop: Shop) -> None:
    events = shop.interactions.merge(shop.users, on="user_id").merge(shop.items, on="item_id")
    assert 0.75 < (events["language_x"] == events["language_y"]).mean() < 0.95
    assert set(shop.items["language"]) == set(shop.users["language"]) == {"en", "de", "fr", "es"}


def test_what_people_say_they_like_is_what_they_look_at(shop: Shop) -> None:
    words = load_words()
    category_of = {category.interest[0]: category.path for category in words.categories}
    says = shop.users[(shop.users["language"] == "en") & shop.users["interests"].notna()]
    said = dict(zip(says["user_id"], says["interests"].str.split(", ").str[0].map(category_of), strict=True))
    events = shop.interactions[shop.interactions["user_id"].isin(said)].merge(shop.items, on="item_id")
    matches = events["category"].str.rsplit(" > ", n=1).str[0] == events["user_id"].map(said)
    by_chance = 1 / events["category"].str.rsplit(" > ", n=1).str[0].nunique()
    assert matches.mean() > 3 * by_chance


def test_reviews_are_counted_over_all_time(shop: Shop) -> None:
    counts = shop.interactions["item_id"].value_counts().reindex(shop.items["item_id"], fill_value=0)
    assert np.corrcoef(counts, shop.items["num_reviews"])[0, 1] > 0.9
    assert (shop.items["num_reviews"] <= counts.to_numpy()).all()


def test_expected_recall_of_the_best_lists_is_what_they_reach(shop: Shop, targets: pd.Series) -> None:
    best = top_ten(shop.best_possible)
    chance = best.groupby("user_id")["score"].sum()
    error = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
    assert abs(hits(best, targets).mean() - shop.best_recall(10)) < 3.5 * error
    assert shop.best_recall(10) == pytest.approx(chance.mean())
    everything = shop.best_possible.groupby("user_id")["score"].sum()
    assert everything.max() <= 1 + 1e-9
    assert shop.best_recall(100) == pytest.approx(everything.mean())


def test_no_other_order_of_the_best_lists_reaches_more(shop: Shop, targets: pd.Series) -> None:
    counts = shop.interactions["item_id"].value_counts()
    listed = shop.best_possible.assign(popularity=shop.best_possible["item_id"].map(counts).fillna(0))
    listed["blend"] = np.log(listed["score"] + 1e-12) + 0.5 * np.log1p(listed["popularity"])
    best = hits(top_ten(listed), targets).mean()
    for other in ("popularity", "blend"):
        rank = listed.groupby("user_id")[other].rank(ascending=False, method="first")
        chosen = listed[rank <= 10]
        assert chosen["score"].sum() < top_ten(listed)["score"].sum()
        assert hits(chosen, targets).mean() < best


def test_the_best_lists_know_what_was_seen_before(shop: Shop, targets: pd.Series) -> None:
    before = shop.interactions.drop_duplicates(["user_id", "item_id"])
    before = before[before["item_id"] != before["user_id"].map(targets)]
    pairs = shop.best_possible.merge(before, on=["user_id", "item_id"])
    assert pairs.empty


def test_the_best_lists_for_validation_are_about_the_product_before(shop: Shop) -> None:
    first = shop.interactions.drop_duplicates(["user_id", "item_id"])
    place_from_end = first.groupby("user_id").cumcount(ascending=False)
    previous = first[place_from_end == 1].set_index("user_id")["item_id"]
    best = top_ten(shop.best_possible_validation)
    chance = best.groupby("user_id")["score"].sum()
    error = np.sqrt((chance * (1 - chance)).sum()) / len(chance)
    assert abs(hits(best, previous).mean() - expected_recall(best)) < 3.5 * error


def test_popularity_is_far_from_the_best_and_the_shop_is_no_walkover(shop: Shop, targets: pd.Series) -> None:
    first = shop.interactions.drop_duplicates(["user_id", "item_id"])
    popular = first["item_id"].value_counts().index
    place = pd.Series(np.arange(len(popular)), index=popular)
    # How many more popular items than the target the person does not know yet.
    first = first.assign(place=first["item_id"].map(place), target=first["user_id"].map(targets.map(place)))
    known = (first["place"] < first["target"]).groupby(first["user_id"]).sum()
    found = (targets.map(place) - known < 10).sum()
    assert found / len(targets) < shop.best_recall(10) / 3
    assert 0.4 < shop.best_recall(10) < 0.6


def test_choices_follow_the_probabilities_that_are_told(world: World) -> None:
    past = np.array([[3, 7, 20], [59, -1, -1], [-1, -1, -1]])
    draws = 20_000
    moment = Moment(
        people=np.array([0, 1, 2]),
        times=np.array([1_760_000_000, 1_720_000_000, 1_780_000_000]),
        past=past,
        last=np.array([20, 59, -1]),
        is_session=np.array([True, False, False]),
    )
    told = probabilities(world, moment)
    np.testing.assert_allclose(told.sum(axis=1), 1)
    assert (told[0, [3, 7, 20]] == 0).all()
    many = moment.take(np.repeat(np.arange(3), draws))
    chosen = choose(world, many, np.random.default_rng(0).random((len(many.people), 2)))
    for row in range(3):
        shares = np.bincount(chosen[row * draws : (row + 1) * draws], minlength=60) / draws
        assert np.abs(shares - told[row]).max() < 4.5 * np.sqrt(0.25 / draws)
        assert shares[told[row] == 0].sum() == 0


def test_a_moment_holds_what_was_known_before_it_and_nothing_later() -> None:
    visits = Sequences(
        user_ids=np.array([1, 2]),
        offsets=offsets_of(np.array([4, 3])),
        item_rows=np.array([5, 6, 5, 7, 8, 9, 4]),
        times=np.array([0, 10, 20, 99_999, 0, 5, 6]),
        is_ordered=True,
    )
    moment = moments_of(visits, np.array([10, 20]), np.array([3, 4]))
    assert moment.people.tolist() == [10, 20]
    assert moment.past.tolist() == [[5, 6], [-1, -1]]
    assert moment.last.tolist() == [5, -1]
    assert moment.is_session.tolist() == [False, False]
    assert in_session(visits).tolist() == [False, True, True, False, False, True, True]


def test_a_sold_out_shelf_is_not_visited(world: World) -> None:
    first, end = world.products.shelf_starts[:2]
    everything = np.arange(first, end)[None]
    moment = Moment(np.array([0]), np.array([1_782_000_000]), everything, np.array([0]), np.array([True]))
    told = probabilities(world, moment)
    assert told[0, first:end].sum() == 0
    assert told.sum() == pytest.approx(1)


def test_every_product_can_be_said_in_every_language() -> None:
    words = load_words()
    for kind in words.types:
        for style in range(len(words.styles)):
            for language, code in enumerate(words.languages):
                for draw in (0.0, 0.999):
                    said = say_product(words, kind, style, language, "Brenno", "Alva", np.full(8, draw))
                    title, description, colour = said
                    assert words.colours[colour][language].lower() in title.lower()
                    assert "{" not in title + description
                    assert kind.names[language].lower() in title.lower()
                    assert kind.names[language].lower() in description.lower()
                    assert title[0].isupper()
                    assert description.endswith(".")
                    assert code == "en" or " by " not in description


def test_a_title_reads_like_one() -> None:
    words = load_words()
    kettle = next(kind for kind in words.types if kind.path == "Home > Kitchen > Kettles")
    titles = [say_product(words, kettle, 1, language, "Brenno", "Alva", np.full(8, 0.9))[0] for language in range(4)]
    assert titles == [
        "Brenno Alva Farmhouse Ceramic Kettle, Olive, 1.7 l",
        "Brenno Alva Wasserkocher aus Keramik, rustikales Design, Oliv, 1,7 l",
        "Bouilloire Brenno Alva en céramique, esprit rustique, coloris olive, 1,7 l",
        "Hervidor Brenno Alva de cerámica, aire rústico, color oliva, 1,7 l",
    ]


def test_the_words_fit_each_other() -> None:
    words = load_words()
    for category in words.categories:
        assert category.department in words.departments
        assert 0 <= category.age < len(words.age_bands)
        assert 0 <= category.season <= 12
        assert len(category.interest) == len(words.languages)
    for kind in words.types:
        assert kind.sizes in words.sizes
        assert set(kind.materials) <= set(words.materials)
        assert len(kind.names) == len(words.languages)
    assert all(set(style.colours) <= set(words.colours) for style in words.styles)
    assert sum(country["share"] for country in words.countries.values()) == pytest.approx(1)


def test_the_tables_are_written_as_parquet(tiny: Shop, tmp_path: Path) -> None:
    write_shop(tiny, tmp_path / "shop")
    assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == [
        "best_possible.parquet",
        "interactions.parquet",
        "items.parquet",
        "users.parquet",
    ]
    for name in ("interactions", "items", "users", "best_possible"):
        frame = pd.read_parquet(tmp_path / "shop" / f"{name}.parquet")
        pd.testing.assert_frame_equal(frame, getattr(tiny, name))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"users": 0, "items": 100, "interactions": 0}, r"at least 1 user and 50 items, found 0 and 100"),
        ({"users": 5, "items": 20, "interactions": 50}, r"at least 1 user and 50 items, found 5 and 20"),
        ({"users": 10, "items": 100, "interactions": 20}, r"has 50 to 120 interactions, found 20; choose between them"),
        ({"users": 10, "items": 100, "interactions": 999}, r"has 50 to 120 interactions, found 999"),
    ],
)
def test_numbers_that_make_no_shop_are_refused(size: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate_shop(**size)


@pytest.mark.parametrize("size", [(1, 50, 5), (1, 50, 6), (30, 50, 180), (200, 60, 1000), (7, 1000, 875)])
def test_small_and_crowded_shops_work(size: tuple[int, int, int]) -> None:
    users, items, interactions = size
    shop = generate_shop(1, users, items, interactions)
    assert len(shop.interactions) == interactions
    assert shop.interactions.groupby("user_id").size().min() >= 5
    assert 0 < shop.best_recall(10) <= 1
