"""Weighs accuracy against tokens: the best gate for a budget, and the Pareto front.

An operating point is a gate together with its accuracy and its tokens on a sample. All gates on a grid of thresholds
are measured. The Pareto front holds those that no other gate beats on both accuracy and tokens.
"""

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
"""Steps of the grid per confidence. They are quantiles, so that about equally many items lie between two thresholds."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A gate and what it gives on a sample.

    Attributes:
        gate: The thresholds.
        accuracy: Share of items that the gated model gets right.
        tokens: Mean generated tokens per item.
        escalated: Share of items that the gate escalates.
    """

    gate: GateSpec
    accuracy: float
    tokens: float
    escalated: float


def escalations(gate: GateSpec, sample: Sample) -> NDArray[np.bool_]:
    """Return whether the gate escalates each item, bool, shape [n]. ``Gate`` decides the same about each item."""
    if gate.always:
        return np.ones(len(sample), dtype=np.bool_)
    unsure = sample.intuition(gate.temperature) < gate.intuition_threshold
    spread = sample.distribution < gate.distribution_threshold
    return unsure & spread if gate.combine == "all" else unsure | spread


def operate(gate: GateSpec, sample: Sample) -> OperatingPoint:
    """Return a gate with its accuracy and tokens on a sample.

    Raises:
        CalibrationError: If the judge was not asked about every item.
    """
    slow_correct, slow_tokens = _slow(sample)
    up = escalations(gate, sample)
    right = np.where(up, slow_correct, sample.fast_correct)
    return OperatingPoint(gate, float(right.mean()), float((slow_tokens * up).mean()), float(up.mean()))


def operating_points(sample: Sample, temperature: float = 1.0) -> list[OperatingPoint]:
    """Return all gates that are tried, cheapest first; of those that cost the same, the most accurate first.

    Every pair of thresholds on a grid of quantiles is tried, with both rules of the gate ("any" and "all"), and always
    slow as well.

    Args:
        sample: The items.
        temperature: Of the intuition confidence, > 0.

    Raises:
        CalibrationError: If the judge was not asked about every item.
    """
    points = [operate(GateSpec(0.0, 0.0, "any", temperature, always=True), sample)]
    points += _grid(sample, temperature, "any") + _grid(sample, temperature, "all")
    return sorted(points, key=lambda p: (p.tokens, -p.accuracy))


def pareto(sample: Sample, temperature: float = 1.0) -> list[OperatingPoint]:
    """Return the gates that no other one beats on both accuracy and tokens, cheapest first.

    Args:
        sample: The items.
        temperature: Of the intuition confidence, > 0.

    Raises:
        CalibrationError: If the judge was not asked about every item.
    """
    front: list[OperatingPoint] = []
    for point in operating_points(sample, temperature):
        if not front or point.accuracy > front[-1].accuracy + 1e-12:
            front.append(point)
    return front


def best_within_budget(front: Sequence[OperatingPoint], tokens: float) -> OperatingPoint:
    """Return the most accurate point of a front that generates at most ``tokens`` per item, on average.

    Raises:
        CalibrationError: If the budget is negative.
    """
    if not tokens >= 0:
        raise CalibrationError(f"the budget is {tokens!r} tokens per item, expected 0 or more")
    return [p for p in front if p.tokens <= tokens][-1]  # the first point costs nothing


def cheapest_within(front: Sequence[OperatingPoint], sample: Sample, loss: float, confidence: float) -> OperatingPoint:
    """Return the cheapest point of a front that loses at most ``loss`` of the accuracy of always slow.

    Of many points, the cheapest one that just looks good enough owes that partly to chance (the winner's curse). So a
    margin is demanded, that of ``loss_bound``. The bound holds for one gate, but many are looked at here, so the loss
    is exceeded more often than ``confidence`` says. For a guarantee there is
    ``fsrm_lite.measure.risk_control.control_risk``.

    Args:
        front: From ``pareto``, cheapest first.
        sample: The items that the front was measured on.
        loss: Accuracy that may be lost, for example 0.005; at least 0.
        confidence: Level of the bound, in (0, 1).

    Returns:
        The point, measured on ``sample``; always slow if no point meets the bound.

    Raises:
        CalibrationError: If the judge was not asked about every item.
    """
    for point in front:
        if loss_bound(point.gate, sample, confidence) <= loss:
            return point
    return operate(GateSpec(1.0, 1.0, "any", always=True), sample)


def loss_bound(gate: GateSpec, sample: Sample, confidence: float) -> float:
    """Return an upper bound of the accuracy that a gate loses against always slow.

    It is the normal bound of the mean difference, item by item. One lost item is added, because few items prove little,
    and the items of a group count as varying together.

    Args:
        gate: The gate.
        sample: The items.
        confidence: Level of the bound, in (0, 1).

    Raises:
        CalibrationError: If the judge was not asked about every item.
    """
    slow_correct, _ = _slow(sample)
    names, member = np.unique(sample.groups, return_inverse=True)
    group = np.append(member, len(names))  # the added lost item is a group of its own
    right = np.where(escalations(gate, sample), slow_correct, sample.fast_correct)
    loss = np.append(slow_correct - right.astype(np.float64), 1.0)
    spread = np.bincount(group, loss - loss.mean())
    return float(loss.mean() + NormalDist().inv_cdf(confidence) * (spread @ spread) ** 0.5 / len(loss))


def _grid(sample: Sample, temperature: float, combine: Literal["any", "all"]) -> list[OperatingPoint]:
    """Return the operating points of all pairs of thresholds on the grid, under one rule of the gate."""
    slow_correct, slow_tokens = _slow(sample)
    signals = (sample.intuition(temperature), sample.distribution)
    cuts = [np.unique(np.concatenate([[0.0], np.quantile(s, np.arange(1, GRID) / GRID), [1.0]])) for s in signals]
    if not sample.has_distribution:
        cuts[1] = np.array([0.0])
    # An item in bin b reaches the thresholds cuts[:b] and no later one, so threshold i escalates the bins up to i.
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
