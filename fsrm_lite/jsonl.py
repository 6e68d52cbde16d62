"""JSON Lines in and out: rows with their line numbers, and outputs that a broken-off run can go on with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from fsrm_lite.errors import DataFormatError, one_line


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file: its number, counted from 1, and its object, or why it is not one."""

    line: int
    data: dict[str, Any]
    error: str = ""


def read_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Parse lines to rows; blank lines are passed over, a bad line becomes a row with an ``error``."""
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError(f"{'null' if data is None else f'a JSON {type(data).__name__}'}, expected an object")
            dump_row(data).encode()  # what could not be written back is refused now, not after it was scored
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"invalid JSON ({one_line(error)})")
            continue
        yield Row(number, data)


def dump_row(data: dict[str, Any]) -> str:
    """One line of JSON, with its line break; not-a-number and infinity are refused with a ``ValueError``."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


def complete_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Cut a half-written last line off a results file, then yield its rows.

    Raises:
        DataFormatError: If something in it is not a row, so that it is no results file; nothing has been cut then.
    """
    end, number = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if not line.startswith(b"{"):
                    raise DataFormatError(f"{path}, line {number}: not a row; this is not a results file to go on with")
                break
            _result_row(path, number, line)
            end += len(line)
    with path.open("rb+") as file:
        file.truncate(end)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _result_row(path, number, line)


def _result_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataFormatError(
            f"{path}, line {number}: {one_line(error)}; this is not a results file to go on with"
        ) from error
    if not isinstance(data, dict):
        raise DataFormatError(f"{path}, line {number}: not an object; this is not a results file to go on with")
    return data


def open_output(path: Path, source: Path, *, resume: bool, overwrite: bool) -> tuple[IO[str], Iterator[dict[str, Any]]]:
    """Open a results file for writing.

    Returns:
        The file, and the rows it already holds.

    Raises:
        DataFormatError: If it is the input itself, exists and neither ``resume`` nor ``overwrite`` was given, or cannot be written.
    """
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise DataFormatError(
                f"{path} cannot be written: {'it is a folder' if path.is_dir() else f'there is no folder {path.parent}'}"
            )
        if path.exists() and source.exists() and path.samefile(source):
            raise DataFormatError(f"{path} is the input itself; name another output")
        if path.exists() and path.stat().st_size and not overwrite:
            if not resume:
                raise DataFormatError(f"{path} exists; pass --resume to go on with it, or --overwrite to start again")
            return _appended(path)
        return path.open("w", encoding="utf-8"), iter(())
    except OSError as error:
        raise DataFormatError(f"{path} cannot be written: {error.strerror}") from error


def _appended(path: Path) -> tuple[IO[str], Iterator[dict[str, Any]]]:
    rows = complete_rows(path)
    first = next(rows, None)  # checks the whole file, and cuts a half-written line, before it is opened for more
    return path.open("a", encoding="utf-8"), chain([first] if first is not None else [], rows)
