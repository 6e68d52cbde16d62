"""``fsrm-lite export``: makes a bundle of a trained checkpoint, with a table that shows how alike the two decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fsrm_lite.cli.progress import Stages
from fsrm_lite.errors import ExportError, ToleranceError, missing_extra

FAST_KINDS = ("int8", "int4", "fp32")
SLOW_KINDS = ("q8_0", "q4_k_m", "q5_k_m", "q6_k", "f16", "none")


def _read_tolerances(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Return the tolerances of ``--tolerance NAME=VALUE``, by name."""
    tolerances = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            tolerances[name.strip().replace("-", "_")] = float(number)
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE, for example delta_score=0.05") from error
    return tolerances


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the bundle; it appears only when it is complete.",
)
@click.option(
    "--spec", type=click.Path(path_type=Path), help="Labels, templates and gate, JSON.  [default: CHECKPOINT/fsrm.json]"
)
@click.option(
    "--fast", type=click.Choice(FAST_KINDS), default="int8", show_default=True, help="Precision of the ONNX scorer."
)
@click.option(
    "--slow", type=click.Choice(SLOW_KINDS), default="q8_0", show_default=True, help="Kind of the GGUF judge."
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="JSONL of pairs to measure on.  [default: 510 built-in pairs]",
)
@click.option(
    "--tolerance",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_read_tolerances,
    help="Repeatable: delta_logit, delta_score, decisions, routes, verdicts.",
)
@click.option("--card", type=click.Path(path_type=Path), help="Markdown text for the model card.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is there.")
@click.option("--force", is_flag=True, help="Write the bundle even when it is out of tolerance, and mark it so.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the finished bundle.")
@click.option("--private", is_flag=True, help="With --push-to-hub: create the repository as a private one.")
def export(
    checkpoint: Path,
    output: Path,
    tolerance: dict[str, float],
    push_to_hub: str | None,
    private: bool,
    **options: Any,  # noqa: ANN401 - the other options go through as they are
) -> None:
    """Turn CHECKPOINT (a Hugging Face folder) into a bundle, and measure how alike the two decide.

    Prints a parity table, which compares the two. Exits with status 1 when the files are out of tolerance and with 2 on
    bad input; nothing is written then.
    """
    try:
        from fsrm_lite.export.card import parity_summary, parity_table
        from fsrm_lite.export.hub import check_repo_name, push_bundle
        from fsrm_lite.export.pipeline import export_checkpoint
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "export") from error
    with Stages() as stages:
        try:
            if push_to_hub is not None:
                check_repo_name(push_to_hub)
            manifest = export_checkpoint(checkpoint, output, tolerance=tolerance, progress=stages.show, **options)
        except ToleranceError as error:
            raise click.ClickException(str(error)) from error
        except ExportError as error:
            raise _BadInputError(str(error)) from error
    click.echo(parity_table(manifest.card["parity"]))
    click.echo(parity_summary(manifest.card["parity"]))
    size = sum(entry.bytes for entry in manifest.files.values())
    click.echo(f"wrote {output} ({size / 1e6:.1f} MB)", err=True)
    if push_to_hub is not None:
        click.echo(f"pushed to {push_bundle(output, push_to_hub, private=private)}", err=True)


class _BadInputError(click.ClickException):
    exit_code = 2
