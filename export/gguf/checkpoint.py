"""A GGUF back to a Hugging Face checkpoint: the other direction of ``writer``, for models that come as GGUF only.

Weights are dequantized, so the checkpoint is exactly the model that llama.cpp runs, as far as float32 goes.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError, missing_extra
from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, HEAD, MODEL_CLASSES
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME
from fsrm_lite.export.gguf.tokenizer import write_tokenizer
from fsrm_lite.export.gguf.writer import GGUF_ARCHITECTURE, hugging_face_name

ARCHITECTURES = sorted(set(GGUF_ARCHITECTURE.values()))
"""Values of ``general.architecture`` that can be brought back; each is a ``model_type`` of the same name, too."""


def write_checkpoint(gguf_path: Path, folder: Path, *, tokenizer: Path | None = None) -> None:
    """Write the model in a GGUF file as a checkpoint folder that ``fsrm-lite export`` and transformers read.

    Args:
        gguf_path: A dense model of one of ``ARCHITECTURES``; matrices of any type that the gguf library dequantizes.
        folder: Folder to create: ``config.json``, ``model.safetensors`` (float32), ``tokenizer.json`` and
            ``tokenizer_config.json``.
        tokenizer: A ``tokenizer.json`` to copy instead of building one from the file's own tokens and merges.

    Raises:
        MissingExtraError: If gguf or safetensors is not installed.
        UnsupportedCheckpointError: If the architecture, the rope scaling, a sliding window or the tokenizer cannot be
            brought back.
        ExportError: If the file is missing or damaged.
    """
    try:
        from gguf import GGUFReader, dequantize
        from safetensors.numpy import save_file
    except ImportError as error:
        raise missing_extra("gguf with safetensors", "export", error) from error
    try:
        reader = GGUFReader(str(gguf_path))
        entries = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ExportError(f"{gguf_path} cannot be read as GGUF: {error}") from error
    kind = entries.get("general.architecture")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedCheckpointError(f"{gguf_path} holds the architecture {kind!r}, expected one of {known}")
    _check_rotation(gguf_path, kind, entries)
    tensors: dict[str, NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise UnsupportedCheckpointError(
                f"{gguf_path} scales its rotary frequencies, in a form that no config.json has"
            )
        name = hugging_face_name(tensor.name)
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        heads = {"q_proj": "head_count", "k_proj": "head_count_kv"}.get(name.split(".")[-2])
        if kind == "llama" and heads is not None:
            values = _halves(values, int(entries[f"llama.attention.{heads}"]))
        tensors[name] = values
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(kind, entries, tensors))
    if tokenizer is None:
        write_tokenizer(folder, entries)
    else:
        copyfile(tokenizer, folder / TOKENIZER_NAME)


def _check_rotation(path: Path, kind: str, entries: dict[str, Any]) -> None:
    """Refuse a model that turns its positions, or looks back, in another way than ``_config`` can say."""
    heads, hidden = int(entries[f"{kind}.attention.head_count"]), int(entries[f"{kind}.embedding_length"])
    head_dim = int(entries.get(f"{kind}.attention.key_length", hidden // heads))
    plain = {"rope.scaling.type": "none", "attention.sliding_window": 0, "rope.dimension_count": head_dim}
    for name, usual in plain.items():
        value = entries.get(f"{kind}.{name}", usual)
        if value != usual:
            raise UnsupportedCheckpointError(f"{path} says {kind}.{name} = {value!r}, expected {usual!r} or nothing")


def _halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's order of a head's rows: neighbouring pairs become halves, as Hugging Face rotates them."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _config(kind: str, entries: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    def entry(name: str) -> Any:  # noqa: ANN401 - a number or a list
        return entries[f"{kind}.{name}"]

    heads, hidden = int(entry("attention.head_count")), int(entry("embedding_length"))
    attention_bias = "model.layers.0.self_attn.q_proj.bias" in tensors
    return {
        "architectures": [MODEL_CLASSES[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "tie_word_embeddings": HEAD not in tensors,
        **({} if kind == "qwen2" else {"attention_bias": attention_bias}),
        **({"mlp_bias": "model.layers.0.mlp.up_proj.bias" in tensors} if kind == "llama" else {}),
        "vocab_size": tensors[EMBEDDING].shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": int(entry("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(entry("attention.head_count_kv")),
        "head_dim": int(entries.get(f"{kind}.attention.key_length", hidden // heads)),
        "intermediate_size": int(entry("feed_forward_length")),
        "max_position_embeddings": int(entry("context_length")),
        "rope_theta": _shortest(entries.get(f"{kind}.rope.freq_base", 10_000.0)),  # the format's own default
        "rms_norm_eps": _shortest(entry("attention.layer_norm_rms_epsilon")),
        **{
            f"{name}_token_id": int(entries[f"tokenizer.ggml.{name}_token_id"])
            for name in ("bos", "eos")
            if f"tokenizer.ggml.{name}_token_id" in entries
        },
    }


def _shortest(value: float) -> float:
    """The number as the config had it: the shortest of those that float32 does not tell apart."""
    return float(str(np.float32(value)))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
