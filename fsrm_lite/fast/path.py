"""The fast path as the scorer sees it: a text is checked, cut and turned into ids once; its ids are read into a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.fast.readings import score_of
from fsrm_lite.runtimes.onnx.session import FastModel, FastReading
from fsrm_lite.types import Prompt, Score


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response to a prompt, ready to be read.

    Attributes:
        prompt: What was asked, as it was given.
        text: The response as it will be scored: cut at its end where that was asked for and needed.
        ids: Token ids of both in the bundle's fast template.
    """

    prompt: Prompt
    text: str
    ids: tuple[int, ...]


class FastPath:
    """The fast half of a bundle, loaded. Any thread may call it."""

    def __init__(self, bundle: Bundle, encoder: PromptEncoder, *, threads: int | None, truncate: bool) -> None:
        """Load the fast model.

        Args:
            bundle: An open bundle.
            encoder: Its tokenizer and templates.
            threads: See ``FastModel``.
            truncate: Cut the end off a response that is too long, instead of raising.

        Raises:
            BundleError: If the fast file is missing, altered, unreadable, or not the one that the manifest describes.
        """
        manifest = bundle.manifest
        self._encoder, self._truncate = encoder, truncate
        self._values = [label.value for label in manifest.labels]
        self._vocab_size = manifest.vocab_size
        self._model = FastModel(bundle.path("fast"), threads=threads)
        self._model.check(manifest.vocab_size, [label.id for label in manifest.labels])

    def encode(self, prompt: Prompt, response: str) -> EncodedResponse:
        """Check one prompt and response and turn them into ids.

        Raises:
            InputError: If a text is unusable.
            ContextOverflowError: If it does not fit, and ``truncate`` is off or the prompt alone fills the context.
        """
        try:
            return EncodedResponse(prompt, response, tuple(self._encoder.pointwise_fast(prompt, response)))
        except ContextOverflowError:
            if not self._truncate:
                raise
        text, ids = self._encoder.truncated(prompt, response)
        return EncodedResponse(prompt, text, tuple(ids))

    def read(self, items: Sequence[EncodedResponse], temperature: float) -> list[Score]:
        """Return the fast scores, in input order; candidates of one prompt share its computation.

        Args:
            items: Any number, of any mix of prompts.
            temperature: Of the gate; see ``score_of``.
        """
        readings = self._model.read([item.ids for item in items]) if items else []
        return [score_of(reading, self._values, self._vocab_size, temperature) for reading in readings]

    def readings(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Return the runtime's own readings, for a critic that looks at hidden states; see ``FastModel.read``."""
        return self._model.read(sequences, hidden=hidden)

    def close(self) -> None:
        """Release the model. Safe to repeat."""
        self._model.close()
