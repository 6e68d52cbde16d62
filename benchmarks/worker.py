"""Runs a peer in a process of its own, which reads lines of JSON and answers each with a line of JSON.

``Worker`` is the other end, in the process that measures (the *harness*).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from time import perf_counter, sleep
from typing import Any

from benchmarks import judge_sides
from benchmarks.files import Files
from benchmarks.judge_sides import SIDES, JudgeWorkload
from benchmarks.load import Watch
from benchmarks.optimum_peer import environment
from benchmarks.workloads import Workload

WARM_UP = Workload("warm-up", "", 0, 32, 2)


class WorkerError(Exception):
    """A peer did not start, died, or took too long; the message says which."""


class Worker:
    """The harness's end of a peer's process."""

    def __init__(
        self, peer: str, root: Path, threads: int, *, environ: Mapping[str, str] | None = None, timeout: float = 300.0
    ) -> None:
        self.peer = peer
        python = sys.executable
        if peer.startswith("optimum"):
            python = str(environment(root.parent))
            if not Path(python).is_file():
                raise WorkerError("not set up")
        command = [python, "-m", "benchmarks.worker", peer, str(root), str(threads)]
        self._log = (root / "workers.log").open("a", encoding="utf-8")
        settings = {**os.environ, **(environ or {})}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, text=True, env=settings)
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.loaded = self._answer(timeout)

    def run(self, workload: Workload | JudgeWorkload, timeout: float) -> dict[str, Any]:
        """Run a workload.

        Returns:
            Its ``seconds``, the ``values`` that the peer answered, the most memory that its process held as
            ``rss_bytes``, and as ``others`` the share of the machine that other processes took meanwhile.
        """
        if self._process.stdin is None:
            raise WorkerError(f"{self.peer}: no standard input")
        watch = Watch(self._process.pid)
        try:
            self._process.stdin.write(json.dumps(asdict(workload)) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerError(f"{self.peer} died: {error}") from error
        return self._answer(timeout) | {"others": watch.others()}

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def _answer(self, timeout: float) -> dict[str, Any]:
        """Return the next answer of the process; raise if there is none in time, or if it reports an error."""
        try:
            line = self._lines.get(timeout=timeout)
        except Empty:
            self.close()
            raise WorkerError(f"{self.peer}: no answer in {timeout:.0f} s") from None
        if not line:
            raise WorkerError(f"{self.peer} died with status {self._process.wait()}; see workers.log")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise WorkerError(f"{self.peer}: {answer['error']}")
        return answer


def serve(peer_name: str, root: Path, threads: int) -> None:
    """Load a peer and run workloads until the harness goes away."""
    # Answers go to the real standard output; whatever a library prints goes to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        from benchmarks.peers import PEERS

        start = perf_counter()
        kind, warm_up, builders = (
            (JudgeWorkload, judge_sides.WARM_UP, SIDES) if peer_name in SIDES else (Workload, WARM_UP, PEERS)
        )
        peer: Any = builders[peer_name](Files(root), threads)
        # A first run allocates memory, packs weights and starts threads, which is not what is measured.
        peer.run(warm_up)
        say({"seconds": perf_counter() - start})
        for line in sys.stdin:
            workload = kind(**json.loads(line))
            # While other peers had their turn, they took over the processor's caches, and on some systems the memory
            # of weights that are mapped from a file.
            peer.run(warm_up)
            start = perf_counter()
            values = peer.run(workload)
            seconds = perf_counter() - start
            say({"seconds": seconds, "values": values, "rss_bytes": peak_rss_bytes()})
    except Exception as error:  # the harness shows it in the table, whatever it is
        say({"error": f"{type(error).__name__}: {error}"})
    sleep(0.1)


def peak_rss_bytes() -> int:
    """Return the most memory that this process ever held, in bytes.

    ``ru_maxrss`` would not do, because a child process starts with its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
