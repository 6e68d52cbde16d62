"""Finds mistakes in templates that no tokenizer complains about and that make scores wrong without an error."""

from __future__ import annotations

import re

from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError, InputError, UnsupportedCheckpointError
from fsrm_lite.export.checkpoints.chat_template import ChatTemplate
from fsrm_lite.export.checkpoints.vocabulary import NORMAL, Vocabulary

_CONTROL = re.compile(r"<\|[\w\u2581]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<(?:start|end)_of_turn>|\[/?INST\]|</?s>")
"""What control tokens of public models look like."""


def refuse_foreign_tokens(manifest: Manifest, vocabulary: Vocabulary) -> None:
    """Refuse a template that spells another model's control tokens: here they would be plain text.

    Raises:
        ExportError: Naming the template and the tokens.
    """
    own = {text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind != NORMAL}
    for name, template in manifest.templates.items():
        verdict = template.verdict
        texts = [template.text] + ([verdict.close, verdict.prefix, verdict.suffix] if verdict else [])
        foreign = sorted({word for text in texts for word in _CONTROL.findall(text)} - own)
        if foreign:
            shown = ", ".join(sorted(text for text in own if _CONTROL.fullmatch(text))[:6]) or "none of that form"
            raise ExportError(
                f"template {name!r} spells {', '.join(foreign)}, which are no control tokens of this tokenizer; it has "
                f"{shown}; write the template for this model"
            )


def doubts(manifest: Manifest, chat: ChatTemplate | None) -> list[str]:
    """Return what is suspicious about the templates, one sentence each, by comparing them with the chat template.

    Args:
        manifest: Resolved, with its templates.
        chat: The checkpoint's chat template, if it has one.
    """
    if chat is None:
        return []
    found = []
    try:
        begins = chat.render([{"role": "user", "content": "x"}])
        with_thought, without = chat.answer_begins(think=True), chat.answer_begins(think=False)
    except (InputError, UnsupportedCheckpointError):
        return []
    bos = chat.names.get("bos_token", "")
    for name, template in manifest.templates.items():
        text = template.text
        if bos and begins.startswith(bos) and not text.startswith((bos, "{conversation}")):
            found.append(f"template {name!r} does not begin with {bos!r}, with which the chat template begins")
        stub = without[len(with_thought) :] if without.startswith(with_thought) else ""
        if name.endswith("_fast") and stub and text.endswith(with_thought) and not text.endswith(without):
            found.append(
                f"template {name!r} ends with the beginning of an answer, {with_thought!r}, behind which this model "
                f"would think; the chat template writes {stub!r} there where it is not to think"
            )
    return found
