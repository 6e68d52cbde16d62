"""The server under load, on the loopback address.

    python -m benchmarks.serving                   # all parts, with the embedded model
    python -m benchmarks.serving --model BUNDLE    # the overhead alone, in --rounds, with another one

Every figure is a ratio or a count of one run. What is compared takes turns, in rounds, so that a slow minute of the
machine hits both sides. The clients run in this process, the server in another, on the same processors: the clients'
own work is part of what is measured.

1. *throughput*: one client that asks again as soon as it is answered, against 64 of them. ``candidates`` are
   responses to few prompts, each in a request of its own, as a trainer or a best-of-N loop sends them; ``strangers``
   have a prompt of their own each.
2. *malformed*: 10,000 requests, of which 5 % are broken in one of twenty ways.
3. *deaf*: the latency of others beside 200 clients that ask and read nothing of the answers, and beside 200 that read.
4. *thoughts*: the latency of fast requests while the judge thinks.
5. *overhead*: a served ``/rerank`` of 8 documents against the same call of the library; neither thinks.
6. *memory*: the server's resident memory after each of the parts. ``warm`` is behind full batches of both kinds and a
   thought, so that the working memory of each has been taken once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

CLIENTS = 64
DEAF_CLIENTS = 200
MALFORMED_SHARE = 0.05


# --- The server and its clients -----------------------------------------------------------------------------------


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def memory_mib(self) -> float:
        """Resident memory, in MiB."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024  # type: ignore[index]


@contextmanager
def served(model: str | None = None) -> Iterator[Served]:
    """Run ``fsrm-lite serve`` on a free port, with a bundle or the embedded model."""
    code = "from fsrm_lite.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--no-access-log"]
    command += ["--model", model] if model is not None else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield Served(process, int(process.stderr.readline().split(":")[2].split("/")[0]))
        finally:
            process.terminate()


@dataclass
class Tally:
    """What came back: seconds per answer, and how often each status came (0: none, the connection was lost)."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        ordered = sorted(self.seconds)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request_bytes(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Return a request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class Connection:
    """One client's connection, opened again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes) -> int:
        """Send a request and return the status of the answer; 0 if none came."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            if b"connection: close" in head:
                self.close()
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def load(port: int, clients: int, next_request: Callable[[], bytes | None]) -> Tally:
    """Let clients ask, each again as soon as it is answered, until there is no next request."""
    tally = Tally()

    async def client() -> None:
        connection = Connection(port)
        while (data := next_request()) is not None:
            began = perf_counter()
            tally.statuses[await connection.ask(data)] += 1
            tally.seconds.append(perf_counter() - began)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


def for_seconds(seconds: float, make: Callable[[], bytes]) -> Callable[[], bytes | None]:
    """Return a source of requests that dries up after some seconds."""
    until = perf_counter() + seconds
    return lambda: make() if perf_counter() < until else None


# --- What they ask ------------------------------------------------------------------------------------------------

_NAMES = ("Mia", "Tom", "Kim", "Joy", "Fay", "Sam", "Ben", "Eva")
_THINGS = ("pens", "cups", "plums", "books", "coins", "eggs")


def _prompt(rng: random.Random) -> str:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    more = " ".join(f"Then {name} finds {rng.randint(1, 9)}. Then {name} loses {rng.randint(1, 3)}." for _ in range(6))
    return f"{name} has {rng.randint(2, 20)} {thing}. {more} How many {thing} does {name} have now?"


def _score(prompt: str, response: str) -> bytes:
    return request_bytes("/score", json.dumps({"text_1": prompt, "text_2": response}).encode())


def candidates(seed: int, prompts: int = 8) -> Callable[[], bytes]:
    """Return a source of requests: a response each, to one of a few prompts, a group of them at a time."""
    rng = random.Random(seed)
    asked: list[tuple[str, int]] = []

    def make() -> bytes:
        if not asked:
            asked.extend((prompt, n) for prompt in [_prompt(rng) for _ in range(prompts)] for n in range(8))
        prompt, n = asked.pop()
        return _score(prompt, f"The answer is {n + rng.randint(0, 30)}.")

    return make


def strangers(seed: int) -> Callable[[], bytes]:
    """Return a source of requests with a prompt of their own each."""
    rng = random.Random(seed)
    return lambda: _score(_prompt(rng), f"The answer is {rng.randint(0, 40)}.")


def _thinking(seed: int) -> Callable[[], bytes]:
    """Return a source of requests that the judge writes much for."""
    chat = {"messages": [{"role": "user", "content": _prompt(random.Random(seed))}], "n": 16, "temperature": 1.5}
    data = request_bytes("/v1/chat/completions", json.dumps(chat | {"max_tokens": 300}).encode())
    return lambda: data


_BROKEN: tuple[tuple[str, bytes, str], ...] = (
    ("/rerank", b"", "application/json"),
    ("/rerank", b"{", "application/json"),
    ("/rerank", b"[]", "application/json"),
    ("/rerank", b"[" * 5000, "application/json"),
    ("/rerank", b'{"query": "q"}', "application/json"),
    ("/rerank", b'{"query": 3, "documents": ["a"]}', "application/json"),
    ("/rerank", b'{"query": "q", "documents": [null]}', "application/json"),
    ("/rerank", b'{"query": "q", "documents": ["", " "]}', "application/json"),
    ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": -1}', "application/json"),
    ("/rerank", b'{"query": "q", "documents": ["a"], "x_judge": "?"}', "application/json"),
    ("/rerank", b'{"query": "q", "documents": ["a"]}', "text/plain"),
    ("/rerank", b"\xff\xfe\x00", "application/json"),
    ("/score", b'{"text_1": ["a", "b"], "text_2": ["c"]}', "application/json"),
    ("/score", b'{"text_1": "a", "text_2": "%s"}' % (b"pens " * 3000), "application/json"),
    ("/v1/decisions", b'{"model": "fsrm-tiny", "input": "x", "questions": []}', "application/json"),
    ("/v1/decisions", b'{"model": "other", "input": "x", "questions": []}', "application/json"),
    ("/v1/systemone", b'{"state": "x", "questions": {"q": {"type": "?"}}}', "application/json"),
    ("/v1/chat/completions", b'{"messages": []}', "application/json"),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 5}]}', "application/json"),
    ("/nowhere", b"{}", "application/json"),
)


def mixed(seed: int, count: int) -> Callable[[], bytes | None]:
    """Return a source of so many requests, some of which are broken."""
    rng, sound = random.Random(seed), candidates(seed)
    left = iter(range(count))

    def make() -> bytes | None:
        if next(left, None) is None:
            return None
        return request_bytes(*rng.choice(_BROKEN)) if rng.random() < MALFORMED_SHARE else sound()

    return make


# --- What is measured ---------------------------------------------------------------------------------------------


async def throughput(port: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Compare one client with many, for both kinds of requests."""
    found = {}
    for name, source in (("candidates", candidates), ("strangers", strangers)):
        alone, together = Tally(), Tally()
        rates: tuple[list[float], list[float]] = ([], [])
        for k in range(rounds):
            for tally, clients, listed in ((alone, 1, rates[0]), (together, CLIENTS, rates[1])):
                began = perf_counter()
                part = await load(port, clients, for_seconds(seconds, source(k)))
                listed.append(len(part.seconds) / (perf_counter() - began))
                tally.seconds += part.seconds
                tally.statuses += part.statuses
        idle = alone.percentile_ms(0.5)
        found[name] = {
            "requests_per_second_alone": median(rates[0]),
            "requests_per_second_together": median(rates[1]),
            "ratio": median(b / a for a, b in zip(*rates, strict=True)),
            "idle_median_ms": idle,
            "p99_ms": together.percentile_ms(0.99),
            "p99_over_idle_median": together.percentile_ms(0.99) / idle,
            "not_200": sum(together.statuses.values()) - together.statuses[200],
        }
    return found


async def malformed(port: int, count: int) -> dict[str, Any]:
    """Send many requests, some of them broken, and count what comes back."""
    tally = await load(port, CLIENTS, mixed(1, count))
    classes: Counter[str] = Counter()
    for status, n in tally.statuses.items():
        classes[f"{status // 100}xx" if status else "lost"] += n
    return {"requests": count, **classes, "lost": classes["lost"], "5xx": classes["5xx"]}


async def deaf(port: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Compare the latency of four clients beside 200 others that read nothing with that beside 200 that read.

    Each of the others asks for the page eight times at once, 240 KiB in all: more than a connection's buffers hold, so
    that the server has to wait for those that do not read. ``come`` begins when they connect, and has the work of their
    requests in it; ``stay`` begins when nothing of that is left to do, and they are still there.
    """
    sides = {"nobody": Tally(), "reading, come": Tally(), "deaf, come": Tally(), "deaf, stay": Tally()}

    async def measure(side: str, seed: int) -> None:
        sides[side].seconds += (await load(port, 4, for_seconds(seconds, candidates(seed)))).seconds

    for k in range(rounds):
        await measure("nobody", k)
        for reads in (True, False):
            others = [_crowd_socket(port, small=not reads) for _ in range(DEAF_CLIENTS)]
            readers = [asyncio.ensure_future(_read_all(one)) for one in others if reads]
            await measure("reading, come" if reads else "deaf, come", k)
            if not reads:
                await measure("deaf, stay", k)
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            for one in others:
                one.close()
    nobody = sides.pop("nobody")
    return {"clients": DEAF_CLIENTS} | {side: _compared(nobody, tally) for side, tally in sides.items()}


def _crowd_socket(port: int, *, small: bool) -> socket.socket:
    """Return a connection over which the page has been asked for eight times."""
    one = socket.socket()
    if small:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.setblocking(False)
    one.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 8)
    return one


async def _read_all(one: socket.socket) -> None:
    """Read whatever comes."""
    while await asyncio.get_running_loop().sock_recv(one, 1 << 20):
        pass


async def thoughts(port: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Compare the latency of one client with and without thoughts that are being written."""
    quiet, beside = Tally(), Tally()
    for k in range(rounds):
        quiet.seconds += (await load(port, 1, for_seconds(seconds, candidates(k)))).seconds
        writing = asyncio.ensure_future(load(port, 2, for_seconds(seconds, _thinking(k))))
        await asyncio.sleep(0.1)
        beside.seconds += (await load(port, 1, for_seconds(seconds, candidates(k)))).seconds
        await writing
    return _compared(quiet, beside)


def _compared(quiet: Tally, beside: Tally) -> dict[str, Any]:
    figures = {}
    for name, share in (("median", 0.5), ("p99", 0.99)):
        before, after = quiet.percentile_ms(share), beside.percentile_ms(share)
        figures[name] = {"without_ms": before, "with_ms": after, "ratio": after / before}
    return figures


async def overhead(port: int, rounds: int, model: str | None = None) -> dict[str, Any]:
    """Compare a served rerank of 8 documents with the library's call, in turns."""
    from fsrm_lite import FastSlowRM

    library: list[float] = []
    over_http: list[float] = []
    connection, rng = Connection(port), random.Random(5)
    with FastSlowRM.from_pretrained(model, judge="never") as rm:
        for _ in range(rounds):
            prompt = _prompt(rng)
            documents = [f"{_prompt(rng)} The answer is {rng.randint(0, 40)}." for _ in range(8)]
            body = request_bytes("/rerank", json.dumps({"query": prompt, "documents": documents}).encode())
            began = perf_counter()
            rm.rank(prompt, documents)
            middle = perf_counter()
            assert await connection.ask(body) == 200
            library.append(middle - began)
            over_http.append(perf_counter() - middle)
    connection.close()
    more = median(b - a for a, b in zip(library, over_http, strict=True))
    return {"library_ms": 1e3 * median(library), "served_ms": 1e3 * median(over_http), "more_ms": 1e3 * more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side of each round (default: 3)")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (default: 5)")
    parser.add_argument("--requests", type=int, default=10_000, help="of the malformed part (default: 10,000)")
    parser.add_argument("--model", help="a bundle; only the overhead is measured then")
    options = parser.parse_args()
    if options.model is not None:
        with served(options.model) as server:
            found = asyncio.run(overhead(server.port, 10 * options.rounds, options.model))
        print(json.dumps({"overhead": found}))
    else:
        asyncio.run(run(options.seconds, options.rounds, options.requests))


async def run(seconds: float, rounds: int, requests: int) -> dict[str, Any]:
    """Run all parts; print each as a line of JSON, and return them together."""
    found: dict[str, Any] = {}
    with served() as server:
        for source in (candidates(99), strangers(99), _thinking(99)):  # everything has been touched once
            await load(server.port, CLIENTS, for_seconds(seconds, source))
        memory = {"warm": server.memory_mib()}
        for name, part in (
            ("throughput", lambda: throughput(server.port, seconds, rounds)),
            ("malformed", lambda: malformed(server.port, requests)),
            ("deaf", lambda: deaf(server.port, seconds, rounds)),
            ("thoughts", lambda: thoughts(server.port, seconds, rounds)),
            ("overhead", lambda: overhead(server.port, 10 * rounds)),
        ):
            found[name] = await part()
            memory[name] = server.memory_mib()
            print(json.dumps({name: found[name]}), flush=True)
    found["memory_mib"] = memory
    print(json.dumps({"memory_mib": memory}), flush=True)
    return found


if __name__ == "__main__":
    main()
