"""Stand-ins for the ranking tests: fast scores, a gate, and judges of known accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fsrm_lite.errors import JudgeError
from fsrm_lite.gate import Gate, GateSpec, sigmoid
from fsrm_lite.types import Comparison, Route, Score


def score_of(logit: float, tokens_read: int = 10) -> Score:
    return Score(sigmoid(logit), logit, abs(2 * sigmoid(logit) - 1), 0.9, 1.0, tokens_read=tokens_read)


def scores_of(logits: Sequence[float]) -> list[Score]:
    return [score_of(x) for x in logits]


def gate_of(threshold: float = 0.5, **spec: object) -> Gate:
    return Gate(GateSpec(intuition_threshold=threshold, **spec))


def texts(n: int) -> list[str]:
    return [f"response {i}" for i in range(n)]


@dataclass
class TableJudge:
    """Decides every pair by a function, and remembers its batches. Ten tokens read and five written per match."""

    beats: Callable[[int, int], bool]
    rounds: list[list[tuple[int, int]]] = field(default_factory=list)

    def __call__(self, pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
        self.rounds.append(list(pairs))
        wins = [bool(self.beats(a, b)) for a, b in pairs]
        return [
            Comparison(
                0 if w else 1, float(w), 0.1, 0.9, route=Route.SLOW, escalated=True, tokens_read=10, tokens_generated=5
            )
            for w in wins
        ]

    @property
    def games(self) -> list[tuple[int, int]]:
        return [pair for batch in self.rounds for pair in batch]


def honest(strength: Sequence[float]) -> TableJudge:
    """A judge that is always right."""
    return TableJudge(lambda a, b: strength[a] > strength[b])


def noisy(strength: Sequence[float], rng: np.random.Generator) -> TableJudge:
    """A Bradley-Terry judge: right with probability sigmoid(difference of strengths)."""
    return TableJudge(lambda a, b: rng.random() < sigmoid(strength[a] - strength[b]))


def failing(pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    raise JudgeError("out of memory")


def refusing(pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    raise AssertionError(f"no game expected, asked for {pairs}")
