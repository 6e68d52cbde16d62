"""A server on a free loopback port, and plain requests to it."""

import contextlib
import http.client
import json
import threading
from dataclasses import dataclass, field

from fsrm_lite.serve.server import make_server

JSON = {"content-type": "application/json"}


@dataclass
class Reply:
    status: int
    headers: dict
    data: bytes = field(repr=False)

    def json(self):
        return json.loads(self.data)


class Client:
    """Sends requests to one server, each on a connection of its own."""

    def __init__(self, server, key=None):
        self.server, self.port = server, server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def request(self, method, path, body=None, headers=(), timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, self._headers | dict(headers))
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, JSON | headers)

    def events(self, path, body):
        """The server-sent events of a reply: (name, data) each, as they are sent."""
        reply = self.post(path, body)
        assert reply.headers["content-type"].startswith("text/event-stream"), reply
        return events_of(reply.data.decode())


def events_of(text):
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", "message"), json.loads(data) if data != "[DONE]" else data))
    return found


@contextlib.contextmanager
def serving(model, **settings):
    """Run a server in a thread; yields a client."""
    server = make_server(model, **settings)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Client(server, settings.get("key"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)
        assert not thread.is_alive()
