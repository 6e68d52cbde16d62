"""From what the runtime reads to what the caller gets: a reading becomes a score, two scores become a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsrm_lite.gate import Decision, Gate, intuition_confidence, sigmoid, signals
from fsrm_lite.types import Comparison, Score

if TYPE_CHECKING:
    from fsrm_lite.runtimes.onnx.session import FastReading


def score_of(reading: FastReading, label_values: Sequence[float], vocab_size: int, temperature: float) -> Score:
    """Return the score that a first-token reading stands for.

    Args:
        reading: Logits of the labels, and log-mass and entropy of the whole distribution.
        label_values: Numeric value of each label, in the order of the reading's logits.
        vocab_size: Size of the whole distribution.
        temperature: Of the gate; the intuition confidence is taken of the logit divided by it.
    """
    s = signals(
        reading.label_logits, label_values, log_mass=reading.log_mass, entropy=reading.entropy, vocab_size=vocab_size
    )
    return Score(
        score=s.score,
        logit=s.logit,
        intuition_confidence=intuition_confidence(s.logit, temperature),
        distribution_confidence=s.distribution_confidence,
        label_mass=s.label_mass,
        tokens_read=reading.tokens_read,
    )


def compare_scores(first: Score, second: Score, gate: Gate, *, tokens_read: int = 0) -> tuple[Comparison, Decision]:
    """Compare two responses by their fast scores (Bradley-Terry), and ask the gate what it thinks of that.

    Args:
        first: Fast score of the first response.
        second: Fast score of the second response.
        gate: Decides whether the difference is decided enough.
        tokens_read: Tokens that count for this comparison; none where the scores are counted elsewhere.

    Returns:
        The fast comparison, and the gate's decision.
    """
    decision = gate.pair(first, second)
    margin = first.logit - second.logit
    comparison = Comparison(
        winner=0 if margin >= 0 else 1,
        p_first=sigmoid(margin / gate.spec.temperature),
        intuition_confidence=decision.intuition_confidence,
        distribution_confidence=decision.distribution_confidence,
        scores=(first, second),
        tokens_read=tokens_read,
    )
    return comparison, decision
