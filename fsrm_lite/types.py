"""What travels through the package, in the order in which it travels, as frozen dataclasses of plain Python values.

1. What is asked: ``Prompt``, and the settings that a call may give (``JudgeSettings`` and its relatives).
2. What the judge is told to write: ``Decoding``, ``VerdictForm``, ``Job``, ``Request``.
3. What it wrote and what that means: ``Completion``, ``Vote``, ``PairJudgement``, ``PointJudgement``.
4. What the caller gets: ``Score``, ``Comparison``, ``Rating``, ``Selection``.

No numpy scalar ever appears in a result: ``json.dumps(score.to_dict())`` always works.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from fsrm_lite.checks import expect, expect_decoding, is_number, is_whole

if TYPE_CHECKING:
    from pathlib import Path

    from fsrm_lite.gate import GateSpec

# --- 1. What is asked ---------------------------------------------------------------------------------------------


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt: TypeAlias = str | list[Message]
"""What the caller asks about: plain text, or a conversation that ends with the request."""

JudgePolicy = Literal["auto", "never", "always"]
"""When to think slowly: where the gate says so, never, or always."""

Strategy = Literal["fast", "gated", "knockout", "elo", "majority"]
"""How the best of N is found; see ``fsrm_lite.ranking.tournament.select``."""


class _JudgeSettings(TypedDict, total=False):
    votes: int | None
    thinking_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int
    adaptive: bool
    error_rate: float
    deadline: float | None
    both_orders: bool


class JudgeSettings(_JudgeSettings, total=False):
    """Settings of the judge that one call may give; what is left out is the model's own setting.

    They are the fields of ``JudgeOptions``, which says what each means and which values it may have.
    """

    top_k: int | None


class ScoringSettings(JudgeSettings, total=False):
    """What a call that scores or compares may give: whether to think slowly, and how."""

    judge: JudgePolicy | None


class RankSettings(_JudgeSettings, total=False):
    """What ``FastSlowRM.rank`` may be given: the same but for ``top_k``, by which a ranking means how many to return."""

    judge: JudgePolicy | None


class TournamentSettings(TypedDict, total=False):
    """How a strategy plays; the fields of ``fsrm_lite.ranking.tournament.TournamentOptions``, which explains them."""

    key: Callable[[str], Hashable]
    on_judge_error: Literal["raise", "fast"]
    budget: int | None
    precision: float
    extractor: str | Callable[[str], str | None]
    weighted: bool


class SelectionSettings(ScoringSettings, TournamentSettings, total=False):
    """What ``FastSlowRM.best_of_n`` may be given beside its strategy."""


class _ModelSettings(TypedDict, total=False):
    threads: int | None
    votes: int | None
    thinking_tokens: int | None
    temperature: float | None
    seed: int
    deadline: float | None
    gate: GateSpec | None
    truncate: bool
    judge_process: Literal["inline", "subprocess"]
    on_judge_crash: Literal["raise", "fast"]


class ModelSettings(_ModelSettings, total=False):
    """Options of ``FastSlowRM``, which explains them."""

    judge: JudgePolicy


class LoadSettings(_ModelSettings, total=False):
    """How an integration loads its model: the options of ``FastSlowRM.from_pretrained``, which explains them.

    All but ``judge``: each integration has a policy of its own.
    """

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How to judge; None takes the bundle's own setting.

    Attributes:
        votes: Chains of thought per pair *and order*, or per response; 1 to 256.
        thinking_tokens: Budget of one thought, at least 1; cut to what the context leaves.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus, in (0, 1].
        top_k: Keep the k likeliest tokens; 0 keeps all.
        seed: Any integer of up to 127 bits.
        adaptive: Stop voting on a pair when the remaining votes cannot change its majority.
        error_rate: Stop also when they would change it with at most this probability, in [0, 0.5); needs ``adaptive``.
        deadline: Seconds after which the call returns what it has; None for no limit.
        both_orders: Ask each pair in both orders.
    """

    votes: int | None = None
    thinking_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    adaptive: bool = True
    error_rate: float = 0.0
    deadline: float | None = None
    both_orders: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            InputError: Naming the option, the value and the range.
        """
        settings = (self.votes, self.temperature, self.top_p, self.top_k)
        expect_decoding(*(1 if value is None else value for value in settings))  # 1 is in range for each of them
        for name, value in (("adaptive", self.adaptive), ("both_orders", self.both_orders)):
            expect(isinstance(value, bool), name, value, "true or false")
        n, seed, rate, limit = self.thinking_tokens, self.seed, self.error_rate, self.deadline
        expect(n is None or (is_whole(n) and n >= 1), "thinking_tokens", n, "a whole number of at least 1")
        expect(is_whole(seed) and abs(seed) < 2**127, "seed", seed, "a whole number of up to 127 bits")
        expect(is_number(rate) and 0.0 <= rate < 0.5, "error_rate", rate, "a number in [0, 0.5)")
        seconds = "a number of seconds of at least 0, or None"
        expect(limit is None or (is_number(limit) and limit >= 0.0), "deadline", limit, seconds)


# --- 2. What the judge is told to write ---------------------------------------------------------------------------

ANSWER_TOKENS = 64
"""Tokens that a model may write behind its thought before its verdict is read for it."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token. At least 0.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches this; in (0, 1].
        top_k: Keep the k likeliest tokens (and what ties with the last of them); 0 keeps all.
    """

    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range; see ``JudgeOptions``."""
        expect_decoding(1, self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True, slots=True)
class VerdictForm:
    r"""How a thought ends and where its verdict stands, as token ids.

    Attributes:
        head: Ids that end a thought when the model writes them, for example ``</think>``.
        forced: Ids that lead from an unfinished thought to the verdict: the whole close and the prefix.
        tail: Text between ``head`` and the verdict's prefix, for example ``"\n\n"``.
        prefix: Text that stands before a choice; when empty, only the place right behind the close is one.
        choices: Ids of the choices.
    """

    head: tuple[int, ...]
    forced: tuple[int, ...]
    tail: str
    prefix: str
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One text for the model to write: a vote about a pair or a response, or a free text.

    Attributes:
        prompt: Ids to start from; not empty.
        key: Key of its random numbers, 64 bits.
        budget: Tokens it may write (its thought, where it has a verdict form); at least 1.
        form: Where its verdict stands, or None to write until a stop token.
        pair: Number of the pair that this is a vote on, or None: votes on one pair may make each other needless.
        swapped: Whether this vote sees the pair's second response first.
    """

    prompt: tuple[int, ...]
    key: int
    budget: int
    form: VerdictForm | None = None
    pair: int | None = None
    swapped: bool = False

    @property
    def room(self) -> int:
        """Tokens of a stream that this job may come to fill."""
        return len(self.prompt) + self.budget + (ANSWER_TOKENS + len(self.form.forced) if self.form else 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the judge: what to write, and how.

    Attributes:
        jobs: The texts to write; the votes on one pair in the order in which they are asked.
        decoding: How tokens are chosen.
        stop_ids: Ids that end a text.
        deadline: Seconds from now, or None.
        adaptive: Stop asking about a pair when the votes not yet asked cannot change its majority.
        error_rate: Stop also when they would change it with at most this probability, in [0, 0.5).
    """

    jobs: tuple[Job, ...]
    decoding: Decoding
    stop_ids: tuple[int, ...]
    deadline: float | None = None
    adaptive: bool = True
    error_rate: float = 0.0


# --- 3. What it wrote, and what that means ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote for a job.

    Attributes:
        ids: Ids written by the model, stop token left out.
        thought: How many of them belong to the thought.
        choice: Index of the last verdict that the model wrote itself, or None.
        logits: Logits of the choices at the verdict, empty where none was read.
        tokens_read: Prompt and closing tokens computed for it.
        finished: False when it was cut off by a deadline or dropped.
    """

    ids: tuple[int, ...]
    thought: int
    choice: int | None
    logits: tuple[float, ...]
    tokens_read: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """One free text that the model wrote.

    Attributes:
        text: Decoded, control tokens left out.
        ids: Token ids, without the stop token.
        tokens: Number of ids.
    """

    text: str
    ids: tuple[int, ...]
    tokens: int


class _Jsonable:
    """Adds ``to_dict`` to the result dataclasses."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as nested dicts, lists and plain scalars."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


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
class PairJudgement:
    """What the judge says about a pair.

    Attributes:
        winner: 0 for the first response, 1 for the second: the majority; where votes tie, the side with the larger
            mean probability, then the first.
        p_first: Mean over the votes of the probability of the first response at the verdict, in [0, 1]; 0.5 without
            votes.
        votes: The votes cast, in the order asked. Empty when a deadline left none.
        orders_agree: Whether both orders' majorities are the same; None unless both have votes.
        tokens_read: Prompt and closing tokens computed.
        tokens_generated: Tokens written, those of votes cut off included.
        tokens_saved: Estimate of the tokens that adaptive voting left unwritten: votes not finished x mean length.
        complete: False when a deadline cut the voting short of a decision.
    """

    winner: int
    p_first: float
    votes: tuple[Vote, ...]
    orders_agree: bool | None
    tokens_read: int
    tokens_generated: int
    tokens_saved: int
    complete: bool


@dataclass(frozen=True, slots=True)
class PointJudgement:
    """What the judge says about one response.

    Attributes:
        score: Expected value of the verdict, scaled to [0, 1]; 0.5 when a deadline left no vote.
        logit: Log-odds of ``score``, within +-50.
        verdict: The choice most votes gave (ties: the more probable one); empty without votes.
        rationale: The thought of the first vote for that verdict.
        p_choices: Probability of each choice after the thought, mean over votes, in the manifest's order.
        tokens_read: Prompt and closing tokens computed.
        tokens_generated: Tokens written.
        complete: False when a deadline cut votes off.
    """

    score: float
    logit: float
    verdict: str
    rationale: str
    p_choices: tuple[float, ...]
    tokens_read: int
    tokens_generated: int
    complete: bool


# --- 4. What the caller gets --------------------------------------------------------------------------------------


class Route(StrEnum):
    """Which path gave the final answer."""

    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Score(_Jsonable):
    """The reward of one response.

    Attributes:
        score: Expected label value scaled to [0, 1]; higher is better.
        logit: Log-odds of ``score``, the scale on which pairs are compared. Finite.
        intuition_confidence: ``|2*sigmoid(logit) - 1|`` of the fast reading, in [0, 1].
        distribution_confidence: ``1 - H(p)/log|V|`` of the fast first-token distribution, in [0, 1].
        label_mass: Probability of all label tokens together, in [0, 1]: the share of the distribution that ``score``
            speaks for. Low means the model did not mean to answer; high does not mean that the prompt is one it can
            judge.
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
class Comparison(_Jsonable):
    """Which of two responses is better.

    Attributes:
        winner: 0 for the first response, 1 for the second. There are no ties: where the votes are even, the fast
            decision stands.
        p_first: Probability that the first is better, in [0, 1]: the mean over the votes, or the fast one where that
            decides.
        intuition_confidence: ``|2*sigmoid(logit_first - logit_second) - 1|`` of the fast readings, in [0, 1].
        distribution_confidence: The smaller of the two responses' distribution confidences, in [0, 1].
        route: Path that gave the answer.
        escalated: Whether the gate asked for slow thinking.
        reasons: Why the gate fired; empty when it did not.
        scores: The two fast scores, in the caller's order.
        votes: The judge's votes, empty on the fast route.
        orders_agree: Whether the majority is the same in both orders; None unless both were asked.
        rationale: The thought of the first vote that agrees with the winner, or None on the fast route.
        tokens_read: Prompt tokens computed, fast and slow together; for a match of a tournament, whose candidates were
            read before, those of the judge alone.
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
        low: Lower end of the 95 % interval, in points.
        high: Upper end of the 95 % interval, in points.
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
