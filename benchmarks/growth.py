"""How the time grows with the number of candidates and with the length of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from benchmarks.measure import OVERDRAFT, SETTLE_SECONDS, Field, Series, part_for, run_once, summarise
from benchmarks.peers import UNSHARED
from benchmarks.workloads import BY_COUNT, BY_PROMPT, Workload

POINT_SECONDS = 20.0
"""Points at which one run of a peer would take longer are left out."""

_TIMEOUT = 300.0


@dataclass(slots=True)
class _Curve:
    """One peer's points.

    Attributes:
        peer: Its name.
        runs: What was run: workloads without name and scale, since several points may come from the same part.
        points: By the name of a workload: what was run for it, and what the time is multiplied by.
    """

    peer: str
    runs: dict[Workload, Series] = field(default_factory=dict)
    points: dict[str, tuple[Workload, int]] = field(default_factory=dict)

    def shape(self, workload: Workload) -> tuple[Workload, int]:
        """Return what is run for a workload, and its scale."""
        part = part_for(self.peer, workload)
        return replace(part, name="", title="", scale=1), part.scale

    def foresee(self, shape: Workload) -> float:
        """Return the seconds of a run, by the tokens of the last one; at least that, since attention grows faster."""
        known = [(other, own.seconds[-1]) for other, own in self.runs.items() if own.seconds]
        return known[-1][1] * self._tokens(shape) / self._tokens(known[-1][0]) if known else 0.0

    def _tokens(self, shape: Workload) -> int:
        return shape.count * (shape.prompt + shape.response) if self.peer in UNSHARED else shape.tokens

    def seconds(self) -> dict[str, float]:
        """Return the fastest time of each point."""
        measured = ((name, scale, self.runs[shape]) for name, (shape, scale) in self.points.items())
        return {
            name: scale * summarise(own.seconds, own.others)["min_s"] for name, scale, own in measured if own.seconds
        }


def grow(
    field_: Field, peers: Sequence[str], budget_s: float, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Run every point once, then again, the quickest first, while the budget lasts; the faster time counts.

    Args:
        field_: The running peers.
        peers: Names; the first runs every point, the others those that take at most ``POINT_SECONDS``.
        budget_s: No second run is started that would end behind ``OVERDRAFT`` times this. Loading is not on it.
        say: Takes progress.

    Returns:
        Seconds by peer and by name of the workload.
    """
    end = perf_counter() + OVERDRAFT * budget_s - field_.loading_s
    curves = [_Curve(peer) for peer in peers]
    order: list[tuple[_Curve, Workload]] = []

    def run(curve: _Curve, shape: Workload) -> None:
        own = curve.runs.setdefault(shape, Series())
        run_once(field_, curve.peer, shape, own, _TIMEOUT)
        say(
            f"growth: {curve.peer}, {shape.count} behind a prompt of {shape.prompt}: "
            f"{own.failed or f'{own.seconds[-1]:.2f} s'}"
        )

    for workload in (*BY_COUNT, *BY_PROMPT):
        for curve in curves:
            shape, scale = curve.shape(workload)
            foreseen = curve.foresee(shape)
            if shape in curve.runs or curve is curves[0] or foreseen <= POINT_SECONDS:
                curve.points[workload.name] = (shape, scale)
                if shape not in curve.runs:
                    run(curve, shape)
                    order.append((curve, shape))
            else:
                say(f"growth: {curve.peer}, {workload.name} would take {foreseen:.0f} s, left out")
    measured = [(curve.runs[shape].seconds[0], curve, shape) for curve, shape in order if curve.runs[shape].seconds]
    for seconds, curve, shape in sorted(measured, key=lambda one: one[0]):
        if seconds + SETTLE_SECONDS <= end + field_.loading_s - perf_counter():
            run(curve, shape)
    return {curve.peer: curve.seconds() for curve in curves}
