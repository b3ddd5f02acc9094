"""RecTools' SASRec on a table of interactions, on the clock; `speed.py` starts it in the environment `.rivals`.

    .rivals/bin/python tests/benchmarks/rivals/sasrec_rectools.py interactions.parquet --answers answers.parquet

As its tutorials have it: softmax over all items, ids alone, Adam, no validation while training. Batches are put
together in the training process: on two cores a worker of its own would take from the threads that compute, and it is
milliseconds of work for a step of a second. Prints one line of JSON: the seconds of each epoch, the steps of one, the
peak memory and the versions. With `--after-each`, the answers of the model as it was after epoch N, from 0, go to
`ANSWERS.N`; saving it is not on the clock.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd


def main() -> None:
    """Train, answer every user, and print what was measured."""
    given = _arguments()
    warnings.simplefilter("ignore")  # its libraries warn of one another
    import torch
    from pytorch_lightning import seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.item_net import IdEmbeddingsItemNet

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    seed_everything(given.seed, verbose=False)
    frame = pd.read_parquet(given.interactions)
    moments = pd.to_datetime(frame["position"], unit="s")
    dataset = Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: frame["user_id"],
                Columns.Item: frame["item_id"],
                Columns.Weight: 1,
                Columns.Datetime: moments,
            }
        )
    )
    model = SASRecModel(
        n_factors=given.width,
        n_blocks=given.blocks,
        n_heads=given.heads,
        dropout_rate=given.dropout,
        session_max_len=given.length,
        batch_size=given.batch,
        loss="softmax",
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=lambda: _trainer(given),
    )
    model.fit(dataset)
    assert model.fit_trainer is not None
    clock: Any = model.fit_trainer.callbacks[0]  # the one that was told, a copy of ours

    def answer(file: str) -> None:
        answers = model.recommend(users=frame["user_id"].unique(), dataset=dataset, k=given.k, filter_viewed=True)
        answers[["user_id", "item_id", "rank"]].to_parquet(file, index=False)

    if given.answers:
        answer(str(given.answers))
    for epoch in range(given.epochs) if given.after_each else ():
        model.load_weights_from_checkpoint(checkpoint(given, epoch))
        answer(f"{given.answers}.{epoch}")
    measured = {
        "seconds": clock.seconds,
        "steps": clock.steps // given.epochs,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {name: version(name) for name in ("rectools", "torch", "pytorch-lightning", "numpy")},
    }
    print(json.dumps(measured))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interactions", type=Path, help="Parquet with user_id, item_id and position.")
    parser.add_argument("--answers", type=Path, help="Where the first items for each user go.")
    parser.add_argument("--after-each", action="store_true", help="Also answer after each epoch.")
    parser.add_argument("--k", type=int, default=10, help="How many of them.")
    parser.add_argument("--length", type=int, default=200, help="How many items of a history are read.")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=128, help="Sequences a step.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="32-true", help="As Lightning calls it: 32-true or bf16-mixed.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.after_each and not given.answers:
        parser.error("--after-each: needs --answers, beside which the answers of each epoch go")
    return given


def checkpoint(given: argparse.Namespace, epoch: int) -> str:
    """Return where the model as it was after an epoch is."""
    return f"{given.answers}.{epoch}.ckpt"


def _trainer(given: argparse.Namespace) -> Any:
    """Return the trainer that RecTools makes by itself, with a precision and a clock."""
    from pytorch_lightning import Trainer

    return Trainer(
        max_epochs=given.epochs,
        min_epochs=given.epochs,
        accelerator="cpu",
        devices=1,
        precision=given.precision,
        callbacks=[_clock(given)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


def _clock(given: argparse.Namespace) -> Any:
    """Return a callback that measures each epoch, from the end of the one before, and may save the model after it."""
    from pytorch_lightning import Callback

    class Clock(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.steps = 0
            self.began = 0.0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.began = time.perf_counter()

        def on_train_batch_end(self, *event: Any) -> None:
            self.steps += 1

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)
            if given.after_each:
                trainer.save_checkpoint(checkpoint(given, len(self.seconds) - 1))
            self.began = time.perf_counter()

    return Clock()


if __name__ == "__main__":
    main()
