"""Chooses thresholds with a guarantee: the error rate of fast decisions stays below a target, with a given confidence.

The method is Learn-then-Test: propose thresholds on one part of the labelled items, then test them on the other part.

1. On the tuning part a path is laid: a sequence of steps from strict to loose thresholds, with one threshold for each
   of the gate's confidences. A strict step accepts few items (lets the fast path decide them), the last step accepts
   all. The tuning part also says at which step to start and, if there is a choice, on which path.
2. On the testing part, which was not looked at before, the walk begins at that step and goes on to looser ones. Each
   step must pass a test: from the errors among the accepted items, an exact binomial test must prove that their true
   error rate is at most the target. The walk ends at the first step that fails; the last one that passed is chosen.

The test is wrong with probability at most delta, which is 1 minus the confidence. The choice is wrong only if the walk
passed a step whose true error rate is above the target. Then it passed the first such step on its way, and that happens
with probability at most delta. So no correction for the number of steps is needed.

It is assumed that the items to come are drawn like those of the testing part, independently (they are exchangeable).

Source: Angelopoulos et al., "Learn then Test" (arXiv 2110.01052); Jung et al., "Trust or Escalate" (arXiv 2407.18370).
Where the first step fails, the answer here is "always escalate". The released code of the latter returns its strictest
threshold then, for which nothing has been proved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import CalibrationError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.intervals import clopper_pearson_upper, critical_errors
from fsrm_lite.measure.labelled import CONFIDENCE_NAMES, Sample
from fsrm_lite.measure.metrics import risk_coverage

PATH_NAMES = CONFIDENCE_NAMES
ALWAYS = GateSpec(1.0, 1.0, "any", always=True)
"""Escalates everything: what is returned when nothing could be proved."""

NEVER = GateSpec(0.0, 0.0)
"""Escalates nothing."""

TUNING_SHARE = 0.2
"""Share of the items in the tuning part. It is small, because more items in the testing part prove more."""

PATH_STEPS = 100
"""Steps on a path. Between two of them lies one per cent of the tuning part."""

_EQUAL_DIGITS = 14
"""Digits behind the point to which two confidences are equal: one may have been rounded in other places."""

_RESAMPLES, _SURE = 100, 0.9
"""Resamples of the tuning part, and the share of them in which another confidence must beat the intuition.

Measured on the synthetic populations of ``benchmarks.guarantee`` (200 calibration sets of 1,000 items each; calibrated,
overconfident, bumpy): by the smallest AURC alone the coverage is 0.86, 0.31 and 0.71 of the oracle's, with this rule it
is 0.87, 0.34 and 0.79. Where the word distribution does tell more, hardly anything is lost (0.60 against 0.61).
"""


@dataclass(frozen=True)
class Path:
    """A sequence of k steps from strict to loose thresholds; the last one accepts everything.

    Attributes:
        name: "intuition" and "distribution" move only that threshold; "joint" moves both, from quantile to quantile.
        intuition: Intuition threshold of each step, float64, shape [k], in [0, 1], never rising.
        distribution: Word-distribution threshold of each step, float64, shape [k], in [0, 1], never rising.
    """

    name: str
    intuition: NDArray[np.float64]
    distribution: NDArray[np.float64]

    def counts(self, sample: Sample, temperature: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many items each step accepts, and how many of those are wrong; each int64, shape [k]."""
        # ``first`` is the first step whose two thresholds an item reaches; it is accepted from there on. A confidence
        # that an item does not have is never too low.
        distribution = np.where(np.isnan(sample.distribution), np.inf, sample.distribution)
        first = np.maximum(
            np.searchsorted(-self.intuition, -sample.intuition(temperature), side="left"),
            np.searchsorted(-self.distribution, -distribution, side="left"),
        )
        size = len(self.intuition) + 1
        accepted = np.cumsum(np.bincount(first, minlength=size))[:-1]
        return accepted, np.cumsum(np.bincount(first[~sample.fast_correct], minlength=size))[:-1]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a path and its test.

    Attributes:
        intuition_threshold: In [0, 1].
        distribution_threshold: In [0, 1].
        accepted: Items of the testing part that the fast path decides alone.
        errors: How many of them it decides wrongly.
        upper_bound: Upper bound of their true error rate (Clopper-Pearson), which is too low with probability at most
            delta.
        passed: Whether the bound is at most the target.
    """

    intuition_threshold: float
    distribution_threshold: float
    accepted: int
    errors: int
    upper_bound: float
    passed: bool


@dataclass(frozen=True, slots=True)
class RiskControl:
    """The chosen thresholds, and what was proved about them.

    Attributes:
        gate: The loosest thresholds that passed, or a gate that always escalates when nothing could be proved.
        path: Name of their path; None when nothing could be proved.
        proved: Whether any step passed.
        risk: The target: the error rate that must not be exceeded.
        confidence: Probability with which it is not exceeded.
        delta: Allowed probability of failure per path: 1 - confidence, divided by the number of paths walked.
        tested: Number of items in the testing part.
        step: The chosen step; the one that failed first when nothing could be proved.
    """

    gate: GateSpec
    path: str | None
    proved: bool
    risk: float
    confidence: float
    delta: float
    tested: int
    step: Step


@dataclass(frozen=True, slots=True)
class Feasibility:
    """What a target demands, whatever the thresholds.

    Attributes:
        base_risk: Error rate of the fast path when it decides everything.
        least_escalation: Share of items that must be escalated at least, even by a perfect confidence.
        least_items: Accepted items that a proof needs at least, if none of them is wrong.
    """

    base_risk: float
    least_escalation: float
    least_items: int


def feasibility(sample: Sample, risk: float, delta: float) -> Feasibility:
    """Return what share of items must be escalated at least, and how many items a proof needs.

    Let mu be the error rate of the fast path on all items. If a share e is escalated, and all of it would have been
    wrong, the error rate of the rest is (mu - e)/(1 - e). For that to be at most ``risk``, e must be at least
    (mu - risk)/(1 - risk).

    Args:
        sample: The items.
        risk: The target error rate, in (0, 1).
        delta: Allowed probability of failure, in (0, 1).
    """
    base = 1.0 - float(np.mean(sample.fast_correct))
    return Feasibility(base, max(0.0, (base - risk) / (1 - risk)), least_items(risk, delta))


def least_items(risk: float, delta: float) -> int:
    """Return how many accepted items a proof needs at least, if none of them is wrong."""
    return math.ceil(math.log(delta) / math.log1p(-risk))


def make_path(name: str, tuning: Sample, temperature: float, steps: int = PATH_STEPS) -> Path:
    """Return a path along the quantiles of the tuning part's confidences; no threshold is one of their values.

    Args:
        name: One of ``PATH_NAMES``.
        tuning: Items that may be looked at freely.
        temperature: Of the intuition confidence, > 0.
        steps: Number of steps.

    Raises:
        CalibrationError: If the name is unknown.
    """
    if name not in PATH_NAMES:
        raise CalibrationError(f"path {name!r} is unknown, expected one of {', '.join(PATH_NAMES)}")
    ranks = np.arange(steps - 1, 0, -1) / steps
    fixed = np.zeros(steps)
    return Path(
        name,
        fixed if name == "distribution" else np.append(_between(tuning.intuition(temperature), ranks), 0.0),
        fixed if name == "intuition" else np.append(_between(tuning.distribution, ranks), 0.0),
    )


def _between(values: NDArray[np.float64], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quantiles of values; for one that is a value itself, the middle between it and the next lower one.

    Where scores come in steps, as ratings do, many quantiles are values. A threshold there would leave it to the
    rounding of the last bit on which side the items with that value are; the gate and the proof could then disagree.

    Args:
        values: Confidences, float64, shape [n], in [0, 1].
        ranks: Float64, shape [k], in (0, 1).

    Returns:
        Float64, shape [k], in [0, 1].
    """
    different = np.unique(np.round(values, _EQUAL_DIGITS))
    quantiles = np.quantile(values, ranks)
    rounded = np.round(quantiles, _EQUAL_DIGITS)
    at = np.searchsorted(different, rounded)
    below = np.where(at > 0, different[np.maximum(at - 1, 0)], 0.0)
    return np.where(different[at] == rounded, (below + different[at]) / 2.0, quantiles)


def control_risk(
    tuning: Sample,
    testing: Sample,
    *,
    risk: float,
    confidence: float,
    temperature: float = 1.0,
    paths: Sequence[str] | None = None,
) -> RiskControl:
    """Choose the loosest thresholds whose error rate is proved to be at most ``risk``.

    Args:
        tuning: Items that may be looked at freely; none of them may be in ``testing``.
        testing: Items that are only used for the tests. They must be independent: one per prompt.
        risk: Target error rate among the items that the fast path decides alone, in (0, 1).
        confidence: Probability with which the target holds, over the random choice of ``testing``; in (0, 1).
        temperature: Of the intuition confidence; must not be fitted on ``testing``.
        paths: Names of paths. All of them are walked, each with an equal part of delta, and the one that accepts most
            is kept. None walks one path with the whole delta: that of the intuition, unless another one has clearly the
            smaller AURC (see ``fsrm_lite.measure.metrics.RiskCoverage``) on the tuning part.

    Returns:
        The thresholds, or a gate that always escalates, and what was proved.

    Raises:
        CalibrationError: If a part is empty or an argument is out of range.
    """
    if not 0 < risk < 1 or not 0 < confidence < 1:
        raise CalibrationError(
            f"risk is {risk!r} and confidence {confidence!r}, expected both strictly between 0 and 1"
        )
    if not len(tuning) or not len(testing):
        raise CalibrationError(
            f"{len(tuning)} items for tuning and {len(testing)} for testing, expected at least one of each"
        )
    names = (_sharpest(tuning),) if paths is None else tuple(paths)
    unknown = [name for name in names if name in PATH_NAMES and name not in tuning.confidences()]
    if unknown:
        raise CalibrationError(
            f"the path {unknown[0]} needs word-distribution confidences, which the items do not have"
        )
    laid = [make_path(name, tuning, temperature) for name in names]
    delta = (1.0 - confidence) / len(laid)
    walks = [(path, *_walk(path, tuning, testing, temperature, risk, delta)) for path in laid]
    path, index, proved = max(walks, key=lambda w: (w[2], int(w[0].counts(testing, temperature)[0][w[1]])))
    step = _step(path, index, testing, temperature, delta, risk)
    gate = GateSpec(step.intuition_threshold, step.distribution_threshold, "any", temperature) if proved else ALWAYS
    return RiskControl(gate, path.name if proved else None, proved, risk, confidence, delta, len(testing), step)


def _walk(
    path: Path, tuning: Sample, testing: Sample, temperature: float, risk: float, delta: float
) -> tuple[int, bool]:
    """Return the last step that passed and True, or, if none did, the step where the walk began and False."""
    start = _start(path, tuning, temperature, risk)
    accepted, errors = path.counts(testing, temperature)
    passed = errors <= _critical(len(testing), risk, delta)[accepted]
    failures = np.flatnonzero(~passed[start:])
    walked = len(passed) - start if not len(failures) else int(failures[0])
    return (start + walked - 1, True) if walked else (start, False)


def _start(path: Path, tuning: Sample, temperature: float, risk: float) -> int:
    """Return the step to begin at: the one likeliest to pass its test, going by the tuning part.

    That is the step whose errors lie furthest, in standard deviations, below the number that the target allows.
    """
    accepted, errors = path.counts(tuning, temperature)
    return int(np.argmax((risk * accepted - errors) / np.sqrt(np.maximum(accepted, 1) * risk * (1 - risk))))


def _sharpest(tuning: Sample) -> str:
    """Return the name of the path whose confidence tells right from wrong best (smallest AURC) on the tuning part.

    The tuning part is small, and which of three AURCs is the smallest there is often luck. So another confidence takes
    the place of the intuition only if it beats it in most resamples of the tuning part, too.
    """
    confidences, right = tuning.confidences(), tuning.fast_correct
    best = min(confidences, key=lambda name: risk_coverage(confidences[name], right).aurc)
    if best == "intuition":
        return best
    rng = np.random.default_rng(0)
    wins = 0
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(right), len(right))
        aurc = [risk_coverage(confidences[name][drawn], right[drawn]).aurc for name in (best, "intuition")]
        wins += aurc[0] < aurc[1]
    return best if wins >= _SURE * _RESAMPLES else "intuition"


def _step(path: Path, index: int, testing: Sample, temperature: float, delta: float, risk: float) -> Step:
    accepted, errors = (int(x[index]) for x in path.counts(testing, temperature))
    bound = clopper_pearson_upper(errors, accepted, delta)
    return Step(float(path.intuition[index]), float(path.distribution[index]), accepted, errors, bound, bound <= risk)


@lru_cache(maxsize=8)
def _critical(items: int, risk: float, delta: float) -> NDArray[np.int64]:
    return critical_errors(items, risk, delta)
