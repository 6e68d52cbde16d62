"""How a model's own chat template writes a conversation, as data: what stands before and behind each message.

A chat template is a program. Programs of strangers do not run here: the exporter runs it once, in a sandbox, and writes
down what it puts around the messages (``fsrm_lite.export.checkpoints.chat_template``). That depends on little: on the
message's role, on the role before it, on whether it is the last one, and on whether a message of the user still
follows. The exporter has compared the forms with the template on random conversations.

A message may have more than a role and a content. A thought under ``reasoning_content`` is written as one inside the
content, where the template was seen to do the same. Whatever else the template would write, such as ``tool_calls``, is
refused by name. What it does not look at is ignored.

The words of roles are the exporter's, and contents are text, so that neither can forge a turn of the conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsrm_lite.checks import kind_of, valid_unicode
from fsrm_lite.errors import InputError
from fsrm_lite.types import Message

ROLES = ("system", "user", "assistant", "tool")
"""The roles whose forms are sought."""

START = "start"
"""Stands for the role before the first message."""

END_OF_THOUGHT = "</think>"
"""Where a template that knows thoughts cuts an assistant's text: what stands behind the last one is the answer."""

REASONING = "reasoning_content"
"""The key under which a message may hold its thought apart from its content."""

TOOL_RESPONSE = ("<tool_response>", "</tool_response>")
"""What stands around a tool's answer that is sent as a message of the user."""

TOOL_RESPONSES = ("message", "response", "refused")
"""What a message of the user is that begins and ends with ``TOOL_RESPONSE``: one like any other; the answer of a tool,
behind which the user still waits for an answer to what he asked before, as Qwen3 has it; or unknown, and refused."""

ANY_KEY = "*"
"""Stands for every key, where a template writes whole messages."""

CHANGES: dict[str, Callable[[str], str]] = {
    "keep": lambda text: text,
    "trim": str.strip,
    "trim_left": str.lstrip,
    "trim_right": str.rstrip,
    "trim_newlines": lambda text: text.strip("\n"),
    "trim_left_newlines": lambda text: text.lstrip("\n"),
    "json": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
}
"""What templates do to a content: trim white space, or write it as JSON does between its quotes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a conversation as the model reads it.

    Attributes:
        text: The part.
        trusted: Whether control tokens that it spells are meant; False for everything that came from a caller.
    """

    text: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class RoleForm:
    """What the template makes of one message.

    Attributes:
        before: Text between the message before and this one; for the first message, all that stands before it.
        change: What happens to the content, a key of ``CHANGES``.
        between: Where the message holds a thought that is kept: text between the thought and the answer. None where
            there is no thought, or it is left out.
        thought_change: What happens to such a thought.
    """

    before: str
    change: str = "keep"
    between: str | None = None
    thought_change: str = "keep"

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` on an unknown change."""
        for change in (self.change, self.thought_change):
            if change not in CHANGES:
                raise ValueError(f"a role form names the change {change!r}, expected one of {', '.join(CHANGES)}")


@dataclass(frozen=True, slots=True)
class RoleForms:
    """What a chat template makes of conversations.

    Attributes:
        forms: By situation; ``situations`` says how one is written.
        endings: Text behind the last message, by its role; a role that cannot be last has none.
        thoughts: Whether the template was compared on answers that hold ``</think>`` too. If not, and the template
            does something with them, such answers are refused.
        date: The day that the template takes for today, where it prints one; else empty.
        written: For each role, the further keys of a message that the template writes or refuses; ``"*"`` for all.
        reasoning: Whether what stands under ``reasoning_content`` is written like a thought inside the content.
        tool_responses: One of ``TOOL_RESPONSES``.
    """

    forms: Mapping[str, RoleForm]
    endings: Mapping[str, str]
    thoughts: bool = True
    date: str = ""
    written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reasoning: bool = False
    tool_responses: str = "message"
    roles: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the roles that there are forms for. Raise a ``ValueError`` on an unknown kind of tool responses."""
        if self.tool_responses not in TOOL_RESPONSES:
            raise ValueError(
                f"conversation.tool_responses is {self.tool_responses!r}, expected one of {', '.join(TOOL_RESPONSES)}"
            )
        there = {name.partition(":")[0].partition(">")[2] for name in self.forms}
        if unknown := sorted(there - set(ROLES)):
            raise ValueError(f"conversation.forms has {unknown} as roles, expected among {', '.join(ROLES)}")
        object.__setattr__(self, "roles", tuple(role for role in ROLES if role in there))

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Return a conversation as the template writes it, without a prompt for a further answer.

        Args:
            messages: As ``read_messages`` returns them; one of them is the user's.

        Raises:
            InputError: If the model's template has no place for a message; the error names it.
        """
        roles = [m["role"] for m in messages]
        for i, role in enumerate(roles):
            if role not in self.roles:
                raise InputError(
                    f"message {i} has the role {role!r}; this model's conversations have {', '.join(self.roles)}"
                )
        if "user" not in roles:
            raise InputError("the conversation has no message of the user; expected at least one")
        if roles[-1] not in self.endings:
            raise InputError(f"this model's chat template takes no {roles[-1]!r} message at the end of a conversation")
        asked = self._last_question(messages)
        pieces: list[Piece] = []
        for i, message in enumerate(messages):
            self._refuse_keys(message, i)
            answer, thought = str(message["content"]), self._reasoning(message, i)
            if thought is None:
                thought, answer = self._split(message["role"], answer, i)
                form = self._form(roles, i, thought, asked)
            else:
                form = self._form(roles, i, thought, asked)
                form = form if form.between is not None else self._form(roles, i, None, asked)
                thought = thought.strip("\n")  # as Qwen3's template has it
            pieces.append(Piece(form.before, True))
            if thought is not None and form.between is not None:
                pieces += [Piece(CHANGES[form.thought_change](thought), False), Piece(form.between, True)]
            pieces.append(Piece(CHANGES[form.change](answer), False))
        return [*pieces, Piece(self.endings[roles[-1]], True)]

    def texts(self) -> list[str]:
        """Return every text of the template, in which control tokens are meant."""
        return [part for f in self.forms.values() for part in (f.before, f.between or "")] + list(self.endings.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form. A form that is nothing but a text is written as that text."""
        return {
            "forms": {name: _form_dict(form) for name, form in self.forms.items()},
            "endings": dict(self.endings),
            "thoughts": self.thoughts,
            "date": self.date,
            "written": {role: list(keys) for role, keys in self.written.items()},
            "reasoning": self.reasoning,
            "tool_responses": self.tool_responses,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoleForms:
        """Return the forms that a JSON object describes.

        Raises:
            KeyError, TypeError, ValueError: If it does not describe any.
        """
        forms = {str(k): RoleForm(v) if isinstance(v, str) else RoleForm(**v) for k, v in data["forms"].items()}
        if not all(isinstance(f.before, str) and isinstance(f.between, str | None) for f in forms.values()):
            raise TypeError("a role form's 'before' or 'between' is no text")
        endings = {str(k): str(v) for k, v in data["endings"].items()}
        if not set(endings) <= set(ROLES):
            raise ValueError(f"conversation.endings has {sorted(endings)}, expected among {', '.join(ROLES)}")
        return cls(
            forms,
            endings,
            bool(data.get("thoughts", True)),
            str(data.get("date", "")),
            {str(role): tuple(map(str, keys)) for role, keys in data.get("written", {}).items()},
            bool(data.get("reasoning", False)),
            str(data.get("tool_responses", "message")),
        )

    def _last_question(self, messages: Sequence[Message]) -> int:
        """Return the number of the last message in which the user asks something.

        Raises:
            InputError: If there is none, or a message of the user looks like the answer of a tool and it is not known
                what the template makes of that.
        """
        last = -1
        for i, message in enumerate(messages):
            text = str(message["content"])
            from_tool = text.startswith(TOOL_RESPONSE[0]) and text.endswith(TOOL_RESPONSE[1])
            if message["role"] != "user" or (from_tool and self.tool_responses == "response"):
                continue
            if from_tool and self.tool_responses == "refused":
                raise InputError(
                    f"message {i} stands between {' and '.join(TOOL_RESPONSE)}, and this model's chat template treats "
                    "such a message of the user in a way that is not known here; give it the role 'tool'"
                )
            last = i
        if last < 0:
            raise InputError(
                "the messages of the user are all answers of tools; expected at least one in which the user asks"
            )
        return last

    def _refuse_keys(self, message: Message, number: int) -> None:
        """Raise an ``InputError`` if a message has a key that the template would write and that has no form here."""
        known = ("role", "content", REASONING) if self._has_reasoning(message["role"]) else ("role", "content")
        written = self.written.get(message["role"], ())
        for key, value in message.items():
            if key in known or value is None or (key not in written and ANY_KEY not in written):
                continue
            raise InputError(
                f"message {number}, of the role {message['role']!r}, has {key!r}, which this model's chat template "
                "would write in a way that is not known here; put its text into the content, or leave it out"
            )

    def _has_reasoning(self, role: str) -> bool:
        return self.reasoning and role == "assistant" and REASONING in self.written.get(role, ())

    def _reasoning(self, message: Message, number: int) -> str | None:
        """Return the thought that a message holds apart from its content, if the template writes it."""
        thought = message.get(REASONING)
        if thought is None or not self._has_reasoning(message["role"]):
            return None
        if not isinstance(thought, str):
            raise InputError(f"the {REASONING!r} of message {number} is {kind_of(thought)}; expected a string")
        return valid_unicode(thought, f"{REASONING!r} of message {number}")

    def _split(self, role: str, text: str, number: int) -> tuple[str | None, str]:
        """Return the thought and the answer of a message; the thought is None where the template sees none."""
        if role != "assistant" or END_OF_THOUGHT not in text:
            return None, text
        if not self.thoughts:
            raise InputError(
                f"message {number} spells {END_OF_THOUGHT}, and this model's chat template treats thoughts in a way "
                "that is not known here; leave the thought out"
            )
        if not any(":thought" in name for name in self.forms):
            return None, text
        # As Qwen3's template has it: the first thought is the thought, what stands behind the last one is the answer.
        thought = text.split(END_OF_THOUGHT)[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        return thought, text.split(END_OF_THOUGHT)[-1]

    def _form(self, roles: Sequence[str], i: int, thought: str | None, asked: int) -> RoleForm:
        """Return the form of message ``i``.

        Raises:
            InputError: If the template refuses a message of its role there.
        """
        for name in situations(roles, i, thought, asked=asked):
            if name in self.forms:
                return self.forms[name]
        before = f"behind a {roles[i - 1]!r} message" if i else "at the beginning"
        raise InputError(f"this model's chat template takes no {roles[i]!r} message {before} (message {i})")


def situations(roles: Sequence[str], i: int, thought: str | None = None, *, asked: int | None = None) -> Iterator[str]:
    """Yield the names of the situation of message ``i``, the most exact one first.

    ``"user>assistant"`` is a message of the assistant behind one of the user. ``:last`` is added where it is the last
    message, ``:open`` where others follow but the user asks nothing more, and ``:thought`` where it holds a thought
    that the template sees. A more exact name is in use only where the form is another one.

    Args:
        roles: The roles of all messages.
        i: Number of the message.
        thought: Its thought; None where the template sees none. An empty one counts as one only in the last message.
        asked: Number of the last message in which the user asks; None for the last one of the role ``user``.
    """
    last = max((n for n, role in enumerate(roles) if role == "user"), default=-1) if asked is None else asked
    name = f"{roles[i - 1] if i else START}>{roles[i]}"
    state = ":last" if i == len(roles) - 1 else "" if last > i else ":open"
    if thought is not None:
        if thought or state == ":last":
            yield f"{name}:thought{state}"
        yield f"{name}:thought"
        return
    yield f"{name}{state}"
    yield name


def _form_dict(form: RoleForm) -> str | dict[str, Any]:
    data: dict[str, Any] = {"before": form.before}
    if form.change != "keep":
        data["change"] = form.change
    if form.between is not None:
        data["between"] = form.between
        if form.thought_change != "keep":
            data["thought_change"] = form.thought_change
    return form.before if len(data) == 1 else data
