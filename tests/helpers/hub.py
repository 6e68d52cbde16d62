"""A small server that speaks enough of the hub's protocol for the real client: resolve, ranges, errors, uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Serves ``folder`` as org/name at one commit.

    Attributes:
        requests: (method, file, Range header) of every request, in order.
        cut_after: Drop the connection after so many bytes of a file's first download; by file name.
        uploaded: Files of the commits that were taken, by path.
        tokens: If not empty, requests without one of these bearer tokens are refused as for a private repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: dict[str, int] = {}
        self.tokens: set[str] = set()
        self.uploaded: dict[str, bytes] = {}
        self.commit = COMMIT
        self.url = ""

    def files_asked(self, method: str = "GET") -> list[str]:
        # The client also asks, once a day, for a list that is no file of a repository.
        return [name for verb, name, _ in self.requests if verb == method and name]


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._serve(body=False)

        def do_GET(self) -> None:
            self._serve(body=True)

        def do_POST(self) -> None:
            """Create a repository, choose how files are uploaded (inside the commit), take the commit."""
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length) if length else b"".join(self._chunks())
            hub.requests.append((self.command, self.path, None))
            if self.headers.get("Authorization") not in {f"Bearer {token}" for token in hub.tokens}:
                return self._refuse(403, "Forbidden")
            if self.path.endswith("/preupload/main"):
                files = json.loads(content)["files"]
                return self._answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            if self.path.endswith("/commit/main"):
                for line in content.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.uploaded[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                return self._answer(
                    {
                        "commitUrl": f"{hub.url}/org/name/commit/{hub.commit}",
                        "commitOid": hub.commit,
                        "pullRequestUrl": None,
                    }
                )
            return self._answer({"url": f"{hub.url}/org/name", "name": "org/name", "id": "org/name"})

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _answer(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _serve(self, *, body: bool) -> None:
            repo, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            wanted = self.headers.get("Range")
            hub.requests.append((self.command, name, wanted))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repo != "org/name" or (hub.tokens and token not in hub.tokens):
                return self._refuse(401, "RepoNotFound")
            if revision not in ("main", hub.commit):
                return self._refuse(404, "RevisionNotFound")
            if not (hub.folder / name).is_file():
                return self._refuse(404, "EntryNotFound")
            return self._send(name, (hub.folder / name).read_bytes(), wanted, body=body)

        def _send(self, name: str, content: bytes, wanted: str | None, *, body: bool) -> None:
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if not body:
                return
            cut = hub.cut_after.pop(name, None)
            self.wfile.write(content[start : None if cut is None else start + cut])
            self.wfile.flush()
            if cut is not None:
                self.close_connection = True
                self.connection.shutdown(2)

    return Handler


@contextmanager
def serve(folder: Path):
    hub = FakeHub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
