"""The fast path as the scorer sees it.

A prompt and a response are checked and turned into token ids once. The fast model reads the ids and predicts the next
token, and from that prediction (a *reading*) comes the score. A model with a scalar head gives the score itself; a
model that reads pairs chooses one of two responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fsrm_lite.bundle.conversation import check_response, read_prompt
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import ContextOverflowError, InputError
from fsrm_lite.fast.readings import compare_orders, reward_score, score_of
from fsrm_lite.gate import Decision, Gate
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.onnx.graph_file import check_graph_file
from fsrm_lite.runtimes.opening import GGUF_SUFFIX, EngineSource, open_reader
from fsrm_lite.runtimes.precedence import Precedence
from fsrm_lite.runtimes.reading import FastReading, FollowedText, Reader
from fsrm_lite.types import Comparison, Prompt, Score


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response to a prompt, checked and turned into ids: what ``FastSlowRM.encode`` returns.

    It belongs to that prompt and to the model that made it, and is refused for any other.

    Attributes:
        prompt: What was asked, as ``fsrm_lite.bundle.conversation.read_prompt`` returns it.
        text: The response as it will be scored: cut at its end where that was asked for and needed.
        whole: The response as it was given. What it answers is looked for there: a cut text may have lost its end.
        ids: Token ids of the bundle's template for one response, with both filled in; empty where it reads pairs only.
        encoder: The encoder that made it.
    """

    prompt: Prompt
    text: str
    whole: str
    ids: tuple[int, ...]
    encoder: PromptEncoder = field(repr=False, compare=False)


def text_of(response: str | EncodedResponse) -> str:
    """Return a response as the text that was given."""
    return response.whole if isinstance(response, EncodedResponse) else response


class FastPath:
    """The fast half of a bundle, loaded. Any thread may call it."""

    def __init__(
        self,
        bundle: Bundle,
        encoder: PromptEncoder,
        *,
        threads: int | None,
        truncate: bool,
        apart: bool = False,
    ) -> None:
        """Load the fast model.

        Args:
            bundle: An open bundle.
            encoder: Its tokenizer and templates.
            threads: Compute threads; see the runtime's reader, ``FastModel`` or ``LlamaReader``.
            truncate: Cut the end off a response that is too long, instead of raising an error.
            apart: Read each response, or pair in one order, in a run of its own, so that its reading does not depend
                on its company.

        Raises:
            BundleError: If the fast file is missing, altered, unreadable, or not the one that the manifest describes.
            JudgeUnavailableError: If it is a GGUF file, and llama-cpp-python cannot be used here.
        """
        manifest = bundle.manifest
        self._encoder, self._truncate, self._apart = encoder, truncate, apart
        self._values = [label.value for label in manifest.labels]
        self._vocab_size = manifest.vocab_size
        self._name, self._scalar = manifest.name, manifest.head == "scalar"
        self.reads_responses = "pointwise_fast" in manifest.templates
        self.reads_pairs = "pairwise_fast" in manifest.templates
        path = bundle.path("fast")
        if path.suffix != GGUF_SUFFIX:
            check_graph_file(path, bundle.beside("fast_data"))
        self._model: Reader = open_reader(path, manifest.vocab_size, manifest.fast_label_ids, manifest.encoder, threads)
        self._model.check(manifest.vocab_size, manifest.fast_label_ids, manifest.head)
        self.precedence = Precedence()
        """Lets what is read here go before the next step of a thought."""

    @property
    def opened(self) -> EngineSource | None:
        """The opened model, with which the judge may think as well; None if it cannot write."""
        return self._model.opened

    @property
    def follows(self) -> bool:
        """Whether ``follow`` can say how likely the model finds a text: with a fast graph that can write."""
        return isinstance(self.opened, Graph) and self.opened.can_write

    @property
    def gives_intermediate(self) -> bool:
        """Whether ``follow`` gives the states of a layer in the middle of the model too."""
        return isinstance(self.opened, Graph) and self.opened.gives_intermediate

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
        if not self.reads_responses:
            return EncodedResponse(read_prompt(prompt), check_response(response), response, (), self._encoder)
        try:
            text, ids = response, self._encoder.pointwise_fast(prompt, response)
        except ContextOverflowError:
            if not self._truncate:
                raise
            text, ids = self._encoder.truncated(prompt, response)
        return EncodedResponse(read_prompt(prompt), text, response, tuple(ids), self._encoder)

    def read(self, items: Sequence[EncodedResponse], temperature: float) -> list[Score]:
        """Return the fast scores, in input order. Responses to one prompt share the work of reading it.

        Args:
            items: Any number of responses, to any mix of prompts.
            temperature: The gate's temperature; see ``score_of``.

        Returns:
            One score per item.

        Raises:
            InputError: If the model reads pairs only.
        """
        if not self.reads_responses:
            raise InputError(
                f"the model {self._name!r} reads pairs of responses and gives no score to a single one; "
                "call compare for two responses, best_of_n for several"
            )
        readings = self._read([item.ids for item in items])
        if self._scalar:
            return [reward_score(r.label_logits[0], temperature, r.tokens_read) for r in readings]
        readings = [replace(r, label_logits=r.label_logits[: len(self._values)]) for r in readings]
        return [score_of(reading, self._values, self._vocab_size, temperature) for reading in readings]

    def check_pair(self, first: EncodedResponse, second: EncodedResponse) -> None:
        """Refuse a pair that is too long to be read, before any pair is.

        Raises:
            ContextOverflowError: If it does not fit into the context in one of its orders.
        """
        self._encoder.pairwise_fast(first.prompt, first.text, second.text)
        self._encoder.pairwise_fast(first.prompt, second.text, first.text)

    def pair_fits(self, first: EncodedResponse, second: EncodedResponse) -> bool:
        """Return whether a pair can be read, in both of its orders."""
        try:
            self.check_pair(first, second)
        except ContextOverflowError:
            return False
        return True

    def unpaired(self, responses: Mapping[int, EncodedResponse]) -> dict[int, ContextOverflowError]:
        """Return which responses to a prompt are too long to be read beside the shortest of them, and why.

        The shortest one is itself too long if the context does not hold it twice.

        Args:
            responses: The responses by number; a single one has nothing to be read beside.
        """
        found = {}
        if len(responses) > 1:
            shortest = min(responses.values(), key=lambda response: len(response.text))
            for i, response in responses.items():
                try:
                    self.check_pair(response, shortest)
                except ContextOverflowError as error:
                    found[i] = error
        return found

    def compare(
        self, pairs: Sequence[tuple[EncodedResponse, EncodedResponse]], gate: Gate
    ) -> list[tuple[Comparison, Decision]]:
        """Read pairs with the template ``pairwise_fast``, each in both orders, and compare their responses.

        Args:
            pairs: Any number of pairs; the two responses of each answer the same prompt.
            gate: Decides which of them are worth slow thinking.

        Returns:
            For each pair, in order, the fast comparison and what the gate decided about it.

        Raises:
            ContextOverflowError: If a pair does not fit into the context; the error names its position.
        """
        rows: list[list[int]] = []
        for i, (first, second) in enumerate(pairs):
            try:
                rows.append(self._encoder.pairwise_fast(first.prompt, first.text, second.text))
                rows.append(self._encoder.pairwise_fast(first.prompt, second.text, first.text))
            except ContextOverflowError as error:
                raise ContextOverflowError(f"item {i}: {error}") from error
        readings = self._read(rows)
        choices = [replace(r, label_logits=r.label_logits[len(self._values) :]) for r in readings]
        return [
            compare_orders(forward, swapped, gate, self._vocab_size)
            for forward, swapped in zip(choices[0::2], choices[1::2], strict=True)
        ]

    def _read(self, rows: Sequence[Sequence[int]]) -> list[FastReading]:
        """Return one reading per row: of all rows together, or of each apart from the others."""
        calls = [[row] for row in rows] if self._apart else [rows] if rows else []
        with self.precedence.reading():
            return [reading for call in calls for reading in self._model.read(call)]

    def readings(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Return the runtime's own readings, for a critic that uses hidden states; see ``Reader.read``."""
        with self.precedence.reading():
            return self._model.read(sequences, hidden=hidden)

    def follow(self, sequence: Sequence[int], start: int, end: int, *, intermediate: bool = False) -> FollowedText:
        """Return how likely the model finds some tokens of a sequence, for a critic; see ``Reader.follow``."""
        with self.precedence.reading():
            return self._model.follow(sequence, start, end, intermediate=intermediate)

    def forget(self) -> None:
        """Forget what earlier calls left in memory; see ``Reader.forget``."""
        self._model.forget()

    def close(self) -> None:
        """Free the model. Safe to repeat."""
        self._model.close()
