"""Compares what a bundle says on this machine with what was noted when it was made: for ``doctor`` and ``verify``."""

from __future__ import annotations

from dataclasses import dataclass

from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import FsrmError
from fsrm_lite.scorer import FastSlowRM

GOLDEN_TOLERANCE = 0.005
"""How far the self-test's scores may be from the bundle's recorded ones.

Integer products are exact on every processor. What differs is the rounding of float32, which now and then moves a value
by one step of its 8 bits: 0.0001 between a Xeon with AMX and an EPYC with AVX2. Products that saturate, as those of
older graphs did without a word on processors without VNNI, were off by 0.01 on the embedded model and must not pass.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of ``verify``: what was checked, what was found, and whether it is as it should be."""

    what: str
    found: str
    passed: bool


def largest_difference(rm: FastSlowRM) -> float | None:
    """Return how far the fast scores of the golden examples are from the noted ones; None if there are no examples.

    A model that reads pairs is compared by its probabilities.
    """
    golden = rm.bundle.manifest.card.get("golden", [])
    if not golden:
        return None
    if "first" in golden[0]:
        compared = rm.compare_many([(g["prompt"], g["first"], g["second"]) for g in golden], judge="never")
        return max(abs(c.p_first - float(g["p_first"])) for c, g in zip(compared, golden, strict=True))
    scores = rm.score_many([(g["prompt"], g["response"]) for g in golden], judge="never")
    return max(abs(s.score - float(g["score"])) for s, g in zip(scores, golden, strict=True))


def check_bundle(model: str | None, *, revision: str | None, local_files_only: bool) -> list[Finding]:
    """Check a bundle: its files, the ids and scores of its golden examples, and its published scores.

    Args:
        model: A bundle folder, "org/name", or None for the embedded model.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never use the network.

    Returns:
        The findings; a bundle that cannot be opened is one that failed.
    """
    findings = []
    try:
        bundle = Bundle.open(model, revision=revision, local_files_only=local_files_only)
        bundle.check()
        findings.append(Finding("files", f"{len(bundle.manifest.files)} files have their hashes", True))
        with FastSlowRM(bundle, judge="never") as rm:
            findings += _examples(rm) + _published(rm)
    except FsrmError as error:
        findings.append(Finding("bundle", str(error), False))
    return findings


def _examples(rm: FastSlowRM) -> list[Finding]:
    golden = rm.bundle.manifest.card.get("golden", [])
    difference = largest_difference(rm)
    if difference is None:
        return [Finding("golden examples", "this bundle has none", True)]
    findings = []
    noted = [g for g in golden if "ids" in g]
    if noted:
        same = sum(
            (
                rm.encoder.pairwise_fast(g["prompt"], g["first"], g["second"])
                if "first" in g
                else rm.encoder.pointwise_fast(g["prompt"], g["response"])
            )
            == g["ids"]
            for g in noted
        )
        findings.append(Finding("ids", f"{same} of {len(noted)} examples give the noted ids", same == len(noted)))
    text = f"largest difference {difference:.2g} in {len(golden)} examples, allowed {GOLDEN_TOLERANCE:g}"
    return [*findings, Finding("golden examples", text, difference <= GOLDEN_TOLERANCE)]


def _published(rm: FastSlowRM) -> list[Finding]:
    """Compare published rewards, where the bundle is of the very model that they were published for."""
    found = []
    for example in rm.bundle.manifest.card.get("published", []):
        logit = rm.score(example["prompt"], example["response"], judge="never").logit
        text = f"{logit:.3f}, published {example['logit']:g} +- {example['tolerance']:g} ({example['model']})"
        found.append(Finding("published", text, abs(logit - example["logit"]) <= example["tolerance"]))
    return found
