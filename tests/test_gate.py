import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logsumexp, softmax

from fsrm_lite.errors import GateSpecError
from fsrm_lite.gate import LOGIT_LIMIT, FastSignals, Gate, GateSpec, intuition_confidence, sigmoid, signals

INF = math.inf
LOGITS = st.floats(-24, 24)


def reading(logit, distribution=1.0):
    return FastSignals(logit, sigmoid(logit), distribution, 1.0)


@given(LOGITS, LOGITS)
def test_signals_of_two_labels_agree_with_scipy(yes, no):
    got = signals([yes, no], [1, 0])
    assert got.logit == pytest.approx(yes - no, abs=1e-9)
    assert got.score == pytest.approx(expit(yes - no), abs=1e-12)
    p = softmax([yes, no])
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    assert got.distribution_confidence == pytest.approx(1 - entropy / math.log(2), abs=1e-9)
    assert got.label_mass == 1.0


@given(st.lists(LOGITS, min_size=5, max_size=5))
def test_signals_of_ratings_are_the_log_odds_of_the_expected_rating(logits):
    expected = softmax(logits) @ (np.arange(5) / 4)
    got = signals(logits, [1, 2, 3, 4, 5])
    assert got.score == pytest.approx(expected, abs=1e-9)


def test_signals_reverse_when_the_values_do():
    assert signals([2.0, 0.5], [1, 0]).logit == pytest.approx(-signals([2.0, 0.5], [0, 1]).logit)


@pytest.mark.parametrize(
    ("logits", "logit", "distribution"),
    [
        ([INF, 0.0], LOGIT_LIMIT, 1.0),
        ([-INF, 0.0], -LOGIT_LIMIT, 1.0),
        ([INF, -INF], LOGIT_LIMIT, 1.0),
        ([INF, INF], 0.0, 0.0),
        ([-INF, -INF], 0.0, 0.0),
        ([3e38, -3e38], LOGIT_LIMIT, 1.0),
    ],
)
def test_signals_turn_infinities_into_certainty_or_a_tie(logits, logit, distribution):
    got = signals(logits, [1, 0])
    assert (got.logit, got.distribution_confidence) == (logit, distribution)


def test_signals_use_the_full_vocabulary_when_it_is_known():
    vocabulary = np.array([2.0, -1.0, 0.3, 0.3, -4.0])
    p = softmax(vocabulary)
    entropy = float(-(p * np.log(p)).sum())
    got = signals(vocabulary[:2], [1, 0], log_mass=float(logsumexp(vocabulary)), entropy=entropy, vocab_size=5)
    assert got.label_mass == pytest.approx(p[:2].sum())
    assert got.distribution_confidence == pytest.approx(1 - entropy / math.log(5))
    assert got.logit == pytest.approx(3.0)


def test_signals_of_impossible_labels_have_no_mass():
    assert signals([-INF, -INF], [1, 0], log_mass=3.0).label_mass == 0.0
    assert signals([INF, 0.0], [1, 0], log_mass=3.0).label_mass == 1.0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"label_logits": [math.nan, 0], "label_values": [1, 0]}, "label logit is NaN"),
        ({"label_logits": [1, 0], "label_values": [1, 1]}, "not all equal"),
        ({"label_logits": [1, 0], "label_values": [INF, INF]}, "must be finite"),
        ({"label_logits": [1, 0], "label_values": [math.nan, 1]}, "must be finite"),
        ({"label_logits": [1], "label_values": [1]}, "length >= 2"),
        ({"label_logits": [1, 0, 2], "label_values": [1, 0]}, "vectors of one length"),
        ({"label_logits": [1, 0], "label_values": [1, 0], "entropy": 1.0}, "vocab_size is None"),
        ({"label_logits": [1, 0], "label_values": [1, 0], "entropy": math.nan, "vocab_size": 9}, "entropy is NaN"),
        ({"label_logits": [1, 0], "label_values": [1, 0], "log_mass": math.nan}, "log_mass is NaN"),
    ],
)
def test_signals_refuse_unusable_numbers(arguments, match):
    with pytest.raises(GateSpecError, match=match):
        signals(**arguments)


@given(st.floats(-100, 100), st.floats(0.1, 10))
def test_intuition_confidence_is_the_distance_from_a_coin(logit, temperature):
    assert intuition_confidence(logit, temperature) == pytest.approx(abs(2 * expit(logit / temperature) - 1), abs=1e-12)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, INF, "0.5", True, None])
@pytest.mark.parametrize("name", ["intuition_threshold", "distribution_threshold"])
def test_spec_refuses_thresholds_out_of_range(name, value):
    with pytest.raises(GateSpecError, match=name):
        GateSpec(**{name: value})


@pytest.mark.parametrize(
    "bad",
    [{"combine": "both"}, {"temperature": 0}, {"temperature": INF}, {"always": 1}, {"treshold": 0.5}, ["any"], None],
)
def test_spec_refuses_malformed_json(bad):
    with pytest.raises(GateSpecError, match="gate: "):
        GateSpec.from_dict(bad)


def test_spec_survives_a_round_trip():
    spec = GateSpec(0.25, 0.75, "all", 1.5, True)
    assert GateSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("combine", "intuition", "distribution", "escalate"),
    [
        ("any", 0.2, 0.9, True),
        ("any", 0.9, 0.2, True),
        ("any", 0.9, 0.9, False),
        ("all", 0.2, 0.9, False),
        ("all", 0.9, 0.2, False),
        ("all", 0.2, 0.2, True),
    ],
)
def test_single_follows_the_combine_rule(combine, intuition, distribution, escalate):
    logit = 2 * math.atanh(intuition)
    decision = Gate(GateSpec(0.5, 0.5, combine)).single(reading(logit, distribution))
    assert decision.escalate is escalate
    assert bool(decision.reasons) is escalate
    assert decision.intuition_confidence == pytest.approx(intuition)


def test_equality_with_a_threshold_does_not_escalate():
    gate = Gate(GateSpec(0.0, 0.5))
    assert not gate.single(reading(0.0, 0.5)).escalate
    assert gate.single(reading(0.0, math.nextafter(0.5, 0))).escalate


def test_pair_takes_the_gap_and_the_weaker_distribution():
    decision = Gate(GateSpec(0.0, 0.5)).pair(reading(3.0, 0.9), reading(1.0, 0.4))
    assert decision.intuition_confidence == pytest.approx(math.tanh(1.0))
    assert decision.distribution_confidence == 0.4
    assert decision.reasons == ("distribution confidence 0.400 < 0.500",)


@given(LOGITS, LOGITS, st.floats(0, 1))
def test_pair_does_not_depend_on_the_order(a, b, threshold):
    gate = Gate(GateSpec(threshold))
    assert gate.pair(reading(a), reading(b)) == gate.pair(reading(b), reading(a))


def test_always_escalates_whatever_the_confidences():
    decision = Gate(GateSpec(0.0, 0.0, always=True)).single(reading(50.0, 1.0))
    assert decision.escalate
    assert decision.reasons == ("the gate is set to escalate everything",)


def test_temperature_makes_the_gate_more_doubtful():
    assert not Gate(GateSpec(0.5, temperature=1.0)).single(reading(1.5)).escalate
    assert Gate(GateSpec(0.5, temperature=3.0)).single(reading(1.5)).escalate


def test_contenders_are_those_the_best_cannot_be_told_from():
    gate = Gate(GateSpec(0.5))
    candidates = [reading(-3.0), reading(2.0), reading(1.9), reading(2.0), reading(-1.0)]
    assert gate.contenders(candidates) == [1, 3, 2]


def test_contenders_of_one_or_none():
    gate = Gate(GateSpec(1.0, always=True))
    assert gate.contenders([reading(0.0)]) == [0]
    assert gate.contenders([]) == []


def test_contenders_of_a_clear_winner_is_the_winner_alone():
    assert Gate(GateSpec(0.5)).contenders([reading(-5.0), reading(5.0)]) == [1]
