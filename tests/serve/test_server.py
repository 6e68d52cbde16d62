"""What stands around the shapes: addresses, hosts, origins, keys, limits, slow clients, log, metrics, the end."""

import asyncio
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers.serving import JSON, serving

from fsrm_lite import FastSlowRM, SolveReasoner
from fsrm_lite.errors import InputError
from fsrm_lite.serve.server import MAX_HEADER_BYTES, make_asgi, make_server
from fsrm_lite.serve.service import Limits


def rerank(client, question, **headers):
    return client.post("/rerank", {"query": question, "documents": ["15 pens"]}, **headers)


def exchange(client, data, timeout=20):
    """Send bytes, and return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=timeout) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def test_health_ready_models_and_metrics(client, question):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "model": "fsrm-tiny"}
    models = client.get("/v1/models").json()
    assert [m["id"] for m in models["data"]] == ["fsrm-tiny"]
    assert set(models["models"][0]) == {"name", "description", "release_date"}
    rerank(client, question)
    text = client.get("/metrics").data.decode()
    for name in (
        'fsrm_requests_total{path="/rerank",status="200"}',
        'fsrm_request_seconds_bucket{le="0.001",path="/rerank"}',
        'fsrm_waiting{lane="fast"} 0.0',
        'fsrm_waiting{lane="slow"} 0.0',
        'fsrm_items_total{kind="score"}',
        'fsrm_tokens_total{kind="read"}',
        "fsrm_batch_responses_count",
    ):
        assert name in text


def test_no_connection_waits_for_the_headers_to_be_confirmed(rm):
    server = make_server(rm, port=0)
    try:
        with socket.create_connection(("127.0.0.1", server.server_port)):
            accepted, _ = server._socket.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        server.server_close()


def test_unknown_addresses_and_methods(client):
    nowhere = client.post("/nowhere", {})
    assert (nowhere.status, nowhere.json()["error"]["code"]) == (404, "path")
    assert "/rerank" in nowhere.json()["error"]["message"]
    get = client.get("/rerank")
    assert (get.status, get.headers["allow"]) == (405, "POST")
    text = client.get("/metrics").data.decode()
    assert 'path="other",status="404"' in text
    assert "nowhere" not in text


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: \u00b2",
        "Content-Length: -1",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: x",
        "no",
    ],
)
def test_what_is_not_http_is_a_400_in_json(client, head):
    data = exchange(client, f"POST /rerank HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n{{}}".encode())
    status, _, rest = data.partition(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_a_head_that_never_ends_is_cut_off(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        with pytest.raises(OSError, match=r"[Rr]eset|[Pp]ipe"):
            connection.sendall(b"a" * MAX_HEADER_BYTES * 1000)


def test_content_types(client, question):
    body = json.dumps({"query": question, "documents": ["15 pens"]}).encode()
    for kind, status in (
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ):
        assert client.request("POST", "/rerank", body, {"content-type": kind}).status == status
    assert client.request("POST", "/rerank", body).status == 200  # no type at all


def test_deep_json_is_a_400(client):
    reply = client.post("/rerank", b"[" * 100_000)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "nested_too_deeply")
    assert client.post("/v1/systemone", b"[" * 100_000).status == 422


def test_hosts_and_origins(client, question):
    assert rerank(client, question, host="evil.example").json()["error"]["code"] == "host_not_allowed"
    assert rerank(client, question, host="localhost:1").status == 200
    assert rerank(client, question, host="[::1]:80").status == 200
    assert rerank(client, question, host="[").status == 403
    assert rerank(client, question, origin="https://evil.example").json()["error"]["code"] == "origin_not_allowed"
    assert rerank(client, question, origin="null").status == 403
    assert rerank(client, question, origin="http://[").status == 403
    own = rerank(client, question, origin=client.url)
    assert own.status == 200
    assert "access-control-allow-origin" not in own.headers


def test_a_named_origin_may_ask(rm, question):
    page = "https://app.example"
    with serving(rm, origins=[page], hosts=["a.example", "127.0.0.1"]) as client:
        asked = rerank(client, question, origin=page)
        assert (asked.status, asked.headers["access-control-allow-origin"]) == (200, page)
        before = client.request("OPTIONS", "/rerank", headers={"origin": page})
        assert (before.status, before.headers["access-control-allow-methods"]) == (204, "GET, POST")
        assert rerank(client, question, host="A.example").status == 200
        assert client.request("OPTIONS", "/rerank", headers={"origin": "https://other.example"}).status == 403


def test_the_key(rm, question):
    with serving(rm, key="s3cret") as client:
        assert rerank(client, question).status == 200
        for given in ("Bearer wrong", "s3cret", "Basic s3cret", "Bearer s3cretx", "Bearer é"):
            reply = rerank(client, question, authorization=given.encode("utf-8").decode("latin-1"))
            assert (reply.status, reply.json()["error"]["type"]) == (401, "authentication_error")
        client._headers = {}
        missing = rerank(client, question)
        assert (missing.status, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/metrics").status == 401
        assert [client.get(path).status for path in ("/", "/health", "/ready")] == [200, 200, 200]
    with pytest.raises(InputError, match="the key is empty"):
        make_server(rm, key=" ")


def test_limits(rm, question):
    with serving(rm, limits=Limits(body_bytes=2000, documents=3)) as client:
        long = client.post("/rerank", {"query": question, "documents": ["x" * 3000]})
        assert (long.status, long.json()["error"]["code"]) == (413, "request_too_large")
        chunked = exchange(
            client,
            b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"800\r\n"
            + b"x" * 2048
            + b"\r\n"
            + b"0\r\n\r\n",
        )
        assert b" 413 " in chunked.split(b"\r\n")[0]
        many = client.post("/rerank", {"query": question, "documents": ["a"] * 4})
        assert (many.status, many.json()["error"]["param"]) == (400, "documents")
        assert rerank(client, question).status == 200
    with pytest.raises(InputError, match="body_bytes is 0"):
        Limits(body_bytes=0)


def test_a_full_queue_is_told_by_status_and_header(rm, question):
    with serving(rm, reasoner=SolveReasoner(rm), limits=Limits(thoughts=1)) as client:
        body = {"messages": [{"role": "user", "content": question}], "n": 128, "temperature": 1.5, "max_tokens": 400}
        thread = threading.Thread(target=client.post, args=("/v1/chat/completions", body))
        thread.start()
        while not client.server.service.slow.waiting:
            time.sleep(0.01)
        asked = [
            ("/rerank", {"query": question, "documents": ["15 pens"], "x_judge": "always"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "stream": True}),
            ("/v1/best-of-n", {"prompt": question, "responses": ["15 pens", "16 pens"], "stream": True}),
        ]
        replies = [client.post(path, body) for path, body in asked]
        fast = client.post("/v1/best-of-n", asked[2][1] | {"x_judge": "never"})
        thread.join()
        for busy in replies:
            assert (busy.status, busy.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(busy.headers["retry-after"]) >= 1
        assert fast.status == 200


def test_slow_clients_are_left(rm, question):
    limits = Limits(body_seconds=0.3, idle_seconds=1)
    with serving(rm, limits=limits) as client:
        assert exchange(client, b"POST /rerank HTTP/1.1\r\nHost: loc") == b""  # half a head
        assert exchange(client, b"") == b""  # nothing at all
        half = exchange(
            client,
            b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{",
        )
        assert half.startswith(b"HTTP/1.1 408 ")
        assert rerank(client, question).status == 200


def test_clients_that_do_not_read_are_left_and_the_others_do_not_notice(rm, question):
    limits = Limits(idle_seconds=1)
    with serving(rm, limits=limits) as client:
        body = json.dumps({"query": question, "documents": [{"text": "15 pens " + "x" * 200}] * 300}).encode()
        head = f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        deaf = []
        for _ in range(5):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", client.port))
            connection.sendall(head + body)
            deaf.append(connection)
        assert rerank(client, question).status == 200
        for connection in deaf:
            connection.close()
        assert rerank(client, question).status == 200


@pytest.mark.parametrize(
    ("path", "body", "writes"),
    [
        ("/score", {"text_1": "{q}", "text_2": ["15 pens"]}, False),
        ("/v2/rerank", {"model": "default", "query": "{q}", "documents": ["15 pens"]}, False),
        ("/rerank", {"query": "{q}", "texts": ["15 pens"]}, False),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{q}"}], "stream": True}, True),
        ("/v1/best-of-n", {"prompt": "{q}", "responses": ["1", "2"], "stream": True, "strategy": "knockout"}, True),
        (
            "/v1/decisions",
            {
                "model": "default",
                "input": "{q}",
                "questions": [
                    {"type": "choice", "instructions": "Which?", "choices": [{"value": "1"}, {"value": "2"}]}
                ],
                "x_judge": "always",
            },
            True,
        ),
    ],
)
def test_the_access_log_has_the_tokens_of_every_shape(path, body, writes, rm, question, caplog):
    filled = json.loads(json.dumps(body).replace("{q}", question))
    with (
        serving(rm, reasoner=SolveReasoner(rm)) as client,
        caplog.at_level(logging.INFO, logger="fsrm_lite.access"),
    ):
        before = client.post("/metrics", b"").status  # a line that counts nothing
        reply = client.post(path, filled)
        assert (before, reply.status) == (405, 200), reply.data
        until = time.monotonic() + 10
        while len(caplog.records) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    first, last = (json.loads(record.message) for record in caplog.records[-2:])
    assert (first["tokens_read"], first["tokens_generated"]) == (0, 0)
    assert last["tokens_read"] > 0
    assert (last["tokens_generated"] > 0) == writes


def test_the_access_log_says_what_happened_and_nothing_of_the_texts(client, question, caplog):
    with caplog.at_level(logging.INFO, logger="fsrm_lite.access"):
        rerank(client, question)
        until = time.monotonic() + 10
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.01)
    entry = json.loads(caplog.records[-1].message)
    assert (entry["method"], entry["path"], entry["status"], entry["client"]) == ("POST", "/rerank", 200, "127.0.0.1")
    assert entry["tokens_read"] > 0
    assert entry["ms"] > 0
    assert "pens" not in caplog.text


def test_shutdown_finishes_what_was_taken(rm, question):
    with serving(rm, reasoner=SolveReasoner(rm)) as client:
        body = {"query": question, "documents": ["15 pens", "16 pens"], "x_judge": "always", "x_votes": 40}
        replies = []
        thread = threading.Thread(target=lambda: replies.append(client.post("/rerank", body)))
        thread.start()
        while not client.server.service.slow.waiting:
            time.sleep(0.01)
        client.server.shutdown()
        thread.join()
        assert replies[0].status == 200
        assert {r["x_complete"] for r in replies[0].json()["results"]} == {True}
        with pytest.raises(OSError, match="refused"):
            client.get("/health")


@pytest.fixture
def command():
    """The command in a process of its own: (process, port)."""
    code = "from fsrm_lite.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--threads", "1"], stderr=subprocess.PIPE, text=True
    )
    line = process.stderr.readline()
    yield process, int(line.split(":")[2].split("/")[0]), line
    process.kill()
    process.wait()
    process.stderr.close()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_command_serves_and_stops_gracefully(command, question, name):
    process, port, line = command
    assert line == f"http://127.0.0.1:{port}/ serves fsrm-tiny\n"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"query": question, "documents": ["15 pens", "16 pens"], "x_judge": "always", "x_votes": 20}
    connection.request("POST", "/rerank", json.dumps(body), JSON)
    time.sleep(0.3)
    os.kill(process.pid, getattr(signal, name))
    reply = connection.getresponse()
    assert reply.status == 200
    assert len(json.loads(reply.read())["results"]) == 2
    assert process.wait(20) == 0
    (entry,) = [json.loads(text) for text in process.stderr.read().splitlines()]
    assert (entry["path"], entry["status"]) == ("/rerank", 200)


def test_a_port_that_is_taken_is_one_line(client):
    code = "from fsrm_lite.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", str(client.port)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert "in use" in done.stderr


def test_the_application_works_in_somebody_elses_server(rm, question):
    application = make_asgi(rm, names=["*"])
    body = json.dumps({"model": "any", "query": question, "documents": ["41 pens", "15 pens"]}).encode()
    headers = [(b"host", b"somewhere"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/rerank", "query_string": b"", "headers": headers}
    sent = []

    async def receive():
        if not sent_body:
            sent_body.append(True)
            return {"type": "http.request", "body": body}
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    sent_body = []
    asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == 200
    assert [r["index"] for r in json.loads(sent[1]["body"])["results"]] == [1, 0]


def test_a_closed_model_is_the_servers_fault_and_not_the_requests(question):
    model = FastSlowRM.from_pretrained(threads=1)
    with serving(model) as client:
        model.close()
        reply = rerank(client, question)
        assert (reply.status, reply.json()["error"]["type"]) == (500, "server_error")
        body = {"prompt": question, "responses": ["15 pens", "16 pens"], "stream": True}
        assert dict(client.events("/v1/best-of-n", body))["error"]["kind"] == "server"
