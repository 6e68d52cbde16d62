"""Figures of an evaluation: always-fast, gated and always-slow by the benchmark's own metric, beside what costs nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.measure.benchmark_formats import Format
from fsrm_lite.measure.benchmark_metrics import METRICS, Metric, PolicyOutcome, by_subset
from fsrm_lite.measure.evaluation_records import Record
from fsrm_lite.measure.intervals import bootstrap, wilson

EMPTY_LOGIT = -1000.0
"""Stands for the score of an empty response: below any other, and finite, so that margins stay defined."""

_COIN_ROUNDS = 100


def summarize(records: Sequence[Record], form: Format, *, resamples: int = 300, seed: int = 0) -> dict[str, Any]:
    """Return the report of a run, ready for JSON.

    Args:
        records: One per item, at least one.
        form: The benchmark's format, which names the metric.
        resamples: Bootstrap resamples behind each interval; items of one group are drawn together.
        seed: Of the resampling and of the coin.
    """
    metric = METRICS[form.name]
    groups = [r.group for r in records]

    def measured(outcomes: Sequence[PolicyOutcome]) -> dict[str, Any]:
        return {
            "metrics": _intervals(metric, outcomes, groups, resamples, seed),
            "subsets": _subset_scores(metric, outcomes, groups, resamples, seed),
        }

    policies = {
        name: {**measured([view(r, form.pairwise) for r in records]), **_bill(records, name)}
        for name, view in _policies(records[0].judge).items()
    }
    return {
        "format": form.name,
        "items": len(records),
        "subsets": {
            name: len(part) for name, part in by_subset([fast_outcome(r, form.pairwise) for r in records]).items()
        },
        "policies": policies,
        "baselines": {
            "longer": measured([longer_outcome(r, form.pairwise) for r in records]),
            "coin": {"score": coin_score(records, form, metric, seed)},
        },
        "escalated": wilson(sum(any(r.escalated) for r in records), len(records)).to_dict(),
        "position_consistency": _consistency(records),
        "too_long_for_the_judge": sum(r.too_long for r in records),
        "too_long_to_be_read": sum(r.unread for r in records),
        "with_an_empty_response": sum(None in r.logits and not r.unread for r in records),
    }


def fast_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """What the fast path alone makes of an item; equal scores are a tie."""
    return _by_scores(record, pairwise, [EMPTY_LOGIT if x is None else x for x in record.logits])


def slow_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """What the judge makes of an item; where it gave no answer, the fast one stands."""
    if record.slow is None:
        return fast_outcome(record, pairwise)
    if pairwise:
        return PolicyOutcome(record.id, record.subset, record.right, record.slow.winners, record.slow.decision)
    merged = [slow if slow is not None else fast for slow, fast in zip(record.slow.logits, record.logits, strict=True)]
    return _by_scores(record, pairwise, [EMPTY_LOGIT if x is None else x for x in merged])


def gated_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """What the gate's choice between the two makes of an item, response by response where they are scored singly."""
    if pairwise:
        return slow_outcome(record, pairwise) if record.escalated[0] else fast_outcome(record, pairwise)
    if record.slow is None:
        return fast_outcome(record, pairwise)
    chosen = [
        slow if up and slow is not None else fast
        for up, slow, fast in zip(record.escalated, record.slow.logits, record.logits, strict=True)
    ]
    return _by_scores(record, pairwise, [EMPTY_LOGIT if x is None else x for x in chosen])


def longer_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """The longer answer wins; equal lengths are a tie."""
    return _by_scores(record, pairwise, [float(n) for n in record.lengths])


def coin_score(records: Sequence[Record], form: Format, metric: Metric, seed: int = 0) -> float:
    """Mean score of preferring at random; exact for pairs, where it is half of what a perfect answer scores."""
    if form.pairwise:
        # A coin never calls a tie: on an item that its annotators call one, any preference is wrong.
        best = [r.right[0] if r.right else 0 for r in records]
        perfect = [
            PolicyOutcome(r.id, r.subset, r.right, (winner,), winner) for r, winner in zip(records, best, strict=True)
        ]
        return metric(perfect)["score"] / 2
    rng = random.Random(seed)
    rounds = [
        metric([_by_scores(r, False, [rng.random() for _ in r.lengths]) for r in records])["score"]
        for _ in range(_COIN_ROUNDS)
    ]
    return sum(rounds) / len(rounds)


def is_right(record: Record, pairwise: bool) -> bool:
    """Whether the gated answer is right, for a running figure: the preferred or the best-scored response is a right one."""
    outcome = gated_outcome(record, pairwise)
    if pairwise:
        return outcome.decision is not None and outcome.decision in record.right
    return int(np.argmax(outcome.logits)) in record.right


def _policies(judge: str) -> dict[str, Callable[[Record, bool], PolicyOutcome]]:
    """The policies that records can tell about, by whom the judge was asked about."""
    views: dict[str, Callable[[Record, bool], PolicyOutcome]] = {"always_fast": fast_outcome}
    if judge != "never":
        views["gated"] = gated_outcome
    if judge == "always":
        views["always_slow"] = slow_outcome
    return views


def _by_scores(record: Record, pairwise: bool, scores: Sequence[float]) -> PolicyOutcome:
    if not pairwise:
        return PolicyOutcome(record.id, record.subset, record.right, logits=tuple(scores))
    winner = None if scores[0] == scores[1] else 0 if scores[0] > scores[1] else 1
    return PolicyOutcome(record.id, record.subset, record.right, (winner,), winner)


def _bill(records: Sequence[Record], policy: str) -> dict[str, float]:
    """Generated tokens per item and wall time in seconds."""
    tokens = seconds = 0.0
    for r in records:
        seconds += r.fast_seconds
        if r.slow is None or policy == "always_fast":
            continue
        ups = r.escalated if policy == "gated" else [True] * len(r.escalated)
        asked = sum(t for t, up in zip(r.slow.tokens, ups, strict=True) if up)
        tokens += asked
        whole = sum(r.slow.tokens)
        seconds += r.slow_seconds * (asked / whole if whole else float(any(ups)))
    return {"tokens_per_item": tokens / len(records) if records else math.nan, "seconds": seconds}


def _intervals(
    metric: Metric, outcomes: Sequence[PolicyOutcome], groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    def statistics(chosen: NDArray[np.int64]) -> dict[str, float]:
        return metric([outcomes[i] for i in chosen])

    whole = metric(outcomes)

    def complete(chosen: NDArray[np.int64]) -> dict[str, float]:
        # A resample may miss a whole section, whose figure it then leaves undefined.
        return {**dict.fromkeys(whole, math.nan), **statistics(chosen)}

    return {
        name: x.to_dict()
        for name, x in bootstrap(complete, len(outcomes), groups=groups, resamples=resamples, seed=seed).items()
    }


def _subset_scores(
    metric: Metric, outcomes: Sequence[PolicyOutcome], groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    positions: dict[str, list[int]] = {}
    for i, outcome in enumerate(outcomes):
        positions.setdefault(outcome.subset, []).append(i)
    if len(positions) < 2:
        return {}
    scores = {}
    for name, part in positions.items():
        intervals = _intervals(metric, [outcomes[i] for i in part], [groups[i] for i in part], resamples, seed)
        scores[name] = {"items": len(part), **intervals["score"]}
    return scores


def _consistency(records: Sequence[Record]) -> dict[str, float | None] | None:
    """Share of pairs on which the judge says the same in both orders; None if it never saw both."""
    both = [r.slow.winners for r in records if r.slow is not None and len(r.slow.winners) == 2]
    return wilson(sum(a == b and a is not None for a, b in both), len(both)).to_dict() if both else None
