"""How much memory the softmax over the whole catalogue takes, beside torch's cross entropy on materialised logits.

    python tests/benchmarks/loss_memory.py [--items 1000000] [--positions 4096] [--width 64] [--prefixes 16 32]

Each loss runs forward and backward in a process of its own; what is shown is the highest resident memory above what
the process had with its inputs, their gradients included. The materialised loss is left out where it cannot fit.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import psutil
import torch
from torch.nn import functional

from training.loop.losses import matryoshka_loss
from training.loop.negatives import MaskedPairs, Negatives

PRECISIONS = {"ours, float32": torch.float32, "ours, bfloat16": torch.bfloat16}


def inputs(items: int, positions: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return unit vectors of users and items, and the row of each positive."""
    torch.manual_seed(0)
    users = functional.normalize(torch.randn(positions, width), dim=1).requires_grad_()
    catalogue = functional.normalize(torch.randn(items, width), dim=1).requires_grad_()
    return users, catalogue, torch.randint(items, (positions,))


def measure(name: str, items: int, positions: int, width: int, prefixes: list[int]) -> None:
    """Run one loss and print the mebibytes and the seconds that it took."""
    users, catalogue, targets = inputs(items, positions, width)
    scale = torch.tensor(20.0, requires_grad=True)
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    if name in PRECISIONS:
        own = MaskedPairs(torch.arange(positions), targets, starts=torch.arange(positions + 1))
        negatives = Negatives(torch.arange(items), own)
        loss = matryoshka_loss(
            users,
            catalogue[targets],
            catalogue,
            scale,
            negatives,
            prefix_scales=dict.fromkeys(prefixes, scale),
            precision=PRECISIONS[name],
        )
    else:
        loss = functional.cross_entropy(scale * users @ catalogue.T, targets)
    loss.backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{name:24s} {peak / 2**20:10,.0f} MiB {seconds:8.1f} s   loss {loss.item():.4f}")


def main() -> None:
    """Measure each loss in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--prefixes", type=int, nargs="*", default=[], help="as towers.matryoshka_dims; ours only")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        measure(given.only, given.items, given.positions, given.width, given.prefixes)
        return
    print(f"{given.positions:,} positions, {given.items:,} items of {given.width}, {torch.get_num_threads()} threads")
    logits = 4 * given.positions * given.items
    names = [*PRECISIONS, *(["torch, materialised"] if 4 * logits < psutil.virtual_memory().available else [])]
    for name in names:
        sizes = [f"--{key}={getattr(given, key)}" for key in ("items", "positions", "width")]
        prefixes = ["--prefixes", *map(str, given.prefixes)]
        subprocess.run([sys.executable, __file__, *sizes, *prefixes, "--only", name], check=True)
    if len(names) == len(PRECISIONS):
        print(f"torch, materialised: left out, its logits alone are {logits / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
