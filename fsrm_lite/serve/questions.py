"""Typed questions about a text, answered with probabilities, in no API's own form.

A question has options: yes and no, some choices, or the levels of a scale. A reward model is asked about them in the
way it was trained for: the text with the question behind it is the *prompt*, and each option is a *response* to it.
Every option is read by itself behind the shared prompt, so that the order of the options cannot matter, and any number
of them is answered in one pass. The probabilities are the softmax of the options' logits divided by the gate's
temperature; for two options that is the gate's own probability of a pair (Bradley-Terry).

Two questions a reward model is asked as it stands, without a question behind the text: whether a response is good, and
which of some responses is better. ``OWN_QUESTIONS`` has their wordings. "Is this response good?" needs a text that
says what is the prompt and what the response (see ``Question.pair``), and its probability is the model's score.

If the gate cannot tell some options from the best one, these *contenders* are thought about: two of them in a pair,
with votes in both orders; more of them one by one. The probability that the fast path gave to all contenders together
stays theirs, and is divided anew by what the judge says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsrm_lite.checks import MAX_TEXT_CHARACTERS
from fsrm_lite.errors import InputError
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.service import Service, Thinking, Unreadable
from fsrm_lite.types import Comparison, Prompt, Route, Score

if TYPE_CHECKING:
    from fsrm_lite.fast.path import EncodedResponse

OWN_QUESTIONS = {
    "predicate": ("is this response good", "is the response good", "is this a good response"),
    "choice": ("which is better", "which response is better", "which is the better response"),
}
"""What a reward model is asked as it stands. Case, and marks at the end, do not matter."""

MOST_THOUGHT_ABOUT = 8
"""Most contenders that the judge thinks about, the best ones; a fast path that cannot tell more apart is lost."""

MAX_READ_CHARACTERS = 32 * MAX_TEXT_CHARACTERS
"""Most characters of a request's options, each with the text before it: what it takes to make tokens of them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        kind: "predicate", "choice" or "score".
        text: The question; may be empty for a question of the model's own.
        options: What the model reads for each option; for a predicate yes first, then no.
        pair: Prompt and response, where what is asked about has these two parts.
    """

    kind: str
    text: str
    options: tuple[str, ...]
    pair: tuple[Prompt, str] | None = None

    @property
    def is_own(self) -> bool:
        """Whether the model is asked this as it stands."""
        asked = self.text.strip().rstrip("?!.").strip().lower()
        return (not asked or asked in OWN_QUESTIONS.get(self.kind, ())) and (
            self.kind == "choice" or (self.kind == "predicate" and self.pair is not None)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    Attributes:
        probabilities: Per option, in the question's order; they add up to 1.
        route: Which half of the model decided.
        escalated: Whether the judge was asked.
        reasons: Why it was.
        label_mass: How much of the first token's distribution the readings are based on, the least over the options;
            None from a model with a scalar head.
        input_tokens: Tokens of text and question and options, what they share counted once, and those that the judge
            read.
        cached_tokens: Those of them that had been read for another request.
        output_tokens: Tokens that the judge wrote.
        complete: False when a deadline cut the judge short.
    """

    probabilities: tuple[float, ...]
    route: Route
    escalated: bool
    reasons: tuple[str, ...]
    label_mass: float | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    complete: bool

    @property
    def choice(self) -> int:
        """The likeliest option, the first of equal ones."""
        return max(range(len(self.probabilities)), key=lambda i: (self.probabilities[i], -i))

    @property
    def expectation(self) -> float:
        """The expected position: the sum of each option's position times its probability."""
        return sum(i * p for i, p in enumerate(self.probabilities))

    @property
    def choice_confidence(self) -> float:
        """``(m - 1/n) / (1 - 1/n)`` with ``m`` the largest probability: 0 where all are equal, 1 where one has all."""
        n = len(self.probabilities)
        return _unit((max(self.probabilities) - 1 / n) / (1 - 1 / n))

    @property
    def scale_confidence(self) -> float:
        """1 less the mean distance to the likeliest option, relative to that of equal probabilities; at least 0."""
        n = len(self.probabilities)
        distance = sum(p * abs(i - self.choice) for i, p in enumerate(self.probabilities))
        uniform = sum(abs(i - (n - 1) / 2) for i in range(n)) / n
        return _unit(1 - distance / uniform)

    def own_fields(self) -> dict[str, Any]:
        """Return what this server says beside the fields of an API."""
        said = {"x_route": str(self.route), "x_escalated": self.escalated, "x_label_mass": self.label_mass}
        return said | ({"x_reasons": list(self.reasons), "x_complete": self.complete} if self.escalated else {})


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


async def answer(
    service: Service, text: str, questions: Sequence[Question], how: Thinking
) -> list[Answer | InputError]:
    """Answer questions about one text. All of them are read together, and share the reading of the text.

    Args:
        service: The model.
        text: What is asked about.
        questions: The questions.
        how: Whether to think about them.

    Returns:
        Per question its answer, or why there is none, for example because an option is too long.

    Raises:
        RequestError: If all options together are more than ``MAX_READ_CHARACTERS`` to be read.
    """
    characters = sum(
        len(question.options) * (len(text) + len(question.text)) + sum(map(len, question.options))
        for question in questions
    )
    if characters > MAX_READ_CHARACTERS:
        raise RequestError(
            f"the text and the questions make {characters:,} characters, the text counted once for each option, "
            f"expected at most {MAX_READ_CHARACTERS:,}; ask fewer questions at once, or about a shorter text"
        )
    asked: list[list[tuple[Prompt, str]]] = [_responses(text, question) for question in questions]
    encoded = iter(await service.encode([item for items in asked for item in items]))
    groups = [[next(encoded) for _ in items] for items in asked]
    bad = [next((item.error for item in group if isinstance(item, Unreadable)), None) for group in groups]
    readable = [
        [item for item in group if not isinstance(item, Unreadable)] if error is None else []
        for group, error in zip(groups, bad, strict=True)
    ]
    read = iter(await service.fast.read([item for group in readable for item in group]))
    answers: list[Answer | InputError] = []
    for question, items, error in zip(questions, readable, bad, strict=True):
        scores = [next(read) for _ in items]
        if error is not None:
            answers.append(error)
            continue
        found = await _decided(service, question, items, scores, how)
        service.metrics.count_question(
            escalated=found.escalated, read=found.input_tokens - found.cached_tokens, generated=found.output_tokens
        )
        answers.append(found)
    return answers


def _responses(text: str, question: Question) -> list[tuple[Prompt, str]]:
    """Return what the model reads for a question: (prompt, response) per option."""
    if question.is_own:
        return (
            [question.pair]
            if question.pair is not None and question.kind == "predicate"
            else [(text, option) for option in question.options]
        )
    prompt = f"{text}\n\n{question.text}" if text.strip() and question.text.strip() else text + question.text
    return [(prompt, option) for option in question.options]


async def _decided(
    service: Service, question: Question, items: list[EncodedResponse], scores: list[Score], how: Thinking
) -> Answer:
    """Return the answer to a question whose options were read."""
    gate = service.model.gate
    shared = _distinct_tokens([item.ids for item in items])
    cached = max(0, shared - sum(score.tokens_read for score in scores))
    masses = [score.label_mass for score in scores if score.label_mass is not None]
    mass = min(masses, default=None)
    if len(items) == 1:  # "is this response good?": the score is the probability
        (score,) = await service.thought_over(items, scores, how)
        return _answer([score.score, 1.0 - score.score], [score], mass, shared, cached, scores)
    fast = _softmax([score.logit / gate.spec.temperature for score in scores])
    near = gate.contenders(scores)[:MOST_THOUGHT_ABOUT]
    if how.judge == "always" and len(near) < 2:
        near = sorted(range(len(scores)), key=lambda i: (-scores[i].logit, i))[:2]
    if how.judge == "never" or len(near) < 2:
        return _answer(fast, [], mass, shared, cached, scores)
    mass_of_near = sum(fast[i] for i in near)
    if len(near) == 2:
        first, second = sorted(near)
        match = await service.compared(items[first], items[second], (scores[first], scores[second]), how)
        results: list[Score | Comparison] = [match]
        shares = {first: match.p_first, second: 1.0 - match.p_first}
    else:
        # The gate has decided about them as a list, and is not asked about each.
        close, read = [items[i] for i in near], [scores[i] for i in near]
        thought = await service.thought_over(close, read, how, every=True)
        results = list(thought)
        parts = _softmax([score.logit / gate.spec.temperature for score in thought])
        shares = dict(zip(near, parts, strict=True))
    mixed = [mass_of_near * shares[i] if i in shares else p for i, p in enumerate(fast)]
    return _answer(mixed, results, mass, shared, cached, scores)


def _answer(
    probabilities: Sequence[float],
    results: Sequence[Score | Comparison],
    mass: float | None,
    shared: int,
    cached: int,
    scores: Sequence[Score],
) -> Answer:
    """Return an answer with the tokens of what was read fast and of what the judge did."""
    judged = [result for result in results if result.escalated]
    # What the judge read: a result also counts what was read fast, which is counted in ``shared``.
    fast_read = sum(score.tokens_read for score in scores)
    counted = sum(result.tokens_read for result in results)
    total = math.fsum(probabilities)
    return Answer(
        probabilities=tuple(p / total for p in probabilities),
        route=Route.SLOW if any(result.route == Route.SLOW for result in results) else Route.FAST,
        escalated=bool(judged),
        reasons=tuple(dict.fromkeys(reason for result in judged for reason in result.reasons)),
        label_mass=mass,
        input_tokens=shared + (max(0, counted - fast_read) if judged else 0),
        cached_tokens=cached,
        output_tokens=sum(result.tokens_generated for result in results),
        complete=all(result.complete for result in results),
    )


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _distinct_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens sequences hold if what they share at their beginnings is counted once."""
    total = 0
    last: tuple[int, ...] = ()
    for ids in sorted(tuple(ids) for ids in sequences):
        common = next((k for k, (a, b) in enumerate(zip(ids, last, strict=False)) if a != b), min(len(ids), len(last)))
        total += len(ids) - common
        last = ids
    return total


def check_options(count: int, least: int, most: int, what: str, at: tuple[str | int, ...]) -> None:
    """Refuse a question that has too few or too many options."""
    if not least <= count <= most:
        error = RequestError("", at=at)
        raise RequestError(f"{error.param} has {count} {what}, expected {least} to {most}", at=at)
