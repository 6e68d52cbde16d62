"""Reading the header of a GGUF file, so that what would make llama.cpp abort is an error before llama.cpp sees it.

Source: the GGUF specification, version 3 (ggml, docs/gguf.md). Only what is needed here: the metadata and the table of
tensors; never their data.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsrm_lite.errors import BundleError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DUPLICATES_MATTER = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table: ggml's number of its type, and its sizes, the row length first."""

    type: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        entries: Metadata; of arrays only the number of elements.
        tensors: By name.
        tokens: Number of different token strings.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


def read_header(path: Path) -> Header:
    """Read and check the header.

    Raises:
        BundleError: If the file cannot be read, is no GGUF file, ends early, or has two tokens of the same text.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                raise BundleError(f"{path} is not a GGUF file (it starts with {magic!r}); export the bundle again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Reader(data).header()
    except OSError as error:
        raise BundleError(f"cannot read the judge's model {path}: {error.strerror or error}") from error
    except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise BundleError(
            f"cannot load {path}: its header is damaged or cut off ({error}); export the bundle again"
        ) from error
    named = header.entries.get(_DUPLICATES_MATTER, 0)
    if named != header.tokens:
        raise BundleError(f"{path} has {named} tokens but only {header.tokens} different ones; export the bundle again")
    return header


class _Reader:
    """Walks over the bytes of a header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4

    def header(self) -> Header:
        version = self._take("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        tensors, entries = self._take("Q"), self._take("Q")
        found: dict[str, Any] = {}
        tokens = 0
        for _ in range(entries):
            key = self._text()
            value = self._value(self._take("I"))
            if key == _DUPLICATES_MATTER and isinstance(value, list):
                tokens = len(set(value))
            found[key] = len(value) if isinstance(value, list) else value
        table = {}
        for _ in range(tensors):
            name = self._text()
            shape = tuple(self._take("Q") for _ in range(self._take("I")))
            table[name] = Tensor(self._take("I"), shape)
            self._take("Q")
        return Header(found, table, tokens)

    def _take(self, code: str) -> Any:  # noqa: ANN401
        value = struct.unpack_from("<" + code, self._data, self._at)[0]
        self._at += struct.calcsize("<" + code)
        return value

    def _bytes(self) -> bytes:
        size = self._take("Q")
        if size > len(self._data) - self._at:
            raise ValueError("a text runs over the end of the file")
        self._at += size
        return self._data[self._at - size : self._at]

    def _text(self) -> str:
        return self._bytes().decode()

    def _value(self, kind: int) -> Any:  # noqa: ANN401
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._take(_SCALARS[kind])
        inner, count = self._take("I"), self._take("Q")
        if inner in _SCALARS:
            self._at += count * struct.calcsize("<" + _SCALARS[inner])
            if self._at > len(self._data):
                raise ValueError("an array runs over the end of the file")
            return [None] * count
        read: Callable[[], Any] = self._bytes if inner == _STRING else lambda: self._value(inner)
        return [read() for _ in range(count)]
