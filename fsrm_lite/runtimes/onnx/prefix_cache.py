"""Keys and values of prefixes that were computed, kept for the next call within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from fsrm_lite.runtimes.onnx.packing import Prefix, passes


@dataclass(frozen=True, slots=True)
class State:
    """What attention needs of a prefix that was computed.

    Attributes:
        tokens: Length of the prefix.
        values: Its keys and values in every layer, as ONNX Runtime's arrays, in the order of the graph's past inputs.
    """

    tokens: int
    values: list[Any]


class PrefixCache:
    """The states of prefixes, bounded in bytes; the least recently used one goes first.

    A prefix is computed in passes, and a state is found by the prefix behind any of its passes: a shorter one is cut
    out of it. A pass is computed in the same way whatever follows it, so what is cut out has the same bits as if it had
    been computed again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._states: OrderedDict[Prefix, tuple[State, int]] = OrderedDict()
        self._found_in: dict[Prefix, Prefix] = {}

    def get(self, prefix: Prefix) -> tuple[State, int] | None:
        """Return a state that begins with ``prefix`` and the tokens of it to use, or None."""
        owner = self._found_in.get(prefix)
        if owner is None:
            return None
        self._states.move_to_end(owner)
        return self._states[owner][0], len(prefix.ids)

    def put(self, prefix: Prefix, state: State, size: int) -> None:
        """Keep a state of ``size`` bytes, unless it exceeds the bound by itself."""
        if size > self.limit_bytes or prefix in self._states:
            return
        for part in passes(prefix):
            # The state of a shorter pass adds nothing to this one.
            self._drop(part)
            self._found_in[part] = prefix
        self._states[prefix] = (state, size)
        self.bytes += size
        while self.bytes > self.limit_bytes:
            self._drop(next(iter(self._states)))

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._found_in.clear()
        self.bytes = 0

    def _drop(self, prefix: Prefix) -> None:
        if prefix in self._states:
            self.bytes -= self._states.pop(prefix)[1]
            self._found_in = {part: owner for part, owner in self._found_in.items() if owner != prefix}
