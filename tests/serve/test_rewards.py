"""The shapes that score and rank, over HTTP, with the embedded model's own scores as the reference."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.gate import sigmoid

TOLERANCE = 5e-3  # int8: what is read together changes the last bits
DOCUMENTS = ["15 pens", "16 pens", "7 + 8 = 15. The answer is 15 pens."]


def near(value):
    return pytest.approx(value, abs=TOLERANCE)


@pytest.fixture
def scores(rm, question):
    return [rm.score(question, document, judge="never").score for document in DOCUMENTS]


def test_score_one_to_many_and_pairs(client, question, scores):
    one = client.post("/score", {"text_1": question, "text_2": DOCUMENTS}).json()
    assert [(d["index"], d["object"], d["score"]) for d in one["data"]] == [
        (i, "score", near(s)) for i, s in enumerate(scores)
    ]
    assert (one["object"], one["model"]) == ("list", "fsrm-tiny")
    assert one["usage"]["prompt_tokens"] == one["usage"]["total_tokens"] > 0
    pairs = client.post("/v1/score", {"queries": [question] * 2, "documents": DOCUMENTS[:2]}).json()
    assert [d["score"] for d in pairs["data"]] == [near(s) for s in scores[:2]]
    assert client.post("/score", {"text_1": question, "text_2": DOCUMENTS[0]}).json()["data"][0]["score"] == near(
        scores[0]
    )


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_rerank_is_sorted_and_cut(client, question, scores, path):
    best = sorted(range(3), key=lambda i: -scores[i])
    reply = client.post(path, {"query": question, "documents": ["15 pens", {"text": "16 pens"}, DOCUMENTS[2]]}).json()
    assert [r["index"] for r in reply["results"]] == best
    assert [r["document"]["text"] for r in reply["results"]] == [DOCUMENTS[i] for i in best]
    assert [r["relevance_score"] for r in reply["results"]] == [near(scores[i]) for i in best]
    cut = client.post(path, {"query": question, "documents": DOCUMENTS, "top_n": 2}).json()
    assert [r["index"] for r in cut["results"]] == best[:2]
    assert len(client.post(path, {"query": question, "documents": DOCUMENTS, "top_n": 0}).json()["results"]) == 3


def test_tei_rerank_raw_scores_and_texts(client, question, scores):
    reply = client.post(
        "/rerank", {"query": question, "texts": DOCUMENTS, "raw_scores": True, "return_text": True}
    ).json()
    best = sorted(range(3), key=lambda i: -scores[i])
    assert [(r["index"], r["text"]) for r in reply] == [(i, DOCUMENTS[i]) for i in best]
    assert [sigmoid(r["score"]) for r in reply] == [near(scores[i]) for i in best]
    plain = client.post("/rerank", {"query": question, "texts": DOCUMENTS[:1]}).json()
    assert plain == [{"index": 0, "score": near(scores[0])}]


def test_pooling_and_classify_as_a_reward(client, question, rm):
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": "15 pens"}]
    wanted = rm.score(question, "15 pens", judge="never")
    one = client.post("/pooling", {"model": "fsrm-tiny", "messages": talk}).json()
    assert one["data"] == [{"index": 0, "object": "pooling", "data": [pytest.approx(wanted.logit, abs=0.1)]}]
    parts = [
        talk[0],
        {"role": "assistant", "content": [{"type": "text", "text": "15 "}, {"type": "text", "text": "pens"}]},
    ]
    assert client.post("/pooling", {"messages": parts}).json()["data"] == one["data"]
    both = client.post("/classify", {"input": [talk, {"prompt": question, "response": "15 pens"}]}).json()
    assert [entry["probs"] for entry in both["data"]] == [[near(wanted.score)]] * 2
    assert {entry["num_classes"] for entry in both["data"]} == {1}


@pytest.mark.parametrize("bad", ["", "  \n ", "pens " * 2000, "\ud800"], ids=["blank", "white", "long", "surrogate"])
def test_one_bad_document_costs_nobody_else_a_score(client, question, scores, bad):
    documents = [DOCUMENTS[0], bad, DOCUMENTS[1]]
    ranked = client.post("/rerank", {"query": question, "documents": documents}).json()
    best_first = [0, 2] if scores[0] > scores[1] else [2, 0]
    assert [r["index"] for r in ranked["results"]] == best_first
    assert [r["relevance_score"] for r in ranked["results"]] == [near(s) for s in sorted(scores[:2], reverse=True)]
    (error,) = ranked["x_errors"]
    assert error["index"] == 1
    assert error["message"]
    listed = client.post("/score", {"text_1": question, "text_2": documents}).json()["data"]
    assert [entry["score"] for entry in listed] == [near(scores[0]), None, near(scores[1])]
    assert listed[1]["x_error"] == error["message"]
    tei = client.post("/rerank", {"query": question, "texts": documents})
    assert [r["index"] for r in tei.json()] == best_first
    assert json.loads(tei.headers["x-errors"]) == ranked["x_errors"]
    cohere = client.post("/v2/rerank", {"model": "fsrm-tiny", "query": question, "documents": documents}).json()
    assert [r["index"] for r in cohere["results"]] == best_first


def test_many_bad_documents_leave_a_header_that_clients_take(client, question):
    reply = client.post("/rerank", {"query": question, "texts": ["15 pens", *["pens " * 2000] * 200]})
    assert [r["index"] for r in reply.json()] == [0]
    assert reply.headers["x-errors-count"] == "200"
    assert 0 < len(json.loads(reply.headers["x-errors"])) < 200
    assert len(reply.headers["x-errors"]) < 8000


def test_a_document_that_only_the_judge_has_no_room_for_keeps_its_fast_score(client, rm, question):
    """The judge's prompt is longer than the fast one, so a text may fit into the one and not into the other."""
    long = next(
        text
        for n in range(500, 300, -1)
        if _fits(rm.encoder.pointwise_fast, question, text := "pens " * n)
        and not _fits(rm.encoder.pointwise_slow, question, text)
    )
    documents = [DOCUMENTS[0], long, DOCUMENTS[1]]
    reply = client.post("/score", {"text_1": question, "text_2": documents, "x_judge": "always"})
    found = [entry["score"] for entry in reply.json()["data"]]
    slow = [rm.score(question, text, judge="always").score for text in DOCUMENTS[:2]]
    assert found == [near(slow[0]), near(rm.score(question, long, judge="never").score), near(slow[1])]


def _fits(render, question, text):
    try:
        render(question, text)
    except ContextOverflowError:
        return False
    return True


def test_only_bad_documents_are_refused(client, question):
    reply = client.post("/rerank", {"query": question, "documents": ["", " "]})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "documents"


def test_a_thought_is_had_by_asking_for_it(client, question):
    reply = client.post("/rerank", {"query": question, "documents": ["15 pens", "16 pens"], "x_judge": "always"}).json()
    right, wrong = reply["results"]
    assert (right["index"], wrong["index"]) == (0, 1)
    assert right["relevance_score"] > 0.9 > 0.1 > wrong["relevance_score"]
    assert {r["x_route"] for r in reply["results"]} == {"slow"}
    assert reply["usage"]["completion_tokens"] == sum(r["x_tokens_generated"] for r in reply["results"]) > 0
    fast = client.post("/rerank", {"query": question, "documents": ["15 pens"]}).json()["results"][0]
    assert "x_route" not in fast


def test_a_deadline_cuts_the_thought_and_says_so(client, question):
    body = {"query": question, "documents": ["15 pens"], "x_judge": "always", "x_deadline": 0}
    (entry,) = client.post("/rerank", body).json()["results"]
    assert entry["x_complete"] is False
    assert entry["x_route"] == "fast"


@pytest.mark.parametrize(
    ("path", "body", "param", "match"),
    [
        ("/score", {"text_2": "x"}, "text_1", "text_1 is missing"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "2 texts and text_2 has 1"),
        ("/score", {"text_1": "a", "text_2": 3}, "text_2", "text_2 is 3"),
        ("/rerank", {"query": 3, "documents": ["a"]}, "query", "query is 3, expected a string"),
        ("/rerank", {"query": "", "documents": ["a"]}, "query", "expected some text"),
        ("/rerank", {"query": "q", "documents": []}, "documents", "expected a string or a list"),
        ("/rerank", {"query": "q", "documents": ["a", None]}, "documents[1]", r"documents\[1\] is null"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n", "top_n is -1"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": True}, "top_n", "top_n is True"),
        ("/rerank", {"query": "q", "documents": ["a"], "x_judge": "often"}, "x_judge", "auto, never, always"),
        ("/rerank", {"query": "q", "documents": ["a"], "x_votes": 0}, "x_votes", "from 1 to 256"),
        ("/rerank", {"query": "q", "documents": ["a"], "x_deadline": -1}, "x_deadline", "at least 0"),
        ("/rerank", {"model": "gpt-4", "query": "q", "documents": ["a"]}, "model", "there is no model 'gpt-4'"),
        ("/rerank", {"model": 3, "query": "q", "documents": ["a"]}, "model", "model is 3"),
        ("/pooling", {"input": "a formatted text"}, "input", "/score takes two"),
        ("/pooling", {"messages": [{"role": "user", "content": "q"}]}, "messages", "the last is the assistant's"),
        ("/rerank", {"query": "q", "documents": ["a"] * 1001}, "documents", "at most 1000"),
    ],
)
def test_shapes_name_the_field_that_is_wrong(client, path, body, param, match):
    reply = client.post(path, body)
    assert reply.status == (404 if param == "model" and "gpt" in match else 400)
    error = reply.json()["error"]
    assert error["param"] == param
    assert re.search(match, error["message"])


def test_tei_and_cohere_have_errors_of_their_own(client):
    tei = client.post("/rerank", {"query": 3, "texts": ["a"]})
    assert (tei.status, tei.json()) == (
        400,
        {"error": "query is 3, expected a string", "error_type": "Validation"},
    )
    cohere = client.post("/v2/rerank", {"query": 3, "documents": ["a"]})
    assert (cohere.status, cohere.json()) == (400, {"message": "query is 3, expected a string"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "query",
    "documents",
    "texts",
    "text_1",
    "text_2",
    "messages",
    "input",
    "questions",
    "model",
    "prompt",
    "responses",
    "state",
    "top_n",
    "stream",
)
PATHS = ("/score", "/rerank", "/v2/rerank", "/pooling", "/classify", "/v1/chat/completions", "/v1/decisions")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from((*PATHS, "/v1/systemone", "/v1/best-of-n")), data=st.data())
def test_nothing_that_is_sent_is_the_servers_fault(client, path, data):
    body = data.draw(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6) | json_values)
    reply = client.post(path, body)
    assert reply.status < 500, (path, body, reply.data)
    assert reply.json() is not None
