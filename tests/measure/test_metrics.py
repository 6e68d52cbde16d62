import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from fsrm_lite.measure.intervals import (
    Interval,
    bootstrap,
    clopper_pearson_upper,
    critical_errors,
    log_binomial_cdf,
    wilson,
)
from fsrm_lite.measure.metrics import (
    area_above_random,
    auroc,
    brier,
    ece,
    front,
    oracle_front,
    random_accuracy,
    reliability,
    risk_coverage,
    roc,
)

RNG = np.random.default_rng(5)
CONFIDENCE = np.round(RNG.random(400), 2)  # two digits: plenty of ties
CORRECT = RNG.random(400) < 0.5 + 0.5 * CONFIDENCE


@pytest.mark.parametrize("trials", [1, 7, 50, 1000, 20000])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_clopper_pearson_is_the_beta_quantile(trials, delta):
    for errors in {0, min(1, trials - 1), trials // 10, trials // 2, trials - 1}:
        expected = stats.beta.ppf(1 - delta, errors + 1, trials - errors)
        assert clopper_pearson_upper(errors, trials, delta) == pytest.approx(expected, rel=1e-9)


def test_clopper_pearson_without_evidence_is_one():
    assert clopper_pearson_upper(0, 0, 0.1) == 1.0
    assert clopper_pearson_upper(9, 9, 0.1) == 1.0


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 1.0])
def test_log_binomial_cdf_agrees_with_scipy(p):
    for k, n in [(0, 10), (3, 10), (10, 10), (40, 1000), (900, 1000)]:
        assert log_binomial_cdf(k, n, p) == pytest.approx(stats.binom.logcdf(k, n, p), rel=1e-9, abs=1e-12)


def test_critical_errors_are_the_same_test_as_the_bound():
    table = critical_errors(300, 0.1, 0.1)
    for n in range(1, 301, 7):
        most = int(table[n])  # the bound rises with the errors, so it is enough to check this number and the next one
        assert most == -1 or clopper_pearson_upper(most, n, 0.1) <= 0.1
        assert clopper_pearson_upper(most + 1, n, 0.1) > 0.1
    assert table[21] == -1  # 0.9 ** 21 > 0.1: even 21 items without an error do not prove a risk of 0.1
    assert table[22] == 0


def test_wilson_agrees_with_scipy_and_stays_in_range():
    for k, n in [(0, 5), (3, 9), (50, 50), (700, 1000)]:
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        got = wilson(k, n)
        assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert math.isnan(wilson(0, 0).value)
    assert wilson(0, 0).to_dict() == {"value": None, "low": None, "high": None}


def test_auroc_agrees_with_sklearn_with_ties():
    assert auroc(CONFIDENCE, CORRECT) == pytest.approx(roc_auc_score(CORRECT, CONFIDENCE), abs=1e-12)


def test_auroc_of_extremes():
    right = np.array([True, True, False])
    assert auroc(np.array([3.0, 2.0, 1.0]), right) == 1.0
    assert auroc(np.array([1.0, 2.0, 3.0]), right) == 0.0
    assert auroc(np.zeros(3), right) == 0.5
    assert math.isnan(auroc(np.zeros(3), np.ones(3, bool)))


def test_roc_encloses_the_auroc():
    x, y = roc(CONFIDENCE, CORRECT)
    assert np.trapezoid(y, x) == pytest.approx(auroc(CONFIDENCE, CORRECT))
    assert (x[-1], y[-1]) == (1.0, 1.0)


def test_brier_agrees_with_sklearn():
    assert brier(CONFIDENCE, CORRECT) == pytest.approx(brier_score_loss(CORRECT, CONFIDENCE))


def test_ece_by_hand():
    probability = np.array([0.9, 0.9, 0.6, 0.6])
    outcome = np.array([True, False, True, True])
    # two bins of two: |0.5 - 0.9| and |1.0 - 0.6|, each of half the weight
    assert ece(probability, outcome) == pytest.approx(0.4)
    assert ece(np.ones(3), np.ones(3, bool)) == 0.0
    assert reliability(probability, outcome) == [(0.6, 1.0, 2), (0.9, 0.5, 2)]


def test_risk_coverage_by_hand():
    curve = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert curve.selective_risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert curve.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert curve.augrc == pytest.approx((0 + 1 / 4 + 1 / 4 + 2 / 4) / 4)


def test_risk_coverage_of_ties_is_the_base_risk_everywhere():
    curve = risk_coverage(np.zeros(10), np.arange(10) < 7)
    assert curve.selective_risk == pytest.approx(0.3)
    assert curve.aurc == pytest.approx(0.3)


FAST = np.array([True, True, False, False])
SLOW = np.array([True, False, True, True])
TOKENS = np.array([10.0, 10.0, 10.0, 30.0])


def test_front_by_hand():
    curve = front(np.array([0.9, 0.8, 0.1, 0.1]), FAST, SLOW, TOKENS)
    assert curve.tokens.tolist() == [0.0, 10.0, 12.5, 15.0]
    assert curve.accuracy.tolist() == [0.5, 1.0, 0.75, 0.75]
    assert curve.escalated.tolist() == [0.0, 0.5, 0.75, 1.0]


def test_oracle_repairs_first_and_spoils_last():
    curve = oracle_front(FAST, SLOW, TOKENS)
    assert curve.accuracy.tolist() == [0.5, 0.75, 1.0, 1.0, 0.75]
    assert curve.tokens.tolist() == [0.0, 2.5, 10.0, 12.5, 15.0]


def test_area_above_random_by_hand():
    curve = front(np.array([0.9, 0.8, 0.1, 0.1]), FAST, SLOW, TOKENS)
    # accuracy of the gate minus that of random escalation, at costs 0, 2/3, 5/6, 1: 0, 1/3, 1/24, 0
    area = (1 / 3) / 2 * (2 / 3) + (1 / 3 + 1 / 24) / 2 / 6 + (1 / 24) / 2 / 6
    assert area_above_random(curve) == pytest.approx(area)
    assert area_above_random(front(np.zeros(4), FAST, SLOW, TOKENS)) == pytest.approx(0.0)


def test_random_accuracy_is_a_straight_line():
    assert random_accuracy(50, 0.6, 0.9, 100) == pytest.approx(0.75)
    assert random_accuracy(0, 0.6, 0.9, 100) == 0.6
    assert random_accuracy(500, 0.6, 0.9, 100) == 0.9


def test_bootstrap_covers_the_mean_and_widens_with_groups():
    values = np.repeat(RNG.random(40), 10)
    alone = bootstrap(lambda i: {"mean": float(values[i].mean())}, 400, resamples=300)["mean"]
    grouped = bootstrap(
        lambda i: {"mean": float(values[i].mean())}, 400, groups=[i // 10 for i in range(400)], resamples=300
    )["mean"]
    assert alone.low < values.mean() < alone.high
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_bootstrap_is_deterministic_and_survives_undefined_figures():
    def statistics(chosen):
        return {"auroc": auroc(CONFIDENCE[chosen], CORRECT[chosen]), "never": math.nan}

    one, two = (bootstrap(statistics, 30, resamples=50, seed=3) for _ in range(2))
    assert one["auroc"] == two["auroc"]
    assert isinstance(one["never"], Interval)
    assert math.isnan(one["never"].low)
