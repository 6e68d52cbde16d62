"""Makes a score of a reading, and a comparison of two scores.

A *reading* is what the runtime returns for one row of token ids: the logits of the label tokens, and the log-mass and
entropy of the first token's whole distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsrm_lite.gate import Decision, Gate, intuition_confidence, sigmoid, signals
from fsrm_lite.types import Comparison, Score

if TYPE_CHECKING:
    from fsrm_lite.runtimes.onnx.session import FastReading


def score_of(reading: FastReading, label_values: Sequence[float], vocab_size: int, temperature: float) -> Score:
    """Return the score that a reading stands for.

    Args:
        reading: The runtime's reading of one response.
        label_values: Numeric value of each label, in the order of the reading's logits.
        vocab_size: Number of tokens in the distribution.
        temperature: The gate's temperature, by which the logit is divided for the intuition confidence.

    Returns:
        The score, with both confidences.
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
    """Compare two responses by their fast scores (Bradley-Terry), and ask the gate about the pair.

    Args:
        first: Fast score of the first response.
        second: Fast score of the second response.
        gate: Decides whether slow thinking is worth its tokens for this pair.
        tokens_read: Tokens to count for this comparison; 0 where the scores are counted elsewhere.

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
