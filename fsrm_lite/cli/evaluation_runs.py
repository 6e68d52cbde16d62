"""Runs a model over a benchmark, or reads the scores that another system gave on it, for ``fsrm-lite eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsrm_lite import __version__
from fsrm_lite.cli.evaluation_scores import read_gate, read_items
from fsrm_lite.cli.identity import run_identity, run_of
from fsrm_lite.cli.models import open_model
from fsrm_lite.cli.progress import progress
from fsrm_lite.gate import Gate, GateSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fsrm_lite.gate import FastSignals
    from fsrm_lite.measure.benchmark_formats import Benchmark, Format
    from fsrm_lite.measure.evaluation import EvalOptions
    from fsrm_lite.measure.evaluation_records import Record

POLICIES = ("always_fast", "gated", "always_slow")


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be reported on.

    Attributes:
        records: One per item.
        form: The format whose metric measures them.
        measured: What was measured: bundle, version, data and options.
        not_read: Data that were left out.
        policies: Those that may be reported.
        cost: What the judge's tokens in the records count, in the plural.
        notes: Remarks about the data.
    """

    records: list[Record]
    form: Format
    measured: dict[str, Any]
    not_read: tuple[str, ...] = ()
    policies: tuple[str, ...] = POLICIES
    cost: str = "tokens"
    notes: tuple[str, ...] = ()

    def report(self, resamples: int) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        from fsrm_lite.measure.evaluation_report import summarize

        report = summarize(
            self.records,
            self.form,
            resamples=resamples,
            run=self.measured,
            not_read=self.not_read,
            cost=self.cost,
            policies=self.policies,
        )
        return {**report, "warnings": [*self.notes, *report["warnings"]]}


def eval_options(options: dict[str, Any]) -> EvalOptions:
    """Return how to run a benchmark, from the options of ``eval``."""
    from fsrm_lite.measure.evaluation import EvalOptions

    return EvalOptions(
        judge=options["judge"],
        votes=options["votes"],
        seed=options["seed"],
        batch=options["batch_size"],
        limit=options["limit"],
        limit_seed=options["limit_seed"],
        skip_too_long=options["truncate"],
    )


def run_model(benchmark: Benchmark, data: Path, settings: EvalOptions, options: dict[str, Any]) -> Run:
    """Run the model that the options name over a benchmark.

    Args:
        benchmark: The items.
        data: Where they are from, for the report.
        settings: How to run it.
        options: Of ``eval``.
    """
    from fsrm_lite.measure.evaluation import as_asked, evaluate

    options = dict(options)
    given = dict(options)
    with open_model(options) as rm:
        benchmark, settings = as_asked(rm, benchmark, settings)
        figures = _RunningFigures(benchmark.format.pairwise)
        total = min(len(benchmark.examples), settings.limit or len(benchmark.examples))
        with progress("items", total, figures.text) as step:

            def show(record: Record) -> None:
                figures.add(record)
                step()

            records = evaluate(
                rm,
                benchmark,
                settings,
                output=options["output"],
                resume=options["resume"],
                identity=run_identity("eval", rm, given),
                progress=show,
            )
        return Run(records, benchmark.format, {**run_of(rm, given), "data": str(data)}, benchmark.not_read)


def run_scores(options: dict[str, Any]) -> Run:
    """Read the scores, and verdicts if there are any, that the options name."""
    from fsrm_lite.measure.score_files import format_of, holds_lists, records, signals_of

    items, notes = read_items(options)
    form = format_of(items, options["form"])
    lists = not form.pairwise and holds_lists(items)
    spec = None if options["gate_file"] is None else read_gate(options["gate_file"], lists=lists)
    gate = Gate(spec or GateSpec())
    escalated = [_escalations(signals_of(x), gate, form.pairwise, lists and spec is not None) for x in items]
    slow = any(x.winners for x in items)
    return Run(
        records(items, escalated, "always" if slow else "never", form),
        form,
        {
            "version": __version__,
            "data": str(options["scores"] or options["verdicts"]),
            "gate": spec.to_dict() if spec else None,
        },
        policies=("always_slow",)
        if options["scores"] is None
        else POLICIES
        if spec
        else ("always_fast", "always_slow"),
        cost="judge calls" if options["tokens_column"] is None else "tokens",
        notes=tuple(notes),
    )


def _escalations(signals: Sequence[FastSignals], gate: Gate, pairwise: bool, lists: bool) -> list[bool]:
    """Return whether the gate escalates: once for a pair, otherwise for each response; for those of a list alike.

    Nobody knows which responses behind the scores of a list say the same, so each is a team of its own.
    """
    if pairwise:
        return [gate.pair(*signals).escalate]
    if lists:
        return [gate.best_of(signals, range(len(signals))).escalate] * len(signals)
    return [gate.single(one).escalate for one in signals]


class _RunningFigures:
    """Accuracy of the gated answers and share of escalated items so far, shown after the progress bar."""

    def __init__(self, pairwise: bool) -> None:
        self._pairwise = pairwise
        self._right = self._escalated = self._done = 0

    def add(self, record: Record) -> None:
        """Count one item."""
        from fsrm_lite.measure.evaluation_report import is_right

        self._done += 1
        self._right += is_right(record, self._pairwise)
        self._escalated += any(record.escalated)

    def text(self) -> str:
        """Return the figures so far."""
        if not self._done:
            return ""
        right, escalated = (100 * part / self._done for part in (self._right, self._escalated))
        return f"accuracy {right:.1f} %, escalated {escalated:.1f} %"
