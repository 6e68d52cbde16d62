"""What ``/metrics`` counts, in a registry of the server's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

from fsrm_lite.types import Comparison, Score

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(slots=True)
class Tokens:
    """What one request cost."""

    read: int = 0
    generated: int = 0


_of_request: ContextVar[Tokens | None] = ContextVar("tokens of the request that is being answered", default=None)


class Metrics:
    """Counters, gauges and histograms of one server. Any thread may count."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        self.requests = Counter("fsrm_requests", "Requests answered.", ("path", "status"), registry=r)
        self.seconds = Histogram(
            "fsrm_request_seconds",
            "From a request's first line to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=r,
        )
        self.batch = Histogram("fsrm_batch_responses", "Responses read in one batch.", buckets=_SIZES, registry=r)
        self._waiting = Gauge(
            "fsrm_waiting",
            "Responses waiting to be read (fast), calls of the judge waiting (slow).",
            ("lane",),
            registry=r,
        )
        self._items = Counter(
            "fsrm_items", "Responses scored, pairs compared, questions answered.", ("kind",), registry=r
        )
        self._escalated = Counter(
            "fsrm_escalated", "Those of them that the judge was asked about.", ("kind",), registry=r
        )
        self._tokens = Counter("fsrm_tokens", "Tokens read and tokens generated.", ("kind",), registry=r)

    def watch_lane(self, lane: str, waiting: Callable[[], int]) -> None:
        """Let the gauge of a lane ask ``waiting`` for its value."""
        self._waiting.labels(lane).set_function(waiting)

    def count(self, kind: str, results: Sequence[Score | Comparison]) -> None:
        """Count results: ``kind`` is "score" or "comparison"."""
        self._items.labels(kind).inc(len(results))
        self._escalated.labels(kind).inc(sum(result.escalated for result in results))
        self.tokens(sum(r.tokens_read for r in results), sum(r.tokens_generated for r in results))

    def count_question(self, *, escalated: bool, read: int, generated: int) -> None:
        """Count a question with all that was read and written for its answer."""
        self._items.labels("question").inc()
        self._escalated.labels("question").inc(escalated)
        self.tokens(read, generated)

    def tokens(self, read: int, generated: int) -> None:
        """Count tokens, of the server and of the request that is being answered."""
        self._tokens.labels("read").inc(read)
        self._tokens.labels("generated").inc(generated)
        request = _of_request.get()
        if request is not None:
            request.read += read
            request.generated += generated

    def begin_request(self) -> Tokens:
        """Return what ``tokens`` will count from now on in this task and in those that it starts."""
        tokens = Tokens()
        _of_request.set(tokens)
        return tokens

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
