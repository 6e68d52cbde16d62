"""The reasoning loop: a reasoner proposes a response, a critic accepts or rejects it, and rejection means another try.

A turn is one proposal and its review. The loop ends when the critic accepts or the turns are used up. Many questions
run side by side: each turn is one batch for the reasoner and one for the critic.

Source: DRR (arXiv 2501.01457). How many turns there are, what the reasoner is told, and how the loop ends are this
project's own choices, because the paper's are not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from fsrm_lite.checks import expect, expect_one_of, is_whole
from fsrm_lite.loops.critic import REJECTED, Critic, Review
from fsrm_lite.loops.reasoners import Proposal, Reasoner, Sampling, Task, ask
from fsrm_lite.ranking.answers import Extractor, find_extractor

SEED_STRIDE = 1_000_003
"""Distance between the seeds of two turns: far more than a turn takes samples, so that no two turns share a seed."""


class LoopOutcome(StrEnum):
    """How a loop ended: with an accepted response, with the best of the rejected ones, or with none."""

    ACCEPTED = "accepted"
    BEST = "best"
    ABSTAINED = "abstained"


@dataclass(frozen=True, slots=True)
class Turn:
    """One proposal and its review.

    Attributes:
        response: The proposal's text; empty when the reasoner failed or returned nothing.
        accepted: Whether the critic accepted it.
        score: The critic's score in [0, 1].
        tokens_generated: Tokens the reasoner wrote.
        critic_tokens_generated: Tokens the critic wrote.
        critic_tokens_read: Prompt tokens the critic computed.
        repeated: True when the same text had been rejected in an earlier turn; the critic is not asked again.
        failed: True when the reasoner raised, did not answer in time, or returned nothing.
    """

    response: str
    accepted: bool
    score: float
    tokens_generated: int = 0
    critic_tokens_generated: int = 0
    critic_tokens_read: int = 0
    repeated: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How the loop ended for one question, and with which response.

    Attributes:
        question: The question's text.
        outcome: How the loop ended.
        response: The response it ends with; None when it abstains.
        score: That response's score from the critic, in [0, 1]; None when it abstains.
        turns: Every turn, in order.
    """

    question: str
    outcome: LoopOutcome
    response: str | None
    score: float | None
    turns: tuple[Turn, ...] = ()

    @property
    def tokens_generated(self) -> int:
        """Tokens that the reasoner and the critic wrote, together."""
        return sum(turn.tokens_generated + turn.critic_tokens_generated for turn in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, with ``tokens_generated``."""
        return asdict(self) | {"tokens_generated": self.tokens_generated}


@dataclass(frozen=True, slots=True)
class ReasoningLoop:
    """Asks a reasoner again and again until a critic accepts.

    Attributes:
        reasoner: Writes the proposals. Where it fails, one turn is lost, and the loop continues.
        critic: Accepts or rejects them.
        max_turns: Most proposals per question, at least 1.
        otherwise: What happens when no proposal was accepted: "best" ends with the best-scored response, "abstain" with
            none.
        sampling: How the reasoner samples. Each turn takes one proposal, with a seed of its own.
        extractor: Function (or its name) from a response to its final answer, used for "best". Responses with the same
            answer add up their scores, because it speaks for an answer when several turns come to it; the best-scored
            response of the answer with the largest sum is taken. None compares single responses.
    """

    reasoner: Reasoner
    critic: Critic
    max_turns: int = 4
    otherwise: Literal["best", "abstain"] = "best"
    sampling: Sampling = field(default_factory=Sampling)
    extractor: str | Extractor | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        expect(
            hasattr(self.reasoner, "propose"),
            "reasoner",
            self.reasoner,
            "a reasoner, for example CallableReasoner(function)",
        )
        expect(hasattr(self.critic, "review"), "critic", self.critic, "a critic, for example RewardCritic(model)")
        expect(
            is_whole(self.max_turns) and self.max_turns >= 1,
            "max_turns",
            self.max_turns,
            "a whole number of at least 1",
        )
        expect_one_of(("best", "abstain"), "otherwise", self.otherwise)
        if self.extractor is not None:
            find_extractor(self.extractor)

    def run(self, question: str) -> LoopResult:
        """Run the loop for one question."""
        return self.run_many([question])[0]

    def run_many(self, questions: Sequence[str]) -> list[LoopResult]:
        """Run the loop for many questions side by side.

        Returns:
            One result per question, in order.

        Raises:
            InputError: If the questions are not a list of texts.
        """
        expect(not isinstance(questions, str), "questions", questions, "a list of texts")
        for number, question in enumerate(questions):
            expect(isinstance(question, str), f"question {number}", question, "a text")
        turns: list[list[Turn]] = [[] for _ in questions]
        for number in range(self.max_turns):
            going = [i for i, done in enumerate(turns) if not (done and done[-1].accepted)]
            tasks = [Task(questions[i], _rejected(turns[i])) for i in going]
            for i, turn in zip(going, self._turn(tasks, [turns[i] for i in going], number), strict=True):
                turns[i].append(turn)
        return [self._result(question, tuple(done)) for question, done in zip(questions, turns, strict=True)]

    def _turn(self, tasks: list[Task], before: list[list[Turn]], number: int) -> list[Turn]:
        """Return turn ``number`` of each task; ``before`` holds the earlier turns of each."""
        sampling = replace(self.sampling, n=1, seed=self.sampling.seed + SEED_STRIDE * number)
        proposals = [group[0] if group else Proposal("", 0) for group in ask(self.reasoner, tasks, sampling)]
        earlier = [{turn.response: turn for turn in done} for done in before]
        fresh = [i for i, p in enumerate(proposals) if p.text.strip() and p.text not in earlier[i]]
        reviewed = self.critic.review([(tasks[i].question, proposals[i].text) for i in fresh]) if fresh else []
        verdicts = dict(zip(fresh, reviewed, strict=True))
        return [_make_turn(p, verdicts.get(i), earlier[i]) for i, p in enumerate(proposals)]

    def _result(self, question: str, turns: tuple[Turn, ...]) -> LoopResult:
        """Return what the loop ends with after all of a question's turns."""
        if turns[-1].accepted:
            return LoopResult(question, LoopOutcome.ACCEPTED, turns[-1].response, turns[-1].score, turns)
        usable = [turn for turn in turns if not turn.failed]
        if self.otherwise == "abstain" or not usable:
            return LoopResult(question, LoopOutcome.ABSTAINED, None, None, turns)
        extract = find_extractor(self.extractor) if self.extractor is not None else lambda text: None
        extracted = [extract(turn.response) for turn in usable]
        answers = [
            number if answer is None else answer for number, answer in enumerate(extracted)
        ]  # a response without an answer stands for itself, under its number
        worth = {
            answer: sum(t.score for t, a in zip(usable, answers, strict=True) if a == answer) for answer in answers
        }
        # Of responses that are equally good, max() takes the earliest.
        best, _ = max(zip(usable, answers, strict=True), key=lambda pair: (worth[pair[1]], pair[0].score))
        return LoopResult(question, LoopOutcome.BEST, best.response, best.score, turns)


def _rejected(turns: list[Turn]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(turn.response for turn in turns if not turn.failed))


def _make_turn(proposal: Proposal, verdict: Review | None, earlier: dict[str, Turn]) -> Turn:
    """Return the turn of a proposal. Without a review it was empty, or repeats one of the ``earlier`` turns."""
    if not proposal.text.strip():
        return Turn("", REJECTED.accept, REJECTED.score, proposal.tokens_generated, failed=True)
    if verdict is None:
        return Turn(proposal.text, False, earlier[proposal.text].score, proposal.tokens_generated, repeated=True)
    return Turn(
        proposal.text,
        verdict.accept,
        verdict.score,
        proposal.tokens_generated,
        verdict.tokens_generated,
        verdict.tokens_read,
    )
