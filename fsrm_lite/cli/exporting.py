"""``fsrm-lite export``, ``recipes`` and ``verify``.

``export`` makes a bundle of a trained checkpoint, with a table that shows how alike the two decide. ``recipes`` lists
how public models are asked. ``verify`` runs a bundle's examples on this machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fsrm_lite.cli.golden import check_bundle
from fsrm_lite.cli.models import model_argument
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
@click.argument("checkpoint")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the bundle; it appears only when it is complete.",
)
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    help="Labels, templates and gate, JSON.  [default: CHECKPOINT/fsrm.json, else a recipe]",
)
@click.option("--recipe", metavar="NAME", help="How the model is asked; see fsrm-lite recipes.  [default: recognised]")
@click.option(
    "--exporter",
    type=click.Choice(("own", "optimum")),
    default="own",
    show_default=True,
    help="Who writes the ONNX scorer; optimum writes encoders with one output.",
)
@click.option("--judge", metavar="SLOW", help="Another checkpoint or GGUF file, which is the judge.")
@click.option("--judge-spec", type=click.Path(path_type=Path), help="As --spec, for the judge.")
@click.option("--judge-recipe", metavar="NAME", help="As --recipe, for the judge.")
@click.option("--judge-tokenizer", type=click.Path(path_type=Path), help="As --tokenizer, for the judge.")
@click.option("--print-recipe", is_flag=True, help="Print what --spec would take, to be edited, and stop.")
@click.option("--fast", type=click.Choice(FAST_KINDS), help="Precision of the ONNX scorer.  [default: int8]")
@click.option(
    "--slow",
    type=click.Choice(SLOW_KINDS),
    help="Kind of the GGUF judge.  [default: q8_0; none where nothing is thought]",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="For a GGUF file: folder of its tokenizer.json.  [default: built from the file]",
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
    help="Repeatable: delta_logit, delta_score, delta_margin, label_mass, decisions, routes, verdicts, delta_verdict.",
)
@click.option("--card", type=click.Path(path_type=Path), help="Markdown text for the model card.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is there.")
@click.option("--force", is_flag=True, help="Write the bundle even when it is out of tolerance, and mark it so.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the finished bundle.")
@click.option("--private", is_flag=True, help="With --push-to-hub: create the repository as a private one.")
def export(
    checkpoint: str,
    output: Path | None,
    judge: str | None,
    print_recipe: bool,
    tolerance: dict[str, float],
    push_to_hub: str | None,
    private: bool,
    **options: Any,  # noqa: ANN401 - the other options go through as they are
) -> None:
    """Turn CHECKPOINT into a bundle, and measure how alike the two decide.

    CHECKPOINT is a folder in Hugging Face's form, or org/name on the hub; or a GGUF file, or an ONNX folder of an
    encoder with one output, as optimum writes it, which become bundles as they are. With --judge it only scores, and
    another model thinks. How the model is asked comes from --spec, from fsrm.json in the folder, or from a recipe.

    Prints a parity table, which compares the two; of what is taken as it is, what it was checked for. Exits with status
    2 on bad input and with 1 when the files are out of tolerance. Nothing is written then, except where the GGUF file
    alone is out of tolerance: the bundle is written without it, and the message says so.
    """
    try:
        from fsrm_lite.export.card import checks_summary, parity_summary, parity_table
        from fsrm_lite.export.halves import export_with_judge
        from fsrm_lite.export.hub import check_repo_name, push_bundle
        from fsrm_lite.export.pipeline import export_checkpoint, spec_of
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "export") from error
    with Stages() as stages:
        try:
            if push_to_hub is not None:
                check_repo_name(push_to_hub)
            if print_recipe:
                chosen = spec_of(checkpoint, options["spec"], options["recipe"], options["tokenizer"])
                click.echo(_printed(chosen.spec, chosen.sentences()))
                return
            if output is None:
                raise click.UsageError("the folder of the bundle is missing; name it with -o")
            common = {"tolerance": tolerance, "progress": stages.show, "notice": _note, **options}
            if judge is not None:
                manifest = export_with_judge(checkpoint, judge, output, **common)
            else:
                for flag in ("judge_spec", "judge_recipe", "judge_tokenizer"):
                    if common.pop(flag) is not None:
                        raise click.UsageError(f"--{flag.replace('_', '-')} is for a judge; name it with --judge")
                manifest = export_checkpoint(checkpoint, output, **common)
        except ToleranceError as error:
            raise click.ClickException(str(error)) from error
        except ExportError as error:
            raise _BadInputError(str(error)) from error
    if "parity" in manifest.card:
        click.echo(parity_table(manifest.card["parity"]))
        click.echo(parity_summary(manifest.card["parity"]))
    else:
        click.echo(checks_summary(manifest.card))
    size = sum({entry.path: entry.bytes for entry in manifest.files.values()}.values())
    click.echo(f"wrote {output} ({size / 1e6:.1f} MB)", err=True)
    if push_to_hub is not None:
        click.echo(f"pushed to {push_bundle(output, push_to_hub, private=private)}", err=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the recipes as JSON.")
def recipes(as_json: bool) -> None:
    """List the recipes: how public models are asked, how they are recognised, what is read, licence, example."""
    from fsrm_lite.export.recipes import all_recipes

    if as_json:
        click.echo(json.dumps([asdict(recipe) for recipe in all_recipes().values()], indent=2, ensure_ascii=False))
        return
    for recipe in all_recipes().values():
        names = " or ".join(repr(part) for part in recipe.names)
        known = f"a name with {names}" if names else "its class and a chat template, where no other recipe fits"
        click.echo(f"{recipe.name}\n  reads       {recipe.about}\n  recognised  by {known}")
        if recipe.models:
            click.echo(f"  models      {', '.join(recipe.models)}")
        click.echo(f"  licence     {recipe.license}\n  source      {recipe.source}")
        for example in recipe.published:
            click.echo(f"  example     {example['model']} gives {example['logit']:g} for {example['response'][-24:]!r}")


@click.command()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(model: str | None, revision: str | None, local_files_only: bool, as_json: bool) -> None:
    """Run the examples of a bundle once more, on this machine.

    MODEL is a bundle folder or org/name; by default the embedded model. Every file is hashed; the examples that the
    export noted must give the same ids and scores, and examples with published scores those. Ends with status 1 if
    something differs.
    """
    findings = check_bundle(model, revision=revision, local_files_only=local_files_only)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{'ok    ' if finding.passed else 'WRONG '} {finding.what}: {finding.found}")
    if not all(finding.passed for finding in findings):
        raise click.exceptions.Exit(1)


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)


def _printed(spec: object, sentences: list[str]) -> str:
    """Return a spec as JSON text, and show what was recognised beside it."""
    for sentence in sentences:
        _note(sentence)
    if not isinstance(spec, dict):
        raise click.UsageError("this checkpoint has an fsrm.json of its own, or a --spec; there is no recipe to print")
    return json.dumps(spec, indent=2, ensure_ascii=False)


class _BadInputError(click.ClickException):
    exit_code = 2
