"""Exports a checkpoint, the trainer's folder, as a bundle, the folder that this package loads.

The stages are: check everything that is read, ask the checkpoint itself for the answers to compare with (the
reference), write the fast file, write the slow file, and compare both with the reference (*parity*). The output folder
appears only after all of them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle, file_sha256, write_manifest
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError, ToleranceError
from fsrm_lite.export.card import model_card
from fsrm_lite.export.checkpoints.chat_template import read_chat_template
from fsrm_lite.export.checkpoints.checkpoint import Architecture, Checkpoint, read_config
from fsrm_lite.export.checkpoints.spec import SPEC_NAME, load_spec, resolve_spec
from fsrm_lite.export.checkpoints.tensors import row_slices
from fsrm_lite.export.checkpoints.traps import doubts, refuse_foreign_tokens
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, has_chat_template, read_vocabulary
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.gguf.writer import check_writable
from fsrm_lite.export.golden import golden_examples
from fsrm_lite.export.graph.precision import worst_matmul
from fsrm_lite.export.hub import find_checkpoint
from fsrm_lite.export.parity.calibration_pairs import keep_short, load_calibration, pair_orders
from fsrm_lite.export.parity.measures import Tolerance, violations
from fsrm_lite.export.recipes import Recognised, find_recipe, fragment, recognise
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
    label_mass_too_low,
)


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    spec: str | Path | Mapping[str, Any] | None = None,
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
        recipe: Name of a recipe; by default the one that ``fsrm_lite.export.recipes.recognise`` finds.
        name: Name of the model where a recipe is used; by default that of the checkpoint.
        fast: Precision of the ONNX file.
        slow: Kind of the GGUF file, or "none" for a bundle that thinks with its fast file alone. By default "q8_0", and
            "none" where no template asks for a thought, as with a scalar head.
        calibration: JSONL of pairs to measure on; a built-in set of 510 pairs by default.
        tolerance: Limits to change, by the names of the fields of ``fsrm_lite.export.parity.measures.Tolerance``.
        card: Markdown file whose text goes into the model card.
        overwrite: Replace the bundle at ``out``.
        force: Write a bundle that is out of tolerance, and mark its manifest.
        progress: Called as ``progress(stage, done, total)``.
        notice: Called with each sentence about what was recognised, assumed, or looks doubtful.

    Returns:
        The manifest as written; the parity figures are under ``card["parity"]``.

    Raises:
        UnsupportedCheckpointError: Naming what cannot be exported faithfully.
        ToleranceError: If the files do not decide like the checkpoint. Where only the slow file is to blame, a bundle
            without it has been written.
        ExportError: On any other bad input, or when the disk is full.
    """
    target = Path(out)
    limits = Tolerance.from_mapping(tolerance)
    for flag, value, kinds in (("fast", fast, get_args(FastKind)), ("slow", slow, get_args(SlowKind))):
        if value is not None and value not in kinds:
            raise ExportError(f"--{flag} is {value!r}, expected one of {', '.join(kinds)}")
    check_target(target, overwrite=overwrite)
    card_text = _read_card(card)
    report = progress or (lambda stage, done, total: None)
    tell = notice or (lambda sentence: None)
    root = find_checkpoint(checkpoint)
    chosen = choose_spec(root, spec, recipe, name or str(checkpoint))
    source = open_source(root, chosen.spec, None if calibration is None else Path(calibration))
    chat = None if source.vocabulary.chat_template is None else read_chat_template(root, source.vocabulary)
    doubtful = doubts(source.manifest, chat)
    for sentence in (*chosen.sentences(), *(f"warning: {sentence}" for sentence in doubtful)):
        tell(sentence)
    thinks = any(name.endswith("_slow") or name == "solve" for name in source.manifest.templates)
    slow = slow or ("q8_0" if thinks else "none")
    if slow != "none":
        check_writable(source.checkpoint.arch)
    fingerprint = check_weights(source.checkpoint, report)
    with atomic_folder(target, overwrite=overwrite) as folder:
        expected = ask_reference(source, tolerance=limits, report=report)
        too_low = label_mass_too_low(source, expected, limits)
        if too_low is not None and not force:
            raise ToleranceError(f"the export is out of tolerance: {too_low}; or write it anyway with --force")
        shutil.copyfile(root / TOKENIZER_NAME, folder / TOKENIZER_NAME)
        fast_result = build_fast(source, expected, folder, fast, limits, report)
        slow_result = build_slow(source, expected, folder, slow, limits, report)
        parity = {
            "fast": fast_result.to_dict(fast, count_matmuls(source), limits),
            "slow": slow_result.to_dict(slow, limits),
        }
        found = [] if too_low is None else [too_low]
        found += _out_of_tolerance(source, (fast, slow), fast_result, slow_result, limits, report)
        only_fast = ""
        if found and not force:
            wrong = "the export is out of tolerance: " + "; ".join(found) + "; or write it anyway with --force"
            if any(line.startswith("fast:") for line in found):
                raise ToleranceError(wrong)
            # The fast half is good, and took its time to make: it is kept, without the slow file.
            only_fast = f"{wrong}; the fast file is within tolerance, and {target} was written without the slow one"
            shutil.rmtree(folder / "slow")
            slow_result, parity["slow"], found = SlowResult({}), None, []
        entries = {**_card_entries(source, parity, found, fingerprint), **chosen.card(source.checkpoint.arch)}
        files = {"tokenizer": TOKENIZER_NAME, **fast_result.files, **slow_result.files}
        manifest = _describe(
            folder, source, {**entries, "warnings": doubtful} if doubtful else entries, files, card_text
        )
    if only_fast:
        raise ToleranceError(only_fast)
    return manifest


def _describe(folder: Path, source: Source, card: dict[str, Any], files: dict[str, str], text: str | None) -> Manifest:
    """Write the manifest and the model card of a bundle whose files are there; return the manifest.

    Args:
        folder: The bundle's folder.
        source: What it was exported from.
        card: The card's entries; golden examples are added to them.
        files: Paths by role.
        text: What the trainer says about the model.
    """
    write_manifest(folder, replace(source.manifest, card=card), files)
    golden = golden_examples(Bundle.open(folder), source.data)
    manifest = replace(source.manifest, card={**card, "golden": golden})
    (folder / "README.md").write_text(model_card(manifest, text), "utf-8")
    return write_manifest(folder, manifest, files)


@dataclass(frozen=True, slots=True)
class ChosenSpec:
    """The spec of an export, and the recipe that it came from, if any."""

    spec: str | Path | Mapping[str, Any] | None
    recognised: Recognised | None = None

    def sentences(self) -> list[str]:
        """Say what was recognised and assumed."""
        if self.recognised is None:
            return []
        recipe = self.recognised.recipe
        return [
            f"recipe {recipe.name} ({self.recognised.why}): {recipe.about}",
            *(f"assumed: {sentence}" for sentence in recipe.assumes),
        ]

    def card(self, arch: Architecture) -> dict[str, Any]:
        """Return what the card says about the recipe, with the published examples of this very model."""
        if self.recognised is None:
            return {}
        recipe = self.recognised.recipe
        published = [
            {key: value for key, value in example.items() if key != "shape"}
            for example in recipe.published
            if all(getattr(arch, key) == value for key, value in example["shape"].items())
        ]
        about = {"name": recipe.name, "recognised": self.recognised.why, "source": recipe.source}
        return {"recipe": {**about, "assumes": list(recipe.assumes)}} | ({"published": published} if published else {})


def choose_spec(root: Path, spec: str | Path | Mapping[str, Any] | None, recipe: str | None, name: str) -> ChosenSpec:
    """Return the spec for a checkpoint: the one that is given, else its own ``fsrm.json``, else a recipe.

    Args:
        root: The checkpoint folder.
        spec: The trainer's fragment, or None.
        recipe: Name of a recipe, or None.
        name: What the checkpoint is called.

    Raises:
        ExportError: If both are given, or nothing is known about the checkpoint.
    """
    if spec is not None and recipe is not None:
        raise ExportError("both --spec and --recipe are given; expected one of them")
    if spec is not None or (recipe is None and (root / SPEC_NAME).is_file()):
        return ChosenSpec(spec)
    own = name.rstrip("/").rsplit("/", 1)[-1] or root.name
    if recipe is not None:
        recognised = Recognised(find_recipe(recipe), "as asked for")
    else:
        config = read_config(root)
        classes = config.get("architectures") or [f"unknown class of type {config.get('model_type')}"]
        recognised = recognise(name, str(classes[0]), chat_template=has_chat_template(root))
    return ChosenSpec(fragment(recognised.recipe, own), recognised)


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
    refuse_foreign_tokens(manifest, vocabulary)
    encoder = PromptEncoder(root / TOKENIZER_NAME, manifest)
    data, ids = keep_short(load_calibration(calibration), encoder)
    pairs = data.pairs
    if "pointwise_fast" not in manifest.templates:
        ids = pair_orders(data, encoder)
        pairs = tuple((i, i + 1) for i in range(0, len(ids), 2))
    return Source(checkpoint, vocabulary, manifest, encoder, data, ids, pairs)


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
