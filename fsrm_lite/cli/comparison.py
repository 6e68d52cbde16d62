"""``fsrm-lite eval --compare``: several models, results and score files on the same items, in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import MANIFEST_NAME
from fsrm_lite.cli.evaluation_runs import Run, eval_options, run_model, run_scores
from fsrm_lite.cli.evaluation_scores import refuse
from fsrm_lite.cli.evaluation_text import comparison_text
from fsrm_lite.errors import DataFormatError, InputError
from fsrm_lite.files import check_output, whole_file, write_text

if TYPE_CHECKING:
    from fsrm_lite.measure.benchmark_formats import Benchmark

EMBEDDED = "embedded"
"""How the embedded model is named on the command line."""


@dataclass(frozen=True, slots=True)
class _Named:
    """One system of the command line.

    Attributes:
        name: What it is called in the table.
        kind: "model", "results" (of ``eval -o``) or "scores".
        source: The model's folder or name, or the file.
        columns: Of a score file, those of its fast scores; None for those of ``--fast-columns``.
    """

    name: str
    kind: str
    source: str
    columns: str | None = None


def compare(arguments: Sequence[str], options: dict[str, Any]) -> None:
    """Compare the systems that the arguments name, and write what the options ask for.

    Args:
        arguments: Models, results and score files; ``evaluate`` explains them.
        options: Of ``eval``.
    """
    from fsrm_lite.measure.comparison import System
    from fsrm_lite.measure.comparison import compare as run

    named = [_named(argument) for argument in arguments]
    _check(named, options)
    runs = _runs(named, options)
    form = runs[0].form
    for system, found in zip(named, runs, strict=True):
        if found.form.name != form.name:
            raise InputError(
                f"{system.name} is measured as {found.form.name!r} and {named[0].name} as {form.name!r}; "
                "name one --format for all"
            )
    matched = _matched(named, runs, by_id=options["id_column"] is not None)
    report = run(
        [
            System(s.name, r.records, items, r.policies, r.cost, r.measured, r.not_read)
            for s, r, items in zip(named, runs, matched, strict=True)
        ],
        form,
        resamples=options["resamples"],
    )
    if options["report"] is not None:
        write_text(options["report"], json.dumps(report, indent=2, allow_nan=False) + "\n")
    if options["picture"] is not None:
        from fsrm_lite.measure.comparison_plot import render

        png = render(report)
        with whole_file(options["picture"]) as part:
            part.write_bytes(png)
    click.echo(json.dumps(report, allow_nan=False) if options["as_json"] else comparison_text(report))


def _named(argument: str) -> _Named:
    """Return which system an argument names."""
    from fsrm_lite.measure.data_files import first_row
    from fsrm_lite.measure.labelled_rows import is_record

    name, source = ("", argument) if Path(argument).exists() or "=" not in argument else argument.split("=", 1)
    path, file, columns = Path(source), *source.rpartition(":")[::2]
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        return _Named(name or path.resolve().name, "model", source)
    if path.exists():
        kind = "results" if is_record(first_row(path).data) else "scores"
        return _Named(name or path.name.split(".")[0], kind, source)
    if file and Path(file).exists():
        return _Named(name or columns, "scores", file, columns)
    return _Named(name or source, "model", source)


def _check(named: Sequence[_Named], options: dict[str, Any]) -> None:
    """Raise a ``click.UsageError`` if something is missing or would have no effect."""
    kinds = {s.kind for s in named}
    if len(named) < 2:
        raise click.UsageError("--compare needs two models, results or score files at least")
    if options["scores"] is not None or options["verdicts"] is not None:
        raise click.UsageError("with --compare, name the files of scores as DATA, without --scores and --verdicts")
    refuse(("output", "resume"), "is for one model; run each with `eval DATA -o FILE`, and compare these files")
    refuse(("model",), "is for one model; with --compare, name the models as DATA")
    if "model" not in kinds:
        refuse(
            ("benchmark", "judge", "votes", "thinking_tokens", "limit", "limit_seed", "batch_size", "truncate"),
            "is about a model, and none was named",
        )
    elif options["benchmark"] is None:
        raise click.UsageError("the models need a benchmark; name it with --on DATA")
    if "results" in kinds and "model" not in kinds and options["form"] == "auto":
        raise click.UsageError("results do not say which benchmark they are of; name it with --format")
    if "scores" not in kinds:
        refuse(
            ("fast_columns", "label_column", "slow_columns", "gate_file"), "is about a file of scores; none was named"
        )
    if options["picture"] is not None and options["picture"].suffix != ".png":
        raise click.UsageError(f"the picture cannot be written to {options['picture'].name!r}; expected a name in .png")
    for name in ("report", "picture"):
        check_output(options[name], [options["benchmark"], *(Path(s.source) for s in named)])


def _runs(named: Sequence[_Named], options: dict[str, Any]) -> list[Run]:
    """Run the models, and read the files."""
    from fsrm_lite.measure.benchmark_formats import FORMATS, load_benchmark
    from fsrm_lite.measure.evaluation import drawn_in_pairs
    from fsrm_lite.measure.evaluation_records import read_records

    benchmark: Benchmark | None = None
    settings = eval_options(options)
    if options["benchmark"] is not None:
        benchmark = load_benchmark(options["benchmark"], options["form"])
        if not benchmark.format.pairwise and any(_only_compares(s, options) for s in named):
            benchmark, settings = drawn_in_pairs(benchmark, settings)  # then all are asked about the same pairs
    name = benchmark.format.name if benchmark is not None else options["form"]
    runs = []
    for system in named:
        mine = {**options, "model": None if system.source == EMBEDDED else system.source}
        if system.kind == "model":
            assert benchmark is not None
            runs.append(run_model(benchmark, options["benchmark"], settings, mine))
        elif system.kind == "results":
            if name not in FORMATS:
                raise InputError(f"format {name!r} is unknown, expected {', '.join(FORMATS)}")
            records = read_records(Path(system.source))
            if any((len(r.escalated) == 1 and len(r.logits) == 2) != FORMATS[name].pairwise for r in records):
                raise DataFormatError(f"{system.source} does not hold results of the format {name!r}")
            runs.append(Run(records, FORMATS[name], {"data": system.source}))
        else:
            columns = system.columns or options["fast_columns"]
            found = run_scores({**mine, "scores": Path(system.source), "fast_columns": columns, "form": name})
            runs.append(replace(found, not_read=found.notes))
    return runs


def _only_compares(system: _Named, options: dict[str, Any]) -> bool:
    if system.kind != "model":
        return False
    source = None if system.source == EMBEDDED else system.source
    bundle = Bundle.open(source, revision=options["revision"], local_files_only=options["local_files_only"])
    return "pointwise_fast" not in bundle.manifest.templates


def _matched(named: Sequence[_Named], runs: Sequence[Run], *, by_id: bool) -> list[list[str]]:
    """Return what names each item of each run in all of them.

    Results have the ids of the benchmark, files of scores those of ``--id-column``. Without that column, items are
    matched by their place, so all must have equally many, and score files the same labels.
    """
    if by_id or all(s.kind != "scores" for s in named):
        ids = {r.id for s, run in zip(named, runs, strict=True) if s.kind == "scores" for r in run.records}
        return [
            [r.id if r.id in ids or not ids else r.id.removeprefix(f"{r.subset}/") for r in run.records] for run in runs
        ]
    scores = [(s, run) for s, run in zip(named, runs, strict=True) if s.kind == "scores"]
    for system, run in zip(named, runs, strict=True):
        if len(run.records) != len(runs[0].records):
            raise DataFormatError(
                f"{system.name} has {len(run.records)} items and {named[0].name} {len(runs[0].records)}; "
                "name an --id-column to match them"
            )
    for system, run in scores[1:]:
        for number, (a, b) in enumerate(zip(scores[0][1].records, run.records, strict=True), start=1):
            if a.right != b.right:
                raise DataFormatError(
                    f"item {number} has other right responses in {system.name} than in {scores[0][0].name}: they are "
                    "not the same items in the same order; name an --id-column to match them"
                )
    return [[str(number) for number in range(len(run.records))] for run in runs]
