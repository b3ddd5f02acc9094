"""What the steps share: device, sizes, folder, rates of the device, and `towers` as a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import running

LOG = "commands.log"
RATES = "rates.json"


class SkippedError(Exception):
    """A step cannot run here; the message says why."""


class StepError(Exception):
    """A step did not come to an end; the message is one line."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        shop: Users, items and interactions of the generated shop.
        towers: Settings of the model, `table.key=value` each.
        steps: Training steps of each kind of settings.
        product: Rows of the square matrices that are multiplied.
        copied: Bytes that are copied.
        search: Users and items of exact search, and items of FAISS's indexes.
        width: Numbers of a vector that is searched.
        texts: Texts that are encoded.
    """

    shop: tuple[int, int, int] = (5_000, 3_000, 100_000)
    towers: tuple[str, ...] = ()
    steps: int = 14
    product: int = 8192
    copied: int = 1 << 30
    search: tuple[int, int, int] = (2048, 1_000_000, 500_000)
    width: int = 64
    texts: int = 2000


SMALL = Sizes(
    shop=(150, 120, 2_000),
    towers=("towers.embedding_dim=16", "towers.num_layers=1", "features.max_history=10", "training.batch_size=256"),
    steps=3,
    product=256,
    copied=1 << 22,
    search=(40, 3_000, 3_000),
    width=16,
    texts=20,
)


@dataclass(frozen=True)
class Run:
    """One run of all steps.

    Attributes:
        device: What is compared with the CPU: `cuda`, or `cpu` to try the script.
        sizes: How much is computed.
        folder: Where tables, bundles and the report are.
        ends: When the last command has to end, in seconds since the epoch.
        program: Another `towers` than `python -m towers`, as of `tests.warm`.
        text_model: Folder of a model of texts. None: a tiny one is made.
    """

    device: str
    sizes: Sizes
    folder: Path
    ends: float
    program: Path | None = None
    text_model: Path | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU is compared with the CPU, and not the CPU with itself."""
        return self.device != "cpu"

    @property
    def devices(self) -> dict[str, str]:
        """The two that are compared, by a name that is theirs alone: the device, then the CPU."""
        return {"device": self.device, "cpu": "cpu"}

    @property
    def shop(self) -> Path:
        """Folder of the tables and bundles."""
        return self.folder / "shop"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of each command: with all cores where a GPU is compared with them."""
        threads = len(os.sched_getaffinity(0)) if self.is_gpu else 1
        return {"OMP_NUM_THREADS": str(threads), "TOWERS_TRACEBACK": "1"}

    @property
    def rates(self) -> dict[str, float]:
        """What the device computes and copies in a second: FLOP of float32 and bfloat16, bytes; empty if unknown."""
        path = self.folder / RATES
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def bound(self, flop: float = 0.0, num_bytes: float = 0.0) -> float | None:
        """Return the seconds that so many operations of float32, and bytes, take at least. None: not measured."""
        rates = self.rates
        return max(flop / rates["float32"], num_bytes / rates["bytes"]) if rates else None

    def rate_bound(self, count: float, flop: float = 0.0, num_bytes: float = 0.0) -> float | None:
        """Return how many of `count` things a second are possible if all take so much."""
        seconds = self.bound(flop, num_bytes)
        return count / seconds if seconds else None

    def towers(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `towers` in the folder of the shop; see `command`."""
        return self.command(running.command_of(self.program), *words, **settings)

    def command(self, program: Sequence[str], *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `towers` by another program in the folder of the shop, and write down what it says.

        Raises:
            StepError: It failed, or took too long.
        """
        command = [*program, *words]
        began = time.monotonic()
        try:
            ended = subprocess.run(
                command,
                cwd=self.shop,
                env=running.environment(**self.environment, **settings),
                capture_output=True,
                text=True,
                timeout=max(1.0, self.ends - time.time()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StepError(f"`towers {words[0]}` did not end within the time of this check; see {LOG}") from None
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            taken = f"status {ended.returncode} after {time.monotonic() - began:.1f} s"
            log.write(f"$ {shlex.join([*settings_of(settings), *command])}  # {taken}\n{ended.stdout}{ended.stderr}\n")
        if ended.returncode:
            last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
            raise StepError(f"`towers {words[0]}` ended with status {ended.returncode}: {''.join(last)}; see {LOG}")
        return ended


def settings_of(variables: Mapping[str, str]) -> list[str]:
    """Return variables as a shell takes them before a command."""
    return [f"{name}={value}" for name, value in variables.items()]


def seconds_of(device: str, compute: Callable[[], Any], rounds: int = 3) -> float:
    """Return the seconds of the fastest of some rounds, after one that is not timed; on a GPU until it is done."""
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    compute()
    taken = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        compute()
        wait()
        taken.append(time.perf_counter() - began)
    return min(taken)
