"""The gate for lists: reading them, fitting shares, and the guarantee on populations whose true risk is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.calibration import StandIn, make_lists, signal

from fsrm_lite.errors import CalibrationError, DataFormatError
from fsrm_lite.gate import Gate, GateSpec, ListSpec
from fsrm_lite.measure.labelled_lists import LabelledList, ListSample, collect_lists, holds_lists, read_lists
from fsrm_lite.measure.list_calibration import (
    calibrate_lists,
    check_lists,
    choose,
    fit_shares,
    sample_of,
)


def write(tmp_path, *rows):
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"prompt": "What is 2 + 3?", "responses": ["5", "6", "The answer is 5."], "labels": [1, 0, 1]}


# reading


def test_labels_and_positions_say_the_same(tmp_path):
    path = write(tmp_path, ROW, {**ROW, "prompt": "q", "labels": None, "right": [0, 2]})
    first, second = read_lists(path)
    assert first.labels == second.labels == (1, 0, 1)
    assert holds_lists(path)
    assert read_lists(write(tmp_path, {"prompt": "q", "responses": ["a", "b"], "right": 1}))[0].labels == (0, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": [1, 0]}, "got 2 labels for 3 responses"),
        ({"labels": "yes"}, "got 'yes' for 3 responses"),
        ({"labels": [1, 0, 2]}, "expected 0 or 1"),
        ({"labels": [1, 0, None]}, "expected 0 or 1"),
        ({"labels": None}, "either 'labels'"),
        ({"right": 0}, "either 'labels'"),
        ({"labels": None, "right": 3}, "expected positions from 0 to 2"),
        ({"labels": None, "right": [0, True]}, "expected positions from 0 to 2"),
        ({"responses": []}, "not a non-empty list"),
        ({"responses": ["5", 6, "x"]}, "not a non-empty list of texts"),
        ({"prompt": 7}, "'prompt' is 7"),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path, change, match):
    path = write(tmp_path, ROW, {**ROW, **change})
    with pytest.raises(DataFormatError, match=f"lists.jsonl line 2.*{match}"):
        read_lists(path)


def test_contradictions_are_refused(tmp_path):
    twice = {**ROW, "responses": ["5", "6", "5"], "labels": [1, 0, 0]}
    with pytest.raises(CalibrationError, match="'5' is there twice, once right and once wrong"):
        read_lists(write(tmp_path, twice))
    with pytest.raises(CalibrationError, match="an empty response is labelled as right"):
        read_lists(write(tmp_path, {**ROW, "responses": ["5", "6", " "]}))
    other = {**ROW, "responses": ["6", "5", "The answer is 5."], "labels": [1, 0, 1]}
    with pytest.raises(CalibrationError, match=r"labels disagree for the same list in lists\.jsonl line 1 and"):
        read_lists(write(tmp_path, ROW, other))


def test_collecting_groups_by_answer_and_leaves_out_empty_candidates(tmp_path):
    rows = read_lists(
        write(tmp_path, {**ROW, "responses": ["5", "6", "The answer is 5.", " "], "right": [0, 2]} | {"labels": None})
    )
    rm = StandIn(lambda prompt, response: 4.0 if "5" in response else -4.0)
    (found,) = collect_lists(rm, rows)
    assert (found.teams, found.labels) == ((0, 1, 0), (1, 0, 1))
    assert collect_lists(rm, rows, grouping="text")[0].teams == (0, 1, 2)
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(DataFormatError, match="not a recorded list"):
        type(found).from_dict({"readings": [{"logit": "x"}]})


# checks before calibrating


def test_what_cannot_be_used_is_counted_and_too_few_are_refused():
    lists = make_lists(60, seed=1)
    one = make_lists(3, seed=2, sizes=(1,))
    none = make_lists(4, seed=3, right=0.0)
    whole = make_lists(5, seed=4, right=1.0)
    _, counts, _ = check_lists([*lists, *lists[:2], *one, *none, *whole])
    assert (counts["given"], counts["repeated"], counts["of_one_candidate"]) == (74, 2, 3)
    assert counts["without_a_right_one"] >= 4
    assert counts["all_right"] >= 5
    assert counts["used"] + counts["repeated"] + counts["of_one_candidate"] + counts["without_a_right_one"] == 74
    with pytest.raises(CalibrationError, match=r"33 usable lists of 43, expected at least 50 .*10 have no right one"):
        check_lists([*lists[:39], *none])
    with pytest.raises(CalibrationError, match="in both the calibration and the test set"):
        check_lists(lists, lists[:1])


@pytest.mark.parametrize(("risk", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.1, 0.0), (0.1, 1.0), (float("nan"), 0.9)])
def test_numbers_out_of_range_are_refused(risk, confidence):
    with pytest.raises(CalibrationError, match="expected both above 0 and below 1"):
        calibrate_lists(make_lists(60), risk, confidence)


# the rule


def test_a_sample_says_of_each_list_what_the_gate_decides():
    lists = make_lists(200, seed=5)
    rule = ListSpec(0.8, 1.7, 0.6)
    picks = sample_of(ListSample.of(lists), rule)
    for k, x in enumerate(lists):
        decision = Gate(GateSpec(lists=rule)).best_of(x.readings, x.teams)
        assert picks.intuition()[k] == pytest.approx(decision.shares[0])
        assert picks.fast_correct[k] == bool(x.labels[decision.order[0]])
        assert decision.escalate == (decision.shares[0] < 0.8)


def test_a_test_set_without_a_usable_list_is_refused():
    wrong = [replace(x, key=f"t{x.key}", labels=(0,) * len(x.labels)) for x in make_lists(30)]
    with pytest.raises(CalibrationError, match="none of the 30 test lists has two candidates or more"):
        calibrate_lists(make_lists(200), 0.1, test_lists=wrong)


def test_the_picks_that_a_gate_makes_alone_are_those_of_the_sample():
    """The guarantee is proved on a sample's picks, and it is the gate that makes them."""
    population = [x for x in make_lists(3000, seed=13) if len(x.labels) > 1 and any(x.labels)]
    sample = ListSample.of(population)
    draft, control = choose(sample.take(np.arange(400)), sample.take(np.arange(400, 1500)), 0.08, 0.9)
    assert control.proved
    rule = replace(draft, coverage=control.gate.intuition_threshold)
    decisions = [Gate(GateSpec(lists=rule)).best_of(x.readings, x.teams) for x in population]
    alone = np.array([not d.escalate for d in decisions])
    picks = sample_of(sample, rule)
    assert 0.2 < alone.mean() < 1
    assert (alone == (picks.intuition() >= rule.coverage)).all()
    right = np.array([bool(x.labels[d.order[0]]) for x, d in zip(population, decisions, strict=True)])
    assert (right[alone] == picks.fast_correct[alone]).all()


def test_taking_from_a_sample_is_making_one_of_fewer_lists():
    lists = make_lists(20, seed=6)
    chosen = np.array([3, 3, 0, 19])
    taken, made = ListSample.of(lists).take(chosen), ListSample.of([lists[i] for i in chosen])
    for name in ("logits", "teams", "lists", "right", "groups"):
        assert (getattr(taken, name) == getattr(made, name)).all(), name


def test_the_fit_makes_shares_say_how_often_the_pick_is_right_at_every_size():
    lists = [x for x in make_lists(4000, seed=7) if any(x.labels)]
    picks = sample_of(ListSample.of(lists), fit_shares(ListSample.of(lists)))
    sizes = np.array([len(x.labels) for x in lists])
    for size in sorted(set(sizes)):
        of_size = sizes == size
        assert picks.intuition()[of_size].mean() == pytest.approx(picks.fast_correct[of_size].mean(), abs=0.05)


def test_the_report_says_what_was_proved_and_by_size():
    lists = make_lists(900, seed=8)
    result = calibrate_lists(lists, 0.05, test_lists=make_lists(300, seed=9))
    guarantee, at = result.report["guarantee"], result.report["at_gate"]
    assert guarantee["proved"]
    assert guarantee["upper_bound"] <= 0.05
    assert 0.0 < result.rule.coverage < 1.0
    assert result.report["gate"]["lists"]["coverage"] == result.rule.coverage
    assert at["selective_risk"]["value"] < 0.05
    assert [row["candidates"] for row in at["by_size"]] == ["2 to 3", "4 to 7", "8 to 15"]
    assert sum(row["lists"] for row in at["by_size"]) == at["lists"]
    assert at["best_team"]["value"] > at["best_score"]["value"] - 0.02
    assert result.report["at_gate_on_test"]["lists"] <= 300
    json.dumps(result.report, allow_nan=False)


def test_where_nothing_can_be_proved_everything_is_escalated():
    result = calibrate_lists(make_lists(100, seed=10), 0.005)
    assert result.rule.coverage == 1.0
    assert "always escalate" in result.report["guarantee"]["statement"]
    assert result.report["at_gate"]["selective_risk"]["value"] in (None, 0.0)


def test_teams_of_mixed_labels_are_told():
    lists = make_lists(80, seed=11, mixed=True)
    assert any("have members with different labels" in w for w in calibrate_lists(lists, 0.2).report["warnings"])


# the guarantee


@pytest.mark.slow
def test_the_risk_is_exceeded_no_more_often_than_the_confidence_allows():
    """1,000 calibrations on draws from a population whose true risk is counted. ``benchmarks.guarantee`` has more."""
    population = ListSample.of([x for x in make_lists(6000, seed=12) if len(x.labels) > 1 and any(x.labels)])
    rng, exceeded = np.random.default_rng(0), 0
    for _ in range(1000):
        draw = population.take(rng.integers(0, len(population), 600))
        draw = replace(draw, groups=np.arange(600).astype(str))  # a list that was drawn twice counts twice
        draft, control = choose(draw.take(np.arange(120)), draw.take(np.arange(120, 600)), 0.04, 0.9)
        picks = sample_of(population, draft)
        alone = picks.intuition() >= (control.gate.intuition_threshold if control.proved else 2.0)
        exceeded += bool(alone.any() and (~picks.fast_correct[alone]).mean() > 0.04)
    assert exceeded <= 100


@pytest.mark.parametrize("seed", range(4))
def test_the_gate_picks_alone_what_was_proved_where_scores_come_in_steps(seed):
    rng = np.random.default_rng(seed)
    lists = []
    for k in range(3000):
        scores = np.round(rng.normal(0, 3, 5))
        right = int(rng.integers(5)) if rng.random() < 0.1 else int(np.argmax(scores + rng.normal(0, 1.5, 5)))
        labels = tuple(int(i == right) for i in range(5))
        lists.append(LabelledList(str(k), tuple(map(signal, scores.tolist())), tuple(range(5)), labels, "text"))
    sample = ListSample.of(lists)
    draft, control = choose(sample.take(np.arange(600)), sample.take(np.arange(600, 3000)), 0.2, 0.9, "text", seed)
    assert control.proved
    rule = replace(draft, coverage=control.gate.intuition_threshold)
    alone = np.array([not Gate(GateSpec(lists=rule)).best_of(x.readings, x.teams).escalate for x in lists])
    assert (alone == (sample_of(sample, rule).intuition() >= rule.coverage)).all()
