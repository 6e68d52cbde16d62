"""``/v1/decisions`` and ``/v1/systemone``: meaning, invariances, and every kind of bad request."""

import random

import pytest

STATE = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"


def decide(client, questions, text=STATE, **more):
    return client.post("/v1/decisions", {"model": "fsrm-tiny", "input": text, "questions": questions, **more})


def choice(values, instructions="Which is better?", **more):
    return {"type": "choice", "instructions": instructions, "choices": [{"value": v} for v in values], **more}


def scale(labels):
    return {"type": "score", "instructions": "q", "levels": [{"label": label} for label in labels]}


def near(value):
    return pytest.approx(value, abs=0.01)


def test_is_this_response_good_is_the_score_itself(client, rm):
    talk = [{"role": "user", "content": STATE}, {"role": "assistant", "content": "15 pens"}]
    wanted = rm.score(STATE, "15 pens", judge="never").score
    question = {"type": "predicate", "name": "good", "instructions": "Is this response good?"}
    reply = decide(client, [question], talk, x_judge="never").json()
    assert reply["answers"][0]["name"] == "good"
    assert reply["answers"][0]["probability"] == near(wanted)
    asked = {"good": {"type": "noul", "instructions": "Is this response good?"}}
    body = {"state": {"prompt": STATE, "response": "15 pens"}, "questions": asked, "x_judge": "never"}
    assert client.post("/v1/systemone", body).json()["answers"]["good"]["noul"] == near(wanted)


def test_which_is_better_is_the_comparison_itself(client, rm):
    reply = decide(client, [choice(["16 pens", "15 pens"])], x_judge="never").json()
    wanted = rm.compare(STATE, "16 pens", "15 pens", judge="never")
    first, second = reply["answers"][0]["probabilities"]
    assert first["probability"] == near(wanted.p_first)
    assert second["probability"] == near(1 - wanted.p_first)
    assert reply["answers"][0]["choice"] == ["16 pens", "15 pens"][wanted.winner]
    assert reply["answers"][0]["x_route"] == "fast"


def test_a_close_pair_is_thought_about_in_both_orders(client, rm):
    reply = decide(client, [choice(["14 pens", "15 pens"])], x_judge="always").json()
    found, wanted = reply["answers"][0], rm.compare(STATE, "14 pens", "15 pens", judge="always")
    assert (found["choice"], found["x_route"], found["x_escalated"]) == ("15 pens", "slow", True)
    assert found["probabilities"][0]["probability"] == near(wanted.p_first)
    details = reply["usage"]["output_tokens_details"]
    assert reply["usage"]["output_tokens"] == details["reasoning_tokens"] == wanted.tokens_generated > 0


def test_the_order_of_options_and_of_questions_does_not_matter(client):
    values = [f"{n} pens" for n in (13, 14, 15, 16, 17)]
    questions = [choice(values), choice(["Mia", "Tom"], "Who?"), {"type": "predicate", "instructions": "Is it much?"}]
    plain = decide(client, questions, x_judge="never").json()["answers"]
    mixed_values = random.Random(3).sample(values, 5)
    mixed = decide(client, [questions[2], choice(mixed_values), questions[1]], x_judge="never").json()["answers"]
    by_value = {p["value"]: p["probability"] for p in mixed[1]["probabilities"]}
    assert {p["value"]: near(p["probability"]) for p in plain[0]["probabilities"]} == by_value
    assert mixed[0]["probability"] == near(plain[2]["probability"])
    assert mixed[1]["choice"] == plain[0]["choice"]


def test_true_is_not_the_word_true(client):
    answers = decide(client, [choice(["true", True, False])], x_judge="never").json()["answers"]
    assert [p["value"] for p in answers[0]["probabilities"]] == ["true", True, False]
    assert [type(p["value"]) for p in answers[0]["probabilities"]] == [str, bool, bool]


def test_many_options_cost_one_pass_over_the_text(client):
    few = decide(client, [choice(["15 pens", "16 pens"])], x_judge="never").json()["usage"]["input_tokens"]
    many = decide(client, [choice([f"{n} pens" for n in range(255)])], x_judge="never").json()
    assert len(many["answers"][0]["probabilities"]) == 255
    assert (
        few < many["usage"]["input_tokens"] < 255 * few / 3
    )  # each behind the text's own tokens would be 255 * few / 2


def test_tokens_are_the_same_however_often_it_was_asked(client):
    first, second = (decide(client, [choice(["15 pens", "16 pens"])], x_judge="never").json() for _ in range(2))
    assert first["usage"]["input_tokens"] == second["usage"]["input_tokens"]


def test_a_question_that_is_too_long_is_refused_alone(client):
    answers = decide(client, [choice(["a " * 3000, "b"], name="long"), choice(["15 pens", "9"])]).json()["answers"]
    assert (answers[0]["type"], answers[0]["name"]) == ("refusal", "long")
    assert "512" in answers[0]["x_error"]
    assert answers[1]["choice"] == "15 pens"


def test_conversations_and_tools_are_text(client):
    talk = [
        {"role": "developer", "content": "Answer."},
        {"role": "user", "content": [{"type": "input_text", "text": STATE}, {"type": "input_json", "data": {"a": 1}}]},
        {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "15"}]},
    ]
    assert decide(client, [choice(["15 pens", "16 pens"], "How many?")], talk).status == 200


BAD_QUESTIONS = [
    ([], "questions", "0 questions"),
    ([{"type": "predicate", "instructions": "q"}] * 401, "questions", "401 questions"),
    ([3], "questions[0]", "a question"),
    ([{"instructions": "q"}], "questions[0].type", "missing"),
    ([{"type": "noul", "instructions": "q"}], "questions[0].type", "predicate, choice or score"),
    ([{"type": "predicate"}], "questions[0].instructions", "missing"),
    ([{"type": "predicate", "instructions": "q", "levels": []}], "questions[0].levels", "unrecognized"),
    ([choice(["a"])], "questions[0].choices", "1 choices, expected 2 to 255"),
    ([choice([str(i) for i in range(256)])], "questions[0].choices", "256 choices"),
    ([choice(["a", None])], "questions[0].choices[1].value", "null"),
    ([choice(["a", ""])], "questions[0].choices[1].value", "expected a string"),
    ([choice(["a", 1])], "questions[0].choices[1].value", "true or false"),
    ([choice(["a", "b", "a"])], "questions[0].choices[2].value", "once"),
    ([choice([True, False, True])], "questions[0].choices[2].value", "once"),
    ([scale(["a"])], "questions[0].levels", "2 to 10"),
    ([scale([str(i) for i in range(11)])], "questions[0].levels", "11"),
    ([scale([True, "b"])], "questions[0].levels[0].label", "a string"),
    ([choice(["a", "b"], name=3)], "questions[0].name", "a string"),
    (None, "questions", "null"),
    ({"a": {}}, "questions", "a list"),
]  # fmt: skip


@pytest.mark.parametrize(("questions", "param", "match"), BAD_QUESTIONS)
def test_bad_questions_name_the_field(client, questions, param, match):
    reply = decide(client, questions)
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (400, param)
    assert match in error["message"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, 400, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input[0].content[0].type"),
        ({"input": [{"role": "user"}]}, 400, "input[0].content"),
        ({"input": [{"type": "reasoning"}]}, 400, "input[0].type"),
        ({"model": None}, 400, "model"),
        ({"model": "gpt-6-luna"}, 404, "model"),
        ({"temperature": 1}, 400, "temperature"),
        ({"x_judge": "maybe"}, 400, "x_judge"),
    ],
)
def test_bad_requests_name_the_field(client, change, status, param):
    body = {"model": "fsrm-tiny", "input": STATE, "questions": [choice(["a", "b"])]} | change
    reply = client.post("/v1/decisions", body)
    assert (reply.status, reply.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("question", "at"),
    [
        ({"type": "choice", "instructions": "q", "criteria": {"a": None}}, ["q", "criteria"]),
        ({"type": "choice", "instructions": "q", "criteria": {str(i): None for i in range(256)}}, ["q", "criteria"]),
        ({"type": "choice", "instructions": "q", "criteria": ["a", "b"]}, ["q", "criteria"]),
        ({"type": "choice", "instructions": "q", "criteria": {"": None, "b": None}}, ["q", "criteria", ""]),
        ({"type": "score", "instructions": "q", "criteria": ["a", None]}, ["q", "criteria", 1]),
        ({"type": "score", "instructions": "q", "criteria": {"0": "a"}}, ["q", "criteria"]),
        ({"type": "noul", "criteria": "yes"}, ["q", "criteria"]),
        ({"type": "noul", "criteria": {"maybe": "x"}}, ["q", "criteria", "maybe"]),
        ({"type": "predicate"}, ["q", "type"]),
        ("why?", ["q"]),
    ],
)
def test_systemone_says_where_in_its_own_form(client, question, at):
    reply = client.post("/v1/systemone", {"state": STATE, "questions": {"q": question}})
    assert reply.status == 422
    (detail,) = reply.json()["detail"]
    assert detail["loc"] == ["body", "questions", *at]
    assert detail["msg"]
    assert detail["type"]


def test_an_option_named_twice_is_not_lost(client):
    text = b'{"state": "s", "questions": {"q": {"type": "choice", "criteria": {"a": null, "a": "x", "b": null}}}}'
    reply = client.post("/v1/systemone", text)
    assert reply.status == 422
    assert "twice" in reply.json()["detail"][0]["msg"]


def test_half_a_character_in_a_name_is_a_bad_request(client):
    reply = decide(client, [{"type": "predicate", "name": "\ud800", "instructions": "ok?"}], "hi")
    assert reply.status == 400
    assert "no Unicode character" in reply.json()["error"]["message"]


def test_many_questions_about_a_long_text_are_refused_before_it_is_read(client):
    questions = [{"type": "predicate", "instructions": f"q{i}?"} for i in range(100)]
    reply = decide(client, questions, "a" * 500_000)
    assert reply.status == 400
    assert "ask fewer questions" in reply.json()["error"]["message"]


def test_a_question_that_only_the_judge_has_no_room_for_keeps_its_fast_answer(client, rm):
    """It costs the other questions nothing either."""
    template = rm.encoder.pointwise_fast
    words = next(n for n in range(400) if len(template("pen " * n + "\n\nWhich?", "15 pens")) > 480)
    questions = [choice(["15 pens", "16 pens"], "Which?"), choice(["15 pens", "16 pens", "17 pens"], "Which?")]
    reply = decide(client, questions, "pen " * words, x_judge="always")
    assert reply.status == 200
    for answer in reply.json()["answers"]:
        assert (answer["x_route"], answer["x_escalated"]) == ("fast", True)
