"""The workloads that are measured: a prompt and responses to it, in token ids.

The ids are random, since only their number matters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

PART_TOKENS = 2048
"""Least tokens of a part of a workload: a full batch."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequences of token ids, each a response behind a prompt that all of them share.

    Attributes:
        name: Short name.
        title: What it stands for.
        prompt: Number of tokens that all sequences share; 0 if they have nothing in common.
        response: Number of tokens of each sequence behind them.
        count: Number of sequences.
        scale: What a measured time is multiplied by. It is more than 1 if this is only a part of a workload, which a
            slow peer may run instead of the whole.
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
        """Return the sequences; they are always the same for the same workload."""
        rng = np.random.default_rng(self.prompt * 1_000_003 + self.response)
        prompt = rng.integers(0, vocab_size, self.prompt).tolist()
        return [prompt + rng.integers(0, vocab_size, self.response).tolist() for _ in range(self.count)]

    def part(self, tokens: int = PART_TOKENS) -> Workload:
        """Return the smallest part of at least ``tokens`` tokens.

        A time that is measured with it is to be multiplied by its ``scale``. Parts are only for peers that share
        nothing between sequences, because their work is so many equal pieces.
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
