"""Turns the trainer's ``fsrm.json``, the *spec*, into a manifest: every label and verdict word becomes a token id.

The *manifest* is the file of a bundle that says what the model is and how it is asked; the spec is a fragment of it
that names words instead of ids. Each word is tokenized behind the very text that will stand before it at run time, and
must be a single token there, or the export fails. A label that is one token alone but two behind the template is the
classic cause of scores that are wrong without any error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import (
    SLOTS,
    JudgeDefaults,
    Label,
    Limits,
    Manifest,
    Template,
    VerdictTemplate,
    check_template,
    template_slots,
)
from fsrm_lite.bundle.role_forms import END_OF_THOUGHT, RoleForms
from fsrm_lite.errors import BundleError, ExportError, FsrmError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.chat_template import ChatTemplate, find_role_forms
from fsrm_lite.export.checkpoints.vocabulary import CONTROL, TOKENIZER_NAME, UNUSED, USER_DEFINED, Vocabulary
from fsrm_lite.gate import GateSpec
from fsrm_lite.types import ANSWER_TOKENS

SPEC_NAME = "fsrm.json"
SPEC_KEYS: dict[str, type] = {
    "format_version": int,
    "name": str,
    "license": str,
    "labels": list,
    "pair_labels": list,
    "templates": dict,
    "special_tokens": list,
    "stop": list,
    "limits": dict,
    "gate": dict,
    "judge": dict,
}
NESTED_KEYS: dict[str, frozenset[str]] = {
    "labels": frozenset({"text", "value"}),
    "templates": frozenset({"text", "messages", "answer", "thinking", "verdict"}),
    "verdict": frozenset({"close", "prefix", "choices", "suffix", "values", "several"}),
    "messages": frozenset({"role", "content"}),
    "limits": frozenset(Limits.__dataclass_fields__),
    "judge": frozenset(JudgeDefaults.__dataclass_fields__),
}
"""The keys that objects inside the spec may have."""
_KINDS: dict[type, str] = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
DEFAULT_THINKING_TOKENS = 1024

_FILLER = "x"  # stands in a template for what is filled in, where only the text behind it matters


class ModelShape(Protocol):
    """What a spec must fit: the context in tokens, the vocabulary, a sliding window if any, and the kind of head."""

    @property
    def context(self) -> int:
        """Tokens that the model was made for."""

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""

    @property
    def sliding_window(self) -> int | None:
        """Tokens each position attends to; None for all, and where the runtime minds the window itself."""

    @property
    def scalar(self) -> bool:
        """Whether the head gives one number."""


def load_spec(
    root: Path, spec: str | Path | Mapping[str, Any] | None, *, fast_only: bool = False
) -> tuple[str, dict[str, Any]]:
    """Return where the spec comes from, for messages, and its contents.

    Args:
        root: The checkpoint folder, whose own ``fsrm.json`` is the default.
        spec: A file, a mapping, or None.
        fast_only: Leave out all templates but the fast ones.

    Raises:
        ExportError: If there is none, it is not JSON, or it has unknown keys or values of a wrong type.
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
    _check_nested(where, data)
    if fast_only:
        fast = {name: template for name, template in (data.get("templates") or {}).items() if name.endswith("_fast")}
        data = {**data, "templates": fast}
    return where, data


def _check_nested(where: str, data: Mapping[str, Any]) -> None:
    """Refuse a misspelt key in an object inside the spec: passed over, it would change what the model is asked.

    Raises:
        ExportError: Naming the key and the place.
    """

    def check(kind: str, place: str, entry: object) -> None:
        if not isinstance(entry, Mapping):
            raise ExportError(f"{where}: {place} is {entry!r}, expected an object")
        unknown = sorted(set(entry) - NESTED_KEYS[kind])
        if unknown:
            raise ExportError(
                f"{where}: {place} has unknown keys {', '.join(unknown)}; "
                f"expected among {', '.join(sorted(NESTED_KEYS[kind]))}"
            )

    for i, label in enumerate(data.get("labels") or ()):
        check("labels", f"label {i}", label)
    for entry in ("limits", "judge"):
        if data.get(entry) is not None:
            check(entry, entry, data[entry])
    for name, template in (data.get("templates") or {}).items():
        check("templates", f"template {name!r}", template)
        if template.get("verdict") is not None:
            check("verdict", f"the verdict of template {name!r}", template["verdict"])
        if isinstance(template.get("messages"), list):
            for i, message in enumerate(template["messages"]):
                check("messages", f"message {i} of template {name!r}", message)


def resolve_spec(
    where: str,
    spec: Mapping[str, Any],
    arch: ModelShape,
    vocabulary: Vocabulary,
    chat: ChatTemplate | None,
    root: Path,
) -> Manifest:
    """Return the manifest that a spec describes, complete but for its list of files.

    Args:
        where: Where the spec comes from, for messages.
        spec: The contents, as ``load_spec`` returns them.
        arch: The checkpoint's architecture, whose context and vocabulary size bound the spec.
        vocabulary: The checkpoint's vocabulary.
        chat: Its chat template, if it has one.
        root: Checkpoint folder with ``tokenizer.json``.

    Raises:
        ExportError: Naming the entry that is missing, malformed, or not one token in its context.
        UnsupportedCheckpointError: If the context needs a sliding window.
    """
    try:
        draft = _draft(spec, arch, vocabulary, chat, root)
        _check_limits(draft.limits, arch)
        encoder = PromptEncoder(root / TOKENIZER_NAME, draft)
        complete = replace(
            draft,
            labels=_resolve_labels(draft.labels, "pointwise_fast", encoder),
            pair_labels=_resolve_labels(draft.pair_labels, "pairwise_fast", encoder),
            templates=_resolve_templates(draft, encoder),
        )
        return Manifest.from_dict(complete.to_dict())
    except UnsupportedCheckpointError:
        raise
    except KeyError as error:
        raise ExportError(f"{where}: entry {error} is missing") from error
    except (FsrmError, TypeError, ValueError, OverflowError, AttributeError) as error:
        # The user may have written no fsrm.json; what is wrong is the one that would be made.
        raise ExportError(f"{where}: {str(error).replace('fsrm.json', 'the manifest')}") from error


def _check_head(spec: Mapping[str, Any], arch: ModelShape) -> None:
    """Refuse a spec that asks for words where the head gives a number, or for a number where it gives words."""
    templates = set(spec["templates"])
    if arch.scalar and (spec.get("labels") or spec.get("pair_labels") or not templates & {"pointwise_fast"}):
        raise ExportError(
            "it asks for a word as the answer, and the checkpoint has a scalar head, which gives one number, the "
            "reward; expected the template 'pointwise_fast' and no labels, as --recipe scalar has them"
        )
    if not arch.scalar and "pointwise_fast" in templates and not spec.get("labels"):
        raise ExportError(
            "it has the template 'pointwise_fast' without labels, as for a scalar head, and the checkpoint answers in "
            "words; write 'labels', or take --recipe yes-no or pairwise"
        )


def _draft(
    spec: Mapping[str, Any], arch: ModelShape, vocabulary: Vocabulary, chat: ChatTemplate | None, root: Path
) -> Manifest:
    """Return the manifest without the ids of labels and choices, which depend on the text before them."""
    if not spec["name"]:
        raise ExportError("'name' is empty; name the model")
    _check_head(spec, arch)
    thinks = any(
        str((data.get("verdict") or {}).get("close", "")).startswith(END_OF_THOUGHT)
        for data in spec["templates"].values()
    )
    templates = {
        str(name): _read_template(str(name), _as_text(str(name), data, chat, root, thinks=thinks))
        for name, data in spec["templates"].items()
    }
    stop = [str(s) for s in spec.get("stop") or ([] if vocabulary.eos is None else [vocabulary.tokens[vocabulary.eos]])]
    if not stop and any(t.verdict is not None for t in templates.values()):
        raise ExportError('"stop" is missing and the tokenizer has no eos token; name the token that ends an answer')
    limits = spec.get("limits") or {}
    context = int(limits.get("context", arch.context))
    conversation = None
    if any("conversation" in template_slots(template.text) for template in templates.values()):
        if chat is None:
            raise ExportError(
                f"{root} has no chat template (chat_template.jinja, or an entry of tokenizer_config.json); "
                "save the tokenizer there, or write templates as texts with {prompt}"
            )
        conversation = find_role_forms(chat)
    labels = spec["labels"] if "pointwise_fast" in templates and not arch.scalar else spec.get("labels") or ()
    return Manifest(
        name=str(spec["name"]),
        labels=tuple(Label(str(x["text"]), -1, float(x["value"])) for x in labels),
        head="scalar" if arch.scalar else "vocabulary",
        pair_labels=tuple(Label(str(text), -1, 0.0) for text in spec.get("pair_labels") or ()),
        templates=templates,
        special_tokens=_special_tokens(spec, templates, conversation, stop, vocabulary),
        stop_ids=tuple(_token_id(vocabulary, s, '"stop"') for s in stop),
        limits=Limits(
            context,
            int(limits.get("thinking_tokens", min(DEFAULT_THINKING_TOKENS, context // 2))),
            int(limits.get("verdict_tokens", ANSWER_TOKENS)),
        ),
        vocab_size=arch.vocab_size,
        gate=GateSpec.from_dict(spec.get("gate") or {}),
        judge=JudgeDefaults(**(spec.get("judge") or {})),
        conversation=conversation,
        card={"license": str(spec.get("license", "unknown"))},
    )


def _as_text(
    name: str, data: Mapping[str, Any], chat: ChatTemplate | None, root: Path, *, thinks: bool
) -> Mapping[str, Any]:
    """Return a template of the spec with its text; one that is given as messages is written by the chat template.

    The answer begins behind the messages. The fast templates close a thought that the chat template opens, because they
    are about the first token of the answer itself. Where the chat template opens none although the model begins with
    one, as that of the older R1-Distill checkpoints, they write an empty one.

    Args:
        name: Name of the template.
        data: Its entry: ``text``; or ``messages``, a list or the word "conversation", perhaps with ``answer``, the text
            with which the answer begins, and ``thinking``, whether to ask for a thought.
        chat: The chat template, or None if the checkpoint has none.
        root: The checkpoint folder, for the message.
        thinks: Whether the model's thoughts stand between ``<think>`` and ``</think>``, by its verdicts.
    """
    if "messages" not in data:
        return data
    if "text" in data:
        raise ExportError(f"template {name!r} has both 'text' and 'messages'; expected one of them")
    if chat is None:
        raise ExportError(
            f"template {name!r} is given as messages, and {root} has no chat template (chat_template.jinja, or an "
            "entry of tokenizer_config.json); save the tokenizer there, or give the template as 'text'"
        )
    think = bool(data.get("thinking", not name.endswith("_fast")))
    if data["messages"] == "conversation":
        text = "{conversation}" + chat.answer_begins(think=think)
    elif isinstance(data["messages"], list):
        text = chat.fill(data["messages"], think=think)
    else:
        raise ExportError(f"template {name!r}: 'messages' is neither a list nor the word 'conversation'")
    answer = str(data.get("answer", ""))
    if answer.startswith("<think>"):  # it opens the thought itself
        text = re.sub(rf"<think>\s*({END_OF_THOUGHT}\s*)?\Z", "", text)
    elif not think and text.rfind("<think>") > text.rfind(END_OF_THOUGHT):
        text = text.rstrip("\n") + f"\n{END_OF_THOUGHT}\n\n"
    elif not think and thinks and name.endswith("_fast") and not text.rstrip().endswith(END_OF_THOUGHT):
        text += f"<think>\n\n{END_OF_THOUGHT}\n\n"
    rest = {key: value for key, value in data.items() if key not in ("messages", "answer", "thinking")}
    return {**rest, "text": text + answer}


def _read_template(name: str, data: Mapping[str, Any]) -> Template:
    """Return one template of the spec; the ids of its verdict's choices are still missing."""
    text = str(data["text"])
    check_template(name, text)
    raw = data.get("verdict")
    if raw is None:
        return Template(text)
    choices = tuple(str(c) for c in raw["choices"])
    values = tuple(float(v) for v in raw.get("values") or ())
    close, prefix, suffix = str(raw["close"]), str(raw.get("prefix", "")), str(raw.get("suffix", ""))
    several = str(raw.get("several", "last"))
    return Template(text, VerdictTemplate(close, prefix, choices, (), suffix, values, several))


def _special_tokens(
    spec: Mapping[str, Any],
    templates: Mapping[str, Template],
    conversation: RoleForms | None,
    stop: list[str],
    vocabulary: Vocabulary,
) -> dict[str, int]:
    """Return the control tokens that templates may use, with their ids.

    They are those that the spec names, else the tokenizer's added tokens that occur in its templates or stops.
    """
    named = spec.get("special_tokens")
    if named is None:
        texts = [t.text for t in templates.values()] + stop + ([] if conversation is None else conversation.texts())
        texts += [
            part
            for t in templates.values()
            if t.verdict
            for part in (t.verdict.close, t.verdict.prefix, t.verdict.suffix)
        ]
        kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
        added = (token for token, kind in kinds if kind in (CONTROL, USER_DEFINED))
        named = [a for a in added if a.strip() and any(a in text for text in texts)]
    return {str(text): _token_id(vocabulary, str(text), '"special_tokens"') for text in named}


def _token_id(vocabulary: Vocabulary, text: str, entry: str) -> int:
    kinds = enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
    token_id = next((i for i, (token, kind) in kinds if token == text and kind != UNUSED), None)
    if token_id is None:
        raise ExportError(f"{entry} names {text!r}, which is no token of {TOKENIZER_NAME}")
    return token_id


def _check_limits(limits: Limits, arch: ModelShape) -> None:
    """Refuse a context that is longer than the model's own, or longer than its sliding window."""
    if limits.context > arch.context:
        raise ExportError(
            f"limits.context is {limits.context}, "
            f"the model was made for {arch.context} positions (max_position_embeddings)"
        )
    if arch.sliding_window is not None and arch.sliding_window < limits.context:
        raise UnsupportedCheckpointError(
            f"the model's sliding window of {arch.sliding_window} tokens is shorter than limits.context, "
            f"{limits.context}; set limits.context to {arch.sliding_window} or less"
        )


def _resolve_labels(labels: Sequence[Label], name: str, encoder: PromptEncoder) -> tuple[Label, ...]:
    """Return labels with the ids of their tokens, as they stand behind the template ``name``."""
    templates = encoder.manifest.templates
    if name not in templates:
        if labels:
            raise BundleError(f"template {name!r} is missing, behind which the labels stand")
        return ()
    responses = ("response",) if name == "pointwise_fast" else ("response_a", "response_b")
    filled = encoder.fillings(name, _FILLER, **dict.fromkeys(responses, _FILLER))

    def ids(behind: str) -> list[int]:
        return encoder.render(name, filled, behind=behind)

    return tuple(replace(label, id=_next_token(encoder, ids, "", label.text, "label", "")) for label in labels)


def _resolve_templates(draft: Manifest, encoder: PromptEncoder) -> dict[str, Template]:
    """Return the templates, those with a verdict together with the ids of its choices."""
    resolved = {}
    for name, template in draft.templates.items():
        verdict = template.verdict
        if verdict is not None:
            before, what = verdict.close + verdict.prefix, f"verdict choice of {name}"
            encode = encoder.encode_template
            ids = tuple(_next_token(encoder, encode, before, c, what, verdict.suffix) for c in verdict.choices)
            template = replace(template, verdict=replace(verdict, choice_ids=ids))
        elif name in SLOTS and name.endswith("_slow"):
            raise BundleError(f"template {name!r} has no verdict form; a slow template needs one")
        resolved[name] = template
    return resolved


def _next_token(
    encoder: PromptEncoder, ids: Callable[[str], list[int]], before: str, word: str, what: str, after: str
) -> int:
    """Return the id of ``word`` as the tokenizer writes it between ``before`` and ``after``.

    Args:
        encoder: Decodes ids for the error's text.
        ids: Gives the ids of a text.
        before: Text before the word.
        word: The word.
        what: What the error calls the word.
        after: Text behind it.
    """
    head, with_word, whole = ids(before), ids(before + word), ids(before + word + after)
    if with_word[:-1] != head or len(with_word) != len(head) + 1 or whole[: len(with_word)] != with_word:
        shown = " + ".join(repr(encoder.decode([i])) for i in whole[max(0, len(head) - 1) :][:6])
        place = encoder.decode(head)[-20:]
        raise ExportError(f"the {what} {word!r} is not a single token behind {place!r}: the tokenizer reads {shown}")
    return with_word[-1]
