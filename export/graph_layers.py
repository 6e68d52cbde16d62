"""The pieces of a decoder as ONNX nodes: embedding, decoder layer, the reading at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoint import EMBEDDING, Architecture
from fsrm_lite.export.graph_attention import float_attention, int8_attention
from fsrm_lite.export.graph_linear import Linears, Value
from fsrm_lite.export.graph_writer import MICROSOFT, GraphWriter
from fsrm_lite.export.quantize import quantize_table
from fsrm_lite.export.smoothing import Weights

LARGE_EMBEDDING_VALUES = 1 << 24
"""Embeddings from this size on are stored in int8 under int8 and int4; smaller ones in fp16."""


@dataclass(frozen=True, slots=True)
class Positions:
    """What attention needs to know of the rows of this call: rotary tables [1, S, head_dim/2] and the bias [S, T]."""

    cos: str
    sin: str
    bias: str

    @classmethod
    def of(cls, graph: GraphWriter, arch: Architecture, position_ids: str, bias: str) -> Positions:
        """Compute the rotary tables for ``position_ids`` [1, S]; no table of the whole context is stored."""
        graph.scope = "rotary"
        frequencies = graph.weight("rotary.frequencies", arch.rope_frequencies)
        position = graph.add("Cast", [graph.add("Unsqueeze", [position_ids, graph.constant([-1], np.int64)])], to=TensorProto.FLOAT)
        angles = graph.add("Mul", [position, frequencies])
        return cls(graph.add("Cos", [angles]), graph.add("Sin", [angles]), bias)

    def take(self, graph: GraphWriter, rows: str) -> Positions:
        """Return the same for some ``rows`` [N] only."""
        cos, sin = (graph.add("Gather", [table, rows], axis=1) for table in (self.cos, self.sin))
        return Positions(cos, sin, graph.add("Gather", [self.bias, rows], axis=0))


def rms_norm(graph: GraphWriter, checkpoint: Weights, name: str, x: str) -> str:
    """Add the RMSNorm ``name`` over the last axis."""
    weight = graph.weight(f"{name}.weight", lambda: checkpoint.tensor(f"{name}.weight"))
    return graph.add("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=checkpoint.arch.rms_eps, stash_type=1)


def embedding(graph: GraphWriter, linears: Linears, ids: str) -> str:
    """Add the token embedding of ``ids`` [S]; returns [S, H]."""
    graph.scope = "embedding"
    checkpoint = linears.checkpoint
    vocab, hidden = checkpoint.shape(EMBEDDING)
    kind = linears.precision("lm_head")
    if kind == "fp32":
        return graph.add("Gather", [graph.weight(EMBEDDING, lambda: checkpoint.tensor(EMBEDDING)), ids], axis=0)
    if vocab * hidden < LARGE_EMBEDDING_VALUES:
        table = graph.weight(f"{EMBEDDING}.fp16", lambda: checkpoint.tensor(EMBEDDING).astype(np.float16))
        return graph.add("Cast", [graph.add("Gather", [table, ids], axis=0)], to=TensorProto.FLOAT)
    names = [f"{EMBEDDING}.int8", f"{EMBEDDING}.int8.scales"]
    table, scales = graph.weights(names, lambda: quantize_table(lambda part: checkpoint.tensor(EMBEDDING, part), (vocab, hidden)))
    rows = graph.add("Gather", [table, ids], axis=0)
    scale = graph.add("Unsqueeze", [graph.add("Gather", [scales, ids], axis=0), graph.constant([-1], np.int64)])
    return graph.add("Mul", [graph.add("Cast", [rows], to=TensorProto.FLOAT), scale])


def decoder_layer(graph: GraphWriter, linears: Linears, layer: int, residual: str, positions: Positions, wanted: str | None) -> str:
    """Add one decoder layer on ``residual`` [S, H].

    Args:
        graph: Where to add.
        linears: The linear maps.
        layer: Index of the layer.
        residual: Its input.
        positions: Rotary tables and bias.
        wanted: In the last layer, the rows [N] whose output is needed; keys and values are still made for all.

    Returns:
        The output, [S, H] or [N, H].
    """
    arch, prefix = linears.checkpoint.arch, f"model.layers.{layer}"
    x = rms_norm(graph, linears.checkpoint, f"{prefix}.input_layernorm", residual)
    k = linears.biased(f"{prefix}.self_attn.k_proj", Value(x), arch.qkv_bias)
    v = linears.biased(f"{prefix}.self_attn.v_proj", Value(x), arch.qkv_bias)
    k_rotated = _rotated(graph, linears, f"{prefix}.self_attn.k_norm", k, arch.kv_heads, positions)
    if wanted is not None:
        x, residual = (graph.add("Gather", [rows, wanted], axis=0) for rows in (x, residual))
        positions = positions.take(graph, wanted)
    q = linears.biased(f"{prefix}.self_attn.q_proj", Value(x), arch.qkv_bias)
    q_rotated = _rotated(graph, linears, f"{prefix}.self_attn.q_norm", q, arch.heads, positions)
    if linears.precision(f"{prefix}.self_attn") == "fp32":
        attended = float_attention(graph, arch, layer, q_rotated, k_rotated, linears.plain(v), positions.bias)
    else:
        attended = int8_attention(graph, arch, layer, q_rotated, k_rotated, v, positions.bias)
    linears.seen = {"attention_input": x, "queries": q_rotated, "keys": k_rotated, "attended": attended}
    mixed = linears.plain(linears.biased(f"{prefix}.self_attn.o_proj", Value(attended), arch.o_bias))
    name = f"{prefix}.post_attention_layernorm.weight"
    norm = graph.weight(name, lambda: linears.checkpoint.tensor(name))
    x, _, _, residual = graph.add_many(
        "SkipSimplifiedLayerNormalization", [mixed, residual, norm], [True, False, False, True], domain=MICROSOFT, epsilon=arch.rms_eps
    )
    linears.seen["mlp_input"] = x
    return graph.add("Add", [residual, _mlp(graph, linears, prefix, Value(x))])


def _mlp(graph: GraphWriter, linears: Linears, prefix: str, x: Value) -> str:
    """Add ``down(silu(gate(x)) * up(x))``; returns [rows, H]."""
    bias = linears.checkpoint.arch.mlp_bias
    gate = linears.plain(linears.biased(f"{prefix}.mlp.gate_proj", x, bias))
    up = linears.biased(f"{prefix}.mlp.up_proj", x, bias)
    silu = graph.add("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0)
    # A row scale of up passes through to down, whose own row maxima do not mind it.
    gated = Value(graph.add("Mul", [silu, up.name]), up.scale)
    linears.seen["gated"] = gated.name
    return linears.plain(linears.biased(f"{prefix}.mlp.down_proj", gated, bias))


def _rotated(graph: GraphWriter, linears: Linears, norm: str, value: Value, heads: int, positions: Positions) -> str:
    """Add the per-head norm, if the model has one, and the rotary embedding to ``value`` [S, heads * d]; returns [1, S, heads * d]."""
    arch = linears.checkpoint.arch
    if arch.qk_norm:
        # The norm divides a row scale out again, up to its epsilon, which is far below int8's rounding.
        x = graph.add("Reshape", [value.name, graph.constant([-1, heads, arch.head_dim], np.int64)])
        x = rms_norm(graph, linears.checkpoint, norm, x)
    else:
        x = linears.plain(value)
    x = graph.add("Reshape", [x, graph.constant([1, -1, heads * arch.head_dim], np.int64)])
    return graph.add("RotaryEmbedding", [x, positions.cos, positions.sin], num_heads=heads)


@dataclass(frozen=True, slots=True)
class Readings:
    """Names of the values read off the hidden states: label logits [R, L], log-mass [R], entropy [R]."""

    label_logits: str
    log_mass: str
    entropy: str


def head(graph: GraphWriter, linears: Linears, hidden: Value, label_ids: Sequence[int]) -> Readings:
    """Add the reading of ``hidden`` [R, H]; label logits are products in fp32 whatever the precision of the vocabulary."""
    checkpoint = linears.checkpoint
    name = checkpoint.head_name
    labels = graph.weight("labels.weight", lambda: np.stack([checkpoint.tensor(name, slice(i, i + 1))[0] for i in label_ids], axis=1))
    label_logits = graph.add("MatMul", [hidden.name, labels])
    # Without rows to read, the whole vocabulary's weights are not touched (and ReduceMax of no rows is not called).
    rows = graph.add("Gather", [graph.add("Shape", [hidden.name]), graph.constant(0, np.int64)])
    any_rows = graph.add("Greater", [rows, graph.constant(0, np.int64)])
    with graph.branch() as reading:
        log_mass, entropy = _distribution(graph, _vocabulary_logits(graph, linears, hidden))
    with graph.branch() as nothing:
        empty = [graph.add("ConstantOfShape", [graph.constant([0], np.int64)]) for _ in range(2)]
    return Readings(label_logits, *graph.choose(any_rows, [(reading, [log_mass, entropy]), (nothing, empty)], TensorProto.FLOAT))


def _distribution(graph: GraphWriter, logits: str) -> tuple[str, str]:
    """Add logsumexp and entropy [R] of ``logits`` [R, V]."""
    axis = graph.constant([-1], np.int64)
    largest = graph.add("ReduceMax", [logits, axis], keepdims=1)
    centred = graph.add("Sub", [logits, largest])
    mass = graph.add("Exp", [centred])
    total = graph.add("ReduceSum", [mass, axis], keepdims=0)
    log_total = graph.add("Log", [total])
    mean = graph.add("Div", [graph.add("ReduceSum", [graph.add("Mul", [mass, centred]), axis], keepdims=0), total])
    return graph.add("Add", [graph.add("Squeeze", [largest, axis]), log_total]), graph.add("Sub", [log_total, mean])


def _vocabulary_logits(graph: GraphWriter, linears: Linears, hidden: Value) -> str:
    checkpoint = linears.checkpoint
    name, kind = checkpoint.head_name, linears.precision("lm_head")
    if kind == "fp32":
        weight = EMBEDDING if checkpoint.arch.tied else graph.weight(name, lambda: checkpoint.tensor(name))
        return graph.add("Gemm", [hidden.name, weight], transB=1)
    # int4 keeps the head in int8: it is read once per reading, and the whole distribution hangs on it. A tied weight is
    # stored twice, as columns here and as rows for the embedding: shared, all of it would stay in memory beside the packed
    # copy that the product makes; apart, the columns are let go and Gather touches few pages of the rows.
    return linears.plain(linears.int8(hidden, linears.int8_weight("lm_head", name)))
