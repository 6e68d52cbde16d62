"""The two sides of the judge's benchmark, each in a process of its own.

Fsrm-lite's judge, and ``Llama.create_completion``.

The peer gets the very same prompts as token ids, in an order that keeps its prompt cache warm, with the same sampling
and the same budget. Votes of random weights are as long as their budget whatever is drawn (they never stop).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.files import Files

PROMPT, SHARED, VOTE = 512, 256, 128  # tokens: a prompt, what both orders of a pair have in common, a vote
STREAMS = 32
TEMPERATURE = 0.6


@dataclass(frozen=True, slots=True)
class Task:
    """Pairs to be judged.

    Attributes:
        name: What it is called in the table.
        pairs: How many; of the embedded model, that many of its held-out test pairs.
        votes: Votes in each of the two orders.
        batch: Pairs per call.
        adaptive: Stop votes that cannot matter any more.
        one_prompt: Put all votes behind one prompt: what the peer does with its prompt cache warm.
        tokens: Tokens of each vote of random weights.
    """

    name: str
    pairs: int
    votes: int
    batch: int = 1
    adaptive: bool = False
    one_prompt: bool = False
    tokens: int = VOTE


WARM_UP = Task("warm-up", 1, 1, one_prompt=True, tokens=8)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        seconds: Wall time.
        tokens: Tokens written.
        inside_s: Seconds of it within ``llama_decode``: what a bare loop over the same batches would take.
        step_ms: Milliseconds of one call of it, in the middle; of the judge only, as all below.
        step_rows: Rows of one call, in the middle: most calls write one token of each live vote.
        winners: Decisions.
    """

    seconds: float
    tokens: int
    inside_s: float = 0.0
    step_ms: float = 0.0
    step_rows: float = 0.0
    winners: list[int] = field(default_factory=list)


class Side(Protocol):
    """What a worker drives."""

    def run(self, task: Task) -> dict[str, Any]:
        """Do a task; returns an :class:`Outcome` as a dict."""
        ...


@dataclass(slots=True)
class Steps:
    """Seconds and rows of every call of ``llama_decode``."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def outcome(self, seconds: float, tokens: int, winners: Sequence[int] = ()) -> dict[str, Any]:
        """Return the :class:`Outcome` of a judge that took these steps, as a dict."""
        return asdict(
            Outcome(seconds, tokens, sum(self.seconds), 1000 * median(self.seconds), median(self.rows), list(winners))
        )


@contextmanager
def decoding_steps(llama: Any) -> Iterator[Steps]:  # noqa: ANN401 - the llama_cpp module
    """Watch the calls of ``llama_decode``."""
    steps = Steps()
    decode = llama.llama_decode

    def timed(context: Any, batch: Any) -> int:  # noqa: ANN401
        start = time.perf_counter()
        status: int = decode(context, batch)
        steps.seconds.append(time.perf_counter() - start)
        steps.rows.append(batch.n_tokens)
        return status

    llama.llama_decode = timed
    try:
        yield steps
    finally:
        llama.llama_decode = decode


def random_prompts(task: Task, vocab_size: int) -> list[tuple[int, ...]]:
    """Prompts of the pairs in both orders, each as often as there are votes: both orders share their front."""
    import numpy as np

    rng = np.random.default_rng(0)
    out = []
    for _ in range(task.pairs):
        front, a, b = (
            rng.integers(0, vocab_size, n).tolist() for n in (SHARED, (PROMPT - SHARED) // 2, (PROMPT - SHARED) // 2)
        )
        for order in (front + a + b, front + b + a):
            out += [tuple(order)] * task.votes
    return out[:1] * task.votes if task.one_prompt else out


class RandomJudge:
    """The scheduler on random weights."""

    def __init__(self, path: Path, threads: int | None) -> None:
        from fsrm_lite.runtimes.llama.engine import Engine

        self._engine = Engine(path, threads=threads)

    def run(self, task: Task) -> dict[str, Any]:
        """Write the votes."""
        from fsrm_lite.slow.sampling import Sampling, vote_key
        from fsrm_lite.slow.scheduler import Job, Scheduler
        from fsrm_lite.slow.voting import Plan, Referee

        prompts = random_prompts(task, self._engine.vocab_size)
        jobs = tuple(Job(p, vote_key(0, p, k), task.tokens) for k, p in enumerate(prompts))
        referee = Referee(Plan(jobs))
        with decoding_steps(self._engine._llama) as steps:
            start = time.perf_counter()
            scheduler = Scheduler(
                self._engine, lambda ids: "", Sampling(TEMPERATURE), (), min(STREAMS, len(jobs)), PROMPT + VOTE
            )
            scheduler.run(referee)
            seconds = time.perf_counter() - start
        return steps.outcome(seconds, sum(len(r.ids) for r in referee.results if r))


class Completion:
    """``llama_cpp.Llama``, one completion at a time."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        from benchmarks.llama_peer import guard_high_level
        from fsrm_lite.runtimes.llama.engine import load_llama

        llama = load_llama()
        guard_high_level(llama, path)
        self.llama = llama.Llama(
            str(path), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def write(self, prompts: Sequence[Sequence[int]], budget: int) -> Outcome:
        """Write one completion per prompt; equal prompts must follow each other."""
        options = {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
        written = 0
        start = time.perf_counter()
        for seed, prompt in enumerate(prompts, 1):
            reply = self.llama.create_completion(list(prompt), max_tokens=budget, seed=seed, **options)
            written += reply["usage"]["completion_tokens"]
        return Outcome(time.perf_counter() - start, written)


class RandomCompletion:
    """The peer on random weights, its prompt read before the clock starts."""

    def __init__(self, path: Path, threads: int) -> None:
        self._peer = Completion(path, threads, PROMPT + VOTE + 16)

    def run(self, task: Task) -> dict[str, Any]:
        """Write the votes."""
        prompts = random_prompts(task, self._peer.llama.n_vocab())
        self._peer.write(prompts[:1], 1)
        return asdict(self._peer.write(prompts, task.tokens))


class _Embedded:
    """The embedded bundle and its held-out pairs, better answer first."""

    def __init__(self) -> None:
        from fsrm_lite.bundle.encoder import PromptEncoder
        from fsrm_lite.bundle.files import Bundle

        bundle = Bundle.open(None)
        self.encoder = PromptEncoder(bundle.path("tokenizer"), bundle.manifest)
        self.path, self.limits = bundle.path("slow"), bundle.manifest.limits

    def pairs(self, task: Task) -> list[tuple[str, str, str]]:
        from fsrm_lite.models.data import held_out

        return [(p.problem.question, p.chosen.text, p.rejected.text) for p in held_out("test", task.pairs)]


class EmbeddedJudge:
    """Real thoughts of the embedded model."""

    def __init__(self, threads: int | None) -> None:
        from fsrm_lite.slow.judge import Judge

        self._model = _Embedded()
        self._judge = Judge(self._model.path, self._model.encoder, threads=threads)

    def run(self, task: Task) -> dict[str, Any]:
        """Judge the pairs."""
        from fsrm_lite.runtimes.llama.engine import load_llama
        from fsrm_lite.slow.judge import JudgeOptions

        pairs = self._model.pairs(task)
        options = JudgeOptions(votes=task.votes, adaptive=task.adaptive, temperature=TEMPERATURE)
        with decoding_steps(load_llama()) as steps:
            start = time.perf_counter()
            judgements = [
                j
                for i in range(0, len(pairs), task.batch)
                for j in self._judge.compare(pairs[i : i + task.batch], options)
            ]
            seconds = time.perf_counter() - start
        return steps.outcome(seconds, sum(j.tokens_generated for j in judgements), [j.winner for j in judgements])


class EmbeddedCompletion:
    """The peer on the same pairs: every vote of every order, one after the other."""

    def __init__(self, threads: int) -> None:
        self._model = _Embedded()
        self._peer = Completion(self._model.path, threads, self._model.limits.context)

    def run(self, task: Task) -> dict[str, Any]:
        """Write the votes."""
        prompts = []
        for question, a, b in self._model.pairs(task):
            for order in ((a, b), (b, a)):
                prompts += [self._model.encoder.pairwise_slow(question, *order)] * task.votes
        return asdict(self._peer.write(prompts, self._model.limits.thinking_tokens))


def _asked(threads: int) -> int | None:
    """Leave the number of threads to the judge, as its users do, unless another one than its default was asked for."""
    from fsrm_lite.runtimes.threads import usable_cores

    return None if threads == usable_cores() else threads


SIDES: dict[str, Callable[[Files, int], Side]] = {
    "judge, random weights": lambda files, threads: RandomJudge(files.gguf("q4_k_m"), _asked(threads)),
    "create_completion, random weights": lambda files, threads: RandomCompletion(files.gguf("q4_k_m"), threads),
    "judge, embedded": lambda files, threads: EmbeddedJudge(_asked(threads)),
    "create_completion, embedded": lambda files, threads: EmbeddedCompletion(threads),
}
"""By name."""
