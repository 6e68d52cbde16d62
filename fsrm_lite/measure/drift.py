"""Checks whether new items look like those that a gate was calibrated on, by their fast signals alone.

The guarantee of a gate holds for items that are drawn like the labelled ones. Without labels that cannot be proved, but
it can be refuted: if the fast scores are spread otherwise, or the gate lets more or fewer items pass, the new items are
of another kind. That nothing is found does not mean that nothing has changed: the same scores can have become wrong
more often.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.calibration import one_per_group
from fsrm_lite.measure.intervals import wilson
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.metrics import Floats
from fsrm_lite.measure.tradeoff import escalations

LEVEL = 0.01
"""A difference is called drift if chance alone would make one as large less often than this, over all signals."""


@dataclass(frozen=True, slots=True)
class SignalDrift:
    """How one fast signal differs between the old and the new items.

    Attributes:
        signal: "margin" (the size of the score logit, or of the difference of two) or "distribution".
        distance: Kolmogorov-Smirnov distance of the two samples, in [0, 1]: the largest difference between the shares
            of items below any value.
        p_value: Probability of such a distance by chance alone.
        old_median: Median of the signal in the old items.
        new_median: Median in the new ones.
    """

    signal: str
    distance: float
    p_value: float
    old_median: float
    new_median: float


def drift(old: Sample, new: Sample, gate: GateSpec | None = None) -> dict[str, Any]:
    """Compare the fast signals of new items with those of the items that the gate was calibrated on.

    Args:
        old: The items of the calibration; their labels are not looked at.
        new: The new items; they need no labels.
        gate: The gate, whose share of escalated items is compared as well.

    Returns:
        A report ready for JSON: ``drifted``, the signals, and the shares of items escalated.
    """
    old, new = one_per_group(old), one_per_group(new)  # the tests need independent items
    signals = [_compared("margin", np.abs(old.logit), np.abs(new.logit))]
    if old.has_distribution and new.has_distribution:
        signals.append(_compared("distribution", old.distribution, new.distribution))
    report: dict[str, Any] = {"old_items": len(old), "new_items": len(new), "signals": [asdict(s) for s in signals]}
    tests = [s.p_value for s in signals]
    if gate is not None:
        counts = [int(escalations(gate, sample).sum()) for sample in (old, new)]
        p_value = _two_shares(counts[0], len(old), counts[1], len(new))
        report["escalated"] = {
            "old": wilson(counts[0], len(old)).to_dict(),
            "new": wilson(counts[1], len(new)).to_dict(),
            "p_value": p_value,
        }
        tests.append(p_value)
    report["level"] = LEVEL
    report["drifted"] = min(tests) * len(tests) < LEVEL  # Bonferroni's correction for the number of tests
    return report


def kolmogorov_smirnov(first: Floats, second: Floats) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance of two samples and its asymptotic p-value.

    Source: Smirnov (1948); the series in Numerical Recipes, section 14.3, with Stephens' correction for small samples.
    """
    values = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (first, second)]
    distance = float(np.abs(below[0] - below[1]).max())
    size = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (size + 0.12 + 0.11 / size) * distance
    if scaled < 0.2:  # the series converges too slowly, and the probability is 1 to many digits
        return distance, 1.0
    series = sum((-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101))
    return distance, min(1.0, max(0.0, 2 * series))


def _compared(name: str, old: Floats, new: Floats) -> SignalDrift:
    distance, p_value = kolmogorov_smirnov(old, new)
    return SignalDrift(name, distance, p_value, float(np.median(old)), float(np.median(new)))


def _two_shares(first: int, of_first: int, second: int, of_second: int) -> float:
    """Return the two-sided p-value of two shares being equal (pooled normal test)."""
    pooled = (first + second) / (of_first + of_second)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / of_first + 1 / of_second))
    if spread == 0:
        return 1.0
    return math.erfc(abs(first / of_first - second / of_second) / spread / math.sqrt(2))
