"""Where the judge's engine runs: on a thread of its own in this process, or in a child process that may die.

Both answer one ``Request`` at a time, whoever asks, because one context must never see two threads; so callers
may be as many threads as they like. The child is a plain new interpreter (never a fork of a threaded process), quiet,
deaf to Ctrl-C, and ends when its parent does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fsrm_lite.errors import FsrmError, JudgeCrashed, JudgeError, JudgeUnavailableError
from fsrm_lite.runtimes.llama.engine import Engine, load_llama, why_not
from fsrm_lite.slow.child import Child, receive, send
from fsrm_lite.slow.scheduler import Scheduler, ToText
from fsrm_lite.slow.voting import Referee
from fsrm_lite.types import Completion, Request

MAX_PARALLEL = 32
"""Texts written at once at most: throughput grows little beyond (2 cores, 0.6 B: 16 texts 3.3x, 32 texts 3.7x one)."""

_CACHE_SHARE = 4  # the streams' keys and values may take a quarter of the machine's memory
GRACE_SECONDS = 20.0
"""A child that has not answered this long after its deadline is taken for dead. Opening a context of gigabytes, which nothing
can interrupt, may take several seconds of it."""


Answer = tuple[list[Completion | None], bool]
"""Completions by job number (None: never started), and whether no deadline cut anything off."""


class Runner(Protocol):
    """Something that answers requests, from any thread."""

    vocab_size: int

    def run(self, request: Request) -> Answer:
        """Answer a request."""

    def close(self) -> None:
        """Free everything; a running request ends with an error. Safe to repeat."""


class InlineRunner:
    """Runs the engine on one thread of this process."""

    def __init__(self, path: Path, to_text: ToText, *, threads: int | None = None) -> None:
        """Start the owner thread and load the model on it. See ``Engine`` for what can go wrong."""
        self._to_text = to_text
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="fsrm-judge")
        self._lock = threading.Lock()
        self._current: Future[Answer] | None = None
        self._closed = False
        try:
            self._engine = self._owner.submit(Engine, path, threads=threads).result()
        except BaseException:
            self._owner.shutdown(wait=False)
            raise
        self.tokenizer = self._engine.tokenizer
        self.vocab_size = self.tokenizer.size

    def run(self, request: Request) -> Answer:
        """Answer a request on the owner thread. Ctrl-C stops the decoding before it goes on its way.

        One thing cannot be stopped: the opening of a context, half a second or more per gigabyte of its cache, at the first call
        and where it has to grow. The call ends at once then too; the process, when the context stands.
        """
        due = None if request.deadline is None else time.monotonic() + request.deadline
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise JudgeError("this judge is closed; open another one")
            self._owner.submit(self._answer, future, request, due)
        try:
            try:
                return future.result(_left(due))
            except TimeoutError:  # behind another call until its own time was up, or its alarm is ringing now
                return ([None] * len(request.jobs), False) if future.cancel() else future.result()
        except BaseException:
            with self._lock:
                if not future.cancel() and self._current is future:
                    self._engine.interrupt()
            raise

    def _answer(self, future: Future[Answer], request: Request, due: float | None) -> None:
        """Decode for one caller; what it raises, the caller gets."""
        with self._lock:
            if not future.set_running_or_notify_cancel():
                return
            self._current = future
            if not self._closed:
                self._engine.resume()  # whoever interrupts from here on means this call
        try:
            answer = self._decode_all(request, due)
            if self._closed:
                raise JudgeError("the judge was closed while it was thinking")
            future.set_result(answer)
        except BaseException as error:  # handed over, whatever it is: the caller waits for it
            future.set_exception(error)
        finally:
            with self._lock:
                self._current = None

    def _decode_all(self, request: Request, due: float | None) -> Answer:
        jobs, engine = request.jobs, self._engine
        cells = max(job.room for job in jobs)
        affordable = _memory_bytes() // _CACHE_SHARE // max(cells * engine.cell_bytes, 1)
        streams = max(1, min(len(jobs), MAX_PARALLEL, affordable))
        scheduler = Scheduler(engine, self._to_text, request.decoding, request.stop_ids, streams, cells)
        referee = Referee(request)
        if due is None:
            return referee.completions, scheduler.run(referee)
        alarm = threading.Timer(_left(due) or 0.0, engine.interrupt)
        alarm.start()
        try:
            return referee.completions, scheduler.run(referee, deadline=due)
        finally:
            alarm.cancel()
            alarm.join()  # an alarm that rings late must not stop the next call

    def close(self) -> None:
        """End a running request, free the engine, end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._engine.interrupt()
            self._owner.submit(self._engine.close)
        self._owner.shutdown(wait=True)


class SubprocessRunner:
    """Runs an ``InlineRunner`` in a child process, and starts a fresh one after a crash."""

    def __init__(self, path: Path, to_text: ToText, *, threads: int | None = None) -> None:
        """Start the child and have it load the model."""
        self._settings = (path, to_text, threads)
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._closed = False
        with self._lock:
            self.vocab_size = self._started().vocab_size

    def run(self, request: Request) -> Answer:
        """Answer a request in the child.

        Raises:
            JudgeCrashed: If the child died, or did not answer ``GRACE_SECONDS`` after its deadline and was killed for that; the
                next call starts another.
        """
        due = None if request.deadline is None else time.monotonic() + request.deadline
        left = _left(due)
        if not self._lock.acquire(timeout=-1 if left is None else left):  # behind another call until its time was up
            return [None] * len(request.jobs), False
        try:
            if self._closed:
                raise JudgeError("this judge is closed; open another one")
            child = self._started()
            try:
                left = _left(due)
                answer: Answer = child.ask(
                    replace(request, deadline=left), patience=None if left is None else left + GRACE_SECONDS
                )
            except BaseException as error:
                # Dead, or (Ctrl-C) still thinking: then its answer would be taken for the next one's.
                if isinstance(error, JudgeCrashed) or not isinstance(error, FsrmError):
                    self._discard()
                raise
            return answer
        finally:
            self._lock.release()

    def _started(self) -> Child:
        if self._child is not None and self._child.is_dead():  # it died between two calls: no call is lost
            self._discard()
        if self._child is None:
            child = Child()
            try:
                child.vocab_size = child.ask(self._settings)
            except JudgeCrashed as error:
                child.end()
                reason = why_not()
                raise error if reason is None else JudgeUnavailableError(reason) from error
            except BaseException:
                child.end()
                raise
            self._child = child
        return self._child

    def _discard(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def close(self) -> None:
        """Kill the child. A request that runs in another thread raises JudgeCrashed."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._discard()


def serve() -> None:
    """Be the child: load the model that the first message names, then answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native code that prints must not break the protocol
    requests: ThreadPoolExecutor = ThreadPoolExecutor(1)
    runner: InlineRunner | None = None

    def answer(request: Request) -> None:
        try:
            reply: object = runner.run(request) if runner else JudgeError("no model")
        except BaseException as error:
            reply = _portable(error)
        send(outgoing, reply)

    try:
        path, to_text, threads = receive(incoming)
        try:
            load_llama(probe=False)  # if it kills this process, that is what this process is for
            runner = InlineRunner(path, to_text, threads=threads)
        except BaseException as error:
            send(outgoing, _portable(error))
            return
        send(outgoing, runner.vocab_size)
        while True:
            requests.submit(answer, receive(incoming))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)  # the parent is gone or done: a thought that still runs is nobody's


def _portable(error: BaseException) -> BaseException:
    """Return the error as one that survives a pickle."""
    return (
        error
        if isinstance(error, FsrmError) and error.args == (str(error),)
        else JudgeError(f"{type(error).__name__}: {error}")
    )


def _left(due: float | None) -> float | None:
    """Seconds until ``due``, at most what a thread can wait for; None without a deadline."""
    return None if due is None else min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)


def _memory_bytes() -> int:
    """Physical memory of the machine; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
