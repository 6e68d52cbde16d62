"""Makes training batches and held-out pairs from a seed.

Batch number ``i`` of a seed is the same on every machine and in every process. So a training run that was interrupted
sees exactly the data that it would have seen without the interruption. ``python -m fsrm_lite.models.data`` writes
held-out pairs as JSONL.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.models.problems import Problem, make_problem
from fsrm_lite.models.responses import Response, right_response, right_texts, thought, wrong_response

SPEC = Path(__file__).with_name("spec.json")
ROW_TOKENS = 320
"""Length of a packed row, in tokens. A longer example is drawn again (well under one in a thousand is longer)."""

VERDICT_WEIGHT = 8.0
"""Loss weight of the verdict token. At weight 1 a small model learns the thought and leaves the verdict to chance."""

RESPONSE_WEIGHT = 0.3
"""Loss weight of the tokens of a correct response in the fast prompt.

Learning to write correct responses, the model notices where a response differs from what it expected, and can use that
for the first token, which is the score.
"""

UNDECIDED_SHARE = 0.08
"""Share of the judge's pairs in which both responses are right or both are wrong; their verdict is chosen at random."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A problem with a chosen (right) and a rejected (wrong) response."""

    problem: Problem
    chosen: Response
    rejected: Response


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples packed into R rows of L tokens. The shape is always the same, so that the model is compiled only once.

    Attributes:
        ids: Token ids, int64, shape [R, L].
        segments: Which example a token belongs to, int64, shape [R, L]; 0 for padding.
        positions: Position of a token in its example, int64, shape [R, L].
        weights: Loss weight of predicting ``ids[:, t + 1]`` at position t, float32, shape [R, L].
        label_at: Row and column of each token that is followed by a label of the fast prompt, int64, shape [F, 2].
            Entries 2k and 2k + 1 belong to the chosen and the rejected response of one problem.
        labels: The ids of these labels, int64, shape [F].
        on_path: Process labels, int8, shape [R, L]: for a token of a response in the fast prompt ``ON_PATH`` or
            ``OFF_PATH``, 0 for all others.
    """

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    label_at: NDArray[np.int64]
    labels: NDArray[np.int64]
    on_path: NDArray[np.int8]


class Example(NamedTuple):
    """One example.

    Attributes:
        ids: Its token ids.
        weights: For each token the loss weight of predicting the one behind it.
        on_path: For each token its process label; empty where no token has one.
    """

    ids: list[int]
    weights: list[float]
    on_path: Sequence[int] = ()


ON_PATH, OFF_PATH = 1, -1
"""Process labels. Up to this token a response is the beginning of a known right one, or it no longer is."""

MIX = ("fast", "fast", "slow_pair", "fast", "solve", "fast", "slow_pair", "slow_point")
"""The kinds of examples, in the order in which they are drawn until a batch is full.

Half of the draws are "fast", which gives two examples: the right and the wrong response to a problem.
"""


def held_out(split: str, count: int, seed: int = 0) -> list[Pair]:
    """Return pairs whose problems all differ in structure.

    Args:
        split: "train", "calibration" or "test"; no structure is in two of them.
        count: Number of pairs. The first n of a larger set are the set of n.
        seed: Seed of the drawing.
    """
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
    """Return a pair as a row that ``fsrm-lite compare`` and ``fsrm-lite eval`` read, with how hard it is."""
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


class Packer:
    """Packs examples into the rows of one batch."""

    def __init__(self, rows: int) -> None:
        """Begin an empty batch of ``rows`` rows."""
        shape = (rows, ROW_TOKENS)
        self._ids, self._segments, self._positions = (np.zeros(shape, np.int64) for _ in range(3))
        self._weights = np.zeros(shape, np.float32)
        self._on_path = np.zeros(shape, np.int8)
        self._used = [0] * rows
        self._label_at: list[tuple[int, int]] = []

    def add(self, examples: Sequence[Example], *, labelled: bool = False) -> bool:
        """Put each example into the first row with room for it.

        Args:
            examples: Examples that belong together.
            labelled: Their last token is a label of the fast prompt.

        Returns:
            False if one of them fits nowhere; then none is added.
        """
        used = self._used.copy()
        places = []
        for example in examples:
            length = len(example.ids)
            row = next((r for r, n in enumerate(used) if n + length <= ROW_TOKENS), None)
            if row is None:
                return False
            places.append((row, used[row], example))
            used[row] += length
        self._used = used
        for row, start, (ids, weights, on_path) in places:
            span = slice(start, start + len(ids))
            self._ids[row, span], self._weights[row, span] = ids, weights
            self._segments[row, span], self._positions[row, span] = start + 1, np.arange(len(ids))
            self._on_path[row, start : start + len(on_path)] = on_path
            self._label_at += [(row, start + len(ids) - 2)] if labelled else []
        return True

    def batch(self) -> Batch:
        """Return the batch."""
        label_at = np.array(self._label_at, dtype=np.int64).reshape(-1, 2)
        labels = self._ids[label_at[:, 0], label_at[:, 1] + 1]
        return Batch(self._ids, self._segments, self._positions, self._weights, label_at, labels, self._on_path)


class BatchMaker:
    """Packs examples into batches. ``batch(i)`` depends only on the seed and on i."""

    mix: tuple[str, ...] = MIX
    """The kinds of examples, in the order in which they are drawn."""

    def __init__(self, tokenizer_path: Path, manifest: Manifest, seed: int, rows: int) -> None:
        """Keep the settings.

        The tokenizer is loaded when it is first used, so that the object can be sent to worker processes.

        Args:
            tokenizer_path: The tokenizer's file.
            manifest: Labels and templates of the model.
            seed: Seed of the examples.
            rows: Rows per batch.
        """
        self._tokenizer_path = tokenizer_path
        self._manifest = manifest
        self._seed = seed
        self._rows = rows
        self._yes, self._no = (label.id for label in manifest.labels)

    @cached_property
    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(self._tokenizer_path, self._manifest)

    def batch(self, index: int) -> Batch:
        """Return a batch: examples drawn in the order of ``MIX`` until one no longer fits."""
        rng = random.Random(f"train-{self._seed}-{index}")
        packer = Packer(self._rows)
        kinds = cycle(self.mix)
        kind = next(kinds)
        while packer.add(self._examples(kind, rng), labelled=kind == "fast"):
            kind = next(kinds)
        return packer.batch()

    def _examples(self, kind: str, rng: random.Random) -> list[Example]:
        """Return the next examples of a kind, drawn again while one of them is too long for a row."""
        make = {
            "fast": self._fast_pair,
            "solve": self._solve,
            "slow_pair": self._slow_pair,
            "slow_point": self._slow_point,
        }[kind]
        while True:
            examples = make(rng)
            if max(len(example.ids) for example in examples) <= ROW_TOKENS:
                return examples

    def _fast_pair(self, rng: random.Random) -> list[Example]:
        problem = make_problem(rng, "train")
        return [
            self._fast(problem, response) for response in (right_response(problem, rng), wrong_response(problem, rng))
        ]

    def _fast(self, problem: Problem, response: Response) -> Example:
        """Return an example of the fast prompt, its last token the label."""
        ids = self._encoder.pointwise_fast(problem.question, response.text)
        # Which tokens are the response's? Those that differ when another response stands in the same prompt.
        other = self._encoder.pointwise_fast(problem.question, "?")
        start = _common_prefix(ids, other)
        stop = len(ids) - _common_prefix(ids[::-1], other[::-1])
        weights = [0.0] * len(ids)
        agreed = stop  # up to here the response agrees with one that is right
        if response.correct:
            weights[start - 1 : stop - 1] = [RESPONSE_WEIGHT] * (stop - start)
        else:
            known = (self._encoder.pointwise_fast(problem.question, text) for text in right_texts(problem))
            agreed = max(start, min(stop, max(_common_prefix(ids, prompt) for prompt in known)))
        on_path = (
            [0] * start + [ON_PATH] * (agreed - start) + [OFF_PATH] * (stop - agreed) + [0] * (len(ids) + 1 - stop)
        )
        return Example([*ids, self._yes if response.correct else self._no], [*weights, 0.0], on_path)

    def _solve(self, rng: random.Random) -> list[Example]:
        problem = make_problem(rng, "train")
        text = right_response(problem, rng, rng.choice(("terse", "worked"))).text
        return [self._written(self._encoder.solve(problem.question), self._encoder.encode_text(text), [])]

    def _slow_point(self, rng: random.Random) -> list[Example]:
        problem = make_problem(rng, "train")
        response = (right_response if rng.random() < 0.5 else wrong_response)(problem, rng)
        verdict = self._yes if response.correct else self._no
        prompt = self._encoder.pointwise_slow(problem.question, response.text)
        return [self._judged(prompt, "pointwise_slow", thought(problem, (response.claim,)), verdict)]

    def _slow_pair(self, rng: random.Random) -> list[Example]:
        """Return an example of judging a pair; sometimes both responses are right, or both wrong."""
        problem = make_problem(rng, "train")
        first_right = rng.random() < 0.5
        rights = (first_right, not first_right)
        if rng.random() < UNDECIDED_SHARE:
            rights = (rights[0], rights[0])
        a, b = ((right_response if right else wrong_response)(problem, rng) for right in rights)
        return [self._judged_pair(problem, a, b, first_right)]

    def _judged_pair(self, problem: Problem, a: Response, b: Response, first_wins: bool) -> Example:
        verdict = self._choice_ids("pairwise_slow")[0 if first_wins else 1]
        prompt = self._encoder.pairwise_slow(problem.question, a.text, b.text)
        return self._judged(prompt, "pairwise_slow", thought(problem, (a.claim, b.claim)), verdict)

    def _choice_ids(self, template: str) -> tuple[int, ...]:
        verdict = self._manifest.templates[template].verdict
        return verdict.choice_ids if verdict is not None else ()

    def _judged(self, prompt: list[int], template: str, rationale: str, choice: int) -> Example:
        """Return an example for the judge: the thought, then the verdict, whose token has more weight."""
        verdict = self._manifest.templates[template].verdict
        if verdict is None:
            raise ValueError(f"template {template} has no verdict form")
        closing = self._encoder.encode_template(verdict.close + verdict.prefix)
        return self._written(
            prompt,
            [*self._encoder.encode_text(rationale), *closing, choice],
            self._encoder.encode_text(verdict.suffix),
            last_weight=VERDICT_WEIGHT,
        )

    def _written(self, prompt: list[int], text: list[int], suffix: list[int], last_weight: float = 1.0) -> Example:
        """Return an example of a text that the model is to write after a prompt, and a suffix behind it.

        Args:
            prompt: Token ids of the prompt.
            text: Token ids of the text.
            suffix: Token ids behind it.
            last_weight: Loss weight of the text's last token, which may be a verdict.
        """
        ids = [*prompt, *text, *suffix, self._manifest.stop_ids[0]]
        weights = [0.0] * (len(prompt) - 1) + [1.0] * (len(ids) - len(prompt)) + [0.0]
        weights[len(prompt) + len(text) - 2] = last_weight
        return Example(ids, weights)


def _common_prefix(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def training_manifest(tokenizer: Tokenizer) -> Manifest:
    """Return the manifest that the exporter will make of ``spec.json``, for use before there is a bundle.

    Args:
        tokenizer: Gives the ids of labels, verdicts and control tokens.
    """
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
    """Return the text of the prompt templates without slots and control tokens, for the tokenizer to learn."""
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
    """Return held-out pairs as lines of JSON."""
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
