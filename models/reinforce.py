"""Reinforces the slow verdict: the judge thinks freely, and right verdicts are made likelier than wrong ones.

    python -m fsrm_lite.models.reinforce checkpoints/fsrm-tiny-own/round-2 --out checkpoints/fsrm-tiny-own/reinforced

This is group-relative policy optimization (GRPO, arXiv 2402.03300); F/S-RM's training (arXiv 2603.20212) ends with such
a step. For each pair, in both orders, a group of thoughts is sampled at temperature 1. A thought is rewarded with +1 if
it ends with the right verdict behind its close and with -1 otherwise, and counts by how far its reward lies above the
mean of its group. Groups whose thoughts are all right or all wrong teach nothing and are left out. Between two such
steps there is one ordinary step on all abilities, so that none is lost. Nothing is clipped: each thought is used once,
by the model that wrote it or by one that is a turn further at most. Before the first turn and behind each, the share of
right verdicts is measured on pairs of the calibration split. If it is no larger behind the last turn than before the
first, the weights of the beginning are the result: reinforcement did not pay. A run that was interrupted goes on behind
its last whole turn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.models.data import ROW_TOKENS, Batch, Example, Packer, held_out
from fsrm_lite.models.own_samples import OwnBatchMaker, Samples, encoder_of, judge_of, read_samples
from fsrm_lite.models.problems import make_problem, problems_of
from fsrm_lite.models.responses import right_response, wrong_response
from fsrm_lite.models.rounds import CHECK_PROBLEMS, OWN_SHARE, ROUNDS
from fsrm_lite.models.train import PROBE, ROWS, Settings, Trainer, hidden_states, learning_rate

TURNS, PAIRS, THOUGHTS = 4, 400, 8
"""Turns of sampling and learning, pairs in each turn, and thoughts about each order of a pair."""

CHECK_PAIRS, CHECK_THOUGHTS = 200, 4
"""Calibration pairs on which a turn is measured, of written-in errors and of own samples each; thoughts per order."""

LEARNING_RATE = 1e-4
"""The highest, behind ten steps of warm-up; it falls to zero by the last step."""

THINKING_TOKENS = 200


def advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each reward lies above the mean of its group, in standard deviations of the group.

    Args:
        rewards: float64, shape [groups, thoughts].

    Returns:
        The same shape; zero where all rewards of a group are equal.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


def drawn_pairs(rng: random.Random, samples: Sequence[Samples], count: int) -> Iterator[tuple[str, str, str]]:
    """Yield questions with a right and a wrong response; every other pair is one of the samples."""
    for i in range(count):
        if i % 2:
            own = rng.choice(samples)
            yield own.problem.question, own.draw(rng, True, judged=True).text, own.draw(rng, False).text
        else:
            problem = make_problem(rng, "train")
            yield problem.question, right_response(problem, rng).text, wrong_response(problem, rng).text


def think(
    checkpoint: Path, encoder: PromptEncoder, pairs: Sequence[tuple[str, str, str]], n: int, seed: int
) -> tuple[list[list[int]], list[list[list[int]]], NDArray[np.float64]]:
    """Let the judge think about each pair in both orders.

    Returns:
        The prompts, the ids of ``n`` thoughts for each, and their rewards, float64, shape [prompts, thoughts].
    """
    verdict = encoder.manifest.templates["pairwise_slow"].verdict
    if verdict is None:
        raise ValueError("the pairwise template has no verdict form")
    prompts, wanted = [], []
    for question, right, wrong in pairs:
        prompts += [encoder.pairwise_slow(question, right, wrong), encoder.pairwise_slow(question, wrong, right)]
        wanted += [
            tuple(encoder.encode_template(verdict.close + verdict.prefix + choice + verdict.suffix))
            for choice in verdict.choices
        ]
    with TemporaryDirectory() as folder, closing(judge_of(checkpoint, encoder, Path(folder))) as judge:
        groups = judge.generate(prompts, n=n, max_tokens=THINKING_TOKENS, temperature=1.0, seed=seed)
    rewards = [
        [1.0 if tuple(written.ids)[-len(want) :] == want else -1.0 for written in group]
        for group, want in zip(groups, wanted, strict=True)
    ]
    return prompts, [[list(written.ids) for written in group] for group in groups], np.array(rewards)


def check_pairs(samples: Sequence[Samples]) -> dict[str, list[tuple[str, str, str]]]:
    """Return questions with a right and a wrong response of the calibration split, which nothing is learned from."""
    rng = random.Random("reinforce-check")
    written = held_out("calibration", CHECK_PAIRS)
    own = rng.choices(samples, k=CHECK_PAIRS)
    return {
        "written": [(pair.problem.question, pair.chosen.text, pair.rejected.text) for pair in written],
        "own": [
            (one.problem.question, one.draw(rng, True, judged=True).text, one.draw(rng, False).text) for one in own
        ],
    }


def check(
    checkpoint: Path, encoder: PromptEncoder, pairs: Mapping[str, Sequence[tuple[str, str, str]]]
) -> dict[str, float]:
    """Return for each kind of pairs the share of right verdicts, and of pairs whose verdicts are right in majority."""
    figures = {}
    for name, these in pairs.items():
        _, _, rewards = think(checkpoint, encoder, these, CHECK_THOUGHTS, seed=12345)
        votes = rewards.reshape(len(these), -1).sum(axis=1)  # both orders of a pair stand behind each other
        figures[f"{name}_verdicts"] = float((rewards > 0).mean())
        figures[f"{name}_majority"] = float((votes > 0).mean() + 0.5 * (votes == 0).mean())
    return figures


def batches_of(
    prompts: Sequence[list[int]],
    thoughts: Sequence[Sequence[list[int]]],
    advantage: NDArray[np.float64],
    stop: int,
    rows: int,
    rng: random.Random,
) -> Iterator[Batch]:
    """Yield packed batches of the thoughts whose advantage is not zero, which is the weight of their tokens.

    A thought that was cut off by its budget has no stop token to learn; what is longer than a row is cut off there.
    """
    examples: list[Example] = []
    for prompt, group, values in zip(prompts, thoughts, advantage.tolist(), strict=True):
        for ids, value in zip(group, values, strict=True):
            if value and ids:
                ending = [stop] if len(ids) < THINKING_TOKENS else []
                text = [*prompt, *ids, *ending][:ROW_TOKENS]
                examples.append(Example(text, [0.0] * (len(prompt) - 1) + [value] * (len(text) - len(prompt)) + [0.0]))
    rng.shuffle(examples)
    packer, filled = Packer(rows), False
    for example in examples:
        if not packer.add([example]):
            yield packer.batch()
            packer = Packer(rows)
            packer.add([example])
        filled = True
    if filled:
        yield packer.batch()


def learn(trainer: Trainer, batch: Batch) -> None:
    """Take one step towards the thoughts with a positive weight and away from those with a negative one."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trainer.step, trainer.settings)
        optimizer.zero_grad(set_to_none=True)
    device = torch.device(trainer.device)
    with trainer.autocast:
        ids, weights = (torch.as_tensor(getattr(batch, name), device=device) for name in ("ids", "weights"))
        row, column = torch.nonzero(weights, as_tuple=True)
        hidden = hidden_states(trainer.trunk, batch, device)[row, column]
        ce = F.cross_entropy(trainer.model.lm_head(hidden).float(), ids[row, column + 1], reduction="none")
        (ce * weights[row, column]).mean().backward()
    trainer.optimize()


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--turns", default=TURNS, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(checkpoint: Path, out: Path, turns: int, device: str) -> None:
    """Reinforce the verdicts of CHECKPOINT, the last round's folder, whose neighbours hold the samples."""
    samples: list[Samples] = []
    for number in range(1, len(ROUNDS) + 1):
        path = checkpoint.parent / f"round-{number}" / "train.jsonl"
        samples += read_samples(path, problems_of("train", ROUNDS[number - 1].problems, number))
    settings = Settings(seed=99, steps=turns, learning_rate=LEARNING_RATE, warmup=10)
    trainer = Trainer(out, settings, device, start=checkpoint)
    encoder = encoder_of(checkpoint)
    maker = OwnBatchMaker(trainer.tokenizer_path, trainer.manifest, 99, ROWS, samples, OWN_SHARE)
    number = len(ROUNDS)
    checked = read_samples(
        checkpoint.parent / f"round-{number}" / "check.jsonl",
        problems_of("calibration", CHECK_PROBLEMS, number),
        solved=True,
    )
    pairs = check_pairs(checked)
    log = out / "reinforce.jsonl"
    told = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def tell(figures: dict[str, float]) -> None:
        """Write a line of figures to the log and to the terminal."""
        told.append(figures)
        with log.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        click.echo(json.dumps(figures), err=True)

    trainer.export_ready()
    done = max((line["turn"] for line in told), default=0)
    if trainer.step > sum(line.get("steps", 0) for line in told):  # the last turn was saved, and then interrupted
        done += 1
        tell({"turn": done, "steps": trainer.step - sum(line.get("steps", 0) for line in told)})
    if not any(line["turn"] == done and "own_verdicts" in line for line in told):
        tell({"turn": done, **check(out, encoder, pairs)})
    for turn in range(done, turns):
        rng = random.Random(f"reinforce-{turn}")
        prompts, thoughts, rewards = think(out, encoder, list(drawn_pairs(rng, samples, PAIRS)), THOUGHTS, seed=turn)
        stop = trainer.manifest.stop_ids[0]
        parts = list(batches_of(prompts, thoughts, advantages(rewards), stop, ROWS, rng))
        # How many steps there will be is known only now: as many in each turn to come as in this one.
        trainer.settings = replace(trainer.settings, steps=trainer.step + (turns - turn) * len(parts))
        for batch in tqdm(parts, desc=f"turn {turn + 1} of {turns}", unit="step", mininterval=5):
            learn(trainer, batch)
            trainer.update(maker.batch(trainer.step))
        trainer.export_ready()
        trainer.save()
        tell({"turn": turn + 1, "steps": len(parts), "right": float((rewards > 0).mean())})
        tell({"turn": turn + 1, **check(out, encoder, pairs)})
    if not paid(told):
        for name in ("model.safetensors", PROBE):
            copyfile(checkpoint / name, out / name)
        click.echo("it did not pay: the result is the model as it was before", err=True)


def paid(told: Sequence[Mapping[str, float]]) -> bool:
    """Return whether more verdicts are right in the last check than in the first, on both kinds of pairs together.

    Args:
        told: The lines of the log.
    """
    checks = [line["written_verdicts"] + line["own_verdicts"] for line in told if "own_verdicts" in line]
    return checks[-1] > checks[0]


if __name__ == "__main__":
    main()
