"""Comparisons from readings of both orders of a pair, and scores of scalar heads."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite.fast.readings import compare_orders, compare_scores, reward_score
from fsrm_lite.gate import Gate, GateSpec, sigmoid
from fsrm_lite.measure.labelled import LabelledItem
from fsrm_lite.runtimes.reading import FastReading

GATE = Gate(GateSpec(intuition_threshold=0.5))
LOGITS = st.floats(-8, 8)


def reading(first, second, mass=4.0):
    return FastReading((first, second), max(first, second) + mass, 2.0, 10, 0)


@given(st.integers(-64, 64), st.integers(-64, 64))
@settings(deadline=None)
def test_a_constant_position_bias_cancels_exactly(eighths, bias):
    """The first place gains the same logit in both orders: the comparison does not change by a bit."""
    margin, extra = eighths / 8, bias / 8
    plain = compare_orders(reading(margin, 0.0), reading(-margin, 0.0), GATE, 100)[0]
    tilted = compare_orders(reading(margin + extra, 0.0), reading(-margin + extra, 0.0), GATE, 100)[0]
    assert (tilted.winner, tilted.p_first) == (plain.winner, plain.p_first)
    assert plain.p_first == pytest.approx(sigmoid(margin))


@given(LOGITS, LOGITS)
@settings(deadline=None)
def test_swapping_the_responses_swaps_the_comparison(forward, swapped):
    one = compare_orders(reading(forward, 0.0), reading(swapped, 0.0), GATE, 100)[0]
    other = compare_orders(reading(swapped, 0.0), reading(forward, 0.0), GATE, 100)[0]
    assert one.p_first == pytest.approx(1 - other.p_first)
    assert one.intuition_confidence == other.intuition_confidence
    assert (one.logit, one.orders_agree) == (-other.logit, other.orders_agree)


def test_orders_that_disagree_leave_the_gate_without_a_margin():
    comparison, decision = compare_orders(reading(5.0, 0.0), reading(1.0, 0.0), GATE, 100)
    assert comparison.winner == 0
    assert comparison.orders_agree is False
    assert (comparison.logit, comparison.intuition_confidence) == (0.0, 0.0)
    assert decision.escalate
    agreed, decision = compare_orders(reading(5.0, 0.0), reading(-1.0, 0.0), GATE, 100)
    assert agreed.orders_agree
    assert agreed.logit == 3.0
    assert not decision.escalate


def test_a_comparison_has_the_smaller_label_mass():
    comparison = compare_orders(reading(1.0, 0.0, mass=0.5), reading(-1.0, 0.0, mass=3.0), GATE, 100)[0]
    alone = compare_orders(reading(-1.0, 0.0, mass=3.0), reading(-1.0, 0.0, mass=3.0), GATE, 100)[0]
    assert comparison.label_mass == alone.label_mass < 0.5


def test_calibration_sees_of_a_read_pair_what_the_gate_saw():
    for forward, swapped in ((5.0, -1.0), (5.0, 1.0), (-2.0, 3.0)):
        comparison = compare_orders(reading(forward, 0.0), reading(swapped, 0.0), GATE, 100)[0]
        item = LabelledItem.from_comparison("k", comparison, 0)
        assert item.logit == comparison.logit
        assert item.distribution_confidence == comparison.distribution_confidence
        assert LabelledItem.from_dict(json.loads(json.dumps(item.to_dict()))) == item


def test_a_reward_is_kept_and_has_no_second_confidence():
    first, second = reward_score(7.875, 1.0, 3), reward_score(0.945, 1.0, 4)
    assert (first.logit, first.score, first.tokens_read) == (7.875, sigmoid(7.875), 3)
    assert first.distribution_confidence is first.label_mass is None
    comparison, decision = compare_scores(first, second, GATE)
    assert comparison.logit == 7.875 - 0.945
    assert comparison.label_mass is comparison.distribution_confidence is None
    assert not decision.escalate


@pytest.mark.parametrize("combine", ["any", "all"])
def test_a_missing_confidence_is_never_too_low(combine):
    gate = Gate(GateSpec(intuition_threshold=0.9, distribution_threshold=0.9, combine=combine))
    unsure = reward_score(0.1, 1.0, 1)
    assert gate.single(unsure).escalate == (combine == "any")
    assert gate.single(unsure).distribution_confidence is None
    item = LabelledItem.from_comparison("k", compare_scores(unsure, reward_score(0.0, 1.0, 1), gate)[0], 0)
    assert item.distribution_confidence is None
    assert LabelledItem.from_dict(json.loads(json.dumps(item.to_dict()))) == item
