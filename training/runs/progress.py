"""Progress of training: a summary of the data and a line per epoch on stderr, values and pictures in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from features.sequences.sequences import Sequences
from features.tables.tables import Tables
from training.config import RunConfig
from training.evaluation.report import EvaluationReport
from training.loop.trainer import Progress
from training.runs.mlflow_tracker import Tracker
from training.runs.provenance import run_name

OnEpoch = Callable[[Progress, dict[str, float]], None]

_POINTS = 50


def describe(tables: Tables, sequences: Sequences) -> None:
    """Say what was read, and what was repaired on the way."""
    for note in tables.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(
        f"{sequences.num_events:,} interactions of {len(sequences):,} users, {len(tables.catalog):,} items", err=True
    )


def start_tracking(
    config: RunConfig,
    name: str,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Tracker:
    """Start the MLflow run of a training, or continue it.

    Args:
        config: The settings.
        name: What the run is; preset, data and time are added.
        tags: Digests of the data and the like.
        run_id: Id of an interrupted run to continue.
        params: Parameters of the run. None: the settings.
        folder: What the paths in the settings are relative to. None: the working folder.
    """
    folder = folder or Path.cwd()
    return Tracker.start(
        enabled=config.training.track,
        experiment=config.training.experiment,
        run_name=run_name(config, folder, name),
        params=config.model_dump(mode="json") if params is None else params,
        tags=tags,
        run_id=run_id,
        folder=folder,
    )


def log_plots(tracker: Tracker, report: EvaluationReport) -> None:
    """Record the pictures of a report as files of the run, in the folder `plots`."""
    for name, picture in report.plots().items():
        tracker.log_text(picture, f"plots/{name}")


def report_steps(tracker: Tracker) -> Callable[[int, float], None]:
    """Return a listener that records the loss, of long trainings some 500 times for each power of ten of steps."""

    def tell(step: int, loss: float) -> None:
        stride = max(1, 10 ** (len(str(step)) - 1) // _POINTS)
        if step % stride == 0:
            tracker.log_metrics({"train/loss": loss}, step)

    return tell


def report_epochs(tracker: Tracker) -> OnEpoch:
    """Return a listener that writes a line per epoch (the best one so far is marked) and records it; 0 is the start."""
    header = iter(["epoch    loss   validation N@10   events/s"])

    def tell(progress: Progress, measured: dict[str, float]) -> None:
        for line in header:
            tqdm.write(line, file=sys.stderr)
        quality = measured.get("validation_ndcg_at_10")
        shown = "" if quality is None else f"{quality:.4f}{' *' if progress.best_step == progress.step else '  '}"
        learned = f"{measured['loss']:7.4f}" if "loss" in measured else ""
        speed = f"{measured['events_per_second']:10,.0f}" if "events_per_second" in measured else ""
        tqdm.write(f"{progress.epoch:5d} {learned:>7} {shown:>17} {speed:>10}".rstrip(), file=sys.stderr)
        tracker.log_metrics({f"epoch/{name}": value for name, value in measured.items()}, step=progress.epoch)

    return tell
