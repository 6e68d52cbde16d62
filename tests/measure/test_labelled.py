import dataclasses
import json

import pytest
from helpers.calibration import StandIn, make_items

from fsrm_lite.errors import CalibrationError, DataFormatError
from fsrm_lite.gate import FastSignals, Gate, GateSpec
from fsrm_lite.measure.labelled import LabelledItem, Sample, content_key
from fsrm_lite.measure.labelled_rows import LabelledRow, collect, read_labelled
from fsrm_lite.measure.tradeoff import escalations

ITEMS = make_items(600)
SAMPLE = Sample.of(ITEMS)


def test_a_pair_is_right_when_the_better_response_scores_higher():
    good, bad = FastSignals(2.0, 0.9, 0.8, 1.0), FastSignals(-1.0, 0.3, 0.6, 1.0)
    assert LabelledItem("x", (good, bad), 0).fast_correct
    assert not LabelledItem("x", (good, bad), 1).fast_correct
    assert not LabelledItem("x", (good, good), 0).fast_correct
    assert not LabelledItem("x", (good, good), 1).fast_correct
    assert LabelledItem("x", (good, bad), 0).distribution_confidence == 0.6


def test_a_single_response_is_right_when_its_sign_is():
    good = FastSignals(2.0, 0.9, 0.8, 1.0)
    assert LabelledItem("x", (good,), 1).fast_correct
    assert not LabelledItem("x", (good,), 0).fast_correct


def test_a_sample_says_what_its_items_say():
    assert SAMPLE.fast_correct.tolist() == [x.fast_correct for x in ITEMS]
    assert SAMPLE.distribution.tolist() == [x.distribution_confidence for x in ITEMS]
    assert (SAMPLE.toward > 0).tolist() == SAMPLE.fast_correct.tolist()
    singles = [dataclasses.replace(x, readings=x.readings[:1], label=1 - x.label) for x in ITEMS]
    assert Sample.of(singles).fast_correct.tolist() == SAMPLE.fast_correct.tolist()


def test_items_survive_a_round_trip_through_json():
    again = [LabelledItem.from_dict(json.loads(json.dumps(x.to_dict()))) for x in ITEMS[:5]]
    assert again == ITEMS[:5]
    with pytest.raises(DataFormatError, match="not a recorded item"):
        LabelledItem.from_dict({"key": "x"})


@pytest.mark.parametrize(
    "spec", [GateSpec(0.5, 0.3), GateSpec(0.5, 0.3, "all", 2.0), GateSpec(0, 0), GateSpec(1, 1), GateSpec(always=True)]
)
def test_escalations_are_the_gates_decisions(spec):
    gate = Gate(spec)
    assert escalations(spec, SAMPLE).tolist() == [gate.pair(*x.readings).escalate for x in ITEMS]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_labelled_rows_in_their_three_forms(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "response_a": "bad", "response_b": "fine", "label": "b"},
        {"prompt": "p", "response_a": "x", "response_b": "y", "label": "A>B"},
    ]
    got = read_labelled(write_rows(tmp_path / "pairs.jsonl", rows))
    assert [r.responses[r.label] for r in got] == ["good", "fine", "x"]
    assert [r.responses for r in got[1:]] == [("bad", "fine"), ("x", "y")]
    singles = read_labelled(write_rows(tmp_path / "singles.jsonl", [{"prompt": "p", "response": "r", "label": True}]))
    assert singles == [LabelledRow("p", ("r",), 1)]


def test_chosen_responses_stand_first_half_of_the_time(tmp_path):
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    got = read_labelled(write_rows(tmp_path / "rows.jsonl", rows))
    assert all(r.responses[r.label].startswith("good") for r in got)
    assert 150 < sum(r.label for r in got) < 250


def test_recorded_items_need_no_model(tmp_path):
    assert read_labelled(write_rows(tmp_path / "items.jsonl", [x.to_dict() for x in ITEMS[:3]])) == ITEMS[:3]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"prompt": "p"}, "line 1: expected 'response'"),
        ({"prompt": 3, "response": "x", "label": 1}, "'prompt' is 3"),
        ({"prompt": "p", "response": "x"}, "'label' is None"),
        ({"prompt": "p", "response": " ", "label": 1}, "'response' is ' '"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "the same text"),
    ],
)
def test_labelled_rows_that_cannot_be_used(tmp_path, row, match):
    with pytest.raises(DataFormatError, match=match):
        read_labelled(write_rows(tmp_path / "rows.jsonl", [row]))


def test_the_same_pair_with_two_labels_is_named_with_both_lines(tmp_path):
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y"}, {"prompt": "p", "chosen": "y", "rejected": "x"}]
    with pytest.raises(CalibrationError, match=r"line 1 and rows\.jsonl line 2"):
        read_labelled(write_rows(tmp_path / "rows.jsonl", rows))
    assert content_key("p", ["x", "y"]) == content_key("p", ["y", "x"]) != content_key("q", ["x", "y"])


def test_collect_reads_fast_and_slow_in_order():
    rm = StandIn(lambda prompt, response: len(response) - 3)
    rows = [LabelledRow("p", ("a" * (i % 7 + 1), "a" * ((i + 3) % 7 + 1)), int(i % 7 < (i + 3) % 7)) for i in range(10)]
    done = []
    items = collect(rm, rows, batch=4, progress=done.append)
    assert done == [4, 4, 2]
    assert [x.key for x in items] == [r.key for r in rows]
    assert all(x.fast_correct and x.slow_correct and x.slow_tokens == 20 for x in items)
    assert all(x.slow_correct is None for x in collect(rm, rows, slow=False))
    singles = collect(rm, [LabelledRow("p", ("a" * n,), int(n > 3)) for n in (1, 5)])
    assert [(x.fast_correct, x.slow_correct, x.slow_tokens) for x in singles] == [(True, True, 10)] * 2
