"""Training batches and held-out sets: deterministic functions of a seed and an index.

Batch ``i`` of a seed is the same on every machine and in every process, so a resumed run sees exactly the data that
an uninterrupted one would have seen. ``python -m fsrm_lite.models.data`` writes held-out pairs as JSONL.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.models.problems import Problem, make_problem
from fsrm_lite.models.responses import Response, right_response, thought, wrong_response

SPEC = Path(__file__).with_name("spec.json")
ROW_TOKENS = 320
"""Length of a packed row; an example longer than this is redrawn (well under one in a thousand is)."""

VERDICT_WEIGHT = 8.0
"""Loss weight of the verdict token: at weight 1 a small model learns the thought and leaves the verdict to chance."""

RESPONSE_WEIGHT = 0.3
"""Loss weight of a correct response's own tokens in the fast prompt: it lets the first token read the model's surprise."""

UNDECIDED_SHARE = 0.08
"""Share of slow pairs in which both responses are right or both wrong; their verdict is a coin toss."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A problem with a chosen (right) and a rejected (wrong) response."""

    problem: Problem
    chosen: Response
    rejected: Response


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples packed into rows of one fixed shape, so that a compiled model is compiled once.

    Attributes:
        ids: Shape [R, L], int64.
        segments: Shape [R, L], int64; which example a token belongs to, 0 for padding.
        positions: Shape [R, L], int64; position within the example.
        weights: Shape [R, L], float32; loss weight of predicting ``ids[:, t + 1]`` at position t.
        label_at: Shape [F, 2], int64; row and column whose next token is a fast label. Entries 2k and 2k + 1 are the
            chosen and the rejected response of one problem.
        labels: Shape [F], int64; the label ids.
    """

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    label_at: NDArray[np.int64]
    labels: NDArray[np.int64]


MIX = ("fast", "fast", "slow_pair", "fast", "solve", "fast", "slow_pair", "slow_point")
"""The order in which examples are drawn until a batch is full: half of the draws are pairs of fast examples."""


def held_out(split: str, count: int, seed: int = 0) -> list[Pair]:
    """Return ``count`` pairs of distinct problem structures from a split; the first n of a larger set are the smaller set."""
    rng = random.Random(f"{split}-{seed}")
    pairs: list[Pair] = []
    seen: set[str] = set()
    while len(pairs) < count:
        problem = make_problem(rng, split)
        if problem.key not in seen:
            seen.add(problem.key)
            pairs.append(Pair(problem, right_response(problem, rng), wrong_response(problem, rng)))
    return pairs


def pair_row(pair: Pair) -> dict[str, Any]:
    """The JSONL form of a pair: what `fsrm-lite compare` and `fsrm-lite eval` read, and how hard it is."""
    return {
        "prompt": pair.problem.question,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "answer": pair.problem.answer,
        "family": pair.problem.family,
        "steps": pair.problem.steps,
        "form": pair.rejected.form,
        "error": pair.rejected.error,
    }


class BatchMaker:
    """Packs examples into batches; ``batch(i)`` depends on the seed and on i alone."""

    def __init__(self, tokenizer_path: Path, manifest: Manifest, seed: int, rows: int) -> None:
        """Keep the settings; the tokenizer is loaded on first use, so that the object travels to worker processes."""
        self._tokenizer_path = tokenizer_path
        self._manifest = manifest
        self._seed = seed
        self._rows = rows
        self._yes, self._no = (label.id for label in manifest.labels)

    @cached_property
    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(self._tokenizer_path, self._manifest)

    def batch(self, index: int) -> Batch:
        """Draw examples in the order of ``MIX`` until one no longer fits."""
        rng = random.Random(f"train-{self._seed}-{index}")
        shape = (self._rows, ROW_TOKENS)
        batch = Batch(
            *(np.zeros(shape, t) for t in (np.int64, np.int64, np.int64, np.float32)),
            np.zeros((0, 2), np.int64),
            np.zeros(0, np.int64),
        )
        used = [0] * self._rows
        labelled: list[tuple[int, int]] = []
        for kind in cycle(MIX):
            places = self._place(self._examples(kind, rng), used)
            if places is None:
                break
            for row, start, (ids, weights) in places:
                span = slice(start, start + len(ids))
                batch.ids[row, span], batch.weights[row, span] = ids, weights
                batch.segments[row, span], batch.positions[row, span] = start + 1, np.arange(len(ids))
                labelled += [(row, start + len(ids) - 2)] if kind == "fast" else []
        label_at = np.array(labelled, dtype=np.int64)
        return replace(batch, label_at=label_at, labels=batch.ids[label_at[:, 0], label_at[:, 1] + 1])

    def _place(self, examples: list[_Row], used: list[int]) -> list[tuple[int, int, _Row]] | None:
        """Put each example into the first row with room; None if one has none."""
        places = []
        for example in examples:
            size = len(example[0])
            row = next((r for r, n in enumerate(used) if n + size <= ROW_TOKENS), None)
            if row is None:
                return None
            places.append((row, used[row], example))
            used[row] += size
        return places

    def _examples(self, kind: str, rng: random.Random) -> list[_Row]:
        make = {
            "fast": self._fast_pair,
            "solve": self._solve,
            "slow_pair": self._slow_pair,
            "slow_point": self._slow_point,
        }[kind]
        while True:
            examples = make(rng)
            if max(len(ids) for ids, _ in examples) <= ROW_TOKENS:
                return examples

    def _fast_pair(self, rng: random.Random) -> list[_Row]:
        problem = make_problem(rng, "train")
        return [
            self._fast(problem, response) for response in (right_response(problem, rng), wrong_response(problem, rng))
        ]

    def _fast(self, problem: Problem, response: Response) -> _Row:
        ids = self._encoder.pointwise_fast(problem.question, response.text)
        weights = [0.0] * len(ids)
        if response.correct:
            # The response's tokens are those that another response to the same prompt would replace.
            other = self._encoder.pointwise_fast(problem.question, "?")
            start = _common_prefix(ids, other)
            stop = len(ids) - _common_prefix(ids[::-1], other[::-1])
            weights[start - 1 : stop - 1] = [RESPONSE_WEIGHT] * (stop - start)
        return [*ids, self._yes if response.correct else self._no], [*weights, 0.0]

    def _solve(self, rng: random.Random) -> list[_Row]:
        problem = make_problem(rng, "train")
        text = right_response(problem, rng, rng.choice(("terse", "worked"))).text
        return [self._written(self._encoder.solve(problem.question), self._encoder.encode_text(text), [])]

    def _slow_point(self, rng: random.Random) -> list[_Row]:
        problem = make_problem(rng, "train")
        response = (right_response if rng.random() < 0.5 else wrong_response)(problem, rng)
        verdict = self._yes if response.correct else self._no
        prompt = self._encoder.pointwise_slow(problem.question, response.text)
        return [self._judged(prompt, "pointwise_slow", thought(problem, (response.claim,)), verdict)]

    def _slow_pair(self, rng: random.Random) -> list[_Row]:
        problem = make_problem(rng, "train")
        first_right = rng.random() < 0.5
        rights = (first_right, not first_right)
        if rng.random() < UNDECIDED_SHARE:
            rights = (rights[0], rights[0])
        a, b = ((right_response if right else wrong_response)(problem, rng) for right in rights)
        verdict = self._choice_ids("pairwise_slow")[0 if first_right else 1]
        prompt = self._encoder.pairwise_slow(problem.question, a.text, b.text)
        return [self._judged(prompt, "pairwise_slow", thought(problem, (a.claim, b.claim)), verdict)]

    def _choice_ids(self, template: str) -> tuple[int, ...]:
        verdict = self._manifest.templates[template].verdict
        return verdict.choice_ids if verdict is not None else ()

    def _judged(self, prompt: list[int], template: str, rationale: str, choice: int) -> _Row:
        """A slow example: the thought, then the verdict form with its choice weighted up."""
        verdict = self._manifest.templates[template].verdict
        if verdict is None:
            raise ValueError(f"template {template} has no verdict form")
        closing = self._encoder.encode_template(verdict.close + verdict.prefix)
        return self._written(
            prompt, [*self._encoder.encode_text(rationale), *closing, choice], self._encoder.encode_text(verdict.suffix)
        )

    def _written(self, prompt: list[int], text: list[int], suffix: list[int]) -> _Row:
        """Rows of text the model is to write; where a suffix follows or the text is a verdict, its last token counts more."""
        ids = [*prompt, *text, *suffix, self._manifest.stop_ids[0]]
        weights = [0.0] * (len(prompt) - 1) + [1.0] * (len(ids) - len(prompt)) + [0.0]
        if text[-1] in (*self._choice_ids("pairwise_slow"), self._yes, self._no):
            weights[len(prompt) + len(text) - 2] = VERDICT_WEIGHT
        return ids, weights


_Row = tuple[list[int], list[float]]


def _common_prefix(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def training_manifest(tokenizer: Tokenizer) -> Manifest:
    """Resolve ``spec.json`` against the tokenizer, as the exporter does, for use before there is a bundle."""
    spec = json.loads(SPEC.read_text())
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    for template in spec["templates"].values():
        if "verdict" in template:
            template["verdict"]["choice_ids"] = [tokenizer.token_to_id(c) for c in template["verdict"]["choices"]]
    return Manifest.from_dict(
        {
            **spec,
            "format_version": 1,
            "labels": [{**label, "id": tokenizer.token_to_id(label["text"])} for label in spec["labels"]],
            "special_tokens": {t: tokenizer.token_to_id(t) for t in special},
            "stop_ids": [tokenizer.token_to_id(t) for t in spec["stop"]],
            "vocab_size": tokenizer.get_vocab_size(),
            "files": {},
        }
    )


def template_texts() -> list[str]:
    """The templates' own words, for the tokenizer to learn, with slots and control tokens taken out."""
    spec = json.loads(SPEC.read_text())
    texts = []
    for template in spec["templates"].values():
        verdict = template.get("verdict", {})
        closing = [verdict.get("prefix", "") + c + verdict.get("suffix", "") for c in verdict.get("choices", [])]
        texts += [template["text"], "".join(closing)]
    return [_plain(t) for t in texts]


def _plain(text: str) -> str:
    for token in ("<|im_start|>", "<|im_end|>", "<think>", "{prompt}", "{response}", "{response_a}", "{response_b}"):
        text = text.replace(token, " ")
    return text


def rows_of(split: str, count: int, seed: int) -> Iterator[str]:
    """JSON lines of held-out pairs."""
    return (json.dumps(pair_row(pair)) + "\n" for pair in held_out(split, count, seed))


@click.command()
@click.option("--split", type=click.Choice(("calibration", "test")), default="test", show_default=True)
@click.option("--count", default=2000, show_default=True, help="Pairs to write.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--output", type=click.File("w"), default="-")
def main(split: str, count: int, seed: int, output: Any) -> None:  # noqa: ANN401 - a click file
    """Write held-out pairs as JSONL."""
    output.writelines(rows_of(split, count, seed))


if __name__ == "__main__":
    main()
