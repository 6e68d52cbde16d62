"""Scores that another program gave, read and measured."""

import json

import numpy as np
import pytest

from fsrm_lite.errors import CalibrationError, DataFormatError, InputError
from fsrm_lite.gate import Gate
from fsrm_lite.measure.calibration import Goal, calibrate
from fsrm_lite.measure.evaluation_report import summarize
from fsrm_lite.measure.score_files import (
    Columns,
    format_of,
    labelled,
    read_scores,
    records,
    signals_of,
    with_verdicts,
)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read(tmp_path, rows, **columns):
    return read_scores(write(tmp_path / "scores.jsonl", rows), Columns(**columns))


def figures(items, slow=False, name="auto"):
    form = format_of(items, name)
    up = [[False] if form.pairwise else [False] * len(x.scores) for x in items]
    report = summarize(
        records(items, up, "always" if slow else "never", form),
        form,
        resamples=2,
        policies=("always_fast", "always_slow"),
    )
    return {name: p["metrics"]["score"]["value"] for name, p in report["policies"].items()}, report


def population(count, seed=0):
    """Margins of 0.01 as some reward models have them; the surer, the likelier right."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 0.01, count)
    right = rng.random(count) < 1 / (1 + np.exp(-np.abs(margin) / 0.002))
    better = np.where((margin > 0) == right, 0, 1)
    return [{"score_a": float(m), "score_b": 0.0, "label": int(b)} for m, b in zip(margin, better, strict=True)]


@pytest.mark.parametrize(
    ("label", "side"),
    [(0, 0), (1, 1), ("a", 0), ("B", 1), ("A>B", 0), ("b>a", 1), ("B>>A", 1), (1.0, 1), ("1", 1), ("second", 1)],
)
def test_labels_of_pairs(tmp_path, label, side):
    (item,) = read(tmp_path, [{"score_a": 1, "score_b": 2, "label": label}])
    assert item.right == (side,)


def test_two_columns_of_scores_give_a_gate(tmp_path):
    items = read(tmp_path, population(600))
    result = calibrate(labelled(items, "x"), Goal(risk=0.1), resamples=2)
    assert result.report["guarantee"]["proved"]
    assert result.gate.distribution_threshold == 0.0  # there is no such confidence, so the rule has none
    assert set(result.report["confidences"]) == {"intuition"}
    margin, gate = result.report["margin"], Gate(result.gate)
    for x in items:  # the plain number in the report is the rule
        first, second = signals_of(x)
        assert gate.pair(first, second).escalate == (abs(x.scores[0] - x.scores[1]) < margin * (1 - 1e-12))


def test_confidences_that_are_there_are_used(tmp_path):
    rows = [{**r, "c": 0.5 + 0.4 * (i % 2), "d": 0.9} for i, r in enumerate(population(200))]
    items = read(tmp_path, rows, distribution=("c", "d"))
    report = calibrate(labelled(items, "x"), Goal(risk=0.2), resamples=2).report
    assert set(report["confidences"]) == {"intuition", "distribution", "joint"}
    with pytest.raises(CalibrationError, match="the path joint needs word-distribution confidences"):
        calibrate(labelled(read(tmp_path, rows), "x"), Goal(risk=0.2, paths=("joint",)), resamples=2)


def test_a_budget_without_confidences_looks_at_the_scores_alone(tmp_path):
    rows = [{**r, "judge": r["label"], "tokens": 10} for r in population(200)]
    items = read(tmp_path, rows, slow=("judge",), tokens="tokens")
    result = calibrate(labelled(items, "x"), Goal(budget=4), resamples=2)
    assert result.gate.distribution_threshold == 0.0
    assert result.report["always_slow"]["tokens"]["value"] == 10.0


def test_what_the_judge_said_in_two_orders(tmp_path):
    rows = [
        {"score_a": 2, "score_b": 1, "label": "A>B", "v": "A>B", "w": "B>A"},  # both say the first
        {"score_a": 2, "score_b": 1, "label": "A>B", "v": "A>B", "w": "A>B"},  # always what is shown first: a tie
        {"score_a": 2, "score_b": 1, "label": "A>B", "v": "A=B", "w": "B>A"},
        {"score_a": 2, "score_b": 1, "label": "A>B", "v": "B>A", "w": "A=B"},
    ]
    items = read(tmp_path, rows, slow=("v", "w"))
    assert [x.winners for x in items] == [(0, 0), (0, 1), (None, 0), (1, None)]
    assert [x.decision for x in items] == [0, None, 0, 1]
    found, report = figures(items, slow=True, name="judgebench")
    assert found == {"always_fast": 1.0, "always_slow": 0.5}
    assert report["cost"] == "tokens"
    assert "longer" not in report["baselines"]  # nobody knows the lengths


def test_an_empty_verdict_is_no_answer(tmp_path):
    rows = [{"score_a": 2, "score_b": 1, "label": 0, "v": v} for v in (0, None, "")]
    items = read(tmp_path, rows, slow=("v",))
    assert [x.winners for x in items] == [(0,), (), ()]
    _, report = figures(items, slow=True)
    assert report["judge"] == {"asked": 3, "answered": 1}
    assert any("the judge answered 1 of the 3 items" in w for w in report["warnings"])


def test_lists_of_scores_are_measured_as_the_best_of_n(tmp_path):
    rows = [
        {"scores": [1.0, 3.0, 2.0], "label": 1},
        {"scores": [[1.0], [3.0], [2.0]], "label": [1, 2]},
        {"scores": [3.0, 3.0, 2.0, 1.0], "label": 0},
        {"scores": "[1, 2, 3]", "label": "[0]"},
    ]
    items = read(tmp_path, rows)
    assert figures(items)[0] == {"always_fast": pytest.approx((1 + 1 + 0.5 + 0) / 4)}
    with pytest.raises(CalibrationError, match="3 scores, expected 1 or 2"):
        labelled(items, "x")


def test_single_responses(tmp_path):
    items = read(tmp_path, [{"score": 1.5, "label": True}, {"score": -1, "label": 0}, {"score": 2, "label": "false"}])
    assert [x.right for x in items] == [(0,), (), ()]
    assert figures(items)[0] == {"always_fast": pytest.approx(2 / 3)}
    assert [x.fast_correct for x in labelled(items, "x")] == [True, True, False]


def test_chosen_and_rejected_need_no_label(tmp_path):
    items = read(tmp_path, [{"score_chosen": 2, "score_rejected": 1}], first_is_right=True)
    assert (items[0].scores, items[0].right) == ((2.0, 1.0), (0,))


def test_a_benchmarks_own_metric(tmp_path):
    rows = [{"score_a": 2, "score_b": 1, "label": int(i > 0), "part": "math-prm"} for i in range(4)]
    items = read(tmp_path, rows, subset="part")
    _, report = figures(items, name="rewardbench")
    assert report["policies"]["always_fast"]["metrics"]["Reasoning"]["value"] == 0.25
    with pytest.raises(InputError, match="2 scores per item do not fit the format 'rm-bench'"):
        format_of(items, "rm-bench")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"a": 1, "label": 2},
            {},
            "there is no column of scores; the file has a, label; name the columns with --fast-columns",
        ),
        ({"score_a": 1, "score_b": 2}, {}, "there is no column label"),
        ({"score_a": "", "score_b": 2, "label": 0}, {}, "'score_a' is '', expected a number"),
        ({"score_a": True, "score_b": 2, "label": 0}, {}, "'score_a' is True, expected a number"),
        ({"score_a": "nan", "score_b": 2, "label": 0}, {}, "'score_a' is 'nan', expected a number"),
        ({"score_a": 1, "score_b": 2, "label": 2}, {}, "'label' is 2, expected 0 or 1"),
        ({"scores": [1, 2, 3], "label": 3}, {}, "'label' is 3, expected a position from 0 to 2"),
        # What Python would read as another number, or as several positions.
        ({"score_a": "1_5", "score_b": 2, "label": 0}, {}, "'score_a' is '1_5', expected a number"),
        ({"score_a": "\u0661", "score_b": 2, "label": 0}, {}, "'score_a' is .*, expected a number"),
        ({"score_a": 10**400, "score_b": 2, "label": 0}, {}, "'score_a' is 1000.*, expected a number"),
        ({"scores": [1, 2], "label": [0, 1]}, {}, r"'label' is \[0, 1\], expected a position"),
        ({"scores": [1, 2], "label": "[1, 0]"}, {}, "'label' is .*, expected"),
        ({"scores": [1, 2, 3], "label": [0, 0, 1]}, {}, "expected a position from 0 to 2, or several, each of them"),
        ({"scores": [1, 2, 3], "label": [True, False]}, {}, "expected a position from 0 to 2"),
        ({"scores": [1, 2, 3], "label": 1.7}, {}, "'label' is 1.7, expected a position"),
        ({"scores": [1, 2, 3], "label": True}, {}, "'label' is True, expected a position"),
        ({"scores": [1, 2, 3], "label": "\u0661"}, {}, "expected a position"),
        ({"scores": [1, 2, 3], "label": "9" * 5000}, {}, "expected a position"),
        ({"score_a": 1, "score_b": 2, "label": {"a": 1}}, {}, "'label' is {'a': 1}, expected 0 or 1"),
        ({"score": 1, "label": [1]}, {}, r"'label' is \[1\], expected 0 or 1"),
        (
            {"score_a": 1, "score_b": 2, "label": 0, "v": [0]},
            {"slow": ("v",)},
            r"'v' is \[0\], expected what the label",
        ),
        (
            {"score_a": 1, "score_b": 2, "label": 0, "g": None},
            {"group": "g"},
            "'g' is None, expected a text or a number",
        ),
        ({"score_a": 1, "score_b": 2, "label": 0, "g": ""}, {"group": "g"}, "'g' is '', expected a text or a number"),
        ({"score_a": 1, "score_b": 2, "label": 0, "k": None}, {"id": "k"}, "'k' is None, expected a text or a number"),
        ({"score_a": 1, "score_b": 2, "label": 0, "v": "x"}, {"slow": ("v",)}, "'v' is 'x', expected what the label"),
        ({"score_a": 1, "score_b": 2, "label": 0, "t": -1}, {"tokens": "t"}, "'t' is -1, expected 0 or more tokens"),
        (
            {"score_a": 1, "score_b": 2, "label": 0, "c": 2, "d": 0},
            {"distribution": ("c", "d")},
            r"confidences in \[0, 1\] expected",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, row, columns, message):
    with pytest.raises(DataFormatError, match=message):
        read(tmp_path, [row], **columns)


def test_a_column_that_later_rows_lack_is_named(tmp_path):
    whole = {"score_a": 1, "score_b": 2, "label": 0, "v": 0, "t": 5, "c": 1, "d": 1, "g": 1, "s": 1, "k": 1}
    columns = {"slow": ("v",), "tokens": "t", "distribution": ("c", "d"), "group": "g", "subset": "s", "id": "k"}
    for name in whole.keys() - {"v", "t"}:  # an item may have no verdict
        rows = [whole, {n: x for n, x in (whole | {"k": 2}).items() if n != name}]
        with pytest.raises(DataFormatError, match=f"line 2: '{name}' is None"):
            read(tmp_path, rows, **columns)


def test_true_and_false_for_each_response_are_labels(tmp_path):
    rows = [{"scores": [1, 2, 3], "label": label} for label in ([True, False, True], [2, 0], ["1"], 1.0)]
    assert [x.right for x in read(tmp_path, rows)] == [(0, 2), (2, 0), (1,), (1,)]
    assert [x.right for x in read(tmp_path, [{"scores": [1, 2], "label": [False, True]}])] == [(1,)]


def test_ids_are_unique(tmp_path):
    with pytest.raises(DataFormatError, match="the column 'k' has a value twice"):
        read(tmp_path, [{"score_a": 1, "score_b": 2, "label": 0, "k": 1}] * 2, id="k")


def test_texts_find_their_items_by_id_or_by_place(tmp_path):
    rows = [{"score_a": 1, "score_b": 2, "label": 1, "k": k} for k in "xyz"]
    texts = [{"k": "z", "judgement": "So [[B]]"}, {"k": "x", "judgement": "[[A]]"}]
    path = write(tmp_path / "texts.jsonl", texts)
    items, notes = with_verdicts(read(tmp_path, rows, id="k"), path, ("judgement",), "chat", "k")
    assert [x.winners for x in items] == [(0,), (), (1,)]
    assert notes == ["1 of 3 items have no verdict of the form 'chat'"]
    with pytest.raises(DataFormatError, match="has 2 rows for 3 items; name an --id-column"):
        with_verdicts(read(tmp_path, rows), path, ("judgement",), "chat", None)
    with pytest.raises(DataFormatError, match="there is no column text"):
        with_verdicts(read(tmp_path, rows), path, ("text",), "chat", None)


def test_texts_that_name_an_item_twice_or_none_are_refused(tmp_path):
    items = read(tmp_path, [{"score_a": 1, "score_b": 2, "label": 1, "k": k} for k in "xyz"], id="k")
    path = tmp_path / "texts.jsonl"
    write(path, [{"k": k, "judgement": "[[A]]"} for k in "xyx"])
    with pytest.raises(DataFormatError, match=r"line 1 and texts\.jsonl line 3 are both about the item 'x'"):
        with_verdicts(items, path, ("judgement",), "chat", "k")
    write(path, [{"k": k, "judgement": "[[A]]"} for k in "XYZ"])
    with pytest.raises(DataFormatError, match=r"no text belongs to an item: its 'k' is 'X'.*of the items 'x'"):
        with_verdicts(items, path, ("judgement",), "chat", "k")
