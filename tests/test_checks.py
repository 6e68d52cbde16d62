"""Ill-typed options: every one is refused as an ``InputError`` that says what was given and what was expected."""

import contextlib
import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite import FastSlowRM, GateSpec
from fsrm_lite.checks import MAX_TEXT_CHARACTERS, check_items, expect, expect_one_of, is_number, is_whole
from fsrm_lite.errors import BundleError, ContextOverflowError, InputError
from fsrm_lite.loops.reasoners import Sampling
from fsrm_lite.ranking.tournament import TournamentOptions
from fsrm_lite.types import JudgeOptions

QUESTION, ANSWERS = "What is 2 + 3?", ["5", "41"]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.just(object()),
)


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        (0, True, True),
        (-3, True, True),
        (2.5, False, True),
        (True, False, False),
        (math.nan, False, False),
        (math.inf, False, False),
        (10**400, True, False),
        ("3", False, False),
        (np.int64(3), True, True),
        (np.uint8(3), True, True),
        (np.float32(2.5), False, True),
        (np.array(4), True, True),
        (np.bool_(True), False, False),
        (np.float64("nan"), False, False),
        (np.array([3]), False, False),
        (None, False, False),
        ([1], False, False),
    ],
)
def test_what_counts_as_a_number(value, whole, number):
    assert is_whole(value) is whole
    assert is_number(value) is number


def test_numbers_of_numpy_are_settings_and_are_kept_as_plain_ones(rm):
    settings = JudgeOptions(votes=np.int64(2), temperature=np.float32(0.5), seed=np.uint16(3), deadline=np.float64(9))
    assert [type(v) for v in (settings.votes, settings.temperature, settings.seed, settings.deadline)] == [
        int, float, int, float
    ]  # fmt: skip
    assert settings == JudgeOptions(votes=2, temperature=0.5, seed=3, deadline=9.0)
    assert type(TournamentOptions(budget=np.int32(5)).budget) is int
    assert type(Sampling(n=np.int64(2)).n) is int
    assert json.dumps(GateSpec(intuition_threshold=np.float32(0.5)).to_dict())
    assert rm.rank(QUESTION, ANSWERS, top_k=np.int64(1), judge="never")[0]["corpus_id"] == 0
    call = {"judge": "always", "votes": np.int64(2), "thinking_tokens": np.int64(20), "seed": np.int64(3)}
    plain = {name: value if isinstance(value, str) else int(value) for name, value in call.items()}
    assert rm.compare(QUESTION, *ANSWERS, **call) == rm.compare(QUESTION, *ANSWERS, **plain)
    with FastSlowRM(rm.bundle, threads=np.int64(1)) as model:
        assert model.compare(QUESTION, *ANSWERS, **call).votes


PAIRS = [(QUESTION, "5"), (QUESTION, "41"), ("What is 1 + 1?", "2")]
PROMPTS, TEXTS = zip(*PAIRS, strict=True)


@pytest.mark.parametrize(
    "items",
    [
        [list(pair) for pair in PAIRS],
        (pair for pair in PAIRS),
        zip(*zip(*PAIRS, strict=True), strict=True),
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        list(np.array(PAIRS)),
        [{"response": response, "prompt": prompt, "id": 7} for prompt, response in PAIRS],
        pandas.DataFrame({"id": [1, 2, 3], "response": TEXTS, "prompt": PROMPTS}, index=[2, 0, 1]),
    ],
    ids=lambda items: type(items).__name__,
)
def test_items_are_the_rows_whatever_holds_them(items):
    assert [tuple(map(str, item)) for item in check_items(items, "prompt", "response")] == PAIRS


@pytest.mark.parametrize(
    "items",
    [
        pandas.DataFrame({"question": PROMPTS, "answer": TEXTS}),
        pandas.DataFrame([PAIRS[0]] * 2, columns=["prompt", "prompt"]),
        pandas.Series(TEXTS),
        {"prompt": list(PROMPTS), "response": list(TEXTS)},
        [QUESTION, "5", "41"],
        [(QUESTION, "5", "41")],
        [{"prompt": QUESTION, "answer": "5"}],
        np.array(TEXTS),
        np.array([[["a", "b"]]]),
        np.array("text"),
        set(PAIRS),
    ],
    ids=lambda items: type(items).__name__,
)
def test_what_is_no_list_of_pairs_is_a_sentence_and_never_letters(rm, items):
    for call in (rm.predict, rm.score_each):
        with pytest.raises(InputError, match=r"expected (a|prompt, response)|is not a \(prompt, response\) tuple"):
            call(items)


@pytest.mark.parametrize("index", [[2, 0, 1], [5, 9, 7], ["a", "b", "c"]])
@pytest.mark.parametrize(
    "hold", [pandas.Series, lambda texts, index: np.array(texts), lambda texts, index: iter(texts)]
)
def test_a_column_of_candidates_is_taken_by_its_rows(rm, hold, index):
    texts = ["41", "5", "six"]
    expected = rm.rank(QUESTION, texts, judge="never")
    assert rm.rank(QUESTION, hold(texts, index=index), judge="never") == expected
    assert rm.best_of_n(QUESTION, hold(texts, index=index), judge="never").index == expected[0]["corpus_id"]


@pytest.mark.parametrize("letter", ["a", " ", "\U0001f600"])
def test_texts_longer_than_any_context_are_refused_before_they_are_tokenized(rm, letter):
    long = "5" + letter * MAX_TEXT_CHARACTERS
    for call in (
        lambda: rm.score(QUESTION, long),
        lambda: rm.score(long, "5"),
        lambda: rm.score([{"role": "user", "content": long}], "5"),
        lambda: rm.compare(QUESTION, "5", long),
    ):
        with pytest.raises(ContextOverflowError, match=r"has 1,048,577 characters, expected at most 1,048,576"):
            call()
    assert [
        isinstance(x, ContextOverflowError) for x in rm.score_each([(QUESTION, "5"), (QUESTION, long)], judge="never")
    ] == [False, True]


def test_candidates_without_an_order_are_refused(rm):
    """Results name candidates by their positions, which a set does not have; the keys of a dict have some."""
    for unordered in ({"41", "5"}, frozenset(("41", "5"))):
        with pytest.raises(InputError, match=r"the responses are of type (frozen)?set; expected a list of strings"):
            rm.rank(QUESTION, unordered)
    assert rm.rank(QUESTION, dict.fromkeys(("41", "5")).keys()) == rm.rank(QUESTION, ["41", "5"])


def test_the_message_is_one_line_of_bounded_length():
    with pytest.raises(InputError, match=r"^votes is 'x{5,}\.\.\.x+', expected a word$"):
        expect(False, "votes", "x" * 10_000, "a word")
    with pytest.raises(InputError, match=r"^judge is \[\], expected one of a, b$"):
        expect_one_of(("a", "b"), "judge", [])


BAD = [
    ("votes", 2.5),
    ("votes", True),
    ("thinking_tokens", "long"),
    ("thinking_tokens", 0),
    ("temperature", "hot"),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", 1e-7),
    ("seed", "x"),
    ("seed", 2**127),
    ("deadline", "soon"),
    ("deadline", -1),
    ("deadline", math.nan),
]
BAD_IN_A_CALL = [
    ("top_p", 0),
    ("top_p", "all"),
    ("top_k", "3"),
    ("top_k", -1),
    ("error_rate", "low"),
    ("error_rate", 0.5),
    ("adaptive", 1),
    ("both_orders", "no"),
]


@pytest.mark.parametrize(("name", "value"), BAD + BAD_IN_A_CALL)
def test_bad_settings_of_a_call_are_named(rm, name, value):
    with pytest.raises(InputError, match=f"^{name} is .*, expected"):
        rm.compare(QUESTION, *ANSWERS, judge="never", **{name: value})
    with pytest.raises(InputError, match=f"^{name} is .*, expected"):
        rm.best_of_n(QUESTION, ANSWERS, judge="never", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *BAD,
        ("judge", "sometimes"),
        ("judge", ""),
        ("judge", []),
        ("gate", 1),
        ("gate", {}),
        ("truncate", "yes"),
        ("threads", "2"),
        ("threads", 0),
        ("judge_process", None),
        ("on_judge_crash", 3),
    ],
)
def test_bad_settings_of_a_model_are_named(rm, name, value):
    with pytest.raises(InputError, match=f"^{name} is .*, expected"):
        FastSlowRM(rm.bundle, **{name: value})


@pytest.mark.parametrize("policy", ["sometimes", "", 0, ["auto"]])
def test_a_bad_policy_of_a_call_is_named(rm, policy):
    for call in (rm.score, rm.rank):
        with pytest.raises(InputError, match=r"^judge is .*, expected one of auto, never, always"):
            call(QUESTION, ANSWERS[0] if call == rm.score else ANSWERS, judge=policy)


@pytest.mark.parametrize("top_k", ["3", 2.0, 0, -1, True])
def test_a_bad_top_k_of_rank_is_named(rm, top_k):
    with pytest.raises(InputError, match=r"^top_k is .*, expected a whole number of at least 1"):
        rm.rank(QUESTION, ANSWERS, top_k=top_k)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "all"),
        ("budget", 1.5),
        ("budget", -1),
        ("precision", "x"),
        ("precision", 0),
        ("precision", math.nan),
        ("precision", [1]),
        ("key", 3),
        ("extractor", 5),
        ("extractor", []),
        ("weighted", "yes"),
        ("on_judge_error", None),
    ],
)
def test_bad_settings_of_a_tournament_are_named(rm, name, value):
    with pytest.raises(InputError, match=f"^{name} is .*, expected"):
        rm.best_of_n(QUESTION, ANSWERS, strategy="elo", judge="never", **{name: value})


@pytest.mark.parametrize("responses", [None, 3, b"5", {"5": 1}, "5", object()])
def test_candidates_must_be_a_list(rm, responses):
    for call in (rm.rank, rm.best_of_n):
        with pytest.raises(InputError, match=r"^the responses are .*; expected a list of strings"):
            call(QUESTION, responses)


@pytest.mark.parametrize("items", [None, 3, b"5", {"5": 1}, "5", object()])
def test_items_must_be_a_list(rm, items):
    for call, shape in (
        (rm.score_many, "prompt, response"),
        (rm.predict, "prompt, response"),
        (rm.compare_many, "prompt, first, second"),
    ):
        with pytest.raises(InputError, match=rf"^the items are .*; expected a list of \({shape}\) tuples"):
            call(items)


@pytest.mark.parametrize("prompt", [None, 3, b"q", {"role": "user", "content": "q"}, ()])
def test_a_prompt_of_another_kind_is_named(rm, prompt):
    for call in (lambda: rm.score(prompt, "5"), lambda: rm.compare(prompt, *ANSWERS), lambda: rm.rank(prompt, ANSWERS)):
        kinds = r"the prompt is .*; expected a string or a non-empty list|message 0 of the prompt is not an object"
        with pytest.raises(InputError, match=rf"item 0: ({kinds})"):
            call()


@pytest.mark.parametrize("bundle", [None, "fsrm-tiny", Path("fsrm-tiny")])
def test_what_is_no_open_bundle_is_named(bundle):
    with pytest.raises(InputError, match=r"^bundle is .*from_pretrained opens"):
        FastSlowRM(bundle)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loaded_model_says_that_it_cannot_be_copied(rm, duplicate):
    with pytest.raises(InputError, match="cannot be copied or pickled; let each process open its own"):
        duplicate(rm)


@pytest.mark.parametrize(
    "source",
    ["", " ", 3, b"model", [], Path("/no/such/folder"), "no such folder", "~nobody-of-that-name/model", "x" * 5000],
)
def test_what_names_no_model_is_refused(source):
    with pytest.raises(BundleError, match="expected a bundle folder"):
        FastSlowRM.from_pretrained(source)


@given(st.sampled_from(sorted(JudgeOptions.__dataclass_fields__)), JUNK)
def test_any_value_of_a_judge_setting_is_taken_or_refused(name, value):
    with contextlib.suppress(InputError):  # anything else that is raised fails the test
        assert getattr(JudgeOptions(**{name: value}), name) is value


@given(st.sampled_from(sorted(TournamentOptions.__dataclass_fields__)), JUNK)
def test_any_value_of_a_tournament_setting_is_taken_or_refused(name, value):
    with contextlib.suppress(InputError):
        assert getattr(TournamentOptions(**{name: value}), name) is value


@settings(deadline=None)  # a model is opened for each value
@given(
    st.sampled_from(
        ["gate", "judge", "truncate", "deterministic", "votes", "seed", "deadline", "judge_process", "on_judge_crash"]
    ),
    JUNK,
)
def test_any_value_of_a_model_setting_is_taken_or_refused(rm, name, value):
    with contextlib.suppress(InputError), FastSlowRM(rm.bundle, threads=1, **{name: value}) as model:
        assert isinstance(model.gate.spec, GateSpec)
