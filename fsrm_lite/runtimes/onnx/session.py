"""The fast graph on ONNX Runtime: sequences of token ids in, one first-token reading per sequence out.

What sequences have in common at their beginning is computed once. ``packing`` plans which tokens are computed together,
``prefix_cache`` keeps what the next call may need again. The graph itself is written by ``export/graph/fast_graph.py``.
Nothing here knows of prompts, of the values of labels, or of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import BundleError, InputError, as_ours
from fsrm_lite.runtimes.onnx.graph import Graph, value
from fsrm_lite.runtimes.onnx.packing import Ids, PackedRow, Prefix, chunk_row, passes, plan_rows
from fsrm_lite.runtimes.onnx.prefix_cache import PrefixCache, State
from fsrm_lite.runtimes.owner import Owner
from fsrm_lite.runtimes.reading import FastReading, FollowedText, checked_ids, each_as_given

CACHE_BYTES = 64 << 20
"""Default bound of the keys and values kept for the next call."""

_HEAD_VALUES = 1 << 22  # logits (readings x vocabulary) that are in memory at once, at most


class FastModel:
    """A fast graph, loaded. Any thread may call it; the calls are served one after another by one worker thread.

    The worker opens the graph, because that changes the arithmetic of the thread that does so; see ``Graph``.

    Args:
        path: The ``.onnx`` file.
        threads: Threads that compute one call; by default as many as ``usable_cores`` counts.
        cache_bytes: Bound of the keys and values that are kept for later calls.

    Attributes:
        graph: The opened graph.

    Raises:
        BundleError: If the file is not a fast graph that this version reads.
        InputError: If ``threads`` is out of range.
    """

    def __init__(self, path: Path, *, threads: int | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self._owner = Owner("fsrm-fast")
        try:
            self.graph = self._owner.submit(Graph, path, threads).result()
        except Exception:
            self._owner.close()
            raise
        import onnxruntime

        self._run_options = onnxruntime.RunOptions()
        self._owner.interrupt = partial(setattr, self._run_options, "terminate", True)
        self.threads = self.graph.threads
        self.vocab_size, self.hidden_size = self.graph.vocab_size, self.graph.hidden_size
        self._readings_per_head = max(16, _HEAD_VALUES // self.vocab_size)
        self._cache = PrefixCache(cache_bytes)

    @property
    def opened(self) -> Graph:
        """The opened graph; see ``Reader``."""
        return self.graph

    def read(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Read the first-token distribution behind each sequence; see ``Reader.read``."""
        self._owner.check_process()
        given = checked_ids(sequences, self.vocab_size)
        distinct = sorted(set(given))
        call = _Call(self, distinct, hidden)
        self._owner.submit(call.run).result()
        return each_as_given(given, distinct, [call.readings[i] for i in range(len(distinct))])

    def follow(self, sequence: Sequence[int], start: int, end: int, *, intermediate: bool = False) -> FollowedText:
        """Read one sequence, and how likely the model finds its tokens from ``start`` to before ``end``.

        See ``Reader.follow``.
        """
        self._owner.check_process()
        (ids,) = checked_ids([sequence], self.vocab_size)
        if not 1 <= start < end <= len(ids):
            raise InputError(
                f"tokens {start} to {end} of a sequence of {len(ids)}, expected 1 <= start < end <= length"
            )
        if not self.graph.can_write:
            raise BundleError(
                f"{self.graph.path} does not give the logits of its vocabulary, which the likelihood of a text needs; "
                "export it again, from a model that has a vocabulary head"
            )
        if intermediate and not self.graph.gives_intermediate:
            raise BundleError(f"{self.graph.path} gives no intermediate states; export its checkpoint again")
        return self._owner.submit(self._follow, ids, start, end, intermediate).result()

    def _follow(self, ids: Ids, start: int, end: int, intermediate: bool) -> FollowedText:
        nothing = State(0, self.graph.empty)
        row = chunk_row(Prefix(), Prefix(ids, (len(ids),)))
        places = list(range(len(ids)))
        asked = ["hidden", "intermediate"] if intermediate else ["hidden"]
        states, *middle = (v.numpy() for v in self._run(asked, row, nothing, places, self._no_carry(), range(0)))
        # Where the model stands before each token, and at last behind the whole text.
        before = np.concatenate([states[start - 1 : end - 1], states[-1:]])
        one = chunk_row(Prefix(), Prefix(ids[:1], (1,)))
        outputs = ["label_logits", "log_mass", "entropy", "logits"]
        parts: list[list[NDArray[np.float32]]] = []
        for at in range(0, len(before), self._readings_per_head):
            carry = before[at : at + self._readings_per_head]
            labels, mass, entropy, logits = (
                v.numpy() for v in self._run(outputs, one, nothing, [0], carry, range(1, 1 + len(carry)))
            )
            tokens = np.array(ids[start + at : start + at + len(carry)][: end - start - at], dtype=np.int64)
            parts.append([labels, mass, entropy, logits[np.arange(len(tokens)), tokens], logits.max(axis=1)])
        labels, mass, entropy, chosen, top = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not all(np.isfinite(part).all() for part in (labels, mass, entropy, chosen, top, *middle)):
            raise BundleError("the fast graph gave a reading that is not finite; its weights are damaged")
        mass = mass.astype(np.float64)
        reading = FastReading(
            tuple(float(x) for x in labels[-1]), float(mass[-1]), float(entropy[-1]), len(ids), 0, states[-1].copy()
        )
        log_p, best = chosen - mass[:-1], top[:-1] - mass[:-1]
        return FollowedText(reading, log_p, best, entropy[:-1].astype(np.float64), *middle)

    def forget(self) -> None:
        """Forget the kept prefixes, so that the next call computes, and counts, what a new model would."""
        self._owner.submit(self._cache.clear).result()

    def check(self, vocab_size: int, label_ids: Sequence[int], head: str = "vocabulary") -> None:
        """Refuse a manifest that does not describe this graph: its scores would mean something else.

        Raises:
            BundleError: If the size of the vocabulary, the labels' ids, in order, or the head differ.
        """
        if head != self.graph.head:
            raise BundleError(
                f"fsrm.json says that the head is a {head} one, the fast graph has a {self.graph.head} one; "
                "export the bundle again"
            )
        if vocab_size != self.vocab_size or self.graph.labels != list(label_ids):
            raise BundleError(
                f"fsrm.json names the labels {list(label_ids)} of {vocab_size} tokens, the fast graph was made for "
                f"{self.graph.labels} of {self.vocab_size}; export the bundle again"
            )

    def close(self) -> None:
        """Finish what was asked, then forget the kept prefixes and release the model. Safe to repeat."""
        self._owner.close(self._release)

    def _release(self) -> None:
        self._cache.clear()
        self.graph.close()

    def _run(
        self,
        outputs: list[str],
        row: PackedRow,
        past: State,
        wanted: list[int],
        carry: NDArray[np.float32],
        head_rows: range,
    ) -> list[Any]:
        """Run the graph once for a row, and return the outputs asked for; see ``Graph.run``."""
        with as_ours(BundleError, "the fast graph cannot be run; its file is damaged or not what it says"):
            return self.graph.run(
                outputs,
                ids=row.ids,
                positions=row.positions,
                bias=row.bias(),
                past=past.values,
                wanted=wanted,
                carry=carry,
                head_rows=head_rows,
                options=self._run_options,
            )

    def _state(self, prefix: Prefix) -> tuple[State, int]:
        """Compute the keys and values of a prefix, beginning with what was kept of it, and keep them.

        Returns:
            The state behind the prefix, and how many of its tokens need not be computed.
        """
        state, found = State(0, self.graph.empty), 0
        done = Prefix()
        for part in reversed(passes(prefix)):
            hit = self._cache.get(part)
            if hit is not None:
                state, found, done = self._cut(*hit), len(part.ids), part
                break
        for part in passes(prefix)[len(done.cuts) :]:
            # Only keys and values are kept of a prefix. ONNX Runtime computes every node of a graph, whatever is asked
            # for; one wanted position and no row for the head keep the rest of the last layer, and the head, small.
            row = chunk_row(done, part)
            values = self._run(self.graph.present_names, row, state, [0], self._no_carry(), range(0))
            state, done = State(len(part.ids), values), part
        if found < len(prefix.ids):
            self._cache.put(prefix, state, sum(kept.tensor_size_in_bytes() for kept in state.values))
        return state, found

    def _cut(self, state: State, tokens: int) -> State:
        """Return the state of the first ``tokens`` tokens of a state."""
        if tokens == state.tokens:
            return state
        pairs = zip(state.values, self.graph.token_axes, strict=True)
        return State(tokens, [value(kept.numpy().take(range(tokens), axis)) for kept, axis in pairs])

    def _no_carry(self) -> NDArray[np.float32]:
        return np.zeros((0, self.hidden_size), dtype=np.float32)


class _Call:
    """One call of ``FastModel.read``: runs the planned rows, and computes the readings in as few runs as possible.

    The vocabulary head, which turns hidden states into readings, is a product with a large matrix; it is cheaper for
    many hidden states at once. So the hidden states of a row wait (they are *carried* on into later runs) until enough
    of them have come together.
    """

    def __init__(self, model: FastModel, sequences: list[Ids], hidden: bool) -> None:
        self._model = model
        self._sequences = sequences
        self._hidden = hidden
        self._waiting: list[tuple[int, int]] = []
        self._carry = model._no_carry()
        self.readings: dict[int, FastReading] = {}

    def run(self) -> None:
        """Read everything; afterwards ``readings`` has an entry per sequence number."""
        rows = list(plan_rows(self._sequences, self._model.graph.widths))
        state, prefix = State(0, self._model.graph.empty), Prefix()
        for i, row in enumerate(rows):
            computed = 0
            if row.prefix != prefix:
                state, found = (
                    self._model._state(row.prefix) if row.prefix.ids else (State(0, self._model.graph.empty), 0)
                )
                prefix, computed = row.prefix, len(row.prefix.ids) - found
            for branch in row.branches:
                read = computed + len(branch.path) - branch.shared
                self._waiting.append((branch.sequence, read))
                computed = 0
            following = len(rows[i + 1].branches) if i + 1 < len(rows) else self._model._readings_per_head
            self._run_row(row, state, flush=len(self._waiting) + following > self._model._readings_per_head)

    def _run_row(self, row: PackedRow, state: State, flush: bool) -> None:
        """Run one row. With ``flush``, turn its hidden states and all that wait into readings; else let them wait."""
        wanted = [int(branch.path[-1]) for branch in row.branches]
        if not flush:
            (new,) = self._model._run(["hidden"], row, state, wanted, self._model._no_carry(), range(0))
            self._carry = np.concatenate([self._carry, new.numpy()])
            return
        # The graph puts this row's hidden states before the carried ones, which have waited longer.
        count, carried = len(wanted), len(self._carry)
        distribution = ["log_mass", "entropy"] if self._model.graph.head == "vocabulary" else []
        outputs = ["label_logits", "hidden", *distribution]
        head_rows = range(count + carried)
        values = [v.numpy() for v in self._model._run(outputs, row, state, wanted, self._carry, head_rows)]
        order = [*range(count, count + carried), *range(count)]
        if not all(np.isfinite(reading).all() for reading in (values[0], *values[2:])):
            raise BundleError("the fast graph gave a reading that is not finite; its weights are damaged")
        hidden = np.concatenate([values[1], self._carry])
        for (sequence, read), at in zip(self._waiting, order, strict=True):
            self.readings[sequence] = FastReading(
                label_logits=tuple(float(x) for x in values[0][at]),
                log_mass=float(values[2][at]) if distribution else None,
                entropy=float(values[3][at]) if distribution else None,
                tokens_read=read,
                tokens_shared=len(self._sequences[sequence]) - read,
                hidden=hidden[at].copy() if self._hidden else None,
            )
        self._waiting, self._carry = [], self._model._no_carry()
