"""Weight quantization in numpy: 8 bits per output column, int4 per block; what ONNX Runtime's CPU kernels read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ZERO = 128
"""Where uint8 values have their zero: they hold int8 values shifted up by this.

Every product is one of uint8 by uint8. ONNX Runtime's product of uint8 by int8 adds pairs in 16 bits on x86 processors
without VNNI and AMX, and saturates there without a word; its product of uint8 by uint8 is exact on all of them and,
where there is VNNI or AMX, the same kernel as the other.
"""

INT4_BLOCK = 32
"""Weights that share one int4 scale: the smallest block MatMulNBits knows on CPU, and the truest."""

_CHUNK_VALUES = 1 << 24

RowReader = Callable[[slice], NDArray[np.float32]]
"""Returns some consecutive rows [n, in] of a weight matrix [out, in]."""


def _row_chunks(shape: tuple[int, int]) -> list[slice]:
    step = max(1, _CHUNK_VALUES // shape[1])
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def int8_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize each row of ``rows`` [n, in] symmetrically to +-127; returns values [n, in] and scales [n]."""
    scales = row_scales(rows)
    return np.rint(rows / scales[:, None]).astype(np.int8), scales


def row_scales(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1/127 of the largest magnitude of each row of ``rows`` [n, in].

    1 for a row of zeros, so that nothing divides by it.
    """
    scales = np.abs(rows).max(axis=1) / np.float32(127.0)
    return np.where(scales > 0, scales, np.float32(1.0)).astype(np.float32)


def shifted(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return int8 values as uint8 around ``ZERO``."""
    return values.view(np.uint8) ^ np.uint8(ZERO)


def quantize_table(read: RowReader, shape: tuple[int, int]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """As :func:`int8_rows` for a whole table [rows, width], read a few rows at a time."""
    values = np.empty(shape, dtype=np.int8)
    scales = np.empty(shape[0], dtype=np.float32)
    for rows in _row_chunks(shape):
        values[rows], scales[rows] = int8_rows(read(rows))
    return values, scales


def quantize_int8(read: RowReader, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize a weight [out, in], read a few rows at a time, with one scale per output, for ``MatMulIntegerToFloat``.

    Args:
        read: Gives rows of the weight.
        shape: (out, in).

    Returns:
        Values, uint8 [in, out], and scales, float32 [out]; the weight is ``(values - ZERO) * scales``, transposed.
    """
    values = np.empty((shape[1], shape[0]), dtype=np.uint8)
    scales = np.empty(shape[0], dtype=np.float32)
    for rows in _row_chunks(shape):
        chunk, scales[rows] = int8_rows(read(rows))
        values[:, rows] = shifted(chunk).T
    return values, scales


def quantize_int4(read: RowReader, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize a weight [out, in] to int4, one scale per ``INT4_BLOCK`` inputs, for ``MatMulNBits`` with zero point 8.

    The last block is padded with zeros.

    Returns:
        Values, uint8 [out, blocks, INT4_BLOCK / 2], two weights a byte, the earlier one in the low half; and scales,
        float32 [out * blocks].
    """
    blocks = -(-shape[1] // INT4_BLOCK)
    values = np.empty((shape[0], blocks, INT4_BLOCK // 2), dtype=np.uint8)
    scales = np.empty((shape[0], blocks), dtype=np.float32)
    for rows in _row_chunks(shape):
        chunk = read(rows)
        padded = np.zeros((len(chunk), blocks * INT4_BLOCK), dtype=np.float32)
        padded[:, : shape[1]] = chunk
        parts = padded.reshape(len(chunk), blocks, INT4_BLOCK)
        # The value of largest magnitude maps to -8, the end of the range that +7 does not reach.
        extreme = np.take_along_axis(parts, np.abs(parts).argmax(axis=2)[..., None], axis=2)[..., 0]
        scale = np.where(extreme != 0, extreme / np.float32(-8.0), np.float32(1.0)).astype(np.float32)
        codes = np.clip(np.rint(parts / scale[..., None]) + 8, 0, 15).astype(np.uint8)
        values[rows] = codes[..., 0::2] | (codes[..., 1::2] << 4)
        scales[rows] = scale
    return values, scales.reshape(-1)
