"""Ratings of players from the games between them, and which games to play next.

A player is a response; a game is the result of one match as numbers: (first player, second player, outcome). The
outcome is in [0, 1] and belongs to the first player: 1 is a win, 0 a loss, and what lies between is a probability or a
share of votes.

The Bradley-Terry model gives each player a strength such that i beats j with probability
``sigmoid(strength[i] - strength[j])``; the unit of a strength is the nat (natural logarithm of odds). The strengths
that fit the games best are found here, and shown on the Elo scale known from chess. Numpy is all that is needed.
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
"""Precision (1/variance) of the normal distribution assumed for the strengths before any game, per nat squared.

Its standard deviation is 3.2 nats or 550 Elo points. Without it the strength of an unbeaten player would be infinite.
"""

LEAST_PRECISION = 1e-9
"""The least precision of the prior. With less, rounding makes the equations for the strengths unsolvable."""

_WORTH_PLAYING = 0.5  # share of the best game's worth, see informative_pairs()
_MAX_RANGE_STEP = 0.69  # see strengths()
_ITERATIONS = 200
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Posterior:
    """The strengths of n players and how certain they are, as a normal distribution.

    Attributes:
        mean: The strengths, float64, shape [n], in nats; they sum to zero.
        covariance: Float64, shape [n, n], in nats squared.
        games: Games per player, int64, shape [n].
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
    """Add up the outcomes of games by pairs of players.

    The games are sorted first, so that their order does not change even the last bit of a sum.

    Returns:
        Float64, shape [n, n]: entry [i, j] is the sum of the outcomes of i against j, from the side of i.

    Raises:
        InputError: If a game names a player that does not exist or has a player meet itself, or its outcome is not in
            [0, 1].
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
    """Find the strengths that are most probable, given the games and a normal prior around zero.

    Newton's method finds them. Each step is scaled down so that no difference of two strengths changes by more than
    0.69 nats. Within that distance the curvature that a game adds, ``p*(1-p)`` for a probability p of winning it, grows
    by less than a factor of 2. So every step is an improvement, and the method cannot diverge.

    Args:
        wins: Shape [..., n, n] from ``win_matrix``; leading axes are independent tournaments.
        precision: Precision of the prior, per nat squared, > 0.

    Returns:
        Float64, shape [..., n], in nats; the strengths of a tournament sum to zero.
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
        players: Number of players; some may have no game.
        games: Any number of games; the same two players may meet more than once.
        precision: Precision of the prior, per nat squared, at least ``LEAST_PRECISION``.

    Returns:
        The strengths and how certain they are.

    Raises:
        InputError: If a game is malformed, or the precision is below ``LEAST_PRECISION`` or not finite.
    """
    if not (precision >= LEAST_PRECISION and math.isfinite(precision)):
        raise InputError(f"precision is {precision!r}, expected a finite number of at least {LEAST_PRECISION:g}")
    wins = win_matrix(players, games)
    mean = strengths(wins, precision=precision)
    total = wins + wins.T
    inverse = np.linalg.solve(_information(total, _win_probability(mean), precision), np.eye(players))
    # Adding the same number to all strengths changes no game, so the games say nothing about the mean of the strengths.
    # The prior gives it a variance of 1/(precision*n). Here the mean is fixed at zero, so that part is taken off.
    covariance = np.asarray(inverse - 1.0 / (precision * max(players, 1)), dtype=np.float64)
    return Posterior(mean, covariance, np.rint(total.sum(-1)).astype(np.int64))


def informative_pairs(
    posterior: Posterior, played: set[frozenset[int]], seeds: Sequence[int], limit: int
) -> list[tuple[int, int]]:
    """Choose the next batch of games: those that tell most about who is best. No player is in two of them.

    The worth of a game is a product. One part is how much the outcome narrows down the difference of the two strengths:
    the variance of that difference times ``p*(1-p)``, where p is the probability that the first player wins. The other
    part is how much that matters: each player's chance of being at least as good as the leader. A game worth less than
    half of the best one is left for a later batch, when more is known.

    Args:
        posterior: What is known so far.
        played: Pairs that have met. They do not meet again, because a judge with a seed would repeat itself.
        seeds: The players, the one expected to be best first; of games of equal worth, the earlier players' come first.
        limit: Most pairs to return.

    Returns:
        Pairs of players, the most telling game first.
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
    # Rounded, because two games of equal worth may differ in their last bits by the order of the sums.
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
    """Return the probability that i beats j, shape [..., n, n]."""
    p: Array = 0.5 * (1.0 + np.tanh(0.5 * (theta[..., :, None] - theta[..., None, :])))
    return p


def _information(games: Array, p: Array, precision: float) -> Array:
    """Return the negative second derivative of the log posterior, shape [..., n, n]."""
    weight = games * p * (1.0 - p)
    diagonal = weight.sum(-1) + precision
    information: Array = np.eye(games.shape[-1]) * diagonal[..., None] - weight
    return information


def _elo(strength: float) -> float:
    return ELO_MEAN + ELO_PER_NAT * strength
