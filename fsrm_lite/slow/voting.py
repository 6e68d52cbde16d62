"""Decides which votes to ask for, when a pair is decided, and what its votes say together. No model is used here.

A *vote* is one thought of the judge about a pair, with its verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fsrm_lite.types import Completion, Job, Request, Vote


def majority(votes: Sequence[Vote]) -> int:
    """Return the winner of some votes.

    It is the response with more votes; if they tie, the one with the larger mean probability; if that ties too, the
    first.

    Args:
        votes: At least one vote.

    Returns:
        0 for the first response, 1 for the second.
    """
    second = sum(v.winner for v in votes)
    if 2 * second != len(votes):
        return int(2 * second > len(votes))
    return int(sum(v.p_first for v in votes) < 0.5 * len(votes))


def winner_alone(votes: Sequence[Vote], fast_logit: float) -> int:
    """Return the winner by the votes alone, as a gate without weights has it: where they are even, the fast path's.

    Args:
        votes: At least one vote.
        fast_logit: The fast path's log-odds that the first response is the better one.

    Returns:
        0 for the first response, 1 for the second.
    """
    even = 2 * sum(v.winner for v in votes) == len(votes)
    return int(fast_logit < 0) if even and fast_logit != 0 else majority(votes)


def decided(first: int, second: int, total: int, error_rate: float = 0.0) -> bool:
    """Return whether the majority of ``total`` votes is settled after the votes so far.

    With ``error_rate`` 0 it is settled when the leader has more than half of all votes. With a larger one it is also
    settled when the leader would fail to get more than half with at most that probability. The share of votes for each
    side is taken to be uniformly distributed before the first vote, so that the number of missing votes that go to the
    other side is beta-binomial.

    Args:
        first: Votes for the first response so far.
        second: Votes for the second response so far.
        total: How many votes can be asked for in all.
        error_rate: In [0, 0.5).
    """
    lead, trail = max(first, second), min(first, second)
    if 2 * lead > total:
        return True
    rest = total - lead - trail
    if error_rate <= 0.0 or lead == trail or rest <= 0:
        return rest <= 0
    lost = sum(_beta_binomial(k, rest, trail + 1, lead + 1) for k in range(rest + 1) if 2 * (lead + rest - k) <= total)
    return lost <= error_rate


def _beta_binomial(k: int, n: int, a: int, b: int) -> float:
    """Return the probability of ``k`` successes in ``n`` trials whose chance of success is Beta(a, b)."""

    def log_beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return math.comb(n, k) * math.exp(log_beta(k + a, n - k + b) - log_beta(a, b))


@dataclass(slots=True)
class _Tally:
    """The state of the voting on one pair.

    Attributes:
        numbers: Numbers of the pair's jobs, in the order in which they are asked.
        adaptive: See ``Request``.
        asked: How many of them have been asked.
        counts: Votes for the first and for the second response.
        running: Numbers of the jobs that are being written.
        over: Whether the pair is decided.
    """

    numbers: list[int]
    adaptive: bool
    asked: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0])
    running: set[int] = field(default_factory=set)
    over: bool = False

    @property
    def exhausted(self) -> bool:
        """Whether no further vote will be asked for."""
        return self.over or self.asked == len(self.numbers)

    def may_ask(self) -> bool:
        """Return whether to ask for one more vote now.

        Adaptive voting runs at most as many votes at a time as the leader still needs for a majority. A vote that turns
        out to be needless would have cost its tokens all the same.
        """
        if self.exhausted:
            return False
        missing = len(self.numbers) // 2 + 1 - max(self.counts)
        return not self.adaptive or len(self.running) < max(1, missing)


class Referee:
    """Gives out the jobs of a request and collects what was written: the ``Feed`` of one run of the scheduler.

    Pairs are asked about in order. Where streams are scarce, one pair is finished before the next is begun, so that all
    votes on a pair find its prompt still in the cache.
    """

    def __init__(self, request: Request) -> None:
        """Begin with no job given out."""
        self.completions: list[Completion | None] = [None] * len(request.jobs)
        self._request = request
        votes: dict[int, list[int]] = {}
        for number, job in enumerate(request.jobs):
            if job.pair is not None:
                votes.setdefault(job.pair, []).append(number)
        self._tallies = {pair: _Tally(numbers, request.adaptive) for pair, numbers in votes.items()}
        self._open = list(self._tallies.values())
        self._single = iter([number for number, job in enumerate(request.jobs) if job.pair is None])

    def next(self) -> tuple[int, Job] | None:
        """Return the next job with its number.

        None means that no other job is left and every undecided pair waits for a running vote.
        """
        jobs = self._request.jobs
        self._open = [tally for tally in self._open if not tally.exhausted]
        for tally in self._open:
            if tally.may_ask():
                number = tally.numbers[tally.asked]
                tally.asked += 1
                tally.running.add(number)
                return number, jobs[number]
        number = next(self._single, -1)
        return (number, jobs[number]) if number >= 0 else None

    def take(self, number: int, completion: Completion) -> Iterable[int]:
        """Count a completion.

        Args:
            number: Number of its job.
            completion: What was written.

        Returns:
            If this vote decides its pair, the numbers of the pair's votes that are still being written; else nothing.
        """
        self.completions[number] = completion
        job, request = self._request.jobs[number], self._request
        if job.pair is None:
            return ()
        tally = self._tallies[job.pair]
        tally.running.discard(number)
        if not completion.finished or tally.over:
            return ()
        tally.counts[choice_of(completion) ^ job.swapped] += 1
        if request.adaptive and decided(tally.counts[0], tally.counts[1], len(tally.numbers), request.error_rate):
            tally.over = True
            return tuple(tally.running)
        return ()


def choice_of(completion: Completion) -> int:
    """Return the index of the choice that a finished completion stands for.

    It is the verdict that the model wrote itself; if there is none, the likeliest choice.
    """
    if completion.choice is not None:
        return completion.choice
    return max(range(len(completion.logits)), key=lambda i: (completion.logits[i], -i))


def probabilities(logits: Sequence[float]) -> list[float]:
    """Return the probabilities of a verdict's choices, as the softmax of their logits."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]
