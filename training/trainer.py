"""The training loop: batches in, the weights with the best validation N@10 out.

A step encodes each item it needs once, reads every user's sequence in one pass, and predicts each event from those
before it. The run depends on the seed alone and can be stopped at any step and resumed to the bit (on a CPU).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from features.batches import EntityFeatures, SequenceBatch, TrainingBatches
from features.featurizer import Featurizer
from features.sequences import Sequences
from features.tables import Catalog, Users
from towers.embeddings import FeatureEmbeddings
from towers.two_tower import TwoTower
from training.checkpoint import Checkpoint
from training.config import RunConfig
from training.losses import softmax_loss
from training.negatives import AllItems, MixedSample, forbidden

FULL_SOFTMAX_ITEMS = 30_000
GRADIENT_NORM = 1.0
FEWEST_EVENTS, STEPS_AN_EPOCH = 128, 50
"""Small tables are dealt into so many batches an epoch, as long as a batch has so many events."""
RATE_CUT = 0.3
"""What the learning rates are multiplied by when validation has stopped rising."""


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from, as tensors made once."""

    train: Sequences
    catalog: Catalog
    users: Users | None
    featurizer: Featurizer
    item_features: EntityFeatures
    user_features: EntityFeatures

    @classmethod
    def prepare(cls, train: Sequences, catalog: Catalog, users: Users | None, featurizer: Featurizer) -> TrainingData:
        """Featurize the catalogue and the training users."""
        attributes = None if users is None else users.attributes_of(train.user_ids)
        return cls(
            train=train,
            catalog=catalog,
            users=users,
            featurizer=featurizer,
            item_features=featurizer.item_features(catalog),
            user_features=featurizer.user_features(train.user_ids, attributes),
        )


@dataclass
class Progress:
    """Where a run stands; all of it is in the checkpoint.

    Attributes:
        epoch: Epochs finished.
        batch: Batches of the current epoch done.
        step: Steps done.
        loss: Sum of the losses of the current epoch's batches.
        seconds: Time spent in the current epoch's steps.
        best: The best validation N@10 so far.
        best_step: The step it was reached at.
        waited: Epochs since then, or since the learning rates were last lowered.
        cut_steps: The steps from which on the learning rates were lowered.
        finished: Whether the run is over.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    waited: int = 0
    cut_steps: list[int] = field(default_factory=list)
    finished: bool = False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was written."""


class Trainer:
    """One training run.

    Args:
        config: The settings.
        data: What to learn from.
        device: Where to.
        checkpoint: The file that training can be resumed from; None: none is written.
        validate: Returns the validation N@10 of the model as it is; None: train for `steps` and keep the last weights.
        steps: Steps after which training ends in any case.
        cut_steps: Steps from which on the learning rates are lowered, where that is known beforehand.
        on_step: Told the step, the loss and the learning rate's share, after each step.
        on_epoch: Told the progress and the validation N@10, after each epoch.
        quiet: No progress bar.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        *,
        device: torch.device,
        checkpoint: Path | None = None,
        validate: Callable[[TwoTower], float] | None = None,
        steps: int | None = None,
        cut_steps: Sequence[int] = (),
        on_step: Callable[[int, float], None] | None = None,
        on_epoch: Callable[[Progress, dict[str, float]], None] | None = None,
        quiet: bool = False,
    ) -> None:
        settings = config.training
        self.settings = settings
        self.data = data
        self.device = device
        self.checkpoint = checkpoint
        self.validate = validate
        self.steps = steps
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.quiet = quiet
        torch.manual_seed(settings.seed)
        with device:
            self.model = TwoTower(
                config.towers,
                data.featurizer,
                config.features.history,
                learning_rate=settings.table_learning_rate,
            )
        self.tables = [m.fused_optimizer for m in self.model.modules() if isinstance(m, FeatureEmbeddings)]
        self.optimizer = self._dense_optimizer()
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.batches = TrainingBatches(
            data.train,
            history=config.features.history,
            batch_events=min(settings.batch_events, max(FEWEST_EVENTS, data.train.num_events // STEPS_AN_EPOCH)),
            recommend_seen=config.features.recommend_seen,
            seed=settings.seed,
        )
        self.item_features = data.item_features.to(device)
        self.user_features = data.user_features.to(device)
        self.negatives = self._sampler()
        self.precision = loss_precision(settings.precision, device)
        self.progress = Progress(cut_steps=list(cut_steps))
        self.best_weights: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()

    def fit(self) -> TwoTower:
        """Train until the validation N@10 has stopped rising, and return the model with its best weights.

        Raises:
            Interrupted: Ctrl-C; the checkpoint is written.
        """
        with _stop_requests() as stop:
            while not self.progress.finished:
                self._epoch(stop)
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)
        return self.model.eval()

    def _epoch(self, stop: list[bool]) -> None:
        progress = self.progress
        total = self.batches.num_batches(progress.epoch)
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
            for batch in self.batches.epoch(progress.epoch, progress.batch):
                began = time.perf_counter()
                progress.loss += self.step(batch)
                progress.seconds += time.perf_counter() - began
                progress.batch += 1
                bar.update()
                bar.set_postfix_str(f"loss {progress.loss / progress.batch:.4f}", refresh=False)
                if self.on_step is not None:
                    self.on_step(progress.step, progress.loss / progress.batch)
                if self._out_of_steps():
                    break
                self._between_steps(stop)
        self._end_epoch()

    def _end_epoch(self) -> None:
        progress = self.progress
        measured = {
            "loss": progress.loss / max(progress.batch, 1),
            "events_per_second": self.data.train.num_events / max(progress.seconds, 1e-9),
        }
        if self.validate is None:
            progress.best_step = progress.step
        else:
            measured["validation_ndcg_at_10"] = self._judge()
        progress.epoch += 1
        is_last = progress.epoch >= self.settings.epochs and self.steps is None
        progress.finished = is_last or self._out_of_steps() or self._is_exhausted()
        if self.on_epoch is not None:
            self.on_epoch(progress, measured)
        progress.batch, progress.loss, progress.seconds = 0, 0.0, 0.0
        if self.checkpoint is not None:
            self.save()

    def _judge(self) -> float:
        assert self.validate is not None
        progress = self.progress
        quality = self.validate(self.model.eval())
        if quality > progress.best:
            progress.best, progress.best_step, progress.waited = quality, progress.step, 0
            self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        elif progress.step > self.settings.warmup_steps:
            progress.waited += 1
        return quality

    def _is_exhausted(self) -> bool:
        """After epochs without a better validation, lower the learning rates; say when that has been done enough."""
        progress = self.progress
        if progress.waited < self.settings.patience:
            return False
        if len(progress.cut_steps) == self.settings.rate_cuts:
            return True
        progress.cut_steps.append(progress.step)
        progress.waited = 0
        return False

    def _out_of_steps(self) -> bool:
        return self.steps is not None and self.progress.step >= self.steps

    def _between_steps(self, stop: list[bool]) -> None:
        if self.checkpoint is None:
            if stop:
                raise Interrupted
            return
        if stop or time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds:
            self.save()
        if stop:
            raise Interrupted

    def step(self, batch: SequenceBatch) -> float:
        """Learn from one batch and return its loss."""
        self._set_learning_rates()
        loss = self.loss(batch.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._dense_parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.progress.step += 1
        return loss.item()

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Return the loss of one batch: each target predicted from the events before it."""
        num_items = len(self.item_features)
        targets = batch.is_target.nonzero()[:, 0]
        target_rows = batch.item_rows[targets]
        negatives = self.negatives.draw(target_rows, self.generator)
        item_vectors, place = self._encode(torch.cat([batch.item_rows, negatives.rows]))
        is_input = torch.ones_like(batch.is_target)
        is_input[batch.offsets[1:] - 1] = False
        users = torch.arange(len(batch.users), device=self.device)
        states = self.model.user_tower(
            item_vectors[place[batch.item_rows[is_input]]],
            batch.offsets - torch.arange(len(batch.offsets), device=self.device),
            self.user_features.take(batch.users),
            request_times=batch.times,
            event_times=None if batch.times is None else batch.times[is_input],
        )
        user_of_target = torch.repeat_interleave(users, batch.offsets.diff())[targets]
        return softmax_loss(
            states[targets],
            item_vectors[place[target_rows]],
            item_vectors[place[negatives.rows]],
            self.model.scale,
            negatives,
            forbidden(negatives, batch, user_of_target, num_items),
            precision=self.precision,
        )

    def _encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each item once; return the vectors, and where the vector of each catalogue row is."""
        num_items = len(self.item_features)
        if isinstance(self.negatives, AllItems):
            return self.model.item_vectors(self.item_features), torch.arange(num_items, device=self.device)
        distinct = rows.unique()
        place = torch.zeros(num_items, dtype=torch.long, device=self.device)
        place[distinct] = torch.arange(len(distinct), device=self.device)
        return self.model.item_vectors(self.item_features.take(distinct)), place

    def _sampler(self) -> AllItems | MixedSample:
        num_items = len(self.item_features)
        settings = self.settings
        if settings.negatives == "all" or (settings.negatives == "auto" and num_items <= FULL_SOFTMAX_ITEMS):
            return AllItems(num_items, self.device)
        counts = torch.from_numpy(np.bincount(self.data.train.item_rows, minlength=num_items)).to(self.device)
        return MixedSample(
            num_items,
            uniform=settings.uniform_negatives,
            in_batch=settings.in_batch_negatives,
            item_counts=counts,
        )

    def _dense_parameters(self) -> list[Tensor]:
        return [p for name, p in self.model.named_parameters() if ".collection." not in name]

    def _dense_optimizer(self) -> torch.optim.AdamW:
        matrices = [p for p in self._dense_parameters() if p.dim() > 1]
        others = [p for p in self._dense_parameters() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.98))

    def _set_learning_rates(self) -> None:
        step = self.progress.step
        cuts = sum(step >= cut for cut in self.progress.cut_steps)
        share = min(1.0, (step + 1) / max(self.settings.warmup_steps, 1)) * RATE_CUT**cuts
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * share
        for tables in self.tables:
            if tables is not None:
                for group in tables.param_groups:
                    group["lr"] = self.settings.table_learning_rate * share
                tables.step()

    def save(self) -> None:
        """Write a checkpoint."""
        assert self.checkpoint is not None
        checkpoint = Checkpoint(counters=vars(self.progress).copy())
        checkpoint.counters["best"] = None if math.isinf(self.progress.best) else self.progress.best
        checkpoint.add("model", self.model.state_dict())
        checkpoint.add("best", self.best_weights)
        checkpoint.add("adamw", self._optimizer_tensors())
        checkpoint.add("tables", self._table_states())
        checkpoint.add("random", {"torch": torch.get_rng_state(), "negatives": self.generator.get_state()})
        checkpoint.save(self.checkpoint)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Go back to where the checkpoint was written."""
        assert self.checkpoint is not None
        checkpoint = Checkpoint.load(self.checkpoint)
        best = checkpoint.counters["best"]
        self.progress = Progress(**{**checkpoint.counters, "best": -math.inf if best is None else best})
        self.model.load_state_dict(checkpoint.part("model"))
        self.best_weights = {name: value.to(self.device) for name, value in checkpoint.part("best").items()}
        self._restore_optimizer(checkpoint.part("adamw"))
        for name, state in self._table_states().items():
            state.copy_(checkpoint.part("tables")[name])
        random = checkpoint.part("random")
        torch.set_rng_state(random["torch"])
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

    def _table_states(self) -> dict[str, Tensor]:
        return {
            f"{place}.{table}.{key}": value
            for place, tables in enumerate(self.tables)
            if tables is not None
            for table, state in tables.state_dict()["state"].items()
            for key, value in state.items()
        }


def loss_precision(setting: str, device: torch.device) -> torch.dtype:
    """Return the precision that `auto`, `float32` or `bfloat16` stands for on this device."""
    if setting == "auto":
        if device.type == "cuda":
            is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            is_fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
        return torch.bfloat16 if is_fast else torch.float32
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


@contextmanager
def _stop_requests() -> Iterator[list[bool]]:
    """Yield a list that is no longer empty once Ctrl-C was pressed; a second Ctrl-C ends the program at once."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, previous)

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
