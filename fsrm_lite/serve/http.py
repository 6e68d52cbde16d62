"""Answers requests in the form of known HTTP services, so that their clients can use a reward model.

The services are vLLM's ``/score`` and ``/rerank``, the ``/rerank`` of TEI (Text Embeddings Inference), and OpenAI's
``/v1/chat/completions``. For each there is a function that takes the JSON of a request and returns the JSON of the
reply; any web framework can call it. ``make_server`` calls them from the standard library's server. That server has no
authentication and no TLS, and is meant for clients on the same machine.
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
    """Answer a request to vLLM's ``/score``.

    Args:
        model: The reward model.
        request: ``text_1`` (or ``queries``) holds the prompts, ``text_2`` (or ``documents``) the responses. A single
            prompt is scored with each response; otherwise both lists must be equally long.

    Returns:
        The reply: a fast score in [0, 1] per response, in order, and the tokens read.

    Raises:
        InputError: If the request is malformed.
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
    """Answer a request to vLLM's ``/rerank``, whose form Jina and Cohere share.

    Args:
        model: The reward model.
        request: ``query`` is the prompt, ``documents`` are the responses, ``top_n`` is how many to return (missing or 0
            for all).

    Returns:
        The reply: the responses with their fast scores, best first, and the tokens read.

    Raises:
        InputError: If the request is malformed.
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
    """Answer a request to the ``/rerank`` of Text Embeddings Inference.

    Args:
        model: The reward model.
        request: ``query`` is the prompt, ``texts`` are the responses. ``raw_scores`` asks for log-odds instead of
            scores in [0, 1], ``return_text`` for the texts.

    Returns:
        The reply: positions of the responses and their fast scores, best first.

    Raises:
        InputError: If the request is malformed.
    """
    query, texts = _text(request, "query"), _texts(request, "texts")
    scores = model.score_many([(query, t) for t in texts], judge="never")
    field = "logit" if request.get("raw_scores") else "score"
    return [
        {"index": i, "score": getattr(scores[i], field)} | ({"text": texts[i]} if request.get("return_text") else {})
        for i in best_first(scores)
    ]


def chat_completion(reasoner: Reasoner, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request to OpenAI's ``/v1/chat/completions`` with a reasoner, such as a bundle that can solve problems.

    Args:
        reasoner: Writes the answers; see ``fsrm_lite.loops.reasoners``.
        request: In ``messages``, the first message of the user is the question, and the assistant's messages are
            answers that were rejected. The fields of ``fsrm_lite.loops.reasoners.Sampling`` are taken over; others are
            ignored.

    Returns:
        The reply: one choice per answer. Prompt tokens are given as 0, because a reasoner does not report them.

    Raises:
        InputError: If the request is malformed.
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
    """Return a server that is bound to its port but not yet running.

    Args:
        model: Scores the responses; its fast path is safe to call from the server's threads.
        reasoner: Answers ``/v1/chat/completions``; without one the server replies 404 there.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Returns:
        The server. ``serve_forever()`` runs it, and ``server_port`` is its port.
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
    """Takes JSON and replies JSON. A path may start with ``/v1`` or ``/v2``, which makes no difference."""

    table: dict[str, Callable[[dict[str, Any]], Any]]
    timeout = 60  # seconds; a client that sends nothing for so long is disconnected, which frees its thread

    def do_GET(self) -> None:
        """Answer ``/health`` with status 200."""
        self._reply(200, {"status": "ok"}) if self.path == "/health" else self._reply(
            404, {"error": {"message": f"no such address {self.path}"}}
        )

    def do_POST(self) -> None:
        """Answer a request by the function for its path: 404 without one, 400 for bad input, 500 if the model fails."""
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
        """Return the JSON object in the request's body; refuse any other body."""
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
    """Return the texts under the first of the names that the request has.

    They may be one string, a list of strings, or a list of ``{"text": ...}`` objects, which rerankers allow too.
    """
    value = next((request[name] for name in names if name in request), None)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise InputError(
            f"{names[0]} is {'missing' if value is None else 'a ' + type(value).__name__}, "
            "expected a string or a list of strings"
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
