"""Exports a checkpoint, the trainer's folder, as a bundle, the folder that this package loads.

The stages are: check everything that is read, ask the checkpoint itself for the answers to compare with (the
reference), write the fast file, write the slow file, and compare both with the reference (*parity*). The output folder
appears only after all of them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import file_sha256, write_manifest
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError, ToleranceError
from fsrm_lite.export.card import model_card
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.tensors import row_slices
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, read_vocabulary
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.graph.precision import worst_matmul
from fsrm_lite.export.parity.calibration_pairs import keep_short, load_calibration
from fsrm_lite.export.parity.measures import Tolerance, violations
from fsrm_lite.export.stages import (
    FastKind,
    FastResult,
    SlowKind,
    SlowResult,
    Source,
    StageProgress,
    ask_reference,
    build_fast,
    build_slow,
    count_matmuls,
)


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    spec: str | Path | Mapping[str, Any] | None = None,
    fast: FastKind = "int8",
    slow: SlowKind = "q8_0",
    calibration: str | Path | None = None,
    tolerance: Mapping[str, float] | None = None,
    card: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
) -> Manifest:
    """Export a Hugging Face checkpoint folder as a bundle and measure how alike the two decide.

    Args:
        checkpoint: Folder that ``save_pretrained`` wrote, with ``tokenizer.json``.
        out: Folder to create; it appears only when the whole bundle is in it.
        spec: The trainer's fragment (labels, templates, gate); ``CHECKPOINT/fsrm.json`` by default.
        fast: Precision of the ONNX file.
        slow: Kind of the GGUF file, or "none" for a bundle that thinks with its fast file alone.
        calibration: JSONL of pairs to measure on; a built-in set of 510 pairs by default.
        tolerance: Limits to change, by the names of the fields of ``fsrm_lite.export.parity.measures.Tolerance``.
        card: Markdown file whose text goes into the model card.
        overwrite: Replace the bundle at ``out``.
        force: Write a bundle that is out of tolerance, and mark its manifest.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The manifest as written; the parity figures are under ``card["parity"]``.

    Raises:
        UnsupportedCheckpointError: Naming what cannot be exported faithfully.
        ToleranceError: If the files do not decide like the checkpoint.
        ExportError: On any other bad input, or when the disk is full.
    """
    target, root = Path(out), Path(checkpoint)
    limits = Tolerance.from_mapping(tolerance)
    for flag, value, kinds in (("fast", fast, get_args(FastKind)), ("slow", slow, get_args(SlowKind))):
        if value not in kinds:
            raise ExportError(f"--{flag} is {value!r}, expected one of {', '.join(kinds)}")
    check_target(target, overwrite=overwrite)
    card_text = _read_card(card)
    report = progress or (lambda stage, done, total: None)
    source = open_source(root, spec, None if calibration is None else Path(calibration))
    fingerprint = check_weights(source.checkpoint, report)
    with atomic_folder(target, overwrite=overwrite) as folder:
        expected = ask_reference(source, tolerance=limits, report=report)
        shutil.copyfile(root / TOKENIZER_NAME, folder / TOKENIZER_NAME)
        fast_result = build_fast(source, expected, folder, fast, limits, report)
        slow_result = build_slow(source, expected, folder, slow, limits, report)
        parity = {
            "fast": fast_result.to_dict(fast, count_matmuls(source), limits),
            "slow": slow_result.to_dict(slow, limits),
        }
        found = _out_of_tolerance(source, (fast, slow), fast_result, slow_result, limits, report)
        if found and not force:
            raise ToleranceError(
                "the export is out of tolerance: " + "; ".join(found) + "; or write it anyway with --force"
            )
        manifest = replace(source.manifest, card=_card_entries(source, parity, found, fingerprint))
        (folder / "README.md").write_text(model_card(manifest, card_text), "utf-8")
        return write_manifest(folder, manifest, {"tokenizer": TOKENIZER_NAME, **fast_result.files, **slow_result.files})


def open_source(root: Path, spec: str | Path | Mapping[str, Any] | None, calibration: Path | None) -> Source:
    """Read and check everything small: config, headers of the weights, tokenizer, spec, calibration pairs.

    Args:
        root: The checkpoint folder.
        spec: The trainer's fragment; ``fsrm.json`` in the folder by default.
        calibration: JSONL of pairs; the built-in set by default.

    Returns:
        What all stages of the export work from.

    Raises:
        ExportError: On the first thing that is missing, broken or unsupported.
    """
    checkpoint = Checkpoint.open(root)
    vocabulary = read_vocabulary(root, checkpoint.arch.vocab_size)
    where, fragment = load_spec(root, spec)
    manifest = resolve_spec(where, fragment, checkpoint.arch, vocabulary, root)
    encoder = PromptEncoder(root / TOKENIZER_NAME, manifest)
    data, ids = keep_short(load_calibration(calibration), encoder)
    return Source(checkpoint, vocabulary, manifest, encoder, data, ids)


def check_weights(checkpoint: Checkpoint, report: StageProgress) -> str:
    """Read every weight once; return the SHA-256 that names the checkpoint.

    Raises:
        ExportError: Naming a tensor with NaN or infinite values.
    """
    names = checkpoint.names()
    for done, name in enumerate(names, 1):
        for rows in row_slices(checkpoint.shape(name)):
            checkpoint.tensor(name, rows)
        report("check weights", done, len(names))
    digest = hashlib.sha256()
    for path in (checkpoint.root / "config.json", checkpoint.root / TOKENIZER_NAME, *checkpoint.files()):
        digest.update(f"{file_sha256(path)}  {path.name}\n".encode())
    return digest.hexdigest()


def _out_of_tolerance(
    source: Source,
    kinds: tuple[FastKind, SlowKind],
    fast: FastResult,
    slow: SlowResult,
    limits: Tolerance,
    report: StageProgress,
) -> list[str]:
    """Return what is out of tolerance, one line each.

    Where quantization is to blame, a last line names the MatMul that quantization changes most.
    """
    found = violations(kinds[0], fast.parity, slow.verdicts, limits)
    quantized = {"fast": kinds[0] != "fp32", "slow": kinds[1] != "f16"}
    if any(quantized[line.partition(":")[0]] for line in found):
        name, error = fast.tuned.worst or worst_matmul(source.checkpoint, source.fast_ids, report)
        found.append(f"the worst MatMul is {name}, which alone changes its layer's output by {error:.2%}")
    return found


def _card_entries(source: Source, parity: dict[str, Any], found: list[str], fingerprint: str) -> dict[str, Any]:
    """Return the card of the manifest: what people want to know of the model, and no program acts on."""
    data = source.data
    tools = ("fsrm-lite", "onnxruntime", "onnx", "gguf", "llama-cpp-python", "transformers", "torch")
    return {
        **source.manifest.card,
        "architecture": {**asdict(source.checkpoint.arch), "parameters": source.parameters},
        "provenance": {"checkpoint_sha256": fingerprint, "tools": {name: _version(name) for name in tools}},
        "parity": {
            **{kind: figures for kind, figures in parity.items() if figures is not None},
            "calibration": {"source": data.source, "items": len(data.items), "pairs": len(data.pairs)},
            "passed": not found,
            "forced": bool(found),
            "violations": found,
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_card(path: str | Path | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read the card {path}: {error}") from error
