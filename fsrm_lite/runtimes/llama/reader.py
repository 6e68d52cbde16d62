"""Reads first-token distributions with llama.cpp: the fast path of a bundle whose fast file is a GGUF.

What the sequences of a call begin with is read once and copied. Nothing is kept from one call to the next.

The same call gives the same bits. But most of llama.cpp's kernels compute a token with other rounding when other tokens
are computed beside it, so that the last digits of a reading depend on its company, most of all with K-quants. A
sequence that is read alone is given to llama.cpp as its own users do, 512 tokens at a time, and gives the same bits as
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsrm_lite.errors import BundleError
from fsrm_lite.runtimes.llama.engine import LlamaEngine, LlamaModel
from fsrm_lite.runtimes.owner import Owner
from fsrm_lite.runtimes.prefill import affordable_streams, families, prefill
from fsrm_lite.runtimes.reading import FastReading, FollowedText, Ids, checked_ids, each_as_given, read_distribution


class LlamaReader:
    """A ``Reader`` (see ``fsrm_lite.runtimes.reading``) on a GGUF file. Its calls are served by one worker thread.

    Attributes:
        opened: The loaded model, with which the judge may think as well, in a context of its own.
    """

    def __init__(self, path: Path, label_ids: Sequence[int], *, threads: int | None = None) -> None:
        """Load the file.

        Args:
            path: The GGUF file.
            label_ids: Tokens whose logits a reading has.
            threads: Compute threads; see ``LlamaModel``, also for the errors.
        """
        self._labels = list(label_ids)
        self._owner = Owner("fsrm-fast")
        try:
            self.opened = self._owner.submit(LlamaModel, path, threads=threads).result()
            self._engine = LlamaEngine(self.opened)
        except Exception:
            self._owner.close()
            raise
        self._owner.interrupt = self._engine.interrupt

    def read(self, sequences: Sequence[Sequence[int]], *, hidden: bool = False) -> list[FastReading]:
        """Read the first-token distribution behind each sequence; see ``Reader.read``."""
        if hidden:
            raise BundleError(
                f"{self.opened.path} is a GGUF file, and hidden states are read from ONNX fast files only; "
                "export the checkpoint itself"
            )
        self._owner.check_process()
        given = checked_ids(sequences, self.opened.vocab_size)
        distinct = sorted(set(given))
        readings = self._owner.submit(self._read, distinct).result()
        return each_as_given(given, distinct, readings)

    def follow(self, sequence: Sequence[int], start: int, end: int, *, intermediate: bool = False) -> FollowedText:
        """Refuse: what follows a text comes with its hidden state, which is read from ONNX fast files only."""
        raise BundleError(
            f"{self.opened.path} is a GGUF file, and a critic on hidden states needs an ONNX fast file; "
            "export the checkpoint itself"
        )

    def _read(self, sequences: Sequence[Ids]) -> list[FastReading]:
        """Read distinct sequences in ascending order, so that those that begin alike stand together."""
        readings: list[FastReading] = []
        step = affordable_streams(self._engine, max((len(ids) for ids in sequences), default=1))
        for at in range(0, len(sequences), step):
            batch = sequences[at : at + step]
            shared = [0] * len(batch)
            for family in families(batch):
                for member in family.members[1:]:
                    shared[member] = family.shared
            for ids, logits, copied in zip(batch, prefill(self._engine, batch), shared, strict=True):
                if not np.isfinite(logits).all():
                    raise BundleError(f"{self.opened.path} gave logits that are not finite; its weights are damaged")
                labels, log_mass, entropy = read_distribution(logits, self._labels)
                readings.append(FastReading(labels, log_mass, entropy, len(ids) - copied, copied))
        return readings

    def check(self, vocab_size: int, label_ids: Sequence[int], head: str = "vocabulary") -> None:
        """Refuse a manifest that does not describe this model; see ``Reader.check``."""
        if head != "vocabulary":
            raise BundleError(f"fsrm.json says that the head is a {head} one, a GGUF file has a vocabulary one")
        if vocab_size != self.opened.vocab_size or self._labels != list(label_ids):
            raise BundleError(
                f"fsrm.json names {vocab_size} tokens, {self.opened.path} has {self.opened.vocab_size}; "
                "export the bundle again"
            )

    def forget(self) -> None:
        """Do nothing: no call leaves anything to the next."""

    def close(self) -> None:
        """Finish what was asked, then free the model, unless the judge still thinks with it. Safe to repeat."""
        self._owner.close(self._release)

    def _release(self) -> None:
        self._engine.close()
        self.opened.close()
