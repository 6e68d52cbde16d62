"""``fsrm-lite eval``: measures a model, or the scores of any other system, on a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrm_lite import __version__
from fsrm_lite.cli.evaluation_scores import check_source, read_items, refuse, score_options
from fsrm_lite.cli.evaluation_text import evaluation_text
from fsrm_lite.cli.identity import run_identity, run_of
from fsrm_lite.cli.models import MODEL_NAMES, model_options, open_model
from fsrm_lite.cli.progress import progress
from fsrm_lite.files import check_output, write_text
from fsrm_lite.gate import Gate, GateSpec
from fsrm_lite.jsonl import read_json

if TYPE_CHECKING:
    from fsrm_lite.measure.evaluation_records import Record


@click.command("eval")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    default="auto",
    show_default=True,
    help="pairs, rewardbench, rewardbench2, rm-bench, judgebench, llmbar, ...",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="One line per item, JSONL.")
@click.option("--resume", is_flag=True, help="Go on with an output that a broken-off run left.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="The figures, JSON.")
@click.option("--limit", type=click.IntRange(1), help="Only so many items, drawn from all subsets in proportion.")
@click.option("--limit-seed", type=int, default=0, show_default=True, help="Of that draw.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Items per call of the model."
)
@click.option("--resamples", type=click.IntRange(2), default=300, show_default=True, help="Of the bootstrap.")
@click.option(
    "--gate", "gate_file", type=click.Path(path_type=Path), help="gate.json; with --scores the gate to measure."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@score_options
@model_options
def evaluate(data: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Measure a model on DATA: a benchmark's original file or folder (JSON, JSONL, CSV, Parquet, Arrow).

    With --judge always, the judge thinks about every item, and always-fast, gated and always-slow are compared. With
    auto it thinks where the gate says so, with never not at all. With --truncate, responses that are too long are cut,
    and an item whose prompt alone is too long counts as a tie.

    With --scores, the scores and verdicts of any other system take the place of DATA and of the model.
    """
    check_source(data, options)
    if data is None:
        refuse(MODEL_NAMES, "is about a model, which --scores and --verdicts do without; leave it out")
        refuse(
            ("output", "resume", "limit", "limit_seed", "batch_size"),
            "is for runs of a model; --scores and --verdicts have the items already",
        )
    else:
        refuse(
            ("gate_file",),
            "goes with --scores; a model is measured with its own gate, which `fsrm-lite calibrate --write` puts into "
            "its bundle",
        )
    report = _report_on_scores(options) if data is None else _report_on_model(data, options)
    if options["report"] is not None:
        write_text(options["report"], json.dumps(report, indent=2, allow_nan=False) + "\n")
    click.echo(json.dumps(report, allow_nan=False) if options["as_json"] else evaluation_text(report))


# All other commands have the default "auto". A measurement compares all three policies, for which the judge must think
# about every item.
next(p for p in evaluate.params if p.name == "judge").default = "always"


def _report_on_model(data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run a model over a benchmark and return the report."""
    from fsrm_lite.measure.benchmark_formats import load_benchmark
    from fsrm_lite.measure.evaluation import EvalOptions, as_asked
    from fsrm_lite.measure.evaluation import evaluate as run
    from fsrm_lite.measure.evaluation_report import summarize

    for name in ("output", "report"):
        check_output(options[name], [data])
    benchmark = load_benchmark(data, options["form"])
    settings = EvalOptions(
        judge=options["judge"],
        votes=options["votes"],
        seed=options["seed"],
        batch=options["batch_size"],
        limit=options["limit"],
        limit_seed=options["limit_seed"],
        skip_too_long=options["truncate"],
    )
    given = dict(options)
    with open_model(options) as rm:
        measured = {**run_of(rm, given), "data": str(data)}
        benchmark, settings = as_asked(rm, benchmark, settings)
        figures = _RunningFigures(benchmark.format.pairwise)
        total = min(len(benchmark.examples), settings.limit or len(benchmark.examples))
        with progress("items", total, figures.text) as step:

            def show(record: Record) -> None:
                figures.add(record)
                step()

            records = run(
                rm,
                benchmark,
                settings,
                output=options["output"],
                resume=options["resume"],
                identity=run_identity("eval", rm, given),
                progress=show,
            )
    return summarize(
        records, benchmark.format, resamples=options["resamples"], run=measured, not_read=benchmark.not_read
    )


def _report_on_scores(options: dict[str, Any]) -> dict[str, Any]:
    """Return the report on scores, and verdicts if there are any, that another system gave."""
    from fsrm_lite.measure.evaluation_report import summarize
    from fsrm_lite.measure.score_files import format_of, records, signals_of

    check_output(options["report"], [options["scores"], options["verdicts"]])
    items, notes = read_items(options)
    form = format_of(items, options["form"])
    spec = GateSpec.from_dict(read_json(options["gate_file"])) if options["gate_file"] is not None else None
    gate = Gate(spec or GateSpec())
    signals = [signals_of(x) for x in items]
    escalated = [
        [gate.pair(*s).escalate] if form.pairwise else [gate.single(one).escalate for one in s] for s in signals
    ]
    slow = any(x.winners for x in items)
    policies = ["always_fast", "gated", "always_slow"]
    if spec is None:
        policies.remove("gated")
    if options["scores"] is None:
        policies = ["always_slow"]
    report = summarize(
        records(items, escalated, "always" if slow else "never", form),
        form,
        resamples=options["resamples"],
        run={
            "version": __version__,
            "data": str(options["scores"] or options["verdicts"]),
            "gate": spec.to_dict() if spec else None,
        },
        cost="judge calls" if options["tokens_column"] is None else "tokens",
        policies=policies,
    )
    # Without a gate nothing is known about what it would escalate.
    return {**report, "escalated": report["escalated"] if spec else None, "warnings": [*notes, *report["warnings"]]}


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
