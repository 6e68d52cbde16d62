import base64
import dataclasses
import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.calibration import load_benchmark, make_items, signal
from scipy import optimize

from fsrm_lite.errors import CalibrationError
from fsrm_lite.gate import Gate, GateSpec
from fsrm_lite.measure.calibration import Goal, calibrate, check_items, fit_temperature, margin_of, one_per_group, split
from fsrm_lite.measure.calibration_plots import render, write_picture
from fsrm_lite.measure.calibration_report import gate_figures, percent
from fsrm_lite.measure.labelled import LabelledItem, Sample
from fsrm_lite.measure.metrics import front, risk_coverage
from fsrm_lite.measure.risk_control import ALWAYS, control_risk, feasibility, make_path
from fsrm_lite.measure.tradeoff import best_within_budget, cheapest_within, escalations, operate, pareto

guarantee = load_benchmark("guarantee")
ITEMS = make_items(600)
SAMPLE = Sample.of(ITEMS)


def parts(sample, share=0.2):
    cut = int(len(sample) * share)
    return sample.take(np.arange(cut)), sample.take(np.arange(cut, len(sample)))


# Checks


def test_too_few_items():
    with pytest.raises(CalibrationError, match="49 different labelled items, expected at least 50"):
        check_items(ITEMS[:49])
    with pytest.raises(CalibrationError, match="30 different"):
        check_items(ITEMS[:30] * 2)


def test_repeated_items_count_once():
    kept, notes = check_items(ITEMS[:60] + ITEMS[:3])
    assert len(kept) == 60
    assert notes == ["3 repeated items were used once"]


def test_labels_that_disagree():
    with pytest.raises(CalibrationError, match="labels disagree"):
        check_items([*ITEMS[:60], dataclasses.replace(ITEMS[0], label=1 - ITEMS[0].label)])


def test_one_class_only():
    singles = [dataclasses.replace(x, readings=x.readings[:1], label=1) for x in ITEMS[:60]]
    with pytest.raises(CalibrationError, match="every response has the label 1"):
        check_items(singles)


def test_singles_mixed_with_pairs():
    with pytest.raises(CalibrationError, match="mixes single responses and pairs"):
        check_items([*ITEMS[:60], dataclasses.replace(ITEMS[70], readings=ITEMS[70].readings[:1])])


def test_items_in_both_sets():
    with pytest.raises(CalibrationError, match="1 items are in both"):
        check_items(ITEMS[:60], [*make_items(5, seed=9), ITEMS[3]])


@pytest.mark.parametrize(
    "arguments", [{}, {"risk": 0.1, "budget": 3}, {"risk": 0.0}, {"risk": 1.0}, {"budget": -1}, {"budget": math.nan}]
)
def test_goals_out_of_range(arguments):
    with pytest.raises(CalibrationError, match="expected"):
        Goal(**arguments)


def test_split_keeps_prompts_together():
    sample = Sample.of(make_items(300, prompts=40))
    tuning, testing = split(sample, 0.3, seed=4)
    assert not set(tuning.groups) & set(testing.groups)
    assert len(tuning) + len(testing) == 300
    assert len(set(tuning.groups)) == 12
    with pytest.raises(CalibrationError, match="leaves a part empty"):
        split(sample, 0.001)


def test_one_item_of_each_prompt_is_drawn():
    sample = Sample.of(make_items(300, prompts=40))
    drawn = one_per_group(sample, seed=1)
    assert sorted(drawn.groups) == sorted(set(sample.groups))
    assert set(drawn.logit) <= set(sample.logit)
    assert set(drawn.logit) != set(one_per_group(sample, seed=2).logit)
    assert len(one_per_group(SAMPLE)) == len(SAMPLE)


# Temperature


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_temperature_is_the_likeliest_one(sharpness):
    sample = Sample.of(make_items(2000, sharpness=sharpness))
    best = optimize.minimize_scalar(
        lambda s: np.logaddexp(0, -sample.toward * s).mean(), bounds=(0.05, 20), method="bounded"
    )
    assert fit_temperature(sample) == pytest.approx(1 / best.x, rel=1e-3)
    assert fit_temperature(sample) == pytest.approx(1 / sharpness, rel=0.15)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e4])
def test_temperature_follows_the_scale_of_the_scores(scale):
    """Margins of real reward models are as small as 0.01; a range of fixed numbers would end before them."""
    items = make_items(2000)
    signals = [tuple(dataclasses.replace(r, logit=r.logit * scale) for r in x.readings) for x in items]
    scaled = [dataclasses.replace(x, readings=r) for x, r in zip(items, signals, strict=True)]
    assert fit_temperature(Sample.of(scaled)) == pytest.approx(scale * fit_temperature(Sample.of(items)), rel=1e-6)
    report = calibrate(scaled, Goal(risk=0.1), resamples=2).report
    assert not any("temperature" in w for w in report["warnings"])
    assert report["guarantee"]["proved"]


def test_temperature_that_the_items_do_not_pin_down_is_told():
    sample = Sample.of(make_items(200, base=1.0))
    assert any(
        "hit the end" in w for w in calibrate(make_items(200, base=1.0), Goal(risk=0.1), resamples=2).report["warnings"]
    )
    assert np.median(sample.intuition(fit_temperature(sample))) < 1  # confidences can still be told apart


def test_temperature_improves_the_calibration():
    report = calibrate(make_items(1000, sharpness=0.4), Goal(risk=0.2), resamples=20).report
    before, after = report["calibration"]["before"], report["calibration"]["after"]
    assert after["ece"]["value"] < before["ece"]["value"]
    assert after["brier"]["value"] < before["brier"]["value"]


# Risk


def test_a_path_counts_what_its_thresholds_accept():
    tuning, testing = parts(SAMPLE)
    for name in ("intuition", "distribution", "joint"):
        path = make_path(name, tuning, 1.3)
        accepted, errors = path.counts(testing, 1.3)
        for step in (0, 40, 98, 99):
            kept = ~escalations(
                GateSpec(float(path.intuition[step]), float(path.distribution[step]), temperature=1.3), testing
            )
            assert (accepted[step], errors[step]) == (kept.sum(), (kept & ~testing.fast_correct).sum())
        assert accepted[-1] == len(testing)


def test_risk_control_keeps_the_bound_below_the_target():
    tuning, testing = parts(Sample.of(make_items(3000)))
    for paths in (None, ["intuition"], ["intuition", "distribution", "joint"]):
        result = control_risk(tuning, testing, risk=0.1, confidence=0.9, paths=paths)
        kept = ~escalations(result.gate, testing)
        assert result.proved
        assert kept.sum() == result.step.accepted > 600
        assert result.step.upper_bound <= 0.1
        assert result.delta == pytest.approx(0.1 / (len(paths) if paths else 1))


def test_risk_control_that_cannot_prove_anything_escalates_everything():
    tuning, testing = parts(Sample.of(make_items(600, base=0.7)))
    result = control_risk(tuning, testing, risk=0.1, confidence=0.9)
    assert not result.proved
    assert result.gate.always
    assert escalations(result.gate, testing).all()


def test_a_perfect_fast_path_decides_everything_alone():
    tuning, testing = parts(Sample.of(make_items(600, base=1.0)))
    result = control_risk(tuning, testing, risk=0.1, confidence=0.9)
    assert result.step.accepted == len(testing)


def test_feasibility_by_hand():
    sample = Sample.of(make_items(1000, base=0.7))
    facts = feasibility(sample, 0.1, 0.1)
    base = 1 - sample.fast_correct.mean()
    assert facts.least_escalation == pytest.approx((base - 0.1) / 0.9)
    assert facts.least_items == 22


def test_risk_control_refuses_nonsense():
    tuning, testing = parts(SAMPLE)
    with pytest.raises(CalibrationError, match="strictly between"):
        control_risk(tuning, testing, risk=0.0, confidence=0.9)
    with pytest.raises(CalibrationError, match="'sideways' is unknown"):
        control_risk(tuning, testing, risk=0.1, confidence=0.9, paths=["sideways"])


@pytest.mark.parametrize("kind", ["calibrated", "bumpy", "infeasible"])
def test_the_guarantee_holds_on_repeated_draws(kind):
    sample = guarantee.population(kind, np.random.default_rng(1), size=20_000)
    result = guarantee.run(kind, sample, splits=60, items=600)
    assert result["holds"]
    assert (result["always_escalate"] == 60) == (kind == "infeasible")
    risk, coverage = guarantee.trial(sample, np.random.default_rng(2), 600, None)
    assert math.isnan(risk) == (coverage == 0.0)


# Budget, front


def test_the_pareto_front_rises_and_nothing_on_the_grid_beats_it():
    points = pareto(SAMPLE)
    assert points[0].tokens == 0.0
    assert all(a.tokens < b.tokens and a.accuracy < b.accuracy for a, b in pairwise(points))
    for point in points[:: len(points) // 7]:
        measured = operate(point.gate, SAMPLE)
        assert (measured.accuracy, measured.tokens, measured.escalated) == pytest.approx(
            (point.accuracy, point.tokens, point.escalated)
        )
    for gate in (GateSpec(0.5), GateSpec(0.5, 0.5, "all"), GateSpec(always=True)):
        rival = operate(gate, SAMPLE)
        assert best_within_budget(points, rival.tokens + 3).accuracy >= rival.accuracy


def test_a_budget_is_kept():
    points = pareto(SAMPLE)
    assert best_within_budget(points, 0.0).tokens == 0.0
    assert best_within_budget(points, 25).tokens <= 25
    with pytest.raises(CalibrationError, match="budget"):
        best_within_budget(points, -1)


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_a_gate_within_a_loss_keeps_to_it_beyond_the_items_it_was_picked_on(loss):
    population = Sample.of(make_items(4000, seed=3))
    always = operate(ALWAYS, population)
    rng = np.random.default_rng(5)
    gates = [
        cheapest_within(pareto(drawn), drawn, loss, 0.9).gate
        for drawn in (population.take(rng.integers(0, 4000, 400)) for _ in range(40))
    ]
    truth = [operate(gate, population) for gate in gates]
    assert np.mean([always.accuracy - point.accuracy <= loss for point in truth]) >= 0.8
    assert np.mean([point.tokens for point in truth]) < 0.9 * always.tokens


def test_few_items_prove_no_small_loss_so_everything_escalates():
    few = SAMPLE.take(np.arange(30))
    assert cheapest_within(pareto(few), few, 0.01, 0.9).gate.always


def test_slow_outcomes_are_asked_for_where_needed():
    items = make_items(100, slow=False)
    with pytest.raises(CalibrationError, match="slow outcomes are needed"):
        calibrate(items, Goal(budget=10))
    report = calibrate(items, Goal(risk=0.2), resamples=10).report
    assert report["always_slow"] is None
    assert "accuracy" not in report["at_gate"]


# Report


def test_calibrate_reports_every_figure_with_an_interval():
    result = calibrate(ITEMS, Goal(risk=0.15), resamples=40, test_items=make_items(200, seed=5))
    report = json.loads(json.dumps(result.report))
    for name in ("intuition", "distribution", "joint"):
        for figure in ("auroc", "aurc", "augrc", "area_above_random"):
            value = report["confidences"][name][figure]
            assert value["low"] <= value["value"] <= value["high"], (name, figure)
    assert report["guarantee"]["proved"]
    assert report["items"] == {"given": 600, "used": 600, "tuning": 120, "testing": 480, "seed": 0}
    assert GateSpec.from_dict(report["gate"]) == result.gate
    assert report["at_gate_on_test"]["items"] == 200
    assert report["oracle"]["accuracy"]["value"] >= report["always_slow"]["accuracy"]["value"]


def test_figures_at_a_gate_by_hand():
    curve = front(SAMPLE.confidences()["intuition"], SAMPLE.fast_correct, SAMPLE.slow_correct, SAMPLE.slow_tokens)
    everything = gate_figures(GateSpec(always=True), SAMPLE, resamples=5)
    assert everything["accuracy"]["value"] == pytest.approx(curve.accuracy[-1])
    assert everything["token_share_of_slow"]["value"] == 1.0
    assert everything["gain_over_random"]["value"] == pytest.approx(0.0)
    nothing = gate_figures(GateSpec(0, 0), SAMPLE, resamples=5)
    assert nothing["selective_risk"]["value"] == pytest.approx(1 - SAMPLE.fast_correct.mean())


def test_calibrate_is_deterministic():
    one, two = (calibrate(ITEMS, Goal(budget=30), resamples=10).report for _ in range(2))
    assert one == two


def test_an_anti_calibrated_confidence_is_named():
    liar = [
        dataclasses.replace(
            x,
            readings=tuple(
                dataclasses.replace(r, distribution_confidence=1 - r.distribution_confidence) for r in x.readings[:1]
            ),
        )
        for x in ITEMS
    ]
    liar = [dataclasses.replace(x, label=1 - x.label) for x in liar]
    warnings = calibrate(liar, Goal(risk=0.2), resamples=5).report["warnings"]
    assert any(w.startswith("the distribution confidence is anti-calibrated") for w in warnings)
    assert not any(w.startswith("the intuition") for w in warnings)


def test_a_risk_is_proved_on_one_item_of_each_prompt():
    report = calibrate(make_items(400, prompts=100), Goal(risk=0.2), resamples=5).report
    assert any("400 items come from 100 prompts" in w for w in report["warnings"])
    assert report["guarantee"]["tested_items"] == 80
    assert report["items"]["testing"] == 320


def test_a_useless_judge_is_named():
    items = [dataclasses.replace(x, slow_correct=False) for x in ITEMS]
    assert any(
        "escalating does not pay" in w for w in calibrate(items, Goal(budget=10), resamples=5).report["warnings"]
    )


def test_percent_renders_intervals():
    assert percent({"value": 0.5, "low": 0.25, "high": 0.75}) == "50.0 % [25.0, 75.0]"
    assert percent(None) == "undefined"


# Plots


def test_the_page_is_self_contained_and_the_picture_a_png(tmp_path):
    result = calibrate(ITEMS, Goal(risk=0.15), resamples=5)
    write_picture(result, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert not re.search(r'(?:src|href)="http', page)
    assert result.report["guarantee"]["statement"] in page
    assert base64.b64decode(re.search(r"base64,([^\"]+)", page)[1]).startswith(b"\x89PNG")
    write_picture(result, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CalibrationError, match=r"\.png or \.html"):
        write_picture(result, tmp_path / "c.pdf")


def test_plots_do_without_slow_outcomes():
    result = calibrate(make_items(100, slow=False), Goal(risk=0.2), resamples=5)
    assert render(result).startswith(b"\x89PNG")


def test_a_report_on_a_risk_says_how_much_is_luck_and_what_more_items_would_give():
    report = calibrate(make_items(600), Goal(risk=0.1), resamples=2).report
    seeds = report["other_seeds"]
    assert seeds["tried"] == 20
    assert 0 <= seeds["fast"]["lowest"] <= seeds["fast"]["median"] <= seeds["fast"]["highest"] <= 1
    assert seeds["proved"] >= 15
    assert [p["coverage"] for p in report["plan"]] == [0.25, 0.5, 0.75, 1.0]
    words = report["guarantee"]["in_plain_words"]
    assert "of 100 items that it leaves to the fast path, about 10 or fewer will be wrong" in words
    assert "Of 10 calibrations like this one" in words
    hopeless = calibrate(make_items(100, base=0.5), Goal(risk=0.01), resamples=2).report
    assert hopeless["guarantee"]["in_plain_words"].startswith("with this gate every item is given to the judge")
    assert hopeless["other_seeds"]["proved"] == 0


def test_a_margin_is_the_rule_in_plain_numbers():
    assert margin_of(GateSpec(0.0)) == 0
    assert margin_of(GateSpec(math.tanh(1.5 / (2 * 3.0)), temperature=3.0)) == pytest.approx(1.5)
    assert margin_of(ALWAYS) is None
    assert margin_of(GateSpec(0.5, 0.2)) is None  # the other confidence speaks as well


def test_the_path_is_not_left_for_a_lucky_order():
    """Where the intuition says all, the smallest of three AURCs on 200 items often belongs to another confidence."""
    sample = guarantee.population("bumpy", np.random.default_rng(7), size=20_000)
    rng, smallest, chosen = np.random.default_rng(0), [], []
    for _ in range(40):
        tuning, testing = parts(sample.take(rng.integers(0, len(sample), 1000)))
        aurc = {n: risk_coverage(c, tuning.fast_correct).aurc for n, c in tuning.confidences().items()}
        smallest.append(min(aurc, key=aurc.__getitem__))
        chosen.append(control_risk(tuning, testing, risk=0.1, confidence=0.9).path)
    assert smallest.count("intuition") < 30
    assert chosen.count("joint") + chosen.count("distribution") <= 8


def test_a_path_that_is_clearly_better_is_taken():
    rng = np.random.default_rng(9)
    logit, distribution = rng.normal(0, 2.5, 1000), rng.random(1000)
    right = rng.random(1000) < 1 - 0.6 * (1 - distribution)
    toward = np.where(right, 1.0, -1.0) * np.abs(logit)
    sample = Sample(logit, distribution, toward, right, None, None, np.arange(1000).astype(str))
    assert control_risk(*parts(sample), risk=0.15, confidence=0.9).path == "distribution"


@pytest.mark.parametrize("seed", range(8))
def test_the_gate_decides_like_the_proof_where_scores_come_in_steps(seed):
    """Ratings have few different values, and every threshold is at one of them, or between two."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 10, 3000)
    items = [
        LabelledItem(str(i), (signal(float(step)), signal(0.0)), int(rng.random() < 0.4 / step))
        for i, step in enumerate(steps)
    ]
    found = calibrate(items, Goal(risk=0.1), resamples=2, seed=seed)
    gate = Gate(found.gate)
    live = np.array([gate.pair(*x.readings).escalate for x in items])
    assert (escalations(found.gate, Sample.of(items)) == live).all()
    least = min(step for step, up in zip(steps, live, strict=True) if not up)
    assert least - 1 < found.report["margin"] < least  # a program that compares with it decides alike, too


def test_a_plan_counts_prompts_as_the_proof_does():
    items = [replace(x, key=f"{x.key}-{k}", group=x.key) for x in make_items(200, base=0.98) for k in range(5)]
    plans = calibrate(items, Goal(risk=0.1), resamples=2).report["plan"]
    alone = calibrate(make_items(200, base=0.98), Goal(risk=0.1), resamples=2).report["plan"]
    assert [p["items"] for p in plans] == [p["items"] for p in alone]


def test_a_test_set_of_another_kind_is_refused_and_one_of_known_prompts_is_told():
    items = make_items(200)
    single = LabelledItem("one", (signal(1.0),), 1)
    with pytest.raises(CalibrationError, match="of the same kind"):
        check_items(items, [single])
    again = [replace(x, key=f"again-{x.key}", group=x.key) for x in items[:3]]
    assert any("3 prompts are in both" in note for note in check_items(items, again)[1])
