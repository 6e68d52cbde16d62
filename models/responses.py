"""Writes responses to a problem, right and wrong ones, and the judge's thoughts about them.

Some errors are visible: a value that is far off, a wrong unit or name, an answer to another question, or no answer. A
reader sees them at a glance. Other errors are errors of reasoning: they are carried through the working, or hidden
behind a bare answer, and only whoever derives the answer finds them. A gate has to tell which kind it may be dealing
with, so the data have both.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from fsrm_lite.models.plans import ERRORS, LARGEST, Derivation
from fsrm_lite.models.problems import FAMILIES, PEOPLE, THINGS, Problem

VISIBLE = ("far", "unit", "offtopic", "missing")
"""Errors that a reader sees without solving the problem: far off, wrong unit, another question's answer, no answer."""

FORMS = ("bare", "terse", "worked")
"""How a response shows its work: not at all, on one line, or step by step."""

FORM_WEIGHTS = (0.35, 0.25, 0.40)
VISIBLE_SHARE = 0.4
"""Share of visible errors among the rejected responses; the others are errors of reasoning."""

FAR = 8
"""Least difference between a far-off value and the right one."""

_ANSWER = re.compile(r"^(?:.*\bThe answer is )?(.+?)\.?$", re.DOTALL)
_NO_ANSWER = ("I do not know.", "I am not sure.", "This is hard to say.", "Let me think about it.")


@dataclass(frozen=True, slots=True)
class Response:
    """One response and what is known about it.

    Attributes:
        text: The response.
        claim: The number or name that it gives as its answer, with the unit if it gives one; empty without an answer.
        correct: Whether that is the right answer.
        form: How it shows its work: one of ``FORMS``.
        error: The error in it: one of ``VISIBLE`` or of ``plans.ERRORS``; empty when it is correct.
    """

    text: str
    claim: str
    correct: bool
    form: str
    error: str = ""


def right_response(problem: Problem, rng: random.Random, form: str | None = None) -> Response:
    """Return a correct response in the given form, or in one drawn by ``FORM_WEIGHTS``."""
    form = form or rng.choices(FORMS, FORM_WEIGHTS)[0]
    text, claim = _write(problem.plan.derive(), problem.unit, form, rng)
    return Response(text, claim, True, form)


def wrong_response(problem: Problem, rng: random.Random, form: str | None = None, error: str | None = None) -> Response:
    """Return a wrong response.

    Args:
        problem: The problem.
        rng: Source of the random choices.
        form: One of ``FORMS``; None draws one by ``FORM_WEIGHTS``.
        error: The error to make; None draws one by ``VISIBLE_SHARE``. If it cannot happen here, another one is drawn.
    """
    form = form or rng.choices(FORMS, FORM_WEIGHTS)[0]
    while True:
        kind = error or rng.choice(VISIBLE if rng.random() < VISIBLE_SHARE else ERRORS)
        if kind in VISIBLE:
            return _visible(problem, kind, form, rng)
        wrong = problem.plan.fail(kind, rng)
        if wrong is not None:
            text, claim = _write(wrong, problem.unit, form, rng)
            return Response(text, claim, False, form, kind)
        error = None  # this error cannot happen in this plan: draw another one


def right_texts(problem: Problem) -> list[str]:
    """Return all texts that ``right_response`` may write, in every form."""
    derivation = problem.plan.derive()
    claims = {f"{derivation.answer} {problem.unit}".strip(), derivation.answer}
    bare = [text for claim in sorted(claims) for text in _bare_texts(claim)]
    return [*bare, *(_written(derivation, max(claims, key=len), form) for form in ("terse", "worked"))]


def thought(problem: Problem, claims: tuple[str, ...]) -> str:
    """Return the judge's thought about one or two responses.

    It notes what the question says, derives the answer, then compares each response's claim with it and says yes or no.
    Every line ends with a line break. The line about a claim begins with ``says`` if there is one claim, with ``1:``
    and ``2:`` if there are two.

    Args:
        problem: The problem.
        claims: The claim of each response.
    """
    derivation = problem.plan.derive()
    answer = f"{derivation.answer} {problem.unit}".strip()
    lines = [*derivation.notes, *derivation.lines, f"so {answer}"]
    for i, claim in enumerate(claims):
        who = "says" if len(claims) == 1 else f"{i + 1}:"
        lines.append(f"{who} {claim or 'nothing'} vs {answer} {'yes' if agrees(claim, problem) else 'no'}")
    return "".join(line + "\n" for line in lines)


def claim_of(text: str) -> str:
    """Return what a solution gives as its answer: what stands behind "The answer is", or all of a short text."""
    found = _ANSWER.match(text.strip())
    claim = found.group(1) if found else ""
    return claim if len(claim.split()) <= 2 else ""


def labelled(problem: Problem, text: str) -> Response | None:
    """Return a solution with its label; None where the number is right and the unit wrong, which is neither."""
    claim = claim_of(text)
    right = agrees(claim, problem)
    if not right and claim.split(" ")[0] == problem.answer:
        return None
    return Response(text, claim, right, "worked", "" if right else "own")


def agrees(claim: str, problem: Problem) -> bool:
    """Return whether a claim is the right answer: the value must be right, and the unit if it gives one."""
    value, _, unit = claim.partition(" ")
    return value == problem.answer and unit in ("", problem.unit)


def _write(derivation: Derivation, unit: str, form: str, rng: random.Random) -> tuple[str, str]:
    """Return the text of a response in the given form, and the claim in it."""
    claim = f"{derivation.answer} {unit}".strip()
    if form == "bare":
        if unit and rng.random() < 0.25:
            claim = derivation.answer
        return rng.choice(_bare_texts(claim)), claim
    return _written(derivation, claim, form), claim


def _bare_texts(claim: str) -> tuple[str, ...]:
    """Return the ways to give an answer without any work."""
    return claim, f"{claim}.", f"The answer is {claim}."


def _written(derivation: Derivation, claim: str, form: str) -> str:
    """Return the text of a terse or a worked response."""
    working = f"{derivation.terse}." if form == "terse" else " ".join(f"{line}." for line in derivation.lines)
    return f"{working} The answer is {claim}."


def _visible(problem: Problem, kind: str, form: str, rng: random.Random) -> Response:
    """Return a response with a visible error of this kind, or a similar kind where the problem does not allow it."""
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
        form = form if form != "bare" else "worked"  # a bare answer may leave its unit out, and would then be right
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
