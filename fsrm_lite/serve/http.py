"""HTTP shapes: vLLM's ``/score`` and ``/rerank``, TEI's ``/rerank``, OpenAI's ``/v1/chat/completions``, and a tiny server.

The shapes are pure functions from a request's JSON to a response's JSON, to be put behind any web framework. The server
is the standard library's, meant for a loopback address: no authentication, no TLS.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from fsrm_lite.errors import FsrmError, InputError
from fsrm_lite.loops.reasoners import Reasoner, Sampling, Task
from fsrm_lite.ranking.order import best_first
from fsrm_lite.types import Score

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM

MAX_BODY_BYTES = 16 * 2**20

logger = logging.getLogger(__name__)


def score(model: FastSlowRM, request: dict[str, Any]) -> dict[str, Any]:
    """Answer vLLM's ``/score``: ``text_1`` (or ``queries``) against ``text_2`` (or ``documents``).

    One text on the left is scored with each on the right; otherwise the two lists must be equally long.

    Raises:
        InputError: On a malformed request.
    """
    left = _texts(request, "text_1", "queries")
    right = _texts(request, "text_2", "documents")
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise InputError(f"text_1 has {len(left)} texts and text_2 has {len(right)}; expected one, or equal numbers")
    scores = model.score_many(list(zip(left, right, strict=True)), judge="never")
    data = [{"index": i, "object": "score", "score": s.score} for i, s in enumerate(scores)]
    return _envelope("score", request, model) | {
        "object": "list",
        "created": int(time.time()),
        "data": data,
        "usage": _usage(scores),
    }


def rerank(model: FastSlowRM, request: dict[str, Any]) -> dict[str, Any]:
    """Answer vLLM's (and Jina's, and Cohere's) ``/rerank``: ``query``, ``documents``, ``top_n``. Best first.

    Raises:
        InputError: On a malformed request.
    """
    query, documents = _text(request, "query"), _texts(request, "documents")
    top_n = request.get("top_n") or len(documents)  # vLLM's default, 0, means all
    if not isinstance(top_n, int) or top_n < 0:
        raise InputError(f"top_n is {top_n!r}, expected a whole number of at least 0")
    scores = model.score_many([(query, d) for d in documents], judge="never")
    results = [
        {"index": i, "document": {"text": documents[i]}, "relevance_score": scores[i].score}
        for i in best_first(scores)[:top_n]
    ]
    return _envelope("rerank", request, model) | {"results": results, "usage": _usage(scores)}


def tei_rerank(model: FastSlowRM, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer Text Embeddings Inference's ``/rerank``: ``query``, ``texts``, ``raw_scores``, ``return_text``. Best first.

    ``raw_scores`` gives log-odds instead of scores in [0, 1].

    Raises:
        InputError: On a malformed request.
    """
    query, texts = _text(request, "query"), _texts(request, "texts")
    scores = model.score_many([(query, t) for t in texts], judge="never")
    field = "logit" if request.get("raw_scores") else "score"
    return [
        {"index": i, "score": getattr(scores[i], field)} | ({"text": texts[i]} if request.get("return_text") else {})
        for i in best_first(scores)
    ]


def chat_completion(reasoner: Reasoner, request: dict[str, Any]) -> dict[str, Any]:
    """Answer OpenAI's ``/v1/chat/completions`` with a reasoner, such as a bundle's own *solve* ability.

    The last user message is the question; the assistant's earlier messages are what was rejected.

    Raises:
        InputError: On a malformed request.
        ReasonerError: If the reasoner fails.
    """
    messages = request.get("messages")
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
    ):
        raise InputError("messages is missing or not a list of objects with a text content")
    questions = [m["content"] for m in messages if m.get("role") == "user"]
    if not questions:
        raise InputError("messages holds no message of the user")
    rejected = tuple(m["content"] for m in messages if m.get("role") == "assistant")
    sampling = Sampling(**{key: request[key] for key in Sampling.__dataclass_fields__ if request.get(key) is not None})
    proposals = reasoner.propose([Task(questions[0], rejected)], sampling)[0]
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": p.text},
            "finish_reason": "stop" if p.tokens_generated < sampling.max_tokens else "length",
        }
        for i, p in enumerate(proposals)
    ]
    written = sum(p.tokens_generated for p in proposals)
    usage = {"prompt_tokens": 0, "completion_tokens": written, "total_tokens": written}
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
    return head | {"model": request.get("model") or "fsrm-lite", "choices": choices, "usage": usage}


def make_server(
    model: FastSlowRM, *, reasoner: Reasoner | None = None, host: str = "127.0.0.1", port: int = 0
) -> ThreadingHTTPServer:
    """Return a server that is bound but not yet running; ``serve_forever()`` runs it, ``server_port`` tells its port.

    Args:
        model: Scores; its fast path is safe to call from the server's threads.
        reasoner: Answers ``/v1/chat/completions``; without one that address is not found.
        host: Address to listen on.
        port: 0 takes a free one.
    """
    routes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "/score": lambda request: score(model, request),
        "/rerank": lambda request: tei_rerank(model, request) if "texts" in request else rerank(model, request),
    }
    if reasoner is not None:
        routes["/chat/completions"] = lambda request: chat_completion(reasoner, request)

    class Handler(_Handler):
        table = routes

    return ThreadingHTTPServer((host, port), Handler)


class _Handler(BaseHTTPRequestHandler):
    """JSON in, JSON out; ``/v1`` and ``/v2`` before an address make no difference."""

    table: dict[str, Callable[[dict[str, Any]], Any]]
    timeout = 60  # seconds without a byte, after which a stuck client loses its thread

    def do_GET(self) -> None:
        """Answer a health check."""
        self._reply(200, {"status": "ok"}) if self.path == "/health" else self._reply(
            404, {"error": {"message": f"no such address {self.path}"}}
        )

    def do_POST(self) -> None:
        """Answer one of the shapes."""
        route = self.table.get("/" + self.path.removeprefix("/v1").removeprefix("/v2").strip("/"))
        if route is None:
            self._reply(404, {"error": {"message": f"no such address {self.path}; there are {', '.join(self.table)}"}})
            return
        try:
            self._reply(200, route(self._body()))
        except InputError as error:
            self._reply(400, {"error": {"message": str(error)}})
        except FsrmError as error:
            self._reply(500, {"error": {"message": str(error)}})

    def log_message(self, format: str, *args: object) -> None:
        """Log instead of writing to standard error."""
        logger.debug(format, *args)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise InputError(f"Content-Length is {length!r}, expected a number up to {MAX_BODY_BYTES}")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise InputError(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise InputError(f"the body is a {type(body).__name__}, expected an object")
        return body

    def _reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise InputError(f"{name} is {'missing' if value is None else 'a ' + type(value).__name__}, expected a string")
    return value


def _texts(request: dict[str, Any], *names: str) -> list[str]:
    """A string or a list of strings (or of ``{"text": ...}``, as rerankers allow) under the first name that is there."""
    value = next((request[name] for name in names if name in request), None)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise InputError(
            f"{names[0]} is {'missing' if value is None else 'a ' + type(value).__name__}, expected a string or a list of strings"
        )
    texts = [t for v in values if isinstance(t := v.get("text") if isinstance(v, dict) else v, str)]
    if len(texts) != len(values):
        raise InputError(f"{names[0]} holds something that is not text")
    return texts


def _envelope(kind: str, request: dict[str, Any], model: FastSlowRM) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "model": request.get("model") or model.bundle.manifest.name}


def _usage(scores: list[Score]) -> dict[str, int]:
    read = sum(s.tokens_read for s in scores)
    return {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
