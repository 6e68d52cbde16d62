"""Looks into the file of a fast graph before ONNX Runtime opens it.

A graph comes from anyone. It may name further files, which ONNX Runtime would open by itself, and it may hold loops,
which may never end. Both can be seen in the file: it is a protobuf message, of which only the parts that lead to
tensors and operators are walked through. The numbers of fields are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from fsrm_lite.errors import BundleError

LOOPS = ("Loop", "Scan")
"""Operators that run a graph again and again. The exporter writes none of them."""

_Bytes: TypeAlias = memoryview
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""For each kind of message, the fields that hold messages worth looking into, and their kind."""

_OPERATOR, _KEY, _VALUE = 4, 1, 2  # the field of a node with its operator's name; key and value of an entry
_DEPTH = 32  # messages within messages; a graph of the exporter needs 6
_LOCATION = b"location"


def check_graph_file(path: Path, data_file: str | None) -> None:
    """Refuse a graph that would open files which its bundle does not list, or that loops.

    Args:
        path: The ``.onnx`` file.
        data_file: Where its external weights lie, relative to its folder, with forward slashes; None if it has none.

    Raises:
        BundleError: If it names another file, has an operator of ``LOOPS``, or is no protobuf message.
    """
    suspects = [_LOCATION, *(bytes([_OPERATOR << 3 | 2, len(name)]) + name.encode() for name in LOOPS)]
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if all(data.find(suspect) < 0 for suspect in suspects):
            return
        # Not closed by hand: an error holds on to views of it, and closing it would then be an error as well.
        found = set(_walk(memoryview(data), "model", 0))
    except (OSError, ValueError, IndexError) as error:  # mmap refuses an empty file with a ValueError
        raise BundleError(f"{path} is not an ONNX model ({error}); export the bundle again") from error
    for kind, name in sorted(found):
        if kind == "operator" and name in LOOPS:
            raise BundleError(f"{path} has the operator {name}, which may run without end; fast graphs have none")
        if kind == "file" and name != data_file:
            raise BundleError(
                f"{path} takes weights from the file {name!r}, which fsrm.json does not list; export the bundle again"
            )


def _walk(message: _Bytes, kind: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield ("operator", name) and ("file", location) of everything within a message."""
    if depth > _DEPTH:
        raise ValueError("messages are nested too deeply")
    inside = _MESSAGES[kind]
    for number, value in _fields(message):
        if kind == "node" and number == _OPERATOR:
            yield "operator", _text(value)
        child = inside.get(number)
        if child == "entry":
            entry = dict(_fields(value))
            if bytes(entry.get(_KEY, b"")) == _LOCATION:
                yield "file", _text(entry.get(_VALUE, memoryview(b"")))
        elif child is not None:
            yield from _walk(value, child, depth + 1)


def _fields(message: _Bytes) -> Iterator[tuple[int, _Bytes]]:
    """Yield the number and the bytes of each field that has a length; numbers of fixed or variable size are skipped."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, at = _varint(message, at)
            if size > end - at:
                raise ValueError("a field runs over the end")
            yield key >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(message: _Bytes, at: int) -> tuple[int, int]:
    """Return a number of variable size, and where the next field begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _text(value: _Bytes) -> str:
    return bytes(value).decode("utf-8", "replace")
