"""Kills bulk runs at random moments, lets them go on, and compares the output with that of a run left in peace."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.attack.outcome import Outcome

ROWS = 48
_ENDED = 1  # the status of a run that came to its end: bad rows were skipped
_COMMAND = [sys.executable, "-c", "from fsrm_lite.cli import main; main()"]
_OPTIONS = ("--on-error", "skip", "--batch-size", "4", "--threads", "1")
_RUNS = {
    "score": (*_OPTIONS, "--judge", "never"),
    "compare": (*_OPTIONS, "--judge", "auto", "--thinking-tokens", "24"),
    "rank": (*_OPTIONS, "--judge", "never"),
    "best-of-n": (*_OPTIONS, "--strategy", "knockout", "--judge", "never"),
}


def run(folder: Path, *, kills: int, seed: int) -> Outcome:
    """Kill runs of each bulk command ``kills`` times in all.

    Args:
        folder: An empty folder to work in.
        kills: How many processes to kill.
        seed: Seed of the rows and the moments.
    """
    outcome = Outcome("bulk runs killed at random moments; the output must become the same bytes")
    chance = random.Random(seed)
    share = -(-kills // len(_RUNS))
    for command, options in _RUNS.items():
        source, whole = folder / f"{command}.jsonl", folder / f"{command}-whole.jsonl"
        source.write_text("".join(_row(command, i, chance) for i in range(ROWS)))
        began = time.monotonic()
        if _start(command, source, whole, options).wait() != _ENDED:
            outcome.found.append(f"{command}: the run without kills failed")
            continue
        longest = time.monotonic() - began
        done = runs = 0
        while done < share:
            runs += 1
            out = folder / f"{command}-{runs}.jsonl"
            kept: list[int] = []
            while True:
                process = _start(command, source, out, options)
                try:
                    status = process.wait(chance.uniform(0.2, 1.05) * longest)
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    done += 1
                    kept.append(out.stat().st_size if out.exists() else 0)
            if status != _ENDED:  # the next one would fail alike, and never be killed
                outcome.found.append(f"{command}, run {runs}: it ended with {status} (killed at {kept} bytes)")
                break
            if out.read_bytes() != whole.read_bytes():
                outcome.found.append(f"{command}, run {runs}: the output differs (killed at {kept} bytes)")
        outcome.tried += done
        outcome.notes.append(f"{command} {done} kills in {runs} runs")
    return outcome


def _start(command: str, source: Path, out: Path, options: tuple[str, ...]) -> subprocess.Popen[bytes]:
    again = ["--resume"] if out.exists() and out.stat().st_size else ["--overwrite"]
    return subprocess.Popen(
        [*_COMMAND, command, str(source), "-o", str(out), *again, *options], stderr=subprocess.DEVNULL
    )


def _row(command: str, i: int, chance: random.Random) -> str:
    """Return one row for a command; every eleventh is bad."""
    if i % 11 == 10:
        return "{bad\n"
    a, b = chance.randint(1, 9), chance.randint(1, 9)
    answers = [f"The answer is {a + b + chance.randint(-2, 2)}." for _ in range(4)]
    row: dict[str, object] = {
        "id": i,
        "prompt": f"Mia has {a} pens. Mia finds {b} more. How many pens does Mia have now?",
    }
    if command == "score":
        row["response"] = answers[0]
    elif command == "compare":
        row |= {"chosen": answers[0], "rejected": answers[1]}
    else:
        row["responses"] = answers
    return json.dumps(row) + "\n"
