"""Binds a port and runs the application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fsrm_lite.errors import InputError, missing_extra

try:
    import httptools  # noqa: F401 - uvicorn needs it for the protocol below
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
    raise missing_extra(error.name or "uvicorn", "serve", error) from error

from fsrm_lite.serve.application import make_application
from fsrm_lite.serve.calibration import read_calibration
from fsrm_lite.serve.guards import LOOPBACK, Access
from fsrm_lite.serve.service import Limits, Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from fsrm_lite.loops.reasoners import Reasoner
    from fsrm_lite.scorer import FastSlowRM
    from fsrm_lite.types import JudgePolicy

MAX_HEADER_BYTES = 64 * 1024

logger = logging.getLogger(__name__)


class Server:
    """A server that is bound to its port. ``serve_forever`` runs it, in any thread.

    Attributes:
        server_port: The port.
        service: The model behind its lanes.
    """

    def __init__(self, service: Service, allowed: Access, host: str, port: int) -> None:
        """Bind the port.

        Args:
            service: The model behind its lanes.
            allowed: Who may ask.
            host: Address to listen on.
            port: Port to listen on; 0 takes a free one.

        Raises:
            OSError: If the address cannot be had.
        """
        self.service = service
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only for sockets that name their protocol, which this one does not;
        # without it the body of an answer waits some 40 ms for the client to confirm the headers.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server_port: int = self._socket.getsockname()[1]
        limits = service.limits
        config = uvicorn.Config(
            make_application(service, allowed),
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=round(limits.idle_seconds),
            timeout_graceful_shutdown=round(limits.stop_seconds),
        )
        self._server = _Uvicorn(config, service)
        self._ended = threading.Event()
        self._ended.set()

    def serve_forever(self) -> None:
        """Answer requests until ``shutdown`` is called, or SIGINT or SIGTERM comes (in the main thread).

        What was taken is finished before this returns.
        """
        self._ended.clear()
        self.service.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.service.stop()
            self._ended.set()

    def shutdown(self) -> None:
        """Stop taking requests, and wait until those that were taken are finished."""
        self._server.should_exit = True
        self._ended.wait()

    def server_close(self) -> None:
        """Free the port. Safe to repeat."""
        self._socket.close()


def make_server(
    model: FastSlowRM,
    *,
    reasoner: Reasoner | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | None = None,
    names: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    origins: Sequence[str] = (),
    judge: JudgePolicy = "auto",
    limits: Limits | None = None,
    calibration: Path | None = None,
) -> Server:
    """Return a server that is bound to its port but not yet running.

    Args:
        model: The reward model. It stays open when the server ends.
        reasoner: Answers ``/v1/chat/completions``; without one the server replies 404 there.
        host: Address to listen on. Anything but a loopback address can be reached by other machines.
        port: Port to listen on; 0 takes a free one.
        key: The bearer key that requests have to bring; None for none.
        names: Further names under which requests may ask for the model; ``"*"`` for any name.
        hosts: Names that the ``Host`` header may give; None for those of the loopback address, or for any name if the
            server listens on another one.
        origins: Origins of web pages that may ask, as ``https://example.org``.
        judge: When to think, in shapes that do not promise scores at once.
        limits: What the server takes.
        calibration: Labelled items that ``fsrm-lite calibrate --record`` wrote. The page then shows what they say about
            the gate, and replies to typed questions have ``x_risk``, a bound on the share of wrong fast decisions.

    Returns:
        The server. ``serve_forever()`` runs it, and ``server_port`` is its port.

    Raises:
        InputError: If the key is empty.
        DataFormatError: If the labelled items cannot be read.
        OSError: If the address cannot be had.
    """
    if key is not None and not key.strip():
        raise InputError("the key is empty; expected some text, or no key at all")
    if hosts is None:
        hosts = LOOPBACK if host in LOOPBACK else ()
    known = None if calibration is None else read_calibration(calibration, model.gate.spec)
    service = Service(model, reasoner=reasoner, names=names, limits=limits, judge=judge, calibration=known)
    allowed = Access(key, tuple(name.lower() for name in hosts), tuple(origins))
    return Server(service, allowed, host, port)


def make_asgi(
    model: FastSlowRM,
    *,
    reasoner: Reasoner | None = None,
    key: str | None = None,
    names: Sequence[str] = (),
    hosts: Sequence[str] = (),
    judge: JudgePolicy = "auto",
    limits: Limits | None = None,
) -> ASGIApp:
    """Return the application for a server of yours, such as a Ray Serve deployment. It is at work from now on.

    The arguments are those of ``make_server``, but that any ``Host`` is taken unless ``hosts`` names some: whoever runs
    the application knows how it is reached.
    """
    service = Service(model, reasoner=reasoner, names=names, limits=limits, judge=judge)
    service.start()
    return make_application(service, Access(key, tuple(name.lower() for name in hosts)))


class _Uvicorn(uvicorn.Server):
    """A uvicorn server that ends on a signal without raising it again, since what was taken is finished then."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the server runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.signal(name, self.handle_exit) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. A second signal does not wait for what runs."""
        self._service.ready = False
        self.force_exit = self.should_exit
        self.should_exit = True


class _Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, with limits on the time and size of a request's head, and errors in JSON."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give a new client as long as an idle one to send the head of a request."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, which may not grow for ever."""
        if self._timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the head of the request is longer than {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        """Begin to count the bytes and the seconds of a head."""
        super().on_message_begin()
        if self._timer is None:
            self._head_bytes = 0
            self._timer = self.loop.call_later(self.timeout_keep_alive, self._too_slow)

    def on_headers_complete(self) -> None:
        """Stop counting: the body has limits of its own."""
        self._unset_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close the connection."""
        body = json.dumps(
            {"error": {"message": msg, "type": "invalid_request_error", "param": None, "code": "invalid_http"}}
        ).encode()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
