"""Draws a comparison: the scores of the systems and their differences. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fsrm_lite.measure.calibration_plots import new_figure, png_of
from fsrm_lite.measure.comparison import is_clear

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE_INCHES = 0.32
_CLEAR, _UNCLEAR = "#1b6ca8", "0.55"


def render(report: Mapping[str, Any]) -> bytes:
    """Draw what ``compare`` found: scores on the left, differences with their paired intervals on the right.

    Returns:
        The picture, as the bytes of a PNG file.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    scores = [
        (f"{s['name']}, {policy.replace('_', ' ')}", found["score"], _CLEAR)
        for s in report["systems"]
        for policy, found in s["policies"].items()
    ]
    differences = [
        (f"{d['to']} - {d['from']}, {d['policy'].replace('_', ' ')}", d, _CLEAR if is_clear(d) else _UNCLEAR)
        for d in report["differences"]
    ]
    figure = new_figure(14, 1.6 + _LINE_INCHES * max(len(scores), len(differences)))
    left, right = figure.subplots(1, 2)
    _intervals(left, scores)
    left.set(title=f"{report['format']}, {report['items']} items", xlabel="score, %")
    _intervals(right, differences)
    right.axvline(0, color="0.3", linewidth=1)
    right.set(title="Differences (grey: 0 lies within the interval)", xlabel="percentage points")
    return png_of(figure)


def _intervals(axis: Axes, rows: list[tuple[str, Mapping[str, Any], str]]) -> None:
    """Draw one line per row, from above: a value with its interval, in per cent."""
    for place, (_, found, colour) in enumerate(rows):
        if found["value"] is None:
            continue
        if found["low"] is not None:
            axis.plot([100 * found["low"], 100 * found["high"]], [place, place], color=colour, linewidth=2)
        axis.plot(100 * found["value"], place, marker="o", color=colour)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
