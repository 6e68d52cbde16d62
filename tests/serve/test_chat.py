"""``/v1/chat/completions``: which question is answered, how it is written, and when it stops."""

import http.client
import json
import socket
import threading
import time

import pytest
from helpers.serving import JSON, serving

from fsrm_lite.errors import InputError, ReasonerError
from fsrm_lite.loops.reasoners import CallableReasoner, EndpointReasoner, Sampling, Task, conversation, task_of

CUPS = "Tom has 5 cups. Tom finds 4 more. How many cups does Tom have now?"
PATH = "/v1/chat/completions"


def chat(client, question, **more):
    return client.post(PATH, {"messages": [{"role": "user", "content": question}], "temperature": 0} | more)


def text_of(reply):
    return reply.json()["choices"][0]["message"]["content"]


def test_the_last_turn_of_the_user_is_the_question(client, question):
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "15 pens"},
        {"role": "user", "content": CUPS},
    ]
    assert text_of(chat(client, "", messages=talk)) == text_of(chat(client, CUPS))
    assert "cups" in text_of(chat(client, CUPS))


def test_parts_and_tool_turns(client, question):
    whole = text_of(chat(client, question))
    assert (
        text_of(chat(client, "", messages=[{"role": "user", "content": [{"type": "text", "text": question}]}])) == whole
    )
    tools = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "15", "tool_call_id": "1"},
    ]
    assert text_of(chat(client, "", messages=tools)) == whole


def test_usage_and_reasons(client, question):
    whole = chat(client, question).json()
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["prompt_tokens"] > 0
    short = chat(client, question, max_completion_tokens=3, max_tokens=90).json()
    assert short["usage"]["completion_tokens"] == 3
    assert short["choices"][0]["finish_reason"] == "length"
    assert len(chat(client, question, n=3, temperature=1.0).json()["choices"]) == 3
    assert chat(client, question, stop=["\n", "."]).json()["choices"][0]["finish_reason"] == "stop"
    assert chat(client, question, x_deadline=0).json()["choices"][0]["finish_reason"] == "length"
    full = chat(client, "pens " * 480 + question).json()  # of the context of 512 tokens one is left for an answer
    assert full["usage"]["completion_tokens"] == 1
    assert full["choices"][0]["finish_reason"] == "length"


def test_stop_ends_the_text_and_is_no_part_of_it(client, question):
    whole = text_of(chat(client, question))
    assert " The" in whole
    cut = chat(client, question, stop=[" The", "zzz"]).json()
    assert cut["choices"][0]["message"]["content"] == whole.split(" The")[0]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", [None, " The", "15."])
def test_a_stream_says_what_the_reply_says(client, question, stop):
    more = {} if stop is None else {"stop": stop}
    whole = chat(client, question, **more).json()
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True} | more
    events = client.events(PATH, body | {"stream_options": {"include_usage": True}})
    assert events[-1] == ("message", "[DONE]")
    chunks = [data for _, data in events[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == text_of(
        chat(client, question, **more)
    )
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert chunks[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1


@pytest.mark.parametrize(
    ("change", "param", "match"),
    [
        ({"messages": []}, "messages", "a list of messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "no message of the user"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "empty"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]", "list of text parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0]",
            "a part of type 'image_url'",
        ),
        ({"messages": [{"content": "q"}]}, "messages[0]", "a string 'role'"),
        ({"messages": [{"role": "user", "content": "pens " * 2000}]}, "messages", "the context holds 512"),
        ({"n": "two"}, "n", "a whole number"),
        ({"n": 0}, "n", "from 1"),
        ({"temperature": -1}, "temperature", "at least 0"),
        ({"top_p": 0}, None, "top_p"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": ""}, "stop", "none empty"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"logprobs": True}, "logprobs", "not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not offered"),
        ({"tool_choice": "required"}, "tool_choice", "not offered"),
        ({"temprature": 1}, "temprature", "unrecognized"),
    ],
)
def test_a_bad_request_names_the_field(client, question, change, param, match):
    reply = chat(client, question, **change)
    error = reply.json()["error"]
    assert reply.status == 400
    assert error["param"] == param
    assert match in error["message"]


def test_what_asks_for_nothing_is_taken(client, question):
    harmless = {"logprobs": False, "presence_penalty": 0, "tools": [], "tool_choice": "auto", "user": "me"}
    assert chat(client, question, **harmless, response_format={"type": "text"}).status == 200


def test_a_client_that_hangs_up_stops_the_thought(rm, question):
    from fsrm_lite import SolveReasoner

    with serving(rm, reasoner=SolveReasoner(rm)) as client:
        slow = client.server.service.slow
        body = {"messages": [{"role": "user", "content": question}], "n": 128, "temperature": 1.5, "max_tokens": 400}
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        connection.request("POST", PATH, json.dumps(body), JSON)
        while not slow.waiting:
            time.sleep(0.01)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        until = time.monotonic() + 20
        while slow.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert not slow.waiting
        assert chat(client, question).status == 200


@pytest.fixture
def endpoint(rm):
    """A server whose reasoner answers with the question and a number, and fails at one question."""
    answers = iter(range(100))
    reasoner = CallableReasoner(lambda question: f"{question} {next(answers)}" if question != "fail" else 1 / 0)
    with serving(rm, reasoner=reasoner, names=["*"]) as running:
        yield running


def test_server_and_endpoint_reasoner_meet(endpoint):
    reasoner = EndpointReasoner(f"{endpoint.url}/v1", timeout_s=20)
    groups = reasoner.propose([Task("a"), Task("b", ("b 0",))], Sampling(n=2))
    assert [[p.text for p in group] for group in groups] == [["a 0", "a 1"], ["b 2", "b 3"]]
    assert groups[0][0].tokens_generated == 2


def test_a_reasoner_that_fails_is_the_servers_fault(endpoint):
    reply = chat(endpoint, "fail")
    assert reply.status == 500
    assert "ZeroDivisionError" in reply.json()["error"]["message"]
    with pytest.raises(ReasonerError, match="failed after 2 tries"):
        EndpointReasoner(f"{endpoint.url}/v1", timeout_s=20, retries=1).propose([Task("fail")], Sampling())
    events = endpoint.events(PATH, {"messages": [{"role": "user", "content": "fail"}], "stream": True})
    assert "ZeroDivisionError" in events[-1][1]["error"]["message"]


def test_without_a_reasoner_there_is_no_chat(rm):
    with serving(rm) as client:
        assert chat(client, "q").status == 404


def test_a_conversation_of_rejected_answers_is_read_back():
    task = Task("q", ("a", "b"))
    assert task_of(conversation(task)) == task
    assert task_of([{"role": "assistant", "content": "a"}, *conversation(Task("q"))]) == Task("q")
    with pytest.raises(InputError, match="no message of the user"):
        task_of([{"role": "assistant", "content": "a"}])


def test_chats_do_not_keep_fast_requests_waiting(rm, question):
    from fsrm_lite import SolveReasoner

    with serving(rm, reasoner=SolveReasoner(rm)) as client:
        body = {"messages": [{"role": "user", "content": question}], "n": 128, "temperature": 1.5, "max_tokens": 400}
        thread = threading.Thread(target=client.post, args=(PATH, body))
        thread.start()
        while not client.server.service.slow.waiting:
            time.sleep(0.01)
        ranked = client.post("/rerank", {"query": question, "documents": ["15 pens"]})
        still_thinking = client.server.service.slow.waiting
        thread.join()
        assert ranked.status == 200
        assert still_thinking
