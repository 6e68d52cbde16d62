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
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from fsrm_lite.bundle.conversation import check_response, prompt_text
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import BundleError, ContextOverflowError
from fsrm_lite.types import Prompt

_SLOT = re.compile(r"\{(\w+)\}")


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
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception as error:  # tokenizers raises bare Exception on any malformed file
            raise BundleError(f"cannot read the tokenizer {tokenizer_path}: {error}") from error
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
        self._templates = {name: self._pieces(t.text) for name, t in manifest.templates.items()}
        self._refuse_undeclared()

    def _refuse_undeclared(self) -> None:
        """Raise a ``BundleError`` if a template spells a control token that ``special_tokens`` does not list.

        Such a token would be encoded as plain text.
        """
        added = [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.content.strip()]
        for name, template in self.manifest.templates.items():
            verdict = template.verdict
            forms = [template.text] + (
                [verdict.close + verdict.prefix + c + verdict.suffix for c in verdict.choices] if verdict else []
            )
            plain = [piece for form in forms for piece in self._pieces(form) if isinstance(piece, str)]
            undeclared = sorted(a for a in added if any(a in piece for piece in plain))
            if undeclared:
                raise BundleError(
                    f"template {name!r} spells {undeclared}, which special_tokens in fsrm.json does not list; "
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

    def _pieces(self, template: str) -> list[int | str]:
        """Split a template into ids of special tokens and runs of plain text, whose slots are not filled in yet."""
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
        """Return the ids of a template with its slots filled in.

        Args:
            name: A template of the manifest, for example ``"pointwise_fast"``.
            slots: The text for each slot. Whatever it spells, it stays text.

        Returns:
            Token ids, at most as many as the context holds.

        Raises:
            BundleError: If the bundle has no such template.
            ContextOverflowError: If the ids are more than the model's context holds.
        """
        ids = self._ids(name, slots)
        limit = self.manifest.limits.context
        if len(ids) > limit:
            raise ContextOverflowError(
                f"the rendered prompt has {len(ids)} tokens, the context holds {limit}; "
                "shorten it, or truncate the response"
            )
        return ids

    def _ids(self, name: str, slots: Mapping[str, str]) -> list[int]:
        """Return the ids of a template with its slots filled in, however many they are."""
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
        """Return the ids after which the fast model predicts the label of one response."""
        return self.render("pointwise_fast", {"prompt": prompt_text(prompt), "response": check_response(response)})

    def pointwise_slow(self, prompt: Prompt, response: str) -> list[int]:
        """Return the ids after which the judge thinks about one response."""
        return self.render("pointwise_slow", {"prompt": prompt_text(prompt), "response": check_response(response)})

    def pairwise_slow(self, prompt: Prompt, first: str, second: str) -> list[int]:
        """Return the ids after which the judge thinks about two responses, in the order given."""
        slots = {
            "prompt": prompt_text(prompt),
            "response_a": check_response(first),
            "response_b": check_response(second),
        }
        return self.render("pairwise_slow", slots)

    def solve(self, prompt: Prompt) -> list[int]:
        """Return the ids after which the model writes a response of its own, if the bundle has a template for that."""
        return self.render("solve", {"prompt": prompt_text(prompt)})

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
        slots = {"prompt": prompt_text(prompt), "response": check_response(response)}
        ends = [end for _, end in self._tokenizer.encode(response, add_special_tokens=False).offsets]
        keep = len(ends)
        while keep > 0:
            cut = response[: ends[keep - 1]]
            ids = self._ids("pointwise_fast", {**slots, "response": cut})
            excess = len(ids) - self.manifest.limits.context
            if excess <= 0 and cut.strip():
                return cut, ids
            keep -= max(1, excess)
        if len(self._ids("pointwise_fast", {**slots, "response": ""})) < self.manifest.limits.context:
            raise ContextOverflowError(
                "nothing but white space of the response fits; leave out the space before its text"
            )
        raise ContextOverflowError("the prompt alone fills the context; shorten it")

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of ``text`` as plain text. Whatever it spells, no control token is among them."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of trusted text (the fixed parts of a verdict); special tokens in it become their ids."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids.extend([piece] if isinstance(piece, int) else self.encode_text(piece))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``, without control tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)
