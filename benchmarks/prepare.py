"""Writes the model files that the peers read, once, into the work folder: random weights in the shape of Qwen3-0.6B."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from shutil import rmtree
from typing import Any

from benchmarks import optimum_peer, real
from benchmarks.files import LABELS, Files
from fsrm_lite.export.checkpoints.checkpoint import Architecture, Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary
from fsrm_lite.export.gguf.writer import write_gguf
from fsrm_lite.export.graph import fast_graph as graph
from fsrm_lite.export.graph.fast_graph import FastPrecision, matmul_names, write_fast_graph
from fsrm_lite.runtimes.llama.engine import quantize

GGUF_KINDS = ("q4_0", "q4_k_m", "q8_0")
REAL = "smollm2"
"""The shape whose checkpoint is a real model, SmolLM2-135M-Instruct; see ``benchmarks.real``."""

OPTIMUM_SHAPES = ("0.6b", REAL)
"""Shapes with which the peer optimum runs; a toy is not worth an environment of its own."""

SHAPES: dict[str, dict[str, Any]] = {
    # Qwen3-0.6B's config.json, from its model card.
    "0.6b": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    # A toy, to try the benchmarks themselves.
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "vocab_size": 2048,
        "max_position_embeddings": 8192,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    REAL: {},
}

REAL_RUNGS = {
    "self_attn.q_proj": {"int8x2": 1},
    "self_attn.k_proj": {"int8x2": 23},
    "self_attn.v_proj": {"int8x2": 28, "fp32": 2},
    "self_attn": {"int8x2": 4, "fp32": 26},
    "self_attn.o_proj": {"int8x2": 29},
    "mlp.gate_proj": {"int8x2": 2},
    "mlp.up_proj": {"int8x2": 13},
    "mlp.down_proj": {"int8x2": 24},
    "lm_head": {"fp32": 30},
}
"""How many of SmolLM2's 30 layers have a MatMul of each kind above int8, as ``fsrm-lite export`` chose with its default
tolerance; ``python -m benchmarks.real`` prints the table anew."""


def real_rungs(arch: Architecture) -> dict[str, str]:
    """Return the precisions of a model in which each kind of MatMul is raised in the same share of layers as SmolLM2's.

    They are spread evenly over the layers: random weights do not say which layers are the delicate ones.
    """
    keep: dict[str, str] = {}
    for kind, counts in REAL_RUNGS.items():
        names = [name for name in matmul_names(arch) if name.split(".", 3)[-1] == kind or name == kind]
        # Multiples of the golden ratio, less their whole part, are spread evenly however many of them are taken.
        spread = sorted(enumerate(names), key=lambda place: place[0] * 0.618034 % 1)
        raised = (name for _, name in spread)
        for precision, count in counts.items():
            keep |= dict.fromkeys(islice(raised, round(count * len(names) / 30)), precision)
    return keep


def prepare(files: Files, shape: str, say: Callable[[str], None]) -> None:
    """Write whatever is missing.

    Each file or folder gets its name when it is complete, so an interruption leaves none of them half written.
    """
    files.root.mkdir(parents=True, exist_ok=True)
    if not files.checkpoint.is_dir():
        say("writing the checkpoint")
        if shape == REAL:
            files.checkpoint.symlink_to(real.prepare(), target_is_directory=True)
        else:
            part = _fresh(files.checkpoint.with_name("checkpoint.part"))
            _write_checkpoint(part, SHAPES[shape])
            part.rename(files.checkpoint)
    checkpoint = Checkpoint.open(files.checkpoint)
    graphs: dict[str, tuple[FastPrecision, dict[str, str]]] = {
        "int8": ("int8", {}),
        "rungs": ("int8", real_rungs(checkpoint.arch)),
        "fp32": ("fp32", {}),
    }
    for name, (precision, keep) in graphs.items():
        folder = files.fast(name).parent
        written_by = folder.with_name(f"{folder.name}.writer")
        if not folder.is_dir() or not written_by.is_file() or written_by.read_text("utf-8") != _writer():
            say(f"writing the fast graph, {name}")
            part = _fresh(folder.with_name(f"{folder.name}.part"))
            write_fast_graph(checkpoint, part / files.fast(name).name, LABELS, precision=precision, keep=keep)
            rmtree(folder, ignore_errors=True)
            part.rename(folder)
            written_by.write_text(_writer(), "utf-8")
    _write_ggufs(files, checkpoint, say)
    if shape in OPTIMUM_SHAPES:
        try:
            optimum_peer.setup(files.root, say)
        except (OSError, subprocess.CalledProcessError) as error:
            # The table then says of this peer that it is not set up.
            say(f"optimum could not be set up and is left out: {error}")


def _writer() -> str:
    """Return a hash of the code that writes the fast graph, since changed code may write another graph."""
    code = Path(graph.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(code.glob("*.py")))).hexdigest()


def _write_ggufs(files: Files, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    """Write the GGUF files that are missing, all quantized from one in f16, which is deleted."""
    plain = files.gguf("f16")
    missing = [kind for kind in GGUF_KINDS if not files.gguf(kind).is_file()]
    if missing:
        say("writing GGUF, f16")
        write_gguf(checkpoint, read_vocabulary(files.checkpoint, checkpoint.arch.vocab_size), plain, dtype="f16")
    for kind in missing:
        say(f"quantizing GGUF, {kind}")
        quantize(plain, files.gguf(kind), kind)
    plain.unlink(missing_ok=True)


def _fresh(folder: Path) -> Path:
    """Make the folder anew, empty, and return it."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _write_checkpoint(folder: Path, shape: dict[str, Any]) -> None:
    """Write random weights as transformers initialises them, and a tokenizer of bytes and one merge."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = dict(shape)
    theta = settings.pop("rope_theta")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**settings, rope_parameters={"rope_type": "default", "rope_theta": theta})).to(
        torch.bfloat16
    )
    model.save_pretrained(folder)
    # optimum's exporter pins transformers 4. It reads rope_theta only here, and without it silently takes a default.
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"rope_theta": theta}
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    # llama.cpp wants at least one merge.
    vocabulary = {text: i for i, text in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 1}), "utf-8")
