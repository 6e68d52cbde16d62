"""Attention over the past and the new tokens as ONNX nodes: in fp32, or with int8 products.

fp32 is the ``Attention`` operator. Its two products are the largest cost beside the int8 linear maps, and they are not
weights that could be quantized once, so ``int8_attention`` quantizes what flows through them, row by row: a query by
its own maximum, a key by its own, a row of probabilities by its own; nothing depends on what else is in the batch. A
product with int8 values can scale rows and columns of its result but not its summands, so the scale s_j of value j
joins the probability it is multiplied with before that is quantized:

    out_i = sum_j p_ij v_j = sum_j (p_ij s_j) (v_j / s_j)

A graph that writes computes a few tokens of many sequences at a time. For these, the two products over everything that
is in memory would mostly compute what no token sees. So there the keys and values of all sequences lie in one pool,
which is written in place, and each token attends to its own cells only: ``attend_bytes`` and ``attend_floats``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.graph.fused import attend_bytes, attend_floats, softmax_quantize
from fsrm_lite.export.graph.linear import STEPS, Value, add_terms
from fsrm_lite.export.graph.quantize import ZERO
from fsrm_lite.export.graph.writer import MICROSOFT, GraphWriter


@dataclass(frozen=True, slots=True)
class Pool:
    """Where keys and values lie while the graph writes: ``export/graph/fast_graph.py`` explains these inputs."""

    writing: str
    cells: str
    segments: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What the rows of this call attend to: a bias [S, T] on their scores and, in a graph that can write, a pool."""

    bias: str
    pool: Pool | None = None

    def take(self, graph: GraphWriter, rows: str) -> Sight:
        """Return the same for some ``rows`` [N] only; keys and values are still made for all."""
        bias, pool = graph.add("Gather", [self.bias, rows], axis=0), self.pool
        if pool is None:
            return Sight(bias)
        segments = graph.add("Gather", [pool.segments, rows], axis=0)
        return Sight(bias, Pool(pool.writing, pool.cells, segments))


def float_attention(graph: GraphWriter, arch: Architecture, layer: int, q: str, k: str, v: str, sight: Sight) -> str:
    """Add attention in fp32.

    Args:
        graph: Where to add.
        arch: Shapes.
        layer: Index of the layer, for the names of its past and present.
        q: Queries [1, N, heads * d], rotated.
        k: Keys [1, S, kv_heads * d], rotated.
        v: Values [S, kv_heads * d].
        sight: What the queries attend to.

    Returns:
        The mixed values, [N, heads * d].
    """
    shape: list[int | str] = [1, arch.kv_heads, "P", arch.head_dim]
    past = [graph.input(f"past_{part}.{layer}", TensorProto.FLOAT, shape) for part in ("key", "value")]

    def reading() -> list[str]:
        rows = graph.add("Reshape", [v, graph.constant([1, -1, arch.kv_heads * arch.head_dim], np.int64)])
        inputs = [q, k, rows, sight.bias, *past]
        out, key, value = graph.add_many(
            "Attention", inputs, [True, True, True], q_num_heads=arch.heads, kv_num_heads=arch.kv_heads
        )
        return [key, value, graph.add("Reshape", [out, graph.constant([-1, arch.heads * arch.head_dim], np.int64)])]

    def writing(pool: Pool) -> list[str]:
        return attend_floats(graph, arch, [q, k, v, *past], pool.cells, pool.segments)

    key, value, mixed = _either(graph, sight, writing, reading, [TensorProto.FLOAT] * 3)
    shape[2] = "T"
    graph.output(f"present_key.{layer}", key, TensorProto.FLOAT, shape)
    graph.output(f"present_value.{layer}", value, TensorProto.FLOAT, shape)
    return mixed


def int8_attention(
    graph: GraphWriter, arch: Architecture, layer: int, q: Value, k: Value, v: Value, sight: Sight
) -> Value:
    """Add attention with int8 products over quantized queries, keys and values, as :mod:`.fused` gives them.

    Queries in two terms ask for probabilities in two terms.

    Returns:
        The mixed values [kv_heads, group * N, d], their row scale unapplied.
    """
    assert q.scale is not None
    assert k.scale is not None
    assert v.scale is not None
    shapes: dict[str, tuple[int, list[int | str]]] = {
        f"key.{layer}": (TensorProto.UINT8, [arch.kv_heads, arch.head_dim, "P"]),
        f"key_scale.{layer}": (TensorProto.FLOAT, [arch.kv_heads, 1, "P"]),
        f"value.{layer}": (TensorProto.UINT8, [arch.kv_heads, "P", arch.head_dim]),
        f"value_scale.{layer}": (TensorProto.FLOAT, ["P", 1]),
    }
    new = [k.name, k.scale, v.name, v.scale]
    past = [graph.input(f"past_{name}", dtype, shape) for name, (dtype, shape) in shapes.items()]

    def reading() -> list[str]:
        axes = [shape.index("P") for _, shape in shapes.values()]
        present = [
            graph.add("Concat", [old, value], axis=axis) for old, value, axis in zip(past, new, axes, strict=True)
        ]
        mixed = _int8_products(graph, arch, q, Value(*present[:2]), Value(*present[2:]), sight.bias)
        assert mixed.scale is not None
        return [*present, mixed.name, mixed.scale]

    def writing(pool: Pool) -> list[str]:
        return attend_bytes(graph, arch, q, [*new, *past], pool.cells, pool.segments)

    dtypes = [dtype for dtype, _ in shapes.values()] + [TensorProto.FLOAT] * 2
    *present, mixed, scale = _either(graph, sight, writing, reading, dtypes)
    for (name, (dtype, shape)), value in zip(shapes.items(), present, strict=True):
        graph.output(f"present_{name}", value, dtype, ["T" if n == "P" else n for n in shape])
    return Value(mixed, scale)


def _either(
    graph: GraphWriter,
    sight: Sight,
    writing: Callable[[Pool], list[str]],
    reading: Callable[[], list[str]],
    dtypes: Sequence[int],
) -> list[str]:
    """Add what ``writing`` adds for graphs that write, what ``reading`` adds for those that read, or a choice."""
    pool = sight.pool
    if pool is None:
        return reading()
    with graph.branch() as then:
        written = writing(pool)
    with graph.branch() as otherwise:
        read = reading()
    return graph.choose(pool.writing, [(then, written), (otherwise, read)], dtypes)


def _int8_products(graph: GraphWriter, arch: Architecture, q: Value, keys: Value, values: Value, bias: str) -> Value:
    """Add the two products of attention and the softmax between them."""
    assert keys.scale is not None
    assert values.scale is not None
    unit = graph.constant(1 / (127 * 127 * math.sqrt(arch.head_dim)), np.float32)
    zero = graph.constant(ZERO, np.uint8)
    rows = q.name if q.rest is None else graph.add("Concat", [q.name, q.rest], axis=1)
    product = graph.add("MatMulIntegerToFloat", [rows, keys.name, unit, keys.scale, zero, zero], domain=MICROSOFT)
    if q.rest is not None:
        product = add_terms(graph, product, axis=1)
    p = softmax_quantize(graph, arch, Value(product, q.scale), bias, values.scale, 1 if q.rest is None else 2)

    def mixed(part: str, step: float, part_zero: str) -> str:
        steps = [graph.constant(step, np.float32), graph.constant(1 / 127, np.float32)]
        return graph.add("MatMulIntegerToFloat", [part, values.name, *steps, part_zero, zero], domain=MICROSOFT)

    first = mixed(p.name, 1 / 255, graph.constant(0, np.uint8))
    if p.rest is None:
        return Value(first, p.scale)
    return Value(graph.add("Add", [first, mixed(p.rest, 1 / (255 * STEPS), zero)]), p.scale)
