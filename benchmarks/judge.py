"""The judge beside ``Llama.create_completion`` called once per vote, and beside a bare ``llama_decode`` loop.

Both sides run in turn, each in a process of its own. The peer is tried with either way to wait at barriers that libgomp
offers (``measure.SPINS``), with the embedded model also on a single thread (a model this small loses more at barriers
than it gains from a second core); the form that is fastest in a short trial runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.judge_sides import VOTE, Task
from benchmarks.measure import LEAST_ROUNDS, MOST_ROUNDS, OVERDRAFT, SPINS, fastest_of, summarise
from benchmarks.worker import Worker

EMBEDDED_PAIRS, EMBEDDED_VOTES = 12, 4
_TRIAL_RANDOM = Task("a trial", 1, 1, one_prompt=True, tokens=32)
_TRIAL_EMBEDDED = Task("a trial", 2, EMBEDDED_VOTES)
_PEER_RANDOM = Task("two votes", 1, 2, one_prompt=True)
_PEER_EMBEDDED = Task("all votes", EMBEDDED_PAIRS, EMBEDDED_VOTES)

RANDOM = {
    Task("8 votes on one pair (2 orders x 4)", 1, 4): 2.2,
    Task("4 pairs x 2 orders x 4 votes", 4, 4): 3.4,
}
EMBEDDED = {
    Task("8 votes, all of them, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES): 5.0,
    Task(f"8 votes, all of them, {EMBEDDED_PAIRS} pairs per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, EMBEDDED_PAIRS): 5.0,
    Task("8 votes, adaptive, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, adaptive=True): 5.0,
    Task(
        f"8 votes, adaptive, {EMBEDDED_PAIRS} pairs per call",
        EMBEDDED_PAIRS,
        EMBEDDED_VOTES,
        EMBEDDED_PAIRS,
        adaptive=True,
    ): 5.0,
}
"""What is measured, and the ratio asked for; from the issue that asked for this."""

LONG_SECONDS = 40.0
"""A task that takes longer runs a second time only where the budget allows."""

OVERHEAD = 0.10
"""Most time outside ``llama_decode``, over the time inside; from there too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was judged.
        seconds: Wall times of the judge, as :func:`benchmarks.measure.summarise` gives them.
        tokens_per_second: Tokens it wrote per second, in the middle.
        peer_seconds: Those of ``create_completion``, one call per vote, for all of the votes.
        ratio: How many times faster the judge is, by the medians.
        target: The ratio asked for.
        overhead: Share of the wall time spent outside ``llama_decode``, over the time inside; the middle one.
        step_ms: Milliseconds of one of the judge's calls of ``llama_decode``; the middle one.
        step_rows: Rows of one of them; the middle one.
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


Outcomes = list[dict[str, Any]]
"""Of one task, round by round."""


def measure(
    root: Path, threads: int, say: Callable[[str], None], which: str, *, budget_s: float
) -> list[dict[str, Any]]:
    """Measure one model; returns rows as dicts.

    Args:
        root: The folder with the model files.
        threads: Threads of either side.
        say: Takes progress.
        which: "random weights" or "embedded".
        budget_s: Seconds for the runs; loading comes on top, and the least rounds may take ``OVERDRAFT`` times as long.
    """
    tasks, trial, peer_task = (
        (RANDOM, _TRIAL_RANDOM, _PEER_RANDOM)
        if which == "random weights"
        else (EMBEDDED, _TRIAL_EMBEDDED, _PEER_EMBEDDED)
    )
    form, peer_worker = _fastest_form(root, threads, say, which, trial)
    workers = [peer_worker]
    try:
        workers.append(Worker(f"judge, {which}", root, threads))
        say(f"{which}: loaded the judge")
        turns = [*((workers[1], task) for task in tasks), (peer_worker, peer_task)]
        outcomes = _take_turns(turns, say, which, budget_s)
    finally:
        for worker in workers:
            worker.close()
    peer = outcomes.pop(peer_task.name)
    every = next(iter(outcomes.values()))[0]["winners"]
    return [asdict(_row(which, task, target, outcomes[task.name], peer, form, every)) for task, target in tasks.items()]


def _take_turns(
    turns: Sequence[tuple[Worker, Task]], say: Callable[[str], None], which: str, budget_s: float
) -> dict[str, Outcomes]:
    """Do all tasks in turn.

    ``LEAST_ROUNDS`` of each within ``OVERDRAFT`` (of a long one, one), further ones within the budget.
    """
    outcomes: dict[str, Outcomes] = {task.name: [] for _, task in turns}
    start = perf_counter()
    for number in range(1, MOST_ROUNDS + 1):
        for worker, task in turns:
            last_s = outcomes[task.name][-1]["seconds"] if number > 1 else 0.0
            due = last_s <= LONG_SECONDS and number <= LEAST_ROUNDS
            if number == 1 or perf_counter() - start + last_s <= budget_s * (OVERDRAFT if due else 1.0):
                answer = worker.run(task, 600.0)
                outcomes[task.name].append({**answer["values"], "others": answer["others"]})
                side = "create_completion, " if worker is turns[-1][0] else ""
                say(f"{which} round {number}: {side}{task.name} {answer['values']['seconds']:.2f} s")
    return outcomes


def _fastest_form(root: Path, threads: int, say: Callable[[str], None], which: str, trial: Task) -> tuple[str, Worker]:
    """Start the peer in each of its forms, try them, and keep the fastest one; returns its name and its process."""
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


def _row(which: str, task: Task, target: float, ours: Outcomes, peer: Outcomes, form: str, every: Sequence[int]) -> Row:
    """Make a line of the table; ``form`` is the peer's, ``every`` the decisions by all votes."""
    seconds = summarise([run["seconds"] for run in ours], [run["others"] for run in ours])
    scaled = summarise(_scale(which, task, peer), [run["others"] for run in peer])
    notes, winners = [f"peer: {form}"], ours[0]["winners"]
    if winners:
        same = sum(a == b for a, b in zip(winners, every, strict=True))
        notes += [f"{winners.count(0)} of {len(winners)} right", f"{same} decided as by all votes, one pair per call"]
    if not (seconds["quiet"] and scaled["quiet"]):
        notes.append("busy machine")
    return Row(
        f"{which}: {task.name}",
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


def _scale(which: str, task: Task, outcomes: Sequence[dict[str, Any]]) -> list[float]:
    """Return the peer's seconds for the votes of ``task``.

    Those of random weights are all alike, so a few are measured.
    """
    if which == "embedded":
        return [outcome["seconds"] for outcome in outcomes]
    return [outcome["seconds"] / outcome["tokens"] * VOTE * task.pairs * 2 * task.votes for outcome in outcomes]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "**Judge: beside `Llama.create_completion`, one call per vote**",
        "",
        "| | median s | spread | tokens/s | create_completion, s | spread | ratio | target | outside "
        "`llama_decode` | one call of it | |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        ours, peer = (
            f"{r[k]['median_s']:.2f} | {r[k]['min_s']:.2f} - {r[k]['max_s']:.2f}, n={r[k]['runs']}"
            for k in ("seconds", "peer_seconds")
        )
        met = "met" if r["ratio"] >= r["target"] else "missed"
        lines.append(
            f"| {r['what']} | {ours} | {r['tokens_per_second']:.0f} | {peer} | {r['ratio']:.2f}x | {r['target']}x: "
            f"{met} "
            f"| {r['overhead']:.1%}{'' if r['overhead'] <= OVERHEAD else ' (over 10 %)'} "
            f"| {r['step_ms']:.2f} ms, {r['step_rows']:.0f} rows | {r['note']} |"
        )
    return "\n".join(lines)
