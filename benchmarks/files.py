"""Where the model files of the benchmarks lie, and of which tokens the logits are read. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LABELS = (100, 200)
"""Ids of the labels, the tokens whose logits are read; with random weights any two will do."""


@dataclass(frozen=True, slots=True)
class Files:
    """The paths of the files under the work folder."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        """The Hugging Face folder, bf16."""
        return self.root / "checkpoint"

    def fast(self, precision: str) -> Path:
        """Return the path of the fast path's ONNX graph: "int8", "fp32", or "rungs" (see ``prepare.real_rungs``)."""
        return self.root / f"fast-{precision}" / "model.onnx"

    def gguf(self, kind: str) -> Path:
        """Return the path of a GGUF file, by its kind, such as "q8_0"."""
        return self.root / f"model-{kind}.gguf"
