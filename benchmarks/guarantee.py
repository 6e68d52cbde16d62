"""Checks the guarantee of the gate: calibrates it 1,000 times and counts how often the true risk exceeds the target.

    python -m benchmarks.guarantee                          # synthetic populations
    python -m benchmarks.guarantee --items recorded.jsonl   # and the real scores that `calibrate --record` wrote
    python -m benchmarks.guarantee --lists [recorded.jsonl] # the gate for the best of N: a synthetic population, and
                                                            # the real lists that `calibrate --record` wrote

The *gate* decides which items the fast path may answer alone; the *risk* is the error rate among those accepted items.
Calibration chooses thresholds such that, with a given confidence, the risk is at most the target.

Each calibration set is drawn from a population that is known in full. So the risk at the chosen thresholds is exact,
and not an estimate with noise of its own. Real scores serve as a population too: the sets are drawn from them with
replacement.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from fsrm_lite.gate import FastSignals, sigmoid
from fsrm_lite.measure.intervals import critical_errors, log_binomial_cdf
from fsrm_lite.measure.labelled import LabelledItem, Sample
from fsrm_lite.measure.labelled_lists import LabelledList, ListSample
from fsrm_lite.measure.list_calibration import choose, fit_shares, sample_of
from fsrm_lite.measure.risk_control import PATH_NAMES, TUNING_SHARE, control_risk
from fsrm_lite.measure.tradeoff import escalations

SPLITS = 1000
SIZES = (1000, 4000)
RISK = 0.10
ITEM_RISK = 0.02
"""Target for recorded items. It must lie below their error rate: a higher one asks nothing of the gate."""
CONFIDENCE = 0.90
POPULATION = 50_000


def population(kind: str, rng: np.random.Generator, size: int = POPULATION) -> Sample:
    """Return scores of a known character.

    Args:
        kind: "calibrated" (the confidence is the chance to be right), "overconfident" (it promises too much),
            "bumpy" (the risk does not grow steadily as thresholds loosen), or "infeasible" (the confidence says nothing
            about who is right, and the risk of accepting everything is three times the target).
        rng: Source of randomness.
        size: Number of items.
    """
    logit = rng.normal(0.0, 2.5, size)
    right = {
        "calibrated": 1 / (1 + np.exp(-np.abs(logit))),
        "overconfident": 1 / (1 + np.exp(-0.6 * np.abs(logit))),
        "bumpy": np.where(np.abs(logit) > 4, 0.93, np.where(np.abs(logit) > 2, 0.97, 0.75)),
        "infeasible": np.full(size, 1 - 3 * RISK),
    }[kind]
    correct = rng.random(size) < right
    distribution = np.clip(np.tanh(np.abs(logit) / 2) + rng.normal(0, 0.2, size), 0, 1)
    return Sample(
        logit,
        distribution,
        np.where(correct, 1.0, -1.0) * np.abs(logit),
        correct,
        None,
        None,
        np.arange(size).astype(str),
    )


def oracle_coverage(sample: Sample, risk: float) -> float:
    """Return the largest share of items that any one threshold can accept at a true risk of at most ``risk``.

    The threshold is one on the intuition confidence, which says how decided a score is.
    """
    wrong = ~sample.fast_correct[np.argsort(-np.abs(sample.logit), kind="stable")]
    accepted = np.arange(1, len(wrong) + 1)
    good = np.flatnonzero(np.cumsum(wrong) <= risk * accepted)
    return float((good[-1] + 1) / len(wrong)) if len(good) else 0.0


def best_fixed_coverage(sample: Sample, risk: float, items: int) -> float:
    """Return the most coverage that one test can give on average, if it is told beforehand where to test.

    All items are used for the test, and it is made at the share of accepted items that is best for this population. No
    calibration knows that share; so this shows how much the number of items allows, whatever the method of choosing.
    """
    wrong = np.cumsum(~sample.fast_correct[np.argsort(-np.abs(sample.logit), kind="stable")])
    allowed = critical_errors(items, risk, 1 - CONFIDENCE)
    best = 0.0
    for coverage in np.arange(1, 101) / 100:
        kept, accepted = round(coverage * len(wrong)), round(coverage * items)
        if allowed[accepted] >= 0:
            passes = np.exp(log_binomial_cdf(int(allowed[accepted]), accepted, float(wrong[kept - 1] / kept)))
            best = max(best, float(coverage * passes))
    return best


def uncorrected_coverage(sample: Sample, risk: float, items: int, splits: int, seed: int = 0) -> float:
    """Return the mean coverage of the loosest of 100 thresholds whose own test passes, whatever the stricter ones say.

    All items are used for every test, and nothing is paid for trying 100 of them, so this proves nothing. But the exact
    binomial test is the most powerful one of a single threshold's risk, so a method that proves the threshold it takes
    cannot be expected to reach more.
    """
    rng, allowed = np.random.default_rng(seed), critical_errors(items, risk, 1 - CONFIDENCE)
    accepted = np.arange(1, 101) * items // 100
    found = []
    for _ in range(splits):
        drawn = rng.integers(0, len(sample), items)
        order = np.argsort(-np.abs(sample.logit[drawn]), kind="stable")
        wrong = np.cumsum(~sample.fast_correct[drawn][order])[accepted - 1]
        passed = np.flatnonzero(wrong <= allowed[accepted])
        found.append(accepted[passed[-1]] / items if len(passed) else 0.0)
    return float(np.mean(found))


def trial(
    sample: Sample, rng: np.random.Generator, items: int, paths: list[str] | None, risk: float = RISK
) -> tuple[float, float]:
    """Calibrate on a fresh draw; return the true risk (NaN when everything escalates) and the true coverage."""
    draw = sample.take(rng.integers(0, len(sample), items))
    cut = int(items * TUNING_SHARE)
    result = control_risk(
        draw.take(np.arange(cut)), draw.take(np.arange(cut, items)), risk=risk, confidence=CONFIDENCE, paths=paths
    )
    kept = ~escalations(result.gate, sample)
    return (float(1 - sample.fast_correct[kept].mean()) if kept.any() else np.nan), float(kept.mean())


def run(
    name: str,
    sample: Sample,
    *,
    splits: int = SPLITS,
    items: int = SIZES[0],
    paths: list[str] | None = None,
    risk: float = RISK,
    seed: int = 0,
) -> dict[str, object]:
    """Run ``splits`` trials on one population; return their figures, ready for JSON."""
    rng = np.random.default_rng(seed)
    start = perf_counter()
    outcomes = np.array([trial(sample, rng, items, paths, risk) for _ in range(splits)])
    exceeded = int(np.nansum(outcomes[:, 0] > risk))
    # The guarantee is refuted if so many violations would come up less than once in 1,000 times while the true rate of
    # violations is 1 - confidence.
    surprise = 1 - np.exp(log_binomial_cdf(exceeded - 1, splits, 1 - CONFIDENCE))
    oracle = oracle_coverage(sample, risk)
    return {
        "population": name,
        "paths": paths or "auto",
        "risk": risk,
        "base_risk": round(float(1 - sample.fast_correct.mean()), 4),
        "splits": splits,
        "items": items,
        "exceeded": exceeded,
        "allowed": round((1 - CONFIDENCE) * splits),
        "holds": bool(surprise > 1e-3),
        "always_escalate": int(np.isnan(outcomes[:, 0]).sum()),
        "mean_coverage": round(float(outcomes[:, 1].mean()), 4),
        "oracle_coverage": round(oracle, 4),
        "best_fixed_coverage": round(best_fixed_coverage(sample, risk, items), 4),
        "coverage_ratio": round(float(outcomes[:, 1].mean()) / oracle, 4) if oracle > 0.01 else None,
        "uncorrected_ratio": round(uncorrected_coverage(sample, risk, items, splits) / oracle, 4)
        if oracle > 0.01
        else None,
        "seconds": round(perf_counter() - start, 1),
    }


def list_population(rng: np.random.Generator, size: int = 5000) -> ListSample:
    """Return lists of 2 to 16 candidates whose fast scores err together: all candidates of a list share a shift."""
    lists = []
    for k in range(size):
        share, shift, known = rng.beta(2.0, 1.5), rng.normal(), dict[tuple[int, int], float]()
        readings, teams, labels = [], [], []
        for _ in range((2, 4, 8, 16)[k % 4]):
            label = int(rng.random() < share)
            team = 0 if label else 1 + min(int(rng.geometric(0.4)), 9)
            toward = shift + (1.5 if label else -1.5)
            logit = known.setdefault((team, int(rng.integers(3))), float(toward + rng.normal(0.0, 2.0)))
            readings.append(FastSignals(logit, sigmoid(logit), 1.0, 1.0))
            teams.append(team)
            labels.append(label)
        if any(labels):
            lists.append(LabelledList(str(k), tuple(readings), tuple(teams), tuple(labels)))
    return ListSample.of(lists)


def recorded_lists(path: Path) -> ListSample:
    """Return the labelled lists that ``calibrate --record`` wrote, without those from which nothing can be picked."""
    with path.open(encoding="utf-8") as file:
        lists = [LabelledList.from_dict(json.loads(line)) for line in file]
    return ListSample.of([x for x in lists if len(x.labels) >= 2 and any(x.labels)])


def run_lists(
    name: str, sample: ListSample, risk: float, *, splits: int = SPLITS, lists: int = 600, seed: int = 0
) -> dict[str, object]:
    """Calibrate the rule for lists on ``splits`` draws from one population; return the figures, ready for JSON."""
    rng = np.random.default_rng(seed)
    start, cut = perf_counter(), int(lists * TUNING_SHARE)
    risks, coverages = [], []
    for _ in range(splits):
        draw = sample.take(rng.integers(0, len(sample), lists))
        draw = replace(draw, groups=np.arange(lists).astype(str))  # a list that was drawn twice counts twice
        rule, control = choose(draw.take(np.arange(cut)), draw.take(np.arange(cut, lists)), risk, CONFIDENCE)
        picks = sample_of(sample, rule)
        alone = picks.intuition() >= control.gate.intuition_threshold if control.proved else np.zeros(len(sample), bool)
        risks.append(float(1 - picks.fast_correct[alone].mean()) if alone.any() else np.nan)
        coverages.append(float(alone.mean()))
    exceeded = int(np.nansum(np.array(risks) > risk))
    everything = sample_of(sample, fit_shares(sample))
    return {
        "population": name,
        "risk": risk,
        "base_risk": round(float(1 - everything.fast_correct.mean()), 4),
        "splits": splits,
        "lists": lists,
        "exceeded": exceeded,
        "allowed": round((1 - CONFIDENCE) * splits),
        "always_escalate": int(np.isnan(risks).sum()),
        "mean_picked_alone": round(float(np.mean(coverages)), 4),
        "seconds": round(perf_counter() - start, 1),
    }


def recorded(path: Path) -> Sample:
    """Return the labelled items that ``calibrate --record`` wrote."""
    with path.open(encoding="utf-8") as file:
        return Sample.of([LabelledItem.from_dict(json.loads(line)) for line in file])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path, help="recorded items of a real model (JSONL)")
    parser.add_argument("--item-risk", type=float, default=ITEM_RISK, help="target for them (default: %(default)s)")
    parser.add_argument("--lists", nargs="?", const=True, help="the gate for lists; with recorded lists of a model")
    parser.add_argument("--list-risks", type=float, nargs="*", default=(0.02, 0.05), help="targets for lists")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--size", type=int, nargs="*", default=SIZES, help="labelled items per calibration set")
    arguments = parser.parse_args()
    rng = np.random.default_rng(7)
    if arguments.lists:
        lists = {"synthetic": list_population(rng)}
        if arguments.lists is not True:
            lists["real"] = recorded_lists(Path(arguments.lists))
        for name, sample in lists.items():
            for risk in arguments.list_risks:
                print(json.dumps(run_lists(name, sample, risk, splits=arguments.splits)), flush=True)
        return
    populations = {kind: population(kind, rng) for kind in ("calibrated", "overconfident", "bumpy", "infeasible")}
    if arguments.items:
        populations["real"] = recorded(arguments.items)
    # A path is a sequence of thresholds that are tested one after the other, and delta = 1 - confidence is the
    # probability of failure that is allowed. All populations are tested along one path with the whole delta. One last
    # job shows what it costs to split delta over three paths.
    jobs: list[tuple[str, int, list[str] | None]] = [
        (name, items, None) for name in populations for items in arguments.size
    ]
    jobs.append(("calibrated", max(arguments.size), list(PATH_NAMES)))
    for name, items, paths in jobs:
        risk = arguments.item_risk if name == "real" else RISK
        found = run(name, populations[name], splits=arguments.splits, items=items, paths=paths, risk=risk)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
