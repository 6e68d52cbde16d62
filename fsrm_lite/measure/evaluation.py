"""Runs a model over a benchmark and keeps one record per item.

Every item is scored by the fast model. Then the gate says which items it would escalate, and the judge is asked about
all items ("always"), about those ("auto") or about none ("never"). A record, one line of the results file, holds all
of it. So always fast, gated and always slow can be compared on the same readings, which
``fsrm_lite.measure.evaluation_report`` does.

Records are written batch by batch, and a run that broke off can continue its results file.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fsrm_lite.checks import expect_one_of
from fsrm_lite.errors import ContextOverflowError, InputError
from fsrm_lite.files import sole_writer
from fsrm_lite.gate import FastSignals, votes_logit
from fsrm_lite.measure.benchmark_formats import Benchmark, Example, in_pairs
from fsrm_lite.measure.evaluation_records import Record, Slow, append, begin, take_over
from fsrm_lite.measure.labelled import content_key, fast_signals, pair_signals
from fsrm_lite.slow.voting import winner_alone
from fsrm_lite.types import Comparison, JudgePolicy, Route

if TYPE_CHECKING:
    from fsrm_lite.fast.path import EncodedResponse
    from fsrm_lite.scorer import FastSlowRM


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """How to run a benchmark.

    Attributes:
        judge: Which items the judge is asked about: "always" all, "auto" those that the gate escalates, "never" none.
        votes: Votes per order of a pair, or per response; None takes the model's default. A vote is one thought of the
            judge that ends in a verdict.
        seed: Seed of the judge.
        batch: Items per call, at least 1.
        limit: Take only this many items, at least 1; None takes all. They are drawn from all subsets in proportion; see
            ``sample``.
        limit_seed: Seed of that draw.
        skip_too_long: Count an item as a tie if one of its responses is too long for the model, instead of stopping.
    """

    judge: JudgePolicy = "always"
    votes: int | None = None
    seed: int = 0
    batch: int = 32
    limit: int | None = None
    limit_seed: int = 0
    skip_too_long: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown policy and numbers out of range."""
        expect_one_of(("always", "auto", "never"), "judge", self.judge)
        for name in ("batch", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")


@dataclass(frozen=True, slots=True)
class _Reading:
    """An example and what is known about it after the fast scores.

    Attributes:
        example: The item.
        signals: Fast reading per response; None for an empty response, and for all if one of them is too long. Of a
            pair that was read as a pair they differ by what the model saw; see ``pair_signals``.
        escalated: What the gate says: once for a pair, otherwise once per response.
        asked: Whether the judge is to be asked: once for a pair, otherwise once per response.
        unread: Whether a response is too long to be read.
        responses: The responses as they were read: cut where the model is to truncate, and encoded; None where there is
            nothing to read.
    """

    example: Example
    signals: tuple[FastSignals | None, ...]
    escalated: tuple[bool, ...]
    asked: tuple[bool, ...]
    unread: bool
    responses: tuple[EncodedResponse | None, ...]

    @property
    def truncated(self) -> tuple[bool, ...]:
        """Whether each response was cut; empty if none was."""
        cut = tuple(
            r is not None and r.text != text for r, text in zip(self.responses, self.example.responses, strict=True)
        )
        return cut if any(cut) else ()


def evaluate(
    rm: FastSlowRM,
    benchmark: Benchmark,
    options: EvalOptions | None = None,
    *,
    output: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run a model over a benchmark.

    Args:
        rm: The model.
        benchmark: The data.
        options: How to run it; None for the defaults.
        output: Results file (JSONL). Each batch is added to it when it is finished; None writes no file.
        resume: Continue ``output``: items in it are not run again, and a half-written last line is removed.
        identity: What else decides the contents of the records, by name, as JSON: for example the hashes of the model's
            files. A run only continues records for which all of it is equal.
        progress: Called with each record, also with those that ``output`` already holds.

    Returns:
        One record per item, in the order of the data.

    Raises:
        InputError: If ``output`` exists and ``resume`` is not set, or the model cannot read an item.
        DataFormatError: If ``output`` comes from another run or other data, is damaged elsewhere than at its end, or is
            being written by another process.
    """
    with nullcontext() if output is None else sole_writer(output):
        return _evaluate(rm, benchmark, options or EvalOptions(), output, resume, identity, progress)


def _evaluate(
    rm: FastSlowRM,
    benchmark: Benchmark,
    options: EvalOptions,
    output: Path | None,
    resume: bool,
    identity: Mapping[str, Any] | None,
    progress: Callable[[Record], None] | None,
) -> list[Record]:
    """Do what ``evaluate`` says, as the only one who writes ``output``."""
    examples = sample(benchmark.examples, options.limit, options.limit_seed)
    run = _fingerprint(benchmark, options, rm, identity)
    done: dict[str, Record] = {}
    if output is not None and output.exists() and output.stat().st_size:
        if not resume:
            raise InputError(f"{output} exists; pass --resume to continue it, or another -o")
        done = take_over(output, run, examples)
    elif output is not None:
        begin(output)
    report = progress or (lambda record: None)
    for record in done.values():
        report(record)
    todo = [x for x in examples if x.id not in done]
    for start in range(0, len(todo), options.batch):
        records = _run_batch(rm, todo[start : start + options.batch], benchmark.format.pairwise, options, run)
        if output is not None:
            append(output, records)
        for record in records:
            done[record.id] = record
            report(record)
    return [done[x.id] for x in examples]


def as_asked(rm: FastSlowRM, benchmark: Benchmark, options: EvalOptions) -> tuple[Benchmark, EvalOptions]:
    """Return a benchmark as this model can be asked about it, and the options for that.

    A model that gives no score to a single response compares the right responses with the wrong ones, pair by pair; see
    ``in_pairs``. A limit is one of the items as they were, because half an item has no result.
    """
    if benchmark.format.pairwise or rm.fast.reads_responses:
        return benchmark, options
    return drawn_in_pairs(benchmark, options)


def drawn_in_pairs(benchmark: Benchmark, options: EvalOptions) -> tuple[Benchmark, EvalOptions]:
    """Return the items that a limit leaves as pairs (see ``in_pairs``), and the options without that limit."""
    drawn = tuple(sample(benchmark.examples, options.limit, options.limit_seed))
    return in_pairs(replace(benchmark, examples=drawn)), replace(options, limit=None)


def sample(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """Draw some of the examples at random, from each subset in proportion to its size.

    Examples of one group (of one prompt) are drawn together, as far as the number allows.

    Args:
        examples: All examples.
        limit: How many to draw; None for all.
        seed: Seed of the draw.

    Returns:
        The examples drawn, in the order of the data.
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    subsets: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        subsets.setdefault(example.subset, []).append(position)
    shares = {name: limit * len(part) / len(examples) for name, part in subsets.items()}
    counts = {name: int(share) for name, share in shares.items()}
    # What rounding down left over goes to the subsets that lost most by it.
    for name in sorted(subsets, key=lambda name: counts[name] - shares[name])[: limit - sum(counts.values())]:
        counts[name] += 1
    rng = random.Random(seed)
    chosen: set[int] = set()
    for name, part in subsets.items():
        groups: dict[str, list[int]] = {}
        for position in part:
            groups.setdefault(examples[position].group, []).append(position)
        order = rng.sample(list(groups.values()), len(groups))
        chosen.update([position for group in order for position in group][: counts[name]])
    return [example for position, example in enumerate(examples) if position in chosen]


def _run_batch(
    rm: FastSlowRM, batch: Sequence[Example], pairwise: bool, options: EvalOptions, run: str
) -> list[Record]:
    """Return the records of one batch: read fast, then judged where the options say so."""
    start = perf_counter()
    readings = _read_fast(rm, batch, pairwise, options)
    middle = perf_counter()
    asked = [r for r in readings if any(r.asked)]
    able = [r for r in asked if _fits(rm, r, pairwise)]
    slow = _judge_pairs(rm, able, options) if pairwise else _judge_responses(rm, able, options)
    end = perf_counter()
    wanted, fitting = {r.example.id for r in asked}, {r.example.id for r in able}
    return [
        Record(
            run=run,
            judge=options.judge,
            id=r.example.id,
            key=content_key(r.example.prompt, r.example.responses),
            subset=r.example.subset,
            group=r.example.group,
            right=r.example.right,
            lengths=tuple(len(text) for text in r.example.responses),
            logits=tuple(s.logit if s else None for s in r.signals),
            distribution_confidences=tuple(s.distribution_confidence if s else 0.0 for s in r.signals),
            label_masses=tuple(s.label_mass if s else 0.0 for s in r.signals),
            escalated=r.escalated,
            slow=slow.get(r.example.id),
            unread=r.unread,
            too_long=r.example.id in wanted - fitting,
            truncated=r.truncated,
            asked=r.example.id in wanted,
            fast_seconds=(middle - start) / len(batch),
            slow_seconds=(end - middle) / len(asked) if r.example.id in wanted else 0.0,
        )
        for r in readings
    ]


def _read_fast(rm: FastSlowRM, batch: Sequence[Example], pairwise: bool, options: EvalOptions) -> list[_Reading]:
    """Read every response of the batch that is not empty, in one call, and return one reading per example.

    A model that reads pairs reads the examples of a pairwise benchmark as pairs, as ``compare`` does. What is too long
    is found before, when the texts become token ids.
    """
    encoded = [_encoded(rm, example, options, pairwise) for example in batch]
    read = (_pairs_read if pairwise and rm.fast.reads_pairs else _responses_read)(rm, batch, encoded)
    readings = []
    for example, responses, signals in zip(batch, encoded, read, strict=True):
        unread = any(r is None and text.strip() for r, text in zip(responses, example.responses, strict=True))
        escalated = _escalations(rm, signals, pairwise)
        # The judge has nothing to decide where a response is empty, or both are the same.
        able = (
            [None not in signals and example.responses[0] != example.responses[1]]
            if pairwise
            else [s is not None for s in signals]
        )
        wished = [options.judge == "always" or (options.judge == "auto" and up) for up in escalated]
        asked = tuple(a and w for a, w in zip(able, wished, strict=True))
        readings.append(_Reading(example, signals, escalated, asked, unread, responses))
    return readings


def _responses_read(
    rm: FastSlowRM, batch: Sequence[Example], encoded: Sequence[tuple[EncodedResponse | None, ...]]
) -> list[tuple[FastSignals | None, ...]]:
    """Return the fast reading of each response, None where there is nothing to read."""
    texts = [
        (x.prompt, response)
        for x, responses in zip(batch, encoded, strict=True)
        for response in responses
        if response is not None
    ]
    read = iter(rm.score_many(texts, judge="never") if texts else [])
    return [tuple(fast_signals(next(read)) if r is not None else None for r in responses) for responses in encoded]


def _pairs_read(
    rm: FastSlowRM, batch: Sequence[Example], encoded: Sequence[tuple[EncodedResponse | None, ...]]
) -> list[tuple[FastSignals | None, ...]]:
    """Return the fast reading of each pair. Beside an empty response the other one wins without being read."""
    pairs = [(x.prompt, *both) for x, both in zip(batch, encoded, strict=True) if None not in both]
    read = iter(rm.compare_many(pairs, judge="never") if pairs else [])  # type: ignore[arg-type]
    return [
        tuple(None if r is None else FastSignals(0.0, 0.5, None, None) for r in both)
        if None in both
        else pair_signals(next(read))
        for both in encoded
    ]


def _encoded(
    rm: FastSlowRM, example: Example, options: EvalOptions, pairwise: bool
) -> tuple[EncodedResponse | None, ...]:
    """Return the responses as token ids: None for an empty one, and for all if one is too long and may be skipped."""
    try:
        found = tuple(rm.encode(example.prompt, text) if text.strip() else None for text in example.responses)
        if pairwise and rm.fast.reads_pairs and None not in found:
            rm.fast.check_pair(*found)  # type: ignore[arg-type]
        return found
    except ContextOverflowError as error:
        if options.skip_too_long:
            return (None,) * len(example.responses)
        raise ContextOverflowError(
            f"{example.id}: {error}. With --truncate (truncate=True and skip_too_long=True) responses are cut, and an "
            "item whose prompt alone is too long counts as a tie"
        ) from error
    except InputError as error:
        raise type(error)(f"{example.id}: {error}") from error


def _escalations(rm: FastSlowRM, signals: tuple[FastSignals | None, ...], pairwise: bool) -> tuple[bool, ...]:
    """Return whether the gate escalates: once for a pair, otherwise for each response."""
    if not pairwise:
        return tuple(s is not None and rm.gate.single(s).escalate for s in signals)
    first, second = signals
    return (first is not None and second is not None and rm.gate.pair(first, second).escalate,)


def _fits(rm: FastSlowRM, reading: _Reading, pairwise: bool) -> bool:
    """Return whether the judge has room for everything it is to be asked about an example."""
    texts = [r.text for r in reading.responses if r is not None]
    if pairwise:
        return rm.judge.has_room(reading.example.prompt, *texts)
    asked = [r.text for r, wanted in zip(reading.responses, reading.asked, strict=True) if wanted and r is not None]
    return all(rm.judge.has_room(reading.example.prompt, text) for text in asked)


def _judge_pairs(rm: FastSlowRM, readings: Sequence[_Reading], options: EvalOptions) -> dict[str, Slow | None]:
    """Ask the judge about pairs.

    Returns:
        Its answers by the examples' ids; None where it gave none.
    """
    if not readings:
        return {}
    pairs = [(r.example.prompt, *_whole(r)) for r in readings]
    answers = rm.compare_many(pairs, judge="always", votes=options.votes, seed=options.seed)  # type: ignore[arg-type]
    return {r.example.id: _slow_pair(c) for r, c in zip(readings, answers, strict=True)}


def _judge_responses(rm: FastSlowRM, readings: Sequence[_Reading], options: EvalOptions) -> dict[str, Slow | None]:
    """Ask the judge about responses.

    Returns:
        Its answers by the examples' ids; None where it gave none.
    """
    asked = [(r, i) for r in readings for i, wanted in enumerate(r.asked) if wanted]
    if not asked:
        return {}
    texts = [(r.example.prompt, response) for r, i in asked if (response := r.responses[i]) is not None]
    scores = rm.score_many(texts, judge="always", votes=options.votes, seed=options.seed)
    # Where a deadline passed or the judge failed, what came back is a fast score: no answer of the judge.
    answers = {(r.example.id, i): s for (r, i), s in zip(asked, scores, strict=True) if s.route is Route.SLOW}
    judged: dict[str, Slow | None] = {}
    for r in readings:
        known = [answers.get((r.example.id, i)) for i in range(len(r.signals))]
        slow = Slow(
            logits=tuple(s.logit if s else None for s in known),
            tokens=tuple(s.tokens_generated if s else 0 for s in known),
        )
        judged[r.example.id] = slow if any(known) else None
    return judged


def _whole(reading: _Reading) -> list[EncodedResponse]:
    """Return the responses of an example of which none is empty."""
    return [r for r in reading.responses if r is not None]


def _slow_pair(comparison: Comparison) -> Slow | None:
    """Return what the votes on a pair say: in each order, and in both together.

    In each order the majority of the votes decides; where the votes are even, their mean probability does.
    """
    if comparison.route is not Route.SLOW:
        return None
    winners: list[int | None] = []
    for swapped in (False, True):
        votes = [v for v in comparison.votes if v.swapped == swapped]
        if votes:
            lean = sum(1.0 if v.winner == 0 else -1.0 for v in votes) or sum(v.p_first - 0.5 for v in votes)
            winners.append(0 if lean > 0 else 1 if lean < 0 else None)
    return Slow(
        tuple(winners) or (comparison.winner,),
        comparison.winner,
        (),
        (comparison.tokens_generated,),
        votes_logit([v.p_first for v in comparison.votes]) if comparison.votes else None,
        winner_alone(comparison.votes, comparison.logit) if comparison.combined else None,
    )


def _fingerprint(benchmark: Benchmark, options: EvalOptions, rm: FastSlowRM, identity: Mapping[str, Any] | None) -> str:
    """Return a short name of all that decides a record. Which items are drawn (``limit``) is no part of it."""
    ways = [options.judge, options.votes, options.seed, options.batch, options.skip_too_long]
    parts = [benchmark.format.name, ways, rm.gate.spec.to_dict(), identity]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
