"""Makes a score of a reading, and a comparison of two scores.

A *reading* is what the runtime returns for one row of token ids: the logits of the label tokens, and the log-mass and
entropy of the first token's whole distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsrm_lite.gate import LOGIT_LIMIT, Decision, Gate, intuition_confidence, sigmoid, signals, smaller
from fsrm_lite.types import Comparison, Score

if TYPE_CHECKING:
    from fsrm_lite.runtimes.reading import FastReading


def reward_score(reward: float, temperature: float, tokens_read: int) -> Score:
    """Return the score that a scalar head's reward stands for.

    Args:
        reward: What the head gives, on its own scale, on which a difference of two is taken for a log-odds.
        temperature: The gate's temperature, by which the reward is divided for the intuition confidence.
        tokens_read: Tokens that were computed for it.

    Returns:
        The score, whose logit is the reward; without what a distribution of the next token would tell.
    """
    confidence = intuition_confidence(reward, temperature)
    return Score(sigmoid(reward), reward, confidence, None, None, tokens_read=tokens_read)


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
        logit=margin,
        label_mass=smaller(first.label_mass, second.label_mass),
        scores=(first, second),
        tokens_read=tokens_read,
    )
    return comparison, decision


def compare_orders(
    forward: FastReading, swapped: FastReading, gate: Gate, vocab_size: int
) -> tuple[Comparison, Decision]:
    """Compare two responses by the choice that the model would make in each order of the pair, and ask the gate.

    The margin is the mean over the orders, so that a constant preference for a place cancels. Where the two orders
    prefer different responses, the winner is still by the margin, but the gate sees none.

    Args:
        forward: Reading of the pair as given; its labels are the two choices, that of the first response first.
        swapped: Reading of the pair with the second response shown first.
        gate: Decides whether slow thinking is worth its tokens for this pair.
        vocab_size: Number of tokens in the distribution.

    Returns:
        The fast comparison, and the gate's decision.
    """
    both = [
        signals(r.label_logits, (1.0, 0.0), log_mass=r.log_mass, entropy=r.entropy, vocab_size=vocab_size)
        for r in (forward, swapped)
    ]
    ahead = [_lead(r, s.logit) for r, s in zip((forward, swapped), both, strict=True)]
    margin = (ahead[0] - ahead[1]) / 2
    agree = ahead[0] * ahead[1] < 0  # what the first place loses by swapping, the second must gain
    logit = margin if agree else 0.0
    distribution = smaller(both[0].distribution_confidence, both[1].distribution_confidence)
    decision = gate.read_pair(logit, distribution)
    comparison = Comparison(
        winner=0 if margin >= 0 else 1,
        p_first=sigmoid(margin / gate.spec.temperature),
        intuition_confidence=decision.intuition_confidence,
        distribution_confidence=distribution,
        logit=logit,
        label_mass=smaller(both[0].label_mass, both[1].label_mass),
        orders_agree=agree,
        tokens_read=forward.tokens_read + swapped.tokens_read,
    )
    return comparison, decision


def _lead(reading: FastReading, logit: float) -> float:
    """Return by how much the first choice is ahead, the plain difference of two logits.

    ``logit`` is the same up to its rounding; it stands where a logit is infinite.
    """
    difference = reading.label_logits[0] - reading.label_logits[1]
    return max(-LOGIT_LIMIT, min(LOGIT_LIMIT, difference)) if math.isfinite(difference) else logit
