"""``fsrm-lite eval``: measures a model, or the scores of any other system, on a benchmark, or compares several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fsrm_lite.cli.evaluation_runs import eval_options, run_model, run_scores
from fsrm_lite.cli.evaluation_scores import check_source, refuse, score_options
from fsrm_lite.cli.evaluation_text import evaluation_text
from fsrm_lite.cli.models import MODEL_NAMES, model_options
from fsrm_lite.files import check_output, write_text


@click.command("eval")
@click.argument("data", nargs=-1)
@click.option("--compare", is_flag=True, help="Compare several: DATA names models, results and score files.")
@click.option("--on", "benchmark", type=click.Path(path_type=Path), help="With --compare: the models' benchmark.")
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="With --compare: scores and differences, .png."
)
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
def evaluate(data: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's options
    """Measure a model on DATA: a benchmark's original file or folder (JSON, JSONL, CSV, Parquet, Arrow).

    With --judge always, the judge thinks about every item, and always-fast, gated and always-slow are compared. With
    auto it thinks where the gate says so, with never not at all. With --truncate, responses that are too long are cut,
    and an item whose prompt alone is too long counts as a tie.

    With --scores, the scores and verdicts of any other system take the place of DATA and of the model.

    With --compare, DATA are two systems or more: folders or names of models ("embedded" is the embedded one), which
    are measured on the benchmark --on; results of `eval -o`; files of scores, or FILE:A,B for columns of one. NAME=
    before any of them names it in the table.
    """
    if options.pop("compare"):
        from fsrm_lite.cli.comparison import compare

        compare(data, options)
        return
    refuse(("benchmark", "picture"), "goes with --compare")
    if len(data) > 1:
        raise click.UsageError(f"got {len(data)} data, expected one; --compare compares several models or score files")
    _evaluate(Path(data[0]) if data else None, options)


# All other commands have the default "auto". A measurement compares all three policies, for which the judge must think
# about every item.
next(p for p in evaluate.params if p.name == "judge").default = "always"


def _evaluate(data: Path | None, options: dict[str, Any]) -> None:
    """Measure one model on data, or the scores that the options name where there are no data."""
    from fsrm_lite.measure.benchmark_formats import load_benchmark

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
    for name in ("output", "report"):
        check_output(options[name], [data, options["scores"], options["verdicts"]])
    if data is None:
        run = run_scores(options)
    else:
        run = run_model(load_benchmark(data, options["form"]), data, eval_options(options), options)
    report = run.report(options["resamples"])
    if data is None and options["gate_file"] is None:
        report["escalated"] = None  # without a gate nothing is known about what it would escalate
    if options["report"] is not None:
        write_text(options["report"], json.dumps(report, indent=2, allow_nan=False) + "\n")
    click.echo(json.dumps(report, allow_nan=False) if options["as_json"] else evaluation_text(report))
