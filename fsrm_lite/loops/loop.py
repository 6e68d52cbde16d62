"""The critic in the reasoning loop: propose, accept or reject, tell the reasoner, try again.

Source: DRR (arXiv 2501.01457), with turns, feedback and endings of this project's own, since the paper's are not
published. Many questions run side by side, one batch of the reasoner and one of the critic per turn.
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
"""Distance between the seeds of two turns: more than anyone takes samples, so that turns never share one."""


class LoopOutcome(StrEnum):
    """How a loop ended."""

    ACCEPTED = "accepted"
    BEST = "best"
    ABSTAINED = "abstained"


@dataclass(frozen=True, slots=True)
class Turn:
    """One proposal and what came of it.

    Attributes:
        response: The text; empty when the reasoner failed or returned nothing.
        accepted: The critic's decision.
        score: The critic's score in [0, 1].
        tokens_generated: Tokens the reasoner wrote.
        critic_tokens_generated: Tokens the critic wrote.
        critic_tokens_read: Prompt tokens the critic computed.
        repeated: The very text had been rejected before, so the critic was not asked again.
        failed: The reasoner raised, hung, or returned nothing.
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
    """What the loop makes of one question.

    Attributes:
        question: The text.
        outcome: How the loop ended.
        response: The response it ends with; None when it abstains.
        score: That response's score, in [0, 1]; None when it abstains.
        turns: Everything that was tried, in order.
    """

    question: str
    outcome: LoopOutcome
    response: str | None
    score: float | None
    turns: tuple[Turn, ...] = ()

    @property
    def tokens_generated(self) -> int:
        """Tokens that reasoner and critic wrote."""
        return sum(turn.tokens_generated + turn.critic_tokens_generated for turn in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, with the tokens in all."""
        return asdict(self) | {"tokens_generated": self.tokens_generated}


@dataclass(frozen=True, slots=True)
class ReasoningLoop:
    """Asks a reasoner until a critic accepts.

    Attributes:
        reasoner: Proposes; a failure is a lost turn, not the end.
        critic: Accepts or rejects.
        max_turns: Most proposals per question, >= 1.
        otherwise: When nothing was accepted: "best" ends with the best-scored response, "abstain" with none.
        sampling: How the reasoner samples; one proposal per turn, with a new seed.
        extractor: With one (a name or a function), "best" is decided between answers, each with the sum of its responses' scores: that several
            turns came to the same answer is evidence too. None decides between single responses.
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
        """Run the loop for many questions side by side; results in their order.

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
        sampling = replace(self.sampling, n=1, seed=self.sampling.seed + SEED_STRIDE * number)
        proposals = [group[0] if group else Proposal("", 0) for group in ask(self.reasoner, tasks, sampling)]
        earlier = [{turn.response: turn for turn in done} for done in before]
        fresh = [i for i, p in enumerate(proposals) if p.text.strip() and p.text not in earlier[i]]
        reviewed = self.critic.review([(tasks[i].question, proposals[i].text) for i in fresh]) if fresh else []
        verdicts = dict(zip(fresh, reviewed, strict=True))
        return [_make_turn(p, verdicts.get(i), earlier[i]) for i, p in enumerate(proposals)]

    def _result(self, question: str, turns: tuple[Turn, ...]) -> LoopResult:
        if turns[-1].accepted:
            return LoopResult(question, LoopOutcome.ACCEPTED, turns[-1].response, turns[-1].score, turns)
        usable = [turn for turn in turns if not turn.failed]
        if self.otherwise == "abstain" or not usable:
            return LoopResult(question, LoopOutcome.ABSTAINED, None, None, turns)
        extract = find_extractor(self.extractor) if self.extractor is not None else lambda text: None
        extracted = [extract(turn.response) for turn in usable]
        answers = [
            number if answer is None else answer for number, answer in enumerate(extracted)
        ]  # without an answer: on its own
        worth = {
            answer: sum(t.score for t, a in zip(usable, answers, strict=True) if a == answer) for answer in answers
        }
        # max() takes the earliest of equals.
        best, _ = max(zip(usable, answers, strict=True), key=lambda pair: (worth[pair[1]], pair[0].score))
        return LoopResult(question, LoopOutcome.BEST, best.response, best.score, turns)


def _rejected(turns: list[Turn]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(turn.response for turn in turns if not turn.failed))


def _make_turn(proposal: Proposal, verdict: Review | None, earlier: dict[str, Turn]) -> Turn:
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
