"""Writes what ``calibrate`` and ``gate drift`` found as text for a terminal."""

from __future__ import annotations

from typing import Any

from fsrm_lite.cli.evaluation_text import run_lines
from fsrm_lite.measure.calibration_report import percent


def calibration_text(report: dict[str, Any]) -> str:
    """Return what ``calibrate`` found as lines of text, the most important first."""
    lines = run_lines(report["run"])
    lines += [f"warning       {w}" for w in report["warnings"]]
    if report["guarantee"] is not None:
        g = report["guarantee"]
        lines += [
            f"guarantee     {g['statement']}",
            f"  that is     {g['in_plain_words']}",
            f"  assumed     {g['assumes']}",
        ]
        lines.append(
            f"  proof       {g['errors']} errors in {g['accepted']} accepted of {g['tested_items']} tested: "
            f"at most {100 * g['upper_bound']:.1f} %"
        )
        lines.append(
            f"  feasibility base risk {100 * g['base_risk']:.1f} %: "
            f"at least {100 * g['least_escalation']:.1f} % must escalate"
        )
        if not g["enough_items"]:
            lines.append(
                f"  feasibility {g['tested_items']} items cannot prove it; "
                f"at least {g['least_items']} accepted ones without an error are needed"
            )
    if "other_seeds" in report:
        seeds, fast = report["other_seeds"], report["other_seeds"]["fast"]
        lines.append(
            f"  luck        {seeds['proved']} of {seeds['tried']} other splits prove it too; they leave "
            f"{100 * fast['lowest']:.0f} to {100 * fast['highest']:.0f} % to the fast path, "
            f"{100 * fast['median']:.0f} % at the median"
        )
    if report["gate"] is not None:
        lines.append(f"gate          {gate_text(report['gate'])}")
        if report["margin"]:
            lines.append(f"  in scores   the fast path decides where they differ by {report['margin']:.4g} or more")
        lines += _at_gate("on the testing part", report["at_gate"], report["cost"])
        if "at_gate_on_test" in report:
            lines += _at_gate("on --test", report["at_gate_on_test"], report["cost"])
    lines.append(f"always fast   {percent(report['always_fast']['accuracy'])}")
    if report["always_slow"] is not None:
        lines.append(
            f"always slow   {percent(report['always_slow']['accuracy'])} at "
            f"{report['always_slow']['tokens']['value']:.1f} {report['cost']} per item"
        )
    if report["together"] is not None:
        lines += _together(report["together"])
    for name, c in report["confidences"].items():
        line = f"{name:<13} AUROC {_number(c['auroc'])}, AURC {_number(c['aurc'])}, AUGRC {_number(c['augrc'])}"
        lines.append(line + (f", above random {_number(c['area_above_random'])}" if c["area_above_random"] else ""))
    before, after = report["calibration"]["before"], report["calibration"]["after"]
    lines.append(
        f"temperature   {report['temperature']:.3f}: ECE {before['ece']['value']:.3f} -> {after['ece']['value']:.3f}"
    )
    if report["gate"] is None:
        lines += [
            f"  {100 * p['accuracy']:5.1f} % at {p['tokens']:7.1f} {report['cost']}, "
            f"{100 * p['escalated']:5.1f} % escalated: {gate_text(p['gate'])}"
            for p in report["front"]
        ]
    return "\n".join(lines)


def list_calibration_text(report: dict[str, Any]) -> str:
    """Return what ``calibrate`` found from lists as lines of text, the most important first."""
    g, lists, rule = report["guarantee"], report["lists"], report["gate"]["lists"]
    sizes = lists["sizes"]
    lines = [
        f"guarantee     {g['statement']}",
        f"  assumed     {g['assumes']}",
        f"  proof       {g['errors']} wrong picks in {g['accepted']} made alone of {g['tested_lists']} tested: "
        f"at most {100 * g['upper_bound']:.1f} %",
    ]
    if g["accepted"] < g["least_lists"]:
        lines.append(f"  feasibility at least {g['least_lists']} picks made alone, all of them right, are needed")
    lines.append(
        f"lists         {lists['used']} of {lists['given']} used, with {sizes['least']} to {sizes['most']} candidates "
        f"(median {sizes['median']:g})"
    )
    left = {
        "repeated": lists["repeated"],
        "with one candidate": lists["of_one_candidate"],
        "without a right candidate": lists["without_a_right_one"],
    }
    if any(left.values()):
        lines.append("  left out    " + ", ".join(f"{count} {what}" for what, count in left.items() if count))
    if lists["all_right"]:
        lines.append(f"  all right   {lists['all_right']}: whatever is picked from them is right")
    teams = "final answer" if rule["group"] == "final" else "text"
    lines.append(
        f"gate          escalate when the best team's share < {rule['coverage']:.4f} (teams by {teams}, "
        f"temperature {rule['temperature']:.3f}, sharpness {rule['sharpness']:.3f})"
    )
    for where, name in (("on the testing part", "at_gate"), ("on --test", "at_gate_on_test")):
        if name in report:
            lines += _lists_at_gate(where, report[name])
    lines += [f"warning       {w}" for w in report["warnings"]]
    return "\n".join(lines)


def plan_text(report: dict[str, Any]) -> str:
    """Return how many labelled items a guarantee would need, one line per share that is decided fast."""
    lines = [
        f"to prove an error rate of at most {report['risk']:g} with confidence {report['confidence']:g}, succeeding "
        f"{100 * report['power']:.0f} times out of 100; going by {report['items']} labelled items, one of each prompt:"
    ]
    for p in report["plan"]:
        needed, worse = (
            "no number of items" if n is None else f"{n} labelled items" for n in (p["items"], p["items_if_worse"])
        )
        lines.append(
            f"  {100 * p['coverage']:3.0f} % decided fast, {100 * p['selective_risk']:.1f} % of them wrong: {needed}; "
            f"{worse} if {100 * p['upper_bound']:.1f} % are"
        )
    return "\n".join(lines)


def drift_text(report: dict[str, Any]) -> str:
    """Return whether new items look like those of the calibration, as lines of text."""
    lines = [
        f"{s['signal']:<13} median {s['old_median']:.4g} before, {s['new_median']:.4g} now; "
        f"distance {s['distance']:.3f}, by chance with probability {s['p_value']:.2g}"
        for s in report["signals"]
    ]
    if "escalated" in report:
        e = report["escalated"]
        lines.append(
            f"escalated     {percent(e['old'])} before, {percent(e['new'])} now; by chance with probability "
            f"{e['p_value']:.2g}"
        )
    verdict = (
        "the new items are of another kind: the guarantee does not hold for them. Label some, and calibrate again"
        if report["drifted"]
        else "no difference was found in the fast signals; "
        "whether the same scores are still right as often, only labels can tell"
    )
    return "\n".join([*lines, f"{report['new_items']} new items against {report['old_items']}: {verdict}"])


def gate_text(gate: dict[str, Any]) -> str:
    """Say in words when a gate asks for slow thinking."""
    if gate["always"]:
        return "always escalate"
    cuts = {name: gate[f"{name}_threshold"] for name in ("intuition", "distribution")}
    # No confidence is below a threshold of 0. So with "any" it makes no difference, and with "all" nothing escalates.
    live = [f"{name} confidence < {cut:.4f}" for name, cut in cuts.items() if cut > 0]
    if not live or (gate["combine"] == "all" and len(live) < 2):
        return "never escalate"
    return (
        f"escalate when {(' or ' if gate['combine'] == 'any' else ' and ').join(live)}, "
        f"at temperature {gate['temperature']:.3f}"
    )


def _lists_at_gate(where: str, at: dict[str, Any]) -> list[str]:
    """Return the lines that say what the gate for lists costs and is worth on some lists."""
    lines = [
        f"  {where}: {percent(at['escalated'])} escalated; {percent(at['selective_risk'])} wrong picks among the rest",
        f"  {at['contenders']:.2f} of {at['teams']:.2f} teams per list meet before the judge",
        f"  alone, right are: the best team {percent(at['best_team'])}, the best score {percent(at['best_score'])}, "
        f"the majority {percent(at['majority'])}",
    ]
    lines += [
        f"  {row['candidates']:>8} candidates ({row['lists']} lists): {percent(row['escalated'])} escalated; "
        f"{percent(row['selective_risk'])} wrong"
        for row in at["by_size"]
    ]
    return lines


def _together(report: dict[str, Any]) -> list[str]:
    """Return the lines that say what fast path and judge answer together, and which errors they share."""
    errors, accuracy = report["errors"], report["accuracy"]
    lines = [
        f"both wrong    {errors['both']} of {errors['fast']} errors of the fast path are the judge's too "
        f"({percent(errors['share_of_fast'])}): thinking cannot mend these"
    ]
    if report["fitted"] is None:
        return [*lines, "together      no weights of fast path and votes can be fitted: the votes alone answer"]
    weights = f"{report['fitted']['fast']:.3f} x the fast logit + {report['fitted']['votes']:.3f} x the votes' log-odds"
    outcome = "both answer together" if report["kept"] else "no gain: the votes alone answer"
    return [
        *lines,
        f"together      {weights}: {percent(accuracy['both'])}, votes alone {percent(accuracy['votes'])}; {outcome}",
    ]


def _at_gate(where: str, at: dict[str, Any], cost: str) -> list[str]:
    """Return the lines that say what a gate costs and is worth on some items."""
    lines = [f"  {where}: {percent(at['escalated'])} escalated; {percent(at['selective_risk'])} wrong among the rest"]
    if "accuracy" in at:
        share = 100 * at["token_share_of_slow"]["value"] if at["token_share_of_slow"]["value"] is not None else 0.0
        lines.append(
            f"  accuracy {percent(at['accuracy'])} at {at['tokens']['value']:.1f} {cost} per item "
            f"({share:.0f} % of always slow)"
        )
        lines.append(f"  random escalation at equal cost {percent(at['random_at_equal_cost'])}")
    return lines


def _number(interval: dict[str, float | None] | None) -> str:
    if interval is None or interval["value"] is None:
        return "undefined"
    low, high = interval["low"], interval["high"]
    return f"{interval['value']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")
