"""Result types: frozen dataclasses of plain Python values, ready for JSON.

No numpy scalar ever appears in a result: ``json.dumps(score.to_dict())`` always works.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias, TypedDict


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt: TypeAlias = str | list[Message]
"""What the caller asks about: plain text, or a conversation that ends with the request."""

JudgePolicy = Literal["auto", "never", "always"]
"""When to think slowly: where the gate says so, never, or always."""


class Route(StrEnum):
    """Which path gave the final answer."""

    FAST = "fast"
    SLOW = "slow"


class _Jsonable:
    """Adds ``to_dict`` to the result dataclasses."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as nested dicts, lists and plain scalars."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class Score(_Jsonable):
    """The reward of one response.

    Attributes:
        score: Expected label value scaled to [0, 1]; higher is better.
        logit: Log-odds of ``score``, the scale on which pairs are compared. Finite.
        intuition_confidence: ``|2*sigmoid(logit) - 1|`` of the fast reading, in [0, 1].
        distribution_confidence: ``1 - H(p)/log|V|`` of the fast first-token distribution, in [0, 1].
        label_mass: Probability of all label tokens together, in [0, 1]: the share of the distribution that ``score`` speaks
            for. Low means the model did not mean to answer; high does not mean that the prompt is one it can judge.
        route: Path that gave ``score``.
        escalated: Whether the gate asked for slow thinking (it may still be answered fast, if no judge is there).
        reasons: Why the gate fired, one short phrase per condition; empty when it did not.
        verdict: Label word the judge chose, or None on the fast route.
        rationale: The judge's thought, or None on the fast route.
        tokens_read: Prompt tokens that were computed for this result (shared prefixes count once, for the first).
        tokens_generated: Tokens that the judge wrote.
        complete: False when a deadline cut the judge short.
    """

    score: float
    logit: float
    intuition_confidence: float
    distribution_confidence: float
    label_mass: float
    route: Route = Route.FAST
    escalated: bool = False
    reasons: tuple[str, ...] = ()
    verdict: str | None = None
    rationale: str | None = None
    tokens_read: int = 0
    tokens_generated: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Vote(_Jsonable):
    """One chain of thought of the judge about one pair.

    Attributes:
        swapped: True when the judge saw the second response first.
        winner: 0 if this vote prefers the caller's first response, 1 if the second.
        p_first: Probability of the first response at the verdict token, in [0, 1], in the caller's order.
        rationale: The thought, as text.
        tokens_generated: Tokens written for this vote.
        closed: True when the thought hit its budget and was closed for the verdict to be read.
    """

    swapped: bool
    winner: int
    p_first: float
    rationale: str
    tokens_generated: int
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Comparison(_Jsonable):
    """Which of two responses is better.

    Attributes:
        winner: 0 for the first response, 1 for the second. There are no ties: where the votes are even, the fast decision stands.
        p_first: Probability that the first is better, in [0, 1]: the mean over the votes, or the fast one where that decides.
        intuition_confidence: ``|2*sigmoid(logit_first - logit_second) - 1|`` of the fast readings, in [0, 1].
        distribution_confidence: The smaller of the two responses' distribution confidences, in [0, 1].
        route: Path that gave the answer.
        escalated: Whether the gate asked for slow thinking.
        reasons: Why the gate fired; empty when it did not.
        scores: The two fast scores, in the caller's order.
        votes: The judge's votes, empty on the fast route.
        orders_agree: Whether the majority is the same in both orders; None unless both were asked.
        rationale: The thought of the first vote that agrees with the winner, or None on the fast route.
        tokens_read: Prompt tokens computed, fast and slow together.
        tokens_generated: Tokens that the judge wrote.
        tokens_saved: Upper bound of tokens that adaptive voting left unwritten (votes not cast x mean length).
        complete: False when a deadline cut the judge short.
        pair: Positions of the two responses among the candidates, where there are candidates.
    """

    winner: int
    p_first: float
    intuition_confidence: float
    distribution_confidence: float
    route: Route = Route.FAST
    escalated: bool = False
    reasons: tuple[str, ...] = ()
    scores: tuple[Score, Score] | None = None
    votes: tuple[Vote, ...] = ()
    orders_agree: bool | None = None
    rationale: str | None = None
    tokens_read: int = 0
    tokens_generated: int = 0
    tokens_saved: int = 0
    complete: bool = True
    pair: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Rating(_Jsonable):
    """The rating of one candidate on the Elo scale (400 points are odds of 10 to 1; the mean of a field is 1500).

    Attributes:
        rating: Points.
        low: Lower end of the interval, in points; equal to ``rating`` where the method gives no interval.
        high: Upper end of the interval, in points.
        games: Games this candidate played.
    """

    rating: float
    low: float
    high: float
    games: int


@dataclass(frozen=True, slots=True)
class Selection(_Jsonable):
    """The best of N responses.

    Attributes:
        index: Position of the best response in the caller's list.
        ranking: All positions, best first.
        scores: Fast scores in the caller's order.
        comparisons: Slow comparisons that were made, in the order they were made.
        strategy: Name of the strategy that chose.
        tokens_read: Prompt tokens computed in all.
        tokens_generated: Tokens that the judge wrote in all.
        ratings: Per candidate in the caller's order, where the strategy rates them ("elo"); else empty.
    """

    index: int
    ranking: tuple[int, ...]
    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...] = ()
    strategy: str = "fast"
    tokens_read: int = 0
    tokens_generated: int = 0
    ratings: tuple[Rating, ...] = ()
