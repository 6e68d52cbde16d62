"""A reward model that is loaded when it is first needed, and what the adapters share."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from fsrm_lite.checks import expect
from fsrm_lite.errors import InputError
from fsrm_lite.types import LoadSettings, Prompt

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM

Source: TypeAlias = "FastSlowRM | str | Path | None"
"""A loaded model, or what ``FastSlowRM.from_pretrained`` takes."""


class LazyModel:
    """Holds a model, or what is needed to load it.

    Pickle copies only what is needed to load it, with all options. A copy in another process (of a process pool or a
    Ray actor) loads the model again there, and so does a process that was forked after the model was loaded.
    """

    def __init__(self, source: Source = None, **load_options: Unpack[LoadSettings]) -> None:
        """Keep the source; nothing is loaded yet.

        Args:
            source: A loaded model, a bundle folder, a hub name, or None for the embedded model.
            **load_options: For ``FastSlowRM.from_pretrained``, for example ``threads=2``. Not for a loaded model, which
                has its own.
        """
        self._source: str | Path | None
        self._model: FastSlowRM | None
        self._options: LoadSettings
        if source is None or isinstance(source, str | Path):
            self._source, self._model, self._options = source, None, load_options
        else:
            expect(not load_options, "load_options", sorted(load_options), "none for a model that is loaded already")
            self._source, self._options = _origin(source)
            self._model = source
        self._lock = threading.Lock()
        _living.add(self)

    @property
    def model(self) -> FastSlowRM:
        """The model. It is loaded by the first access."""
        with self._lock:
            if self._model is None:
                from fsrm_lite.scorer import FastSlowRM

                self._model = FastSlowRM.from_pretrained(self._source, **self._options)
            return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_model", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _lock=threading.Lock())
        _living.add(self)


def _origin(model: FastSlowRM) -> tuple[str, LoadSettings]:
    """Return what opens a model like a loaded one: its source, and all of its options."""
    # When to ask the judge is a setting of each adapter, which it gives with every call.
    given = getattr(model, "options", {})  # a stand-in of somebody's tests may have none
    options: LoadSettings = {name: value for name, value in given.items() if name != "judge"}  # type: ignore[assignment]
    hub = getattr(model.bundle, "hub", None)
    if hub is None:
        return str(model.bundle.root), options
    options |= {
        "revision": hub.revision,
        "cache_dir": hub.cache_dir,
        "local_files_only": hub.local_files_only,
        "token": hub.token,
    }
    return hub.name, options


_living: weakref.WeakSet[LazyModel] = weakref.WeakSet()
_inherited: list[FastSlowRM] = []  # models of the process that this one was forked from; never to be torn down here


def _load_again() -> None:
    """In a forked process, let each holder load a model of its own: the threads of the inherited one are not here."""
    for holder in list(_living):
        holder._lock = threading.Lock()  # another thread may have held it when the process was forked
        if holder._model is not None:
            _inherited.append(holder._model)
            holder._model = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_load_again)


def check_lengths(prompts: Sequence[Prompt], completions: Sequence[object]) -> None:
    """Check that there are as many prompts as completions.

    Raises:
        InputError: If the lengths differ.
    """
    if len(prompts) != len(completions):
        raise InputError(f"there are {len(prompts)} prompts and {len(completions)} completions; expected equal numbers")
