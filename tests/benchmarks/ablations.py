"""What each feature is worth: the same training with all of them, without one at a time, and with the ids alone.

    python tests/benchmarks/ablations.py run.toml [--seeds 3] [--protocol leave-one-out] [--set table.key=value ...]

Judged on validation, because what does not help is then left out of the settings: the figures are chosen on these
questions. `lead` is by how much N@10 with all features is above that without the feature, with the 95 % interval over
the questions and, if there are several, the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from features.ids import ITEM_ID
from features.tables.tables import Tables, read_tables
from towers.warnings_filter import quiet_imports
from training.config import RunConfig, read_run_config
from training.evaluation.comparison import Comparison
from training.evaluation.evaluate import Evaluation, evaluate
from training.loop.fit import fit
from training.tasks.protocols import split_by


def main() -> None:
    """Train every variant with every seed and print N@10 and R@10 of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--protocol", default="leave-one-out")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    quiet_imports()
    config = read_run_config(given.settings, tuple(given.overrides))
    tables = read_tables(config.features, given.settings.parent)
    whole: list[Evaluation] = []
    print(f"{'':32s}{'N@10':>8s}{'R@10':>8s}{'lead of all':>30s}", flush=True)
    for name, variant in variants(config):
        found = [judge(variant, tables, given.protocol, seed) for seed in range(given.seeds)]
        whole = whole or found
        print(f"{name:32s}{row(whole, found)}", flush=True)


def row(whole: Sequence[Evaluation], found: Sequence[Evaluation]) -> str:
    """Return N@10 and R@10 of a variant, and the lead of all features over it, by seed each."""
    compared = Comparison.of(list(zip(whole, found, strict=True)))
    ndcg, recall = (compared.metric(1, metric).mean for metric in ("ndcg_at_10", "recall_at_10"))
    lead = compared.lead(0, 1, "ndcg_at_10")
    said = f"{lead.mean / ndcg:+.1%}, {lead.low / ndcg:+.1%} to {lead.high / ndcg:+.1%}"
    return f"{ndcg:8.4f}{recall:8.4f}{said if whole is not found else '':>30s}"


def variants(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yield the settings as they are, without each feature, and with the ids alone, each with a name."""
    features = config.features
    yield "all", config
    others = [name for name, settings in features.item.items() if name != ITEM_ID]
    for name in others:
        yield (
            f"without item.{name}",
            _with(config, item={key: features.item[key] for key in features.item if key != name}),
        )
    if features.user:
        yield "without the users' attributes", _with(config, user={})
    if len(others) > 1:
        yield "ids alone", _with(config, item={ITEM_ID: features.item[ITEM_ID]}, user={})


def judge(config: RunConfig, tables: Tables, protocol: str, seed: int) -> Evaluation:
    """Return how good a training is on validation."""
    config = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
    sequences = tables.interactions.sequences(tables.catalog)
    split = split_by(protocol, sequences, len(tables.catalog), config)
    learned = fit(config, tables, split, device=torch.device("cpu"))
    return evaluate(
        learned.recommender(config.features.max_history),
        split.validation,
        split.candidates,
        seen_items=split.seen_items,
    )


def _with(config: RunConfig, **changed: object) -> RunConfig:
    return config.model_copy(update={"features": config.features.model_copy(update=changed)})


if __name__ == "__main__":
    main()
