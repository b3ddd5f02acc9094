"""The training loop: batches in, the weights with the best validation N@10 out.

A step encodes each item it needs once, reads every user's sequence in one pass, and predicts each event from those
before it. The run depends on the seed alone and can be stopped at any step and resumed to the bit (on a CPU).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from features.sequences.batches import SequenceBatch
from towers.model.two_tower import TwoTower
from towers.process import ENDING, Stopped, handled
from training.loop.build import TrainingParts, dense_parameters
from training.loop.checkpoint import Checkpoint
from training.loop.gradient_caching import user_states
from training.loop.hard_negatives import mine_hard_negatives, mining_notes
from training.loop.losses import matryoshka_loss
from training.loop.negatives import AllItems, Negatives, Targets, reversed_negatives, to_device
from training.loop.processes import OneProcess, Processes, part_of
from training.loop.spectral_init import initialise_embeddings
from training.loop.weight_averaging import WeightAverage, overwrite, steps_between

GRADIENT_NORM = 1.0
LR_DECAY = 0.3
"""Factor of each learning-rate decay."""
STEPS_UNSEEN = 20
"""On a GPU the loss is read every so many steps, because reading it waits for the GPU."""


@dataclass
class Progress:
    """State of a run, apart from tensors; stored in the checkpoint.

    Attributes:
        epoch: Epochs finished.
        batch: Batches of the current epoch done.
        step: Steps done.
        loss: Sum of the losses of the current epoch's batches.
        seconds: Time spent in the current epoch's steps.
        best: The best validation N@10 so far.
        best_step: The step it was reached at.
        waited: Epochs since then, or since the learning rates were last lowered.
        decay_steps: The steps from which on the learning rates were lowered.
        finished: Whether the run is over.
        epochs: What was measured after each epoch, with its number and the step; epoch 0 is before the first.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    decay_steps: list[int] = field(default_factory=list)
    finished: bool = False
    epochs: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """The steps of one training run, over the parts that `build` made.

    Args:
        parts: Model, optimisers, batches and negatives.
        checkpoint: The file that training can be resumed from; None: none is written.
        validate: Returns the validation N@10 of the model as it is; None: train for `steps` and keep the last average.
        steps: Steps after which training ends in any case.
        decay_steps: Steps from which on the learning rates are lowered, where that is known beforehand.
        on_step: Called with the step and the mean loss of the epoch so far, after each step; on a GPU after every 20.
        on_epoch: Called with the progress and the metrics, after each epoch, and before the first unless items are
            initialised randomly.
        quiet: No progress bar.
        processes: Those that train together. None: this one alone.
    """

    def __init__(
        self,
        parts: TrainingParts,
        *,
        checkpoint: Path | None = None,
        validate: Callable[[TwoTower], float] | None = None,
        steps: int | None = None,
        decay_steps: Sequence[int] = (),
        on_step: Callable[[int, float], None] | None = None,
        on_epoch: Callable[[Progress, dict[str, float]], None] | None = None,
        quiet: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.processes: Processes = processes or OneProcess()
        self.settings = parts.settings
        self.data = parts.data
        self.device = parts.device
        self.reads_history = parts.reads_history
        self.train = parts.train
        self.batches = parts.batches
        self.item_features = parts.item_features
        self.user_features = parts.user_features
        self.model = parts.model
        self.optimizer = parts.optimizer
        self.table_optimizers = parts.table_optimizers
        self.negatives = parts.negatives
        self.trend = parts.trend
        self.precision = parts.precision
        self.loss_function = parts.loss
        self.checkpoint = checkpoint
        self.validate = validate
        self.steps = steps
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.quiet = quiet
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.progress = Progress(decay_steps=list(decay_steps))
        self.loss_sum = torch.zeros((), dtype=torch.double, device=self.device)
        # Of the whole model, so that it does not depend on the number of processes.
        self._steps_between = steps_between(sum(weight.numel() for weight in self.model.state_dict().values()))
        self.average = WeightAverage(self._weights, self._steps_between)
        self.best_weights: dict[str, Tensor] = {}
        own_items = self.processes.own(self.processes.sizes(len(self.item_features)))
        self._own_catalog = part_of(self.item_features, own_items)
        self._saved_at = time.monotonic()

    def fit(self) -> TwoTower:
        """Train until the validation N@10 has stopped rising, and return the model with its best averaged weights.

        Raises:
            Stopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint is written.
        """
        if self.progress.step == 0:
            self._initialise()
        with _stop_requests() as stop:
            while not self.progress.finished:
                self._epoch(stop)
                (number,) = self.processes.agree(*(stop or [0])[:1])
                if number:  # while the epoch was being judged, after which its checkpoint was written
                    raise Stopped(number)
        overwrite(self._weights(), self.best_weights or self.average.tensors)
        return self.model.eval()

    def _initialise(self) -> None:
        """Initialise item embeddings as set, and evaluate initial weights that are not random, as they may be the best.

        Those of a text search are not random either: TF-IDF vectors need no training.
        """
        if self.settings.item_init == "spectral":
            initialise_embeddings(self.model, self.train, self.item_features, self.settings)
        self._divide()
        if self.settings.item_init == "random" and self.reads_history:
            return
        if self.validate is not None:
            quality = self._validate()
            self._report_epoch({"validation_ndcg_at_10": quality})
        self.progress.finished = self._out_of_steps()

    def _divide(self) -> None:
        self.table_optimizers = self.processes.divide(self.model, self.table_optimizers)
        self.average = WeightAverage(self._weights, self._steps_between)

    def _epoch(self, stop: list[int]) -> None:
        progress = self.progress
        total = self.batches.num_batches(progress.epoch)
        if progress.batch == 0:
            self._mine_hard_negatives()
        self.model.train()
        bar = tqdm(
            total=total,
            initial=progress.batch,
            desc=f"epoch {progress.epoch + 1}",
            unit=" steps",
            leave=False,
            disable=self.quiet or None,
        )
        with bar:
            began = time.perf_counter()
            for batch in prefetched(self.batches.epoch(progress.epoch, progress.batch)):
                self.loss_sum += self.step(batch)
                progress.batch += 1
                bar.update()
                if self.device.type == "cpu" or progress.batch % STEPS_UNSEEN == 0:
                    self._report_loss(bar)
                progress.seconds += time.perf_counter() - began
                if self._out_of_steps():
                    break
                self._between_steps(stop)
                began = time.perf_counter()
        self._end_epoch()

    def _report_loss(self, bar: tqdm[NoReturn]) -> None:
        progress = self.progress
        progress.loss = self.loss_sum.item()
        bar.set_postfix_str(f"loss {progress.loss / progress.batch:.4f}", refresh=False)
        if self.on_step is not None:
            self.on_step(progress.step, progress.loss / progress.batch)

    def _mine_hard_negatives(self) -> None:
        """Mine hard negatives if the interval is over; never before the first epoch, when the model is untrained."""
        hard, settings, epoch = self.negatives.hard, self.settings, self.progress.epoch
        if hard is None or epoch == 0 or (epoch - 1) % settings.hard_negatives_interval:
            return
        batches = tqdm(
            self.batches.epoch(epoch),
            total=self.batches.num_batches(epoch),
            desc=f"epoch {epoch + 1}, mining",
            unit=" batches",
            leave=False,
            disable=self.quiet or None,
        )
        hard.table = mine_hard_negatives(
            self.model,
            iter(batches),
            self.item_features,
            self.user_features,
            per_user=settings.hard_negatives,
            skip=settings.hard_negatives_skip,
            below=settings.hard_negatives_score_ratio,
            seed=settings.seed + epoch,
            processes=self.processes,
        )

    @property
    def notes(self) -> list[str]:
        """What training leaves out to stay within its bounds, a line each."""
        if self.negatives.hard is None:
            return []
        return mining_notes(len(self.user_features), len(self.item_features))

    def _end_epoch(self) -> None:
        progress = self.progress
        progress.loss = self.loss_sum.item()
        measured = {
            "loss": progress.loss / max(progress.batch, 1),
            "events_per_second": self._events_learned() / max(progress.seconds, 1e-9),
        }
        if self.validate is None:
            progress.best_step = progress.step
        else:
            measured["validation_ndcg_at_10"] = self._validate()
        progress.epoch += 1
        is_last = progress.epoch >= self.settings.epochs and self.steps is None
        progress.finished = is_last or self._out_of_steps() or self._is_exhausted()
        self._report_epoch(measured)
        progress.batch, progress.loss, progress.seconds = 0, 0.0, 0.0
        self.loss_sum.zero_()
        if self.checkpoint is not None:
            self.save()

    def _report_epoch(self, measured: dict[str, float]) -> None:
        self.progress.epochs.append({"epoch": self.progress.epoch, "step": self.progress.step, **measured})
        if self.on_epoch is not None:
            self.on_epoch(self.progress, measured)

    def _events_learned(self) -> float:
        """Return the approximate number of events in the finished batches of the epoch."""
        return self.train.num_events * self.progress.batch / self.batches.num_batches(self.progress.epoch)

    def _validate(self) -> float:
        assert self.validate is not None
        progress = self.progress
        with self.average.in_place():
            quality = self.validate(self.model.eval())
            is_better = quality > progress.best
            if is_better:
                self.best_weights = {name: value.clone() for name, value in self._weights().items()}
        if is_better:
            progress.best, progress.best_step, progress.waited = quality, progress.step, 0
        elif progress.step > self.settings.warmup_steps:
            progress.waited += 1
        return quality

    def _is_exhausted(self) -> bool:
        """After epochs without a better validation, lower the learning rates; say when that has been done enough."""
        progress = self.progress
        if progress.waited < self.settings.patience:
            return False
        if len(progress.decay_steps) == self.settings.lr_decays:
            return True
        progress.decay_steps.append(progress.step)
        progress.waited = 0
        return False

    def _out_of_steps(self) -> bool:
        return self.steps is not None and self.progress.step >= self.steps

    def _between_steps(self, stop: list[int]) -> None:
        is_due = bool(stop) or time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds
        number, must_save = self.processes.agree(stop[0] if stop else 0, is_due)
        if self.checkpoint is not None and must_save:
            self.save()
        if number:
            raise Stopped(number)

    def step(self, batch: SequenceBatch) -> Tensor:
        """Train on one batch and return its loss, without waiting for a GPU to finish it."""
        self._set_learning_rates()
        self.processes.begin_step(self.settings.seed, self.progress.step)
        for fused in self.table_optimizers:
            fused.step()  # only passes the learning rate on; the backward pass updates the tables
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = dense_parameters(self.model)
        loss = self.processes.reduce(loss.detach(), parameters)
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        self.optimizer.step()
        self.progress.step += 1
        self.average.add(self.progress.step)
        return loss

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Return the loss of one batch: state t predicts event t (see `SequenceBatch`) wherever that is a target.

        Of several processes each returns its own, whose mean is the loss of the batch. The batch and the draw of
        negatives are on the host: tensors whose sizes depend on them are made there, so that the host need not wait for
        a GPU.
        """
        targets = Targets.of(batch)
        negatives = self.negatives.draw(targets, self.generator)
        share = self.processes.share(targets)
        rows, place = self._items_to_encode(batch, negatives)
        item_vectors = self._item_vectors(rows)
        states = user_states(
            self.model.user_tower,
            share.batch,
            self.user_features,
            item_vectors,
            place,
            gradient_cache_chunk=self.settings.gradient_cache_chunk,
        )
        positive_vectors = item_vectors[to_device(place[targets.rows], self.device)]
        negative_vectors = item_vectors[: len(negatives.fresh)]
        if self.negatives.memory is not None:
            negative_vectors = torch.cat([negative_vectors, self.negatives.memory.recall(negatives)])
            if self.progress.step >= self.settings.warmup_steps:
                self.negatives.memory.remember(targets.rows, positive_vectors)
        user_vectors, positive_vectors = states[to_device(share.places, self.device)], positive_vectors[share.positives]
        negatives = negatives.only(share.positives)
        if self.trend is not None and self.model.trend is not None:
            numbers, own = self.trend.of(targets.only(share.positives), negatives)
            negatives = replace(negatives, trend=numbers)
            user_vectors = torch.cat([user_vectors, self.model.trend(user_vectors)], dim=1)
            positive_vectors = torch.cat([positive_vectors, own], dim=1)
        loss = self._loss_of(user_vectors, positive_vectors, negative_vectors, negatives)
        if self.settings.symmetric_loss:
            others = reversed_negatives(targets, self.train.num_events).only(share.positives)
            all_users = self.processes.gather(user_vectors, share.sizes)
            loss = (loss + self._loss_of(positive_vectors, user_vectors, all_users, others)) / 2
        return loss * share.weight

    def _loss_of(self, user_vectors: Tensor, answers: Tensor, others: Tensor, negatives: Negatives) -> Tensor:
        return matryoshka_loss(
            user_vectors,
            answers,
            others,
            self.model.scale,
            negatives.to(self.device),
            prefix_scales=self.model.prefix_scales,
            precision=self.precision,
            loss=self.loss_function,
        )

    def _items_to_encode(self, batch: SequenceBatch, negatives: Negatives) -> tuple[Tensor, Tensor]:
        """Return the items whose vectors the step makes, the negatives first, and the place of each item among them."""
        place = torch.full((len(self.item_features),), -1)
        place[negatives.fresh] = torch.arange(len(negatives.fresh))
        others = batch.item_rows[place[batch.item_rows] < 0].unique()
        place[others] = torch.arange(len(others)) + len(negatives.fresh)
        return torch.cat([negatives.fresh, others]), place

    def _item_vectors(self, rows: Tensor) -> Tensor:
        """Return the vectors of the items at `rows`, each encoded in one of the processes."""
        sizes = self.processes.sizes(len(rows))
        features = (
            self._own_catalog
            if isinstance(self.negatives, AllItems)
            else self.item_features.take(to_device(rows[self.processes.own(sizes)], self.device))
        )
        return self.processes.gather(self.model.item_vectors(features), sizes)

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights of the model that this process keeps."""
        return self.processes.local(self.model.state_dict())

    def _set_learning_rates(self) -> None:
        step = self.progress.step
        decays = sum(step >= start for start in self.progress.decay_steps)
        factor = min(1.0, (step + 1) / max(self.settings.warmup_steps, 1)) * LR_DECAY**decays
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        for fused in self.table_optimizers:
            for group in fused.param_groups:
                group["lr"] = self.settings.embedding_learning_rate * factor

    def save(self) -> None:
        """Write a checkpoint."""
        assert self.checkpoint is not None
        self.processes.save(self.state(), self.checkpoint)
        self._saved_at = time.monotonic()

    def state(self) -> Checkpoint:
        """Return all that the next step depends on; the tensors are those that training goes on to change."""
        self.progress.loss = self.loss_sum.item()
        checkpoint = Checkpoint(counters=vars(self.progress).copy())
        checkpoint.counters["best"] = None if math.isinf(self.progress.best) else self.progress.best
        checkpoint.add("model", self._weights())
        checkpoint.add("average", self.average.tensors)
        checkpoint.add("best", self.best_weights)
        checkpoint.add("adamw", self._optimizer_tensors())
        checkpoint.add("tables", self.table_states())
        checkpoint.add("negatives", self.negatives.state())
        checkpoint.add("random", {**random_states(self.device), "negatives": self.generator.get_state()})
        return checkpoint

    def resume(self) -> None:
        """Go back to where the checkpoint was written."""
        assert self.checkpoint is not None
        self._divide()
        table_states = self.table_states()
        checkpoint = self.processes.load(self.checkpoint)
        best = checkpoint.counters["best"]
        self.progress = Progress(**{**checkpoint.counters, "best": -math.inf if best is None else best})
        self.loss_sum.fill_(self.progress.loss)
        overwrite(self._weights(), checkpoint.part("model"))
        self.average.restore(checkpoint.part("average"))
        self.best_weights = {name: value.to(self.device) for name, value in checkpoint.part("best").items()}
        self._restore_optimizer(checkpoint.part("adamw"))
        overwrite(table_states, checkpoint.part("tables"))
        self.negatives.restore(checkpoint.part("negatives"))
        random = checkpoint.part("random")
        set_random_states(random, self.device)
        self.generator.set_state(random["negatives"])

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        states = self.optimizer.state_dict()["state"]
        return {f"{place}.{key}": value for place, state in states.items() for key, value in state.items()}

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            place, key = name.split(".")
            states.setdefault(int(place), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})

    def table_states(self) -> dict[str, Tensor]:
        """Return the sums of squared gradients of the embedding tables' rows, by table; they may be overwritten."""
        states = {
            f"{place}.{table.removeprefix('embedding_bags.')}": value  # a prefix of tables that are divided
            for place, fused in enumerate(self.table_optimizers)
            for table, state in fused.state_dict()["state"].items()
            for value in state.values()  # row-wise Adagrad has one
        }
        return self.processes.local(states)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return torch's random states: of the CPU, and of a GPU, which draws dropout itself; both are on the host."""
    states = {"torch": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Go back to such states; a GPU that goes on from a CPU's checkpoint keeps its own."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def prefetched(batches: Iterator[SequenceBatch]) -> Generator[SequenceBatch, None, None]:
    """Yield the same batches, each prepared while the previous one is trained on."""
    with ThreadPoolExecutor(1) as worker:
        upcoming = worker.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = worker.submit(next, batches, None)
            yield batch


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives the number of a stop signal; a second signal ends the program at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise Stopped(number)
        asked.append(number)

    with handled((signal.SIGINT, *ENDING), ask):
        yield asked
