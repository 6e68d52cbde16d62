"""Reads prompts, chat messages and responses as callers give them. It is the package's only reader of chat messages.

A prompt is plain text or a list of chat messages; a response is plain text, a message, or a list of messages. Contents
come in the forms that chat APIs use: a text, a list of parts, or nothing at all, as in a message that calls a tool.
Here each of them becomes plain text. How a conversation becomes token ids is the business of
``fsrm_lite.bundle.role_forms`` and ``fsrm_lite.bundle.encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from fsrm_lite.checks import kind_of, valid_unicode
from fsrm_lite.errors import InputError
from fsrm_lite.types import Message, Prompt

_TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that hold a text, under the key ``"text"``: those of OpenAI's and Hugging Face's APIs."""


def read_prompt(prompt: Prompt) -> Prompt:
    """Check a prompt, and return it in its simplest form.

    Args:
        prompt: A string, or a list of chat messages.

    Returns:
        A string, which is also what a conversation of one user message with nothing but a content becomes; else a list
        of messages, as ``read_messages`` returns them.

    Raises:
        InputError: If it is neither, or has no text in it, or a message is malformed.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("the prompt is empty; expected some text")
        return valid_unicode(prompt, "prompt")
    messages = read_messages(prompt)
    if not any(str(m["content"]).strip() for m in messages):
        raise InputError("the prompt's messages are all empty; expected some text")
    alone = len(messages) == 1 and messages[0]["role"] == "user" and len(messages[0]) == 2
    return str(messages[0]["content"]) if alone else messages


def read_messages(messages: object, what: str = "prompt") -> list[Message]:
    """Check a conversation, and return its messages with a role and a text each, and other keys as they are.

    Args:
        messages: A list of chat messages. A content may be a text, a list of parts that hold texts, null or missing.
        what: What an error message calls the conversation.

    Raises:
        InputError: If it is not a list of messages, or a content holds something else than text, such as an image.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError(f"the {what} is {kind_of(messages)}; expected a string or a non-empty list of chat messages")
    return [read_message(message, f"message {i} of the {what}") for i, message in enumerate(messages)]


def read_message(message: object, where: str) -> Message:
    """Check a chat message, and return it with a role and a text, and other keys as they are.

    Whether a model has a place for what stands under another key, such as ``tool_calls``, is not known here; its role
    forms say so. A key without a value (null, or an empty text, list or object) is left out.

    Args:
        message: An object with a string ``role`` and a ``content``; see ``read_messages``.
        where: What an error message calls it.

    Raises:
        InputError: If it is no message, or its content holds something else than text.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise InputError(f"{where} is not an object with a string 'role' and a 'content'")
    text = _content(message.get("content"), where, others=False)
    read: Message = {"role": valid_unicode(message["role"], where), "content": valid_unicode(text, where)}
    others = {k: v for k, v in message.items() if k not in read and not _is_nothing(v)}
    return cast(Message, {**read, **others})


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as the text that fills the ``{prompt}`` slot of a template.

    A string is taken as it is. A conversation of one user message is that message. A longer conversation becomes
    ``"role: content"`` paragraphs, so that the model sees who said what. Other keys have no place in it.

    Args:
        prompt: A string, or a list of chat messages.

    Raises:
        InputError: If it is unusable; see ``read_prompt``.
    """
    read = read_prompt(prompt)
    if isinstance(read, str):
        return read
    if [m["role"] for m in read] == ["user"]:
        return str(read[0]["content"])
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in read)


def response_text(response: object, what: str = "a completion") -> str:
    """Return the text of a response in any form, which may be empty.

    Args:
        response: A string, a chat message, or a list of chat messages, whose texts are joined by line breaks. Messages
            without text (those that only call a tool) and parts of a content that are no text are passed over.
        what: What an error message calls the response.

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(response, str):
        return response
    if isinstance(response, Mapping):
        return _content(response.get("content"), what, others=True)
    if isinstance(response, list | tuple):
        texts = [response_text(message, what) for message in response]
        return "\n".join(text for text in texts if text)
    raise InputError(f"{what} is {kind_of(response)}; expected a string or a list of chat messages")


def check_response(response: str) -> str:
    """Return ``response`` if it is text that can be scored.

    Raises:
        InputError: If it is not a string, has nothing but white space in it, or is not valid Unicode.
    """
    if not isinstance(response, str):
        raise InputError(f"the response is {kind_of(response)}; expected a string")
    if not response.strip():
        raise InputError("the response is empty; expected some text")
    return valid_unicode(response, "response")


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, the response that people preferred, and the other one."""

    prompt: Prompt
    chosen: str
    rejected: str


def read_preference(row: Mapping[str, Any]) -> Preference:
    """Read a preference row as data sets publish it: ``prompt`` (which may be missing), ``chosen`` and ``rejected``.

    The two are texts, or conversations that differ in their last message. A conversation may begin with the prompt, or
    go on from it.

    Raises:
        InputError: If the row has no such form; the message says what is wrong.
    """
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, list) and not isinstance(rejected, list):
        if prompt is None:
            raise InputError("'prompt' is missing")
        return Preference(prompt, response_text(chosen, "'chosen'"), response_text(rejected, "'rejected'"))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise InputError("one of 'chosen' and 'rejected' is a conversation and the other is not")
    talks = [read_messages(chosen, "'chosen'"), read_messages(rejected, "'rejected'")]
    before = talks[0][:-1]
    if _said(before) != _said(talks[1][:-1]):
        raise InputError("'chosen' and 'rejected' differ before their last message; expected one conversation")
    context: Prompt = before
    if prompt is not None and (not before or before[0]["role"] in ("assistant", "tool")):  # they go on from the prompt
        asked: list[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else read_messages(prompt)
        )
        context = asked + before
    if not context:
        raise InputError("'prompt' is missing, and 'chosen' holds nothing but a response")
    for what, talk in zip(("chosen", "rejected"), talks, strict=True):
        if talk[-1].get("tool_calls"):
            raise InputError(f"the last message of '{what}' calls a tool, which a response in plain text cannot show")
    return Preference(context, str(talks[0][-1]["content"]), str(talks[1][-1]["content"]))


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def _said(messages: list[Message]) -> list[tuple[str, str]]:
    """Return who said what."""
    return [(m["role"], str(m["content"])) for m in messages]


def _content(content: object, where: str, *, others: bool) -> str:
    """Return a message's content as text.

    Args:
        content: A text, a list of parts, or None.
        where: The message, for an error's text.
        others: Whether parts that are no text are passed over; else they are refused.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InputError(f"the content of {where} is {kind_of(content)}; expected a string or a list of text parts")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif (
            isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXT_PARTS
        ):
            texts.append(part["text"])
        elif not others or not isinstance(part, Mapping):
            kind = repr(part.get("type")) if isinstance(part, Mapping) else kind_of(part)
            raise InputError(f"{where} holds a part of type {kind}; expected parts of type 'text' with a string 'text'")
    return "".join(texts)
