"""The reasoning loop (DRR): does a critic gain more than sampling several times and counting votes?

The reasoner, which writes the answers, is the embedded model itself. The critic, which accepts an answer or makes the
reasoner try again, is fitted on traces: the reasoner's answers to calibration problems, labelled right or wrong by
their results alone. All figures are measured on test problems, which neither of them has seen.

    python examples/reasoning_loop.py                                        # 500 test problems
    python examples/reasoning_loop.py --problems 40 --distil 150             # a minute

    plain             one sample
    self-critique     the reasoner is asked whether its own answer is right; after a "no" it tries again
    self-consistency  the answer that most of k samples give; k is chosen so that they cost at least as many tokens as
                      the loop that they are compared with
    DRR, fitted       the loop with the fitted critic, which reads each answer once and writes nothing
    DRR, gated        the loop with the reward model as critic; it thinks where its gate says so

Tokens are those written by reasoner and critic. The tokens that critics read are given beside them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fsrm_lite import FastSlowRM
from fsrm_lite.export.critic_head import fit_critic
from fsrm_lite.loops.critic import Critic, HeadCritic, RewardCritic, SelfCritic
from fsrm_lite.loops.distill import distill, read_traces
from fsrm_lite.loops.loop import LoopOutcome, LoopResult, ReasoningLoop
from fsrm_lite.loops.reasoners import Proposal, Reasoner, Sampling, SolveReasoner, Task
from fsrm_lite.measure.intervals import bootstrap, wilson
from fsrm_lite.ranking.answers import agrees, final

MOST_SAMPLES = 16
THRESHOLD = 0.7
"""Probability from which on the fitted critic accepts.

It was chosen on calibration problems: with a higher one the additional turns gain nothing.
"""


@dataclass(frozen=True)
class Problem:
    """A question and its known answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Figures:
    """What one method does on the test problems. Every list has one entry per problem, in order.

    Attributes:
        name: Name of the method.
        right: Whether its answer is right, when it must give one.
        written: Tokens written by reasoner and critic.
        read: Tokens that the critic read.
        turns: Proposals made.
        sure: Whether it would give an answer if it were allowed to give none.
    """

    name: str
    right: list[bool]
    written: list[int]
    read: list[int]
    turns: list[int]
    sure: list[bool]


def looped(name: str, loop: ReasoningLoop, problems: Sequence[Problem]) -> Figures:
    """Return the figures of a loop. It is sure of an answer if the critic accepted it."""
    results = loop.run_many([p.question for p in problems])
    return Figures(
        name,
        [_right(r, p) for r, p in zip(results, problems, strict=True)],
        [r.tokens_generated for r in results],
        [sum(t.critic_tokens_read for t in r.turns) for r in results],
        [len(r.turns) for r in results],
        [r.outcome is LoopOutcome.ACCEPTED for r in results],
    )


def consistent(name: str, samples: Sequence[Sequence[Proposal]], k: int, problems: Sequence[Problem]) -> Figures:
    """Return the figures of the majority of the first k samples. It is sure when more than half of them agree.

    Of answers that are equally frequent, the one seen first is taken.
    """
    right, sure = [], []
    for group, problem in zip(samples, problems, strict=True):
        answers = [a for p in group[:k] if (a := final(p.text)) is not None]
        best = max(dict.fromkeys(answers), key=answers.count, default=None)
        right.append(best is not None and best == final(problem.answer))
        sure.append(best is not None and 2 * answers.count(best) > k)
    written = [sum(p.tokens_generated for p in group[:k]) for group in samples]
    return Figures(name, right, written, [0] * len(problems), [k] * len(problems), sure)


def at_equal_tokens(loop: Figures, samples: Sequence[Sequence[Proposal]], problems: Sequence[Problem]) -> Figures:
    """Return the figures of self-consistency with the fewest samples that cost at least as many tokens as a loop."""
    k = 1
    while k < MOST_SAMPLES and sum(p.tokens_generated for group in samples for p in group[:k]) < sum(loop.written):
        k += 1
    return consistent(f"self-consistency, k={k} ({loop.name}'s tokens)", samples, k, problems)


def compare(
    rm: FastSlowRM, reasoner: Reasoner, critic: Critic, problems: Sequence[Problem], sampling: Sampling, turns: int
) -> list[Figures]:
    """Return the figures of every method on the same problems. The first turn of every loop is the plain sample."""
    samples = reasoner.propose([Task(p.question) for p in problems], replace(sampling, n=MOST_SAMPLES))

    def loop(name: str, critic: Critic) -> Figures:
        return looped(
            name, ReasoningLoop(reasoner, critic, max_turns=turns, sampling=sampling, extractor=final), problems
        )

    judged = replace(sampling, max_tokens=64)
    own, fitted, gated = (
        loop("self-critique", SelfCritic(reasoner, sampling=judged)),
        loop("DRR, fitted", critic),
        loop("DRR, gated", RewardCritic(rm)),
    )
    equal = [at_equal_tokens(figures, samples, problems) for figures in (fitted, gated)]
    return [consistent("plain", samples, 1, problems), own, equal[0], fitted, equal[1], gated]


def table(methods: Sequence[Figures]) -> str:
    """Return a table in Markdown: accuracy with its interval, tokens, turns, and what abstaining would change."""
    lines = [
        "| method | accuracy, % | tokens written | read by critic | turns "
        "| answered, if it may abstain | right of those, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in methods:
        n = len(m.right)
        all_, of_sure = (
            wilson(sum(m.right), n),
            wilson(sum(r for r, s in zip(m.right, m.sure, strict=True) if s), sum(m.sure)),
        )
        lines.append(
            f"| {m.name} | {100 * all_.value:.1f} [{100 * all_.low:.1f}, {100 * all_.high:.1f}] "
            f"| {np.mean(m.written):.0f} | {np.mean(m.read):.0f} "
            f"| {np.mean(m.turns):.2f} | {100 * np.mean(m.sure):.1f} % | {100 * of_sure.value:.1f} |"
        )
    return "\n".join(lines)


def differences(methods: Sequence[Figures]) -> str:
    """Return how much more accurate each DRR is than each rival, with a 95 % bootstrap interval over the problems."""
    lines = []
    for m in (m for m in methods if m.name.startswith("DRR")):
        for rival in (
            r for r in methods if not r.name.startswith("DRR") and ("tokens" not in r.name or m.name in r.name)
        ):
            gap = np.array(m.right, dtype=float) - np.array(rival.right, dtype=float)
            found = bootstrap(lambda rows, gap=gap: {"gap": float(gap[rows].mean())}, len(gap))["gap"]
            lines.append(
                f"{m.name} - {rival.name}: "
                f"{100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            )
    return "\n".join(lines)


def run(
    rm: FastSlowRM,
    reasoner: Reasoner,
    learn: Sequence[Problem],
    test: Sequence[Problem],
    sampling: Sampling,
    turns: int,
    output: Path,
    samples: int = 4,
) -> list[Figures]:
    """Collect traces, fit the critic, compare the methods, print the tables, and write all into ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    done = distill((asdict(p) for p in learn), reasoner, output / "traces.jsonl", sampling=replace(sampling, n=samples))
    print(f"distilled {done.written + done.kept} traces of {len(learn)} problems")
    with (output / "traces.jsonl").open(encoding="utf-8") as file:
        report = fit_critic(read_traces(file), rm, output / "critic")
    print(
        f"critic on {report.questions} held-out problems: "
        f"accuracy {report.accuracy:.3f}, AUROC {report.auroc:.3f}, ECE {report.ece:.3f};"
    )
    print(f"the fast score alone: AUROC {report.fast_auroc:.3f}\n")
    methods = compare(rm, reasoner, HeadCritic(output / "critic", rm, threshold=THRESHOLD), test, sampling, turns)
    print(
        f"{len(test)} test problems, temperature {sampling.temperature}, at most {turns} turns\n\n"
        f"{table(methods)}\n\n{differences(methods)}"
    )
    (output / "reasoning_loop.md").write_text(f"{table(methods)}\n\n{differences(methods)}\n")
    (output / "reasoning_loop.json").write_text(json.dumps([asdict(m) for m in methods]) + "\n")
    return methods


def load_problems(split: str, count: int) -> list[Problem]:
    """Return problems that the embedded model was not trained on."""
    from fsrm_lite.models.data import held_out

    return [Problem(pair.problem.question, pair.problem.answer) for pair in held_out(split, count)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=None, help="bundle folder or org/name; default: the embedded model")
    parser.add_argument("--problems", type=int, default=500, help="test problems")
    parser.add_argument("--distil", type=int, default=1000, help="calibration problems to distil traces from")
    parser.add_argument("--samples", type=int, default=4, help="traces per calibration problem")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=None,
        help="folder for traces, critic and tables; kept and continued if it exists",
    )
    options = parser.parse_args(arguments)
    rm = FastSlowRM.from_pretrained(options.model)
    sampling = Sampling(1, options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    learn, test = load_problems("calibration", options.distil), load_problems("test", options.problems)
    with tempfile.TemporaryDirectory() as scratch:
        run(
            rm,
            SolveReasoner(rm),
            learn,
            test,
            sampling,
            options.turns,
            options.output or Path(scratch),
            options.samples,
        )
    rm.close()


def _right(result: LoopResult, problem: Problem) -> bool:
    return result.response is not None and agrees(result.response, problem.answer, final)


if __name__ == "__main__":
    main()
