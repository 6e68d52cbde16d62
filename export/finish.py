"""The last step of every export: the manifest with golden examples, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fsrm_lite.bundle.files import Bundle, write_manifest
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError
from fsrm_lite.export.card import model_card
from fsrm_lite.export.golden import golden_examples
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet

TOOLS = ("fsrm-lite", "onnxruntime", "onnx", "gguf", "llama-cpp-python", "transformers", "torch")
"""Packages whose versions a card notes."""


def describe(
    folder: Path,
    manifest: Manifest,
    data: CalibrationSet,
    card: Mapping[str, Any],
    files: Mapping[str, str],
    text: str | None,
) -> Manifest:
    """Write the manifest and the model card of a bundle whose files are there; return the manifest.

    Args:
        folder: The bundle's folder.
        manifest: The manifest without files.
        data: Where golden examples are taken from.
        card: The card's entries; golden examples are added to them.
        files: Paths by role.
        text: What the trainer says about the model.
    """
    listed = write_manifest(folder, replace(manifest, card=card), files)
    golden = golden_examples(Bundle.open(folder), data)
    complete = replace(listed, card={**card, "golden": golden})
    (folder / "README.md").write_text(model_card(complete, text), "utf-8")
    return write_manifest(folder, complete)


def read_card(path: str | Path | None) -> str | None:
    """Return the text of a Markdown file for the model card.

    Raises:
        ExportError: If it cannot be read.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read the card {path}: {error}") from error


def tool_versions() -> dict[str, str | None]:
    """Return the installed versions of the packages that an export uses; None for one that is missing."""
    return {name: _version(name) for name in TOOLS}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
