"""Steps between the products, as functions of the graph: each has a body of stock operators and a compiled operator.

Between two int8 products lie a handful of row-wise operations that cost more in passes over memory than in arithmetic.
Here each such step is one function of the graph. Where ``fsrm_lite.runtimes.onnx.kernels`` is compiled, ONNX Runtime
runs it as one operator; elsewhere it inlines the body. Both compute the same up to the rounding of float32, so a value
that lies between two int8 steps may fall to either side.

Quantized values come as ``Value(q, largest)``: uint8 around 128 and the row's largest magnitude, and the second term
where two are asked for, see :func:`fsrm_lite.export.graph.linear.quantize_rows`. What is spread before it is quantized
is multiplied by an orthogonal matrix, see :mod:`fsrm_lite.export.graph.rotation`; the map behind it has the same in its
weight.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.graph.linear import STEPS, Value, factor_weight, quantize_rows, reshape, spread
from fsrm_lite.export.graph.quantize import ZERO
from fsrm_lite.export.graph.writer import MICROSOFT, GraphWriter

_SMALLEST_VALUE_SCALE = 1e-6  # Values below are as good as zero; a scale of 0 would divide by it.


def add_then_norm(graph: GraphWriter, residual: str, update: str, weight: str, epsilon: float) -> tuple[str, str]:
    """Add ``update`` to ``residual`` [S, H]; returns (the sum, its RMSNorm), both in float32."""
    wanted = [True, False, False, True]
    normed, _, _, total = graph.add_many(
        "SkipSimplifiedLayerNormalization", [update, residual, weight], wanted, domain=MICROSOFT, epsilon=epsilon
    )
    return total, normed


def add_norm_quantize(
    graph: GraphWriter, residual: str, update: Value, weight: str, epsilon: float, width: int, terms: int = 1
) -> tuple[str, Value]:
    """Add ``update`` to ``residual`` [S, width]; returns (the sum, its RMSNorm spread and quantized)."""

    def body(residual: str, update: str, scale: str, weight: str, factor: str) -> list[str]:
        total, normed = add_then_norm(graph, residual, graph.add("Mul", [update, scale]), weight, epsilon)
        return [total, *quantize_rows(graph, spread(graph, normed, width, factor), terms)]

    assert update.scale is not None
    inputs = [residual, update.name, update.scale, weight, factor_weight(graph, width)]
    total, *quantized = graph.call(_named("AddNormQuantize", terms), inputs, body, 2 + terms, epsilon=epsilon)
    return total, Value(*quantized)


def gate_quantize(graph: GraphWriter, gate: Value, up: Value, width: int, terms: int = 1) -> Value:
    """Return ``spread(silu(gate) * up)`` [S, width] quantized; both have one row scale."""

    def body(gate: str, up: str, scale: str, factor: str) -> list[str]:
        silu = graph.add("QuickGelu", [graph.add("Mul", [gate, scale])], domain=MICROSOFT, alpha=1.0)
        values, largest, *rest = quantize_rows(graph, spread(graph, graph.add("Mul", [silu, up]), width, factor), terms)
        return [values, graph.add("Mul", [largest, scale]), *rest]

    assert gate.scale is not None
    assert gate.scale == up.scale
    inputs = [gate.name, up.name, gate.scale, factor_weight(graph, width)]
    return Value(*graph.call(_named("GateQuantize", terms), inputs, body, 1 + terms))


def _named(function: str, terms: int) -> str:
    return function if terms == 1 else f"{function}Twice"


def rotate(
    graph: GraphWriter, arch: Architecture, x: str, heads: int, cos: str, sin: str, weight: str | None = None
) -> str:
    """Add the norm per head, where there is a weight, and the rotary embedding to ``x`` [S, heads * d].

    Returns [1, S, heads * d].
    """
    if weight is not None:
        x = reshape(graph, x, [-1, heads, arch.head_dim])
        x = graph.add("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=arch.rms_eps, stash_type=1)
    x = reshape(graph, x, [1, -1, heads * arch.head_dim])
    return graph.add("RotaryEmbedding", [x, cos, sin], num_heads=heads)


def rotate_queries(
    graph: GraphWriter, arch: Architecture, q: str, cos: str, sin: str, weight: str | None, terms: int = 1
) -> Value:
    """Rotate, spread and quantize queries [S, heads * d], by head.

    Returns [kv_heads, group * S, d], heads that share keys as rows of one matrix.
    """
    group = arch.heads // arch.kv_heads

    def body(q: str, cos: str, sin: str, factor: str, weight: str | None = None) -> list[str]:
        rotated = spread(graph, rotate(graph, arch, q, arch.heads, cos, sin, weight), arch.head_dim, factor)
        parts = quantize_rows(graph, reshape(graph, rotated, [-1, arch.kv_heads, group, arch.head_dim]), terms)
        parts = [graph.add("Transpose", [x], perm=[1, 2, 0, 3]) for x in parts]
        return [
            reshape(graph, x, [arch.kv_heads, -1, width])
            for x, width in zip(parts, (arch.head_dim, 1, arch.head_dim), strict=False)
        ]

    inputs = [q, cos, sin, factor_weight(graph, arch.head_dim)]
    return _rotated(graph, arch, _named("RotateQueries", terms), inputs, weight, body, 1 + terms)


def rotate_keys(
    graph: GraphWriter, arch: Architecture, k: str, cos: str, sin: str, mean: str, weight: str | None
) -> Value:
    """Rotate, spread and quantize keys [S, kv_heads * d]; returns [kv_heads, d, S] and scales [kv_heads, 1, S].

    ``mean`` [kv_heads, d] is taken off what is spread. It may be any vector: it adds the same to all scores of a query,
    which the softmax does not see. Near the mean of a head's keys it leaves less to quantize (SageAttention, arXiv
    2410.02367, with the mean of each sequence, where this one is measured once).
    """

    def body(k: str, cos: str, sin: str, factor: str, mean: str, weight: str | None = None) -> list[str]:
        rotated = spread(graph, rotate(graph, arch, k, arch.kv_heads, cos, sin, weight), arch.head_dim, factor)
        centred = graph.add("Sub", [reshape(graph, rotated, [-1, arch.kv_heads, arch.head_dim]), mean])
        return [graph.add("Transpose", [x], perm=[1, 2, 0]) for x in quantize_rows(graph, centred)]

    return _rotated(graph, arch, "RotateKeys", [k, cos, sin, factor_weight(graph, arch.head_dim), mean], weight, body)


def _rotated(
    graph: GraphWriter,
    arch: Architecture,
    name: str,
    inputs: list[str],
    weight: str | None,
    body: Callable[..., list[str]],
    outputs: int = 2,
) -> Value:
    if weight is None:
        return Value(*graph.call(name, inputs, body, outputs, kv_heads=arch.kv_heads))
    attributes = {"kv_heads": arch.kv_heads, "epsilon": arch.rms_eps}
    return Value(*graph.call(f"Norm{name}", [*inputs, weight], body, outputs, **attributes))


def quantize_values(graph: GraphWriter, arch: Architecture, v: Value) -> Value:
    """Quantize values [S, kv_heads * d]; returns [kv_heads, S, d] and scales [S, 1], one per token for all heads."""

    def body(v: str, scale: str) -> list[str]:
        values, largest = quantize_rows(graph, v)
        values = graph.add("Transpose", [reshape(graph, values, [-1, arch.kv_heads, arch.head_dim])], perm=[1, 0, 2])
        return [
            values,
            graph.add("Max", [graph.add("Mul", [largest, scale]), graph.constant(_SMALLEST_VALUE_SCALE, np.float32)]),
        ]

    scale = graph.constant([[1.0]], np.float32) if v.scale is None else v.scale
    return Value(*graph.call("QuantizeValues", [v.name, scale], body, 2, kv_heads=arch.kv_heads))


def softmax_quantize(
    graph: GraphWriter, arch: Architecture, scores: Value, bias: str, value_scale: str, terms: int = 1
) -> Value:
    """Return ``softmax(scores + bias) * value_scale`` for scores [kv_heads, group * S, T], bias [S, T], scales [T, 1].

    As uint8 in steps of 1/255 of each row's largest, and that [kv_heads, group * S, 1]. The values have their zero
    at 0, since none is negative; a second term has it at ``ZERO``.
    """
    group = arch.heads // arch.kv_heads

    def body(scores: str, scale: str, bias: str, value_scale: str) -> list[str]:
        # The value scales join the scores as logarithms, which is one pass less over [group * S, T] than to multiply
        # with them; what that does to the sum under the softmax is divided out again.
        tilted = graph.add("Add", [bias, graph.add("Transpose", [graph.add("Log", [value_scale])], perm=[1, 0])])
        tilted = graph.add("Concat", [tilted] * group, axis=0) if group > 1 else tilted
        p = graph.add("Softmax", [graph.add("Add", [graph.add("Mul", [scores, scale]), tilted])], axis=-1)
        untilt = graph.add("MatMul", [p, graph.add("Reciprocal", [value_scale])])
        largest = graph.add("ReduceMax", [p, graph.constant([-1], np.int64)], keepdims=1)
        step = graph.add("Mul", [reshape(graph, largest, [-1]), graph.constant(1 / 255, np.float32)])
        rows = graph.add("Flatten", [p], axis=2)
        q = graph.add("QuantizeLinear", [rows, step], axis=0)
        parts = [graph.add("Reshape", [q, graph.add("Shape", [p])]), graph.add("Div", [largest, untilt])]
        if terms == 2:
            left = graph.add("Sub", [rows, graph.add("DequantizeLinear", [q, step], axis=0)])
            zeros = graph.add("Expand", [graph.constant([ZERO], np.uint8), graph.add("Shape", [step])])
            fine = graph.add("Mul", [step, graph.constant(1 / STEPS, np.float32)])
            rest = graph.add("QuantizeLinear", [left, fine, zeros], axis=0)
            parts.append(graph.add("Reshape", [rest, graph.add("Shape", [p])]))
        return parts

    assert scores.scale is not None
    inputs = [scores.name, scores.scale, bias, value_scale]
    return Value(*graph.call(_named("SoftmaxQuantize", terms), inputs, body, 1 + terms))


def quantize_mixed(graph: GraphWriter, arch: Architecture, mixed: Value, terms: int = 1) -> Value:
    """Return attended values [kv_heads, group * S, d] as rows [S, heads * d], spread and quantized over all heads."""
    width = arch.heads * arch.head_dim

    def body(mixed: str, scale: str, factor: str) -> list[str]:
        rows = _rows(graph, arch, graph.add("Mul", [mixed, scale]))
        return quantize_rows(graph, spread(graph, rows, width, factor), terms)

    assert mixed.scale is not None
    inputs, group = [mixed.name, mixed.scale, factor_weight(graph, width)], arch.heads // arch.kv_heads
    return Value(*graph.call(_named("QuantizeMixed", terms), inputs, body, 1 + terms, group=group))


def plain_mixed(graph: GraphWriter, arch: Architecture, mixed: Value) -> str:
    """Return the same in float32."""
    assert mixed.scale is not None
    return _rows(graph, arch, graph.add("Mul", [mixed.name, mixed.scale]))


def _rows(graph: GraphWriter, arch: Architecture, mixed: str) -> str:
    split = reshape(graph, mixed, [arch.kv_heads, arch.heads // arch.kv_heads, -1, arch.head_dim])
    return reshape(graph, graph.add("Transpose", [split], perm=[2, 0, 1, 3]), [-1, arch.heads * arch.head_dim])


def attend_bytes(
    graph: GraphWriter, arch: Architecture, q: Value, keys_values: list[str], cells: str, segments: str
) -> list[str]:
    """Put new keys and values into a pool, and let each query attend to its own cells; see :mod:`.attention`.

    Args:
        graph: Where to add.
        arch: Shapes.
        q: Queries [kv_heads, group * N, d], quantized.
        keys_values: Names of the new keys, key scales, values and value scales as :func:`rotate_keys` and
            :func:`quantize_values` give them, and of the pool of each.
        cells: Where the S new ones go [S].
        segments: First and last cells [N, K, 2] of what each query attends to.

    Returns:
        The four pools with the new ones, the mixed values [kv_heads, group * N, d], and a row scale of ones.
    """

    def body(q: str, q_scale: str, *rest: str) -> list[str]:
        new, pools, (cells, segments), more = rest[:4], rest[4:8], rest[8:10], rest[10:]
        # The pool of keys has the shape of the keys, and holds them with each cell's values side by side.
        by_cell = reshape(graph, pools[0], [arch.kv_heads, -1, arch.head_dim])
        kept = _put(graph, by_cell, graph.add("Transpose", [new[0]], perm=[0, 2, 1]), cells, 1)
        keys = graph.add("Transpose", [kept], perm=[0, 2, 1])
        present = [
            reshape(graph, kept, [arch.kv_heads, arch.head_dim, -1]),
            *(_put(graph, *put) for put in zip(pools[1:], new[1:], [cells] * 3, (2, 1, 0), strict=True)),
        ]
        queries = _centred(graph, q)
        if more:
            fine = graph.add("Mul", [_centred(graph, more[0]), graph.constant(1 / STEPS, np.float32)])
            queries = graph.add("Add", [queries, fine])
        step = graph.constant(1 / 127, np.float32)
        parts = [
            (queries, q_scale),
            (_centred(graph, keys), present[1]),
            (_centred(graph, present[2]), present[3]),
        ]
        q, k, v = (graph.add("Mul", [x, graph.add("Mul", [scale, step])]) for x, scale in parts)
        return [*present, _attend(graph, arch, q, k, v, _seen(graph, arch, segments, present[3]))]

    assert q.scale is not None
    inputs = [q.name, q.scale, *keys_values, cells, segments, *([] if q.rest is None else [q.rest])]
    results = graph.call(_named("AttendBytes", 1 if q.rest is None else 2), inputs, body, 5)
    ones = graph.constant(np.ones((1, 1, 1)), np.float32)
    return [*results, graph.add("Expand", [ones, graph.add("Shape", [q.scale])])]


def attend_floats(graph: GraphWriter, arch: Architecture, inputs: list[str], cells: str, segments: str) -> list[str]:
    """Do the same in float32.

    Args:
        graph: Where to add.
        arch: Shapes.
        inputs: Names of the queries [1, N, heads * d], the new keys [1, S, kv_heads * d], the new values
            [S, kv_heads * d], and a pool of keys and one of values [1, kv_heads, C, d].
        cells: As above.
        segments: As above.

    Returns:
        The two pools with the new keys and values, and the mixed values [N, heads * d].
    """
    group, dim = arch.heads // arch.kv_heads, arch.head_dim

    def body(q: str, k: str, v: str, key_pool: str, value_pool: str, cells: str, segments: str) -> list[str]:
        new = [
            graph.add("Transpose", [reshape(graph, x, [1, -1, arch.kv_heads, dim])], perm=[0, 2, 1, 3]) for x in (k, v)
        ]
        present = [_put(graph, pool, x, cells, 2) for pool, x in zip((key_pool, value_pool), new, strict=True)]
        rows = graph.add("Transpose", [reshape(graph, q, [-1, arch.kv_heads, group, dim])], perm=[1, 2, 0, 3])
        keys = graph.add("Transpose", [reshape(graph, present[0], [arch.kv_heads, -1, dim])], perm=[0, 2, 1])
        values = reshape(graph, present[1], [arch.kv_heads, -1, dim])
        size = graph.add("Transpose", [reshape(graph, present[0], [arch.kv_heads * dim, -1])], perm=[1, 0])
        mask = _seen(graph, arch, segments, size)
        mixed = _attend(graph, arch, reshape(graph, rows, [arch.kv_heads, -1, dim]), keys, values, mask)
        return [*present, _rows(graph, arch, mixed)]

    return graph.call("AttendFloats", [*inputs, cells, segments], body, 3)


def _centred(graph: GraphWriter, x: str) -> str:
    return graph.add("Sub", [graph.add("Cast", [x], to=TensorProto.FLOAT), graph.constant(float(ZERO), np.float32)])


def _put(graph: GraphWriter, pool: str, new: str, cells: str, axis: int) -> str:
    """Return ``pool`` with ``new`` at ``cells`` of an axis."""
    shape = graph.add("Shape", [new])
    rank = graph.add("Shape", [shape])
    ones = graph.add("Expand", [graph.constant([1], np.int64), rank])
    along = graph.add(
        "ScatterElements", [ones, graph.constant([axis], np.int64), graph.constant([-1], np.int64)], axis=0
    )
    places = graph.add("Expand", [graph.add("Reshape", [cells, along]), shape])
    return graph.add("ScatterElements", [pool, places, new], axis=axis)


def _seen(graph: GraphWriter, arch: Architecture, segments: str, pool: str) -> str:
    """Return a bias [group * N, C] that hides the cells outside of the segments [N, K, 2]; C is the length of pool."""
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    count = graph.add("Gather", [graph.add("Shape", [pool]), zero])
    cell = reshape(graph, graph.add("Range", [zero, count, one]), [1, 1, -1])
    first, last = (
        graph.add("Unsqueeze", [graph.add("Gather", [segments, end], axis=2), graph.constant([-1], np.int64)])
        for end in (zero, one)
    )
    inside = graph.add("And", [graph.add("GreaterOrEqual", [cell, first]), graph.add("Less", [cell, last])])
    weight = graph.add("Cast", [inside], to=TensorProto.FLOAT)
    seen = graph.add("ReduceMax", [weight, graph.constant([1], np.int64)], keepdims=0)
    hidden = graph.add("Sub", [seen, graph.constant(1.0, np.float32)])
    bias = graph.add("Mul", [hidden, graph.constant(1e9, np.float32)])
    group = arch.heads // arch.kv_heads
    return graph.add("Concat", [bias] * group, axis=0) if group > 1 else bias


def _attend(graph: GraphWriter, arch: Architecture, q: str, k: str, v: str, bias: str) -> str:
    """Return attention of q [kv_heads, group * N, d] to k [kv_heads, d, C] and v [kv_heads, C, d]."""
    scores = graph.add("MatMul", [q, k])
    scaled = graph.add("Mul", [scores, graph.constant(arch.head_dim**-0.5, np.float32)])
    return graph.add("MatMul", [graph.add("Softmax", [graph.add("Add", [scaled, bias])], axis=-1), v])
