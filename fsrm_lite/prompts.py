"""Templates to token ids, such that untrusted text can never become a control token.

A template is split at its special tokens once, when it is loaded. Each special token becomes its id; each run of
text between two of them, with its slots filled in, is encoded as *one* string with special-token recognition off.
For benign text that gives exactly the ids the trainer saw; a response that spells ``<|im_end|>`` gives the ids of
those ordinary characters. llama.cpp is fed the same ids: there is one tokenizer in the system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from tokenizers import AddedToken, Tokenizer

from fsrm_lite.errors import BundleError, ContextOverflowError, InputError
from fsrm_lite.manifest import Manifest
from fsrm_lite.types import Prompt

_Item = TypeVar("_Item")

_SLOT = re.compile(r"\{(\w+)\}")


class PromptEncoder:
    """Renders the templates of one bundle to token ids, and decodes ids to text."""

    def __init__(self, tokenizer_path: Path, manifest: Manifest) -> None:
        """Load ``tokenizer.json`` and split the manifest's templates at their special tokens.

        Raises:
            BundleError: If the tokenizer cannot be read or disagrees with the manifest about a special token, or a template
                spells a control token that the manifest does not list.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception as error:  # tokenizers raises bare Exception on any malformed file
            raise BundleError(f"cannot read the tokenizer {tokenizer_path}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._disarm_added_tokens()
        for text, token_id in manifest.special_tokens.items():
            if self._tokenizer.token_to_id(text) != token_id:
                raise BundleError(f"special token {text!r} has id {self._tokenizer.token_to_id(text)} in the tokenizer, {token_id} in fsrm.json")
            if token_id in self.encode_text(f"{text}x{text} {text}"):  # at the start, inside a word, behind a space
                raise BundleError(f"special token {text!r} is a plain word of the tokenizer: any response that spells it would give it; export again")
        self.manifest = manifest
        self._special = dict(manifest.special_tokens)
        # Longest first, so that a special token that starts another one does not win over it.
        names = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("|".join(re.escape(n) for n in names)) if names else None
        self._templates = {name: self._pieces(t.text) for name, t in manifest.templates.items()}
        self._refuse_undeclared()

    def _refuse_undeclared(self) -> None:
        """Refuse a template that spells a control token which ``special_tokens`` does not list: it would be read as plain text."""
        added = [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.content.strip()]
        for name, template in self.manifest.templates.items():
            verdict = template.verdict
            forms = [template.text] + ([verdict.close + verdict.prefix + c + verdict.suffix for c in verdict.choices] if verdict else [])
            plain = [piece for form in forms for piece in self._pieces(form) if isinstance(piece, str)]
            undeclared = sorted(a for a in added if any(a in piece for piece in plain))
            if undeclared:
                raise BundleError(
                    f"template {name!r} spells {undeclared}, which special_tokens in fsrm.json does not list; list them, or export again"
                )

    def _disarm_added_tokens(self) -> None:
        """Make the tokenizer read every added token in a text as plain characters.

        ``encode_special_tokens`` covers only tokens flagged special, and Qwen3 adds ``<think>`` and ``</think>``
        without that flag: a response could close the judge's thought. So they are flagged here. Added runs of white
        space (as GPT-NeoX has) are ordinary text and stay as they are.
        """
        added = self._tokenizer.get_added_tokens_decoder().values()
        plain = [AddedToken(t.content, special=True, normalized=t.normalized) for t in added if not t.special and t.content.strip()]
        self._tokenizer.add_special_tokens(plain)
        self._tokenizer.encode_special_tokens = True

    def _pieces(self, template: str) -> list[int | str]:
        """Split a template into special-token ids and runs of plain text (slots still open)."""
        pieces: list[int | str] = []
        position = 0
        for match in self._split.finditer(template) if self._split else ():
            if match.start() > position:
                pieces.append(template[position : match.start()])
            pieces.append(self._special[match.group()])
            position = match.end()
        if position < len(template):
            pieces.append(template[position:])
        return pieces

    def render(self, name: str, slots: Mapping[str, str]) -> list[int]:
        """Return the ids of template ``name`` with its slots filled in.

        Args:
            name: A template of the manifest, for example ``"pointwise_fast"``.
            slots: Text per slot; anything in it stays text.

        Raises:
            BundleError: If the bundle has no such template.
            ContextOverflowError: If the result is longer than the model's context.
        """
        ids = self._ids(name, slots)
        limit = self.manifest.limits.context
        if len(ids) > limit:
            raise ContextOverflowError(f"the rendered prompt has {len(ids)} tokens, the context holds {limit}; shorten it, or truncate the response")
        return ids

    def _ids(self, name: str, slots: Mapping[str, str]) -> list[int]:
        if name not in self._templates:
            raise BundleError(f"this bundle has no template {name!r}; it has {', '.join(self._templates)}")
        ids: list[int] = []
        for piece in self._templates[name]:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids.extend(self.encode_text(_SLOT.sub(lambda m: slots[m.group(1)], piece)))
        return ids

    def pointwise_fast(self, prompt: Prompt, response: str) -> list[int]:
        """Ids whose next token is the fast label of ``response``."""
        return self.render("pointwise_fast", {"prompt": prompt_text(prompt), "response": check_response(response)})

    def pointwise_slow(self, prompt: Prompt, response: str) -> list[int]:
        """Ids behind which the judge thinks about one response."""
        return self.render("pointwise_slow", {"prompt": prompt_text(prompt), "response": check_response(response)})

    def pairwise_slow(self, prompt: Prompt, first: str, second: str) -> list[int]:
        """Ids behind which the judge thinks about two responses, in the order given."""
        slots = {"prompt": prompt_text(prompt), "response_a": check_response(first), "response_b": check_response(second)}
        return self.render("pairwise_slow", slots)

    def solve(self, prompt: Prompt) -> list[int]:
        """Ids behind which the model writes a response of its own, where the bundle has that template."""
        return self.render("solve", {"prompt": prompt_text(prompt)})

    def truncated(self, prompt: Prompt, response: str) -> str:
        """Return as much of the beginning of ``response`` as fits into the context of the fast template.

        Raises:
            ContextOverflowError: If the prompt alone leaves no room.
        """
        slots = {"prompt": prompt_text(prompt), "response": check_response(response)}
        ends = [end for _, end in self._tokenizer.encode(response, add_special_tokens=False).offsets]
        keep = len(ends)
        while keep > 0:
            cut = response[: ends[keep - 1]]
            excess = len(self._ids("pointwise_fast", {**slots, "response": cut})) - self.manifest.limits.context
            if excess <= 0 and cut.strip():
                return cut
            keep -= max(1, excess)
        raise ContextOverflowError("the prompt alone fills the context; shorten it")

    def encode_text(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text: no control token can come out, whatever it spells."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of trusted text (a verdict form): special tokens written out become their ids."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids.extend([piece] if isinstance(piece, int) else self.encode_text(piece))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; control tokens are left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as the text that fills the ``{prompt}`` slot.

    A string is taken as it is; a conversation of one user message is that message; a longer one becomes
    ``"role: content"`` paragraphs, so that the model sees who said what.

    Raises:
        InputError: If it is neither, or empty, or a message lacks a text.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("the prompt is empty; expected some text")
        return _clean(prompt, "prompt")
    if not isinstance(prompt, list) or not prompt:
        raise InputError(f"the prompt is {_kind(prompt)}; expected a string or a non-empty list of chat messages")
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError(f"message {i} of the prompt is not an object with a string 'role' and a string 'content'")
    if not any(m["content"].strip() for m in prompt):
        raise InputError("the prompt's messages are all empty; expected some text")
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return _clean(prompt[0]["content"], "prompt")
    return _clean("\n\n".join(f"{m['role']}: {m['content']}" for m in prompt), "prompt")


def check_response(response: str) -> str:
    """Return ``response`` if it is text that can be scored.

    Raises:
        InputError: If it is not a string, is empty, or is not valid Unicode.
    """
    if not isinstance(response, str):
        raise InputError(f"the response is {_kind(response)}; expected a string")
    if not response.strip():
        raise InputError("the response is empty; expected some text")
    return _clean(response, "response")


def check_items(items: Iterable[_Item], *parts: str) -> list[_Item]:
    """Return ``items`` as a list, if each of them is a tuple or list of the named parts; the parts are not looked at.

    Raises:
        InputError: Naming the first item that is not.
    """
    shape = f"({', '.join(parts)})"
    listed = _listed(items, "items", f"{shape} tuples")
    for i, item in enumerate(listed):
        if not isinstance(item, tuple | list) or len(item) != len(parts):
            raise InputError(f"item {i} is not a {shape} tuple")
    return listed


def check_candidates(responses: Iterable[str]) -> list[str]:
    """Return the candidates as a list, if there are any; the texts are not looked at.

    Raises:
        InputError: If they are one text, no collection, or none.
    """
    candidates = _listed(responses, "responses", "strings")
    if not candidates:
        raise InputError("there are 0 responses; expected at least 1")
    return candidates


def _listed(given: Iterable[_Item], what: str, expected: str) -> list[_Item]:
    # A string is a collection of strings to Python, and a dict one of its keys; nobody means that.
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"the {what} are {'one string' if isinstance(given, str) else _kind(given)}; expected a list of {expected}")
    return list(given)


def _clean(text: str, what: str) -> str:
    # A lone surrogate (half of an emoji cut in two) cannot be encoded; the tokenizer's own error would not say so.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} has a lone surrogate at character {error.start}; expected valid Unicode text") from error
    return text


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}" if value is not None else "null"
