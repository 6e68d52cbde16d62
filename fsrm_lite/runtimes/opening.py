"""Opens a model file in the runtime that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from fsrm_lite.runtimes.engine import Engine
from fsrm_lite.runtimes.llama.engine import LlamaModel
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.reading import Reader
from fsrm_lite.types import EncoderInput

EngineSource: TypeAlias = Path | Graph | LlamaModel
"""What an engine is made of: a fast graph or a GGUF file that is open already, or a file of either kind."""

GGUF_SUFFIX = ".gguf"


def is_graph(source: EngineSource) -> bool:
    """Return whether ONNX Runtime runs ``source``; else llama.cpp does."""
    return isinstance(source, Graph) or (isinstance(source, Path) and source.suffix == ".onnx")


def file_of(source: EngineSource) -> Path:
    """Return the file of a source, which another process can open."""
    return source if isinstance(source, Path) else source.path


def open_reader(
    path: Path,
    vocab_size: int,
    label_ids: Sequence[int],
    encoder: EncoderInput | None = None,
    threads: int | None = None,
) -> Reader:
    """Open the model of a fast path; its module is imported now.

    Args:
        path: A GGUF file, which its suffix tells; else an ``.onnx`` file.
        vocab_size: Tokens of the vocabulary. A graph and a GGUF file have their own, which ``Reader.check`` compares.
        label_ids: The labels' tokens. A graph has its own.
        encoder: How the input of an encoder is made; None for a fast graph.
        threads: Compute threads; see the reader.

    Returns:
        The reader.

    Raises:
        BundleError: If the file is damaged, or of an unusable kind.
        InputError: If ``threads`` is out of range.
        JudgeUnavailableError: If it is a GGUF file and llama-cpp-python cannot be used here.
    """
    if path.suffix == GGUF_SUFFIX:
        from fsrm_lite.runtimes.llama.reader import LlamaReader

        return LlamaReader(path, label_ids, threads=threads)
    if encoder is not None:
        from fsrm_lite.runtimes.onnx.encoder import EncoderReader

        return EncoderReader(path, vocab_size, encoder, threads=threads)
    from fsrm_lite.runtimes.onnx.session import FastModel

    return FastModel(path, threads=threads)


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
    if not isinstance(source, LlamaModel) and is_graph(source):
        from fsrm_lite.runtimes.onnx.engine import OnnxEngine

        return OnnxEngine(source, threads=threads)
    from fsrm_lite.runtimes.llama.engine import LlamaEngine

    assert not isinstance(source, Graph)
    return LlamaEngine(source, threads=threads)
