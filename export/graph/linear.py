"""Linear maps as ONNX nodes, each in its own precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsrm_lite.export.graph.quantize import INT4_BLOCK, ZERO, RowReader, quantize_int4, quantize_int8
from fsrm_lite.export.graph.smoothing import Weights
from fsrm_lite.export.graph.writer import MICROSOFT, GraphWriter


@dataclass(frozen=True, slots=True)
class Value:
    """A float32 matrix [rows, width] as ``name * scale``, the scale [rows, 1] left unapplied where it can be folded on."""

    name: str
    scale: str | None = None


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
        if kind == "int8":
            return self.int8(x, self.int8_weight(name, f"{name}.weight"))
        weight_name = f"{name}.weight"
        rows, columns = self.checkpoint.shape(weight_name)
        if kind == "fp32":
            weight = self.graph.weight(weight_name, lambda: self.checkpoint.tensor(weight_name).T)
            return Value(self.graph.add("MatMul", [x.name, weight]), x.scale)
        packed = self.graph.weights([f"{name}.int4", f"{name}.int4.scales"], lambda: quantize_int4(self._reader(weight_name), (rows, columns)))
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

    def int8(self, x: Value, weight: Sequence[str]) -> Value:
        """Add a product with a weight of 8 bits [in, out] and its scales [out]; rows of ``x`` are quantized by their maxima."""
        q = self.quantize(x)
        unit, zero = self.graph.constant(1 / 127, np.float32), self.graph.constant(ZERO, np.uint8)
        inputs = [q.name, weight[0], unit, weight[1], zero, zero]
        return Value(self.graph.add("MatMulIntegerToFloat", inputs, domain=MICROSOFT), q.scale)

    def int8_weight(self, name: str, tensor: str) -> list[str]:
        """Store a tensor [out, in] of the checkpoint as columns of 8 bits and return the names of its values and scales."""
        shape = self.checkpoint.shape(tensor)
        return self.graph.weights([f"{name}.int8", f"{name}.int8.scales"], lambda: quantize_int8(self._reader(tensor), (shape[0], shape[1])))

    def all_int8(self, *names: str) -> bool:
        """Whether all these MatMuls are int8, so that nothing needs their input but as int8."""
        return all(self.precision(name) == "int8" for name in names)

    def adopt(self, quantized: Value) -> Value:
        """Return a value that is known in 8 bits with its row scale alone: an input for int8 maps, see :meth:`all_int8`."""
        value = Value(quantized.name)
        self._quantized[value] = quantized
        return value

    def take(self, x: Value, rows: str) -> Value:
        """Return some rows of ``x``, quantized already where ``x`` is."""
        q = self._quantized.get(x)
        if q is None or q.name != x.name:
            return Value(self.graph.add("Gather", [x.name, rows], axis=0), x.scale and self.graph.add("Gather", [x.scale, rows], axis=0))
        assert q.scale is not None
        return self.adopt(Value(*(self.graph.add("Gather", [part, rows], axis=0) for part in (q.name, q.scale))))

    def _reader(self, tensor: str) -> RowReader:
        return lambda rows: self.checkpoint.tensor(tensor, rows)

    def quantize(self, x: Value) -> Value:
        """Return ``x`` as uint8 around 128 with the scale [rows, 1] that undoes it, up to the constant 1/127."""
        if x not in self._quantized:
            graph = self.graph
            values, largest = quantize_rows(graph, x.name)
            self._quantized[x] = Value(values, largest if x.scale is None else graph.add("Mul", [largest, x.scale]))
        return self._quantized[x]


def quantize_rows(graph: GraphWriter, x: str, floor: float = 1e-30) -> tuple[str, str]:
    """Quantize along the last axis to steps of 1/127 of the largest magnitude; returns (values, largest, at least ``floor``).

    Values are uint8 around ``ZERO``. Two reductions are cheaper than one behind Abs, which writes a copy.
    """
    axis = graph.constant([-1], np.int64)
    top = graph.add("ReduceMax", [x, axis], keepdims=1)
    bottom = graph.add("Neg", [graph.add("ReduceMin", [x, axis], keepdims=1)])
    largest = graph.add("Max", [top, bottom, graph.constant(floor, np.float32)])
    zero = graph.constant(ZERO, np.uint8)
    return graph.add("QuantizeLinear", [graph.add("Div", [x, largest]), graph.constant(1 / 127, np.float32), zero]), largest
