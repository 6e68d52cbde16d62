"""Rounding a weight to 8 bits with an eye on what flows through it.

Rounded to the nearest step, the weights of an output err independently, and where inputs have a direction in common
(they do: a mean, a few enormous channels), the errors in that direction add up to a shift of every output. Rounding one
input after the other and carrying each error over to the inputs not yet rounded, as far as the inputs go together,
leaves the errors where the inputs are small (GPTQ, arXiv 2210.17323). It costs nothing at run time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.export.graph.quantize import row_scales
from fsrm_lite.export.graph.weights import Floats

DAMPING = 0.01
"""Share of the mean square that every input is taken to have beside what was seen: GPTQ's own default."""

_BLOCK = 128


def round_weight(weight: Floats, gram: NDArray[np.float64]) -> tuple[NDArray[np.int8], Floats]:
    """Round a weight [out, in] to steps of 1/127 of each output's largest magnitude.

    Args:
        weight: The weight.
        gram: x^T x of its inputs over calibration rows, [in, in]; inputs that never were active may be zero.

    Returns:
        Values [out, in] within +-127 and scales [out], as :func:`fsrm_lite.export.graph.quantize.int8_rows`.
    """
    scales = row_scales(weight)
    upper = _carries(gram)
    left = np.ascontiguousarray((weight / scales[:, None]).T)  # [in, out], in steps
    values = np.empty(left.shape, dtype=np.int8)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]), dtype=np.float32)
        for i in range(start, stop):
            rounded = np.clip(np.rint(left[i]), -127, 127)
            values[i] = rounded
            errors[i - start] = (left[i] - rounded) / upper[i, i]
            left[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], errors[i - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return np.ascontiguousarray(values.T), scales


def _carries(gram: NDArray[np.float64]) -> Floats:
    """What of an input's error goes over to the later ones: the upper Cholesky factor of the inverse of ``gram``."""
    mean = float(np.diagonal(gram).mean())
    damped = gram + np.eye(len(gram)) * (DAMPING * mean if mean > 0 else 1.0)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
