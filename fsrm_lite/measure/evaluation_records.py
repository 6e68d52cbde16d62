"""The results file of an evaluation: a record (one line of JSON) per item, from which all figures can be computed."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsrm_lite.checks import is_number, is_whole
from fsrm_lite.errors import DataFormatError, InputError
from fsrm_lite.files import to_disk
from fsrm_lite.jsonl import complete_lines, parse_json, read_bytes
from fsrm_lite.measure.benchmark_formats import Example
from fsrm_lite.measure.labelled import content_key
from fsrm_lite.types import POLICIES


@dataclass(frozen=True, slots=True)
class Slow:
    """What the judge said about one item.

    Attributes:
        winners: For a pair: the preferred position in each order in which it was shown; None where the votes prefer
            neither. The position is always the one in the file.
        decision: For a pair: the preferred position over both orders.
        logits: For responses scored one by one: the score logit of each; None where the judge was not asked, or gave
            none.
        tokens: Tokens the judge wrote: one number for a pair, otherwise one per response.
        votes_logit: For a pair: the log-odds that the votes give the first response (``fsrm_lite.gate.votes_logit``).
        alone: For a pair that both paths decided together: the position that the votes alone would prefer.
    """

    winners: tuple[int | None, ...] = ()
    decision: int | None = None
    logits: tuple[float | None, ...] = ()
    tokens: tuple[float, ...] = ()
    votes_logit: float | None = None
    alone: int | None = None

    def fits(self, responses: int, *, pairwise: bool) -> bool:
        """Return whether every field has the right type and length for an item with so many responses."""
        if not all(isinstance(part, tuple) for part in (self.winners, self.logits, self.tokens)):
            return False
        sides = (*self.winners, self.decision, self.alone)
        return (
            all(x is None or (is_whole(x) and 0 <= x < responses) for x in sides)
            and all(x is None or is_number(x) for x in (*self.logits, self.votes_logit))
            and all(is_number(x) and x >= 0 for x in self.tokens)
            and (bool(self.winners) if pairwise else len(self.logits) == responses)
            and len(self.tokens) == (1 if pairwise else responses)
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a results file.

    Attributes:
        run: Fingerprint of the model and the options. All records of a file have the same one.
        judge: Which items the judge was asked about in this run: "always" (all), "auto" or "never".
        id: Id of the example.
        key: Identity of the example's prompt and responses; see ``fsrm_lite.measure.labelled.content_key``.
        subset: Subset of the example.
        group: Group of the example.
        right: Positions of the right responses.
        lengths: Characters of each response.
        logits: Fast score logit of each response. None for an empty response, which is never read and ranks below any
            other; all None if ``unread``.
        distribution_confidences: Word-distribution confidence of each response, in [0, 1]; 0 for an empty one, None
            from a scalar head.
        label_masses: Probability of all labels together, in [0, 1], per response; 0 for an empty one, None from a
            scalar head.
        escalated: What the gate said: once for a pair, otherwise once per response.
        slow: The judge's answer; None where it was not asked or had nothing to decide.
        unread: A response was too long for the fast path; the item counts as a tie.
        too_long: The judge was to be asked, but the prompt was too long for it; the fast answer stands.
        truncated: Whether each response was cut at its end before it was read; empty if none was.
        asked: The judge was to be asked about the item, or about one of its responses.
        fast_seconds: The item's share of its batch's wall time for fast scores, in seconds.
        slow_seconds: Its share of the wall time of the judge, in seconds. What items cost that turned out to be too
            long for the judge is in it.
    """

    run: str
    judge: str
    id: str
    key: str
    subset: str
    group: str
    right: tuple[int, ...]
    lengths: tuple[int, ...]
    logits: tuple[float | None, ...]
    distribution_confidences: tuple[float | None, ...]
    label_masses: tuple[float | None, ...]
    escalated: tuple[bool, ...]
    slow: Slow | None = None
    unread: bool = False
    too_long: bool = False
    truncated: tuple[bool, ...] = ()
    asked: bool = False
    fast_seconds: float = 0.0
    slow_seconds: float = 0.0

    @property
    def pairwise(self) -> bool:
        """Whether two responses were compared; otherwise each one was scored by itself."""
        return len(self.logits) == 2 and len(self.escalated) == 1

    def to_json(self) -> str:
        """Return the record as a line of JSON, without a line break."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """Return the record on a line of JSON.

        Raises:
            ValueError: If the line is not JSON (a ``DataFormatError``), or its values do not fit together.
            TypeError: If a field is unknown, missing or of a wrong type.
            KeyError: If the field ``slow`` is missing.
        """
        data = _tuples(parse_json(line))
        record = cls(**{**data, "slow": None if data["slow"] is None else Slow(**_tuples(data["slow"]))})
        if not record._plausible():
            raise ValueError("its fields do not fit together")
        return record

    def _plausible(self) -> bool:
        """Return whether every field has the right type and length, and is in its range."""
        parts = (self.right, self.lengths, self.logits, self.distribution_confidences, self.label_masses)
        if not all(isinstance(part, tuple) for part in (*parts, self.escalated, self.truncated)):
            return False
        n = len(self.lengths)
        texts = (self.run, self.id, self.key, self.subset, self.group)
        shares = [x for x in (*self.distribution_confidences, *self.label_masses) if x is not None]
        flags = (*self.escalated, *self.truncated, self.unread, self.too_long, self.asked)
        return (
            all(isinstance(text, str) for text in texts)
            and self.judge in POLICIES
            and all(len(part) == n > 0 for part in (self.logits, self.distribution_confidences, self.label_masses))
            and all(x is None or is_number(x) for x in self.logits)
            and all(is_number(x) and 0 <= x <= 1 for x in shares)
            and all(is_whole(x) and is_number(x) and x >= 0 for x in self.lengths)
            and all(is_number(x) and x >= 0 for x in (self.fast_seconds, self.slow_seconds))
            and all(is_whole(x) and 0 <= x < n for x in self.right)
            and len(set(self.right)) == len(self.right)
            and len(self.truncated) in (0, n)
            and len(self.escalated) in (1, n)
            and all(isinstance(x, bool) for x in flags)
            and (self.slow is None or self.slow.fits(n, pairwise=self.pairwise))
        )


def take_over(output: Path, run: str, examples: Sequence[Example]) -> dict[str, Record]:
    """Read the records of a run that broke off, and remove a half-written last line from the file.

    Args:
        output: The results file.
        run: Fingerprint that its records must have.
        examples: The data of the run.

    Returns:
        The records of these examples, by id.

    Raises:
        InputError: If the file cannot be read.
        DataFormatError: If it comes from another run or other data, has an item twice, or is damaged elsewhere than at
            its end.
    """
    wanted = {x.id: (content_key(x.prompt, x.responses), x.right) for x in examples}
    done: dict[str, Record] = {}
    for number, record in _whole_lines(output):
        if record.run != run:
            raise DataFormatError(f"{output} line {number} stems from another model or other options; start a new file")
        if record.id in done:
            raise DataFormatError(f"{output} line {number} repeats the item {record.id!r}")
        if record.id in wanted and (record.key, record.right) != wanted[record.id]:
            raise DataFormatError(
                f"{output} line {number}: the item {record.id!r} has other texts or labels in the data; "
                "start a new file"
            )
        done[record.id] = record
    return {name: record for name, record in done.items() if name in wanted}


def begin(output: Path) -> None:
    """Make an empty results file.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        output.touch()
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error


def append(output: Path, records: Sequence[Record]) -> None:
    """Add records to the end of a results file, which is there, and put them on the disk.

    Raises:
        InputError: If it cannot be written, or is gone.
    """
    try:
        with output.open("r+", encoding="utf-8") as file:  # "a" would make a new file where somebody removed it
            file.seek(0, os.SEEK_END)
            file.writelines(r.to_json() + "\n" for r in records)
            to_disk(file)
    except OSError as error:
        raise InputError(
            f"{output} cannot be written: {error.strerror or error}; what it holds is kept: pass --resume to go on"
        ) from error


def read_records(path: Path) -> list[Record]:
    """Return all records of a results file, plain or gzipped; a half-written last line is left out, with a warning.

    Raises:
        DataFormatError: If the file cannot be read, or a line is no record.
    """
    *lines, rest = read_bytes(path).split(b"\n")
    if rest.strip(b"\0"):
        warnings.warn(f"{path} ends in a half-written line, which is left out", stacklevel=2)
    return [_record(line, path, number) for number, line in enumerate(lines, start=1)]


_START = b'{"run": "'  # how every line begins


def _whole_lines(output: Path) -> Iterator[tuple[int, Record]]:
    """Yield the records of a results file with their line numbers.

    A half-written last line is removed at the end, once every line before it has turned out to be a record.
    """
    try:
        for number, line in complete_lines(output, _START):
            yield number, _record(line, output, number)
    except OSError as error:
        raise InputError(f"cannot read {output}: {error}") from error


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        return Record.from_json(line)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataFormatError(
            f"{path} line {number} is not a result of this command ({error}); start a new file"
        ) from error


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
