"""The sides of the judge's benchmark: fsrm-lite's judge on either runtime, and its peer, ``Llama.create_completion``.

Each runs in a process of its own. With random weights the judge on ONNX Runtime writes with the int8 graph that the
fast path reads with, and llama.cpp with a Q4_K_M file, its fastest; with the embedded model both have the bundle's own
files. The peer gets the very same prompts as token ids, with the same temperature and the same number of tokens, in an
order that lets it reuse its prompt cache. A *vote* is one thought about a pair, with its verdict. With random weights,
a vote never stops by itself, so it is always as long as its budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.files import Files

PROMPT, SHARED, VOTE = 512, 256, 128  # tokens of a prompt, of what both orders of a pair begin with, of a vote
STREAMS = 32  # votes that the judge writes at a time, at most
TEMPERATURE = 0.6


@dataclass(frozen=True, slots=True)
class JudgeWorkload:
    """Pairs to be judged, and how.

    Attributes:
        name: Its name in the table.
        pairs: How many pairs; for the embedded model, so many of its held-out test pairs.
        votes: Votes in each of the two orders of a pair.
        batch: Pairs per call.
        adaptive: Stop votes that cannot change the decision any more.
        one_prompt: Put all votes behind one prompt, which the peer then has in its prompt cache.
        tokens: Tokens of each vote with random weights.
    """

    name: str
    pairs: int
    votes: int
    batch: int = 1
    adaptive: bool = False
    one_prompt: bool = False
    tokens: int = VOTE


WARM_UP = JudgeWorkload("warm-up", 1, 1, one_prompt=True, tokens=8)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a workload took, and what came of it.

    Attributes:
        seconds: Wall time.
        tokens: Tokens written.
        inside_s: Seconds within the runtime (``llama_decode``, or a run of the graph), which is what a bare loop over
            the same batches would take. Measured of the judge only, like all that follows.
        step_ms: Milliseconds of one such call; the median.
        step_rows: Rows of one call; the median. Most calls write one token of each vote that is still going on.
        winners: The decisions.
    """

    seconds: float
    tokens: int
    inside_s: float = 0.0
    step_ms: float = 0.0
    step_rows: float = 0.0
    winners: list[int] = field(default_factory=list)


class Side(Protocol):
    """What a worker process runs."""

    def run(self, workload: JudgeWorkload) -> dict[str, Any]:
        """Do a workload; return a ``Timing`` as a dict."""
        ...


@dataclass(slots=True)
class Steps:
    """Seconds and rows of every call into a runtime."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def timing(self, seconds: float, tokens: int, winners: Sequence[int] = ()) -> dict[str, Any]:
        """Return the ``Timing`` of a judge that took these steps, as a dict."""
        return asdict(
            Timing(seconds, tokens, sum(self.seconds), 1000 * median(self.seconds), median(self.rows), list(winners))
        )


@contextmanager
def counted(
    owner: Any,  # noqa: ANN401 - a module or class
    name: str,
    rows: Callable[..., int],
    steps: Steps | None = None,
) -> Iterator[Steps]:
    """Yield what is counted of every call of the function ``name`` of ``owner`` within the block.

    Args:
        owner: The module or class that has the function.
        name: The function's name.
        rows: Returns the number of tokens that a call computes, given the call's arguments.
        steps: Where to count; None for a count of its own.
    """
    steps = steps or Steps()
    function = getattr(owner, name)

    def timed(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        start = time.perf_counter()
        result = function(*args, **named)
        steps.seconds.append(time.perf_counter() - start)
        steps.rows.append(rows(*args, **named))
        return result

    setattr(owner, name, timed)
    try:
        yield steps
    finally:
        setattr(owner, name, function)


def llama_steps() -> AbstractContextManager[Steps]:
    """Return a block in which every call of ``llama_decode`` is counted."""
    from fsrm_lite.runtimes.llama.engine import load_llama

    return counted(load_llama(), "llama_decode", lambda context, batch: batch.n_tokens)


@contextmanager
def graph_steps() -> Iterator[Steps]:
    """Yield what is counted of every run of a fast graph within the block: those that read and those that write."""
    from fsrm_lite.runtimes.onnx.graph import Graph

    def rows(graph: Graph, first: Any, *, ids: Any, **others: Any) -> int:  # noqa: ANN401 - as in both functions
        return len(ids)

    with counted(Graph, "run", rows) as steps, counted(Graph, "write", rows, steps):
        yield steps


RUNTIMES: dict[str, Callable[[], AbstractContextManager[Steps]]] = {
    "ONNX Runtime": graph_steps,
    "llama.cpp": llama_steps,
}
"""How the calls into each runtime are counted, by the runtime's name."""


def random_prompts(workload: JudgeWorkload, vocab_size: int) -> list[tuple[int, ...]]:
    """Return the prompts of the pairs in both orders, each as often as there are votes.

    As in real prompts, both orders of a pair begin with the same tokens.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    out = []
    for _ in range(workload.pairs):
        front, a, b = (
            rng.integers(0, vocab_size, n).tolist() for n in (SHARED, (PROMPT - SHARED) // 2, (PROMPT - SHARED) // 2)
        )
        for order in (front + a + b, front + b + a):
            out += [tuple(order)] * workload.votes
    return out[:1] * workload.votes if workload.one_prompt else out


class RandomJudge:
    """The judge's scheduler, which writes many votes at a time, with random weights."""

    def __init__(self, runtime: str, path: Path, threads: int | None) -> None:
        from fsrm_lite.runtimes.opening import open_engine

        self._steps = RUNTIMES[runtime]
        self._engine = open_engine(path, threads)

    def run(self, workload: JudgeWorkload) -> dict[str, Any]:
        """Write the votes."""
        from fsrm_lite.slow.sampling import vote_key
        from fsrm_lite.slow.scheduler import Scheduler
        from fsrm_lite.slow.voting import Referee
        from fsrm_lite.types import Decoding, Job, Request

        prompts = random_prompts(workload, self._engine.vocab_size)
        jobs = tuple(Job(p, vote_key(0, p, k), workload.tokens) for k, p in enumerate(prompts))
        decoding = Decoding(TEMPERATURE)
        referee = Referee(Request(jobs, decoding, ()))
        with self._steps() as steps:
            start = time.perf_counter()
            scheduler = Scheduler(self._engine, lambda ids: "", decoding, (), min(STREAMS, len(jobs)), PROMPT + VOTE)
            scheduler.run(referee)
            seconds = time.perf_counter() - start
        return steps.timing(seconds, sum(len(c.ids) for c in referee.completions if c))


class Completion:
    """``llama_cpp.Llama``, which writes one completion at a time."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        from benchmarks.llama_peer import guard_high_level
        from fsrm_lite.runtimes.llama.engine import load_llama

        llama = load_llama()
        guard_high_level(llama, path)
        self.llama = llama.Llama(
            str(path), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def write(self, prompts: Sequence[Sequence[int]], budget: int) -> Timing:
        """Write one completion per prompt; equal prompts must stand together, so that the prompt cache is of use."""
        options = {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
        written = 0
        start = time.perf_counter()
        for seed, prompt in enumerate(prompts, 1):
            reply = self.llama.create_completion(list(prompt), max_tokens=budget, seed=seed, **options)
            written += reply["usage"]["completion_tokens"]
        return Timing(time.perf_counter() - start, written)


class RandomCompletion:
    """The peer with random weights. It reads its prompt before the clock starts."""

    def __init__(self, path: Path, threads: int) -> None:
        self._peer = Completion(path, threads, PROMPT + VOTE + 16)

    def run(self, workload: JudgeWorkload) -> dict[str, Any]:
        """Write the votes."""
        prompts = random_prompts(workload, self._peer.llama.n_vocab())
        self._peer.write(prompts[:1], 1)
        return asdict(self._peer.write(prompts, workload.tokens))


class _Embedded:
    """The embedded bundle and its held-out pairs, each with the better answer first."""

    def __init__(self) -> None:
        from fsrm_lite.bundle.encoder import PromptEncoder
        from fsrm_lite.bundle.files import Bundle

        bundle = Bundle.open(None)
        self.encoder = PromptEncoder(bundle.path("tokenizer"), bundle.manifest)
        self.files = {"ONNX Runtime": bundle.path("fast"), "llama.cpp": bundle.path("slow")}
        self.limits = bundle.manifest.limits

    def pairs(self, workload: JudgeWorkload) -> list[tuple[str, str, str]]:
        from fsrm_lite.models.data import held_out

        return [(p.problem.question, p.chosen.text, p.rejected.text) for p in held_out("test", workload.pairs)]


class EmbeddedJudge:
    """The judge with the embedded model, which writes real thoughts."""

    def __init__(self, runtime: str, threads: int | None) -> None:
        from fsrm_lite.slow.judge import Judge

        self._model = _Embedded()
        self._steps = RUNTIMES[runtime]
        self._judge = Judge(self._model.files[runtime], self._model.encoder, threads=threads)

    def run(self, workload: JudgeWorkload) -> dict[str, Any]:
        """Judge the pairs."""
        from fsrm_lite.types import JudgeOptions

        pairs = self._model.pairs(workload)
        options = JudgeOptions(votes=workload.votes, adaptive=workload.adaptive, temperature=TEMPERATURE)
        with self._steps() as steps:
            start = time.perf_counter()
            judgements = [
                j
                for i in range(0, len(pairs), workload.batch)
                for j in self._judge.compare(pairs[i : i + workload.batch], options)
            ]
            seconds = time.perf_counter() - start
        return steps.timing(seconds, sum(j.tokens_generated for j in judgements), [j.winner for j in judgements])


class EmbeddedCompletion:
    """The peer with the embedded model and the same pairs. It writes every vote in both orders, one after the other."""

    def __init__(self, threads: int) -> None:
        self._model = _Embedded()
        self._peer = Completion(self._model.files["llama.cpp"], threads, self._model.limits.context)

    def run(self, workload: JudgeWorkload) -> dict[str, Any]:
        """Write the votes."""
        prompts = []
        for question, a, b in self._model.pairs(workload):
            for order in ((a, b), (b, a)):
                prompts += [self._model.encoder.pairwise_slow(question, *order)] * workload.votes
        return asdict(self._peer.write(prompts, self._model.limits.thinking_tokens))


def _asked(threads: int) -> int | None:
    """Return the number of threads to ask the judge for.

    None leaves the number to the judge, as its users do, unless another one than its default was asked for.
    """
    from fsrm_lite.runtimes.threads import usable_cores

    return None if threads == usable_cores() else threads


def _random_judge(runtime: str, files: Files, threads: int) -> RandomJudge:
    path = files.fast("int8") if runtime == "ONNX Runtime" else files.gguf("q4_k_m")
    return RandomJudge(runtime, path, _asked(threads))


def _embedded_judge(runtime: str, files: Files, threads: int) -> EmbeddedJudge:
    return EmbeddedJudge(runtime, _asked(threads))


SIDES: dict[str, Callable[[Files, int], Side]] = {
    **{f"judge on {runtime}, random weights": partial(_random_judge, runtime) for runtime in RUNTIMES},
    "create_completion, random weights": lambda files, threads: RandomCompletion(files.gguf("q4_k_m"), threads),
    **{f"judge on {runtime}, embedded": partial(_embedded_judge, runtime) for runtime in RUNTIMES},
    "create_completion, embedded": lambda files, threads: EmbeddedCompletion(threads),
}
"""What a worker process can run, by its name."""
