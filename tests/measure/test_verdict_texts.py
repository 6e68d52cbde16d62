"""Verdicts of real judges' texts, by the forms that their makers publish."""

import pytest

from fsrm_lite.errors import InputError
from fsrm_lite.measure.verdict_texts import FORMS, read_verdict


@pytest.mark.parametrize(
    ("form", "text", "verdict"),
    [
        ("rrm", r"<think>Assistant 2 \boxed{Assistant 2}?</think> So \boxed{Assistant 1}", "a"),
        ("rrm", r"**\boxed{Assistant 2}**", "b"),
        ("rrm", r"\boxed{\text{Assistant 1}}", "a"),
        ("rrm", r"\boxed{ Assistant 2 }", "b"),
        ("rrm", r"\boxed{assistant 1}", "a"),
        ("rrm", r"first \boxed{Assistant 1}, no: \boxed{Assistant 2}", "b"),
        ("rrm", r"\boxed{Assistant 12}", None),
        ("rrm", "<think>still thinking", None),
        ("rm-r1", "</eval>\n<answer>[[A]]</answer>", "a"),
        ("rm-r1", "<answer> [[B]]\n</answer>", "b"),
        ("rm-r1", "[[B]]", None),
        ("rm-r1", "<answer>[[A]]</answer> no, <answer>[[B]]</answer>", None),
        ("rm-r1", "<answer>[[B]]</answer> yes, <answer>[[B]]</answer>", "b"),
        ("rrm", r"\boxed{\mathrm{Assistant 2}}", "b"),
        ("rrm", r"\boxed{\text{Assistant }2}", "b"),
        ("rrm", r"\boxed{\text{Assistant~1}}", "a"),
        ("prometheus", "[RESULT]: B", "b"),
        ("gram-rr", "<think>x</think>\n<answer>\nB\n</answer>", "b"),
        ("judgelrm", "<answer>3</answer><answer>5</answer>", "b"),
        ("judgelrm", "<answer>7</answer> <answer>7.0</answer>", "tie"),
        ("judgelrm", "<answer>7</answer>", None),
        ("prometheus", "Feedback: good. [RESULT] A", "a"),
        ("prometheus", "[RESULT] (B)", "b"),
        ("chat", "[[A]] ... final: [[B]]", "b"),
        ("chat", "[[C]]", "tie"),
        ("chat", "A is better", None),
        ("arena-hard", "My final verdict is: [[A>>B]]", "a"),
        ("arena-hard", r"\boxed{B>A}", "b"),
        ("arena-hard", "[[A<B]]", "b"),
        ("arena-hard", "[[A=B]]", "tie"),
        ("arena-hard", "[[A>A]]", None),
    ],
)
def test_a_verdict_is_read_as_its_judge_writes_it(form, text, verdict):
    assert read_verdict(text, form) == verdict


@pytest.mark.parametrize("form", FORMS)
def test_no_form_reads_a_verdict_where_there_is_none(form):
    assert read_verdict("Both are fine. <think>[[A]] \\boxed{Assistant 1}</think>", form) is None


@pytest.mark.parametrize("end", ["", "</think> Wait. <think>"])
@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{Assistant 1}",
        "<answer>[[A]]</answer>",
        "<answer>A</answer>",
        "<answer>3</answer><answer>5</answer>",
        "[RESULT] A",
        "[[A]]",
        "[[A>B]]",
    ],
)
def test_a_thought_that_was_cut_off_is_no_verdict(text, end):
    read = [form for form in FORMS if read_verdict(text, form) is not None]
    assert read
    assert [read_verdict(f"<think>If I stopped here: {end}{text}", form) for form in read] == [None] * len(read)


def test_an_unknown_form_is_named():
    with pytest.raises(InputError, match="verdict form 'x' is unknown, expected one of rrm, rm-r1"):
        read_verdict("[[A]]", "x")
