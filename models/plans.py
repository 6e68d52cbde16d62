"""The plan behind a problem: how its answer is derived, and what comes out if an error is made on the way.

Given a kind of error, a plan makes that error and then goes on correctly. A slip in one step is carried through to the
end; a dropped step is missing from the working (the steps that are written down). The wording of problems and responses
is not made here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

LARGEST = 24
"""Largest value in a problem or a working: as much as a model of this size can learn in an hour or two."""

ERRORS = ("slip", "operand", "dropped", "swapped")
"""Errors of reasoning: a wrong result in a step, a misread number, a forgotten step, exchanged operations or roles."""

OPS: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if b and a % b == 0 else None,
}


@dataclass(frozen=True, slots=True)
class Derivation:
    """One way through a plan.

    Attributes:
        lines: The working, one step per line, for example ``("12 + 5 = 17", "17 - 3 = 14")``.
        terse: The same working in one line, for example ``"12 + 5 - 3 = 14"``.
        answer: The number or the name that comes out.
        notes: What a thought takes from the question before the working, a fact per line; empty where the working
            itself begins with what the question says.
    """

    lines: tuple[str, ...]
    terse: str
    answer: str
    notes: tuple[str, ...] = ()


class Plan(Protocol):
    """Any plan: it can derive the right answer and fail in a given way."""

    def derive(self) -> Derivation:
        """Return the right derivation."""

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a derivation with the given error and a wrong answer, or None if that error cannot happen here."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, ``left op right``. An operand is a number from 0 upwards, or ``-1 - i`` for step i's result."""

    left: int
    op: str
    right: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A sequence of steps over small integers, the last of which gives the answer."""

    steps: tuple[Step, ...]

    def derive(self) -> Derivation:
        """Return the right derivation.

        Raises:
            ValueError: If the plan is not valid.
        """
        derivation = self._run(self.steps)
        if derivation is None:
            raise ValueError(f"not a valid plan: {self}")
        return derivation

    def valid(self) -> bool:
        """Return whether all values are whole numbers from 0 to ``LARGEST``."""
        return self._run(self.steps) is not None

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a derivation with one error and a wrong answer; None if ten tries find none."""
        right = self.derive().answer
        for _ in range(10):
            wrong = self._mutate(error, rng)
            if wrong is not None and wrong.answer != right:
                return wrong
        return None

    def _mutate(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a derivation with the error in a random step; None if a value gets out of range."""
        i = rng.randrange(len(self.steps))
        step = self.steps[i]
        if error == "slip":
            return self._run(self.steps, slip=(i, rng.choice((-2, -1, -1, 1, 1, 2))))
        if error == "operand":
            if step.right >= 0 and (step.left < 0 or rng.random() < 0.5):
                step = replace(step, right=max(0, step.right + rng.choice((-3, -2, -1, 1, 2, 3))))
            elif step.left >= 0:
                step = replace(step, left=max(0, step.left + rng.choice((-3, -2, -1, 1, 2, 3))))
            return self._run((*self.steps[:i], step, *self.steps[i + 1 :]))
        if error == "swapped":
            step = replace(step, op={"+": "-", "-": "+", "*": "+", "/": "-"}[step.op])
            return self._run((*self.steps[:i], step, *self.steps[i + 1 :]))
        return self._drop(i) if len(self.steps) > 1 else None

    def _drop(self, i: int) -> Derivation | None:
        """Return the derivation without step ``i``; a step that needs its result takes its left operand instead."""

        def shift(operand: int) -> int:
            if operand >= 0:
                return operand
            index = -1 - operand
            if index == i:
                return shift(self.steps[i].left) if self.steps[i].left < 0 else self.steps[i].left
            return operand + 1 if index > i else operand

        rest = [Step(shift(s.left), s.op, shift(s.right)) for j, s in enumerate(self.steps) if j != i]
        return self._run(tuple(rest))

    def _run(self, steps: tuple[Step, ...], slip: tuple[int, int] = (-1, 0)) -> Derivation | None:
        """Return the derivation by these steps; None if a value is not a whole number from 0 to ``LARGEST``.

        ``slip`` is (i, amount): the result of step i is wrong by that amount.
        """
        values: list[int] = []
        texts: list[str] = []
        lines = []
        for i, step in enumerate(steps):
            left = values[-1 - step.left] if step.left < 0 else step.left
            right = values[-1 - step.right] if step.right < 0 else step.right
            value = OPS[step.op](left, right)
            if value is None:
                return None
            if i == slip[0]:
                value += slip[1]
            if not 0 <= value <= LARGEST:
                return None
            lines.append(f"{left} {step.op} {right} = {value}")
            texts.append(
                f"{_text(step.left, texts, step.op)} {step.op} {_text(step.right, texts, step.op, right=True)}"
            )
            values.append(value)
        return Derivation(tuple(lines), f"{texts[-1]} = {values[-1]}", str(values[-1]))


def _text(operand: int, texts: list[str], op: str, *, right: bool = False) -> str:
    """Return an operand as it stands in one line, in brackets where the order of operations needs them."""
    if operand >= 0:
        return str(operand)
    text = texts[-1 - operand]
    loose = " + " in text or " - " in text
    tight = " * " in text or " / " in text
    needs = (loose and (op in "*/" or (right and op == "-"))) or (tight and right and op in "/*")
    return f"({text})" if needs else text


@dataclass(frozen=True, slots=True)
class Ordering:
    """People in order, first to last (by height, say), and the rank (from 0) of the one who is asked for.

    ``told`` are the pairs of neighbours, the higher one first, in the order in which the question compares them. A
    thought notes them, all in the same direction, before it puts all people in order: to do that at once is so hard
    that a judge who has to would rather copy the order that a response gives.
    """

    people: tuple[str, ...]
    rank: int
    told: tuple[tuple[str, str], ...] = ()

    def derive(self) -> Derivation:
        """Return the right derivation."""
        notes = tuple(f"{higher} > {lower}" for higher, lower in self.told)
        return replace(self._at(self.people, self.rank), notes=notes)

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a derivation that names somebody else; None if the error happens to leave the answer right.

        A slip takes a neighbour, "swapped" reverses the order, "operand" exchanges two neighbours, and "dropped"
        forgets the right person.
        """
        people = list(self.people)
        last = len(people) - 1
        right = people[self.rank]
        if error == "slip":
            return self._at(
                self.people, self.rank + (1 if self.rank == 0 else -1 if self.rank == last else rng.choice((-1, 1)))
            )
        if error == "swapped":
            people.reverse()
        elif error == "operand":
            i = rng.randrange(last)
            people[i], people[i + 1] = people[i + 1], people[i]
        else:
            people.remove(right)
        wrong = self._at(tuple(people), min(self.rank, len(people) - 1))
        return wrong if wrong.answer != right else None

    def _at(self, people: tuple[str, ...], rank: int) -> Derivation:
        chain = " > ".join(people)
        return Derivation((chain,), chain, people[rank])


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts how many of the numbers are greater (or less) than a bound."""

    numbers: tuple[int, ...]
    bound: int
    greater: bool

    def derive(self) -> Derivation:
        """Return the right derivation. Its lines are the numbers, each with yes or no and the count so far."""
        return self._count(self.numbers, self.bound, self.greater)

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a derivation with a wrong count; None if the error happens to leave the count right.

        A slip judges one number wrongly, "operand" misreads the bound, "dropped" overlooks a number, and "swapped"
        turns greater into less or the other way round.
        """
        if error == "slip":
            wrong = self._count(self.numbers, self.bound, self.greater, flip=rng.randrange(len(self.numbers)))
        elif error == "operand":
            wrong = self._count(self.numbers, max(0, self.bound + rng.choice((-3, -2, 2, 3))), self.greater)
        elif error == "dropped":
            i = rng.randrange(len(self.numbers))
            wrong = self._count(self.numbers[:i] + self.numbers[i + 1 :], self.bound, self.greater)
        else:
            wrong = self._count(self.numbers, self.bound, not self.greater)
        return wrong if wrong.answer != self.derive().answer else None

    def _count(self, numbers: tuple[int, ...], bound: int, greater: bool, flip: int = -1) -> Derivation:
        """Return the derivation of a count; the number at position ``flip`` is judged wrongly."""
        hits = []
        lines = []
        for i, n in enumerate(numbers):
            hit = (n > bound if greater else n < bound) != (i == flip)
            hits += [n] if hit else []
            lines.append(f"{n} {'yes' if hit else 'no'} {len(hits)}")
        listed = ", ".join(map(str, hits)) or "none"
        return Derivation(tuple(lines), f"{listed}: {len(hits)}", str(len(hits)))
