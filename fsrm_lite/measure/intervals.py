"""Bounds and intervals: exact binomial tails in log space, Wilson intervals, and the bootstrap. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 60
"""Halvings of [0, 1]: 60 pin a bound down to the last bit of a double."""

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval; NaN where the data do not define it."""

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
    """Log of P(X <= successes) for X ~ Binomial(trials, p).

    Args:
        successes: 0 to ``trials``; a negative count gives -inf.
        trials: At least 0.
        p: In [0, 1].
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
    """Exact upper confidence bound of an error rate: it is below the true rate with probability at most ``delta``.

    Found by bisection on the binomial tail, which falls with p. Without a trial the bound is 1.

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
    """Most errors in n trials that still prove, at level ``delta``, an error rate of at most ``risk``.

    ``errors <= critical_errors(...)[n]`` is the same test as ``clopper_pearson_upper(errors, n, delta) <= risk``,
    without a root to find per test.

    Returns:
        Shape [max_trials + 1]; -1 where not even zero errors would do.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max_trials + 1)))])
    result = np.full(max_trials + 1, -1, dtype=np.int64)
    log_p, log_q = math.log(risk), math.log1p(-risk)
    for n in range(1, max_trials + 1):
        # The critical count lies below the mean, so the terms up to it are the whole search range.
        k = np.arange(min(n, math.ceil(n * risk)) + 1)
        pmf = np.exp(log_factorial[n] - log_factorial[k] - log_factorial[n - k] + k * log_p + (n - k) * log_q)
        result[n] = int(np.searchsorted(np.cumsum(pmf), delta, side="right")) - 1
    return result


def wilson(successes: float, trials: int) -> Interval:
    """95 % Wilson interval of a proportion; NaN without trials.

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
    """95 % percentile intervals of several statistics of the same items at once.

    Args:
        statistics: Takes positions of items, shape [n], and returns named figures; NaN where undefined.
        count: Number of items.
        groups: One label per item; items of one group (say, of one prompt) are drawn together.
        resamples: How many resamples to draw.
        seed: Of the resampling.
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
    """Log of "trials choose k" for k = 0..trials."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    return np.asarray(log_factorial[-1] - log_factorial - log_factorial[::-1])
