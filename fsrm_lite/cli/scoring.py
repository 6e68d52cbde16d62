"""``fsrm-lite score``, ``compare``, ``rank`` and ``best-of-n``: rows in, rows out, in input order.

Rows are lines of JSON, or those of a Parquet file.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import click

from fsrm_lite.batches import each
from fsrm_lite.bundle.conversation import read_preference
from fsrm_lite.cli.identity import run_identity
from fsrm_lite.cli.models import model_options, open_model
from fsrm_lite.cli.progress import progress
from fsrm_lite.errors import ContextOverflowError, DataFormatError, InputError
from fsrm_lite.fast.path import EncodedResponse
from fsrm_lite.jsonl import Row, dump_row, open_lines, read_rows
from fsrm_lite.ranking.order import best_first
from fsrm_lite.ranking.tournament import STRATEGIES
from fsrm_lite.results import InputLines, ParquetResults, ResultsFile
from fsrm_lite.scorer import FastSlowRM, Response
from fsrm_lite.tables import is_parquet, open_parquet
from fsrm_lite.types import Comparison, Prompt, Score, Selection, Strategy

if TYPE_CHECKING:
    from fsrm_lite.integrations.ray import Kind, RayPool

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.argument(
        "source", metavar="IN", required=False, type=click.Path(dir_okay=False, allow_dash=True, path_type=Path)
    ),
    click.option(
        "-o",
        "--output",
        type=click.Path(allow_dash=True, path_type=Path),
        default="-",
        help="OUT.jsonl or OUT.parquet; - is standard output.",
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
    click.option(
        "--ray",
        is_flag=False,
        flag_value="local",
        default=None,
        metavar="[ADDRESS]",
        help="Run on a Ray cluster: local (also if no address follows), auto, or HOST:PORT.",
    ),
    click.option("--ray-workers", type=click.IntRange(1), help="Workers of the cluster.  [default: as many as fit]"),
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
        unread_last: Whether a response that is empty or too long ranks last, instead of making the row a bad one.
        kind: What a Ray cluster is asked to do with the rows; None where it cannot be asked.
        fields: Makes of what a cluster returns for a row the fields to add to it.
    """

    texts: Callable[[dict[str, Any]], _Texts]
    run: Callable[[FastSlowRM, list[_Encoded]], list[dict[str, Any]]]
    unread_last: bool = False
    kind: Kind | None = None
    fields: Callable[[Any], dict[str, Any]] = dict


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

    operation = _Operation(lambda row: _texts(row, ("response",)), run, kind="score", fields=lambda s: s.to_dict())
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
        if "chosen" not in row or "response_a" in row:
            return _texts(row, ("response_a", "response_b"))
        if not all(isinstance(row.get(side), list) for side in ("chosen", "rejected")):
            return _texts(row, ("chosen", "rejected"))
        pair = read_preference(row)
        return pair.prompt, [pair.chosen, pair.rejected]

    def run(rm: FastSlowRM, batch: list[_Encoded]) -> list[dict[str, Any]]:
        return [_comparison_fields(c) for c in rm.compare_many([(p, a, b) for p, (a, b) in batch])]

    operation = _Operation(texts, run, kind="compare", fields=_comparison_fields)
    _run(operation, _single(prompt=prompt, first=first, second=second), options)


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

    _run(_Operation(_listed_texts, run, kind="rank", fields=_ranking_fields), None, options)


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

    _run(_Operation(_listed_texts, run, unread_last=True), None, options, {"--strategy": strategy})


def _run(
    operation: _Operation, single: _Texts | None, options: dict[str, Any], own: dict[str, Any] | None = None
) -> None:
    """Answer the one row that the options give, or all rows of a file.

    Args:
        operation: What the command does.
        single: The texts of a single call.
        options: The options that all commands of this module have, and those of the model.
        own: The command's own options that decide the contents of a row.
    """
    as_json, source = options.pop("as_json", False), options.pop("source")
    if (single is None) == (source is None):
        raise click.UsageError(
            "give either IN (a JSON Lines or Parquet file; - for standard input) or the texts of a single call"
        )
    output, resume, overwrite = (options.pop(name) for name in ("output", "resume", "overwrite"))
    if resume and (overwrite or str(output) == "-"):
        raise click.UsageError("--resume goes with an output file, and not with --overwrite")
    on_error, prefix, size = (options.pop(name) for name in ("on_error", "prefix", "batch_size"))
    address, workers = options.pop("ray"), options.pop("ray_workers")
    if address is not None:
        if operation.kind is None or single is not None:
            raise click.UsageError("--ray is for the files of score, compare and rank")
        options["threads"] = (
            options["threads"] or 1
        )  # of each worker; so also of what a run without --ray compares with
    own = {**(own or {}), "--prefix": prefix, "--batch-size": size}
    given = dict(options)
    with open_model(options) as rm:
        if single is not None:
            texts, cut = _encoded(rm, single, operation.unread_last)
            fields = operation.run(rm, [texts])[0] | ({"truncated": cut} if cut else {})
            click.echo(
                json.dumps(fields, ensure_ascii=False)
                if as_json
                else "\n".join(f"{name}: {value}" for name, value in fields.items())
            )
            return
        if address is not None and not rm.fast.reads_responses:
            raise click.UsageError(
                f"--ray: the model {rm.bundle.manifest.name!r} reads pairs only; run it without --ray"
            )
        run = run_identity(click.get_current_context().info_name or "", rm, given, own)
        with (
            _pool(address, workers, given) as pool,
            _watched(source) as lines,
            _opened(output, source, run, resume, overwrite) as out,
        ):
            _Rows(rm, operation, prefix, on_error == "skip", pool).run(InputLines(lines), out, size)


@contextmanager
def _pool(address: str | None, workers: int | None, options: dict[str, Any]) -> Iterator[RayPool | None]:
    """Yield the workers of a Ray cluster, if there is to be one. Each of them opens the model.

    Args:
        address: Where the cluster is; None for none.
        workers: How many workers; None for as many as there is room for.
        options: The values of ``model_options``.
    """
    if address is None:
        yield None
        return
    from fsrm_lite.integrations.ray import RayPool

    chosen = {name: value for name, value in options.items() if name not in ("model", "truncate") and value is not None}
    with RayPool(options["model"], address=address, workers=workers, **chosen) as pool:
        yield pool


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


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are answered together.

    Attributes:
        asked: The rows.
        lines: The input as it was when they had been read, of which only count and hash are used.
    """

    asked: list[_Asked]
    lines: InputLines


class _Rows:
    """Runs a command over rows, batch by batch. With a pool of workers, batches are read ahead of their answers."""

    def __init__(
        self, rm: FastSlowRM, operation: _Operation, prefix: str, skip: bool, pool: RayPool | None = None
    ) -> None:
        self._rm, self._operation, self._prefix, self._skip, self._pool = rm, operation, prefix, skip, pool
        self._skipped: list[tuple[int, str]] = []
        self._stopped: DataFormatError | None = None
        self._stop_line: float = math.inf
        self._cut = 0

    def run(self, lines: InputLines, out: _Output, size: int) -> None:
        """Write one output row per usable input row, in order, and report what was skipped or cut."""
        out.go_on(lines)
        self._skipped, self._cut = list(out.skipped), out.cut
        cut, answered = self._cut, lines.count
        for batch, results in self._with_results(self._batches(lines, size)):
            self._answer(batch.asked, results, out)
            until = batch.lines.count
            if self._stop_line <= until:
                out.flush()
                break
            if until > answered:
                skipped = [(line, why) for line, why in self._skipped if answered < line <= until]
                out.end_batch(batch.lines, full=len(batch.asked) == size, skipped=skipped, cut=self._cut - cut)
                cut, answered = self._cut, until
        if self._stopped is not None:
            raise self._stopped
        out.finish()
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

    def _batches(self, lines: InputLines, size: int) -> Iterator[_Batch]:
        """Yield the rows that can be scored in batches, all of them full but the last one."""
        usable = self._usable(read_rows(lines, after=lines.count))
        while self._stopped is None:
            asked = list(islice(usable, size))
            yield _Batch(asked, lines.copy())
            if len(asked) < size:
                return

    def _with_results(self, batches: Iterator[_Batch]) -> Iterator[tuple[_Batch, Sequence[Any] | InputError | None]]:
        """Yield each batch with what the workers found; with None where there are no workers."""
        if self._pool is None or self._operation.kind is None:
            yield from ((batch, None) for batch in batches)
            return
        sent: deque[_Batch] = deque()

        def rows() -> Iterator[list[tuple[Prompt, list[str]]]]:
            for batch in batches:
                sent.append(batch)
                yield [(prompt, [_plain(r) for r in responses]) for prompt, responses in (a.texts for a in batch.asked)]

        for results in self._pool.map(self._operation.kind, rows()):
            yield sent.popleft(), results

    def _answer(self, batch: list[_Asked], results: Sequence[Any] | InputError | None, out: _Output) -> None:
        """Write the output rows of a batch, up to the first bad row if bad rows end the run."""
        found: Iterable[dict[str, Any] | None]
        if isinstance(results, Sequence):
            found = map(self._operation.fields, results)
        else:  # there are no workers, or one of them refused a row: find out here which one
            self._rm.fast.forget()  # a batch starts alike, whether it is the first one of its process or not
            found = self._answers(batch)
        for asked, fields in zip(batch, found, strict=False):
            row = None if fields is None else self._merged(asked, fields)
            if row is not None:
                out.write(row)
                self._cut += bool(asked.cut)
            elif not self._skip:
                break

    def _usable(self, rows: Iterator[Row]) -> Iterator[_Asked]:
        """Yield the rows that can be scored.

        Bad rows are skipped, if that was asked for. Otherwise the first one ends the iteration without an error, so
        that the rows before it are still answered.
        """
        for row in rows:
            try:
                if row.error:
                    raise DataFormatError(row.error)
                texts, cut = _encoded(self._rm, self._operation.texts(row.data), self._operation.unread_last)
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


class _Output(Protocol):
    """Where rows go: a ``ResultsFile``, or standard output."""

    skipped: list[tuple[int, str]]
    cut: int

    def go_on(self, lines: InputLines) -> None:
        """Take the input lines that are answered already."""

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""

    def end_batch(self, lines: InputLines, *, full: bool, skipped: list[tuple[int, str]], cut: int) -> None:
        """Pass the rows of a whole batch on."""

    def flush(self) -> None:
        """Pass the rows written so far on."""

    def finish(self) -> None:
        """Take note that all rows are written."""


class _StandardOutput:
    """Writes rows to standard output, in UTF-8, which JSON needs whatever the locale says."""

    def __init__(self) -> None:
        self.skipped: list[tuple[int, str]] = []
        self.cut = 0
        if sys.stdout is None:
            raise DataFormatError("standard output is closed; name an output with -o")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")

    def go_on(self, lines: InputLines) -> None:
        """Do nothing: no row is answered yet."""

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        sys.stdout.write(dump_row(row))

    def end_batch(self, lines: InputLines, *, full: bool, skipped: list[tuple[int, str]], cut: int) -> None:
        """Pass the rows of a whole batch on to whoever reads."""
        sys.stdout.flush()

    def flush(self) -> None:
        """Pass the rows written so far on to whoever reads."""
        sys.stdout.flush()

    def finish(self) -> None:
        """Do nothing more."""


@contextmanager
def _opened(output: Path, source: Path, run: dict[str, Any], resume: bool, overwrite: bool) -> Iterator[_Output]:
    """Yield where the rows go, and close it afterwards."""
    if str(output) == "-":
        yield _StandardOutput()
        return
    kind = ParquetResults if is_parquet(output) else ResultsFile
    with kind(output, source, run, resume=resume, overwrite=overwrite) as file:
        yield file


@contextmanager
def _watched(source: Path) -> Iterator[Iterator[bytes]]:
    """Yield the lines of the input, moving a progress bar that counts the bytes of a file, or the rows of a table."""
    if is_parquet(source):
        with ExitStack() as stack:
            yield stack.enter_context(
                open_parquet(source, lambda count: stack.enter_context(progress(source.name, count)))
            )
        return
    try:
        size = source.stat().st_size if str(source) != "-" else 0
    except OSError as error:
        raise DataFormatError(f"cannot read {source}: {error.strerror}") from error
    if str(source) == "-":
        with open_lines(source) as lines:
            yield lines
        return
    with progress(source.name, size) as step, open_lines(source, step) as lines:
        yield lines


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


def _plain(response: Response) -> str:
    return response.whole if isinstance(response, EncodedResponse) else response


def _listed_texts(row: dict[str, Any]) -> _Texts:
    """Return the prompt of a row and its list of responses."""
    responses = row.get("responses")
    if not isinstance(responses, list) or not responses or not all(isinstance(r, str) for r in responses):
        raise DataFormatError("field 'responses' is missing or not a non-empty list of strings")
    return _texts(row, ())[0], responses


def _encoded(rm: FastSlowRM, texts: _Texts, unread_last: bool) -> tuple[_Encoded, dict[str, list[int]]]:
    """Check the texts of a row and turn them into ids, once.

    Returns:
        The texts as they will be scored; and for each response that was cut, by position, [characters kept, characters
        given].
    """
    prompt, given = texts
    responses: list[Response] = []
    cut: dict[str, list[int]] = {}
    for i, text in enumerate(given):
        if unread_last and isinstance(text, str) and not text.strip():
            responses.append(text)
            continue
        try:
            encoded = rm.encode(prompt, text)
        except ContextOverflowError:
            if not unread_last:
                raise
            responses.append(text)  # like an empty one, it ranks last
            continue
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
    return fields | {
        "scores": None if scores is None else [s["score"] for s in scores],  # None where the pair was read as a pair
        "votes": [first, len(votes) - first],
    }


def _selection_fields(selection: Selection) -> dict[str, Any]:
    """Return the fields that ``best-of-n`` adds to a row."""
    unread = {str(i): s.reasons[0] for i, s in enumerate(selection.scores) if s.label_mass == 0.0 and s.reasons}
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
        **({"unread": unread} if unread else {}),
    }
