"""Linear maps as ONNX nodes, each in its own precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsrm_lite.export.graph import rotation
from fsrm_lite.export.graph.quantize import INT4_BLOCK, ZERO, RowReader, quantize_int4, quantize_int8
from fsrm_lite.export.graph.rotation import spread as spread_rows
from fsrm_lite.export.graph.weights import Weights
from fsrm_lite.export.graph.writer import MICROSOFT, GraphWriter

TERMS = {"int8": 1, "int8x2": 2}
"""Precisions of 8 bits, and in how many terms of 8 bits they take their input: x = s (q + rest / STEPS)."""

STEPS = 254
"""Steps of the second term in one of the first.

What is left behind rounding is at most half a step, or 127 of these.
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A float32 matrix [rows, width] as ``name * scale``, the scale [rows, 1] left unapplied where it can be folded on.

    Of a quantized one ``name`` is uint8 around ``ZERO`` and ``rest``, where there is one, its second term.
    """

    name: str
    scale: str | None = None
    rest: str | None = None


class Linears:
    """Adds linear maps to a graph, each in its own precision; an input is quantized once for all maps that read it."""

    def __init__(self, graph: GraphWriter, checkpoint: Weights, precision: str, keep: Mapping[str, str]) -> None:
        self.graph = graph
        self.checkpoint = checkpoint
        self._precision = precision
        self._keep = keep
        self.seen: dict[str, str] = {}
        """Values of the last layer added that are worth measuring, by the names of ``smoothing.Activations``."""
        self._quantized: dict[Value, Value] = {}
        """What values are in 8 bits, in as many terms as were asked for so far."""
        self._plain: dict[Value, str] = {}

    def precision(self, name: str) -> str:
        """Return the precision of the MatMul called ``name``."""
        return self._keep.get(name, self._precision)

    def norm_weight(self, name: str) -> str:
        """Return the weight of the norm ``name``."""
        return self.graph.weight(f"{name}.weight", lambda: self.checkpoint.tensor(f"{name}.weight"))

    def plain(self, value: Value) -> str:
        """Return the name of ``value`` with its scale applied."""
        if value.scale is None:
            return value.name
        if value not in self._plain:
            self._plain[value] = self.graph.add("Mul", [value.name, value.scale])
        return self._plain[value]

    def apply(self, name: str, x: Value) -> Value:
        """Add ``x @ weight.T`` for the module ``name`` of the checkpoint, without its bias."""
        kind = self.precision(name)
        if kind in TERMS:
            return self.int8(x, name, f"{name}.weight", TERMS[kind])
        weight_name = f"{name}.weight"
        rows, columns = self.checkpoint.shape(weight_name)
        if kind == "fp32":
            weight = self.graph.weight(weight_name, lambda: self.checkpoint.tensor(weight_name).T)
            return Value(self.graph.add("MatMul", [x.name, weight]), x.scale)
        packed = self.graph.weights(
            [f"{name}.int4", f"{name}.int4.scales"], lambda: quantize_int4(self._reader(weight_name), (rows, columns))
        )
        inputs = [self.plain(x), *packed]
        attributes = {"K": columns, "N": rows, "bits": 4, "block_size": INT4_BLOCK, "accuracy_level": 4}
        return Value(self.graph.add("MatMulNBits", inputs, domain=MICROSOFT, **attributes))

    def biased(self, name: str, x: Value, bias: bool) -> Value:
        """Add the linear map ``name`` with its bias, if it has one."""
        product = self.apply(name, x)
        if not bias:
            return product
        weight = self.graph.weight(f"{name}.bias", lambda: self.checkpoint.tensor(f"{name}.bias"))
        return Value(self.graph.add("Add", [self.plain(product), weight]))

    def int8(self, x: Value, name: str, tensor: str, terms: int = 1) -> Value:
        """Add a product of ``x``, spread and quantized by the maxima of its rows, with a tensor [out, in] in 8 bits.

        The weight is stored as columns under ``int8_names(name)``.
        """
        graph, (rows, width) = self.graph, self.checkpoint.shape(tensor)
        weight = graph.weights(
            int8_names(name),
            lambda: quantize_int8(lambda part: spread_rows(self.checkpoint.tensor(tensor, part)), (rows, width)),
        )
        q = self.quantize(x, width, terms)
        if terms == 1:
            return Value(product(graph, q.name, weight), q.scale)
        assert q.rest is not None
        # One product of twice the rows, whose weight is held once.
        both = product(graph, graph.add("Concat", [q.name, q.rest], axis=0), weight)
        return Value(add_terms(graph, both, axis=0), q.scale)

    def terms(self, *names: str) -> int:
        """In how many terms of 8 bits these MatMuls want their common input; 0 if any of them wants it in float32."""
        kinds = [self.precision(name) for name in names]
        return max(TERMS[kind] for kind in kinds) if all(kind in TERMS for kind in kinds) else 0

    def adopt(self, quantized: Value) -> Value:
        """Return a value that is known in 8 bits with its row scale alone.

        An input for maps of 8 bits, see :meth:`terms`.
        """
        value = Value(quantized.name)
        self._quantized[value] = quantized
        return value

    def take(self, x: Value, rows: str) -> Value:
        """Return some rows of ``x``, quantized already where ``x`` is."""
        q = self._quantized.get(x)
        if q is None or q.name != x.name:
            return Value(
                self.graph.add("Gather", [x.name, rows], axis=0),
                x.scale and self.graph.add("Gather", [x.scale, rows], axis=0),
            )
        name = self.graph.add("Gather", [q.name, rows], axis=0)
        scale, rest = (part and self.graph.add("Gather", [part, rows], axis=0) for part in (q.scale, q.rest))
        return self.adopt(Value(name, scale, rest))

    def _reader(self, tensor: str) -> RowReader:
        return lambda rows: self.checkpoint.tensor(tensor, rows)

    def quantize(self, x: Value, width: int, terms: int = 1) -> Value:
        """Return ``x`` [rows, width], spread, as uint8 around ``ZERO``, with the scale [rows, 1] of 127 steps."""
        if x not in self._quantized or (terms == 2 and self._quantized[x].rest is None):
            graph = self.graph
            values, largest, *rest = quantize_rows(graph, spread(graph, x.name, width), terms)
            self._quantized[x] = Value(
                values, largest if x.scale is None else graph.add("Mul", [largest, x.scale]), *rest
            )
        return self._quantized[x]


def product(graph: GraphWriter, rows: str, weight: Sequence[str]) -> str:
    """Add the product of ``rows``, uint8 [n, in] in steps of 1/127, with a weight's values and scales."""
    unit, zero = graph.constant(1 / 127, np.float32), graph.constant(ZERO, np.uint8)
    return graph.add("MatMulIntegerToFloat", [rows, weight[0], unit, weight[1], zero, zero], domain=MICROSOFT)


def add_terms(graph: GraphWriter, both: str, axis: int) -> str:
    """Add up the products of first and second terms, which lie one behind the other along ``axis``."""
    first, second = graph.add_many("Split", [both], [True, True], axis=axis, num_outputs=2)
    return graph.add("Add", [first, graph.add("Mul", [second, graph.constant(1 / STEPS, np.float32)])])


def int8_names(name: str) -> list[str]:
    """Names of the values and the scales of the weight of the MatMul ``name`` in 8 bits."""
    return [f"{name}.int8", f"{name}.int8.scales"]


def spread(graph: GraphWriter, x: str, width: int, factor: str | None = None) -> str:
    """Add :func:`fsrm_lite.export.graph.rotation.spread` of rows ``x`` [..., width], flattened to [rows, width].

    ``factor`` is the name of the factor matrix, where it has one already.
    """
    size, odd = rotation.power_of_two(width), len(rotation.factor(width))
    left = 1 << (size.bit_length() // 2)
    if odd > 1:
        x = graph.add("MatMul", [factor or factor_weight(graph, width), reshape(graph, x, [-1, odd, size])])
    x = graph.add("MatMul", [reshape(graph, x, [-1, left, size // left]), _hadamard(graph, size // left)])
    return reshape(graph, graph.add("MatMul", [_hadamard(graph, left), x]), [-1, width])


def factor_weight(graph: GraphWriter, width: int) -> str:
    """Return the name of the factor matrix of ``width``, which compiled operators take as an input."""
    return graph.weight(f"rotation.factor.{width}", lambda: rotation.factor(width))


def _hadamard(graph: GraphWriter, size: int) -> str:
    return graph.constant(rotation.hartley(size), np.float32)


def reshape(graph: GraphWriter, x: str, shape: list[int]) -> str:
    """Add a Reshape to a constant shape."""
    return graph.add("Reshape", [x, graph.constant(shape, np.int64)])


def quantize_rows(graph: GraphWriter, x: str, terms: int = 1, floor: float = 1e-30) -> list[str]:
    """Quantize along the last axis to steps of 1/127 of the largest magnitude, in one term or two.

    Returns (values, largest, at least ``floor``) and with two terms the second one; all but ``largest`` are uint8
    around ``ZERO``. Two reductions are cheaper than one behind Abs, which writes a copy.
    """
    axis = graph.constant([-1], np.int64)
    top = graph.add("ReduceMax", [x, axis], keepdims=1)
    bottom = graph.add("Neg", [graph.add("ReduceMin", [x, axis], keepdims=1)])
    largest = graph.add("Max", [top, bottom, graph.constant(floor, np.float32)])
    zero, step = graph.constant(ZERO, np.uint8), graph.constant(1 / 127, np.float32)
    share = graph.add("Div", [x, largest])
    values = graph.add("QuantizeLinear", [share, step, zero])
    if terms == 1:
        return [values, largest]
    rest = graph.add("Sub", [share, graph.add("DequantizeLinear", [values, step, zero])])
    return [values, largest, graph.add("QuantizeLinear", [rest, graph.constant(1 / (127 * STEPS), np.float32), zero])]
