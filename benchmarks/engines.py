"""Compares the judge's two engines on the embedded model: the same decisions on test pairs, and the time of each.

    python -m benchmarks.engines --pairs 500

Both think about the same pairs in both orders, with the bundle's own settings. They draw from the same random numbers,
but their logits differ in the last digits, so that a thought may part where two tokens are nearly alike.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from time import perf_counter

from fsrm_lite import FastSlowRM
from fsrm_lite.models.data import held_out
from fsrm_lite.types import Comparison, JudgeEngine

ENGINES: tuple[JudgeEngine, ...] = ("llama.cpp", "onnx")
AT_ONCE = 25
"""Pairs that are thought about together, by one engine and then by the other."""


def main() -> None:
    """Print what the engines have in common, and how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    items = [(p.problem.question, p.chosen.text, p.rejected.text) for p in held_out("test", options.pairs)]
    found: dict[str, list[Comparison]] = {name: [] for name in ENGINES}
    seconds = dict.fromkeys(ENGINES, 0.0)
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(
                FastSlowRM.from_pretrained(judge_engine=name, threads=options.threads, judge="always")
            )
            for name in ENGINES
        }
        for start in range(0, len(items), AT_ONCE):
            for name, model in models.items():
                began = perf_counter()
                found[name] += model.compare_many(items[start : start + AT_ONCE])
                seconds[name] += perf_counter() - began
    both = list(zip(*found.values(), strict=True))
    thoughts = [(a.rationale, b.rationale) for x, y in both for a, b in zip(x.votes, y.votes, strict=True)]
    print(f"the same decision on {sum(a.winner == b.winner for a, b in both)} of {len(both)} pairs")
    print(f"the same thought, word by word, in {sum(a == b for a, b in thoughts)} of {len(thoughts)}")
    for name in ENGINES:
        right = sum(result.winner == 0 for result in found[name])
        print(f"{name}: {right} right, {seconds[name]:.1f} s on {options.threads} threads")


if __name__ == "__main__":
    main()
