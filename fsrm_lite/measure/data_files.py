"""Reads rows from JSON, JSONL, CSV, Parquet and Arrow files, or from a folder of such files.

Text files may be gzipped, which their first bytes tell. A folder may also be one that ``save_to_disk`` of the datasets
library wrote. Parquet and Arrow are read by pyarrow (extra ``data``).
"""

from __future__ import annotations

import ast
import csv
import json
import re
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from fsrm_lite.errors import DataFormatError, missing_extra, one_line
from fsrm_lite.jsonl import parse_json, read_bytes

TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv")
"""Text files that can be read; each may end in ``.gz``."""

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
"""Files that pyarrow reads."""

SUFFIXES = TEXT_SUFFIXES + TABLE_SUFFIXES

_SPLIT_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}\.(?:parquet|arrow|jsonl|json|csv)(?:\.gz)?")
"""How the Hugging Face hub names the parts of a split, for example ``test-00000-of-00002.parquet``."""

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
        file: The file.
    """

    data: dict[str, Any]
    source: str
    where: str
    file: Path


def read_rows(path: Path | str) -> list[SourceRow]:
    """Return every object of a file, or of all data files in a folder and below it, in the order of their names.

    Args:
        path: A file; a folder; or a pattern such as ``data/test-*.parquet``.

    Raises:
        DataFormatError: If there is no file or no row, its type is unknown, or it is malformed; the message names the
            line. Also if a folder holds several splits, one of which must be named.
        MissingExtraError: If a file needs pyarrow and that is not installed.
    """
    return [row for file in data_files(path) for row in read_file(file)]


def first_row(path: Path | str) -> SourceRow:
    """Return the first row that ``read_rows`` would return, without reading on behind it.

    By it a caller tells what kind of rows a file holds. See ``read_rows`` for the arguments and errors.
    """
    file = data_files(path)[0]
    return _row(file, *next(_objects(file, first=True), (None, "")))


def data_files(path: Path | str) -> list[Path]:
    """Return the data files that a path names, sorted; see ``read_rows`` for the arguments and errors."""
    root = Path(path)
    if root.is_file():
        if _suffix(root) not in SUFFIXES:
            raise DataFormatError(
                f"{root.name} is of an unknown type; expected {', '.join(SUFFIXES)}; text files also as .gz"
            )
        return [root]
    if root.is_dir():
        return _saved_to_disk(root) or _files_below(root)
    found = sorted(p for p in root.parent.glob(root.name) if p.is_file()) if "*" in root.name else []
    if not found:
        raise DataFormatError(f"there is no file {root}")
    return [file for part in found for file in data_files(part)]


def read_file(path: Path) -> list[SourceRow]:
    """Return every object of one file.

    Raises:
        DataFormatError: If the file holds no row or is malformed.
        MissingExtraError: If it needs pyarrow and that is not installed.
    """
    rows = [_row(path, data, where) for data, where in _objects(path)]
    return rows or [_row(path, None, "")]


def _row(path: Path, data: dict[str, Any] | None, where: str) -> SourceRow:
    """Return an object of a file as a row; None stands for the lack of any."""
    if data is None:
        raise DataFormatError(f"{path} holds no rows")
    return SourceRow(data, _source(path), where, path)


def _files_below(root: Path) -> list[Path]:
    """Return all data files below a folder; refuse a folder with several splits."""
    found = sorted(p for p in root.rglob("*") if p.is_file() and _suffix(p) in SUFFIXES)
    if not found:
        raise DataFormatError(
            f"the folder {root} has no data file; expected one of {', '.join(SUFFIXES)}; text files also as .gz"
        )
    splits: dict[Path, dict[str, str]] = {}
    for file in found:
        if match := _SPLIT_FILE.fullmatch(file.name):
            splits.setdefault(file.parent, {}).setdefault(match[1], file.name)
    for folder, names in splits.items():
        if len(names) > 1:
            raise DataFormatError(
                f"{folder} holds the splits {', '.join(names)}; name one, for example '{folder}/{min(names)}-*'"
            )
    return found


def _saved_to_disk(root: Path) -> list[Path]:
    """Return the files of a folder that ``save_to_disk`` of the datasets library wrote; empty if it did not."""
    if (root / "dataset_dict.json").is_file():
        splits = _parse(_read_text(root / "dataset_dict.json"), "dataset_dict.json")
        names = splits.get("splits", []) if isinstance(splits, dict) else []
        if len(names) == 1:
            return _saved_to_disk(root / str(names[0]))
        raise DataFormatError(f"{root} holds the splits {', '.join(map(str, names))}; name one, as {root}/SPLIT")
    if not (root / "state.json").is_file():
        return []
    state = _parse(_read_text(root / "state.json"), "state.json")
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        return []
    if state.get("_indices_data_files"):  # an old form, in which the rows stand in another order than in the file
        raise DataFormatError(f"{root} was saved with indices; save it again, after flatten_indices()")
    return [root / str(entry["filename"]) for entry in state["_data_files"]]


def as_list(value: object, where: str) -> list[Any]:
    """Return a list. One that stands in a CSV cell is parsed first: JSON, or as Python or numpy prints a list.

    Args:
        value: A list, or its text.
        where: File and position, for the message.

    Raises:
        DataFormatError: If it is not a list, or where its items end cannot be told for certain.
    """
    parsed = _list_in_cell(value, where) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(parsed, list):
        raise DataFormatError(f"{where}: got a {type(parsed).__name__}, expected a list")
    return parsed


def check_count(data: dict[str, Any], name: str, found: int, what: str, where: str) -> None:
    """Compare a count that stands in the row with what was read; nothing is done if the row has no such count.

    Args:
        data: The row.
        name: Column of the count.
        found: How many there are.
        what: What was counted, for the message.
        where: File and position, for the message.

    Raises:
        DataFormatError: If the count differs.
    """
    stated = data.get(name)
    if stated is not None and str(stated).removesuffix(".0") != str(found):
        raise DataFormatError(
            f"{where}: {name!r} is {stated}, but {found} {what} were read; save the data as Parquet or JSON"
        )


def _list_in_cell(text: str, where: str) -> list[Any]:
    """Return the list that a text spells.

    ``str`` of a numpy array puts no commas between its items: ``['a' 'b']``. Python would join adjacent texts, so they
    are told apart by their tokens. A mixture of both forms could mean either, and is refused.
    """
    try:
        parsed = parse_json(text)
    except DataFormatError:
        pass
    else:
        if isinstance(parsed, list):
            return parsed
    try:
        tokens = [t for t in tokenize.generate_tokens(StringIO(text.strip()).readline) if t.string.strip()]
        body = [t for t in tokens[1:-1] if t.type not in (tokenize.NL, tokenize.NEWLINE)]
        adjacent = sum(a.type == b.type == tokenize.STRING for a, b in pairwise(body))
        if not adjacent:
            parsed = ast.literal_eval(text.strip())
            if isinstance(parsed, list):
                return parsed
        elif adjacent == len(body) - 1 and (tokens[0].string, tokens[-1].string) == ("[", "]"):
            return [ast.literal_eval(t.string) for t in body]
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        pass
    raise DataFormatError(
        f"{where}: cannot tell for certain which items the list {text[:40]!r}... has; save the data as Parquet or JSON"
    )


def _objects(path: Path, *, first: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of one file, each with its position for messages.

    Args:
        path: The file.
        first: Only the first object is wanted, so nothing behind it need be read.
    """
    suffix = _suffix(path)
    if suffix in TABLE_SUFFIXES:
        yield from ((data, f"{path.name} row {number}") for number, data in enumerate(_table(path, first)))
        return
    text = _read_text(path)
    if suffix == ".csv":
        yield from (
            (record, f"{path.name} row {number}")
            for number, record in enumerate(_csv_records(text, path, first), start=2)
        )
        return
    if suffix == ".json" and text.lstrip().startswith("["):
        for position, data in enumerate(_items(text, path, first)):
            yield _object(data, f"{path.name} item {position}"), f"{path.name} item {position}"
        return
    # JSONL. Its name may end in .json, as often on the Hugging Face hub.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path.name} line {number}"
            yield _object(_parse(line, where), where), where


def _items(text: str, path: Path, first: bool) -> list[Any]:
    """Return the items of a JSON list, or only the first one."""
    if first:
        with suppress(ValueError, RecursionError):  # what is wrong with the text, the reader of all of it says
            return [json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip().removeprefix("[").lstrip()))[0]]
    return as_list(_parse(text, path.name), path.name)


def _table(path: Path, first: bool) -> Sequence[dict[str, Any]]:
    """Return the rows of a Parquet or an Arrow file as objects, or only the first one."""
    try:
        import pyarrow
        from pyarrow import feather, ipc, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "data", error) from error
    try:
        if _suffix(path) == ".parquet":
            if first:
                batches = parquet.ParquetFile(path).iter_batches(batch_size=1)
                return [row for batch in islice(batches, 1) for row in batch.to_pylist()]
            table = parquet.read_table(path)
        elif _suffix(path) == ".feather":
            table = feather.read_table(path)
        else:
            with path.open("rb") as file:
                # The datasets library writes streams, pyarrow's own writer files; both are called Arrow files.
                try:
                    table = ipc.open_stream(file).read_all()
                except pyarrow.ArrowInvalid:
                    file.seek(0)
                    table = ipc.open_file(file).read_all()
        rows: list[dict[str, Any]] = (table.slice(0, 1) if first else table).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataFormatError(f"cannot read {path}: {one_line(error)}") from error
    return rows


def _csv_records(text: str, path: Path, first: bool) -> list[dict[str, Any]]:
    """Return the rows of a CSV file as objects, or only the first one; refuse a row that does not fit the header."""
    limit = csv.field_size_limit(_CELL_CHARACTERS)
    try:
        reader = csv.DictReader(StringIO(text), strict=True)
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataFormatError(f"{path.name}: two columns are called {twice!r}; name each of them differently")
        records = list(islice(reader, 1 if first else None))
    except csv.Error as error:
        raise DataFormatError(f"{path.name}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    if any(None in record or None in record.values() for record in records):
        raise DataFormatError(f"{path.name}: a row has more or fewer cells than the header")
    return records


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFormatError(f"cannot read {path}: {error}; save it as UTF-8") from error


def _parse(text: str, where: str) -> object:
    try:
        return parse_json(text)
    except DataFormatError as error:
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
