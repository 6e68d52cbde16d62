"""Trains the model on what it writes itself, in rounds.

    python -m fsrm_lite.models.rounds checkpoints/fsrm-tiny --out checkpoints/fsrm-tiny-own

A score that has only seen written-in errors is wrong about its own samples: among many it prefers the mistake that
looks most like its own work. So each round lets the current model solve training problems, labels the solutions by
their answers and workings, and trains all abilities on; a share of the pairs are its own right and wrong solutions of
one problem, the rest is as before. The next round starts from the result, with new samples beside the old ones.

A run can be interrupted at any time; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from tqdm import tqdm
from transformers import Qwen3ForCausalLM

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.models.checks import fast_scores, pick_checks
from fsrm_lite.models.own_samples import (
    JUDGE_MIX,
    OWN_MIX,
    OwnBatchMaker,
    Samples,
    read_samples,
    solve,
    weighted,
    write_samples,
)
from fsrm_lite.models.problems import Problem, problems_of
from fsrm_lite.models.train import READY, ROWS, Settings, Trainer

SOLUTIONS = 8
"""Solutions of each training problem."""

CHECK_PROBLEMS, CHECK_SOLUTIONS = 200, 16
"""Calibration problems on which a round is measured, and solutions of each."""

OWN_SHARE = 0.6
"""Share of the pairs that are the model's own solutions."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes:
        steps: Its training steps.
        learning_rate: The highest learning rate.
        problems: How many training problems are solved for it.
        mix: The kinds of examples, in the order in which they are drawn.
    """

    steps: int
    learning_rate: float
    problems: int
    mix: tuple[str, ...] = OWN_MIX


ROUNDS = (Round(700, 6e-4, 2500), Round(2000, 6e-4, 6000), Round(2000, 8e-4, 6000, JUDGE_MIX))
"""The rounds. The first two are for the fast score most of all, the last one for the judge."""

WARMUP = 50
"""Steps in which the learning rate rises; the weights are trained already, only the optimizers begin anew."""


def run_round(
    number: int, start: Path, out: Path, samples: list[Samples], workers: int, device: str = "cpu"
) -> list[Samples]:
    """Run round ``number`` (from 1) from the checkpoint ``start`` in the folder ``out``, or what is left of it.

    Returns:
        The samples of the earlier rounds and of this one.
    """
    this = ROUNDS[number - 1]
    settings = Settings(seed=number, steps=this.steps, learning_rate=this.learning_rate, warmup=WARMUP)
    trainer = Trainer(out, settings, device, start=start)
    encoder = PromptEncoder(trainer.tokenizer_path, trainer.manifest)
    train, check = problems_of("train", this.problems, number), problems_of("calibration", CHECK_PROBLEMS, number)
    for name, problems, n in (("train", train, SOLUTIONS), ("check", check, CHECK_SOLUTIONS)):
        if not (out / f"{name}.jsonl").exists():
            sample(out / f"{name}.jsonl", start, problems, n, number)
    samples = [*samples, *read_samples(out / "train.jsonl", train)]
    checked = [json.loads(line) for line in (out / "check.jsonl").read_text().splitlines()]

    def measure(model: Qwen3ForCausalLM) -> dict[str, float]:
        return pick_checks(model, encoder, check, checked)

    def score(texts: list[tuple[str, str]]) -> list[float]:
        model = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32).to(device)
        with torch.no_grad():
            scores: list[float] = fast_scores(model, encoder, texts).tolist()
        return scores

    if not (out / READY).exists():
        # Ask the model that the round starts from, so that a run that goes on draws as before.
        hard = weighted(samples, score)
        maker = OwnBatchMaker(
            trainer.tokenizer_path, trainer.manifest, trainer.settings.seed, ROWS, hard, OWN_SHARE, this.mix
        )
        try:
            trainer.train(maker, workers, measure)
        except KeyboardInterrupt:
            trainer.save()
            raise
    return samples


def sample(path: Path, checkpoint: Path, problems: list[Problem], n: int, seed: int) -> None:
    """Let the model of a checkpoint solve problems, ``n`` times each, and write what it wrote."""
    with tqdm(total=len(problems), desc=f"solve for {path.name}", unit="problem", mininterval=5) as bar:
        write_samples(path, solve(checkpoint, problems, n, seed, bar.update))


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder with a folder for each round.")
@click.option("--workers", default=-1, help="Processes that make batches; default: one fewer than the cores.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(checkpoint: Path, out: Path, workers: int, device: str) -> None:
    """Train CHECKPOINT on its own solutions; the result is in the last round's folder under OUT."""
    if workers < 0:
        workers = min(12, (os.cpu_count() or 1) - 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job saves its state like an interrupted one
    samples: list[Samples] = []
    start = checkpoint
    try:
        for number in range(1, len(ROUNDS) + 1):
            click.echo(f"round {number} of {len(ROUNDS)}", err=True)
            samples = run_round(number, start, out / f"round-{number}", samples, workers, device)
            start = out / f"round-{number}"
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; run the same command to go on") from None
    click.echo(str(start))


if __name__ == "__main__":
    main()
