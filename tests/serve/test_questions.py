"""Questions and answers: formulas, tokens, and what a reward model is asked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite.serve.questions import Answer, Question, _distinct_tokens, _responses
from fsrm_lite.types import Route

weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=12)


def answer(probabilities):
    total = math.fsum(probabilities)
    return Answer(tuple(p / total for p in probabilities), Route.FAST, False, (), 1.0, 0, 0, 0, True)


@given(weights)
def test_confidences_are_in_range(values):
    found = answer(values)
    assert 0 <= found.choice_confidence <= 1
    assert 0 <= found.scale_confidence <= 1
    assert 0 <= found.expectation <= len(values) - 1
    assert found.probabilities[found.choice] == max(found.probabilities)


def test_confidences_at_their_ends():
    assert answer([1, 1, 1, 1]).choice_confidence == pytest.approx(0)
    assert answer([0, 1, 0]).choice_confidence == 1
    assert answer([0, 1, 0]).scale_confidence == 1
    assert answer([1, 0, 1]).scale_confidence == pytest.approx(0)  # as far apart as can be


def test_the_worked_example_of_the_api():
    found = answer([0.06, 0.94, 0.0])
    assert found.expectation == pytest.approx(0.94)
    assert found.scale_confidence == pytest.approx(0.91)


def test_a_question_stands_behind_its_text_and_each_option_is_a_response():
    question = Question("choice", "Which team?", ("billing: money", "sales"))
    assert _responses("a ticket", question) == [
        ("a ticket\n\nWhich team?", "billing: money"),
        ("a ticket\n\nWhich team?", "sales"),
    ]


@pytest.mark.parametrize("wording", ["Is this response good?", "is the response GOOD", ""])
def test_the_models_own_question_is_asked_as_it_stands(wording):
    pair = ("What is 2 + 3?", "5")
    assert _responses("anything", Question("predicate", wording, ("Yes", "No"), pair)) == [pair]
    assert _responses("5", Question("predicate", wording, ("Yes", "No")))[0][1] == "Yes"
    assert _responses("2 + 3?", Question("choice", "Which response is better?", ("5", "6"))) == [
        ("2 + 3?", "5"),
        ("2 + 3?", "6"),
    ]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_what_sequences_share_is_counted_once(sequences):
    prefixes = {tuple(ids[:k]) for ids in sequences for k in range(1, len(ids) + 1)}
    assert _distinct_tokens(sequences) == len(prefixes)
