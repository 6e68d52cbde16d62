"""Runs peers side by side: one round after the other, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from benchmarks.judge_sides import Task
from benchmarks.load import QUIET
from benchmarks.peers import LLAMA_CPP, UNSHARED
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import MAIN, Workload

ROUNDS = 5
SETTLE_SECONDS = 0.2
"""Pause before each run: other peers' thread pools spin for a while after theirs."""

NEAR = 2.5
"""A peer of equal pieces that takes more than this many times as long as the first one runs a part of them, scaled up."""

SPINS = ("300000", "2000")
"""GOMP_SPINCOUNT, how long llama.cpp's threads spin at a barrier: libgomp's default, best on an idle machine, and a short one for a busy one."""

TRIAL = MAIN[0]

ROOM_BYTES = 5 << 30
"""What the largest peer needs while it loads."""


@dataclass(slots=True)
class Series:
    """All times of one peer in one workload, in seconds, scaled to the whole workload, and what others took meanwhile."""

    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    scale: int = 1
    rss_bytes: int = 0
    values: list[float] = field(default_factory=list)
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Median, fastest, slowest of the runs that count, and every time."""
        summary = summarise(self.seconds, self.others) if self.seconds else {}
        rest = {"seconds": self.seconds, "others": self.others, "scale": self.scale, "rss_bytes": self.rss_bytes, "failed": self.failed}
        return summary | rest


def summarise(seconds: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Median, fastest and slowest of the runs on a quiet machine; where there is none, of the least disturbed one alone.

    Args:
        seconds: Wall times, at least one.
        others: What others took during each, as :meth:`benchmarks.load.Watch.others` says; may be empty.
    """
    runs = sorted(zip(others, seconds, strict=True)) if others else [(0.0, s) for s in seconds]
    quiet = [s for share, s in runs if share < QUIET]
    times = sorted(quiet or [runs[0][1]])
    return {"median_s": median(times), "min_s": times[0], "max_s": times[-1], "runs": len(times), "quiet": bool(quiet)}


class Field:
    """The peers that are running, each started when first needed."""

    def __init__(self, root: Path, threads: int, say: Callable[[str], None]) -> None:
        self.root, self.threads, self._say = root, threads, say
        self._workers: dict[str, Worker] = {}
        self._failed: dict[str, str] = {}
        self.spins: dict[str, str] = {}
        self.loading_s = 0.0

    def run(self, peer: str, task: Workload | Task, timeout: float) -> dict[str, Any]:
        """Run one task on one peer.

        Raises:
            WorkerError: If it fails; every later call then fails with the same message.
        """
        if peer in self._failed:
            raise WorkerError(self._failed[peer])
        try:
            worker = self._workers.pop(peer, None) or self._load(peer)
            self._workers[peer] = worker  # the last used one stands last
            return worker.run(task, timeout)
        except WorkerError as error:
            self._failed[peer] = str(error)
            self._workers.pop(peer, None)
            raise

    def close(self, *peers: str) -> None:
        """End these, or all of them."""
        for peer in peers or tuple(self._workers):
            if peer in self._workers:
                self._workers.pop(peer).close()

    def _load(self, peer: str) -> Worker:
        start = perf_counter()
        self._make_room()
        try:
            return self._start(peer)
        finally:
            self.loading_s += perf_counter() - start
            self._say(f"loaded {peer} in {perf_counter() - start:.0f} s")

    def _make_room(self) -> None:
        """End the peers used last while memory is short: with peers taking turns, those will be needed last."""
        while self._workers and _available_bytes() < ROOM_BYTES:
            self.close(next(reversed(self._workers)))

    def _start(self, peer: str) -> Worker:
        if peer not in LLAMA_CPP:
            return Worker(peer, self.root, self.threads)
        if peer in self.spins:
            return Worker(peer, self.root, self.threads, environ={"GOMP_SPINCOUNT": self.spins[peer]})
        return self._faster_spin(peer)

    def _faster_spin(self, peer: str) -> Worker:
        """Start a llama.cpp peer with either way to wait at barriers, and keep the faster one: its best form."""
        trials: list[tuple[float, str, Worker]] = []
        try:
            for spin in SPINS:
                worker = Worker(peer, self.root, self.threads, environ={"GOMP_SPINCOUNT": spin})
                trials.append((0.0, spin, worker))
                trials[-1] = (min(worker.run(TRIAL, 120.0)["seconds"] for _ in range(2)), spin, worker)
        except WorkerError:
            for _, _, worker in trials:
                worker.close()
            raise
        trials.sort(key=lambda trial: trial[0])
        self.spins[peer] = trials[0][1]
        self._say(f"{peer}: " + ", ".join(f"GOMP_SPINCOUNT={spin} {seconds:.2f} s" for seconds, spin, _ in trials))
        for _, _, worker in trials[1:]:
            worker.close()
        return trials[0][2]


def _available_bytes() -> int:
    """Memory that can be had without swapping; a lot where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)


def race(
    field_: Field, peers: Sequence[str], workload: Workload, budget_s: float, say: Callable[[str], None], rounds: int = ROUNDS
) -> dict[str, Series]:
    """Run ``peers`` in turn until ``rounds`` are done or ``budget_s`` is spent; the first round always is.

    Rounds after the first leave out the peers that do not fit into what is left of the budget, slowest first. Loading a
    peer is not on the budget.
    """
    end = perf_counter() + budget_s - field_.loading_s
    series = {peer: Series() for peer in peers}
    parts = {peer: workload.part() if peer in UNSHARED or not workload.prompt else workload for peer in peers}
    reference = peers[0]
    parts[reference] = workload
    timeout = max(60.0, budget_s)
    for number in range(rounds):
        runners = [p for p in peers if series[p].failed is None]
        if number:
            runners = _affordable(runners, series, end + field_.loading_s - perf_counter())
        for peer in runners:
            own = series[peer]
            _run_once(field_, peer, parts[peer], own, timeout)
            if number == 0 and own.scale > 1 and series[reference].seconds and own.seconds[-1] < NEAR * series[reference].seconds[-1]:
                # Close enough to be measured in full; the part was a look at it.
                parts[peer] = workload
                own.seconds.clear()
                own.others.clear()
                _run_once(field_, peer, workload, own, timeout)
            say(f"{workload.name} round {number + 1}: {peer} {own.failed or _last(own)}")
        if not runners:
            break
    return series


def _last(series: Series) -> str:
    part = " (from a part)" if series.scale > 1 else ""
    busy = f", while others took {series.others[-1]:.0%} of the machine" if series.others[-1] >= QUIET else ""
    return f"{series.seconds[-1]:.2f} s{part}{busy}"


def _affordable(peers: list[str], series: dict[str, Series], left_s: float) -> list[str]:
    """Choose whose turn it is: the first peer, which all are compared with, then the quickest, while the time lasts."""
    chosen: set[str] = set()
    for peer in sorted(peers, key=lambda p: (p != peers[0], series[p].seconds[-1] / series[p].scale)):
        left_s -= series[peer].seconds[-1] / series[peer].scale + SETTLE_SECONDS
        if left_s < 0:
            break
        chosen.add(peer)
    return [peer for peer in peers if peer in chosen]


def _run_once(field_: Field, peer: str, workload: Workload, series: Series, timeout: float) -> None:
    sleep(SETTLE_SECONDS)
    try:
        answer = field_.run(peer, workload, timeout)
    except WorkerError as error:
        series.failed = str(error)
        return
    series.seconds.append(answer["seconds"] * workload.scale)
    series.others.append(answer["others"])
    series.scale = workload.scale
    series.rss_bytes = answer["rss_bytes"]
    series.values = answer["values"]
