"""Which runtime the judge thinks with: ONNX Runtime on the fast graph, or llama.cpp on the GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from fsrm_lite.errors import BundleError, JudgeUnavailableError
from fsrm_lite.types import JudgeEngine

ENGINES: tuple[JudgeEngine, ...] = get_args(JudgeEngine)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """A runtime and, in words, why it was chosen."""

    engine: Literal["onnx", "llama.cpp"]
    why: str


def choose_engine(
    asked: JudgeEngine, *, can_think: bool, in_place: bool, has_gguf: bool, why_no_llama: Callable[[], str | None]
) -> EngineChoice:
    """Choose the judge's runtime.

    Args:
        asked: The caller's wish. "auto" leaves it to this rule: ONNX Runtime where the graph can think and keeps keys
            and values in place, which was measured to be the faster one (docs/how-to/without-a-compiler.md has the
            figures); also where it can think and the bundle has no GGUF file or llama-cpp-python cannot be used here;
            else llama.cpp.
        can_think: Whether the fast graph can think; see ``fsrm_lite.runtimes.onnx.graph.Graph``.
        in_place: Whether it keeps keys and values in place then (``Graph.writes_in_place``).
        has_gguf: Whether the bundle has a GGUF file.
        why_no_llama: Says why llama-cpp-python cannot be used here, or None where it can. It may take a second, so it
            is called only where the answer matters.

    Returns:
        The choice.

    Raises:
        BundleError: If the bundle has nothing that this runtime could run.
        JudgeUnavailableError: If only llama.cpp could, and llama-cpp-python cannot be used here.
    """
    if asked == "onnx" or (asked == "auto" and can_think and (in_place or not has_gguf)):
        if not can_think:
            raise BundleError(
                "the fast graph of this bundle cannot think: it comes from an exporter of before graphs could, or its "
                "verdicts were out of tolerance; export the bundle again, or use its GGUF file with "
                "judge_engine='llama.cpp'"
            )
        if asked == "onnx":
            return EngineChoice("onnx", "asked for")
        return EngineChoice("onnx", "keys and values stay in place" if has_gguf else "the bundle has no GGUF file")
    if not has_gguf:
        raise BundleError(
            "this bundle has no GGUF file for llama.cpp; "
            + ("use judge_engine='onnx'" if can_think else "it can only score fast; export it again, to let it think")
        )
    missing = why_no_llama()
    if asked == "auto" and missing is not None and can_think:
        return EngineChoice("onnx", "llama-cpp-python cannot be used here, and the fast graph can think")
    if missing is not None:
        raise JudgeUnavailableError(missing)
    if asked == "llama.cpp":
        return EngineChoice("llama.cpp", "asked for")
    return EngineChoice(
        "llama.cpp",
        "the fast graph would copy keys and values in every step" if can_think else "the fast graph cannot think",
    )
