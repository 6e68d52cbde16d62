import dataclasses
import json

import numpy as np
import pytest
from helpers import DATA
from helpers.calibration import StandIn, make_items, make_lists
from helpers.hostile import changed_anywhere

from fsrm_lite.errors import CalibrationError, ContextOverflowError, DataFormatError
from fsrm_lite.gate import AnswerWeights, FastSignals, Gate, GateSpec, sigmoid, votes_logit
from fsrm_lite.measure.benchmark_formats import load_benchmark
from fsrm_lite.measure.evaluation import EvalOptions, evaluate
from fsrm_lite.measure.evaluation_records import Record, Slow, read_records
from fsrm_lite.measure.evaluation_report import summarize
from fsrm_lite.measure.labelled import LabelledItem, Sample, content_key
from fsrm_lite.measure.labelled_lists import LabelledList, ListSample
from fsrm_lite.measure.labelled_rows import LabelledRow, collect, read_labelled
from fsrm_lite.measure.risk_control import make_path
from fsrm_lite.measure.tradeoff import escalations
from fsrm_lite.types import Comparison, Route, Score, Vote

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


def test_recorded_items_with_any_part_exchanged_are_used_or_refused_by_our_errors():
    used = 0
    for item in (ITEMS[0], dataclasses.replace(ITEMS[1], slow_logit=0.5, group="g", subset="s")):
        for data in changed_anywhere(item.to_dict()):
            try:
                read = LabelledItem.from_dict(data)
            except (DataFormatError, CalibrationError):
                continue
            sample = Sample.of([read, ITEMS[2]])
            assert np.isfinite(sample.logit).all()
            assert np.isfinite(sample.intuition(1.0)).all()
            used += 1
    assert used > 5


def test_recorded_lists_with_any_part_exchanged_are_used_or_refused_by_our_errors():
    used = 0
    lists = make_lists(2)
    for data in changed_anywhere(lists[0].to_dict()):
        try:
            read = LabelledList.from_dict(data)
        except (DataFormatError, CalibrationError):
            continue
        if read.readings:
            assert np.isfinite(ListSample.of([read, lists[1]]).logits).all()
        used += 1
    assert used > 5


def test_results_with_any_part_exchanged_are_used_or_refused_by_our_errors(tmp_path):
    benchmark = load_benchmark(DATA / "pairs.jsonl")
    records = evaluate(StandIn(lambda prompt, response: len(response)), benchmark, EvalOptions(judge="always"))
    path, used = tmp_path / "results.jsonl", 0
    for data in changed_anywhere(json.loads(records[0].to_json())):
        path.write_text(json.dumps(data) + "\n" + records[1].to_json() + "\n")
        try:
            report = summarize(read_records(path), benchmark.format, resamples=2)
        except (DataFormatError, CalibrationError):
            continue
        json.dumps(report, allow_nan=False)
        used += 1
    assert used > 5


def combined(winners, logit, winner):
    """A comparison that both paths decided together."""
    votes = tuple(Vote(i % 2 == 1, w, 1.0 - w, "thought", 5) for i, w in enumerate(winners))
    scores = tuple(Score(sigmoid(x), x, 0.5, 0.9, 1.0) for x in (logit, 0.0))
    return Comparison(
        winner,
        0.9,
        0.5,
        0.9,
        Route.SLOW,
        True,
        scores=scores,
        votes=votes,
        tokens_generated=9,
        logit=logit,
        combined=True,
    )


@pytest.mark.parametrize(("winners", "logit", "alone"), [((1, 1), 3.0, 1), ((0, 1), 3.0, 0), ((0, 1), -3.0, 1)])
def test_an_item_has_the_answer_of_the_votes_alone_and_their_log_odds(winners, logit, alone):
    for label in (0, 1):
        item = LabelledItem.from_comparison("x", combined(winners, logit, 1 - alone), label)
        assert item.slow_correct == (alone == label)
        assert item.slow_logit == votes_logit([1.0 - w for w in winners])


def test_an_item_of_a_record_has_the_answer_of_the_votes_alone():
    slow = Slow((1, 1), 0, (), (9.0,), votes_logit=-1.1, alone=1)
    record = Record("r", "always", "i", "k", "", "", (0,), (1, 1), (3.0, 0.0), (0.9, 0.9), (1.0, 1.0), (True,), slow)
    assert Record.from_json(record.to_json()) == record
    (item,) = LabelledItem.from_record(record)
    assert (item.slow_correct, item.slow_logit) == (False, -1.1)
    together = Sample.of([item]).answered_by(AnswerWeights(1.0, 1.0))
    assert together.slow_correct.tolist() == [True]


@pytest.mark.parametrize("odds", ["1", True, float("nan")])
def test_log_odds_that_are_no_number_are_refused(odds):
    with pytest.raises(DataFormatError, match="slow_logit is"):
        LabelledItem.from_dict({**ITEMS[0].to_dict(), "slow_logit": odds})


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
    got = read_labelled(write_rows(tmp_path / "pairs.jsonl", rows)).rows
    assert [r.responses[r.label] for r in got] == ["good", "fine", "x"]
    assert [r.responses for r in got[1:]] == [("bad", "fine"), ("x", "y")]
    singles = read_labelled(
        write_rows(tmp_path / "singles.jsonl", [{"prompt": "p", "response": "r", "label": True}])
    ).rows
    assert singles == (LabelledRow("p", ("r",), 1),)


def test_chosen_responses_stand_first_half_of_the_time(tmp_path):
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    got = read_labelled(write_rows(tmp_path / "rows.jsonl", rows)).rows
    assert all(r.responses[r.label].startswith("good") for r in got)
    assert 150 < sum(r.label for r in got) < 250


def test_recorded_items_need_no_model(tmp_path):
    assert read_labelled(write_rows(tmp_path / "items.jsonl", [x.to_dict() for x in ITEMS[:3]])).items == tuple(
        ITEMS[:3]
    )


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


def test_every_format_that_eval_reads_can_be_calibrated_on():
    pairs = read_labelled(DATA / "llmbar.json").rows
    assert len(pairs) == 3
    assert all(len(r.responses) == 2 and r.group for r in pairs)
    singles = read_labelled(DATA / "rewardbench2.jsonl").rows  # scored one by one, so the gate decides about each one
    assert {len(r.responses) for r in singles} == {1}
    assert {r.label for r in singles if "good" in r.responses[0]} == {1}
    assert len({r.group for r in singles if r.subset == "Ties"}) == 1
    ties = read_labelled(DATA / "pandalm.json")
    assert len(ties.rows) == 2
    assert ties.notes == (
        "2 items were left out: ties of the annotators, or with an empty response, or two of the same",
    )


@pytest.mark.parametrize("name", ["pairs.jsonl", "rewardbench2.jsonl", "pandalm.json"])
def test_what_eval_wrote_is_what_calibrate_would_record(tmp_path, name):
    rm = StandIn(lambda prompt, response: len(response) % 7 - 3.0)
    benchmark = load_benchmark(DATA / name)
    evaluate(rm, benchmark, EvalOptions(), output=tmp_path / "out.jsonl")
    read = read_labelled(tmp_path / "out.jsonl")
    own = read_labelled(DATA / name).rows
    again = {(x.fast_correct, x.slow_correct, round(abs(x.logit), 9), x.subset) for x in collect(rm, own)}
    assert {(x.fast_correct, x.slow_correct, round(abs(x.logit), 9), x.subset) for x in read.items} == again
    assert len(read.items) == len(own)


def test_rows_that_are_too_long_are_left_out_or_stop_the_run():
    class Short(StandIn):
        def encode(self, prompt, response):
            if response == "too long":
                raise ContextOverflowError("no room")
            return super().encode(prompt, response)

        def has_room(self, prompt, *responses):
            return "long for the judge" not in responses

    rm = Short(lambda prompt, response: len(response) - 3)
    texts = ("a", "too long", "long for the judge", "b")
    rows = [LabelledRow("p", (text, "other"), 0) for text in texts]
    with pytest.raises(ContextOverflowError, match=r"^item 1: no room. With --truncate"):
        collect(rm, rows)
    assert [x.key for x in collect(rm, rows, skip_too_long=True)] == [rows[0].key, rows[3].key]
    assert len(collect(rm, rows, skip_too_long=True, slow=False)) == 3


def without_distribution(count):
    """Items of a model with a scalar head, or of a score file."""
    return [
        dataclasses.replace(x, readings=tuple(dataclasses.replace(r, distribution_confidence=None) for r in x.readings))
        for x in make_items(count)
    ]


def test_a_confidence_that_does_not_exist_is_none():
    bare, full = without_distribution(9), make_items(9, seed=1)
    assert [x.distribution_confidence for x in bare] == [None] * 9
    assert [x.distribution_confidence for x in full] == [x.readings[0].distribution_confidence for x in full]
    sample = Sample.of(bare)
    assert not sample.has_distribution
    assert set(sample.confidences()) == {"intuition"}
    mixed = Sample.of([*bare, *full])
    assert not mixed.has_distribution
    for combine in ("any", "all"):
        spec = GateSpec(0.6, 0.6, combine)
        assert escalations(spec, mixed).tolist() == [Gate(spec).pair(*x.readings).escalate for x in [*bare, *full]]
    accepted, _ = make_path("joint", SAMPLE, 1.0).counts(sample, 1.0)
    alone, _ = make_path("intuition", SAMPLE, 1.0).counts(sample, 1.0)
    assert accepted.tolist() == alone.tolist()  # the second threshold stops nothing


def test_recorded_items_keep_what_they_lack():
    bare = without_distribution(3)
    assert [LabelledItem.from_dict(json.loads(json.dumps(x.to_dict()))) for x in bare] == bare
    old = [x.to_dict() | {"has_distribution": False} for x in make_items(3)]  # older files: numbers that stand for none
    assert [LabelledItem.from_dict(x).distribution_confidence for x in old] == [None] * 3
