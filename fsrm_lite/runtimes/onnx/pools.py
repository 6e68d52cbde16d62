"""Two ways to keep the keys and values of many streams while the graph writes.

``CellPool`` leaves them where they are: the compiled operators write new ones into their cells and attend to a stream's
own cells only. ``JoinedPool`` does without these operators, for graphs of before and for machines without a compiler:
all cells are joined with the new ones in every run, and a bias hides what is not a stream's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.runtimes.onnx.cells import Cells
from fsrm_lite.runtimes.onnx.graph import Graph, value
from fsrm_lite.runtimes.onnx.packing import MASKED

_WASTE = 4  # a joined pool is tidied up when one cell in so many belongs to no stream any more
_GROWTH = 1.25  # a pool of cells that has become too small grows at least by this factor
_FEW = 32  # tokens of one stream that are written into their cells at once; more are read as a prompt is

Ints = NDArray[np.int32]


class Pool(Protocol):
    """The keys and values of streams.

    Attributes:
        lengths: int32 [streams], how many tokens each stream has.
    """

    lengths: Ints

    def compute(
        self,
        tokens: Ints,
        positions: Ints,
        streams: Ints,
        rows: Sequence[int],
        options: Any,  # noqa: ANN401 - a RunOptions
    ) -> NDArray[np.float32]:
        """Add tokens to the ends of streams; if that fails, no stream has any of them.

        Returns:
            The logits behind those tokens that ``rows`` numbers, float32 [rows, vocabulary].
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Let ``target`` hold the first ``length`` tokens of ``source``."""

    def cut(self, stream: int, length: int) -> None:
        """Take the tokens of a stream from position ``length`` on away."""


def _run(
    graph: Graph,
    tokens: Ints,
    positions: Ints,
    bias: NDArray[np.float32],
    past: Sequence[Any],
    rows: Sequence[int],
    options: Any,  # noqa: ANN401
) -> tuple[list[Any], NDArray[np.float32]]:
    """Compute tokens behind a past; returns the present keys and values, and the logits behind ``rows``."""
    present = graph.run(
        [*graph.present_names, *(["logits"] if rows else [])],
        ids=tokens,
        positions=positions,
        bias=bias,
        past=past,
        wanted=rows or (0,),
        head_rows=range(len(rows)),
        distribution=False,
        options=options,
    )
    logits = present.pop().numpy() if rows else np.zeros((0, graph.vocab_size), np.float32)
    return present, logits


class CellPool:
    """Keys and values that stay in their cells. The arrays grow as cells come to be needed."""

    def __init__(self, graph: Graph, streams: int, cells: int) -> None:
        self._graph = graph
        self._cells = Cells(streams, cells)
        self.lengths = self._cells.lengths
        self._arrays: list[NDArray[Any]] = []
        self._values: list[Any] = []

    def compute(
        self,
        tokens: Ints,
        positions: Ints,
        streams: Ints,
        rows: Sequence[int],
        options: Any,  # noqa: ANN401
    ) -> NDArray[np.float32]:
        """See ``Pool``. Many tokens of one stream are read as a prompt is, all others written into their cells."""
        few = np.bincount(streams)[streams] <= _FEW
        before = self.lengths.copy()
        try:
            if few.all():
                return self._write(tokens, positions, streams, rows, options)
            parts = [(self._write, np.flatnonzero(few))] if few.any() else []
            parts += [(self._read, np.flatnonzero(streams == stream)) for stream in np.unique(streams[~few])]
            logits = np.empty((len(rows), self._graph.vocab_size), np.float32)
            for compute, part in parts:
                wanted = np.flatnonzero(np.isin(part, rows)).tolist()
                logits[np.isin(rows, part)] = compute(tokens[part], positions[part], streams[part], wanted, options)
            return logits
        except BaseException:
            for stream in np.unique(streams).tolist():
                self._cells.cut(stream, int(before[stream]))
            raise

    def _write(
        self,
        tokens: Ints,
        positions: Ints,
        streams: Ints,
        rows: Sequence[int],
        options: Any,  # noqa: ANN401
    ) -> NDArray[np.float32]:
        """Compute tokens in their cells."""
        owners = streams.tolist()
        cells = np.concatenate([self._cells.add(stream, 1) for stream in owners])
        self._make_room()
        seen = [self._cells.segments(s, p + 1) for s, p in zip(owners, positions.tolist(), strict=True)]
        segments = np.zeros((len(tokens), max(map(len, seen)), 2), np.int64)
        for row, parts in zip(segments, seen, strict=True):
            row[: len(parts)] = parts
        return self._graph.write(
            self._values,
            ids=tokens,
            positions=positions,
            cells=cells,
            segments=segments,
            rows=rows,
            options=options,
        )

    def _read(
        self,
        tokens: Ints,
        positions: Ints,
        streams: Ints,
        rows: Sequence[int],
        options: Any,  # noqa: ANN401
    ) -> NDArray[np.float32]:
        """Compute tokens of one stream behind those it has, as a prompt is read, and put them into their cells."""
        graph, stream, start, count = self._graph, int(streams[0]), int(positions[0]), len(tokens)
        held = self._cells.segments(stream, start)
        past = graph.empty
        if held:
            past = [
                value(np.concatenate([array[_along(axis, first, last)] for first, last in held], axis))
                for array, axis in zip(self._arrays, graph.token_axes, strict=True)
            ]
        bias = np.zeros((count, start + count), np.float32)
        bias[:, start:] = np.where(np.tri(count, dtype=bool), np.float32(0.0), np.float32(MASKED))
        present, logits = _run(graph, tokens, positions, bias, past, rows, options)
        cells = self._cells.add(stream, count)
        self._make_room()
        for array, made, axis in zip(self._arrays, present, graph.token_axes, strict=True):
            array[_along(axis, cells)] = made.numpy()[_along(axis, start, start + count)]
        return logits

    def _make_room(self) -> None:
        """Enlarge the arrays of the pool where its cells have become more than they hold."""
        axes, needed = self._graph.token_axes, self._cells.size
        held = [array.shape[axis] for array, axis in zip(self._arrays, axes, strict=False)]
        if len(held) == len(axes) and needed <= min(held) == max(held):
            return
        size = max([needed, int(_GROWTH * min(held, default=0)), *held])
        # One after another, so that only one of them is in memory twice. If that fails, the next call goes on with it.
        for i, (empty, axis) in enumerate(zip(self._graph.empty, axes, strict=True)):
            shape = list(empty.shape())
            shape[axis] = size
            # The values of one cell lie side by side, also where the graph that reads has its tokens as the last axis.
            last = axis == len(shape) - 1
            memory = np.zeros([*shape[:-2], shape[-1], shape[-2]] if last else shape, empty.numpy().dtype)
            array = memory.swapaxes(-1, -2) if last else memory
            if i < len(held):
                array[_along(axis, 0, held[i])] = self._arrays[i]
            self._arrays[i : i + 1] = [array]
            self._values[i : i + 1] = [value(memory.reshape(shape))]

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``Pool``."""
        self._cells.copy(source, target, length)

    def cut(self, stream: int, length: int) -> None:
        """See ``Pool``."""
        self._cells.cut(stream, length)


def _along(axis: int, *where: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return an index that takes places of one axis: an array of them, or those from a first up to a last."""
    return (*[slice(None)] * axis, where[0] if len(where) == 1 else slice(*where))


class JoinedPool:
    """Keys and values that are joined with the new ones in every run. Streams that begin alike share cells."""

    def __init__(self, graph: Graph, streams: int, cells: int) -> None:
        self._graph = graph
        self._joined, self._size = list(graph.empty), 0
        self._dropped = 0  # cells that streams have let go since the pool was tidied up
        self._places = np.zeros((streams, cells), np.int32)  # which cell holds a token of a stream
        self.lengths = np.zeros(streams, np.int32)
        self._bias = np.full((streams, 1024), MASKED, np.float32)  # of streams towards cells

    def compute(
        self,
        tokens: Ints,
        positions: Ints,
        streams: Ints,
        rows: Sequence[int],
        options: Any,  # noqa: ANN401
    ) -> NDArray[np.float32]:
        """See ``Pool``."""
        self._tidy_up()
        count, graph = len(tokens), self._graph
        seen = self._seen(streams)
        # A few streams need few cells of a large pool: these are copied together, which costs less than attending to
        # all others with their weights at zero.
        apart = 2 * len(seen) <= self._size
        past = [value(kept.numpy().take(seen, axis)) for kept, axis in self._cells()] if apart else self._joined
        width = len(seen) if apart else self._size
        bias = np.empty((count, width + count), np.float32)
        held = self._bias[streams, : self._size]
        bias[:, :width] = held.take(seen, axis=1) if apart else held
        new = (streams[:, None] == streams) & (np.arange(count)[:, None] >= np.arange(count))
        bias[:, width:] = np.where(new, np.float32(0.0), np.float32(MASKED))
        present, logits = _run(graph, tokens, positions, bias, past, rows, options)
        if apart and self._size:
            present = [
                value(np.concatenate([kept.numpy(), made.numpy().take(range(width, width + count), axis)], axis))
                for (kept, axis), made in zip(self._cells(), present, strict=True)
            ]
        self._joined = present
        self._add(positions, streams)
        return logits

    def _cells(self) -> list[tuple[Any, int]]:
        """Return the arrays of the pool, each with its axis of tokens."""
        return list(zip(self._joined, self._graph.token_axes, strict=True))

    def _seen(self, streams: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the cells that any of some streams holds, in rising order."""
        held = (self._bias[np.unique(streams), : self._size] == 0.0).any(axis=0)
        return np.flatnonzero(held)

    def _add(self, positions: NDArray[np.int32], streams: NDArray[np.int32]) -> None:
        """Note that the streams hold the cells at the end of the pool, which were computed just now."""
        end = self._size + len(streams)
        if end > self._bias.shape[1]:
            wider = np.full((len(self.lengths), 2 * end), MASKED, np.float32)
            wider[:, : self._size] = self._bias[:, : self._size]
            self._bias = wider
        made = np.arange(self._size, end, dtype=np.int32)
        self._places[streams, positions] = made
        self._bias[streams, made] = 0.0
        np.maximum.at(self.lengths, streams, positions + 1)
        self._size = end

    def _tidy_up(self) -> None:
        """Take the cells that no stream holds out of the pool, where they are many."""
        if _WASTE * self._dropped <= self._size:
            return
        self._dropped = 0
        kept = self._seen(np.arange(len(self.lengths), dtype=np.int32))
        if _WASTE * (self._size - len(kept)) <= self._size:
            return
        self._joined = [value(cells.numpy().take(kept, axis)) for cells, axis in self._cells()]
        moved = np.zeros(self._size, np.int32)
        moved[kept] = np.arange(len(kept), dtype=np.int32)
        for stream, length in enumerate(self.lengths.tolist()):
            self._places[stream, :length] = moved[self._places[stream, :length]]
        self._bias[:, : len(kept)] = self._bias[:, kept]
        self._bias[:, len(kept) : self._size] = MASKED
        self._size = len(kept)

    def copy(self, source: int, target: int, length: int) -> None:
        """See ``Pool``; both share cells."""
        if source == target:
            return self.cut(target, length)
        self.cut(target, 0)
        places = self._places[source, :length]
        self._places[target, :length] = places
        self._bias[target, places] = 0.0
        self.lengths[target] = length
        return None

    def cut(self, stream: int, length: int) -> None:
        """See ``Pool``."""
        held = int(self.lengths[stream])
        if length < held:
            self._bias[stream, self._places[stream, length:held]] = MASKED
            self.lengths[stream] = length
            self._dropped += held - length
