"""Makes a bundle of a GGUF file as it is: it scores through llama.cpp, and thinks with the same file.

There is no checkpoint to compare with: the scores are those of the file itself. What can go wrong is looked for all the
same: the tokenizer is compared with llama.cpp's own, and the label mass is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import file_sha256
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import BundleError, ExportError, ToleranceError
from fsrm_lite.export.checkpoints.chat_template import read_chat_template
from fsrm_lite.export.checkpoints.checkpoint import MODEL_CLASSES
from fsrm_lite.export.checkpoints.spec import load_spec, resolve_spec
from fsrm_lite.export.checkpoints.traps import doubts, refuse_foreign_tokens
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, Vocabulary, chat_template_of, has_chat_template
from fsrm_lite.export.finish import describe, read_card, tool_versions
from fsrm_lite.export.folders import atomic_folder, check_target
from fsrm_lite.export.gguf.tokenizer import (
    first_text_read_otherwise,
    read_entries,
    take_tokenizer,
    vocabulary_of,
    write_tokenizer,
)
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet, keep_short, load_calibration, pair_orders
from fsrm_lite.export.parity.engine_reader import EngineReader
from fsrm_lite.export.parity.measures import Tolerance
from fsrm_lite.export.plan import ChosenSpec, asked_for
from fsrm_lite.export.recipes import fragment, recognise
from fsrm_lite.export.stages import StageProgress, label_mass, label_mass_too_low, measured
from fsrm_lite.runtimes.llama.engine import LlamaModel
from fsrm_lite.runtimes.llama.gguf_header import Header, read_header
from fsrm_lite.runtimes.opening import GGUF_SUFFIX

GGUF_PATH = "fast/model.gguf"

LOOK = 48
"""Texts on which the label mass is measured; reading all 204 built-in ones would take minutes with llama.cpp."""


@dataclass(frozen=True, slots=True)
class GgufShape:
    """What a spec must fit; see ``fsrm_lite.export.checkpoints.spec.ModelShape``."""

    context: int
    vocab_size: int
    sliding_window: None = None
    scalar: bool = False


def is_gguf(checkpoint: str | Path) -> bool:
    """Return whether an export is asked to take a GGUF file."""
    path = Path(checkpoint).expanduser()
    return path.suffix == GGUF_SUFFIX and path.is_file()


def choose_gguf_spec(
    path: Path, spec: str | Path | Mapping[str, Any] | None, recipe: str | None, name: str | None, *, chat: bool
) -> ChosenSpec:
    """Return the spec for a GGUF file: the one that is given, else a recipe.

    Args:
        path: The file.
        spec: A fragment, or None.
        recipe: Name of a recipe, or None.
        name: Name of the model; by default that of the file.
        chat: Whether a chat template was given beside the file.

    Raises:
        BundleError: If it is no GGUF file.
        ExportError: If both are given, or nothing is known about the model.
    """
    entries = read_header(path).entries
    own = name or path.name.removesuffix(GGUF_SUFFIX)
    if spec is not None or recipe is not None:
        return asked_for(spec, recipe, own)
    kind = str(entries.get("general.architecture"))
    found = recognise(own, MODEL_CLASSES.get(kind, kind), chat_template=chat or "tokenizer.chat_template" in entries)
    return ChosenSpec(fragment(found.recipe, own), found)


def export_gguf(
    path: Path,
    out: Path,
    *,
    spec: str | Path | Mapping[str, Any] | None = None,
    recipe: str | None = None,
    name: str | None = None,
    tokenizer: Path | None = None,
    judge: bool = True,
    fast_only: bool = False,
    calibration: Path | None = None,
    tolerance: Tolerance | None = None,
    card: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: StageProgress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Manifest:
    """Make a bundle whose fast file is a GGUF file, as it is.

    Args:
        path: The file.
        out: Folder to create; it appears only when the whole bundle is in it.
        spec: Labels, templates, gate; without one, a recipe is used.
        recipe: Name of a recipe; by default one that fits.
        name: Name of the model; by default that of the file.
        tokenizer: Folder with the model's own ``tokenizer.json``, or that file; by default one is built from the GGUF.
        judge: Whether the file is the judge, too, where templates ask for thoughts.
        fast_only: Leave out all templates but the fast ones.
        calibration: JSONL of pairs, of which ``LOOK`` texts are read; the built-in pairs by default.
        tolerance: Its ``label_mass`` is the least median of the label mass.
        card: Markdown file whose text goes into the model card.
        overwrite: Replace the bundle at ``out``.
        force: Write a bundle whose label mass is too low.
        progress: Called as ``progress(stage, done, total)``.
        notice: Called with each sentence about what was recognised, assumed, or looks doubtful.

    Returns:
        The manifest as written.

    Raises:
        UnsupportedCheckpointError: If the tokenizer cannot be built.
        ToleranceError: If the model is not about to answer with a label.
        ExportError: On any other bad input: an encoder, a tokenizer of another model, no chat template, ...
    """
    limits = tolerance or Tolerance()
    check_target(out, overwrite=overwrite)
    text = read_card(card)
    tell = notice or (lambda sentence: None)
    report = progress or (lambda stage, done, total: None)
    with TemporaryDirectory(prefix="fsrm-gguf-") as temporary, closing(_load(path)) as model:
        root = Path(temporary)
        given = None if tokenizer is None else tokenizer.expanduser()
        chat_given = given is not None and has_chat_template(given if given.is_dir() else given.parent)
        chosen = choose_gguf_spec(path, spec, recipe, name, chat=chat_given)
        entries = read_entries(path)
        if given is None:
            write_tokenizer(root, entries)
        else:
            take_tokenizer(root, given, entries, path)
        vocabulary = vocabulary_of(entries, chat_template_of(root))
        where, data = load_spec(root, chosen.spec, fast_only=fast_only)
        shape = GgufShape(int(entries[f"{model.architecture}.context_length"]), model.vocab_size)
        chat = read_chat_template(root, vocabulary)
        manifest = resolve_spec(where, data, shape, vocabulary, chat, root)
        refuse_foreign_tokens(manifest, vocabulary)
        doubtful = doubts(manifest, chat)
        encoder = PromptEncoder(root / TOKENIZER_NAME, manifest)
        pairs = load_calibration(calibration)
        doubtful += _compare_tokenizers(encoder, model, pairs, built=given is None)
        for sentence in (*chosen.sentences(), *(f"warning: {sentence}" for sentence in doubtful)):
            tell(sentence)
        kept, looked = _look(model, manifest, encoder, vocabulary, pairs, limits, report)
        if looked["violations"] and not force:
            raise ToleranceError(f"{looked['violations'][0]}; or write it anyway with --force")
        with atomic_folder(out, overwrite=overwrite) as folder:
            copyfile(root / TOKENIZER_NAME, folder / TOKENIZER_NAME)
            (folder / GGUF_PATH).parent.mkdir()
            report("copy", 0, 1)
            copyfile(path, folder / GGUF_PATH)
            report("copy", 1, 1)
            slow = {"slow": GGUF_PATH} if judge and manifest.writes else {}
            files = {"tokenizer": TOKENIZER_NAME, "fast": GGUF_PATH, **slow}
            entry = {
                **manifest.card,
                "architecture": _architecture(model.header, model.architecture),
                "provenance": {"gguf_sha256": file_sha256(folder / GGUF_PATH), "tools": tool_versions()},
                "gguf": {"file": path.name, "tokenizer": "built" if given is None else "given", **looked},
                **chosen.card(None),
                **({"warnings": doubtful} if doubtful else {}),
            }
            return describe(folder, manifest, kept, entry, files, text)


def _load(path: Path) -> LlamaModel:
    """Return the loaded file; whatever is wrong with it is an error of the export."""
    try:
        return LlamaModel(path)
    except BundleError as error:
        raise ExportError(str(error).removesuffix("; export the bundle again")) from error


def _compare_tokenizers(encoder: PromptEncoder, model: LlamaModel, pairs: CalibrationSet, *, built: bool) -> list[str]:
    """Compare ``tokenizer.json`` with llama.cpp's own tokenizer on texts.

    Returns:
        What to warn of. llama.cpp's tokenizer is not always the better one, so a given file stands.

    Raises:
        ExportError: If one that was built differs.
    """
    texts = [text for prompt, response in pairs.items for text in (str(prompt), response)]
    other = first_text_read_otherwise(encoder, model.tokenizer, texts)
    if other is None:
        return []
    differs = f"of the text {other[:60]!r} it makes other ids than llama.cpp's own tokenizer"
    if built:
        raise ExportError(
            f"the tokenizer of {model.path} cannot be built from its tokens: {differs}; "
            f"name the folder of the model's own {TOKENIZER_NAME} with --tokenizer"
        )
    return [f"the given {TOKENIZER_NAME} is used, although {differs}"]


def _look(
    model: LlamaModel,
    manifest: Manifest,
    encoder: PromptEncoder,
    vocabulary: Vocabulary,
    pairs: CalibrationSet,
    tolerance: Tolerance,
    report: StageProgress,
) -> tuple[CalibrationSet, dict[str, Any]]:
    """Read some texts, and return the pairs that fit the context, and what the card says about the label mass."""
    kept, ids = keep_short(pairs, encoder)
    if "pointwise_fast" not in manifest.templates:
        ids = pair_orders(kept, encoder)
    chosen = ids[:: -(-len(ids) // LOOK)]
    by = measured(manifest)
    with EngineReader(model) as reader:
        readings = reader.first_token(
            chosen, [label.id for label in by.labels], lambda done, total: report("label mass", done, total)
        )
    low = label_mass_too_low(readings, by, vocabulary, tolerance)
    return kept, {
        "label_mass": label_mass(readings, by),
        "texts": len(chosen),
        "calibration": kept.source,
        "violations": [] if low is None else [low],
    }


def _architecture(header: Header, kind: str) -> dict[str, Any]:
    """Return what the card says about the model's shape."""
    entries = header.entries
    return {
        "model_type": kind,
        "hidden_size": entries.get(f"{kind}.embedding_length"),
        "layers": entries.get(f"{kind}.block_count"),
        "parameters": sum(prod(tensor.shape) for tensor in header.tensors.values()),
    }
