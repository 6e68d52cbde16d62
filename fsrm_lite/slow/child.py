"""The child process in which the judge can run, as its parent sees it, and the messages between the two."""

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
    """One child process and the two pipes to it. Every message is its length followed by a pickle."""

    vocab_size: int

    def __init__(self) -> None:
        """Start the child, which then waits for its first message."""
        program = f"import sys; sys.path[:] = {sys.path!r}; from fsrm_lite.slow.worker import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C at the terminal reaches the parent only
        )
        self._finalizer = weakref.finalize(self, _end, self._process)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, message: object, *, patience: float | None = None) -> Any:  # noqa: ANN401 - any kind of answer
        """Send a message to the child and wait for its answer. An answer that is an exception is raised.

        Args:
            message: What to send.
            patience: Seconds after which the child is killed if it has not answered; None to wait for as long as it
                lives.

        Returns:
            The answer.

        Raises:
            JudgeCrashed: If the child died or was killed.
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
        """Kill the child when ``patience`` seconds have passed within this block, and set the yielded event then.

        A stopped process neither answers nor closes its pipe, so that the parent would wait for ever.
        """
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
                self.end()  # even if its answer came just in time: the next call must not meet a child that is dying

    def _exchange(self, message: object) -> object:
        """Send a message and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        send(self._process.stdin, message)
        return receive(self._process.stdout)

    def _how(self) -> str:
        """Return in words how the child ended."""
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "its pipe broke"
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def is_dead(self) -> bool:
        """Return whether the child has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill the child. Whoever waits for its answer gets ``JudgeCrashed``."""
        self._process.kill()

    def end(self) -> None:
        """Kill the child, collect its exit status and close the pipes."""
        self._finalizer()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Do what ``Child.end`` says; safe to repeat."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # closing sends what is still buffered, and no one reads it any more
                pipe.close()


def send(pipe: IO[bytes], message: object) -> None:
    """Write a message to a pipe."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:  # noqa: ANN401
    """Read a message from a pipe.

    Raises:
        EOFError: If the pipe is closed before the message is complete.
    """
    header = pipe.read(8)
    if len(header) < 8:
        raise EOFError("the pipe was closed")
    size = struct.unpack("<Q", header)[0]
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError("the pipe was closed within a message")
    return pickle.loads(data)
