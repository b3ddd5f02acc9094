"""Neighbours of the history by a frozen sentence encoder: what the row `beauty-cold` of quality.py has to beat.

    python tests/benchmarks/cold_neighbours.py run.toml [--seeds 3] [--protocol cold-items] [--model FOLDER]

The items' texts are those that the baseline TF-IDF reads, the half-life of a history is chosen on validation as there,
and the splits are those of `towers evaluate`. `title` alone is tried as well, because the model was made for sentences.
The model is the MiniLM that the test packages bring, unless another is named.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import normalize

from features.columns import item_texts
from features.config import EncoderSettings
from features.encoders.encoder import PretrainedText
from features.sequences.sequences import Queries
from features.tables.tables import read_tables
from tests.benchmarks.encoding import packaged_model
from tests.benchmarks.ids_only import spread
from towers.warnings_filter import quiet_imports
from training.config import read_run_config
from training.evaluation.baselines.suite import HALF_LIFE
from training.evaluation.baselines.text_neighbours import TextNeighbours, text_vectors
from training.evaluation.baselines.tuning import ndcg_on, search
from training.evaluation.evaluate import Evaluation, ScoringModel, evaluate
from training.tasks.protocols import split_by


def main() -> None:
    """Print R@10, N@10 and R@50 of each on the test part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--protocol", default="cold-items")
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    quiet_imports()
    found: dict[str, list[Evaluation]] = {}
    vectors: dict[str, np.ndarray] = {}
    for seed in range(given.seeds):
        config = read_run_config(given.settings, (f"training.seed={seed}",))
        tables = read_tables(config.features, given.settings.parent)
        texts = item_texts(tables.catalog, config.features.item)
        assert texts is not None, "the settings name texts of the items"
        titles = tables.catalog.frame[config.features.title or "title"].fillna("").astype(str).tolist()
        vectors = vectors or {
            "frozen encoder, all texts": encoded(given.model, texts),
            "frozen encoder, titles": encoded(given.model, titles),
        }
        sequences = tables.interactions.sequences(tables.catalog)
        split = split_by(given.protocol, sequences, len(tables.catalog), config)
        assert split.test is not None, "every protocol of towers evaluate holds out a test part"
        fits: dict[str, Callable[..., ScoringModel]] = {
            "TF-IDF": partial(TextNeighbours, text_vectors(texts, split.warm_items))
        }
        fits |= {name: partial(Neighbours, places) for name, places in vectors.items()}
        for name, fit in fits.items():
            best = search(fit, {"half_life": HALF_LIFE}, ndcg_on(split, split.validation)).model
            result = evaluate(best, split.test, split.candidates, seen_items=split.seen_items, cutoffs=(10, 50))
            found.setdefault(name, []).append(result)
    print(f"{'':28s}{'R@10':>18s}{'N@10':>18s}{'R@50':>18s}")
    for name, results in found.items():
        cells = [
            spread([one.means[metric] for one in results], ".4f")
            for metric in ("recall_at_10", "ndcg_at_10", "recall_at_50")
        ]
        print(f"{name:28s}{cells[0]:>18s}{cells[1]:>18s}{cells[2]:>18s}")


class Neighbours:
    """What is nearest to the mean of the history, where an event counts half as much as one `half_life` later."""

    name = "frozen encoder"

    def __init__(self, vectors: np.ndarray, half_life: float) -> None:
        """Take the items' unit vectors, `[items, width]`, and the half-life in events."""
        self._vectors = vectors
        self._half_life = half_life

    def scores(self, queries: Queries) -> np.ndarray:
        """Return the cosine of each item with the history."""
        past = queries.history
        age = np.repeat(past.offsets[1:], past.lengths) - 1 - np.arange(past.num_events)
        weights = np.exp2(-age / self._half_life).astype(np.float32)
        histories = sp.csr_array((weights, past.item_rows, past.offsets), shape=(len(past), len(self._vectors)))
        means: np.ndarray = histories @ self._vectors
        scores: np.ndarray = normalize(means) @ self._vectors.T
        return scores


def encoded(model: Path | None, texts: Sequence[str]) -> np.ndarray:
    """Return the unit vectors of texts, zeros where nothing is written."""
    settings = EncoderSettings(model=str(model or packaged_model()))
    return PretrainedText.fit(settings, texts).numbers(texts, "document")


if __name__ == "__main__":
    main()
