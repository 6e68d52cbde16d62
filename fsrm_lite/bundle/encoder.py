"""Turns filled-in templates into token ids, so that untrusted text can never become a control token.

A *control token* (special token) is one that structures the model's input, such as ``<|im_end|>``. Prompts and
responses come from anyone and may spell such a token. To keep them text, a template is split at its special tokens when
it is loaded. Each special token becomes its id. Each run of text between two of them, with its slots filled in, is
encoded as *one* string, and the tokenizer is told to recognize no special tokens in it.

For harmless text this gives exactly the ids that the model saw in training; a response that spells ``<|im_end|>`` gives
the ids of those ordinary characters. Both halves of a model get their ids from here: there is one tokenizer in the
system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from fsrm_lite.bundle.conversation import check_response, prompt_text, read_prompt
from fsrm_lite.bundle.manifest import Manifest, template_parts, template_slots
from fsrm_lite.errors import BundleError, ContextOverflowError, as_ours
from fsrm_lite.types import Message, Prompt

Filling: TypeAlias = str | Sequence[Message]
"""What fills a slot: a text; or messages, for ``{conversation}``."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of a slot in a template that is split."""

    name: str


class PromptEncoder:
    """Fills in the templates of one bundle as token ids, and turns ids back into text."""

    def __init__(self, tokenizer_path: Path, manifest: Manifest) -> None:
        """Load ``tokenizer.json`` and split the manifest's templates at their special tokens.

        Args:
            tokenizer_path: The bundle's ``tokenizer.json``.
            manifest: The bundle's manifest.

        Raises:
            BundleError: If the tokenizer cannot be read or disagrees with the manifest about a special token, or if a
                template spells a control token that the manifest does not list.
        """
        with as_ours(BundleError, f"cannot read the tokenizer {tokenizer_path}"):
            self._tokenizer = Tokenizer.from_file(str(tokenizer_path))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._disarm_added_tokens()
        for text, token_id in manifest.special_tokens.items():
            if self._tokenizer.token_to_id(text) != token_id:
                raise BundleError(
                    f"special token {text!r} has id {self._tokenizer.token_to_id(text)} in the tokenizer, "
                    f"{token_id} in fsrm.json"
                )
            if token_id in self.encode_text(f"{text}x{text} {text}"):  # at the start, after a letter, after a space
                raise BundleError(
                    f"special token {text!r} is a plain word of the tokenizer: any response that spells it "
                    "would give it; export again"
                )
        self.manifest = manifest
        self._special = dict(manifest.special_tokens)
        # Longest first: where one special token is the beginning of another, the longer one is found.
        names = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("|".join(re.escape(n) for n in names)) if names else None
        self._split_texts: dict[str, list[int | str]] = {}
        self._templates = {name: self._parts(t.text) for name, t in manifest.templates.items()}
        self._slots = {name: template_slots(t.text) for name, t in manifest.templates.items()}
        self._refuse_undeclared()

    def _refuse_undeclared(self) -> None:
        """Raise a ``BundleError`` if a template spells a control token that ``special_tokens`` does not list.

        Such a token would be encoded as plain text.
        """
        added = [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.content.strip()]
        texts: dict[str, list[str]] = {}
        for name, template in self.manifest.templates.items():
            verdict = template.verdict
            texts[f"template {name!r}"] = [template.text] + (
                [verdict.close + verdict.prefix + c + verdict.suffix for c in verdict.choices] if verdict else []
            )
        if self.manifest.conversation is not None:
            texts["the conversation's forms"] = self.manifest.conversation.texts()
        for where, forms in texts.items():
            plain = [piece for form in forms for piece in self._pieces(form) if isinstance(piece, str)]
            undeclared = sorted(a for a in added if any(a in piece for piece in plain))
            if undeclared:
                raise BundleError(
                    f"{where} spells {undeclared}, which special_tokens in fsrm.json does not list; "
                    "list them, or export again"
                )

    def _disarm_added_tokens(self) -> None:
        """Make the tokenizer read every added token that a text spells as plain characters.

        Its switch ``encode_special_tokens`` does so for tokens that are flagged special. Qwen3 adds ``<think>`` and
        ``</think>`` without that flag, so that a response could end the judge's thought; such tokens get the flag here.
        Added runs of white space (as GPT-NeoX has) are ordinary text and stay as they are.
        """
        added = self._tokenizer.get_added_tokens_decoder().values()
        plain = [
            AddedToken(t.content, special=True, normalized=t.normalized)
            for t in added
            if not t.special and t.content.strip()
        ]
        self._tokenizer.add_special_tokens(plain)
        self._tokenizer.encode_special_tokens = True

    def _pieces(self, text: str) -> list[int | str]:
        """Return trusted text split at special tokens; each text is split once.

        The splits are kept in a plain dictionary, since an encoder is pickled to reach the judge's process.
        """
        if text not in self._split_texts:
            self._split_texts[text] = self._split_at_special_tokens(text)
        return self._split_texts[text]

    def _split_at_special_tokens(self, text: str) -> list[int | str]:
        """Split trusted text into the ids of special tokens and runs of plain text."""
        pieces: list[int | str] = []
        position = 0
        for match in self._split.finditer(text) if self._split else ():
            if match.start() > position:
                pieces.append(text[position : match.start()])
            pieces.append(self._special[match.group()])
            position = match.end()
        if position < len(text):
            pieces.append(text[position:])
        return pieces

    def _parts(self, template: str) -> list[int | str | _Slot]:
        """Split a template into ids of special tokens, runs of plain text, and the slots between them."""
        parts: list[int | str | _Slot] = []
        for text, slot in template_parts(template):
            parts += self._pieces(text)
            if slot:
                parts.append(_Slot(slot))
        return parts

    def render(self, name: str, slots: Mapping[str, Filling], *, behind: str = "") -> list[int]:
        """Return the ids of a template with its slots filled in.

        Args:
            name: A template of the manifest, for example ``"pointwise_fast"``.
            slots: The text for each slot, messages for ``conversation``. Whatever a text spells, it stays text.
            behind: Trusted text behind the template, such as a label that the model may answer with.

        Returns:
            Token ids, at most as many as the context holds.

        Raises:
            BundleError: If the bundle has no such template.
            ContextOverflowError: If the ids are more than the model's context holds.
            InputError: If the model's conversations have no place for a message.
        """
        ids = self._ids(name, slots, behind)
        limit = self.manifest.limits.context
        if len(ids) > limit:
            raise ContextOverflowError(
                f"the rendered prompt has {len(ids)} tokens, the context holds {limit}; "
                "shorten it, or truncate the response"
            )
        return ids

    def _ids(self, name: str, slots: Mapping[str, Filling], behind: str = "") -> list[int]:
        """Return the ids of a template with its slots filled in, however many they are."""
        if name not in self._templates:
            raise BundleError(f"this bundle has no template {name!r}; it has {', '.join(self._templates)}")
        pieces: list[int | str] = []
        for part in self._templates[name]:
            filling = slots[part.name] if isinstance(part, _Slot) else part
            pieces += [filling] if isinstance(filling, int | str) else self._conversation(filling)
        ids: list[int] = []
        for piece in _joined([*pieces, *self._pieces(behind)]):
            ids += [piece] if isinstance(piece, int) else self.encode_text(piece)
        return ids

    def _conversation(self, messages: Sequence[Message]) -> list[int | str]:
        """Return a conversation as ids of special tokens and runs of plain text."""
        assert self.manifest.conversation is not None  # checked when the manifest was read
        pieces: list[int | str] = []
        for piece in self.manifest.conversation.pieces(messages):
            pieces += self._pieces(piece.text) if piece.trusted else [piece.text]
        return pieces

    def fillings(self, name: str, prompt: Prompt, **responses: str) -> dict[str, Filling]:
        """Return what fills the slots of a template, for ``render``.

        Args:
            name: The template.
            prompt: What was asked.
            **responses: The responses by slot, checked already. Where the template has no place for one response, it
                is the last message of the conversation.
        """
        wanted = self._slots.get(name, [])
        if "conversation" not in wanted:
            return {"prompt": prompt_text(prompt), **responses}
        read = read_prompt(prompt)
        messages: list[Message] = [{"role": "user", "content": read}] if isinstance(read, str) else read
        if "response" in responses and "response" not in wanted:
            messages = [*messages, {"role": "assistant", "content": responses["response"]}]
        return {"conversation": messages, **responses}

    def pointwise_fast(self, prompt: Prompt, response: str) -> list[int]:
        """Return the ids after which the fast model predicts the label of one response."""
        return self._one("pointwise_fast", prompt, response)

    def pointwise_slow(self, prompt: Prompt, response: str) -> list[int]:
        """Return the ids after which the judge thinks about one response."""
        return self._one("pointwise_slow", prompt, response)

    def _one(self, name: str, prompt: Prompt, response: str) -> list[int]:
        return self.render(name, self.fillings(name, prompt, response=check_response(response)))

    def pairwise_fast(self, prompt: Prompt, first: str, second: str) -> list[int]:
        """Return the ids after which the fast model chooses one of two responses, in the order given."""
        return self._two("pairwise_fast", prompt, first, second)

    def pairwise_slow(self, prompt: Prompt, first: str, second: str) -> list[int]:
        """Return the ids after which the judge thinks about two responses, in the order given."""
        return self._two("pairwise_slow", prompt, first, second)

    def _two(self, name: str, prompt: Prompt, first: str, second: str) -> list[int]:
        both = {"response_a": check_response(first), "response_b": check_response(second)}
        return self.render(name, self.fillings(name, prompt, **both))

    def solve(self, prompt: Prompt) -> list[int]:
        """Return the ids after which the model writes a response of its own, if the bundle has a template for that."""
        return self.render("solve", self.fillings("solve", prompt))

    def truncated(self, prompt: Prompt, response: str) -> tuple[str, list[int]]:
        """Cut the end off a response so that it fits into the context with the fast template.

        Args:
            prompt: What was asked; it is not cut.
            response: The response.

        Returns:
            As much of the beginning of ``response`` as fits, and the ids of the template filled in with it.

        Raises:
            ContextOverflowError: If the prompt alone leaves no room, or only white space of the response fits.
        """
        check_response(response)

        def ids_of(cut: str) -> list[int]:
            return self._ids("pointwise_fast", self.fillings("pointwise_fast", prompt, response=cut))

        ends = [end for _, end in self._tokenizer.encode(response, add_special_tokens=False).offsets]
        keep = len(ends)
        while keep > 0:
            cut = response[: ends[keep - 1]]
            ids = ids_of(cut)
            excess = len(ids) - self.manifest.limits.context
            if excess <= 0 and cut.strip():
                return cut, ids
            if not cut.strip():
                break  # a shorter cut is white space, too
            keep -= excess
        if len(ids_of("")) < self.manifest.limits.context:
            raise ContextOverflowError(
                "nothing but white space of the response fits; leave out the space before its text"
            )
        raise ContextOverflowError("the prompt alone fills the context; shorten it")

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of ``text`` as plain text. Whatever it spells, no control token is among them."""
        with as_ours(BundleError, "the bundle's tokenizer cannot encode a text"):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of trusted text (the fixed parts of a verdict); special tokens in it become their ids."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids.extend([piece] if isinstance(piece, int) else self.encode_text(piece))
        return ids

    def tokens_with(self, character: str) -> list[int]:
        """Return the ids of all tokens with which a certain character can end, in order.

        A character outside ASCII may be spread over several tokens; those with its last byte are among the ids then, so
        that a few ids too many may be returned, but none too few.
        """
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        last_byte = (byte_level.pre_tokenize_str(character)[-1][0][-1], f"<0x{character.encode()[-1]:02X}>")
        vocabulary = self._tokenizer.get_vocab().items()
        return sorted(token for text, token in vocabulary if any(c in text for c in (character, *last_byte)))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``, without control tokens."""
        with as_ours(BundleError, "the bundle's tokenizer cannot decode a text"):
            return self._tokenizer.decode(ids, skip_special_tokens=True)


def _joined(pieces: Iterable[int | str]) -> list[int | str]:
    """Return pieces with neighbouring texts joined: what stands between two special tokens is encoded as one string."""
    joined: list[int | str] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    return joined
