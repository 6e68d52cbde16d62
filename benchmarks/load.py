"""How much of the machine something else took while a peer ran: such a run measures the neighbours too."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter

QUIET = 0.05
"""A run counts when others took less than this share of all processors."""


class Watch:
    """Measures from its creation on."""

    def __init__(self, pid: int, root: Path = Path("/proc")) -> None:
        self._pid, self._root = pid, root
        self._start, self._before = perf_counter(), self._other_seconds()

    def others(self) -> float:
        """Return the share of all processors, in [0, 1], that other processes or other machines took.

        0 where the system does not say.
        """
        share = (self._other_seconds() - self._before) / (
            (os.cpu_count() or 1) * max(perf_counter() - self._start, 1e-3)
        )
        return min(1.0, max(0.0, share))

    def _other_seconds(self) -> float:
        """Processor seconds so far of everything but the process; the hypervisor's share ("steal") is among them."""
        try:
            _, user, nice, system, _, _, irq, softirq, steal = (
                (self._root / "stat").read_text("ascii").split("\n", 1)[0].split()[:9]
            )
            own = (self._root / str(self._pid) / "stat").read_text("utf-8").rpartition(")")[2].split()[11:13]
        except (OSError, ValueError):
            return 0.0
        busy = sum(int(ticks) for ticks in (user, nice, system, irq, softirq, steal))
        return (busy - sum(int(ticks) for ticks in own)) / os.sysconf("SC_CLK_TCK")
