"""A picture of the reports that quality.py wrote: N@10 of each recommender, one panel for each row.

    python tests/benchmarks/plot.py [--folder evaluation] [--output docs/measured.svg] [--rows beauty ...]

Whiskers are the 95 % interval over the questions and the seeds; with one seed, over the questions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

OURS, OTHERS = "#1f6feb", "#9aa4b2"


def main() -> None:
    """Draw every report below a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("evaluation"))
    parser.add_argument("--output", type=Path, default=Path("docs/measured.svg"))
    parser.add_argument("--rows", nargs="+", help="Only these rows of quality.py.  [default: all in the folder]")
    given = parser.parse_args()
    paths = sorted(given.folder.glob("*/report/report.json"))
    if given.rows:
        paths = [path for path in paths if path.parent.parent.name in given.rows]
    if not paths:
        parser.error(f"{given.folder}: no reports in it; run tests/benchmarks/quality.py first")
    plt.rcParams["svg.hashsalt"] = "two towers"  # the same picture is the same file
    figure, panels = plt.subplots(1, len(paths), figsize=(3.4 * len(paths), 2.6), squeeze=False)
    for panel, path in zip(panels[0], paths, strict=True):
        draw(panel, path.parent.parent.name, json.loads(path.read_text(encoding="utf-8")))
    figure.tight_layout()
    figure.savefig(given.output, metadata={"Date": None})
    print(f"{given.output}: {len(paths)} reports")


def draw(panel: Axes, title: str, report: dict[str, Any]) -> None:
    """Draw one report, the best at the top."""
    rows = sorted(report["rows"], key=lambda row: row["metrics"]["ndcg_at_10"]["mean"])
    metrics = [row["metrics"]["ndcg_at_10"] for row in rows]
    means = [metric["mean"] for metric in metrics]
    spreads = np.array([[one["mean"] - one["low"], one["high"] - one["mean"]] for one in metrics]).T
    names = [row["name"] for row in rows]
    panel.barh(names, means, xerr=spreads, color=[OURS if name == "two towers" else OTHERS for name in names])
    panel.set_title(f"{title} ({report['protocol']}, {report['part']})", fontsize=9)
    panel.set_xlabel("N@10", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
