"""Says what decides the contents of a run's results, so that another run is never mixed into its file.

Reports name the same things, so that a reader knows what was measured.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fsrm_lite import __version__
from fsrm_lite.cli.models import MODEL_NAMES
from fsrm_lite.runtimes.onnx import kernels
from fsrm_lite.scorer import FastSlowRM

_WITHOUT_EFFECT = ("model", "revision", "local_files_only", "judge_process")
"""Options of a model that cannot change a result: what the model holds counts, not where it lies or runs."""

_OPTIONS = tuple(name for name in MODEL_NAMES if name not in _WITHOUT_EFFECT)

_TOLD = ("form", *_OPTIONS, "limit", "limit_seed", "batch_size", "revision")
"""The options that a report names, where they were given."""

_SHORT = 12  # characters of a hash, enough to tell two models apart


def run_identity(
    command: str, rm: FastSlowRM | None, options: dict[str, Any], own: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what decides the contents of the results, by name, as JSON.

    Args:
        command: Name of the command.
        rm: The model. Each entry of its manifest counts, the hashes of its files among them, but not the card. None for
            a run without a model.
        options: The values of ``model_options``, as far as the command has them.
        own: The command's own options.
    """
    manifest = rm.bundle.manifest.to_dict() if rm is not None else {}
    return {
        "the command": command,
        **{f"--{name.replace('_', '-')}": options[name] for name in _OPTIONS if name in options},
        **(own or {}),
        **{f"the model's {name}": _hash(value) for name, value in manifest.items() if name != "card"},
        "fsrm-lite": __version__,
        **(software(judged=options.get("judge") != "never") if rm is not None else {}),
    }


def software(*, judged: bool = True) -> dict[str, Any]:
    """Return the versions of what computes, by name; None for what is not installed, or is not used."""
    return {
        "onnxruntime": version_of("onnxruntime"),
        "llama-cpp-python": version_of("llama-cpp-python") if judged else None,
        "compiled operators": kernels.library() is not None,
    }


def run_of(rm: FastSlowRM, options: dict[str, Any]) -> dict[str, Any]:
    """Return what a report says about the model that it is made with, and about how that was asked.

    Args:
        rm: The model.
        options: The command's options. Those that were left at "off" or "the model's own" are not named.
    """
    manifest = rm.bundle.manifest
    # Of several files the fast one is what the figures come from first; its hash tells two builds of a model apart.
    digest = next((entry.sha256[:_SHORT] for role, entry in manifest.files.items() if role == "fast"), "")
    return {
        "bundle": f"{manifest.name} ({rm.bundle.root}, fast file {digest}), fsrm-lite {__version__}",
        "version": __version__,
        "software": software(judged=options.get("judge") != "never"),
        "files": {role: entry.sha256 for role, entry in manifest.files.items()},
        "gate": rm.gate.spec.to_dict(),
        "options": {name: options[name] for name in _TOLD if options.get(name) not in (None, False)},
    }


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_SHORT]


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
