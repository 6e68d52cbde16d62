"""Collects traces, the training data of a critic: the first step of DRR (arXiv 2501.01457).

A trace is one response of a reasoner with a label, right or wrong. The reasoner is run over questions with known
answers, and its own answer alone gives the label, so that no human has to: a response is right when the answer
extracted from it equals the one extracted from the known answer (the reference). ``fsrm_lite.ranking.answers`` says
how answers are extracted.

The output is a JSONL file, one trace per line, written as the traces come. A run that broke off continues where it
stopped; a half-written last line is removed first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fsrm_lite.errors import DataFormatError, InputError, ReasonerError
from fsrm_lite.files import check_in_place, check_output, sole_writer, to_disk
from fsrm_lite.jsonl import complete_lines, dump_row, parse_json
from fsrm_lite.loops.reasoners import Proposal, Reasoner, Sampling, Task, ask
from fsrm_lite.measure.benchmark_formats import model_solutions
from fsrm_lite.ranking.answers import Extractor, find_extractor, numeric
from fsrm_lite.results import begin_run, check_run

GIVE_UP_AFTER = 16
"""A reasoner that fails on this many questions before it has answered a single one is taken to be broken."""

_START = b'{"question": "'  # how every line begins

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trace:
    """One response of a reasoner with its label.

    Attributes:
        question: The question's text.
        reference: The known answer.
        sample: Number of this response among the responses to the question, from 0.
        response: What the reasoner wrote.
        answer: The answer extracted from the response, or None if it has none.
        label: 1 when that answer equals the reference's, else 0.
        tokens_generated: Tokens the reasoner wrote.
    """

    question: str
    reference: str
    sample: int
    response: str
    answer: str | None
    label: int
    tokens_generated: int


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a run of ``distill`` did.

    Attributes:
        written: Traces that this run wrote.
        kept: Traces that the output file held before.
        right: How many of the written traces are right.
        skipped: Rows left out because they have no usable answer, or another one than their question had before.
        failed: Questions the reasoner failed on; the next run tries them again.
    """

    written: int
    kept: int
    right: int
    skipped: int
    failed: int


def distill(
    questions: Iterable[Mapping[str, Any]],
    reasoner: Reasoner,
    output: Path,
    *,
    sampling: Sampling | None = None,
    extractor: str | Extractor = "final",
    batch_size: int = 32,
    skip_unanswered: bool = False,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> DistillReport:
    """Run a reasoner over questions with known answers and write one labelled trace per response.

    Of each finished trace only a short key stays in memory, so the number of questions does not matter.

    Args:
        questions: Rows with ``question`` (or ``prompt``) and ``answer`` (or ``reference``); other fields are ignored.
        reasoner: Asked for ``sampling.n`` responses per question.
        output: JSONL file. The traces it already holds are kept and not asked for again.
        sampling: How the reasoner samples; by default 4 samples at temperature 0.8.
        extractor: Function (or its name) from a text to its answer; used on responses and on references.
        batch_size: Questions per call of the reasoner, at least 1. A reasoner that answers one by one gets one at a
            time.
        skip_unanswered: Leave out a row without a usable answer, or with another answer than its question had before,
            instead of raising.
        identity: What else decides what the reasoner writes, by name, as JSON: for example the hash of its file. Traces
            are only added to a file for which this, the sampling and the kind of reasoner are as they were.
        progress: Called after each batch with the number of questions in it.

    Returns:
        Counts of what was written, kept, skipped and failed.

    Raises:
        InputError: If ``batch_size`` is below 1, or ``output`` is a folder or has none.
        DataFormatError: If a row has no question, or ``output`` holds something that is not a trace or was labelled by
            another extractor. Unless ``skip_unanswered`` is set, also if a row has no usable answer, or another answer
            than its question had before (in this run or in ``output``).
        ReasonerError: If the reasoner fails on all of the first questions (16 or more) and nothing has been written.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1")
    check_output(output)
    run = _Run(reasoner, sampling or Sampling(n=4), find_extractor(extractor), skip_unanswered)
    size = 1 if getattr(reasoner, "one_by_one", False) else batch_size
    with sole_writer(output), output.open("a", encoding="utf-8") as file:
        kept = run.resume(output)
        made = {"reasoner": type(reasoner).__name__, **asdict(run.sampling), **(identity or {})}
        if kept:
            check_run(output, made)
        else:
            begin_run(output, made)
        rows = iter(enumerate(questions, 1))
        while batch := list(islice(rows, size)):
            for trace in run.answer(batch):
                file.write(dump_row(asdict(trace)))
            to_disk(file)
            check_in_place(file, output)
            if progress is not None:
                progress(len(batch))
            if run.failed >= GIVE_UP_AFTER and not run.written + kept:
                raise ReasonerError(
                    f"the reasoner failed on the first {run.failed} questions, all of them; nothing was written"
                )
    return DistillReport(run.written, kept, run.right, run.skipped, run.failed)


def read_traces(lines: Iterable[str | bytes]) -> Iterator[Trace]:
    """Yield the traces on the lines of a file, given as text or as bytes.

    A line is a trace as ``distill`` writes it, or a row of published solutions as they are: a ``question``, its
    ``ground_truth``, and per model an object with its ``solution`` and whether that ``is_correct`` (the form of GSM8K's
    ``example_model_solutions.jsonl``). Each solution becomes a trace with the published label and the last number as
    its answer; annotations of a calculator are removed. A last line without a line break was left half-written by a run
    that broke off; it is left out, with a warning.

    Raises:
        DataFormatError: If a line is not a trace; the message names it.
    """
    for number, line in enumerate(lines, 1):
        if line[-1:] not in ("\n", b"\n"):
            logger.warning("line %d is incomplete and left out", number)
            return
        if line.strip():
            yield from _traces_of(line, number)


class _Run:
    """One run of ``distill``: its settings, its counts, and which traces are finished."""

    def __init__(self, reasoner: Reasoner, sampling: Sampling, extractor: Extractor, skip_unanswered: bool) -> None:
        self._reasoner = reasoner
        self.sampling = sampling
        self._extract = extractor
        self._skip_unanswered = skip_unanswered
        self._done: set[bytes] = set()
        self._references: dict[bytes, str | None] = {}
        self.written = self.right = self.skipped = self.failed = 0

    def resume(self, output: Path) -> int:
        """Note the traces that ``output`` already holds, remove a half-written last line, and return their number."""
        for number, trace in _kept(output):
            if self._extract(trace.response) != trace.answer:
                raise DataFormatError(
                    f"{output}, line {number} was labelled by another extractor; "
                    "go on with that one, or name another output"
                )
            self._done.add(_key(trace.question, trace.sample))
            self._references[_key(trace.question)] = self._extract(trace.reference)
        return len(self._done)

    def answer(self, batch: list[tuple[int, Mapping[str, Any]]]) -> Iterator[Trace]:
        """Yield the new traces of one batch of numbered rows."""
        known: dict[str, str] = {}
        for number, row in batch:
            if (pair := self._check(number, row)) is not None:
                known.setdefault(*pair)
        asked = [q for q in known if any(_key(q, k) not in self._done for k in range(self.sampling.n))]
        groups = ask(self._reasoner, [Task(q) for q in asked], self.sampling)
        for question, proposals in zip(asked, groups, strict=True):
            usable = [p for p in proposals if p.text.strip()]
            self.failed += not usable
            for sample, proposal in enumerate(usable):
                if (key := _key(question, sample)) not in self._done:
                    self._done.add(key)
                    yield self._label(question, known[question], sample, proposal)

    def _check(self, number: int, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return a row's question and reference, or None if the row is to be skipped."""
        question = row.get("question", row.get("prompt"))
        if not isinstance(question, str) or not question.strip():
            raise DataFormatError(f"row {number} has no question; expected a text under 'question' or 'prompt'")
        reference = row.get("answer", row.get("reference"))
        text = str(reference) if isinstance(reference, str | int | float) and not isinstance(reference, bool) else ""
        answer = self._extract(text)
        before = self._references.setdefault(_key(question), answer) if answer is not None else None
        if answer is not None and answer == before:
            return question, text
        if not self._skip_unanswered:
            if answer is None:
                raise DataFormatError(
                    f"row {number} has no usable answer ({reference!r}); "
                    "expected one that the extractor reads, or skip such rows"
                )
            raise DataFormatError(
                f"row {number} has the answer {answer!r}, but its question had {before!r} before; "
                "name another output, or skip it"
            )
        self.skipped += 1
        return None

    def _label(self, question: str, reference: str, sample: int, proposal: Proposal) -> Trace:
        answer = self._extract(proposal.text)
        right = int(answer is not None and answer == self._extract(reference))
        self.written += 1
        self.right += right
        return Trace(question, reference, sample, proposal.text, answer, right, proposal.tokens_generated)


def _kept(output: Path) -> Iterator[tuple[int, Trace]]:
    """Yield the traces that a file already holds, with their line numbers, then remove a half-written last line."""
    if output.exists():
        for number, line in complete_lines(output, _START):
            if line.strip():
                yield number, _parse(line, number)


def _traces_of(line: str | bytes, number: int) -> list[Trace]:
    """Return the trace on a line, or one for each of the published solutions on it."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataFormatError(f"line {number} is not a trace as fsrm-lite distill writes them: {error}") from error
    try:
        solutions = model_solutions(row) if isinstance(row, dict) else []
    except TypeError as error:
        raise DataFormatError(f"line {number}: a solution must be a text ({error})") from error
    if not solutions:
        return [_parse(line, number)]
    question, reference = row["question"], row.get("ground_truth", "")
    if not all(isinstance(text, str) for text in (question, reference)):
        raise DataFormatError(f"line {number}: question and ground_truth must be texts beside published solutions")
    return [
        Trace(question, reference, sample, text, numeric(text), int(right), 0)
        for sample, (_, text, right) in enumerate(solutions)
    ]


def _parse(line: str | bytes, number: int) -> Trace:
    """Return the trace on a line; refuse a line that is not one."""
    try:
        trace = Trace(**parse_json(line))
    except (ValueError, OverflowError, TypeError) as error:
        raise DataFormatError(f"line {number} is not a trace as fsrm-lite distill writes them: {error}") from error
    texts = (trace.question, trace.reference, trace.response)
    if (
        not all(isinstance(text, str) for text in texts)
        or trace.label not in (0, 1)
        or not isinstance(trace.sample, int)
    ):
        raise DataFormatError(
            f"line {number} is not a trace: "
            "question, reference and response must be texts, label 0 or 1, sample a number"
        )
    return trace


def _key(*parts: str | int) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).digest()
