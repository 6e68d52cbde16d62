"""``fsrm-lite calibrate``: chooses the gate's thresholds, or its rule for lists, from labelled data or from scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrm_lite import __version__
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.bundle.manifest import MANIFEST_NAME
from fsrm_lite.cli.calibration_text import calibration_text, list_calibration_text, plan_text
from fsrm_lite.cli.evaluation_scores import check_source, columns_of, read_items, refuse, score_options
from fsrm_lite.cli.identity import run_of
from fsrm_lite.cli.models import MODEL_NAMES, model_options, open_model
from fsrm_lite.cli.progress import progress
from fsrm_lite.errors import CalibrationError
from fsrm_lite.files import check_output, write_text
from fsrm_lite.gate import GateSpec

if TYPE_CHECKING:
    from fsrm_lite.measure.calibration import Goal
    from fsrm_lite.measure.score_files import ScoredItem

PATHS = ("intuition", "distribution", "joint")


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

    _check_options(labelled, options)
    if labelled is not None and options["form"] == "auto" and holds_lists(labelled):
        _calibrate_lists(labelled, options)
        return
    if options["grouping"] is not None:
        raise click.UsageError("--group-by is for lists: rows with 'responses' and 'labels'")
    scored = _read_scored(options) if labelled is None else None
    if scored is not None and scored.lists:
        _calibrate_score_lists(scored, options)
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
        _scored_items(scored)
        if scored is not None
        else _labelled_items([labelled, options["test"]], slow, dict(options))
    )
    if options["plan"]:
        click.echo(_plan(items, goal, options["coverage"], options["as_json"]))
        return
    if options["record"] is not None:
        write_text(options["record"], "".join(json.dumps(x.to_dict()) + "\n" for x in items))
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
        write_text(options["output"], json.dumps(found, indent=2) + "\n")
    if options["report"] is not None:
        write_text(options["report"], json.dumps(result.report, indent=2, allow_nan=False) + "\n")
    if options["plots"] is not None:
        from fsrm_lite.measure.calibration_plots import write_picture

        write_picture(result, options["plots"])
    if folder is not None and result.gate is not None:
        _write_gate(folder, result.gate, weighed=result.report["together"] is not None)
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
    at = {"revision": options["revision"], "local_files_only": options["local_files_only"]}
    base = Bundle.open(model, **at).manifest.gate if fresh or model is not None else None
    found: list[list[Any]] = [list(part) for part in rows]
    if not fresh:
        _refuse_recorded(
            keeping=("model", "revision", "local_files_only")
        )  # its gate is what the rule becomes a part of
    else:
        with open_model(dict(options)) as rm, progress("lists", fresh) as step:
            grouping: Grouping = options["grouping"] or "final"
            found = [
                part
                if not part or isinstance(part[0], LabelledList)
                else collect_lists(rm, part, grouping=grouping, progress=step)
                for part in found
            ]
    _choose_list_rule(found[0], found[1], options, base=base, folder=folder)


def _check_options(labelled: Path | None, options: dict[str, Any]) -> None:
    """Raise a ``click.UsageError`` if an option would have no effect, and an error if an output cannot be written."""
    check_source(labelled, options)
    if labelled is None:
        if options["scores"] is None:
            raise click.UsageError("--verdicts alone has no fast scores to put a gate on; name --scores as well")
        if options["write"]:
            raise click.UsageError("--write needs a model; with --scores, take -o gate.json")
        others = [name for name in MODEL_NAMES if name != "seed"]  # the seed also splits the items
        refuse((*others, "form"), "is about a model and its data, which --scores does without; leave it out")
    if options["plan"]:
        refuse(
            ("output", "report", "plots", "record", "test", "write", "paths"),
            "has no effect beside --plan, which only says how many items would be needed; leave one of them out",
        )
    else:
        refuse(("coverage",), "goes with --plan")
    for name in ("output", "report", "plots", "record"):
        check_output(options[name], [labelled, options["test"], options["scores"], options["verdicts"]])


def _refuse_recorded(keeping: tuple[str, ...]) -> None:
    """Raise a ``click.UsageError`` if an option says how a model should answer where all answers were recorded.

    Args:
        keeping: Options that are about something else here. The seed is one in any case: it also splits the items.
    """
    refuse(
        [name for name in (*MODEL_NAMES, "form") if name not in (*keeping, "seed")],
        "says how a model is to answer, and all of these items have recorded answers; leave it out, or calibrate on "
        "the data that the items were made of",
    )


def _check_list_goal(options: dict[str, Any]) -> None:
    """Raise a ``click.UsageError`` if an option was given that lists do not take."""
    others = ("budget", "within", "pareto", "paths", "plots", "plan")
    given = [name for name in others if options[name] not in (None, False, ())]
    if options["risk"] is None or given:
        raise click.UsageError(
            "the file holds lists, which take --risk as their goal, without --path, --plots and --plan"
        )
    of_judge = ("judge", "votes", "thinking_tokens", "temperature", "judge_engine", "judge_process")
    refuse(
        (*of_judge, "verdicts", "slow_columns", "tokens_column"),
        "is about a judge, which has no part in the rule for lists; leave it out",
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
        write_text(options["record"], "".join(json.dumps(x.to_dict()) + "\n" for x in lists))
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
        write_text(options["output"], json.dumps(chosen, indent=2) + "\n")
    if options["report"] is not None:
        write_text(options["report"], json.dumps(result.report, indent=2, allow_nan=False) + "\n")
    if folder is not None:
        _write_gate(folder, replace(Bundle.open(folder, verify=False).manifest.gate, lists=result.rule), weighed=True)
    text = list_calibration_text(result.report)
    click.echo(json.dumps(result.report, allow_nan=False) if options["as_json"] else text)


def _plan(items: list[Any], goal: Goal, coverage: float | None, as_json: bool) -> str:
    """Return the text, or the JSON, that says how many labelled items a risk would need."""
    from fsrm_lite.measure.calibration import one_per_group
    from fsrm_lite.measure.labelled import Sample
    from fsrm_lite.measure.planning import COVERAGES, POWER, plan

    if goal.risk is None:
        raise click.UsageError("--plan needs --risk, the error rate that is to be proved")
    wanted = COVERAGES if coverage is None else (coverage,)
    sample = one_per_group(Sample.of(items))  # as a proof does: the items of one prompt are not independent
    plans = plan(sample, goal.risk, goal.confidence, wanted)
    report = {
        "risk": goal.risk,
        "confidence": goal.confidence,
        "power": POWER,
        "items": len(sample),
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
        _refuse_recorded(keeping=("model",) if options["write"] else ())
        return [list(part.items) for part in read], notes, {"version": __version__}
    if len({len(r.responses) for r in fresh}) > 1:
        raise CalibrationError(
            "the file mixes single responses and pairs, whose confidences differ in kind; calibrate them apart"
        )
    given = dict(options)
    asking = {"slow": slow, "votes": options["votes"], "seed": options["seed"], "skip_too_long": options["truncate"]}
    with open_model(options) as rm, progress("items", len(fresh)) as step:
        made_with = run_of(rm, given)
        items = [collect(rm, part.rows, **asking, progress=step) if part.rows else list(part.items) for part in read]
    left = len(fresh) - sum(len(made) for made, part in zip(items, read, strict=True) if part.rows)
    if left:
        notes.append(f"{left} of {len(fresh)} items were too long for the model or its judge, and left out")
    return items, notes, made_with


@dataclass(frozen=True, slots=True)
class _Scored:
    """What ``--scores``, ``--verdicts`` and a ``--test`` file with the same columns hold.

    Attributes:
        items: The items of ``--scores``.
        test: Those of ``--test``.
        notes: Remarks about them.
        lists: Whether the items are lists.
    """

    items: list[ScoredItem]
    test: list[ScoredItem]
    notes: list[str]
    lists: bool


def _read_scored(options: dict[str, Any]) -> _Scored:
    """Read what the options about scores name."""
    from fsrm_lite.measure.score_files import holds_lists, read_scores

    items, notes = read_items(options)
    test = read_scores(options["test"], columns_of(options)) if options["test"] is not None else []
    return _Scored(items, test, notes, holds_lists(items))


def _calibrate_score_lists(scored: _Scored, options: dict[str, Any]) -> None:
    """Choose the rule for the best of N from scores."""
    from fsrm_lite.measure.score_files import labelled_lists

    _check_list_goal(options)
    _choose_list_rule(labelled_lists(scored.items, "scores"), labelled_lists(scored.test, "test"), options)


def _scored_items(scored: _Scored) -> tuple[list[list[Any]], list[str], dict[str, Any]]:
    """Return the items of ``--scores`` and of ``--test``, and remarks. Ties of the annotators are left out of both."""
    from fsrm_lite.measure.score_files import labelled

    notes, usable = list(scored.notes), []
    for name, items in (("", scored.items), (" of --test", scored.test)):
        usable.append([x for x in items if len(x.scores) != 2 or x.right])
        if len(usable[-1]) < len(items):
            notes.append(f"{len(items) - len(usable[-1])} items{name} were left out: their label is a tie")
    items, test = usable
    answered = sum(bool(x.winners) for x in items)
    if 0 < answered < len(items):
        notes.append(
            f"the judge answered {answered} of {len(items)} items; "
            "without all of its answers, what it is worth cannot be said"
        )
    return [labelled(items, "scores"), labelled(test, "test")], notes, {"version": __version__}


def _manifest_folder(model: str | None) -> Path:
    folder = Path(model) if model is not None else None
    if folder is None or not (folder / MANIFEST_NAME).is_file():
        raise click.UsageError("--write needs --model with a bundle folder of yours")
    return folder


def _write_gate(folder: Path, spec: GateSpec, *, weighed: bool) -> None:
    """Put a gate into a bundle's manifest.

    A gate that was set on pairs leaves the bundle's rule for lists as it is, and, unless the two paths were ``weighed``
    against each other, its weights too.
    """
    manifest = Bundle.open(folder, verify=False).manifest
    before = manifest.gate
    gate = replace(spec, lists=spec.lists or before.lists, weights=spec.weights if weighed else before.weights)
    manifest = replace(manifest, gate=gate)
    write_text(folder / MANIFEST_NAME, json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False) + "\n")
