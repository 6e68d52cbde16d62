"""Reads rewards with an encoder on ONNX Runtime: a graph of sequence classification with one output, as optimum writes.

Such a graph takes whole texts, padded to the longest of a batch, with a mask that says what is padding. It shares
nothing between texts, keeps nothing for later calls, and cannot write.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import BundleError, as_ours
from fsrm_lite.runtimes.onnx.graph import check_threads
from fsrm_lite.runtimes.owner import Owner
from fsrm_lite.runtimes.reading import FastReading, FollowedText, Ids, checked_ids, each_as_given
from fsrm_lite.types import EncoderInput

BATCH_TOKENS = 2048
"""Most tokens of a run, padding included: enough for the matrix products to be fast."""

OUTPUT = "logits"
_NEEDED, _KNOWN = {"input_ids", "attention_mask"}, {"input_ids", "attention_mask", "token_type_ids"}


class EncoderReader:
    """A ``Reader`` (see ``fsrm_lite.runtimes.reading``) on an encoder. Its calls are served by one worker thread.

    Attributes:
        takes_types: Whether the graph is told which tokens belong to the second text.
    """

    opened = None  # an encoder cannot write

    def __init__(self, path: Path, vocab_size: int, form: EncoderInput, *, threads: int | None = None) -> None:
        """Open the graph.

        Args:
            path: The ``.onnx`` file.
            vocab_size: Tokens of the vocabulary, which the graph does not tell.
            form: How its input is padded and divided.
            threads: Threads that compute one run; by default as many as ``usable_cores`` counts.

        Raises:
            BundleError: If it has other inputs than ids, mask and types, or more than one output number.
            InputError: If ``threads`` is out of range.
        """
        self.path, self._vocab_size, self._form = path, vocab_size, form
        count = check_threads(threads)
        self._owner = Owner("fsrm-fast")
        try:
            self._session: Any = self._owner.submit(_open_session, path, count).result()
            self._check_graph()
        except Exception:
            self._owner.close()
            raise
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        self._owner.interrupt = partial(setattr, self._options, "terminate", True)

    def _check_graph(self) -> None:
        """Raise a ``BundleError`` unless the graph is one of sequence classification with one output."""
        names = {i.name for i in self._session.get_inputs()}
        outputs = {o.name: o.shape for o in self._session.get_outputs()}
        if not _NEEDED <= names <= _KNOWN:
            raise BundleError(
                f"{self.path} takes {', '.join(sorted(names))}; expected input_ids and attention_mask, perhaps "
                "token_type_ids, as optimum writes an encoder (--task text-classification)"
            )
        if OUTPUT not in outputs:
            raise BundleError(f"{self.path} gives {', '.join(outputs)}; expected {OUTPUT!r}, a reward per text")
        shape = outputs[OUTPUT]
        if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != 1):
            count = shape[1] if len(shape) == 2 else shape
            raise BundleError(
                f"{self.path} has {count} outputs per text, expected 1, the reward; "
                "which of several would be the reward is not known"
            )
        self.takes_types = "token_type_ids" in names

    def read(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Read the reward of each sequence; see ``Reader.read``."""
        if hidden:
            raise BundleError(f"{self.path} is an encoder with one output, and gives no hidden states")
        self._owner.check_process()
        given = checked_ids(sequences, self._vocab_size)
        distinct = sorted(set(given), key=lambda ids: (len(ids), ids))
        rewards = self._owner.submit(self._read, distinct).result()
        readings = [FastReading((r,), None, None, len(ids), 0) for r, ids in zip(rewards, distinct, strict=True)]
        return each_as_given(given, distinct, readings)

    def follow(self, sequence: Sequence[int], start: int, end: int, *, intermediate: bool = False) -> FollowedText:
        """Refuse: an encoder predicts no tokens."""
        raise BundleError(f"{self.path} is an encoder, which gives no likelihood of a text and no hidden states")

    def _read(self, sequences: Sequence[Ids]) -> list[float]:
        """Return the rewards of sequences in ascending order of length."""
        rewards: list[float] = []
        while len(rewards) < len(sequences):
            rest = sequences[len(rewards) :]
            count = 1
            while count < len(rest) and len(rest[count]) * (count + 1) <= BATCH_TOKENS:
                count += 1
            rewards += self._run(rest[:count])
        return rewards

    def _run(self, batch: Sequence[Ids]) -> list[float]:
        width = max(map(len, batch))
        ids = np.full((len(batch), width), self._form.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        if self.takes_types:
            feeds["token_type_ids"] = token_types(ids, self._form.separator_id) * mask
        with as_ours(BundleError, "the fast graph cannot be run; its file is damaged or not what it says"):
            (logits,) = self._session.run([OUTPUT], feeds, self._options)
        if logits.shape != (len(batch), 1):
            raise BundleError(
                f"{self.path} gave logits of the shape {list(logits.shape)} for {len(batch)} texts, expected one each"
            )
        if not np.isfinite(logits).all():
            raise BundleError(f"{self.path} gave a reward that is not finite; its weights are damaged")
        values: list[float] = logits[:, 0].astype(np.float64).tolist()
        return values

    def check(self, vocab_size: int, label_ids: Sequence[int], head: str = "vocabulary") -> None:
        """Refuse a manifest that does not describe an encoder with one output; see ``Reader.check``."""
        if head != "scalar" or label_ids or vocab_size != self._vocab_size:
            raise BundleError(f"fsrm.json says that the head is a {head} one, an encoder has a scalar one")

    def forget(self) -> None:
        """Do nothing: no call leaves anything to the next."""

    def close(self) -> None:
        """Finish what was asked, then free the model. Safe to repeat."""
        self._owner.close(self._release)

    def _release(self) -> None:
        self._session = None


def token_types(ids: NDArray[np.int64], separator_id: int | None) -> NDArray[np.int64]:
    """Return which text each token belongs to, int64 of the shape of ``ids`` [..., tokens].

    Args:
        ids: Token ids.
        separator_id: The token that ends the first text: what stands behind the first one has type 1. Without one,
            all tokens have type 0.
    """
    if separator_id is None:
        return np.zeros_like(ids)
    ended = np.cumsum(ids == separator_id, axis=-1)
    types: NDArray[np.int64] = ((ended > 1) | ((ended == 1) & (ids != separator_id))).astype(np.int64)
    return types


def _open_session(path: Path, threads: int) -> Any:  # noqa: ANN401 - an InferenceSession
    """Open the graph for the CPU, quietly, and let ONNX Runtime fuse what it can: optimum leaves that to it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with as_ours(BundleError, f"{path} cannot be loaded as an ONNX model"):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
