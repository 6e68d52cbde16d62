"""``fsrm-lite calibrate``, ``eval`` and ``gate``: what the gate should be, and what it is worth.

``calibrate`` chooses its thresholds from labelled data, ``eval`` measures a model on a benchmark, and ``gate`` checks
whether another build decides alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrm_lite import __version__
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import MANIFEST_NAME
from fsrm_lite.cli.evaluation_scores import check_source, columns_of, read_items, score_options, unlabelled_items
from fsrm_lite.cli.evaluation_text import (
    calibration_text,
    drift_text,
    evaluation_text,
    list_calibration_text,
    plan_text,
)
from fsrm_lite.cli.models import model_options, open_model
from fsrm_lite.cli.progress import progress
from fsrm_lite.errors import CalibrationError, DataFormatError, FsrmError, InputError
from fsrm_lite.files import whole_file
from fsrm_lite.gate import Gate, GateSpec

if TYPE_CHECKING:
    from fsrm_lite.measure.calibration import Goal
    from fsrm_lite.measure.evaluation_records import Record
    from fsrm_lite.scorer import FastSlowRM

PATHS = ("intuition", "distribution", "joint")

_TOLD = (
    "form",
    "judge",
    "votes",
    "thinking_tokens",
    "temperature",
    "seed",
    "limit",
    "limit_seed",
    "truncate",
    "batch_size",
    "revision",
)
"""Options of ``eval`` that its report names, where they were given."""


@click.command()
@click.argument("labelled", required=False, type=click.Path(path_type=Path))
@click.option("--risk", type=float, help="Error rate among the items decided fast, kept with probability --confidence.")
@click.option(
    "--budget", type=float, metavar="TOKENS", help="Mean generated tokens per item; the most accurate gate within it."
)
@click.option(
    "--within",
    type=float,
    metavar="LOSS",
    help="Accuracy that may be lost against always thinking, e.g. 0.005; the cheapest such gate.",
)
@click.option("--pareto", is_flag=True, help="The whole front of accuracy against tokens.")
@click.option(
    "--confidence",
    type=float,
    default=0.90,
    show_default=True,
    help="Of the risk target, over the draw of items; of the bound of --within.",
)
@click.option(
    "--path",
    "paths",
    type=click.Choice(PATHS),
    multiple=True,
    help="Repeatable: walk these, delta split.  [default: the best one]",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="gate.json; with --pareto the front."
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Every figure with its interval, JSON.")
@click.option(
    "--plots", type=click.Path(dir_okay=False, path_type=Path), help="Four plots: a .png, or a self-contained .html."
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what the model said, JSONL; it can be calibrated on again.",
)
@click.option(
    "--test", type=click.Path(path_type=Path), help="Labelled items that are only measured; none may be in LABELLED."
)
@click.option("--plan", is_flag=True, help="Only say how many labelled items the --risk would need.")
@click.option("--coverage", type=float, help="With --plan: share to be decided fast.  [default: 0.25, 0.5, 0.75 and 1]")
@click.option("--write", is_flag=True, help="Put the gate into the manifest of the --model folder.")
@click.option("--tuning-share", type=float, help="Share of the items that tunes.  [default: 0.2 for a risk, else 0.5]")
@click.option("--resamples", type=click.IntRange(2), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--format", "form", default="auto", show_default=True, help="Of a benchmark, as for `fsrm-lite eval`.")
@click.option(
    "--group-by",
    "grouping",
    type=click.Choice(("final", "text")),
    help="For lists: candidates with the same final answer, or the same text, are one team.  [default: final]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@score_options
@model_options
def calibrate(labelled: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's options
    """Choose the gate's thresholds from LABELLED items.

    Rows are {"prompt", "response", "label"}, {"prompt", "chosen", "rejected"} or {"prompt", "response_a", "response_b",
    "label"}; or a benchmark's, as for `fsrm-lite eval`; or what --record or `fsrm-lite eval -o` wrote, for which no
    model is needed. Give exactly one of --risk, --budget, --within and --pareto. The judge thinks about every item,
    unless the goal is --risk and --judge is not "always". With --truncate, responses that are too long are cut, and
    items that are still too long are left out.

    Rows {"prompt", "responses": [...], "labels": [0, 1, ...]} are lists (or "right", with the position of the right
    response or several). With --risk, they give the gate's rule for the best of N; the judge is not asked.

    With --scores, the scores and verdicts of any other system take the place of LABELLED and of the model. It has to
    apply the gate itself: the report says how far apart two scores must be.
    """
    from fsrm_lite.measure.calibration import Goal
    from fsrm_lite.measure.calibration import calibrate as run
    from fsrm_lite.measure.labelled_lists import holds_lists

    check_source(labelled, options)
    inputs = [labelled, options["test"], options["scores"], options["verdicts"]]
    _check_outputs((options[name] for name in ("output", "report", "plots", "record")), inputs)
    if labelled is not None and options["form"] == "auto" and holds_lists(labelled):
        _calibrate_lists(labelled, options)
        return
    if options["grouping"] is not None:
        raise click.UsageError("--group-by is for lists: rows with 'responses' and 'labels'")
    if labelled is None and _calibrate_score_lists(options):
        return
    goal = Goal(
        risk=options["risk"],
        budget=options["budget"],
        within=options["within"],
        front=options["pareto"],
        confidence=options["confidence"],
        paths=options["paths"] or None,
    )
    if goal.front and options["write"]:
        raise click.UsageError("--write needs one gate; --pareto gives many")
    folder = _manifest_folder(options["model"]) if options["write"] else None
    slow = options["judge"] == "always" or (options["judge"] == "auto" and goal.risk is None)
    (items, test_items), notes, made_with = (
        _scored_items(options)
        if labelled is None
        else _labelled_items([labelled, options["test"]], slow, dict(options))
    )
    if options["plan"]:
        click.echo(_plan(items, goal, options["coverage"], options["as_json"]))
        return
    if options["record"] is not None:
        _write(options["record"], "".join(json.dumps(x.to_dict()) + "\n" for x in items))
    result = run(
        items,
        goal,
        test_items=test_items,
        tuning_share=options["tuning_share"],
        seed=options["seed"] or 0,
        resamples=options["resamples"],
        run={**made_with, "data": str(labelled or options["scores"])},
        notes=notes,
        cost="judge calls" if labelled is None and options["tokens_column"] is None else "tokens",
    )
    if options["output"] is not None:
        found = {"front": result.report["front"]} if result.gate is None else result.gate.to_dict()
        _write(options["output"], json.dumps(found, indent=2) + "\n")
    if options["report"] is not None:
        _write(options["report"], json.dumps(result.report, indent=2, allow_nan=False) + "\n")
    if options["plots"] is not None:
        from fsrm_lite.measure.calibration_plots import write_picture

        write_picture(result, options["plots"])
    if folder is not None and result.gate is not None:
        _write_gate(folder, result.gate)
    click.echo(json.dumps(result.report, allow_nan=False) if options["as_json"] else calibration_text(result.report))


def _calibrate_lists(labelled: Path, options: dict[str, Any]) -> None:
    """Choose the gate's rule for the best of N from labelled lists; ``calibrate`` explains the options."""
    from fsrm_lite.measure.labelled_lists import Grouping, LabelledList, collect_lists, read_lists

    _check_list_goal(options)
    folder = _manifest_folder(options["model"]) if options["write"] else None
    rows = [read_lists(path) if path is not None else [] for path in (labelled, options["test"])]
    fresh = sum(len(part) for part in rows if part and not isinstance(part[0], LabelledList))
    if options["grouping"] is not None and not fresh:
        raise click.UsageError("recorded lists have their teams already; --group-by goes with rows that have texts")
    model = options["model"]
    base = Bundle.open(model).manifest.gate if fresh or model is not None else None
    found: list[list[Any]] = [list(part) for part in rows]
    if fresh:
        with open_model(dict(options)) as rm, progress("lists", fresh) as step:
            grouping: Grouping = options["grouping"] or "final"
            found = [
                part
                if not part or isinstance(part[0], LabelledList)
                else collect_lists(rm, part, grouping=grouping, progress=step)
                for part in found
            ]
    _choose_list_rule(found[0], found[1], options, base=base, folder=folder)


def _check_list_goal(options: dict[str, Any]) -> None:
    """Raise a ``click.UsageError`` if an option was given that lists do not take."""
    others = ("budget", "within", "pareto", "paths", "plots", "plan")
    given = [name for name in others if options[name] not in (None, False, ())]
    if options["risk"] is None or given:
        raise click.UsageError(
            "the file holds lists, which take --risk as their goal, without --path, --plots and --plan"
        )


def _choose_list_rule(
    lists: list[Any],
    test_lists: list[Any],
    options: dict[str, Any],
    *,
    base: GateSpec | None = None,
    folder: Path | None = None,
) -> None:
    """Choose the rule for the best of N, and write what the options ask for.

    Args:
        lists: Labelled lists.
        test_lists: Those that are only measured.
        options: Of ``calibrate``.
        base: The gate that the rule becomes a part of; None writes the rule alone.
        folder: The bundle whose manifest is to get the rule.
    """
    from fsrm_lite.measure.list_calibration import calibrate_lists
    from fsrm_lite.measure.risk_control import TUNING_SHARE

    if options["record"] is not None:
        _write(options["record"], "".join(json.dumps(x.to_dict()) + "\n" for x in lists))
    result = calibrate_lists(
        lists,
        options["risk"],
        options["confidence"],
        test_lists=test_lists,
        tuning_share=options["tuning_share"] or TUNING_SHARE,
        seed=options["seed"] or 0,
    )
    if options["output"] is not None:
        # Recorded lists do not say what the gate for pairs is: then the file holds the rule for lists alone.
        chosen = result.report["gate"] if base is None else replace(base, lists=result.rule).to_dict()
        _write(options["output"], json.dumps(chosen, indent=2) + "\n")
    if options["report"] is not None:
        _write(options["report"], json.dumps(result.report, indent=2, allow_nan=False) + "\n")
    if folder is not None:
        _write_gate(folder, replace(Bundle.open(folder, verify=False).manifest.gate, lists=result.rule))
    text = list_calibration_text(result.report)
    click.echo(json.dumps(result.report, allow_nan=False) if options["as_json"] else text)


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
    report = _report_on_scores(options) if data is None else _report_on_model(data, options)
    if options["report"] is not None:
        _write(options["report"], json.dumps(report, indent=2, allow_nan=False) + "\n")
    click.echo(json.dumps(report, allow_nan=False) if options["as_json"] else evaluation_text(report))


# All other commands have the default "auto". A measurement compares all three policies, for which the judge must think
# about every item.
next(p for p in evaluate.params if p.name == "judge").default = "always"


def _report_on_model(data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run a model over a benchmark and return the report."""
    from fsrm_lite.measure.benchmark_formats import load_benchmark
    from fsrm_lite.measure.evaluation import EvalOptions
    from fsrm_lite.measure.evaluation import evaluate as run
    from fsrm_lite.measure.evaluation_report import summarize

    _check_outputs((options["output"], options["report"]), [data])
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
    total = min(len(benchmark.examples), options["limit"] or len(benchmark.examples))
    changes = {name: options[name] for name in ("thinking_tokens", "temperature", "truncate")}
    told = {name: options[name] for name in _TOLD if options[name] not in (None, False)}
    figures = _RunningFigures(benchmark.format.pairwise)

    def show(record: Record) -> None:
        figures.add(record)
        step()

    with open_model(options) as rm, progress("items", total, figures.text) as step:
        measured = {**_run_of(rm), "data": str(data), "options": told}
        hashes = [entry.sha256 for entry in rm.bundle.manifest.files.values()]
        identity = json.dumps([hashes, changes])
        records = run(
            rm,
            benchmark,
            settings,
            output=options["output"],
            resume=options["resume"],
            identity=identity,
            progress=show,
        )
    return summarize(
        records, benchmark.format, resamples=options["resamples"], run=measured, not_read=benchmark.not_read
    )


def _report_on_scores(options: dict[str, Any]) -> dict[str, Any]:
    """Return the report on scores, and verdicts if there are any, that another system gave."""
    from fsrm_lite.measure.evaluation_report import summarize
    from fsrm_lite.measure.score_files import format_of, records, signals_of

    _check_outputs((options["output"], options["report"]), [options["scores"], options["verdicts"]])
    if options["output"] is not None or options["resume"]:
        raise click.UsageError("-o and --resume are for runs of a model; --scores has the items already")
    items, notes = read_items(options)
    form = format_of(items, options["form"])
    spec = _read_gate(options["gate_file"]) if options["gate_file"] is not None else None
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
        records(items, escalated, "always" if slow else "never"),
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
    report["label_mass"] = None  # a score file has none
    return {**report, "warnings": [*notes, *report["warnings"]]}


@click.group()
def gate() -> None:
    """Check whether another build's gate decides like this one's, and whether its items are still of one kind."""


@gate.command()
@click.argument("decisions", type=click.Path(path_type=Path))
@click.option("--gate", "gate_file", type=click.Path(path_type=Path), help="gate.json, for rows that carry no gate.")
@click.option(
    "--model", default=None, help="Take gate, label values and vocabulary size from a bundle folder or org/name."
)
@click.option(
    "--tolerance", type=float, default=1e-6, show_default=True, help="Difference of a confidence that is not reported."
)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def check(decisions: Path, gate_file: Path | None, model: str | None, tolerance: float, as_json: bool) -> None:
    """Read another build's logits and decisions, and report those that differ from this build's.

    Rows are {"label_values", "responses": [{"label_logits", "log_mass", "entropy"}], "vocab_size", "gate", "decision"},
    or only {"id", "decision"} for a row that `fsrm-lite gate vectors` printed. Exits with status 1 when something
    differs.
    """
    from fsrm_lite.measure.conformance import check as run
    from fsrm_lite.measure.data_files import read_rows

    if gate_file is not None and model is not None:
        raise click.UsageError("--gate and --model both name a gate; pass one")
    spec, defaults = (
        (_read_gate(gate_file), {})
        if gate_file is not None
        else _gate_of_model(model)
        if model is not None
        else (None, {})
    )
    result = run((row.data for row in read_rows(decisions)), gate=spec, defaults=defaults, tolerance=tolerance)
    if as_json:
        click.echo(json.dumps({"checked": result.checked, "mismatches": [asdict(m) for m in result.mismatches]}))
    else:
        for m in result.mismatches:
            note = "  (a confidence lies on its threshold: rounding)" if m.borderline else ""
            click.echo(f"{m.row}: {m.field} is {m.got!r}, expected {m.expected!r}{note}")
        click.echo(f"{result.checked} decisions checked, {len(result.mismatches)} differences")
    if not result.ok:
        raise click.exceptions.Exit(1)


@gate.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--gate", "gate_file", type=click.Path(path_type=Path), help="gate.json, whose escalations are compared.")
@click.option("--fast-columns", metavar="A,B", help="Columns of the scores, where the files are score files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def drift(old: Path, new: Path, gate_file: Path | None, fast_columns: str | None, as_json: bool) -> None:
    """Check whether NEW items look like the OLD ones that a gate was calibrated on.

    Both are files of `calibrate --record`, of `eval -o`, or score files as for `calibrate --scores`; no label is
    needed. Exits with status 1 when the fast signals differ by more than chance.
    """
    from fsrm_lite.measure.drift import drift as run
    from fsrm_lite.measure.labelled import Sample

    samples = [Sample.of(unlabelled_items(path, fast_columns)) for path in (old, new)]
    report = run(samples[0], samples[1], _read_gate(gate_file) if gate_file is not None else None)
    click.echo(json.dumps(report) if as_json else drift_text(report))
    if report["drifted"]:
        raise click.exceptions.Exit(1)


@gate.command()
def vectors() -> None:
    """Print the conformance vectors (inputs of the gate with its decisions), one JSON object per line."""
    from fsrm_lite.measure.conformance import shipped_vectors

    for row in shipped_vectors():
        click.echo(json.dumps(row))


def _plan(items: list[Any], goal: Goal, coverage: float | None, as_json: bool) -> str:
    """Return the text, or the JSON, that says how many labelled items a risk would need."""
    from fsrm_lite.measure.labelled import Sample
    from fsrm_lite.measure.planning import COVERAGES, POWER, plan

    if goal.risk is None:
        raise click.UsageError("--plan needs --risk, the error rate that is to be proved")
    wanted = COVERAGES if coverage is None else (coverage,)
    plans = plan(Sample.of(items), goal.risk, goal.confidence, wanted)
    report = {
        "risk": goal.risk,
        "confidence": goal.confidence,
        "power": POWER,
        "items": len(items),
        "plan": [asdict(p) for p in plans],
    }
    return json.dumps(report) if as_json else plan_text(report)


def _labelled_items(
    files: list[Path | None], slow: bool, options: dict[str, Any]
) -> tuple[list[list[Any]], list[str], dict[str, Any]]:
    """Return the items of each file, what was left out, and what they were made with.

    The model is opened only if some item was not recorded before.
    """
    from fsrm_lite.measure.labelled_rows import LabelledFile, collect, read_labelled

    read = [read_labelled(f, options["form"]) if f is not None else LabelledFile() for f in files]
    notes = [note for part in read for note in part.notes]
    fresh = [r for part in read for r in part.rows]
    if not fresh:
        return [list(part.items) for part in read], notes, {"version": __version__}
    if len({len(r.responses) for r in fresh}) > 1:
        raise CalibrationError(
            "the file mixes single responses and pairs, whose confidences differ in kind; calibrate them apart"
        )
    told = {name: options[name] for name in _TOLD if name in options and options[name] not in (None, False)}
    asking = {"slow": slow, "votes": options["votes"], "seed": options["seed"], "skip_too_long": options["truncate"]}
    with open_model(options) as rm, progress("items", len(fresh)) as step:
        made_with = {**_run_of(rm), "options": told}
        items = [collect(rm, part.rows, **asking, progress=step) if part.rows else list(part.items) for part in read]
    left = len(fresh) - sum(len(made) for made, part in zip(items, read, strict=True) if part.rows)
    if left:
        notes.append(f"{left} of {len(fresh)} items were too long for the model or its judge, and left out")
    return items, notes, made_with


def _calibrate_score_lists(options: dict[str, Any]) -> bool:
    """Choose the rule for the best of N from ``--scores``; return False, having done nothing, if it holds no lists."""
    from fsrm_lite.measure.score_files import labelled_lists, read_scores

    if options["scores"] is None:
        return False
    items, test = (
        read_scores(path, columns_of(options)) if path is not None else []
        for path in (options["scores"], options["test"])
    )
    if len(items[0].scores) < 3:
        return False
    _check_list_goal(options)
    if options["write"]:
        raise click.UsageError("--write needs a model; with --scores, take -o gate.json")
    _choose_list_rule(labelled_lists(items, "scores"), labelled_lists(test, "test"), options)
    return True


def _scored_items(options: dict[str, Any]) -> tuple[list[list[Any]], list[str], dict[str, Any]]:
    """Return the items of ``--scores`` and of a ``--test`` file with the same columns, and remarks."""
    from fsrm_lite.measure.score_files import labelled, read_scores

    if options["write"]:
        raise click.UsageError("--write needs a model; with --scores, take -o gate.json")
    if options["scores"] is None:
        raise click.UsageError("--verdicts alone has no fast scores to put a gate on; name --scores as well")
    items, notes = read_items(options)
    usable = [x for x in items if len(x.scores) != 2 or x.right]
    if len(usable) < len(items):
        notes.append(f"{len(items) - len(usable)} items were left out: their label is a tie")
    answered = sum(bool(x.winners) for x in usable)
    if 0 < answered < len(usable):
        notes.append(
            f"the judge answered {answered} of {len(usable)} items; "
            "without all of its answers, what it is worth cannot be said"
        )
    test = read_scores(options["test"], columns_of(options)) if options["test"] is not None else []
    return [labelled(usable, "scores"), labelled(test, "test")], notes, {"version": __version__}


def _run_of(rm: FastSlowRM) -> dict[str, Any]:
    """Return what a report says about the model that it is made with."""
    manifest = rm.bundle.manifest
    # Of several files the fast one is what the figures come from first; its hash tells two builds of a model apart.
    digest = next((entry.sha256[:12] for role, entry in manifest.files.items() if role == "fast"), "")
    return {
        "bundle": f"{manifest.name} ({rm.bundle.root}, fast file {digest}), fsrm-lite {__version__}",
        "version": __version__,
        "files": {role: entry.sha256 for role, entry in manifest.files.items()},
        "gate": rm.gate.spec.to_dict(),
    }


def _read_gate(path: Path) -> GateSpec:
    try:
        return GateSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, FsrmError):
            raise
        raise DataFormatError(f"cannot read the gate {path}: {error}") from error


def _gate_of_model(model: str) -> tuple[GateSpec, dict[str, Any]]:
    """Return a bundle's gate, and what rows of logits made with that bundle need not repeat."""
    manifest = Bundle.open(model).manifest
    return manifest.gate, {
        "label_values": [label.value for label in manifest.labels],
        "vocab_size": manifest.vocab_size,
    }


def _manifest_folder(model: str | None) -> Path:
    folder = Path(model) if model is not None else None
    if folder is None or not (folder / MANIFEST_NAME).is_file():
        raise click.UsageError("--write needs --model with a bundle folder of yours")
    return folder


def _write_gate(folder: Path, spec: GateSpec) -> None:
    """Put a gate into a bundle's manifest. A gate that was set on pairs leaves the bundle's rule for lists as it is."""
    manifest = Bundle.open(folder, verify=False).manifest
    manifest = replace(manifest, gate=replace(spec, lists=spec.lists or manifest.gate.lists))
    _write(folder / MANIFEST_NAME, json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def _check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Raise an ``InputError``, before any work is done, if an output is an input or has no folder."""
    for output in (path for path in outputs if path is not None):
        if not output.parent.is_dir():
            raise InputError(f"cannot write {output}: there is no folder {output.parent}")
        if output.exists() and any(path is not None and path.exists() and output.samefile(path) for path in inputs):
            raise InputError(f"{output} is the input itself; name another output")


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
