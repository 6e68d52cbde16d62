"""Who computes first where the fast path and the judge are at work at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Precedence:
    """Lets the readings of a fast path go before the next step of a thought. Any thread may use it.

    A reading takes milliseconds, a thought hundreds of steps. Both want all cores: beside the steps of a thought, which
    lose little by waiting, a reading would take two to three times as long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readings = 0
        self._free = threading.Event()
        self._free.set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Go first until this block is left."""
        with self._lock:
            self._readings += 1
            self._free.clear()
        try:
            yield
        finally:
            with self._lock:
                self._readings -= 1
                if not self._readings:
                    self._free.set()

    def give_way(self, seconds: float) -> None:
        """Wait while something is being read, at most so long: thoughts get on even where readings never end."""
        self._free.wait(seconds)
