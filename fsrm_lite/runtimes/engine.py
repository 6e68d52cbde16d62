"""What the two paths ask of a runtime: an *engine*, which holds streams of tokens and predicts what follows them.

``fsrm_lite.runtimes.llama.engine`` and ``fsrm_lite.runtimes.onnx.engine`` each have one. Whatever is built on this
protocol runs on either.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import JudgeError

MAX_STREAMS = 256
"""Most streams that an engine holds."""


Outputs: TypeAlias = bool | NDArray[np.bool_]
"""Of which tokens of a call logits are wanted: of all, of none, or of those with True."""


def wanted_rows(outputs: Outputs, count: int) -> Sequence[int]:
    """Return which of ``count`` tokens ``outputs`` asks logits of."""
    if isinstance(outputs, bool):
        return range(count) if outputs else ()
    rows: list[int] = np.flatnonzero(outputs).tolist()
    return rows


class Interrupted(JudgeError):
    """Decoding was stopped from outside: by a deadline, by closing the judge, or by Ctrl-C."""


class Engine(Protocol):
    """One loaded model that holds several *streams*, which are sequences of tokens, numbered from 0.

    A stream attends to its own tokens and to no other stream's. An engine is not thread-safe, except for ``interrupt``:
    all other calls must come from one thread.

    Attributes:
        vocab_size: Tokens of the vocabulary.
        batch_tokens: Most tokens of one call of ``decode``; at least ``MAX_STREAMS``.
    """

    vocab_size: int
    batch_tokens: int

    @property
    def cell_bytes(self) -> int:
        """Bytes of memory that one token of a stream takes: its keys and values in every layer."""

    def prepare(self, streams: int, cells: int) -> None:
        """Empty every stream, and make room.

        Args:
            streams: How many streams are needed, 1 to ``MAX_STREAMS``.
            cells: How many tokens each of them must be able to hold.

        Raises:
            InputError: If that is more than the engine can hold.
            JudgeError: If there is not enough memory for it.
        """

    def decode(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], *, outputs: Outputs
    ) -> NDArray[np.float32]:
        """Add tokens to the ends of streams.

        Args:
            tokens: int32 [n], token ids; n is at most ``batch_tokens``.
            positions: int32 [n], for each token the next free position of its stream.
            streams: int32 [n], the stream of each token; in rising order where logits of every token are asked for.
            outputs: Whether to return the next-token logits of every token; or bool [n], of which tokens. They may be
                at most as many as there are streams.

        Returns:
            float32 [tokens with logits, vocabulary], in the order of the tokens. It may be a view, valid until the next
            call.

        Raises:
            Interrupted: If ``interrupt`` was called.
            JudgeError: If the tokens cannot be added.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the stream ``target`` hold the first ``length`` tokens of ``source``."""

    def cut(self, stream: int, length: int) -> None:
        """Remove the tokens of a stream from position ``length`` on."""

    def interrupt(self) -> None:
        """Stop ``decode``, now and in later calls, until ``resume`` is called. Any thread may call this."""

    def resume(self) -> None:
        """Undo ``interrupt``."""

    def close(self) -> None:
        """Free what the engine holds. Safe to repeat."""


def memory_bytes() -> int:
    """Return the size of the machine's physical memory, or 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
