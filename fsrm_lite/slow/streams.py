"""The state of the texts that are being written, as arrays.

A *stream* is one sequence of tokens in an engine, on which one text is written at a time. With the state in arrays, a
step in which nothing but the next tokens happens touches no Python object per text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.slow.sampling import uniforms


class Streams:
    """The state of all streams, one row each. The running texts are in the first rows.

    Attributes:
        index: int32 [streams], the numbers 0, 1, 2, ...
        token: int32 [streams], the newest token of each stream, which the next step computes.
        position: int32 [streams], the position of that token in its stream.
        wake: bool [vocabulary], the tokens at which the scheduler must look whenever one is drawn.
    """

    def __init__(self, streams: int, cells: int, vocab_size: int) -> None:
        """Make room for ``cells`` tokens per stream."""
        self.index = np.arange(streams, dtype=np.int32)
        self.token, self.position = np.zeros(streams, np.int32), np.zeros(streams, np.int32)
        self.wake = np.zeros(vocab_size, np.bool_)
        self._written, self._noise = np.zeros((streams, cells + 1), np.int32), np.zeros((streams, cells + 1))
        # The same arrays seen as flat ones: a single index per stream then says where its next token goes.
        self._written_flat, self._noise_flat = self._written.reshape(-1), self._noise.reshape(-1)
        self._first = np.arange(streams) * (cells + 1)
        self._place, self._watched = self._first.copy(), self._first.copy()

    def start(self, i: int, token: int, position: int, budget: int) -> None:
        """Begin a text on stream ``i``.

        Args:
            i: The stream.
            token: The last token of the prompt.
            position: Its position in the stream.
            budget: From this many written tokens on, the scheduler looks at every token of the stream.
        """
        self.token[i], self.position[i], self._place[i] = token, position, self._first[i]
        self.watch(i, budget)

    def seed(self, started: list[int], keys: list[int], draws: int) -> None:
        """Fill in the random numbers for the first draws of texts that were just started.

        Args:
            started: Their streams.
            keys: The key of each text, on which alone its numbers depend.
            draws: How many numbers to fill in.
        """
        self._noise[started, :draws] = uniforms(np.array(keys, np.uint64)[:, None], np.arange(draws))

    def watch(self, i: int, count: int) -> None:
        """Let the scheduler look at every token of stream ``i`` once ``count`` tokens are written."""
        self._watched[i] = self._first[i] + count

    def noise(self, live: int) -> NDArray[np.float64]:
        """Return the random numbers with which the next token of each running text is drawn, float64 [live]."""
        return self._noise_flat.take(self._place[:live])

    def write(self, live: int, drawn: NDArray[np.int64]) -> list[int]:
        """Append one token to each running text, and return the streams at which the scheduler must look."""
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
        """Return the ids written on stream ``i`` so far. It is a view."""
        return self._written[i, : self.count(i)]

    def unwrite(self, i: int) -> None:
        """Remove the newest token of stream ``i``."""
        self._place[i] -= 1

    def move(self, source: int, target: int) -> None:
        """Move the text of stream ``source`` to stream ``target``, whose own text has ended."""
        for array in (self.token, self.position, self._noise, self._written):
            array[target] = array[source]
        for places in (self._place, self._watched):
            places[target] = places[source] - self._first[source] + self._first[target]
