"""Orthogonal transformations that leave the function as it is and take the outliers out of what is quantized.

A row whose largest value is a thousand times its median loses all but that value to int8. Multiplied by an orthogonal
matrix whose entries are all of the same size, the outlier is spread over the whole row and the row fits into 8 bits. The
matrix goes into the weights on both sides of the row, so that nothing else changes (QuaRot, arXiv 2404.00456; SpinQuant,
2405.16406). Where it stands:

    the residual stream        in the embedding, in every map that reads or writes the stream, and in the head; free
    the values of a head       in v_proj and o_proj; free, since attention mixes tokens and not channels
    the heads of o_proj's input, down_proj's input, queries and keys
                               computed where they are quantized, see ``fused``, and in the columns of the map behind

Both matrices used are symmetric and their own inverse: the Hadamard matrix of a power of two, which takes n log n additions,
and for the odd factor of a size the Hartley matrix, cos + sin of 2 pi i j / n (Bracewell, J. Opt. Soc. Am. 73, 1983).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, HEAD, Architecture
from fsrm_lite.export.graph.weights import Floats, Weights

LARGEST_FACTOR = 64
"""Largest factor matrix; a size with a larger odd factor is turned in several blocks that do not mix."""

_SEED = 20404_00456


def hartley(size: int) -> Floats:
    """Return the orthogonal Hartley matrix [size, size]; for a power of two the Hadamard matrix, which is as even as can be."""
    if size & (size - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < size:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return (matrix / np.sqrt(size)).astype(np.float32)
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    return ((np.cos(angle) + np.sin(angle)) / np.sqrt(size)).astype(np.float32)


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
    parts = x.reshape(-1, len(small), size)
    if len(small) > 1:
        parts = np.einsum("ij,bjk->bik", small, parts, optimize=True)
    # Two small matrices instead of log2(size) passes: for numpy a product is the faster way to add.
    left = 1 << (size.bit_length() // 2)
    parts = parts.reshape(-1, left, size // left)
    parts = hartley(left) @ parts @ hartley(size // left)
    return np.ascontiguousarray(parts.reshape(x.shape), dtype=np.float32)


def mix_heads(x: Floats, heads: int) -> Floats:
    """Multiply the heads of ``x`` [..., heads * d], not the channels within them, by the matrix of their number."""
    parts = x.reshape(-1, heads, x.shape[-1] // heads)
    return np.ascontiguousarray((hartley(heads) @ parts).reshape(x.shape), dtype=np.float32)


class RotatedCheckpoint:
    """A checkpoint whose residual stream and values come rotated, the gains of its norms folded into the maps behind them.

    The same function in fp32, with the hidden states behind the last norm rotated and without that norm's gain. A tied
    head is stored apart, since gains belong to the head alone.
    """

    def __init__(self, checkpoint: Weights) -> None:
        self.arch: Architecture = replace(checkpoint.arch, tied=False)
        self._checkpoint = checkpoint
        signs = np.random.default_rng(_SEED).integers(0, 2, self.arch.hidden_size)
        self._signs = (2 * signs - 1).astype(np.float32)
        self._last: tuple[str, Floats] | None = None

    @property
    def head_name(self) -> str:
        """Name of the tensor that maps hidden states to logits."""
        return HEAD

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._checkpoint.shape(self._source(name))

    def tensor(self, name: str, rows: slice | None = None) -> Floats:
        """Read a tensor, or some of its rows, rotated."""
        module = name.removesuffix(".weight").removesuffix(".bias")
        kind = module.rpartition(".")[2]
        if kind in _NORMS or module == "model.norm":
            return np.ones(self.shape(name), dtype=np.float32)[rows or slice(None)]
        if kind in _WRITERS or kind == "v_proj":  # their rows are mixed: all are needed for each
            if self._last is None or self._last[0] != name:
                self._last = (name, self._whole(name, module, kind))
            return self._last[1][rows or slice(None)]
        values = self._checkpoint.tensor(self._source(name), rows)
        if name == EMBEDDING:
            return self._turn(values)
        return self._read_stream(name, module, values) if values.ndim == 2 else values

    def _source(self, name: str) -> str:
        return self._checkpoint.head_name if name == HEAD else name

    def _turn(self, x: Floats) -> Floats:
        """Rotate rows [..., hidden_size] of the residual stream."""
        return spread(x * self._signs)

    def _read_stream(self, name: str, module: str, weight: Floats) -> Floats:
        """The columns of a map that reads the stream behind a norm; other maps as they are."""
        norm = _norm_before(name, module)
        return weight if norm is None else self._turn(weight * self._checkpoint.tensor(norm))

    def _whole(self, name: str, module: str, kind: str) -> Floats:
        arch, values = self.arch, self._checkpoint.tensor(name)
        if kind == "v_proj":
            if values.ndim == 2:
                values = self._read_stream(name, module, values)
            heads = values.reshape(arch.kv_heads, arch.head_dim, -1)
            return _columns(heads).reshape(values.shape)
        if kind == "o_proj" and values.ndim == 2:
            values = spread(values.reshape(-1, arch.head_dim)).reshape(values.shape)
        return self._turn(values.T).T if values.ndim == 2 else self._turn(values)


_NORMS = ("input_layernorm", "post_attention_layernorm")
_WRITERS = ("o_proj", "down_proj")
_ATTENTION_MAPS, _MLP_MAPS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


def _norm_before(name: str, module: str) -> str | None:
    """Name of the norm's weight that a map reads through, if it does."""
    kind = module.rpartition(".")[2]
    layer = module.rsplit(".", 2)[0]
    if name == HEAD:
        return "model.norm.weight"
    if kind in _ATTENTION_MAPS:
        return f"{layer}.input_layernorm.weight"
    return f"{layer}.post_attention_layernorm.weight" if kind in _MLP_MAPS else None


def _columns(x: Floats) -> Floats:
    """Spread the middle axis of ``x`` [a, b, c]."""
    return spread(x.swapaxes(1, 2)).swapaxes(1, 2)
