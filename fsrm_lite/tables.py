"""Parquet files as lines of JSON, and lines of JSON as Parquet files; pyarrow (extra ``data``) reads and writes them.

A table becomes the lines that a JSON Lines file of the same rows would have, so that everything that works through rows
need not know where they come from.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fsrm_lite.errors import DataFormatError, missing_extra, one_line
from fsrm_lite.files import whole_file
from fsrm_lite.jsonl import rows_of

ROWS_AT_ONCE = 1024
"""Rows that are in memory together."""


def is_parquet(path: Path) -> bool:
    """Return whether a file's name says that it is a Parquet file."""
    return path.suffix.lower() == ".parquet"


@contextmanager
def open_parquet(path: Path, progress: Callable[[int], Callable[[int], object]]) -> Iterator[Iterator[bytes]]:
    """Yield the rows of a Parquet file as lines of JSON.

    Dates, times and decimal numbers, which JSON does not have, become text.

    Args:
        path: The file.
        progress: Called once with the number of rows; what it returns is called with the number of rows just read.

    Raises:
        DataFormatError: If the file cannot be read, or has a column of bytes, which JSON cannot hold.
        MissingExtraError: If pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            for field in file.schema_arrow:
                if _holds_bytes(pyarrow.types, field.type):
                    raise DataFormatError(
                        f"{path}: column {field.name!r} holds bytes, which a row of JSON cannot hold; drop the column"
                    )
            yield _lines(file, path, progress(file.metadata.num_rows))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataFormatError(f"cannot read {path}: {one_line(error)}") from error


def _lines(file: Any, path: Path, step: Callable[[int], object]) -> Iterator[bytes]:  # noqa: ANN401 - a ParquetFile
    import pyarrow

    try:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield json.dumps(row, ensure_ascii=False, default=_as_text).encode() + b"\n"
            step(batch.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataFormatError(f"{path} is damaged or cut off: {one_line(error)}") from error


def _as_text(value: object) -> str:
    """Return a value that JSON does not have as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | decimal.Decimal):
        return str(value)
    raise DataFormatError(f"a value of type {type(value).__name__}, which JSON does not have")


def _holds_bytes(types: Any, kind: Any) -> bool:  # noqa: ANN401 - pyarrow.types and a DataType
    """Return whether values of a type are bytes or have bytes in them."""
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(types, kind.field(i).type) for i in range(kind.num_fields))


def write_parquet(path: Path, rows: Path) -> None:
    """Write the rows of a JSON Lines file as a Parquet file, whole or not at all.

    A column has the type that all its values fit; a field that a row lacks is null there.

    Raises:
        DataFormatError: If a column holds values that no type fits, such as numbers and texts, or none but ``{}``.
        MissingExtraError: If pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    names: dict[str, Any] = {}
    for chunk in _chunks(rows):
        for name in dict.fromkeys(name for row in chunk for name in row):
            try:
                found = pyarrow.schema([(name, pyarrow.array([row.get(name) for row in chunk]).type)])
                known = pyarrow.schema([(name, names[name])]) if name in names else found
                names[name] = pyarrow.unify_schemas([known, found], promote_options="permissive").field(name).type
            except (pyarrow.ArrowException, OverflowError) as error:
                raise DataFormatError(
                    f"{path} cannot be written: column {name!r} holds values of several kinds ({one_line(error)}); "
                    f"the rows are all in {rows}, as JSON Lines"
                ) from error
    try:
        with whole_file(path) as draft, parquet.ParquetWriter(draft, pyarrow.schema(list(names.items()))) as file:
            for chunk in _chunks(rows):
                columns = [pyarrow.array([row.get(name) for row in chunk], kind) for name, kind in names.items()]
                file.write_table(pyarrow.Table.from_arrays(columns, schema=file.schema))
    except (pyarrow.ArrowException, OverflowError) as error:
        raise DataFormatError(
            f"{path} cannot be written: Parquet has no place for a column's values ({one_line(error)}); the rows are "
            f"all in {rows}, as JSON Lines"
        ) from error


def _chunks(rows: Path) -> Iterator[list[dict[str, Any]]]:
    found = rows_of(rows)
    while chunk := list(islice(found, ROWS_AT_ONCE)):
        yield chunk


def import_pyarrow() -> tuple[Any, Any]:
    """Return the modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        MissingExtraError: If they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "data", error) from error
    return pyarrow, parquet
