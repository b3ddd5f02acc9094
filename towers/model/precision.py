"""In which numbers a device computes fastest."""

from __future__ import annotations

import torch


def fastest_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes in it by itself, else float32."""
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if is_fast else torch.float32
