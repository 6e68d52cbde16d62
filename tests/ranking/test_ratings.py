"""Ratings against closed forms and an independent optimiser."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fsrm_lite.errors import InputError
from fsrm_lite.gate import sigmoid
from fsrm_lite.ranking.ratings import (
    ELO_PER_NAT,
    LEAST_PRECISION,
    bradley_terry,
    informative_pairs,
    strengths,
    win_matrix,
)

games_of_five = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.3, 1.0])).filter(
        lambda g: g[0] != g[1]
    ),
    min_size=1,
    max_size=30,
)


def test_bradley_terry_two_players_solves_its_equation():
    # 7 wins of 10 with prior precision c: 7 - 10*sigmoid(2t) = c*t, by bisection.
    low, high = 0.0, 5.0
    for _ in range(100):
        t = (low + high) / 2
        low, high = (t, high) if 7 - 10 * sigmoid(2 * t) > 0.1 * t else (low, t)
    fitted = bradley_terry(2, [(0, 1, 1.0)] * 7 + [(0, 1, 0.0)] * 3).mean
    assert fitted.tolist() == pytest.approx([low, -low], abs=1e-9)


def test_bradley_terry_without_prior_is_the_log_odds():
    fitted = bradley_terry(2, [(0, 1, 0.7)] * 1000, precision=1e-9).mean
    assert fitted[0] - fitted[1] == pytest.approx(math.log(0.7 / 0.3), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(games_of_five)
def test_bradley_terry_equals_a_general_optimiser(games):
    def loss(theta):
        likelihood = sum(
            o * np.logaddexp(0, theta[b] - theta[a]) + (1 - o) * np.logaddexp(0, theta[a] - theta[b])
            for a, b, o in games
        )
        return likelihood + 0.05 * (theta**2).sum()

    reference = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    assert np.abs(bradley_terry(5, games).mean - reference).max() < 1e-5


@settings(max_examples=25, deadline=None)
@given(games_of_five, st.randoms(use_true_random=False))
def test_bradley_terry_does_not_depend_on_the_order_of_games(games, random):
    shuffled = list(games)
    random.shuffle(shuffled)
    assert bradley_terry(5, games).mean.tolist() == bradley_terry(5, shuffled).mean.tolist()


def test_bradley_terry_unbeaten_player_stays_finite_and_uncertain():
    first, *_, last = bradley_terry(4, [(a, b, 1.0) for a in range(4) for b in range(a + 1, 4)] * 500).ratings()
    assert math.isfinite(first.rating)
    assert first.low < first.rating < first.high
    assert first.rating > last.rating + 400


def test_bradley_terry_intervals_cover_the_truth():
    rng = np.random.default_rng(11)
    truth = np.array([1.0, 0.4, 0.0, -0.3, -1.1])
    covered = []
    for _ in range(200):
        games = [
            (a, b, float(rng.random() < sigmoid(truth[a] - truth[b])))
            for a in range(5)
            for b in range(a + 1, 5)
            for _ in range(10)
        ]
        covered += [
            r.low <= 1500 + ELO_PER_NAT * t <= r.high
            for r, t in zip(bradley_terry(5, games).ratings(), truth, strict=True)
        ]
    assert 0.93 <= np.mean(covered) <= 0.985


def test_strengths_batch_equals_one_by_one():
    rng = np.random.default_rng(2)
    wins = rng.integers(0, 4, (20, 6, 6)) * (1 - np.eye(6))
    assert np.abs(strengths(wins) - np.array([strengths(w) for w in wins])).max() < 1e-9


def test_strengths_no_players():
    assert bradley_terry(0, []).ratings() == ()


def test_no_games_gives_everyone_the_mean():
    assert [r.rating for r in bradley_terry(3, []).ratings()] == [1500.0] * 3


@pytest.mark.parametrize("game", [(0, 0, 1.0), (0, 3, 1.0), (-1, 0, 1.0), (0, 1, 1.5), (0, 1, math.nan)])
def test_win_matrix_bad_game_is_named(game):
    with pytest.raises(InputError, match="game"):
        win_matrix(3, [game])


def test_informative_pairs_are_disjoint_unplayed_and_follow_the_seeds_at_first():
    prior = bradley_terry(4, [])
    assert informative_pairs(prior, set(), [2, 0, 3, 1], 9) == [(2, 0), (3, 1)]
    assert informative_pairs(prior, {frozenset((2, 0))}, [2, 0, 3, 1], 1) == [(2, 3)]


def test_informative_pairs_leave_the_beaten_alone():
    games = [(0, 2, 1.0), (0, 3, 1.0), (1, 2, 1.0), (1, 3, 1.0), (2, 3, 1.0)] * 5
    assert informative_pairs(bradley_terry(4, games), set(), [0, 1, 2, 3], 1) == [(0, 1)]


def test_informative_pairs_little_worth_waits():
    # After one round winners meet winners. A game between two beaten players is worth too little to be played now.
    posterior = bradley_terry(8, [(0, 1, 1.0), (2, 3, 1.0), (4, 5, 1.0), (6, 7, 1.0)])
    played = {frozenset(pair) for pair in ((0, 1), (2, 3), (4, 5), (6, 7))}
    assert informative_pairs(posterior, played, list(range(8)), 9) == [(0, 2), (4, 6)]


def test_the_least_precision_can_be_solved_and_less_is_refused():
    games = [(a, b, 1.0) for a in range(6) for b in range(a + 1, 6)]
    rated = bradley_terry(6, games, precision=LEAST_PRECISION).ratings()
    assert [r.rating for r in rated] == sorted((r.rating for r in rated), reverse=True)
    with pytest.raises(InputError, match="at least 1e-09"):
        bradley_terry(6, games, precision=LEAST_PRECISION / 2)
