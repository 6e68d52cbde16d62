"""Draws the curves of a training run."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

LOSSES = {"lm": "next token (thoughts, answers)", "label": "first-token label", "rank": "Bradley-Terry"}
SHARES = {
    "fast": "fast: chosen above rejected",
    "fast_visible": "fast, visible errors",
    "fast_worked": "fast, errors in a working",
    "fast_terse": "fast, errors in one line",
    "fast_bare": "fast, bare answers",
    "slow_exact": "slow: whole thought and verdict exact",
}


def training_curves(metrics: Path, out: Path) -> None:
    """Draw the losses and the figures on the calibration split against training steps.

    Args:
        metrics: The file ``metrics.jsonl`` of the run.
        out: The picture to write.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, title in LOSSES.items():
        left.plot(steps, [row[name] for row in rows], label=title)
    left.set(title="loss", xlabel="step", yscale="log")
    for name, title in SHARES.items():
        right.plot(steps, [row[name] for row in rows], label=title)
    right.set(title="calibration split", xlabel="step", ylabel="share right", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=80)
    plt.close(figure)
