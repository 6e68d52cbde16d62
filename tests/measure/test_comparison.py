"""Several systems on the same items: the differences, and that their intervals are paired."""

import dataclasses

import numpy as np
import pytest
from helpers import DATA
from helpers.calibration import StandIn

from fsrm_lite.errors import DataFormatError, InputError
from fsrm_lite.measure.benchmark_formats import FORMATS, load_benchmark
from fsrm_lite.measure.comparison import System, compare, is_clear
from fsrm_lite.measure.comparison_plot import render
from fsrm_lite.measure.evaluation import EvalOptions, evaluate
from fsrm_lite.measure.evaluation_report import fast_outcome

PAIRS = FORMATS["pairs"]


def system(name, right, *, skip=()):
    """A system that is right on these pairs and wrong on the others."""
    template = evaluate(StandIn(lambda p, r: 1.0), load_benchmark(DATA / "pairs.jsonl"), EvalOptions(judge="never"))[0]
    records = [
        dataclasses.replace(template, id=f"i{k}", group=f"g{k}", right=(0,), logits=(1.0, 0.0) if ok else (0.0, 1.0))
        for k, ok in enumerate(right)
        if k not in skip
    ]
    return System(name, records, [r.id for r in records])


def test_differences_are_paired():
    """Where the systems differ on few items, the difference is sure though each figure alone is not."""
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.6
    second = first | (rng.random(400) < 0.08)
    report = compare([system("a", first), system("b", second)], PAIRS, resamples=500)
    (difference,) = report["differences"]
    assert (difference["from"], difference["to"], difference["policy"]) == ("a", "b", "always_fast")
    assert difference["value"] == pytest.approx(second.mean() - first.mean())
    assert is_clear(difference)
    scores = [s["policies"]["always_fast"]["score"] for s in report["systems"]]
    assert scores[1]["low"] < scores[0]["high"]  # alone they could not be told apart
    assert difference["high"] - difference["low"] < (scores[0]["high"] - scores[0]["low"]) / 2
    assert scores[0]["value"] == pytest.approx(first.mean())


def test_the_interval_of_a_difference_is_that_of_a_paired_bootstrap():
    rng = np.random.default_rng(1)
    first, second = rng.random(200) < 0.7, rng.random(200) < 0.75
    (found,) = compare([system("a", first), system("b", second)], PAIRS, resamples=400, seed=3)["differences"]
    draws = np.random.default_rng(3)
    gaps = second.astype(float) - first
    means = [gaps[draws.integers(0, 200, size=200)].mean() for _ in range(400)]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_equal_systems_differ_by_nothing():
    right = [k % 3 > 0 for k in range(60)]
    (found,) = compare([system("a", right), system("b", right)], PAIRS, resamples=20)["differences"]
    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0)
    assert not is_clear(found)


def test_only_items_that_all_have_are_compared():
    right = [k % 3 > 0 for k in range(60)]
    report = compare([system("a", right), system("b", right, skip=range(0, 60, 3))], PAIRS, resamples=5)
    assert report["items"] == 40
    assert [s["items_of_its_own"] for s in report["systems"]] == [20, 0]
    assert [s["policies"]["always_fast"]["score"]["value"] for s in report["systems"]] == [1.0, 1.0]


def test_every_pair_of_systems_and_policy_has_a_difference():
    benchmark = load_benchmark(DATA / "llmbar.json")

    def results(sign, judge):
        rm = StandIn(lambda p, r: sign * (4.0 if "good" in r else -4.0))
        return evaluate(rm, benchmark, EvalOptions(judge=judge))

    records = {
        name: results(sign, judge) for name, sign, judge in (("a", 1, "always"), ("b", -1, "always"), ("c", 1, "never"))
    }
    systems = [System(name, found, [r.id for r in found]) for name, found in records.items()]
    report = compare(systems, benchmark.format, resamples=5)
    assert [(d["from"], d["to"], d["policy"]) for d in report["differences"]] == [
        ("a", "b", "always_fast"), ("a", "b", "gated"), ("a", "b", "always_slow"),
        ("a", "c", "always_fast"), ("b", "c", "always_fast"),
    ]  # fmt: skip
    assert report["differences"][0]["value"] == -1.0
    assert is_clear(report["differences"][0])
    assert report["systems"][0]["report"]["policies"].keys() == {"always_fast", "gated", "always_slow"}
    assert render(report).startswith(b"\x89PNG")


def test_bad_systems_are_refused():
    right = [True] * 5
    with pytest.raises(InputError, match="expected two or more"):
        compare([system("a", right)], PAIRS)
    with pytest.raises(InputError, match="each with its own name"):
        compare([system("a", right), system("a", right)], PAIRS)
    twice = system("b", right)
    with pytest.raises(DataFormatError, match="b has the item 'i0' twice"):
        compare([system("a", right), dataclasses.replace(twice, matched=["i0"] * 5)], PAIRS)
    with pytest.raises(DataFormatError, match="have no item in common: its first one is 'i0', that of b 'x0'"):
        compare([system("a", right), dataclasses.replace(twice, matched=[f"x{k}" for k in range(5)])], PAIRS)


def test_a_system_is_measured_as_alone():
    rm = StandIn(lambda p, r: float(len(r)))
    records = evaluate(rm, load_benchmark(DATA / "pairs.jsonl"), EvalOptions(judge="never"))
    found = [System(name, records, [r.id for r in records]) for name in "ab"]
    report = compare(found, PAIRS, resamples=5)
    hits = [fast_outcome(r, True).decision in r.right for r in records]
    assert report["systems"][0]["policies"]["always_fast"]["score"]["value"] == np.mean(hits)
