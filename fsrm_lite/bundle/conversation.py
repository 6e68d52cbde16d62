"""Checks what callers give as a prompt (text or chat messages) and as a response, and returns it as plain text."""

from __future__ import annotations

from fsrm_lite.checks import kind_of, valid_unicode
from fsrm_lite.errors import InputError
from fsrm_lite.types import Prompt


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as the text that fills the ``{prompt}`` slot of a template.

    A string is taken as it is. A conversation of one user message is that message. A longer conversation becomes
    ``"role: content"`` paragraphs, so that the model sees who said what.

    Args:
        prompt: A string, or a list of chat messages.

    Raises:
        InputError: If it is neither, or has no text in it, or a message lacks its role or content.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("the prompt is empty; expected some text")
        return valid_unicode(prompt, "prompt")
    if not isinstance(prompt, list) or not prompt:
        raise InputError(f"the prompt is {kind_of(prompt)}; expected a string or a non-empty list of chat messages")
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError(f"message {i} of the prompt is not an object with a string 'role' and a string 'content'")
    if not any(m["content"].strip() for m in prompt):
        raise InputError("the prompt's messages are all empty; expected some text")
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return valid_unicode(prompt[0]["content"], "prompt")
    return valid_unicode("\n\n".join(f"{m['role']}: {m['content']}" for m in prompt), "prompt")


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
