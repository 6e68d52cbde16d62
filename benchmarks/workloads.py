"""What is measured: token ids, cut into a shared prompt and responses. The ids are random.

Only their number matters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

PART_TOKENS = 2048
"""Tokens of a part, at least: a full batch."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``count`` responses of ``response`` tokens each behind one common prompt of ``prompt`` tokens (0: no two alike).

    Attributes:
        name: Short name.
        title: What it stands for.
        prompt: Tokens that all sequences share.
        response: Tokens of each sequence behind them.
        count: Sequences.
        scale: What a measured time is multiplied by: a slow peer may run a part of a workload of many equal pieces.
    """

    name: str
    title: str
    prompt: int
    response: int
    count: int
    scale: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that have to be computed when the prompt is shared."""
        return self.prompt + self.count * self.response

    def sequences(self, vocab_size: int) -> list[list[int]]:
        """The sequences; the same for the same workload."""
        rng = np.random.default_rng(self.prompt * 1_000_003 + self.response)
        prompt = rng.integers(0, vocab_size, self.prompt).tolist()
        return [prompt + rng.integers(0, vocab_size, self.response).tolist() for _ in range(self.count)]

    def part(self, tokens: int = PART_TOKENS) -> Workload:
        """The smallest part of at least ``tokens`` tokens; its time is to be multiplied back by ``scale``.

        Only for peers that share nothing between sequences: their work is so many equal pieces.
        """
        scale = 1
        while self.count % (2 * scale) == 0 and self.count // (2 * scale) * (self.prompt + self.response) >= tokens:
            scale *= 2
        return replace(self, count=self.count // scale, scale=scale)


MAIN = (
    Workload("W1", "one pair of 512 tokens", 0, 512, 1),
    Workload("W2", "best of 8, prompt 512, responses 128", 512, 128, 8),
    Workload("W3", "256 independent pairs of 64 tokens", 0, 64, 256),
    Workload("W4", "best of 64, prompt 128, responses 32", 128, 32, 64),
)

BY_COUNT = tuple(Workload(f"N{n}", f"best of {n}, prompt 512, responses 32", 512, 32, n) for n in (1, 4, 16, 64))
BY_PROMPT = tuple(Workload(f"P{p}", f"best of 4, prompt {p}, responses 32", p, 32, 4) for p in (128, 512, 2048, 4096))
"""How the cost grows with the number of candidates, and with the length of the prompt."""
