"""A reward model that is loaded when it is first needed, and what the adapters share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from fsrm_lite.errors import InputError
from fsrm_lite.types import LoadSettings, Prompt

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM

Source: TypeAlias = "FastSlowRM | str | Path | None"
"""A loaded model, or what ``FastSlowRM.from_pretrained`` takes."""


class LazyModel:
    """Holds a model, or what is needed to load it.

    Pickle copies only what is needed to load it. A copy in another process (of a process pool or a Ray actor) loads the
    model again there.
    """

    def __init__(self, source: Source = None, **load_options: Unpack[LoadSettings]) -> None:
        """Keep the source; nothing is loaded yet.

        Args:
            source: A loaded model, a bundle folder, a hub name, or None for the embedded model.
            **load_options: For ``FastSlowRM.from_pretrained``, for example ``threads=2``.
        """
        self._source: str | Path | None
        self._model: FastSlowRM | None
        if source is None or isinstance(source, str | Path):
            self._source, self._model = source, None
        else:
            self._source, self._model = str(source.bundle.root), source
        self._options = load_options
        self._lock = threading.Lock()

    @property
    def model(self) -> FastSlowRM:
        """The model. It is loaded by the first access."""
        with self._lock:
            if self._model is None:
                from fsrm_lite.scorer import FastSlowRM

                self._model = FastSlowRM.from_pretrained(self._source, **self._options)
            return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _lock=threading.Lock())


def check_lengths(prompts: Sequence[Prompt], completions: Sequence[object]) -> None:
    """Check that there are as many prompts as completions.

    Raises:
        InputError: If the lengths differ.
    """
    if len(prompts) != len(completions):
        raise InputError(f"there are {len(prompts)} prompts and {len(completions)} completions; expected equal numbers")
