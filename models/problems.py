"""Makes short word problems over small whole numbers, in seven families.

A problem has a question, a plan that solves it, and a key that names its structure: its family and numbers, but not the
names of people and things. The splits train, calibration and test have no structure in common. So a test problem does
not occur in training, not even with other people and things. There are two exceptions. The family ``ordering`` has no
numbers, so the people in their order are its structure. And a sum such as "2 + 3 + 4" is written alike whether it is
added from the left or from the right, which are two structures; about one problem in a hundred is one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from fsrm_lite.models.plans import LARGEST, Arithmetic, Counting, Ordering, Plan, Step

# fmt: off
PEOPLE = ("Ann", "Ben", "Cal", "Dora", "Eli", "Fay", "Gus", "Hana", "Ian", "Joy", "Kim",
          "Leo", "Mia", "Ned", "Ola", "Pam", "Raj", "Sue", "Tom", "Uma", "Vic", "Zoe")
THINGS = ("apples", "pens", "books", "coins", "shells", "cards", "stamps", "beads", "nuts", "eggs",
          "plums", "cups", "keys", "balls", "stones", "cakes", "kites", "dolls", "boxes", "hats")
# fmt: on
GROUPS = ("children", "friends", "teams", "shelves", "bags", "tables")
ORDERS = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
)
RANKS = ("first", "second", "third", "fourth", "fifth")

SPLITS = {"train": range(90), "calibration": range(90, 95), "test": range(95, 100)}
"""The splits. A hash turns a structure into a number from 0 to 99; they have 90, 5 and 5 per cent of the structures."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with the plan that answers it.

    Attributes:
        family: One of ``FAMILIES``.
        question: The text.
        plan: Solves it.
        unit: What the answer counts; empty where the answer is a name or a number without a unit.
        steps: How hard it is: the steps of arithmetic, the people in a line less one, or the numbers to look at.
        key: Its structure, by which it belongs to a split.
        names: People and things in the question that could be mistaken for the answer's name or unit.
    """

    family: str
    question: str
    plan: Plan
    unit: str
    steps: int
    key: str
    names: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """The right number or name, without a unit."""
        return self.plan.derive().answer


def split_of(key: str) -> str:
    """Return the split that a problem structure belongs to, the same on every machine."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def make_problem(rng: random.Random, split: str) -> Problem:
    """Return a problem of a random family whose structure belongs to the split."""
    while True:
        family = rng.choice(tuple(FAMILIES))
        problem = FAMILIES[family](rng)
        if problem is not None and split_of(problem.key) == split:
            return problem


def problems_of(split: str, count: int, seed: int) -> list[Problem]:
    """Return ``count`` problems of a split, the same for the same seed."""
    rng = random.Random(f"own-{split}-{seed}")
    return [make_problem(rng, split) for _ in range(count)]


def _arithmetic(
    family: str, question: str, steps: list[Step], unit: str, names: tuple[str, ...] = (), shape: str = ""
) -> Problem | None:
    """Return a problem of arithmetic; None if a value gets out of range."""
    plan = Arithmetic(tuple(steps))
    if not plan.valid():
        return None
    key = f"{family} {shape} " + " ".join(f"{s.left}{s.op}{s.right}" for s in steps)
    return Problem(family, question, plan, unit, len(steps), key, names)


def _balance(rng: random.Random) -> Problem | None:
    """Return a problem of gains and losses one after the other, sometimes with a number that does not matter."""
    name, other = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    start = rng.randint(2, 20)
    text = [f"{name} has {start} {thing}."]
    steps: list[Step] = []
    for i in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6))):
        n = rng.randint(1, 9)
        gain = rng.random() < 0.5
        verb = rng.choice(
            ("finds {n} more", "buys {n}", "gets {n} from " + other)
            if gain
            else ("loses {n}", "sells {n}", "gives {n} to " + other)
        )
        text.append(f"{rng.choice((name, 'Then ' + name))} {verb.format(n=n)}.")
        steps.append(Step(start if i == 0 else -i, "+" if gain else "-", n))
    distractor = rng.random() < 0.2
    if distractor:
        text.insert(rng.randint(1, len(text)), f"{other} has {rng.randint(1, 20)} {rng.choice(THINGS)}.")
    question = " ".join([*text, f"How many {thing} does {name} have now?"])
    return _arithmetic("balance", question, steps, thing, (name, other))


def _sharing(rng: random.Random) -> Problem | None:
    """Return a problem of equal shares, sometimes with a change before or after the division."""
    thing, group = rng.choice(THINGS), rng.choice(GROUPS)
    parts, each = rng.randint(2, 8), rng.randint(1, 8)
    total = parts * each
    before = rng.choice((0, 0, rng.randint(1, 9), -rng.randint(1, 9)))
    after = rng.choice((0, 0, rng.randint(1, 9), -rng.randint(1, 5)))
    start = total - before
    steps: list[Step] = []
    text = [f"There are {start} {thing}."]
    if before:
        steps.append(Step(start, "+" if before > 0 else "-", abs(before)))
        text.append(f"{abs(before)} more are added." if before > 0 else f"{abs(before)} are broken and thrown away.")
    steps.append(Step(-1 if before else start, "/", parts))
    text.append(f"They are shared equally among {parts} {group}.")
    if after:
        steps.append(Step(-len(steps), "+" if after > 0 else "-", abs(after)))
        text.append(
            f"Each of the {group} then {'gets' if after > 0 else 'loses'} {abs(after)}{' more' if after > 0 else ''}."
        )
    if start < 1:
        return None
    return _arithmetic("sharing", " ".join([*text, f"How many {thing} does each have?"]), steps, thing, (group,))


def _prices(rng: random.Random) -> Problem | None:
    """Return a problem of buying one or two things, sometimes asking how much money is left."""
    name = rng.choice(PEOPLE)
    one, two = rng.sample([t for t in THINGS if t != "coins"], 2)
    p, q, x, y = rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 5)
    text = [
        f"One of the {one} costs {p} coins and one of the {two} costs {q} coins.",
        f"{name} buys {x} {one} and {y} {two}.",
    ]
    steps = [Step(x, "*", p), Step(y, "*", q), Step(-1, "+", -2)]
    if rng.random() < 0.25:
        text, steps = [f"One of the {one} costs {p} coins.", f"{name} buys {x} {one}."], steps[:1]
    ask = f"How many coins does {name} pay?"
    if rng.random() < 0.5:
        paid = rng.randint(1, LARGEST)
        text.append(f"{name} has {paid} coins.")
        steps.append(Step(paid, "-", -len(steps)))
        ask = f"How many coins are left for {name}?"
    return _arithmetic("prices", " ".join([*text, ask]), steps, "coins", (one, two, name))


def _comparison(rng: random.Random) -> Problem | None:
    """Return a problem of who has how many more or fewer than whom, sometimes asking for two people together."""
    thing = rng.choice(THINGS)
    people = rng.sample(PEOPLE, rng.choice((2, 3, 3, 4)))
    start = rng.randint(1, 15)
    text = [f"{people[0]} has {start} {thing}."]
    steps: list[Step] = []
    for i in range(1, len(people)):
        n, more = rng.randint(1, 9), rng.random() < 0.5
        text.append(f"{people[i]} has {n} {'more' if more else 'fewer'} than {people[i - 1]}.")
        steps.append(Step(start if i == 1 else -(i - 1), "+" if more else "-", n))
    ask = f"How many {thing} does {people[-1]} have?"
    if rng.random() < 0.3:
        steps.append(Step(-len(steps), "+", start if len(people) == 2 else -(len(steps) - 1)))
        ask = f"How many {thing} do {people[-2]} and {people[-1]} have together?"
    return _arithmetic("comparison", " ".join([*text, ask]), steps, thing, tuple(people), ask.split()[3][:2])


def _expression(rng: random.Random) -> Problem | None:
    """Return an expression of one to five operations, with brackets where they are needed."""
    steps = [Step(rng.randint(0, 12), rng.choice("+-+-*"), rng.randint(1, 9))]
    for i in range(1, rng.choice((1, 2, 3, 3, 4, 5))):
        op = rng.choice("++--*/")
        n = rng.randint(1, 9) if op in "+-" else rng.randint(2, 4)
        left_first = op in "/" or rng.random() < 0.7
        steps.append(Step(-i, op, n) if left_first else Step(n, op, -i))
    plan = Arithmetic(tuple(steps))
    if not plan.valid():
        return None
    text = plan.derive().terse.split(" = ")[0]
    question = rng.choice(("What is {}?", "Work out {}.", "Find the value of {}.")).format(text)
    return _arithmetic("expression", question, steps, "")


def _ordering(rng: random.Random) -> Problem | None:
    """Return a problem of putting people in order. Neighbours are compared, in any order and from either side."""
    people = rng.sample(PEOPLE, rng.choice((3, 3, 4, 4, 5)))
    more, less, most, least = rng.choice(ORDERS)
    told = [(rng.choice((f"{a} is {more} than {b}.", f"{b} is {less} than {a}.")), (a, b)) for a, b in pairwise(people)]
    rng.shuffle(told)
    rank = rng.randrange(len(people))
    if rank == 0:
        asked = most
    elif rank == len(people) - 1:
        asked = least
    else:
        asked = f"{RANKS[rank]} {most}"
    plan = Ordering(tuple(people), rank, tuple(pair for _, pair in told))
    question = " ".join([*(text for text, _ in told), f"Who is the {asked}?"])
    return Problem(
        "ordering", question, plan, "", len(people) - 1, f"ordering {' '.join(people)} {rank}", tuple(people)
    )


def _counting(rng: random.Random) -> Problem | None:
    """Return a problem of counting the numbers in a list that are greater or less than a bound."""
    numbers = tuple(rng.sample(range(1, LARGEST + 1), rng.choice((3, 4, 5, 6, 7))))
    bound, greater = rng.randint(4, 20), rng.random() < 0.5
    plan = Counting(numbers, bound, greater)
    question = (
        f"Look at the numbers {', '.join(map(str, numbers))}. "
        f"How many of them are {'greater' if greater else 'less'} than {bound}?"
    )
    return Problem("counting", question, plan, "", len(numbers), f"counting {numbers} {bound} {greater}")


FAMILIES: dict[str, Callable[[random.Random], Problem | None]] = {
    "balance": _balance,
    "sharing": _sharing,
    "prices": _prices,
    "comparison": _comparison,
    "expression": _expression,
    "ordering": _ordering,
    "counting": _counting,
}
