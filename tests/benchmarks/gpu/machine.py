"""The first steps: installation, what the device computes and copies in a second, tables to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

from tests.benchmarks.gpu.lines import Line, measured
from tests.benchmarks.gpu.run import RATES, Run, seconds_of

GIB = 1 << 30
PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "faiss-gpu", "faiss-cpu", "numpy")
TODAY = 0.05
"""Share of the interactions that come after the first training."""


def machine(run: Run) -> Iterator[Line]:
    """Versions, GPUs, and `towers doctor`, which must find no error."""
    import torch

    for name in PACKAGES:
        try:
            yield Line(f"{name} {version(name)}", "measured")
        except PackageNotFoundError:
            continue
    for place in range(torch.cuda.device_count() if run.is_gpu else 0):
        properties = torch.cuda.get_device_properties(place)
        yield measured(f"GPU {place}: {properties.name}", properties.total_memory / GIB, "GiB")
    run.towers("doctor")
    yield Line("towers doctor finds no error", "agrees", note="what it says is in commands.log")


def rates(run: Run) -> Iterator[Line]:
    """A large matrix product and a large copy: the rates that all bounds follow from."""
    import torch

    size = run.sizes.product
    found = {}
    for name in ("float32", "bfloat16"):
        one = torch.randn(size, size, device=run.device).to(getattr(torch, name))
        found[name] = 2 * size**3 / seconds_of(run.device, lambda one=one: one @ one)
        yield measured(f"matrix product of {name}, {size} x {size}", found[name] / 1e12, "TFLOP/s")
    source = torch.zeros(run.sizes.copied, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    found["bytes"] = 2 * run.sizes.copied / seconds_of(run.device, lambda: target.copy_(source))
    yield measured("copy on the device, read and written", found["bytes"] / 1e9, "GB/s")
    (run.folder / RATES).write_text(json.dumps(found), encoding="utf-8")


def data(run: Run) -> Iterator[Line]:
    """`towers dataset shop` and `towers init`; the newest interactions are kept for a training that goes on."""
    users, items, interactions = map(str, run.sizes.shop)
    sizes = ("--users", users, "--items", items, "--interactions", interactions)
    run.towers("dataset", "shop", "--output", ".", "--force", *sizes)
    events = pd.read_parquet(run.shop / "interactions").sort_values("timestamp", kind="stable")
    cut = int(len(events) * (1 - TODAY))
    events[:cut].to_parquet(run.shop / "events.parquet", index=False)
    events[cut:].to_parquet(run.shop / "today.parquet", index=False)
    tables = ("--interactions", "events.parquet", "--items", "items.parquet", "--users", "users.parquet")
    run.towers("init", *tables, "--force")
    yield measured("interactions of the generated shop", cut)
