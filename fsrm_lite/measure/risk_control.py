"""Thresholds with a guarantee: Learn-then-Test by fixed-sequence testing along a path of thresholds.

A path is a sequence of threshold pairs from strict to loose. It is laid down, and its starting point and (where one of
several is to be chosen) the path itself are picked, on a *tuning* part of the labelled items. On the other, untouched
*testing* part the walk starts at the starting point and loosens as long as the exact binomial test proves the error
rate of the accepted items to be at most the target. The first threshold whose true error rate exceeds the target is
passed with probability at most delta, whatever comes after it, so no correction for the number of thresholds is needed.

Assumed: the items of the testing part and those to come are exchangeable (drawn alike, independently).

Source: Angelopoulos et al., "Learn then Test" (arXiv 2110.01052); Jung et al., "Trust or Escalate" (arXiv 2407.18370). Where
the walk fails at once, the answer here is "always escalate"; the released code of the latter returns its strictest
threshold, for which nothing has been proved.
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
"""What is returned when nothing could be proved."""

NEVER = GateSpec(0.0, 0.0)
"""Never escalates."""

TUNING_SHARE = 0.2
"""Share of the items that lays the path; the rest tests it. More testing items prove more."""

PATH_STEPS = 100
"""Thresholds on a path: one per cent of the tuning part between two of them."""


@dataclass(frozen=True)
class Path:
    """Threshold pairs from strict to loose; the last one accepts everything.

    Attributes:
        name: "intuition" and "distribution" move one threshold, "joint" both at the same rank.
        intuition: Non-increasing, shape [k], in [0, 1].
        distribution: Non-increasing, shape [k], in [0, 1].
    """

    name: str
    intuition: NDArray[np.float64]
    distribution: NDArray[np.float64]

    def counts(self, sample: Sample, temperature: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many items each step accepts, and how many of those are wrong, each of shape [k]."""
        # An item is accepted from the first step on whose two thresholds it reaches.
        first = np.maximum(
            np.searchsorted(-self.intuition, -sample.intuition(temperature), side="left"),
            np.searchsorted(-self.distribution, -sample.distribution, side="left"),
        )
        size = len(self.intuition) + 1
        accepted = np.cumsum(np.bincount(first, minlength=size))[:-1]
        return accepted, np.cumsum(np.bincount(first[~sample.fast_correct], minlength=size))[:-1]


@dataclass(frozen=True, slots=True)
class Step:
    """One test of the walk.

    Attributes:
        intuition_threshold: In [0, 1].
        distribution_threshold: In [0, 1].
        accepted: Items of the testing part that the fast path decides alone.
        errors: Wrong ones among them.
        upper_bound: Clopper-Pearson bound of their error rate at the level of the test.
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
    """What the walk proved.

    Attributes:
        gate: The loosest proved thresholds, or ``always=True`` when nothing could be proved.
        path: Name of the path they lie on; None when nothing could be proved.
        proved: Whether a threshold passed.
        risk: The target.
        confidence: Probability with which the target holds.
        delta: Level of each walk: 1 - confidence, split over the paths that were walked.
        tested: Number of items in the testing part.
        step: The chosen step, or the first failed one when nothing could be proved.
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
    """What can be said before any threshold is tried.

    Attributes:
        base_risk: Error rate of the fast path when it decides everything.
        least_escalation: Share that must escalate at least, even with a perfect confidence.
        least_items: Error-free accepted items that the test needs at the very least.
    """

    base_risk: float
    least_escalation: float
    least_items: int


def feasibility(sample: Sample, risk: float, delta: float) -> Feasibility:
    """Say what share must escalate at least, and how many items a proof takes.

    If a share e escalates and all of it would have been wrong, the rest errs at (mu - e)/(1 - e): so e must be at
    least (mu - risk)/(1 - risk).
    """
    base = 1.0 - float(np.mean(sample.fast_correct))
    items = math.ceil(math.log(delta) / math.log1p(-risk))
    return Feasibility(base, max(0.0, (base - risk) / (1 - risk)), items)


def make_path(name: str, tuning: Sample, temperature: float, steps: int = PATH_STEPS) -> Path:
    """Lay a path through the quantiles of the tuning part's confidences.

    Raises:
        CalibrationError: If the name is unknown.
    """
    if name not in PATH_NAMES:
        raise CalibrationError(f"path {name!r} is unknown, expected one of {', '.join(PATH_NAMES)}")
    ranks = np.arange(steps - 1, 0, -1) / steps
    moving = [np.append(np.quantile(c, ranks), 0.0) for c in (tuning.intuition(temperature), tuning.distribution)]
    fixed = np.zeros(steps)
    return Path(name, fixed if name == "distribution" else moving[0], fixed if name == "intuition" else moving[1])


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
        testing: Items that are only used for the tests.
        risk: Target error rate among the items that the fast path decides alone, in (0, 1).
        confidence: Probability, over the draw of ``testing``, with which the target holds, in (0, 1).
        temperature: Of the intuition confidence; must not stem from ``testing``.
        paths: Walk all of these, delta split evenly, and keep the one that accepts most. None walks the single path
            with the smallest AURC on the tuning part, at full delta.

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
    """Return the last step that passed and True, or the starting step and False."""
    start = _start(path, tuning, temperature, risk)
    accepted, errors = path.counts(testing, temperature)
    passed = errors <= _critical(len(testing), risk, delta)[accepted]
    failures = np.flatnonzero(~passed[start:])
    walked = len(passed) - start if not len(failures) else int(failures[0])
    return (start + walked - 1, True) if walked else (start, False)


def _start(path: Path, tuning: Sample, temperature: float, risk: float) -> int:
    """The step with the strongest evidence on the tuning part: there the walk is likeliest to begin well.

    Evidence is by how many standard deviations the errors stay below what the target allows.
    """
    accepted, errors = path.counts(tuning, temperature)
    return int(np.argmax((risk * accepted - errors) / np.sqrt(np.maximum(accepted, 1) * risk * (1 - risk))))


def _sharpest(tuning: Sample) -> str:
    """The path whose confidence sorts the tuning part's errors out best."""
    return min(tuning.confidences().items(), key=lambda named: risk_coverage(named[1], tuning.fast_correct).aurc)[0]


def _step(path: Path, index: int, testing: Sample, temperature: float, delta: float, risk: float) -> Step:
    accepted, errors = (int(x[index]) for x in path.counts(testing, temperature))
    bound = clopper_pearson_upper(errors, accepted, delta)
    return Step(float(path.intuition[index]), float(path.distribution[index]), accepted, errors, bound, bound <= risk)


@lru_cache(maxsize=8)
def _critical(items: int, risk: float, delta: float) -> NDArray[np.int64]:
    return critical_errors(items, risk, delta)
