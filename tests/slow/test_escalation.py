"""What a comparison says after slow thinking."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite.gate import AnswerWeights, Gate, GateSpec
from fsrm_lite.slow import escalation
from fsrm_lite.types import Comparison, PairJudgement, Route, Vote


def fast(p_first):
    return Comparison(int(p_first < 0.5), p_first, 0.1, 0.2, tokens_read=10)


def with_votes(comparison, judgement, weights=None):
    return escalation.with_votes(comparison, judgement, Gate(GateSpec(weights=weights)))


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


def test_weights_let_the_fast_path_overrule_a_lone_vote_and_say_so():
    sure = replace(fast(0.99), logit=5.0)
    both = with_votes(sure, judged(1, p_first=0.0, winner=1), AnswerWeights(1.0, 1.0))
    assert (both.winner, both.route, both.combined) == (0, Route.SLOW, True)
    assert both.p_first == pytest.approx(1 / (1 + math.exp(-(5.0 - math.log(2)))))
    assert both.rationale is None  # the only thought speaks for the other response
    alone = with_votes(sure, judged(1, p_first=0.0, winner=1))
    assert (alone.winner, alone.combined, alone.p_first) == (1, False, 0.0)


def test_weights_leave_a_clear_majority_and_a_tie_as_they_are():
    many = with_votes(replace(fast(0.6), logit=0.4), judged(1, 1, 1, 1, p_first=0.0, winner=1), AnswerWeights(1.0, 1.0))
    assert (many.winner, many.combined, many.rationale) == (1, True, "thought 1")
    tied = with_votes(fast(0.5), judged(0, 1, p_first=0.49, winner=1), AnswerWeights(1.0, 1.0))
    assert (tied.winner, tied.p_first, tied.combined) == (1, 0.49, False)


def test_without_votes_weights_change_nothing():
    cut = with_votes(fast(0.2), judged(), AnswerWeights(1.0, 1.0))
    assert (cut.winner, cut.route, cut.complete, cut.combined) == (1, Route.FAST, False, False)


@given(st.floats(-60, 60), st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 3), st.floats(0.01, 5))
def test_exchanged_responses_get_the_opposite_answer(logit, votes, weight, of_votes):
    gate = Gate(GateSpec(weights=AnswerWeights(weight, of_votes)))
    p_first = gate.answer(logit, votes)
    assert 0.0 <= p_first <= 1.0
    assert gate.answer(-logit, [1.0 - p for p in votes]) == pytest.approx(1.0 - p_first, abs=1e-9)
