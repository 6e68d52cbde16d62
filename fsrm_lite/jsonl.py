"""Reads and writes JSON Lines: rows with their line numbers, and output files that an interrupted run can continue."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fsrm_lite.errors import DataFormatError, one_line

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


def read_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Parse lines into rows, leaving out blank ones.

    A line that does not hold a JSON object becomes a row with an ``error``.
    """
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError(f"{'null' if data is None else f'a JSON {type(data).__name__}'}, expected an object")
            dump_row(data).encode()  # a row that could not be written back is refused now, before it is scored
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"invalid JSON ({one_line(error)})")
            continue
        yield Row(number, data)


def dump_row(data: dict[str, Any]) -> str:
    """Return one line of JSON with its line break.

    Raises:
        ValueError: If ``data`` holds NaN or infinity, which JSON does not have.
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


def complete_lines(path: Path, start: bytes = b"{") -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines of a file that an interrupted run left behind, then cut off its half-written last line.

    The file is changed only after the last line was taken. A caller that meets a line which it did not write can stop
    there, and the file stays as it is.

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
                if line[: len(start)] != start[: len(line)]:
                    raise DataFormatError(f"{path}, line {number}: not a row; {_NOT_OURS}")
                break
            yield number, line
            whole += len(line)
    if whole < path.stat().st_size:
        warnings.warn(f"{path} ends in a half-written line, which is cut off", stacklevel=2)
        os.truncate(path, whole)


def complete_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a results file, then cut off its half-written last line; see ``complete_lines``.

    Raises:
        DataFormatError: If something in it is not a row, so that it is no results file. Nothing has been cut off then.
    """
    for number, line in complete_lines(path):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataFormatError(f"{path}, line {number}: {one_line(error)}; {_NOT_OURS}") from error
        if not isinstance(data, dict):
            raise DataFormatError(f"{path}, line {number}: not an object; {_NOT_OURS}")
        yield data


def open_output(path: Path, source: Path, *, resume: bool, overwrite: bool) -> tuple[IO[str], Iterator[dict[str, Any]]]:
    """Open a results file for writing.

    Args:
        path: The results file.
        source: The input file, which must be another one.
        resume: Continue a file that exists.
        overwrite: Replace a file that exists.

    Returns:
        The open file, and the rows that it already holds.

    Raises:
        DataFormatError: If ``path`` is the input itself or cannot be written, or if it exists and neither ``resume``
            nor ``overwrite`` was given.
    """
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise DataFormatError(
                f"{path} cannot be written: "
                f"{'it is a folder' if path.is_dir() else f'there is no folder {path.parent}'}"
            )
        if path.exists() and source.exists() and path.samefile(source):
            raise DataFormatError(f"{path} is the input itself; name another output")
        if path.exists() and path.stat().st_size and not overwrite:
            if not resume:
                raise DataFormatError(f"{path} exists; pass --resume to go on with it, or --overwrite to start again")
            return path.open("a", encoding="utf-8"), complete_rows(path)
        return path.open("w", encoding="utf-8"), iter(())
    except OSError as error:
        raise DataFormatError(f"{path} cannot be written: {error.strerror}") from error
