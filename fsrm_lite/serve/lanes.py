"""Where requests wait for the model. There are two lanes, so that no fast request waits behind a thought.

In the fast lane, requests that wait together are read together: what their responses have in common at the beginning
(the prompt, as a rule) is then computed once for all of them. In the slow lane, calls of the judge come one after
another; one whose client has gone is stopped, and skipped if it has not begun.

Each lane has one thread of its own. It is no executor's, because an executor refuses work once the main thread has
ended, and a server may outlive that.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fsrm_lite.errors import JudgeError
from fsrm_lite.serve.bodies import RequestError

if TYPE_CHECKING:
    from fsrm_lite.fast.path import EncodedResponse
    from fsrm_lite.types import Score

_T = TypeVar("_T")
_Entry = TypeVar("_Entry")

BATCH_RESPONSES = 64
"""Most responses that are read together. More gain little, and what arrives meanwhile waits for all of them."""


class _Answer(Generic[_T]):
    """A result that a lane's thread gives to the event loop that waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[_T] = self._loop.create_future()

    def __await__(self) -> Any:  # noqa: ANN401 - as asyncio.Future declares it
        return self._future.__await__()

    def give(self, result: _T) -> None:
        """Hand over a result. A loop that has ended meanwhile does not get it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set, result, None)

    def fail(self, error: BaseException) -> None:
        """Hand over an error."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set, None, error)

    def _set(self, result: Any, error: BaseException | None) -> None:  # noqa: ANN401
        if self._future.done():  # cancelled: nobody waits any more
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)


class _Lane(ABC, Generic[_Entry]):
    """A thread and the queue of what waits for it."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _refuse_if_closed(self) -> None:
        """Raise a ``RequestError`` if the lane takes no more requests."""
        if self._closed:
            raise RequestError("the server is stopping", status=503, code="stopping", retry_after_s=5)

    def _run(self) -> None:
        while self._waited_for_work():
            self._work()

    def _waited_for_work(self) -> bool:
        """Wait until something is in the queue; return False when the lane is closed and has finished."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return bool(self._queue)

    @abstractmethod
    def _work(self) -> None:
        """Do some of what waits; the queue is not empty unless a client has just left it."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request in the fast lane."""

    items: Sequence[EncodedResponse]
    answer: _Answer[list[Score]]
    scores: list[Score] = field(default_factory=list)


class FastLane(_Lane[_Waiting]):
    """Reads the responses of all requests that wait, in batches.

    Requests take turns: each gives some of its responses to every batch, so that one with many of them does not keep
    the others waiting.
    """

    def __init__(
        self,
        read: Callable[[list[EncodedResponse]], list[Score]],
        *,
        most: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Take the function that reads a batch.

        Args:
            read: From responses to their fast scores, in order.
            most: Most responses that may wait.
            on_batch: Told the size of each batch.
        """
        super().__init__("fsrm-fast-lane")
        self._read, self._most, self._on_batch = read, most, on_batch
        self.waiting = 0

    async def read(self, items: Sequence[EncodedResponse]) -> list[Score]:
        """Return the fast scores of one request's responses, in order.

        Raises:
            RequestError: With status 503, if too many responses wait.
        """
        if not items:
            return []
        entry = _Waiting(items, _Answer())
        with self._changed:
            self._refuse_if_closed()
            if self.waiting and self.waiting + len(items) > self._most:
                raise RequestError(
                    f"{self.waiting} responses wait to be scored, at most {self._most} may; try again",
                    status=503,
                    code="busy",
                    retry_after_s=1,
                )
            self.waiting += len(items)
            self._queue.append(entry)
            self._changed.notify()
        try:
            return list(await entry.answer)
        except asyncio.CancelledError:  # the client has gone: what it still waits for is not read
            with self._changed:
                self._leave(entry)
            raise

    def _leave(self, entry: _Waiting) -> bool:
        """Take a request out of the queue, with what it waits for; return False if it has left already."""
        if entry not in self._queue:
            return False
        self._queue.remove(entry)
        self.waiting -= len(entry.items) - len(entry.scores)
        return True

    def _work(self) -> None:
        with self._changed:
            if not self._queue:  # the only client that waited has left
                return
            shares = self._next_batch()
        batch = [item for entry, count in shares for item in entry.items[len(entry.scores) :][:count]]
        try:
            scores = self._read(batch)
        except BaseException as error:  # whoever waits gets it, whatever it is; the lane goes on
            self._failed([entry for entry, _ in shares], error)
            return
        self._on_batch(len(batch))
        self._take(shares, scores)

    def _next_batch(self) -> list[tuple[_Waiting, int]]:
        """Return who takes part in the next batch, each with a number of responses."""
        share = max(1, BATCH_RESPONSES // len(self._queue))
        shares: list[tuple[_Waiting, int]] = []
        room = BATCH_RESPONSES
        for entry in self._queue:
            count = min(len(entry.items) - len(entry.scores), share, room)
            shares.append((entry, count))
            room -= count
            if not room:
                break
        for i, (entry, count) in enumerate(shares):  # room that short requests left goes to longer ones
            more = min(len(entry.items) - len(entry.scores) - count, room)
            shares[i] = (entry, count + more)
            room -= more
        return shares

    def _take(self, shares: list[tuple[_Waiting, int]], scores: list[Score]) -> None:
        """Give each request its scores. Those that need more stand behind the others then."""
        start = 0
        finished: list[_Waiting] = []
        with self._changed:
            for entry, count in shares:
                if self._leave(entry):
                    entry.scores += scores[start : start + count]
                    if len(entry.scores) == len(entry.items):
                        finished.append(entry)
                    else:
                        self._queue.append(entry)
                        self.waiting += len(entry.items) - len(entry.scores)
                start += count
        for entry in finished:
            entry.answer.give(entry.scores)

    def _failed(self, entries: list[_Waiting], error: BaseException) -> None:
        with self._changed:
            for entry in entries:
                self._leave(entry)
        for entry in entries:
            entry.answer.fail(error)


@dataclass(slots=True, eq=False)
class _Call:
    """One call in the slow lane. ``stopped`` is set when nobody waits for it any more."""

    function: Callable[[threading.Event], Any]
    answer: _Answer[Any]
    stopped: threading.Event = field(default_factory=threading.Event)


class SlowLane(_Lane[_Call]):
    """Runs calls of the judge, one after another, in the order in which they came."""

    def __init__(self, *, most: int) -> None:
        """Keep the limit.

        Args:
            most: Most calls that may wait or run.
        """
        super().__init__("fsrm-slow-lane")
        self._most = most
        self._running: _Call | None = None
        self._mean_s = 1.0  # of the latest calls, to tell a client when to come again

    @property
    def waiting(self) -> int:
        """Calls that wait or run."""
        return len(self._queue) + (self._running is not None)

    def refuse_if_full(self) -> None:
        """Refuse a request if too many calls wait, as ``run`` does.

        A reply that is streamed has sent its status before it comes to ``run``; so it asks here first.

        Raises:
            RequestError: With status 429.
        """
        if self.waiting >= self._most:
            raise RequestError(
                f"{self.waiting} requests wait for a thought, at most {self._most} may; try again, "
                'or ask with "x_judge": "never"',
                status=429,
                code="busy",
                retry_after_s=math.ceil(min(60.0, self._mean_s * self.waiting)),
            )

    async def run(self, function: Callable[[threading.Event], _T]) -> _T:
        """Run a function in its turn and return what it returns.

        When the caller is cancelled, the function is told so by the event that it gets, or never begun.

        Args:
            function: Takes the event, which it should look at from time to time.

        Raises:
            RequestError: With status 429, if too many calls wait.
        """
        call = _Call(function, _Answer())
        with self._changed:
            self._refuse_if_closed()
            self.refuse_if_full()
            self._queue.append(call)
            self._changed.notify()
        try:
            return await call.answer  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            call.stopped.set()
            with self._changed, contextlib.suppress(ValueError):
                self._queue.remove(call)
            raise

    def _work(self) -> None:
        with self._changed:
            if not self._queue:  # the only client that waited has left
                return
            call = self._running = self._queue.popleft()
        began = time.monotonic()
        answer: Callable[[], None]
        try:
            if call.stopped.is_set():
                raise JudgeError("the client has gone")
            answer = partial(call.answer.give, call.function(call.stopped))
        except BaseException as error:  # whoever waits gets it, whatever it is; the lane goes on
            answer = partial(call.answer.fail, error)
        with self._changed:
            self._mean_s += 0.2 * (time.monotonic() - began - self._mean_s)
            self._running = None
        answer()  # only now, so that who has the answer does not count as waiting any more
