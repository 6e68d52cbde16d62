"""Tiny random checkpoints and the reference that transformers computes from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

LABELS = (5, 17, 3)

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

SHAPES = {
    "qwen3": {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "qwen2": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "llama": {
        "hidden_size": 36,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": _LLAMA3_ROPE,
    },
    "mistral": {
        "hidden_size": 56,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 12,
        "sliding_window": None,
    },
}


def make_checkpoint(
    folder: Path, kind: str = "qwen3", *, seed: int = 0, layers: int = 3, vocab: int = 101, **overrides: object
) -> Path:
    """Write a random checkpoint whose weights are large enough for the scores to differ; returns the folder."""
    settings = {
        "model_type": kind,
        "intermediate_size": 72,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
    }
    settings |= SHAPES[kind]
    settings |= overrides
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.1 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, sequences: list[list[int]]) -> list[dict[str, np.ndarray]]:
    """First-token logits, log-mass, entropy and hidden state of each sequence, by transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    readings = []
    with torch.no_grad():
        for ids in sequences:
            out = model(torch.tensor([ids]), output_hidden_states=True)
            logits = out.logits[0, -1].double()
            log_p = torch.log_softmax(logits, -1)
            readings.append(
                {
                    "label_logits": logits[list(LABELS)].numpy(),
                    "log_mass": torch.logsumexp(logits, -1).numpy(),
                    "entropy": -(log_p.exp() * log_p).sum().numpy(),
                    "hidden": out.hidden_states[-1][0, -1].numpy(),
                }
            )
    return readings


def random_sequences(seed: int, count: int, longest: int = 40, vocab: int = 101) -> list[list[int]]:
    """Random id sequences, some sharing prefixes, one a prefix of another, one repeated."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, vocab, longest // 2).tolist()
    out = []
    for i in range(count):
        ids = rng.integers(0, vocab, rng.integers(1, longest)).tolist()
        out.append(prompt + ids if i % 3 else ids)
    if count > 3:
        out[-1] = list(out[1])
        out[-2] = out[1][: max(1, len(out[1]) - 2)]
    return out
