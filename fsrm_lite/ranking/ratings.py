"""Ratings from games: Bradley-Terry by maximum likelihood, on the Elo scale, and which games to play next.

Numpy only. A *game* is (first, second, outcome) with the outcome in [0, 1] from the first player's side: 1 a win, 0 a
loss, anything between a probability or a share of votes. Strengths are in nats: the chance that i beats j is
``sigmoid(strength[i] - strength[j])``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import InputError
from fsrm_lite.types import Rating

Game: TypeAlias = tuple[int, int, float]
Array: TypeAlias = NDArray[np.float64]

ELO_MEAN = 1500.0
ELO_PER_NAT = 400.0 / math.log(10.0)
PRIOR_PRECISION = 0.1
"""Of the normal prior on strengths, per nat squared: standard deviation 3.2 nats, 550 Elo points. Keeps an unbeaten player finite."""

_WORTH_PLAYING = 0.5  # of the best game's worth, see informative_pairs()
_MAX_RANGE_STEP = 0.69  # see strengths()
_ITERATIONS = 200
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Posterior:
    """Strengths with their uncertainty, as a normal approximation.

    Attributes:
        mean: Shape [n], nats, summing to zero.
        covariance: Shape [n, n], nats squared.
        games: Shape [n], games per player.
    """

    mean: Array
    covariance: Array
    games: NDArray[np.int64]

    def ratings(self) -> tuple[Rating, ...]:
        """Return the players' ratings with 95 % intervals, in the order of the players."""
        half = _Z95 * np.sqrt(np.maximum(np.diagonal(self.covariance), 0.0))
        rows = zip(self.mean.tolist(), half.tolist(), self.games.tolist(), strict=True)
        return tuple(Rating(_elo(m), _elo(m - h), _elo(m + h), g) for m, h, g in rows)


def win_matrix(players: int, games: Iterable[Game]) -> Array:
    """Return shape [n, n]: entry [i, j] is what i won against j, in games.

    The sum does not depend on the order of the games, not even in its last bit.

    Raises:
        InputError: If a game names a player out of range or one against itself, or an outcome out of [0, 1].
    """
    wins = np.zeros((players, players))
    for first, second, outcome in sorted(games):
        if not (0 <= first < players and 0 <= second < players and first != second):
            raise InputError(f"game ({first}, {second}) is not between two different players of 0..{players - 1}")
        if not 0.0 <= outcome <= 1.0:
            raise InputError(f"game ({first}, {second}) has outcome {outcome!r}, expected a number in [0, 1]")
        wins[first, second] += outcome
        wins[second, first] += 1.0 - outcome
    return wins


def strengths(wins: Array, *, precision: float = PRIOR_PRECISION) -> Array:
    """Fit Bradley-Terry strengths: the mode of the likelihood times a normal prior around zero.

    Newton's method. A step is scaled down so that no difference of strengths moves by more than 0.69 nats: within that
    distance no curvature ``p*(1-p)`` grows by a factor of 2, so every step goes uphill and none can diverge.

    Args:
        wins: Shape [..., n, n] from ``win_matrix``; leading axes are independent tournaments.
        precision: Of the prior, > 0.

    Returns:
        Shape [..., n], nats, summing to zero.
    """
    games = wins + np.swapaxes(wins, -1, -2)
    theta: Array = np.zeros(wins.shape[:-1])
    if theta.size == 0:
        return theta
    for _ in range(_ITERATIONS):
        p = _win_probability(theta)
        gradient = (wins - games * p).sum(-1) - precision * theta
        step = np.linalg.solve(_information(games, p, precision), gradient[..., None])[..., 0]
        reach = np.ptp(step, axis=-1, keepdims=True)
        theta = theta + step * np.minimum(1.0, _MAX_RANGE_STEP / np.maximum(reach, 1e-300))
        if float(np.abs(step).max()) < 1e-10:
            break
    centred: Array = theta - theta.mean(-1, keepdims=True)
    return centred


def bradley_terry(players: int, games: Iterable[Game], *, precision: float = PRIOR_PRECISION) -> Posterior:
    """Rate players from their games; the order of the games does not matter.

    Args:
        players: How many there are; some may have no game.
        games: Any number of games; a pair may meet more than once.
        precision: Of the prior, per nat squared, > 0.

    Raises:
        InputError: On a malformed game or a precision that is not positive.
    """
    if not (precision > 0 and math.isfinite(precision)):
        raise InputError(f"precision is {precision!r}, expected a finite number above 0")
    wins = win_matrix(players, games)
    mean = strengths(wins, precision=precision)
    total = wins + wins.T
    inverse = np.linalg.solve(_information(total, _win_probability(mean), precision), np.eye(players))
    # Moving all players together changes no game, so the prior alone speaks of it, with variance 1/(precision*n); the mean
    # is fixed at zero, so that part goes.
    covariance = np.asarray(inverse - 1.0 / (precision * max(players, 1)), dtype=np.float64)
    return Posterior(mean, covariance, np.rint(total.sum(-1)).astype(np.int64))


def informative_pairs(
    posterior: Posterior, played: set[frozenset[int]], seeds: Sequence[int], limit: int
) -> list[tuple[int, int]]:
    """Choose the next batch of games, those that say most about who is best: pairs without a common player.

    A game's worth is the variance of the difference times ``p*(1-p)`` (how much its outcome narrows the difference) times
    each player's chance of being at least as good as the leader (how much that matters). A game worth less than half of the
    best one waits for a later batch, when more is known.

    Args:
        posterior: What is known so far.
        played: Pairs that have met; a seeded judge would only repeat itself.
        seeds: Players, best guess first; settles equal worth.
        limit: Most pairs to return.
    """
    n = len(seeds)
    order = np.asarray(seeds)
    mean, cov = posterior.mean[order], posterior.covariance[np.ix_(order, order)]
    variance = np.maximum(np.diagonal(cov)[:, None] + np.diagonal(cov)[None, :] - 2.0 * cov, 0.0)
    leader = int(np.argmax(mean))
    z = (mean - mean[leader]) / np.sqrt(np.maximum(variance[leader], 1e-12))
    hope = np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in z])
    p = _win_probability(mean)
    worth = p * (1.0 - p) * variance * hope[:, None] * hope[None, :]
    # Rounded, so that equal worth is equal whatever the order of the floating-point sums.
    pairs = sorted((-round(float(worth[i, j]), 12), i, j) for i in range(n) for j in range(i + 1, n))
    chosen: list[tuple[int, int]] = []
    busy: set[int] = set()
    top = 0.0
    for value, i, j in pairs:
        pair = (int(order[i]), int(order[j]))
        if len(chosen) < limit and not busy & {i, j} and frozenset(pair) not in played:
            top = top or value
            if value > _WORTH_PLAYING * top:
                break
            chosen.append(pair)
            busy |= {i, j}
    return chosen


def _win_probability(theta: Array) -> Array:
    """Shape [..., n, n]: chance that i beats j."""
    p: Array = 0.5 * (1.0 + np.tanh(0.5 * (theta[..., :, None] - theta[..., None, :])))
    return p


def _information(games: Array, p: Array, precision: float) -> Array:
    """Negative second derivative of the log posterior, shape [..., n, n]."""
    weight = games * p * (1.0 - p)
    diagonal = weight.sum(-1) + precision
    information: Array = np.eye(games.shape[-1]) * diagonal[..., None] - weight
    return information


def _elo(strength: float) -> float:
    return ELO_MEAN + ELO_PER_NAT * strength
