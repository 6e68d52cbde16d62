"""The shapes over HTTP as pure functions, and the small server that answers them."""

import json
import threading
import urllib.error
import urllib.request

import pytest
from helpers.loops import FakeRM

from fsrm_lite.errors import InputError, ReasonerError
from fsrm_lite.loops.reasoners import CallableReasoner, EndpointReasoner, Sampling, Task
from fsrm_lite.serve import http


def test_score_one_to_many_and_pairs():
    one = http.score(FakeRM(), {"model": "m", "text_1": "q", "text_2": ["+", "++"]})
    assert [(d["index"], d["object"], round(d["score"], 3)) for d in one["data"]] == [
        (0, "score", 0.5),
        (1, "score", 0.731),
    ]
    assert (one["object"], one["model"], one["usage"]["prompt_tokens"]) == ("list", "m", 20)
    pairs = http.score(FakeRM(), {"queries": ["a", "b"], "documents": ["+", "+"]})
    assert [d["score"] for d in pairs["data"]] == [0.5, 0.5]
    assert pairs["model"] == "fake"


def test_rerank_is_sorted_and_cut():
    reply = http.rerank(FakeRM(), {"query": "q", "documents": ["+", {"text": "+++"}, "++"], "top_n": 2})
    assert [(r["index"], r["document"]["text"]) for r in reply["results"]] == [(1, "+++"), (2, "++")]
    assert reply["usage"]["total_tokens"] == 30
    assert len(http.rerank(FakeRM(), {"query": "q", "documents": ["+", "++"], "top_n": 0})["results"]) == 2


def test_tei_rerank_raw_scores_and_texts():
    assert http.tei_rerank(
        FakeRM(), {"query": "q", "texts": ["+", "+++"], "raw_scores": True, "return_text": True}
    ) == [
        {"index": 1, "score": 2.0, "text": "+++"},
        {"index": 0, "score": 0.0, "text": "+"},
    ]
    assert http.tei_rerank(FakeRM(), {"query": "q", "texts": ["+"]}) == [{"index": 0, "score": 0.5}]


@pytest.mark.parametrize(
    ("shape", "request_", "match"),
    [
        (http.score, {"text_2": "x"}, "text_1 is missing"),
        (http.score, {"text_1": ["a", "b"], "text_2": ["c"]}, "2 texts and text_2 has 1"),
        (http.score, {"text_1": "a", "text_2": 3}, "text_2 is a int"),
        (http.rerank, {"query": 3, "documents": []}, "query is a int"),
        (http.rerank, {"query": "q", "documents": ["a", None]}, "not text"),
        (http.rerank, {"query": "q", "documents": ["a"], "top_n": -1}, "top_n is -1"),
        (http.tei_rerank, {"query": "q"}, "texts is missing"),
    ],
)
def test_shapes_name_what_is_wrong(shape, request_, match):
    with pytest.raises(InputError, match=match):
        shape(FakeRM(), request_)


@pytest.fixture
def server():
    answers = iter(range(100))
    reasoner = CallableReasoner(lambda question: f"{question} {next(answers)}" if question != "fail" else 1 / 0)
    running = http.make_server(FakeRM(), reasoner=reasoner)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()
    thread.join()


def post(url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_server_answers_every_shape(server):
    assert post(f"{server}/v1/score", {"text_1": "q", "text_2": "+"})[1]["data"][0]["score"] == 0.5
    assert post(f"{server}/rerank", {"query": "q", "documents": ["+", "++"]})[1]["results"][0]["index"] == 1
    assert post(f"{server}/rerank", {"query": "q", "texts": ["+", "++"]})[1][0]["index"] == 1
    assert urllib.request.urlopen(f"{server}/health", timeout=20).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "match"),
    [
        ("/score", b"{", 400, "not JSON"),
        ("/score", [1], 400, "expected an object"),
        ("/score", {"text_1": "q", "text_2": ""}, 400, "empty"),
        ("/nowhere", {}, 404, "no such address"),
        ("/v1/chat/completions", {"messages": []}, 400, "no message of the user"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "q"}], "n": "two"},
            400,
            "expected a whole number",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "fail"}]}, 500, "ZeroDivisionError"),
    ],
)
def test_server_errors_are_json_with_a_reason(server, path, body, status, match):
    code, reply = post(server + path, body)
    assert code == status
    assert match in reply["error"]["message"]


def test_server_and_endpoint_reasoner_meet(server):
    reasoner = EndpointReasoner(f"{server}/v1", timeout_s=20)
    groups = reasoner.propose([Task("a"), Task("b", ("b 0",))], Sampling(n=2))
    assert [[p.text for p in group] for group in groups] == [["a 0", "a 1"], ["b 2", "b 3"]]
    assert groups[0][0].tokens_generated == 2


def test_endpoint_reasoner_gives_up_on_a_server_error(server):
    with pytest.raises(ReasonerError, match="failed after 2 tries"):
        EndpointReasoner(f"{server}/v1", timeout_s=20, retries=1).propose([Task("fail")], Sampling())
