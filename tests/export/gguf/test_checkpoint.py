"""A GGUF comes back as the checkpoint that it was made of, tokenizer included."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.export import make_checkpoint
from tokenizers import Tokenizer

from fsrm_lite.errors import ExportError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import detect_pre, pre_tokenizer, read_vocabulary
from fsrm_lite.export.gguf.checkpoint import _check_rotation, write_checkpoint
from fsrm_lite.export.gguf.writer import gguf_name, hugging_face_name, write_gguf

pytest.importorskip("gguf")
pytest.importorskip("torch")

CASES = {
    "qwen2": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
}
TEXTS = [
    "Tom has 17 apples, 3.5 of them red.",
    "Zażółć 敏捷的 😀👩‍👩‍👧 ١٢٣",
    "def f(x):\n    return x  # <think>",
    "<|im_start|>user",
]


def _as_gguf(folder: Path, out: Path) -> Path:
    checkpoint = Checkpoint.open(folder)
    write_gguf(checkpoint, read_vocabulary(folder, checkpoint.arch.vocab_size), out, dtype="f32")
    return out


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_comes_back(tmp_path, case):
    family, overrides = CASES[case]
    folder = make_checkpoint(tmp_path / "there", family, **overrides)
    write_checkpoint(_as_gguf(folder, tmp_path / "model.gguf"), tmp_path / "back")
    there, back = Checkpoint.open(folder), Checkpoint.open(tmp_path / "back")
    assert back.arch == there.arch
    assert sorted(back.names()) == sorted(there.names())
    for name in there.names():
        np.testing.assert_array_equal(back.tensor(name), there.tensor(name))
    vocab_size = there.arch.vocab_size
    vocabularies = [read_vocabulary(root, vocab_size) for root in (folder, tmp_path / "back")]
    assert vocabularies[0] == vocabularies[1]
    tokenizers = [Tokenizer.from_file(str(root / "tokenizer.json")) for root in (folder, tmp_path / "back")]
    assert [tokenizers[0].encode(text).ids for text in TEXTS] == [tokenizers[1].encode(text).ids for text in TEXTS]


def test_tensor_names_go_both_ways():
    names = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.7.self_attn.q_norm.weight",
        "model.layers.12.mlp.up_proj.bias",
    ]
    assert [hugging_face_name(gguf_name(name)) for name in names] == names
    with pytest.raises(UnsupportedCheckpointError, match=r"blk\.0\.ffn_gate_exps\.weight has no place"):
        hugging_face_name("blk.0.ffn_gate_exps.weight")


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "tekken", "smollm", "gpt-2"])
def test_splits_are_recognised_as_what_they_were_made_for(pre):
    import json

    tokenizer = Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    assert detect_pre(json.loads(tokenizer.to_str())) == pre


def test_what_cannot_come_back_is_refused_by_name(tmp_path):
    with pytest.raises(ExportError, match="cannot be read as GGUF"):
        write_checkpoint(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(UnsupportedCheckpointError, match="'default' is not known, expected one of qwen2"):
        pre_tokenizer("default")
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled["original_max_position_embeddings"] = 32
    folder = make_checkpoint(tmp_path / "there", "llama", rope_parameters=scaled)
    with pytest.raises(UnsupportedCheckpointError, match="scales its rotary frequencies"):
        write_checkpoint(_as_gguf(folder, tmp_path / "model.gguf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("rope.scaling.type", "yarn"), ("attention.sliding_window", 4096), ("rope.dimension_count", 32)],
)
def test_a_rotation_or_a_window_that_would_be_lost_is_refused(name, value):
    plain = {"qwen2.attention.head_count": 4, "qwen2.embedding_length": 256, "qwen2.rope.dimension_count": 64}
    _check_rotation(Path("model.gguf"), "qwen2", plain)
    with pytest.raises(UnsupportedCheckpointError, match=f"qwen2.{name} = "):
        _check_rotation(Path("model.gguf"), "qwen2", {**plain, f"qwen2.{name}": value})


REAL = Path(os.environ.get("FSRM_REAL", ROOT / ".bench" / "real"))


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "checkpoint").is_dir(), reason="no real model here; see make real")
def test_real_tokenizer_reads_as_llama_cpp_does():
    from llama_cpp import Llama

    from fsrm_lite.runtimes.llama.engine import load_llama

    load_llama()
    texts = [
        *TEXTS[:3],
        "Съешь же ещё этих мягких французских булок. שלום עולם हिन्दी ภาษาไทย 日本語 한국어",
        "for (int i = 0; i < n; ++i) { a[i] += 1024; } // <<= >>=\r\n\t#include <stdio.h>",
        "a  b   c\t\te\n\n\nf \n g  \r\n\r\n h   $1,234.56 -7e-10 ½ ² x's X'LL \u00a0\u2003\u200b",
    ]
    model = Llama(str(next(REAL.glob("*.Q4_1.gguf"))), vocab_only=True, verbose=False)
    tokenizer = Tokenizer.from_file(str(REAL / "checkpoint" / "tokenizer.json"))
    for text in texts:
        assert tokenizer.encode(text, add_special_tokens=False).ids == model.tokenize(
            text.encode(), add_bos=False, special=True
        )


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "checkpoint").is_dir(), reason="no real model here; see make real")
def test_real_model_in_fp32_is_transformers(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from fsrm_lite.export.graph.fast_graph import write_fast_graph
    from fsrm_lite.runtimes.onnx.session import FastModel

    labels = (10539, 5230)  # Yes, No
    write_fast_graph(Checkpoint.open(REAL / "checkpoint"), tmp_path / "fast.onnx", labels, precision="fp32")
    tokenizer = Tokenizer.from_file(str(REAL / "checkpoint" / "tokenizer.json"))
    ids = [tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").ids for text in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(REAL / "checkpoint", dtype=torch.float32)
    for reading, sequence in zip(FastModel(tmp_path / "fast.onnx").read(ids), ids, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([sequence])).logits[0, -1, list(labels)].numpy()
        np.testing.assert_allclose(reading.label_logits, expected, atol=2e-3)
