"""Notes what a new bundle says about a few examples, so that any machine can be compared with this one."""

from __future__ import annotations

from typing import Any

from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.export.parity.calibration_pairs import CalibrationSet
from fsrm_lite.scorer import FastSlowRM

EXAMPLES = 4
"""Pairs that are noted."""


def golden_examples(bundle: Bundle, data: CalibrationSet) -> list[dict[str, Any]]:
    """Return examples with the fast scores of a bundle, and with the ids that it makes of them, for its card.

    A model that reads responses has ``prompt``, ``response``, ``score`` and ``logit`` each; one that reads pairs only
    has ``prompt``, ``first``, ``second`` and ``p_first``.
    """
    step = max(1, len(data.pairs) // EXAMPLES)
    triples = [(prompt_text(p), a, b) for p, a, b in data.triples()[::step][:EXAMPLES]]
    with FastSlowRM(bundle, judge="never") as rm:
        if not rm.fast.reads_responses:
            compared = rm.compare_many(triples)
            return [
                {"prompt": p, "first": a, "second": b, "p_first": c.p_first, "ids": rm.encoder.pairwise_fast(p, a, b)}
                for (p, a, b), c in zip(triples, compared, strict=True)
            ]
        items = [(p, a) for p, a, _ in triples]
        return [
            {"prompt": p, "response": a, "score": s.score, "logit": s.logit, "ids": rm.encoder.pointwise_fast(p, a)}
            for (p, a), s in zip(items, rm.score_many(items), strict=True)
        ]
