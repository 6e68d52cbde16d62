"""The fast graph as an engine: it writes with the same weights that read, so that it needs no second file.

Keys and values of all streams lie in one *pool* of cells, one cell per token. A stream is a list of cells, and streams
that begin alike share cells, so that copying a stream moves nothing. In every run each row of the attention bias hides
the cells that are not its stream's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import BundleError, FsrmError, InputError, JudgeError
from fsrm_lite.runtimes.engine import MAX_STREAMS, Interrupted, Outputs, memory_bytes, wanted_rows
from fsrm_lite.runtimes.onnx.graph import Graph, value
from fsrm_lite.runtimes.onnx.packing import MASKED

_WASTE = 4  # the pool is tidied up when one cell in so many belongs to no stream any more


class OnnxEngine:
    """An ``Engine`` (see ``fsrm_lite.runtimes.engine``) on a fast graph."""

    batch_tokens = 512

    def __init__(self, source: Graph | str | Path, *, threads: int | None = None) -> None:
        """Use an opened graph, or open a file.

        Args:
            source: A graph, which stays open when the engine is closed; or the ``.onnx`` file.
            threads: Threads that compute one run of a file that is opened here; see ``Graph``.

        Raises:
            BundleError: If the graph cannot be loaded, or is one of before graphs could write.
            InputError: If ``threads`` is out of range.
        """
        self._graph = source if isinstance(source, Graph) else Graph(Path(source), threads)
        self._owned = not isinstance(source, Graph)
        if not self._graph.can_write:
            raise BundleError(
                f"{self._graph.path} comes from an exporter of before fast graphs could write, so it cannot think; "
                "export the bundle again, or use its GGUF file with judge_engine='llama.cpp'"
            )
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = 4
        self.vocab_size = self._graph.vocab_size
        self.streams = self.cells = 0

    @property
    def cell_bytes(self) -> int:
        """Bytes of the keys and values of one token, in every layer."""
        return self._graph.token_bytes

    def prepare(self, streams: int, cells: int) -> None:
        """Empty every stream, and make room for ``streams`` streams of ``cells`` tokens.

        Raises:
            InputError: If that is more than ``MAX_STREAMS``.
            JudgeError: If the machine's memory could not hold them.
        """
        self._check_open()
        if not 1 <= streams <= MAX_STREAMS:
            raise InputError(f"{streams} streams asked for, expected 1 to {MAX_STREAMS}")
        needed, there = streams * cells * self.cell_bytes, memory_bytes()
        if needed > there:
            raise JudgeError(
                f"{streams} streams of {cells} tokens need {needed >> 20} MiB, this machine has {there >> 20} MiB; "
                "ask for fewer votes or shorter thoughts"
            )
        self.streams, self.cells = max(streams, self.streams), max(cells, self.cells)
        self._pool, self._size = list(self._graph.empty), 0
        self._dropped = 0  # cells that streams have let go since the pool was tidied up
        self._places = np.zeros((self.streams, self.cells), np.int32)  # which cell holds a token of a stream
        self._lengths = np.zeros(self.streams, np.int32)
        self._bias = np.full((self.streams, 2 * self.batch_tokens), MASKED, np.float32)  # of streams towards cells

    def decode(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], *, outputs: Outputs
    ) -> NDArray[np.float32]:
        """Add tokens to the ends of streams; see ``Engine.decode``."""
        wanted = wanted_rows(outputs, len(tokens))
        self._check_tokens(tokens, positions, streams, len(wanted))
        if outputs is True:
            return self._step(tokens, positions, streams, wanted)
        width = self._graph.widths.chunk
        logits = []
        for at in range(0, len(tokens), width):
            part = slice(at, at + width)
            rows = [row - at for row in wanted if at <= row < at + width]
            logits.append(self._step(tokens[part], positions[part], streams[part], rows))
        return np.concatenate(logits)

    def _step(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        streams: NDArray[np.int32],
        rows: Sequence[int],
    ) -> NDArray[np.float32]:
        """Compute tokens in one run, and return the logits behind those that ``rows`` numbers."""
        self._tidy_up()
        count, graph = len(tokens), self._graph
        seen = self._seen(streams)
        # A few streams need few cells of a large pool: these are copied together, which costs less than attending to
        # all others with their weights at zero.
        apart = 2 * len(seen) <= self._size
        past = [value(kept.numpy().take(seen, axis)) for kept, axis in self._cells()] if apart else self._pool
        width = len(seen) if apart else self._size
        bias = np.empty((count, width + count), np.float32)
        held = self._bias[streams, : self._size]
        bias[:, :width] = held.take(seen, axis=1) if apart else held
        new = (streams[:, None] == streams) & (np.arange(count)[:, None] >= np.arange(count))
        bias[:, width:] = np.where(new, np.float32(0.0), np.float32(MASKED))
        if self._options.terminate:
            raise Interrupted("decoding was interrupted")
        try:
            present = graph.run(
                [*graph.present_names, *(["logits"] if rows else [])],
                ids=tokens,
                positions=positions,
                bias=bias,
                past=past,
                wanted=rows or (0,),
                head_rows=range(len(rows)),
                distribution=False,
                options=self._options,
            )
        except FsrmError:  # the graph was closed
            raise
        except Exception as error:  # ONNX Runtime's own, of several classes; an interrupted run raises one of them too
            if self._options.terminate:
                raise Interrupted("decoding was interrupted") from error
            raise JudgeError(f"ONNX Runtime could not compute {count} tokens: {error}") from error
        logits: NDArray[np.float32] = present.pop().numpy() if rows else np.zeros((0, self.vocab_size), np.float32)
        if apart and self._size:
            present = [
                value(np.concatenate([kept.numpy(), made.numpy().take(range(width, width + count), axis)], axis))
                for (kept, axis), made in zip(self._cells(), present, strict=True)
            ]
        self._pool = present
        self._add(positions, streams)
        return logits

    def _cells(self) -> list[tuple[Any, int]]:
        """Return the arrays of the pool, each with its axis of tokens."""
        return list(zip(self._pool, self._graph.token_axes, strict=True))

    def _seen(self, streams: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the cells that any of some streams holds, in rising order."""
        held = (self._bias[np.unique(streams), : self._size] == 0.0).any(axis=0)
        return np.flatnonzero(held)

    def _add(self, positions: NDArray[np.int32], streams: NDArray[np.int32]) -> None:
        """Note that the streams hold the cells at the end of the pool, which were computed just now."""
        end = self._size + len(streams)
        if end > self._bias.shape[1]:
            wider = np.full((self.streams, 2 * end), MASKED, np.float32)
            wider[:, : self._size] = self._bias[:, : self._size]
            self._bias = wider
        made = np.arange(self._size, end, dtype=np.int32)
        self._places[streams, positions] = made
        self._bias[streams, made] = 0.0
        np.maximum.at(self._lengths, streams, positions + 1)
        self._size = end

    def _tidy_up(self) -> None:
        """Take the cells that no stream holds out of the pool, where they are many."""
        if _WASTE * self._dropped <= self._size:
            return
        self._dropped = 0
        kept = self._seen(np.arange(self.streams, dtype=np.int32))
        if _WASTE * (self._size - len(kept)) <= self._size:
            return
        self._pool = [value(cells.numpy().take(kept, axis)) for cells, axis in self._cells()]
        moved = np.zeros(self._size, np.int32)
        moved[kept] = np.arange(len(kept), dtype=np.int32)
        for stream, length in enumerate(self._lengths.tolist()):
            self._places[stream, :length] = moved[self._places[stream, :length]]
        self._bias[:, : len(kept)] = self._bias[:, kept]
        self._bias[:, len(kept) : self._size] = MASKED
        self._size = len(kept)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make ``target`` hold the first ``length`` tokens of ``source``; they share cells."""
        self._check_open(source, target)
        if source == target:
            return self.cut(target, length)
        self.cut(target, 0)
        places = self._places[source, :length]
        self._places[target, :length] = places
        self._bias[target, places] = 0.0
        self._lengths[target] = length
        return None

    def cut(self, stream: int, length: int) -> None:
        """Remove the tokens of ``stream`` from position ``length`` on."""
        self._check_open(stream)
        held = int(self._lengths[stream])
        if length < held:
            self._bias[stream, self._places[stream, length:held]] = MASKED
            self._lengths[stream] = length
            self._dropped += held - length

    def interrupt(self) -> None:
        """Stop ``decode``, now and in later calls, until ``resume`` is called. Any thread may call this."""
        self._options.terminate = True

    def resume(self) -> None:
        """Undo ``interrupt``."""
        self._options.terminate = False

    def close(self) -> None:
        """Free the streams, and the graph if it was opened here. Safe to repeat."""
        self._pool, self.streams = [], 0
        if self._owned:
            self._graph.close()

    def _check_open(self, *streams: int) -> None:
        """Raise a ``JudgeError`` if the engine is closed or there is no such stream."""
        if self._graph.closed:
            raise JudgeError("this engine is closed")
        if any(not 0 <= stream < self.streams for stream in streams):
            asked = ", ".join(map(str, streams))
            raise JudgeError(f"asked for stream {asked}; the engine has {self.streams}, counted from 0")

    def _check_tokens(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], wanted: int
    ) -> None:
        """Raise a ``JudgeError`` unless the tokens can be added, and logits of ``wanted`` of them be returned."""
        self._check_open()
        count = len(tokens)
        if not 0 < count <= self.batch_tokens:
            raise JudgeError(f"a batch of {count} rows was asked for; the engine takes 1 to {self.batch_tokens}")
        if wanted > self.streams:
            raise JudgeError(f"logits of a batch of {wanted} rows were asked for; the engine takes 1 to {self.streams}")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise JudgeError(f"a token is refused: the ids are 0 to {self.vocab_size - 1}")
        self._check_open(int(streams.min()), int(streams.max()))
        # Tokens of one stream stand one behind the other in a batch.
        firsts = np.flatnonzero(np.concatenate([[True], streams[1:] != streams[:-1]]))
        run = np.arange(count) - np.repeat(firsts, np.diff(np.append(firsts, count)))
        if len(np.unique(streams[firsts])) < len(firsts) or (positions != self._lengths[streams] + run).any():
            raise JudgeError("a token is refused: its position is not the next free one of its stream")
        if positions.max() >= self.cells:
            raise JudgeError(f"a token is refused: its stream is full, it holds {self.cells} tokens")
