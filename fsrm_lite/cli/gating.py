"""``fsrm-lite gate``: checks whether another build's gate decides alike, and whether its items are still of a kind."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.cli.calibration_text import drift_text
from fsrm_lite.cli.evaluation_scores import read_gate, unlabelled_items
from fsrm_lite.gate import GateSpec
from fsrm_lite.jsonl import read_json


@click.group()
def gate() -> None:
    """Check whether another build's gate decides like this one's, and whether its items are still of one kind."""


@gate.command()
@click.argument("decisions", type=click.Path(path_type=Path))
@click.option("--gate", "gate_file", type=click.Path(path_type=Path), help="gate.json, for rows that carry no gate.")
@click.option(
    "--model", default=None, help="Take gate, label values and vocabulary size from a bundle folder or org/name."
)
@click.option(
    "--tolerance", type=float, default=1e-6, show_default=True, help="Difference of a confidence that is not reported."
)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def check(decisions: Path, gate_file: Path | None, model: str | None, tolerance: float, as_json: bool) -> None:
    """Read another build's logits and decisions, and report those that differ from this build's.

    Rows are {"label_values", "responses": [{"label_logits", "log_mass", "entropy"}], "vocab_size", "gate", "decision"},
    or only {"id", "decision"} for a row that `fsrm-lite gate vectors` printed. Exits with status 1 when something
    differs.
    """
    from fsrm_lite.measure.conformance import check as run
    from fsrm_lite.measure.data_files import read_rows

    if gate_file is not None and model is not None:
        raise click.UsageError("--gate and --model both name a gate; pass one")
    spec, defaults = (
        (GateSpec.from_dict(read_json(gate_file)), {})
        if gate_file is not None
        else _gate_of_model(model)
        if model is not None
        else (None, {})
    )
    result = run((row.data for row in read_rows(decisions)), gate=spec, defaults=defaults, tolerance=tolerance)
    if as_json:
        click.echo(json.dumps({"checked": result.checked, "mismatches": [asdict(m) for m in result.mismatches]}))
    else:
        for m in result.mismatches:
            note = "  (a confidence lies on its threshold: rounding)" if m.borderline else ""
            click.echo(f"{m.row}: {m.field} is {m.got!r}, expected {m.expected!r}{note}")
        click.echo(f"{result.checked} decisions checked, {len(result.mismatches)} differences")
    if not result.ok:
        raise click.exceptions.Exit(1)


@gate.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--gate", "gate_file", type=click.Path(path_type=Path), help="gate.json, whose escalations are compared.")
@click.option("--fast-columns", metavar="A,B", help="Columns of the scores, where the files are score files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def drift(old: Path, new: Path, gate_file: Path | None, fast_columns: str | None, as_json: bool) -> None:
    """Check whether NEW items look like the OLD ones that a gate was calibrated on.

    Both are files of `calibrate --record`, of `eval -o`, or score files as for `calibrate --scores`; no label is
    needed. Exits with status 1 when the fast signals differ by more than chance.
    """
    from fsrm_lite.measure.drift import drift as run
    from fsrm_lite.measure.labelled import Sample

    samples = [Sample.of(unlabelled_items(path, fast_columns)) for path in (old, new)]
    report = run(samples[0], samples[1], read_gate(gate_file, lists=False) if gate_file is not None else None)
    click.echo(json.dumps(report) if as_json else drift_text(report))
    if report["drifted"]:
        raise click.exceptions.Exit(1)


@gate.command()
def vectors() -> None:
    """Print the conformance vectors (inputs of the gate with its decisions), one JSON object per line."""
    from fsrm_lite.measure.conformance import shipped_vectors

    for row in shipped_vectors():
        click.echo(json.dumps(row))


def _gate_of_model(model: str) -> tuple[GateSpec, dict[str, Any]]:
    """Return a bundle's gate, and what rows of logits made with that bundle need not repeat."""
    manifest = Bundle.open(model).manifest
    return manifest.gate, {
        "label_values": [label.value for label in manifest.labels],
        "vocab_size": manifest.vocab_size,
    }
