"""What a run costs: time, processor time and peak memory of this process."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

_KIB_PER_MIB = 1024


def _cpu_seconds() -> float:
    """Return the processor time of this process and of those that it has ended, in seconds."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


@dataclass(frozen=True)
class Cost:
    """The clocks as they were when a run began."""

    began: float = field(default_factory=time.monotonic)
    cpu_began: float = field(default_factory=_cpu_seconds)

    def metrics(self) -> dict[str, float]:
        """Return the seconds, the processor seconds since then, and the peak memory of the process so far in MiB."""
        return {
            "cost/seconds": time.monotonic() - self.began,
            "cost/cpu_seconds": _cpu_seconds() - self.cpu_began,
            "cost/peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB,
        }
