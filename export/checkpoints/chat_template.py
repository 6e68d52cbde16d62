"""Runs a checkpoint's chat template, once and in Jinja's sandbox, and finds out what it puts around messages.

What comes out are ``RoleForms``, by which a bundle writes conversations without Jinja. A template is a program and may
do anything, so the forms are compared with it on random conversations. If they differ, fewer features are tried: no
thoughts inside answers, no tools, no system messages. A template whose plain conversations of user and assistant cannot
be written as forms is refused.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, product
from pathlib import Path
from typing import Any

from fsrm_lite.bundle.role_forms import (
    ANY_KEY,
    CHANGES,
    END_OF_THOUGHT,
    REASONING,
    ROLES,
    START,
    TOOL_RESPONSE,
    TOOL_RESPONSES,
    RoleForm,
    RoleForms,
    situations,
)
from fsrm_lite.errors import FsrmError, InputError, UnsupportedCheckpointError, missing_extra, one_line
from fsrm_lite.export.checkpoints.vocabulary import Vocabulary, read_json
from fsrm_lite.types import Message

PINNED_DATE = datetime(2024, 7, 26)
"""The day that a template gets for today, so that a bundle writes the same tomorrow.

It is the one that Llama 3's templates fall back to themselves.
"""

CONVERSATIONS = 300
"""Random conversations on which forms are compared with the template."""

SLOT = re.compile(r"\{(prompt|response|response_a|response_b)\}")

_MARK = "\ue000{}\ue001"  # private characters, which no template looks for or trims
_NO_KEY = "no_template_knows_this_key"
_LOOP = ("index0", "first", "last", "length", "previtem", "nextitem")  # names of Jinja's loop that are no keys
_KEYS = (REASONING, "reasoning", "thinking", "name", "tool_calls", "tool_call_id", "function_call", "refusal", _NO_KEY)
"""Keys that messages have beside role and content; those that a template spells are tried as well."""

_PROBES = ("x", " x ", "\nx\n", '\n\t "x" \\ \u00e9\n ', "", " ", "\n\n  x")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template, ready to be rendered as transformers renders it.

    Attributes:
        source: The template, in Jinja.
        names: Texts of the special tokens that a template may ask for, such as ``bos_token``.
        date: What the template gets for today.
    """

    source: str
    names: dict[str, str]
    date: datetime = PINNED_DATE

    def render(self, messages: Sequence[Message], *, generate: bool = False, think: bool = True) -> str:
        """Return the conversation as text.

        Args:
            messages: The messages.
            generate: Begin an answer of the assistant behind them.
            think: If False, a template that knows ``enable_thinking`` gets that for it; else it gets nothing.

        Raises:
            InputError: If the template refuses the conversation or fails.
            MissingExtraError: If jinja2 is missing.
        """
        # As transformers calls it: without tools and documents, and with thinking left to the template's own default.
        values = {**self.names, "add_generation_prompt": generate, "tools": None, "documents": None}
        if not think:
            values["enable_thinking"] = False
        try:
            from fsrm_lite.export.checkpoints.jinja import compile_template
        except ImportError as error:
            raise missing_extra("jinja2", "export", error) from error
        try:
            template = compile_template(self.source)
            text = template.render(messages=list(messages), strftime_now=self.date.strftime, **values)
        except FsrmError:
            raise
        except Exception as error:  # a template is a program, and may fail in any way
            raise InputError(f"the chat template cannot be rendered ({one_line(error)})") from error
        return text

    @property
    def prints_date(self) -> bool:
        """Whether what it writes depends on the day."""
        other = replace(self, date=datetime(1999, 12, 31))
        return any(
            _try(self, roles) != _try(other, roles) for roles in (("user",), ("system", "user")) if _try(self, roles)
        )

    def fill(self, messages: Sequence[Message], *, think: bool) -> str:
        """Return the text of a prompt template: messages with slots in them, and the beginning of an answer.

        Raises:
            UnsupportedCheckpointError: If the template changes what will stand in a slot, for example trims it.
        """
        text = self.render(messages, generate=True, think=think)
        edged: list[Message] = [
            {**m, "content": SLOT.sub(lambda slot: f" \n{slot[0]}\n ", str(m["content"]))} for m in messages
        ]
        if self.render(edged, generate=True, think=think) != SLOT.sub(lambda slot: f" \n{slot[0]}\n ", text):
            raise UnsupportedCheckpointError(
                "the chat template trims messages, and a slot stands at the end of one, where it would not be trimmed; "
                "write some text around the slot"
            )
        return text

    def answer_begins(self, *, think: bool) -> str:
        """Return what stands between the last message, the user's, and the text that the model writes."""
        asked: list[Message] = [{"role": "user", "content": _MARK.format(0)}]
        before, whole = self.render(asked, think=think), self.render(asked, generate=True, think=think)
        if not whole.startswith(before):
            raise UnsupportedCheckpointError("the chat template writes a conversation differently where it goes on")
        return whole[len(before) :]


def read_chat_template(root: Path, vocabulary: Vocabulary) -> ChatTemplate | None:
    """Return the chat template of a checkpoint folder, or None if it has none."""
    if vocabulary.chat_template is None:
        return None
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for kind in ("bos_token", "eos_token", "pad_token", "unk_token"):
            entry = (read_json(root / file) or {}).get(kind)
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                names[kind] = text
    return ChatTemplate(vocabulary.chat_template, names)


def find_role_forms(template: ChatTemplate) -> RoleForms:
    """Find out what a template puts around messages, and compare it on random conversations.

    Returns:
        The forms, for as many roles as could be found. They write every random conversation as the template does.

    Raises:
        UnsupportedCheckpointError: If not even conversations of user and assistant can be written so; the message has
            the smallest conversation found that differs.
        InputError: If the template cannot be rendered.
    """
    date = template.date.strftime("%d %b %Y") if template.prints_date else ""
    wrong = None
    written = {role: keys for role in ROLES if (keys := _written_keys(template, role))}
    for roles, thoughts in product((ROLES, ROLES[:3], ("user", "assistant", "tool"), ROLES[1:3]), (True, False)):
        forms = replace(_derive(template, roles, thoughts, date), written=written)
        plain = ["user", "assistant"]
        wanted = [plain, ["system", *plain]] if "system" in roles else [plain]
        if forms.roles != tuple(r for r in ROLES if r in roles) or not all(_takes(forms, talk) for talk in wanted):
            continue
        apart = (True, False) if REASONING in written.get("assistant", ()) and thoughts else (False,)
        anywhere = (True, False) if "system" in roles else (True,)
        for systems, reasoning, tool_responses in product(anywhere, apart, TOOL_RESPONSES):
            tried = replace(forms if systems else _with_a_system_message_first(forms), reasoning=reasoning)
            tried = replace(tried, tool_responses=tool_responses)
            wrong = first_difference(template, tried)
            if wrong is None:
                return tried
    _try_plain(template)  # raises where the template cannot be rendered at all
    shown = "" if wrong is None else f", for example {json.dumps(wrong, ensure_ascii=False)[:200]}"
    raise UnsupportedCheckpointError(
        f"the chat template writes conversations in a way that cannot be expressed message by message{shown}; "
        "give templates with {prompt} in place of {conversation}"
    )


def _takes(forms: RoleForms, roles: Sequence[str]) -> bool:
    return _written(forms, _talk(roles)) is not None


def _with_a_system_message_first(forms: RoleForms) -> RoleForms:
    """Return the forms without those of system messages behind others, which some templates join to the next turn."""
    return replace(forms, forms={name: form for name, form in forms.forms.items() if _is_first(name)})


def _is_first(situation: str) -> bool:
    return situation.startswith(f"{START}>") or ">system" not in situation


def _try_plain(template: ChatTemplate) -> None:
    template.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])


def first_difference(template: ChatTemplate, forms: RoleForms, count: int = CONVERSATIONS) -> list[Message] | None:
    """Return the smallest conversation found that the forms write differently; None if there is none.

    All orders of up to four roles are tried, and ``count`` random conversations.

    A conversation that the template or the forms refuse counts as different only if the other one takes it and the
    forms are those that take it.
    """
    different = [
        talk
        for talk in chain(_short_conversations(forms), random_conversations(forms, count))
        if _written(forms, talk) not in (None, _or_none(template, talk))
    ]
    return min(different, key=lambda talk: (len(talk), len(str(talk)))) if different else None


def _short_conversations(forms: RoleForms) -> Iterator[list[Message]]:
    """Yield a conversation for each order of up to four roles in which the user speaks."""
    for length in range(1, 5):
        for roles in product(forms.roles, repeat=length):
            if "user" in roles:
                yield [{"role": role, "content": f" {i}\n"} for i, role in enumerate(roles)]


def random_conversations(forms: RoleForms, count: int, seed: int = 0) -> Iterator[list[Message]]:
    """Yield random conversations with a message of the user in each: any order of roles, and awkward contents."""
    rng = random.Random(seed)
    contents = (
        "Hi.",
        "",
        " ",
        "two\nlines",
        "  spaced \n",
        "\n\nbreaks\n\n",
        "{prompt} {x}",
        '"quoted" \\',
        "caf\u00e9",
        "x" * 40,
    )
    thoughts = ("<think>\nhm\n</think>\n\nfive", "</think>", "a</think>b</think>\n c", "<think>\n\n</think>\n\n5")
    start, end = TOOL_RESPONSE
    tool_responses = (f"{start}\nx\n{end}", f"{start}{end}", f"{start}x", f" {start}x{end}", f"{start}x{end}\n", end)
    for _ in range(count):
        roles = [rng.choice(forms.roles) for _ in range(rng.randint(1, 7))]
        if rng.random() < 0.5:  # half of them as people talk
            roles = ["system"] * ("system" in forms.roles and rng.random() < 0.5)
            roles += ["user", "assistant"] * rng.randint(1, 3) + ["user"] * rng.randint(0, 1)
        if "user" not in roles:
            roles[rng.randrange(len(roles))] = "user"
        talk: list[Message] = []
        # In some, the user asks once, and what stands there as his further messages comes from tools.
        agent = forms.tool_responses != "refused" and rng.random() < 0.25
        for role in roles:
            thought = role == "assistant" and forms.thoughts and rng.random() < (0.6 if agent else 0.3)
            from_tool = role == "user" and agent and "user" in (m["role"] for m in talk) and rng.random() < 0.8
            content = rng.choice(thoughts if thought else tool_responses if from_tool else contents)
            talk.append({"role": role, "content": content})
            if role == "assistant" and forms.reasoning and rng.random() < 0.2:
                talk[-1]["reasoning_content"] = rng.choice([*contents[2:], *thoughts, "\n"])
        yield talk


def _written(forms: RoleForms, talk: Sequence[Message]) -> str | None:
    try:
        return "".join(piece.text for piece in forms.pieces(talk))
    except InputError:
        return None


def _or_none(template: ChatTemplate, talk: Sequence[Message]) -> str | None:
    try:
        return template.render(talk)
    except InputError:
        return None


def _derive(template: ChatTemplate, roles: Sequence[str], thoughts: bool, date: str) -> RoleForms:
    """Return the forms of these roles, not compared yet. What the template refuses has none."""
    forms: dict[str, RoleForm] = {}
    for before, role in product((START, *roles), roles):
        for kind in ("", ":thought") if role == "assistant" and thoughts else ("",):
            for state in ("", ":last", ":open"):
                form = _form_in(template, before, role, state, thought=bool(kind))
                base = forms.get(f"{before}>{role}{kind}")
                if form is not None and form != base:
                    forms[f"{before}>{role}{kind}{state}"] = form
    # Where thoughts are text like any other, they need no form of their own.
    if not any(_special(forms, name) for name in forms if ":thought" in name):
        forms = {name: form for name, form in forms.items() if ":thought" not in name}
    endings = {role: end for role in roles if (end := _ending(template, role)) is not None}
    return RoleForms(forms, endings, thoughts, date)


def _written_keys(template: ChatTemplate, role: str) -> tuple[str, ...]:
    """Return the keys beside role and content that change what the template writes, or make it fail.

    Tried are the usual keys and all words of the template that could be one, with values of the usual kinds, on a
    message of this role in each situation.
    """
    words = set(re.findall(r"[.\['\"]\s*([a-z_]\w*)", template.source))
    keys = sorted(words - {"role", "content", *_KEYS, *dir(str), *dir(list), *dir(dict), *_LOOP})
    found = [key for key in _KEYS if _changes_something(template, role, [key])]
    return (ANY_KEY,) if _NO_KEY in found else tuple(sorted({*found, *_written_among(template, role, keys)}))


def _written_among(template: ChatTemplate, role: str, keys: Sequence[str]) -> list[str]:
    """Return those of some keys that change something. Halves are tried together, since most keys change nothing."""
    if not keys or not _changes_something(template, role, keys):
        return []
    if len(keys) == 1:
        return list(keys)
    half = len(keys) // 2
    return _written_among(template, role, keys[:half]) + _written_among(template, role, keys[half:])


def _changes_something(template: ChatTemplate, role: str, keys: Sequence[str]) -> bool:
    """Return whether values under ``keys`` of a message of this role ever change what the template writes."""
    mark = _MARK.format("key")
    call = {"type": "function", "id": "abcdefghi", "function": {"name": mark, "arguments": {"x": mark}}}
    for before, state in product((START, *ROLES), ("", ":last", ":open")):
        for (roles, at), text in product(_situations(before, role, state), (_MARK.format(0), "")):
            talk = _talk(roles, at, text)
            plain = _or_none(template, talk)
            if plain is None:
                continue
            for value in (mark, [call], {"x": mark}, True):
                changed: Any = {**talk[at], **dict.fromkeys(keys, value)}
                if _or_none(template, [*talk[:at], changed, *talk[at + 1 :]]) != plain:
                    return True
    return False


def _special(forms: dict[str, RoleForm], name: str) -> bool:
    """Return whether a form with a thought treats it as one; in one that keeps it as text, ``between`` is the tag."""
    return forms[name].between != END_OF_THOUGHT


def _situations(before: str, role: str, state: str) -> Iterator[tuple[list[str], int]]:
    """Yield conversations in which a message of ``role`` stands in a situation, and the position of that message.

    There are several, because a template may refuse some of them, for example where roles do not alternate.
    """
    openings: dict[str, list[list[str]]] = {
        START: [[]],
        "user": [["user"], ["user", "assistant", "user"]],
        "system": [["system"], ["user", "system"]],
    }
    behind: dict[str, list[list[str]]] = {
        "": [["user"], ["assistant", "user"]],
        ":last": [[]],
        ":open": [["assistant"], ["tool"]],
    }
    starts = openings.get(before, [["user", before]])
    for opening, rest in product(starts, behind[state]):
        roles = [*opening, role, *rest]
        if next(situations(roles, len(opening))) == f"{before}>{role}{state}" and ("user" in roles or len(roles) == 1):
            yield roles, len(opening)


def _form_in(template: ChatTemplate, before: str, role: str, state: str, *, thought: bool) -> RoleForm | None:
    """Return the form of a message in one situation, or None if the template refuses it or loses its content."""
    for roles, at in _situations(before, role, state):
        plain = _try(template, roles)
        if plain is not None and thought:
            return _thought_form(template, roles, at, plain)
        change = None if plain is None else _change(template, roles, at, plain, "{}")
        if plain is not None and change is not None:
            return RoleForm(plain[at], change)
    return None


def _thought_form(template: ChatTemplate, roles: list[str], at: int, plain: list[str]) -> RoleForm | None:
    """Return the form of an answer with a thought in it."""
    thought, answer = _MARK.format("t"), _MARK.format(at)
    whole = _or_none(template, _talk(roles, at, f"<think>{thought}{END_OF_THOUGHT}{answer}"))
    if whole is None:
        return None
    parts = _split_at(whole, [_MARK.format(i) for i in range(len(roles))])
    if parts is None:
        return None
    if thought not in parts[at]:
        change = _change(template, roles, at, parts, f"<think>\nx\n{END_OF_THOUGHT}{{}}")
        return None if change is None else RoleForm(parts[at], change)
    before, _, between = parts[at].partition(thought)
    if before == plain[at] + "<think>" and between == END_OF_THOUGHT:
        return RoleForm(plain[at], "keep", END_OF_THOUGHT)  # nothing is done to it
    parts[at] = before + "x" + between
    change = _change(template, roles, at, parts, f"<think>x{END_OF_THOUGHT}{{}}")
    for name, thought_change in CHANGES.items():
        texts = {p: [*parts[:at], before + thought_change(_inner(p)) + between, *parts[at + 1 :]] for p in _PROBES}
        if change is not None and all(
            _or_none(template, _talk(roles, at, f"<think>{p}{END_OF_THOUGHT}{answer}")) == _joined(text)
            for p, text in texts.items()
            if _inner(p)
        ):
            return RoleForm(before, change, between, name)
    return None


def _inner(probe: str) -> str:
    return probe.rstrip("\n").lstrip("\n")


def _change(template: ChatTemplate, roles: list[str], at: int, plain: list[str], wrap: str) -> str | None:
    """Return what the template does to the content of message ``at``, as a key of ``CHANGES``; None if unknown.

    Args:
        template: The template.
        roles: The roles of a conversation.
        at: The message.
        plain: What stands around the contents; see ``_try``.
        wrap: The whole content, with ``{}`` in place of what is looked at.
    """
    got = {probe: _or_none(template, _talk(roles, at, wrap.format(probe))) for probe in _PROBES}
    for name, change in CHANGES.items():
        if all(text == _joined(plain, {at: change(probe)}) for probe, text in got.items()):
            return name
    return None


def _ending(template: ChatTemplate, role: str) -> str | None:
    """Return what stands behind the last message, if its role is ``role``."""
    parts = _try(template, ["user"] if role == "user" else ["user", role])
    if parts is None:
        parts = _try(template, [role])
    return None if parts is None else parts[-1]


def _talk(roles: Sequence[str], at: int | None = None, text: str = "") -> list[Message]:
    """Return a conversation with a mark for each content, or with ``text`` for that of message ``at``."""
    return [{"role": role, "content": text if i == at else _MARK.format(i)} for i, role in enumerate(roles)]


def _try(template: ChatTemplate, roles: Sequence[str]) -> list[str] | None:
    """Return what the template writes before, between and behind contents; None if it refuses or moves a content."""
    text = _or_none(template, _talk(roles))
    return None if text is None else _split_at(text, [_MARK.format(i) for i in range(len(roles))])


def _split_at(text: str, marks: Sequence[str]) -> list[str] | None:
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        part, _, text = text.partition(mark)
        parts.append(part)
    return [*parts, text] if not any(mark in text for mark in marks) else None


def _joined(parts: Sequence[str], contents: dict[int, str] | None = None) -> str:
    """Return parts with the marks of contents between them, or with the given contents."""
    given = contents or {}
    return parts[0] + "".join(given.get(i, _MARK.format(i)) + part for i, part in enumerate(parts[1:]))


__all__ = [
    "CONVERSATIONS",
    "ChatTemplate",
    "find_role_forms",
    "first_difference",
    "random_conversations",
]
