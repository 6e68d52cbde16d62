"""What travels through the package, in the order in which it travels, as frozen dataclasses of plain Python values.

1. What is asked: ``Prompt``, and the settings that a call may give (``JudgeSettings`` and its relatives).
2. What the judge is told to write: ``Decoding``, ``VerdictForm``, ``Job``, ``Request``.
3. What it wrote and what that means: ``Completion``, ``Vote``, ``PairJudgement``, ``PointJudgement``.
4. What the caller gets: ``Score``, ``Comparison``, ``Rating``, ``Selection``.

The words used here: the *judge* is the slow model. It writes a *thought* (a chain of thought) and then a *verdict* (one
of a few choices). A thought with its verdict about a pair of responses is a *vote*.

Results hold no numpy scalars, so that ``json.dumps(score.to_dict())`` always works.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypeAlias, TypedDict, get_args

from fsrm_lite.checks import expect, expect_decoding, is_number, is_whole, make_plain

if TYPE_CHECKING:
    from pathlib import Path

    from fsrm_lite.gate import GateSpec

# --- 1. What is asked ---------------------------------------------------------------------------------------------


class Message(TypedDict):
    """One chat message.

    The content is a text, a list of parts such as ``{"type": "text", "text": "..."}``, or None where a message has no
    text. A message may have further keys. Those that the model's chat template would write are written as it writes
    them, or refused; the others are ignored. See ``fsrm_lite.bundle.role_forms``.
    """

    role: str
    content: str | list[Any] | None
    name: NotRequired[str | None]
    reasoning_content: NotRequired[str | None]
    tool_calls: NotRequired[list[Any] | None]
    tool_call_id: NotRequired[str | None]


Prompt: TypeAlias = str | list[Message]
"""What the caller asks about: plain text, or a conversation that ends with the request."""


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """How the input of an encoder is made of token ids: of a fast graph that reads whole texts, padded, with a mask.

    Attributes:
        pad_id: The token that fills up shorter texts of a batch.
        separator_id: The token that ends the first of two texts, where the model is told which is which; else None.
    """

    pad_id: int
    separator_id: int | None = None


JudgePolicy = Literal["auto", "never", "always"]
"""When to think slowly: where the gate says so, never, or always."""

POLICIES: tuple[JudgePolicy, ...] = get_args(JudgePolicy)

JudgeEngine = Literal["auto", "onnx", "llama.cpp"]
"""The runtime that the judge thinks with; see ``fsrm_lite.slow.engines.choose_engine``."""

Strategy = Literal["fast", "gated", "knockout", "elo", "majority"]
"""How the best of N is found; see ``fsrm_lite.ranking.tournament.select``."""


@dataclass(frozen=True, slots=True)
class Thought:
    """What the judge has written of one thought so far, while it is still writing.

    Attributes:
        item: Position of its pair or response among those that the judge was asked about in this call.
        vote: Which thought about that item it is, counted from 0 in the order in which they are asked.
        swapped: Whether it sees the pair's second response first.
        text: The text so far; a character whose bytes are not all there yet is left out.
    """

    item: int
    vote: int
    swapped: bool
    text: str


Watch: TypeAlias = Callable[[list[Thought]], bool]
"""Called now and then with the thoughts that are being written. Returning False stops the judge, as a deadline does."""


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
    watch: Watch | None


class JudgeSettings(_JudgeSettings, total=False):
    """Settings of the judge that one call may give. What is left out is taken from the model's own settings.

    They are the fields of ``JudgeOptions``, which says what each means and which values it may have.
    """

    top_k: int | None


class ScoringSettings(JudgeSettings, total=False):
    """What a call that scores or compares may give: when to think slowly, and the judge's settings."""

    judge: JudgePolicy | None


class RankSettings(_JudgeSettings, total=False):
    """What a call of ``FastSlowRM.rank`` may give.

    It is the same as ``ScoringSettings`` without ``top_k``, which in a ranking means how many responses to return.
    """

    judge: JudgePolicy | None


class TournamentSettings(TypedDict, total=False):
    """Settings of a strategy: the fields of ``fsrm_lite.ranking.tournament.TournamentOptions``, which explains them."""

    key: Callable[[str], Hashable] | None
    on_judge_error: Literal["raise", "fast"]
    budget: int | None
    precision: float
    extractor: str | Callable[[str], str | None]
    weighted: bool


class SelectionSettings(ScoringSettings, TournamentSettings, total=False):
    """What a call of ``FastSlowRM.best_of_n`` may give beside the strategy."""


class _ModelSettings(TypedDict, total=False):
    threads: int | None
    votes: int | None
    thinking_tokens: int | None
    temperature: float | None
    seed: int
    deadline: float | None
    gate: GateSpec | None
    truncate: bool
    judge_engine: JudgeEngine
    deterministic: bool
    judge_process: Literal["inline", "subprocess"]
    on_judge_crash: Literal["raise", "fast"]


class ModelSettings(_ModelSettings, total=False):
    """Options of ``FastSlowRM``, which explains them."""

    judge: JudgePolicy


class LoadSettings(_ModelSettings, total=False):
    """How an integration loads its model: the options of ``FastSlowRM.from_pretrained``, which explains them.

    ``judge`` is missing, because each integration has a default of its own for it.
    """

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How to judge. None takes the bundle's own setting.

    Attributes:
        votes: Thoughts per pair *and order*, or per response; 1 to 256.
        thinking_tokens: Most tokens of one thought, at least 1; less where the context leaves less room.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches this (nucleus sampling); in (0, 1].
        top_k: Keep the k likeliest tokens; 0 keeps all.
        seed: Seed of the sampling; an integer of up to 127 bits.
        adaptive: Stop voting on a pair when the remaining votes cannot change its majority.
        error_rate: Stop also when they would change it with at most this probability, in [0, 0.5). Needs ``adaptive``.
        deadline: Seconds after which the call returns what it has; None for no limit.
        both_orders: Ask about each pair in both orders of its responses.
        watch: Called while the judge writes, some ten times a second; it sees the thoughts so far and may stop them. It
            is not called any more when the call has returned. For a judge in a process of its own it is called once,
            with what the judge wrote, and can stop nothing. None for nobody.
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
    watch: Watch | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: If a value is out of range; the message names the option, the value and the range.
        """
        make_plain(self)
        settings = (self.votes, self.temperature, self.top_p, self.top_k)
        expect_decoding(*(1 if value is None else value for value in settings))  # 1 is a valid value for each of them
        for name, value in (("adaptive", self.adaptive), ("both_orders", self.both_orders)):
            expect(isinstance(value, bool), name, value, "true or false")
        n, seed, rate, limit = self.thinking_tokens, self.seed, self.error_rate, self.deadline
        expect(n is None or (is_whole(n) and n >= 1), "thinking_tokens", n, "a whole number of at least 1")
        expect(is_whole(seed) and abs(seed) < 2**127, "seed", seed, "a whole number of up to 127 bits")
        expect(is_number(rate) and 0.0 <= rate < 0.5, "error_rate", rate, "a number in [0, 0.5)")
        seconds = "a number of seconds of at least 0, or None"
        expect(limit is None or (is_number(limit) and limit >= 0.0), "deadline", limit, seconds)
        expect(self.watch is None or callable(self.watch), "watch", self.watch, "a function of thoughts, or None")


# --- 2. What the judge is told to write ---------------------------------------------------------------------------

ANSWER_TOKENS = 64
"""Most tokens that a model may write after its thought, unless its manifest says otherwise (``limits.verdict_tokens``).

If no verdict is among them, it is read from the logits.
"""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token. 0, or at least 1e-6.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches this; in (0, 1].
        top_k: Keep the k likeliest tokens, and any as likely as the last of them; 0 keeps all.
    """

    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Raise an ``InputError`` on settings out of range; see ``JudgeOptions``."""
        make_plain(self)
        expect_decoding(1, self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True, slots=True)
class VerdictForm:
    r"""How a thought ends and where its verdict stands, as token ids.

    For example, a model ends its thought with ``</think>`` (the head), goes on with two line breaks (the tail) and any
    text, and then writes ``\boxed{Assistant `` (the prefix) and ``A`` (a choice): that is its verdict. When its budget
    is spent before that, the form is written for it (``forced``), and the verdict is read from the logits of the
    choices.

    Attributes:
        head: Ids that end a thought when the model writes them.
        forced: Ids that lead from an unfinished thought to its verdict: head, tail and prefix.
        tail: Text that belongs between ``head`` and ``prefix``, for example ``"\n\n"``.
        prefix: Text right before a choice. When it is empty, a choice counts only right after ``head`` and ``tail``.
        choices: Ids of the choices.
        words: The choices as text.
        close: Text that ends a thought, where no control token does; ``head`` is empty then.
        wake: Ids with which such a text can end.
        answer_tokens: Most tokens that the model may write behind its thought.
        several: What counts of verdicts that contradict each other: the "last" one, or "none".
    """

    head: tuple[int, ...]
    forced: tuple[int, ...]
    tail: str
    prefix: str
    choices: tuple[int, ...]
    words: tuple[str, ...] = ()
    close: str = ""
    wake: tuple[int, ...] = ()
    answer_tokens: int = ANSWER_TOKENS
    several: str = "last"


@dataclass(frozen=True, slots=True)
class Job:
    """One text for the model to write: a thought with its verdict, or a free text.

    Attributes:
        prompt: Ids to start from; not empty.
        key: What its random numbers are derived from, 64 bits.
        budget: Most tokens of the thought; of the whole text where there is no verdict form. At least 1.
        form: Where its verdict stands; None for a free text, which ends at a stop token.
        pair: Number of the pair that this is a vote on; else None. The votes on one pair can make each other needless.
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
        """Most tokens that this job can come to hold: its prompt, its thought, and what follows the thought."""
        return len(self.prompt) + self.budget + (self.form.answer_tokens + len(self.form.forced) if self.form else 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the judge: what to write, and how.

    Attributes:
        jobs: The texts to write. Votes on one pair stand in the order in which they are asked.
        decoding: How tokens are drawn.
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


WatchIds: TypeAlias = Callable[[Mapping[int, list[int]]], bool]
"""Called while the jobs of a request are written, with the ids so far by job number. Returning False stops them."""


# --- 3. What it wrote, and what that means ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote for a job.

    Attributes:
        ids: Ids that the model wrote, without the stop token.
        thought: How many of them belong to the thought.
        choice: Index of the last verdict that the model wrote itself, or None.
        logits: Logits of the choices at the verdict; empty where no verdict was read.
        tokens_read: How many tokens of the prompt and of a forced verdict form were computed for it.
        finished: False when a deadline cut it off, or when it was dropped because its pair was decided.
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
        text: The text, without control tokens.
        ids: Its token ids, without the stop token.
        tokens: Number of ids.
        ended: Whether the model ended it; False where it was cut, by ``max_tokens``, the context, or who watched it.
    """

    text: str
    ids: tuple[int, ...]
    tokens: int
    ended: bool


class _Jsonable:
    """Gives the result dataclasses their ``to_dict``."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as nested dicts, lists and plain scalars."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class Vote(_Jsonable):
    """One thought of the judge about a pair, with its verdict.

    Attributes:
        swapped: True when the judge saw the second response first.
        winner: 0 if this vote prefers the caller's first response, 1 if the second.
        p_first: Probability of the caller's first response at the verdict, in [0, 1].
        rationale: The thought, as text.
        tokens_generated: Tokens written for this vote.
        closed: True when the model gave no verdict by itself within its budget, so that its thought was closed for it
            and the verdict read from the logits.
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
        winner: 0 for the first response, 1 for the second, by majority. Where the votes tie, the response with the
            larger mean probability wins; where that ties too, the first.
        p_first: Probability of the first response at the verdict, in [0, 1], mean over the votes; 0.5 without votes.
        votes: The votes cast, in the order in which they were asked. Empty when a deadline left none.
        orders_agree: Whether both orders of the responses have the same majority; None unless both have votes.
        tokens_read: Tokens of prompts and forced verdict forms that were computed.
        tokens_generated: Tokens written, those of unfinished votes included.
        tokens_saved: Estimate of the tokens that adaptive voting left unwritten: what all votes would have come to at
            the mean length of those cast, less what was written.
        complete: False when a deadline ended the voting before the pair was decided.
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
        score: Expected value of the verdict, scaled to [0, 1]; 0.5 when a deadline left no thought.
        logit: Log-odds of ``score``, within +-50.
        verdict: The choice that most thoughts ended with (on ties the more probable one); empty when there is none.
        rationale: The first thought that ended with that verdict.
        p_choices: Probability of each choice after the thought, mean over the thoughts, in the manifest's order.
        tokens_read: Tokens of prompts and forced verdict forms that were computed.
        tokens_generated: Tokens written.
        complete: False when a deadline cut thoughts off.
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
    """Which half of the model gave the final answer."""

    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Score(_Jsonable):
    """The reward of one response.

    The fast model gives it from the first token it would answer with: some tokens are *labels* (for example "yes" and
    "no"), each with a value, and the score is the expected value.

    Attributes:
        score: Expected label value, scaled to [0, 1]; higher is better.
        logit: Log-odds of ``score``, the scale on which responses are compared. Finite. From a model with a scalar head
            it is the reward as the model gives it, and ``score`` is its sigmoid.
        intuition_confidence: How decided the fast score is: ``|2*sigmoid(logit/T) - 1|``, in [0, 1], with the gate's
            temperature ``T``.
        distribution_confidence: How peaked the first token's distribution ``p`` is: ``1 - H(p)/log|V|``, in [0, 1].
            None from a scalar head, which predicts no token.
        label_mass: Probability of all label tokens together, in [0, 1]: how much of the distribution ``score`` is based
            on; None from a scalar head. A low one means that the model was not about to answer with a label. A high one
            does not mean that the prompt is of a kind that it can judge.
        route: Which half of the model gave ``score``.
        escalated: Whether slow thinking was asked for. The answer may still be the fast one, if there is no judge.
        reasons: Why it was asked for, one phrase per reason; empty when it was not.
        verdict: The judge's verdict; None on the fast route.
        rationale: The judge's thought; None on the fast route.
        tokens_read: Tokens that were computed to read the prompt and the response. What several responses share (the
            prompt) is counted once, for the first of them.
        tokens_generated: Tokens that the judge wrote.
        complete: False when a deadline cut the judge short.
    """

    score: float
    logit: float
    intuition_confidence: float
    distribution_confidence: float | None
    label_mass: float | None
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

    The fast model reads each response by itself, or, if its bundle has the template ``pairwise_fast``, the pair in both
    orders.

    Attributes:
        winner: 0 for the first response, 1 for the second. There are no ties: where the judge's votes are even, the
            fast comparison decides; where a pair was read and its orders prefer different responses, their mean margin
            does. `fsrm-lite eval` and `calibrate` count that last case as a tie, which is never right.
        p_first: Probability that the first is better, in [0, 1]: the mean over the votes, or the fast comparison's
            where that decides, or of both together where ``combined`` is true.
        intuition_confidence: ``|2*sigmoid(logit/T) - 1|``, in [0, 1], with ``logit`` as below and the gate's
            temperature ``T``.
        distribution_confidence: The smaller of the two readings' distribution confidences, in [0, 1]; None from a
            scalar head.
        route: Which half of the model gave the answer.
        escalated: Whether slow thinking was asked for.
        reasons: Why it was asked for, one phrase per reason; empty when it was not.
        scores: The two fast scores, in the caller's order; None where the pair was read as a pair.
        votes: The judge's votes; empty on the fast route.
        orders_agree: Whether the votes have the same majority in both orders of the responses, or on the fast route
            whether both orders of a pair were read alike; None unless both were asked.
        rationale: The thought of the first vote that agrees with the winner; None on the fast route, or where no vote
            does.
        tokens_read: Tokens read, by both halves of the model. In a match of ``best_of_n``, whose candidates were scored
            before, only those that the judge read.
        tokens_generated: Tokens that the judge wrote.
        tokens_saved: Estimate of the tokens that adaptive voting left unwritten; see ``PairJudgement``.
        complete: False when a deadline cut the judge short.
        pair: Positions of the two responses among the candidates; None where there are no candidates.
        logit: The fast model's log-odds that the first response is the better one, as the gate sees them: the
            difference of the two fast scores' logits, or the mean of both orders of a pair. It is 0 where a pair was
            read and its orders prefer different responses.
        label_mass: The smaller of the two readings' label masses, in [0, 1]; None from a scalar head.
        combined: Whether winner and ``p_first`` are of the fast path and the votes together, by the gate's weights
            (``fsrm_lite.gate.AnswerWeights``).
    """

    winner: int
    p_first: float
    intuition_confidence: float
    distribution_confidence: float | None
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
    logit: float = 0.0
    label_mass: float | None = None
    combined: bool = False


@dataclass(frozen=True, slots=True)
class Rating(_Jsonable):
    """The rating of one candidate on the Elo scale.

    The mean over all candidates is 1500. A lead of 400 points means odds of 10 to 1.

    Attributes:
        rating: The rating, in points.
        low: Lower end of its 95 % interval, in points.
        high: Upper end of its 95 % interval, in points.
        games: Number of games that this candidate played.
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
        scores: Fast scores, in the caller's order.
        comparisons: The matches (comparisons of two candidates), in the order in which they were played.
        strategy: Name of the strategy that chose.
        tokens_read: Tokens read in all.
        tokens_generated: Tokens that the judge wrote in all.
        ratings: One rating per candidate, in the caller's order, where the strategy makes ratings ("elo"); else empty.
    """

    index: int
    ranking: tuple[int, ...]
    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...] = ()
    strategy: str = "fast"
    tokens_read: int = 0
    tokens_generated: int = 0
    ratings: tuple[Rating, ...] = ()
