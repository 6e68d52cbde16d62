"""Exports a checkpoint, the trainer's folder, as a bundle, the folder that this package loads.

The steps are: plan the export (``plan`` reads and checks), ask the checkpoint itself for the answers to compare with
(the reference), write the fast file, write the slow file, and compare both with the reference (*parity*). The output
folder appears only after all of them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fsrm_lite.bundle.files import Bundle, file_sha256, write_manifest
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ToleranceError
from fsrm_lite.export.card import model_card
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.tensors import row_slices
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.golden import golden_examples
from fsrm_lite.export.graph.precision import worst_matmul
from fsrm_lite.export.parity.measures import Violations, violations
from fsrm_lite.export.plan import Plan, Spec, plan_export
from fsrm_lite.export.stages import (
    FastKind,
    FastResult,
    SlowKind,
    SlowResult,
    StageProgress,
    ask_reference,
    build_fast,
    build_slow,
    count_matmuls,
    label_mass_too_low,
)


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    spec: Spec | None = None,
    recipe: str | None = None,
    name: str | None = None,
    fast: FastKind = "int8",
    slow: SlowKind | None = None,
    calibration: str | Path | None = None,
    tolerance: Mapping[str, float] | None = None,
    card: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Manifest:
    """Export a Hugging Face checkpoint folder as a bundle and measure how alike the two decide.

    Args:
        checkpoint: Folder that ``save_pretrained`` wrote, with ``tokenizer.json``; or "org/name" on the hub.
        out: Folder to create; it appears only when the whole bundle is in it.
        spec: The trainer's fragment (labels, templates, gate); ``CHECKPOINT/fsrm.json`` by default. Without one, a
            recipe is used.
        recipe: Name of a recipe; by default the one that ``fsrm_lite.export.recipes.recognise`` finds by the name of
            the folder, or by "org/name".
        name: Name of the exported model where a recipe is used; by default that of the checkpoint.
        fast: Precision of the ONNX file.
        slow: Kind of the GGUF file, or "none" for a bundle that thinks with its fast file alone. By default "q8_0", and
            "none" where no template asks for a thought, as with a scalar head.
        calibration: JSONL of pairs to measure on; a built-in set of 510 pairs by default.
        tolerance: Limits to change, by the names of the fields of ``fsrm_lite.export.parity.measures.Tolerance``.
        card: Markdown file whose text goes into the model card.
        overwrite: Replace the bundle at ``out``.
        force: Write a bundle that is out of tolerance, and mark its manifest.
        progress: Called as ``progress(stage, done, total)``.
        notice: Called with each sentence about what was recognised, assumed, looks doubtful, or is not measured.

    Returns:
        The manifest as written; the parity figures are under ``card["parity"]``.

    Raises:
        UnsupportedCheckpointError: Naming what cannot be exported faithfully.
        ToleranceError: If the files do not decide like the checkpoint. Nothing was written then, except where only the
            slow file is to blame: a bundle without it has been written, and the message says so.
        ExportError: On any other bad input, or when the disk is full.
    """
    target, report = Path(out), progress or (lambda stage, done, total: None)
    check_target(target, overwrite=overwrite)
    plan = plan_export(
        checkpoint,
        spec=spec,
        recipe=recipe,
        name=name,
        fast=fast,
        slow=slow,
        calibration=calibration,
        tolerance=tolerance,
        card=card,
    )
    if notice is not None:
        for sentence in plan.sentences():
            notice(sentence)
    fingerprint = check_weights(plan.source.checkpoint, report)
    with atomic_folder(target, overwrite=overwrite) as folder:
        built = build_bundle(plan, folder, fingerprint, force=force, report=report)
    if built.left_out:
        raise ToleranceError(
            f"{built.left_out}; the fast file is within tolerance, and {target} was written without the slow one"
        )
    return built.manifest


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


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle that was written.

    Attributes:
        manifest: Its manifest.
        left_out: Why it has no slow file although one was asked for; empty otherwise.
    """

    manifest: Manifest
    left_out: str = ""


def build_bundle(plan: Plan, folder: Path, fingerprint: str, *, force: bool, report: StageProgress) -> Built:
    """Compute, measure and write a whole bundle.

    Args:
        plan: What to export, and how.
        folder: An empty folder.
        fingerprint: The SHA-256 that names the checkpoint.
        force: Write what is out of tolerance, and mark it.
        report: Called as the stages go on.

    Returns:
        What was written. A slow file that is out of tolerance is left out, unless ``force`` is given: the fast half is
        good then, and took its time to make.

    Raises:
        ToleranceError: If the fast file is out of tolerance, or the checkpoint does not say its labels.
    """
    source, limits = plan.source, plan.tolerance
    expected = ask_reference(source, tolerance=limits, report=report)
    too_low = label_mass_too_low(source, expected, limits)
    unsaid = Violations(() if too_low is None else (too_low,))
    if unsaid and not force:
        raise ToleranceError(_refusal(unsaid.lines()))
    shutil.copyfile(source.checkpoint.root / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    fast = build_fast(source, expected, folder, plan.fast, limits, report)
    slow = build_slow(source, expected, folder, plan.slow, limits, report)
    found = violations(plan.fast, fast.parity, slow.verdicts, limits)
    wrong = [*unsaid.lines(), *found.lines(), *_worst(plan, fast, found, report)]
    left_out = ""
    if found and not force:
        left_out = _refusal(wrong)
        if found.fast:
            raise ToleranceError(left_out)
        shutil.rmtree(folder / "slow")
        slow, wrong = SlowResult({}), []
    parity = {
        "fast": fast.to_dict(plan.fast, count_matmuls(source), limits),
        "slow": slow.to_dict(plan.slow, limits),
    }
    card = _card_entries(plan, parity, wrong, fingerprint)
    files = {"tokenizer": TOKENIZER_NAME, **fast.files, **slow.files}
    return Built(_describe(folder, plan, card, files), left_out)


def _refusal(wrong: Sequence[str]) -> str:
    return f"the export is out of tolerance: {'; '.join(wrong)}; or write it anyway with --force"


def _worst(plan: Plan, fast: FastResult, found: Violations, report: StageProgress) -> list[str]:
    """Name the MatMul that quantization changes most, where quantization is to blame for what was found."""
    if not ((found.fast and plan.fast != "fp32") or (found.slow and plan.slow != "f16")):
        return []
    name, error = fast.tuned.worst or worst_matmul(plan.source.checkpoint, plan.source.fast_ids, report)
    return [f"the worst MatMul is {name}, which alone changes its layer's output by {error:.2%}"]


def _card_entries(plan: Plan, parity: dict[str, Any], wrong: list[str], fingerprint: str) -> dict[str, Any]:
    """Return the card of the manifest: what people want to know of the model, and no program acts on."""
    source, data = plan.source, plan.source.data
    tools = ("fsrm-lite", "onnxruntime", "onnx", "gguf", "llama-cpp-python", "transformers", "torch")
    return {
        **source.manifest.card,
        "architecture": {**asdict(source.checkpoint.arch), "parameters": source.parameters},
        "provenance": {"checkpoint_sha256": fingerprint, "tools": {name: _version(name) for name in tools}},
        "parity": {
            **{kind: figures for kind, figures in parity.items() if figures is not None},
            "calibration": {"source": data.source, "items": len(data.items), "pairs": len(data.pairs)},
            "passed": not wrong,
            "forced": bool(wrong),
            "violations": wrong,
        },
        **plan.chosen.card(source.checkpoint.arch),
        **({"warnings": plan.doubtful} if plan.doubtful else {}),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _describe(folder: Path, plan: Plan, card: dict[str, Any], files: dict[str, str]) -> Manifest:
    """Write the manifest and the model card of a bundle whose files are there; return the manifest.

    Args:
        folder: The bundle's folder.
        plan: What was exported.
        card: The card's entries; golden examples are added to them.
        files: Paths by role.
    """
    listed = write_manifest(folder, replace(plan.source.manifest, card=card), files)
    golden = golden_examples(Bundle.open(folder), plan.source.data)
    manifest = replace(listed, card={**card, "golden": golden})
    (folder / "README.md").write_text(model_card(manifest, plan.card_text), "utf-8")
    return write_manifest(folder, manifest)
