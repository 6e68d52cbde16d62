"""Verdicts in text: harmless variants are read, other words are not, and the thought is never taken for the answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite.slow import WrittenVerdict, read_verdict
from fsrm_lite.slow.verdicts import choice_follows, find_choice

BOXED = {"close": "</think>", "prefix": "\\boxed{Assistant ", "choices": ["1", "2"]}
TAGGED = {"close": "</eval>\n", "prefix": "<answer>[[", "choices": ["A", "B"]}
RATED = {"close": "[RESULT]", "prefix": " ", "choices": ["1", "2", "3", "4", "5"]}


@pytest.mark.parametrize(
    ("text", "form", "choice"),
    [
        ("hm</think>\n\n\\boxed{Assistant 2}", BOXED, 1),
        ("hm</think>\n\n\\boxed{\\text{Assistant 1}}", BOXED, 0),
        ("hm</think>\\boxed{ Assistant 2 }", BOXED, 1),
        ("hm</think> The answer is **\\boxed{Assistant 1}**.", BOXED, 0),
        ("hm</think>\n\\boxed{assistant 2}", BOXED, 1),
        ("hm</think>\\boxed{Assistant 1} no: \\boxed{Assistant 2}", BOXED, 1),
        ("\\boxed{Assistant 1} hm</think>", BOXED, None),
        ("hm</think>\\boxed{Assistant 12}", BOXED, None),
        ("hm \\boxed{Assistant 1}", BOXED, None),
        ("hm</think>Assistant 1 is better", BOXED, None),
        ("<eval>x</eval>\n<answer>[[A]]</answer>", TAGGED, 0),
        ("<eval>x</eval>\n\n<answer> [[B]]</answer>", TAGGED, 1),
        ("<eval>x</eval><answer>[[ a ]]</answer>", TAGGED, 0),
        ("<eval>x</eval>\n<answer>[[C]]</answer>", TAGGED, None),
        ("Good answer. [RESULT] 4", RATED, 3),
        ("Good answer.\n[RESULT]\n**5**", RATED, 4),
        ("Good answer. [RESULT] 45", RATED, None),
        ("Good answer. [RESULT] (4)", RATED, None),
        ("Good answer, 4.", RATED, None),
    ],
)
def test_what_counts_as_a_verdict(text, form, choice):
    assert read_verdict(text, **form).choice == choice


def test_the_thought_is_what_stands_before_the_first_close():
    assert read_verdict(" a\nb </think> c </think>\\boxed{Assistant 1}", **BOXED) == WrittenVerdict("a\nb", 0)
    assert read_verdict("no end", **BOXED) == WrittenVerdict("no end", None)


@given(st.text(max_size=40), st.sampled_from(["1", "2"]), st.text(alphabet=" \n", max_size=3))
@settings(deadline=None)
def test_any_thought_may_stand_before_a_verdict(thought, word, space):
    thought = thought.replace("</think>", "")
    read = read_verdict(f"{thought}</think>{space}\\boxed{{Assistant {word}}}", **BOXED)
    assert read == WrittenVerdict(thought.strip(), int(word) - 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("prefix", [" [[", "\n[ [", "Answer: ", "\\boxed{Assistant ", "", " "])
def test_a_long_run_of_white_space_is_read_in_one_go(prefix):
    """In a pattern that can share it out in several ways, a search takes the square or the cube of its length."""
    space = "\n" * 200_000
    assert not choice_follows(space + "x", prefix)
    assert choice_follows(space, prefix) == (not prefix.strip())
    assert find_choice(space + prefix, prefix, ["A", "B"]) is None
    assert choice_follows(f"{space}{prefix}{space}", prefix)
    assert find_choice(f"x{space}{prefix}{space}B{space}" if prefix.strip() else f"{space}B", prefix, ["A", "B"]) == 1
