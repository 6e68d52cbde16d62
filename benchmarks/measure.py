"""Runs peers side by side, in rounds, so that a slow minute of the machine hits all of them.

A *peer* is a program, or one form of a program, that does the work of a workload (``peers.py``). In a *round*, peers
run the workload one after the other. The first peer is the one that all others are compared with. The report quotes
*ratios*: how many times as long as the first peer the best of some group of peers takes. Peers that matter for that run
more rounds than the others.

A peer that is slow may run a *part* of a workload, if its work is so many equal pieces; its time is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from benchmarks.judge_sides import JudgeWorkload
from benchmarks.load import QUIET
from benchmarks.peers import CACHED, FAMILIES, LLAMA_CPP, ONE_BY_ONE, UNSHARED
from benchmarks.worker import Worker, WorkerError
from benchmarks.workloads import MAIN, PART_TOKENS, Workload

LEAST_ROUNDS, MOST_ROUNDS = 3, 5
"""Rounds that a *near* peer (see ``NEAR``) is to run, and rounds that it runs at most, if the budget allows."""

OVERDRAFT = 1.3
"""The least rounds may take this many times the budget, for a day on which the machine is slow."""

SETTLE_SECONDS = 0.2
"""Pause before each run, since the threads of the peer before go on spinning for a while when its run is over."""

NEAR = 3.0
"""A peer is *near* if it takes at most this many times as long as the first peer.

A peer that is not near runs in the first round only, unless the report quotes a ratio to it.
"""

CLOSE = 1.25
"""A peer that may be the best of its group runs the whole workload, and not only a part, since a ratio is quoted to it.

It may be the best if it takes at most this many times as long as the one that is the best so far.
"""

EQUAL = 1.05
"""After the first workload, those forms of a program go on that took at most this many times as long as its fastest."""

SPINS = ("300000", "2000")
"""Values of GOMP_SPINCOUNT to try: how long llama.cpp's threads spin while they wait for each other at a barrier.

The first is the default of libgomp, which is best on an idle machine; the second is a short one for a busy machine.
"""

TRIAL = MAIN[0]
"""The workload with which they are tried."""

ROOM_BYTES = 5 << 30
"""Memory that the largest peer needs while it loads."""

_PARTS_SMALL = 512
"""Tokens of a part for peers that read one sequence at a time."""


@dataclass(slots=True)
class Series:
    """The runs of one peer in one workload.

    Attributes:
        seconds: Wall time of each run, scaled to the whole workload.
        others: Share of the machine that other processes took during each run.
        scale: What times were multiplied by because the peer ran a part; 1 if it ran the whole.
        rss_bytes: Most memory that the peer's process held.
        values: What the last run answered.
        failed: Why the peer failed, or None.
    """

    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    scale: int = 1
    rss_bytes: int = 0
    values: list[float] = field(default_factory=list)
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return median, fastest and slowest of the runs that count, and all that is known of every run."""
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
    """Return median, fastest and slowest of the runs on a quiet machine.

    If the machine was never quiet, only the run that was disturbed least counts.

    Args:
        seconds: Wall times, at least one.
        others: What others took during each run, as ``benchmarks.load.Watch.others`` returns it; may be empty.
    """
    runs = sorted(zip(others, seconds, strict=True)) if others else [(0.0, s) for s in seconds]
    quiet = [s for share, s in runs if share < QUIET]
    times = sorted(quiet or [runs[0][1]])
    return {"median_s": median(times), "min_s": times[0], "max_s": times[-1], "runs": len(times), "quiet": bool(quiet)}


class Field:
    """The peers that are running, each in a process that is started when first needed.

    Attributes:
        root: The folder with the model files.
        threads: Threads of every peer.
        spin: The GOMP_SPINCOUNT of every llama.cpp peer. Unless it is given, it is the faster one of ``SPINS``, found
            by a trial with the first such peer.
        spin_tried: The name of the peer of that trial, or None.
        loading_s: Seconds that loading peers has taken so far.
    """

    def __init__(self, root: Path, threads: int, say: Callable[[str], None], spin: str | None = None) -> None:
        self.root, self.threads, self._say = root, threads, say
        self._workers: dict[str, Worker] = {}
        self._failed: dict[str, str] = {}
        self.spin = spin
        self.spin_tried: str | None = None
        self.loading_s = 0.0

    def run(self, peer: str, workload: Workload | JudgeWorkload, timeout: float) -> dict[str, Any]:
        """Run one workload on one peer.

        Raises:
            WorkerError: If it fails; every later call then fails with the same message.
        """
        if peer in self._failed:
            raise WorkerError(self._failed[peer])
        try:
            worker = self._workers.pop(peer, None) or self._load(peer)
            self._workers[peer] = worker  # the last used one stands last
            return worker.run(workload, timeout)
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
        """End peers while memory is short, those that were used last first.

        Peers take turns, so these are the ones that will not be needed for the longest time.
        """
        while self._workers and _available_bytes() < ROOM_BYTES:
            self.close([next(reversed(self._workers))])

    def _start(self, peer: str) -> Worker:
        if peer not in LLAMA_CPP:
            return Worker(peer, self.root, self.threads)
        if self.spin is None:
            return self._faster_spin(peer)
        return Worker(peer, self.root, self.threads, environ={"GOMP_SPINCOUNT": self.spin})

    def _faster_spin(self, peer: str) -> Worker:
        """Start a llama.cpp peer with each of ``SPINS``; return the faster process and end the other.

        All llama.cpp peers will then wait at barriers as this one does.
        """
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


def fastest_of(
    workers: Mapping[str, Worker], workload: Workload | JudgeWorkload, *, tries: int = 2
) -> dict[str, float]:
    """Let workers do a workload in turn, ``tries`` times; return the least seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(tries):
        for name, worker in workers.items():
            sleep(SETTLE_SECONDS)
            times[name].append(worker.run(workload, 120.0)["seconds"])
    return {name: min(seconds) for name, seconds in times.items()}


def _available_bytes() -> int:
    """Return how much memory can be had without swapping; a huge number where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)


def best_forms(peers: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Leave out each form of a peer that was slower than another form of it by more than ``EQUAL``.

    Args:
        peers: Names; the first stays.
        rows: Their results in a workload, as ``Series.to_dict`` returns them. A form that is not among them stays; one
            that failed counts as slower. A cached form stays if its plain form does.

    Returns:
        The names that are left, in the same order.
    """
    slower: set[str] = set()
    for family in FAMILIES:
        times = {name: rows[name]["median_s"] for name in family if rows.get(name, {}).get("median_s")}
        slower |= {
            name for name in family if name in rows and times.get(name, 1e9) > EQUAL * min(times.values(), default=1e9)
        }
    slower |= {CACHED[name] for name in slower & {*CACHED}}
    return [name for name in peers if name == peers[0] or name not in slower]


def race(
    field_: Field,
    peers: Sequence[str],
    workload: Workload,
    budget_s: float,
    say: Callable[[str], None],
    rounds: tuple[int, int] = (LEAST_ROUNDS, MOST_ROUNDS),
) -> dict[str, Series]:
    """Run ``peers`` in turn: all of them in the first round, then those that are near or lead a group.

    In the first round, a peer whose work is so many equal pieces runs a part of the workload. If the report may quote a
    ratio to it, it then runs the whole, and that time counts instead.

    Further rounds follow. Up to the first number of ``rounds``, they may take ``OVERDRAFT`` times the budget; up to the
    second, they must stay within it. Peers that do not fit into the time that is left stay out, the slowest first.
    Loading does not count.

    Args:
        field_: The running peers.
        peers: Names; the others are compared with the first.
        workload: What to run.
        budget_s: Seconds for all runs.
        say: Called with a line of progress.
        rounds: The least and the most rounds.

    Returns:
        The runs of each peer by its name.
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
            turn(peer, 1)  # other processes may have made it look slow

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
        # A first run may be twice as slow as any other. So a peer that might be near runs again before it is left out.
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
    """Return what a peer runs first: a part, if its work is so many equal pieces, else the whole workload."""
    if peer in UNSHARED or not workload.prompt:
        return workload.part(_PARTS_SMALL if peer in ONE_BY_ONE else PART_TOKENS)
    return workload


def _groups(series: Mapping[str, Series], workload: Workload) -> list[list[str]]:
    """Return the groups of peers of which the report quotes a ratio to the best.

    They are all measured peers but our own, those of them that share nothing between sequences and, in the first
    workload, those of llama.cpp.
    """
    _, *others = series
    measured = [
        name for name in others if series[name].seconds and not series[name].failed and not name.startswith("fsrm-lite")
    ]
    groups = [measured, [name for name in measured if name in UNSHARED]]
    return [*groups, [name for name in measured if name in LLAMA_CPP]] if workload is MAIN[0] else groups


def _quoted(series: Mapping[str, Series], workload: Workload, within: float = CLOSE) -> set[str]:
    """Return the peers that may turn out to be the best of a group.

    They took at most ``within`` times as long as the one that is the best so far.
    """
    best = [(group, min(_best(series[name]) for name in group)) for group in _groups(series, workload) if group]
    return {name for group, seconds in best for name in group if _best(series[name]) <= within * seconds}


def _best(series: Series) -> float:
    return min(series.seconds)


def _is_near(series: Mapping[str, Series], peer: str, times: float = NEAR) -> bool:
    """Return whether a peer takes at most so many times as long as the first one; True if that is not known."""
    first = next(iter(series.values()))
    return not first.seconds or not series[peer].seconds or _best(series[peer]) <= times * _best(first)


def _disturbed(series: Series) -> bool:
    return bool(series.others) and series.others[-1] >= QUIET


def _last(series: Series) -> str:
    part = f" (from 1/{series.scale})" if series.scale > 1 else ""
    busy = f", while others took {series.others[-1]:.0%} of the machine" if _disturbed(series) else ""
    return f"{series.seconds[-1]:.2f} s{part}{busy}"


def _affordable(peers: list[str], series: dict[str, Series], left_s: float) -> list[str]:
    """Return the peers whose turn it is, as many as fit into the time that is left.

    The first peer, which all are compared with, comes before the others, and of these the quickest.
    """
    chosen: set[str] = set()
    for peer in sorted(peers, key=lambda p: (p != peers[0], series[p].seconds[-1] / series[p].scale)):
        left_s -= series[peer].seconds[-1] / series[peer].scale + SETTLE_SECONDS
        if left_s < 0:
            break
        chosen.add(peer)
    return [peer for peer in peers if peer in chosen]


def run_once(field_: Field, peer: str, workload: Workload, series: Series, timeout: float) -> None:
    """Run a workload once and add the result to ``series``."""
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
