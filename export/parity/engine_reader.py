"""Asks an exported file what the parity measures compare with the checkpoint: first-token readings and greedy thoughts.

The file is read through the engine that the judge uses, too. A *stream* is the place of one sequence in the engine's
cache of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fsrm_lite.export.parity.readings import Chain, ChainTask, ChainWriter, Thought, TokenReading, read_logits
from fsrm_lite.runtimes.onnx.packing import common_length
from fsrm_lite.runtimes.opening import EngineSource, file_of, open_engine
from fsrm_lite.runtimes.prefill import affordable_streams, append, families, int32, prefill

SMALL_MODEL_BYTES = 64 << 20
"""A model below this size runs on one thread.

That is as fast as several threads, which on a busy machine would spin at every step while they wait for each other.
"""

Progress = Callable[[int, int], None]


class EngineReader:
    """A GGUF file in llama.cpp, or a fast graph in ONNX Runtime; close it, or use it as a context manager."""

    def __init__(self, source: EngineSource) -> None:
        """Load the file, or use one that is loaded.

        Raises:
            BundleError: If the runtime cannot read it.
            JudgeUnavailableError: If it is a GGUF file and llama-cpp-python is missing.
        """
        small = _model_bytes(file_of(source)) < SMALL_MODEL_BYTES
        self._engine = open_engine(source, 1 if small else None)

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
        step = affordable_streams(self._engine, max((len(s) for s in sequences), default=1))
        for start in range(0, len(order), step):
            batch = order[start : start + step]
            logits = prefill(self._engine, [sequences[i] for i in batch])
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
        step = affordable_streams(self._engine, max((task.tokens for task in tasks), default=1))
        for start in range(0, len(tasks), step):
            part = slice(start, start + step)
            own = self._write(tasks[part])
            chains += zip(own, self._follow(tasks[part], own, given[part]), strict=True)
            if progress is not None:
                progress(len(chains), len(tasks))
        return chains

    def _write(self, tasks: Sequence[ChainTask]) -> list[Chain]:
        """Return the file's own chain for each task, written greedily, each in a stream of its own."""
        writers = [ChainWriter(task.ending) for task in tasks]
        chains: dict[int, Chain] = {}
        live, lengths = list(range(len(tasks))), [len(task.prompt) for task in tasks]
        logits = prefill(self._engine, [task.prompt for task in tasks], max(task.ending.tokens for task in tasks))
        while True:
            written = [(i, writers[i].step(row)) for i, row in zip(live, logits, strict=True)]
            chains.update({i: x for i, x in written if isinstance(x, Chain)})
            tokens = {i: x for i, x in written if not isinstance(x, Chain)}
            live = list(tokens)
            if not live:
                return [chains[i] for i in range(len(tasks))]
            logits = self._engine.decode(
                int32(list(tokens.values())), int32([lengths[i] for i in live]), int32(live), outputs=True
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
            logits = append(self._engine, unread)
            choices |= {
                i: tuple(row[list(tasks[i].ending.choice_ids)].tolist()) for i, row in zip(unread, logits, strict=True)
            }
        return [Chain(thought, choices[i]) for i, thought in enumerate(given)]


def _model_bytes(path: Path) -> int:
    """Return the size of a model file, with the weights that a large fast graph keeps in a file beside it."""
    beside = path.with_name(path.name + ".data")
    return sum(file.stat().st_size for file in (path, beside) if file.is_file())
