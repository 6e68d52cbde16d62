"""Exports a checkpoint, the trainer's folder, as a bundle, the folder that this package loads.

The steps are: plan the export (``plan`` reads and checks), ask the checkpoint itself for the answers to compare with
(the reference), write the fast file, write the slow file, and compare both with the reference (*parity*). The output
folder appears only after all of them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypedDict

from fsrm_lite.bundle.files import file_sha256
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError, ToleranceError
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.tensors import row_slices
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, has_chat_template
from fsrm_lite.export.encoders import export_encoder, is_onnx_folder, pair_spec, run_optimum
from fsrm_lite.export.finish import describe, tool_versions
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.gguf.bundle import choose_gguf_spec, export_gguf, is_gguf
from fsrm_lite.export.graph.precision import worst_matmul
from fsrm_lite.export.hub import checkpoint_name, find_checkpoint
from fsrm_lite.export.parity.measures import Tolerance, Violations, violations
from fsrm_lite.export.plan import ChosenSpec, Plan, Spec, choose_spec, plan_export
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
    fast: FastKind | None = None,
    slow: SlowKind | None = None,
    tokenizer: str | Path | None = None,
    fast_only: bool = False,
    exporter: Literal["own", "optimum"] = "own",
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
        checkpoint: Folder that ``save_pretrained`` wrote, with ``tokenizer.json``; or "org/name" on the hub; or a GGUF
            file, see ``fsrm_lite.export.gguf.bundle.export_gguf``; or an ONNX folder, see
            ``fsrm_lite.export.encoders.export_encoder``.
        out: Folder to create; it appears only when the whole bundle is in it.
        spec: The trainer's fragment (labels, templates, gate); ``CHECKPOINT/fsrm.json`` by default. Without one, a
            recipe is used.
        recipe: Name of a recipe; by default the one that ``fsrm_lite.export.recipes.recognise`` finds by the name of
            the folder, or by "org/name".
        name: Name of the exported model where a recipe is used; by default that of the checkpoint.
        fast: Precision of the ONNX file, by default "int8".
        slow: Kind of the GGUF file, or "none" for a bundle that thinks with its fast file alone. By default "q8_0", and
            "none" where no template asks for a thought, as with a scalar head.
        tokenizer: For a GGUF file: the folder of its tokenizer; see ``export_gguf``.
        fast_only: Leave out all templates but the fast ones, for a bundle with a judge of its own.
        exporter: With "optimum", optimum writes the ONNX file, of an encoder with one output.
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
    common: _Common = {
        "spec": spec,
        "name": name,
        "calibration": None if calibration is None else Path(calibration),
        "card": card,
        "overwrite": overwrite,
        "progress": report,
        "notice": notice or (lambda sentence: None),
    }
    if is_gguf(checkpoint):
        if fast is not None or slow not in (None, "none"):
            raise ExportError("a GGUF file is taken as it is; --fast and --slow (but for none) are for checkpoints")
        return export_gguf(
            Path(checkpoint).expanduser(),
            target,
            recipe=recipe,
            tokenizer=None if tokenizer is None else Path(tokenizer),
            judge=slow is None,
            fast_only=fast_only,
            tolerance=Tolerance.from_mapping(tolerance),
            force=force,
            **common,
        )
    if exporter == "optimum" or is_onnx_folder(checkpoint):
        if any(option is not None for option in (recipe, fast, tokenizer)) or slow not in (None, "none"):
            raise ExportError(
                "an encoder is taken as it is; --recipe, --fast, --slow and --tokenizer are for other models"
            )
        return _export_onnx(checkpoint, target, exporter, common)
    if tokenizer is not None:
        raise ExportError("--tokenizer is for a GGUF file; a checkpoint has its own tokenizer.json")
    check_target(target, overwrite=overwrite)
    plan = plan_export(
        checkpoint,
        spec=spec,
        recipe=recipe,
        name=name,
        fast=fast or "int8",
        slow=slow,
        fast_only=fast_only,
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


class _Common(TypedDict):
    """What the exports of a GGUF file and of an encoder take alike; see ``export_checkpoint``."""

    spec: Spec | None
    name: str | None
    calibration: Path | None
    card: str | Path | None
    overwrite: bool
    progress: StageProgress
    notice: Callable[[str], None]


def _export_onnx(checkpoint: str | Path, out: Path, exporter: str, common: _Common) -> Manifest:
    """Export an encoder: an ONNX folder, or a checkpoint of which optimum makes one first."""
    if exporter != "optimum":
        return export_encoder(Path(checkpoint).expanduser(), out, **common)
    named: _Common = {**common, "name": common["name"] or checkpoint_name(checkpoint).rsplit("/", 1)[-1]}
    with TemporaryDirectory(prefix="fsrm-optimum-") as folder:
        return export_encoder(run_optimum(checkpoint, Path(folder)), out, **named)


def spec_of(checkpoint: str | Path, spec: Spec | None, recipe: str | None, tokenizer: Path | None = None) -> ChosenSpec:
    """Return the spec with which ``export_checkpoint`` would export a checkpoint, a GGUF file or an ONNX folder."""
    if is_gguf(checkpoint):
        given = tokenizer is not None and has_chat_template(tokenizer if tokenizer.is_dir() else tokenizer.parent)
        return choose_gguf_spec(Path(checkpoint).expanduser(), spec, recipe, None, chat=given)
    if is_onnx_folder(checkpoint) and recipe is None:
        return ChosenSpec(pair_spec(Path(checkpoint).expanduser()) if spec is None else spec)
    return choose_spec(find_checkpoint(checkpoint), spec, recipe, known_as=checkpoint_name(checkpoint))


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
    too_low = label_mass_too_low(expected.readings, source.measured, source.vocabulary, limits)
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
    return Built(describe(folder, source.manifest, source.data, card, files, plan.card_text), left_out)


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
    return {
        **source.manifest.card,
        "architecture": {**asdict(source.checkpoint.arch), "parameters": source.parameters},
        "provenance": {"checkpoint_sha256": fingerprint, "tools": tool_versions()},
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
