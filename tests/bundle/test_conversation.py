"""The one reader of prompts, chat messages, responses and preference rows."""

import pytest

from fsrm_lite.bundle.conversation import (
    Preference,
    prompt_text,
    read_messages,
    read_preference,
    read_prompt,
    response_text,
)
from fsrm_lite.errors import InputError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 7, "b": 8}}}
ASKED = {"role": "user", "content": "hi"}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("hi", "hi"),
        ([ASKED], "hi"),
        ([{"role": "user", "content": parts("h", "i")}], "hi"),
        ([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "hi"),
        ([{"role": "system", "content": "be brief"}, ASKED], "system: be brief\n\nuser: hi"),
        ([{"role": "system", "content": parts("be brief")}, ASKED], "system: be brief\n\nuser: hi"),
        ([ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "user: hi\n\nassistant: "),
        ([ASKED, {"role": "assistant", "tool_calls": [CALL]}], "user: hi\n\nassistant: "),
    ],
)
def test_prompt_text(prompt, text):
    assert prompt_text(prompt) == text


def test_a_single_message_of_the_user_is_its_text_and_others_are_messages():
    assert read_prompt([{"role": "user", "content": parts("h", "i"), "name": None, "tool_calls": []}]) == "hi"
    named = [{"role": "user", "content": parts("h", "i"), "name": "Mia"}]
    assert read_prompt(named) == [{"role": "user", "content": "hi", "name": "Mia"}]
    assert prompt_text(named) == "hi"
    assert read_prompt(read_prompt(named)) == read_prompt(named)
    assert read_prompt([{"role": "system", "content": None}, ASKED]) == [{"role": "system", "content": ""}, ASKED]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "part of type 'image_url'"),
        ([{"role": "user", "content": [*parts("what is this?"), {"type": "image"}]}], "part of type 'image'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "part of type 'text'"),
        ([{"role": "user", "content": [3]}], "part of type of type int"),
        ([{"role": "user", "content": {"text": "hi"}}], "is of type dict"),
        ([{"role": 3, "content": "hi"}], "not an object with a string 'role'"),
        ([{"role": "", "content": "hi"}], "not an object with a string 'role'"),
        ([{"content": "hi"}], "not an object with a string 'role'"),
        ([{"role": "user", "content": ""}], "all empty"),
        ([], "non-empty list"),
    ],
)
def test_unreadable_prompts_are_refused(prompt, why):
    with pytest.raises(InputError, match=why):
        read_prompt(prompt)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("4", "4"),
        ([{"role": "assistant", "content": "4"}], "4"),
        ({"role": "assistant", "content": [*parts("4"), {"type": "image"}]}, "4"),
        ([{"content": "a"}, {"content": "b"}], "a\nb"),
        ([], ""),
        ({"content": None}, ""),
        ({"role": "assistant", "tool_calls": [CALL]}, ""),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "15"}], "15"),
    ],
)
def test_response_text_of_every_form(response, text):
    assert response_text(response) == text


@pytest.mark.parametrize("bad", [None, 4, [4]])
def test_response_text_refuses_what_is_no_text(bad):
    with pytest.raises(InputError, match="expected a string"):
        response_text(bad)


def answer(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "hi", "chosen": "a", "rejected": "b"}, "hi"),
        ({"prompt": "hi", "chosen": [ASKED, answer("a")], "rejected": [ASKED, answer("b")]}, "hi"),
        ({"chosen": [ASKED, answer("a")], "rejected": [ASKED, answer("b")]}, "hi"),
        ({"prompt": "hi", "chosen": [answer("a")], "rejected": [answer("b")]}, "hi"),
        ({"prompt": [ASKED], "chosen": [answer("a")], "rejected": [answer(parts("b"))]}, "hi"),
        (
            {
                "prompt": "hi",
                "chosen": [answer("which?"), {"role": "user", "content": "that"}, answer("a")],
                "rejected": [answer("which?"), {"role": "user", "content": parts("that")}, answer("b")],
            },
            [ASKED, answer("which?"), {"role": "user", "content": "that"}],
        ),
    ],
)
def test_preference_rows(row, prompt):
    pair = read_preference(row)
    assert (pair.chosen, pair.rejected) == ("a", "b")
    assert isinstance(pair, Preference)
    assert read_prompt(pair.prompt) == prompt


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"chosen": [answer("a")], "rejected": [answer("b")]}, "'prompt' is missing"),
        ({"prompt": "hi", "chosen": [answer("a")], "rejected": "b"}, "is a conversation and the other is not"),
        ({"chosen": [ASKED, answer("a")], "rejected": [answer("x"), answer("b")]}, "differ before their last message"),
        (
            {"chosen": [ASKED, answer("a")], "rejected": [ASKED, {**answer("b"), "tool_calls": [CALL]}]},
            "the last message of 'rejected' calls a tool",
        ),
        ({"prompt": "hi", "chosen": 3, "rejected": 4}, "expected a string"),
        ({"prompt": 5, "chosen": [answer("a")], "rejected": [answer("b")]}, "the prompt is of type int"),
        ({"prompt": "hi", "chosen": [], "rejected": []}, "non-empty list"),
    ],
)
def test_unreadable_preference_rows_are_refused(row, why):
    with pytest.raises(InputError, match=why):
        read_preference(row)


def test_messages_keep_their_roles_and_other_keys_that_have_a_value():
    assert read_messages([{"role": "tool", "content": "15", "tool_call_id": "1", "refusal": None, "audio": {}}]) == [
        {"role": "tool", "content": "15", "tool_call_id": "1"}
    ]
