"""The pieces of a decoder as ONNX nodes: embedding, decoder layer, the reading at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, Architecture
from fsrm_lite.export.graph.attention import Sight, float_attention, int8_attention
from fsrm_lite.export.graph.fused import (
    add_norm_quantize,
    add_then_norm,
    gate_quantize,
    plain_mixed,
    quantize_mixed,
    quantize_values,
    rotate,
    rotate_keys,
    rotate_queries,
)
from fsrm_lite.export.graph.linear import TERMS, Linears, Value
from fsrm_lite.export.graph.quantize import quantize_table
from fsrm_lite.export.graph.writer import MICROSOFT, GraphWriter

LARGE_EMBEDDING_VALUES = 1 << 24
"""Embeddings from this size on are stored in int8 where the head is int8 or int4.

Smaller ones, and all others, in fp16.
"""


@dataclass(frozen=True, slots=True)
class Positions:
    """What attention needs to know of the rows of this call: rotary tables [1, S, head_dim/2], and what they see."""

    cos: str
    sin: str
    sight: Sight

    @classmethod
    def of(cls, graph: GraphWriter, arch: Architecture, position_ids: str, sight: Sight) -> Positions:
        """Compute the rotary tables for ``position_ids`` [1, S]; no table of the whole context is stored."""
        graph.scope = "rotary"
        frequencies = graph.weight("rotary.frequencies", arch.rope_frequencies)
        position = graph.add(
            "Cast", [graph.add("Unsqueeze", [position_ids, graph.constant([-1], np.int64)])], to=TensorProto.FLOAT
        )
        angles = graph.add("Mul", [position, frequencies])
        return cls(graph.add("Cos", [angles]), graph.add("Sin", [angles]), sight)

    def take(self, graph: GraphWriter, rows: str) -> Positions:
        """Return the same for some ``rows`` [N] only."""
        cos, sin = (graph.add("Gather", [table, rows], axis=1) for table in (self.cos, self.sin))
        return Positions(cos, sin, self.sight.take(graph, rows))


def embedding(graph: GraphWriter, linears: Linears, ids: str) -> str:
    """Add the token embedding of ``ids`` [S]; returns [S, H]."""
    graph.scope = "embedding"
    checkpoint = linears.checkpoint
    vocab, hidden = checkpoint.shape(EMBEDDING)
    kind = linears.precision("lm_head")
    if kind == "fp32":
        return graph.add("Gather", [graph.weight(EMBEDDING, lambda: checkpoint.tensor(EMBEDDING)), ids], axis=0)
    if vocab * hidden < LARGE_EMBEDDING_VALUES or kind == "int8x2":
        table = graph.weight(f"{EMBEDDING}.fp16", lambda: checkpoint.tensor(EMBEDDING).astype(np.float16))
        return graph.add("Cast", [graph.add("Gather", [table, ids], axis=0)], to=TensorProto.FLOAT)
    names = [f"{EMBEDDING}.int8", f"{EMBEDDING}.int8.scales"]
    table, scales = graph.weights(
        names, lambda: quantize_table(lambda part: checkpoint.tensor(EMBEDDING, part), (vocab, hidden))
    )
    rows = graph.add("Gather", [table, ids], axis=0)
    scale = graph.add("Unsqueeze", [graph.add("Gather", [scales, ids], axis=0), graph.constant([-1], np.int64)])
    return graph.add("Mul", [graph.add("Cast", [rows], to=TensorProto.FLOAT), scale])


@dataclass(frozen=True, slots=True)
class Stream:
    """What flows from block to block: the residual [S, H], and what the last block adds to it but has not yet."""

    residual: str
    update: Value | None = None


def settle(graph: GraphWriter, linears: Linears, stream: Stream) -> str:
    """Return the residual with its update added."""
    return (
        stream.residual if stream.update is None else graph.add("Add", [stream.residual, linears.plain(stream.update)])
    )


def add_norm(
    graph: GraphWriter, linears: Linears, stream: Stream, norm: str, readers: Sequence[str]
) -> tuple[Value, str]:
    """Settle the stream and normalize it by the RMSNorm ``norm``.

    Returns (the input of the maps ``readers``, the residual).

    Without readers the input is in float32.
    """
    update, weight, epsilon = stream.update, linears.norm_weight(norm), linears.checkpoint.arch.rms_eps
    if update is None:
        inputs = [stream.residual, weight]
        x = graph.add("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=epsilon, stash_type=1)
        return Value(x), stream.residual
    terms = linears.terms(*readers) if readers and update.scale is not None else 0
    if terms:
        residual, quantized = add_norm_quantize(
            graph, stream.residual, update, weight, epsilon, linears.checkpoint.arch.hidden_size, terms
        )
        return linears.adopt(quantized), residual
    residual, x = add_then_norm(graph, stream.residual, linears.plain(update), weight, epsilon)
    return Value(x), residual


def decoder_layer(
    graph: GraphWriter, linears: Linears, layer: int, stream: Stream, positions: Positions, wanted: str | None
) -> Stream:
    """Add one decoder layer.

    Args:
        graph: Where to add.
        linears: The linear maps.
        layer: Index of the layer.
        stream: Its input, [S, H].
        positions: Rotary tables and bias.
        wanted: In the last layer, the rows [N] whose output is needed; keys and values are still made for all.

    Returns:
        The output, [S, H] or [N, H].
    """
    prefix = f"model.layers.{layer}"
    attention, mlp = ([f"{prefix}.{name}" for name in names] for names in (_ATTENTION_READERS, _MLP_READERS))
    x, residual = add_norm(graph, linears, stream, f"{prefix}.input_layernorm", attention)
    update, residual = _attention(graph, linears, layer, x, residual, positions, wanted)
    x, residual = add_norm(graph, linears, Stream(residual, update), f"{prefix}.post_attention_layernorm", mlp)
    linears.seen["mlp_input"] = x.name
    return Stream(residual, _mlp(graph, linears, prefix, x))


_ATTENTION_READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP_READERS = ("mlp.gate_proj", "mlp.up_proj")


def _attention(
    graph: GraphWriter, linears: Linears, layer: int, x: Value, residual: str, positions: Positions, wanted: str | None
) -> tuple[Value, str]:
    """Add the attention block on ``x``.

    Returns (what it adds to the residual, the residual), both for the rows ``wanted``.
    """
    arch, prefix = linears.checkpoint.arch, f"model.layers.{layer}.self_attn"
    q_norm, k_norm = (
        linears.norm_weight(f"{prefix}.{name}") if arch.qk_norm else None for name in ("q_norm", "k_norm")
    )
    k = linears.biased(f"{prefix}.k_proj", x, arch.qkv_bias)
    v = linears.biased(f"{prefix}.v_proj", x, arch.qkv_bias)
    own = positions
    if wanted is not None:
        x, residual = linears.take(x, wanted), graph.add("Gather", [residual, wanted], axis=0)
        own = positions.take(graph, wanted)
    q = linears.biased(f"{prefix}.q_proj", x, arch.qkv_bias)
    terms = linears.terms(f"{prefix}.o_proj")
    # A norm per head divides a row scale out again, up to its epsilon, which is far below int8's rounding.
    q_name, k_name = (value.name if arch.qk_norm else linears.plain(value) for value in (q, k))
    if linears.precision(prefix) == "fp32":
        queries = rotate(graph, arch, q_name, arch.heads, own.cos, own.sin, q_norm)
        keys = rotate(graph, arch, k_name, arch.kv_heads, positions.cos, positions.sin, k_norm)
        attended = Value(float_attention(graph, arch, layer, queries, keys, linears.plain(v), own.sight))
        linears.seen |= {"attention_input": x.name, "queries": queries, "keys": keys, "attended": attended.name}
    else:
        terms8 = TERMS.get(linears.precision(prefix), 1)
        queries8 = rotate_queries(graph, arch, q_name, own.cos, own.sin, q_norm, terms8)
        mean = graph.weight(key_mean_name(layer), lambda: np.zeros((arch.kv_heads, arch.head_dim), dtype=np.float32))
        keys8 = rotate_keys(graph, arch, k_name, positions.cos, positions.sin, mean, k_norm)
        mixed = int8_attention(graph, arch, layer, queries8, keys8, quantize_values(graph, arch, v), own.sight)
        attended = (
            linears.adopt(quantize_mixed(graph, arch, mixed, terms))
            if terms
            else Value(plain_mixed(graph, arch, mixed))
        )
    return linears.biased(f"{prefix}.o_proj", attended, arch.o_bias), residual


def key_mean_name(layer: int) -> str:
    """Name of the mean of a layer's keys [kv_heads, d], spread: zero where it was not measured."""
    return f"model.layers.{layer}.self_attn.key_mean"


def _mlp(graph: GraphWriter, linears: Linears, prefix: str, x: Value) -> Value:
    """Add ``down(silu(gate(x)) * up(x))``, [rows, H]."""
    arch, down = linears.checkpoint.arch, f"{prefix}.mlp.down_proj"
    bias, terms = arch.mlp_bias, linears.terms(down)
    gate = linears.biased(f"{prefix}.mlp.gate_proj", x, bias)
    up = linears.biased(f"{prefix}.mlp.up_proj", x, bias)
    if gate.scale is not None and gate.scale == up.scale and terms:
        gated = linears.adopt(gate_quantize(graph, gate, up, arch.intermediate_size, terms))
    else:
        silu = graph.add("QuickGelu", [linears.plain(gate)], domain=MICROSOFT, alpha=1.0)
        # A row scale of up passes through to down, whose own row maxima do not mind it.
        gated = Value(graph.add("Mul", [silu, up.name]), up.scale)
        linears.seen["gated"] = gated.name
    return linears.biased(down, gated, bias)


@dataclass(frozen=True, slots=True)
class Readings:
    """Names of the values read off the hidden states: label logits [R, L], log-mass, entropy [R], logits [R, V]."""

    label_logits: str
    log_mass: str
    entropy: str
    logits: str


def head(graph: GraphWriter, linears: Linears, hidden: Value, label_ids: Sequence[int], distribution: str) -> Readings:
    """Add the reading of ``hidden`` [R, H].

    Label logits are products in fp32 whatever the precision of the vocabulary. Log-mass and entropy are empty where the
    scalar ``distribution`` is false: whoever writes draws from the logits, and needs neither.
    """
    checkpoint = linears.checkpoint
    name = checkpoint.head_name
    labels = graph.weight(
        "labels.weight", lambda: np.stack([checkpoint.tensor(name, slice(i, i + 1))[0] for i in label_ids], axis=1)
    )
    label_logits = graph.add("MatMul", [hidden.name, labels])
    # Without rows to read, the whole vocabulary's weights are not touched (and ReduceMax of no rows is not called).
    rows = graph.add("Gather", [graph.add("Shape", [hidden.name]), graph.constant(0, np.int64)])
    any_rows = graph.add("Greater", [rows, graph.constant(0, np.int64)])
    with graph.branch() as reading:
        product = _vocabulary_logits(graph, linears, hidden)
    with graph.branch() as nothing:
        size = graph.constant([0, checkpoint.arch.vocab_size], np.int64)
        no_logits = graph.add("ConstantOfShape", [size])
    (logits,) = graph.choose(any_rows, [(reading, [product]), (nothing, [no_logits])], [TensorProto.FLOAT])
    with graph.branch() as summing:
        sums = _distribution(graph, logits)
    with graph.branch() as leaving_out:
        empty = [graph.add("ConstantOfShape", [graph.constant([0], np.int64)]) for _ in range(2)]
    wanted = graph.add("And", [any_rows, distribution])
    log_mass, entropy = graph.choose(wanted, [(summing, sums), (leaving_out, empty)], [TensorProto.FLOAT] * 2)
    return Readings(label_logits, log_mass, entropy, logits)


def scalar_head(graph: GraphWriter, linears: Linears, hidden: str) -> str:
    """Add the reward [R, 1] of ``hidden`` [R, H], a product in fp32 whatever the precision of the others."""
    checkpoint = linears.checkpoint
    weight = graph.weight("score.weight", lambda: np.ascontiguousarray(checkpoint.tensor(checkpoint.head_name).T))
    return graph.add("MatMul", [hidden, weight])


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
    # stored twice, as columns here and as rows for the embedding: shared, all of it would stay in memory beside the
    # packed copy that the product makes; apart, the columns are let go and Gather touches few pages of the rows.
    return linears.plain(linears.int8(hidden, "lm_head", name, TERMS.get(kind, 1)))
