"""Forks processes with loaded models, ends them in mid-thought, and kills the judge's process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.attack.outcome import Outcome
from fsrm_lite import FastSlowRM
from fsrm_lite.errors import JudgeCrashed

MOST_SECONDS = 2.0
_QUESTION = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"
_FORKS = f"""
import os, sys, time
from fsrm_lite import FastSlowRM
from fsrm_lite.errors import FsrmError
from fsrm_lite.integrations.trl import RewardFunction
rm, reward = FastSlowRM.from_pretrained(threads=1), RewardFunction(threads=1)
calls = [
    lambda: rm.score({_QUESTION!r}, "15 pens", judge="never").score,
    lambda: rm.compare({_QUESTION!r}, "15 pens", "16 pens", judge="always").winner,
    lambda: reward(prompts=[{_QUESTION!r}], completions=["15 pens"]),
]
before = [call() for call in calls]
for number in range(int(sys.argv[1])):
    pid, began = os.fork(), time.monotonic()
    if pid == 0:
        try:
            status = 0 if calls[number % 3]() == before[number % 3] else 1
        except FsrmError:
            status = 0
        sys.exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(number, status, time.monotonic() - began, flush=True)
"""
_THINK = f"""
import sys, threading, time
from fsrm_lite import FastSlowRM
rm, begun = FastSlowRM.from_pretrained(threads=1, judge_process=sys.argv[1]), threading.Event()
def think():
    while True:
        rm.compare({_QUESTION!r}, "15 pens", "16 pens", judge="always", votes=16, temperature=1.5, adaptive=False)
        begun.set()
threading.Thread(target=think, daemon=True).start()
begun.wait()
time.sleep(float(sys.argv[2]))
print(time.time(), flush=True)
if sys.argv[3] == "wait":
    time.sleep(60)
sys.exit(7)
"""


def forks(*, forks: int) -> Outcome:
    """Fork a process with loaded models ``forks`` times; each child calls one of them and ends normally."""
    outcome = Outcome("forks after loading; the child has an answer or an error, and ends")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS, str(forks)],
        capture_output=True,
        text=True,
        timeout=60 + 20 * forks,
        check=False,
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    outcome.tried = len(rows)
    outcome.found += [f"child {number} ended with {status}" for number, status, _ in rows if status != "0"]
    if done.returncode or len(rows) != forks:
        outcome.found.append(f"the parent ended with {done.returncode}: {done.stderr[-200:]}")
    if rows:
        outcome.notes.append(f"the slowest took {max(float(seconds) for *_, seconds in rows):.1f} s")
    return outcome


def exits(*, exits: int, seed: int) -> Outcome:
    """End ``exits`` programs that think: by ``sys.exit`` and by SIGTERM, with the judge in either place."""
    outcome = Outcome(f"programs ended in mid-thought; gone within {MOST_SECONDS:.0f} s, with their own status")
    chance = random.Random(seed)
    slowest = 0.0
    for number in range(exits):
        process, how = ("inline", "subprocess")[number % 2], ("exit", "wait")[number // 2 % 2]
        arguments = [sys.executable, "-c", _THINK, process, f"{chance.uniform(0, 0.3):.3f}", how]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
            assert program.stdout is not None
            began = float(program.stdout.readline() or 0)
            if how == "wait":
                program.terminate()
            status = program.wait(120)
        took = time.time() - began
        slowest = max(slowest, took)
        if status != (7 if how == "exit" else -signal.SIGTERM) or took > MOST_SECONDS:
            outcome.found.append(f"number {number} ({process}, {how}) ended with {status} after {took:.1f} s")
        outcome.tried += 1
    outcome.notes.append(f"the slowest took {slowest:.1f} s")
    return outcome


def judge_kills(*, kills: int, seed: int) -> Outcome:
    """Kill the judge's process ``kills`` times while it thinks; the next call must answer."""
    outcome = Outcome("kills of the judge's process; an error at once, an answer next, no zombie")
    chance = random.Random(seed)
    with FastSlowRM.from_pretrained(threads=1, judge_process="subprocess") as rm:
        expected = rm.compare(_QUESTION, "15 pens", "16 pens", judge="always", seed=1)
        for number in range(kills):
            child = rm.judge._runner._child  # type: ignore[attr-defined]
            killer = subprocess.Popen(["sh", "-c", f"sleep {chance.uniform(0, 0.2):.3f}; kill -9 {child.pid}"])
            try:
                for _ in range(10_000):
                    rm.compare(_QUESTION, "15 pens", "16 pens", judge="always", votes=8, temperature=1.0)
            except JudgeCrashed:
                pass
            killer.wait()
            if rm.compare(_QUESTION, "15 pens", "16 pens", judge="always", seed=1) != expected:
                outcome.found.append(f"after kill {number} the answer differs")
            outcome.tried += 1
    zombies = [p for p in Path("/proc").glob("[0-9]*/stat") if _is_zombie(p)]
    if zombies:
        outcome.found.append(f"{len(zombies)} zombies are left")
    return outcome


def _is_zombie(stat: Path) -> bool:
    """Return whether a process is a dead child of this one that nobody has waited for."""
    try:
        state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return False
    return state == "Z" and int(parent) == os.getpid()


def memory(*, scores: int, loads: int) -> Outcome:
    """Score ``scores`` times and load ``loads`` models, and compare the memory in use before and after."""
    outcome = Outcome("scores and loads; memory must not grow")
    with FastSlowRM.from_pretrained(threads=1, judge="never") as rm:
        for i in range(scores):
            if i == scores // 5:
                before = _resident_mib()
            rm.score(_QUESTION, f"{i % 50} pens")
        grown = _resident_mib() - before
    outcome.notes.append(f"{scores:,} scores: {grown:+.0f} MiB")
    if grown > 64:
        outcome.found.append(f"{scores} scores took {grown:.0f} MiB")
    for i in range(loads):
        if i == loads // 5:
            before = _resident_mib()
        FastSlowRM.from_pretrained(threads=1, judge="never").close()
    grown = _resident_mib() - before
    outcome.notes.append(f"{loads:,} loads: {grown:+.0f} MiB")
    if grown > 64:
        outcome.found.append(f"{loads} loads took {grown:.0f} MiB")
    outcome.tried = scores + loads
    return outcome


def _resident_mib() -> float:
    """Return the memory that this process has in use, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
