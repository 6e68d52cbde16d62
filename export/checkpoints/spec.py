"""The trainer's ``fsrm.json`` fragment to a manifest: every label and verdict word becomes a token id, in context.

A word is the token that follows the very text it will follow at run time, or the export fails: a label that is one
token alone and two behind the template is the classic silently wrong score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import (
    SLOTS,
    JudgeDefaults,
    Label,
    Limits,
    Manifest,
    Template,
    Verdict,
    check_template,
    template_slots,
)
from fsrm_lite.errors import BundleError, ExportError, FsrmError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.checkpoint import Architecture
from fsrm_lite.export.checkpoints.vocabulary import TOKENIZER_NAME, Vocabulary
from fsrm_lite.gate import GateSpec

SPEC_NAME = "fsrm.json"
SPEC_KEYS: dict[str, type] = {
    "format_version": int,
    "name": str,
    "license": str,
    "labels": list,
    "templates": dict,
    "special_tokens": list,
    "stop": list,
    "limits": dict,
    "gate": dict,
    "judge": dict,
}
_KINDS: dict[type, str] = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
DEFAULT_THINKING_TOKENS = 1024

_FILLER = "x"  # stands for a slot's text where only the text behind it matters


def load_spec(root: Path, spec: str | Path | Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return where the spec comes from, for messages, and its contents.

    Args:
        root: The checkpoint folder, whose own ``fsrm.json`` is the default.
        spec: A file, a mapping, or None.

    Raises:
        ExportError: If there is none, it is not JSON, or it has keys that mean nothing here.
    """
    if isinstance(spec, Mapping):
        where, data = "the spec", dict(spec)
    else:
        path = root / SPEC_NAME if spec is None else Path(spec)
        where = str(path)
        if not path.is_file():
            hint = "; write one there or name another with --spec" if spec is None else ""
            raise ExportError(f"there is no spec {path} (labels, templates, gate){hint}")
        try:
            data = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ExportError(f"{path} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ExportError(f"{path} holds a {type(data).__name__}, expected an object")
    unknown = sorted(set(data) - set(SPEC_KEYS))
    if unknown:
        raise ExportError(
            f"{where} has unknown keys {', '.join(unknown)}; expected among {', '.join(sorted(SPEC_KEYS))}"
        )
    for key, value in data.items():
        kind = SPEC_KEYS[key]
        if value is not None and not isinstance(value, kind):
            raise ExportError(f"{where}: {key!r} is {value!r}, expected {_KINDS[kind]}")
    return where, data


def resolve_spec(
    where: str, spec: Mapping[str, Any], arch: Architecture, vocabulary: Vocabulary, root: Path
) -> Manifest:
    """Turn a spec into a complete manifest without files.

    Args:
        where: Where the spec comes from, for messages.
        spec: From :func:`load_spec`.
        arch: Of the checkpoint: context and vocabulary size bound the spec.
        vocabulary: Of the checkpoint.
        root: Checkpoint folder with ``tokenizer.json``.

    Raises:
        ExportError: Naming the entry that is missing, malformed, or not one token in its context.
        UnsupportedCheckpointError: If the context needs a sliding window.
    """
    try:
        draft = _draft(spec, arch, vocabulary, root)
        _check_limits(draft.limits, arch)
        encoder = PromptEncoder(root / TOKENIZER_NAME, draft)
        complete = replace(draft, labels=_resolve_labels(draft, encoder), templates=_resolve_templates(draft, encoder))
        return Manifest.from_dict(complete.to_dict())
    except UnsupportedCheckpointError:
        raise
    except KeyError as error:
        raise ExportError(f"{where}: entry {error} is missing") from error
    except (FsrmError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{where}: {error}") from error


def _draft(spec: Mapping[str, Any], arch: Architecture, vocabulary: Vocabulary, root: Path) -> Manifest:
    """Everything of the manifest that needs no tokenizer; label and choice ids are still open."""
    if not spec["name"]:
        raise ExportError("'name' is empty; name the model")
    templates = {str(name): _read_template(str(name), data) for name, data in spec["templates"].items()}
    stop = [str(s) for s in spec.get("stop") or ([] if vocabulary.eos is None else [vocabulary.tokens[vocabulary.eos]])]
    if not stop and any(t.verdict is not None for t in templates.values()):
        raise ExportError('"stop" is missing and the tokenizer has no eos token; name the token that ends an answer')
    limits = spec.get("limits") or {}
    context = int(limits.get("context", arch.context))
    tokenizer = Tokenizer.from_file(str(root / TOKENIZER_NAME))
    return Manifest(
        name=str(spec["name"]),
        labels=tuple(Label(str(x["text"]), -1, float(x["value"])) for x in spec["labels"]),
        templates=templates,
        special_tokens=_special_tokens(spec, templates, stop, tokenizer),
        stop_ids=tuple(_token_id(tokenizer, s, '"stop"') for s in stop),
        limits=Limits(context, int(limits.get("thinking_tokens", min(DEFAULT_THINKING_TOKENS, context // 2)))),
        vocab_size=arch.vocab_size,
        gate=GateSpec.from_dict(spec.get("gate") or {}),
        judge=JudgeDefaults(**(spec.get("judge") or {})),
        card={"license": str(spec.get("license", "unknown"))},
    )


def _read_template(name: str, data: Mapping[str, Any]) -> Template:
    text = str(data["text"])
    check_template(name, text)
    raw = data.get("verdict")
    if raw is None:
        return Template(text)
    choices = tuple(str(c) for c in raw["choices"])
    values = tuple(float(v) for v in raw.get("values") or ())
    return Template(
        text, Verdict(str(raw["close"]), str(raw.get("prefix", "")), choices, (), str(raw.get("suffix", "")), values)
    )


def _special_tokens(
    spec: Mapping[str, Any], templates: Mapping[str, Template], stop: list[str], tokenizer: Tokenizer
) -> dict[str, int]:
    """The control tokens that templates may use: those the spec names, else the added tokens that occur in it."""
    named = spec.get("special_tokens")
    if named is None:
        texts = [t.text for t in templates.values()] + stop
        texts += [
            part
            for t in templates.values()
            if t.verdict
            for part in (t.verdict.close, t.verdict.prefix, t.verdict.suffix)
        ]
        added = (t.content for t in tokenizer.get_added_tokens_decoder().values())
        named = [a for a in added if a.strip() and any(a in text for text in texts)]
    return {str(text): _token_id(tokenizer, str(text), '"special_tokens"') for text in named}


def _token_id(tokenizer: Tokenizer, text: str, entry: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        raise ExportError(f"{entry} names {text!r}, which is no token of {TOKENIZER_NAME}")
    return int(token_id)


def _check_limits(limits: Limits, arch: Architecture) -> None:
    if limits.context > arch.context:
        raise ExportError(
            f"limits.context is {limits.context}, the model was made for {arch.context} positions "
            "(max_position_embeddings)"
        )
    if arch.sliding_window is not None and arch.sliding_window < limits.context:
        raise UnsupportedCheckpointError(
            f"the model's sliding window of {arch.sliding_window} tokens is shorter than limits.context, "
            f"{limits.context}; "
            f"set limits.context to {arch.sliding_window} or less"
        )


def _resolve_labels(draft: Manifest, encoder: PromptEncoder) -> tuple[Label, ...]:
    if "pointwise_fast" not in draft.templates:
        raise BundleError("template 'pointwise_fast' is missing")
    text = draft.templates["pointwise_fast"].text
    for slot in template_slots(text):
        text = text.replace(f"{{{slot}}}", _FILLER)
    return tuple(replace(label, id=_next_token(encoder, text, label.text, "label", "")) for label in draft.labels)


def _resolve_templates(draft: Manifest, encoder: PromptEncoder) -> dict[str, Template]:
    resolved = {}
    for name, template in draft.templates.items():
        verdict = template.verdict
        if verdict is not None:
            before, what = verdict.close + verdict.prefix, f"verdict choice of {name}"
            ids = tuple(_next_token(encoder, before, choice, what, verdict.suffix) for choice in verdict.choices)
            template = replace(template, verdict=replace(verdict, choice_ids=ids))
        elif name in SLOTS and name.endswith("_slow"):
            raise BundleError(f"template {name!r} has no verdict form; a slow template needs one")
        resolved[name] = template
    return resolved


def _next_token(encoder: PromptEncoder, before: str, word: str, what: str, after: str) -> int:
    """Id of ``word`` as the tokenizer writes it between ``before`` and ``after``."""
    head = encoder.encode_template(before)
    whole = encoder.encode_template(before + word + after)
    with_word = encoder.encode_template(before + word)
    if with_word[:-1] != head or len(with_word) != len(head) + 1 or whole[: len(with_word)] != with_word:
        shown = " + ".join(repr(encoder.decode([i])) for i in whole[max(0, len(head) - 1) :][:6])
        raise ExportError(
            f"the {what} {word!r} is not a single token behind {before[-20:]!r}: the tokenizer reads {shown}"
        )
    return with_word[-1]
