"""The judge beside ``Llama.create_completion`` called once per vote, and beside a bare ``llama_decode`` loop.

Both sides run in turn, each in a process of its own. The peer runs with either way to wait at barriers that libgomp
offers (``measure.SPINS``), with the embedded model also on a single thread (a model this small loses more at barriers
than it gains from a second core), and its fastest form counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.judge_sides import VOTE, Task
from benchmarks.measure import SPINS, summarise
from benchmarks.worker import Worker

EMBEDDED_PAIRS, EMBEDDED_VOTES = 12, 4
_PEER_RANDOM = Task("three votes", 1, 3, one_prompt=True)
_PEER_EMBEDDED = Task("all votes", EMBEDDED_PAIRS, EMBEDDED_VOTES)

RANDOM = {
    Task("8 votes on one pair (2 orders x 4)", 1, 4): 2.2,
    Task("4 pairs x 2 orders x 4 votes", 4, 4): 3.4,
}
EMBEDDED = {
    Task("8 votes, all of them, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES): 5.0,
    Task(f"8 votes, all of them, {EMBEDDED_PAIRS} pairs per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, EMBEDDED_PAIRS): 5.0,
    Task("8 votes, adaptive, one pair per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, adaptive=True): 5.0,
    Task(f"8 votes, adaptive, {EMBEDDED_PAIRS} pairs per call", EMBEDDED_PAIRS, EMBEDDED_VOTES, EMBEDDED_PAIRS, adaptive=True): 5.0,
}
"""What is measured, and the ratio asked for; from the issue that asked for this."""

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
        note: Anything else worth knowing.
    """

    what: str
    seconds: dict[str, Any]
    tokens_per_second: float
    peer_seconds: dict[str, Any]
    ratio: float
    target: float
    overhead: float
    note: str


Runs = dict[str, list[dict[str, Any]]]
"""Outcomes by task; the peer's by the form it ran in."""


def measure(root: Path, threads: int, say: Callable[[str], None], which: str, *, rounds: int = 3, budget_s: float = 1e9) -> list[dict[str, Any]]:
    """Measure one model; returns rows as dicts.

    Args:
        root: The folder with the model files.
        threads: Threads of either side.
        say: Takes progress.
        which: "random weights" or "embedded".
        rounds: At most so many.
        budget_s: No further round is started when it would end behind this.
    """
    tasks, peer_task = (RANDOM, _PEER_RANDOM) if which == "random weights" else (EMBEDDED, _PEER_EMBEDDED)
    counts = {threads, 1} if which == "embedded" else {threads}
    forms = {f"{n} threads, GOMP_SPINCOUNT={spin}": (n, spin) for n in sorted(counts) for spin in (SPINS if n > 1 else SPINS[:1])}
    ours: Runs = {task.name: [] for task in tasks}
    peer: Runs = {form: [] for form in forms}
    workers: dict[str, Worker] = {}
    try:
        workers["judge"] = Worker(f"judge, {which}", root, threads)
        for form, (own_threads, spin) in forms.items():
            workers[form] = Worker(f"create_completion, {which}", root, own_threads, environ={"GOMP_SPINCOUNT": spin})
        start = perf_counter()
        for number in range(rounds):
            for task in tasks:
                ours[task.name].append(_outcome(workers["judge"], task))
                say(f"{which} round {number + 1}: {task.name} {ours[task.name][-1]['seconds']:.2f} s")
            for form in forms:
                peer[form].append(_outcome(workers[form], peer_task))
                say(f"{which} round {number + 1}: create_completion, {peer_task.name}, {form}: {peer[form][-1]['seconds']:.2f} s")
            if (perf_counter() - start) * (number + 2) / (number + 1) > budget_s:
                break
    finally:
        for worker in workers.values():
            worker.close()
    return [asdict(_row(which, task, target, ours, peer)) for task, target in tasks.items()]


def _outcome(worker: Worker, task: Task) -> dict[str, Any]:
    answer = worker.run(task, 600.0)
    return {**answer["values"], "others": answer["others"]}


def _row(which: str, task: Task, target: float, ours: Runs, peer: Runs) -> Row:
    runs = ours[task.name]
    seconds = summarise([run["seconds"] for run in runs], [run["others"] for run in runs])
    scaled = {form: summarise(_scale(which, task, outcomes), [o["others"] for o in outcomes]) for form, outcomes in peer.items()}
    best = min(scaled, key=lambda form: (not scaled[form]["quiet"], scaled[form]["median_s"]))
    notes = [f"peer: {best}"]
    if which == "embedded":
        winners = runs[0]["winners"]
        every = ours[next(iter(EMBEDDED)).name][0]["winners"]
        same = sum(a == b for a, b in zip(winners, every, strict=True))
        notes += [f"{winners.count(0)} of {len(winners)} right", f"{same} decided as by all votes, one pair per call"]
    if not (seconds["quiet"] and scaled[best]["quiet"]):
        notes.append("busy machine")
    return Row(
        f"{which}: {task.name}",
        seconds,
        median(run["tokens"] for run in runs) / seconds["median_s"],
        scaled[best],
        scaled[best]["median_s"] / seconds["median_s"],
        target,
        median(run["seconds"] / run["inside_s"] - 1 for run in runs),
        "; ".join(notes),
    )


def _scale(which: str, task: Task, outcomes: Sequence[dict[str, Any]]) -> list[float]:
    """Return the peer's seconds for the votes of ``task``: those of random weights are all alike, so a few are measured."""
    if which == "embedded":
        return [outcome["seconds"] for outcome in outcomes]
    return [outcome["seconds"] / outcome["tokens"] * VOTE * task.pairs * 2 * task.votes for outcome in outcomes]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "**Judge: beside `Llama.create_completion`, one call per vote**",
        "",
        "| | median s | spread | tokens/s | create_completion, s | spread | ratio | target | outside `llama_decode` | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ours, peer = (f"{r[k]['median_s']:.2f} | {r[k]['min_s']:.2f} - {r[k]['max_s']:.2f}, n={r[k]['runs']}" for k in ("seconds", "peer_seconds"))
        met = "met" if r["ratio"] >= r["target"] else "missed"
        lines.append(
            f"| {r['what']} | {ours} | {r['tokens_per_second']:.0f} | {peer} | {r['ratio']:.2f}x | {r['target']}x: {met} "
            f"| {r['overhead']:.1%}{'' if r['overhead'] <= OVERHEAD else ' (over 10 %)'} | {r['note']} |"
        )
    return "\n".join(lines)
