"""What the model itself writes, as training data: sampled solutions, labelled by their answers and workings.

No human labels are needed: the plan behind a problem knows both. (Behaviour data in the sense of DRR,
arXiv 2501.01457: a critic learns from the traces of the reasoner that it is to judge.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.export.checkpoints.checkpoint import Checkpoint
from fsrm_lite.export.checkpoints.vocabulary import read_vocabulary
from fsrm_lite.export.gguf.writer import write_gguf
from fsrm_lite.files import whole_file
from fsrm_lite.gate import sigmoid
from fsrm_lite.models.data import UNDECIDED_SHARE, BatchMaker, Example, training_manifest
from fsrm_lite.models.problems import Problem
from fsrm_lite.models.responses import Response, labelled, right_texts
from fsrm_lite.slow.judge import Judge

MAX_TOKENS = 160
"""Longest solution, in tokens. The longest right one has about 120."""

EASY_WEIGHT = 0.1
"""Weight of a solution that the model scores rightly beyond doubt; one scored wrongly beyond doubt has 1 more."""

EASY_PROBLEM = 0.3
"""Weight of a problem whose right solutions the model scores above all wrong ones; where all are below, 1 more."""

BARE_SHARE = 0.25
"""Share of the drawn pairs of own solutions that show their answers alone."""

# fmt: off
OWN_MIX = ("fast", "fast", "slow_pair", "fast", "fast", "solve", "fast", "slow_pair", "fast", "solve", "slow_point",
           "fast")
"""The kinds of examples in a round: more fast pairs than before, since the fast score has most to learn from own
samples, and more problems to solve: a model that writes more right solutions makes every way of choosing better."""

JUDGE_MIX = ("fast", "fast", "slow_pair", "fast", "slow_pair", "solve", "fast", "slow_pair", "slow_pair", "solve",
             "slow_point", "fast", "slow_pair")
"""The kinds of examples in a round that is for the judge: more than a third of the draws are pairs to think about."""
# fmt: on

AT_ONCE = 50
"""Problems that are solved together."""


@dataclass(frozen=True, slots=True)
class Samples:
    """A problem and what the model wrote about it. Solutions that are alike stand here once.

    Attributes:
        problem: The problem.
        right: Solutions with the right answer behind a right working; where the model wrote none, known ones.
        wrong: Solutions with a wrong answer, or without one.
        odd: Solutions with the right answer behind another working. Only the judge learns from them, who looks at the
            answers: a model that learned to write them would write more of the kind, and a score that learned to like
            them would not see where a working goes wrong.
        weights: How often each text is drawn, in proportion; 1 where it has no weight.
        weight: How often the problem is drawn, in proportion.
    """

    problem: Problem
    right: tuple[Response, ...]
    wrong: tuple[Response, ...]
    odd: tuple[Response, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0

    def draw(self, rng: random.Random, right: bool, *, judged: bool = False) -> Response:
        """Return one of the right or of the wrong solutions; for the judge one of the odd ones is right, too."""
        responses = self.wrong if not right else (*self.right, *self.odd) if judged else self.right
        return rng.choices(responses, [self.weights.get(response.text, 1.0) for response in responses])[0]


def solve(
    checkpoint: Path,
    problems: Sequence[Problem],
    n: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Return ``n`` solutions of each problem, sampled at temperature 1.

    llama.cpp writes them: it takes a tenth of the time that transformers takes here.

    Args:
        checkpoint: Folder of the model, with its tokenizer.
        problems: The problems.
        n: Solutions per problem.
        seed: Seed of the sampling.
        progress: Called after each batch with its number of problems.
    """
    solutions: list[list[str]] = []
    encoder = encoder_of(checkpoint)
    with TemporaryDirectory() as folder, closing(judge_of(checkpoint, encoder, Path(folder))) as judge:
        for start in range(0, len(problems), AT_ONCE):
            part = problems[start : start + AT_ONCE]
            prompts = [encoder.solve(problem.question) for problem in part]
            groups = judge.generate(prompts, n=n, max_tokens=MAX_TOKENS, temperature=1.0, seed=seed + start)
            solutions += [[written.text.strip() for written in group] for group in groups]
            if progress is not None:
                progress(len(part))
    return solutions


def encoder_of(checkpoint: Path) -> PromptEncoder:
    """Return the prompts of a checkpoint, as the bundle that is made of it will have them."""
    tokenizer = checkpoint / "tokenizer.json"
    manifest = training_manifest(Tokenizer.from_file(str(tokenizer)))
    return PromptEncoder(tokenizer, replace(manifest, vocab_size=Checkpoint.open(checkpoint).arch.vocab_size))


def judge_of(checkpoint: Path, encoder: PromptEncoder, folder: Path) -> Judge:
    """Return the model of a checkpoint in llama.cpp.

    Args:
        checkpoint: Folder of the model, with its tokenizer.
        encoder: Its prompts, from ``encoder_of``.
        folder: Where to write the file that llama.cpp reads; it must stay until the judge is closed.
    """
    weights = Checkpoint.open(checkpoint)
    vocabulary = read_vocabulary(checkpoint, weights.arch.vocab_size)
    path = folder / "model.gguf"
    write_gguf(weights, vocabulary, path, dtype="f32", name=encoder.manifest.name)
    return Judge(path, encoder)


def write_samples(path: Path, solutions: Sequence[Sequence[str]]) -> None:
    """Write the solutions of ``problems_of`` as JSON Lines, a problem a line; whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text("".join(json.dumps(texts) + "\n" for texts in solutions))


def read_samples(path: Path, problems: Sequence[Problem], *, solved: bool = False) -> list[Samples]:
    """Return the samples of a file that ``write_samples`` wrote, of the problems with wrong solutions.

    Args:
        path: The file.
        problems: The problems that it is about.
        solved: Take only the problems with a right answer, too. Else those without one come with known solutions.
    """
    samples = []
    for problem, line in zip(problems, path.read_text().splitlines(), strict=True):
        responses = [labelled(problem, text) for text in dict.fromkeys(json.loads(line)) if text]
        known = right_texts(problem)
        answered = [r for r in responses if r is not None and r.correct]
        right = tuple(r for r in answered if r.text in known)
        odd = tuple(r for r in answered if r.text not in known)
        wrong = tuple(r for r in responses if r is not None and not r.correct)
        if not right:
            written = (labelled(problem, text) for text in dict.fromkeys(known[-2:]))  # in one line, and step by step
            right = tuple(r for r in written if r is not None)
        if wrong and (answered or not solved):
            samples.append(Samples(problem, right, wrong, odd))
    return samples


def weighted(samples: Sequence[Samples], score: Callable[[list[tuple[str, str]]], Sequence[float]]) -> list[Samples]:
    """Return samples of which the hard ones are drawn most.

    In best-of-N a wrong solution matters if its score is the highest, and there are few of those. Hard are wrong
    solutions that score high, right ones that score low, and problems whose wrong solutions score above right ones.

    Args:
        samples: The samples.
        score: Returns the model's score logits of pairs of question and response.
    """
    texts = [(own.problem.question, r.text) for own in samples for r in (*own.right, *own.wrong)]
    logits = iter(score(texts))
    found = []
    for own in samples:
        right, wrong = ({r.text: next(logits) for r in kind} for kind in (own.right, own.wrong))
        weights = {text: EASY_WEIGHT + sigmoid(-logit) for text, logit in right.items()}
        weights |= {text: EASY_WEIGHT + sigmoid(logit) for text, logit in wrong.items()}
        weights |= dict.fromkeys((r.text for r in own.odd), EASY_WEIGHT)
        above = [sigmoid(w - r) for r in right.values() for w in wrong.values()]
        found.append(replace(own, weights=weights, weight=EASY_PROBLEM + sum(above) / len(above)))
    return found


class OwnBatchMaker(BatchMaker):
    """Batches in which a share of the pairs are the model's own solutions; the rest is as in ``BatchMaker``."""

    def __init__(
        self,
        tokenizer_path: Path,
        manifest: Manifest,
        seed: int,
        rows: int,
        samples: Sequence[Samples],
        share: float,
        mix: tuple[str, ...] = OWN_MIX,
    ) -> None:
        """Keep the settings; see ``BatchMaker``.

        Args:
            tokenizer_path: The tokenizer's file.
            manifest: Labels and templates of the model.
            seed: Seed of the examples.
            rows: Rows per batch.
            samples: The model's own solutions.
            share: Share of the pairs, fast and slow, that are taken from them, in [0, 1].
            mix: The kinds of examples, in the order in which they are drawn.
        """
        super().__init__(tokenizer_path, manifest, seed, rows)
        self._samples, self._share, self.mix = samples, share, mix
        self._cumulative = list(accumulate(own.weight for own in samples))

    def _fast_pair(self, rng: random.Random) -> list[Example]:
        if rng.random() >= self._share:
            return super()._fast_pair(rng)
        own = self._drawn_problem(rng)
        return [self._fast(own.problem, response) for response in self._draw(own, (True, False), rng)]

    def _solve(self, rng: random.Random) -> list[Example]:
        """Return an example of solving: a right solution of its own makes the likely right ones likelier still.

        A problem that it did not solve is answered by a known solution.
        """
        if rng.random() >= self._share:
            return super()._solve(rng)
        own = rng.choice(self._samples)
        text = rng.choice(own.right).text
        return [self._written(self._encoder.solve(own.problem.question), self._encoder.encode_text(text), [])]

    def _slow_pair(self, rng: random.Random) -> list[Example]:
        if rng.random() >= self._share:
            return super()._slow_pair(rng)
        own = self._drawn_problem(rng)
        first_right = rng.random() < 0.5
        rights = (first_right, not first_right)
        if rng.random() < UNDECIDED_SHARE:
            rights = (rights[0], rights[0])
        a, b = self._draw(own, rights, rng, judged=True)
        return [self._judged_pair(own.problem, a, b, first_right)]

    def _drawn_problem(self, rng: random.Random) -> Samples:
        return rng.choices(self._samples, cum_weights=self._cumulative)[0]

    def _draw(
        self, own: Samples, rights: tuple[bool, bool], rng: random.Random, *, judged: bool = False
    ) -> list[Response]:
        """Return two solutions of one problem, the answers of both alone in ``BARE_SHARE`` of the cases."""
        drawn = [own.draw(rng, right, judged=judged) for right in rights]
        if rng.random() < BARE_SHARE and all(response.claim for response in drawn):
            return [replace(response, text=response.claim, form="bare") for response in drawn]
        return drawn
