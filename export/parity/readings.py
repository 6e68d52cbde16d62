"""What parity compares, from the checkpoint and from an exported file alike.

First-token readings and chains of thought.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.gate import sigmoid
from fsrm_lite.runtimes.onnx.packing import common_length

TIE_LOGIT = 1 / 32
"""Two tokens whose logits are closer than this tie: half a step of bfloat16 at logits of 8 to 16, that is, within the
rounding of the precision in which checkpoints are trained and served."""

_TIES_KEPT = 16


@dataclass(frozen=True, slots=True)
class TokenReading:
    """What a file says behind one sequence.

    Attributes:
        label_logits: Raw logits of the tokens that were asked for.
        log_mass: logsumexp over the whole vocabulary.
        entropy: Of the whole distribution, in nats.
    """

    label_logits: tuple[float, ...]
    log_mass: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Thought:
    """A greedy continuation.

    Attributes:
        ids: Up to and without the stop id that ended it.
        ties: Per step, the stop id's included, every token that was as likely as the best up to ``TIE_LOGIT``.
    """

    ids: tuple[int, ...]
    ties: tuple[frozenset[int], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a thought ends and what is asked behind it.

    Attributes:
        stop_ids: Ids that end a thought and are no part of it: what ends an answer, and what closes a thought.
        tail: Ids between thought and verdict.
        choice_ids: Ids of the choices whose logits are read behind the tail.
        budget: Ids of the longest thought.
    """

    stop_ids: frozenset[int]
    tail: tuple[int, ...]
    choice_ids: tuple[int, ...]
    budget: int

    @property
    def tokens(self) -> int:
        """Most ids that a chain adds to its prompt."""
        return self.budget + len(self.tail)


@dataclass(frozen=True, slots=True)
class ChainTask:
    """A prompt's ids to think about."""

    prompt: tuple[int, ...]
    ending: Ending

    @property
    def tokens(self) -> int:
        """Most ids that the prompt and its chain can have."""
        return len(self.prompt) + self.ending.tokens


@dataclass(frozen=True, slots=True)
class Chain:
    """A thought, without what closes it, and the logits of the choices behind it."""

    thought: Thought
    choice_logits: tuple[float, ...]

    @property
    def verdict(self) -> int:
        """Position of the best choice; the earlier one on a tie."""
        return self.choice_logits.index(max(self.choice_logits))

    def probability(self, choice: int) -> float:
        """Probability of a choice against the best other one, in [0, 1]."""
        others = max(x for i, x in enumerate(self.choice_logits) if i != choice)
        return sigmoid(self.choice_logits[choice] - others)


class ChainWriter:
    """Writes one chain greedily, thought, tail and verdict in one go, whatever model gives the logits."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._thought: list[int] = []
        self._ties: list[frozenset[int]] = []
        self._tail: Iterator[int] | None = None

    def step(self, logits: NDArray[np.float32]) -> int | Chain:
        """Return the id to write next, or the whole chain.

        Args:
            logits: Behind all that is written so far, [vocabulary].
        """
        if self._tail is None and len(self._thought) < self._ending.budget:
            best = int(logits.argmax())
            self._ties.append(_ties(logits, best))
            if best not in self._ending.stop_ids:
                self._thought.append(best)
                return best
        if self._tail is None:
            self._tail = iter(self._ending.tail)
        token = next(self._tail, None)
        if token is not None:
            return token
        return Chain(
            Thought(tuple(self._thought), tuple(self._ties)), tuple(logits[list(self._ending.choice_ids)].tolist())
        )


def _ties(logits: NDArray[np.float32], best: int) -> frozenset[int]:
    near = np.flatnonzero(logits > logits[best] - TIE_LOGIT)
    return frozenset(near[np.argsort(-logits[near], kind="stable")[:_TIES_KEPT]].tolist())


def read_logits(logits: NDArray[np.float32], label_ids: Sequence[int]) -> TokenReading:
    """Reduce the logits of one position, shape [vocabulary], in double precision."""
    values = logits.astype(np.float64)
    best = float(values.max())
    weights = np.exp(values - best)
    total = float(weights.sum())
    log_mass = best + float(np.log(total))
    entropy = log_mass - float((weights * values).sum()) / total
    return TokenReading(tuple(values[list(label_ids)].tolist()), log_mass, entropy)


@dataclass(frozen=True, slots=True)
class Family:
    """Sequences, by position, that begin with the same ``shared`` ids; each has at least one more."""

    shared: int
    members: tuple[int, ...]


def families(sequences: Sequence[Sequence[int]]) -> list[Family]:
    """Group sequences that begin alike, so that a model reads that once.

    At least a quarter of each, and as saves most.
    """
    found: list[Family] = []
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        if found:
            last, size = found[-1], len(found[-1].members)
            first = sequences[last.members[0]]
            common = min(common_length(first, sequences[i]), last.shared or len(first) - 1, len(sequences[i]) - 1)
            if 4 * common >= len(sequences[i]) and size * common > (size - 1) * last.shared:
                found[-1] = Family(common, (*last.members, i))
                continue
        found.append(Family(0, (i,)))
    return found
