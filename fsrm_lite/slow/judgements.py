"""What the judge is asked with and answers with: options, checked in one place, and frozen results."""

from __future__ import annotations

from dataclasses import dataclass

from fsrm_lite.checks import MAX_VOTES as MAX_VOTES
from fsrm_lite.checks import expect, expect_sampling, is_number, is_whole
from fsrm_lite.types import Vote


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
        sampling = (self.votes, self.temperature, self.top_p, self.top_k)
        expect_sampling(*(1 if value is None else value for value in sampling))  # 1 is in range for each of them
        for name, value in (("adaptive", self.adaptive), ("both_orders", self.both_orders)):
            expect(isinstance(value, bool), name, value, "true or false")
        n, seed, rate, limit = self.thinking_tokens, self.seed, self.error_rate, self.deadline
        expect(n is None or (is_whole(n) and n >= 1), "thinking_tokens", n, "a whole number of at least 1")
        expect(is_whole(seed) and abs(seed) < 2**127, "seed", seed, "a whole number of up to 127 bits")
        expect(is_number(rate) and 0.0 <= rate < 0.5, "error_rate", rate, "a number in [0, 0.5)")
        expect(
            limit is None or (is_number(limit) and limit >= 0.0),
            "deadline",
            limit,
            "a number of seconds of at least 0, or None",
        )


@dataclass(frozen=True, slots=True)
class PairJudgement:
    """What the judge says about a pair.

    Attributes:
        winner: 0 for the first response, 1 for the second: the majority; where votes tie, the side with the larger
            mean probability, then the first.
        p_first: Mean over the votes of the probability of the first response at the verdict, in [0, 1]; 0.5 without votes.
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


@dataclass(frozen=True, slots=True)
class Generation:
    """One text that the model wrote.

    Attributes:
        text: Decoded, control tokens left out.
        ids: Token ids, without the stop token.
        tokens: Number of ids.
    """

    text: str
    ids: tuple[int, ...]
    tokens: int
