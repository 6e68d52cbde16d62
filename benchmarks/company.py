"""How far a score depends on the company in which it is read: alone, and in calls of many.

python -m benchmarks.company [BUNDLE]
"""

from __future__ import annotations

import argparse
import random

import numpy as np

from fsrm_lite import FastSlowRM
from fsrm_lite.models.data import held_out

SIZES = (2, 8, 64, 2000)
"""Responses per call."""


def main() -> None:
    """Print the mean and the largest difference for each size of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a bundle; by default the embedded model")
    parser.add_argument("--pairs", type=int, default=1000, help="test pairs, of two responses each")
    options = parser.parse_args()
    items = [
        (pair.problem.question, response.text)
        for pair in held_out("test", options.pairs)
        for response in (pair.chosen, pair.rejected)
    ]
    random.Random(0).shuffle(items)
    with FastSlowRM.from_pretrained(options.model, judge="never", deterministic=True) as rm:
        alone = np.array([score.score for score in rm.score_many(items)])
    print("| responses per call | mean difference | largest |\n|---|---|---|")
    with FastSlowRM.from_pretrained(options.model, judge="never") as rm:
        for size in SIZES:
            together = [s.score for i in range(0, len(items), size) for s in rm.score_many(items[i : i + size])]
            difference = np.abs(alone - together)
            print(f"| {size} | {difference.mean():.4f} | {difference.max():.4f} |", flush=True)


if __name__ == "__main__":
    main()
