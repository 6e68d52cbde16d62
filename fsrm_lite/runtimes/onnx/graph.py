"""A fast graph on ONNX Runtime, opened: what its metadata and inputs say, and how it is run.

``session`` reads first-token distributions with it, ``engine`` writes with it. Both may use the same opened graph, from
threads of their own, so that its weights are in memory once. The graph is written by ``export/graph/fast_graph.py``.
"""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.checks import is_whole, plain
from fsrm_lite.errors import BundleError, InputError, MisuseError, as_ours
from fsrm_lite.runtimes.onnx import kernels
from fsrm_lite.runtimes.onnx.packing import Widths
from fsrm_lite.runtimes.threads import usable_cores

MAX_THREADS = 4 * (os.cpu_count() or 1)
"""With more than a few threads per processor, a call mostly waits for its own threads, at worst for ever."""

# Numbers of the meaning of inputs, outputs and metadata; the exporter writes the newest into the graph. Format 3 has an
# input that format 2 lacks, "distribution"; format 4 has those of ``_POOL_INPUTS``, unless its head is a scalar.
_GRAPH_FORMATS = ("2", "3", "4")
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}

_INPUTS = {"input_ids", "position_ids", "bias", "wanted", "carry", "head_rows"}
_POOL_INPUTS = {"writing", "cells", "segments"}
_OUTPUTS = {
    "vocabulary": {"label_logits", "log_mass", "entropy", "hidden"},
    "scalar": {"label_logits", "hidden"},
}
"""The outputs that a graph must have, by its head. A graph that can write has ``logits`` too."""
_MOST = {"fsrm.vocab_size": 1 << 24, "fsrm.hidden_size": 1 << 20, "fsrm.chunk": 1 << 16, "fsrm.row": 1 << 16}
"""The sizes in a graph's metadata, each with the largest that is believed. The smallest is 1."""


def _size(metadata: Mapping[str, str], name: str) -> int:
    """Return a size of the metadata.

    Raises:
        BundleError: If it is missing, no whole number, or out of range.
    """
    text = metadata.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= _MOST[name]:
        raise BundleError(f"its {name} is {short(text)}, expected a whole number from 1 to {_MOST[name]}")
    return int(text)


class Graph:
    """An opened graph. Any thread may run it.

    The session sets the processor to treat denormals (numbers too small for the usual form of a float) as zero. A
    softmax with masked keys is full of them, and each costs ten times as much as a zero. The setting holds for the
    thread that opens the session, so open it in a thread that computes nothing for anyone else.

    Attributes:
        path: The ``.onnx`` file.
        threads: Threads that compute one run.
        vocab_size: Tokens of the vocabulary.
        hidden_size: Width of a hidden state.
        labels: Token ids of the labels.
        head: "vocabulary", or "scalar" for a graph that gives one number, the reward.
        widths: How sequences are cut into runs.
        past_names: Inputs with keys and values of earlier tokens.
        present_names: The outputs that have the same and the new tokens' behind them, in the same order.
        token_axes: The axis of each of these that counts tokens.
        empty: Pasts without a token, as ONNX Runtime's arrays.
        can_write: Whether the graph gives the logits of the whole vocabulary, which writing needs. Older graphs do not.
        writes_in_place: Whether ``write`` can be called: the graph keeps keys and values in place, and the compiled
            operators are there, without which that would cost more than to join them anew.
        gives_intermediate: Whether the graph gives the states of a layer in its middle. Older graphs do not, nor do
            those with a scalar head or a single layer.
        can_think: Whether it can write, and its verdicts were not out of tolerance when it was exported.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Open a graph.

        Args:
            path: The ``.onnx`` file.
            threads: Threads that compute one run; by default as many as ``usable_cores`` counts.

        Raises:
            BundleError: If the file is not a fast graph that this version reads.
            InputError: If ``threads`` is out of range.
        """
        self.path = path
        self.threads = check_threads(threads)
        self._session = _open_session(path, self.threads)
        _opened.add(self)
        with as_ours(BundleError, f"{path} does not describe itself as a fast graph does"):
            self._read_metadata(path)

    def _read_metadata(self, path: Path) -> None:
        """Take from the graph what it says about itself.

        Raises:
            BundleError: If it is of another format, or an entry is missing or out of range. Other errors are raised as
                they are where an entry is ill-typed.
        """
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("fsrm.format") not in _GRAPH_FORMATS:
            raise BundleError(
                f"{path} has fast graph format {short(metadata.get('fsrm.format'))}, this package reads "
                f"{' and '.join(_GRAPH_FORMATS)}; export it again"
            )
        sizes = {name: _size(metadata, name) for name in _MOST}
        self.vocab_size, self.hidden_size = sizes["fsrm.vocab_size"], sizes["fsrm.hidden_size"]
        self.labels: list[int] = json.loads(metadata["fsrm.labels"])
        self.head = metadata.get("fsrm.head", "vocabulary")
        if self.head not in _OUTPUTS:
            raise BundleError(f"{path} has the head {short(self.head)}, expected one of {', '.join(_OUTPUTS)}")
        self.widths = Widths(sizes["fsrm.chunk"], sizes["fsrm.row"])
        inputs = self._session.get_inputs()
        pasts = [i for i in inputs if i.name.startswith("past_")]
        given = {i.name for i in inputs} - {i.name for i in pasts} - {"distribution"}
        made = {o.name for o in self._session.get_outputs()}
        wanted = _OUTPUTS[self.head] | {i.name.replace("past_", "present_") for i in pasts}
        if given not in (_INPUTS, _INPUTS | _POOL_INPUTS) or not wanted <= made:
            odd = sorted((given ^ _INPUTS) | (wanted - made))
            raise BundleError(f"{path} lacks inputs or outputs of a fast graph, or has others: {short(odd)}")
        self.past_names = [i.name for i in pasts]
        self.present_names = [name.replace("past_", "present_") for name in self.past_names]
        self.token_axes = [i.shape.index("P") for i in pasts]
        self.empty = [value(np.zeros([0 if n == "P" else n for n in i.shape], dtype=_DTYPES[i.type])) for i in pasts]
        # Bytes of one token: of each past, all axes but the one that counts tokens.
        self.token_bytes = sum(
            int(np.prod([n for n in i.shape if n != "P"])) * np.dtype(_DTYPES[i.type]).itemsize for i in pasts
        )
        self.can_write, self.gives_intermediate = "logits" in made, "intermediate" in made
        self.can_think = self.can_write and metadata.get("fsrm.thinks") != "no"
        names = {i.name for i in inputs}
        self._chooses, self._pools = "distribution" in names, "writing" in names
        self.writes_in_place = self._pools and kernels.library() is not None

    def run(
        self,
        outputs: list[str],
        *,
        ids: Sequence[int] | NDArray[np.int32],
        positions: Sequence[int] | NDArray[np.int32],
        bias: NDArray[np.float32],
        past: Sequence[Any],
        wanted: Sequence[int],
        carry: NDArray[np.float32] | None = None,
        head_rows: Sequence[int] = (),
        distribution: bool = True,
        options: Any = None,  # noqa: ANN401 - a RunOptions
    ) -> list[Any]:
        """Run the graph once; export/graph/fast_graph.py explains all inputs and outputs.

        Args:
            outputs: Names of the outputs to return.
            ids: Token ids [S].
            positions: Where in its sequence each token stands [S].
            bias: float32 [S, P + S], added to the attention scores.
            past: Keys and values of P tokens, in the order of ``past_names``.
            wanted: Which of the tokens' hidden states are wanted.
            carry: float32 [E, hidden_size], hidden states of earlier runs; None for none.
            head_rows: Of which hidden states the vocabulary is read.
            distribution: Whether log-mass and entropy are among the outputs.
            options: ONNX Runtime's options of the run.

        Returns:
            The outputs, as ONNX Runtime's arrays.

        Raises:
            MisuseError: If the graph was closed.
            Exception: ONNX Runtime's own, of several classes, if it cannot run the graph; callers say what that means.
        """
        session = self._session
        if session is None:
            raise MisuseError("this model was closed; open it again")
        count, no_pool = len(ids), {}
        if self._pools:
            no_pool = {
                "writing": np.array(False),
                "cells": np.zeros(count, np.int64),
                "segments": np.zeros((count, 1, 2), np.int64),
            }
        feeds: Mapping[str, Any] = {
            **{name: value(array) for name, array in no_pool.items()},
            "input_ids": value(np.asarray(ids, dtype=np.int64)),
            "position_ids": value(np.asarray([positions], dtype=np.int64)),
            "bias": value(bias),
            "wanted": value(np.asarray(wanted, dtype=np.int64)),
            "carry": value(np.zeros((0, self.hidden_size), dtype=np.float32) if carry is None else carry),
            "head_rows": value(np.asarray(head_rows, dtype=np.int64)),
            **({"distribution": value(np.array(distribution))} if self._chooses else {}),
            **dict(zip(self.past_names, past, strict=True)),
        }
        return list(session.run_with_ort_values(outputs, feeds, options))

    def write(
        self,
        pool: Sequence[Any],
        *,
        ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        cells: NDArray[np.int64],
        segments: NDArray[np.int64],
        rows: Sequence[int],
        options: Any = None,  # noqa: ANN401 - a RunOptions
    ) -> NDArray[np.float32]:
        """Compute tokens in a pool, whose arrays are changed in place.

        Args:
            pool: Keys and values of C cells, in the order of ``past_names``.
            ids: Token ids [S].
            positions: Where in its sequence each token stands [S].
            cells: Where its keys and values go [S].
            segments: What it attends to [S, K, 2]: cells from each first up to but not including the last.
            rows: Behind which of the tokens logits are wanted.
            options: ONNX Runtime's options of the run.

        Returns:
            float32 [rows, vocab_size], the logits.

        Raises:
            MisuseError: If the graph was closed.
            Exception: ONNX Runtime's own, of several classes, if it cannot run the graph; callers say what that means.
        """
        session = self._session
        if session is None:
            raise MisuseError("this model was closed; open it again")
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": ids.astype(np.int64),
            "position_ids": positions[None].astype(np.int64),
            "bias": np.zeros((len(ids), 0), np.float32),
            "wanted": np.array(rows or (0,), np.int64),
            "carry": np.zeros((0, self.hidden_size), np.float32),
            "head_rows": np.arange(len(rows), dtype=np.int64),
            "distribution": np.array(False),
            "writing": np.array(True),
            "cells": cells,
            "segments": segments,
        }
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, value(array))
        for past, present, kept in zip(self.past_names, self.present_names, pool, strict=True):
            binding.bind_ortvalue_input(past, kept)
            binding.bind_ortvalue_output(present, kept)
        if rows:
            binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding, options)
        if not rows:
            return np.zeros((0, self.vocab_size), np.float32)
        logits: NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits

    def close(self) -> None:
        """Release the model. Safe to repeat."""
        self._session = None

    @property
    def closed(self) -> bool:
        """Whether the graph was closed."""
        return self._session is None


def check_threads(threads: int | None) -> int:
    """Return a number of threads; None stands for as many as ``usable_cores`` counts.

    Raises:
        InputError: If it is out of range.
    """
    count = usable_cores() if threads is None else plain(threads)
    if not is_whole(count) or not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads is {threads!r}, expected a whole number from 1 to {MAX_THREADS}")
    return count


def value(array: NDArray[Any]) -> Any:  # noqa: ANN401 - an OrtValue
    """Return an array as ONNX Runtime's own, which shares its memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _open_session(path: Path, threads: int) -> Any:  # noqa: ANN401 - an InferenceSession
    """Open the graph for the CPU, quietly, with the compiled operators if they were built.

    Threads that wait for work spin (they keep their core busy) within a run, and stop when it ends.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The exporter wrote the operators it wants; fusing again would only cost start-up time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        kernels.register(options)
    except Exception as error:
        raise BundleError(
            f"{kernels.library()} cannot be loaded: {error}; set {kernels.SWITCH}=0 to do without it, or install again"
        ) from error
    with as_ours(BundleError, f"{path} cannot be loaded as an ONNX model"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


_opened: weakref.WeakSet[Graph] = weakref.WeakSet()


def _leave_inherited_sessions_alone() -> None:
    """In a forked process, let nothing of ONNX Runtime be torn down: it would wait for threads that did not come along.

    Each inherited session gets a reference that is never given back. The library itself would still hang, or abort,
    when the process ends (seen with 1.32); where the C library is glibc, its exit handlers are therefore cut short once
    Python has finished.
    """
    graphs = list(_opened)
    for graph in graphs:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph._session))
    libc = ctypes.CDLL(None)
    if graphs and hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)  # it is given the exit status; handlers run from the newest to the oldest


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_inherited_sessions_alone)
