"""``fsrm-lite distill`` and ``fsrm-lite fit-critic``: make a critic from a reasoner's own traces, without human labels.

A *reasoner* is a model or program that answers questions. A *trace* is one of its responses, labelled by whether the
answer in it is right. A *critic* is a small head that learns from traces to tell right ones from wrong ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrm_lite.cli.progress import progress
from fsrm_lite.errors import InputError
from fsrm_lite.jsonl import open_lines, rows_of

if TYPE_CHECKING:
    from fsrm_lite.loops.reasoners import Reasoner


@click.command()
@click.argument("questions", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Traces, as JSONL; an existing file is continued.",
)
@click.option(
    "--reasoner",
    default="solve",
    show_default=True,
    help="solve (the model's own), FILE.gguf, http://HOST/v1, or package.module:function.",
)
@click.option(
    "--template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text file: a GGUF's prompt with {prompt} in it; default: its own chat template.",
)
@click.option(
    "--model",
    default=None,
    help="Bundle whose solve ability reasons: a folder or org/name; default: the embedded model.",
)
@click.option("--samples", default=4, show_default=True, help="Responses per question.")
@click.option("--temperature", default=0.8, show_default=True)
@click.option("--max-tokens", default=256, show_default=True, help="Per response.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--extractor", default="final", show_default=True, help="final, numeric, exact, or package.module:function."
)
@click.option("--batch-size", default=32, show_default=True, help="Questions per call of the reasoner.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds per call of a function or an endpoint.")
@click.option(
    "--api-key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Environment variable with the endpoint's key, if it needs one.",
)
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="What to do with rows without one usable answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def distill(questions: Path, output: Path, reasoner: str, model: str | None, **options: Any) -> None:  # noqa: ANN401
    """Run a reasoner over QUESTIONS (rows {"question", "answer"}) and label its responses as right or wrong.

    A run that was interrupted goes on where it stopped when it is started again with the same arguments.
    """
    from fsrm_lite.cli.identity import run_identity
    from fsrm_lite.loops.distill import distill as run
    from fsrm_lite.loops.opening import open_reasoner
    from fsrm_lite.loops.reasoners import Sampling

    sampling = Sampling(
        n=options["samples"], temperature=options["temperature"], max_tokens=options["max_tokens"], seed=options["seed"]
    )
    template = options["template"].read_text("utf-8", "replace") if options["template"] else None
    key = os.environ.get(options["api_key_env"])
    with (
        _opened(model, wanted=reasoner == "solve") as rm,
        _closed(
            open_reasoner(reasoner, model=rm, template=template, timeout_s=options["timeout"], api_key=key)
        ) as asked,
        progress("questions") as step,
    ):
        report = run(
            rows_of(questions),
            asked,
            output,
            sampling=sampling,
            extractor=options["extractor"],
            batch_size=options["batch_size"],
            skip_unanswered=options["on_error"] == "skip",
            identity=run_identity("distill", rm, options, _reasoner_identity(reasoner, template)),
            progress=step,
        )
    if options["as_json"]:
        click.echo(json.dumps(asdict(report)))
        return
    share = f", {report.right / report.written:.1%} of them right" if report.written else ""
    click.echo(f"{output}: {report.written} traces written{share}; {report.kept} were there before")
    if report.skipped or report.failed:
        click.echo(
            f"{report.skipped} questions without a usable answer; the reasoner failed on {report.failed}", err=True
        )
    if report.failed and not report.written + report.kept:
        raise click.exceptions.Exit(1)


@click.command("fit-critic")
@click.argument("traces", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for critic.json and critic.onnx.",
)
@click.option(
    "--model",
    default=None,
    help="Bundle whose hidden states are read: a folder or org/name; default: the embedded model.",
)
@click.option("--head", type=click.Choice(("logistic", "mlp")), default="logistic", show_default=True)
@click.option(
    "--inputs",
    type=click.Choice(("hidden", "likelihood", "pooled")),
    default="hidden",
    show_default=True,
    help="What the head reads. hidden: the last hidden state; likelihood: the same, and how likely the model finds the "
    "answer; pooled: that likelihood, and states from the middle of the model.",
)
@click.option("--threshold", default=0.5, show_default=True, help="Accept from this score on, in [0, 1].")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def fit_critic(
    traces: Path, output: Path, model: str | None, head: str, inputs: str, threshold: float, seed: int, as_json: bool
) -> None:
    """Fit a critic on TRACES, the output of distill, or published solutions with labels (GSM8K's, as they are).

    It is a small head on the frozen model's hidden state, calibrated, and measured on held-out questions.
    """
    from fsrm_lite.export.critic_head import fit_critic as fit
    from fsrm_lite.loops.distill import read_traces

    with open_lines(traces) as lines, _opened(model) as rm, progress("traces") as step:
        report = fit(
            read_traces(lines), rm, output, head=head, inputs=inputs, threshold=threshold, seed=seed, progress=step
        )
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    click.echo(f"{output}: {report.head} head fitted on {report.fitted_on} traces")
    click.echo(f"held out: {report.traces} traces of {report.questions} questions, {report.base_rate:.1%} right")
    click.echo(f"accuracy  {report.accuracy:.3f}  [{report.accuracy_low:.3f}, {report.accuracy_high:.3f}]")
    click.echo(f"AUROC     {report.auroc:.3f}  (the fast score alone: {report.fast_auroc:.3f})")
    click.echo(f"ECE       {report.ece:.3f}")
    click.echo(f"Brier     {report.brier:.3f}")


def _reasoner_identity(reasoner: str, template: str | None) -> dict[str, Any]:
    """Return what decides what a reasoner writes: its name, or its file and what runs that, and its template."""
    from fsrm_lite.bundle.files import file_sha256
    from fsrm_lite.cli.identity import version_of

    path = Path(reasoner)
    if path.suffix.lower() != ".gguf" or not path.is_file():
        return {"--reasoner": reasoner, "--template": template}
    return {
        "--reasoner": path.name,
        "--template": template,
        "the reasoner's file": file_sha256(path),
        "llama-cpp-python": version_of("llama-cpp-python"),
    }


@contextmanager
def _opened(model: str | None, *, wanted: bool = True) -> Iterator[Any]:
    """Yield a loaded model and close it afterwards. Yield None when no model is wanted."""
    if not wanted:
        if model is not None:
            raise InputError("--model is for the reasoner 'solve' only")
        yield None
        return
    from fsrm_lite.scorer import FastSlowRM

    rm = FastSlowRM.from_pretrained(model)
    try:
        yield rm
    finally:
        rm.close()


@contextmanager
def _closed(reasoner: Reasoner) -> Iterator[Reasoner]:
    """Yield a reasoner, and close it afterwards if it holds a model."""
    try:
        yield reasoner
    finally:
        getattr(reasoner, "close", lambda: None)()
