"""Which candidates of a best of N can be read, and the scores that they start with."""

import pytest

from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.ranking.candidates import read_candidates, starting_scores
from fsrm_lite.ranking.tournament import BLANK_SCORE

QUESTION = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"


def test_every_candidate_has_a_score_those_without_a_reading_the_lowest(rm):
    read = rm.score(QUESTION, "15 pens", judge="never")
    scores = starting_scores(3, {1: read}, {2: ContextOverflowError("513 tokens")})
    assert scores[:2] == [BLANK_SCORE, read]
    assert (scores[2].logit, scores[2].reasons) == (BLANK_SCORE.logit, ("513 tokens",))


def test_empty_and_too_long_candidates_are_not_read(rm):
    responses = ["15 pens", " ", "pens " * 1000, rm.encode(QUESTION, "16 pens")]
    found = read_candidates(
        rm.fast, rm.gate, responses, lambda i: rm.encode(QUESTION, r) if isinstance(r := responses[i], str) else r
    )
    assert list(found.encoded) == [0, 3]
    assert list(found.unread) == [2]
    assert found.texts == [*responses[:3], "16 pens"]
    assert found.scores[0] == rm.score(QUESTION, "15 pens", judge="never")
    assert found.scores[1] == BLANK_SCORE


def test_where_all_are_too_long_the_first_says_so(rm):
    with pytest.raises(ContextOverflowError):
        read_candidates(rm.fast, rm.gate, ["pens " * 1000], lambda i: rm.encode(QUESTION, "pens " * 1000))
