"""Real tokenizers of public models, and tiny random checkpoints around them."""

from __future__ import annotations

import json
import lzma
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from fsrm_lite.export.checkpoints.vocabulary import Vocabulary, read_vocabulary
from helpers import SHARED

TOKENIZERS = SHARED / "tokenizers"
"""``qwen3`` and ``llama3_1``: tokenizer.json, compressed, and tokenizer_config.json with the chat template."""

needs_tokenizers = pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=f"needs real tokenizers in {TOKENIZERS}")

CLASSES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral"}
VOCABULARY = {"qwen3": 151_936, "llama3_1": 128_256}
"""Rows of the embedding of the real models with these tokenizers."""


# A real tokenizer takes a second or more to unpack, to read or to load, so each of these happens once per run.


@cache
def tokenizer_folder(name: str) -> Path:
    """A folder with a real model's tokenizer. Do not write into it."""
    folder = Path(mkdtemp(prefix=f"fsrm-{name}-"))
    with lzma.open(TOKENIZERS / name / "tokenizer.json.xz") as packed, (folder / "tokenizer.json").open("wb") as file:
        shutil.copyfileobj(packed, file)
    shutil.copyfile(TOKENIZERS / name / "tokenizer_config.json", folder / "tokenizer_config.json")
    return folder


@cache
def vocabulary_of(name: str) -> Vocabulary:
    """What the exporter reads of a real model's tokenizer."""
    return read_vocabulary(tokenizer_folder(name), VOCABULARY[name])


@cache
def transformers_tokenizer(name: str):
    """A real model's tokenizer as transformers loads it. Do not change it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(tokenizer_folder(name))


def copy_tokenizer(name: str, folder: Path, *, chat_template: str | None = None) -> None:
    """Write a real model's tokenizer into a checkpoint folder, with another chat template if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder(name) / file, folder / file)
    if chat_template is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        config["chat_template"] = chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def public_checkpoint(
    folder: Path,
    family: str,
    tokenizer: str,
    *,
    scalar: bool = False,
    outputs: int = 1,
    chat_template: str | None = None,
    seed: int = 0,
) -> Path:
    """Write a tiny random checkpoint of a real architecture, under a real tokenizer and its vocabulary."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY[tokenizer],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": not scalar,
    }
    if family in ("qwen3", "llama", "mistral"):
        shape["head_dim"] = 16
    if family == "mistral":
        shape["sliding_window"] = None
    config = getattr(transformers, f"{CLASSES[family]}Config")(**shape)
    kind = "ForSequenceClassification" if scalar else "ForCausalLM"
    if scalar:
        config.num_labels = outputs
        config.pad_token_id = 0
    model = getattr(transformers, f"{CLASSES[family]}{kind}")(config)
    if scalar:
        torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder, chat_template=chat_template)
    return folder
