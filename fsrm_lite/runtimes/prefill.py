"""Reads sequences into the streams of an engine, and what several of them begin with only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.runtimes.engine import Engine
from fsrm_lite.runtimes.onnx.packing import common_length

STREAMS = 32
"""Most sequences that are worth reading at a time; with more of them, a step would hardly get cheaper."""

CACHE_BYTES = 2 << 30
"""Most memory for keys and values; where sequences would need more, fewer are read at a time."""


@dataclass(frozen=True, slots=True)
class Family:
    """Sequences that begin alike.

    Attributes:
        shared: Number of ids that all begin with; each sequence has at least one more.
        members: Positions of the sequences.
    """

    shared: int
    members: tuple[int, ...]


def families(sequences: Sequence[Sequence[int]]) -> list[Family]:
    """Group sequences that begin alike, so that a model reads their common beginning once.

    A sequence joins a family where they share at least a quarter of the sequence, and where the family then saves more
    tokens than without it. One that joins none is a family of its own, with ``shared`` 0.
    """
    found: list[Family] = []
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        if found:
            last, size = found[-1], len(found[-1].members)
            first = sequences[last.members[0]]
            common = min(common_length(first, sequences[i]), last.shared or len(first) - 1, len(sequences[i]) - 1)
            if 4 * common >= len(sequences[i]) and size * common > (size - 1) * last.shared:
                found[-1] = Family(common, (*last.members, i))
                continue
        found.append(Family(0, (i,)))
    return found


def affordable_streams(engine: Engine, tokens: int) -> int:
    """Return how many sequences of at most ``tokens`` tokens are read at a time."""
    return max(1, min(STREAMS, CACHE_BYTES // (max(tokens, 1) * engine.cell_bytes)))


def prefill(engine: Engine, sequences: Sequence[Sequence[int]], extra: int = 0) -> NDArray[np.float32]:
    """Read each sequence into a stream of its own, with room for ``extra`` more tokens.

    A sequence that comes alone is read from its first token to its last, ``batch_tokens`` at a time.

    Returns:
        The logits behind each sequence, float32 [sequences, vocabulary].
    """
    engine.prepare(len(sequences), max(len(s) for s in sequences) + extra + 1)
    unread: dict[int, tuple[int, Sequence[int]]] = {i: (0, sequences[i]) for i in range(len(sequences))}
    shared = [family for family in families(sequences) if family.shared]
    if shared:
        _decode(
            engine,
            {family.members[0]: (0, sequences[family.members[0]][: family.shared]) for family in shared},
            outputs=False,
        )
        for family in shared:
            for i in family.members:
                if i != family.members[0]:
                    engine.copy(family.members[0], i, family.shared)
                unread[i] = (family.shared, sequences[i][family.shared :])
    return append(engine, unread)


def append(engine: Engine, unread: Mapping[int, tuple[int, Sequence[int]]]) -> NDArray[np.float32]:
    """Append ids to streams.

    Args:
        engine: The engine.
        unread: By stream, the position of the first id, and the ids.

    Returns:
        The logits behind each stream, float32 [streams, vocabulary], in ascending order of streams.
    """
    logits = _decode(engine, unread, outputs=True)
    return np.stack([logits[stream] for stream in sorted(unread)])


def _decode(
    engine: Engine, unread: Mapping[int, tuple[int, Sequence[int]]], *, outputs: bool
) -> dict[int, NDArray[np.float32]]:
    """Append ids to streams; with ``outputs``, return the logits behind the last id of each."""
    # llama.cpp computes the same number of tokens of each stream of a batch at a time, as many as all of them have.
    # So streams of similar lengths go together.
    parts = sorted((len(ids), stream, start, ids) for stream, (start, ids) in unread.items())
    lengths = [length for length, _, _, _ in parts]
    tokens = np.concatenate([int32(ids) for _, _, _, ids in parts])
    positions = np.concatenate([np.arange(start, start + length, dtype=np.int32) for length, _, start, _ in parts])
    owners = np.repeat(int32([stream for _, stream, _, _ in parts]), lengths)
    last = np.zeros(len(tokens), np.bool_)
    last[np.cumsum(lengths) - 1] = outputs
    logits: dict[int, NDArray[np.float32]] = {}
    for first in range(0, len(tokens), engine.batch_tokens):
        part = slice(first, first + engine.batch_tokens)
        rows = engine.decode(tokens[part], positions[part], owners[part], outputs=last[part])
        logits.update(zip(owners[part][last[part]].tolist(), rows.copy(), strict=True))
    return logits


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    """Return ids, positions or streams as an engine takes them."""
    return np.asarray(values, dtype=np.int32)
