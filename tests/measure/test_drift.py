"""Whether new items look like the old ones."""

import dataclasses

import numpy as np
import pytest
from helpers.calibration import make_items
from scipy import stats

from fsrm_lite.gate import GateSpec
from fsrm_lite.measure.drift import drift, kolmogorov_smirnov
from fsrm_lite.measure.labelled import Sample

GATE = GateSpec(0.6)


def shifted(count, factor, seed=1):
    sample = Sample.of(make_items(count, seed=seed))
    return dataclasses.replace(sample, logit=sample.logit * factor)


@pytest.mark.parametrize(("first", "second"), [(80, 120), (400, 300), (50, 50)])
def test_the_distance_and_its_probability_agree_with_scipy(first, second):
    rng = np.random.default_rng(first)
    a, b = rng.normal(0, 1, first), rng.normal(0.25, 1, second).round(1)
    expected = stats.ks_2samp(a, b, method="asymp")
    distance, p_value = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(expected.statistic, abs=1e-12)
    assert p_value == pytest.approx(expected.pvalue, rel=0.25, abs=1e-4)


def test_items_of_the_same_kind_are_rarely_called_drifted():
    old = Sample.of(make_items(400))
    called = sum(drift(old, shifted(200, 1.0, seed), GATE)["drifted"] for seed in range(1, 41))
    assert called <= 2


def test_items_of_another_kind_are_named_by_signal_and_share():
    report = drift(Sample.of(make_items(400)), shifted(300, 0.4), GATE)
    assert report["drifted"]
    margin = next(s for s in report["signals"] if s["signal"] == "margin")
    assert margin["p_value"] < 1e-6
    assert margin["new_median"] < margin["old_median"]
    assert report["escalated"]["new"]["value"] > report["escalated"]["old"]["value"]


def test_a_confidence_that_one_side_lacks_is_left_out():
    old = Sample.of(make_items(100))
    new = dataclasses.replace(shifted(100, 1.0), distribution=np.full(100, np.nan))
    assert [s["signal"] for s in drift(old, new)["signals"]] == ["margin"]


def test_items_of_one_prompt_count_once():
    old = Sample.of(make_items(100))
    new = Sample.of(make_items(400, seed=2, prompts=50))
    assert drift(old, new)["new_items"] == 50
