"""What an export reads and decides before anything is computed or written.

Everything small is read and checked here: config, headers of the weights, tokenizer, spec or recipe, calibration pairs.
What is wrong with it is told within seconds, not after an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.errors import ExportError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.chat_template import read_chat_template
from fsrm_lite.export.checkpoints.checkpoint import Architecture, Checkpoint, read_config
from fsrm_lite.export.checkpoints.spec import SPEC_NAME, load_spec, resolve_spec
from fsrm_lite.export.checkpoints.traps import doubts, refuse_foreign_tokens
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, has_chat_template, read_vocabulary
from fsrm_lite.export.finish import read_card
from fsrm_lite.export.gguf.writer import check_writable
from fsrm_lite.export.hub import checkpoint_name, find_checkpoint, traces
from fsrm_lite.export.parity.calibration_pairs import keep_short, load_calibration, pair_orders
from fsrm_lite.export.parity.measures import Tolerance
from fsrm_lite.export.recipes import Recognised, check_asked_for, find_recipe, fragment, recognise
from fsrm_lite.export.stages import FastKind, SlowKind, Source

Spec = str | Path | Mapping[str, Any]
"""A trainer's fragment of a manifest: a file, or what is in one."""


@dataclass(frozen=True, slots=True)
class ChosenSpec:
    """The spec of an export, and the recipe that it came from, if any."""

    spec: Spec | None
    recognised: Recognised | None = None

    def sentences(self) -> list[str]:
        """Say what was recognised and assumed."""
        if self.recognised is None:
            return []
        recipe = self.recognised.recipe
        return [
            f"recipe {recipe.name} ({self.recognised.why}): {recipe.about}",
            *(f"assumed: {sentence}" for sentence in recipe.assumes),
            *self.recognised.guesses,
        ]

    def card(self, arch: Architecture | None) -> dict[str, Any]:
        """Return what the card says about the recipe, with the published examples of this very model."""
        if self.recognised is None:
            return {}
        recipe = self.recognised.recipe
        published = [
            {key: value for key, value in example.items() if key != "shape"}
            for example in recipe.published
            if all(getattr(arch, key, None) == value for key, value in example["shape"].items())
        ]
        about = {"name": recipe.name, "recognised": self.recognised.why, "source": recipe.source}
        return {"recipe": {**about, "assumes": list(recipe.assumes)}} | ({"published": published} if published else {})


@dataclass(frozen=True, slots=True)
class Plan:
    """An export, ready to be carried out.

    Attributes:
        source: What was read of the checkpoint.
        chosen: The spec, and the recipe that it came from.
        doubtful: What is suspicious about the templates, one sentence each.
        fast: Precision of the ONNX file.
        slow: Kind of the GGUF file.
        tolerance: What both must meet.
        card_text: What the trainer says about the model, or None.
    """

    source: Source
    chosen: ChosenSpec
    doubtful: list[str]
    fast: FastKind
    slow: SlowKind
    tolerance: Tolerance
    card_text: str | None

    def sentences(self) -> list[str]:
        """Say what was recognised, assumed, or looks doubtful, and what will not be measured."""
        found = [*self.chosen.sentences(), *(f"warning: {sentence}" for sentence in self.doubtful)]
        templates = self.source.manifest.templates
        if "pointwise_fast" in templates and "pairwise_fast" in templates:
            found.append(
                "not measured: how the exported files read pairs (template 'pairwise_fast'); the parity figures are "
                "about single responses ('pointwise_fast')"
            )
        return found


def plan_export(
    checkpoint: str | Path,
    *,
    spec: Spec | None,
    recipe: str | None,
    name: str | None,
    fast: FastKind,
    slow: SlowKind | None,
    fast_only: bool = False,
    calibration: str | Path | None,
    tolerance: Mapping[str, float] | None,
    card: str | Path | None,
) -> Plan:
    """Read and check what an export needs; ``fsrm_lite.export.pipeline.export_checkpoint`` explains the arguments.

    Raises:
        UnsupportedCheckpointError: Naming what cannot be exported faithfully.
        ExportError: On the first other thing that is missing, broken or unknown.
    """
    limits = Tolerance.from_mapping(tolerance)
    for flag, value, kinds in (("fast", fast, get_args(FastKind)), ("slow", slow, get_args(SlowKind))):
        if value is not None and value not in kinds:
            raise ExportError(f"--{flag} is {value!r}, expected one of {', '.join(kinds)}")
    card_text = read_card(card)
    root = find_checkpoint(checkpoint)
    chosen = choose_spec(root, spec, recipe, known_as=checkpoint_name(checkpoint), name=name)
    source = open_source(root, chosen.spec, None if calibration is None else Path(calibration), fast_only=fast_only)
    slow = slow or ("q8_0" if source.manifest.writes else "none")
    if slow != "none":
        check_writable(source.checkpoint.arch)
    return Plan(source, chosen, doubts(source.manifest, source.chat), fast, slow, limits, card_text)


def choose_spec(
    root: Path, spec: Spec | None, recipe: str | None, *, known_as: str, name: str | None = None
) -> ChosenSpec:
    """Return the spec for a checkpoint: the one that is given, else its own ``fsrm.json``, else a recipe.

    Args:
        root: The checkpoint folder.
        spec: The trainer's fragment, or None.
        recipe: Name of a recipe, or None.
        known_as: What the checkpoint is called, see ``fsrm_lite.export.hub.checkpoint_name``; a recipe is recognised
            by it.
        name: Name of the exported model where a recipe is used; by default that of the checkpoint, without ``org/``.

    Raises:
        ExportError: If both are given, or nothing is known about the checkpoint.
    """
    own = name or known_as.rsplit("/", 1)[-1] or root.name
    config = read_config(root)
    classes = config.get("architectures") or [f"unknown class of type {config.get('model_type')}"]
    if spec is not None or recipe is not None:
        asked = asked_for(spec, recipe, own)
        if asked.recognised is not None:
            check_asked_for(asked.recognised.recipe, known_as, str(classes[0]))
        return asked
    if (root / SPEC_NAME).is_file():
        return ChosenSpec(None)
    recognised = recognise(
        known_as,
        str(classes[0]),
        chat_template=has_chat_template(root),
        traces=traces(root, known_as, config),
    )
    return ChosenSpec(fragment(recognised.recipe, own), recognised)


def asked_for(spec: Spec | None, recipe: str | None, name: str) -> ChosenSpec:
    """Return the spec that is asked for: a fragment, or the recipe of this name, for a model of the name ``name``.

    Raises:
        ExportError: If both are given, or there is no such recipe.
    """
    if spec is not None and recipe is not None:
        raise ExportError("both --spec and --recipe are given; expected one of them")
    if recipe is None:
        return ChosenSpec(spec)
    recognised = Recognised(find_recipe(recipe), "as asked for")
    return ChosenSpec(fragment(recognised.recipe, name), recognised)


def open_source(root: Path, spec: Spec | None, calibration: Path | None, *, fast_only: bool = False) -> Source:
    """Read and check everything small: config, headers of the weights, tokenizer, spec, calibration pairs.

    Args:
        root: The checkpoint folder.
        spec: The trainer's fragment; ``fsrm.json`` in the folder by default.
        calibration: JSONL of pairs; the built-in set by default.
        fast_only: Leave out all templates but the fast ones.

    Returns:
        What all stages of the export work from.

    Raises:
        ExportError: On the first thing that is missing, broken or unsupported.
    """
    checkpoint = Checkpoint.open(root)
    vocabulary = read_vocabulary(root, checkpoint.arch.vocab_size)
    chat = read_chat_template(root, vocabulary)
    manifest = resolve_spec(*load_spec(root, spec, fast_only=fast_only), checkpoint.arch, vocabulary, chat, root)
    refuse_foreign_tokens(manifest, vocabulary)
    encoder = PromptEncoder(root / TOKENIZER_NAME, manifest)
    data, ids = keep_short(load_calibration(calibration), encoder)
    pad = read_config(root).get("pad_token_id") if checkpoint.arch.scalar else None
    if isinstance(pad, int) and any(row[-1] == pad for row in ids):
        raise UnsupportedCheckpointError(
            f"the texts that are scored end with the token {pad} ({vocabulary.text(pad)!r}), which config.json names "
            "as pad_token_id: transformers reads the reward before it, and a bundle behind the last token; "
            "if the model was trained to be read there, give config.json the pad_token_id of another token"
        )
    pairs = data.pairs
    if "pointwise_fast" not in manifest.templates:
        ids = pair_orders(data, encoder)
        pairs = tuple((i, i + 1) for i in range(0, len(ids), 2))
    return Source(checkpoint, vocabulary, chat, manifest, encoder, data, ids, pairs)
