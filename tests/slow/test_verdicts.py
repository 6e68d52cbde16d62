"""Verdicts in text: harmless variants are read, other words are not, and the thought is never taken for the answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite.slow import WrittenVerdict, read_verdict
from fsrm_lite.slow.verdicts import choice_follows, find_choice

BOXED = {"close": "</think>", "prefix": "\\boxed{Assistant ", "choices": ["1", "2"]}
TAGGED = {"close": "</eval>\n", "prefix": "<answer>[[", "choices": ["A", "B"]}
PLAIN = {"close": "Verdict:", "prefix": " [[", "choices": ["A", "B"]}
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
        ("Good answer. [RESULT] (4)", RATED, 3),  # as prometheus-eval's own parser reads it
        ("hm</THINK>\n\\boxed{\\mathrm{Assistant 2}}", BOXED, 1),
        ("hm</think>$\\boxed{\\text{Assistant }2}$", BOXED, 1),
        ("hm</think>\\boxed{\\textbf{Assistant} 2}", BOXED, 1),
        ("hm</think>\\boxed{Assistant~2}", BOXED, 1),
        ("hm</think>\\boxed{Assistant\\ 2}", BOXED, 1),
        ("hm</think>\\boxed{Assistant 1 or 2}", BOXED, None),
        ("hm</think>\\boxed{Assistant 1/2}", BOXED, None),
        ("hm</think>\\boxed{Assistant 1} or \\boxed{Assistant 2}", BOXED, None),
        ("hm</think>not \\boxed{Assistant 1}", BOXED, None),
        ("hm **Verdict**: [[B]]", PLAIN, 1),
        ("hm **Verdict:** **[[B]]**", PLAIN, 1),
        ("hm VERDICT: [[b]]", PLAIN, 1),
        ("I end with Verdict: [[A]] or Verdict: [[B]]. So: Verdict: [[B]]", PLAIN, 1),
        ("Verdict: [[A]]. It is not [[B]]", PLAIN, 0),
        ("Verdict: [[A/B]]", PLAIN, None),
        ("Verdict: [[A]]/[[B]]", PLAIN, None),
        ("Verdict: [[A>B]]", PLAIN, None),
        ("<eval>x</EVAL>\n<Answer>[[A]]</Answer>", TAGGED, 0),
        ("<eval>x</eval>\n<answer>**[[A]]**</answer>", TAGGED, 0),
        ("Good. [RESULT]: 4", RATED, 3),
        ("Good. [Result] **4**", RATED, 3),
        ("Good. [RESULT] 4/5", RATED, 3),
        ("Good. [RESULT] 4 out of 5.", RATED, 3),
        ("Good. [RESULT] 4.", RATED, 3),
        ("Good. [RESULT] 4, since it adds up", RATED, 3),
        ("Good. [RESULT] 4.5", RATED, None),
        ("Good. [RESULT] 4,5", RATED, None),
        ("Good. [RESULT] 4/10", RATED, None),
        ("Good. [RESULT] 1-2", RATED, None),
        ("Good. [RESULT] 1 \u2013 2", RATED, None),
        ("Good. [RESULT] 4 to 5", RATED, None),
        ("Good. [RESULT] -1", RATED, None),
        ("Good. [RESULT] 4?", RATED, None),
        ("Good. [RESULT] 4+", RATED, None),
        ("[RESULT] 2? No... [RESULT] 4", RATED, 3),
        ("[RESULT] 2 and then [RESULT] 4", RATED, None),
        ("[RESULT] 4 and again [RESULT] 4", RATED, 3),
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


def test_contradicting_verdicts_are_none_where_a_recipe_says_so():
    text = "<eval>x</eval><answer>[[A]]</answer> No: <answer>[[B]]</answer>"
    assert read_verdict(text, **TAGGED).choice == 1
    assert read_verdict(text, **TAGGED, several="none").choice is None
    assert read_verdict(text.replace("[[B]]", "[[A]]"), **TAGGED, several="none").choice == 0


@given(st.decimals(0, 20, places=2).map(lambda d: f"{d.normalize():f}") | st.integers(-20, 200).map(str))
@settings(deadline=None)
def test_a_number_is_a_rating_only_if_it_is_one_of_the_labels(number):
    expected = int(number) - 1 if number in RATED["choices"] else None
    assert read_verdict(f"Good. [RESULT] {number}", **RATED).choice == expected
    assert read_verdict(f"Good. [RESULT] {number}\nEnd.", **RATED).choice == expected


@given(
    st.sampled_from(["1", "2"]),
    st.sampled_from(["</think>", "</Think>", "</THINK>"]),
    st.sampled_from(
        ["Assistant {}", "assistant {}", "ASSISTANT  {}", "Assistant~{}", "Assistant\\,{}", "Assistant\n{}"]
    ),
    st.sampled_from(["{}", "\\text{{{}}}", "\\mathrm{{{}}}", "\\textbf {{{}}}", " {} ", "**{}**"]),
    st.sampled_from(
        ["\\boxed{{{}}}", "$\\boxed{{{}}}$", "**\\boxed{{{}}}**", "\\boxed {{ {} }}", "So: \\boxed{{{}}}."]
    ),
)
@settings(deadline=None, max_examples=300)
def test_harmless_variants_mean_the_same_in_any_combination(word, close, name, style, box):
    text = "hm" + close + "\n" + box.format(style.format(name.format(word)))
    assert read_verdict(text, **BOXED).choice == int(word) - 1


@given(st.text(max_size=60), st.text(max_size=30))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_a_choice_that_it_spells_or_none(thought, answer):
    for form in (BOXED, TAGGED, PLAIN, RATED):
        for text in (answer, form["prefix"] + answer, form["prefix"] + form["choices"][0] + answer):
            choice = read_verdict(thought + form["close"] + text, **form).choice
            assert choice is None or form["choices"][choice].lower() in (thought + text).lower()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("prefix", [" [[", "\n[ [", "Answer: ", "\\boxed{Assistant ", "", " "])
def test_a_long_run_of_white_space_is_read_in_one_go(prefix):
    """In a pattern that can share it out in several ways, a search takes the square or the cube of its length."""
    space = "\n" * 200_000
    assert not choice_follows(space + "x", prefix)
    assert choice_follows(space, prefix) == (not prefix.strip())
    assert find_choice(space + prefix, prefix, ["A", "B"]) is None
    assert find_choice(f"{prefix}A{space}/{space}[" + "/" * 200_000, prefix, ["A", "B"]) == 0
    assert choice_follows(f"{space}{prefix}{space}", prefix)
    assert find_choice(f"x{space}{prefix}{space}B{space}" if prefix.strip() else f"{space}B", prefix, ["A", "B"]) == 1
