"""Best of N: how accurate is each strategy, and how many tokens does it cost, for N = 1, 2, 4, ... 32 candidates?

Candidates are answers sampled from the embedded model itself, or from any OpenAI-compatible endpoint. Each strategy
picks one of the N candidates of a problem. No strategy can do better than pass@N, the share of problems with at least
one right candidate. ``fsrm_lite.ranking.tournament`` explains the strategies.

    python examples/best_of_n.py                                    # 300 problems, up to 32 candidates
    python examples/best_of_n.py --problems 20 --max-n 4            # seconds
    python examples/best_of_n.py --endpoint http://127.0.0.1:8080/v1 --questions mine.jsonl

Tokens are those written, by the model for its candidates and by the judge. A comparison that several strategies ask for
is judged once, but its tokens count for each of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fsrm_lite import FastSlowRM
from fsrm_lite.batches import each_or_none
from fsrm_lite.errors import InputError
from fsrm_lite.loops.reasoners import EndpointReasoner, Proposal, Reasoner, Sampling, SolveReasoner, Task, ask
from fsrm_lite.measure.intervals import wilson
from fsrm_lite.ranking.answers import agrees, final
from fsrm_lite.ranking.tournament import BLANK_SCORE, select
from fsrm_lite.types import Comparison, Score

STRATEGIES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "majority": ("majority", lambda n: {"extractor": final}),
    "fast": ("fast", lambda n: {}),
    "gated, no judge": ("gated", lambda n: {"judge": "never"}),
    "gated": ("gated", lambda n: {}),
    "knockout": ("knockout", lambda n: {}),
    "elo": ("elo", lambda n: {"budget": 2 * n}),
}
"""From a column of the table to a strategy and its options for N candidates. Elo plays the 2N most telling matches."""


@dataclass(frozen=True)
class Problem:
    """A question and its known answer."""

    question: str
    answer: str


@dataclass
class Candidates:
    """The candidates of one problem, their fast scores, and the comparisons that the judge has made so far."""

    rm: FastSlowRM
    problem: Problem
    proposals: list[Proposal]
    scores: list[Score]
    known: dict[tuple[str, str], Comparison] = field(default_factory=dict)

    def right(self, index: int) -> bool:
        """Return whether a candidate has the right answer."""
        return agrees(self.proposals[index].text, self.problem.answer, final)

    def play(self, pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
        """Return the judge's comparisons of pairs of candidates. A pair of texts is judged only once."""
        texts = [(self.proposals[a].text, self.proposals[b].text) for a, b in pairs]
        new = list(dict.fromkeys(pair for pair in texts if pair not in self.known))
        judged = self.rm.compare_many([(self.problem.question, a, b) for a, b in new], judge="always") if new else []
        self.known.update(zip(new, judged, strict=True))
        return [self.known[pair] for pair in texts]


@dataclass
class Cell:
    """What one strategy reached at one N, added up over the problems."""

    strategy: str
    n: int
    problems: int = 0
    right: int = 0
    tokens: int = 0
    judge_tokens: int = 0
    games: int = 0

    def row(self) -> dict[str, Any]:
        """Return the figures: accuracy with its 95 % interval; tokens, those of the judge, and matches per problem."""
        found = wilson(self.right, self.problems)
        per = {name: getattr(self, name) / self.problems for name in ("tokens", "judge_tokens", "games")}
        return asdict(self) | {"accuracy": found.value, "low": found.low, "high": found.high} | per


def sample(rm: FastSlowRM, reasoner: Reasoner, problems: Sequence[Problem], sampling: Sampling) -> list[Candidates]:
    """Sample N candidates per problem and score them with the fast model, equal texts only once.

    A candidate counts as empty if the reasoner failed or the model cannot read the text.
    """
    asked = ask(reasoner, [Task(p.question) for p in problems], sampling)
    groups = [group + [Proposal("", 0)] * (sampling.n - len(group)) for group in asked]
    texts = [(p.question, x.text) for p, group in zip(problems, groups, strict=True) for x in group if x.text.strip()]
    distinct = list(dict.fromkeys(texts))
    found = each_or_none(lambda part: rm.score_many(part, judge="never"), distinct, InputError)
    scores = {text: score for text, score in zip(distinct, found, strict=True) if score is not None}
    candidates = []
    for problem, group in zip(problems, groups, strict=True):
        readable = [x if (problem.question, x.text) in scores else Proposal("", x.tokens_generated) for x in group]
        candidates.append(
            Candidates(rm, problem, readable, [scores.get((problem.question, x.text), BLANK_SCORE) for x in readable])
        )
    return candidates


def measure(rm: FastSlowRM, candidates: Sequence[Candidates], sizes: Sequence[int]) -> list[Cell]:
    """Let every strategy pick one of the first N candidates of every problem, for each N in ``sizes``."""
    cells: list[Cell] = []
    for n in sizes:
        ceiling = Cell("pass@N", n)
        chosen = {name: Cell(name, n) for name in STRATEGIES}
        for c in candidates:
            written = sum(p.tokens_generated for p in c.proposals[:n])
            _count(ceiling, any(c.right(i) for i in range(n)), written)
            for name, (strategy, options) in STRATEGIES.items():
                responses = [p.text for p in c.proposals[:n]]
                picked = select(strategy, c.scores[:n], responses, rm.gate, c.play, **options(n))
                _count(chosen[name], c.right(picked.index), written, picked.tokens_generated, len(picked.comparisons))
        cells += [*chosen.values(), ceiling]
    return cells


def table(cells: Sequence[Cell]) -> str:
    """Return a table in Markdown: a row per N, with accuracy, half of its interval's width, and tokens per problem."""
    names = [*STRATEGIES, "pass@N"]
    lines = ["| N | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for n in sorted({c.n for c in cells}):
        rows = {c.strategy: c.row() for c in cells if c.n == n}
        texts = [
            f"{100 * r['accuracy']:.1f} ± {50 * (r['high'] - r['low']):.1f} ({r['tokens']:.0f})"
            for r in (rows[name] for name in names)
        ]
        lines.append(f"| {n} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def judge_share(cells: Sequence[Cell]) -> str:
    """Return a line that says for each N what part of a knockout's judge tokens the gated strategy spent."""
    spent = {(c.strategy, c.n): c.judge_tokens for c in cells}
    shares = [
        f"{n}: {100 * spent['gated', n] / tokens:.0f} %"
        for (name, n), tokens in spent.items()
        if name == "knockout" and tokens
    ]
    return "judge tokens of gated, in percent of the knockout's, by N: " + ", ".join(shares)


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Draw accuracy against tokens, one curve per strategy. Needs matplotlib (extra ``plots``)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name in [*STRATEGIES, "pass@N"]:
        rows = [c.row() for c in cells if c.strategy == name]
        x, y = [r["tokens"] for r in rows], [100 * r["accuracy"] for r in rows]
        (line,) = axes.plot(x, y, marker="o", markersize=4, linestyle="--" if name == "pass@N" else "-", label=name)
        if name != "pass@N":
            axes.fill_between(
                x, [100 * r["low"] for r in rows], [100 * r["high"] for r in rows], color=line.get_color(), alpha=0.1
            )
    axes.set(
        xscale="log",
        xlabel="tokens written per problem (candidates and judge)",
        ylabel="accuracy, %",
        title="Best of N",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def load_problems(path: str | None, count: int, seed: int) -> list[Problem]:
    """Return problems from rows ``{"question", "answer"}`` of a JSONL file, or some the model was not trained on."""
    if path is not None:
        rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
        return [Problem(row["question"], str(row["answer"])) for row in rows[:count]]
    from fsrm_lite.models.data import held_out

    return [Problem(pair.problem.question, pair.problem.answer) for pair in held_out("test", count, seed)]


def run(
    rm: FastSlowRM, reasoner: Reasoner, problems: Sequence[Problem], sampling: Sampling, output: Path | None = None
) -> list[Cell]:
    """Sample, let every strategy pick, print the table, and write table and plot into the folder ``output``."""
    started = time.perf_counter()
    candidates = sample(rm, reasoner, problems, sampling)
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < sampling.n] + [sampling.n]
    sampled = time.perf_counter() - started
    cells = measure(rm, candidates, sizes)
    print(
        f"{len(problems)} problems, temperature {sampling.temperature}; "
        "accuracy in % ± half a 95 % interval (tokens written per problem)\n"
    )
    print(table(cells))
    print("\n" + judge_share(cells))
    print(f"sampled in {sampled:.0f} s, ranked in {time.perf_counter() - started - sampled:.0f} s")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "best_of_n.json").write_text(json.dumps([c.row() for c in cells], indent=1) + "\n")
        (output / "best_of_n.md").write_text(table(cells) + "\n")
        plot(cells, output / "best_of_n.png")
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=None, help="bundle folder or org/name; default: the embedded model")
    parser.add_argument("--endpoint", default=None, help="sample from this OpenAI-compatible endpoint instead")
    parser.add_argument(
        "--questions", default=None, help='JSONL rows {"question", "answer"}; default: held-out problems'
    )
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--max-n", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=None, help="folder for the table and the plot")
    options = parser.parse_args(arguments)
    rm = FastSlowRM.from_pretrained(options.model)
    reasoner = EndpointReasoner(options.endpoint) if options.endpoint else SolveReasoner(rm)
    sampling = Sampling(options.max_n, options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    run(rm, reasoner, load_problems(options.questions, options.problems, options.seed), sampling, options.output)
    rm.close()


def _count(cell: Cell, right: bool, written: int, judged: int = 0, games: int = 0) -> None:
    cell.problems += 1
    cell.right += right
    cell.tokens += written + judged
    cell.judge_tokens += judged
    cell.games += games


if __name__ == "__main__":
    main()
