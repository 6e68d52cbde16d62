"""Answer extraction: numbers, words, and what plugs in."""

import pytest

from fsrm_lite.errors import InputError
from fsrm_lite.ranking.answers import agrees, exact, final, find_extractor, numeric


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12", "12"),
        ("3 + 4 = 7. The answer is 7.", "7"),
        ("Answer: $1,250.00", "1250"),
        ("we get 3, then 4", "4"),
        (r"so \boxed{-5} and not 6", "-5"),
        (r"\boxed{1} no, \boxed{\text{x} 2}", "2"),
        ("18\n#### 18", "18"),
        ("The answer is 12, because 3 of the 4 left.", "12"),
        ("\u22123.50", "-3.5"),
        ("1e3", "1000"),
        ("-0", "0"),
        ("007", "7"),
        ("The answer is unknown, maybe 5", "5"),
        ("<think>2 + 2 = 5? no</think>\n\n4 apples", "4"),
        ("no number", None),
        ("", None),
        ("<think>9</think>", None),
        ("1e999", None),
    ],
)
def test_numeric_finds_the_final_number(text, answer):
    assert numeric(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tom has more.\nThe answer is Tom.", "tom"),
        ("  Ann \n", "ann"),
        (r"\boxed{True}", "true"),
        ("one\ntwo  words!\n\n", "two words"),
        ("...", None),
        ("", None),
    ],
)
def test_exact_finds_the_final_words(text, answer):
    assert exact(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7. The answer is 7 pens.", "7"),
        ("The answer is Ann.", "ann"),
        ("12 pens.", "12"),
        ("Ann", "ann"),
        ("3 + 4 = 7. 7 - 2 =", None),
        ("", None),
    ],
)
def test_final_needs_a_conclusion(text, answer):
    assert final(text) == answer


def test_agrees_needs_an_answer_on_both_sides():
    assert agrees("it is 4.0", "4", numeric)
    assert not agrees("none", "none", numeric)
    assert not agrees("4", "5", numeric)


def test_find_extractor_by_name_path_or_function():
    assert find_extractor("numeric") is numeric
    assert find_extractor("fsrm_lite.ranking.answers:exact") is exact
    assert find_extractor(exact) is exact


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("roman", "unknown"),
        ("no_module:f", "cannot be imported"),
        ("fsrm_lite.ranking.answers:nothing", "cannot be imported"),
        ("sys:path", "is a list"),
    ],
)
def test_find_extractor_says_what_is_wrong(name, match):
    with pytest.raises(InputError, match=match):
        find_extractor(name)
