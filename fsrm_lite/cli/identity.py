"""Says what decides the contents of a run's results, so that another run is never mixed into its file."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fsrm_lite import __version__
from fsrm_lite.runtimes.onnx import kernels
from fsrm_lite.scorer import FastSlowRM

_OPTIONS = (
    "judge",
    "judge_engine",
    "votes",
    "thinking_tokens",
    "temperature",
    "seed",
    "threads",
    "truncate",
    "deterministic",
)
"""The options of ``model_options`` that can change a result. Which folder or name the model has cannot."""

_SHORT = 12  # characters of a hash, enough to tell two models apart


def run_identity(
    command: str, rm: FastSlowRM, options: dict[str, Any], own: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what decides the contents of the results, by name, as JSON.

    Args:
        command: Name of the command.
        rm: The model. Each entry of its manifest counts, the hashes of its files among them, but not the card.
        options: The values of ``model_options``.
        own: The command's own options.
    """
    manifest = rm.bundle.manifest.to_dict()
    return {
        "the command": command,
        **{f"--{name.replace('_', '-')}": options.get(name) for name in _OPTIONS},
        **(own or {}),
        **{f"the model's {name}": _hash(value) for name, value in manifest.items() if name != "card"},
        "fsrm-lite": __version__,
        "onnxruntime": _version("onnxruntime"),
        "llama-cpp-python": None if options.get("judge") == "never" else _version("llama-cpp-python"),
        "compiled operators": kernels.library() is not None,
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_SHORT]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
