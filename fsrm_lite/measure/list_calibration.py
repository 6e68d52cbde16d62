"""Calibration of the gate for the best of N: chooses when the fast path may pick alone, with a guarantee.

What can go wrong is that the fast path picks a wrong candidate although a right one is there, and nobody looks. The
rule (``fsrm_lite.gate.ListSpec``) gives each team of candidates a share. Its temperature and sharpness are fitted such
that the right teams have large shares; the coverage, which says how large the best share must be for the fast path to
pick alone, is chosen by the walk of ``fsrm_lite.measure.risk_control``, which proves the guarantee.

The best of many scores owes its place partly to chance (the winner's curse), and more so the more candidates there are.
The share takes account of that: every further team has a share of its own, and so takes something off the best one.
The number of candidates may differ from list to list; the guarantee is about lists drawn like those given, their sizes
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import CalibrationError
from fsrm_lite.gate import Gate, GateSpec, ListSpec
from fsrm_lite.measure.calibration import MIN_ITEMS, one_per_group, split
from fsrm_lite.measure.intervals import wilson
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.labelled_lists import Grouping, LabelledList, ListSample
from fsrm_lite.measure.risk_control import TUNING_SHARE, RiskControl, control_risk, least_items

TEMPERATURES = (0.1, 30.0)
SHARPNESSES = (0.05, 20.0)
"""Ranges of the fitted temperature and sharpness."""

_STEPS = 12  # values of each that are tried at once; the search is then repeated around the best, three times
_LEAST_SHARE = 1e-9  # of a right team, in the loss
_RIDGE = 1e-3  # where lists of two cannot tell a low temperature from a high sharpness, the sharpness nearer to 1 wins


@dataclass(frozen=True)
class ListCalibration:
    """What ``calibrate_lists`` found.

    Attributes:
        rule: The gate's rule for lists. Where nothing could be proved its coverage is 1: every list is escalated.
        report: Figures and statements, ready for JSON.
    """

    rule: ListSpec
    report: dict[str, Any]


def calibrate_lists(
    lists: Sequence[LabelledList],
    risk: float,
    confidence: float = 0.90,
    *,
    test_lists: Sequence[LabelledList] = (),
    tuning_share: float = TUNING_SHARE,
    seed: int = 0,
) -> ListCalibration:
    """Choose the gate's rule for the best of N.

    Args:
        lists: Labelled lists, at least 50 of them with two candidates or more of which one is right. Lists without a
            right candidate are left out: whatever is picked from them is wrong.
        risk: Most wrong picks, as a share of the lists that the fast path decides alone, in (0, 1).
        confidence: Probability with which the guarantee holds, over the random choice of the testing part, in (0, 1).
        test_lists: Further lists on which the chosen rule is measured; none of them may be among ``lists``.
        tuning_share: Share of the prompts in the tuning part, in (0, 1).
        seed: Seed of the split, at least 0.

    Returns:
        The rule and the report.

    Raises:
        CalibrationError: If there are too few usable lists or no usable test list, they were grouped in different ways,
            a list is in both sets, or an argument is out of range.
    """
    if seed < 0:
        raise CalibrationError(f"the seed is {seed}, expected 0 or more")
    if not 1e-9 <= risk < 1 or not 1e-9 <= confidence < 1:
        raise CalibrationError(f"risk is {risk!r} and confidence {confidence!r}, expected both above 0 and below 1")
    kept, counts, notes = check_lists(lists, test_lists)
    tuning, testing = _split(kept, tuning_share, seed)
    draft, control = choose(ListSample.of(tuning), ListSample.of(testing), risk, confidence, kept[0].grouping, seed)
    rule = replace(draft, coverage=control.gate.intuition_threshold if control.proved else 1.0)
    report = {
        "goal": {"risk": risk, "confidence": confidence},
        "lists": {**counts, "tuning": len(tuning), "testing": len(testing), "seed": seed},
        "gate": {"lists": {name: getattr(rule, name) for name in ListSpec.__dataclass_fields__}},
        "guarantee": _guarantee(control),
        "at_gate": figures(testing, rule),
        **({"at_gate_on_test": figures(_usable(test_lists), rule)} if test_lists else {}),
        "warnings": [*notes, *_warnings(rule, kept)],
    }
    return ListCalibration(rule, report)


def check_lists(
    lists: Sequence[LabelledList], test_lists: Sequence[LabelledList] = ()
) -> tuple[list[LabelledList], dict[str, Any], list[str]]:
    """Check labelled lists before they are used.

    Returns:
        The lists that can be used, each once; how many were given and left out, and why; and remarks for the report.

    Raises:
        CalibrationError: If fewer than 50 are left, they were grouped in different ways, a list is among ``test_lists``
            too, or none of ``test_lists`` can be used.
    """
    groupings = {x.grouping for x in (*lists, *test_lists)}
    if len(groupings) > 1:
        raise CalibrationError(
            "some lists were recorded with teams by final answer and some with teams by text; record them alike"
        )
    different = list({x.key: x for x in lists}.values())
    kept = _usable(different)
    sizes = [len(x.labels) for x in kept]
    counts: dict[str, Any] = {
        "given": len(lists),
        "used": len(kept),
        "repeated": len(lists) - len(different),
        "of_one_candidate": sum(len(x.labels) < 2 for x in different),
        "without_a_right_one": sum(len(x.labels) >= 2 and not any(x.labels) for x in different),
        "all_right": sum(all(x.labels) for x in kept),
    }
    if len(kept) < MIN_ITEMS:
        raise CalibrationError(
            f"{len(kept)} usable lists of {len(lists)}, expected at least {MIN_ITEMS} with two candidates or more of "
            f"which one is right ({counts['of_one_candidate']} have one candidate, {counts['without_a_right_one']} "
            f"have no right one, {counts['repeated']} are repeated); label more"
        )
    shared = {x.key for x in different} & {x.key for x in test_lists}
    if shared:
        raise CalibrationError(
            f"{len(shared)} lists are in both the calibration and the test set (key {min(shared)}, ...); "
            "remove them from one"
        )
    if test_lists and not _usable(test_lists):
        raise CalibrationError(
            f"none of the {len(test_lists)} test lists has two candidates or more of which one is right; give others, "
            "or leave them out"
        )
    counts["sizes"] = {"least": min(sizes), "median": float(np.median(sizes)), "most": max(sizes)}
    notes = []
    groups = len({x.group or x.key for x in kept})
    if groups < len(kept):
        notes.append(
            f"{len(kept)} lists come from {groups} prompts; the risk is proved on one list of each, drawn at random"
        )
    return kept, counts, notes


def choose(
    tuning: ListSample, testing: ListSample, risk: float, confidence: float, grouping: Grouping = "final", seed: int = 0
) -> tuple[ListSpec, RiskControl]:
    """Fit temperature and sharpness on one sample, and walk along coverages on another.

    Args:
        tuning: Lists that may be looked at freely.
        testing: Lists that are only used for the tests; one of each prompt, drawn at random, is used.
        risk: As for ``calibrate_lists``.
        confidence: As for ``calibrate_lists``.
        grouping: How the teams were formed.
        seed: Seed of the drawing.

    Returns:
        A rule whose coverage is 1, and the walk. The intuition threshold that it found is the coverage.
    """
    draft = fit_shares(tuning, grouping)
    proof = one_per_group(sample_of(testing, draft), seed)
    return draft, control_risk(sample_of(tuning, draft), proof, risk=risk, confidence=confidence, paths=("intuition",))


def fit_shares(sample: ListSample, grouping: Grouping = "final") -> ListSpec:
    """Fit temperature and sharpness: those under which the right teams have the largest shares.

    The mean of ``-log(share of the right teams)`` is minimised over a grid of both, which is refined three times.

    Args:
        sample: Lists with a right candidate each.
        grouping: How their teams were formed; goes into the rule.

    Returns:
        A rule whose coverage is 1.
    """
    bounds = np.log([TEMPERATURES, SHARPNESSES])
    low, high = bounds[:, 0], bounds[:, 1]
    best = np.zeros(2)
    for _ in range(4):
        temperatures, sharpnesses = (np.linspace(a, b, _STEPS) for a, b in zip(low, high, strict=True))
        table = np.array([_losses(sample, float(np.exp(t)), np.exp(sharpnesses)) for t in temperatures])
        row, column = np.unravel_index(int(np.argmin(table)), table.shape)
        best = np.array([temperatures[row], sharpnesses[column]])
        reach = (high - low) / _STEPS
        low, high = np.maximum(best - reach, bounds[:, 0]), np.minimum(best + reach, bounds[:, 1])
    return ListSpec(1.0, float(np.exp(best[0])), float(np.exp(best[1])), grouping)


def _losses(sample: ListSample, temperature: float, sharpnesses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss that ``fit_shares`` minimises, at one temperature and each sharpness."""
    worth = sample.worth(temperature)
    losses = []
    for sharpness in sharpnesses:
        of_right = np.add.reduceat(sample.shares(worth, float(sharpness)) * sample.right, sample.lists)
        # A list whose right candidates are none of their teams' best says nothing about the shares: it is left out.
        known = of_right[np.logical_or.reduceat(sample.right, sample.lists)]
        losses.append(-np.log(np.maximum(known, _LEAST_SHARE)).mean() + _RIDGE * np.log(sharpness) ** 2)
    return np.array(losses)


def sample_of(lists: ListSample, rule: ListSpec) -> Sample:
    """Return the picks of lists as a sample whose intuition confidence is the share of the best team.

    So the walk along thresholds of ``fsrm_lite.measure.risk_control`` serves for lists as well.
    """
    shares, right = lists.best(lists.shares(lists.worth(rule.temperature), rule.sharpness))
    with np.errstate(divide="ignore"):
        logit = 2.0 * np.arctanh(shares)
    return Sample(logit, np.ones(len(lists)), np.where(right, logit, -logit), right, None, None, lists.groups)


def figures(lists: Sequence[LabelledList], rule: ListSpec) -> dict[str, Any]:
    """Return what a rule does on lists with a right candidate, each figure with a 95 % interval; ready for JSON.

    Returns:
        The share of lists escalated, the share of wrong picks among the others, teams and contenders per list, and how
        often the best team, the best score and the majority are right where they decide every list; the first two also
        by the number of candidates.
    """
    decisions = [_gate(rule).best_of(x.readings, x.teams) for x in lists]
    right = np.array([bool(x.labels[d.order[0]]) for x, d in zip(lists, decisions, strict=True)])
    contenders = np.array([d.contenders for d in decisions])
    alone = contenders == 1
    sizes = np.array([len(x.labels) for x in lists])
    best = [x.labels[x.members()[0][0]] for x in lists]
    majority = [x.labels[max(x.members(), key=len)[0]] for x in lists]
    by_size = []
    for low in (2, 4, 8, 16, 32, 64):
        chosen = (sizes >= low) & ((sizes < 2 * low) | (low == 64))
        if chosen.any():
            top = "" if low == 64 else f" to {2 * low - 1}"
            by_size.append({"candidates": f"{low}{top}", "lists": int(chosen.sum()), **_alone(alone, right, chosen)})
    return {
        "lists": len(lists),
        **_alone(alone, right, np.ones(len(lists), np.bool_)),
        "teams": float(np.mean([len(set(x.teams)) for x in lists])),
        "contenders": float(np.mean(np.where(alone, 0, contenders))),
        "best_team": wilson(int(right.sum()), len(lists)).to_dict(),
        "best_score": wilson(sum(best), len(lists)).to_dict(),
        "majority": wilson(sum(majority), len(lists)).to_dict(),
        "by_size": by_size,
    }


def _alone(alone: NDArray[np.bool_], right: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    picked = alone & chosen
    return {
        "escalated": wilson(int((chosen & ~alone).sum()), int(chosen.sum())).to_dict(),
        "selective_risk": wilson(int((picked & ~right).sum()), int(picked.sum())).to_dict(),
    }


def _gate(rule: ListSpec) -> Gate:
    return Gate(GateSpec(lists=rule))


def _split(lists: Sequence[LabelledList], share: float, seed: int) -> list[list[LabelledList]]:
    """Split lists at random into a tuning and a testing part; lists of one prompt stay together."""
    numbers, flags = np.arange(len(lists), dtype=np.float64), np.ones(len(lists), dtype=np.bool_)
    groups = np.array([x.group or x.key for x in lists], dtype=np.str_)
    parts = split(Sample(numbers, numbers, numbers, flags, None, None, groups), share, seed)
    return [[lists[int(number)] for number in part.logit] for part in parts]


def _usable(lists: Sequence[LabelledList]) -> list[LabelledList]:
    return [x for x in lists if len(x.labels) >= 2 and any(x.labels)]


def _guarantee(control: RiskControl) -> dict[str, Any]:
    """Return the report's part about the guarantee: what was proved, on what assumption, and by which numbers."""
    step = control.step
    if control.proved:
        statement = (
            f"of the lists with a right candidate from which the fast path picks alone, it picks a wrong one in at "
            f"most {control.risk:g}, with probability at least {control.confidence:g}"
        )
    else:
        statement = (
            f"no coverage could be proved to keep the share of wrong picks at {control.risk:g} or less with "
            f"confidence {control.confidence:g}: always escalate"
        )
    return {
        "proved": control.proved,
        "statement": statement,
        "assumes": "the lists to come are drawn like the labelled ones, with as many candidates, independently",
        "tested_lists": control.tested,
        "accepted": step.accepted,
        "errors": step.errors,
        "upper_bound": step.upper_bound,
        "least_lists": least_items(control.risk, control.delta),
    }


def _warnings(rule: ListSpec, lists: Sequence[LabelledList]) -> list[str]:
    """Return warnings about a calibration, each one sentence; an empty list if there are none."""
    notes = []
    mixed = sum(len({x.labels[i] for i in team}) > 1 for x in lists for team in x.members())
    if mixed:
        notes.append(
            f"{mixed} teams have members with different labels: by the labels they do not say the same "
            "(--group-by text puts only equal texts together)"
        )
    ends = (*TEMPERATURES, *SHARPNESSES)
    if any(abs(np.log(value / end)) < 1e-6 for value in (rule.temperature, rule.sharpness) for end in ends):
        notes.append("temperature or sharpness hit the end of its range: the lists do not pin it down")
    return notes
