import json
import math

import numpy as np
import pytest
from helpers.hostile import changed_anywhere
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logsumexp, softmax

from fsrm_lite.errors import GateSpecError
from fsrm_lite.gate import (
    LOGIT_LIMIT,
    AnswerWeights,
    FastSignals,
    Gate,
    GateSpec,
    ListSpec,
    intuition_confidence,
    sigmoid,
    signals,
    votes_logit,
)

INF = math.inf
LOGITS = st.floats(-24, 24)


def reading(logit, distribution=1.0):
    return FastSignals(logit, sigmoid(logit), distribution, 1.0)


def test_numbers_of_numpy_become_pythons_own():
    gate = GateSpec(np.float32(0.5), lists=ListSpec(np.float32(0.5), np.float64(2.0), np.int64(3)))
    assert gate == GateSpec(0.5, lists=ListSpec(0.5, 2.0, 3))
    assert GateSpec.from_dict(json.loads(json.dumps(gate.to_dict()))) == gate
    with pytest.raises(GateSpecError, match=r"lists\.coverage is 2\.0"):
        ListSpec(np.float32(2.0))


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


# the rule for lists


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(0.3, 5), st.floats(0.01, 0.99))
def test_of_two_candidates_the_rule_for_lists_is_that_of_a_pair(a, b, temperature, threshold):
    spec = GateSpec(threshold, 0.0, temperature=temperature, lists=ListSpec((1 + threshold) / 2, temperature))
    decision = Gate(spec).best_of([reading(a), reading(b)], ["x", "y"])
    pair = Gate(spec).pair(reading(a), reading(b))
    assert 2 * decision.shares[0] - 1 == pytest.approx(pair.intuition_confidence, abs=1e-9)
    if abs(pair.intuition_confidence - threshold) > 1e-6:
        assert decision.escalate == pair.escalate
    assert decision.order == ((0, 1) if a >= b else (1, 0))


def test_a_cold_rule_takes_the_best_score_and_a_hot_one_the_majority():
    candidates, teams = [reading(3.0), reading(1.0), reading(1.0), reading(0.9)], [0, 1, 1, 1]
    cold, hot = (Gate(GateSpec(lists=ListSpec(0.5, t))).best_of(candidates, teams) for t in (0.2, 20.0))
    assert (cold.order[0], hot.order[0]) == (0, 1)
    assert hot.shares[0] == pytest.approx(0.731, abs=0.001)


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 3)), min_size=1, max_size=12), st.floats(0, 1))
def test_contenders_are_the_fewest_best_teams_that_cover(candidates, coverage):
    rule = ListSpec(coverage, 1.3, 0.7)
    found = Gate(GateSpec(lists=rule)).best_of([reading(x) for x, _ in candidates], [t for _, t in candidates])
    assert sum(found.shares) == pytest.approx(1.0)
    assert len(found.order) == len({t for _, t in candidates})
    assert list(found.shares) == sorted(found.shares, reverse=True)
    assert 1 <= found.contenders <= len(found.order)
    assert found.escalate == (found.contenders > 1)
    assert coverage == 0 or sum(found.shares[: found.contenders - 1]) < coverage + 1e-12
    assert coverage < 1 or found.contenders == len(found.order)


def test_a_rule_for_lists_goes_to_json_and_back_and_older_gates_look_as_before():
    spec = GateSpec(0.4, lists=ListSpec(0.9, 2.0, 1.5, "text"))
    assert GateSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert set(GateSpec(0.4).to_dict()) == {
        "intuition_threshold",
        "distribution_threshold",
        "combine",
        "temperature",
        "always",
    }
    assert GateSpec.from_dict({"lists": {"coverage": 0.9}}).lists == ListSpec(0.9)


def test_weights_go_to_json_and_back():
    spec = GateSpec(0.4, weights=AnswerWeights(0.7, 2.0))
    assert GateSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.to_dict()["weights"] == {"fast": 0.7, "votes": 2.0}
    assert Gate(GateSpec()).answer(1.0, [1.0]) is None
    assert Gate(spec).answer(1.0, []) is None


def test_unanimous_votes_count_the_more_the_more_there_are():
    assert votes_logit([]) == votes_logit([0.5]) == votes_logit([1.0, 0.0]) == 0.0
    assert [votes_logit([1.0] * n) for n in (1, 3)] == pytest.approx([math.log(2), math.log(4)])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"weights": {"fast": 1.0}}, r"gate: weights: the keys \['votes'\] are missing"),
        ({"weights": {"fast": -1.0, "votes": 1.0}}, r"weights\.fast is -1\.0, expected a finite number of at least 0"),
        ({"weights": {"fast": 1.0, "votes": math.nan}}, r"weights\.votes is nan"),
        ({"weights": {"fast": 0, "votes": 0}}, "both weights are 0"),
        ({"lists": {}}, r"gate: lists: the keys \['coverage'\] are missing"),
        ({"lists": []}, "gate: lists: got a list"),
        ({"lists": {"coverage": 0.9, "cover": 1}}, r"gate: lists: unknown keys \['cover'\]"),
        ({"lists": {"coverage": 1.1}}, r"lists.coverage is 1.1, expected a number in \[0, 1\]"),
        ({"lists": {"coverage": True}}, "lists.coverage is True"),
        ({"lists": {"coverage": 0.5, "temperature": 0}}, "lists.temperature is 0"),
        ({"lists": {"coverage": 0.5, "sharpness": math.inf}}, "lists.sharpness is inf"),
        ({"lists": {"coverage": 0.5, "group": "answer"}}, "lists.group is 'answer', expected one of final, text"),
    ],
)
def test_a_bad_part_of_a_gate_is_refused(data, match):
    with pytest.raises(GateSpecError, match=match):
        GateSpec.from_dict(data)


def test_a_gate_without_a_rule_for_lists_says_how_to_get_one():
    with pytest.raises(GateSpecError, match=r"no rule for lists; calibrate one with fsrm-lite calibrate LISTS\.jsonl"):
        Gate(GateSpec()).best_of([reading(0.0)], [0])
    with pytest.raises(GateSpecError, match="got 1 candidates and 2 teams"):
        Gate(GateSpec(lists=ListSpec(0.5))).best_of([reading(0.0)], [0, 1])
    with pytest.raises(GateSpecError, match="lists is 'x', expected a ListSpec"):
        GateSpec(lists="x")


def test_a_gate_with_any_part_exchanged_decides_or_is_refused():
    spec = GateSpec(0.5, 0.2, "all", 2.0, lists=ListSpec(0.9, 2.0, 1.5), weights=AnswerWeights(0.8, 2.5))
    candidates, used = [reading(3.0), reading(1.0, 0.4), reading(2.0)], 0
    for data in changed_anywhere(spec.to_dict()):
        try:
            gate = Gate(GateSpec.from_dict(data))
        except GateSpecError:
            continue
        json.dumps(gate.spec.to_dict(), allow_nan=False)
        for decision in (gate.single(candidates[0]), gate.pair(*candidates[:2])):
            assert 0 <= decision.intuition_confidence <= 1
        if gate.spec.lists is not None:
            assert np.isfinite(gate.best_of(candidates, ["1", "2", "1"]).shares).all()
        if gate.spec.weights is not None:
            assert 0 <= gate.answer(-3.0, [0.0, 1.0, 1.0]) <= 1
        used += 1
    assert used > 10


def test_weights_beyond_all_measure_do_not_become_nan():
    """Infinity from one path less infinity from the other would be taken for certainty."""
    gate = Gate(GateSpec(weights=AnswerWeights(1.7e308, 1.7e308)))
    assert gate.answer(40.0, [0.0, 0.0, 0.0]) == 0.5
    assert gate.answer(-40.0, [0.0, 0.0, 0.0]) < 1e-9
