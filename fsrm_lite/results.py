"""Results files: one line per answered row, written by one process, which another one can continue bit for bit.

Beside a results file ``NAME`` lies its journal, ``.NAME.run``. Its first line says what the run is: command, options,
model and software. Then there is one line per batch: how far into the input and the output it reaches, with the SHA-256
of both up to there. A batch is on the disk before its line is written, so whatever ends a run, the journal never claims
more than there is. A run that goes on cuts the output back to the last batch that is whole, checks that the input is
the one that was answered, and continues with the next batch, as the run would have done that was not interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from reprlib import repr as short
from types import TracebackType
from typing import IO, Any

from fsrm_lite.errors import DataFormatError
from fsrm_lite.files import check_in_place, check_output, sole_writer, to_disk
from fsrm_lite.jsonl import dump_row, parse_json
from fsrm_lite.tables import import_pyarrow, write_parquet

_FORMAT = 1
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """One line of the journal: how far a batch reaches, and what is to be reported of it when the run ends.

    Attributes:
        line: Number of the last input line that it answers.
        input: SHA-256 of the input up to that line.
        bytes: Length of the output behind its rows.
        output: SHA-256 of the output up to there.
        full: False for the batch in which the input ended. More input would have become part of it.
        skipped: Bad rows: number of the line, and what is wrong with it.
        cut: How many of its rows had a response cut to fit the context.
    """

    line: int = 0
    input: str = ""
    bytes: int = 0
    output: str = ""
    full: bool = True
    skipped: list[tuple[int, str]] = field(default_factory=list)
    cut: int = 0


def journal_of(path: Path) -> Path:
    """Return where the journal of a results file lies."""
    target = path.resolve()
    return target.with_name(f".{target.name}.run")


class InputLines:
    """The lines of an input, counted and hashed as they are taken.

    Line breaks of either kind, and one that is missing at the end, count as the same.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._hash = hashlib.sha256()
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._lines)
        self._hash.update(line.rstrip(b"\r\n") + b"\n")
        self.count += 1
        return line

    @property
    def sha256(self) -> str:
        """SHA-256 of the lines taken so far, in hex."""
        return self._hash.hexdigest()

    def skip_to(self, batch: Batch, path: Path) -> None:
        """Take the lines up to the end of a batch that was answered before.

        Raises:
            DataFormatError: If they are not the lines that were answered then.
        """
        while self.count < batch.line and next(self, None) is not None:
            pass
        if self.count < batch.line or self.sha256 != batch.input:
            raise DataFormatError(
                f"the first {batch.line} lines of the input are not those that {path} answers "
                "(rows were changed, inserted or removed); give the input as it was, or --overwrite"
            )

    def put_back(self, lines: list[bytes], before: InputLines) -> None:
        """Continue with ``lines`` and then what follows, with the count and hash of ``before`` them."""
        self._lines = chain(lines, self._lines)
        self._hash, self.count = before._hash, before.count

    def copy(self) -> InputLines:
        """Return the count and the hash as they are now, without lines."""
        other = InputLines(())
        other._hash, other.count = self._hash.copy(), self.count
        return other


class ResultsFile:
    """A results file that is open for writing: a regular file with its journal, or a pipe or device without one."""

    def __init__(self, path: Path, source: Path, run: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Open the file, and lock it against other writers.

        Args:
            path: The results file.
            source: The input file, which must be another one.
            run: What decides the contents of the rows, as JSON: command, options, model, software. A run only goes on
                with a file for which all of it is equal.
            resume: Continue a file that exists.
            overwrite: Replace a file that exists.

        Raises:
            DataFormatError: If ``path`` is the input itself or cannot be written; if another process writes it; if it
                exists and neither ``resume`` nor ``overwrite`` was given; or if it cannot be continued by this run.
        """
        self.path = path
        self.skipped: list[tuple[int, str]] = []
        """Bad rows of the batches that are kept."""
        self.cut = 0
        """Rows of the batches that are kept whose responses were cut."""
        self._batches: list[Batch] = []
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._file: IO[bytes]
        self._journal: IO[bytes] | None = None
        self._resumed = False
        self._open = ExitStack()
        try:
            self._prepare(source, dict(run), resume, overwrite)
        except OSError as error:
            self._open.close()
            raise DataFormatError(f"{path} cannot be written: {error.strerror or error}") from error
        except BaseException:
            self._open.close()
            raise

    def _prepare(self, source: Path, run: dict[str, Any], resume: bool, overwrite: bool) -> None:
        path = self.path
        check_output(path, [source])
        if path.exists() and not path.is_file():
            self._file = self._open.enter_context(path.open("wb"))
            return
        self._open.enter_context(sole_writer(path))
        journal = journal_of(path)
        if path.exists() and path.stat().st_size and not overwrite:
            if not resume:
                raise DataFormatError(f"{path} exists; pass --resume to go on with it, or --overwrite to start again")
            self._resumed, self._batches = True, _batches_of(path, journal, run)
            self._file = self._open.enter_context(path.open("r+b"))
            self._journal = self._open.enter_context(journal.open("r+b"))
        else:
            self._file = self._open.enter_context(path.open("wb"))
            begin_run(path, run)
            self._journal = self._open.enter_context(journal.open("ab"))

    def go_on(self, lines: InputLines) -> None:
        """Take the input lines that the file answers already, and cut the file back to where this run continues.

        Raises:
            DataFormatError: If the input is not the one that was answered. The file stays as it is.
        """
        if not self._resumed:
            return
        kept = self._batches
        if not kept:
            self._cut_back([])
            return
        last = kept[-1]
        if last.full:
            lines.skip_to(last, self.path)
        else:
            before = self._batches[-2] if len(self._batches) > 1 else Batch()
            if before.line:
                lines.skip_to(before, self.path)
            mark, again = lines.copy(), []
            while lines.count < last.line and (line := next(lines, None)) is not None:
                again.append(line)
            lines.skip_to(last, self.path)
            more = next(lines, None)
            if more is not None:  # the input has grown: the rows of the short batch belong to a longer one
                lines.put_back([*again, more], mark)
                kept = self._batches[:-1]
        self._cut_back(kept)

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        data = dump_row(row).encode()
        with self._on_disk():
            self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def end_batch(self, lines: InputLines, *, full: bool, skipped: list[tuple[int, str]], cut: int) -> None:
        """Put the rows written so far on the disk, and then note in the journal that a batch is whole.

        Args:
            lines: The input, of which everything taken so far is answered.
            full: Whether the batch has as many rows as a batch may have.
            skipped: Bad rows since the batch before.
            cut: Rows since then whose responses were cut.
        """
        with self._on_disk():
            to_disk(self._file)
            if self._journal is not None:
                check_in_place(self._file, self.path)
                batch = Batch(lines.count, lines.sha256, self._bytes, self._hash.hexdigest(), full, skipped, cut)
                entry = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
                self._journal.write(dump_row(entry).encode())
                to_disk(self._journal)

    def finish(self) -> None:
        """Do nothing more: the rows are where they belong."""

    def flush(self) -> None:
        """Put the rows written so far on the disk. Without ``end_batch``, a run that goes on writes them again."""
        with self._on_disk():
            to_disk(self._file)

    def close(self) -> None:
        """Close the file and give up the lock. Safe to repeat."""
        self._open.close()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is still in memory of a file that could not be written cannot be written now either.
        with suppress(OSError) if error is not None else nullcontext():
            self.close()

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Say which file could not be written, for example because the disk is full, and how to go on."""
        try:
            yield
        except BrokenPipeError:
            raise  # nobody reads the pipe any more
        except OSError as error:
            after = "" if self._journal is None else "; the batches before are kept: make room, and pass --resume"
            raise DataFormatError(f"{self.path} cannot be written: {error.strerror or error}{after}") from error

    def _cut_back(self, kept: list[Batch]) -> None:
        """Keep these batches of the file, and nothing behind them."""
        end = kept[-1] if kept else Batch()
        self.skipped = [entry for batch in kept for entry in batch.skipped]
        self.cut = sum(batch.cut for batch in kept)
        self._hash, self._bytes = _hash_to(self.path, end.bytes), end.bytes
        self._file.truncate(end.bytes)
        self._file.seek(end.bytes)
        assert self._journal is not None
        size = sum(map(len, self._journal.readlines()[: len(kept) + 1]))
        self._journal.truncate(size)
        self._journal.seek(size)


class ParquetResults(ResultsFile):
    """A results file that becomes a Parquet file when all of its rows are there.

    A Parquet file cannot be continued where it broke off. So until the run is whole, its rows are in a results file
    beside it, ``.NAME.jsonl``, which can.
    """

    def __init__(self, path: Path, source: Path, run: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Open the results file; see ``ResultsFile``.

        Args:
            path: The Parquet file. One that is there stays until the new one is whole.
            source: The input file.
            run: What decides the contents of the rows.
            resume: Continue the results file that a run for ``path`` left.
            overwrite: Begin anew, and replace a Parquet file that exists.

        Raises:
            DataFormatError: If the Parquet file is there already, ``overwrite`` is not given, and there is no run to
                resume that was to replace it; or as in ``ResultsFile``.
            MissingExtraError: If pyarrow is not installed.
        """
        check_output(path, [source])
        self._table, rows = path, path.with_name(f".{path.name}.jsonl")
        broke_off = resume and rows.exists() and rows.stat().st_size > 0  # a run that was to replace the table
        if path.exists() and not overwrite and not broke_off:
            raise DataFormatError(f"{path} exists, and is whole; pass --overwrite to start again")
        import_pyarrow()
        if rows.is_symlink():  # nobody named this file, so that a link was put there to have another one written
            raise DataFormatError(f"{rows} is a link, and so not ours; remove it, or name another output")
        super().__init__(rows, source, run, resume=resume, overwrite=overwrite)

    def finish(self) -> None:
        """Write the Parquet file, and remove the results file and its journal."""
        self.flush()
        try:
            write_parquet(self._table, self.path)
        except OSError as error:
            raise DataFormatError(
                f"{self._table} cannot be written: {error.strerror or error}; all rows are in {self.path}, as JSON "
                "Lines, and --resume makes the table of them"
            ) from error
        self.close()
        for file in (self.path, journal_of(self.path)):
            file.unlink(missing_ok=True)


def check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Refuse to continue a results file unless its journal says that this run made it.

    Args:
        path: The results file.
        run: What decides the contents of its rows; see ``ResultsFile``.

    Raises:
        DataFormatError: If it has no journal or stems from another run; the message says what differs.
    """
    journal = journal_of(path)
    try:
        with journal.open("rb") as file:
            began = parse_json(_whole_line(file.readline()))
        before, known = dict(began["run"]), began["fsrm_lite_run"] == _FORMAT
    except FileNotFoundError as error:
        raise DataFormatError(
            f"{path} cannot be continued: its journal {journal.name}, which says how it was made, is not beside it; "
            "start again with another output, or overwrite this one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataFormatError(f"{path} cannot be continued: its journal {journal} is damaged") from error
    changed = [
        f"{name} was {short(before.get(name))} and is {short(run.get(name))}"
        for name in dict.fromkeys([*before, *run])
        if before.get(name) != run.get(name)
    ]
    if changed or not known:
        raise DataFormatError(
            f"{path} was made otherwise: {'; '.join(changed) or 'by another version'}; "
            "run it as before, name another output, or start it again"
        )


def begin_run(path: Path, run: Mapping[str, Any]) -> None:
    """Write the journal of a results file that is about to be started.

    Args:
        path: The results file.
        run: What decides the contents of its rows.
    """
    journal = journal_of(path)
    journal.unlink(missing_ok=True)  # what lies there is of another run; through a link, another file would be emptied
    with journal.open("xb") as file:
        file.write(dump_row({"fsrm_lite_run": _FORMAT, "run": dict(run)}).encode())
        to_disk(file)


def _batches_of(path: Path, journal: Path, run: dict[str, Any]) -> list[Batch]:
    """Return the batches that a results file holds whole, after checking that this run may continue it.

    Raises:
        DataFormatError: If the file has no journal, stems from another run, or was changed by somebody else.
    """
    check_run(path, run)
    batches = []
    with journal.open("rb") as file:
        lines = file.readlines()[1:]
    for line in lines:  # a power cut may leave half a line or zero bytes at the end
        try:
            data: dict[str, Any] = parse_json(_whole_line(line))
            batches.append(Batch(**{**data, "skipped": [(number, why) for number, why in data["skipped"]]}))
        except (ValueError, TypeError, KeyError):
            break
    return _whole(path, batches)


def _whole_line(line: bytes) -> bytes:
    """Return a line of a journal. Without its line break it was cut off, even if what is there can be read.

    Raises:
        DataFormatError: If it was cut off.
    """
    if not line.endswith(b"\n"):
        raise DataFormatError("the line is cut off")
    return line


def _whole(path: Path, batches: list[Batch]) -> list[Batch]:
    """Return the batches, from the first on, whose rows are in the file as they were written.

    Raises:
        DataFormatError: If the rows of a batch were changed. That rows are missing at the end, or are zero bytes as a
            power cut leaves them, is no change.
    """
    size = path.stat().st_size
    found: list[Batch] = []
    with path.open("rb") as file:
        digest, at = hashlib.sha256(), 0
        for batch in batches:
            if batch.bytes > size:
                break
            data = file.read(batch.bytes - at)
            digest.update(data)
            at = batch.bytes
            if digest.hexdigest() != batch.output:
                if b"\0" in data:  # no row has one
                    break
                raise DataFormatError(
                    f"{path} was changed since its run wrote it (before line {batch.line} of the input was answered); "
                    "it cannot be continued, pass --overwrite to start again"
                )
            found.append(batch)
        file.seek(found[-1].bytes if found else 0)
        if file.read(1) not in (b"", b"{", b"\0"):
            raise DataFormatError(f"{path} holds something that is not a row; it cannot be continued")
    return found


def _hash_to(path: Path, size: int) -> hashlib._Hash:
    """Return the hash of the first ``size`` bytes of a file, which can be continued."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (data := file.read(min(size, _READ_BYTES))):
            digest.update(data)
            size -= len(data)
    return digest
