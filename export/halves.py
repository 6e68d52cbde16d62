"""Exports two models as one bundle: one for the fast path, and another that is the judge.

The judge's bundle is a whole one, in a folder within the other: with its own tokenizer, templates, stops, limits and
runtime. The manifest of the outer one names its manifest, by the role ``judge``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fsrm_lite.bundle.files import write_manifest
from fsrm_lite.bundle.manifest import MANIFEST_NAME, Manifest
from fsrm_lite.errors import ExportError
from fsrm_lite.export.card import model_card
from fsrm_lite.export.checkpoints.spec import load_spec
from fsrm_lite.export.encoders import is_onnx_folder
from fsrm_lite.export.finish import read_card
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.gguf.bundle import is_gguf
from fsrm_lite.export.hub import find_checkpoint
from fsrm_lite.export.pipeline import export_checkpoint, spec_of
from fsrm_lite.export.plan import open_source
from fsrm_lite.export.stages import FastKind, SlowKind, StageProgress

JUDGE_FOLDER = "judge"


def export_with_judge(
    checkpoint: str | Path,
    judge: str | Path,
    out: str | Path,
    *,
    spec: str | Path | Mapping[str, Any] | None = None,
    recipe: str | None = None,
    name: str | None = None,
    tokenizer: str | Path | None = None,
    judge_spec: str | Path | Mapping[str, Any] | None = None,
    judge_recipe: str | None = None,
    judge_tokenizer: str | Path | None = None,
    fast: FastKind | None = None,
    slow: SlowKind | None = None,
    exporter: Literal["own", "optimum"] = "own",
    calibration: str | Path | None = None,
    tolerance: Mapping[str, float] | None = None,
    card: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Manifest:
    """Export one model as the fast half of a bundle, and another as its judge.

    Args:
        checkpoint: The fast half: a checkpoint or a GGUF file, as for ``export_checkpoint``. Only its fast templates
            are used.
        judge: The judge: a checkpoint or a GGUF file. Whether its own fast answers are labels does not matter.
        out: Folder to create; it appears only when the whole bundle is in it.
        spec: The fast half's labels, templates and gate; see ``export_checkpoint``.
        recipe: The fast half's recipe.
        name: Name of the fast half where a recipe is used.
        tokenizer: For a GGUF file as the fast half: the folder of its tokenizer.
        judge_spec: The judge's templates, stops and limits.
        judge_recipe: The judge's recipe.
        judge_tokenizer: For a GGUF file as the judge: the folder of its tokenizer.
        fast: Precision of the fast half's ONNX file.
        slow: Kind of the judge's GGUF file, or "none" to think with its ONNX file.
        exporter: Who writes the fast half's ONNX file; see ``export_checkpoint``.
        calibration: As for ``export_checkpoint``; both halves are measured on it.
        tolerance: As for ``export_checkpoint``; for both halves.
        card: Markdown file whose text goes into the model card.
        overwrite: Replace the bundle at ``out``.
        force: Write halves that are out of tolerance.
        progress: Called as ``progress(stage, done, total)``.
        notice: Called with each sentence about what was recognised, assumed, or looks doubtful.

    Returns:
        The manifest as written, which is that of the fast half.

    Raises:
        ExportError: If a half lacks the templates that it is there for, before anything is computed; or as
            ``export_checkpoint`` says.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    text = read_card(card)
    if exporter == "own":
        _check_half(checkpoint, spec, recipe, tokenizer, half="fast")
    _check_half(judge, judge_spec, judge_recipe, judge_tokenizer, half="slow")
    with atomic_folder(target, overwrite=overwrite) as folder:
        part = folder / "fast-half"
        manifest = export_checkpoint(
            checkpoint,
            part,
            spec=spec,
            recipe=recipe,
            name=name,
            tokenizer=tokenizer,
            fast=fast,
            slow="none",
            fast_only=True,
            exporter=exporter,
            calibration=calibration,
            tolerance=tolerance,
            force=force,
            progress=progress,
            notice=notice,
        )
        for path in part.iterdir():
            path.rename(folder / path.name)
        part.rmdir()
        slow_manifest = export_checkpoint(
            judge,
            folder / JUDGE_FOLDER,
            spec=judge_spec,
            recipe=judge_recipe,
            tokenizer=judge_tokenizer,
            slow=slow,
            calibration=calibration,
            tolerance={**(tolerance or {}), "label_mass": 0.0},
            force=force,
            progress=progress,
            notice=notice,
        )
        about = {"name": slow_manifest.name, "license": slow_manifest.card.get("license")}
        manifest = replace(manifest, card={**manifest.card, "judge": about})
        files = {role: entry.path for role, entry in manifest.files.items()}
        (folder / "README.md").write_text(model_card(manifest, text), "utf-8")
        return write_manifest(folder, manifest, {**files, "judge": f"{JUDGE_FOLDER}/{MANIFEST_NAME}"})


def _check_half(
    checkpoint: str | Path,
    spec: str | Path | Mapping[str, Any] | None,
    recipe: str | None,
    tokenizer: str | Path | None,
    *,
    half: str,
) -> None:
    """Refuse a half that lacks its templates, or cannot be exported at all, before the long work begins."""
    chosen = spec_of(checkpoint, spec, recipe, None if tokenizer is None else Path(tokenizer))
    as_it_is = is_gguf(checkpoint) or is_onnx_folder(checkpoint)
    root = Path(checkpoint).expanduser() if as_it_is else find_checkpoint(checkpoint)
    where, data = load_spec(root, chosen.spec)
    names = list(data.get("templates") or {})
    if not any(name.endswith(f"_{half}") for name in names):
        which, options = (
            ("judge", "--judge-recipe or --judge-spec") if half == "slow" else ("fast half", "--recipe or --spec")
        )
        source = where if chosen.recognised is None else f"recipe {chosen.recognised.recipe.name}"
        raise ExportError(
            f"the {which} {checkpoint} has no {half} template ({source} has {', '.join(names) or 'none'}); "
            f"name another one with {options}"
        )
    if half == "slow" and is_onnx_folder(checkpoint):
        raise ExportError(f"the judge {checkpoint} is an encoder, which cannot write; expected a causal language model")
    if half == "slow" and not as_it_is:
        open_source(root, chosen.spec, None)
