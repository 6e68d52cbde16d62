"""``fsrm-lite score``, ``compare``, ``rank`` and ``best-of-n``: JSON Lines in, JSON Lines out, in input order."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import click

from fsrm_lite.batches import each
from fsrm_lite.cli.models import model_options, open_model
from fsrm_lite.cli.progress import progress
from fsrm_lite.errors import DataFormatError, InputError
from fsrm_lite.jsonl import Row, dump_row, open_output, read_rows
from fsrm_lite.ranking.order import best_first
from fsrm_lite.ranking.tournament import STRATEGIES
from fsrm_lite.scorer import FastSlowRM, Response
from fsrm_lite.types import Comparison, Prompt, Score, Selection, Strategy

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.argument(
        "source", metavar="IN.jsonl", required=False, type=click.Path(dir_okay=False, allow_dash=True, path_type=Path)
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(allow_dash=True, path_type=Path),
        default="-",
        help="OUT.jsonl; - is standard output.",
    ),
    click.option("--resume", is_flag=True, help="Go on with an output that a broken-off run of the same options left."),
    click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
    click.option(
        "--on-error",
        type=click.Choice(("stop", "skip")),
        default="stop",
        show_default=True,
        help="What to do with a bad row.",
    ),
    click.option("--prefix", default="", help="Put this before the names of the fields that are added."),
    click.option(
        "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Rows per call of the model."
    ),
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print a single result as JSON.")


def _row_options(command: _Command) -> _Command:
    """Add the options that all commands of this module have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_Texts: TypeAlias = tuple[Prompt, list[str]]
"""A prompt and its responses, as a row has them."""

_Encoded: TypeAlias = tuple[Prompt, list[Response]]
"""A prompt and its responses as they will be scored. An empty response of ``best-of-n`` stays text."""


@dataclass(frozen=True, slots=True)
class _Operation:
    """What a command does with its rows.

    Attributes:
        texts: Returns the texts of a row.
        run: Answers a batch, with the fields to add to each row.
        allow_empty: Whether a response may be empty.
    """

    texts: Callable[[dict[str, Any]], _Texts]
    run: Callable[[FastSlowRM, list[_Encoded]], list[dict[str, Any]]]
    allow_empty: bool = False


@click.command()
@_row_options
@click.option("--prompt", help="Score one response: what was asked ...")
@click.option("--response", help="... and the response.")
@_json_option
@model_options
def score(prompt: str | None, response: str | None, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Score responses: rows {"prompt", "response"}, or one --prompt and --response."""

    def run(rm: FastSlowRM, batch: list[_Encoded]) -> list[dict[str, Any]]:
        return [score.to_dict() for score in rm.score_many([(p, responses[0]) for p, responses in batch])]

    operation = _Operation(lambda row: _texts(row, ("response",)), run)
    _run(operation, _single(prompt=prompt, response=response), options)


@click.command()
@_row_options
@click.option("--prompt", help="Compare two responses: what was asked,")
@click.option("--first", help="the one")
@click.option("--second", help="and the other.")
@_json_option
@model_options
def compare(prompt: str | None, first: str | None, second: str | None, **options: Any) -> None:  # noqa: ANN401
    """Compare pairs: rows {"prompt", "response_a", "response_b"} or {"prompt", "chosen", "rejected"}."""

    def texts(row: dict[str, Any]) -> _Texts:
        preferences = "chosen" in row and "response_a" not in row
        return _texts(row, ("chosen", "rejected") if preferences else ("response_a", "response_b"))

    def run(rm: FastSlowRM, batch: list[_Encoded]) -> list[dict[str, Any]]:
        return [_comparison_fields(c) for c in rm.compare_many([(p, a, b) for p, (a, b) in batch])]

    _run(_Operation(texts, run), _single(prompt=prompt, first=first, second=second), options)


@click.command()
@_row_options
@model_options
def rank(**options: Any) -> None:  # noqa: ANN401 - click's options
    """Rank responses by score: rows {"prompt", "responses": [...]}.

    Each response is scored by itself, as FastSlowRM.rank does in Python. best-of-n also compares in pairs those whose
    scores are close.
    """

    def run(rm: FastSlowRM, batch: list[_Encoded]) -> list[dict[str, Any]]:
        scores = iter(rm.score_many([(p, response) for p, responses in batch for response in responses]))
        return [_ranking_fields(list(islice(scores, len(responses)))) for _, responses in batch]

    _run(_Operation(_listed_texts, run), None, options)


@click.command("best-of-n")
@_row_options
@click.option("--strategy", type=click.Choice(STRATEGIES), default="gated", show_default=True, help="Who meets whom.")
@model_options
def best_of_n(strategy: Strategy, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Choose the best of N responses: rows {"prompt", "responses": [...]}.

    All responses are scored. Those that the gate cannot tell from the best one are then compared in pairs (matches),
    which the judge decides, as FastSlowRM.best_of_n does in Python. With --judge always, all responses meet in matches;
    with --strategy fast, the scores decide.
    """

    def run(rm: FastSlowRM, batch: list[_Encoded]) -> list[dict[str, Any]]:
        return [_selection_fields(rm.best_of_n(p, responses, strategy=strategy)) for p, responses in batch]

    _run(_Operation(_listed_texts, run, allow_empty=True), None, options)


def _run(operation: _Operation, single: _Texts | None, options: dict[str, Any]) -> None:
    """Answer the one row that the options give, or all rows of a file."""
    as_json, source = options.pop("as_json", False), options.pop("source")
    if (single is None) == (source is None):
        raise click.UsageError("give either IN.jsonl (- for standard input) or the texts of a single call")
    output, resume, overwrite = (options.pop(name) for name in ("output", "resume", "overwrite"))
    if resume and (overwrite or str(output) == "-"):
        raise click.UsageError("--resume goes with an output file, and not with --overwrite")
    on_error, prefix, size = (options.pop(name) for name in ("on_error", "prefix", "batch_size"))
    with open_model(options) as rm:
        if single is not None:
            texts, cut = _encoded(rm, single, operation.allow_empty)
            fields = operation.run(rm, [texts])[0] | ({"truncated": cut} if cut else {})
            click.echo(
                json.dumps(fields, ensure_ascii=False)
                if as_json
                else "\n".join(f"{name}: {value}" for name, value in fields.items())
            )
            return
        with _Lines(source) as lines, _Writer(output, source, resume, overwrite) as writer:
            _Rows(rm, operation, prefix, on_error == "skip").run(read_rows(lines), writer, size)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A row that can be scored.

    Attributes:
        line: Number of its line.
        row: Its JSON object.
        texts: Its texts as they will be scored.
        cut: For each response that was cut, by position: [characters kept, characters given].
    """

    line: int
    row: dict[str, Any]
    texts: _Encoded
    cut: dict[str, list[int]]


class _Rows:
    """Runs a command over rows, batch by batch."""

    def __init__(self, rm: FastSlowRM, operation: _Operation, prefix: str, skip: bool) -> None:
        self._rm, self._operation, self._prefix, self._skip = rm, operation, prefix, skip
        self._skipped: list[tuple[int, str]] = []
        self._stopped: DataFormatError | None = None
        self._stop_line: float = math.inf
        self._cut = 0

    def run(self, rows: Iterator[Row], writer: _Writer, size: int) -> None:
        """Write one output row per usable input row, in order, and report what was skipped or cut."""
        usable = self._usable(rows)
        for number, written in enumerate(writer.done, start=1):  # rows that an earlier run has answered
            answered = f"{self._prefix}tokens_read" in written  # every command adds this field
            if not answered or not self._found(written, usable):
                raise DataFormatError(
                    f"row {number} of the output is not this input's; "
                    "give the input and options it was made with, or --overwrite"
                )
        while batch := list(islice(usable, size)):
            for asked, fields in zip(batch, self._answers(batch), strict=False):
                row = None if fields is None else self._merged(asked, fields)
                if row is not None:
                    writer.write(row)
                    self._cut += bool(asked.cut)
                elif not self._skip:
                    break
            writer.flush()
        if self._stopped is not None:
            raise self._stopped
        if self._cut:
            click.echo(
                f"{self._cut} rows had responses cut to fit the context; "
                "their field 'truncated' says how much was kept",
                err=True,
            )
        if self._skipped:
            click.echo(
                f"{len(self._skipped)} rows skipped:\n"
                + "\n".join(f"  line {line}: {why}" for line, why in sorted(self._skipped)),
                err=True,
            )
            raise click.exceptions.Exit(1)

    def _found(self, written: dict[str, Any], usable: Iterator[_Asked]) -> bool:
        """Go on to the input row that an output row answers, and return whether there is one.

        Input rows before it have no answer: when the interrupted run came to score them, it found them to be bad and
        skipped them.
        """
        for asked in usable:
            if asked.row.items() <= written.items():
                return True
            if not self._skip:
                return False
            self._skipped.append((asked.line, "skipped by the run that broke off"))
        return False

    def _usable(self, rows: Iterator[Row]) -> Iterator[_Asked]:
        """Yield the rows that can be scored.

        Bad rows are skipped, if that was asked for. Otherwise the first one ends the iteration without an error, so
        that the rows before it are still answered.
        """
        for row in rows:
            try:
                if row.error:
                    raise DataFormatError(row.error)
                texts, cut = _encoded(self._rm, self._operation.texts(row.data), self._operation.allow_empty)
            except InputError as error:
                self._bad(row.line, error)
            else:
                yield _Asked(row.line, row.data, texts, cut)
            if self._stopped is not None:
                return

    def _answers(self, batch: list[_Asked]) -> Iterator[dict[str, Any] | None]:
        """Answer a batch. A row that turns out to be bad only now gets None."""

        def run(part: list[_Asked]) -> list[dict[str, Any]]:
            return self._operation.run(self._rm, [asked.texts for asked in part])

        return each(run, batch, InputError, lambda position, error: self._bad(batch[position].line, error))

    def _bad(self, line: int, error: InputError) -> None:
        """Note a bad row: either it is skipped, or the run ends with its error after the rows before it."""
        why = str(error).removeprefix("item 0: ")  # that is its place in a call of the model; the line number is added
        if self._skip:
            self._skipped.append((line, why))
        elif line < self._stop_line:  # rows are read ahead, so an earlier row may turn out to be bad after a later one
            self._stop_line = line
            self._stopped = DataFormatError(f"line {line}: {why}")

    def _merged(self, asked: _Asked, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the output row; None if the input row already has a field of that name."""
        named = {
            self._prefix + name: value
            for name, value in (fields | ({"truncated": asked.cut} if asked.cut else {})).items()
        }
        taken = sorted(set(asked.row) & set(named))
        if taken:
            self._bad(
                asked.line,
                DataFormatError(
                    f"the row has {', '.join(taken)} already; pass --prefix to name the new fields differently"
                ),
            )
            return None
        return asked.row | named


class _Writer:
    """Writes to standard output, or to a results file in which an earlier run may have left rows (``done``)."""

    def __init__(self, output: Path, source: Path, resume: bool, overwrite: bool) -> None:
        self._file: IO[str]
        self.done: Iterable[dict[str, Any]] = ()
        if str(output) == "-":
            self._file = _standard_output()
        else:
            self._file, self.done = open_output(output, source, resume=resume, overwrite=overwrite)
        self._close = str(output) != "-"

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._close:
            self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        self._file.write(dump_row(row))

    def flush(self) -> None:
        """Pass the rows written so far on to the system, so that they are kept if the run is interrupted."""
        self._file.flush()


def _standard_output() -> IO[str]:
    """Return standard output in UTF-8, which JSON needs whatever the locale says."""
    if sys.stdout is None:
        raise DataFormatError("standard output is closed; name an output with -o")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


class _Lines:
    """The lines of a file or of standard input.

    For a file, a progress bar counts bytes where standard error is a terminal.
    """

    def __init__(self, source: Path) -> None:
        self._source = source

    def __enter__(self) -> Iterable[bytes]:
        if str(self._source) == "-":
            if sys.stdin is None:
                raise DataFormatError("standard input is closed")
            self._file: IO[bytes] = sys.stdin.buffer
            return self._file
        try:
            self._file = self._source.open("rb")
        except OSError as error:
            raise DataFormatError(f"cannot read {self._source}: {error.strerror}") from error
        return self._watched()

    def _watched(self) -> Iterator[bytes]:
        """Yield the lines of the file, moving the progress bar."""
        with progress(self._source.name, self._source.stat().st_size) as step:
            for line in self._file:
                yield line
                step(len(line))

    def __exit__(self, *exception: object) -> None:
        if str(self._source) != "-":
            self._file.close()


def _single(**texts: str | None) -> _Texts | None:
    """Return the texts of a single call from its options, or None if none of these options was given."""
    if all(text is None for text in texts.values()):
        return None
    missing = [f"--{name}" for name, text in texts.items() if text is None]
    if missing:
        raise click.UsageError(f"a single call needs all of its texts; missing: {', '.join(missing)}")
    prompt, *responses = (text for text in texts.values() if text is not None)
    return prompt, responses


def _texts(row: dict[str, Any], names: tuple[str, ...]) -> _Texts:
    """Return the prompt of a row and the responses in the named fields."""
    missing = [name for name in ("prompt", *names) if name not in row]
    if missing:
        raise DataFormatError(f"missing field {missing[0]!r}; the row has {', '.join(sorted(row)) or 'none'}")
    return row["prompt"], [row[name] for name in names]


def _listed_texts(row: dict[str, Any]) -> _Texts:
    """Return the prompt of a row and its list of responses."""
    responses = row.get("responses")
    if not isinstance(responses, list) or not responses or not all(isinstance(r, str) for r in responses):
        raise DataFormatError("field 'responses' is missing or not a non-empty list of strings")
    return _texts(row, ())[0], responses


def _encoded(rm: FastSlowRM, texts: _Texts, allow_empty: bool) -> tuple[_Encoded, dict[str, list[int]]]:
    """Check the texts of a row and turn them into ids, once.

    Returns:
        The texts as they will be scored; and for each response that was cut, by position, [characters kept, characters
        given].
    """
    prompt, given = texts
    responses: list[Response] = []
    cut: dict[str, list[int]] = {}
    for i, text in enumerate(given):
        if allow_empty and isinstance(text, str) and not text.strip():
            responses.append(text)
            continue
        encoded = rm.encode(prompt, text)
        responses.append(encoded)
        if encoded.text != text:
            cut[str(i)] = [len(encoded.text), len(text)]
    return (prompt, responses), cut


def _ranking_fields(scores: list[Score]) -> dict[str, Any]:
    """Return the fields that ``rank`` adds to a row."""
    return {
        "ranking": best_first(scores),
        "scores": [score.score for score in scores],
        "routes": [score.route for score in scores],
        "tokens_read": sum(score.tokens_read for score in scores),
        "tokens_generated": sum(score.tokens_generated for score in scores),
    }


def _comparison_fields(comparison: Comparison) -> dict[str, Any]:
    """Return the fields that ``compare`` adds to a row."""
    fields = comparison.to_dict()
    votes, scores = fields.pop("votes"), fields.pop("scores")
    del fields["pair"]
    first = sum(vote["winner"] == 0 for vote in votes)
    return fields | {"scores": [s["score"] for s in scores], "votes": [first, len(votes) - first]}


def _selection_fields(selection: Selection) -> dict[str, Any]:
    """Return the fields that ``best-of-n`` adds to a row."""
    return {
        "best": selection.index,
        "ranking": list(selection.ranking),
        "scores": [score.score for score in selection.scores],
        "strategy": selection.strategy,
        "comparisons": [
            {"pair": c.pair, "winner": c.winner, "p_first": c.p_first, "route": c.route} for c in selection.comparisons
        ],
        "tokens_read": selection.tokens_read,
        "tokens_generated": selection.tokens_generated,
    }
