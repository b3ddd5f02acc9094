"""The table in docs/benchmarks.md of the reports that quality.py wrote: a line a recommender, a column a report.

    python tests/benchmarks/table.py [--folder evaluation] [--rows beauty-as-proposed ...]

Each cell is R@10 / N@10, of whole users held out R@20 / N@100. The last line is the lead of the two towers in that NDCG
over the best baseline, with half the 95 % interval over the questions and the seeds.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

OURS = "two towers"
SHOWN = {"users": ("recall_at_20", "ndcg_at_100")}
USUALLY = ("recall_at_10", "ndcg_at_10")


def main() -> None:
    """Print the table of every report below a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("evaluation"))
    parser.add_argument("--rows", nargs="+", help="Only these folders, in this order.  [default: all]")
    given = parser.parse_args()
    names = given.rows or sorted(path.parent.parent.name for path in given.folder.glob("*/report/report.json"))
    if not names:
        parser.error(f"{given.folder}: no reports in it; run tests/benchmarks/quality.py first")
    reports = {name: json.loads((given.folder / name / "report" / "report.json").read_text("utf-8")) for name in names}
    print("\n".join(table(reports)))


def table(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the table, in Markdown."""
    columns = [({row["name"]: row for row in report["rows"]}, report) for report in reports.values()]
    recommenders = dict.fromkeys(name for rows, _ in columns for name in rows)
    lines = [
        ["", *(f"`{name}`" for name in reports)],
        ["---"] * (1 + len(reports)),
        *([name, *(_cell(rows.get(name), report) for rows, report in columns)] for name in recommenders),
        ["lead over the best", *(_lead(report) for report in reports.values())],
    ]
    return [re.sub(" +", " ", f"| {' | '.join(line)} |") for line in lines]


def _metrics(report: dict[str, Any]) -> tuple[str, str]:
    return SHOWN.get(report["protocol"], USUALLY)


def _cell(row: dict[str, Any] | None, report: dict[str, Any]) -> str:
    return "" if row is None else " / ".join(f"{row['metrics'][metric]['mean']:.3f}" for metric in _metrics(report))


def _lead(report: dict[str, Any]) -> str:
    """Return the lead over the best baseline, and its name."""
    metric = report["primary_metric"]
    baselines = [row for row in report["rows"] if row["name"] != OURS and not row["is_bound"]]
    best = max(baselines, key=lambda row: row["metrics"][metric]["mean"])
    lead = best["lead"]
    return f"{lead['mean']:+.4f} ± {(lead['high'] - lead['low']) / 2:.4f} ({best['name']})"


if __name__ == "__main__":
    main()
