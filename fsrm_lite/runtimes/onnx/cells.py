"""Which cells of a pool hold the tokens of each stream; no model is in here.

A *pool* is memory for the keys and values of many tokens, one *cell* per token. The tokens of a stream lie in *runs* of
neighbouring cells. A stream that is copied shares the runs of the other one; what either adds afterwards goes to a run
of its own. Runs are short, so that the pool is little larger than what the streams hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RUN_CELLS = 256
"""Cells of a run: a whole number of the tiles that attention goes through."""


@dataclass(slots=True, eq=False)
class _Run:
    """Neighbouring cells, from ``start`` up to ``end``; each stream in ``held`` has so many of them, from the start."""

    start: int
    end: int
    held: dict[int, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """How many of its cells any stream has."""
        return max(self.held.values(), default=0)


class Cells:
    """Gives cells to streams.

    Attributes:
        size: Cells that the pool must have; it never falls.
        lengths: int32 [streams], how many tokens each stream has.
    """

    def __init__(self, streams: int, cells: int) -> None:
        """Begin with empty streams, each of which may come to hold ``cells`` tokens."""
        self.size = 0
        self.lengths = np.zeros(streams, np.int32)
        self._cells = cells
        self._of: list[list[_Run]] = [[] for _ in range(streams)]
        self._runs: list[_Run] = []  # in the order of their cells

    def add(self, stream: int, count: int) -> NDArray[np.int64]:
        """Return cells for ``count`` more tokens at the end of a stream, int64 [count]."""
        runs, parts = self._of[stream], []
        left = count
        while left:
            last = runs[-1] if runs else None
            mine = last.held[stream] if last is not None else 0
            if last is None or mine < last.used or last.start + mine == last.end:
                last, mine = self._new_run(stream, min(RUN_CELLS, self._cells - int(self.lengths[stream]))), 0
                runs.append(last)
            taken = min(left, last.end - last.start - mine)
            parts.append(np.arange(last.start + mine, last.start + mine + taken, dtype=np.int64))
            last.held[stream] = mine + taken
            self.lengths[stream] += taken
            left -= taken
        return np.concatenate(parts)

    def segments(self, stream: int, length: int) -> list[tuple[int, int]]:
        """Return the cells of the first ``length`` tokens of a stream: stretches from a first up to a last one."""
        found = []
        for run in self._of[stream]:
            taken = min(run.held[stream], length)
            if taken:
                found.append((run.start, run.start + taken))
            length -= taken
        return found

    def copy(self, source: int, target: int, length: int) -> None:
        """Let ``target`` hold the first ``length`` tokens of ``source``."""
        if source == target:
            return self.cut(target, length)
        self.cut(target, 0)
        self.lengths[target] = length
        for run in self._of[source]:
            if length:
                run.held[target] = min(run.held[source], length)
                self._of[target].append(run)
                length -= run.held[target]
        return None

    def cut(self, stream: int, length: int) -> None:
        """Take the tokens of a stream from position ``length`` on away."""
        runs = self._of[stream]
        left = sum(run.held[stream] for run in runs)  # what an interrupted ``add`` left, too
        self.lengths[stream] = min(left, length)
        while left > length:
            run = runs[-1]
            kept = max(0, run.held[stream] - (left - length))
            left -= run.held[stream] - kept
            if kept:
                run.held[stream] = kept
                continue
            del run.held[stream]
            runs.pop()
            if not run.held:
                self._runs.remove(run)

    def _new_run(self, stream: int, count: int) -> _Run:
        """Return a run of ``count`` cells for a stream: in the first gap that is large enough, or behind all others."""
        starts = [0, *(run.end for run in self._runs)]
        ends = [*(run.start for run in self._runs), starts[-1] + count]
        gaps = enumerate(zip(starts, ends, strict=True))
        place, start = next((i, first) for i, (first, last) in gaps if last - first >= count)
        made = _Run(start, start + count, {stream: 0})
        self._runs.insert(place, made)
        self.size = max(self.size, made.end)
        return made
