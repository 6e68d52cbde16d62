"""Responses to a problem, right and wrong, and the judge's thoughts about them.

Errors come in grades. Visible ones (a far-off value, the wrong unit or name, an answer to another question, no
answer) can be seen at a glance. Errors of reasoning are carried through a working, or hidden behind a bare answer,
and take a derivation to find. That spread is what a gate between fast and slow thinking has to know about.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fsrm_lite.models.plans import ERRORS, LARGEST, Derivation
from fsrm_lite.models.problems import FAMILIES, PEOPLE, THINGS, Problem

VISIBLE = ("far", "unit", "offtopic", "missing")
"""Errors that a reader sees without solving the problem."""

FORMS = ("bare", "terse", "worked")
"""How a response shows its work: not at all, on one line, or step by step."""

FORM_WEIGHTS = (0.35, 0.25, 0.40)
VISIBLE_SHARE = 0.4
"""Share of visible errors among the rejected responses; the rest is spread over the errors of reasoning."""

FAR = 8
"""How far off a far-off value is, at least."""

_NO_ANSWER = ("I do not know.", "I am not sure.", "This is hard to say.", "Let me think about it.")


@dataclass(frozen=True, slots=True)
class Response:
    """One response and what is known about it.

    Attributes:
        text: What the model under judgement wrote.
        claim: The value or name it ends with, with its unit if it gives one; empty when it gives no answer.
        correct: Whether that is the right answer.
        form: One of ``FORMS``.
        error: One of ``VISIBLE`` or ``plans.ERRORS``, or empty when it is correct.
    """

    text: str
    claim: str
    correct: bool
    form: str
    error: str = ""


def right_response(problem: Problem, rng: random.Random, form: str | None = None) -> Response:
    """Write a correct response in ``form``, or in one drawn by ``FORM_WEIGHTS``."""
    form = form or rng.choices(FORMS, FORM_WEIGHTS)[0]
    text, claim = _write(problem.plan.derive(), problem.unit, form, rng)
    return Response(text, claim, True, form)


def wrong_response(problem: Problem, rng: random.Random, form: str | None = None, error: str | None = None) -> Response:
    """Write a response that makes ``error``, or one drawn by ``VISIBLE_SHARE``; always finds one that is possible."""
    form = form or rng.choices(FORMS, FORM_WEIGHTS)[0]
    while True:
        kind = error or rng.choice(VISIBLE if rng.random() < VISIBLE_SHARE else ERRORS)
        if kind in VISIBLE:
            return _visible(problem, kind, form, rng)
        wrong = problem.plan.fail(kind, rng)
        if wrong is not None:
            text, claim = _write(wrong, problem.unit, form, rng)
            return Response(text, claim, False, form, kind)
        error = None  # that error cannot happen in this plan


def thought(problem: Problem, claims: tuple[str, ...]) -> str:
    """The judge's thought: derive the answer, then put each claim beside it and say yes or no.

    Every line ends with a line break. For one claim its line starts with ``says``, for two with their numbers.
    """
    derivation = problem.plan.derive()
    answer = f"{derivation.answer} {problem.unit}".strip()
    lines = [*derivation.lines, f"so {answer}"]
    for i, claim in enumerate(claims):
        who = "says" if len(claims) == 1 else f"{i + 1}:"
        lines.append(f"{who} {claim or 'nothing'} vs {answer} {'yes' if agrees(claim, problem) else 'no'}")
    return "".join(line + "\n" for line in lines)


def agrees(claim: str, problem: Problem) -> bool:
    """Whether a claim is the right answer: the value must match, and the unit where one is given."""
    value, _, unit = claim.partition(" ")
    return value == problem.answer and unit in ("", problem.unit)


def _write(derivation: Derivation, unit: str, form: str, rng: random.Random) -> tuple[str, str]:
    """Return the text of a response and the claim in it."""
    claim = f"{derivation.answer} {unit}".strip()
    if form == "bare":
        if unit and rng.random() < 0.25:
            claim = derivation.answer
        return rng.choice((claim, f"{claim}.", f"The answer is {claim}.")), claim
    working = f"{derivation.terse}." if form == "terse" else " ".join(f"{line}." for line in derivation.lines)
    return f"{working} The answer is {claim}.", claim


def _visible(problem: Problem, kind: str, form: str, rng: random.Random) -> Response:
    right = problem.plan.derive()
    named = not right.answer.isdigit()
    if kind == "unit" and not problem.unit:
        kind = "far"
    if kind == "missing":
        working = " ".join(f"{line}." for line in right.lines)
        return Response(working if form == "worked" and not named else rng.choice(_NO_ANSWER), "", False, form, kind)
    if kind == "offtopic":
        other = None
        while other is None or other.family == problem.family or agrees(_claim(other), problem):
            other = FAMILIES[rng.choice(tuple(FAMILIES))](rng)
        text, claim = _write(other.plan.derive(), other.unit, form, rng)
        return (
            Response(text, claim, False, form, kind)
            if not agrees(claim, problem)
            else _visible(problem, "missing", form, rng)
        )
    if kind == "unit":
        unit = rng.choice([t for t in THINGS if t not in problem.question])
        form = form if form != "bare" else "worked"  # a bare answer may leave its unit out, and then be right
        text, claim = _write(right, unit, form, rng)
        return Response(text, claim, False, form, kind)
    if named:
        answer = rng.choice([p for p in PEOPLE if p not in problem.names])
    else:
        answer = str(rng.choice([v for v in range(2 * LARGEST) if abs(v - int(right.answer)) >= FAR]))
    text, claim = _write(Derivation(right.lines, right.terse, answer), problem.unit, form, rng)
    return Response(text, claim, False, form, kind)


def _claim(problem: Problem) -> str:
    return f"{problem.answer} {problem.unit}".strip()
