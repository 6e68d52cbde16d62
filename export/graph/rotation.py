"""An orthogonal matrix that takes the outliers out of what is quantized and leaves the function as it is.

A row whose largest value is a thousand times its median loses all but that value to int8. Multiplied by an orthogonal
matrix whose entries are all of the same size, the outlier is spread over the whole row, and the row fits into 8 bits: x
W^T = (x R) (W R)^T. Every map of 8 bits has its input spread so, behind the norm or gate that makes it (``fused``), and
its weight, once, on export. QuaRot (arXiv 2404.00456) and SpinQuant (2405.16406) do the same with the residual stream
and save the steps behind the norms, but for that a norm's gains have to go into the weights behind it. Where a model
keeps a channel of enormous values small by its gain, as SmolLM2 does, the rounding of the weights then meets those
values as they are: the error was four times as large (benchmarks/NOTES.md).

The matrix is its own inverse: the Hadamard matrix of a power of two, which takes n log n additions, and for the odd
factor of a width the Hartley matrix, cos + sin of 2 pi i j / n (Bracewell, J. Opt. Soc. Am. 73, 1983).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.export.graph.weights import Floats

LARGEST_FACTOR = 64
"""Largest factor matrix; a size with a larger odd factor is turned in several blocks that do not mix."""


def hartley(size: int) -> Floats:
    """Return the orthogonal Hartley matrix [size, size].

    For a power of two the Hadamard matrix, which is as even as can be.
    """
    matrix: NDArray[np.float64] = np.ones((1, 1))
    if size & (size - 1) == 0:
        while len(matrix) < size:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    else:
        angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
        matrix = np.cos(angle) + np.sin(angle)
    return np.asarray(matrix / np.sqrt(size), dtype=np.float32)


def power_of_two(width: int) -> int:
    """Return the largest power of two that divides ``width``."""
    return width & -width


def factor(width: int) -> Floats:
    """Return the factor matrix of ``width``: of the largest divisor of its odd part up to ``LARGEST_FACTOR``."""
    odd = width // power_of_two(width)
    return hartley(max(n for n in range(1, LARGEST_FACTOR + 1) if odd % n == 0))


def spread(x: Floats) -> Floats:
    """Multiply the last axis of ``x`` [..., width] by the matrix of its width; twice gives ``x`` again.

    The width is blocks * f * p, with the factor matrix [f, f] and p a power of two; the matrix is block-diagonal, each
    block the Kronecker product of the factor matrix and the Hadamard matrix of size p.
    """
    small, width = factor(x.shape[-1]), x.shape[-1]
    size = power_of_two(width)
    mixed = small @ x.reshape(-1, len(small), size)
    # Two small matrices instead of log2(size) passes: for numpy a product is the faster way to add.
    left = 1 << (size.bit_length() // 2)
    turned = hartley(left) @ mixed.reshape(-1, left, size // left) @ hartley(size // left)
    return np.ascontiguousarray(turned.reshape(x.shape), dtype=np.float32)
