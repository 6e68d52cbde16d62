"""Turns a trained checkpoint into the embedded bundle, the model that comes with the package.

Its steps: export, choose the gate, measure, write the card.

    python -m fsrm_lite.models.release checkpoints/fsrm-tiny -o models/fsrm-tiny
    python -m fsrm_lite.models.release -o models/fsrm-tiny      # the gate, the figures and the card alone

The *gate* is the rule that says when to ask the judge. Its thresholds are chosen on the calibration split of the data;
the figures are measured on the test split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fsrm_lite.bundle.files import write_manifest
from fsrm_lite.export import export_checkpoint
from fsrm_lite.export.card import model_card
from fsrm_lite.gate import AnswerWeights, GateSpec
from fsrm_lite.measure.calibration import split
from fsrm_lite.measure.labelled import Sample
from fsrm_lite.measure.labelled_lists import ListRow, collect_lists
from fsrm_lite.measure.list_calibration import calibrate_lists
from fsrm_lite.measure.risk_control import ALWAYS
from fsrm_lite.measure.together import weigh
from fsrm_lite.measure.tradeoff import loss_bound, operating_points
from fsrm_lite.models.data import held_out, rows_of
from fsrm_lite.models.figures import TEST_PAIRS, judge_all, measure, own_pairs, table
from fsrm_lite.models.lists import own_lists
from fsrm_lite.models.plots import training_curves
from fsrm_lite.scorer import FastSlowRM

CALIBRATION_PAIRS = 4000
"""Pairs of each kind by which the gate is chosen."""

PARITY_PAIRS = 510
LOSS, CONFIDENCE = 0.005, 0.9
"""How the gate is chosen: a cheap one that loses at most ``LOSS`` of the accuracy of always asking the judge.

That is shown on the calibration split with a confidence of ``CONFIDENCE``, on pairs with written-in errors and on the
model's own samples.
"""

TUNING = 1 / 3
"""Share of the problem structures among which gates are lined up; on the others the line is tested."""

LISTS, LIST_RISK = 2000, 0.015
"""Lists of candidates by which the gate's rule for the best of N is chosen, and the risk that it may take.

The risk is the share of wrong picks among those that the fast path makes alone where a right candidate is there. It
holds with a confidence of ``CONFIDENCE`` too.
"""

GOLDEN = 12
"""Number of test responses whose scores the card keeps, for ``fsrm-lite doctor`` and the tests."""

TEXT = Path(__file__).with_name("CARD.md")


def choose_gate(bundle: Path, *, threads: int | None, count: int, lists: int = LISTS) -> GateSpec:
    """Return a cheap gate that, on the calibration split, keeps the accuracy of always asking the judge.

    Half of the pairs have written-in errors, half are the model's own samples, and the gate keeps its word on either
    half: of both together it could gain on the one what it loses on the other. The rule for the best of N is chosen on
    lists of own samples.
    """
    with FastSlowRM.from_pretrained(bundle, threads=threads) as rm, _bar("choosing the gate", 2 * count) as bar:
        pairs = [*held_out("calibration", count), *own_pairs(rm, "calibration", count)]
        judged = Sample.of(judge_all(rm, pairs, bar.update))
        rows = [
            ListRow(row["prompt"], tuple(row["responses"]), tuple(row["labels"]), f"list {number}")
            for number, row in enumerate(own_lists(rm, "calibration", lists), 1)
        ]
        labelled = collect_lists(rm, rows)
    written = np.arange(len(judged)) < count
    weights = weights_for_each(judged, written)
    calibrated = calibrate_lists(labelled, LIST_RISK, CONFIDENCE)
    click.echo(json.dumps({"lists": calibrated.report}, indent=2), err=True)
    gate = gate_for_each(judged.answered_by(weights), written)
    return replace(gate, lists=calibrated.rule, weights=weights)


def weights_for_each(judged: Sample, written: NDArray[np.bool_]) -> AnswerWeights | None:
    """Return the weights of fast path and votes after thinking, or None where the votes alone are to answer.

    They are fitted on one part of the problem structures and kept if the pairs of the other part are answered no worse
    with them, of either kind.

    Args:
        judged: The pairs.
        written: Whether a pair has a written-in error, bool, shape [n]; the others are own samples.
    """
    tuning, testing = split(judged, TUNING)
    together = weigh(tuning, testing)
    if together is None:
        return None
    tested = by_kind(judged, written, testing)
    votes, both = ([right_of(kind.answered_by(w)) for kind in tested] for w in (None, together.weights))
    kept = together.weights if all(b >= v for v, b in zip(votes, both, strict=True)) else None
    report = {**together.report, "kept": kept is not None, "right": {"votes": votes, "both": both}}
    click.echo(json.dumps({"together": report}, indent=2), err=True)
    return kept


def gate_for_each(judged: Sample, written: NDArray[np.bool_]) -> GateSpec:
    """Return a cheap gate that keeps within the loss on either kind of pairs.

    How much a gate may lose is said by the bound of its loss, on the kind of pairs where that is larger. On one part of
    the problem structures the gates are lined up, from dear ones that may lose little to cheap ones that may lose much.
    On the other part the walk goes along this line as long as each gate is shown to keep within the loss. It ends at
    the first that is not, so that nothing need be corrected for how many were tried: as in
    ``fsrm_lite.measure.risk_control``.

    Args:
        judged: The pairs, with the answers that slow thinking gives.
        written: Whether a pair has a written-in error, bool, shape [n]; the others are own samples.

    Returns:
        The last gate that passed; always slow if none did.
    """
    tuning, testing = split(judged, TUNING)
    tuned, tested = by_kind(judged, written, tuning), by_kind(judged, written, testing)

    def may_lose(gate: GateSpec, kinds: Sequence[Sample]) -> float:
        return max(loss_bound(gate, kind, CONFIDENCE) for kind in kinds)

    line: list[GateSpec] = []
    least = np.inf
    for point in operating_points(tuning):
        bound = may_lose(point.gate, tuned)
        if bound < least:
            line.append(point.gate)
            least = bound
    chosen = ALWAYS
    for gate in reversed(line):
        if may_lose(gate, tested) > LOSS:
            break
        chosen = gate
    return chosen


def by_kind(judged: Sample, written: NDArray[np.bool_], part: Sample) -> list[Sample]:
    """Return those of the pairs whose structures are in a part, by kind: with written-in errors, own samples."""
    inside = np.isin(judged.groups, part.groups)
    return [judged.take(inside & kind) for kind in (written, ~written)]


def right_of(sample: Sample) -> int:
    """Return how many pairs slow thinking answers rightly.

    Raises:
        ValueError: If the judge was not asked about every pair.
    """
    if sample.slow_correct is None:
        raise ValueError("every pair must have been judged slowly")
    return int(sample.slow_correct.sum())


def release(
    checkpoint: Path, out: Path, *, threads: int | None, calibration_pairs: int, lists: int, test_pairs: int
) -> None:
    """Write the bundle ``out`` from ``checkpoint``; each step says on standard error what it does."""
    spec_path = checkpoint / "fsrm.json"
    rows = checkpoint / "calibration.jsonl"
    rows.write_text("".join(rows_of("calibration", PARITY_PAIRS, seed=1)))
    draft = checkpoint / "draft"
    export_checkpoint(checkpoint, draft, calibration=rows, overwrite=True)
    gate = choose_gate(draft, threads=threads, count=calibration_pairs, lists=lists)
    spec_path.write_text(json.dumps({**json.loads(spec_path.read_text()), "gate": gate.to_dict()}, indent=2))
    export_checkpoint(checkpoint, out, calibration=rows, overwrite=True)
    rounds = sorted(checkpoint.parent.glob("round-*/metrics.jsonl"))
    training_curves(rounds or [checkpoint / "metrics.jsonl"], out / "training.png")
    describe(out, gate, threads=threads, test_pairs=test_pairs)


def describe(bundle: Path, gate: GateSpec, *, threads: int | None, test_pairs: int) -> None:
    """Give a bundle this gate, measure it on the test split, and write its manifest and card."""
    with FastSlowRM.from_pretrained(bundle, threads=threads, gate=gate) as rm, _bar("measuring", 2 * test_pairs) as bar:
        measured = measure(rm, test_pairs, bar.update)
        golden = [
            {"prompt": p.problem.question, "response": r.text}
            for p in held_out("test", GOLDEN // 2)
            for r in (p.chosen, p.rejected)
        ]
        scores = rm.score_many([(g["prompt"], g["response"]) for g in golden], judge="never")
        manifest = rm.bundle.manifest
    entries = [{**g, "score": s.score, "logit": s.logit} for g, s in zip(golden, scores, strict=True)]
    card = {**manifest.card, "evaluation": measured, "golden": entries}
    files = {role: entry.path for role, entry in manifest.files.items()}
    final = write_manifest(bundle, replace(manifest, gate=gate, card=card), files)
    text = TEXT.read_text() + "\n## Held-out figures\n\n" + table(measured) + "\n\n![training curves](training.png)\n"
    (bundle / "README.md").write_text(model_card(final, text))


def _bar(label: str, length: int) -> Any:  # noqa: ANN401 - click's progress bar
    return click.progressbar(length=length, label=label, file=sys.stderr)


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--threads", type=int, default=None)
@click.option("--calibration-pairs", default=CALIBRATION_PAIRS, show_default=True)
@click.option("--lists", default=LISTS, show_default=True)
@click.option("--test-pairs", default=TEST_PAIRS, show_default=True)
def main(
    checkpoint: Path | None, output: Path, threads: int | None, calibration_pairs: int, lists: int, test_pairs: int
) -> None:
    """Release CHECKPOINT as the bundle OUTPUT; without it, choose the gate of the bundle OUTPUT anew and measure it."""
    if checkpoint is not None:
        release(
            checkpoint,
            output,
            threads=threads,
            calibration_pairs=calibration_pairs,
            lists=lists,
            test_pairs=test_pairs,
        )
    else:
        describe(
            output,
            choose_gate(output, threads=threads, count=calibration_pairs, lists=lists),
            threads=threads,
            test_pairs=test_pairs,
        )


if __name__ == "__main__":
    main()
