"""Writes a checkpoint as a GGUF file, llama.cpp's format, in F32, F16 or BF16, a few rows at a time.

It uses the ``gguf`` library. Quantization to Q8_0 and the K-quants is a second step, which llama.cpp itself takes
(``fsrm_lite.runtimes.llama.engine.quantize``) with the file that is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError, missing_extra
from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, HEAD, Architecture, Checkpoint
from fsrm_lite.export.checkpoints.tensors import CHUNK_BYTES, row_slices
from fsrm_lite.export.checkpoints.vocabulary import Vocabulary
from fsrm_lite.export.graph.weights import Weights

GGUF_ARCHITECTURE = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "mistral": "llama"}
"""``model_type`` of config.json, and ``general.architecture`` of the GGUF file. To llama.cpp, a Mistral is a Llama."""

_FILE_TYPE = {"f32": 0, "f16": 1, "bf16": 32}
_WIDTH = {"f32": 4, "f16": 2, "bf16": 2}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_NAMES = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def native_dtype(checkpoint: Checkpoint) -> str:
    """Return the GGUF dtype that loses nothing: "bf16" or "f16" if every matrix is stored so, else "f32"."""
    stored = {checkpoint.dtype(name) for name in checkpoint.names() if len(checkpoint.shape(name)) == 2}
    return {frozenset({"BF16"}): "bf16", frozenset({"F16"}): "f16"}.get(frozenset(stored), "f32")


def check_writable(arch: Architecture) -> None:
    """Refuse, before any work, an architecture that llama.cpp has no place for.

    Raises:
        UnsupportedCheckpointError: Saying what to do instead.
    """
    if arch.scalar:
        raise UnsupportedCheckpointError("a model with a scalar head cannot think; export with --slow none")
    if arch.model_type == "qwen3" and arch.qkv_bias:
        raise UnsupportedCheckpointError(
            "llama.cpp's qwen3 has no attention biases (attention_bias in config.json); export with --slow none"
        )


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a Hugging Face tensor, for example ``blk.0.attn_q.weight``."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"


def hugging_face_name(name: str) -> str:
    """Return Hugging Face's name of a llama.cpp tensor, the reverse of ``gguf_name``.

    Raises:
        UnsupportedCheckpointError: If no architecture of the exporter has such a tensor.
    """
    top = {theirs: ours for ours, theirs in _TOP_NAMES.items()}
    if name in top:
        return top[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    module, _, kind = rest.rpartition(".")
    modules = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}
    if block != "blk" or module not in modules:
        raise UnsupportedCheckpointError(f"the GGUF tensor {name} has no place in a dense Llama, Qwen2 or Qwen3 model")
    return f"model.layers.{layer}.{modules[module]}.{kind}"


def write_gguf(
    checkpoint: Weights,
    vocabulary: Vocabulary,
    out: Path,
    *,
    dtype: str = "f16",
    name: str = "model",
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint as one GGUF file; norms and biases stay float32.

    Args:
        checkpoint: What to write: a ``Checkpoint``, or one whose weights were rescaled.
        vocabulary: Its tokenizer, as ``read_vocabulary`` returns it.
        out: File to create.
        dtype: Dtype of the matrices: "f32", "f16" or "bf16".
        name: Written as ``general.name``.
        progress: Called after each piece with bytes done and bytes in all.

    Raises:
        ExportError: If a weight is NaN, infinite, or beyond float16's range with ``dtype="f16"``.
        UnsupportedCheckpointError: If llama.cpp has no place for one of the tensors.
    """
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "export", error) from error
    arch = checkpoint.arch
    check_writable(arch)
    writer = gguf.GGUFWriter(str(out), GGUF_ARCHITECTURE[arch.model_type])
    try:
        _add_metadata(writer, arch, name, _FILE_TYPE[dtype])
        _add_vocabulary(writer, vocabulary)
        plan = _plan(checkpoint, dtype)
        for tensor, (shape, kind) in plan.items():
            raw = getattr(gguf.GGMLQuantizationType, kind.upper())
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), math.prod(shape) * _WIDTH[kind], raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(writer, checkpoint, plan, progress)
    finally:
        writer.close()


def _add_metadata(writer: Any, arch: Architecture, name: str, file_type: int) -> None:  # noqa: ANN401 - gguf has no types
    """Write the name and the shape of the model, and the dtype of the file."""
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(arch.context)
    writer.add_embedding_length(arch.hidden_size)
    writer.add_block_count(arch.layers)
    writer.add_feed_forward_length(arch.intermediate_size)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_layer_norm_rms_eps(arch.rms_eps)
    writer.add_rope_freq_base(arch.rope_theta)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_vocab_size(arch.vocab_size)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:  # noqa: ANN401 - gguf has no types
    """Write the tokenizer. To llama.cpp, "gpt2" is any byte-level BPE."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for kind in ("bos", "eos", "pad"):
        token_id = getattr(vocabulary, kind)
        if token_id is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
    # Prompts come as complete ids. Without this, llama.cpp would by default put a BOS before them with some splits.
    writer.add_add_bos_token(False)


def _plan(checkpoint: Weights, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and the dtype of each tensor by its GGUF name, in file order."""
    plan: dict[str, tuple[tuple[int, ...], str]] = {}
    if checkpoint.arch.rope_scaling is not None:
        plan["rope_freqs.weight"] = ((checkpoint.arch.head_dim // 2,), "f32")
    for name, shape in checkpoint.arch.tensor_shapes().items():
        plan[gguf_name(name)] = (shape, dtype if len(shape) == 2 else "f32")
    return plan


def _write_tensors(
    writer: Any,  # noqa: ANN401 - gguf has no types
    checkpoint: Weights,
    plan: dict[str, tuple[tuple[int, ...], str]],
    progress: Progress | None,
) -> None:
    """Write the tensors in the order of ``plan``, each followed by the padding that the format asks for."""
    # The library's write_tensor_data takes whole tensors only. So the pieces go straight into the writer's file.
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    total = sum(math.prod(shape) * _WIDTH[kind] for shape, kind in plan.values())
    sources = {gguf_name(name): name for name in checkpoint.arch.tensor_shapes()}
    done = 0
    for tensor, (shape, kind) in plan.items():
        size = math.prod(shape) * _WIDTH[kind]
        pieces = _pieces(checkpoint, sources[tensor]) if tensor in sources else iter([_rope_factors(checkpoint.arch)])
        for piece in pieces:
            _encode(piece, kind, sources.get(tensor, tensor)).tofile(file)
            done += piece.size * _WIDTH[kind]
            if progress is not None:
                progress(done, total)
        writer.write_padding(file, size)


def _pieces(checkpoint: Weights, name: str) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of a tensor in llama.cpp's order, in pieces of bounded size."""
    arch, shape = checkpoint.arch, checkpoint.shape(name)
    if GGUF_ARCHITECTURE[arch.model_type] == "llama" and (".q_proj." in name or ".k_proj." in name):
        # The rows are put into another order within each head. Rope rotates pairs of rows: neighbours in llama.cpp's
        # llama, but a row of the first half with one of the second half in Hugging Face's.
        heads_at_once = max(1, CHUNK_BYTES // (4 * arch.head_dim * math.prod(shape[1:])))
        for start in range(0, shape[0], heads_at_once * arch.head_dim):
            rows = checkpoint.tensor(name, slice(start, start + heads_at_once * arch.head_dim))
            yield rows.reshape(-1, 2, arch.head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        return
    for part in row_slices(shape):
        yield checkpoint.tensor(name, part)


def _rope_factors(arch: Architecture) -> NDArray[np.float32]:
    """Return what llama.cpp divides each plain frequency of rope by, shape [head_dim/2]."""
    exponent = np.arange(0, arch.head_dim, 2, dtype=np.float64) / arch.head_dim
    return (arch.rope_theta**-exponent / arch.rope_frequencies()).astype(np.float32)


def _encode(values: NDArray[np.float32], kind: str, name: str) -> NDArray[Any]:
    """Return the values as the file stores them: float32, float16, or bfloat16 in the form of uint16."""
    if kind == "f32":
        return values
    if kind == "f16":
        if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise ExportError(
                f"tensor {name} holds weights beyond float16's range; export with --slow q8_0 or another quantized kind"
            )
        return values.astype(np.float16)
    # Round to the nearest bfloat16, and ties to the even one. A checkpoint in bfloat16 stays exactly what it was.
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
