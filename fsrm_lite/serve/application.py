"""Which path is answered by which shape, and how each API words its errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fsrm_lite.bundle.manifest import MANIFEST_NAME
from fsrm_lite.errors import FsrmError, InputError, MisuseError, printable
from fsrm_lite.serve import chat, decisions, page, rewards
from fsrm_lite.serve.bodies import RequestError, read_json
from fsrm_lite.serve.guards import Access, Guard
from fsrm_lite.serve.metrics import CONTENT_TYPE
from fsrm_lite.serve.service import Service

Shape = Callable[[Service, dict[str, Any]], Awaitable[Any]]

logger = logging.getLogger(__name__)

MAX_HEADER_CHARACTERS = 4000
"""Most characters of errors in a header. Many clients refuse an answer whose headers have more than 8,190 bytes."""

_POSTS: tuple[tuple[Shape, tuple[str, ...]], ...] = (
    (rewards.score, ("/score", "/v1/score")),
    (rewards.rerank, ("/rerank", "/v1/rerank")),
    (rewards.cohere_rerank, ("/v2/rerank",)),
    (rewards.pooling, ("/pooling", "/v1/pooling")),
    (rewards.classify, ("/classify", "/v1/classify")),
    (chat.chat_completion, ("/v1/chat/completions", "/chat/completions")),
    (decisions.decisions, ("/v1/decisions",)),
    (decisions.systemone, ("/v1/systemone",)),
    (page.best_of_n, ("/v1/best-of-n",)),
)
"""Each shape and the paths at which clients look for it."""


def make_application(service: Service, allowed: Access) -> ASGIApp:
    """Return the ASGI application. Whoever runs it starts the service before and stops it behind.

    Args:
        service: The model behind its lanes.
        allowed: Who may ask.
    """
    routes = [Route(path, _endpoint(service, shape), methods=["POST"]) for shape, paths in _POSTS for path in paths]
    routes += [
        Route("/", lambda request: HTMLResponse(page.html(), headers=page.headers())),
        Route("/health", lambda request: JSONResponse({"status": "ok"})),
        Route("/ready", lambda request: _ready(service)),
        Route("/metrics", lambda request: Response(service.metrics.text(), media_type=CONTENT_TYPE)),
        Route("/v1/models", lambda request: JSONResponse(_models(service))),
        Route("/v1/bundle", lambda request: JSONResponse(page.about(service))),
    ]
    paths = {route.path: route.methods or set() for route in routes}

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for paths that there are not, and for methods that a path does not take."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        methods = sorted(paths.get(path, ()))
        if methods:
            error = RequestError(f"{path} takes {', '.join(methods)}, not {scope['method']}", status=405, code="method")
        else:
            error = RequestError(f"no such address {path[:200]}; there are {', '.join(paths)}", status=404, code="path")
        response = error_response(path, error)
        if methods:
            response.headers["allow"] = ", ".join(methods)
        await response(scope, receive, send)

    by_path = {route.path: route for route in routes}

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        found = by_path.get(scope["path"]) if scope["type"] == "http" else None
        fits = found is not None and scope["method"] in (found.methods or ())
        await (found.handle if found is not None and fits else elsewhere)(scope, receive, send)

    return Guard(
        route,
        allowed=allowed,
        metrics=service.metrics,
        paths=paths,
        word=error_response,
        idle_seconds=service.limits.idle_seconds,
    )


def _endpoint(service: Service, shape: Shape) -> Callable[[Request], Awaitable[Response]]:
    """Return the function that answers requests by a shape."""

    async def answer(request: Request) -> Response:
        path, limits = request.url.path, service.limits
        body: dict[str, Any] = {}
        try:
            body = await read_json(request, max_bytes=limits.body_bytes, timeout_s=limits.body_seconds)
            reply = await _while_connected(request, shape(service, body))
            return reply if isinstance(reply, Response) else _rendered(reply)
        except UnicodeEncodeError as error:  # half a character, in a name that the reply repeats
            half = f"the request holds {error.object[error.start]!r}, which is no Unicode character"
            return error_response(path, RequestError(half), tei="texts" in body)
        except RequestError as error:
            return error_response(path, error, tei="texts" in body)
        except ClientDisconnect:
            return error_response(path, _gone())
        except MisuseError as error:  # the model was closed: no fault of the request, though it is an InputError too
            logger.warning("a request could not be answered: %s", error)
            return _failure(path, str(error))
        except InputError as error:
            return error_response(path, RequestError(str(error)), tei="texts" in body)
        except FsrmError as error:
            logger.warning("a request could not be answered: %s", error)
            return _failure(path, str(error))
        except Exception:  # a fault of ours: the client gets an answer, and the log the traceback
            logger.exception("a request could not be answered")
            return _failure(path, "the server failed at this request; its log says more")

    return answer


def _rendered(reply: Any) -> Response:  # noqa: ANN401 - a reply of any shape
    """Return a reply as JSON; the errors of a bare list stand in a header, as many as clients take there."""
    headers = {}
    if isinstance(reply, rewards.Ranking) and reply.errors:
        told, length = [], 0
        for error in reply.errors:
            length += len(json.dumps(error)) + 2
            if length > MAX_HEADER_CHARACTERS:
                break
            told.append(error)
        headers["x-errors"] = json.dumps(told)
        headers["x-errors-count"] = str(len(reply.errors))
    return JSONResponse(reply, headers=headers)


async def _while_connected(request: Request, answering: Awaitable[Any]) -> Any:  # noqa: ANN401 - a reply of any shape
    """Return what a shape returns. If the client goes before that, the shape is cancelled, and its thought stopped."""
    work = asyncio.ensure_future(answering)
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise _gone()
    finally:
        left.cancel()
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work


def _gone() -> RequestError:
    """Return what a request ends with whose client does not wait for the answer, or did not send all of it."""
    return RequestError("the client has gone", status=499, code="client_closed_request")


def error_response(path: str, error: RequestError, *, tei: bool = False) -> JSONResponse:
    """Return an error in the words of the API at a path.

    Args:
        path: The path.
        error: What is wrong with the request.
        tei: Whether the request has the form of Text Embeddings Inference, which shares its path with others.
    """
    status, message = error.status, printable(str(error))  # it may quote what JSON can escape and UTF-8 does not have
    param = None if error.param is None else printable(error.param)
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body: dict[str, Any]
    if path == "/v1/systemone":
        if status == 400:
            status = 422
            at = ["body", *(printable(part) if isinstance(part, str) else part for part in error.at)]
            body = {"detail": [{"loc": at, "msg": message, "type": error.code, "input": None}]}
        else:
            kind = "authentication_error" if status in (401, 403) else error.code
            body = {"detail": {"error_type": kind, "message": message}}
    elif path == "/v2/rerank":
        body = {"message": message}
    elif tei:
        body = {"error": message, "error_type": "Validation" if status < 429 else "Overloaded"}
    else:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        body = {
            "error": {
                "message": message,
                "type": kinds.get(status, "invalid_request_error"),
                "param": param,
                "code": error.code,
            }
        }
    return JSONResponse(body, status_code=status, headers=headers)


def _failure(path: str, message: str) -> JSONResponse:
    """Return an error that is no fault of the request."""
    error = RequestError(message, status=500, code="server_error")
    return error_response(path, error)


def _ready(service: Service) -> JSONResponse:
    state = {"status": "ready" if service.ready else "stopping", "model": service.name}
    return JSONResponse(state, status_code=200 if service.ready else 503)


def _models(service: Service) -> dict[str, Any]:
    """Return the list of models in OpenAI's form and in TypeSafe's, which have no field in common."""
    manifest = Path(service.model.bundle.root) / MANIFEST_NAME
    made = date.fromtimestamp(manifest.stat().st_mtime if manifest.exists() else 0)
    return {
        "object": "list",
        "data": [{"id": service.name, "object": "model", "created": 0, "owned_by": "fsrm-lite"}],
        "models": [
            {
                "name": service.name,
                "description": "a fast/slow reward model, served by fsrm-lite",
                "release_date": made.isoformat(),
            }
        ],
    }
