"""How many labelled items a guarantee needs: a power calculation, made before or after labelling.

To prove an error rate of at most ``risk`` among the accepted items, their true error rate must lie below it, and the
closer it lies, the more items the proof needs. Three things are asked for: the target, how much is to be decided fast
(the coverage), and how likely the proof shall succeed (the power).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fsrm_lite.errors import CalibrationError
from fsrm_lite.measure.intervals import clopper_pearson_upper, log_binomial_cdf
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.risk_control import TUNING_SHARE

POWER = 0.9
"""Probability with which the proof shall succeed."""

COVERAGES = (0.25, 0.5, 0.75, 1.0)
"""Shares decided fast for which a plan is made if none is asked for."""

MOST_ITEMS = 10_000_000
"""Where more would be needed, the answer is that no number of items will do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one coverage would need.

    Attributes:
        coverage: Share of items decided fast, in (0, 1].
        selective_risk: Error rate among them, as the items at hand have it.
        upper_bound: Upper bound of it, which is too low with probability at most 0.1: what to plan with if in doubt.
        items: Labelled items of different prompts needed in all, tuning part included; None where the error rate is not
            below the target.
        items_if_worse: The same, if the error rate is in truth the upper bound.
    """

    coverage: float
    selective_risk: float
    upper_bound: float
    items: int | None
    items_if_worse: int | None


def items_needed(
    risk: float,
    confidence: float,
    coverage: float,
    selective_risk: float,
    *,
    power: float = POWER,
    tuning_share: float = TUNING_SHARE,
) -> int | None:
    """Return how many labelled items prove a risk with the given power, if the thresholds accept ``coverage``.

    The test is that of ``fsrm_lite.measure.risk_control``, an exact binomial one, made at these thresholds alone. A
    walk that has to pass other steps before needs somewhat more.

    Args:
        risk: Error rate to be proved, in (0, 1).
        confidence: With which probability, in (0, 1).
        coverage: Share of items that are accepted, in (0, 1].
        selective_risk: Their true error rate, in [0, 1].
        power: Probability with which the proof shall succeed, in (0, 1).
        tuning_share: Share of the items that is needed for tuning.

    Returns:
        The number, to about one per cent; None if no number will do, because the error rate is not below the target.

    Raises:
        CalibrationError: If an argument is out of range.
    """
    if not (0 < risk < 1 and 0 < confidence < 1 and 0 < coverage <= 1 and 0 <= selective_risk <= 1 and 0 < power < 1):
        raise CalibrationError(
            f"risk {risk!r}, confidence {confidence!r}, coverage {coverage!r}, power {power!r}: "
            "expected numbers between 0 and 1"
        )
    if selective_risk >= risk:
        return None

    def succeeds(accepted: int) -> bool:
        allowed = _allowed_errors(accepted, risk, 1 - confidence)
        return allowed >= 0 and log_binomial_cdf(allowed, accepted, selective_risk) >= math.log(power)

    low = high = max(1, math.ceil(math.log(1 - confidence) / math.log1p(-risk)))
    while not succeeds(high):
        low, high = high, 2 * high
        if high > MOST_ITEMS:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if succeeds(middle) else (middle, high)
    return math.ceil(high / coverage / (1 - tuning_share))


def plan(
    sample: Sample, risk: float, confidence: float, coverages: tuple[float, ...] = COVERAGES, power: float = POWER
) -> list[Plan]:
    """Return what each coverage would need, going by items at hand: labelled ones, however few.

    Args:
        sample: The items, one of each prompt, as a proof takes them. The surest by their intuition confidence are taken
            to be accepted.
        risk: Error rate to be proved.
        confidence: With which probability.
        coverages: Shares of items to be decided fast.
        power: Probability with which the proof shall succeed.

    Raises:
        CalibrationError: If an argument is out of range.
    """
    wrong = ~sample.fast_correct[np.argsort(-np.abs(sample.logit), kind="stable")]
    plans = []
    for coverage in coverages:
        if not 0 < coverage <= 1:
            raise CalibrationError(f"the coverage is {coverage!r}, expected a number above 0 and at most 1")
        accepted = max(1, round(coverage * len(sample)))
        errors = int(wrong[:accepted].sum())
        rate, bound = errors / accepted, clopper_pearson_upper(errors, accepted, 0.1)
        needed = [items_needed(risk, confidence, coverage, r, power=power) for r in (rate, bound)]
        plans.append(Plan(coverage, rate, bound, *needed))
    return plans


def _allowed_errors(accepted: int, risk: float, delta: float) -> int:
    """Return with how many errors the test still passes; -1 if with none."""
    low, high = -1, accepted  # passes with ``low`` errors, fails with ``high``
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log_binomial_cdf(middle, accepted, risk) <= math.log(delta) else (low, middle)
    return low
