"""The state of the running texts as arrays, so that a step in which nothing happens touches no Python object per text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.slow.sampling import uniforms


class Streams:
    """One row per stream; the first ``live`` of them run.

    Attributes:
        index: int32 [streams], 0, 1, 2, ...
        token: int32 [streams], the newest token, which the next step reads.
        position: int32 [streams], where in the stream that token stands.
        wake: bool [vocabulary], tokens that need attention wherever they are drawn.
    """

    def __init__(self, streams: int, cells: int, vocab_size: int) -> None:
        """Make room for ``cells`` tokens per stream."""
        self.index = np.arange(streams, dtype=np.int32)
        self.token, self.position = np.zeros(streams, np.int32), np.zeros(streams, np.int32)
        self.wake = np.zeros(vocab_size, np.bool_)
        self._written, self._noise = np.zeros((streams, cells + 1), np.int32), np.zeros((streams, cells + 1))
        # The same numbers in one line, so that a single index per row finds a place: where its next token goes.
        self._written_flat, self._noise_flat = self._written.reshape(-1), self._noise.reshape(-1)
        self._first = np.arange(streams) * (cells + 1)
        self._place, self._watched = self._first.copy(), self._first.copy()

    def start(self, i: int, token: int, position: int, budget: int) -> None:
        """Begin a text on stream ``i``, watched from ``budget`` tokens on."""
        self.token[i], self.position[i], self._place[i] = token, position, self._first[i]
        self.watch(i, budget)

    def seed(self, started: list[int], keys: list[int], draws: int) -> None:
        """Fetch the random numbers of the first ``draws`` draws of texts just started: they depend on a text's key and nothing else."""
        self._noise[started, :draws] = uniforms(np.array(keys, np.uint64)[:, None], np.arange(draws))

    def watch(self, i: int, count: int) -> None:
        """Have every token of stream ``i`` looked at from the ``count``-th on."""
        self._watched[i] = self._first[i] + count

    def noise(self, live: int) -> NDArray[np.float64]:
        """Return the random number that each row's next token is drawn with, float64 [live]."""
        return self._noise_flat.take(self._place[:live])

    def write(self, live: int, drawn: NDArray[np.int64]) -> list[int]:
        """Append one token per row, and return the rows that need attention."""
        place = self._place[:live]
        self._written_flat[place] = drawn
        place += 1
        self.token[:live] = drawn
        self.position[:live] += 1
        attention = self.wake.take(drawn)
        attention |= place >= self._watched[:live]
        rows: list[int] = attention.nonzero()[0].tolist()
        return rows

    def count(self, i: int) -> int:
        """Return how many tokens are written on stream ``i``."""
        return int(self._place[i] - self._first[i])

    def written(self, i: int) -> NDArray[np.int32]:
        """Return the ids written on stream ``i`` so far."""
        return self._written[i, : self.count(i)]

    def unwrite(self, i: int) -> None:
        """Take the newest token of stream ``i`` back."""
        self._place[i] -= 1

    def move(self, source: int, target: int) -> None:
        """Move a row into the place of one that has ended."""
        for array in (self.token, self.position, self._noise, self._written):
            array[target] = array[source]
        for places in (self._place, self._watched):
            places[target] = places[source] - self._first[source] + self._first[target]
