"""What is compared between a checkpoint and an exported file: first-token readings and chains of thought.

A *reading* is what a model says of the next token behind a text. A *chain* is a thought and the logits of the verdict
behind it. Both sides give these same types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.gate import sigmoid
from fsrm_lite.runtimes.reading import read_distribution

TIE_LOGIT = 1 / 32
"""Two tokens whose logits are closer than this tie in any case, whatever the file that is measured.

It is half a step of bfloat16 at logits of 8 to 16. Such a difference lies within the rounding of the precision in which
checkpoints are trained and served.
"""

_TIES_KEPT = 16


@dataclass(frozen=True, slots=True)
class TokenReading:
    """What a model says of the next token behind one sequence.

    Attributes:
        label_logits: Raw logits of the tokens that were asked for; from a scalar head the reward alone.
        log_mass: The logarithm of the sum of exp(logit) over the whole vocabulary; None from a scalar head.
        entropy: Entropy of the whole distribution, in nats; None from a scalar head.
        likeliest: The token with the highest logit; -1 from a scalar head.
    """

    label_logits: tuple[float, ...]
    log_mass: float | None
    entropy: float | None
    likeliest: int = -1


@dataclass(frozen=True, slots=True)
class Thought:
    """What a model writes greedily, taking the likeliest token each time.

    Attributes:
        ids: Its tokens, without the stop id that ended it.
        ties: For each step, that of the stop id included, the tokens that tied with the best one, by the ending's
            ``near_tie``.
    """

    ids: tuple[int, ...]
    ties: tuple[frozenset[int], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a thought ends and what is asked behind it.

    Attributes:
        stop_ids: Ids that end a thought and are no part of it: those that end an answer, and the one that begins what
            closes a thought.
        tail: Ids between thought and verdict.
        choice_ids: Ids of the choices whose logits are read behind the tail.
        budget: Most ids of a thought.
        near_tie: Two tokens tie if their logits are closer than this.
        close: The text that closes a thought, whose first id is that of the tail.
    """

    stop_ids: frozenset[int]
    tail: tuple[int, ...]
    choice_ids: tuple[int, ...]
    budget: int
    near_tie: float = TIE_LOGIT
    close: str = ""

    @property
    def tokens(self) -> int:
        """The most ids that a chain adds to its prompt."""
        return self.budget + len(self.tail)


@dataclass(frozen=True, slots=True)
class ChainTask:
    """The ids of a prompt to think about, and how the thought ends."""

    prompt: tuple[int, ...]
    ending: Ending

    @property
    def tokens(self) -> int:
        """The most ids that the prompt and its chain can have together."""
        return len(self.prompt) + self.ending.tokens


@dataclass(frozen=True, slots=True)
class Chain:
    """A thought, without the text that closes it, and the logits of the choices behind it.

    Attributes:
        thought: The thought.
        choice_logits: The logits of the choices behind the tail.
        closed: Whether the model itself began what closes a thought; not that it stopped, or was closed.
        chooses: Whether a choice is the likeliest token behind the tail. False for a file whose other logits are not
            looked at.
    """

    thought: Thought
    choice_logits: tuple[float, ...]
    closed: bool = field(default=False, compare=False)
    chooses: bool = field(default=False, compare=False)

    @property
    def verdict(self) -> int:
        """Position of the choice with the highest logit; the first of them if there are several."""
        return self.choice_logits.index(max(self.choice_logits))

    def probability(self, choice: int) -> float:
        """Return the probability of a choice when only the best of the others stands against it, in [0, 1]."""
        others = max(x for i, x in enumerate(self.choice_logits) if i != choice)
        return sigmoid(self.choice_logits[choice] - others)


class ChainWriter:
    """Says token by token how one chain goes on: the thought, then the tail, then the verdict.

    It takes the logits from its caller, so it works for any model.
    """

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._thought: list[int] = []
        self._ties: list[frozenset[int]] = []
        self._tail: Iterator[int] | None = None
        self._closed = False

    def step(self, logits: NDArray[np.float32]) -> int | Chain:
        """Return the id to write next, or the whole chain.

        Args:
            logits: Logits behind everything that is written so far, shape [vocabulary].
        """
        if self._tail is None and len(self._thought) < self._ending.budget:
            best = int(logits.argmax())
            self._ties.append(_ties(logits, best, self._ending.near_tie))
            if best not in self._ending.stop_ids:
                self._thought.append(best)
                return best
            self._closed = best in self._ending.tail[:1]
        if self._tail is None:
            self._tail = iter(self._ending.tail)
        token = next(self._tail, None)
        if token is not None:
            return token
        return Chain(
            Thought(tuple(self._thought), tuple(self._ties)),
            tuple(logits[list(self._ending.choice_ids)].tolist()),
            self._closed,
            int(logits.argmax()) in self._ending.choice_ids,
        )


def _ties(logits: NDArray[np.float32], best: int, near_tie: float) -> frozenset[int]:
    near = np.flatnonzero(logits > logits[best] - near_tie)
    return frozenset(near[np.argsort(-logits[near], kind="stable")[:_TIES_KEPT]].tolist())


def read_logits(logits: NDArray[np.float32], label_ids: Sequence[int]) -> TokenReading:
    """Return what the logits of one position, shape [vocabulary], say; it is computed in double precision."""
    return TokenReading(*read_distribution(logits, label_ids), likeliest=int(logits.argmax()))
