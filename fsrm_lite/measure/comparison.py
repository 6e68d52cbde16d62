"""Compares several systems on the same items: the figures of each, and the differences with paired intervals.

A system is a model, or the scores of one, with its policies (always fast, gated, always slow). Two systems answer the
same items, so their figures rise and fall together, and each alone has a wide interval where their difference has a
narrow one. The bootstrap therefore draws items once for all systems, and computes each difference on the same draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.errors import DataFormatError, InputError
from fsrm_lite.measure.benchmark_formats import Format
from fsrm_lite.measure.benchmark_metrics import METRICS, PolicyOutcome
from fsrm_lite.measure.evaluation_records import Record
from fsrm_lite.measure.evaluation_report import bill_of, policies_of, summarize
from fsrm_lite.measure.intervals import bootstrap


@dataclass(frozen=True, slots=True)
class System:
    """One of the systems to be compared.

    Attributes:
        name: What it is called in the report; each system has a name of its own.
        records: Its results, one per item.
        matched: What names an item in all systems, one per record: an id, or the item's place in the file.
        policies: Those to be reported, as far as the records have their outcomes.
        cost: What the judge's tokens in the records count, in the plural.
        run: What was measured; it stands in the report as it is.
        not_read: Data that were left out.
    """

    name: str
    records: Sequence[Record]
    matched: Sequence[str]
    policies: Sequence[str] = ("always_fast", "gated", "always_slow")
    cost: str = "tokens"
    run: Mapping[str, Any] = field(default_factory=dict)
    not_read: Sequence[str] = ()


def compare(systems: Sequence[System], form: Format, *, resamples: int = 300, seed: int = 0) -> dict[str, Any]:
    """Return the report of a comparison, ready for JSON.

    Only items that all systems have are compared; how many each has besides is in the report.

    Args:
        systems: At least two.
        form: The format whose metric all of them are measured by.
        resamples: Bootstrap resamples behind each interval; items of one group are drawn together.
        seed: Seed of the resampling.

    Returns:
        ``systems``, each with the report of ``summarize`` on the common items, and ``differences``: for each pair of
        systems and each policy that both have, the second system's score minus the first one's, with a paired 95 %
        interval.

    Raises:
        InputError: If there are fewer than two systems, or two have the same name.
        DataFormatError: If an item is there twice, or the systems have no item in common.
    """
    names = [s.name for s in systems]
    if len(systems) < 2 or len(set(names)) < len(names):
        raise InputError(f"got the systems {', '.join(names) or 'none'}; expected two or more, each with its own name")
    chosen = [_by_item(s) for s in systems]
    common = [item for item in chosen[0] if all(item in other for other in chosen[1:])]
    if not common:
        raise DataFormatError(
            f"{names[0]} and the others have no item in common: its first one is {next(iter(chosen[0]), None)!r}, "
            f"that of {names[1]} {next(iter(chosen[1]), None)!r}; name an --id-column that names the items alike"
        )
    records = {s.name: [found[item] for item in common] for s, found in zip(systems, chosen, strict=True)}
    entries = {
        (s.name, policy): [view(r, form.pairwise) for r in records[s.name]]
        for s in systems
        for policy, view in policies_of(records[s.name]).items()
        if policy in s.policies
    }
    groups = [r.group for r in records[names[0]]]
    scores = _paired(entries, groups, form, resamples, seed)
    return {
        "format": form.name,
        "items": len(common),
        "systems": [
            {
                "name": s.name,
                "cost": s.cost,
                "items_of_its_own": len(s.records) - len(common),
                "policies": {
                    policy: {"score": scores[name, policy].to_dict(), **bill_of(records[name], policy)}
                    for name, policy in entries
                    if name == s.name
                },
                "report": summarize(
                    records[s.name],
                    form,
                    resamples=resamples,
                    seed=seed,
                    run=s.run,
                    not_read=s.not_read,
                    cost=s.cost,
                    policies=s.policies,
                ),
            }
            for s in systems
        ],
        "differences": [
            {"policy": policy, "from": a, "to": b, **scores[a, policy, b].to_dict()}
            for a, b, policy in _pairs(names, entries)
        ],
    }


def _by_item(system: System) -> dict[str, Record]:
    """Return a system's records by what names their items."""
    found: dict[str, Record] = {}
    for name, record in zip(system.matched, system.records, strict=True):
        if name in found:
            raise DataFormatError(f"{system.name} has the item {name!r} twice; each item must be there once")
        found[name] = record
    return found


def _pairs(names: Sequence[str], entries: Mapping[tuple[str, str], Any]) -> list[tuple[str, str, str]]:
    """Return each pair of systems with each policy that both have."""
    order = list(dict.fromkeys(policy for _, policy in entries))
    return [
        (a, b, policy)
        for a, b in itertools.combinations(names, 2)
        for policy in order
        if (a, policy) in entries and (b, policy) in entries
    ]


def _paired(
    entries: Mapping[tuple[str, str], Sequence[PolicyOutcome]],
    groups: Sequence[str],
    form: Format,
    resamples: int,
    seed: int,
) -> dict[tuple[str, ...], Any]:
    """Return the score of each entry and the difference of each pair of entries, with intervals from the same draws."""
    metric = METRICS[form.name]
    pairs = _pairs(list(dict.fromkeys(name for name, _ in entries)), entries)
    keys: list[tuple[str, ...]] = [*entries, *((a, policy, b) for a, b, policy in pairs)]

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        score = {entry: metric([outcomes[i] for i in drawn])["score"] for entry, outcomes in entries.items()}
        differences = [score[b, policy] - score[a, policy] for a, b, policy in pairs]
        return dict(zip(map(repr, keys), [*score.values(), *differences], strict=True))

    found = bootstrap(statistics, len(groups), groups=groups, resamples=resamples, seed=seed)
    return dict(zip(keys, found.values(), strict=True))


def is_clear(difference: Mapping[str, Any]) -> bool:
    """Return whether the interval of a difference leaves out 0."""
    low, high = difference["low"], difference["high"]
    return low is not None and high is not None and (low > 0 or high < 0)
