"""The shapes of its_hub and lm-eval."""

import asyncio

import pytest
from helpers.loops import FakeRM

from fsrm_lite.errors import InputError
from fsrm_lite.integrations.scaling import BestOfFilter, OutcomeRewardModel


def conversation(answer):
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


def test_outcome_reward_model_keeps_the_form_of_its_input():
    model = OutcomeRewardModel(FakeRM())
    assert model.score(conversation("+")) == 0.5
    assert model.score([conversation("+"), conversation("++")], max_input_tokens=10) == pytest.approx([0.5, 0.7310586])
    assert asyncio.run(model.ascore(conversation("+"))) == 0.5
    assert model.score([]) == []


def test_outcome_reward_model_needs_an_answer():
    with pytest.raises(InputError, match="end with an assistant message"):
        OutcomeRewardModel(FakeRM()).score([{"role": "user", "content": "q"}])


def test_best_of_filter_keeps_one_response_per_document():
    best = BestOfFilter(FakeRM(), prompt=lambda doc: doc["question"], strategy="fast")
    assert best(resps=[["+", "++"], ["+++", "+"]], docs=[{"question": "a"}, {"question": "b"}]) == ["++", "+++"]


def test_one_bad_conversation_or_document_costs_only_itself(caplog):
    model = OutcomeRewardModel(FakeRM())
    bad = [conversation(""), conversation("+" * 300), conversation(None), [{"role": "user", "content": "q"}]]
    assert model.score([conversation("+"), *bad, conversation("++")]) == pytest.approx([0.5, 0, 0, 0, 0, 0.7310586])
    assert "end with an assistant message" in caplog.text

    class Picky(FakeRM):
        def best_of_n(self, prompt, responses, strategy="gated"):
            if not responses or prompt == "long":
                raise InputError("the prompt alone is too long")
            return super().best_of_n(prompt, responses, strategy)

    best = BestOfFilter(Picky(), prompt=lambda doc: doc, strategy="fast")
    assert best(resps=[["+", "++"], ["a", "b"], [], ["+++", "+"]], docs=["q", "long", "q", "q"]) == [
        "++",
        "a",
        "",
        "+++",
    ]
