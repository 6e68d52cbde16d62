"""The fast path as the scorer sees it.

A prompt and a response are checked and turned into token ids once. The fast model reads the ids and predicts the next
token, and from that prediction (a *reading*) comes the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.fast.readings import score_of
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.onnx.session import FastModel, FastReading
from fsrm_lite.types import Prompt, Score


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response to a prompt, checked and turned into ids: what ``FastSlowRM.encode`` returns.

    It belongs to that prompt and to the model that made it, and is refused for any other.

    Attributes:
        prompt: What was asked, as the text that fills the template.
        text: The response as it will be scored: cut at its end where that was asked for and needed.
        ids: Token ids of the bundle's fast template, with both filled in.
        encoder: The encoder that made it.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    encoder: PromptEncoder = field(repr=False, compare=False)


class FastPath:
    """The fast half of a bundle, loaded. Any thread may call it."""

    def __init__(self, bundle: Bundle, encoder: PromptEncoder, *, threads: int | None, truncate: bool) -> None:
        """Load the fast model.

        Args:
            bundle: An open bundle.
            encoder: Its tokenizer and templates.
            threads: See ``FastModel``.
            truncate: Cut the end off a response that is too long, instead of raising an error.

        Raises:
            BundleError: If the fast file is missing, altered, unreadable, or not the one that the manifest describes.
        """
        manifest = bundle.manifest
        self._encoder, self._truncate = encoder, truncate
        self._values = [label.value for label in manifest.labels]
        self._vocab_size = manifest.vocab_size
        self._model = FastModel(bundle.path("fast"), threads=threads)
        self._model.check(manifest.vocab_size, [label.id for label in manifest.labels])

    @property
    def graph(self) -> Graph:
        """The opened graph, with which the judge may think as well."""
        return self._model.graph

    def encode(self, prompt: Prompt, response: str) -> EncodedResponse:
        """Check a prompt and a response and turn them into ids.

        Args:
            prompt: What was asked.
            response: The response.

        Returns:
            The response with its ids.

        Raises:
            InputError: If a text is unusable.
            ContextOverflowError: If both do not fit into the context, and ``truncate`` is off or the prompt alone is
                too long.
        """
        try:
            text, ids = response, self._encoder.pointwise_fast(prompt, response)
        except ContextOverflowError:
            if not self._truncate:
                raise
            text, ids = self._encoder.truncated(prompt, response)
        return EncodedResponse(prompt_text(prompt), text, tuple(ids), self._encoder)

    def read(self, items: Sequence[EncodedResponse], temperature: float) -> list[Score]:
        """Return the fast scores, in input order. Responses to one prompt share the work of reading it.

        Args:
            items: Any number of responses, to any mix of prompts.
            temperature: The gate's temperature; see ``score_of``.

        Returns:
            One score per item.
        """
        readings = self._model.read([item.ids for item in items]) if items else []
        return [score_of(reading, self._values, self._vocab_size, temperature) for reading in readings]

    def readings(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Return the runtime's own readings, for a critic that uses hidden states; see ``FastModel.read``."""
        return self._model.read(sequences, hidden=hidden)

    def forget(self) -> None:
        """Forget what earlier calls left in memory; see ``FastModel.forget``."""
        self._model.forget()

    def close(self) -> None:
        """Free the model. Safe to repeat."""
        self._model.close()
