"""The audit: every number as a group-by in pandas finds it, and gates that fail where they should and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from features.config import FeaturesConfig
from features.errors import DataError
from features.sequences.seen_items import EXCLUDE
from features.sequences.split import Split, leave_one_out
from features.tables.tables import Tables, read_tables
from features.values.text import words as words_in
from tests.running import write_small_shop
from towers.cli.main import main
from training.audit import report as audit_report
from training.audit.ranks import About, Ranks, RanksWriter
from training.audit.report import AuditReport
from training.audit.thresholds import Threshold
from training.commands import audit as audit_command
from training.config import RunConfig, read_run_config
from training.evaluation.baselines.item_cosine import ItemCosine
from training.evaluation.baselines.popularity import PopularityBaseline
from training.evaluation.evaluate import ScoringModel, evaluate
from training.tasks import audit as auditing
from training.tasks import evaluate as judging
from training.tasks.evaluate import evaluate_run

RUN = """\
[features]
interactions = "data/interactions.parquet"
items = "data/items.parquet"
users = "data/users.parquet"
columns = { timestamp = "timestamp" }
title = "title"

[features.item]
title = { kind = "text" }
brand = { kind = "category" }
price = { kind = "number" }
category = { kind = "categories", separator = " > " }

[training]
track = false
"""
LEAST = 20


def named(recommender: Any, name: str) -> ScoringModel:
    recommender.name = name
    return recommender


def judge(folder: Path, protocol: str, seeds: int = 1) -> Path:
    """Write the ranks of an evaluation in which two baselines stand in for the towers and all others."""

    def trained(config: Any, tables: Tables, split: Split, *_: Any) -> list[ScoringModel]:
        return [named(ItemCosine.fit(split.train, len(split.candidates)), "two towers")]

    def fit(split: Split, **_: Any) -> tuple[list[ScoringModel], list[str]]:
        return [PopularityBaseline.fit(split.train, len(split.candidates))], []

    output = folder / protocol
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(judging, "_trained", trained)
        patched.setattr(judging, "fit_baselines", fit)
        evaluate_run(folder / "run.toml", (), protocol, seeds=seeds, device="cpu", output=output)
    return output


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop some of whose products have no brand, no price or no title, judged by three protocols."""
    folder = tmp_path_factory.mktemp("shop")
    write_small_shop(folder / "data", users=400, items=240, interactions=8_000)
    path = folder / "data" / "items.parquet"
    items = pd.read_parquet(path)
    items.loc[::7, "brand"] = None
    items.loc[::5, "price"] = None
    items.loc[::3, "title"] = None
    items.to_parquet(path, index=False)
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    judge(folder, "leave-one-out")
    judge(folder, "time")
    judge(folder, "users", seeds=3)
    return folder


@pytest.fixture
def audit(shop: Path) -> AuditReport:
    return AuditReport.of(Ranks.read(shop / "leave-one-out"), min_support=LEAST)


def links(page: str) -> tuple[list[str], list[str]]:
    """The places within a page that it links to, and those that there are."""
    return re.findall(r'href="#([^"]+)"', page), re.findall(r' id="([^"]+)"', page)


def words(text: Any) -> int:
    return 0 if pd.isna(text) else len(words_in(text))


def span(label: str, values: pd.Series) -> pd.Series:
    """Which values are in what a label says, taken at its word: `up to 10`, `over 10 to 25`, `5 to 19`, `1990`, ...."""
    convert = pd.Timestamp if pd.api.types.is_datetime64_any_dtype(values) else float
    label = label.removesuffix(" words").removesuffix(" days")
    if label == "(missing)":
        return values.isna()
    if found := re.fullmatch(r"up to (\S+)", label):
        return values <= convert(found[1])
    if found := re.fullmatch(r"over (\S+) to (\S+)", label):
        return (values > convert(found[1])) & (values <= convert(found[2]))
    if found := re.fullmatch(r"over (\S+)", label):
        return values > convert(found[1])
    if found := re.fullmatch(r"(\d+) to (\d+)", label):
        return (values >= int(found[1])) & (values < int(found[2]) + 1)
    if found := re.fullmatch(r"(\d+) or more", label):
        return values >= int(found[1])
    if label == "no history":
        return values.isna() if values.name == "pause" else values == 0
    if label == "under an hour":
        return values < 1 / 24
    if label == "under a day":
        return (values >= (1 / 24 if values.name == "pause" else 0)) & (values < 1)
    return values.isna() | (values < 0) if label == "not seen before" else values == convert(label)


def labelled(values: pd.Series, labels: list[str]) -> pd.Series:
    """The label of each entity, whose cells are numbers or dates, or lists of texts; a row for each that it has."""
    if values.map(lambda cell: isinstance(cell, list)).all():
        each = values.map(lambda cell: cell or ["(missing)"]).explode()
        return each.where(each.isin(labels), "(other)")
    return pd.concat([pd.Series(label, index=values.index[span(label, values)]) for label in labels])


def cells(frame: pd.DataFrame, separators: dict[str, str]) -> dict[str, pd.Series]:
    """What each facet of a table is about, indexed like the table."""
    found = {}
    for name, column in frame.items():
        if name in separators:
            found[name] = column.map(
                lambda cell, by=separators[name]: (
                    [] if pd.isna(cell) else list(dict.fromkeys(map(str.strip, cell.split(by))))
                )
            )
        elif pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
            found[name] = column
        else:
            found[name] = column.map(lambda cell: [] if pd.isna(cell) else [str(cell)])
            found[f"{name} length"] = column.map(words).replace(0, np.nan)
    return found


def head_torso_tail(items: pd.DataFrame) -> pd.Series:
    """The definition written out: what share of a seed's interactions do more popular items hold?"""
    parts = []
    for _, seed in items.groupby("seed"):
        counts = seed["interactions"]
        held = counts.map(lambda count, counts=counts: counts[counts > count].sum() / counts.sum())
        label = np.where(
            counts == 0, "no interactions", np.where(held < 0.5, "head", np.where(held < 0.8, "torso", "tail"))
        )
        parts.append(pd.Series(label, index=seed.index))
    return pd.concat(parts).map(lambda label: [label])


def recall_by(answers: pd.DataFrame, labels: pd.Series, k: int) -> pd.DataFrame:
    """Recall of each label by nothing but group-bys: of each question, then the mean over questions."""
    pairs = pd.DataFrame({"label": labels}).reset_index(names="answer").drop_duplicates()
    pairs = pairs.merge(answers, left_on="answer", right_index=True)
    asked = pairs.assign(hit=pairs["rank"].le(k)).groupby(["label", "seed", "question"])["hit"].agg(["sum", "size"])
    recall = (asked["sum"] / asked["size"].clip(upper=k)).groupby("label").agg(["mean", "size"])
    people = pairs.groupby("label")["user_id"].nunique()
    return recall.assign(users=people, answers=pairs.groupby("label").size())


def check_by_group_by(
    audit: AuditReport,
    ranks: Ranks,
    items: pd.DataFrame,
    users: pd.DataFrame,
    separators: dict[str, str],
    one_answer: bool,
) -> None:
    """Hold every number of an audit against pandas, with the tables as they are on disk."""
    answers = ranks.answers[ranks.answers["recommender"] == audit.recommender].reset_index(drop=True)
    shown = ranks.items[ranks.items["recommender"] == audit.recommender].reset_index(drop=True)
    item_cells = {
        name: shown[["item_id"]].merge(values.rename("cell"), left_on="item_id", right_index=True, how="left")["cell"]
        for name, values in cells(items.set_index("item_id"), separators).items()
    } | {"popularity": head_torso_tail(shown)}
    empty = (
        items.set_index("item_id")
        .isna()
        .sum(axis=1)
        .clip(upper=3)
        .map(lambda count: "3 or more" if count == 3 else str(count))
    )
    item_cells["empty cells"] = empty.reindex(shown["item_id"]).reset_index(drop=True).map(lambda label: [label])
    place = answers.merge(shown.reset_index(names="row"), on=["seed", "item_id"], how="left")["row"]
    first = shown["first_time"].astype("Float64").reindex(place).reset_index(drop=True)
    asking_cells = {
        "activity": answers["history"].astype(float),
        "item age": (answers["time"].astype("Float64") - first).astype("float64") / 86_400,
        "pause": (answers["time"] - answers["last_time"]).astype("Float64").astype("float64") / 86_400,
    }
    for name, values in cells(users.set_index("user_id"), separators).items():
        joined = answers[["user_id"]].merge(values.rename("cell"), left_on="user_id", right_index=True, how="left")
        asking_cells[f"user {name}" if name in item_cells else name] = joined["cell"]

    slices = audit.slices
    whole = slices.iloc[0]
    for k in (10, 50):
        expected = recall_by(answers, pd.Series("all", index=answers.index), k).loc["all"]
        assert whole[f"recall_at_{k}"] == pytest.approx(expected["mean"], abs=1e-12)
        assert whole["questions"] == expected["size"]
    facets = list(slices["facet"].unique()[1:])
    for facet in facets:
        rows = slices[slices["facet"] == facet].set_index("value")
        labels = list(rows.index)
        of_items = facet in item_cells
        values = item_cells[facet].reindex(place).reset_index(drop=True) if of_items else asking_cells[facet]
        values = values.rename(facet)
        of_answers = labelled(values, labels)
        for k in (10, 50):
            expected = recall_by(answers, of_answers, k)
            asked = rows[rows["questions"] > 0]
            assert set(expected.index) == set(asked.index), facet
            np.testing.assert_allclose(asked[f"recall_at_{k}"], expected["mean"].reindex(asked.index), atol=1e-12)
            gaps = whole[f"recall_at_{k}"] - expected["mean"].reindex(asked.index)
            np.testing.assert_allclose(asked[f"gap_at_{k}"], gaps, atol=1e-12)
            for name, column in (("questions", "size"), ("users", "users"), ("answers", "answers")):
                assert asked[name].tolist() == expected[column].reindex(asked.index).tolist(), (facet, name)
            if one_answer:
                for value, row in asked.iterrows():
                    hits = round(row[f"recall_at_{k}"] * row["questions"])
                    known = binomtest(hits, int(row["questions"])).proportion_ci(method="wilson")
                    bounds = row[f"recall_at_{k}_low"], row[f"recall_at_{k}_high"]
                    assert bounds == pytest.approx((known.low, known.high), abs=1e-9), (facet, value)
        np.testing.assert_allclose(rows["answer_share"], rows["answers"] / len(answers))
        if of_items:
            pairs = (
                pd.DataFrame({"label": labelled(item_cells[facet], labels)}).reset_index(names="row").drop_duplicates()
            )
            joined = pairs.merge(shown, left_on="row", right_index=True)
            shares = joined.groupby("label").size() / len(shown)
            np.testing.assert_allclose(rows["catalogue_share"], shares.reindex(labels).fillna(0))
            for k in (10, 50):
                share = joined.groupby("label")[f"shown_at_{k}"].sum() / shown[f"shown_at_{k}"].sum()
                np.testing.assert_allclose(rows[f"exposure_at_{k}"], share.reindex(labels).fillna(0).astype(float))
        else:
            assert rows["catalogue_share"].isna().all()


def test_the_page_shows_the_conditions_and_links_to_the_slices_that_fail(audit: AuditReport):
    texts = ("slice:language gap > -2", "recall@50 < 0.01", "recall@50 < 2")
    gates = tuple(Threshold.parse(text).check(audit.slices, LEAST) for text in texts)
    page = replace(audit, gates=gates).to_html()
    wanted, there = links(page)
    assert set(wanted) <= set(there)
    conditions = page.partition('id="conditions"')[2].partition("</table>")[0]
    assert re.findall(r">(passes|fails)<", conditions) == ["fails", "passes", "fails"]
    language = audit.slices[(audit.slices["facet"] == "language") & (audit.slices["questions"] >= LEAST)]
    assert len(language) > 1
    assert all(f'href="#slice-{place}"' in conditions for place in language.index)
    assert "slice:language gap &gt; -2" in conditions


def test_the_page_escapes_what_tables_say_and_is_bounded(audit: AuditReport, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit_report, "MOST_SLICES", 50)
    rows = pd.concat([audit.slices.iloc[:1], *[audit.slices.iloc[1:]] * 3], ignore_index=True)
    rows.loc[1:, "value"] = '<script>"&'
    page = replace(audit, slices=rows).to_html()
    assert page.count("<script>") == 1
    assert "&lt;script&gt;&#34;&amp;" in page
    assert page.count(' id="slice-') == 50
    assert f"{len(rows) - 51:,} more slices are in slices.parquet." in page
    wanted, there = links(page)
    assert set(wanted) <= set(there)


@pytest.mark.parametrize(
    ("protocol", "recommender"),
    [
        ("leave-one-out", "two towers"),
        ("time", "two towers"),
        ("users", "two towers"),
        ("leave-one-out", "popularity"),
    ],
)
def test_every_number_is_that_of_a_group_by_in_pandas(shop: Path, protocol: str, recommender: str):
    ranks = Ranks.read(shop / protocol)
    audit = AuditReport.of(ranks, recommender, min_support=LEAST)
    items, users = (pd.read_parquet(shop / "data" / f"{name}.parquet") for name in ("items", "users"))
    separators = {"category": " > ", "interests": ","}
    check_by_group_by(audit, ranks, items, users, separators, one_answer=protocol == "leave-one-out")
    facets = set(audit.slices["facet"])
    assert facets >= {
        "popularity", "language", "brand", "category", "price", "launched", "title length", "description length",
        "empty cells", "activity", "pause", "item age", "country", "user language", "age_band",
    }  # fmt: skip
    assert (audit.num_seeds, audit.whole["users"] < audit.whole["questions"]) == (
        (3, True) if protocol == "users" else (1, False)
    )


@pytest.mark.data
@pytest.mark.slow
def test_every_number_of_movielens_is_that_of_a_group_by_in_pandas(public_data: Path, tmp_path: Path):
    folder = public_data / "ml-1m"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    features = {
        "interactions": "interactions.parquet",
        "items": "items.parquet",
        "users": "users.parquet",
        "columns": {"timestamp": "timestamp", "position": "position"},
        "title": "title",
        "item": {
            "title": {"kind": "text"},
            "abstract": {"kind": "text"},
            "year": {"kind": "number"},
            "genres": {"kind": "categories", "separator": "|"},
        },
        "user": {"gender": {"kind": "category"}, "age_group": {"kind": "category"}, "occupation": {"kind": "category"}},
    }
    config = RunConfig(features=FeaturesConfig.model_validate(features))
    tables = read_tables(config.features, folder)
    sequences = tables.interactions.sequences(tables.catalog)
    split = leave_one_out(sequences, len(tables.catalog))
    assert split.test is not None
    popular = PopularityBaseline.fit(split.train, len(tables.catalog))
    judged = evaluate(popular, split.test, split.candidates, seen_items=EXCLUDE)
    writer = RanksWriter()
    writer.add(0, split, split.test, [judged], tables.catalog)
    writer.write(tmp_path, About.of(config, folder, "leave-one-out", "test"))
    ranks = Ranks.read(tmp_path)
    audit = AuditReport.of(ranks)
    assert audit.whole["questions"] == 6_040
    assert audit.slices["facet"].nunique() - 1 >= 12
    items, users = (pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "users"))
    users = users.astype({"age_group": str, "occupation": str})
    check_by_group_by(audit, ranks, items, users, {"genres": "|"}, one_answer=True)
    assert audit.whole["recall_at_50"] == pytest.approx(judged.means["recall_at_50"])


def test_what_is_kept_are_the_ranks_and_what_was_shown(shop: Path):
    ranks = Ranks.read(shop / "leave-one-out")
    assert ranks.recommenders == ["two towers", "popularity"]
    cutoffs = [name for name in ranks.items.columns if name.startswith("shown_at_")]
    assert cutoffs == ["shown_at_10", "shown_at_50", "shown_at_100"]
    assert ranks.about.protocol == "leave-one-out"
    answers = ranks.of("popularity").answers
    assert answers["question"].tolist() == list(range(len(answers)))
    shown = ranks.of("popularity").items
    # Everybody is shown ten items, and the most popular of them has been seen by many.
    assert shown["shown_at_10"].sum() == 10 * len(answers)
    assert (shown["shown_at_10"] <= shown["shown_at_50"]).all()
    tables = read_tables(read_run_config(shop / "run.toml").features, shop)
    split = leave_one_out(tables.interactions.sequences(tables.catalog), len(tables.catalog))
    learned = pd.DataFrame({"item_id": tables.catalog.item_ids[split.train.item_rows], "time": split.train.times})
    had = learned.groupby("item_id")["time"].agg(["size", "min"])
    counts = shown.set_index("item_id")[["interactions", "first_time"]]
    assert counts["interactions"].sum() == len(learned)
    assert counts["interactions"].reindex(had.index).tolist() == had["size"].tolist()
    assert counts["first_time"].reindex(had.index).tolist() == had["min"].tolist()
    assert split.test is not None
    newest = [split.test.history.times[end - 1] for end in split.test.history.offsets[1:]]
    assert answers["last_time"].tolist() == newest


def test_the_worst_come_first_and_rare_values_are_together(audit: AuditReport):
    gaps = audit.worst["gap_at_50"].to_numpy()
    assert (np.diff(gaps) <= 0).all()
    assert (audit.worst["questions"] >= LEAST).all()
    brands = audit.slices[audit.slices["facet"] == "brand"]
    told = brands[~brands["value"].isin(["(other)", "(missing)"])]
    assert (told["questions"] >= LEAST).all()
    assert len(brands) - len(told) == 2
    outside = (audit.slices["recall_at_50_high"] < audit.whole["recall_at_50"]) | (
        audit.slices["recall_at_50_low"] > audit.whole["recall_at_50"]
    )
    assert audit.slices["stands_apart"].tolist() == outside.tolist()


class Cells(HTMLParser):
    """The text of every cell of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th", "h2"):
            self._inside = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def test_the_page_and_the_table_have_every_slice(audit: AuditReport, tmp_path: Path):
    audit.write(tmp_path)
    page = Cells()
    page.feed((tmp_path / "audit.html").read_text(encoding="utf-8"))
    for row in audit.slices.iloc[1:].itertuples(index=False):
        assert row.facet in page.cells
        assert row.value in page.cells
    assert "src=" not in (tmp_path / "audit.html").read_text(encoding="utf-8")
    wanted, there = links((tmp_path / "audit.html").read_text(encoding="utf-8"))
    assert set(wanted) <= set(there)
    assert len(there) == len(set(there))
    assert len([name for name in there if name.startswith("slice-")]) == len(audit.slices) - 1
    table = pd.read_parquet(tmp_path / "slices.parquet")
    pd.testing.assert_frame_equal(table, audit.slices, check_dtype=False)


def test_the_terminal_sees_the_worst_the_rule_of_thumb_and_no_wide_lines(audit: AuditReport):
    said = audit.to_text(most=5)
    worst = audit.worst.iloc[0]
    assert said.index(f"{worst['facet']}={worst['value']}"[:40]) > said.index("the worst")
    assert "below 85% the encoder or the data is the problem" in said
    assert "above 95% and still poor, add a re-ranker" in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize(
    ("recall", "verdict"), [(0.5, "encoder and the data first"), (0.9, "either may pay"), (0.97, "add a re-ranker")]
)
def test_the_rule_of_thumb_says_where_to_look(audit: AuditReport, recall: float, verdict: str):
    slices = audit.slices.copy()
    slices.loc[0, "recall_at_50"] = recall
    moved = AuditReport(audit.about, audit.recommender, 1, LEAST, slices)
    assert verdict in moved.advice().splitlines()[0]


def test_tables_that_changed_are_told_and_items_that_are_gone_refused(shop: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    for table in ("interactions", "items", "users"):
        (tmp_path / "data" / f"{table}.parquet").symlink_to(shop / "data" / f"{table}.parquet")
    ranks = Ranks.read(shop / "leave-one-out")
    moved = Ranks(
        ranks.about.model_copy(update={"tables_folder": str(tmp_path)}), ranks.answers, ranks.items, ranks.lists
    )
    items = pd.read_parquet(shop / "data" / "items.parquet")
    path = tmp_path / "data" / "items.parquet"
    path.unlink()
    items.assign(shelf=np.where(np.arange(len(items)) % 2, "upper", "lower")).to_parquet(path, index=False)
    audit = AuditReport.of(moved, min_support=LEAST)
    assert audit.notes == ("The items changed since the evaluation; slices are by what they are now.",)
    assert set(audit.slices[audit.slices["facet"] == "shelf"]["value"]) == {"upper", "lower"}
    judged = ranks.items["item_id"].iloc[0]
    events = pd.read_parquet(shop / "data" / "interactions.parquet")
    items[items["item_id"] != judged].to_parquet(path, index=False)
    (tmp_path / "data" / "interactions.parquet").unlink()
    events[events["item_id"] != judged].to_parquet(tmp_path / "data" / "interactions.parquet", index=False)
    with pytest.raises(DataError, match=f"item '{judged}' was evaluated but is not in the catalogue any more"):
        AuditReport.of(moved, min_support=LEAST)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slice:language gap > 0.1", ("language", None, "gap@50", ">", 0.1)),
        ("slice:title length=up to 5 words recall@10<=.25", ("title length", "up to 5 words", "recall@10", "<=", 0.25)),
        ("recall@50 < 0.6", (None, None, "recall@50", "<", 0.6)),
        ("  slice:*   exposure@10 >= 2 ", ("*", None, "exposure@10", ">=", 2.0)),
        ("slice:a=b = c gap>-1", ("a", "b = c", "gap@50", ">", -1.0)),
    ],
)
def test_a_gate_is_read_as_it_is_meant(text: str, expected: tuple[Any, ...]):
    gate = Threshold.parse(text)
    assert (gate.facet, gate.value, gate.measure, gate.operator, gate.bound) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("language gap 0.1", "expected something like 'slice:language gap > 0.1'"),
        ("slice:language gap > ten", "expected something like"),
        ("slice:language ndcg > 0.1", "there is no 'ndcg'; there are recall@10"),
        ("slice:language gap@20 > 0.1", "there is no 'gap@20'"),
        ("gap > 0.1", "the whole has no gap@50; say of which slices"),
        ("slice:langage gap > 0.1", "there is no facet 'langage'; did you mean 'language'?"),
        ("slice:language=xx gap > 0.1", "there is no language 'xx'; there are"),
    ],
)
def test_a_gate_that_could_never_fail_is_refused(audit: AuditReport, text: str, said: str):
    with pytest.raises(DataError, match=re.escape(said)):
        Threshold.parse(text).failures(audit.slices, LEAST)


def test_a_gate_fails_by_the_slices_that_are_as_it_says_and_large_enough(audit: AuditReport):
    slices = audit.slices
    brands = slices[slices["facet"] == "brand"]
    middle = float(brands["gap_at_50"].median())
    failing = Threshold.parse(f"slice:brand gap > {middle}").failures(slices, LEAST)
    expected = brands[(brands["gap_at_50"] > middle) & (brands["questions"] >= LEAST)]
    assert failing["value"].tolist() == expected["value"].tolist()
    np.testing.assert_array_equal(failing["found"], expected["gap_at_50"])
    assert len(Threshold.parse("slice:* recall@50 < 2").failures(slices, 10**6)) == 0
    lift = Threshold.parse("slice:language exposure@10 > 0").failures(slices, 1)
    languages = slices[slices["facet"] == "language"]
    np.testing.assert_allclose(lift["found"], languages["exposure_at_10"] / languages["catalogue_share"])
    whole = Threshold.parse("recall@50 < 1.1").failures(slices, LEAST)
    assert whole["found"].tolist() == [audit.whole["recall_at_50"]]


def test_the_status_of_the_command_is_for_ci(shop: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(shop / "leave-one-out")
    assert main(["audit", folder, "--fail-if", "recall@50 < 0.01", "--show", "3"]) == 0
    held = capsys.readouterr()
    assert "gate holds: recall@50 < 0.01" in held.err
    assert "audit.html and slices.parquet written" in held.out
    assert main(["audit", folder, "--fail-if", "slice:language gap > -2", "--fail-if", "recall@50 < 0.01"]) == 3
    said = capsys.readouterr().err
    assert (
        len(re.findall(r"gate fails: slice:language gap > -2: -?0\.\d{4} in language=\w+ \(\d+ questions\)", said)) >= 3
    )
    assert "gate holds: recall@50 < 0.01" in said
    assert main(["audit", folder, "--fail-if", "slice:langage gap > 0"]) == 2
    assert "did you mean 'language'?" in capsys.readouterr().err


def test_other_recommenders_are_audited_by_name(shop: Path):
    folder = str(shop / "leave-one-out")
    said = CliRunner().invoke(audit_command, [folder, "--recommender", "popularity"], catch_exceptions=False).stdout
    assert said.startswith("popularity · leave-one-out · test · ")
    with pytest.raises(DataError, match="recommender 'EASE': was not evaluated; there are 'two towers', 'popularity'"):
        AuditReport.of(Ranks.read(shop / "leave-one-out"), "EASE")


def test_slices_are_recorded_under_names_that_mlflow_takes(
    shop: Path, monkeypatch: pytest.MonkeyPatch, audit: AuditReport
):
    logged: dict[str, float] = {}
    files: list[str] = []

    class Recorder:
        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            logged.update(values)

        def log_artifact(self, path: Path, name: str) -> None:
            files.append(path.name)

    monkeypatch.setattr(auditing, "start_tracking", lambda *_, **__: Recorder())
    assert auditing.audit_run(shop / "leave-one-out", (), recommender=None, min_support=LEAST, show=0)
    assert logged["slice/all/recall_at_50"] == audit.whole["recall_at_50"]
    german = audit.slices[(audit.slices["facet"] == "language") & (audit.slices["value"] == "de")].iloc[0]
    assert logged["slice/language/de/gap_at_50"] == german["gap_at_50"]
    assert logged["slice/language/de/exposure_at_10"] == german["exposure_at_10"]
    for name in logged:
        assert re.fullmatch(r"[\w\- ]+(/[\w\- ]+)+", name), name
    assert files == ["audit.html", "slices.parquet"]


@pytest.fixture
def damaged(shop: Path, tmp_path: Path) -> Iterator[Callable[[Callable[[Path], object]], Path]]:
    """Copy the ranks, and do something to their folder."""
    import shutil

    def damage(how: Callable[[Path], object]) -> Path:
        shutil.copytree(shop / "leave-one-out" / "ranks", tmp_path / "ranks")
        how(tmp_path / "ranks")
        return tmp_path

    return damage


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda folder: (folder / "about.json").unlink(), "no ranks of an evaluation in it; `towers evaluate run.toml"),
        (lambda folder: (folder / "about.json").write_text("{"), "not as `towers evaluate` writes it"),
        (lambda folder: (folder / "about.json").write_text('{"format": 2}'), "not as `towers evaluate` writes it"),
        (lambda folder: (folder / "about.json").write_text('{"format": 9}'), "expected format 2, found 9"),
        (lambda folder: (folder / "answers.parquet").write_text("?"), "cannot be read"),
        (lambda folder: (folder / "items.parquet").unlink(), "cannot be read"),
    ],
)
def test_ranks_that_are_missing_or_damaged_are_one_line(damaged: Any, how: Any, said: str):
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        Ranks.read(damaged(how))
    assert "\n" not in str(raised.value)


def test_settings_travel_with_the_ranks(shop: Path):
    about = json.loads((shop / "time" / "ranks" / "about.json").read_text(encoding="utf-8"))
    assert about["settings"]["features"]["title"] == "title"
    assert Ranks.read(shop / "time").about.settings == read_run_config(shop / "run.toml")
