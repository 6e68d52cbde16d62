"""How many items a guarantee needs."""

import numpy as np
import pytest
from helpers.calibration import make_items
from scipy import stats

from fsrm_lite.errors import CalibrationError
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.planning import POWER, items_needed, plan
from fsrm_lite.measure.risk_control import TUNING_SHARE


def power(accepted, risk, confidence, rate):
    """The probability that the exact binomial test succeeds, by scipy."""
    allowed = stats.binom.ppf(1 - confidence, accepted, risk)
    while allowed >= 0 and stats.binom.cdf(allowed, accepted, risk) > 1 - confidence:
        allowed -= 1
    return stats.binom.cdf(allowed, accepted, rate) if allowed >= 0 else 0.0


@pytest.mark.parametrize(("risk", "rate", "coverage"), [(0.1, 0.05, 0.5), (0.05, 0.02, 0.8), (0.2, 0.15, 1.0)])
def test_the_items_needed_give_the_power_and_fewer_do_not(risk, rate, coverage):
    accepted = round(items_needed(risk, 0.9, coverage, rate) * coverage * (1 - TUNING_SHARE))
    assert power(accepted + 2, risk, 0.9, rate) > POWER - 0.02
    assert power(round(0.85 * accepted), risk, 0.9, rate) < POWER


def test_without_errors_the_least_number_is_known():
    """45 accepted items without an error prove 5 % at confidence 0.9: 0.95 ** 45 < 0.1."""
    assert items_needed(0.05, 0.9, 1.0, 0.0, tuning_share=0.2) == pytest.approx(45 / 0.8, abs=1)


def test_no_number_of_items_proves_what_is_not_so():
    assert items_needed(0.1, 0.9, 0.5, 0.1) is None
    assert items_needed(0.1, 0.9, 0.5, 0.3) is None
    with pytest.raises(CalibrationError, match="expected numbers between 0 and 1"):
        items_needed(0.1, 0.9, 0.0, 0.05)


def test_a_plan_goes_by_the_items_at_hand():
    sample = Sample.of(make_items(400))
    plans = plan(sample, 0.1, 0.9)
    wrong = ~sample.fast_correct[np.argsort(-np.abs(sample.logit), kind="stable")]
    assert [p.coverage for p in plans] == [0.25, 0.5, 0.75, 1.0]
    assert plans[1].selective_risk == pytest.approx(wrong[:200].mean())
    assert all(p.selective_risk <= p.upper_bound for p in plans)
    assert plans[0].items < plans[0].items_if_worse
    assert plans[3].items is None  # the base risk lies above the target
    with pytest.raises(CalibrationError, match=r"the coverage is 1\.5"):
        plan(sample, 0.1, 0.9, (1.5,))
