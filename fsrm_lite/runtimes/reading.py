"""What the fast path asks of a runtime: a *reader*, which says what a model would say first behind a text.

``fsrm_lite.runtimes.onnx.session`` and ``fsrm_lite.runtimes.llama.reader`` each have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import InputError

if TYPE_CHECKING:
    from fsrm_lite.runtimes.opening import EngineSource

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FastReading:
    """What the model would say first after one sequence.

    Attributes:
        label_logits: Raw logits of the labels, in the manifest's order; from a scalar head the reward alone.
        log_mass: logsumexp of the logits of the whole vocabulary; None from a scalar head.
        entropy: Entropy of the full first-token distribution, in nats; None from a scalar head.
        tokens_read: Tokens that were computed for this reading. A prefix that several sequences share counts for the
            first of them.
        tokens_shared: Tokens of the sequence that had been computed before, in this call or an earlier one.
        hidden: Hidden state of the last position behind the final norm, float32 [H]; None unless it was asked for.
    """

    label_logits: tuple[float, ...]
    log_mass: float | None
    entropy: float | None
    tokens_read: int
    tokens_shared: int
    hidden: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class FollowedText:
    """How a model followed one sequence: what it would say behind it, and how likely it found some of its tokens.

    Attributes:
        reading: The reading behind the last token, with its hidden state.
        log_p: Log-probability of each of the tokens, given those before it, in nats, float64 [n].
        best: Log-probability of the likeliest token in its place, float64 [n].
        entropy: Entropy of the distribution that each token was drawn from, in nats, float64 [n].
        intermediate: States of a layer in the middle of the model at each of the sequence's S positions, float32
            [S, H], with H for the model's width; None unless they were asked for.
    """

    reading: FastReading
    log_p: NDArray[np.float64]
    best: NDArray[np.float64]
    entropy: NDArray[np.float64]
    intermediate: NDArray[np.float32] | None = None


class Reader(Protocol):
    """One loaded model that reads sequences of tokens. Any thread may call it."""

    @property
    def opened(self) -> EngineSource | None:
        """The opened model, with which the judge may think as well; None if it cannot write."""

    def read(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Read the first-token distribution behind each sequence.

        Args:
            sequences: Token ids, any mix; none empty.
            hidden: Also return hidden states.

        Returns:
            One reading per sequence, in input order. The same call gives the same bits, whatever was read before.

        Raises:
            InputError: On an empty sequence or an id outside the vocabulary.
            BundleError: If hidden states are asked for, and the runtime gives none.
        """

    def follow(self, sequence: Sequence[int], start: int, end: int, *, intermediate: bool = False) -> FollowedText:
        """Read one sequence, and how likely the model finds its tokens from ``start`` to before ``end``.

        The sequence is read by itself, nothing of it is shared with others, and each of these tokens costs a product
        with the whole vocabulary.

        Args:
            sequence: Token ids.
            start: Position of the first of the tokens, at least 1.
            end: Position behind the last one, above ``start`` and at most the length of the sequence.
            intermediate: Also return the states of a layer in the middle.

        Raises:
            InputError: On an id outside the vocabulary, or positions out of range.
            BundleError: If the runtime does not give the logits of the vocabulary, or no states that are asked for.
        """

    def check(self, vocab_size: int, label_ids: Sequence[int], head: str = "vocabulary") -> None:
        """Refuse a manifest that does not describe this model: its scores would mean something else.

        Raises:
            BundleError: If the size of the vocabulary, the labels' ids, or the head differ.
        """

    def forget(self) -> None:
        """Forget what earlier calls left in memory, so that the next call counts what a new model would."""

    def close(self) -> None:
        """Finish what was asked, then free the model. Safe to repeat."""


class Distribution(NamedTuple):
    """What the logits of one position say; in double precision."""

    label_logits: tuple[float, ...]
    log_mass: float
    entropy: float


def read_distribution(logits: NDArray[np.float32], label_ids: Sequence[int]) -> Distribution:
    """Return the logits of some tokens, and log-mass and entropy of the whole distribution.

    Args:
        logits: Logits of one position, float32 [vocabulary].
        label_ids: The tokens.
    """
    values = logits.astype(np.float64)
    best = float(values.max())
    weights = np.exp(values - best)
    total = float(weights.sum())
    log_mass = best + float(np.log(total))
    return Distribution(
        tuple(values[list(label_ids)].tolist()), log_mass, log_mass - float((weights * values).sum()) / total
    )


def checked_ids(sequences: Sequence[Sequence[int]], vocab_size: int) -> list[Ids]:
    """Return sequences as plain integers.

    Raises:
        InputError: If one is empty, or holds an id outside the vocabulary; the message names its number.
    """
    checked = []
    for number, ids in enumerate(sequences):
        if not len(ids):
            raise InputError(f"sequence {number} is empty, expected at least one token id")
        out = tuple(int(i) for i in ids)
        if min(out) < 0 or max(out) >= vocab_size:
            bad = next(i for i in out if not 0 <= i < vocab_size)
            raise InputError(f"sequence {number} holds the id {bad}, outside the vocabulary of {vocab_size}")
        checked.append(out)
    return checked


def each_as_given(given: Sequence[Ids], distinct: Sequence[Ids], readings: Sequence[FastReading]) -> list[FastReading]:
    """Return one reading per given sequence; one that was given before has cost nothing.

    Args:
        given: The sequences of a call.
        distinct: The same, each once.
        readings: The readings of those.
    """
    found = dict(zip(distinct, readings, strict=True))
    seen: set[Ids] = set()
    out = []
    for ids in given:
        reading = found[ids]
        out.append(replace(reading, tokens_read=0, tokens_shared=len(ids)) if ids in seen else reading)
        seen.add(ids)
    return out
