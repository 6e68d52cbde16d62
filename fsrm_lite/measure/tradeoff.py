"""Accuracy against tokens over the whole grid of threshold pairs: the best gate for a budget, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import CalibrationError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.labelled import Sample

GRID = 64
"""Thresholds per confidence: quantiles, so that steps hold about equally many items."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A gate and what it gives on a sample.

    Attributes:
        gate: The thresholds.
        accuracy: Share right after the gate.
        tokens: Mean generated tokens per item.
        escalated: Share escalated.
    """

    gate: GateSpec
    accuracy: float
    tokens: float
    escalated: float


def escalations(gate: GateSpec, sample: Sample) -> NDArray[np.bool_]:
    """Whether the gate escalates each item, shape [n]; agrees with ``Gate`` item by item."""
    if gate.always:
        return np.ones(len(sample), dtype=np.bool_)
    unsure = sample.intuition(gate.temperature) < gate.intuition_threshold
    spread = sample.distribution < gate.distribution_threshold
    return unsure & spread if gate.combine == "all" else unsure | spread


def operate(gate: GateSpec, sample: Sample) -> OperatingPoint:
    """Measure a gate on a sample.

    Raises:
        CalibrationError: If slow outcomes are unknown.
    """
    slow_correct, slow_tokens = _slow(sample)
    up = escalations(gate, sample)
    right = np.where(up, slow_correct, sample.fast_correct)
    return OperatingPoint(gate, float(right.mean()), float((slow_tokens * up).mean()), float(up.mean()))


def pareto(sample: Sample, temperature: float = 1.0) -> list[OperatingPoint]:
    """Return the gates that no other one beats on both accuracy and tokens, cheapest first.

    Every pair of thresholds on a grid of quantiles is tried, under both combination rules, beside always-slow.

    Raises:
        CalibrationError: If slow outcomes are unknown.
    """
    _slow(sample)
    points = [operate(GateSpec(0.0, 0.0, "any", temperature, always=True), sample)]
    points += _grid(sample, temperature, "any") + _grid(sample, temperature, "all")
    points.sort(key=lambda p: (p.tokens, -p.accuracy))
    front: list[OperatingPoint] = []
    for point in points:
        if not front or point.accuracy > front[-1].accuracy + 1e-12:
            front.append(point)
    return front


def best_within_budget(front: Sequence[OperatingPoint], tokens: float) -> OperatingPoint:
    """Return the most accurate point of at most ``tokens`` mean generated tokens per item.

    Raises:
        CalibrationError: If the budget is negative.
    """
    if not tokens >= 0:
        raise CalibrationError(f"the budget is {tokens!r} tokens per item, expected 0 or more")
    return [p for p in front if p.tokens <= tokens][-1]  # the first point costs nothing


def cheapest_within(front: Sequence[OperatingPoint], sample: Sample, loss: float, confidence: float) -> OperatingPoint:
    """Return the cheapest point that loses at most ``loss`` of always-slow's accuracy; always-slow itself if none is sure to.

    The point that merely looks good enough on the items that it was picked on is as a rule too cheap (the winner's curse). So
    the mean of the paired differences, with one lost item added (few items prove little), must stay above ``-loss`` by its
    normal lower bound at ``confidence``; items of one group vary together. That is a bound for one gate, and many were looked
    at, so the loss is exceeded more often than ``confidence`` says. A guarantee is what
    ``fsrm_lite.measure.risk_control.control_risk`` is for.

    Raises:
        CalibrationError: If slow outcomes are unknown.
    """
    slow_correct, _ = _slow(sample)
    z = NormalDist().inv_cdf(confidence)
    names, member = np.unique(sample.groups, return_inverse=True)
    group = np.append(member, len(names))  # the lost item is a group of its own
    for point in front:
        right = np.where(escalations(point.gate, sample), slow_correct, sample.fast_correct)
        gain = np.append(right.astype(np.float64) - slow_correct, -1.0)
        spread = np.bincount(group, gain - gain.mean())
        if gain.mean() - z * (spread @ spread) ** 0.5 / len(gain) >= -loss:
            return point
    return operate(GateSpec(1.0, 1.0, "any", always=True), sample)


def _grid(sample: Sample, temperature: float, combine: Literal["any", "all"]) -> list[OperatingPoint]:
    slow_correct, slow_tokens = _slow(sample)
    signals = (sample.intuition(temperature), sample.distribution)
    cuts = [np.unique(np.concatenate([[0.0], np.quantile(s, np.arange(1, GRID) / GRID), [1.0]])) for s in signals]
    # Bin b of an item: it reaches the thresholds cuts[:b] and no later one, so threshold i escalates bins <= i.
    rows, columns = (np.searchsorted(c, s, side="right") for c, s in zip(cuts, signals, strict=True))
    shape = (len(cuts[0]) + 1, len(cuts[1]) + 1)
    gain = slow_correct.astype(np.float64) - sample.fast_correct

    def escalated_sum(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        below = np.zeros(shape)
        np.add.at(below, (rows, columns), weight)
        below = below.cumsum(0).cumsum(1)
        both = below[:-1, :-1]
        return (both if combine == "all" else below[:-1, -1:] + below[-1:, :-1] - both) / len(sample)

    accuracy = sample.fast_correct.mean() + escalated_sum(gain)
    tokens, share = escalated_sum(slow_tokens), escalated_sum(np.ones(len(sample)))
    return [
        OperatingPoint(
            GateSpec(float(t1), float(t2), combine, temperature),
            float(accuracy[i, j]),
            float(tokens[i, j]),
            float(share[i, j]),
        )
        for i, t1 in enumerate(cuts[0])
        for j, t2 in enumerate(cuts[1])
    ]


def _slow(sample: Sample) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    if sample.slow_correct is None or sample.slow_tokens is None:
        raise CalibrationError(
            "slow outcomes are needed here, and not every item has one; run the judge on all of them (judge='always')"
        )
    return sample.slow_correct, sample.slow_tokens
