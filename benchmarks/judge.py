"""Measures the judge beside its peer, which is ``Llama.create_completion`` called once per vote.

A *vote* is one thought of the model about a pair, with its verdict. The judge is also compared with a bare loop over
``llama_decode``: the time that it spends outside of that function.

Both sides run in turn, each in a process of its own. The peer is measured in its fastest form, which a short trial
finds out. The forms differ in how threads wait at barriers (``measure.SPINS``) and, with the embedded model, in the
number of threads, since a model this small may lose more at barriers than it gains from a second core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.judge_sides import VOTE, JudgeWorkload
from benchmarks.measure import LEAST_ROUNDS, MOST_ROUNDS, OVERDRAFT, SPINS, fastest_of, summarise
from benchmarks.worker import Worker

EMBEDDED_PAIRS, EMBEDDED_VOTES = 12, 4
_TRIAL_RANDOM = JudgeWorkload("a trial", 1, 1, one_prompt=True, tokens=32)
_TRIAL_EMBEDDED = JudgeWorkload("a trial", 2, EMBEDDED_VOTES)
_PEER_RANDOM = JudgeWorkload("two votes", 1, 2, one_prompt=True)
_PEER_EMBEDDED = JudgeWorkload("all votes", EMBEDDED_PAIRS, EMBEDDED_VOTES)

RANDOM = {
    JudgeWorkload("8 votes on one pair (2 orders x 4)", 1, 4): 2.2,
    JudgeWorkload("4 pairs x 2 orders x 4 votes", 4, 4): 3.4,
}
EMBEDDED = {
    JudgeWorkload("8 votes, all of them, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES): 5.0,
    JudgeWorkload(
        f"8 votes, all of them, {EMBEDDED_PAIRS} pairs per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, EMBEDDED_PAIRS
    ): 5.0,
    JudgeWorkload("8 votes, adaptive, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, adaptive=True): 5.0,
    JudgeWorkload(
        f"8 votes, adaptive, {EMBEDDED_PAIRS} pairs per call",
        EMBEDDED_PAIRS,
        EMBEDDED_VOTES,
        EMBEDDED_PAIRS,
        adaptive=True,
    ): 5.0,
}
"""What is measured, and how many times faster than the peer the judge is to be."""

LONG_SECONDS = 40.0
"""A workload that takes longer than this runs again only where the budget allows."""

OVERHEAD = 0.10
"""How much time the judge may spend outside ``llama_decode``, as a share of the time inside."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the table.

    Attributes:
        what: What was judged.
        seconds: Wall times of the judge, as ``benchmarks.measure.summarise`` returns them.
        tokens_per_second: Tokens that the judge wrote per second, by medians.
        peer_seconds: Wall times of ``create_completion``, one call per vote, for all of the votes.
        ratio: How many times faster the judge is, by medians.
        target: The ratio that is aimed at.
        overhead: Time outside ``llama_decode`` as a share of the time inside; the median of the runs.
        step_ms: Milliseconds of one of the judge's calls of ``llama_decode``; the median.
        step_rows: Rows of one of these calls; the median.
        note: Anything else worth knowing.
    """

    what: str
    seconds: dict[str, Any]
    tokens_per_second: float
    peer_seconds: dict[str, Any]
    ratio: float
    target: float
    overhead: float
    step_ms: float
    step_rows: float
    note: str


Timings = list[dict[str, Any]]
"""The timings of one workload as dicts, round by round."""


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
    workers = [peer_worker]
    try:
        workers.append(Worker(f"judge, {which}", root, threads))
        say(f"{which}: loaded the judge")
        turns = [*((workers[1], workload) for workload in workloads), (peer_worker, peer_workload)]
        timings = _take_turns(turns, say, which, budget_s)
    finally:
        for worker in workers:
            worker.close()
    peer = timings.pop(peer_workload.name)
    every = next(iter(timings.values()))[0]["winners"]
    return [
        asdict(_row(which, workload, target, timings[workload.name], peer, form, every))
        for workload, target in workloads.items()
    ]


def _take_turns(
    turns: Sequence[tuple[Worker, JudgeWorkload]], say: Callable[[str], None], which: str, budget_s: float
) -> dict[str, Timings]:
    """Run all workloads in turn, round after round; return the timings of each by its name.

    Every workload runs once. Up to ``LEAST_ROUNDS``, a workload that is not long runs again while it stays within
    ``OVERDRAFT`` times the budget. All other runs, up to ``MOST_ROUNDS``, must stay within the budget itself.
    """
    timings: dict[str, Timings] = {workload.name: [] for _, workload in turns}
    start = perf_counter()
    for number in range(1, MOST_ROUNDS + 1):
        for worker, workload in turns:
            last_s = timings[workload.name][-1]["seconds"] if number > 1 else 0.0
            due = last_s <= LONG_SECONDS and number <= LEAST_ROUNDS
            if number == 1 or perf_counter() - start + last_s <= budget_s * (OVERDRAFT if due else 1.0):
                answer = worker.run(workload, 600.0)
                timings[workload.name].append({**answer["values"], "others": answer["others"]})
                side = "create_completion, " if worker is turns[-1][0] else ""
                say(f"{which} round {number}: {side}{workload.name} {answer['values']['seconds']:.2f} s")
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
    which: str, workload: JudgeWorkload, target: float, ours: Timings, peer: Timings, form: str, every: Sequence[int]
) -> TableRow:
    """Return a line of the table.

    ``form`` is the form in which the peer ran, ``every`` the decisions when all votes are taken.
    """
    seconds = summarise([run["seconds"] for run in ours], [run["others"] for run in ours])
    scaled = summarise(_scale(which, workload, peer), [run["others"] for run in peer])
    notes, winners = [f"peer: {form}"], ours[0]["winners"]
    if winners:
        same = sum(a == b for a, b in zip(winners, every, strict=True))
        notes += [f"{winners.count(0)} of {len(winners)} right", f"{same} decided as by all votes, one pair per call"]
    if not (seconds["quiet"] and scaled["quiet"]):
        notes.append("busy machine")
    return TableRow(
        f"{which}: {workload.name}",
        seconds,
        median(run["tokens"] for run in ours) / seconds["median_s"],
        scaled,
        scaled["median_s"] / seconds["median_s"],
        target,
        median(run["seconds"] / run["inside_s"] - 1 for run in ours),
        median(run["step_ms"] for run in ours),
        median(run["step_rows"] for run in ours),
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
        "| | median s | spread | tokens/s | create_completion, s | spread | ratio | target "
        "| outside `llama_decode` | one call of it | |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        ours, peer = (
            f"{r[k]['median_s']:.2f} | {r[k]['min_s']:.2f} - {r[k]['max_s']:.2f}, n={r[k]['runs']}"
            for k in ("seconds", "peer_seconds")
        )
        met = "met" if r["ratio"] >= r["target"] else "missed"
        lines.append(
            f"| {r['what']} | {ours} | {r['tokens_per_second']:.0f} | {peer} | {r['ratio']:.2f}x "
            f"| {r['target']}x: {met} | {r['overhead']:.1%}{'' if r['overhead'] <= OVERHEAD else ' (over 10 %)'} "
            f"| {r['step_ms']:.2f} ms, {r['step_rows']:.0f} rows | {r['note']} |"
        )
    return "\n".join(lines)
