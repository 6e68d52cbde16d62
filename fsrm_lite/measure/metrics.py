"""Figures that say how far a confidence can be trusted, and what a gate gains. They are computed with numpy alone.

Some words: an item is *accepted* when its confidence reaches the threshold, so that the fast path decides it alone, and
*escalated* to the judge otherwise. *Coverage* is the share of items accepted. *Selective risk* is the error rate among
the accepted items.

In every function ``confidence`` has shape [n] (higher is surer), and ``correct`` has shape [n] (true or 1 where the
fast answer is right). A threshold cannot separate items of equal confidence, so every curve takes them together, as
one block.
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
"""Number of equal-width bins of the expected calibration error, as in Guo et al. (ICML 2017)."""


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The error rate among the accepted items as more and more of them are accepted, the surest first.

    Attributes:
        coverage: Share of items accepted, float64, shape [n], from 1/n to 1.
        selective_risk: Error rate among the accepted items, float64, shape [n].
        aurc: Area under the risk-coverage curve: the mean of the selective risk over all coverages. Lower is better.
        augrc: Area under the generalized risk-coverage curve: the mean over all coverages of the share of items that
            are accepted and wrong. Lower is better. Unlike AURC it does not give the first few items too much weight
            (Traub et al., NeurIPS 2024).
    """

    coverage: Floats
    selective_risk: Floats
    aurc: float
    augrc: float


@dataclass(frozen=True, slots=True)
class Front:
    """Accuracy and tokens as more and more items are escalated, the least sure first.

    Attributes:
        tokens: Mean generated tokens per item, float64, shape [k], from 0 (always fast) to always slow.
        accuracy: Share of items that are right, float64, shape [k].
        escalated: Share of items escalated, float64, shape [k], from 0 to 1.
    """

    tokens: Floats
    accuracy: Floats
    escalated: Floats


def brier(probability: Floats, outcome: Flags) -> float:
    """Return the Brier score: the mean squared difference of a probability and the outcome, 0 or 1. Lower is better."""
    return float(np.mean((probability - outcome) ** 2)) if len(outcome) else math.nan


def ece(probability: Floats, outcome: Flags, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: how far claimed probabilities are from what happens. Lower is better.

    Items are sorted into bins of equal width by their claimed probability. The error is the mean over the bins,
    weighted by their size, of the difference between the mean probability and the accuracy in the bin.

    Args:
        probability: Claimed probability of being right, shape [n], in [0, 1].
        outcome: Whether it was right, shape [n].
        bins: Number of bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if not len(outcome):
        return math.nan
    where = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(where, weights=outcome - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(outcome))


def reliability(probability: Floats, outcome: Flags, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """Return mean probability, accuracy and number of items of each bin (see ``ece``) that is not empty."""
    where = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return [
        (float(probability[where == b].mean()), float(outcome[where == b].mean()), int((where == b).sum()))
        for b in range(bins)
        if (where == b).any()
    ]


def auroc(confidence: Floats, correct: Flags) -> float:
    """Return the area under the ROC curve: how well a confidence tells right items from wrong ones.

    It is the probability that a right item has a higher confidence than a wrong one, ties counting half: 0.5 for a
    confidence that says nothing, 1 for a perfect one. NaN if all items are right or all are wrong.
    """
    right = int(np.count_nonzero(correct))
    wrong = len(correct) - right
    if not right or not wrong:
        return math.nan
    _, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    return float((midranks[inverse][np.asarray(correct, dtype=bool)].sum() - right * (right + 1) / 2) / (right * wrong))


def roc(confidence: Floats, correct: Flags) -> tuple[Floats, Floats]:
    """Return the ROC curve, whose area is ``auroc``: shares of wrong and of right items accepted, each of shape [k]."""
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)
    flags = np.asarray(correct, dtype=np.float64)[order]
    right, wrong = np.cumsum(flags)[last], np.cumsum(1 - flags)[last]
    return np.concatenate([[0.0], wrong / max(wrong[-1], 1)]), np.concatenate([[0.0], right / max(right[-1], 1)])


def risk_coverage(confidence: Floats, correct: Flags) -> RiskCoverage:
    """Return the risk-coverage curve and its areas. Within a block of equal confidence, errors are spread evenly."""
    n = len(correct)
    _, block, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    block_errors = np.bincount(block, weights=1.0 - np.asarray(correct, dtype=np.float64))
    errors = np.cumsum(np.repeat(block_errors / counts, counts))
    accepted = np.arange(1, n + 1)
    return RiskCoverage(accepted / n, errors / accepted, float(np.mean(errors / accepted)), float(np.mean(errors / n)))


def front(confidence: Floats, fast_correct: Flags, slow_correct: Flags, slow_tokens: Floats) -> Front:
    """Return accuracy and tokens for every threshold: items below it are escalated.

    Args:
        confidence: Shape [n].
        fast_correct: Whether the fast answer is right, shape [n].
        slow_correct: Whether the judge's answer is right, shape [n].
        slow_tokens: Tokens that the judge wrote, shape [n].
    """
    n = len(fast_correct)
    order = np.argsort(confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)
    gain = np.asarray(slow_correct, dtype=np.float64) - np.asarray(fast_correct, dtype=np.float64)
    steps = [np.cumsum(x[order])[last] / n for x in (np.asarray(slow_tokens, dtype=np.float64), gain, np.ones(n))]
    tokens, gained, escalated = (np.concatenate([[0.0], x]) for x in steps)
    return Front(tokens, float(np.mean(fast_correct)) + gained, escalated)


def oracle_front(fast_correct: Flags, slow_correct: Flags, slow_tokens: Floats) -> Front:
    """Return the best front that is possible, that of an oracle which knows where the judge helps.

    It escalates first the items that the judge corrects, then those where it changes nothing, and last those that it
    spoils. Of equals the cheap ones come first, but of those that the judge spoils the dear ones. The arguments are
    those of ``front``.
    """
    gain = np.asarray(slow_correct, dtype=np.float64) - np.asarray(fast_correct, dtype=np.float64)
    tokens = np.asarray(slow_tokens, dtype=np.float64)
    rank = np.empty(len(gain))
    rank[np.lexsort((np.where(gain < 0, -tokens, tokens), -gain))] = np.arange(len(gain))
    return front(rank, fast_correct, slow_correct, slow_tokens)


def random_accuracy(tokens: float, fast_accuracy: float, slow_accuracy: float, mean_slow_tokens: float) -> float:
    """Return the expected accuracy of escalating items at random until ``tokens`` per item are spent.

    Args:
        tokens: Mean generated tokens per item that may be spent.
        fast_accuracy: Accuracy of always fast.
        slow_accuracy: Accuracy of always slow.
        mean_slow_tokens: Mean generated tokens per item of always slow.
    """
    share = min(1.0, tokens / mean_slow_tokens) if mean_slow_tokens > 0 else 1.0
    return fast_accuracy + share * (slow_accuracy - fast_accuracy)


def area_above_random(curve: Front) -> float:
    """Return how much accuracy a front gains over random escalation, as the mean over all costs from 0 to always slow.

    The points of a front are joined by straight lines, because a point between two thresholds can be reached by
    tossing a coin between them. NaN if always slow costs nothing.
    """
    if curve.tokens[-1] <= 0:
        return math.nan
    cost = curve.tokens / curve.tokens[-1]
    above = curve.accuracy - (curve.accuracy[0] + cost * (curve.accuracy[-1] - curve.accuracy[0]))
    return float(np.sum((above[1:] + above[:-1]) / 2 * np.diff(cost)))
