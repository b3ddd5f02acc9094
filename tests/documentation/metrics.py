"""The tables of metrics: those of a running service, its alerts, and those of an evaluation."""

from __future__ import annotations

import yaml

from serving.observability.metrics import families
from tests.documentation.pages import DOCS, in_table
from training.evaluation.metrics import METRICS
from training.evaluation.report import COLUMNS, COLUMNS_FOR_USERS, COVERAGE_LABEL, COVERAGE_MEANING

PAGE = "reference/metrics.md"
_OF_WORKERS = (
    ("towers_workers", "gauge", ("model", "index"), "Running workers, by version of model and index."),
    ("towers_index_age_seconds", "gauge", (), "Age of the oldest index in use."),
    (
        "towers_trend_age_seconds",
        "gauge",
        (),
        "Age of the oldest recent popularity in use, for models that read it.",
    ),
)
_FORMULAS = {
    "recall": "targets with rank ≤ k, divided by min(targets, k)",
    "ndcg": "Σ 1 / log₂(rank + 1) over the targets with rank ≤ k, divided by the same sum of the best possible ranking",
    "mrr": "1 / rank of the first target; 0 if it is > k",
}


def metrics_page() -> str:
    """Return the page with its tables as they should be."""
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    for name, rows in (("service", _of_service()), ("alerts", _of_alerts()), ("evaluation", _of_evaluation())):
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert end, f"{PAGE} has no place for the table of {name}"
        text = "".join([before, begin, "\n", "\n".join(rows), "\n\n", end, after])
    return text


def service_metrics() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return name, type, labels and meaning of each metric of a service."""
    return [*((one.name, one.kind, one.labels, one.help) for one in families([], [])), *_OF_WORKERS]


def _of_service() -> list[str]:
    return [
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"
            for name, kind, labels, meaning in service_metrics()
        ),
    ]


def _of_alerts() -> list[str]:
    rules = yaml.safe_load((DOCS / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    rows = ["| alert | fires when | for | severity | what it means, what to do |", "|---|---|---|---|---|"]
    for rule in rules["groups"][0]["rules"]:
        expression = in_table(f"`{' '.join(rule['expr'].split())}`")
        row = (f"`{rule['alert']}`", expression, rule.get("for", ""), rule["labels"]["severity"])
        rows.append(f"| {' | '.join(row)} | {rule['annotations']['description']} |")
    return rows


def _of_evaluation() -> list[str]:
    columns = (("`users`", COLUMNS_FOR_USERS), ("the others", COLUMNS))
    return [
        "| name | in tables | meaning | formula |",
        "|---|---|---|---|",
        *(f"| `{one.name}` | {one.label}@k | {one.meaning} | {_FORMULAS[one.name]} |" for one in METRICS.values()),
        f"| `coverage` | {COVERAGE_LABEL}@k | {COVERAGE_MEANING} | recommended candidates / candidates |",
        "",
        "| protocol | columns of the table in a report |",
        "|---|---|",
        *(f"| {protocol} | {', '.join(f'`{name}`' for name in names)} |" for protocol, names in columns),
    ]
