"""How far the towers lead each baseline on the same questions, with the paired interval.

    python tests/benchmarks/leads.py evaluation/ml-1m-time/report [--cutoff 10]

It reads what `towers evaluate --output` left. With several seeds a question's metric is the mean over them; the
interval is the percentile bootstrap over the questions, 95 %. Those of whom something is known are shown apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from features.sequences.ragged import offsets_of
from training.audit.ranks import Ranks
from training.evaluation.metrics import bootstrap_interval, ndcg_at


def main() -> None:
    """Print N@k of each recommender and the lead over it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--cutoff", type=int, default=10)
    given = parser.parse_args()
    answers = Ranks.read(given.report).answers
    for who, part in (("all", answers), ("with a history", answers[answers["history"] > 0])):
        found = by_question(part, given.cutoff)
        print(f"N@{given.cutoff}, {who}: {len(found):,} questions, {part['seed'].nunique()} seeds")
        for line in leads(found, str(answers["recommender"].iloc[0])):
            print(f"  {line}")


def by_question(answers: pd.DataFrame, cutoff: int) -> pd.DataFrame:
    """Return NDCG of each question (rows) by each recommender (columns), the mean over the seeds."""
    keys = ["recommender", "seed", "question"]
    ordered = answers.sort_values(keys, kind="stable")
    sizes = ordered.groupby(keys).size()
    ndcg = ndcg_at(ordered["rank"].to_numpy(), offsets_of(sizes.to_numpy()), cutoff)
    return sizes.reset_index().assign(ndcg=ndcg).pivot_table("ndcg", "question", "recommender")


def leads(found: pd.DataFrame, ours: str) -> list[str]:
    """Return a line for each recommender: its mean, and by how much ours leads."""
    lines = [f"{ours:24s}{found[ours].mean():.4f}"]
    for name in found.columns.drop(ours):
        lead = (found[ours] - found[name]).to_numpy()
        low, high = (float(bound[0]) for bound in bootstrap_interval(lead[:, None]))
        lines.append(f"{name:24s}{found[name].mean():.4f}  lead {np.mean(lead):+.4f}, {low:+.4f} to {high:+.4f}")
    return lines


if __name__ == "__main__":
    main()
