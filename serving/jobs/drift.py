"""`towers drift`: today's tables against those of the training, the age of the index, and the log of requests.

Evidently offers such tests and pages for any table. Here the columns must be read as the model reads them (spellings,
words, known ids), which the bundle has from the training already, so that two formulas of SciPy are all that is left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from features.errors import DataError
from features.featurizer.column_contract import ENOUGH
from features.featurizer.profile import INTERACTIONS, NAME, Profile
from features.featurizer.sparse import ValueEncoder
from features.files import atomic_file
from features.ids import ITEM_ID
from features.tables.tables import Tables, read_tables
from serving.jobs.findings import ANSWERED, CLICKS, FILLED, FULL, HOURS, KNOWN, LATENCY, PSI, Finding, Limits, said_of
from serving.jobs.request_drift import RequestSource, findings_of_requests
from serving.snapshot.manifest import FOLDER, IndexManifest
from serving.snapshot.manifest import NAME as MANIFEST
from towers.bundle.bundle import ModelBundle

_INDEX = "index"
METRICS = {
    "towers_drift_findings": "Measures beyond their limits.",
    "towers_drift_psi": "Population stability index of today's values against the training.",
    "towers_drift_known_share": "Share of today's values that the model knows.",
    "towers_drift_filled_share": "Share of the cells that are filled today.",
    "towers_drift_answered_share": "Share of the requests that got any item.",
    "towers_drift_full_share": "Share of the requests that got as many items as they asked for.",
    "towers_drift_click_through_share": "Share of the shown items that were chosen, by position.",
    "towers_drift_p99_milliseconds": "Duration that 99 % of the logged requests do not exceed.",
    "towers_drift_index_age_seconds": "Age of the index; 0 if there is none.",
    "towers_drift_checked_timestamp_seconds": "When the tables were compared.",
}
"""The figures in `drift.prom`, by name."""
_BY_COLUMN = {
    PSI: "towers_drift_psi",
    KNOWN: "towers_drift_known_share",
    FILLED: "towers_drift_filled_share",
    ANSWERED: "towers_drift_answered_share",
    FULL: "towers_drift_full_share",
    CLICKS: "towers_drift_click_through_share",
    LATENCY: "towers_drift_p99_milliseconds",
}
"""The figure of each measure that several columns have."""


@dataclass(frozen=True, repr=False)
class DriftReport:
    """What changed since the training; it prints as the verdict and what is beyond the limits.

    Attributes:
        bundle: The folder of the model.
        version: The model's version.
        created: When the model was trained, ISO 8601.
        checked: When the tables were compared, ISO 8601.
        findings: All measures, those that are drift first.
        notes: What was repaired in today's tables, and what could not be compared.
    """

    bundle: str
    version: str
    created: str
    checked: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def drifted(self) -> tuple[Finding, ...]:
        """The measures beyond their limits."""
        return tuple(one for one in self.findings if one.is_drift)

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        names = list(dict.fromkeys(f"{one.table}.{one.column}" for one in self.drifted))
        if not names:
            return f"No drift in {len(self.findings)} measures against the training of model {self.version}."
        return f"Drift in {', '.join(names)} against the training of model {self.version} ({self.created})."

    def __repr__(self) -> str:
        """Return the verdict and the measures that are drift."""
        return self.to_text()

    def to_frame(self) -> pd.DataFrame:
        """Return every measure, a row each: table, column, measure, training, today, cells, is_drift."""
        return pd.DataFrame([asdict(one) for one in self.findings], columns=[one.name for one in fields(Finding)])

    def to_text(self) -> str:
        """Return the verdict and the measures that are drift."""
        lines = [said_of(one) for one in self.drifted]
        return "\n".join([self.verdict, *(f"  {line}" for line in lines), *(f"note: {note}" for note in self.notes)])

    def write(self, folder: Path) -> None:
        """Write `drift.json`, `drift.html` and `drift.prom` into a folder, each complete or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "verdict": self.verdict}
        page = _environment().get_template("drift.html").render(report=self, said_of=said_of)
        for name, text in (("drift.json", json.dumps(content, indent=1, ensure_ascii=False)), ("drift.html", page)):
            with atomic_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        write_to_textfile(str(folder / "drift.prom"), self._registry())

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        labels = dict.fromkeys(_BY_COLUMN.values(), ("table", "column"))
        gauges = {name: Gauge(name, what, labels.get(name, ()), registry=registry) for name, what in METRICS.items()}
        for one in self.findings:
            if one.measure in _BY_COLUMN:
                gauges[_BY_COLUMN[one.measure]].labels(one.table, one.column).set(one.today)
            else:
                gauges["towers_drift_index_age_seconds"].set(one.today * 3600)
        gauges["towers_drift_findings"].set(len(self.drifted))
        gauges["towers_drift_checked_timestamp_seconds"].set(datetime.fromisoformat(self.checked).timestamp())
        return registry


def find_drift(
    bundle: ModelBundle, tables: Mapping[str, Path | None], limits: Limits, requests: RequestSource | None = None
) -> DriftReport:
    """Compare tables with those that a model was trained on, and the end of a log of requests with its beginning.

    Args:
        bundle: The model.
        tables: Files to read instead of those that training read, by their key in `[features]`; None keeps a file.
        limits: What counts as drift.
        requests: The log of requests. None: only the tables and the index are compared.

    Raises:
        DataError: A table or the log cannot be read, a table lacks a column that the model reads, or the bundle has no
            profile.
    """
    if NAME not in bundle.folder:
        raise DataError(f"{bundle.path}: no {NAME}; it was trained by an older version of towers; train again")
    then = Profile.load(bundle.folder.file(NAME))
    given = {key: str(path.absolute()) for key, path in tables.items() if path is not None}
    # An item that the table does not have is a finding here and no mistake.
    config = bundle.config.features.model_copy(update={**given, "unknown_items": "drop"})
    found = read_tables(config, bundle.tables_folder, bundle.contract.readings_to_keep)
    # A missing column is an error; what else the contract says is among the findings.
    bundle.contract.check(bundle.featurizer, found, config, bundle.tables_folder, accept=True)
    of_requests, notes = ([], []) if requests is None else findings_of_requests(requests, bundle, found, limits)
    findings = [
        *_of_columns(bundle, found, limits),
        *_of_distributions(then, Profile.of(bundle.featurizer, found, then), limits),
        *_of_events(bundle, found, limits),
        *_of_index(bundle, limits),
        *of_requests,
    ]
    return DriftReport(
        bundle=str(bundle.path),
        version=bundle.version,
        created=bundle.manifest.created,
        checked=datetime.now(UTC).isoformat(timespec="seconds"),
        findings=tuple(sorted(findings, key=lambda one: not one.is_drift)),
        notes=(*found.notes, *notes),
    )


def _of_columns(bundle: ModelBundle, tables: Tables, limits: Limits) -> Iterator[Finding]:
    """Yield what is filled and known of the columns that the model reads."""
    for table, columns in bundle.contract.today(bundle.featurizer, tables).items():
        for name, now in columns.items():
            then = bundle.contract.columns[table][name]
            for measure, before, today in ((FILLED, then.filled, now.filled), (KNOWN, then.known, now.known)):
                if before is not None and today is not None and now.cells >= ENOUGH:
                    is_drift = before - today > limits.fall
                    yield Finding(table, name, measure, before, today, now.cells, is_drift)


def _of_distributions(then: Profile, today: Profile, limits: Limits) -> Iterator[Finding]:
    for table, columns in today.columns.items():
        for name, now in columns.items():
            before = then.columns.get(table, {}).get(name)
            if before is not None and min(before.count, now.count) >= ENOUGH:
                limit = max(limits.psi, before.noise(now))
                psi = before.psi(now)
                yield Finding(table, name, PSI, limit, psi, now.count, psi > limit)


def _of_events(bundle: ModelBundle, tables: Tables, limits: Limits) -> Iterator[Finding]:
    """Yield the share of today's interactions whose item the model knows."""
    encoder = bundle.featurizer.items.sparse.get(ITEM_ID)
    events = tables.interactions.frame
    if isinstance(encoder, ValueEncoder) and len(events) >= ENOUGH:
        share = float(encoder.knows(events[ITEM_ID]).mean())
        yield Finding(INTERACTIONS, ITEM_ID, KNOWN, 1.0, share, len(events), 1.0 - share > limits.fall)


def _of_index(bundle: ModelBundle, limits: Limits) -> Iterator[Finding]:
    if not (bundle.path / FOLDER / MANIFEST).exists():
        return
    created = IndexManifest.read(bundle.path / FOLDER, bundle, bundle.trust.keys).created
    hours = (time.time() - datetime.fromisoformat(created).timestamp()) / 3600
    yield Finding(_INDEX, "age in hours", HOURS, limits.index_hours, hours, 0, hours > limits.index_hours)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("serving", "jobs/templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
