"""From labelled items to a gate: checks, temperature, thresholds by risk, budget or accuracy, and a report.

The items are split once. The *tuning* part fits the temperature and lays the path (or picks the operating point); the
*testing* part carries the guarantee and every figure of the report. Items of one prompt stay in one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsrm_lite.errors import CalibrationError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.calibration_report import figures, gate_figures, warnings_of
from fsrm_lite.measure.labelled import LabelledItem, Sample
from fsrm_lite.measure.metrics import random_accuracy
from fsrm_lite.measure.risk_control import ALWAYS, NEVER, TUNING_SHARE, RiskControl, control_risk, feasibility
from fsrm_lite.measure.tradeoff import OperatingPoint, best_within_budget, cheapest_within, operate, pareto

MIN_ITEMS = 50
"""Fewer labelled items say too little to calibrate anything."""

SEARCH_SHARE = 0.5
"""Tuning share where the thresholds themselves are picked by search, and the other half only measures them."""

TEMPERATURES = (0.05, 20.0)
"""Range of the fitted temperature; beyond it the score is a step or a constant."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the thresholds are chosen for: exactly one of the first four.

    Attributes:
        risk: Error rate among the items decided fast, guaranteed with probability ``confidence``.
        budget: Mean generated tokens per item; the most accurate gate within it.
        within: Accuracy that may be lost against always thinking slowly, for example 0.005; the cheapest gate for which a
            bound at ``confidence`` on the tuning part says so (no guarantee, see ``cheapest_within``).
        front: The whole Pareto front instead of one gate.
        confidence: Of the risk guarantee, over the draw of the testing part; of the bound behind ``within``.
        paths: Threshold paths to walk for ``risk``, delta split over them; None picks one on the tuning part.
    """

    risk: float | None = None
    budget: float | None = None
    within: float | None = None
    front: bool = False
    confidence: float = 0.90
    paths: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse none or several goals, and numbers out of range."""
        if sum((self.risk is not None, self.budget is not None, self.within is not None, self.front)) != 1:
            raise CalibrationError(
                "expected exactly one goal: a risk, a budget, an accuracy to stay within, or the Pareto front"
            )
        for name in ("risk", "confidence"):
            value = getattr(self, name)
            if value is not None and not 1e-9 <= value < 1:
                raise CalibrationError(f"{name} is {value!r}, expected a number above 0 and below 1")
        for name in ("budget", "within"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise CalibrationError(f"{name} is {value!r}, expected 0 or more")


@dataclass(frozen=True)
class Calibration:
    """What ``calibrate`` found.

    Attributes:
        gate: The chosen thresholds; None for the Pareto front.
        report: Figures and statements, ready for JSON.
        tuning: The part that was looked at freely.
        testing: The part that carries the guarantee and the figures.
        front: Pareto-optimal gates, measured on the testing part; empty without slow outcomes.
        temperature: Fitted on the tuning part.
    """

    gate: GateSpec | None
    report: dict[str, Any]
    tuning: Sample
    testing: Sample
    front: tuple[OperatingPoint, ...]
    temperature: float


def calibrate(
    items: Sequence[LabelledItem],
    goal: Goal,
    *,
    test_items: Sequence[LabelledItem] = (),
    tuning_share: float | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Calibration:
    """Choose the gate's thresholds from labelled items.

    Args:
        items: At least 50; budget, accuracy and front goals need slow outcomes on every one.
        goal: What to choose the thresholds for.
        test_items: Further items, only measured; none may be among ``items``.
        tuning_share: Share of the items that tunes; 0.2 for a risk, 0.5 otherwise.
        seed: Of the split and the bootstrap.
        resamples: Bootstrap resamples behind each interval.

    Raises:
        CalibrationError: Too few items, one class only, contradictory or overlapping items, missing slow outcomes.
    """
    if seed < 0:
        raise CalibrationError(f"the seed is {seed}, expected 0 or more")
    kept, notes = check_items(items, test_items)
    share = tuning_share if tuning_share is not None else TUNING_SHARE if goal.risk is not None else SEARCH_SHARE
    tuning, testing = split(Sample.of(kept), share, seed)
    temperature = fit_temperature(tuning)
    chosen = _choose(goal, tuning, testing, temperature, seed)
    front = _measured_front(tuning, testing, temperature)
    gate = chosen.gate if isinstance(chosen, RiskControl) else chosen
    report: dict[str, Any] = {
        "goal": _goal_dict(goal),
        "items": {"given": len(items), "used": len(kept), "tuning": len(tuning), "testing": len(testing), "seed": seed},
        "temperature": temperature,
        "gate": gate.to_dict() if gate is not None else None,
        "guarantee": _guarantee(testing, chosen) if isinstance(chosen, RiskControl) else None,
        **figures(testing, temperature, resamples=resamples, seed=seed),
        "front": [_point_dict(p, testing) for p in front],
        "warnings": [*notes, *warnings_of(testing, temperature, tuning)],
    }
    if gate is not None:
        report["at_gate"] = gate_figures(gate, testing, resamples=resamples, seed=seed)
        if test_items:
            report["at_gate_on_test"] = gate_figures(gate, Sample.of(test_items), resamples=resamples, seed=seed)
    return Calibration(gate, report, tuning, testing, tuple(front), temperature)


def check_items(
    items: Sequence[LabelledItem], test_items: Sequence[LabelledItem] = ()
) -> tuple[list[LabelledItem], list[str]]:
    """Return the items without repetitions, and what there is to say about them.

    Raises:
        CalibrationError: Fewer than 50 items, one class only, singles mixed with pairs, labels that disagree for the
            same item, or items that are in the test set too.
    """
    seen: dict[str, LabelledItem] = {}
    for item in items:
        first = seen.setdefault(item.key, item)
        if first.fast_correct != item.fast_correct and first.logit != 0:
            raise CalibrationError(f"labels disagree for the same item (key {item.key}); remove it or settle its label")
    kept = list(seen.values())
    notes = [f"{len(items) - len(kept)} repeated items were used once"] if len(kept) < len(items) else []
    if len(kept) < MIN_ITEMS:
        raise CalibrationError(f"{len(kept)} different labelled items, expected at least {MIN_ITEMS}; label more")
    if len({len(x.readings) for x in kept}) > 1:
        raise CalibrationError(
            "the file mixes single responses and pairs, whose confidences differ in kind; calibrate them apart"
        )
    if len(kept[0].readings) == 1 and len({x.label for x in kept}) == 1:
        raise CalibrationError(f"every response has the label {kept[0].label}; expected both good and bad ones")
    shared = seen.keys() & {x.key for x in test_items}
    if shared:
        raise CalibrationError(
            f"{len(shared)} items are in both the calibration and the test set (key {min(shared)}, ...); remove them from one"
        )
    groups = len({x.group or x.key for x in kept})
    if groups < len(kept):
        notes.append(
            f"{len(kept)} items come from {groups} prompts; a risk is proved on one item of each prompt, drawn at random"
        )
    return kept, notes


def split(sample: Sample, tuning_share: float, seed: int = 0) -> tuple[Sample, Sample]:
    """Split at random into a tuning and a testing part; items of one group stay together.

    Raises:
        CalibrationError: If the share leaves a part empty.
    """
    if not 0 < tuning_share < 1:
        raise CalibrationError(f"the tuning share is {tuning_share!r}, expected a number strictly between 0 and 1")
    groups, member = np.unique(sample.groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(groups))
    tuned = order[member] < round(tuning_share * len(groups))
    if tuned.all() or not tuned.any():
        raise CalibrationError(f"a tuning share of {tuning_share!r} of {len(groups)} prompts leaves a part empty")
    return sample.take(tuned), sample.take(~tuned)


def one_per_group(sample: Sample, seed: int = 0) -> Sample:
    """Return one item of each group, drawn at random: items of one prompt are not independent, and a proof counts on that."""
    order = np.random.default_rng(seed).permutation(len(sample))
    _, first = np.unique(sample.groups[order], return_index=True)
    return sample.take(np.sort(order[first]))


def fit_temperature(sample: Sample) -> float:
    """Return the temperature that makes the score likeliest: least mean of log(1 + exp(-toward/T)).

    The loss is convex in 1/T, so a golden-section search finds it.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    golden = (5**0.5 - 1) / 2

    def loss(scale: float) -> float:
        return float(np.logaddexp(0.0, -sample.toward * scale).mean())

    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2 / (low + high)


def _choose(
    goal: Goal, tuning: Sample, testing: Sample, temperature: float, seed: int
) -> RiskControl | GateSpec | None:
    if goal.risk is not None:
        return control_risk(
            tuning,
            one_per_group(testing, seed),
            risk=goal.risk,
            confidence=goal.confidence,
            temperature=temperature,
            paths=goal.paths,
        )
    points = pareto(tuning, temperature)
    if goal.budget is not None:
        return best_within_budget(points, goal.budget).gate
    if goal.within is not None:
        return cheapest_within(points, tuning, goal.within, goal.confidence).gate
    return None


def _measured_front(tuning: Sample, testing: Sample, temperature: float) -> list[OperatingPoint]:
    if tuning.slow_correct is None:
        return []
    return [operate(point.gate, testing) for point in pareto(tuning, temperature)]


def _guarantee(testing: Sample, control: RiskControl) -> dict[str, Any]:
    feasible = feasibility(testing, control.risk, control.delta)
    step = control.step
    return {
        "proved": control.proved,
        "statement": _statement(control),
        "assumes": "the items to come are drawn like the labelled ones, independently (exchangeability)",
        "path": control.path,
        "delta_per_path": control.delta,
        "tested_items": control.tested,
        "accepted": step.accepted,
        "errors": step.errors,
        "upper_bound": step.upper_bound,
        "base_risk": feasible.base_risk,
        "least_escalation": feasible.least_escalation,
        "least_items": feasible.least_items,
        "enough_items": control.tested >= feasible.least_items,
    }


def _statement(control: RiskControl) -> str:
    risk, confidence = control.risk, control.confidence
    if not control.proved:
        return f"no threshold could be proved to keep the error rate at {risk:g} or less with confidence {confidence:g}: always escalate"
    return f"among the items that the fast path decides alone, the error rate is at most {risk:g}, with probability at least {confidence:g}"


def _goal_dict(goal: Goal) -> dict[str, Any]:
    if goal.risk is not None:
        return {"risk": goal.risk, "confidence": goal.confidence, "paths": list(goal.paths) if goal.paths else "auto"}
    if goal.within is not None:
        return {"within": goal.within, "confidence": goal.confidence}
    return {"budget": goal.budget} if goal.budget is not None else {"front": True}


def _point_dict(point: OperatingPoint, testing: Sample) -> dict[str, Any]:
    never, always = operate(NEVER, testing), operate(ALWAYS, testing)
    rival = random_accuracy(point.tokens, never.accuracy, always.accuracy, always.tokens)
    measured = {
        "accuracy": point.accuracy,
        "tokens": point.tokens,
        "escalated": point.escalated,
        "random_at_equal_cost": rival,
    }
    return {"gate": point.gate.to_dict(), **measured}
