"""Measures fsrm-tiny on held-out pairs: always fast, always slow, gated, and random escalation, with 95 % intervals.

    python -m fsrm_lite.models.figures            # measures the embedded model and prints the table of its model card

No problem of the test split has the structure of a training problem, and the gate's thresholds were chosen on the
calibration split only. So the figures are those of problems that neither the model nor the gate has seen.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fsrm_lite.gate import GateSpec
from fsrm_lite.loops.reasoners import Sampling, SolveReasoner, Task
from fsrm_lite.measure.calibration_report import percent
from fsrm_lite.measure.intervals import bootstrap, wilson
from fsrm_lite.measure.labelled import LabelledItem, Sample, content_key
from fsrm_lite.measure.metrics import auroc, random_accuracy
from fsrm_lite.measure.together import shared_errors
from fsrm_lite.measure.tradeoff import escalations
from fsrm_lite.models.data import Pair, held_out
from fsrm_lite.models.problems import problems_of
from fsrm_lite.models.responses import labelled
from fsrm_lite.scorer import FastSlowRM

TEST_PAIRS = 3000
OWN_SOLUTIONS = 4
"""Solutions of a problem, from which a pair of the model's own samples is drawn."""

BATCH = 100
"""Pairs judged in one call."""

NAMES = {
    "fast": "always fast: pairwise accuracy",
    "slow": "always slow: pairwise accuracy",
    "votes": "the same, if the votes alone answered",
    "gated": "gated: pairwise accuracy",
    "random": "random escalation at the gate's token cost: accuracy",
    "gated_minus_slow": "gated minus always slow",
    "gated_minus_random": "gated minus random escalation",
    "token_share": "gated: share of always-slow's generated tokens",
    "escalated": "gated: share of pairs escalated",
    "auroc_intuition": "AUROC of the intuition confidence against being right",
    "auroc_distribution": "AUROC of the word-distribution confidence against being right",
}


def judge_all(
    rm: FastSlowRM, pairs: Sequence[Pair], progress: Callable[[int], None] | None = None
) -> list[LabelledItem]:
    """Score every pair with the fast model and ask the judge about it.

    Args:
        rm: The model.
        pairs: The pairs. The chosen response is shown first in every other one.
        progress: Called after each batch with its number of pairs.

    Returns:
        One labelled item per pair, in order.
    """
    items: list[LabelledItem] = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        labels = [(start + i) % 2 for i in range(len(batch))]
        asked = [
            (p.problem.question, p.rejected.text, p.chosen.text)
            if label
            else (p.problem.question, p.chosen.text, p.rejected.text)
            for p, label in zip(batch, labels, strict=True)
        ]
        for pair, texts, label, comparison in zip(
            batch, asked, labels, rm.compare_many(asked, judge="always"), strict=True
        ):
            items.append(
                LabelledItem.from_comparison(
                    content_key(texts[0], texts[1:]),
                    comparison,
                    label,
                    group=pair.problem.key,  # problems of one structure are right or wrong together
                    subset=pair.problem.family,
                )
            )
        if progress is not None:
            progress(len(batch))
    return items


def own_pairs(rm: FastSlowRM, split: str, count: int, seed: int = 0) -> list[Pair]:
    """Return pairs of what the model itself wrote: a right and a wrong solution of one problem, both drawn at random.

    Each problem is solved ``OWN_SOLUTIONS`` times at temperature 1; problems whose solutions are all right or all wrong
    give no pair.

    Args:
        rm: The model.
        split: "calibration" or "test".
        count: Number of pairs.
        seed: Seed of problems and solutions.
    """
    reasoner, rng = SolveReasoner(rm), random.Random(f"own-pairs-{split}-{seed}")
    pairs: list[Pair] = []
    turn = 0
    while len(pairs) < count:
        problems = problems_of(split, BATCH, 1000 * seed + turn)
        sampling = Sampling(n=OWN_SOLUTIONS, temperature=1.0, seed=1000 * seed + turn)
        for problem, group in zip(
            problems, reasoner.propose([Task(p.question) for p in problems], sampling), strict=True
        ):
            found = [labelled(problem, proposal.text) for proposal in group if proposal.text]
            right, wrong = ([r for r in found if r is not None and r.correct == side] for side in (True, False))
            if right and wrong:
                pairs.append(Pair(problem, rng.choice(right), rng.choice(wrong)))
        turn += 1
    return pairs[:count]


def figures(sample: Sample, gate: GateSpec) -> dict[str, dict[str, float]]:
    """Return the figures in ``NAMES``, each ``{"value", "low", "high"}`` (bootstrap, 1,000 resamples).

    What is drawn are problem structures with all their pairs, since the pairs of one are right or wrong together.

    Args:
        sample: The pairs, each with the judge's answer.
        gate: The thresholds.

    Raises:
        ValueError: If the judge was not asked about every pair.
    """
    votes_correct, slow_correct = sample.slow_correct, sample.answered_by(gate.weights).slow_correct
    slow_tokens = sample.slow_tokens
    if votes_correct is None or slow_correct is None or slow_tokens is None:
        raise ValueError("every pair must have been judged slowly")
    up = escalations(gate, sample)
    gated = np.where(up, slow_correct, sample.fast_correct)
    confidences = sample.confidences()

    def statistics(chosen: NDArray[np.int64]) -> dict[str, float]:
        fast, slow, tokens = sample.fast_correct[chosen].mean(), slow_correct[chosen].mean(), slow_tokens[chosen].mean()
        spent = (slow_tokens * up)[chosen].mean()
        by_chance = random_accuracy(float(spent), float(fast), float(slow), float(tokens))
        return {
            "fast": float(fast),
            "slow": float(slow),
            "votes": float(votes_correct[chosen].mean()),
            "gated": float(gated[chosen].mean()),
            "random": by_chance,
            "gated_minus_slow": float(gated[chosen].mean() - slow),
            "gated_minus_random": float(gated[chosen].mean() - by_chance),
            "token_share": float(spent / tokens),
            "escalated": float(up[chosen].mean()),
            "auroc_intuition": auroc(confidences["intuition"][chosen], sample.fast_correct[chosen]),
            "auroc_distribution": auroc(confidences["distribution"][chosen], sample.fast_correct[chosen]),
        }

    intervals = bootstrap(statistics, len(sample), groups=sample.groups.tolist())
    return {name: asdict(interval) for name, interval in intervals.items()}


def breakdown(pairs: Sequence[Pair], items: Sequence[LabelledItem], gate: GateSpec) -> list[dict[str, Any]]:
    """Return the accuracy of the fast and the slow path by error, by form of the rejected response, and by family."""
    sample = Sample.of(items)
    up, slow = escalations(gate, sample), sample.answered_by(gate.weights).slow_correct
    if slow is None:
        raise ValueError("every pair must have been judged slowly")
    rows = []
    for title, key in (
        ("error", lambda p: p.rejected.error),
        ("form", lambda p: p.rejected.form),
        ("family", lambda p: p.problem.family),
    ):
        for name in sorted({key(p) for p in pairs}):
            chosen = [i for i, p in enumerate(pairs) if key(p) == name]
            rows.append(
                {
                    "by": title,
                    "name": name,
                    "pairs": len(chosen),
                    "fast": float(np.mean([items[i].fast_correct for i in chosen])),
                    "slow": float(np.mean(slow[chosen])),
                    "escalated": float(np.mean(up[chosen])),
                }
            )
    return rows


def longer_wins(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the accuracy of preferring the longer response, with its interval; a tie counts half."""
    gains = [
        float(len(p.chosen.text) > len(p.rejected.text)) + 0.5 * (len(p.chosen.text) == len(p.rejected.text))
        for p in pairs
    ]
    return asdict(wilson(sum(gains), len(gains)))


def measure(rm: FastSlowRM, count: int, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Return all that the model card shows, measured on ``count`` test pairs of either kind.

    The first kind has written-in errors. The second, under the key ``own``, is what the model itself wrote.
    """
    written = _measure(rm, held_out("test", count), progress)
    own = _measure(rm, own_pairs(rm, "test", count), progress)
    weights = rm.gate.spec.weights
    return {
        "split": "test",
        "votes_per_order": rm.bundle.manifest.judge.votes,
        "weights": None if weights is None else asdict(weights),
        **written,
        "own": own,
    }


def _measure(rm: FastSlowRM, pairs: Sequence[Pair], progress: Callable[[int], None] | None) -> dict[str, Any]:
    items = judge_all(rm, pairs, progress)
    gate, sample = rm.gate.spec, Sample.of(items)
    return {
        "pairs": len(pairs),
        "figures": figures(sample, gate) | {"longer_wins": longer_wins(pairs)},
        "slow_tokens_per_pair": float(np.mean([item.slow_tokens or 0 for item in items])),
        "errors": shared_errors(sample),
        "breakdown": breakdown(pairs, items, gate),
    }


def table(measured: dict[str, Any]) -> str:
    """Return the figures as two tables in Markdown."""
    kinds = {"written-in errors": measured, "own samples": measured["own"]}
    lines = [
        f"| on {measured['pairs']} held-out test pairs, with intervals of 95 % | {' | '.join(kinds)} |",
        "|---|" + "---:|" * len(kinds),
    ]
    for name, title in {**NAMES, "longer_wins": "baseline: the longer response wins"}.items():
        if name == "votes" and measured["weights"] is None:
            continue
        form = "{:.3f}" if name.startswith("auroc") else "{:.1%}"
        cells = [
            "{} ({} to {})".format(*(form.format(kind["figures"][name][key]) for key in ("value", "low", "high")))
            for kind in kinds.values()
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    tokens = " and ".join(f"{kind['slow_tokens_per_pair']:.0f}" for kind in kinds.values())
    weights = measured["weights"]
    lines += [
        "",
        f"Always-slow writes {tokens} tokens per pair (both orders, {measured['votes_per_order']} vote each).",
        *(
            [
                "After thinking, fast path and votes answer together, with the weights "
                f"{weights['fast']:.3f} and {weights['votes']:.3f}."
            ]
            if weights is not None
            else []
        ),
        *(
            f"Of the {errors['fast']} pairs that the fast path gets wrong, the votes get {errors['both']} wrong too, "
            f"{percent(errors['share_of_fast'])} ({title}): thinking cannot mend those."
            for title, errors in ((title, kind["errors"]) for title, kind in kinds.items())
        ),
        "",
        "With written-in errors:",
        "",
    ]
    lines += ["| by | of the rejected response | pairs | fast | slow | escalated |", "|---|---|---:|---:|---:|---:|"]
    for row in measured["breakdown"]:
        lines.append(
            f"| {row['by']} | {row['name']} | {row['pairs']} "
            f"| {row['fast']:.1%} | {row['slow']:.1%} | {row['escalated']:.1%} |"
        )
    return "\n".join(lines)


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default=None, help="A bundle folder.  [default: the embedded model]"
)
@click.option("--pairs", default=TEST_PAIRS, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--json", "as_json", is_flag=True)
def main(model: Path | None, pairs: int, threads: int | None, as_json: bool) -> None:
    """Measure a model on the test split and print the card's table."""
    with (
        FastSlowRM.from_pretrained(model, threads=threads) as rm,
        click.progressbar(length=2 * pairs, label="judging", file=sys.stderr) as bar,
    ):
        measured = measure(rm, pairs, bar.update)
    click.echo(json.dumps(measured, indent=2) if as_json else table(measured))


if __name__ == "__main__":
    main()
