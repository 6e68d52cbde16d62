"""Does the guarantee hold? Draws calibration sets 1,000 times and counts how often the true risk exceeds the target.

    python -m benchmarks.guarantee                          # synthetic populations
    python -m benchmarks.guarantee --items recorded.jsonl   # and the real scores that `calibrate --record` wrote

Each population is known in full, so the error rate of the accepted items at the chosen thresholds is exact, not an
estimate with noise of its own. Real scores serve as such a population too: calibration sets are drawn from them with
replacement.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np

from fsrm_lite.measure.intervals import log_binomial_cdf
from fsrm_lite.measure.labelled import LabelledItem, Sample
from fsrm_lite.measure.risk_control import PATH_NAMES, TUNING_SHARE, control_risk
from fsrm_lite.measure.tradeoff import escalations

SPLITS = 1000
SIZES = (1000, 4000)
RISK = 0.10
CONFIDENCE = 0.90
POPULATION = 50_000


def population(kind: str, rng: np.random.Generator, size: int = POPULATION) -> Sample:
    """Draw scores of known character.

    Args:
        kind: "calibrated" (the confidence is the chance to be right), "overconfident" (it promises too much),
            "bumpy" (the risk among the accepted is not monotone), or "infeasible" (the confidence knows nothing, and
            the base risk is three times the target).
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
    """Largest share that any threshold on the intuition confidence can accept at a true risk of at most ``risk``."""
    wrong = ~sample.fast_correct[np.argsort(-np.abs(sample.logit), kind="stable")]
    accepted = np.arange(1, len(wrong) + 1)
    good = np.flatnonzero(np.cumsum(wrong) <= risk * accepted)
    return float((good[-1] + 1) / len(wrong)) if len(good) else 0.0


def trial(sample: Sample, rng: np.random.Generator, items: int, paths: list[str] | None) -> tuple[float, float]:
    """Calibrate on a fresh draw; return the true risk (NaN when everything escalates) and the true coverage."""
    draw = sample.take(rng.integers(0, len(sample), items))
    cut = int(items * TUNING_SHARE)
    result = control_risk(
        draw.take(np.arange(cut)), draw.take(np.arange(cut, items)), risk=RISK, confidence=CONFIDENCE, paths=paths
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
    seed: int = 0,
) -> dict[str, object]:
    """Run ``splits`` trials on one population and sum them up."""
    rng = np.random.default_rng(seed)
    start = perf_counter()
    outcomes = np.array([trial(sample, rng, items, paths) for _ in range(splits)])
    exceeded = int(np.nansum(outcomes[:, 0] > RISK))
    # The guarantee is refuted if so many violations would be rarer than 1 in 1,000 at a true rate of 1 - confidence.
    surprise = 1 - np.exp(log_binomial_cdf(exceeded - 1, splits, 1 - CONFIDENCE))
    oracle = oracle_coverage(sample, RISK)
    return {
        "population": name,
        "paths": paths or "auto",
        "base_risk": round(float(1 - sample.fast_correct.mean()), 4),
        "splits": splits,
        "items": items,
        "exceeded": exceeded,
        "allowed": round((1 - CONFIDENCE) * splits),
        "holds": bool(surprise > 1e-3),
        "always_escalate": int(np.isnan(outcomes[:, 0]).sum()),
        "mean_coverage": round(float(outcomes[:, 1].mean()), 4),
        "oracle_coverage": round(oracle, 4),
        "coverage_ratio": round(float(outcomes[:, 1].mean()) / oracle, 4) if oracle > 0.01 else None,
        "seconds": round(perf_counter() - start, 1),
    }


def recorded(path: Path) -> Sample:
    """Read what ``calibrate --record`` wrote."""
    with path.open(encoding="utf-8") as file:
        return Sample.of([LabelledItem.from_dict(json.loads(line)) for line in file])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path, help="recorded items of a real model (JSONL)")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--size", type=int, nargs="*", default=SIZES, help="labelled items per calibration set")
    arguments = parser.parse_args()
    rng = np.random.default_rng(7)
    populations = {kind: population(kind, rng) for kind in ("calibrated", "overconfident", "bumpy", "infeasible")}
    if arguments.items:
        populations["real"] = recorded(arguments.items)
    # One path at full delta everywhere; what splitting delta over three paths costs is shown once.
    jobs: list[tuple[str, int, list[str] | None]] = [
        (name, items, None) for name in populations for items in arguments.size
    ]
    jobs.append(("calibrated", max(arguments.size), list(PATH_NAMES)))
    for name, items, paths in jobs:
        print(json.dumps(run(name, populations[name], splits=arguments.splits, items=items, paths=paths)), flush=True)


if __name__ == "__main__":
    main()
