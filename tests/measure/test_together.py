import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize

from fsrm_lite.gate import AnswerWeights, FastSignals, sigmoid, votes_logit
from fsrm_lite.measure.calibration import Goal, calibrate
from fsrm_lite.measure.labelled import LabelledItem, Sample
from fsrm_lite.measure.together import fit_weights, shared_errors, weigh


def pairs(count, *, seed=0, fast=1.0, judge=0.8, votes=2):
    """Pairs of which the fast logit tells the truth as often as it claims, and each vote with probability ``judge``."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        logit = rng.normal(0.0, 2.0)
        label = int(rng.random() > sigmoid(fast * logit))
        cast = [float((rng.random() < judge) == (label == 0)) for _ in range(votes)]
        lean = sum(cast) - votes / 2
        winner = int(lean < 0) if lean else int(logit < 0)
        readings = tuple(FastSignals(x, sigmoid(x), 0.9, 1.0) for x in (logit, 0.0))
        items.append(
            LabelledItem(
                f"{seed}-{i}",
                readings,
                label,
                slow_correct=winner == label,
                slow_tokens=50.0,
                slow_logit=votes_logit(cast),
            )
        )
    return items


def test_weights_are_the_likeliest_ones():
    sample = Sample.of(pairs(2000))
    found = fit_weights(sample)

    def loss(w):
        return np.logaddexp(0, -(w[0] * sample.toward + w[1] * sample.slow_toward)).mean()

    best = optimize.minimize(loss, [1.0, 1.0]).x
    assert [found.fast, found.votes] == pytest.approx(list(best), rel=0.02)  # the fit has a small penalty
    assert loss([found.fast, found.votes]) <= loss(best) + 1e-4


def test_a_calibrated_fast_logit_counts_as_it_is():
    """A vote that is right with probability p is given the log-odds log(2), and has log(p / (1 - p)) in truth."""
    found = fit_weights(Sample.of(pairs(40_000, votes=1)))
    assert found.fast == pytest.approx(1.0, abs=0.05)
    assert found.votes == pytest.approx(math.log(0.8 / 0.2) / math.log(2), abs=0.1)


def test_a_witness_against_the_truth_gets_no_weight():
    assert fit_weights(Sample.of(pairs(2000, fast=-1.0))).fast == 0.0
    assert fit_weights(Sample.of(pairs(2000, judge=0.1))).votes == 0.0
    assert fit_weights(Sample.of(pairs(2000, fast=-1.0, judge=0.1))) is None


def test_weights_stay_finite_where_the_judge_is_never_wrong():
    found = fit_weights(Sample.of(pairs(200, judge=1.0)))
    assert 0 < found.votes < 100
    assert found.fast < found.votes


def test_weights_are_kept_where_two_witnesses_are_better_than_one():
    found = weigh(Sample.of(pairs(2000, judge=0.7, votes=1)), Sample.of(pairs(2000, seed=1, judge=0.7, votes=1)))
    accuracy = found.report["accuracy"]
    assert found.report["kept"]
    assert accuracy["gain"]["low"] > 0.05
    assert accuracy["both"]["value"] - accuracy["votes"]["value"] == pytest.approx(accuracy["gain"]["value"])
    assert found.weights == AnswerWeights(**found.report["fitted"])


def test_weights_that_do_worse_on_other_pairs_are_left_out():
    """Here the fast score has turned round since, so that believing it costs answers."""
    tuning, testing = Sample.of(pairs(1000, votes=1)), Sample.of(pairs(1000, seed=1, fast=-1.0, votes=1))
    found = weigh(tuning, testing)
    assert found.weights is None
    assert not found.report["kept"]
    assert found.report["accuracy"]["gain"]["value"] < 0


def test_weights_that_change_no_answer_are_left_out():
    sample = Sample.of(pairs(1000, judge=1.0))
    assert weigh(sample, sample).weights is None


def test_nothing_is_fitted_where_the_votes_are_not_known():
    sample = Sample.of([dataclasses.replace(x, slow_logit=None) for x in pairs(100)])
    assert weigh(sample, sample) is None
    assert sample.answered_by(AnswerWeights(1.0, 1.0)) is sample


def test_shared_errors_are_counted():
    sample = Sample.of(pairs(500))
    found = shared_errors(sample)
    both = sum(not f and not s for f, s in zip(sample.fast_correct, sample.slow_correct, strict=True))
    assert (found["items"], found["fast"], found["both"]) == (500, int((~sample.fast_correct).sum()), both)
    assert found["share_of_fast"]["value"] == pytest.approx(both / found["fast"])


def test_a_calibration_with_weights_measures_what_its_gate_answers():
    result = calibrate(pairs(1500, judge=0.7, votes=1), Goal(within=0.02), resamples=20)
    report = result.report
    assert result.gate.weights == AnswerWeights(**report["together"]["fitted"])
    assert report["gate"]["weights"] == report["together"]["fitted"]
    assert report["always_slow"]["accuracy"]["value"] == report["together"]["accuracy"]["both"]["value"]
    assert {"weights"} <= set(report["front"][0]["gate"])


def test_a_calibration_without_a_gain_leaves_the_weights_out():
    result = calibrate(pairs(600, judge=1.0), Goal(budget=20.0), resamples=20)
    assert result.gate.weights is None
    assert "weights" not in result.report["gate"]
    unknown = [dataclasses.replace(x, slow_logit=None) for x in pairs(600)]
    assert calibrate(unknown, Goal(budget=20.0), resamples=20).report["together"] is None
