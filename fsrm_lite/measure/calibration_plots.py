"""Draws a calibration: a picture of four plots, or an HTML page with the picture and the main figures.

The plots are: reliability (is the fast score right as often as it claims), ROC (does the confidence tell right from
wrong), risk against coverage (the error rate of fast decisions against the share decided fast), and accuracy against
tokens. Needs matplotlib (extra ``plots``).
"""

from __future__ import annotations

import base64
import html
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsrm_lite.errors import CalibrationError, missing_extra
from fsrm_lite.measure.calibration import Calibration
from fsrm_lite.measure.calibration_report import percent, probability_right
from fsrm_lite.measure.metrics import auroc, front, oracle_front, reliability, risk_coverage, roc
from fsrm_lite.measure.tradeoff import operate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_IN_BIN = 5
"""Bins of fewer items are not drawn, because their share of right answers is mostly chance."""

_COLOURS = {"intuition": "#1b6ca8", "distribution": "#c0563b", "joint": "#3b8a4e"}


def write_picture(result: Calibration, path: Path) -> None:
    """Write the plots to a file.

    Args:
        result: What ``calibrate`` returned.
        path: A name that ends in ``.png`` gets the picture, one that ends in ``.html`` a page with the figures as well.

    Raises:
        CalibrationError: If the file name ends in neither.
        MissingExtraError: If matplotlib is not installed.
    """
    if path.suffix not in (".png", ".html"):
        raise CalibrationError(
            f"the plots cannot be written to {path.name!r}, expected a name that ends in .png or .html"
        )
    png = render(result)
    if path.suffix == ".png":
        path.write_bytes(png)
    else:
        path.write_text(_page(result, png), encoding="utf-8")


def render(result: Calibration) -> bytes:
    """Draw reliability, ROC, risk against coverage, and accuracy against tokens.

    Returns:
        The picture, as the bytes of a PNG file.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure = new_figure(12, 9.5)
    axes = figure.subplots(2, 2)
    _reliability(axes[0, 0], result)
    _roc(axes[0, 1], result)
    _risk_coverage(axes[1, 0], result)
    _cost(axes[1, 1], result)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that needs no display.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plots", error) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, no display
    return figure


def png_of(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _reliability(axis: Axes, result: Calibration) -> None:
    """Draw the share of right answers against the probability that the fast score claims."""
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linestyle=":", label="perfectly calibrated")
    for name, temperature, colour in (
        ("as it is", 1.0, "#c0563b"),
        (f"at temperature {result.temperature:.2f}", result.temperature, "#1b6ca8"),
    ):
        bins = reliability(probability_right(result.testing, temperature), result.testing.fast_correct)
        bins = [b for b in bins if b[2] >= _LEAST_IN_BIN]
        axis.plot([b[0] for b in bins], [b[1] for b in bins], marker="o", markersize=4, color=colour, label=name)
    axis.set(
        title="Reliability of the fast score",
        xlabel="claimed probability of being right",
        ylabel="share right",
        xlim=(0.49, 1.01),
    )
    axis.set_ylim(min(0.45, axis.get_ylim()[0]), 1.02)
    axis.legend(frameon=False)


def _roc(axis: Axes, result: Calibration) -> None:
    """Draw the right answers kept against the wrong ones kept, for every threshold of each confidence."""
    right = result.testing.fast_correct
    axis.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    for name, confidence in result.testing.confidences().items():
        axis.plot(*roc(confidence, right), color=_COLOURS[name], label=f"{name}, area {auroc(confidence, right):.3f}")
    axis.set(
        title="Does the confidence know when it is right?", xlabel="wrong answers kept", ylabel="right answers kept"
    )
    axis.legend(frameon=False, loc="lower right")


def _risk_coverage(axis: Axes, result: Calibration) -> None:
    """Draw the error rate of fast decisions against the share of items decided fast, with the target and the gate."""
    testing, least = result.testing, 20
    for name, confidence in testing.confidences().items():
        curve = risk_coverage(confidence, testing.fast_correct)
        label = f"{name}, AURC {curve.aurc:.3f}, AUGRC {curve.augrc:.3f}"
        # Error rates of fewer than 20 items jump up and down and say nothing.
        axis.plot(curve.coverage[least:], curve.selective_risk[least:], color=_COLOURS[name], label=label)
    risk = result.report["goal"].get("risk")
    if risk is not None:
        axis.axhline(risk, color="0.4", linestyle="--", label=f"target {risk:g}")
    at = result.report.get("at_gate")
    if at is not None and at["selective_risk"]["value"] is not None:
        axis.plot(1 - at["escalated"]["value"], at["selective_risk"]["value"], "k*", markersize=13, label="the gate")
    axis.set(
        title="Risk against coverage",
        xlabel="share decided by the fast path alone",
        ylabel="error rate among them",
        xlim=(0, 1.02),
    )
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, loc="upper left")


def _cost(axis: Axes, result: Calibration) -> None:
    """Draw accuracy against generated tokens for each confidence, beside the best and the random choice of items."""
    cost = result.report["cost"]
    label = "generated tokens" if cost == "tokens" else cost
    axis.set(title=f"Accuracy against {cost}", xlabel=f"{label} per item", ylabel="accuracy")
    testing = result.testing
    if testing.slow_correct is None or testing.slow_tokens is None:
        axis.text(
            0.5, 0.5, "no slow outcomes were recorded", ha="center", va="center", transform=axis.transAxes, color="0.4"
        )
        return
    outcomes = (testing.fast_correct, testing.slow_correct, testing.slow_tokens)
    best = oracle_front(*outcomes)
    axis.plot(best.tokens, best.accuracy, color="0.6", linewidth=1, label="oracle")
    for name, confidence in testing.confidences().items():
        curve = front(confidence, *outcomes)
        axis.plot(curve.tokens, curve.accuracy, color=_COLOURS[name], label=f"escalating by {name}")
    fast, slow = (float(np.mean(x)) for x in outcomes[:2])
    axis.plot(
        [0, float(testing.slow_tokens.mean())], [fast, slow], color="0.3", linestyle=":", label="escalating at random"
    )
    axis.plot(0, fast, "ks", markersize=6, label="always fast")
    axis.plot(float(testing.slow_tokens.mean()), slow, "k^", markersize=7, label="always slow")
    if result.gate is not None:
        point = operate(result.gate, testing)
        axis.plot(point.tokens, point.accuracy, "k*", markersize=13, label="the gate")
    axis.legend(loc="best", framealpha=0.85, edgecolor="none")


def _page(result: Calibration, png: bytes) -> str:
    """Return an HTML page with the figures, the warnings and the picture in one file."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in _summary(result)
    )
    notes = "".join(f"<li>{html.escape(w)}</li>" for w in result.report["warnings"])
    picture = base64.b64encode(png).decode("ascii")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Gate calibration</title>'
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
        "th{text-align:left;font-weight:500;padding-right:2rem;vertical-align:top}img{max-width:100%}</style>"
        f"<h1>Gate calibration</h1><table>{rows}</table>"
        + (f"<h2>Warnings</h2><ul>{notes}</ul>" if notes else "")
        + '<img alt="reliability, ROC, risk against coverage, accuracy against tokens" '
        f'src="data:image/png;base64,{picture}"></html>'
    )


def _summary(result: Calibration) -> list[tuple[str, str]]:
    """Return the page's table: a name and a value per row."""
    report: dict[str, Any] = result.report
    rows = [
        (
            "items",
            f"{report['items']['tuning']} for tuning, {report['items']['testing']} for testing; "
            "the figures are of the latter",
        )
    ]
    if report["guarantee"] is not None:
        rows += [("guarantee", report["guarantee"]["statement"]), ("assumes", report["guarantee"]["assumes"])]
    if report["gate"] is not None:
        rows.append(("gate", ", ".join(f"{k} {v}" for k, v in report["gate"].items())))
    rows.append(("always fast", percent(report["always_fast"]["accuracy"])))
    if report["always_slow"] is not None:
        rows.append(
            (
                "always slow",
                f"{percent(report['always_slow']['accuracy'])} "
                f"at {report['always_slow']['tokens']['value']:.1f} {report['cost']} per item",
            )
        )
    at = report.get("at_gate")
    if at is not None:
        rows += [
            ("escalated", percent(at["escalated"])),
            ("error rate of fast decisions", percent(at["selective_risk"])),
        ]
    if at is not None and "accuracy" in at:
        rows.append(("gated", f"{percent(at['accuracy'])} at {at['tokens']['value']:.1f} {report['cost']} per item"))
        rows.append(("random escalation at equal cost", percent(at["random_at_equal_cost"])))
    return rows
