"""The figures of a calibration report: how good the confidences are, and what the gate is worth beside its rivals.

The rivals are: always deciding fast, always asking the judge, and escalating items at random for as many tokens as the
gate spends. The oracle, which knows where the judge helps, shows the best that any gate could reach.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.intervals import Interval, bootstrap, wilson
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.metrics import (
    area_above_random,
    auroc,
    brier,
    ece,
    front,
    oracle_front,
    random_accuracy,
    risk_coverage,
)
from fsrm_lite.measure.tradeoff import escalations

COLDEST, HOTTEST = 1 / 20, 1000.0
"""Ends of the range of the temperature, as multiples of the median logit. At the lower one half of the items have an
intuition confidence within 1e-8 of 1, at the upper one half of them are below 0.0005."""


def temperature_range(sample: Sample) -> tuple[float, float]:
    """Return the lowest and the highest temperature that make sense for logits of this size.

    Logits have no scale of their own: those of one reward model differ by 0.01 where another one's differ by 10.
    """
    sizes = np.abs(sample.logit[sample.logit != 0])
    size = float(np.median(sizes)) if len(sizes) else 1.0
    return COLDEST * size, HOTTEST * size


def without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def probability_right(sample: Sample, temperature: float) -> NDArray[np.float64]:
    """Return the probability of being right that the fast score claims, float64, shape [n], in [0.5, 1].

    Args:
        sample: The items.
        temperature: Score logits are divided by this first, > 0.
    """
    return (1.0 + sample.intuition(temperature)) / 2.0


def figures(sample: Sample, temperature: float, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return figures about the fast score and its confidences, each with a 95 % bootstrap interval.

    ``fsrm_lite.measure.metrics`` explains the figures by their names (``ece``, ``auroc``, ``aurc`` and so on).

    Args:
        sample: Items that the temperature was not fitted on.
        temperature: The fitted temperature; calibration is reported without it (before) and with it (after).
        resamples: Bootstrap resamples; items of one prompt are drawn together.
        seed: Seed of the resampling.

    Returns:
        Accuracy and tokens of always fast, always slow and the oracle; calibration before and after; and per confidence
        how well it tells right from wrong. Ready for JSON; None where the judge was not asked about every item.
    """
    claimed = {name: probability_right(sample, t) for name, t in (("before", 1.0), ("after", temperature))}

    def statistics(chosen: NDArray[np.int64]) -> dict[str, float]:
        part = sample.take(chosen)
        result = {"fast_accuracy": float(part.fast_correct.mean())}
        for name, whole in claimed.items():
            p = whole[chosen]
            result[f"ece_{name}"], result[f"brier_{name}"] = ece(p, part.fast_correct), brier(p, part.fast_correct)
        for name, confidence in part.confidences().items():
            curve = risk_coverage(confidence, part.fast_correct)
            result[f"auroc_{name}"] = auroc(confidence, part.fast_correct)
            result[f"aurc_{name}"], result[f"augrc_{name}"] = curve.aurc, curve.augrc
        return {**result, **_cost_statistics(part)}

    found = bootstrap(statistics, len(sample), groups=sample.groups.tolist(), resamples=resamples, seed=seed)
    flat = {name: interval.to_dict() for name, interval in found.items()}
    return {
        "always_fast": {"accuracy": flat["fast_accuracy"], "tokens": 0.0},
        "always_slow": {"accuracy": flat["slow_accuracy"], "tokens": flat["slow_tokens"]}
        if "slow_accuracy" in flat
        else None,
        "oracle": {"accuracy": flat["oracle_accuracy"], "tokens": flat["oracle_tokens"]}
        if "oracle_accuracy" in flat
        else None,
        "calibration": {k: {m: flat[f"{m}_{k}"] for m in ("ece", "brier")} for k in ("before", "after")},
        "confidences": {
            c: {m: flat.get(f"{m}_{c}") for m in ("auroc", "aurc", "augrc", "area_above_random")}
            for c in sample.confidences()
        },
    }


def gate_figures(gate: GateSpec, sample: Sample, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return what one gate does on a sample, each figure with a 95 % interval.

    Args:
        gate: The thresholds.
        sample: Items that were not used to choose them.
        resamples: Bootstrap resamples; items of one prompt are drawn together.
        seed: Seed of the resampling.

    Returns:
        The share of items escalated, and the selective risk, which is the error rate among the items decided fast. If
        the judge was asked about every item, also accuracy and tokens, beside those of the rivals. Ready for JSON.
    """
    up = escalations(gate, sample)
    kept = int((~up).sum())
    errors = int((~up & ~sample.fast_correct).sum())
    result: dict[str, Any] = {
        "items": len(sample),
        "escalated": wilson(len(sample) - kept, len(sample)).to_dict(),
        "selective_risk": wilson(errors, kept).to_dict(),
    }
    if sample.slow_correct is None or sample.slow_tokens is None:
        return result
    slow_correct, slow_tokens = sample.slow_correct, sample.slow_tokens
    right, cost = np.where(up, slow_correct, sample.fast_correct), slow_tokens * up

    def statistics(chosen: NDArray[np.int64]) -> dict[str, float]:
        fast, slow, full = (
            float(sample.fast_correct[chosen].mean()),
            float(slow_correct[chosen].mean()),
            float(slow_tokens[chosen].mean()),
        )
        accuracy, tokens = float(right[chosen].mean()), float(cost[chosen].mean())
        rival = random_accuracy(tokens, fast, slow, full)
        share = tokens / full if full > 0 else math.nan
        return {
            "accuracy": accuracy,
            "tokens": tokens,
            "token_share_of_slow": share,
            "loss_against_slow": slow - accuracy,
            "random_at_equal_cost": rival,
            "gain_over_random": accuracy - rival,
        }

    found = bootstrap(statistics, len(sample), groups=sample.groups.tolist(), resamples=resamples, seed=seed)
    return {**result, **{name: interval.to_dict() for name, interval in found.items()}}


def warnings_of(sample: Sample, temperature: float, tuning: Sample) -> list[str]:
    """Return warnings about a calibration, each one sentence; an empty list if there are none.

    Args:
        sample: The testing part.
        temperature: The fitted temperature.
        tuning: The part it was fitted on.
    """
    notes = []
    for name, confidence in sample.confidences().items():
        value = auroc(confidence, sample.fast_correct)
        if value < 0.5:
            notes.append(
                f"the {name} confidence is anti-calibrated: AUROC {value:.3f} < 0.5, "
                "wrong answers are surer than right ones; do not gate on it"
            )
    right = int(sample.fast_correct.sum())
    if right in (0, len(sample)):
        notes.append(
            f"the fast path is {'always right' if right else 'always wrong'} on the testing part; AUROC is undefined"
        )
    coldest, hottest = temperature_range(tuning)
    if not 1.02 * coldest < temperature < 0.98 * hottest:
        notes.append(
            f"the temperature hit the end of its range ({temperature:.3g}); "
            f"{len(tuning)} tuning items do not pin it down"
        )
    if sample.slow_correct is not None and sample.slow_correct.mean() < sample.fast_correct.mean():
        notes.append("slow thinking is less accurate than the fast path on these items; escalating does not pay")
    return notes


def _cost_statistics(part: Sample) -> dict[str, float]:
    """Return accuracy and tokens of always slow and of the oracle, and each confidence's gain over random escalation.

    Empty if the judge was not asked about every item.
    """
    if part.slow_correct is None or part.slow_tokens is None:
        return {}
    best = oracle_front(part.fast_correct, part.slow_correct, part.slow_tokens)
    top = int(np.argmax(best.accuracy))
    areas = {
        f"area_above_random_{name}": area_above_random(
            front(confidence, part.fast_correct, part.slow_correct, part.slow_tokens)
        )
        for name, confidence in part.confidences().items()
    }
    return {
        "slow_accuracy": float(part.slow_correct.mean()),
        "slow_tokens": float(part.slow_tokens.mean()),
        "oracle_accuracy": float(best.accuracy[top]),
        "oracle_tokens": float(best.tokens[top]),
        **areas,
    }


def percent(interval: dict[str, float | None] | Interval | None) -> str:
    """Return a share and its interval as text, for example ``87.1 % [85.0, 89.3]``."""
    values = interval.to_dict() if isinstance(interval, Interval) else interval
    if values is None or values["value"] is None:
        return "undefined"
    text = f"{100 * values['value']:.1f} %"
    low, high = values["low"], values["high"]
    return text if low is None or high is None else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
