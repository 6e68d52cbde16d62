"""Reads rows from JSON, JSONL and CSV files, plain or gzipped, or from a folder of such files."""

from __future__ import annotations

import ast
import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from fsrm_lite.errors import DataFormatError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv")
"""File types that can be read; each may end in ``.gz``."""

_CELL_CHARACTERS = 2**27
"""Longest CSV cell, in characters. The csv module's own limit, 128 KiB, is too short for a long response."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One object of a data file.

    Attributes:
        data: The object.
        source: The file's name without its suffixes. The names ``dataset`` and ``data`` say nothing, so for such a file
            it is the folder's name.
        where: File and position, for messages.
    """

    data: dict[str, Any]
    source: str
    where: str


def read_rows(path: Path | str) -> list[SourceRow]:
    """Return every object of a file, or of all data files in a folder and below it, in the order of their names.

    Raises:
        DataFormatError: If there is no file or no row, its type is unknown, or it is malformed; the message names the
            line.
    """
    root = Path(path)
    if root.is_dir():
        found = sorted(p for p in root.rglob("*") if p.is_file() and _suffix(p) in SUFFIXES)
        if not found:
            raise DataFormatError(
                f"the folder {root} has no data file; expected one of {', '.join(SUFFIXES)}, plain or .gz"
            )
        return [row for p in found for row in read_rows(p)]
    if not root.is_file():
        raise DataFormatError(f"there is no file {root}")
    if _suffix(root) not in SUFFIXES:
        raise DataFormatError(f"{root.name} is of an unknown type; expected {', '.join(SUFFIXES)}, plain or .gz")
    rows = [SourceRow(data, _source(root), where) for data, where in _objects(root)]
    if not rows:
        raise DataFormatError(f"{root} holds no rows")
    return rows


def as_list(value: object, where: str) -> list[Any]:
    """Return a list. One that stands in a CSV cell is parsed first, as JSON or as Python prints a list.

    Args:
        value: A list, or its text.
        where: File and position, for the message.

    Raises:
        DataFormatError: If it is not a list.
    """
    parsed = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(value)
                break
            except (ValueError, SyntaxError):
                continue
    if not isinstance(parsed, list):
        raise DataFormatError(f"{where}: got a {type(parsed).__name__}, expected a list")
    return parsed


def _objects(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of one file, each with its position for messages."""
    text = _read_text(path)
    suffix = _suffix(path)
    if suffix == ".csv":
        yield from (
            (record, f"{path.name} row {number}") for number, record in enumerate(_csv_records(text, path), start=2)
        )
        return
    if suffix == ".json" and text.lstrip().startswith("["):
        for position, data in enumerate(as_list(_parse(text, path.name), path.name)):
            yield _object(data, f"{path.name} item {position}"), f"{path.name} item {position}"
        return
    # JSONL. Its name may end in .json, as often on the Hugging Face hub.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path.name} line {number}"
            yield _object(_parse(line, where), where), where


def _csv_records(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file as objects; refuse a row that does not fit the header."""
    limit = csv.field_size_limit(_CELL_CHARACTERS)
    try:
        records = list(csv.DictReader(StringIO(text), strict=True))
    except csv.Error as error:
        raise DataFormatError(f"{path.name}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    if any(None in record or None in record.values() for record in records):
        raise DataFormatError(f"{path.name}: a row has more or fewer cells than the header")
    return records


def _read_text(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataFormatError(f"cannot read {path}: {error}") from error


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataFormatError(f"{where}: invalid JSON ({error})") from error


def _object(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise DataFormatError(f"{where}: got a {type(data).__name__}, expected an object")
    return data


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _source(path: Path) -> str:
    stem = (path.with_suffix("") if path.suffix == ".gz" else path).stem
    return path.parent.name if stem in ("dataset", "data") else stem
