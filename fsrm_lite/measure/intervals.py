"""Confidence bounds and intervals: exact binomial bounds, Wilson intervals, and the bootstrap. Needs only numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 60
"""How often [0, 1] is halved to find a bound; 60 times gives it to the last bit of a double."""

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval; NaN where the data do not define it.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the JSON form; NaN becomes null."""
        return {
            name: None if math.isnan(x) else x
            for name, x in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def log_binomial_cdf(successes: int, trials: int, p: float) -> float:
    """Return the log of the probability of at most ``successes`` successes in ``trials`` independent trials.

    It is a log because the probability itself can be too small for a float.

    Args:
        successes: 0 to ``trials``; a negative number gives -inf.
        trials: At least 0.
        p: Probability of success in one trial, in [0, 1].
    """
    if successes >= trials or p <= 0.0:
        return 0.0 if successes >= 0 else -math.inf
    if successes < 0 or p >= 1.0:
        return -math.inf
    terms = (
        _log_choose(trials)[: successes + 1]
        + np.arange(successes + 1) * math.log(p)
        + (trials - np.arange(successes + 1)) * math.log1p(-p)
    )
    top = float(terms.max())
    return min(0.0, top + math.log(float(np.exp(terms - top).sum())))


def clopper_pearson_upper(errors: int, trials: int, delta: float) -> float:
    """Return an upper bound of an error rate, from the errors counted in independent trials.

    The bound is exact: with probability at most ``delta`` it lies below the true error rate. It is the rate p at which
    so few errors have probability ``delta``; that probability falls with p, so bisection finds it. Without a trial it
    is 1.

    Args:
        errors: 0 to ``trials``.
        trials: Number of independent trials.
        delta: In (0, 1).

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if errors >= trials:
        return 1.0
    low, high, target = 0.0, 1.0, math.log(delta)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if log_binomial_cdf(errors, trials, middle) > target else (low, middle)
    return high


def critical_errors(max_trials: int, risk: float, delta: float) -> NDArray[np.int64]:
    """Return how many errors n trials may have and still prove an error rate of at most ``risk``, for every n.

    ``errors <= critical_errors(...)[n]`` is the same test as ``clopper_pearson_upper(errors, n, delta) <= risk``, but
    needs no bisection per test.

    Args:
        max_trials: Largest n.
        risk: The error rate to be proved, in (0, 1).
        delta: Probability with which the proof may be wrong, in (0, 1).

    Returns:
        int64, shape [max_trials + 1]; -1 where even zero errors would prove nothing.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max_trials + 1)))])
    result = np.full(max_trials + 1, -1, dtype=np.int64)
    log_p, log_q = math.log(risk), math.log1p(-risk)
    for n in range(1, max_trials + 1):
        # The number looked for lies below the mean n*risk, so the terms up to the mean are enough.
        k = np.arange(min(n, math.ceil(n * risk)) + 1)
        pmf = np.exp(log_factorial[n] - log_factorial[k] - log_factorial[n - k] + k * log_p + (n - k) * log_q)
        result[n] = int(np.searchsorted(np.cumsum(pmf), delta, side="right")) - 1
    return result


def wilson(successes: float, trials: int) -> Interval:
    """Return a proportion with its 95 % Wilson interval; NaN without trials.

    Source: Wilson, JASA 22 (1927).
    """
    if trials == 0:
        return Interval(math.nan, math.nan, math.nan)
    p, z2 = successes / trials, _Z_95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def bootstrap(
    statistics: Callable[[NDArray[np.int64]], dict[str, float]],
    count: int,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return several figures of the same items with 95 % bootstrap intervals.

    The bootstrap draws as many items as there are, with replacement, again and again (each time a resample), and
    computes the figures of each resample. An interval spans the middle 95 % of a figure's values.

    Args:
        statistics: Function from positions of items, shape [n], to figures by name; NaN where a figure is undefined.
        count: Number of items.
        groups: A label per item. Items of one group (for example of one prompt) are drawn together; None draws each
            item on its own.
        resamples: How many resamples to draw.
        seed: Seed of the drawing.
    """
    point = statistics(np.arange(count))
    rng = np.random.default_rng(seed)
    clusters = _clusters(groups) if groups is not None and len(set(groups)) < count else None
    draws: dict[str, list[float]] = {name: [] for name in point}
    for _ in range(resamples if count else 0):
        if clusters is None:
            chosen = rng.integers(0, count, size=count)
        else:
            chosen = np.concatenate([clusters[i] for i in rng.integers(0, len(clusters), size=len(clusters))])
        for name, value in statistics(chosen).items():
            draws[name].append(value)
    return {name: _percentiles(value, draws[name]) for name, value in point.items()}


def _percentiles(value: float, draws: list[float]) -> Interval:
    defined = [x for x in draws if not math.isnan(x)]
    if not defined or math.isnan(value):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def _clusters(groups: Sequence[Any]) -> list[NDArray[np.int64]]:
    members: dict[Any, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    return [np.array(m) for m in members.values()]


@lru_cache(maxsize=64)
def _log_choose(trials: int) -> NDArray[np.float64]:
    """Return the log of "trials choose k" for k = 0 to ``trials``."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    return np.asarray(log_factorial[-1] - log_factorial - log_factorial[::-1])
