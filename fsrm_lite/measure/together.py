"""Fast and slow together: fits how much either counts in the answer after slow thinking, and what both get wrong.

After thinking, a pair has two witnesses: the difference of the fast logits, and the judge's votes. Their weights
(``fsrm_lite.gate.AnswerWeights``) are fitted by a logistic regression of the label on both, without an intercept, so
that exchanged responses get the opposite answer. They are kept only where held-out pairs are answered no worse with
them than by the votes alone.

No weights mend an error that both paths make with confidence. Its share says how far thinking can go.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.gate import AnswerWeights
from fsrm_lite.measure.intervals import bootstrap, wilson
from fsrm_lite.measure.labelled import Sample

_RIDGE = 1e-4
"""Penalty on the weights of standardized witnesses: it keeps them finite where one of them is never wrong."""

_STEPS = 50


@dataclass(frozen=True)
class Together:
    """What ``weigh`` found.

    Attributes:
        weights: The weights to be used; None where the votes alone do better, or no weights can be fitted.
        report: Figures, ready for JSON.
    """

    weights: AnswerWeights | None
    report: dict[str, Any]


def weigh(tuning: Sample, testing: Sample, *, resamples: int = 1000, seed: int = 0) -> Together | None:
    """Fit the weights of both paths on one part of labelled pairs, and keep them if they do no worse on another one.

    Args:
        tuning: Pairs that the weights are fitted on.
        testing: Other pairs. The weights are kept if they answer as many of these right as the votes alone do, and not
            all are the votes' own answers.
        resamples: Bootstrap resamples behind each interval.
        seed: Seed of the resampling.

    Returns:
        The weights and the figures of ``testing``; None if the votes are not known of every pair.
    """
    if tuning.slow_toward is None or testing.slow_toward is None or testing.slow_correct is None:
        return None
    fitted, votes = fit_weights(tuning), testing.slow_correct
    both = testing.answered_by(fitted).slow_correct
    assert both is not None
    kept = fitted is not None and bool((both != votes).any()) and int(both.sum()) >= int(votes.sum())

    def statistics(chosen: NDArray[np.int64]) -> dict[str, float]:
        alone, together = float(votes[chosen].mean()), float(both[chosen].mean())
        return {"votes": alone, "both": together, "gain": together - alone}

    found = bootstrap(statistics, len(testing), groups=testing.groups.tolist(), resamples=resamples, seed=seed)
    report = {
        "fitted": asdict(fitted) if fitted is not None else None,
        "kept": kept,
        "accuracy": {name: interval.to_dict() for name, interval in found.items()},
        "errors": shared_errors(testing),
    }
    return Together(fitted if kept else None, report)


def fit_weights(sample: Sample) -> AnswerWeights | None:
    """Return the weights under which the labels are likeliest; None where neither path speaks for them.

    A weight below 0 would turn a witness around; it is set to 0, and the other one is fitted alone.

    Raises:
        ValueError: If the votes are not known of every pair.
    """
    if sample.slow_toward is None:
        raise ValueError("the votes are not known of every pair")
    witnesses = np.stack([sample.toward, sample.slow_toward], axis=1)
    scale = np.sqrt((witnesses**2).mean(axis=0))
    used = scale > 0
    weights = np.zeros(2)
    while used.any():
        weights[:] = 0.0
        weights[used] = _logistic(witnesses[:, used] / scale[used]) / scale[used]
        if (weights[used] > 0).all():
            return AnswerWeights(float(weights[0]), float(weights[1]))
        used &= weights > 0
    return None


def shared_errors(sample: Sample) -> dict[str, Any]:
    """Return how many errors the fast path and the votes make, each and together.

    Returns:
        ``items``, ``fast``, ``slow`` and ``both``: numbers of pairs, of errors of either path and of both.
        ``share_of_fast``: the share of the fast path's errors that the votes make too, with its 95 % interval, which
        thinking cannot mend. Ready for JSON.

    Raises:
        ValueError: If the judge was not asked about every item.
    """
    if sample.slow_correct is None:
        raise ValueError("the judge was not asked about every item")
    fast, slow = ~sample.fast_correct, ~sample.slow_correct
    both = int((fast & slow).sum())
    return {
        "items": len(sample),
        "fast": int(fast.sum()),
        "slow": int(slow.sum()),
        "both": both,
        "share_of_fast": wilson(both, int(fast.sum())).to_dict(),
    }


def _logistic(toward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimise the mean of ``log(1 + exp(-toward @ w))`` plus a small penalty on ``w``, by Newton's method.

    Args:
        toward: What each witness says in favour of the label, float64, shape [n, k], on a scale of about 1.

    Returns:
        The weights, float64, shape [k].
    """
    count, width = toward.shape
    weights = np.zeros(width)

    def loss(w: NDArray[np.float64]) -> float:
        return float(np.logaddexp(0.0, -(toward @ w)).mean() + _RIDGE / 2 * (w @ w))

    for _ in range(_STEPS):
        doubt = 0.5 * (1.0 - np.tanh(0.5 * (toward @ weights)))  # the probability that the label is another one
        gradient = _RIDGE * weights - toward.T @ doubt / count
        curvature = (toward.T * (doubt * (1.0 - doubt))) @ toward / count + _RIDGE * np.eye(width)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights
