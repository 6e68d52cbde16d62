"""How often does each strategy find the best of N, with a judge of known accuracy? A simulation, without a model.

Each of the N players gets a strength, drawn from a normal distribution. The judge prefers i to j with probability
sigmoid(strength of i - strength of j), and the fast scores are the strengths with noise. The gate escalates pairs whose
fast scores are close.

    python examples/tournament_odds.py                      # N = 2 .. 32, 2,000 tournaments each
    python examples/tournament_odds.py --runs 10000 --n 8
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsrm_lite.gate import Gate, GateSpec, intuition_confidence, sigmoid
from fsrm_lite.measure.intervals import wilson
from fsrm_lite.ranking.tournament import select
from fsrm_lite.types import Comparison, Route, Score

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("fast", {}),
    "gated": ("gated", {}),
    "knockout": ("knockout", {}),
    "elo, n-1 games": ("elo", {"budget": -1}),  # -1 stands for n - 1 games, as many as a knockout plays, and -2 for 2n
    "elo, 2n games": ("elo", {"budget": -2}),
    "elo, all games": ("elo", {}),
}


@dataclass
class Judge:
    """A judge that decides at random by the difference of strengths, and counts its games and batches."""

    strength: Sequence[float]
    rng: np.random.Generator
    games: int = 0
    rounds: int = 0

    def __call__(self, pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
        """Return the comparisons of a batch of pairs."""
        self.games += len(pairs)
        self.rounds += 1
        wins = [bool(self.rng.random() < sigmoid(self.strength[a] - self.strength[b])) for a, b in pairs]
        return [Comparison(0 if win else 1, float(win), 0.0, 0.0, route=Route.SLOW) for win in wins]


def simulate(
    n: int, runs: int, spread: float, noise: float, gate: Gate, seed: int = 0
) -> dict[str, tuple[int, float, float]]:
    """Return for each strategy in how many tournaments it found the best, and its mean numbers of games and batches."""
    found = {name: [0, 0, 0] for name in STRATEGIES}
    for run in range(runs):
        rng = np.random.default_rng((seed, run))
        strength = rng.normal(0, spread, n).tolist()
        logits = [x + float(rng.normal(0, noise)) for x in strength]
        scores = [Score(sigmoid(x), x, intuition_confidence(x), 1.0, 1.0) for x in logits]
        for name, (strategy, options) in STRATEGIES.items():
            judge = Judge(strength, np.random.default_rng((seed, run, 1)))
            budget = {"budget": {-1: n - 1, -2: 2 * n}[options["budget"]]} if options else {}
            picked = select(strategy, scores, [str(i) for i in range(n)], gate, judge, **budget)
            hit = strength[picked.index] == max(strength)
            found[name] = [x + y for x, y in zip(found[name], (int(hit), judge.games, judge.rounds), strict=True)]
    return {name: (hits, games / runs, rounds / runs) for name, (hits, games, rounds) in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument(
        "--spread",
        type=float,
        default=3.0,
        help="standard deviation of the strengths, nats; the judge's accuracy follows",
    )
    parser.add_argument("--noise", type=float, default=3.0, help="standard deviation of the fast scores' error, nats")
    parser.add_argument("--threshold", type=float, default=0.9, help="of the gate's intuition confidence")
    options = parser.parse_args(arguments)
    z = np.abs(np.random.default_rng(0).normal(0, options.spread * math.sqrt(2), 100_000))
    print(
        f"a judge that is right {np.mean(1 / (1 + np.exp(-z))):.1%} of the time; "
        "P(best found) in % ± half a 95 % interval (games, batches)\n"
    )
    print("| N | " + " | ".join(STRATEGIES) + " |\n|---|" + "---|" * len(STRATEGIES))
    for n in options.n:
        results = simulate(
            n, options.runs, options.spread, options.noise, Gate(GateSpec(intuition_threshold=options.threshold))
        )
        texts = []
        for hits, games, rounds in results.values():
            p = wilson(hits, options.runs)
            texts.append(f"{100 * p.value:.1f} ± {50 * (p.high - p.low):.1f} ({games:.1f}, {rounds:.1f})")
        print(f"| {n} | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
