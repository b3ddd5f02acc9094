"""The same answer by every way in: random questions to every kind of index, asked in several ways that must agree.

    python tests/benchmarks/agreement.py [--cases 20000] [--seed 0] [--kinds ivf,hnsw]
    python tests/benchmarks/agreement.py --cost [--items 100000]

A case is a question: about someone known, new, described or unknown, with a filter, exclusions and rules drawn at
random, to a service with or without items that people had, a reranker, shortlists and live writes. Its answer as one
long list must hold, to the item and the bit of the score, in pages, among others in a batch, in what a service says
over HTTP, and in the nightly table (what that can ask). Where live writes stand on top of an index that misses nothing,
it must hold of an index made anew from the tables with the log folded in, too. Indexes of all other cases miss much on
purpose.

A world is a catalogue, people, an index and a log of writes; some hundred cases share one. Vectors are made from ids,
so that nothing but what is under test differs between two ways.

`--cost` measures what it costs that answers are cuts of one order: searches one at a time and of 64 at once, in turns
with searches of the same index that put in the same effort, and go as deep as each request needs and no deeper.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from features.config import FeaturesConfig, FeatureSettings
from features.sequences.ragged import Ragged
from features.tables.tables import Tables
from serving.config import ServingConfig
from serving.http.contract.requests import Contract
from serving.http.recommend_handler import RecommendHandler
from serving.jobs.precompute import precompute_top_k
from serving.jobs.recommend_all import Audience, write_candidates
from serving.live.compaction import compact
from serving.live.follower import LiveRecommender
from serving.live.log import Write
from serving.live.sqlite_log import SqliteLog
from serving.recommend.recommender import Recommender
from serving.recommend.request import RecommendRequest, UserProfile
from serving.recommend.reranking import RerankStage
from serving.recommend.response import RecommendResponse
from serving.search import faiss_index as index_module
from serving.search.faiss_index import ItemIndex, kmeans, num_threads_set
from serving.search.index_config import INDEX_KINDS, IndexConfig, IndexKind, default_nlist, standard
from serving.search.results import SLACK, Hits, rank, rank_one
from serving.search.tuning import Chosen
from serving.snapshot.snapshot import Snapshot
from tests.benchmarks.index import made
from tests.serving.doubles import WIDTH, FakeBundle, country, make_tables, unit
from towers.rerankers.reranker import Deadline, Shortlist

ITEMS, USERS, CASES_A_WORLD = 1200, 40, 120
_REPORTED = 1000
LAST = 1_700_000_000
BRANDS = [f"brand-{number}" for number in range(12)]
CONTRACT = Contract.of(ServingConfig())
ANSWERS = RecommendHandler(CONTRACT)
DEEP = [1, 3, 10, 10, 10, 25, 60, 150, 400]


class Bundle(FakeBundle):
    """Items have vectors by id and title, around as many centres as there are brands; copies have that of another."""

    def encode_items(self, catalog: Any) -> np.ndarray:
        """Return the vectors of items."""
        rows = zip(catalog.frame["item_id"], catalog.frame["brand"], catalog.frame["title"], strict=True)
        return unit(np.stack([_vector(item_id, brand, title) for item_id, brand, title in rows]))


def _vector(item_id: str, brand: object, title: object) -> np.ndarray:
    name = "copy" if int(item_id[1:]) % 40 == 0 else f"{item_id} {None if pd.isna(title) else title}"
    return 1.2 * _direction(f"centre {None if pd.isna(brand) else brand}") + _direction(name)


@functools.cache
def _direction(name: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).normal(size=WIDTH)


class Shuffler:
    """A reranker whose order has nothing to do with the one that it gets."""

    def scores(self, shortlist: Shortlist, deadline: Deadline) -> np.ndarray:
        """Return scores by the vectors of the candidates."""
        return np.asarray(shortlist.vectors[:, 0], dtype=np.float32)


@dataclass
class World:
    """What some questions are put to.

    Attributes:
        name: What is special about it.
        recommender: What answers.
        anew: What answers from an index made anew with all that was written; None where that may differ.
        path: A folder for the nightly table.
    """

    name: str
    recommender: Recommender
    anew: Recommender | None
    path: Path


def make_world(rng: np.random.Generator, kind: IndexKind, path: Path) -> World:
    """Return a world of a kind of index, at random."""
    tables = _tables(rng)
    is_live, is_whole = bool(rng.random() < 0.5), bool(rng.random() < 0.4)
    plan = _plan(kind, is_whole=is_whole)
    features = FeaturesConfig(
        interactions="x.parquet",
        title="title",
        user=country(),
        item={"tags": FeatureSettings(kind="categories", separator="|")},
    )
    bundle = Bundle(path, features)
    with_seen = bool(rng.random() < 0.2)
    reranking = RerankStage(Shuffler(), 30, None) if rng.random() < 0.3 else None

    def opened(tables: Tables, *, listed: bool) -> Recommender:
        snapshot = Snapshot.build(
            bundle, tables, choose=lambda vectors, _: Chosen(ItemIndex.build(vectors, plan), 1, None, 0)
        )
        if listed:
            lists = precompute_top_k(Recommender(bundle, snapshot, recommend_seen=with_seen), 40)
            snapshot = snapshot.with_precomputed(lists)
        return Recommender(bundle, snapshot, recommend_seen=with_seen, rerank=reranking, clock=lambda: LAST + 1e6)

    base = recommender = opened(tables, listed=bool(rng.random() < 0.6))
    anew = None
    if is_live:
        store = SqliteLog(path / f"{rng.integers(2**60)}.db")
        live = LiveRecommender(recommender, store)
        for _ in range(int(rng.integers(1, 4))):
            store.append(_writes(rng, tables))
            recommender = live.current()
        if is_whole:
            rebuilt = opened(compact(tables, store)[0], listed=False)
            anew = rebuilt if _reaches_all(base) and _reaches_all(rebuilt) else None
        store.close()
    name = f"{plan}{', live' if is_live else ''}{'' if reranking is None else ', reranked'}"
    return World(name, recommender, anew, path)


def _reaches_all(recommender: Recommender) -> bool:
    """Return whether a search may find every item; in HNSW's graph an exact copy may be one that no link leads to."""
    index = recommender.snapshot.index
    _, rows = index._fetch(np.asarray(index.vectors[:1]), len(index))
    return len(np.unique(rows[rows >= 0])) == len(index)


def _tables(rng: np.random.Generator) -> Tables:
    items = [f"i{number}" for number in rng.permutation(ITEMS)]
    histories = {
        100 + user: [f"i{one}" for one in rng.choice(ITEMS, size=int(rng.choice([1, 4, 20, 90])), replace=False)]
        for user in range(USERS)
    }
    people = pd.DataFrame(
        {"user_id": list(range(100, 110 + USERS)), "country": [*["de", "fr"] * 4, None, None] * (1 + USERS // 10)}
    )
    tables = make_tables(histories, items, titles=[f"Thing {item}" for item in items], users=people)
    brands = rng.choice(np.array([*BRANDS, None], dtype=object), size=ITEMS)
    tags = ["|".join(rng.choice(list("wxyz"), size=2)) for _ in items]
    tables.catalog.frame["brand"] = pd.Series(brands.tolist(), dtype=pd.ArrowDtype(pa.large_string()))
    tables.catalog.frame["price"] = pd.Series(
        np.round(rng.lognormal(3, 1, ITEMS), 2), dtype=pd.ArrowDtype(pa.float32())
    )
    tables.catalog.frame["tags"] = pd.Series(tags, dtype=pd.ArrowDtype(pa.large_string()))
    events = tables.interactions.frame
    if rng.random() < 0.7:
        left = events.groupby("user_id").cumcount(ascending=False).to_numpy()
        events["timestamp"] = pd.Series(LAST - 1000 * left, dtype="int64[pyarrow]")
    return tables


def _plan(kind: IndexKind, *, is_whole: bool) -> IndexConfig:
    """Return a plan that finds everything, or one that misses much."""
    plan = standard(kind, ITEMS, WIDTH, prefixes=[WIDTH // 2])
    if is_whole:
        effort = {"nprobe": plan.nlist, "ef_search": 4 * ITEMS, "oversampling": ITEMS}
    else:
        effort = {"nprobe": 2, "ef_search": 16, "oversampling": 1}
    changes = {name: value for name, value in effort.items() if getattr(plan, name) or name == "oversampling"}
    return plan.model_copy(update=changes if plan.is_rescored or plan.nlist or plan.m else {})


def _writes(rng: np.random.Generator, tables: Tables) -> list[Write]:
    def write() -> Write:
        item_id = f"i{rng.integers(ITEMS + 20)}"
        match rng.integers(4):
            case 0:
                cells: dict[str, Any] = {"title": f"New {rng.integers(5)}", "brand": str(rng.choice(BRANDS))}
                return Write("item", {"item_id": item_id, "cells": {**cells, "price": 9.5, "tags": "w"}})
            case 1:
                return Write("deletion", {"item_id": item_id})
            case 2 if "timestamp" in tables.interactions.frame:
                held = tables.interactions.frame.iloc[int(rng.integers(len(tables.interactions.frame)))]
                body = {"user_id": int(held["user_id"]), "item_id": held["item_id"], "time": int(held["timestamp"])}
                return Write("event", body)
            case _:
                at = LAST + int(rng.choice([-5000, -1000, -999, 0, 1, 500]))
                return Write("event", {"user_id": int(100 + rng.integers(USERS + 15)), "item_id": item_id, "time": at})

    return [write() for _ in range(int(rng.integers(1, 40)))]


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        who: About whom.
        body: What the answer must be, as a body over HTTP says it, without `k` and `offset`.
        depth: How many items in all.
    """

    who: int | UserProfile
    body: dict[str, Any]
    depth: int

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Question:
        """Return a question at random."""
        depth, body = int(rng.choice(DEEP)), {}
        if rng.random() < 0.5:
            body["filter"] = _filter(rng)
        if rng.random() < 0.2:
            body["exclude"] = [f"i{one}" for one in rng.integers(ITEMS, size=5)]
        if rng.random() < 0.35:
            depth = min(depth, 60)
            body |= _rules(rng)
        who: int | UserProfile = int(100 + rng.integers(USERS + 20))
        if rng.random() < 0.3:
            history = [f"i{one}" for one in rng.integers(ITEMS + 5, size=int(rng.integers(0, 12)))]
            who = UserProfile(history, {"country": "de"} if rng.random() < 0.5 else {})
        return cls(who, body, depth)

    def wanted(self, recommender: Recommender, k: int, offset: int = 0) -> RecommendRequest:
        """Return what must be of the answer, in a recommender's terms."""
        asked = CONTRACT.body({**self.body, "k": k, "offset": offset, "users": [self.said]})
        return CONTRACT.wanted(asked, recommender.state.filters)

    @property
    def said(self) -> Any:
        """Who it is about, as a body says it."""
        if isinstance(self.who, UserProfile):
            return {"history": list(self.who.history), "attributes": dict(self.who.attributes)}
        return self.who


def _filter(rng: np.random.Generator) -> dict[str, Any]:
    return [
        {"brand": str(rng.choice(BRANDS))},
        {"brand": {"not": [str(rng.choice(BRANDS))]}},
        {"price": {"min": float(rng.choice([5, 20, 60]))}},
        {"price": {"max": 15.5}, "tags": ["w", "x"]},
        {"tags": {"not": ["w"]}},
        {"item_id": {"not": [f"i{one}" for one in rng.integers(ITEMS, size=12)]}},
    ][int(rng.integers(6))]


def _rules(rng: np.random.Generator) -> dict[str, Any]:
    rules: dict[str, Any] = {
        "diversity": float(rng.choice([0.2, 0.7])),
        "distinct": float(rng.choice([0.8, 0.95, 1.0])),
        "pin": [f"i{one}" for one in rng.integers(ITEMS, size=2)],
        "boost": [{"filter": _filter(rng), "by": float(rng.choice([-0.3, 0.2, 2.0]))}],
        "demote": [_filter(rng)],
        "at_most": {"brand": int(rng.choice([1, 3]))},
    }
    names = [name for name in rules if rng.random() < 0.35] or ["at_most"]
    return {name: rules[name] for name in names}


Items = list[tuple[Any, float, int]]


def items_of(answer: RecommendResponse) -> Items:
    """Return the items of an answer with their scores and ranks."""
    return [(item.item_id, float(item.score), item.rank) for item in answer.items]


def differences(world: World, question: Question, rng: np.random.Generator) -> Iterator[str]:
    """Yield each way of asking a question that has another answer than the question asked alone and at once."""
    recommender = world.recommender
    whole = items_of(recommender.recommend(question.who, question.wanted(recommender, question.depth)))
    if len({item_id for item_id, _, _ in whole}) < len(whole):
        yield "an item twice"
    if items_of(recommender.recommend(question.who, question.wanted(recommender, question.depth))) != whole:
        yield "asked again"
    paged: Items = []
    size = max(1, int(rng.integers(1, question.depth + 1)), question.depth // 6)
    for offset in range(0, question.depth, size):
        wanted = question.wanted(recommender, min(size, question.depth - offset), offset)
        paged += items_of(recommender.recommend(question.who, wanted))
    if paged != whole:
        yield f"in pages of {size}"
    others = [Question.drawn(rng).who for _ in range(int(rng.choice([1, 5, 30])))]
    place = int(rng.integers(len(others) + 1))
    batch = [*others[:place], question.who, *others[place:]]
    together = recommender.recommend_many(batch, question.wanted(recommender, question.depth))
    if items_of(together[place]) != whole:
        yield f"among {len(others)} others"
    body = {**question.body, "k": question.depth, "users": [question.said]}
    served = orjson.loads(orjson.dumps(ANSWERS.for_body(recommender, body)))
    if _items_said(served["answers"][0]) != whole:
        yield "over HTTP"
    if not isinstance(question.who, UserProfile):
        wanted = question.wanted(recommender, question.depth)
        if _items_said(orjson.loads(orjson.dumps(ANSWERS.for_user(recommender, str(question.who), wanted)))) != whole:
            yield "over HTTP, about one"
    if set(question.body) <= {"filter"} and isinstance(recommender.state.search, ItemIndex):
        row = None if isinstance(question.who, UserProfile) else recommender.state.users.row(question.who)
        if row is not None and nightly(world, question, row) != whole:
            yield "in the nightly table"
    if world.anew is not None and not _is_nobody(world, question):
        rebuilt = items_of(world.anew.recommend(question.who, question.wanted(world.anew, question.depth)))
        if rebuilt != whole:
            yield "of an index made anew"


def _items_said(content: dict[str, Any]) -> Items:
    return [(item["item_id"], item["score"], item["rank"]) for item in content["items"]]


def _is_nobody(world: World, question: Question) -> bool:
    """Return whether someone is known only for items that are gone, who is nobody to an index made anew."""
    assert world.anew is not None
    if isinstance(question.who, UserProfile):
        return False
    is_known = [one.state.users.row(question.who) is not None for one in (world.recommender, world.anew)]
    return is_known == [True, False]


def nightly(world: World, question: Question, row: int) -> Items:
    """Return what the nightly table says of someone, made for everyone."""
    recommender = world.recommender
    wanted = question.wanted(recommender, question.depth)
    path = world.path / "nightly.parquet"
    audience = Audience.everyone(recommender)
    around = np.unique([row, *range(row % 3, len(audience), 3)])
    some = Audience(audience.user_ids[around], audience.user_rows[around])
    write_candidates(recommender, some, question.depth, path, where=wanted.where)
    table = pd.read_parquet(path)
    mine = table[table["user_id"] == recommender.state.users.ids[row]]
    return list(zip(mine["item_id"], mine["score"].astype(float), mine["rank"], strict=True))


@contextmanager
def as_large_catalogues(is_large: bool) -> Iterator[None]:
    """Let filters of a small catalogue be searched for as in a large one, or not."""
    before = index_module._SCANNED_NUMBERS
    index_module._SCANNED_NUMBERS = 0 if is_large else before
    try:
        yield
    finally:
        index_module._SCANNED_NUMBERS = before


def compare(cases: int, seed: int, kinds: Sequence[IndexKind] = INDEX_KINDS) -> tuple[int, list[str]]:
    """Put questions to worlds of each kind in turn, and return how many were put and what differed.

    Args:
        cases: How many questions.
        seed: Which ones.
        kinds: Kinds of index.
    """
    num_cases, found = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in zip(itertools.count(), itertools.cycle(kinds), strict=False):
            if num_cases >= cases:
                break
            rng = np.random.default_rng([seed, number])
            world = make_world(rng, kind, Path(folder))
            num_questions = min(CASES_A_WORLD, cases - num_cases, -(-cases // len(kinds)))
            # What is found by looking into partitions may be missed, in which an index made anew is not alike.
            with as_large_catalogues(world.anew is None and bool(rng.random() < 0.7)):
                for _ in range(num_questions):
                    question = Question.drawn(rng)
                    found += [
                        f"world {number}, {world.name}: {way}: {question}" for way in differences(world, question, rng)
                    ]
            num_cases += num_questions
    return num_cases, found


def as_deep_as_needed(index: ItemIndex, queries: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> Hits:
    """Return what an index finds by a search as deep as the request needs and no deeper, as no seam would need more."""
    fetch = k + max(map(len, excluded)) + SLACK
    scores, rows = index._fetch(queries, fetch)
    if len(queries) == 1:
        own = set(excluded[0].tolist())
        free = (row for row in rows[0][scores[0].argsort()[::-1]].tolist() if row not in own and row >= 0)
        found = rank_one(index.vectors, queries[0], np.array(list(itertools.islice(free, k + SLACK))))
        return Hits.join([(found[0][:k], found[1][:k])])
    for user, own in enumerate(excluded):
        barred = np.isin(rows[user], own)
        scores[user][barred], rows[user][barred] = -np.inf, -1
    best = np.argpartition(scores, -(k + SLACK), axis=1)[:, -(k + SLACK) :] if k + SLACK < fetch else None
    kept = rows if best is None else np.take_along_axis(rows, best, axis=1)
    ranked_rows, ranked_scores = rank(index.vectors, queries, kept)
    return Hits.join([(ranked_rows[user, :k], ranked_scores[user, :k]) for user in range(len(queries))])


def show_cost(items: int, kinds: Sequence[IndexKind], rounds: int = 7, seen: int = 30) -> None:
    """Print how many searches a second there are for each that goes as deep as needed and no deeper."""
    vectors, queries = made(items, 64, 64)
    partitions, rng = kmeans(vectors, default_nlist(items)), np.random.default_rng(0)
    near = ItemIndex.build(vectors).scan(queries, 200)
    excluded = []
    for user in range(len(queries)):
        best = rng.choice(near.of(user)[0], seen // 3, replace=False)
        excluded.append(np.unique([*best, *rng.integers(items, size=seen - seen // 3)]))
    print(f"{items:,} items, {seen} seen; searches a second, divided by those of searches as deep as needed")
    print(f"{'':10}" + "".join(f"{f'k={k}{how}':>16}" for how in ("", " of 64") for k in (10, 100)))
    for kind in kinds:
        plan = standard(kind, items, 64, prefixes=[32])
        plan = plan.model_copy(update={"nprobe": plan.nprobe // 4, "ef_search": plan.ef_search // 2})
        index = ItemIndex.build(vectors, plan, partitions)
        ratios = [
            cost(index, queries, k, excluded, at_once, rounds)
            for at_once, k in itertools.product((1, len(queries)), (10, 100))
        ]
        print(f"{kind:10}" + "".join(f"{ratio:16.2f}" for ratio in ratios), flush=True)


def cost(
    index: ItemIndex, queries: np.ndarray, k: int, excluded: Sequence[np.ndarray], at_once: int, rounds: int
) -> float:
    """Return how many searches there are for each that goes as deep as needed and no deeper."""
    fastest = np.full((2, len(queries) // at_once), np.inf)
    for _, place in itertools.product(range(rounds), range(len(queries) // at_once)):
        users = slice(place * at_once, (place + 1) * at_once)
        asked, own = queries[users], excluded[users]
        rows = Ragged.of(own)
        began = time.perf_counter()
        index.search(asked, k, rows)
        between = time.perf_counter()
        as_deep_as_needed(index, asked, k, own)
        ended = time.perf_counter()
        fastest[:, place] = np.minimum(fastest[:, place], [between - began, ended - between])
    return float(fastest[1].sum() / fastest[0].sum())


def main() -> None:
    """Run what the command line asks for; the status is 1 where answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="how many questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(INDEX_KINDS), help="kinds of index")
    parser.add_argument("--cost", action="store_true", help="measure what it costs")
    parser.add_argument("--items", type=int, default=100_000, help="of the catalogue that the cost is measured with")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    with num_threads_set(1):
        if given.cost:
            show_cost(given.items, kinds)
            return
        num_cases, found = 0, Counter[str]()
        for number, start in enumerate(range(0, given.cases, _REPORTED)):
            some, lines = compare(min(_REPORTED, given.cases - start), given.seed + number, kinds)
            for line in lines:
                print(line)
            num_cases += some
            found.update(line.split(": ")[1] for line in lines)
            print(f"{num_cases:,} cases: {found.total()} differences {dict(found) or ''}", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
