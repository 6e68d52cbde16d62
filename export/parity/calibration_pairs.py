"""The pairs of responses on which an export is measured: the user's, or a built-in set of plain questions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.errors import ContextOverflowError, DataFormatError, InputError
from fsrm_lite.jsonl import open_lines, read_rows
from fsrm_lite.types import Prompt

MIN_PAIRS = 500
"""The tolerances are meant for at least so many pairs; fewer cannot show 99 % agreement with any certainty."""
MAX_PAIRS = 2000
"""Most pairs that are used; with more, running the checkpoint in float32 would cost more than it tells."""

MAX_ORDERED = 255
"""Most pairs whose two orders are read: as many texts as the built-in pairs have."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """What an export is measured on.

    Attributes:
        source: File name, or "built-in".
        items: Prompts, each with one response; no two items are the same.
        pairs: Positions in ``items`` of two responses to the same prompt.
    """

    source: str
    items: tuple[tuple[Prompt, str], ...]
    pairs: tuple[tuple[int, int], ...]

    def triples(self) -> list[tuple[Prompt, str, str]]:
        """Return the pairs as (prompt, first response, second response)."""
        return [(self.items[i][0], self.items[i][1], self.items[j][1]) for i, j in self.pairs]


def load_calibration(path: Path | None) -> CalibrationSet:
    """Read calibration pairs from JSONL, or make the built-in ones.

    Args:
        path: A file of rows with ``prompt`` and either ``response_a`` and ``response_b``, or ``chosen`` and
            ``rejected``, or ``responses``; None takes the built-in pairs.

    Raises:
        DataFormatError: Naming the line that is not such a row, or when there are no pairs.
    """
    if path is None:
        return _collect("built-in", _built_in())
    if not path.is_file():
        raise DataFormatError(f"there is no calibration file {path}")
    found = _collect(path.name, _read_groups(path))
    if not found.pairs:
        raise DataFormatError(f"{path} holds no pair; expected rows with prompt and response_a, response_b")
    return found


def keep_short(data: CalibrationSet, encoder: PromptEncoder) -> tuple[CalibrationSet, list[list[int]]]:
    """Drop items that do not fit the context; return the rest, and the ids of the texts that the fast path reads.

    Raises:
        DataFormatError: If nothing is left.
    """
    single = "pointwise_fast" in encoder.manifest.templates
    ids: list[list[int] | None] = []
    for prompt, response in data.items:
        try:
            # Where the model reads pairs only, a response is measured that fits beside itself.
            ids.append(
                encoder.pointwise_fast(prompt, response)
                if single
                else encoder.pairwise_fast(prompt, response, response)
            )
        except ContextOverflowError:
            ids.append(None)
    position = {old: new for new, old in enumerate(i for i, x in enumerate(ids) if x is not None)}
    pairs = tuple((position[i], position[j]) for i, j in data.pairs if i in position and j in position)
    if not pairs:
        raise DataFormatError(
            f"no calibration pair of {data.source} fits the context of {encoder.manifest.limits.context} tokens"
        )
    kept = CalibrationSet(data.source, tuple(data.items[i] for i in position), pairs)
    return kept, [x for x in ids if x is not None]


def pair_orders(data: CalibrationSet, encoder: PromptEncoder) -> list[list[int]]:
    """Return the ids of both orders of up to ``MAX_ORDERED`` pairs, for a model that reads pairs.

    The second order of each pair follows the first one. Pairs that do not fit the context are left out.

    Raises:
        DataFormatError: If nothing is left.
    """
    rows: list[list[int]] = []
    triples = data.triples()
    for prompt, first, second in triples[:: -(-len(triples) // MAX_ORDERED)]:
        with suppress(ContextOverflowError):
            rows += [encoder.pairwise_fast(prompt, first, second), encoder.pairwise_fast(prompt, second, first)]
    if not rows:
        raise DataFormatError(
            f"no calibration pair of {data.source} fits the context of {encoder.manifest.limits.context} tokens"
        )
    return rows


def _collect(source: str, groups: Iterator[tuple[Prompt, list[str]]]) -> CalibrationSet:
    """Return all pairs among the responses of each group, up to ``MAX_PAIRS``; equal items are kept once."""
    index: dict[tuple[str, str], int] = {}
    items: list[tuple[Prompt, str]] = []
    pairs: dict[tuple[int, int], None] = {}
    for prompt, responses in groups:
        positions = []
        for response in dict.fromkeys(responses):
            key = (json.dumps(prompt, sort_keys=True), response)
            if key not in index:
                index[key] = len(items)
                items.append((prompt, response))
            positions.append(index[key])
        pairs.update(dict.fromkeys(combinations(positions, 2)))
        if len(pairs) >= MAX_PAIRS:
            break
    return CalibrationSet(source, tuple(items), tuple(pairs)[:MAX_PAIRS])


def _read_groups(path: Path) -> Iterator[tuple[Prompt, list[str]]]:
    """Yield the prompt and the responses of each line of the file."""
    with open_lines(path) as lines:
        for row in read_rows(lines):
            try:
                if row.error:
                    raise DataFormatError(row.error)
                prompt_text(row.data["prompt"])
                yield row.data["prompt"], _responses(row.data)
            except InputError as error:
                raise DataFormatError(f"{path}, line {row.line}: {error}") from error
            except (ValueError, OverflowError, KeyError, TypeError) as error:
                expected = "prompt and response_a + response_b, chosen + rejected, or responses"
                raise DataFormatError(
                    f"{path}, line {row.line}: expected an object with {expected} ({error!r})"
                ) from error


def _responses(row: dict[str, Any]) -> list[str]:
    """Return the responses of a row, whichever way it names them."""
    for first, second in (("response_a", "response_b"), ("chosen", "rejected")):
        if first in row:
            responses = [row[first], row[second]]
            break
    else:
        responses = row["responses"]
    if not isinstance(responses, list) or not all(isinstance(r, str) and r.strip() for r in responses):
        raise TypeError("responses must be non-empty strings")
    return responses


_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo")
_THINGS = ("apples", "books", "coins", "stamps", "pens", "cards", "marbles", "tickets")


def _built_in() -> Iterator[tuple[Prompt, list[str]]]:
    """Yield 34 word problems, each with 6 right, wrong, evasive and unrelated answers, which make 510 pairs."""
    rng = random.Random(20260901)
    for _ in range(34):
        name, thing, start, more = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(2, 60), rng.randint(2, 30)
        total = start + more
        prompt = f"{name} has {start} {thing} and gets {more} more. How many {thing} does {name} have now?"
        yield (
            prompt,
            [
                f"{total}",
                f"{name} has {start} + {more} = {total} {thing}.",
                f"{name} has {start} + {more} = {total + rng.choice((-2, -1, 1, 2))} {thing}.",
                f"{max(1, start - more)}",
                f"I cannot say how many {thing} that is.",
                f"The capital of France is Paris; {rng.choice(_THINGS)} are not sold there.",
            ],
        )
