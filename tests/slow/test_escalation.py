"""What a comparison says after slow thinking."""

import pytest

from fsrm_lite.slow.escalation import with_votes
from fsrm_lite.types import Comparison, PairJudgement, Route, Vote


def fast(p_first):
    return Comparison(int(p_first < 0.5), p_first, 0.1, 0.2, tokens_read=10)


def judged(*winners, p_first=0.5001, winner=0):
    votes = tuple(Vote(i % 2 == 1, w, 1.0 - w, f"thought {w}", 5) for i, w in enumerate(winners))
    return PairJudgement(winner, p_first, votes, None, 20, 5 * len(votes), 0, complete=True)


@pytest.mark.parametrize("p_fast", [0.1, 0.9])
def test_where_the_votes_are_even_the_fast_decision_stands(p_fast):
    result = with_votes(fast(p_fast), judged(0, 1, 0, 1))
    assert (result.winner, result.route, result.p_first) == (int(p_fast < 0.5), Route.SLOW, p_fast)
    assert result.rationale == f"thought {result.winner}"
    assert (result.tokens_read, result.tokens_generated) == (30, 20)


@pytest.mark.parametrize("p_fast", [0.0, 0.5, 1.0])
def test_a_majority_overrules_the_fast_decision(p_fast):
    assert with_votes(fast(p_fast), judged(1, 1, 0, p_first=0.4, winner=1)).winner == 1


def test_where_all_is_even_the_judge_decides():
    result = with_votes(fast(0.5), judged(0, 1, p_first=0.49, winner=1))
    assert (result.winner, result.p_first) == (1, 0.49)


def test_without_votes_the_fast_comparison_stands_unfinished():
    cut = with_votes(fast(0.2), judged())
    assert (cut.winner, cut.route, cut.complete, cut.votes) == (1, Route.FAST, False, ())
