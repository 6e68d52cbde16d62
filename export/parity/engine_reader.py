"""Asks an exported file what the parity measures compare with the checkpoint: first-token readings and greedy thoughts.

The file is read through the engine that the judge uses, too. A *stream* is the place of one sequence in the engine's
cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.export.parity.readings import Chain, ChainTask, ChainWriter, Thought, TokenReading, families, read_logits
from fsrm_lite.runtimes.onnx.packing import common_length
from fsrm_lite.runtimes.opening import open_engine

STREAMS = 32
"""Most sequences that are read at a time; with more of them, a step would hardly get cheaper."""
CACHE_BYTES = 2 << 30
"""Most memory for keys and values; where prompts would need more, fewer are read at a time."""
SMALL_MODEL_BYTES = 64 << 20
"""A model below this size runs on one thread.

That is as fast as several threads, which on a busy machine would spin at every step while they wait for each other.
"""

Progress = Callable[[int, int], None]


class EngineReader:
    """A GGUF file in llama.cpp, or a fast graph in ONNX Runtime; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            BundleError: If the runtime cannot read it.
            JudgeUnavailableError: If it is a GGUF file and llama-cpp-python is missing.
        """
        self._engine = open_engine(path, 1 if _model_bytes(path) < SMALL_MODEL_BYTES else None)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the model."""
        self._engine.close()

    def first_token(
        self, sequences: Sequence[Sequence[int]], label_ids: Sequence[int], progress: Progress | None = None
    ) -> list[TokenReading]:
        """Read the distribution of the next token behind each sequence of ids.

        Args:
            sequences: Token ids, one list per sequence.
            label_ids: Tokens whose logits are kept.
            progress: Called with sequences done and sequences in all.

        Returns:
            One reading per sequence, in input order.
        """
        readings: dict[int, TokenReading] = {}
        # In this order, sequences that share the most stand next to each other.
        order = [i for family in families(sequences) for i in family.members]
        step = self._streams([len(s) for s in sequences])
        for start in range(0, len(order), step):
            batch = order[start : start + step]
            logits = self._prefill([sequences[i] for i in batch], 0)
            readings.update({i: read_logits(row, label_ids) for i, row in zip(batch, logits, strict=True)})
            if progress is not None:
                progress(len(readings), len(sequences))
        return [readings[i] for i in range(len(sequences))]

    def think(
        self, tasks: Sequence[ChainTask], given: Sequence[Thought], progress: Progress | None = None
    ) -> list[tuple[Chain, Chain]]:
        """Write a chain for each task, greedily, and read the verdict behind a given thought too.

        Args:
            tasks: What to think about.
            given: One thought per task.
            progress: Called with tasks done and tasks in all.

        Returns:
            Per task, in input order, the file's own chain, and the one with the given thought.
        """
        chains: list[tuple[Chain, Chain]] = []
        step = self._streams([task.tokens for task in tasks])
        for start in range(0, len(tasks), step):
            part = slice(start, start + step)
            own = self._write(tasks[part])
            chains += zip(own, self._follow(tasks[part], own, given[part]), strict=True)
            if progress is not None:
                progress(len(chains), len(tasks))
        return chains

    def _streams(self, tokens: Sequence[int]) -> int:
        """Return how many sequences of so many tokens are read at a time."""
        return max(1, min(STREAMS, CACHE_BYTES // (max(tokens, default=1) * self._engine.cell_bytes)))

    def _write(self, tasks: Sequence[ChainTask]) -> list[Chain]:
        """Return the file's own chain for each task, written greedily, each in a stream of its own."""
        writers = [ChainWriter(task.ending) for task in tasks]
        chains: dict[int, Chain] = {}
        live, lengths = list(range(len(tasks))), [len(task.prompt) for task in tasks]
        logits = self._prefill([task.prompt for task in tasks], max(task.ending.tokens for task in tasks))
        while True:
            written = [(i, writers[i].step(row)) for i, row in zip(live, logits, strict=True)]
            chains.update({i: x for i, x in written if isinstance(x, Chain)})
            tokens = {i: x for i, x in written if not isinstance(x, Chain)}
            live = list(tokens)
            if not live:
                return [chains[i] for i in range(len(tasks))]
            logits = self._engine.decode(
                _int32(list(tokens.values())), _int32([lengths[i] for i in live]), _int32(live), outputs=True
            )
            for i in live:
                lengths[i] += 1

    def _follow(self, tasks: Sequence[ChainTask], own: list[Chain], given: Sequence[Thought]) -> list[Chain]:
        """Return chains of the given thoughts, with the verdicts that the file gives behind them.

        The streams still hold the prompts with the file's own thoughts, so only what differs from those is read.
        """
        unread: dict[int, tuple[int, list[int]]] = {}
        for i, (chain, thought) in enumerate(zip(own, given, strict=True)):
            if chain.thought.ids != thought.ids:
                common = common_length(chain.thought.ids, thought.ids)
                start = len(tasks[i].prompt) + common
                self._engine.cut(i, start)
                unread[i] = (start, [*thought.ids[common:], *tasks[i].ending.tail])
        choices = {i: chain.choice_logits for i, chain in enumerate(own)}
        if unread:
            logits = self._read(unread)
            choices |= {
                i: tuple(row[list(tasks[i].ending.choice_ids)].tolist()) for i, row in zip(unread, logits, strict=True)
            }
        return [Chain(thought, choices[i]) for i, thought in enumerate(given)]

    def _prefill(self, sequences: Sequence[Sequence[int]], extra: int) -> NDArray[np.float32]:
        """Read each sequence into a stream of its own, with room for ``extra`` more tokens.

        What several sequences share is read once and copied. Returns the logits behind each sequence, float32
        [sequences, vocabulary].
        """
        engine = self._engine
        engine.prepare(len(sequences), max(len(s) for s in sequences) + extra + 1)
        unread: dict[int, tuple[int, Sequence[int]]] = {i: (0, sequences[i]) for i in range(len(sequences))}
        shared = [family for family in families(sequences) if family.shared]
        if shared:
            self._decode({family.members[0]: (0, sequences[family.members[0]][: family.shared]) for family in shared})
            for family in shared:
                for i in family.members:
                    if i != family.members[0]:
                        engine.copy(family.members[0], i, family.shared)
                    unread[i] = (family.shared, sequences[i][family.shared :])
        return self._read(unread)

    def _read(self, unread: Mapping[int, tuple[int, Sequence[int]]]) -> NDArray[np.float32]:
        """Append ids to streams, each from a position on.

        Returns the logits behind each stream, float32 [streams, vocabulary], in ascending order of streams.
        """
        self._decode({i: (start, ids[:-1]) for i, (start, ids) in unread.items()})
        streams = sorted(unread)
        ends = [unread[i][0] + len(unread[i][1]) - 1 for i in streams]
        return self._engine.decode(
            _int32([unread[i][1][-1] for i in streams]), _int32(ends), _int32(streams), outputs=True
        )

    def _decode(self, unread: Mapping[int, tuple[int, Sequence[int]]]) -> None:
        # llama.cpp computes the same number of tokens of each stream of a batch at a time, as many as all of them have.
        # So streams of similar lengths go together.
        parts = sorted((len(ids), stream, start, ids) for stream, (start, ids) in unread.items())
        tokens = np.concatenate([_int32(ids) for _, _, _, ids in parts])
        positions = np.concatenate([np.arange(start, start + length, dtype=np.int32) for length, _, start, _ in parts])
        owners = np.repeat(_int32([stream for _, stream, _, _ in parts]), [length for length, _, _, _ in parts])
        for first in range(0, len(tokens), self._engine.batch_tokens):
            part = slice(first, first + self._engine.batch_tokens)
            self._engine.decode(tokens[part], positions[part], owners[part], outputs=False)


def _model_bytes(path: Path) -> int:
    """Return the size of a model file, with the weights that a large fast graph keeps in a file beside it."""
    beside = path.with_name(path.name + ".data")
    return sum(file.stat().st_size for file in (path, beside) if file.is_file())


def _int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(values, dtype=np.int32)
