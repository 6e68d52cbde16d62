"""Attention over the past and the new tokens as ONNX nodes: in fp32, or with int8 products.

fp32 is the ``Attention`` operator. Its two products are the largest cost beside the int8 linear maps, and they are not
weights that could be quantized once, so ``int8_attention`` quantizes what flows through them, row by row: a query row
by its own maximum, a key by its own, a row of probabilities by its own; nothing depends on what else is in the batch.
A product with int8 values can scale rows and columns of its result but not its summands, so the scale s_j of value j
joins the attention scores as log s_j, and what that does to the softmax is divided out again:

    out_i = sum_j p_ij v_j = sum_j p'_ij (v_j / s_j) / sum_j (p'_ij / s_j),   p' = softmax(scores + log s)
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoint import Architecture
from fsrm_lite.export.graph_linear import Value, quantize_rows
from fsrm_lite.export.graph_writer import MICROSOFT, GraphWriter

_SMALLEST_VALUE_SCALE = 1e-6  # Values below are as good as zero; its log must not drown the scores.


def float_attention(graph: GraphWriter, arch: Architecture, layer: int, q: str, k: str, v: str, bias: str) -> str:
    """Add attention in fp32.

    Args:
        graph: Where to add.
        arch: Shapes.
        layer: Index of the layer, for the names of its past and present.
        q: Queries [1, N, heads * d], rotated.
        k: Keys [1, S, kv_heads * d], rotated.
        v: Values [S, kv_heads * d].
        bias: Added to the scores, [N, T].

    Returns:
        The mixed values, [N, heads * d].
    """
    shape: list[int | str] = [1, arch.kv_heads, "P", arch.head_dim]
    past = [graph.input(f"past_{part}.{layer}", TensorProto.FLOAT, shape) for part in ("key", "value")]
    v = graph.add("Reshape", [v, graph.constant([1, -1, arch.kv_heads * arch.head_dim], np.int64)])
    inputs = [q, k, v, bias, *past]
    out, key, value = graph.add_many("Attention", inputs, [True, True, True], q_num_heads=arch.heads, kv_num_heads=arch.kv_heads)
    shape[2] = "T"
    graph.output(f"present_key.{layer}", key, TensorProto.FLOAT, shape)
    graph.output(f"present_value.{layer}", value, TensorProto.FLOAT, shape)
    return graph.add("Reshape", [out, graph.constant([-1, arch.heads * arch.head_dim], np.int64)])


def int8_attention(graph: GraphWriter, arch: Architecture, layer: int, q: str, k: str, v: Value, bias: str) -> str:
    """Add attention with int8 products; arguments and result as in :func:`float_attention`, ``v`` with its row scale.

    Queries of the heads that share keys are rows of one product: shapes are [kv_heads, group * N, ...].
    """
    group, d = arch.heads // arch.kv_heads, arch.head_dim
    queries, query_scale = quantize_rows(graph, _shape(graph, q, [-1, arch.kv_heads, group, d]), np.uint8)
    queries = _shape(graph, graph.add("Transpose", [queries], perm=[1, 2, 0, 3]), [arch.kv_heads, -1, d])
    query_scale = _shape(graph, graph.add("Transpose", [query_scale], perm=[1, 2, 0, 3]), [arch.kv_heads, -1, 1])
    keys, key_scale = _keys(graph, arch, layer, k)
    values, value_scale = _values(graph, arch, layer, v)

    unit = graph.constant(1 / (127 * 127 * math.sqrt(d)), np.float32)
    product = graph.add("MatMulIntegerToFloat", [queries, keys, unit, key_scale, graph.constant(128, np.uint8)], domain=MICROSOFT)
    log_scale = graph.add("Transpose", [graph.add("Log", [value_scale])], perm=[1, 0])
    tilted = graph.add("Add", [bias, log_scale])
    tilted = graph.add("Concat", [tilted] * group, axis=0) if group > 1 else tilted
    scores = graph.add("Add", [graph.add("Mul", [product, query_scale]), tilted])
    p = graph.add("Softmax", [scores], axis=-1)

    untilt = graph.add("MatMul", [p, graph.add("Reciprocal", [value_scale])])
    largest = graph.add("ReduceMax", [p, graph.constant([-1], np.int64)], keepdims=1)
    step = graph.add("Mul", [_shape(graph, largest, [-1]), graph.constant(1 / 255, np.float32)])
    p8 = graph.add("QuantizeLinear", [graph.add("Flatten", [p], axis=2), step], axis=0)
    p8 = graph.add("Reshape", [p8, graph.add("Shape", [p])])
    inputs = [p8, values, graph.constant(1 / 255, np.float32), graph.constant(1 / 127, np.float32), graph.constant(0, np.uint8)]
    mixed = graph.add("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
    mixed = graph.add("Mul", [mixed, graph.add("Div", [largest, untilt])])
    mixed = graph.add("Transpose", [_shape(graph, mixed, [arch.kv_heads, group, -1, d])], perm=[2, 0, 1, 3])
    return _shape(graph, mixed, [-1, arch.heads * d])


def _keys(graph: GraphWriter, arch: Architecture, layer: int, k: str) -> tuple[str, str]:
    """Return all keys int8 [kv_heads, d, T], the right-hand side of the scores, and their scales [kv_heads, 1, T]."""
    keys, scale = quantize_rows(graph, _shape(graph, k, [-1, arch.kv_heads, arch.head_dim]), np.int8)
    keys, scale = (graph.add("Transpose", [x], perm=[1, 2, 0]) for x in (keys, scale))
    keys = _with_past(graph, f"key.{layer}", keys, TensorProto.INT8, [arch.kv_heads, arch.head_dim, "P"])
    return keys, _with_past(graph, f"key_scale.{layer}", scale, TensorProto.FLOAT, [arch.kv_heads, 1, "P"])


def _values(graph: GraphWriter, arch: Architecture, layer: int, v: Value) -> tuple[str, str]:
    """Return all values int8 [kv_heads, T, d] and their scales [T, 1], one per token for all heads."""
    values, scale = quantize_rows(graph, v.name, np.int8)
    scale = scale if v.scale is None else graph.add("Mul", [scale, v.scale])
    scale = graph.add("Max", [scale, graph.constant(_SMALLEST_VALUE_SCALE, np.float32)])
    values = graph.add("Transpose", [_shape(graph, values, [-1, arch.kv_heads, arch.head_dim])], perm=[1, 0, 2])
    values = _with_past(graph, f"value.{layer}", values, TensorProto.INT8, [arch.kv_heads, "P", arch.head_dim])
    return values, _with_past(graph, f"value_scale.{layer}", scale, TensorProto.FLOAT, ["P", 1])


def _with_past(graph: GraphWriter, name: str, new: str, dtype: int, shape: list[int | str]) -> str:
    """Declare the past and present of ``name`` and return the present: past and new along the axis "P"."""
    past = graph.input(f"past_{name}", dtype, shape)
    present = graph.add("Concat", [past, new], axis=shape.index("P"))
    graph.output(f"present_{name}", present, dtype, ["T" if n == "P" else n for n in shape])
    return f"present_{name}"


def _shape(graph: GraphWriter, x: str, shape: list[int]) -> str:
    return graph.add("Reshape", [x, graph.constant(shape, np.int64)])
