"""Where the judge's engine runs: on a thread of its own in this process, or in a child process.

Any number of threads may ask. They are answered one after another, because an engine must never be used by two threads
at once. The child process protects the caller from a crash of the runtime. It is a new interpreter, not a fork (a fork
of a process with threads is not safe), prints nothing, ignores Ctrl-C, and ends when its parent does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from fsrm_lite.errors import FsrmError, JudgeCrashed, JudgeError, JudgeUnavailableError, MisuseError
from fsrm_lite.runtimes.engine import memory_bytes
from fsrm_lite.runtimes.llama.engine import load_llama, why_not
from fsrm_lite.runtimes.opening import EngineSource, file_of, is_graph, open_engine
from fsrm_lite.runtimes.owner import Owner, forked
from fsrm_lite.slow.child import Child, receive, send
from fsrm_lite.slow.scheduler import Scheduler, ToText
from fsrm_lite.slow.voting import Referee
from fsrm_lite.types import Completion, Request, WatchIds

MAX_PARALLEL = 32
"""Most texts that are written at once.

More would gain little: on 2 cores with a model of 0.6 billion parameters, 16 texts at once are written 3.3 times as
fast as one by one, and 32 texts 3.7 times.
"""

_CACHE_SHARE = 4  # keys and values of all streams may take one part in four of the machine's memory
_CLOSED_MEANWHILE = "this model was closed while the judge was thinking"
GRACE_SECONDS = 20.0
"""A child that has not answered this many seconds after its deadline is taken to be dead.

Opening a context of several gigabytes cannot be interrupted and may take some of these seconds.
"""


Answer = tuple[list[Completion | None], bool]
"""The completions by job number (None: never started), and False if a deadline cut anything off."""


class Runner(Protocol):
    """Answers requests from any thread."""

    vocab_size: int

    def run(self, request: Request, watch: WatchIds | None = None) -> Answer:
        """Answer a request; see ``Answer``."""

    def close(self) -> None:
        """Free everything. A running request ends with an error. Safe to repeat."""


class InlineRunner:
    """Runs the engine on one thread of this process, the owner thread."""

    def __init__(
        self,
        source: EngineSource,
        to_text: ToText,
        *,
        threads: int | None = None,
        give_way: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Start the owner thread and load the model on it; ``open_engine`` says which errors there may be.

        Args:
            source: What the engine is made of.
            to_text: Turns token ids into text.
            threads: Compute threads; see the engine.
            give_way: Called before each step; see ``Judge``.
        """
        self._to_text, self._give_way = to_text, give_way
        self._owner = Owner("fsrm-judge")
        self._lock = threading.Lock()
        self._current: Future[Answer] | None = None
        self._closed = False
        try:
            self.engine = self._owner.submit(open_engine, source, threads).result()
        except Exception:
            self._owner.close()
            raise
        self._owner.interrupt = self.engine.interrupt
        self.vocab_size = self.engine.vocab_size

    def run(self, request: Request, watch: WatchIds | None = None) -> Answer:
        """Answer a request on the owner thread. Ctrl-C stops the decoding and is then raised.

        One thing cannot be interrupted: opening a context of llama.cpp, which takes half a second or more per gigabyte
        of its cache. It happens in the first call, and when the context has to become larger. On Ctrl-C the call ends
        at once even then, but the process can end only when the context is open.

        Args:
            request: What to write.
            watch: Called on the owner thread with what is being written; it may stop it.

        Returns:
            What was written, by job number, and whether it is complete.

        Raises:
            JudgeError: If the runner is closed, or the runtime fails.
        """
        self._owner.check_process()
        due = None if request.deadline is None else time.monotonic() + request.deadline
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise MisuseError("this judge is closed; open another one")
            self._owner.submit(self._answer, future, request, due, watch)
        try:
            try:
                return future.result(_left(due))
            except TimeoutError:  # either it still waits behind another call, or it runs and is being interrupted
                return ([None] * len(request.jobs), False) if future.cancel() else future.result()
        except BaseException:
            with self._lock:
                if not future.cancel() and self._current is future:
                    self.engine.interrupt()
            raise

    def _answer(self, future: Future[Answer], request: Request, due: float | None, watch: WatchIds | None) -> None:
        """Answer one caller's request. An exception is passed on to the caller."""
        with self._lock:
            if not future.set_running_or_notify_cancel():
                return
            self._current = future
            if not self._closed:
                self.engine.resume()  # an interrupt before this was meant for an earlier call
        try:
            answer = self._decode_all(request, due, watch)
            if self._closed:
                raise MisuseError(_CLOSED_MEANWHILE)
            future.set_result(answer)
        except BaseException as error:  # the caller waits for an answer, so it gets any exception there is
            future.set_exception(error)
        finally:
            with self._lock:
                self._current = None

    def _decode_all(self, request: Request, due: float | None, watch: WatchIds | None) -> Answer:
        """Write all jobs of a request, and return what was written. At ``due`` an alarm interrupts the engine."""
        jobs, engine = request.jobs, self.engine
        cells = max(job.room for job in jobs)
        affordable = memory_bytes() // _CACHE_SHARE // max(cells * engine.cell_bytes, 1)
        streams = max(1, min(len(jobs), MAX_PARALLEL, affordable))
        scheduler = Scheduler(
            engine, self._to_text, request.decoding, request.stop_ids, streams, cells, give_way=self._give_way
        )
        referee = Referee(request)
        if due is None:
            return referee.completions, scheduler.run(referee, watch=watch)
        alarm = threading.Timer(_left(due) or 0.0, engine.interrupt)
        alarm.daemon = True  # the end of the program does not wait for it
        alarm.start()
        try:
            return referee.completions, scheduler.run(referee, deadline=due, watch=watch)
        finally:
            alarm.cancel()
            alarm.join()  # an alarm that still ran would interrupt the next call

    def close(self) -> None:
        """End a running request, free the engine and end the thread."""
        if not self._owner.is_ours():
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self.engine.interrupt()
        self._owner.close(self.engine.close)


class SubprocessRunner:
    """Runs an ``InlineRunner`` in a child process. After a crash it starts a new one."""

    def __init__(self, source: EngineSource, to_text: ToText, *, threads: int | None = None) -> None:
        """Start the child and let it load the model.

        Args:
            source: What the engine is made of. Of a model that is open here, the child opens the file again.
            to_text: Turns token ids into text.
            threads: Compute threads; see the engine.
        """
        self._settings = (file_of(source), to_text, threads)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._closed = False
        with self._lock:
            self.vocab_size = self._started().vocab_size

    def run(self, request: Request, watch: WatchIds | None = None) -> Answer:
        """Answer a request in the child.

        Args:
            request: What to write.
            watch: Not called here: what is being written stays in the child until it is finished.

        Returns:
            What was written, by job number, and whether it is complete.

        Raises:
            JudgeCrashed: If the child died, or was killed because it had not answered ``GRACE_SECONDS`` after its
                deadline. The next call starts a new child.
            JudgeError: If the runner is closed, or the runtime fails.
        """
        if os.getpid() != self._process:
            raise forked()
        due = None if request.deadline is None else time.monotonic() + request.deadline
        left = _left(due)
        if not self._lock.acquire(timeout=-1 if left is None else left):
            return [None] * len(request.jobs), False  # its time was up while another call was running
        try:
            if self._closed:
                raise MisuseError("this judge is closed; open another one")
            child = self._started()
            try:
                left = _left(due)
                answer: Answer = child.ask(
                    replace(request, deadline=left), patience=None if left is None else left + GRACE_SECONDS
                )
            except BaseException as error:
                # The child is dead; or, after Ctrl-C, it is still working on an answer, which the next call would get.
                if isinstance(error, JudgeCrashed) or not isinstance(error, FsrmError):
                    self._discard()
                if self._closed:
                    raise MisuseError(_CLOSED_MEANWHILE) from error
                raise
            return answer
        finally:
            self._lock.release()

    def _started(self) -> Child:
        """Return the child, after starting a new one and loading the model in it if there is none."""
        if self._child is not None and self._child.is_dead():  # it died between two calls, so no answer was lost
            self._discard()
        if self._child is None:
            child = Child()
            try:
                child.vocab_size = child.ask(self._settings)
            except JudgeCrashed as error:
                child.end()
                reason = None if is_graph(self._settings[0]) else why_not()
                raise error if reason is None else JudgeUnavailableError(reason) from error
            except BaseException:
                child.end()
                raise
            self._child = child
        return self._child

    def _discard(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def close(self) -> None:
        """Kill the child. A request that runs in another thread raises ``MisuseError``."""
        if os.getpid() != self._process:  # the child process belongs to the one that started it
            return
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._discard()


def serve() -> None:
    """Run as the child: load the model that the first message names, then answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what native code prints must not get between the messages
    requests = Owner("fsrm-requests")
    runner: InlineRunner | None = None

    def answer(request: Request) -> None:
        try:
            reply: object = runner.run(request) if runner else JudgeError("no model")
        except BaseException as error:
            reply = _portable(error)
        send(outgoing, reply)

    try:
        source, to_text, threads = receive(incoming)
        try:
            if not is_graph(source):
                load_llama(probe=False)  # no trial first: if the import kills this process, the parent survives it
            runner = InlineRunner(source, to_text, threads=threads)
        except BaseException as error:
            send(outgoing, _portable(error))
            return
        send(outgoing, runner.vocab_size)
        while True:
            requests.submit(answer, receive(incoming))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)  # the parent is gone or has finished: nobody waits for a request that still runs


def _portable(error: BaseException) -> BaseException:
    """Return the exception itself if it survives pickling, else a ``JudgeError`` with its text."""
    return (
        error
        if isinstance(error, FsrmError) and error.args == (str(error),)
        else JudgeError(f"{type(error).__name__}: {error}")
    )


def _left(due: float | None) -> float | None:
    """Return the seconds until ``due``, but no more than a thread can wait for; None if there is no deadline."""
    return None if due is None else min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)
