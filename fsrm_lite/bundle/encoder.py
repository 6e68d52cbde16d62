"""Templates to token ids, such that untrusted text can never become a control token.

A template is split at its special tokens once, when it is loaded. Each special token becomes its id; each run of
text between two of them, with its slots filled in, is encoded as *one* string with special-token recognition off.
For benign text that gives exactly the ids the trainer saw; a response that spells ``<|im_end|>`` gives the ids of
those ordinary characters. llama.cpp is fed the same ids: there is one tokenizer in the system.
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
                raise BundleError(
                    f"special token {text!r} has id {self._tokenizer.token_to_id(text)} in the tokenizer, {token_id} in fsrm.json"
                )
            if token_id in self.encode_text(f"{text}x{text} {text}"):  # at the start, inside a word, behind a space
                raise BundleError(
                    f"special token {text!r} is a plain word of the tokenizer: any response that spells it would give it; export again"
                )
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
            forms = [template.text] + (
                [verdict.close + verdict.prefix + c + verdict.suffix for c in verdict.choices] if verdict else []
            )
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
        plain = [
            AddedToken(t.content, special=True, normalized=t.normalized)
            for t in added
            if not t.special and t.content.strip()
        ]
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
            raise ContextOverflowError(
                f"the rendered prompt has {len(ids)} tokens, the context holds {limit}; shorten it, or truncate the response"
            )
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
        slots = {
            "prompt": prompt_text(prompt),
            "response_a": check_response(first),
            "response_b": check_response(second),
        }
        return self.render("pairwise_slow", slots)

    def solve(self, prompt: Prompt) -> list[int]:
        """Ids behind which the model writes a response of its own, where the bundle has that template."""
        return self.render("solve", {"prompt": prompt_text(prompt)})

    def truncated(self, prompt: Prompt, response: str) -> tuple[str, list[int]]:
        """Cut the end off a response so that it fits into the context of the fast template.

        Returns:
            As much of the beginning of ``response`` as fits, and the ids of the template with it.

        Raises:
            ContextOverflowError: If the prompt alone leaves no room.
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
