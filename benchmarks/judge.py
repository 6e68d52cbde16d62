"""Measures the judge, on either runtime, beside its peer, which is ``Llama.create_completion`` called once per vote.

A *vote* is one thought of the model about a pair, with its verdict. The judge is also compared with a bare loop over
the runtime's own function (``llama_decode``, or a run of the graph): the time that it spends outside of that function.

All sides run in turn, each in a process of its own. The peer is measured in its fastest form, which a short trial
finds out. The forms differ in how threads wait at barriers (``measure.SPINS``) and, with the embedded model, in the
number of threads, since a model this small may lose more at barriers than it gains from a second core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.judge_sides import RUNTIMES, VOTE, JudgeWorkload
from benchmarks.measure import LEAST_ROUNDS, MOST_ROUNDS, OVERDRAFT, SPINS, fastest_of, summarise
from benchmarks.worker import Worker

PEER, LLAMA = "create_completion", "llama.cpp"
EMBEDDED_PAIRS, EMBEDDED_VOTES = 12, 4
_TRIAL_RANDOM = JudgeWorkload("a trial", 1, 1, one_prompt=True, tokens=32)
_TRIAL_EMBEDDED = JudgeWorkload("a trial", 2, EMBEDDED_VOTES)
_PEER_RANDOM = JudgeWorkload("two votes", 1, 2, one_prompt=True)
_PEER_EMBEDDED = JudgeWorkload("all votes", EMBEDDED_PAIRS, EMBEDDED_VOTES)


@dataclass(frozen=True, slots=True)
class Targets:
    """What is aimed at in a workload.

    Attributes:
        onnx: How many times as fast as ``create_completion`` the judge on ONNX Runtime is to be.
        over_llama: How many times as fast as the judge on llama.cpp it is to be.
        llama: How many times as fast as ``create_completion`` the judge on llama.cpp is to be.
    """

    onnx: float
    over_llama: float
    llama: float


_ALL_VOTES, _ADAPTIVE = Targets(2.5, 1.3, 5.0), Targets(4.0, 1.3, 5.0)
RANDOM = {
    JudgeWorkload("8 votes on one pair (2 orders x 4)", 1, 4): Targets(4.0, 2.3, 2.2),
    JudgeWorkload("4 pairs x 2 orders x 4 votes", 4, 4): Targets(7.0, 3.5, 3.4),
}
EMBEDDED = {
    JudgeWorkload("8 votes, all of them, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES): _ALL_VOTES,
    JudgeWorkload(
        f"8 votes, all of them, {EMBEDDED_PAIRS} pairs per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, EMBEDDED_PAIRS
    ): _ALL_VOTES,
    JudgeWorkload("8 votes, adaptive, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, adaptive=True): _ADAPTIVE,
    JudgeWorkload(
        f"8 votes, adaptive, {EMBEDDED_PAIRS} pairs per call",
        EMBEDDED_PAIRS,
        EMBEDDED_VOTES,
        EMBEDDED_PAIRS,
        adaptive=True,
    ): _ADAPTIVE,
}
"""What is measured, and what is aimed at."""

LONG_SECONDS = 40.0
"""A workload that takes longer than this runs again only where the budget allows."""

OVERHEAD = 0.10
"""How much time the judge may spend outside the runtime's own function, as a share of the time inside."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the table.

    Attributes:
        what: What was judged.
        runtime: Which runtime the judge ran on.
        seconds: Wall times of the judge, as ``benchmarks.measure.summarise`` returns them.
        tokens_per_second: Tokens that the judge wrote per second, by medians.
        peer_seconds: Wall times of ``create_completion``, one call per vote, for all of the votes.
        ratio: How many times as fast as the peer the judge is, by medians.
        target: The ratio that is aimed at.
        over_llama: How many times as fast as the judge on llama.cpp; None for that judge itself.
        over_llama_target: The same that is aimed at.
        overhead: Time outside the runtime's own function as a share of the time inside; the median of the runs.
        step_ms: Milliseconds of one call of that function; the median.
        step_rows: Rows of one of these calls; the median.
        rss_bytes: The most memory that the judge's process held.
        note: Anything else worth knowing.
    """

    what: str
    runtime: str
    seconds: dict[str, Any]
    tokens_per_second: float
    peer_seconds: dict[str, Any]
    ratio: float
    target: float
    over_llama: float | None
    over_llama_target: float | None
    overhead: float
    step_ms: float
    step_rows: float
    rss_bytes: int
    note: str


Timings = list[dict[str, Any]]
"""The timings of one workload on one side as dicts, round by round."""


def measure(
    root: Path, threads: int, say: Callable[[str], None], which: str, *, budget_s: float
) -> list[dict[str, Any]]:
    """Measure one model.

    Args:
        root: The folder with the model files.
        threads: Threads of either side.
        say: Called with a line of progress.
        which: The model: "random weights" or "embedded".
        budget_s: Seconds for the runs. Loading does not count, and ``LEAST_ROUNDS`` may take ``OVERDRAFT`` times as
            long.

    Returns:
        The rows of the table (``TableRow``) as dicts.
    """
    workloads, trial, peer_workload = (
        (RANDOM, _TRIAL_RANDOM, _PEER_RANDOM)
        if which == "random weights"
        else (EMBEDDED, _TRIAL_EMBEDDED, _PEER_EMBEDDED)
    )
    form, peer_worker = _fastest_form(root, threads, say, which, trial)
    workers = {PEER: peer_worker}
    try:
        for runtime in RUNTIMES:
            workers[runtime] = Worker(f"judge on {runtime}, {which}", root, threads)
            say(f"{which}: loaded the judge on {runtime}")
        turns = [*((runtime, workload) for workload in workloads for runtime in RUNTIMES), (PEER, peer_workload)]
        timings = _take_turns(workers, turns, say, which, budget_s)
    finally:
        for worker in workers.values():
            worker.close()
    peer = timings.pop((PEER, peer_workload.name))
    every = next(iter(timings.values()))[0]["winners"]
    return [
        asdict(_row(which, workload, targets, runtime, timings, peer, form, every))
        for workload, targets in workloads.items()
        for runtime in RUNTIMES
    ]


def _take_turns(
    workers: Mapping[str, Worker],
    turns: Sequence[tuple[str, JudgeWorkload]],
    say: Callable[[str], None],
    which: str,
    budget_s: float,
) -> dict[tuple[str, str], Timings]:
    """Run all workloads in turn, round after round; return the timings of each, by its side and its name.

    Every workload runs once. Up to ``LEAST_ROUNDS``, a workload that is not long runs again while it stays within
    ``OVERDRAFT`` times the budget. All other runs, up to ``MOST_ROUNDS``, must stay within the budget itself.
    """
    timings: dict[tuple[str, str], Timings] = {(side, workload.name): [] for side, workload in turns}
    start = perf_counter()
    for number in range(1, MOST_ROUNDS + 1):
        for side, workload in turns:
            known = timings[side, workload.name]
            last_s = known[-1]["seconds"] if number > 1 else 0.0
            due = last_s <= LONG_SECONDS and number <= LEAST_ROUNDS
            if number == 1 or perf_counter() - start + last_s <= budget_s * (OVERDRAFT if due else 1.0):
                answer = workers[side].run(workload, 600.0)
                known.append({**answer["values"], **{key: answer[key] for key in ("others", "rss_bytes")}})
                say(f"{which} round {number}: {side}, {workload.name} {answer['values']['seconds']:.2f} s")
    return timings


def _fastest_form(
    root: Path, threads: int, say: Callable[[str], None], which: str, trial: JudgeWorkload
) -> tuple[str, Worker]:
    """Start the peer in each of its forms, try them, and end all but the fastest; return its name and its process."""
    counts = {threads, 1} if which == "embedded" else {threads}
    forms = {
        f"{n} threads, GOMP_SPINCOUNT={spin}": (n, spin)
        for n in sorted(counts)
        for spin in (SPINS if n > 1 else SPINS[:1])
    }
    workers: dict[str, Worker] = {}
    best = ""
    try:
        for form, (own_threads, spin) in forms.items():
            workers[form] = Worker(f"create_completion, {which}", root, own_threads, environ={"GOMP_SPINCOUNT": spin})
            say(f"{which}: loaded create_completion, {form}")
        seconds = fastest_of(workers, trial)
        say(f"{which}, {trial.name}: " + ", ".join(f"{form} {spent:.2f} s" for form, spent in seconds.items()))
        best = min(seconds, key=lambda form: seconds[form])
    finally:
        for form, worker in workers.items():
            if form != best:
                worker.close()
    return best, workers[best]


def _row(
    which: str,
    workload: JudgeWorkload,
    targets: Targets,
    runtime: str,
    timings: Mapping[tuple[str, str], Timings],
    peer: Timings,
    form: str,
    every: Sequence[int],
) -> TableRow:
    """Return a line of the table.

    ``form`` is the form in which the peer ran, ``every`` the decisions when all votes are taken.
    """
    ours = timings[runtime, workload.name]
    seconds = summarise([run["seconds"] for run in ours], [run["others"] for run in ours])
    scaled = summarise(_scale(which, workload, peer), [run["others"] for run in peer])
    over_llama = None
    if runtime != LLAMA:
        llama = timings[LLAMA, workload.name]
        llama_s = summarise([run["seconds"] for run in llama], [run["others"] for run in llama])["median_s"]
        over_llama = llama_s / seconds["median_s"]
    notes, winners = [f"peer: {form}"], ours[0]["winners"]
    if winners:
        same = sum(a == b for a, b in zip(winners, every, strict=True))
        notes += [f"{winners.count(0)} of {len(winners)} right", f"{same} decided as by all votes, one pair per call"]
    if not (seconds["quiet"] and scaled["quiet"]):
        notes.append("busy machine")
    return TableRow(
        f"{which}: {workload.name}",
        runtime,
        seconds,
        median(run["tokens"] for run in ours) / seconds["median_s"],
        scaled,
        scaled["median_s"] / seconds["median_s"],
        targets.llama if runtime == LLAMA else targets.onnx,
        over_llama,
        targets.over_llama if over_llama is not None else None,
        median(run["seconds"] / run["inside_s"] - 1 for run in ours),
        median(run["step_ms"] for run in ours),
        median(run["step_rows"] for run in ours),
        max(run["rss_bytes"] for run in ours),
        "; ".join(notes),
    )


def _scale(which: str, workload: JudgeWorkload, timings: Sequence[dict[str, Any]]) -> list[float]:
    """Return the peer's seconds for all votes of a workload, round by round.

    With random weights only a few votes are measured, since all of them are alike; their time is scaled up.
    """
    if which == "embedded":
        return [timing["seconds"] for timing in timings]
    return [timing["seconds"] / timing["tokens"] * VOTE * workload.pairs * 2 * workload.votes for timing in timings]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "**Judge: beside `Llama.create_completion`, one call per vote**",
        "",
        "| | on | median s | spread | tokens/s | create_completion, s | spread | ratio (target) "
        "| over llama.cpp (target) | outside the runtime | one step | peak memory | |",
        "|---" * 13 + "|",
    ]
    for r in rows:
        ours, peer = (
            f"{r[k]['median_s']:.2f} | {r[k]['min_s']:.2f} - {r[k]['max_s']:.2f}, n={r[k]['runs']}"
            for k in ("seconds", "peer_seconds")
        )
        over = "" if r["over_llama"] is None else _aimed(r["over_llama"], r["over_llama_target"])
        lines.append(
            f"| {r['what']} | {r['runtime']} | {ours} | {r['tokens_per_second']:.0f} | {peer} "
            f"| {_aimed(r['ratio'], r['target'])} | {over} "
            f"| {r['overhead']:.1%}{'' if r['overhead'] <= OVERHEAD else ' (over 10 %)'} "
            f"| {r['step_ms']:.2f} ms, {r['step_rows']:.0f} rows | {r['rss_bytes'] / 2**20:.0f} MiB | {r['note']} |"
        )
    return "\n".join(lines)


def _aimed(ratio: float, target: float) -> str:
    return f"{ratio:.2f}x ({target:g}x: {'met' if ratio >= target else 'missed'})"
