"""Draws the curves of a training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

LOSSES = {
    "lm": "next token (thoughts, answers)",
    "label": "first-token label",
    "rank": "Bradley-Terry",
    "process": "process labels",
}
SHARES = {
    "fast": "fast: chosen above rejected",
    "fast_visible": "fast, visible errors",
    "fast_worked": "fast, errors in a working",
    "fast_terse": "fast, errors in one line",
    "fast_bare": "fast, bare answers",
    "own_pairs": "fast, the model's own right and wrong solutions",
    "pick_8": "fast pick of 8 own solutions",
    "slow_exact": "slow: whole thought and verdict exact",
}


def training_curves(metrics: Sequence[Path], out: Path) -> None:
    """Draw the losses and the figures on the calibration split against training steps.

    Args:
        metrics: The file ``metrics.jsonl`` of each run, in their order; their steps are counted on.
        out: The picture to write.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows: list[dict[str, float]] = []
    for path in metrics:
        before = rows[-1]["step"] if rows else 0
        run = [json.loads(line) for line in path.read_text().splitlines()]
        rows += [{**row, "step": before + row["step"]} for row in run]
    steps = [row["step"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, title in LOSSES.items():
        if all(name in row for row in rows):
            left.plot(steps, [row[name] for row in rows], label=title)
    left.set(title="loss", xlabel="step", yscale="log")
    for name, title in SHARES.items():
        if all(name in row for row in rows):
            right.plot(steps, [row[name] for row in rows], label=title)
    right.set(title="calibration split", xlabel="step", ylabel="share right", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=80)
    plt.close(figure)
