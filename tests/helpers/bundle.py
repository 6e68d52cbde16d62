"""A bundle made of small text files: enough for everything but running it."""

from __future__ import annotations

from pathlib import Path

from fsrm_lite.bundle.files import write_manifest
from fsrm_lite.bundle.manifest import Label, Limits, Manifest, Template, VerdictTemplate


def plain_manifest(name: str = "paper") -> Manifest:
    verdict = VerdictTemplate("</think>\n\n", "", ("Yes", "No"), (5, 6), values=(1.0, 0.0))
    return Manifest(
        name=name,
        labels=(Label("Yes", 5, 1.0), Label("No", 6, 0.0)),
        templates={
            "pointwise_fast": Template("{prompt} {response} ok?"),
            "pointwise_slow": Template("{prompt} {response} think", verdict),
        },
        special_tokens={},
        stop_ids=(2,),
        limits=Limits(64, 16),
        vocab_size=10,
    )


def write_bundle(folder: Path, *, slow_bytes: int = 300_000) -> Manifest:
    contents = {
        "tokenizer.json": b"{}",
        "fast/model.onnx": b"graph",
        "fast/model.onnx.data": b"weights" * 100,
        "slow/model.gguf": bytes(range(250)) * (slow_bytes // 250),
    }
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    files = {
        "tokenizer": "tokenizer.json",
        "fast": "fast/model.onnx",
        "fast_data": "fast/model.onnx.data",
        "slow": "slow/model.gguf",
    }
    return write_manifest(folder, plain_manifest(), files)
