"""Which runtime the judge thinks with: ONNX Runtime on the fast graph, or llama.cpp on the GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from fsrm_lite.errors import BundleError, JudgeUnavailableError
from fsrm_lite.types import JudgeEngine

ENGINES: tuple[JudgeEngine, ...] = get_args(JudgeEngine)

SMALL_GGUF = 32 << 20
"""A GGUF file of fewer bytes is that of a small model, with which llama.cpp thinks faster than ONNX Runtime.

Measured by ``python -m benchmarks`` (AVX2, two threads), time of llama.cpp over that of ONNX Runtime: 0.7 to 1.0 with
the 3 MB of the embedded model, 1.6 to 2.0 with the 145 MB of SmolLM2-135M, 1.3 to 2.1 with the 394 MB of Qwen3-0.6B's
shape. The limit stands between the first two.
"""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """A runtime and, in words, why it was chosen."""

    engine: Literal["onnx", "llama.cpp"]
    why: str


def choose_engine(
    asked: JudgeEngine, *, can_think: bool, gguf_bytes: int | None, why_no_llama: Callable[[], str | None]
) -> EngineChoice:
    """Choose the judge's runtime.

    Args:
        asked: The caller's wish. "auto" leaves it to this rule: what can be used here; of both llama.cpp where the
            GGUF file is smaller than ``SMALL_GGUF``, and ONNX Runtime otherwise.
        can_think: Whether the fast graph can think; see ``fsrm_lite.runtimes.onnx.graph.Graph``.
        gguf_bytes: Size of the bundle's GGUF file; None if it has none.
        why_no_llama: Says why llama-cpp-python cannot be used here, or None where it can. It may take a second, so it
            is called only where the answer matters.

    Returns:
        The choice.

    Raises:
        BundleError: If the bundle has nothing that this runtime could run.
        JudgeUnavailableError: If only llama.cpp could, and llama-cpp-python cannot be used here.
    """
    has_gguf, small = gguf_bytes is not None, gguf_bytes is not None and gguf_bytes < SMALL_GGUF
    if asked == "onnx" or (asked == "auto" and can_think and not small):
        if not can_think:
            raise BundleError(
                "the fast graph of this bundle cannot think: it comes from an exporter of before graphs could, or its "
                "verdicts were out of tolerance; export the bundle again, or use its GGUF file with "
                "judge_engine='llama.cpp'"
            )
        if asked == "onnx":
            return EngineChoice("onnx", "asked for")
        return EngineChoice("onnx", "faster with a model of this size" if has_gguf else "the bundle has no GGUF file")
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
    return EngineChoice("llama.cpp", "faster with a model this small" if can_think else "the fast graph cannot think")
