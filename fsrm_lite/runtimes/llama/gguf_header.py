"""Reads the header of a GGUF file, so that a damaged file raises an error here instead of making llama.cpp abort.

Only the metadata and the table of tensors are read, never the tensors themselves.

Source: the GGUF specification, version 3 (ggml, docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from fsrm_lite.errors import BundleError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DUPLICATES_MATTER = "tokenizer.ggml.tokens"
_MOST_ENTRIES, _MOST_TENSORS, _MOST_ELEMENTS = 1 << 16, 1 << 20, 1 << 24  # far more than any model has
_DEPTH = 4  # arrays within arrays
_SIZES = {
    "block_count": 1 << 12,
    "context_length": 1 << 30,
    "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 24,
    "attention.head_count": 1 << 16,
    "attention.head_count_kv": 1 << 16,
    "attention.key_length": 1 << 16,
    "attention.value_length": 1 << 16,
    "vocab_size": 1 << 24,
}
"""Sizes of an architecture, each with the largest that is believed. Some others make llama.cpp end the process."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the table of tensors.

    Attributes:
        type: ggml's number of its data type.
        shape: Its sizes, the row length first.
    """

    type: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        entries: The metadata; for an array, only its number of elements.
        tensors: The table of tensors, by name.
        tokens: How many different texts the tokens of the vocabulary have.
    """

    entries: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    Args:
        path: The file.

    Returns:
        The header.

    Raises:
        BundleError: If the file cannot be read, is no GGUF file, ends too early, or has two tokens of the same text.
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
    except (struct.error, ValueError, KeyError, IndexError, RecursionError, MemoryError) as error:
        raise BundleError(
            f"cannot load {path}: its header is damaged or cut off ({error}); export the bundle again"
        ) from error
    _check_sizes(path, header)
    named = header.entries.get(_DUPLICATES_MATTER, 0)
    if named != header.tokens:
        raise BundleError(f"{path} has {named} tokens but only {header.tokens} different ones; export the bundle again")
    return header


def _check_sizes(path: Path, header: Header) -> None:
    """Raise a ``BundleError`` if the architecture is no name, or a size of it is not within its bounds."""
    architecture = header.entries.get("general.architecture", "")
    if not isinstance(architecture, str):
        raise BundleError(
            f"{path} has the architecture {short(architecture)}, expected a name; export the bundle again"
        )
    for name, most in _SIZES.items():
        value = header.entries.get(f"{architecture}.{name}", 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise BundleError(
                f"{path} has {architecture}.{name} {short(value)}, expected a whole number of up to {most}; "
                "export the bundle again"
            )
    if header.entries.get(f"{architecture}.block_count", 1) < 1:
        raise BundleError(f"{path} has no layers ({architecture}.block_count is 0); export the bundle again")


class _Reader:
    """Walks through the bytes of a header. What is wrong with them is raised as a built-in exception."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4

    def header(self) -> Header:
        """Return the header, whose first four bytes have been read already."""
        version = self._take("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        tensors, entries = self._take("Q"), self._take("Q")
        if tensors > _MOST_TENSORS or entries > _MOST_ENTRIES:
            raise ValueError(f"it claims {tensors} tensors and {entries} entries")
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
            dimensions = self._take("I")
            if dimensions > 4:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            shape = tuple(self._take("Q") for _ in range(dimensions))
            table[name] = Tensor(self._take("I"), shape)
            self._take("Q")
        return Header(found, table, tokens)

    def _take(self, code: str) -> Any:  # noqa: ANN401
        """Return one number of the format ``code`` (see the module ``struct``), and go on behind it."""
        value = struct.unpack_from("<" + code, self._data, self._at)[0]
        self._at += struct.calcsize("<" + code)
        return value

    def _bytes(self) -> bytes:
        """Return a text as bytes, and go on behind it. In front of it stands its length."""
        size = self._take("Q")
        if size > len(self._data) - self._at:
            raise ValueError("a text runs over the end of the file")
        self._at += size
        return self._data[self._at - size : self._at]

    def _text(self) -> str:
        return self._bytes().decode()

    def _value(self, kind: int, depth: int = 0) -> Any:  # noqa: ANN401
        """Return a metadata value of the given kind. An array of numbers becomes a list of as many None."""
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._take(_SCALARS[kind])
        inner, count = self._take("I"), self._take("Q")
        if inner in _SCALARS:
            self._at += count * struct.calcsize("<" + _SCALARS[inner])
            if self._at > len(self._data):
                raise ValueError("an array runs over the end of the file")
            if count > _MOST_ELEMENTS:
                raise ValueError(f"an array of {count} elements")
            return [None] * count
        if depth >= _DEPTH or count > _MOST_ELEMENTS:
            raise ValueError(f"an array of {count} elements within {depth} others")
        read: Callable[[], Any] = self._bytes if inner == _STRING else lambda: self._value(inner, depth + 1)
        return [read() for _ in range(count)]
