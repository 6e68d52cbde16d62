"""A reward model that is loaded when it is first needed, and that travels to other processes without its files' contents."""

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
    """Holds a model or the way to load it.

    A copy made by pickle keeps the way and loads the model again where it arrives: a process pool, a Ray actor.
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
        """The model, loaded now if it was not."""
        with self._lock:
            if self._model is None:
                from fsrm_lite.scorer import FastSlowRM

                self._model = FastSlowRM.from_pretrained(self._source, **self._options)
            return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _lock=threading.Lock())


def text_of(completion: object) -> str:
    """Return the text of a completion: a string, one chat message, or a list of them (the contents joined by line breaks).

    Raises:
        InputError: If it is none of these, or a content is not text.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, dict):
        content = completion.get("content")
        # OpenAI's and TRL's structured form: a list of parts, of which the text parts count.
        return (
            text_of(content)
            if not isinstance(content, list)
            else "".join(str(part["text"]) for part in content if "text" in part)
        )
    if isinstance(completion, list):
        return "\n".join(text_of(message) for message in completion)
    raise InputError(f"a completion is a {type(completion).__name__}; expected a string or a list of chat messages")


def check_lengths(prompts: Sequence[Prompt], completions: Sequence[object]) -> None:
    """Refuse lists that do not belong together.

    Raises:
        InputError: If the lengths differ.
    """
    if len(prompts) != len(completions):
        raise InputError(f"there are {len(prompts)} prompts and {len(completions)} completions; expected equal numbers")
