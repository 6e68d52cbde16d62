"""Reinforcing verdicts: what counts as better than the rest of its group, and which tokens learn from it."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from fsrm_lite.models import reinforce  # noqa: E402 - imports torch


@given(st.lists(st.lists(st.sampled_from((1.0, -1.0)), min_size=4, max_size=4), min_size=1, max_size=6))
def test_advantages_have_mean_zero_and_vanish_where_all_are_alike(rewards):
    found = reinforce.advantages(np.array(rewards))
    np.testing.assert_allclose(found.mean(axis=1), 0.0, atol=1e-12)
    for row, values in zip(rewards, found, strict=True):
        assert (values == 0.0).all() == (len(set(row)) == 1)
        assert all((value > 0) == (reward > 0) for reward, value in zip(row, values, strict=True) if value)


def test_only_written_tokens_learn_and_a_thought_that_was_cut_off_has_no_stop_token():
    prompts = [[1, 2, 3], [4, 5]]
    long = [7] * reinforce.THINKING_TOKENS
    thoughts = [[[8, 9], [6]], [long, [6, 6]]]
    advantage = np.array([[1.0, -1.0], [0.5, 0.0]])
    (batch,) = reinforce.batches_of(prompts, thoughts, advantage, 99, 4, random.Random(0))
    found = {}
    for row in range(4):
        for segment in set(batch.segments[row].tolist()) - {0}:
            inside = batch.segments[row] == segment
            found[tuple(batch.ids[row][inside].tolist())] = batch.weights[row][inside].tolist()
    assert found == {
        (1, 2, 3, 8, 9, 99): [0, 0, 1, 1, 1, 0],
        (1, 2, 3, 6, 99): [0, 0, -1, -1, 0],
        (4, 5, *long): [0, *[0.5] * len(long), 0],
    }


def test_a_thought_is_rewarded_by_the_verdict_that_it_ends_with_in_both_orders(rm, monkeypatch):
    def generate(prompts, *, n, **settings):
        first, second = "\\boxed{Assistant 1}", "\\boxed{Assistant 2}"
        texts = [f"so 7</think>\n\n{first}", f"so 7</think>\n\n{second}", f"</think>\n\n{first} 1", f"so\n\n{first}"]
        return [[SimpleNamespace(ids=tuple(rm.judge_encoder.encode_template(text))) for text in texts] for _ in prompts]

    judge = SimpleNamespace(generate=generate, close=lambda: None)
    monkeypatch.setattr(reinforce, "judge_of", lambda *_: judge)
    pairs = [("How many?", "7 pens", "8 pens"), ("And now?", "1 cup", "no cups")]
    prompts, thoughts, rewards = reinforce.think(None, rm.judge_encoder, pairs, 4, seed=0)
    assert len(prompts) == len(thoughts) == 4
    assert prompts[0] == rm.judge_encoder.pairwise_slow("How many?", "7 pens", "8 pens")
    assert prompts[1] == rm.judge_encoder.pairwise_slow("How many?", "8 pens", "7 pens")
    assert rewards.tolist() == [[1, -1, -1, -1], [-1, 1, -1, -1]] * 2
    figures = reinforce.check(None, rm.judge_encoder, {"own": pairs})
    assert figures == {"own_verdicts": 0.25, "own_majority": 0.0}


def test_reinforcement_pays_if_more_verdicts_are_right_than_before():
    def told(*own):
        return [
            line
            for turn, share in enumerate(own)
            for line in ({"turn": turn, "steps": 20}, {"turn": turn, "written_verdicts": 0.9, "own_verdicts": share})
        ]

    assert reinforce.paid(told(0.91, 0.90, 0.92))
    assert not reinforce.paid(told(0.91, 0.93, 0.91))
    assert not reinforce.paid(told(0.91))
