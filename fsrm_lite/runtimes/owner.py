"""The thread that owns a model: calls come from anywhere and run on it one after another.

An executor of the standard library would do the same, but refuses work once the main thread has ended, although a
server may go on in other threads, and the end of the program would wait for whatever an executor is doing.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeAlias, TypeVar

from fsrm_lite.errors import MisuseError

EXIT_SECONDS = 1.5
"""How long the end of the program waits, in all, for calls that it has interrupted."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Queue: TypeAlias = "SimpleQueue[Callable[[], None] | None]"
_living: weakref.WeakSet[Owner] = weakref.WeakSet()


class Owner:
    """One thread that runs calls in the order in which they come. Any thread may submit them."""

    interrupt: Callable[[], object] | None = None
    """Makes a running call end soon; called when the program ends. To be set once there is something to interrupt."""

    def __init__(self, name: str) -> None:
        """Start the thread, under this name."""
        self._calls: _Queue = SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._calls.put, None).atexit = False  # a model that is forgotten takes its thread along
        _living.add(self)

    def is_ours(self) -> bool:
        """Return whether this process, and not one that it was forked from, started the thread."""
        return os.getpid() == self._process

    def check_process(self) -> None:
        """Raise a ``MisuseError`` in a forked process: a fork copies no threads, so a call would wait for ever."""
        if not self.is_ours():
            raise forked()

    def submit(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have a call run on the thread, and return its future.

        Raises:
            MisuseError: If the owner was closed, or the process was forked since.
        """
        self.check_process()
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call(*args, **kwargs))
            except BaseException as error:  # whatever it is, whoever waits for the result raises it
                future.set_exception(error)

        with self._lock:
            if self._closed:
                raise MisuseError("this model was closed; open it again")
            self._calls.put(run)
        return future

    def close(self, last: Callable[[], Any] | None = None) -> None:
        """Finish what was submitted, run ``last`` on the thread, and end the thread. Safe to repeat.

        In a forked process nothing is done: the model belongs to the process that opened it.
        """
        if not self.is_ours():
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                if last is not None:
                    self._calls.put(lambda: _quietly(last))
                self._calls.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, but no longer than ``seconds``."""
        self._thread.join(max(0.0, seconds))


def forked() -> MisuseError:
    """Return the error of a call in a process that was forked from the one that opened the model."""
    return MisuseError("this model was opened before a fork; open it in the process that uses it")


def _serve(calls: _Queue) -> None:
    """Run calls until None comes."""
    while (call := calls.get()) is not None:
        call()
        del call  # not to keep alive, while waiting, what the last call used


def _quietly(call: Callable[[], Any]) -> None:
    """Run the last call of a thread, whose errors nobody waits for."""
    try:
        call()
    except Exception:  # there is no one left to tell, and the thread must end
        return


def _end_all() -> None:
    """Interrupt what runs and let the threads end, so that none is within native code when the process is torn down."""
    owners = [owner for owner in _living if owner.is_ours()]
    due = time.monotonic() + EXIT_SECONDS
    for owner in owners:
        if owner.interrupt is not None:
            owner.interrupt()
        with suppress(Empty):
            while True:  # what waits is not begun any more
                owner._calls.get_nowait()
        owner._calls.put(None)
    for owner in owners:
        owner.join(due - time.monotonic())


atexit.register(_end_all)
