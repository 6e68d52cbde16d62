"""Opens a checkpoint, a model's folder in Hugging Face's form: its architecture, and its tensors by name.

Reads ``config.json`` as transformers 4 and 5 write it, without importing transformers. Whatever the exported graphs
could not compute faithfully is refused here, and the error names it; no setting is ever replaced by a guess.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.tensors import TensorInfo, index_shards, read_tensor, row_slices

MODEL_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""Supported ``model_type`` and the class that must have written the weights.

The same model with a scalar head, as trainers of reward models write it, has ``ForSequenceClassification`` in place of
``ForCausalLM``.
"""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SCALAR_HEAD = "score.weight"

_QWEN3_HEAD_DIM = 128  # the default of Qwen3Config, which is not hidden_size / heads


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3's scaling of rope, the rotary position encoding, for contexts longer than the original one.

    ``factor`` divides the low frequencies; ``Architecture.rope_frequencies`` has the whole formula.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a dense decoder: pre-norm RMSNorm, rotary attention with grouped KV heads, SwiGLU.

    Attributes:
        model_type: A key of ``MODEL_CLASSES``.
        hidden_size: Width of the residual stream.
        layers: Number of decoder layers.
        heads: Query heads; ``kv_heads`` divides it.
        kv_heads: Key and value heads.
        head_dim: Size of one head, even; not always ``hidden_size / heads``.
        intermediate_size: Width of the gated MLP.
        vocab_size: Rows of the embedding.
        rms_eps: Epsilon of every RMSNorm.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Llama-3 scaling, or None.
        tied: Whether the output head is the embedding.
        qkv_bias: Whether q_proj, k_proj and v_proj have biases.
        o_bias: Whether o_proj has one.
        mlp_bias: Whether gate_proj, up_proj and down_proj have them.
        qk_norm: Whether q and k are normalised per head (q_norm, k_norm of size ``head_dim``).
        context: ``max_position_embeddings``.
        sliding_window: Tokens each position attends to, itself included, or None for all.
        scalar: Whether the head gives one number, the reward, in place of the logits of all tokens.
    """

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_eps: float
    rope_theta: float
    rope_scaling: Llama3Rope | None
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    context: int
    sliding_window: int | None = None
    scalar: bool = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Architecture:
        """Read the parsed ``config.json``.

        Raises:
            UnsupportedCheckpointError: Naming what cannot be exported faithfully.
            ExportError: If a setting is missing or impossible.
        """
        _refuse_unsupported(config)
        kind = str(config["model_type"])
        scalar = config.get("architectures") == [_scalar_class(kind)]
        hidden, heads = _positive(config, "hidden_size"), _positive(config, "num_attention_heads")
        attention_bias = bool(config.get("attention_bias", False))
        theta, scaling = _rope(config)
        arch = cls(
            model_type=kind,
            hidden_size=hidden,
            layers=_positive(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_positive(config, "num_key_value_heads", heads),
            head_dim=_positive(config, "head_dim", _QWEN3_HEAD_DIM if kind == "qwen3" else hidden // heads),
            intermediate_size=_positive(config, "intermediate_size"),
            vocab_size=_positive(config, "vocab_size"),
            rms_eps=_positive_float(config, "rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            tied=bool(config.get("tie_word_embeddings", False)) and not scalar,
            qkv_bias=kind == "qwen2" or (attention_bias and kind != "mistral"),
            o_bias=attention_bias and kind in ("qwen3", "llama"),
            mlp_bias=kind == "llama" and bool(config.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            context=_positive(config, "max_position_embeddings"),
            sliding_window=_sliding_window(config),
            scalar=scalar,
        )
        if arch.heads % arch.kv_heads or arch.head_dim % 2:
            raise ExportError(
                f"config.json: {arch.heads} heads over {arch.kv_heads} KV heads of size {arch.head_dim} is impossible"
            )
        return arch

    def rope_frequencies(self) -> NDArray[np.float32]:
        """Return the angular frequency of each rotated pair, shape [head_dim/2], in radians per position.

        Source: transformers 5.23, modeling_rope_utils.py, ``_compute_default_rope_parameters`` and
        ``_compute_llama3_parameters``.
        """
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        plain = (1.0 / np.float32(self.rope_theta) ** exponent).astype(np.float32)
        if self.rope_scaling is None:
            return plain
        s = self.rope_scaling
        turns = s.original_context * plain / np.float32(2 * math.pi)
        smooth = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
        scaled: NDArray[np.float32] = ((1.0 - smooth) * plain / s.factor + smooth * plain).astype(np.float32)
        return scaled

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the checkpoint must have, by its Hugging Face name."""
        h, q, kv, ff = (
            self.hidden_size,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
            self.intermediate_size,
        )
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, h)}
        linears = {
            "self_attn.q_proj": (q, h, self.qkv_bias),
            "self_attn.k_proj": (kv, h, self.qkv_bias),
            "self_attn.v_proj": (kv, h, self.qkv_bias),
            "self_attn.o_proj": (h, q, self.o_bias),
            "mlp.gate_proj": (ff, h, self.mlp_bias),
            "mlp.up_proj": (ff, h, self.mlp_bias),
            "mlp.down_proj": (h, ff, self.mlp_bias),
        }
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (h,)
            for name, (rows, columns, bias) in linears.items():
                shapes[f"{prefix}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{prefix}{name}.bias"] = (rows,)
            if self.qk_norm:
                shapes[prefix + "self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[prefix + "self_attn.k_norm.weight"] = (self.head_dim,)
            shapes[prefix + "post_attention_layernorm.weight"] = (h,)
        shapes["model.norm.weight"] = (h,)
        if self.scalar:
            shapes[SCALAR_HEAD] = (1, h)
        elif not self.tied:
            shapes[HEAD] = (self.vocab_size, h)
        return shapes


class Checkpoint:
    """A checkpoint folder whose config and headers are checked. A tensor is read when asked for, and not kept."""

    def __init__(self, root: Path, arch: Architecture, tensors: dict[str, TensorInfo]) -> None:
        """Take what was checked already; to open a folder, use ``Checkpoint.open``."""
        self.root = root
        self.arch = arch
        self._tensors = tensors

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder that ``save_pretrained`` wrote.

        Raises:
            ExportError: If a file or tensor is missing, truncated, or of another shape than the config says.
            UnsupportedCheckpointError: Naming what cannot be exported faithfully.
        """
        root = Path(path)
        config = read_config(root)
        arch = Architecture.from_config(config)
        found = {name: info for name, info in index_shards(root).items() if not name.endswith(".rotary_emb.inv_freq")}
        if arch.tied and HEAD in found:
            _check_tied(root, found)
            del found[HEAD]
        expected = arch.tensor_shapes()
        for name, shape in expected.items():
            if name not in found:
                kind = _scalar_class(arch.model_type) if arch.scalar else MODEL_CLASSES[arch.model_type]
                raise ExportError(f"{root} has no tensor {name}; a {kind} of this config needs it")
            if found[name].shape != shape:
                raise ExportError(
                    f"{found[name].file}: tensor {name} has shape {list(found[name].shape)}, "
                    f"config.json implies {list(shape)}"
                )
        surplus = sorted(set(found) - set(expected))
        if surplus:
            raise UnsupportedCheckpointError(
                f"{root} holds {len(surplus)} tensors that {arch.model_type} does not use, such as {surplus[0]}"
            )
        return cls(root, arch, {name: found[name] for name in expected})

    def names(self) -> list[str]:
        """Return the names of the tensors in model order; a tied head is left out."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return the dtype in which a tensor is stored: "F32", "F16" or "BF16"."""
        return self._tensors[name].dtype

    def files(self) -> list[Path]:
        """Return the files of the weights (the shards), in name order."""
        return sorted({info.file for info in self._tensors.values()})

    @property
    def head_name(self) -> str:
        """Name of the tensor that maps hidden states to logits, [vocab_size, hidden_size], or to a reward, [1, ...]."""
        return SCALAR_HEAD if self.arch.scalar else EMBEDDING if self.arch.tied else HEAD

    def tensor(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Read a tensor, or some consecutive rows of it, as float32 in Hugging Face's layout ([out, in] for linears).

        Raises:
            KeyError: If there is no such tensor.
            ExportError: If a value is NaN or infinite.
        """
        values = read_tensor(self._tensors[name], rows)
        # If the sum is finite, every value is, and no array of flags is needed. Otherwise the sum may have overflowed,
        # and only a look at each value tells.
        if not np.isfinite(values.sum(dtype=np.float64)) and not np.isfinite(values).all():
            raise ExportError(
                f"{self._tensors[name].file}: tensor {name} holds NaN or infinite weights; the training run is broken"
            )
        return values


def _adapter_task(root: Path) -> object:
    """Return the ``task_type`` of the adapter in a folder; None where it does not say."""
    try:
        return json.loads((root / "adapter_config.json").read_text("utf-8")).get("task_type")
    except (OSError, ValueError, AttributeError):
        return None


def read_config(root: Path) -> dict[str, Any]:
    """Return the parsed ``config.json`` of a checkpoint folder.

    Raises:
        ExportError: If the folder or the file is missing or not a JSON object.
        UnsupportedCheckpointError: If the folder holds an adapter instead of a model.
    """
    if not root.is_dir():
        raise ExportError(f"{root} is not a folder; expected a Hugging Face checkpoint folder")
    path = root / "config.json"
    if (root / "adapter_config.json").is_file():  # beside a model, too: transformers would apply it
        kind = "SequenceClassification" if _adapter_task(root) == "SEQ_CLS" else "CausalLM"
        line = f"AutoPeftModelFor{kind}.from_pretrained('{root}').merge_and_unload().save_pretrained('merged')"
        raise UnsupportedCheckpointError(
            f'{root} holds a LoRA adapter; merge it into its base model: python -c "from peft import *; {line}", '
            "and put the base model's tokenizer files beside it"
        )
    if not path.is_file():
        raise ExportError(f"{root} has no config.json; expected a Hugging Face checkpoint folder")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{path} holds a {type(config).__name__}, expected an object")
    return config


def _refuse_unsupported(config: dict[str, Any]) -> None:
    """Raise an error if the config asks for anything that the exported graphs could not compute faithfully."""
    kind = config.get("model_type")
    if any(
        config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
    ) or "moe" in str(kind):
        raise UnsupportedCheckpointError(
            f"model_type {kind!r} is a mixture of experts; only dense models can be exported"
        )
    if kind not in MODEL_CLASSES:
        raise UnsupportedCheckpointError(
            f"model_type {kind!r} is not supported, expected one of {', '.join(MODEL_CLASSES)}"
        )
    classes = config.get("architectures") or [MODEL_CLASSES[kind]]
    known = MODEL_CLASSES[kind], _scalar_class(kind)
    if any("ProcessReward" in str(name) or "TokenClassification" in str(name) for name in classes):
        raise UnsupportedCheckpointError(
            f"the checkpoint is a {', '.join(map(str, classes))}, a process reward model, which scores the steps of an "
            f"answer one by one; expected {' or '.join(known)}, which scores whole answers"
        )
    if len(classes) != 1 or classes[0] not in known:
        raise UnsupportedCheckpointError(
            f"the checkpoint is a {', '.join(map(str, classes))}, expected {' or '.join(known)}"
        )
    outputs = len(config.get("id2label") or {}) or config.get("num_labels") or 2  # 2 is the default of transformers
    if classes[0] == known[1] and outputs != 1:
        raise UnsupportedCheckpointError(
            f"the head of the checkpoint has {outputs} outputs (id2label in config.json), expected 1, the reward; "
            "which of several would be the reward is not known"
        )
    if config.get("quantization_config"):
        raise UnsupportedCheckpointError(
            "the checkpoint is quantized already (quantization_config); export the full-precision weights"
        )
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedCheckpointError(f"hidden_act {config['hidden_act']!r} is not supported, expected 'silu'")
    # transformers' Qwen2 and Mistral ignore attention_bias; a config that sets it means some other code.
    if kind in ("qwen2", "mistral") and config.get("attention_bias"):
        raise UnsupportedCheckpointError(f"attention_bias is set, which {MODEL_CLASSES[kind]} does not know")


def _scalar_class(kind: str) -> str:
    """Return the class of a model type with a head for classification."""
    return MODEL_CLASSES.get(kind, "").replace("ForCausalLM", "ForSequenceClassification")


def _rope(config: dict[str, Any]) -> tuple[float, Llama3Rope | None]:
    """Return the base of rope's frequencies (theta) and the scaling, which is None for plain rope.

    transformers 5 writes both into ``rope_parameters``, transformers 4 into ``rope_theta`` and ``rope_scaling``.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    thetas = {float(t) for t in (config.get("rope_theta"), rope.get("rope_theta")) if t is not None}
    if not thetas:
        raise ExportError(
            "config.json gives no rope_theta (neither at the top nor in rope_parameters); "
            "write the base the model was trained with"
        )
    if len(thetas) > 1:
        raise ExportError(
            f"config.json gives two values of rope_theta, {sorted(thetas)}; keep the one the model was trained with"
        )
    if float(rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)) != 1.0:
        raise UnsupportedCheckpointError("partial_rotary_factor other than 1 is not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return thetas.pop(), None
    if kind != "llama3":
        raise UnsupportedCheckpointError(f"rope scaling {kind!r} is not supported, expected 'default' or 'llama3'")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in keys if key not in rope]
    if missing:
        raise ExportError(f"config.json: llama3 rope scaling lacks {', '.join(missing)}")
    factor, low, high, original = (float(rope[key]) for key in keys)
    if not (factor >= 1 and high > low > 0 and original > 0):
        raise ExportError(f"config.json: llama3 rope scaling {rope} is impossible")
    return thetas.pop(), Llama3Rope(factor, low, high, int(original))


def _sliding_window(config: dict[str, Any]) -> int | None:
    if config["model_type"] == "mistral":
        window = config.get("sliding_window", 4096)  # as transformers takes a config without it; null is no window
    else:
        window = config.get("sliding_window") if config.get("use_sliding_window") else None
        if "sliding_attention" in (config.get("layer_types") or ()) and window is None:
            raise UnsupportedCheckpointError("layer_types names sliding attention without a sliding window")
    return None if window is None else int(window)


def _positive(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExportError(f"config.json: {key} is {value!r}, expected a positive whole number")
    return value


def _positive_float(config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ExportError(f"config.json: {key} is {value!r}, expected a number between 0 and 1")
    return float(value)


def _check_tied(root: Path, found: dict[str, TensorInfo]) -> None:
    """Refuse a head that is tied to the embedding and yet stored with other values.

    One of the two would be dropped, and nobody would notice.
    """
    head, embedding = found[HEAD], found.get(EMBEDDING)
    if embedding is None or head.shape != embedding.shape:
        raise ExportError(f"{root}: {HEAD} and {EMBEDDING} must have one shape, since config.json ties them")
    for rows in row_slices(head.shape):
        if not np.array_equal(read_tensor(head, rows), read_tensor(embedding, rows)):
            raise ExportError(
                f"{root}: config.json ties the head to the embedding, but {HEAD} differs from {EMBEDDING}; "
                "set tie_word_embeddings to false"
            )
