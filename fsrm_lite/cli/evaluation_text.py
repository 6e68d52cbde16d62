"""Writes the reports of ``eval`` as text for a terminal."""

from __future__ import annotations

from typing import Any

from fsrm_lite.measure.calibration_report import percent
from fsrm_lite.measure.comparison import is_clear

_POLICIES = {"always_fast": "always fast", "gated": "gated", "always_slow": "always slow"}
_UNREAD = {
    "with_a_cut_response": "had a response that was cut",
    "too_long_to_be_read": "were too long to be read",
    "too_long_for_the_judge": "were too long for the judge",
    "with_an_empty_response": "had an empty response",
    "without_a_fast_preference": "had equal fast scores, or orders that disagree, which counts as a tie",
}
_FILES_SHOWN = 3


def evaluation_text(report: dict[str, Any]) -> str:
    """Return what ``eval`` measured as lines of text.

    First what was measured and how much of the data was read, then the warnings, then one line per policy and figure,
    then the subsets.
    """
    lines = run_lines(report["run"])
    lines += [f"not read      {what}" for what in report["files_not_read"][:_FILES_SHOWN]]
    if (more := len(report["files_not_read"]) - _FILES_SHOWN) > 0:
        lines.append(f"not read      {more} more files; the report names them")
    lines += [f"{report[key]} of {report['items']} items {what}" for key, what in _UNREAD.items() if report[key]]
    lines += [f"WARNING       {w}" for w in report["warnings"]]
    escalated = f", {percent(report['escalated'])} escalated" if "gated" in report["policies"] else ""
    lines.append(f"{report['format']}: {report['items']} items{escalated}")
    if not escalated and "bundle" not in report["run"] and report["escalated"] is not None:
        # A gate was given for scores without a judge: what it would ask, not what came of it.
        lines.append(f"{'the gate':<16} would escalate {percent(report['escalated'])}")
    for name, label in _POLICIES.items():
        policy = report["policies"].get(name)
        if policy is None:
            continue
        bill = f"{policy['tokens_per_item']:.1f} {report['cost']} per item"
        bill += f", {policy['seconds']:.1f} s" if report["seconds"] else ""  # scores from a file took no time here
        lines.append(f"{label:<16} {percent(policy['metrics']['score'])}   {bill}")
        lines += [
            f"  {figure:<20} {percent(value)}" for figure, value in policy["metrics"].items() if figure != "score"
        ]
    if "longer" in report["baselines"]:
        lines.append(f"{'longer wins':<16} {percent(report['baselines']['longer']['metrics']['score'])}")
    lines.append(f"{'coin':<16} {100 * report['baselines']['coin']['score']:.1f} %")
    if report["position_consistency"] is not None:
        lines.append(
            f"the judge says the same in both orders on {percent(report['position_consistency'])} of its pairs"
        )
    best = next(name for name in ("gated", "always_fast", "always_slow") if name in report["policies"])
    subsets = report["policies"][best]["subsets"]
    if subsets:
        lines.append(f"by subset, {_POLICIES[best]}:")
        lines += [f"  {name:<24} {value['items']:>5}  {percent(value)}" for name, value in subsets.items()]
    return "\n".join(lines)


def comparison_text(report: dict[str, Any]) -> str:
    """Return what ``eval --compare`` found as Markdown: a table of the scores, one of the differences, and remarks."""
    lines = [
        f"{report['format']}: {report['items']} items that all have, with 95 % intervals",
        "",
        "| system | policy | score | cost per item |",
        "|---|---|---|---|",
    ]
    for system in report["systems"]:
        lines += [
            f"| {_cell(system['name'])} | {_POLICIES[policy]} | {percent(found['score'])} | "
            f"{found['tokens_per_item']:.1f} {system['cost']} |"
            for policy, found in system["policies"].items()
        ]
    lines += ["", "| difference of | policy | points, on the same items |", "|---|---|---|"]
    for d in report["differences"]:
        lines.append(f"| {_cell(d['to'])} - {_cell(d['from'])} | {_POLICIES[d['policy']]} | {_points(d)} |")
    if any(is_clear(d) for d in report["differences"]):
        lines += ["", "Bold: the interval leaves out 0."]
    notes = []
    for system in report["systems"]:
        own = system["items_of_its_own"]
        remarks = [f"{own} items of its own were left out"] if own else []
        remarks += [*system["report"]["files_not_read"], *system["report"]["warnings"]]
        notes += [f"- {_cell(system['name'])}: {_cell(remark)}" for remark in remarks]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _points(difference: dict[str, Any]) -> str:
    """Return a difference of scores in percentage points with its interval."""
    if difference["value"] is None:
        return "undefined"
    text = f"{100 * difference['value']:+.1f}"
    if difference["low"] is not None:
        text += f" [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    return f"**{text}**" if is_clear(difference) else text


def run_lines(run: dict[str, Any]) -> list[str]:
    """Return what was measured as lines of text: bundle, version, data and the options that were given."""
    if not run:
        return []
    lines = [f"{name:<13} {run[name]}" for name in ("bundle", "data") if name in run]
    options = ", ".join(f"{name} {value}" for name, value in run.get("options", {}).items())
    return [*lines, f"{'options':<13} {options}"] if options else lines
