"""Reads and writes JSON and JSON Lines (JSONL): the one reader of the package, for files of every origin.

Files may be gzipped, may begin with a byte-order mark and may end their lines as Windows does. A line that is no JSON
object becomes a row with an error, so that the caller decides what one bad line costs.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import IO, Any

from fsrm_lite.checks import first_repeated
from fsrm_lite.errors import DataFormatError, one_line

MAX_LINE_BYTES = 64 << 20
"""Longest line, or file of one JSON value, that is read into memory, 64 MiB. A longer line is a bad row."""

_GZIP, _UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
_NOT_OURS = "this is not a results file to go on with"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file.

    Attributes:
        line: Its number, counted from 1.
        data: The JSON object on it; empty if there is none.
        error: Why there is no JSON object on it; empty if there is one.
    """

    line: int
    data: dict[str, Any]
    error: str = ""


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Return what a JSON text says.

    Everything that Python's reader raises becomes one error: text that is no JSON, bytes that are no UTF-8, nesting
    that is too deep, and whole numbers of more digits than Python reads. So does an object that names a key twice, of
    which Python would drop one value without a word.

    Raises:
        DataFormatError: With the reason, on one line.
    """
    try:
        plain = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        return json.loads(plain, object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataFormatError(
            f"byte {error.start} is {byte:#04x}, which is not UTF-8; save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataFormatError(one_line(error)) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object that has these pairs.

    Raises:
        ValueError: If two of them have the same key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object names {short(first_repeated(name for name, _ in pairs))} twice")
    return found


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return what a file holds; one that is gzipped, which its first bytes tell, is unpacked.

    Args:
        path: The file.
        most: No more bytes than that are taken into memory, unpacked ones included; None for any number.

    Raises:
        DataFormatError: If the file cannot be read or holds more, or its compressed data are damaged or cut off.
    """
    size = -1 if most is None else most + 1
    try:
        with path.open("rb") as file:
            packed = file.peek(len(_GZIP))[: len(_GZIP)] == _GZIP
            data = gzip.GzipFile(fileobj=file).read(size) if packed else file.read(size)
    except (EOFError, zlib.error, OSError) as error:
        raise DataFormatError(f"cannot read {path}: {one_line(error)}") from error
    if most is not None and len(data) > most:
        raise DataFormatError(f"{path} holds more than {most} bytes")
    return data


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Return what a JSON file says, plain or gzipped.

    Raises:
        DataFormatError: If the file cannot be read, is longer than ``MAX_LINE_BYTES``, or is no JSON; the message names
            it.
    """
    try:
        return parse_json(read_bytes(path, MAX_LINE_BYTES))
    except DataFormatError as error:
        raise DataFormatError(f"{error}" if str(path) in str(error) else f"{path}: invalid JSON ({error})") from error


def read_rows(lines: Iterable[bytes], *, after: int = 0) -> Iterator[Row]:
    """Parse lines into rows, leaving out blank ones.

    A line that does not hold a JSON object becomes a row with an ``error``.

    Args:
        lines: The lines.
        after: How many lines of the file come before them.
    """
    for number, raw in enumerate(lines, start=after + 1):
        try:
            if not raw.strip() or (number == 1 and raw.strip() == b"\xef\xbb\xbf"):
                continue
            if len(raw) > MAX_LINE_BYTES:
                raise DataFormatError(f"it is longer than {MAX_LINE_BYTES >> 20} MiB")
            if number == 1 and raw.startswith(_UTF16):
                raise DataFormatError("the file is UTF-16; save it as UTF-8")
            data = parse_json(raw if number == 1 else raw.decode("utf-8"))
            if not isinstance(data, dict):
                raise DataFormatError(
                    f"{'null' if data is None else f'a JSON {type(data).__name__}'}, expected an object"
                )
            dump_row(data).encode()  # a row that could not be written back is refused now, before it is scored
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"invalid JSON ({one_line(error)})")
            continue
        yield Row(number, data)


@contextmanager
def open_lines(path: Path, watch: Callable[[int], object] = lambda count: None) -> Iterator[Iterator[bytes]]:
    """Yield the lines of a JSONL file, plain or gzipped (told by its first bytes), or of standard input for ``-``.

    Args:
        path: The file.
        watch: Called with the number of bytes of the file that a line took, for a progress bar.

    Yields:
        Lines with their line breaks; of a line longer than ``MAX_LINE_BYTES`` one byte more than that.

    Raises:
        DataFormatError: If the file cannot be read, or its compressed data are damaged or cut off.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise DataFormatError("standard input is closed")
        yield _lines(sys.stdin.buffer, path)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataFormatError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        yield _lines(_Watched(file, watch), path)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, or of standard input for ``-``, one at a time.

    Raises:
        DataFormatError: If the file cannot be read or a line holds no JSON object; the message names file and line.
    """
    with open_lines(path) as lines:
        for row in read_rows(lines):
            if row.error:
                raise DataFormatError(f"{path}, line {row.line}: {row.error}")
            yield row.data


class _Watched(io.RawIOBase):
    """A file that reports how many of its bytes were read."""

    def __init__(self, file: IO[bytes], watch: Callable[[int], object]) -> None:
        super().__init__()
        self._file, self._watch = file, watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._watch(len(data))
        return len(data)


def _lines(file: Any, path: Path) -> Iterator[bytes]:  # noqa: ANN401 - any binary file
    """Yield the lines of an open file, which may be gzipped."""
    buffered = io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file
    start = buffered.peek(2)[:2] if hasattr(buffered, "peek") else b""
    source: Any = gzip.GzipFile(fileobj=buffered) if start == _GZIP else buffered
    try:
        while line := source.readline(MAX_LINE_BYTES + 1):
            yield line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = source.readline(MAX_LINE_BYTES + 1)  # the rest of it is read past
    except (EOFError, zlib.error, OSError) as error:
        raise DataFormatError(f"{path} is damaged or cut off: {one_line(error)}") from error


def dump_row(data: dict[str, Any]) -> str:
    """Return one line of JSON with its line break.

    Raises:
        ValueError: If ``data`` holds NaN or infinity, which JSON does not have.
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


def complete_lines(path: Path, start: bytes = b"{") -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines of a file that an interrupted run left behind, then cut off its half-written last line.

    A power cut may leave zero bytes at the end of a file; they are cut off with it. The file is changed only after the
    last line was taken. A caller that meets a line which it did not write can stop there, and the file stays as it is.

    Args:
        path: The file.
        start: How each line begins. A half-written line that begins otherwise was not written by us and is not cut off.

    Yields:
        Line numbers, counted from 1, and lines with their line breaks.

    Raises:
        DataFormatError: If the file ends in a half-written line that does not begin with ``start``.
    """
    whole = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                half = line.rstrip(b"\0")[: len(start)]
                if half != start[: len(half)]:
                    raise DataFormatError(f"{path}, line {number}: not a row; {_NOT_OURS}")
                break
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            whole += len(line)
    if whole < path.stat().st_size:
        warnings.warn(f"{path} ends in a half-written line, which is cut off", stacklevel=2)
        os.truncate(path, whole)
