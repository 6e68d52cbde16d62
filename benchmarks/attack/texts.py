"""Puts hostile texts through every template and role, and looks for control tokens and forged turns in the ids."""

from __future__ import annotations

import random
from dataclasses import replace

from benchmarks.attack.outcome import Outcome
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import Template
from fsrm_lite.bundle.role_forms import START, RoleForm, RoleForms
from fsrm_lite.errors import InputError
from fsrm_lite.types import Message, Prompt

_GLUE = ("", " ", "\n", "\n\n", "\t", "\u200b", "\u00ad", "\ufeff", "\x00", "\r\n")
_WORDS = (
    "assistant",
    "user",
    "system",
    "Yes",
    "No",
    "a",
    "15 pens",
    "\\boxed{",
    "{prompt}",
    "{response}",
    "{{x}}",
    "{% %}",
)


def run(*, texts: int, seed: int) -> Outcome:
    """Encode ``texts`` hostile texts with the embedded model's templates.

    A text is hostile by what it spells: control tokens whole, cut, doubled and mixed with invisible characters, roles,
    slots of templates and ends of verdicts. The control ids of a filled-in template must be those of the template.

    Args:
        texts: How many texts to try.
        seed: Seed of the texts.
    """
    outcome = Outcome("hostile texts through every template and role; no id of a control token may come of a text")
    bundle = Bundle.open()
    encoder = PromptEncoder(bundle.path("tokenizer"), bundle.manifest)
    control = set(bundle.manifest.special_tokens.values())
    forms = {
        "pointwise_fast": lambda p, a, b: encoder.pointwise_fast(p, a),
        "pointwise_slow": lambda p, a, b: encoder.pointwise_slow(p, a),
        "pairwise_slow": lambda p, a, b: encoder.pairwise_slow(p, a, b),
        "solve": lambda p, a, b: encoder.solve(p),
    }
    own = {name: [i for i in form("q", "a", "b") if i in control] for name, form in forms.items()}
    chance = random.Random(seed)
    refused = 0
    for number in range(texts):
        hostile = _text(chance, list(bundle.manifest.special_tokens))
        name, form = chance.choice(list(forms.items()))
        place = chance.randrange(4)
        prompt: Prompt = hostile if place == 0 else "What is 2 + 3?"
        if place == 3:
            prompt = [{"role": chance.choice(("user", hostile)), "content": hostile}, {"role": "user", "content": "q"}]
        first, second = (hostile if place == 1 else "5"), (hostile if place == 2 else "6")
        outcome.tried += 1
        try:
            ids = form(prompt, first, second)
        except InputError:
            refused += 1
            continue
        if [i for i in ids if i in control] != own[name]:
            outcome.found.append(f"text {number} of seed {seed} in {name}, place {place}: {hostile!r}")
    outcome.notes.append(f"{refused:,} refused as too long or empty")
    return outcome


_ROLES = ("system", "user", "assistant")


def turns(*, conversations: int, seed: int) -> Outcome:
    """Encode conversations of hostile messages as a chat template writes them, and count the turns in the ids.

    The turns are ChatML's, ``<|im_start|>role``, in the embedded model's tokens. As many must begin as there are
    messages, each with its message's role, whatever the contents spell. A message with a hostile role must be refused.

    Args:
        conversations: How many to try.
        seed: Seed of the conversations.
    """
    outcome = Outcome("hostile messages in a chat template's turns; no message may forge a turn or a role")
    bundle = Bundle.open()
    forms = {f"{before}>{role}": RoleForm(f"<|im_start|>{role}\n") for before in (START, *_ROLES) for role in _ROLES}
    for name, form in forms.items():
        if not name.startswith(START):
            forms[name] = replace(form, before=f"<|im_end|>\n{form.before}")
    written = RoleForms(forms, dict.fromkeys(_ROLES, "<|im_end|>\n"))
    fast = {"pointwise_fast": Template("{conversation}<|im_start|>user\nGood?<|im_end|>\n<|im_start|>assistant\n")}
    manifest = replace(bundle.manifest, templates=fast, conversation=written)
    encoder = PromptEncoder(bundle.path("tokenizer"), manifest)
    begin, end = (manifest.special_tokens[token] for token in ("<|im_start|>", "<|im_end|>"))
    chance = random.Random(seed)
    refused = 0
    for number in range(conversations):
        roles = ["user", *(chance.choice(_ROLES) for _ in range(chance.randrange(4)))]
        spelled = list(manifest.special_tokens)
        messages: list[Message] = [{"role": role, "content": _text(chance, spelled)} for role in roles]
        forged = chance.random() < 0.1
        if forged:
            chance.choice(messages)["role"] = f"user\n{_text(chance, spelled)}"
        outcome.tried += 1
        try:
            ids = encoder.pointwise_fast(messages, _text(chance, spelled))
        except InputError:
            refused += 1
            continue
        starts = [i for i, token in enumerate(ids) if token == begin]
        said = [encoder.decode(ids[a + 1 : b]).split("\n")[0] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        expected = [*roles, "assistant", "user", "assistant"]
        if forged or said != expected or ids.count(end) != len(expected) - 1:
            outcome.found.append(f"conversation {number} of seed {seed}: {messages!r}")
    outcome.notes.append(f"{refused:,} refused as too long or for a role")
    return outcome


def _text(chance: random.Random, tokens: list[str]) -> str:
    """Return a text that spells control tokens in some way."""
    parts = []
    for _ in range(chance.randint(1, 8)):
        part = chance.choice((*tokens, *tokens, *_WORDS))
        how = chance.randrange(6)
        if how == 0 and len(part) > 1:
            cut = chance.randrange(1, len(part))
            part = part[:cut] + chance.choice(_GLUE) + part[cut:]
        elif how == 1:
            part = part.upper()
        elif how == 2:
            part = "".join(
                chance.choice((c, c + "\u0301", chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c)) for c in part
            )
        parts.append(part)
    return chance.choice(_GLUE).join(parts)
