"""How far a confidence can be trusted, and what a gate buys: figures of arrays, numpy only.

Everywhere ``confidence`` has shape [n] (higher is surer) and ``correct`` has shape [n] (true or 1 where the fast answer is
right). Items of equal confidence cannot be told apart by a threshold, so every curve treats them as one block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

ECE_BINS = 15
"""Equal-width bins of the expected calibration error, as Guo et al. (ICML 2017) use."""


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Error among the accepted items as more and more are accepted, surest first.

    Attributes:
        coverage: Share accepted, shape [n], 1/n to 1.
        selective_risk: Error rate among the accepted, shape [n].
        aurc: Mean selective risk over all coverages; lower is better.
        augrc: Mean over all coverages of P(accepted and wrong); lower is better. Unlike AURC it does not overweigh
            the first few items (Traub et al., NeurIPS 2024).
    """

    coverage: Floats
    selective_risk: Floats
    aurc: float
    augrc: float


@dataclass(frozen=True, slots=True)
class Front:
    """Accuracy against cost as more and more items are escalated, least sure first.

    Attributes:
        tokens: Mean generated tokens per item, shape [k], from 0 (always fast) upwards.
        accuracy: Shape [k].
        escalated: Share of the items escalated, shape [k], 0 to 1.
    """

    tokens: Floats
    accuracy: Floats
    escalated: Floats


def brier(probability: Floats, outcome: Flags) -> float:
    """Mean squared difference of a probability and what happened; lower is better."""
    return float(np.mean((probability - outcome) ** 2)) if len(outcome) else math.nan


def ece(probability: Floats, outcome: Flags, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean |accuracy - confidence| over equal-width bins, weighted by their size.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if not len(outcome):
        return math.nan
    where = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(where, weights=outcome - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(outcome))


def reliability(probability: Floats, outcome: Flags, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """Mean probability, accuracy and size of each bin that is not empty."""
    where = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return [
        (float(probability[where == b].mean()), float(outcome[where == b].mean()), int((where == b).sum()))
        for b in range(bins)
        if (where == b).any()
    ]


def auroc(confidence: Floats, correct: Flags) -> float:
    """P(confidence of a right item > confidence of a wrong one), ties counting half; NaN with one class only."""
    right = int(np.count_nonzero(correct))
    wrong = len(correct) - right
    if not right or not wrong:
        return math.nan
    _, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    return float((midranks[inverse][np.asarray(correct, dtype=bool)].sum() - right * (right + 1) / 2) / (right * wrong))


def roc(confidence: Floats, correct: Flags) -> tuple[Floats, Floats]:
    """Points of the curve behind ``auroc``: share of wrong items kept, share of right items kept, each shape [k]."""
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)
    flags = np.asarray(correct, dtype=np.float64)[order]
    right, wrong = np.cumsum(flags)[last], np.cumsum(1 - flags)[last]
    return np.concatenate([[0.0], wrong / max(wrong[-1], 1)]), np.concatenate([[0.0], right / max(right[-1], 1)])


def risk_coverage(confidence: Floats, correct: Flags) -> RiskCoverage:
    """Curve and areas of selective prediction; within a block of ties, errors are spread evenly."""
    n = len(correct)
    _, block, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    block_errors = np.bincount(block, weights=1.0 - np.asarray(correct, dtype=np.float64))
    errors = np.cumsum(np.repeat(block_errors / counts, counts))
    accepted = np.arange(1, n + 1)
    return RiskCoverage(accepted / n, errors / accepted, float(np.mean(errors / accepted)), float(np.mean(errors / n)))


def front(confidence: Floats, fast_correct: Flags, slow_correct: Flags, slow_tokens: Floats) -> Front:
    """Accuracy and tokens when the items below a threshold are escalated, for every threshold that differs."""
    n = len(fast_correct)
    order = np.argsort(confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)
    gain = np.asarray(slow_correct, dtype=np.float64) - np.asarray(fast_correct, dtype=np.float64)
    steps = [np.cumsum(x[order])[last] / n for x in (np.asarray(slow_tokens, dtype=np.float64), gain, np.ones(n))]
    tokens, gained, escalated = (np.concatenate([[0.0], x]) for x in steps)
    return Front(tokens, float(np.mean(fast_correct)) + gained, escalated)


def oracle_front(fast_correct: Flags, slow_correct: Flags, slow_tokens: Floats) -> Front:
    """The best front there is: escalate first what slow thinking repairs, last what it spoils, cheap before dear."""
    gain = np.asarray(slow_correct, dtype=np.float64) - np.asarray(fast_correct, dtype=np.float64)
    tokens = np.asarray(slow_tokens, dtype=np.float64)
    rank = np.empty(len(gain))
    rank[np.lexsort((np.where(gain < 0, -tokens, tokens), -gain))] = np.arange(len(gain))
    return front(rank, fast_correct, slow_correct, slow_tokens)


def random_accuracy(tokens: float, fast_accuracy: float, slow_accuracy: float, mean_slow_tokens: float) -> float:
    """Expected accuracy of escalating items at random at the same mean cost."""
    share = min(1.0, tokens / mean_slow_tokens) if mean_slow_tokens > 0 else 1.0
    return fast_accuracy + share * (slow_accuracy - fast_accuracy)


def area_above_random(curve: Front) -> float:
    """Mean accuracy by which a front lies above random escalation, over all costs from none to always slow.

    Both are joined by straight lines: a point between two thresholds is reached by tossing a coin between them.
    """
    if curve.tokens[-1] <= 0:
        return math.nan
    cost = curve.tokens / curve.tokens[-1]
    above = curve.accuracy - (curve.accuracy[0] + cost * (curve.accuracy[-1] - curve.accuracy[0]))
    return float(np.sum((above[1:] + above[:-1]) / 2 * np.diff(cost)))
