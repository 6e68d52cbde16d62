"""Makes labelled lists of the model's own samples, from which the gate's rule for the best of N is calibrated.

    python -m fsrm_lite.models.lists --model models/fsrm-tiny -o lists.jsonl
    fsrm-lite calibrate lists.jsonl --model models/fsrm-tiny --risk 0.015 --write

Each list has 2, 4, 8, 16 or 32 solutions of one problem of the calibration split, sampled at temperature 1 and labelled
by their answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from fsrm_lite.files import whole_file
from fsrm_lite.loops.reasoners import Sampling, SolveReasoner, Task, ask
from fsrm_lite.models.data import held_out
from fsrm_lite.ranking.answers import agrees, final
from fsrm_lite.scorer import FastSlowRM

SIZES = (2, 4, 8, 16, 32)
"""Numbers of candidates; every problem has the next one, so that all are equally frequent."""

COUNT = 1000
MAX_TOKENS = 160
AT_ONCE = 20 * len(SIZES)
"""Problems that are solved together."""


def own_lists(
    rm: FastSlowRM, split: str, count: int, seed: int = 0, progress: Callable[[int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield labelled lists of the model's own samples, as rows that ``fsrm-lite calibrate`` reads.

    Args:
        rm: The model, which must be able to solve.
        split: "calibration" or "test"; see ``fsrm_lite.models.data.held_out``.
        count: Number of lists, each about another problem.
        seed: Seed of the problems and of the sampling.
        progress: Called after each batch with its number of lists.
    """
    problems = [pair.problem for pair in held_out(split, count, seed)]
    reasoner = SolveReasoner(rm)
    for start in range(0, count, AT_ONCE):
        part = problems[start : start + AT_ONCE]
        written: dict[int, list[str]] = {}
        for k, size in enumerate(SIZES):
            numbers = range(k, len(part), len(SIZES))
            sampling = Sampling(size, 1.0, max_tokens=MAX_TOKENS, seed=seed + start + k)
            groups = ask(reasoner, [Task(part[i].question) for i in numbers], sampling)
            written |= {i: [p.text for p in group] for i, group in zip(numbers, groups, strict=True)}
        for i, problem in enumerate(part):
            labels = [int(agrees(text, problem.answer, final)) for text in written[i]]
            if labels:  # there are none if the reasoner failed
                yield {"prompt": problem.question, "responses": written[i], "labels": labels}
        if progress is not None:
            progress(len(part))


@click.command()
@click.option("--model", default=None, help="A bundle folder.  [default: the embedded model]")
@click.option("--split", type=click.Choice(("calibration", "test")), default="calibration", show_default=True)
@click.option("--count", type=click.IntRange(1), default=COUNT, show_default=True, help="Lists to write.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(model: str | None, split: str, count: int, seed: int, threads: int | None, output: Path) -> None:
    """Write labelled lists of the model's own samples as JSONL; whole or not at all."""
    with (
        FastSlowRM.from_pretrained(model, threads=threads, judge="never") as rm,
        click.progressbar(length=count, label="solving", file=sys.stderr) as bar,
        whole_file(output) as draft,
    ):
        draft.write_text("".join(json.dumps(row) + "\n" for row in own_lists(rm, split, count, seed, bar.update)))


if __name__ == "__main__":
    main()
