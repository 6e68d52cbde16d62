"""What stands before every shape: the host's name, the origin, the key, clients that do not read, log and metrics.

A server on the loopback address can be reached by every web page that its user opens. So the ``Host`` header has to
name this machine (else a page could make its own name point here), and a request that a browser sends for another
site's page is refused unless that origin was named. No page can read an answer across origins unless it was named.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.metrics import Metrics, Tokens

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Paths that need no key: the page asks for it, and whoever watches a server's health need not know it."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")

access = logging.getLogger("fsrm_lite.access")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        key: The bearer key; None lets everyone ask.
        hosts: Names that ``Host`` may give, without ports; empty for any.
        origins: Origins of web pages that may ask, as ``https://example.org``.
    """

    key: str | None = None
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()


class Guard:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed: Access,
        metrics: Metrics,
        paths: Collection[str],
        word: Any,  # noqa: ANN401 - a function from path and error to a response
        idle_seconds: float,
    ) -> None:
        """Stand before an application.

        Args:
            app: The application.
            allowed: Who may ask.
            metrics: Counts the requests.
            paths: The paths that there are; requests for others are counted together.
            word: From a path and a ``RequestError`` to the response in the words of that path's API.
            idle_seconds: Longest time that a client may take for the next part of an answer.
        """
        self._app, self._allowed, self._metrics, self._paths = app, allowed, metrics, frozenset(paths)
        self._word, self._idle_seconds = word, idle_seconds
        self._key = None if allowed.key is None else f"Bearer {allowed.key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 499, 0  # 499: the client went before there was an answer
        tokens = self._metrics.begin_request()
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                if origin in self._allowed.origins:
                    message.setdefault("headers", []).extend(_cors(origin))
            else:
                sent += len(message.get("body", b""))
            async with asyncio.timeout(self._idle_seconds):  # a client that does not read is left
                await send(message)

        try:
            if scope["method"] == "OPTIONS" and origin in self._allowed.origins:
                await _preflight(watched)
                return
            try:
                self._check(scope, headers, origin)
            except RequestError as error:
                await self._word(scope["path"], error)(scope, receive, watched)
                return
            await self._app(scope, receive, watched)
        except TimeoutError:
            status = 499
            logger.info("a client did not read its answer for %g s and was left", self._idle_seconds)
            raise
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            if access.isEnabledFor(logging.INFO):
                access.info("%s", _line(scope, status, seconds, sent, tokens))

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        """Raise a ``RequestError`` unless the host, the origin and the key are right."""
        allowed = self._allowed
        if len(headers.getlist("host")) > 1:  # a proxy before this server may go by the other one
            raise RequestError("there are two Host headers, expected one", code="invalid_http")
        host = _name(headers.get("host", ""))
        if allowed.hosts and host not in allowed.hosts:
            raise RequestError(
                f"the Host header names {host[:100]!r}, this server answers to {', '.join(allowed.hosts)}",
                status=403,
                code="host_not_allowed",
            )
        if origin is not None and origin not in allowed.origins and origin.partition("://")[2] != headers.get("host"):
            raise RequestError(
                f"pages of {origin[:100]!r} may not ask here; the server's --allow-origin names those that may",
                status=403,
                code="origin_not_allowed",
            )
        if self._key is None or scope["path"] in OPEN_PATHS:
            return
        given = headers.get("authorization")
        if given is None:
            raise RequestError("there is no bearer key; send Authorization: Bearer KEY", status=401, code="missing_key")
        if not hmac.compare_digest(given.encode("latin-1"), self._key):
            raise RequestError("the bearer key is not the right one", status=401, code="invalid_api_key")


def _name(host: str) -> str:
    """Return the name in a Host header, without the port and the brackets of IPv6, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin")]


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _line(scope: Scope, status: int, seconds: float, sent: int, tokens: Tokens) -> str:
    """Return the line of the access log, a JSON object. It holds nothing of what was asked or answered."""
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "ms": round(seconds * 1e3, 2),
            "bytes": sent,
            "tokens_read": tokens.read,
            "tokens_generated": tokens.generated,
        }
    )
