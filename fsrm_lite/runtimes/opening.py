"""Opens a model file in the runtime that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from fsrm_lite.runtimes.engine import Engine
from fsrm_lite.runtimes.onnx.graph import Graph

EngineSource: TypeAlias = Path | Graph
"""What an engine is made of: a fast graph that is open already, or an ``.onnx`` or GGUF file."""


def is_graph(source: EngineSource) -> bool:
    """Return whether ONNX Runtime runs ``source``; else llama.cpp does."""
    return isinstance(source, Graph) or source.suffix == ".onnx"


def open_engine(source: EngineSource, threads: int | None = None) -> Engine:
    """Open an engine; its module is imported now.

    Args:
        source: What to open.
        threads: Compute threads of a file that is opened now; see the engine.

    Returns:
        The engine, to be used by the thread that opened it.

    Raises:
        BundleError: If the file is damaged or cannot write.
        InputError: If ``threads`` is out of range.
        JudgeUnavailableError: If it is a GGUF file and llama-cpp-python cannot be used here.
    """
    if is_graph(source):
        from fsrm_lite.runtimes.onnx.engine import OnnxEngine

        return OnnxEngine(source, threads=threads)
    from fsrm_lite.runtimes.llama.engine import LlamaEngine

    assert isinstance(source, Path)
    return LlamaEngine(source, threads=threads)
