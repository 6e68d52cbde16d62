"""DRR on real reasoning traces: does a small critic on a real model's readings tell right solutions from wrong ones?

The traces are published solutions with labels, for example GSM8K's ``example_model_solutions.jsonl``: 1,319 questions
with the solutions of four models each (https://github.com/openai/grade-school-math, MIT). The backbone, which reads
them and is not trained, is any bundle of a model that can write, exported by this version or a later one, for example
SmolLM2-135M-Instruct:

    make real
    fsrm-lite export .bench/real/checkpoint -o .bench/smollm2 --slow none
    python examples/real_traces.py example_model_solutions.jsonl --model .bench/smollm2 -o results/

Questions are read in a random order, for as long as ``--minutes`` allows; those that were read whole are measured. Each
question is held out once: its traces are scored by a head that was fitted and calibrated on other questions alone.
Heads on all three kinds of inputs are compared by their AUROC; all other figures are of the head on ``pooled``. All
intervals are of 95 %, by bootstrap over questions, with the fitted heads held fixed. What the model reads is kept in
the output folder, so that the next run goes on where this one stopped.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsrm_lite import FastSlowRM
from fsrm_lite.bundle.files import file_sha256
from fsrm_lite.cli.progress import progress
from fsrm_lite.export.critic_head import Part, fast_logit, fit_layers, logits_of
from fsrm_lite.files import sole_writer
from fsrm_lite.jsonl import complete_lines, dump_row, open_lines
from fsrm_lite.loops.critic_inputs import INPUTS, LIKELIHOOD_STATISTICS, FollowingReader
from fsrm_lite.loops.distill import Trace, read_traces
from fsrm_lite.measure.intervals import Interval, bootstrap
from fsrm_lite.measure.metrics import auroc, ece

LEAST_QUESTIONS = 20

COVERAGES = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Shares of the traces that are accepted, those with the highest scores."""


@dataclass(frozen=True)
class Features:
    """What the model reads of one trace, with H for its width.

    Attributes:
        hidden: The last hidden state, float32 [H].
        pooled: What a head with the inputs "pooled" takes, float32 [3 H + 6].
        fast: The first-token logit.
    """

    hidden: NDArray[np.float32]
    pooled: NDArray[np.float32]
    fast: float

    def numbers(self, inputs: str) -> NDArray[np.float32]:
        """Return what a head with these inputs takes."""
        if inputs == "pooled":
            return self.pooled
        return np.concatenate([self.hidden, self.statistics]) if inputs == "likelihood" else self.hidden

    @property
    def statistics(self) -> NDArray[np.float32]:
        """The statistics of the likelihood, float32 [6]."""
        return self.pooled[-len(LIKELIHOOD_STATISTICS) :]


def chosen(path: Path, questions: int | None, seed: int) -> list[list[Trace]]:
    """Return the traces of so many questions, drawn at random, grouped by question."""
    by_question: dict[str, list[Trace]] = {}
    with open_lines(path) as lines:
        for trace in read_traces(lines):
            by_question.setdefault(trace.question, []).append(trace)
    groups = list(by_question.values())
    random.Random(seed).shuffle(groups)
    return groups[:questions]


def read(rm: FastSlowRM, traces: Sequence[Trace], cache: Path, minutes: float) -> dict[str, Features]:
    """Read the traces with the model, but for those that the cache has, and return what is known by key.

    A trace that the model cannot read is left out, and so are those that the time did not suffice for.
    """
    reader, known = FollowingReader(rm, pooled=True), dict[str, Features]()
    with sole_writer(cache), cache.open("a", encoding="utf-8") as file:
        for _, line in complete_lines(cache, b'{"key": "'):
            row = json.loads(line)
            hidden, pooled = (np.frombuffer(base64.b64decode(row[k]), np.float32) for k in ("hidden", "pooled"))
            known[row["key"]] = Features(hidden, pooled, row["fast"])
        missing = [trace for trace in traces if key_of(trace) not in known]
        tokens, start = 0, time.monotonic()
        note = lambda: f"{tokens / max(time.monotonic() - start, 1e-9):.0f} tokens/s"  # noqa: E731
        with progress("traces", len(missing), note) as step:
            for trace in missing:
                if time.monotonic() - start > 60 * minutes:
                    break
                (one,) = reader.read([(trace.question, trace.response)])
                if one is not None:
                    assert one.reading.hidden is not None
                    found = Features(one.reading.hidden, one.numbers, fast_logit(one.reading, rm))
                    hidden, pooled = (base64.b64encode(x.tobytes()).decode() for x in (found.hidden, found.pooled))
                    file.write(dump_row({"key": key_of(trace), "fast": found.fast, "hidden": hidden, "pooled": pooled}))
                    file.flush()
                    known[key_of(trace)] = found
                    tokens += one.reading.tokens_read
                step()
    return known


def key_of(trace: Trace) -> str:
    """Return the identity of a trace's texts."""
    return hashlib.blake2b(json.dumps([trace.question, trace.response]).encode(), digest_size=12).hexdigest()


def held_out(groups: Sequence[Sequence[Trace]], known: dict[str, Features], inputs: str, folds: int) -> list[float]:
    """Return the probability that each trace is right, from a head that knows nothing of its question.

    Of the other questions three quarters fit the head, and one quarter chooses its penalty and calibrates it.
    """

    def part(chosen_groups: Sequence[Sequence[Trace]]) -> Part:
        traces = [trace for group in chosen_groups for trace in group]
        numbers = np.stack([known[key_of(t)].numbers(inputs) for t in traces]).astype(np.float64)
        fast = np.array([known[key_of(t)].fast for t in traces])
        return Part(numbers, np.array([bool(t.label) for t in traces]), fast, len(chosen_groups))

    probabilities: dict[int, NDArray[np.float64]] = {}
    for fold in range(folds):
        rest = [group for i, group in enumerate(groups) if i % folds != fold]
        fit = part([group for i, group in enumerate(rest) if i % 4])
        layers = fit_layers(fit, part(rest[::4]), inputs=inputs)
        for i in range(fold, len(groups), folds):
            probabilities[i] = 1.0 / (1.0 + np.exp(-logits_of(layers, part([groups[i]]).numbers)))
    return [float(p) for i in range(len(groups)) for p in probabilities[i]]


def picks(group: Sequence[Trace], probability: Sequence[float]) -> dict[str, float]:
    """Return how likely each way to pick one of a question's traces is to pick a right one; ties are drawn by lot."""

    def best(worth: Sequence[float]) -> float:
        top = [t.label for t, w in zip(group, worth, strict=True) if w == max(worth)]
        return sum(top) / len(top)

    answers = [t.answer if t.answer is not None else f"none {i}" for i, t in enumerate(group)]
    return {
        "critic": best(list(probability)),
        "critic's sum per answer": best(
            [sum(p for p, a in zip(probability, answers, strict=True) if a == answer) for answer in answers]
        ),
        "majority": best([answers.count(answer) for answer in answers]),
        "shortest": best([-len(t.response) for t in group]),
        "one at random": sum(t.label for t in group) / len(group),
        "pass@N": float(any(t.label for t in group)),
    }


def pairs_in_order(group: Sequence[Trace], probability: Sequence[float], writers: int) -> NDArray[np.float64]:
    """Return how many pairs of a right and a wrong trace the probability orders rightly, and how many there are.

    Both are counted by who wrote the right one and who the wrong one: float64 [2, writers, writers].
    """
    counts = np.zeros((2, writers, writers))
    for a, p in zip(group, probability, strict=True):
        for b, other in zip(group, probability, strict=True):
            if a.label and not b.label:
                counts[:, a.sample, b.sample] += (p > other) + 0.5 * (p == other), 1
    return counts


def balanced(counts: NDArray[np.float64]) -> float:
    """Return the share of pairs in order as if each of two writers were the right one equally often.

    Published traces come from a few models, some of which are right more often. To tell the writers apart orders many
    pairs rightly; it gains nothing here.
    """
    done, pairs = counts
    seen = (pairs > 0) & (pairs.T > 0) & ~np.eye(len(pairs), dtype=bool)
    share = np.divide(done, pairs, out=np.zeros_like(done), where=seen)
    weight = np.where(seen, pairs + pairs.T, 0.0)
    return float((share * weight).sum() / weight.sum()) if weight.any() else float("nan")


def figures(
    groups: Sequence[Sequence[Trace]], known: dict[str, Features], scores: dict[str, list[float]], folds: int
) -> dict[str, Interval]:
    """Return all figures with their intervals.

    Every fold has a head of its own, so the AUROC is the mean over folds: it compares no scores of different heads. The
    shares of accepted traces do: there the calibrated scores of all folds are ranked together.

    Args:
        groups: Traces by question.
        known: What the model read of each.
        scores: Held-out probabilities of all traces, in order, by what the head reads.
        folds: Of ``held_out``, to which question i belongs by i modulo their number.
    """
    sizes = np.array([len(group) for group in groups])
    first = np.cumsum(sizes) - sizes
    questions_of = np.repeat(np.arange(len(groups)), sizes)
    traces = [trace for group in groups for trace in group]
    right = np.array([bool(t.label) for t in traces])
    total = LIKELIHOOD_STATISTICS.index("total")
    rivals = {
        "AUROC, the sum of the log-probabilities alone": [known[key_of(t)].statistics[total] for t in traces],
        "AUROC, the shorter the better": [-len(t.response) for t in traces],
        "AUROC, the model's own first token": [known[key_of(t)].fast for t in traces],
    }
    best = np.array(scores["pooled"])
    sample = np.array([t.sample for t in traces])
    writers = int(sample.max()) + 1
    picked = [
        picks(group, best[at : at + len(group)].tolist()) for group, at in zip(groups, first.tolist(), strict=True)
    ]
    ordered = np.array(
        [
            pairs_in_order(group, best[at : at + len(group)].tolist(), writers)
            for group, at in zip(groups, first.tolist(), strict=True)
        ]
    )

    def statistics(questions: NDArray[np.int64]) -> dict[str, float]:
        rows = np.concatenate([np.arange(first[q], first[q] + sizes[q]) for q in questions])
        truth, found = right[rows], dict[str, float]()
        fold = questions_of[rows] % folds
        for name, values in {
            "AUROC, critic on pooled states and likelihood": best,
            "AUROC, critic on hidden state and likelihood": np.array(scores["likelihood"]),
            "AUROC, critic on the hidden state alone": np.array(scores["hidden"]),
            **{name: np.array(values) for name, values in rivals.items()},
        }.items():
            each = [auroc(values[rows[fold == f]], truth[fold == f]) for f in range(folds)]
            found[name] = float(np.mean(each))
        found["ECE"] = ece(best[rows], truth)
        counts = ordered[questions].sum(axis=0)
        found["right above wrong within a question"] = float(counts[0].sum() / counts[1].sum())
        found["the same, as if all writers were right equally often"] = balanced(counts)
        for name in picked[0]:
            found[f"pick, {name}"] = float(np.mean([picked[q][name] for q in questions]))
        found["pick, the best writer's"] = max(float(truth[sample[rows] == w].mean()) for w in range(writers))
        found["pick, critic's sum less majority"] = found["pick, critic's sum per answer"] - found["pick, majority"]
        order = np.argsort(-best[rows], kind="stable")
        for share in COVERAGES:
            found[f"right among the {share:.0%} accepted"] = float(
                truth[order[: max(1, round(share * len(rows)))]].mean()
            )
        return found

    return bootstrap(statistics, len(groups))


def table(found: dict[str, Interval]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| held-out questions | value (95 %) |", "|---|---:|"]
    for name, x in found.items():
        form = "{:.3f}" if name.startswith(("AUROC", "ECE")) else "{:.1%}"
        lines.append("| {} | {} ({} to {}) |".format(name, *(form.format(v) for v in (x.value, x.low, x.high))))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("traces", type=Path, help="published solutions with labels, or what distil wrote")
    parser.add_argument("--model", default=None, help="bundle folder or org/name; default: the embedded model")
    parser.add_argument("--questions", type=int, default=None, help="at most so many; default: all")
    parser.add_argument("--minutes", type=float, default=12.0, help="for reading what was not read before")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the choice of questions")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("-o", "--output", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    if options.folds < 2:
        parser.error(f"--folds is {options.folds}, expected at least 2")
    options.output.mkdir(parents=True, exist_ok=True)
    groups = chosen(options.traces, options.questions, options.seed)
    with FastSlowRM.from_pretrained(options.model, threads=options.threads) as rm:
        # The manifest has the hashes of graph and tokenizer, and the prompt: all that decides what is read.
        cache = options.output / f"read-{file_sha256(rm.bundle.root / 'fsrm.json')[:12]}.jsonl"
        known = read(rm, [trace for group in groups for trace in group], cache, options.minutes)
    groups = [group for group in groups if all(key_of(t) in known for t in group)]
    if len(groups) < LEAST_QUESTIONS:
        raise SystemExit(
            f"{len(groups)} questions were read whole, expected at least {LEAST_QUESTIONS}; give it more --minutes"
        )
    scores = {inputs: held_out(groups, known, inputs, options.folds) for inputs in INPUTS}
    found = figures(groups, known, scores, options.folds)
    print(f"{len(groups)} questions, {sum(map(len, groups))} traces\n\n{table(found)}")
    (options.output / "real_traces.md").write_text(table(found) + "\n", encoding="utf-8")
    report = {"questions": len(groups), "figures": {name: x.to_dict() for name, x in found.items()}}
    (options.output / "real_traces.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
