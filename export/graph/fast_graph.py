"""Checkpoint to the fast ONNX graph: reads packed token rows, gives label logits at the positions that were asked for.

Why an own writer. optimum-onnx exports through tracing: no fused operators, logits of the whole vocabulary at every
position, transformers pinned below 5; onnxruntime-genai's builder is faster but fixes the interface (one sequence,
GroupQueryAttention, whose CPU kernel ignores position ids on a first prompt, so that nothing can be packed) and
quantizes either block-wise, at a third of the speed, or not at all. This graph needs things that neither gives:
label logits, log-mass, entropy and hidden states at chosen positions only; KV in and out with packed candidates behind
a shared past; row-wise int8 activations, so that a score does not depend on what else is in the batch; a precision per
MatMul; and a last layer that works for the wanted positions alone. The four architectures differ in three places, so
the whole writer is shorter than the patches to another one would be.

Inputs, with S new tokens in one row, P tokens of past, T = P + S, N wanted positions, E hidden states carried over:
    input_ids int64 [S], position_ids int64 [1, S], bias float32 [S, T] (added to attention scores: 0 or very negative),
    wanted int64 [N] (rows of this call), carry float32 [E, H], head_rows int64 [R] (rows of wanted ++ carry),
    distribution bool (whether log_mass and entropy are wanted), writing bool, cells int64 [S], segments int64
    [S, K, 2],
    past_*.i, the keys and values of layer i (and their scales, where attention is int8), each with one axis P.
Where writing is true, the past is a pool of P cells, which the keys and values of several sequences share. Those of
token s of this call go to its cell, and it attends to segments of cells, each from its first up to but not including
its last; bias has no columns, and present_*.i has P cells as well. past_key.i in int8 then holds the bytes of
[kv_heads, P, head_dim], whatever its shape says. Where writing is false, cells and segments say nothing.
Outputs:
    label_logits float32 [R, L], log_mass [R] (logsumexp of the whole vocabulary), entropy [R] (nats), both empty where
    they are not wanted, logits float32 [R, V] (of the whole vocabulary, for who writes with the graph),
    hidden [N, H] (after the final norm), intermediate [N, H] (the residual stream behind the attention of the
    ``intermediate_layer``, for critics), present_*.i with T for P.
A scalar head gives the reward [R, 1] as label_logits; distribution, log_mass, entropy, logits and intermediate are not
there then. Nor is intermediate where there is one layer only.
The head reads the whole vocabulary's weights, so callers run many short rows with ``head_rows`` empty, carry the hidden
states along and ask for all readings in the last call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from onnx import TensorProto

from fsrm_lite.errors import ExportError
from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.graph.attention import Pool, Sight
from fsrm_lite.export.graph.layers import Positions, Stream, add_norm, decoder_layer, embedding, head, scalar_head
from fsrm_lite.export.graph.linear import Linears, Value
from fsrm_lite.export.graph.weights import Weights
from fsrm_lite.export.graph.writer import INLINE_LIMIT_BYTES, GraphWriter, WeightStore

CHUNK_TOKENS, ROW_TOKENS = 256, 256
"""How a prefix is cut, and how much is packed into one run.

Wide enough for fast products, narrow enough that activations
stay near and attention does little of the masked half. Measured in benchmarks/NOTES.md."""

INTERMEDIATE_DEPTH = 7, 10
"""Where the intermediate layer stands: seven tenths of all layers are before it.

Of SmolLM2-135M's 30 layers, the mean of the states around this one says most about whether a solution is right.
Measured in benchmarks/NOTES.md.
"""

FastPrecision = Literal["fp32", "int8x2", "int8", "int4"]
"""How a MatMul is computed: in float32, in 8 bits with its input in two terms of 8 bits or in one, or in 4 bits."""


def matmul_names(arch: Architecture) -> list[str]:
    """Names of everything whose precision can be chosen, in model order, the head last.

    Linear maps have their module's name; ``self_attn`` is the products inside attention (int4 means int8 there);
    ``lm_head`` includes the embedding. A scalar head is a product in float32 and not among them.
    """
    parts = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    layers = [f"model.layers.{i}.{part}" for i in range(arch.layers) for part in parts]
    return layers if arch.scalar else [*layers, "lm_head"]


def write_fast_graph(
    checkpoint: Weights,
    out_path: Path,
    label_ids: Sequence[int],
    *,
    precision: FastPrecision = "int8",
    keep: Mapping[str, str] | None = None,
    weights: WeightStore | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the fast graph of a checkpoint.

    Args:
        checkpoint: Source of shapes and weights, a :class:`fsrm_lite.export.checkpoints.checkpoint.Checkpoint` or one
            rescaled.
        out_path: The ``.onnx`` file; overwritten. Large models get ``out_path + ".data"`` beside it.
        label_ids: Token ids of the labels, in the manifest's order.
        precision: Of every MatMul that ``keep`` does not name.
        keep: Precision by MatMul name, see :func:`matmul_names`.
        weights: From :func:`open_store`, for writing several graphs of the same weights; the data file then holds what
            any of them used, until :func:`fsrm_lite.export.graph.writer.drop_unused`.
        progress: Called as ``progress(layers done, layers)``.

    Returns:
        The files written, the model first.

    Raises:
        ExportError: On a label id outside the vocabulary or an unknown MatMul or precision.
    """
    arch = checkpoint.arch
    keep = dict(keep or {})
    _check(arch, label_ids, precision, keep)
    store = weights or open_store(arch, out_path)
    graph = GraphWriter(out_path, store)
    _write(
        graph, checkpoint, label_ids, Linears(graph, checkpoint, precision, keep), progress or (lambda done, of: None)
    )
    graph.save(_metadata(arch, label_ids, precision, keep))
    return [out_path] if store.path is None else [out_path, store.path]


def intermediate_layer(arch: Architecture) -> int:
    """Return the index of the layer whose residual stream the graph gives besides the last hidden state."""
    tenths, of = INTERMEDIATE_DEPTH
    return min(tenths * arch.layers // of, max(0, arch.layers - 2))


def open_store(arch: Architecture, out_path: Path) -> WeightStore:
    """A store for the weights of the graph at ``out_path``: beside it where they are large."""
    size = 4 * sum(math.prod(shape) for shape in arch.tensor_shapes().values())
    return WeightStore(out_path.with_name(out_path.name + ".data") if size > INLINE_LIMIT_BYTES else None)


def _write(
    graph: GraphWriter,
    checkpoint: Weights,
    label_ids: Sequence[int],
    linears: Linears,
    progress: Callable[[int, int], None],
) -> None:
    arch = checkpoint.arch
    ids = graph.input("input_ids", TensorProto.INT64, ["S"])
    position_ids = graph.input("position_ids", TensorProto.INT64, [1, "S"])
    bias = graph.input("bias", TensorProto.FLOAT, ["S", "T"])
    wanted = graph.input("wanted", TensorProto.INT64, ["N"])
    carry = graph.input("carry", TensorProto.FLOAT, ["E", arch.hidden_size])
    head_rows = graph.input("head_rows", TensorProto.INT64, ["R"])
    distribution, pool = None, None
    if not arch.scalar:  # a scalar head gives no logits to draw from, so that its graph cannot write
        distribution = graph.input("distribution", TensorProto.BOOL, [])
        writing = graph.input("writing", TensorProto.BOOL, [])
        cells = graph.input("cells", TensorProto.INT64, ["S"])
        segments = graph.input("segments", TensorProto.INT64, ["S", "K", 2])
        pool = Pool(writing, cells, segments)
    positions = Positions.of(graph, arch, position_ids, Sight(bias, pool))
    stream = Stream(embedding(graph, linears, ids))
    for layer in range(arch.layers):
        graph.scope = f"layers.{layer}"
        last = wanted if layer == arch.layers - 1 else None
        stream = decoder_layer(graph, linears, layer, stream, positions, last)
        if layer == intermediate_layer(arch) and layer < arch.layers - 1 and not arch.scalar:
            # The residual as it is: what the layer's second half adds to it is settled only in the next layer.
            rows = graph.add("Gather", [stream.residual, wanted], axis=0)
            graph.output("intermediate", rows, TensorProto.FLOAT, ["N", arch.hidden_size])
        progress(layer + 1, arch.layers)
    graph.scope = "head"
    hidden = add_norm(graph, linears, stream, "model.norm", ())[0].name
    rows = graph.add("Gather", [graph.add("Concat", [hidden, carry], axis=0), head_rows], axis=0)
    if distribution is None:
        graph.output("label_logits", scalar_head(graph, linears, rows), TensorProto.FLOAT, ["R", 1])
    else:
        readings = head(graph, linears, Value(rows), label_ids, distribution)
        graph.output("label_logits", readings.label_logits, TensorProto.FLOAT, ["R", len(label_ids)])
        graph.output("log_mass", readings.log_mass, TensorProto.FLOAT, ["R"])
        graph.output("entropy", readings.entropy, TensorProto.FLOAT, ["R"])
        graph.output("logits", readings.logits, TensorProto.FLOAT, ["R", arch.vocab_size])
    graph.output("hidden", hidden, TensorProto.FLOAT, ["N", arch.hidden_size])


def _metadata(arch: Architecture, label_ids: Sequence[int], precision: str, keep: Mapping[str, str]) -> dict[str, str]:
    """What the runtime must know.

    The widths decide how sequences are cut into runs, see fsrm_lite/runtimes/onnx/packing.py.
    """
    return {
        "fsrm.format": "4",
        "fsrm.vocab_size": str(arch.vocab_size),
        "fsrm.hidden_size": str(arch.hidden_size),
        "fsrm.labels": json.dumps(list(label_ids)),
        **({"fsrm.head": "scalar"} if arch.scalar else {}),
        "fsrm.chunk": str(CHUNK_TOKENS),
        "fsrm.row": str(ROW_TOKENS),
        "fsrm.precision": precision,
        "fsrm.keep": json.dumps(keep, sort_keys=True),
    }


def _check(arch: Architecture, label_ids: Sequence[int], precision: str, keep: Mapping[str, str]) -> None:
    outside = [i for i in label_ids if not 0 <= i < arch.vocab_size]
    if arch.scalar and label_ids:
        raise ExportError(f"label ids {list(label_ids)}: a scalar head has no labels")
    if not arch.scalar and (outside or len(label_ids) < 2):
        raise ExportError(
            f"label ids {list(label_ids)}: expected at least two ids below the vocabulary size {arch.vocab_size}"
        )
    known = set(matmul_names(arch))
    for name, kind in [("precision", precision), *keep.items()]:
        if kind not in get_args(FastPrecision):
            raise ExportError(
                f"{name}: unknown precision {kind!r}, expected one of {', '.join(get_args(FastPrecision))}"
            )
        if name != "precision" and name not in known:
            raise ExportError(
                f"no MatMul is named {name!r}; names look like 'model.layers.0.mlp.down_proj' or 'lm_head'"
            )
