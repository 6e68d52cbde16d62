"""What a fitted critic reads of a response: the numbers that its head takes, made by the fast model.

There are three kinds, the ``INPUTS``:

- ``hidden``: the last hidden state, the vector from which the model computes the logits of its first output token. It
  costs no more than a score.
- ``likelihood``: behind it six numbers that say how likely the model finds the response. A model that could have
  written a right solution finds a wrong step unlikely.
- ``pooled``: in place of the last hidden state, states of a layer at 0.7 of the model's depth: their mean from the
  question's first token up to the response, their mean over the response, and the one of the response's last token. The
  same six numbers follow. It was the best of the three on published solutions with a real model (benchmarks/NOTES.md).

For the last two each response is read by itself, and the model's vocabulary head is computed for each of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.batches import each_or_none
from fsrm_lite.checks import expect_one_of
from fsrm_lite.errors import BundleError, InputError

if TYPE_CHECKING:
    from fsrm_lite.runtimes.reading import FastReading
    from fsrm_lite.scorer import FastSlowRM

Inputs: TypeAlias = Literal["hidden", "likelihood", "pooled"]
"""What a head can read; see the top of this module."""

INPUTS: tuple[Inputs, ...] = get_args(Inputs)

LIKELIHOOD_STATISTICS = ("total", "lowest_3", "lowest_8", "entropy", "likeliest", "log_tokens")
"""What ``likelihood`` and ``pooled`` say of a response at their end, in this order; see ``likelihood_statistics``."""

PROBES = ("a", "1")
"""Two texts that have no token in common."""

READ_AT_ONCE = 64
"""Responses per call of the fast model. It limits the memory that hidden states take."""


@dataclass(frozen=True, slots=True)
class ReadResponse:
    """What was read of one response.

    Attributes:
        reading: The model's reading behind it, with the last hidden state.
        numbers: What the head takes, float32 [F]. With H for the width of the model, F is H for ``hidden``, H + 6 for
            ``likelihood``, and 3 H + 6 for ``pooled``.
    """

    reading: FastReading
    numbers: NDArray[np.float32]


class ResponseReader(Protocol):
    """Reads responses for a head."""

    def read(self, items: Sequence[tuple[str, str]]) -> list[ReadResponse | None]:
        """Return what was read of each (question, response), in order.

        Where the text cannot be read (it is empty, too long or not valid text) there is None instead.
        """
        ...


def reader_of(model: FastSlowRM, inputs: str) -> ResponseReader:
    """Return the reader for one of ``INPUTS``.

    Raises:
        InputError: If there is no such reader.
        BundleError: If the model cannot give what it reads.
    """
    expect_one_of(INPUTS, "inputs", inputs)
    return HiddenReader(model) if inputs == "hidden" else FollowingReader(model, pooled=inputs == "pooled")


class HiddenReader:
    """Reads many responses at once, and keeps the last hidden state of each."""

    def __init__(self, model: FastSlowRM) -> None:
        """Use a loaded model's fast path and its prompt for a single response."""
        self._fast = model.fast
        self._encoder = model.encoder

    def read(self, items: Sequence[tuple[str, str]]) -> list[ReadResponse | None]:
        """Return what was read of each (question, response); see ``ResponseReader``."""
        encoded = each_or_none(lambda part: [self._encoder.pointwise_fast(*item) for item in part], items, InputError)
        where = [i for i, ids in enumerate(encoded) if ids is not None]
        sequences = [ids for ids in encoded if ids is not None]
        found: list[ReadResponse | None] = [None] * len(items)
        for start in range(0, len(where), READ_AT_ONCE):
            readings = self._fast.readings(sequences[start : start + READ_AT_ONCE], hidden=True)
            for i, reading in zip(where[start : start + READ_AT_ONCE], readings, strict=True):
                assert reading.hidden is not None
                found[i] = ReadResponse(reading, reading.hidden)
        return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question and a response stand: from ``first`` to before ``start``, and from there to before ``end``."""

    ids: Sequence[int]
    first: int
    start: int
    end: int


class FollowingReader:
    """Follows each response token by token: how likely the model finds it, and what its states are on the way."""

    def __init__(self, model: FastSlowRM, *, pooled: bool) -> None:
        """Use a loaded model's fast path and its prompt for a single response.

        Args:
            model: A loaded reward model.
            pooled: Whether the numbers begin with the states of the middle; else with the last hidden state.

        Raises:
            BundleError: If the model's fast graph does not give what is needed.
        """
        name = model.bundle.manifest.name
        if not model.fast.follows:
            raise BundleError(
                f"{name!r} does not give the logits of its vocabulary, which the likelihood of a response needs: it "
                "has a scalar head, or is an encoder or a GGUF file, or was exported by an older version. If the last, "
                "export its checkpoint again; if not, take another model, or a head on the hidden state alone"
            )
        if pooled and not model.fast.gives_intermediate:
            raise BundleError(
                f"the fast graph of {name!r} does not give the states of a layer in its middle, which 'pooled' needs; "
                "export it again (a model of one layer has none), or fit a critic with the inputs 'likelihood'"
            )
        self._fast = model.fast
        self._encoder = model.encoder
        self._pooled = pooled

    def read(self, items: Sequence[tuple[str, str]]) -> list[ReadResponse | None]:
        """Return what was read of each (question, response); see ``ResponseReader``."""
        places = each_or_none(lambda part: [self._place(*item) for item in part], items, InputError)
        return [None if place is None else self._read(place) for place in places]

    def _place(self, question: str, response: str) -> _Place:
        """Return the ids of a prompt, and where question and response stand in it."""
        ids = self._encoder.pointwise_fast(question, response)
        # What all questions share at the beginning is not the question's, and what all responses to it share at both
        # ends is not the response's. The two probes begin and end unlike.
        first = _common(*(self._encoder.pointwise_fast(probe, response) for probe in PROBES))
        one, other = (self._encoder.pointwise_fast(question, probe) for probe in PROBES)
        start = max(1, _common(one, other))
        end = max(start + 1, len(ids) - _common(one[::-1], other[::-1]))
        return _Place(ids, min(first, start - 1), start, end)

    def _read(self, place: _Place) -> ReadResponse:
        found = self._fast.follow(place.ids, place.start, place.end, intermediate=self._pooled)
        reading, states = found.reading, found.intermediate
        assert reading.hidden is not None
        vectors = [reading.hidden]
        if states is not None:
            question, response = states[place.first : place.start], states[place.start : place.end]
            vectors = [question.mean(axis=0), response.mean(axis=0), response[-1]]
        statistics = likelihood_statistics(found.log_p, found.best, found.entropy)
        return ReadResponse(reading, np.concatenate([*vectors, statistics]))


def likelihood_statistics(
    log_p: NDArray[np.float64], best: NDArray[np.float64], entropy: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return how likely a model finds a text, in few numbers.

    Args:
        log_p: Log-probability of each token, in nats, shape [n], n at least 1.
        best: That of the likeliest token in its place, shape [n].
        entropy: Entropy of each token's distribution, in nats, shape [n].

    Returns:
        float32, one number for each of ``LIKELIHOOD_STATISTICS``: the sum of the log-probabilities, the mean of the 3
        and of the 8 lowest, the mean entropy, the share of tokens that were the likeliest, and the log of their number.
    """
    lowest = np.sort(log_p)
    numbers = (
        log_p.sum(),
        lowest[:3].mean(),
        lowest[:8].mean(),
        entropy.mean(),
        (log_p >= best).mean(),
        np.log(len(log_p)),
    )
    return np.array(numbers, dtype=np.float32)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences share at their beginning."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
