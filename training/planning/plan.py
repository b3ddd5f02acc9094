"""`Plan`: what a training will take, as text or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from training.evaluation.text_table import aligned
from training.planning.memory import ProcessMemory
from training.planning.model_sizes import ModelSizes
from training.planning.remedies import Remedy
from training.planning.trial import Trial

_UNITS = ("bytes", "KB", "MB", "GB", "TB")
_WIDEST = 60


@dataclass(frozen=True)
class Disk:
    """Room on disk, in bytes.

    Attributes:
        checkpoint: A checkpoint; while a new one is written, the one before is there as well.
        bundle: Weights, vocabularies and text encoders of a bundle, without its index.
        free: What is free in the folder of runs.
    """

    checkpoint: int
    bundle: int
    free: int

    @property
    def most(self) -> int:
        """What a training takes at most: two checkpoints, or one and the bundle."""
        return self.checkpoint + max(self.checkpoint, self.bundle)


@dataclass(frozen=True)
class Plan:
    """What a training will take. Sizes are in bytes; GB are a thousand million of them.

    Attributes:
        interactions: How many there are to train on.
        users: How many users have them.
        items: Size of the catalogue.
        sizes: Of the model.
        memory: Of each process.
        available: Bytes of memory for each process.
        trial: What some steps took. None: there was no room for them here.
        disk: Room on disk.
        remedies: Changes of one setting each, where a process needs more than is available.
        notes: What was found in the tables.
    """

    interactions: int
    users: int
    items: int
    sizes: ModelSizes
    memory: tuple[ProcessMemory, ...]
    available: int
    trial: Trial | None
    disk: Disk
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> ProcessMemory:
        """The process that needs the most memory."""
        return max(self.memory, key=lambda one: one.total)

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.fits_memory and self.disk.most <= self.disk.free

    @property
    def fits_memory(self) -> bool:
        """Whether each process has the memory that it needs."""
        return self.sizes.fits and self.largest.total <= self.available

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        trial = None
        if self.trial is not None:
            rates = {"steps_per_second": self.trial.steps_per_second, "epoch_seconds": self.trial.epoch_seconds}
            trial = asdict(self.trial) | rates
        return {
            "interactions": self.interactions,
            "users": self.users,
            "items": self.items,
            "processes": self.sizes.processes,
            "tables": [
                {
                    **asdict(table),
                    "weight_bytes": table.weight_bytes,
                    "optimizer_bytes": table.optimizer_bytes,
                }
                for table in self.sizes.tables
            ],
            "other_weight_bytes": self.sizes.dense_bytes,
            "memory": [{**asdict(one), "moment": one.moment, "total": one.total} for one in self.memory],
            "available_memory_bytes": self.available,
            "trial": trial,
            "disk": asdict(self.disk) | {"most": self.disk.most},
            "fits": self.fits,
            "remedies": [asdict(one) for one in self.remedies],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the plan for a terminal."""
        blocks = (
            [f"{self.interactions:,} interactions of {self.users:,} users to train on, {self.items:,} items"],
            self._tables(),
            self._memory(),
            self._time(),
            self._disk(),
            [*self._verdict()],
        )
        return "\n\n".join("\n".join(lines) for lines in blocks)

    def _tables(self) -> list[str]:
        if not self.sizes.tables:
            return ["No embedding tables."]
        head = ["embedding table", "rows", "width", "type", "weights", "optimiser", "sharding", "by process"]
        rows = [
            [
                f"{table.side}: {table.feature}",
                f"{table.rows:,}",
                str(table.width),
                table.dtype,
                said_bytes(table.weight_bytes),
                said_bytes(table.optimizer_bytes),
                table.sharding,
                ", ".join(f"{part.rank}: {said_bytes(part.weight_bytes)}" for part in table.parts),
            ]
            for table in self.sizes.tables
        ]
        return aligned([head, *rows], _WIDEST)

    def _memory(self) -> list[str]:
        one = self.largest
        which = f"process {one.rank}, which needs the most" if self.sizes.processes > 1 else "the process"
        rows = [(name, said_bytes(size)) for name, size in one.always.items()]
        rows.append((f"most besides, at {one.moment}", said_bytes(one.moments[one.moment])))
        rows.append(("together", f"{said_bytes(one.total)} of {said_bytes(self.available)}"))
        lines = aligned([[f"memory of {which}", ""], *map(list, rows)], _WIDEST)
        if self.trial is not None:
            lines.append(f"A step takes {said_bytes(self.trial.step_bytes)} for activations and gradients (measured).")
        return [*lines, "Baselines of the report take up to 3 GiB when training is over."]

    def _time(self) -> list[str]:
        trial = self.trial
        if trial is None:
            return ["Time and memory of a step: not measured, because the model does not fit into this machine."]
        alone = ", in one process" if self.sizes.processes > 1 else ""
        rate = f"{trial.steps_per_second:.3g} a second ({trial.steps:,} timed on the CPU of this machine{alone})"
        return [
            f"An epoch takes about {trial.epoch_seconds:,.0f} seconds: {trial.batches:,} batches at {rate}.",
            f"Validation comes on top of each; encoding the items for it took {trial.catalogue_seconds:.1f} seconds.",
        ]

    def _disk(self) -> list[str]:
        disk = self.disk
        checkpoint = f"{said_bytes(disk.checkpoint)} for a checkpoint, two while one is written"
        bundle = f"{said_bytes(disk.bundle)} for the bundle, without its index"
        return [f"Disk: {checkpoint}; {bundle}; {said_bytes(disk.free)} are free."]

    def _verdict(self) -> Iterator[str]:
        if self.disk.most > self.disk.free:
            missing = said_bytes(self.disk.most - self.disk.free)
            yield (
                f"Does not fit on the disk: {said_bytes(self.disk.most)} are needed; free {missing}, or give towers "
                "train an --output on another disk."
            )
        if self.fits_memory:
            if self.fits:
                yield "It fits."
            return
        needed = self.largest.total * self.sizes.processes
        yield (
            f"Does not fit into memory: {said_bytes(self.largest.total)} are needed, and a process has "
            f"{said_bytes(self.available)}. Any of these would do:"
        )
        for remedy in self.remedies:
            yield f"  --set {remedy.setting}={remedy.value}  ({said_bytes(remedy.bytes)})"
        yield f"  {said_bytes(needed)} of memory" + (" for all processes together" if self.sizes.processes > 1 else "")


def said_bytes(size: int) -> str:
    """Return a number of bytes for people.

    Example:
        >>> said_bytes(1_234_567)
        '1.2 MB'
    """
    exact = float(size)
    for unit in _UNITS:
        if exact < 1000 or unit == _UNITS[-1]:
            return f"{size:,} bytes" if unit == "bytes" else f"{exact:.1f} {unit}"
        exact /= 1000
    raise AssertionError("the last unit is for all larger ones")
