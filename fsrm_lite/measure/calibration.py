"""Calibration: chooses a gate's thresholds from labelled items, and reports what the gate is worth.

A labelled item is a response or a pair whose right answer is known. The thresholds are chosen for one goal: an error
rate that must not be exceeded, a budget of tokens, or an accuracy that must not be lost.

The items are split at random into two parts; items of one prompt stay together. The tuning part may be looked at
freely: it fits the temperature, by which score logits are divided so that confidences are neither too high nor too
low, it proposes thresholds, and it fits how much fast path and votes count in an answer after thinking
(``fsrm_lite.measure.together``). The testing part is not looked at before: it proves the guarantee, every figure of the
report is measured on it, and it says whether these weights do no worse than the votes alone. That last choice, one of
two, is no part of the guarantee, which is about what the fast path decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fsrm_lite.errors import CalibrationError
from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.calibration_report import (
    figures,
    gate_figures,
    temperature_range,
    warnings_of,
    without_nan,
)
from fsrm_lite.measure.labelled import LabelledItem, Sample
from fsrm_lite.measure.metrics import random_accuracy
from fsrm_lite.measure.planning import plan
from fsrm_lite.measure.risk_control import ALWAYS, NEVER, TUNING_SHARE, RiskControl, control_risk, feasibility
from fsrm_lite.measure.together import weigh
from fsrm_lite.measure.tradeoff import OperatingPoint, best_within_budget, cheapest_within, escalations, operate, pareto

MIN_ITEMS = 50
"""Least number of labelled items; fewer say too little to calibrate anything."""

OTHER_SEEDS = 20
"""How many other splits a report on a risk tries, to say how much of the result is luck of the draw."""

SEARCH_SHARE = 0.5
"""Share of the items for tuning where the tuning part picks the thresholds, and the testing part only measures them."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the thresholds are chosen for. Exactly one of the first four is given.

    Attributes:
        risk: Highest error rate among the items that the fast path decides alone, in (0, 1). It is guaranteed with
            probability ``confidence``.
        budget: Most generated tokens per item, on average. The most accurate gate within it is chosen.
        within: Accuracy that may be lost compared with always thinking slowly, for example 0.005. The cheapest gate is
            chosen for which a bound at ``confidence`` on the tuning part says so; this is no guarantee, see
            ``cheapest_within``.
        front: Choose no gate, but report the Pareto front: the gates that no other one beats on both accuracy and
            tokens.
        confidence: For ``risk``: probability with which the guarantee holds, over the random choice of the testing
            part. For ``within``: level of the bound. In (0, 1).
        paths: For ``risk``: names of the threshold paths to try (see ``fsrm_lite.measure.risk_control``), which share
            the allowed probability of failure; None picks one path on the tuning part.
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
        gate: The chosen thresholds; None where only the Pareto front was asked for.
        report: Figures and statements, ready for JSON.
        tuning: The items that were looked at freely, with the answers after thinking that the gate gives.
        testing: The items that the guarantee and the figures rest on, likewise.
        front: The Pareto front of the tuning part, each gate measured on the testing part; empty if the judge was not
            asked about every item.
        temperature: The temperature fitted on the tuning part.
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
    run: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    cost: str = "tokens",
) -> Calibration:
    """Choose the gate's thresholds from labelled items.

    Args:
        items: At least 50. For every goal but ``risk`` the judge must have been asked about each of them.
        goal: What to choose the thresholds for.
        test_items: Further items on which the chosen gate is measured; none of them may be among ``items``.
        tuning_share: Share of the items in the tuning part, in (0, 1); None takes 0.2 for a risk, 0.5 otherwise.
        seed: Seed of the split and of the bootstrap, at least 0.
        resamples: Bootstrap resamples behind each confidence interval.
        run: What the items were made with: bundle, version, data and options; it stands in the report as it is.
        cost: What ``slow_tokens`` of the items counts, in the plural, for the report's text.
        notes: What happened to the data before, for example how many items were left out; the first of the warnings.

    Returns:
        The chosen thresholds and the report.

    Raises:
        CalibrationError: If there are too few items, all have the same label, some contradict each other or are in both
            lists, or slow outcomes are missing where they are needed.
    """
    if seed < 0:
        raise CalibrationError(f"the seed is {seed}, expected 0 or more")
    kept, remarks = check_items(items, test_items)
    share = tuning_share if tuning_share is not None else TUNING_SHARE if goal.risk is not None else SEARCH_SHARE
    tuning, testing = split(Sample.of(kept), share, seed)
    temperature = fit_temperature(tuning)
    together = weigh(tuning, testing, resamples=resamples, seed=seed)
    weights = together.weights if together is not None else None
    # From here on, what comes of thinking is what a gate with these weights answers.
    tuning, testing = tuning.answered_by(weights), testing.answered_by(weights)
    chosen: RiskControl | GateSpec | None
    if goal.risk is not None:
        chosen = _control(goal, goal.risk, tuning, testing, temperature, seed)
    else:
        chosen = _search(goal, tuning, temperature)
    front = [replace(p, gate=replace(p.gate, weights=weights)) for p in _measured_front(tuning, testing, temperature)]
    gate = chosen.gate if isinstance(chosen, RiskControl) else chosen
    gate = replace(gate, weights=weights) if gate is not None else None
    report: dict[str, Any] = {
        "run": dict(run or {}),
        "goal": _goal_dict(goal),
        "items": {"given": len(items), "used": len(kept), "tuning": len(tuning), "testing": len(testing), "seed": seed},
        "temperature": temperature,
        "gate": gate.to_dict() if gate is not None else None,
        "margin": margin_of(gate) if gate is not None else None,
        "cost": cost,
        "guarantee": _guarantee(testing, chosen) if isinstance(chosen, RiskControl) else None,
        "together": together.report if together is not None else None,
        **figures(testing, temperature, resamples=resamples, seed=seed),
        "front": _front_dicts(front, testing),
        "warnings": [*notes, *remarks, *warnings_of(testing, temperature, tuning)],
    }
    if goal.risk is not None:
        report["other_seeds"] = _other_seeds(kept, goal, goal.risk, share, seed)
        report["plan"] = [asdict(p) for p in plan(one_per_group(Sample.of(kept), seed), goal.risk, goal.confidence)]
    if gate is not None:
        report["at_gate"] = gate_figures(gate, testing, resamples=resamples, seed=seed)
        if test_items:
            test = Sample.of(test_items).answered_by(weights)
            report["at_gate_on_test"] = gate_figures(gate, test, resamples=resamples, seed=seed)
    return Calibration(gate, without_nan(report), tuning, testing, tuple(front), temperature)


def check_items(
    items: Sequence[LabelledItem], test_items: Sequence[LabelledItem] = ()
) -> tuple[list[LabelledItem], list[str]]:
    """Check labelled items before they are used.

    Returns:
        The items, each once, and remarks for the report.

    Raises:
        CalibrationError: If fewer than 50 items are left, all responses have the same label, responses and pairs are
            mixed, labels of the same item disagree, or an item is among ``test_items`` too, or those are of the
            other kind.
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
            f"{len(shared)} items are in both the calibration and the test set (key {min(shared)}, ...); "
            "remove them from one"
        )
    if any(len(x.readings) != len(kept[0].readings) for x in test_items):
        raise CalibrationError(
            "the test set has single responses where the calibration set has pairs, or the other way round; give a "
            "test set of the same kind"
        )
    prompts = {x.group or x.key for x in kept}
    known = len({x.group or x.key for x in test_items} & prompts)
    if known:
        notes.append(
            f"{known} prompts are in both the calibration and the test set: the figures on the test set are not those "
            "of new prompts"
        )
    groups = len(prompts)
    if groups < len(kept):
        notes.append(
            f"{len(kept)} items come from {groups} prompts; "
            "a risk is proved on one item of each prompt, drawn at random"
        )
    return kept, notes


def split(sample: Sample, tuning_share: float, seed: int = 0) -> tuple[Sample, Sample]:
    """Split a sample at random into a tuning and a testing part. Items of one group (one prompt) stay together.

    Args:
        sample: The items.
        tuning_share: Share of the groups in the tuning part, in (0, 1).
        seed: Seed of the random choice.

    Returns:
        The tuning part and the testing part.

    Raises:
        CalibrationError: If the share is out of range or leaves a part empty.
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
    """Return one item of each group, drawn at random.

    A proof of an error rate needs independent items, and items of the same prompt are not independent.
    """
    order = np.random.default_rng(seed).permutation(len(sample))
    _, first = np.unique(sample.groups[order], return_index=True)
    return sample.take(np.sort(order[first]))


def fit_temperature(sample: Sample) -> float:
    """Return the temperature T under which the labels are likeliest: score logits are to be divided by it.

    It minimises the mean of ``log(1 + exp(-toward/T))``, where ``toward`` is the logit in favour of the label. This is
    convex in 1/T, so a golden-section search finds the minimum. The range searched is that of the sample's own logits;
    see ``temperature_range``.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    coldest, hottest = temperature_range(sample)
    low, high = 1 / hottest, 1 / coldest
    golden = (5**0.5 - 1) / 2

    def loss(scale: float) -> float:
        return float(np.logaddexp(0.0, -sample.toward * scale).mean())

    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2 / (low + high)


def margin_of(gate: GateSpec) -> float | None:
    """Return how far apart two scores must be for a gate to accept the pair; None where that is not the whole rule.

    The intuition confidence of a difference d is ``tanh(d / 2T)``. For a single response it is the distance of its
    logit from 0. A gate that accepts nothing, or looks at the word-distribution confidence too, has no such number.
    """
    if gate.always or gate.intuition_threshold >= 1 or gate.distribution_threshold > 0:
        return None
    if gate.combine == "all":
        return 0.0  # no confidence is below a threshold of 0, so nothing escalates
    return 2 * gate.temperature * math.atanh(gate.intuition_threshold)


def _control(goal: Goal, risk: float, tuning: Sample, testing: Sample, temperature: float, seed: int) -> RiskControl:
    """Return the gate for a risk, with what was proved about it."""
    proof = one_per_group(testing, seed)
    return control_risk(tuning, proof, risk=risk, confidence=goal.confidence, temperature=temperature, paths=goal.paths)


def _search(goal: Goal, tuning: Sample, temperature: float) -> GateSpec | None:
    """Return the gate for a budget or a loss; None where only the Pareto front is wanted."""
    points = pareto(tuning, temperature)
    if goal.budget is not None:
        return best_within_budget(points, goal.budget).gate
    if goal.within is not None:
        return cheapest_within(points, tuning, goal.within, goal.confidence).gate
    return None


def _other_seeds(kept: Sequence[LabelledItem], goal: Goal, risk: float, share: float, seed: int) -> dict[str, Any]:
    """Return what the same calibration finds with other random splits: how much of the result is luck of the draw.

    The guarantee is one of the seed that was chosen beforehand. Of several seeds, taking the one that suits best would
    void it.
    """
    sample, coverages = Sample.of(kept), []
    for other in range(seed + 1, seed + 1 + OTHER_SEEDS):
        tuning, testing = split(sample, share, other)
        gate = _control(goal, risk, tuning, testing, fit_temperature(tuning), other).gate
        coverages.append(0.0 if gate.always else float(1 - escalations(gate, testing).mean()))
    return {
        "tried": OTHER_SEEDS,
        "proved": sum(c > 0 for c in coverages),
        "fast": {"lowest": min(coverages), "median": float(np.median(coverages)), "highest": max(coverages)},
    }


def _measured_front(tuning: Sample, testing: Sample, temperature: float) -> list[OperatingPoint]:
    if tuning.slow_correct is None:
        return []
    return [operate(point.gate, testing) for point in pareto(tuning, temperature)]


def _guarantee(testing: Sample, control: RiskControl) -> dict[str, Any]:
    """Return the report's part about the guarantee: what was proved, on what assumption, and by which numbers."""
    feasible = feasibility(testing, control.risk, control.delta)
    step = control.step
    return {
        "proved": control.proved,
        "statement": _statement(control),
        "in_plain_words": _plain_words(control),
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
    """Return the guarantee in words, or that there is none."""
    risk, confidence = control.risk, control.confidence
    if not control.proved:
        return (
            f"no threshold could be proved to keep the error rate at {risk:g} or less "
            f"with confidence {confidence:g}: always escalate"
        )
    return (
        f"among the items that the fast path decides alone, the error rate is at most {risk:g}, "
        f"with probability at least {confidence:g}"
    )


def _plain_words(control: RiskControl) -> str:
    """Return what the guarantee means to somebody who uses the gate."""
    if not control.proved:
        return "with this gate every item is given to the judge; the labelled items do not show that less would be safe"
    wrong, luck = 100 * control.risk, 1 / (1 - control.confidence)
    return (
        f"let the gate run: of 100 items that it leaves to the fast path, about {wrong:.3g} or fewer will be wrong. "
        f"Of {luck:.3g} calibrations like this one, each on other items, one may break that promise"
    )


def _goal_dict(goal: Goal) -> dict[str, Any]:
    if goal.risk is not None:
        return {"risk": goal.risk, "confidence": goal.confidence, "paths": list(goal.paths) if goal.paths else "auto"}
    if goal.within is not None:
        return {"within": goal.within, "confidence": goal.confidence}
    return {"budget": goal.budget} if goal.budget is not None else {"front": True}


def _front_dicts(front: Sequence[OperatingPoint], testing: Sample) -> list[dict[str, Any]]:
    """Return each gate of the front with its figures and the accuracy of escalating at random for as many tokens."""
    if not front:
        return []
    never, always = operate(NEVER, testing), operate(ALWAYS, testing)
    return [
        {
            "gate": point.gate.to_dict(),
            "accuracy": point.accuracy,
            "tokens": point.tokens,
            "escalated": point.escalated,
            "random_at_equal_cost": random_accuracy(point.tokens, never.accuracy, always.accuracy, always.tokens),
        }
        for point in front
    ]
