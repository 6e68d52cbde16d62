"""A child process that serves the judge, as its parent sees it, and the messages between the two."""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import IO, Any

from fsrm_lite.errors import JudgeCrashed

_EXIT_SECONDS = 5.0


class Child:
    """One child process and the two pipes to it; every message is a length and a pickle."""

    vocab_size: int

    def __init__(self) -> None:
        """Start it; it waits for its first message."""
        program = f"import sys; sys.path[:] = {sys.path!r}; from fsrm_lite.slow.worker import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal is the parent's to handle
        )
        self._finalizer = weakref.finalize(self, _end, self._process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, message: object, *, patience: float | None = None) -> Any:  # noqa: ANN401 - whatever the child answers
        """Send a message, wait for the answer, and raise it if it is an error.

        Args:
            message: What to send.
            patience: Seconds after which the child is killed; None to wait for as long as it lives.

        Raises:
            JudgeCrashed: If it died or was killed.
        """
        try:
            with self._watched(patience) as late:
                answer = self._exchange(message)
        except (OSError, EOFError) as error:
            how = f"no answer in {patience:.0f} s, killed" if late.is_set() else self._how()
            raise JudgeCrashed(f"the judge's process died ({how}); the next call starts a fresh one") from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @contextlib.contextmanager
    def _watched(self, patience: float | None) -> Iterator[threading.Event]:
        """Kill the child after ``patience`` seconds, and set the event then: a stopped process answers nothing and closes no pipe."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.kill()

        if patience is None:
            yield late
            return
        watch = threading.Timer(min(patience, threading.TIMEOUT_MAX), give_up)
        watch.daemon = True
        watch.start()
        try:
            yield late
        finally:
            watch.cancel()
            watch.join()
            if late.is_set():
                self.end()  # also where its answer came at the last moment: the next call must not find it dying

    def _exchange(self, message: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        send(self._process.stdin, message)
        return receive(self._process.stdout)

    def _how(self) -> str:
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "its pipe broke"
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def is_dead(self) -> bool:
        """Return whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill it; whoever waits for its answer gets JudgeCrashed."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, take its exit status, close the pipes."""
        self._finalizer()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # bytes that were still to be sent to the dead
                pipe.close()


def send(pipe: IO[bytes], message: object) -> None:
    """Write a message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:  # noqa: ANN401
    """Read a message.

    Raises:
        EOFError: If the pipe ends before it does.
    """
    header = pipe.read(8)
    if len(header) < 8:
        raise EOFError("the pipe was closed")
    size = struct.unpack("<Q", header)[0]
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError("the pipe was closed within a message")
    return pickle.loads(data)
