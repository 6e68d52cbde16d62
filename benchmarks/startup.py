"""Measures how long a new process takes to import the package, to score and to think, beside ``import numpy``."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import perf_counter

PROGRAMS = {
    "bare interpreter": "pass",
    "import numpy": "import numpy",
    "import fsrm_lite": "import fsrm_lite",
    "first score": (
        "from fsrm_lite import FastSlowRM; FastSlowRM.from_pretrained(judge='never').predict([('What is 2 + 3?', '5')])"
    ),
    "first verdict": (
        "from fsrm_lite import FastSlowRM; FastSlowRM.from_pretrained(judge='always', judge_engine='onnx')"
        ".compare('What is 2 + 3?', '5', '6')"
    ),
}
"""What each process runs.

The last two load the embedded model: one scores a response on the fast path, the other thinks about a pair on ONNX
Runtime, in both orders and with the bundle's own number of votes.
"""


def startup_times(rounds: int = 9) -> dict[str, dict[str, object]]:
    """Time each program in turn, ``rounds`` times, after a round that fills the file cache and does not count.

    Returns:
        By program: the median and the least seconds (None if it never ran), and the last line of an error (or None).
    """
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    failed: dict[str, str] = {}
    for number in range(rounds + 1):
        for name, program in PROGRAMS.items():
            start = perf_counter()
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
            if done.returncode:
                failed[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
            elif number:
                times[name].append(perf_counter() - start)
    return {
        name: {"median_s": median(t) if t else None, "min_s": min(t, default=None), "failed": failed.get(name)}
        for name, t in times.items()
    }
