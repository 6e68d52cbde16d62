"""Every shape answers whatever a body may hold, as its API words answers, and never with a fault of the server."""

import json
import logging
import random
import socket
import time

import pytest
from helpers.hostile import changed_anywhere

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
BODIES = {
    "/score": {"text_1": "q", "text_2": ["5", "6"], "x_votes": 1, "x_deadline": 5.0},
    "/v1/pooling": {"data_1": "q", "data_2": ["5"], "model": "fsrm-tiny"},
    "/classify": {"input": [{"prompt": "q", "response": "5"}]},
    "/rerank": {"query": "q", "documents": ["5", {"text": "6"}], "top_n": 1, "x_judge": "never"},
    "/v1/rerank": {"query": "q", "texts": ["5"], "raw_scores": True, "return_text": True},
    "/v2/rerank": {"model": "default", "query": "q", "documents": ["5"], "top_n": 1, "max_tokens_per_doc": 9},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2, "temperature": 0, "n": 1, "seed": 1, "stop": ["."]},
    "/v1/decisions": {
        "model": "default",
        "input": MESSAGES,
        "questions": [
            {"type": "choice", "instructions": "Which?", "choices": [{"value": "1"}, {"value": "2"}]},
            {"type": "score", "instructions": "How?", "levels": [{"label": "a"}, {"label": "b"}]},
        ],
        "x_judge": "never",
    },
    "/v1/systemone": {
        "state": {"prompt": "q", "response": "5"},
        "questions": {"good": {"type": "noul", "instructions": "Is it good?"}},
        "x_judge": "never",
    },
    "/v1/best-of-n": {"prompt": "q", "responses": ["5", "6"], "strategy": "fast", "x_judge": "never"},
}


@pytest.mark.parametrize("path", BODIES)
def test_any_part_of_a_body_exchanged_is_used_or_named_in_json(client, path, caplog):
    bodies = list(changed_anywhere(BODIES[path]))
    if len(bodies) > 250:
        bodies = random.Random(0).sample(bodies, 250)
    for body in bodies:
        # A number beyond every float is written as a client could write it.
        data = json.dumps(body).replace("Infinity", "1e999").encode()
        reply = client.post(path, data)
        assert reply.status < 500, (data, reply.data)
        told = json.loads(reply.data.decode("utf-8"))
        assert reply.status == 200 or told.keys() & {"error", "message", "detail"}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_client_that_goes_while_it_sends_is_no_fault_of_the_server(client, caplog):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        head = (
            "POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        connection.sendall(head.encode())
    until = time.monotonic() + 20
    while 'path="/rerank",status="499"' not in client.get("/metrics").data.decode():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_two_hosts_are_refused(client):
    for first, second in (("localhost", "elsewhere.example"), ("elsewhere.example", "localhost")):
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {first}\r\nHost: {second}\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 400")
