"""Runs the attacks: ``python -m benchmarks.attack [NAME ...] [--seed N] [--scale X]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.attack import bulk, bundles, processes, texts
from benchmarks.attack.outcome import Outcome


def _share(scale: float, full: int) -> int:
    """Return how often to try something of which the whole campaign does ``full``."""
    return max(4, round(full * scale))


ATTACKS: dict[str, Callable[[Path, int, float], Outcome]] = {
    "texts": lambda folder, seed, scale: texts.run(texts=_share(scale, 20_000), seed=seed),
    "turns": lambda folder, seed, scale: texts.turns(conversations=_share(scale, 20_000), seed=seed),
    "bundles": lambda folder, seed, scale: bundles.run(
        folder, headers=_share(scale, 10_000), bundles=_share(scale, 60), seed=seed
    ),
    "bulk": lambda folder, seed, scale: bulk.run(folder, kills=_share(scale, 200), seed=seed),
    "forks": lambda folder, seed, scale: processes.forks(forks=_share(scale, 75)),
    "exits": lambda folder, seed, scale: processes.exits(exits=_share(scale, 50), seed=seed),
    "judge": lambda folder, seed, scale: processes.judge_kills(kills=_share(scale, 50), seed=seed),
    "memory": lambda folder, seed, scale: processes.memory(scores=_share(scale, 5_000), loads=_share(scale, 300)),
}


def main() -> None:
    """Run the attacks that were named, or all, and end with status 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn from the clock, and printed")
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the full campaign")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in ATTACKS]:
        parser.error(f"there is no attack {unknown[0]!r}, expected {', '.join(ATTACKS)}")
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    print(f"seed {seed}\n\n| what | times | found | notes |\n|---|---|---|---|", flush=True)
    found = []
    for name in options.names or ATTACKS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcome = ATTACKS[name](Path(folder), seed, options.scale)
        outcome.notes.append(f"{time.monotonic() - began:.0f} s")
        print(outcome.line(), flush=True)
        found += [f"{name}: {line}" for line in outcome.found]
    if found:
        print("", *found, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
