"""What labelled items say about the gate of a served bundle: the four curves that the page draws, and the risk.

The items are those that ``fsrm-lite calibrate --record`` writes: fast readings with labels, and the judge's answers
where it was asked. They must not be the ones that the gate's thresholds were chosen on, or the risk is too small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import DataFormatError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.calibration_report import probability_right
from fsrm_lite.measure.intervals import clopper_pearson_upper
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.labelled_rows import read_labelled
from fsrm_lite.measure.metrics import auroc, front, oracle_front, reliability, risk_coverage, roc
from fsrm_lite.measure.tradeoff import escalations, operate

POINTS = 160
"""Most points of one curve, more than a screen shows."""

CONFIDENCE = 0.95
"""Confidence of the bound on the risk."""

_LEAST_IN_BIN = 5  # bins of fewer items are mostly chance
_LEAST_ACCEPTED = 20  # so are error rates of fewer items


def read_calibration(path: Path, gate: GateSpec) -> dict[str, Any]:
    """Return the curves and the risk of a gate on labelled items, as JSON.

    Args:
        path: Recorded items, as JSON Lines.
        gate: The gate of the bundle.

    Raises:
        DataFormatError: If the file does not hold recorded items.
    """
    items = read_labelled(path).items
    if not items:
        raise DataFormatError(f"{path} holds no recorded items; expected what 'calibrate --record' writes")
    return curves(Sample.of(items), gate)


def curves(sample: Sample, gate: GateSpec) -> dict[str, Any]:
    """Return the curves and the risk of a gate on a sample."""
    accepted = ~escalations(gate, sample)
    errors, count = int((accepted & ~sample.fast_correct).sum()), int(accepted.sum())
    bins = reliability(probability_right(sample, gate.temperature), sample.fast_correct)
    confidences = sample.confidences()
    coverage = {name: risk_coverage(values, sample.fast_correct) for name, values in confidences.items()}
    return {
        "items": len(sample),
        "risk": clopper_pearson_upper(errors, count, 1 - CONFIDENCE) if count else None,
        "confidence": CONFIDENCE,
        "accepted": count,
        "errors": errors,
        "reliability": [[claimed, right] for claimed, right, size in bins if size >= _LEAST_IN_BIN],
        "roc": {
            name: {"area": auroc(values, sample.fast_correct), "points": _thin(*roc(values, sample.fast_correct))}
            for name, values in confidences.items()
        },
        "risk_coverage": {
            name: {
                "area": curve.aurc,
                "points": _thin(curve.coverage[_LEAST_ACCEPTED:], curve.selective_risk[_LEAST_ACCEPTED:]),
            }
            for name, curve in coverage.items()
        },
        "gate": [count / len(sample), errors / count if count else 0.0],
        "cost": _cost(sample, gate),
    }


def _cost(sample: Sample, gate: GateSpec) -> dict[str, Any] | None:
    """Return accuracy against tokens; None if the judge was not asked about every item."""
    if sample.slow_correct is None or sample.slow_tokens is None:
        return None
    outcomes = (sample.fast_correct, sample.slow_correct, sample.slow_tokens)
    best, point = oracle_front(*outcomes), operate(gate, sample)
    by_name = {name: front(values, *outcomes) for name, values in sample.confidences().items()}
    return {
        "oracle": _thin(best.tokens, best.accuracy),
        "curves": {name: _thin(curve.tokens, curve.accuracy) for name, curve in by_name.items()},
        "fast": [0.0, float(sample.fast_correct.mean())],
        "slow": [float(sample.slow_tokens.mean()), float(sample.slow_correct.mean())],
        "gate": [point.tokens, point.accuracy],
    }


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[list[float]]:
    """Return a curve as [x, y] points, no more of them than can be seen."""
    kept: list[int] = []
    if len(x):
        kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int)).tolist()
    return [[round(float(x[i]), 5), round(float(y[i]), 5)] for i in kept]
