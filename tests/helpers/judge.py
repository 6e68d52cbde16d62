"""Tiny random Qwen3 models for the judge's tests, as a GGUF file and as a graph.

They are real enough for either runtime, and written in milliseconds.
"""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import JudgeDefaults, Label, Limits, Manifest, Template, VerdictTemplate
from fsrm_lite.export.checkpoints.checkpoint import EMBEDDING, Architecture
from fsrm_lite.export.graph.fast_graph import write_fast_graph

ENGINES = ("onnx", "llama.cpp")


def write_tiny_gguf(
    path: Path,
    *,
    vocab=96,
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    inner=128,
    context=512,
    seed=0,
    scale=0.3,
    architecture="qwen3",
    pre="qwen2",
    tokens=None,
    types=None,
    scores=None,
    tokenizer="gpt2",
    entries=(),
) -> Path:
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model(tokenizer)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens or [f"t{i}" for i in range(vocab)])
    writer.add_token_types(types or [gguf.TokenType.NORMAL] * vocab)
    if scores:
        writer.add_token_scores(scores)
    else:
        writer.add_token_merges(["t 0"])
    for add, value in entries:
        getattr(writer, add)(value)
    shapes = {"token_embd": (vocab, hidden), "output_norm": (hidden,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.{n}": (hidden,) for n in ("attn_norm", "ffn_norm")} | {
            f"blk.{i}.{n}": (head_dim,) for n in ("attn_q_norm", "attn_k_norm")
        }
        shapes |= {
            f"blk.{i}.attn_q": (heads * head_dim, hidden),
            f"blk.{i}.attn_k": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_v": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_output": (hidden, heads * head_dim),
        }
        shapes |= {
            f"blk.{i}.ffn_gate": (inner, hidden),
            f"blk.{i}.ffn_up": (inner, hidden),
            f"blk.{i}.ffn_down": (hidden, inner),
        }
    for name, shape in shapes.items():
        value = (
            np.ones(shape, np.float32) if len(shape) == 1 else (rng.standard_normal(shape) * scale).astype(np.float16)
        )
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class RandomWeights:
    """The weights of a small model, drawn when they are asked for; the same name gives the same weights."""

    head_name = EMBEDDING

    def __init__(self, *, vocab=96, hidden=64, layers=2, heads=2, kv_heads=1, inner=128, context=512, scale=0.3):
        self.arch = Architecture(
            model_type="qwen3",
            hidden_size=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=32,
            intermediate_size=inner,
            vocab_size=vocab,
            rms_eps=1e-6,
            rope_theta=10000.0,
            rope_scaling=None,
            tied=True,
            qkv_bias=False,
            o_bias=False,
            mlp_bias=False,
            qk_norm=True,
            context=context,
        )
        self._scale = scale

    def shape(self, name):
        return self.arch.tensor_shapes()[name]

    def tensor(self, name, rows=None):
        shape = self.shape(name)
        rng = np.random.default_rng(list(name.encode()))
        full = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape) * self._scale
        return full.astype(np.float32)[rows or slice(None)]


def write_tiny_graph(path: Path, *, precision="fp32", **shape) -> Path:
    write_fast_graph(RandomWeights(**shape), path, [1, 2], precision=precision)
    return path


SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
PAIRWISE = (
    "<|im_start|>user\nQuestion: {prompt}\nAssistant 1: {response_a}\nAssistant 2: {response_b}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n"
)
POINTWISE = "<|im_start|>user\nQuestion: {prompt}\nAnswer: {response}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def tiny_encoder(folder: Path, *, context=512, thinking_tokens=24, votes=1) -> PromptEncoder:
    """An encoder over bytes (one token per byte) with Qwen's control tokens, in the embedded model's prompt shape."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL[:2])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in SPECIAL[2:]])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    ids = {text: tokenizer.token_to_id(text) for text in SPECIAL}
    one = {c: tokenizer.token_to_id(c) for c in "12YN"}
    close = "</think>\n\n"
    manifest = Manifest(
        name="test",
        labels=(Label("Y", one["Y"], 1.0), Label("N", one["N"], 0.0)),
        templates={
            "pointwise_fast": Template("<|im_start|>user\n{prompt}\n{response}<|im_end|>\n<|im_start|>assistant\n"),
            "pointwise_slow": Template(
                POINTWISE, VerdictTemplate(close, "", ("Y", "N"), (one["Y"], one["N"]), "", (1.0, 0.0))
            ),
            "pairwise_slow": Template(
                PAIRWISE, VerdictTemplate(close, "\\boxed{Assistant ", ("1", "2"), (one["1"], one["2"]), "}")
            ),
        },
        special_tokens=ids,
        stop_ids=(ids["<|im_end|>"],),
        limits=Limits(context, thinking_tokens),
        vocab_size=len(alphabet) + len(SPECIAL),
        judge=JudgeDefaults(votes=votes, temperature=1.0),
    )
    return PromptEncoder(path, manifest)


def tiny_judge_files(folder: Path, engine: str = "llama.cpp", **settings) -> tuple[Path, PromptEncoder]:
    """A file of random weights for an engine, and the encoder that fits it."""
    encoder = tiny_encoder(folder, **settings)
    if engine == "onnx":
        return write_tiny_graph(folder / "judge.onnx", vocab=encoder.manifest.vocab_size), encoder
    return write_tiny_gguf(folder / "judge.gguf", vocab=encoder.manifest.vocab_size), encoder
