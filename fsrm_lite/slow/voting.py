"""Which votes to ask for, when a pair is decided, and what the votes say together. No model in here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fsrm_lite.slow.scheduler import Job, Result
from fsrm_lite.types import Vote


@dataclass(frozen=True, slots=True)
class Contest:
    """The votes on one pair.

    Attributes:
        numbers: Job numbers in the order in which they are asked.
        swapped: Per vote, whether the judge sees the second response first.
        adaptive: Stop asking when the rest cannot change the majority.
        error_rate: Stop also when the rest would change it with at most this probability, in [0, 0.5).
    """

    numbers: tuple[int, ...]
    swapped: tuple[bool, ...]
    adaptive: bool = True
    error_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs of one call; contests group some of them."""

    jobs: tuple[Job, ...]
    contests: tuple[Contest, ...] = ()


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

    Exact for ``error_rate`` 0: the leader already has more than half. Otherwise the probability that the leader ends
    without more than half, under a uniform prior on the share of votes (the rest is then beta-binomial), must be at
    most ``error_rate``.
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
    """How far one contest has come."""

    contest: Contest
    asked: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0])
    running: set[int] = field(default_factory=set)
    over: bool = False

    def may_ask(self) -> bool:
        """Ask no more votes at a time than could settle it: the leader's missing votes."""
        total = len(self.contest.numbers)
        if self.over or self.asked == total:
            return False
        return not self.contest.adaptive or len(self.running) < max(1, total // 2 + 1 - max(self.counts))


class Referee:
    """Gives out the jobs of a plan and collects their results: the feed of one scheduler run.

    Pairs are asked in order, each to its end before the next where streams are scarce, so that the votes on a pair
    find its prompt still held.
    """

    def __init__(self, plan: Plan) -> None:
        """Start with nothing asked."""
        self.results: list[Result | None] = [None] * len(plan.jobs)
        self._jobs = plan.jobs
        self._tallies = [_Tally(c) for c in plan.contests]
        self._of = {number: (tally, k) for tally in self._tallies for k, number in enumerate(tally.contest.numbers)}
        self._open = list(self._tallies)
        self._single = iter([n for n in range(len(plan.jobs)) if n not in self._of])

    def next(self) -> tuple[int, Job] | None:
        """Return the next job, or None when every open contest waits for a result."""
        self._open = [t for t in self._open if not t.over and t.asked < len(t.contest.numbers)] if self._open else []
        for tally in self._open:
            if tally.may_ask():
                number = tally.contest.numbers[tally.asked]
                tally.asked += 1
                tally.running.add(number)
                return number, self._jobs[number]
        number = next(self._single, -1)
        return (number, self._jobs[number]) if number >= 0 else None

    def take(self, number: int, result: Result) -> Iterable[int]:
        """Count a result; when that settles its contest, return the votes still running in it."""
        self.results[number] = result
        if number not in self._of:
            return ()
        tally, k = self._of[number]
        tally.running.discard(number)
        if not result.finished or tally.over:
            return ()
        tally.counts[choice_of(result) ^ tally.contest.swapped[k]] += 1
        contest = tally.contest
        if contest.adaptive and decided(tally.counts[0], tally.counts[1], len(contest.numbers), contest.error_rate):
            tally.over = True
            return tuple(tally.running)
        return ()


def choice_of(result: Result) -> int:
    """Index of the choice a finished result stands for: the word the model wrote, else the likeliest."""
    if result.choice is not None:
        return result.choice
    return max(range(len(result.logits)), key=lambda i: (result.logits[i], -i))


def probabilities(logits: Sequence[float]) -> list[float]:
    """Softmax over the choices of one verdict."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]
