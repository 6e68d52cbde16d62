"""How an answer comes about: the plan behind a problem, and what goes wrong when a step of it fails.

A plan derives the right answer, and, given an error kind, a wrong one *by making that error*: a slip in a step is
carried through to the end, a dropped step is missing from the working. Nothing here knows about wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

LARGEST = 24
"""No value in a problem or a working is above this; what a model of this size can learn in an hour or two."""

ERRORS = ("slip", "operand", "dropped", "swapped")
"""Errors of reasoning: a wrong result in one step, a misread number, a forgotten step, exchanged roles."""

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
        terse: The same working on one line, for example ``"12 + 5 - 3 = 14"``.
        answer: The value or the name that comes out.
    """

    lines: tuple[str, ...]
    terse: str
    answer: str


class Plan(Protocol):
    """What every kind of plan can do."""

    def derive(self) -> Derivation:
        """Return the right derivation."""

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a wrong derivation that makes ``error``, or None where that error cannot happen here."""


@dataclass(frozen=True, slots=True)
class Step:
    """``left op right``; an operand is a number, or ``-1 - i`` for the result of step i."""

    left: int
    op: str
    right: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A sequence of steps over small integers, the last of which gives the answer."""

    steps: tuple[Step, ...]

    def derive(self) -> Derivation:
        """Return the right derivation; the plan must be valid."""
        derivation = self._run(self.steps)
        if derivation is None:
            raise ValueError(f"not a valid plan: {self}")
        return derivation

    def valid(self) -> bool:
        """Whether all values are whole numbers in 0..LARGEST."""
        return self._run(self.steps) is not None

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Return a derivation with one error, whose answer differs from the right one; None if ten tries find none."""
        right = self.derive().answer
        for _ in range(10):
            wrong = self._mutate(error, rng)
            if wrong is not None and wrong.answer != right:
                return wrong
        return None

    def _mutate(self, error: str, rng: random.Random) -> Derivation | None:
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
        """Leave step ``i`` out: whoever needed its result takes its left operand instead."""

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
    """An operand in a one-line expression, bracketed where the order of operations needs it."""
    if operand >= 0:
        return str(operand)
    text = texts[-1 - operand]
    loose = " + " in text or " - " in text
    tight = " * " in text or " / " in text
    needs = (loose and (op in "*/" or (right and op == "-"))) or (tight and right and op in "/*")
    return f"({text})" if needs else text


@dataclass(frozen=True, slots=True)
class Ordering:
    """Who stands where in a line of people, first to last by ``relation``; asked for the one at ``rank``."""

    people: tuple[str, ...]
    rank: int

    def derive(self) -> Derivation:
        """Return the right derivation."""
        return self._at(self.people, self.rank)

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Name somebody else: a neighbour, the other end, or after exchanging two people or losing one."""
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
    """How many of ``numbers`` are greater or less than ``bound``."""

    numbers: tuple[int, ...]
    bound: int
    greater: bool

    def derive(self) -> Derivation:
        """Return the right derivation: each number with yes or no and the count so far."""
        return self._count(self.numbers, self.bound, self.greater)

    def fail(self, error: str, rng: random.Random) -> Derivation | None:
        """Miscount: one number judged wrongly, another bound read, a number overlooked, the comparison turned round."""
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
        hits = []
        lines = []
        for i, n in enumerate(numbers):
            hit = (n > bound if greater else n < bound) != (i == flip)
            hits += [n] if hit else []
            lines.append(f"{n} {'yes' if hit else 'no'} {len(hits)}")
        listed = ", ".join(map(str, hits)) or "none"
        return Derivation(tuple(lines), f"{listed}: {len(hits)}", str(len(hits)))
