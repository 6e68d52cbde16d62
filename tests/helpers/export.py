"""Builds tiny random checkpoints, with a real tokenizer, the way transformers would save them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CORPUS = [
    "Question: Tom has 3 apples and buys 14 more. How many apples has Tom now?",
    "Answer: Tom has 17 apples. Is the answer correct? Yes or No.",
    "Think, then say if the answer is correct. Yes. No. The answer is 42, because 6 * 7 = 42.",
    "Assistant 1: five. Assistant 2: six. Choose the better one. \\boxed{Assistant 1} \\boxed{Assistant 2}",
]
FAMILIES = ("qwen2", "qwen3", "llama", "mistral")

FAST = (
    "<|im_start|>user\nQuestion: {prompt}\nAnswer: {response}\nIs the answer correct?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
SLOW = (
    "<|im_start|>user\nQuestion: {prompt}\nAnswer: {response}\nThink, then say.<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n"
)
PAIR = (
    "<|im_start|>user\nQuestion: {prompt}\nAssistant 1: {response_a}\nAssistant 2: {response_b}\n"
    "Choose the better one.<|im_end|>\n<|im_start|>assistant\n<think>\n"
)
SPEC = {
    "name": "tiny",
    "license": "apache-2.0",
    "labels": [{"text": "Yes", "value": 1}, {"text": "No", "value": 0}],
    "templates": {
        "pointwise_fast": {"text": FAST},
        "pointwise_slow": {
            "text": SLOW,
            "verdict": {"close": "</think>\n\n", "prefix": "", "choices": ["Yes", "No"], "values": [1, 0]},
        },
        "pairwise_slow": {
            "text": PAIR,
            "verdict": {"close": "</think>\n\n", "prefix": "\\boxed{Assistant ", "choices": ["1", "2"], "suffix": "}"},
        },
    },
    "stop": ["<|im_end|>"],
    "limits": {"context": 256, "thinking_tokens": 24},
    "gate": {"intuition_threshold": 0.05},
}


def build_tokenizer(split: str | None = QWEN_SPLIT, vocab_size: int = 420) -> Tokenizer:
    """A small byte-level BPE; ``split=None`` is GPT-2's own pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3 + ["Yes No"] * 50, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ADDED])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))


def build_model(family: str, *, seed: int = 0, scale: float = 0.15, **overrides):
    """A random transformers model of an awkward shape; biases and norms are random too, so that none can hide."""
    import torch
    import transformers

    torch.manual_seed(seed)
    names = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral"}
    shape = {
        "vocab_size": 433,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "rms_norm_eps": 1e-5,
        "initializer_range": scale,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family in ("qwen3", "llama", "mistral"):
        shape["head_dim"] = 24
    if family == "mistral":
        shape["sliding_window"] = None
    config = getattr(transformers, f"{names[family]}Config")(**{**shape, **overrides})
    model = getattr(transformers, f"{names[family]}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, scale)
            elif "norm" in name:
                parameter.uniform_(0.6, 1.4)
    return model


def make_checkpoint(
    folder: Path,
    family: str = "qwen3",
    *,
    dtype: str = "float32",
    shard: str | None = None,
    spec: dict | None = SPEC,
    **overrides,
) -> Path:
    """Write a checkpoint folder: weights, config, tokenizer and, unless ``spec`` is None, the trainer's fsrm.json."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(family, **overrides).to(getattr(torch, dtype))
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    write_tokenizer(folder, build_tokenizer())
    if spec is not None:
        (folder / "fsrm.json").write_text(json.dumps(spec))
    return folder


def make_hostile(folder: Path, factor: float = 300.0) -> Path:
    """Rescale channels of a checkpoint: in float32 it computes the same, but int8 activations become useless.

    A few channels of each norm are multiplied and the columns behind them divided; a few rows of up_proj multiplied and
    the columns of down_proj divided.
    """
    from safetensors.numpy import load_file, save_file

    weights = {name: np.array(value) for name, value in load_file(folder / "model.safetensors").items()}
    rng = np.random.default_rng(1)
    for norm in [name for name in weights if name.endswith("layernorm.weight")]:
        prefix = norm.removesuffix("input_layernorm.weight").removesuffix("post_attention_layernorm.weight")
        parts = (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            if "input_" in norm
            else ("mlp.gate_proj", "mlp.up_proj")
        )
        channels = rng.choice(len(weights[norm]), 3, replace=False)
        weights[norm][channels] *= factor
        for part in parts:
            weights[f"{prefix}{part}.weight"][:, channels] /= factor
        if "mlp.up_proj" in parts:
            rows = rng.choice(len(weights[f"{prefix}mlp.up_proj.weight"]), 3, replace=False)
            weights[f"{prefix}mlp.up_proj.weight"][rows] *= factor
            weights[f"{prefix}mlp.down_proj.weight"][:, rows] /= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_transformers4_config(folder: Path) -> None:
    """Rewrite config.json the way transformers 4 put rope settings."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def reference_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Logits at the last position, in float32 through transformers, shape [vocab_size]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()
