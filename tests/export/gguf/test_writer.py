import json
import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from helpers.export import make_checkpoint, reference_logits, write_transformers4_config

from fsrm_lite.errors import ExportError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.tensors import row_slices
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary
from fsrm_lite.export.gguf.writer import native_dtype, write_gguf
from fsrm_lite.runtimes.llama.engine import load_llama

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES = {
    "qwen2": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "vocab_size": 451}),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"num_attention_heads": 8, "num_key_value_heads": 2}),
}


@pytest.fixture(scope="module")
def llama_cpp():
    pytest.importorskip("llama_cpp")
    return (
        load_llama()
    )  # silenced for good: a log callback of ours would die with this fixture, and llama.cpp call it later


def export(folder, out, dtype="f32"):
    checkpoint = Checkpoint.open(folder)
    write_gguf(checkpoint, read_vocabulary(folder, checkpoint.arch.vocab_size), out, dtype=dtype)
    return out


def load(llama_cpp, path):
    return llama_cpp.Llama(str(path), n_ctx=256, verbose=False, n_threads=2)


def last_logits(llama_cpp, path, ids):
    llm = load(llama_cpp, path)
    llm.eval(ids)
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(pointer, (llm.n_vocab(),)).copy()


@pytest.mark.parametrize("case", SHAPES)
def test_write_gguf_gives_the_checkpoints_logits(case, tmp_path, llama_cpp):
    family, overrides = SHAPES[case]
    folder = make_checkpoint(tmp_path / "ckpt", family, **overrides)
    ids = np.random.default_rng(0).integers(0, 400, 90).tolist()
    expected = reference_logits(folder, ids)
    actual = last_logits(llama_cpp, export(folder, tmp_path / "m.gguf"), ids)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 2e-2 * expected.std()
    assert np.corrcoef(actual, expected)[0, 1] > 0.9999


def test_write_gguf_bf16_sharded_is_lossless(tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "llama", dtype="bfloat16", shard="60KB")
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.files()) > 1
    assert native_dtype(checkpoint) == "bf16"
    reader = gguf.GGUFReader(export(folder, tmp_path / "m.gguf", "bf16"))
    written = {t.name: t for t in reader.tensors}
    down = gguf.dequantize(written["blk.1.ffn_down.weight"].data, written["blk.1.ffn_down.weight"].tensor_type)
    assert np.array_equal(down, checkpoint.tensor("model.layers.1.mlp.down_proj.weight"))
    assert len(written) == len(checkpoint.names())


def test_write_gguf_same_bytes_for_transformers_4_and_5_configs(tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "llama", rope_parameters=LLAMA3)
    five = export(folder, tmp_path / "5.gguf").read_bytes()
    write_transformers4_config(folder)
    assert export(folder, tmp_path / "4.gguf").read_bytes() == five


def test_write_gguf_metadata(tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "qwen3", vocab_size=450)
    reader = gguf.GGUFReader(export(folder, tmp_path / "m.gguf", "f16"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["qwen3.rope.freq_base"] == 500_000.0
    assert fields["qwen3.attention.key_length"] == 24
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    types, tokens = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.tokens"]
    assert len(tokens) == len(types) == 450
    assert tokens[-1] == "[PAD449]"
    assert types[-1] == 5
    assert types[tokens.index("<|im_end|>")] == 3
    assert types[tokens.index("<think>")] == 4
    assert fields["tokenizer.ggml.eos_token_id"] == tokens.index("<|im_end|>")
    assert fields["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        (
            "tokenizer_config.json",
            {
                "chat_template": [
                    {"name": "tool_use", "template": "no"},
                    {"name": "default", "template": "{{ messages }}"},
                ]
            },
        ),
    ],
)
def test_write_gguf_carries_the_chat_template(tmp_path, name, content):
    folder = make_checkpoint(tmp_path / "ckpt", "qwen3")
    export(folder, tmp_path / "plain.gguf")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    reader = gguf.GGUFReader(export(folder, tmp_path / "m.gguf"))
    assert reader.fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert "tokenizer.chat_template" not in gguf.GGUFReader(tmp_path / "plain.gguf").fields


def test_write_gguf_reports_every_byte_and_large_f16_weights_are_refused(tmp_path):
    folder = make_checkpoint(tmp_path / "ckpt", "qwen2", scale=30_000.0)
    seen = []
    checkpoint = Checkpoint.open(folder)
    vocabulary = read_vocabulary(folder, checkpoint.arch.vocab_size)
    write_gguf(
        checkpoint,
        vocabulary,
        tmp_path / "m.gguf",
        dtype="f32",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 0
    with pytest.raises(ExportError, match="beyond float16's range"):
        write_gguf(checkpoint, vocabulary, tmp_path / "h.gguf", dtype="f16")


def test_write_gguf_reads_a_few_rows_at_a_time(tmp_path, monkeypatch):
    piece = 1 << 20
    monkeypatch.setattr("fsrm_lite.export.gguf.writer.row_slices", partial(row_slices, chunk_bytes=piece))
    folder = make_checkpoint(
        tmp_path / "ckpt", "qwen3", dtype="bfloat16", vocab_size=64_000, hidden_size=128, tie_word_embeddings=True
    )
    checkpoint = Checkpoint.open(folder)
    vocabulary = read_vocabulary(folder, checkpoint.arch.vocab_size)
    largest = 4 * max(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    # Not the vocabulary's texts, whose writer keeps them all.
    monkeypatch.setattr("fsrm_lite.export.gguf.writer._add_vocabulary", lambda writer, vocabulary: None)
    tracemalloc.start()
    try:
        write_gguf(checkpoint, vocabulary, tmp_path / "m.gguf", dtype="bf16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest > 30 * piece
    assert peak < 8 * piece
