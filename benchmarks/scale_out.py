"""``fsrm-lite score`` on a Ray cluster of this machine, beside one process: are the rows the same, and how fast is it?

    python -m benchmarks.scale_out --rows 50000

One process, with as many threads as there are processors, and the workers of a cluster, one for each processor, answer
the same rows on the fast path, in turn. In the last run on the cluster, a worker is killed when a third of the rows are
there, and another one at two thirds. All outputs must be equal byte for byte to that of one process with one thread,
which is what each worker has.

The time of a run is that of the whole command, with the start of the cluster and of its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from fsrm_lite.runtimes.threads import usable_cores

WORKER = b"ray::Worker"
"""How the command line of one of our workers begins, as Ray names it."""


def write_rows(path: Path, count: int) -> None:
    """Write ``count`` rows, two responses to each problem, which share their prompt."""
    from fsrm_lite.models.data import held_out

    pairs = held_out("test", min(1000, -(-count // 2)))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            pair = pairs[number // 2 % len(pairs)]
            response = (pair.chosen, pair.rejected)[number % 2]
            row = {"id": number, "prompt": pair.problem.question, "response": response.text}
            file.write(json.dumps(row) + "\n")


def score(rows: Path, out: Path, *options: str, meanwhile: Callable[[Path], None] | None = None) -> float:
    """Run the command, with ``meanwhile`` in a thread beside it; return its seconds."""
    code = "from fsrm_lite.cli import main; main()"
    command = [sys.executable, "-c", code, "score", str(rows), "-o", str(out), "--judge", "never", *options]
    start = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if meanwhile is not None:
        threading.Thread(target=meanwhile, args=[out], daemon=True).start()
    if process.wait():
        raise SystemExit(f"{' '.join(command[3:])} ended with status {process.returncode}")
    return perf_counter() - start


def worker_processes() -> list[int]:
    """Return the processes of our workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(WORKER):
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def killer(count: int, killed: list[int]) -> Callable[[Path], None]:
    """Return what kills a worker when a third of ``count`` rows are written, and one at two thirds."""

    def wait_and_kill(out: Path) -> None:
        for share in (1, 2):
            while not out.exists() or out.read_bytes().count(b"\n") < share * count / 3:
                sleep(0.2)
            victim = worker_processes()[0]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    return wait_and_kill


def main() -> None:
    """Print whether the rows are the same, and the ratio of the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=1, help="of the comparison of times")
    arguments = parser.parse_args()
    cores = usable_cores()
    ray = ["--threads", "1", "--ray-workers", str(cores), "--ray"]
    killed: list[int] = []
    times: dict[str, list[float]] = {"one process": [], "cluster": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        write_rows(rows, arguments.rows)
        score(rows, folder / "expected.jsonl", "--threads", "1")
        expected = (folder / "expected.jsonl").read_bytes()
        for number in range(arguments.rounds):
            times["one process"].append(score(rows, folder / f"one-{number}.jsonl", "--threads", str(cores)))
            out = folder / f"ray-{number}.jsonl"
            times["cluster"].append(score(rows, out, *ray))
            print(f"cluster, {arguments.rows} rows: {_same(out.read_bytes(), expected)}", flush=True)
        out = folder / "killed.jsonl"
        score(rows, out, *ray, meanwhile=killer(arguments.rows, killed))
        print(f"cluster with {len(killed)} workers killed: {_same(out.read_bytes(), expected)}")
    one, many = (median(times[side]) for side in ("one process", "cluster"))
    print(
        f"one process with {cores} threads {one:.1f} s, {cores} workers with one thread {many:.1f} s: "
        f"{one / many:.2f} times as fast"
    )


def _same(found: bytes, expected: bytes) -> str:
    """Say whether an output is the expected one, and where it begins to differ."""
    if found == expected:
        return "equal byte for byte to one process"
    pairs = zip(found.splitlines(), expected.splitlines(), strict=False)
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    return f"DIFFERENT ({len(found.splitlines())} rows, row {first} is the first that differs)"


if __name__ == "__main__":
    main()
