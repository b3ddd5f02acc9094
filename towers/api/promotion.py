"""Promotion: let a bundle replace the one in service if it is better and within limits, and record why.

Quality is compared by `training.tasks.promotion`; latency, size and recall of the index are those of the service.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from features.errors import DataError
from serving.config import ServingConfig
from serving.deploy.swap import in_service, swap_bundle
from serving.jobs.latency import request_milliseconds
from serving.jobs.open import open_recommender
from towers.bundle.bundle import ModelBundle
from towers.rerankers.manifest import has_ranker
from towers.tracking.logged_model import registered_name
from training.audit.comparison_report import PAGE
from training.config import PromotionConfig, RunConfig, read_run_config
from training.runs.progress import start_tracking
from training.tasks.promotion import SELECTED, Check, Quality, judge_quality


@dataclass(frozen=True)
class Decision:
    """Whether a challenger replaces the champion, and why.

    Attributes:
        challenger: The folder of the bundle.
        champion: That of the one in service; None: there is none.
        checks: The conditions.
    """

    challenger: Path
    champion: Path | None
    checks: tuple[Check, ...]

    @property
    def is_granted(self) -> bool:
        """Whether every condition holds."""
        return all(check.holds for check in self.checks)

    @property
    def word(self) -> str:
        """The decision in a word."""
        return "granted" if self.is_granted else "refused"

    @property
    def reasons(self) -> str:
        """The conditions that decided: those that do not hold, or all."""
        return "; ".join(check.text for check in self.checks if self.is_granted or not check.holds)

    @property
    def lines(self) -> list[str]:
        """The decision and every condition, a line each."""
        against = "there is no champion yet" if self.champion is None else f"against {self.champion.name}"
        checks = [f"  {'holds' if check.holds else 'FAILS'}  {check.text}" for check in self.checks]
        return [f"promotion of {self.challenger.name} {self.word}, {against}", *checks]

    @property
    def tags(self) -> dict[str, str]:
        """What MLflow keeps of it with a run or a version."""
        champion = "" if self.champion is None else self.champion.name
        return {"promotion": self.word, "promotion.reasons": self.reasons, "promotion.against": champion}


def promote_bundle(
    path: Path, link: Path | None, overrides: Sequence[str], *, dry_run: bool, settings: ServingConfig
) -> Decision:
    """Decide on a promotion, record the decision, and deploy the bundle if it is granted.

    Args:
        path: The folder of the challenger.
        link: The link or the alias. None: the alias `champion` of the model that is named as the experiment.
        overrides: `promotion.key=value` each.
        dry_run: Whether to change nothing that is served.
        settings: The settings of the service.

    Raises:
        BundleError: One of the bundles cannot be used.
        DataError: A setting is wrong, no data was held out, or the registry does not respond.
    """
    wrong = next((one for one in overrides if not one.strip().startswith("promotion.")), None)
    if wrong is not None:
        raise DataError(f"--set {wrong}: expected promotion.key=value; other settings are those of the training")
    challenger = ModelBundle.open(path.resolve(), trust=settings.trust)
    run = read_run_config(challenger.path / "run.toml", tuple(overrides))
    link = link or Path(f"models:/{registered_name(run.training.experiment)}@champion")
    place = in_service(link, settings)
    champion = None if place is None else ModelBundle.open(place, trust=settings.trust)
    if champion is not None and champion.weights_digest == challenger.weights_digest:
        raise DataError(f"{path}: in service already, as {link}; give another bundle")
    quality = None
    if champion is not None:
        quality = judge_quality(
            challenger, champion, run.promotion, rerank=settings.rerank, num_candidates=settings.rerank_candidates
        )
    checks = () if quality is None else quality.checks
    decision = Decision(challenger.path, place, (*checks, *_limits(challenger, run.promotion, settings)))
    click.echo("\n".join(decision.lines))
    if quality is not None:
        click.echo(f"  note: {SELECTED}")
    if not settings.rerank and any(has_ranker(one.path) for one in (challenger, champion) if one is not None):
        click.echo("  note: judged without re-rankers, which the service does not use either (its setting rerank)")
    _record(decision, run, quality, challenger)
    if decision.is_granted and not dry_run:
        swap_bundle(challenger.path, link, settings, decision.tags)
    return decision


def _limits(challenger: ModelBundle, limits: PromotionConfig, settings: ServingConfig) -> Iterator[Check]:
    """Yield the conditions on what the challenger costs in service; its index is built first if there is none."""
    recommender = open_recommender(challenger, settings)
    if settings.rerank and recommender.rerank is None and has_ranker(challenger.path):
        text = f"the index is older than the re-ranker, which would not be used; towers index {challenger.path}"
        yield Check("re-ranker and index", False, text, {})
    taken = request_milliseconds(recommender)
    p50, p99 = np.quantile(taken, [0.5, 0.99]).tolist()
    how = " with re-ranking" if recommender.rerank is not None else ""
    text = (
        f"latency{how} p99 {p99:.1f} ms (p50 {p50:.1f}) of {len(taken)} requests; at most {limits.max_latency_ms:g} ms"
    )
    yield Check("latency", p99 <= limits.max_latency_ms, text, {"p50_ms": p50, "p99_ms": p99})
    size = sum(file.stat().st_size for file in challenger.path.rglob("*") if file.is_file()) / 1e6
    text = f"size with index {size:,.1f} MB; at most {limits.max_size_mb:,g} MB"
    yield Check("size", size <= limits.max_size_mb, text, {"size_mb": size})
    recall = recommender.snapshot.manifest.recall_at_100
    text = f"recall@100 of the index {recall:.4f}; at least {limits.min_index_recall:g}"
    yield Check("index recall", recall >= limits.min_index_recall, text, {"index_recall_at_100": recall})


def _record(decision: Decision, run: RunConfig, quality: Quality | None, challenger: ModelBundle) -> None:
    """Record the decision as a run of its own, with what was measured and the differences by slice."""
    name, folder = f"promote {challenger.path.name}", challenger.tables_folder
    params = {"promotion": run.promotion.model_dump(mode="json")}
    tags = {**decision.tags, "weights": challenger.version}
    with start_tracking(run, name, tags, params=params, folder=folder) as tracker:
        measured = {name: value for check in decision.checks for name, value in check.measured.items()}
        tracker.log_metrics({f"promotion/{name}": value for name, value in measured.items()}, step=0)
        tracker.describe("\n\n".join(line.strip() for line in decision.lines))
        content = {"decision": decision.word, "checks": [asdict(check) for check in decision.checks]}
        tracker.log_text(json.dumps(content, indent=1), "promotion.json")
        if quality is not None:
            tracker.log_text(quality.comparison.to_html(), PAGE)
    if tracker.how_to_look is not None:
        click.echo(f"recorded in MLflow; to show it: {tracker.how_to_look}")
