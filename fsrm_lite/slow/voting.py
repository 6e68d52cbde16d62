"""Which votes to ask for, when a pair is decided, and what the votes say together. No model in here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fsrm_lite.types import Completion, Job, Request, Vote


def majority(votes: Sequence[Vote]) -> int:
    """Return the winner of some votes: most votes, then the larger mean probability, then the first response.

    Args:
        votes: At least one.

    Returns:
        0 or 1.
    """
    second = sum(v.winner for v in votes)
    if 2 * second != len(votes):
        return int(2 * second > len(votes))
    return int(sum(v.p_first for v in votes) < 0.5 * len(votes))


def decided(first: int, second: int, total: int, error_rate: float = 0.0) -> bool:
    """Return whether the majority of ``total`` votes is settled after ``first`` votes for one side and ``second`` for the other.

    With ``error_rate`` 0 it is settled when the leader has more than half of all votes. With a larger one it is settled
    as well when the leader would end without more than half with at most that probability, under a uniform prior on the
    share of votes (the number of the missing votes that go to the other side is then beta-binomial).
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
    """Probability of k successes in n trials whose chance is Beta(a, b)."""

    def log_beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return math.comb(n, k) * math.exp(log_beta(k + a, n - k + b) - log_beta(a, b))


@dataclass(slots=True)
class _Tally:
    """How far the voting on one pair has come.

    Attributes:
        numbers: Numbers of the pair's jobs, in the order in which they are asked.
        adaptive: See ``Request``.
        asked: How many of them were asked.
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
        """Whether no further vote will be asked."""
        return self.over or self.asked == len(self.numbers)

    def may_ask(self) -> bool:
        """Whether to ask one more vote now.

        Adaptive voting has no more votes running at a time than the leader still needs: a vote that turns out to be
        needless has been paid for.
        """
        if self.exhausted:
            return False
        missing = len(self.numbers) // 2 + 1 - max(self.counts)
        return not self.adaptive or len(self.running) < max(1, missing)


class Referee:
    """Gives out the jobs of a request and collects what was written: the feed of one scheduler run.

    Pairs are asked in order, each to its end before the next where streams are scarce, so that the votes on a pair
    find its prompt still held.
    """

    def __init__(self, request: Request) -> None:
        """Start with nothing asked."""
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
        """Return the next job and its number, or None when every open pair waits for a completion."""
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
        """Count a completion; when that decides its pair, return the numbers of the votes that are still being written."""
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
    """Index of the choice that a finished completion stands for: the word the model wrote, else the likeliest."""
    if completion.choice is not None:
        return completion.choice
    return max(range(len(completion.logits)), key=lambda i: (completion.logits[i], -i))


def probabilities(logits: Sequence[float]) -> list[float]:
    """Softmax over the choices of one verdict."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]
