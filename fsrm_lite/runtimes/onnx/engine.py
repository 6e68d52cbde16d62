"""The fast graph as an engine: it writes with the same weights that read, so that it needs no second file.

Keys and values of all streams lie in one *pool* of cells, one cell per token; ``pools`` has two kinds of it. Streams
that begin alike share cells, so that copying a stream moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import BundleError, FsrmError, InputError, JudgeError
from fsrm_lite.runtimes.engine import MAX_STREAMS, Interrupted, Outputs, memory_bytes, wanted_rows
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.onnx.pools import CellPool, JoinedPool, Pool


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
        self._pool: Pool | None = None

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
        if self._graph.closed:
            raise JudgeError("this engine is closed")
        if not 1 <= streams <= MAX_STREAMS:
            raise InputError(f"{streams} streams asked for, expected 1 to {MAX_STREAMS}")
        needed, there = streams * cells * self.cell_bytes, memory_bytes()
        if needed > there:
            raise JudgeError(
                f"{streams} streams of {cells} tokens need {needed >> 20} MiB, this machine has {there >> 20} MiB; "
                "ask for fewer votes or shorter thoughts"
            )
        self.streams, self.cells = max(streams, self.streams), max(cells, self.cells)
        kind = CellPool if self._graph.writes_in_place else JoinedPool
        self._pool = None  # the old one is freed first
        self._pool = kind(self._graph, self.streams, self.cells)

    def decode(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], *, outputs: Outputs
    ) -> NDArray[np.float32]:
        """Add tokens to the ends of streams; see ``Engine.decode``."""
        wanted = wanted_rows(outputs, len(tokens))
        pool = self._check_tokens(tokens, positions, streams, len(wanted))
        width = len(tokens) if outputs is True else self._graph.widths.chunk
        logits = []
        for at in range(0, len(tokens), width):
            part = slice(at, at + width)
            rows = [row - at for row in wanted if at <= row < at + width]
            logits.append(self._compute(pool, tokens[part], positions[part], streams[part], rows))
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _compute(
        self,
        pool: Pool,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        streams: NDArray[np.int32],
        rows: Sequence[int],
    ) -> NDArray[np.float32]:
        """Compute tokens, and return the logits behind those that ``rows`` numbers."""
        if self._options.terminate:
            raise Interrupted("decoding was interrupted")
        try:
            return pool.compute(tokens, positions, streams, rows, self._options)
        except FsrmError:  # the graph was closed
            raise
        except Exception as error:  # ONNX Runtime's own, of several classes; an interrupted run raises one of them too
            if self._options.terminate:
                raise Interrupted("decoding was interrupted") from error
            raise JudgeError(f"ONNX Runtime could not compute {len(tokens)} tokens: {error}") from error

    def copy(self, source: int, target: int, length: int) -> None:
        """Make ``target`` hold the first ``length`` tokens of ``source``; they share memory."""
        self._check_open(source, target).copy(source, target, length)

    def cut(self, stream: int, length: int) -> None:
        """Remove the tokens of ``stream`` from position ``length`` on."""
        self._check_open(stream).cut(stream, length)

    def interrupt(self) -> None:
        """Stop ``decode``, now and in later calls, until ``resume`` is called. Any thread may call this."""
        self._options.terminate = True

    def resume(self) -> None:
        """Undo ``interrupt``."""
        self._options.terminate = False

    def close(self) -> None:
        """Free the streams, and the graph if it was opened here. Safe to repeat."""
        self._pool, self.streams = None, 0
        if self._owned:
            self._graph.close()

    def _check_open(self, *streams: int) -> Pool:
        """Return the pool, or raise a ``JudgeError`` if the engine is closed or there is no such stream."""
        if self._graph.closed:
            raise JudgeError("this engine is closed")
        if self._pool is None or any(not 0 <= stream < self.streams for stream in streams):
            asked = ", ".join(map(str, streams))
            raise JudgeError(f"asked for stream {asked}; the engine has {self.streams}, counted from 0")
        return self._pool

    def _check_tokens(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], wanted: int
    ) -> Pool:
        """Return the pool, or raise a ``JudgeError`` unless tokens can be added and ``wanted`` logits be returned."""
        pool, count = self._check_open(), len(tokens)
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
        if len(np.unique(streams[firsts])) < len(firsts) or (positions != pool.lengths[streams] + run).any():
            raise JudgeError("a token is refused: its position is not the next free one of its stream")
        if positions.max() >= self.cells:
            raise JudgeError(f"a token is refused: its stream is full, it holds {self.cells} tokens")
        return pool
