"""How far the towers lead each baseline on the same questions, with the paired interval.

    python tests/benchmarks/leads.py evaluation/ml-1m-time/report [--cutoff 10]

It reads what `towers evaluate --output` left. The 95 % interval is over the questions, those of a user together, and
over the seeds, if there are several. Users with a history are also shown apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from features.sequences.ragged import offsets_of
from training.audit.ranks import Ranks
from training.evaluation.intervals import Answered, Resampled
from training.evaluation.metrics import ndcg_at


def main() -> None:
    """Print N@k of each recommender and the lead over it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--cutoff", type=int, default=10)
    given = parser.parse_args()
    answers = Ranks.read(given.report).answers
    for who, part in (("all", answers), ("with a history", answers[answers["history"] > 0])):
        found = by_question(part, given.cutoff)
        seeds, questions = found["seed"].nunique(), found.groupby("seed").size().mean()
        over = f"the questions and {seeds} seeds" if seeds > 1 else "the questions; one seed"
        print(f"N@{given.cutoff}, {who}: {questions:,.0f} questions; 95 % intervals over {over}")
        for line in leads(found, list(dict.fromkeys(answers["recommender"]))):
            print(f"  {line}")


def by_question(answers: pd.DataFrame, cutoff: int) -> pd.DataFrame:
    """Return NDCG of each question of each seed (rows) by each recommender (columns), with its user and seed."""
    keys = ["recommender", "seed", "question", "user_id"]
    ordered = answers.sort_values(keys, kind="stable")
    sizes = ordered.groupby(keys).size()
    ndcg = ndcg_at(ordered["rank"].to_numpy(), offsets_of(sizes.to_numpy()), cutoff)
    return sizes.reset_index().assign(ndcg=ndcg).pivot_table("ndcg", keys[1:], "recommender").reset_index()


def leads(found: pd.DataFrame, names: list[str]) -> list[str]:
    """Return a line for each recommender: its mean, and by how much the first one leads."""
    trainings = [
        Answered([part[name].to_numpy() for name in names], part["user_id"].to_numpy())
        for _, part in found.groupby("seed")
    ]
    resampled = Resampled.of(trainings)
    lines = [f"{names[0]:24s}{resampled.interval(0).mean:.4f}"]
    for place, name in enumerate(names[1:], start=1):
        lead = resampled.interval(0, place)
        clear = "" if lead.low > 0 or lead.high < 0 else ", not distinguishable"
        lines.append(
            f"{name:24s}{resampled.interval(place).mean:.4f}  lead {lead.mean:+.4f}, {lead.low:+.4f} to "
            f"{lead.high:+.4f}{clear}"
        )
    return lines


if __name__ == "__main__":
    main()
