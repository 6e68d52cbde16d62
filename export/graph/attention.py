"""Attention over the past and the new tokens as ONNX nodes: in fp32, or with int8 products.

fp32 is the ``Attention`` operator. Its two products are the largest cost beside the int8 linear maps, and they are not
weights that could be quantized once, so ``int8_attention`` quantizes what flows through them, row by row: a query by
its own maximum, a key by its own, a row of probabilities by its own; nothing depends on what else is in the batch. A
product with int8 values can scale rows and columns of its result but not its summands, so the scale s_j of value j
joins the probability it is multiplied with before that is quantized:

    out_i = sum_j p_ij v_j = sum_j (p_ij s_j) (v_j / s_j)
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.graph.fused import softmax_quantize
from fsrm_lite.export.graph.linear import STEPS, Value, add_terms
from fsrm_lite.export.graph.quantize import ZERO
from fsrm_lite.export.graph.writer import MICROSOFT, GraphWriter


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
    out, key, value = graph.add_many(
        "Attention", inputs, [True, True, True], q_num_heads=arch.heads, kv_num_heads=arch.kv_heads
    )
    shape[2] = "T"
    graph.output(f"present_key.{layer}", key, TensorProto.FLOAT, shape)
    graph.output(f"present_value.{layer}", value, TensorProto.FLOAT, shape)
    return graph.add("Reshape", [out, graph.constant([-1, arch.heads * arch.head_dim], np.int64)])


def int8_attention(
    graph: GraphWriter, arch: Architecture, layer: int, q: Value, k: Value, v: Value, bias: str
) -> Value:
    """Add attention with int8 products over quantized queries, keys and values, as :mod:`.fused` gives them.

    Queries in two terms ask for probabilities in two terms.

    Returns:
        The mixed values [kv_heads, group * N, d], their row scale unapplied.
    """
    k_shape: list[int | str] = [arch.kv_heads, arch.head_dim, "P"]
    keys, key_scale = _with_past(graph, f"key.{layer}", k, k_shape, [arch.kv_heads, 1, "P"])
    values, value_scale = _with_past(graph, f"value.{layer}", v, [arch.kv_heads, "P", arch.head_dim], ["P", 1])
    unit = graph.constant(1 / (127 * 127 * math.sqrt(arch.head_dim)), np.float32)
    zero = graph.constant(ZERO, np.uint8)
    rows = q.name if q.rest is None else graph.add("Concat", [q.name, q.rest], axis=1)
    product = graph.add("MatMulIntegerToFloat", [rows, keys, unit, key_scale, zero, zero], domain=MICROSOFT)
    if q.rest is not None:
        product = add_terms(graph, product, axis=1)
    p = softmax_quantize(graph, arch, Value(product, q.scale), bias, value_scale, 1 if q.rest is None else 2)

    def mixed(part: str, step: float, part_zero: str) -> str:
        steps = [graph.constant(step, np.float32), graph.constant(1 / 127, np.float32)]
        return graph.add("MatMulIntegerToFloat", [part, values, *steps, part_zero, zero], domain=MICROSOFT)

    first = mixed(p.name, 1 / 255, graph.constant(0, np.uint8))
    if p.rest is None:
        return Value(first, p.scale)
    return Value(graph.add("Add", [first, mixed(p.rest, 1 / (255 * STEPS), zero)]), p.scale)


def _with_past(
    graph: GraphWriter, name: str, new: Value, shape: list[int | str], scale_shape: list[int | str]
) -> tuple[str, str]:
    """Declare the past and present of ``name`` and its scale.

    Returns the present ones: past and new along the axis "P".
    """
    assert new.scale is not None
    kind, _, layer = name.partition(".")
    parts = [
        (name, new.name, TensorProto.UINT8, shape),
        (f"{kind}_scale.{layer}", new.scale, TensorProto.FLOAT, scale_shape),
    ]
    for part, value, dtype, dims in parts:
        past = graph.input(f"past_{part}", dtype, dims)
        present = graph.add("Concat", [past, value], axis=dims.index("P"))
        graph.output(f"present_{part}", present, dtype, ["T" if n == "P" else n for n in dims])
    return f"present_{name}", f"present_{kind}_scale.{layer}"
