"""The figures of an evaluation: each policy by the benchmark's own metric, and baselines that need no model.

A policy is a way to use the model: always fast, gated, or always slow. The baselines are to prefer the longer response,
and to toss a coin.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.measure.benchmark_formats import Format
from fsrm_lite.measure.benchmark_metrics import METRICS, Metric, PolicyOutcome, by_subset
from fsrm_lite.measure.calibration_report import without_nan
from fsrm_lite.measure.evaluation_records import Record
from fsrm_lite.measure.intervals import bootstrap, wilson

LOW_LABEL_MASS = 0.5
"""Below it, the labels are not what the model was most likely to write."""

OFTEN_LOW = 0.1
"""Share of responses with a low label mass above which a warning says so."""

FEW_ANSWERS = 0.9
"""Share of answers among the items that the judge was asked about, below which its figures are not its own."""

NOTEWORTHY_LOSS = 0.1
"""Share of items cut, too long or empty above which a warning says so."""

EMPTY_LOGIT = -1000.0
"""Stands for the score logit of an empty response: below any other, but finite, so that differences are defined."""

_COIN_ROUNDS = 100


def summarize(
    records: Sequence[Record],
    form: Format,
    *,
    resamples: int = 300,
    seed: int = 0,
    run: Mapping[str, Any] | None = None,
    not_read: Sequence[str] = (),
    cost: str = "tokens",
    policies: Sequence[str] = ("always_fast", "gated", "always_slow"),
) -> dict[str, Any]:
    """Return the report of a run, ready for JSON.

    Args:
        records: One per item, at least one.
        form: The benchmark's format, which determines the metric.
        resamples: Bootstrap resamples behind each interval; items of one group are drawn together.
        seed: Seed of the resampling and of the coin.
        run: What was measured: bundle, version, data and options; it stands in the report as it is.
        not_read: Files of the data that were left out (``Benchmark.not_read``).
        policies: Those to be reported, as far as the records have their outcomes.
        cost: What the judge's tokens in the records count, in the plural.

    Returns:
        What was measured; numbers of items, and how many were cut, too long or had an empty response; warnings, each
        one sentence; the figures of each policy and baseline with 95 % intervals, the share of items escalated, and how
        often the judge says the same in both orders.
    """
    metric = METRICS[form.name]
    groups = [r.group for r in records]

    def measured(outcomes: Sequence[PolicyOutcome]) -> dict[str, Any]:
        return {
            "metrics": _intervals(metric, outcomes, groups, resamples, seed),
            "subsets": _subset_scores(metric, outcomes, groups, resamples, seed),
        }

    found = {
        name: {**measured([view(r, form.pairwise) for r in records]), **bill_of(records, name)}
        for name, view in policies_of(records).items()
        if name in policies
    }
    report: dict[str, Any] = {
        "run": dict(run or {}),
        "format": form.name,
        "items": len(records),
        "files_not_read": list(not_read),
        "with_a_cut_response": sum(any(r.truncated) for r in records),
        "too_long_to_be_read": sum(r.unread for r in records),
        "with_an_empty_response": sum(None in r.logits and not r.unread for r in records),
        "without_a_fast_preference": (
            sum(_has_no_preference(r, form.pairwise) for r in records) if "always_fast" in found else 0
        ),
        "judge": {"asked": sum(map(was_asked, records)), "answered": sum(r.slow is not None for r in records)},
        "too_long_for_the_judge": sum(r.too_long for r in records),
        "label_mass": _label_mass(records),
        "cost": cost,
        "subsets": {
            name: len(part) for name, part in by_subset([fast_outcome(r, form.pairwise) for r in records]).items()
        },
        "policies": found,
        "baselines": {
            # Scores that came from a file come without the responses' lengths.
            **(
                {"longer": measured([longer_outcome(r, form.pairwise) for r in records])}
                if any(any(r.lengths) for r in records)
                else {}
            ),
            "coin": {"score": coin_score(records, form, metric, seed)},
        },
        "escalated": wilson(sum(any(r.escalated) for r in records), len(records)).to_dict(),
        "position_consistency": _consistency(records),
        "seconds": sum(r.fast_seconds + r.slow_seconds for r in records),
    }
    report["warnings"] = warnings_of(report)
    finite: dict[str, Any] = without_nan(report)
    return finite


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """Return what keeps the figures of a report from meaning what they seem to say, each one sentence.

    Args:
        report: All other parts of the report.
    """
    notes = []
    mass, items = report["label_mass"], report["items"]
    if mass is not None and mass["share_low"] > OFTEN_LOW:
        notes.append(
            f"the label mass is low: below {LOW_LABEL_MASS:g} on {100 * mass['share_low']:.0f} % of the responses "
            f"({mass['median']:.2g} at the median). There the model was about to write something else than a label, "
            "and its score says little; either the data are not of its kind, or its template is not the one it was "
            "trained with"
        )
    rivals = {"a coin": report["baselines"]["coin"]["score"]}
    if "longer" in report["baselines"]:
        rivals["preferring the longer response"] = report["baselines"]["longer"]["metrics"]["score"]["value"]
    for policy, found in report["policies"].items():
        score, name = found["metrics"]["score"], policy.replace("_", " ")
        for rival, value in rivals.items():
            if score["value"] < value:
                notes.append(
                    f"{name} is worse than {rival} ({100 * score['value']:.1f} % against {100 * value:.1f} %): "
                    "on these data the model's figures mean nothing"
                )
            elif score["low"] is not None and score["low"] <= value:
                notes.append(
                    f"{name} cannot be told from {rival}: {100 * value:.1f} % lies within its interval or above it"
                )
    asked, answered = report["judge"]["asked"], report["judge"]["answered"]
    if answered < FEW_ANSWERS * asked:
        notes.append(
            f"the judge answered {answered} of the {asked} items it was asked about "
            f"({report['too_long_for_the_judge']} were too long for it); on the others the figures of gated and always "
            "slow are those of the fast path"
        )
    for key, what in (
        ("with_a_cut_response", "had a response that was cut at its end"),
        ("too_long_to_be_read", "were too long to be read and count as ties"),
        ("with_an_empty_response", "had an empty response, which loses without being read"),
        ("without_a_fast_preference", "had equal fast scores, or orders that disagree, and count as ties"),
    ):
        if report[key] > NOTEWORTHY_LOSS * items:
            notes.append(f"{report[key]} of {items} items ({100 * report[key] / items:.0f} %) {what}")
    return notes


def was_asked(record: Record) -> bool:
    """Return whether the judge was to be asked about an item. Records of before do not say so where it gave nothing."""
    return record.asked or record.too_long or record.slow is not None


def fast_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """Return what the fast scores decide on an item.

    Equal scores are a tie, and so is a pair that was read as a pair and whose two orders prefer different responses:
    what changes with the order is no preference. ``FastSlowRM.compare``, which always answers, then goes by the mean
    margin of both orders.
    """
    return _by_scores(record, pairwise, [EMPTY_LOGIT if x is None else x for x in record.logits])


def _has_no_preference(record: Record, pairwise: bool) -> bool:
    """Return whether a pair was read, and its fast reading prefers neither response."""
    return pairwise and None not in record.logits and fast_outcome(record, pairwise).decision is None


def slow_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """Return what the judge decides on an item; where it gave no answer, what the fast scores decide."""
    if record.slow is None:
        return fast_outcome(record, pairwise)
    if pairwise:
        return PolicyOutcome(record.id, record.subset, record.right, record.slow.winners, record.slow.decision)
    merged = [slow if slow is not None else fast for slow, fast in zip(record.slow.logits, record.logits, strict=True)]
    return _by_scores(record, pairwise, [EMPTY_LOGIT if x is None else x for x in merged])


def gated_outcome(record: Record, pairwise: bool) -> PolicyOutcome:
    """Return what the gated model decides on an item: the judge's answer where the gate escalates, else the fast one.

    Where responses are scored one by one, the gate decides about each response.
    """
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
    """Return what preferring the longer response decides on an item; equal lengths are a tie."""
    return _by_scores(record, pairwise, [float(n) for n in record.lengths])


def coin_score(records: Sequence[Record], form: Format, metric: Metric, seed: int = 0) -> float:
    """Return the mean score of choosing at random.

    For pairs it is exact: half of what a perfect answer scores. Otherwise it is the mean of 100 random rounds.
    """
    if form.pairwise:
        # A coin never calls a tie, so on an item that its annotators call a tie it is always wrong.
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
    """Return whether the gated model prefers, or scores best, a right response. A run shows this figure as it goes."""
    outcome = gated_outcome(record, pairwise)
    if pairwise:
        return outcome.decision is not None and outcome.decision in record.right
    return int(np.argmax(outcome.logits)) in record.right


def policies_of(records: Sequence[Record]) -> dict[str, Callable[[Record, bool], PolicyOutcome]]:
    """Return the policies whose outcomes the records of a run hold, by name; from a record to its outcome."""
    judge = records[0].judge
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


def _label_mass(records: Sequence[Record]) -> dict[str, float] | None:
    """Return the median label mass of the responses that were read, and the share of low ones; None without any."""
    read = [(m, logit) for r in records for m, logit in zip(r.label_masses, r.logits, strict=True)]
    masses = [m for m, logit in read if m is not None and logit is not None]
    if not masses:
        return None
    low = sum(m < LOW_LABEL_MASS for m in masses) / len(masses)
    return {"median": float(np.median(masses)), "share_low": low}


def bill_of(records: Sequence[Record], policy: str) -> dict[str, float]:
    """Return a policy's generated tokens per item, and its wall time over all items in seconds.

    The time is all of it: also what the judge cost where it gave no answer.
    """
    tokens = seconds = 0.0
    for r in records:
        seconds += r.fast_seconds
        if policy == "always_fast":
            continue
        ups = r.escalated if policy == "gated" else [True] * len(r.escalated)
        if r.slow is None:
            seconds += r.slow_seconds * any(ups)
            continue
        asked = sum(t for t, up in zip(r.slow.tokens, ups, strict=True) if up)
        tokens += asked
        whole = sum(r.slow.tokens)
        seconds += r.slow_seconds * (asked / whole if whole else float(any(ups)))
    return {"tokens_per_item": tokens / len(records) if records else math.nan, "seconds": seconds}


def _intervals(
    metric: Metric, outcomes: Sequence[PolicyOutcome], groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Return each figure of a metric with its bootstrap interval, ready for JSON."""

    def statistics(chosen: NDArray[np.int64]) -> dict[str, float]:
        return metric([outcomes[i] for i in chosen])

    whole = metric(outcomes)

    def complete(chosen: NDArray[np.int64]) -> dict[str, float]:
        # A resample may contain no item of a section; the figure of that section is undefined in it.
        return {**dict.fromkeys(whole, math.nan), **statistics(chosen)}

    return {
        name: x.to_dict()
        for name, x in bootstrap(complete, len(outcomes), groups=groups, resamples=resamples, seed=seed).items()
    }


def _subset_scores(
    metric: Metric, outcomes: Sequence[PolicyOutcome], groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Return each subset's number of items and its score with an interval; empty if there is only one subset."""
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
    """Return the share of pairs on which the judge prefers the same response in both orders.

    Only pairs that it saw in both orders count; None if there are none.
    """
    both = [r.slow.winners for r in records if r.slow is not None and len(r.slow.winners) == 2]
    return wilson(sum(a == b and a is not None for a, b in both), len(both)).to_dict() if both else None
