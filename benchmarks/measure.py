"""Runs peers side by side: one round after the other, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from benchmarks.judge_sides import Task
from benchmarks.load import QUIET
from benchmarks.peers import FAMILIES, LLAMA_CPP, ONE_BY_ONE, UNSHARED
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import MAIN, PART_TOKENS, Workload

LEAST_ROUNDS, MOST_ROUNDS = 3, 5
"""Rounds of what is near, and rounds while the budget lasts."""

OVERDRAFT = 1.3
"""The least rounds may take so many times the budget, on a slow day."""

SETTLE_SECONDS = 0.2
"""Pause before each run: other peers' thread pools spin for a while after theirs."""

NEAR = 3.0
"""A peer that takes more than this many times as long as the first one runs once, unless a ratio is taken of it."""

CLOSE = 1.25
"""What takes up to this many times as long as the best peer, or as the best that shares nothing, is measured whole.

Ratios are taken of those.
"""

EQUAL = 1.05
"""Forms of one peer that stand this close in the first workload all run in the others."""

SPINS = ("300000", "2000")
"""GOMP_SPINCOUNT, how long llama.cpp's threads spin at a barrier.

Libgomp's default, best on an idle machine, and a short one for a busy one.
"""

TRIAL = MAIN[0]

ROOM_BYTES = 5 << 30
"""What the largest peer needs while it loads."""

_PARTS_SMALL = 512
"""Tokens of a part for peers that read one sequence at a time."""


@dataclass(slots=True)
class Series:
    """All times of one peer in one workload, in seconds, scaled to all of it, and what others took meanwhile."""

    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    scale: int = 1
    rss_bytes: int = 0
    values: list[float] = field(default_factory=list)
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Median, fastest, slowest of the runs that count, and every time."""
        summary = summarise(self.seconds, self.others) if self.seconds else {}
        rest = {
            "seconds": self.seconds,
            "others": self.others,
            "scale": self.scale,
            "rss_bytes": self.rss_bytes,
            "failed": self.failed,
        }
        return summary | rest


def summarise(seconds: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Median, fastest and slowest of the runs on a quiet machine.

    Where there is none, of the least disturbed one alone.

    Args:
        seconds: Wall times, at least one.
        others: What others took during each, as :meth:`benchmarks.load.Watch.others` says; may be empty.
    """
    runs = sorted(zip(others, seconds, strict=True)) if others else [(0.0, s) for s in seconds]
    quiet = [s for share, s in runs if share < QUIET]
    times = sorted(quiet or [runs[0][1]])
    return {"median_s": median(times), "min_s": times[0], "max_s": times[-1], "runs": len(times), "quiet": bool(quiet)}


class Field:
    """The peers that are running, each started when first needed.

    Attributes:
        spin: The GOMP_SPINCOUNT of every llama.cpp peer: the faster one of ``SPINS``, tried once with the first such
            peer
            unless it is given; its name in ``spin_tried``.
    """

    def __init__(self, root: Path, threads: int, say: Callable[[str], None], spin: str | None = None) -> None:
        self.root, self.threads, self._say = root, threads, say
        self._workers: dict[str, Worker] = {}
        self._failed: dict[str, str] = {}
        self.spin = spin
        self.spin_tried: str | None = None
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

    def close(self, peers: Iterable[str] | None = None) -> None:
        """End those of ``peers`` that run; None ends all of them."""
        for peer in [*self._workers] if peers is None else peers:
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
            self.close([next(reversed(self._workers))])

    def _start(self, peer: str) -> Worker:
        if peer not in LLAMA_CPP:
            return Worker(peer, self.root, self.threads)
        if self.spin is None:
            return self._faster_spin(peer)
        return Worker(peer, self.root, self.threads, environ={"GOMP_SPINCOUNT": self.spin})

    def _faster_spin(self, peer: str) -> Worker:
        """Start a llama.cpp peer with either way to wait at barriers, and keep the faster one for all of llama.cpp."""
        workers: dict[str, Worker] = {}
        try:
            for spin in SPINS:
                workers[spin] = Worker(peer, self.root, self.threads, environ={"GOMP_SPINCOUNT": spin})
            best = fastest_of(workers, TRIAL)
        except WorkerError:
            for worker in workers.values():
                worker.close()
            raise
        self.spin = min(best, key=lambda spin: best[spin])
        self.spin_tried = peer
        self._say(f"{peer}: " + ", ".join(f"GOMP_SPINCOUNT={spin} {seconds:.2f} s" for spin, seconds in best.items()))
        for spin, worker in workers.items():
            if spin != self.spin:
                worker.close()
        return workers[self.spin]


def fastest_of(workers: Mapping[str, Worker], task: Workload | Task, *, tries: int = 2) -> dict[str, float]:
    """Let workers do a task in turn, ``tries`` times; returns the least seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(tries):
        for name, worker in workers.items():
            sleep(SETTLE_SECONDS)
            times[name].append(worker.run(task, 120.0)["seconds"])
    return {name: min(seconds) for name, seconds in times.items()}


def _available_bytes() -> int:
    """Memory that can be had without swapping; a lot where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)


def best_forms(peers: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Leave out the forms of a peer that were slower than another form of it.

    Args:
        peers: Names; the first stays.
        rows: What they did in a workload, as :meth:`Series.to_dict` gives it; empty where there is nothing to go by.
    """
    slower: set[str] = set()
    for family in FAMILIES:
        times = {name: rows[name]["median_s"] for name in family if rows.get(name, {}).get("median_s")}
        slower |= {
            name for name in family if name in rows and times.get(name, 1e9) > EQUAL * min(times.values(), default=1e9)
        }
    return [name for name in peers if name == peers[0] or name not in slower]


def race(
    field_: Field,
    peers: Sequence[str],
    workload: Workload,
    budget_s: float,
    say: Callable[[str], None],
    rounds: tuple[int, int] = (LEAST_ROUNDS, MOST_ROUNDS),
) -> dict[str, Series]:
    """Run ``peers`` in turn: all of them once, then those that are near or lead.

    In the first round, peers of equal pieces run a part; those that a ratio may be taken of then run the whole, which
    counts instead. Further rounds follow, up to the first of ``rounds`` within ``OVERDRAFT`` and up to the second
    within the budget; peers that do not fit into what is left stay out, slowest first. Loading a peer is not on the
    budget.
    """
    end = perf_counter() + budget_s - field_.loading_s
    series = {peer: Series() for peer in peers}
    parts = {peer: part_for(peer, workload) for peer in peers} | {peers[0]: workload}
    timeout = max(120.0, budget_s)

    def turn(peer: str, number: int) -> None:
        run_once(field_, peer, parts[peer], series[peer], timeout)
        say(f"{workload.name} round {number}: {peer} {series[peer].failed or _last(series[peer])}")

    for peer in peers:
        turn(peer, 1)
        if _disturbed(series[peer]) and not _is_near(series, peer):
            turn(peer, 1)  # the neighbours may have made it look far

    def parts_within(times: float) -> list[str]:
        return [peer for peer in peers if peer in _quoted(series, workload, times) and parts[peer].scale > 1]

    for peer in parts_within(2 * CLOSE):
        series[peer] = Series()  # the first run of a part may be twice as slow as any other
        turn(peer, 1)
    while partly := parts_within(CLOSE):
        for peer in partly:
            parts[peer], series[peer] = workload, Series()
            turn(peer, 1)
    for peer in peers[1:]:
        # A first run may be twice as slow as any other: nobody who might be near is called far by it alone.
        if len(series[peer].seconds) == 1 and not _is_near(series, peer) and _is_near(series, peer, 2 * NEAR):
            turn(peer, 1)
    leaders = {min(group, key=lambda name: _best(series[name])) for group in _groups(series, workload) if group}
    staying = [peer for peer in peers if _is_near(series, peer) or peer in leaders]
    for number in range(1, rounds[1]):
        left_s = end + field_.loading_s - perf_counter() + (budget_s * (OVERDRAFT - 1) if number < rounds[0] else 0.0)
        for peer in _affordable([peer for peer in staying if series[peer].failed is None], series, left_s):
            turn(peer, number + 1)
    return series


def part_for(peer: str, workload: Workload) -> Workload:
    """What a peer looks at first: a part, where its work is so many equal pieces."""
    if peer in UNSHARED or not workload.prompt:
        return workload.part(_PARTS_SMALL if peer in ONE_BY_ONE else PART_TOKENS)
    return workload


def _groups(series: Mapping[str, Series], workload: Workload) -> list[list[str]]:
    """Return the measured peers, those that share nothing and, in the first workload, those of llama.cpp.

    A ratio is taken of the best of each.
    """
    _, *others = series
    measured = [
        name for name in others if series[name].seconds and not series[name].failed and not name.startswith("fsrm-lite")
    ]
    groups = [measured, [name for name in measured if name in UNSHARED]]
    return [*groups, [name for name in measured if name in LLAMA_CPP]] if workload is MAIN[0] else groups


def _quoted(series: Mapping[str, Series], workload: Workload, within: float = CLOSE) -> set[str]:
    """Return the peers that may turn out to be the best of a group."""
    best = [(group, min(_best(series[name]) for name in group)) for group in _groups(series, workload) if group]
    return {name for group, seconds in best for name in group if _best(series[name]) <= within * seconds}


def _best(series: Series) -> float:
    return min(series.seconds)


def _is_near(series: Mapping[str, Series], peer: str, times: float = NEAR) -> bool:
    """Return whether a peer takes at most so many times as long as the first one; unknown counts as near."""
    first = next(iter(series.values()))
    return not first.seconds or not series[peer].seconds or _best(series[peer]) <= times * _best(first)


def _disturbed(series: Series) -> bool:
    return bool(series.others) and series.others[-1] >= QUIET


def _last(series: Series) -> str:
    part = f" (from 1/{series.scale})" if series.scale > 1 else ""
    busy = f", while others took {series.others[-1]:.0%} of the machine" if _disturbed(series) else ""
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


def run_once(field_: Field, peer: str, workload: Workload, series: Series, timeout: float) -> None:
    """Run a workload once and put down what came of it."""
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
