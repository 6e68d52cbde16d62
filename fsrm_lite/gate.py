"""The dual-confidence gate: is this fast answer good enough, or is slow thinking worth its tokens?

Depends on numpy alone and imports nothing from this package but its errors, so that the GPU build can use the very
same file. The abstract of F/S-RM (arXiv 2603.20212) names two confidences, intuition and word-distribution
confidence, without a formula; the definitions here are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsrm_lite.errors import GateSpecError

LOGIT_LIMIT = 50.0
"""Score logits are clipped to +-50: sigmoid is 0 or 1 to double precision beyond it, and JSON has no infinity."""

COMBINE_RULES = ("any", "all")


@dataclass(frozen=True, slots=True)
class GateSpec:
    """The thresholds of the gate, as stored under ``gate`` in ``fsrm.json``.

    Attributes:
        intuition_threshold: Escalate when the intuition confidence is strictly below this, in [0, 1].
        distribution_threshold: Escalate when the word-distribution confidence is strictly below this, in [0, 1].
        combine: "any" escalates when either confidence is too low, "all" only when both are.
        temperature: Score logits are divided by this before the intuition confidence is taken, > 0.
        always: Escalate everything, whatever the confidences (what a failed calibration returns).
    """

    intuition_threshold: float = 0.5
    distribution_threshold: float = 0.0
    combine: Literal["any", "all"] = "any"
    temperature: float = 1.0
    always: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("intuition_threshold", "distribution_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise GateSpecError(f"gate: {name} is {value!r}, expected a number in [0, 1]")
        if self.combine not in COMBINE_RULES:
            raise GateSpecError(f"gate: combine is {self.combine!r}, expected one of {', '.join(COMBINE_RULES)}")
        temperature = self.temperature
        if (
            isinstance(temperature, bool)
            or not isinstance(temperature, int | float)
            or not 0.0 < temperature < math.inf
        ):
            raise GateSpecError(f"gate: temperature is {temperature!r}, expected a finite number above 0")
        if not isinstance(self.always, bool):
            raise GateSpecError(f"gate: always is {self.always!r}, expected true or false")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateSpec:
        """Build a spec from its JSON form.

        Raises:
            GateSpecError: If it is not an object, or on an unknown key or a value out of range.
        """
        if not isinstance(data, Mapping):
            raise GateSpecError(f"gate: got a {type(data).__name__}, expected an object of thresholds")
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise GateSpecError(f"gate: unknown keys {unknown}, expected among {sorted(cls.__dataclass_fields__)}")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Confidences(Protocol):
    """What the gate looks at in one response. ``FastSignals`` has it, and so has ``fsrm_lite.Score`` of a fast reading."""

    @property
    def logit(self) -> float:
        """Log-odds of the expected label value, clipped to +-``LOGIT_LIMIT``."""

    @property
    def distribution_confidence(self) -> float:
        """``1 - H(p)/log|V|`` of the first-token distribution, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class FastSignals:
    """The fast reading of one response in four numbers.

    Attributes:
        logit: Log-odds of the expected label value, clipped to +-``LOGIT_LIMIT``.
        score: ``sigmoid(logit)``, the expected label value in [0, 1].
        distribution_confidence: ``1 - H(p)/log|V|``, in [0, 1].
        label_mass: Probability of all label tokens together, in [0, 1].
    """

    logit: float
    score: float
    distribution_confidence: float
    label_mass: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate decided, and why.

    Attributes:
        escalate: Whether to think slowly.
        intuition_confidence: In [0, 1].
        distribution_confidence: In [0, 1].
        reasons: One phrase per condition that fired; empty when none did.
    """

    escalate: bool
    intuition_confidence: float
    distribution_confidence: float
    reasons: tuple[str, ...] = ()


def sigmoid(x: float) -> float:
    """Logistic function of ``x``, without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def signals(
    label_logits: ArrayLike,
    label_values: ArrayLike,
    *,
    log_mass: float | None = None,
    entropy: float | None = None,
    vocab_size: int | None = None,
) -> FastSignals:
    """Turn the logits of the label tokens into the gate's four numbers.

    Args:
        label_logits: Shape [L], raw logits of the label tokens; +-inf allowed, NaN not.
        label_values: Shape [L], numeric value of each label; rescaled to [0, 1] by its own minimum and maximum.
        log_mass: logsumexp of all logits of the vocabulary; without it the label mass is 1.
        entropy: Entropy in nats of the full first-token distribution; without it, that of the labels alone.
        vocab_size: |V| for normalising ``entropy``; required with it.

    Raises:
        GateSpecError: If shapes disagree, a number is NaN, or the values are all equal or not finite.
    """
    logits = np.asarray(label_logits, dtype=np.float64)
    values = np.asarray(label_values, dtype=np.float64)
    if logits.ndim != 1 or logits.shape != values.shape or logits.size < 2:
        raise GateSpecError(
            f"gate: label logits {logits.shape} and values {values.shape} must be vectors of one length >= 2"
        )
    if np.isnan(logits).any():
        raise GateSpecError("gate: a label logit is NaN; the model's output is broken")
    if not np.isfinite(values).all() or values.max() == values.min():
        raise GateSpecError(f"gate: label values {values.tolist()} must be finite and not all equal")
    unit = (values - values.min()) / (values.max() - values.min())
    # Clipped around the best label, so that infinities become certainty (or a tie) and never NaN.
    best = float(logits.max())
    centred = (
        np.clip(logits - best, -4 * LOGIT_LIMIT, 0.0)
        if math.isfinite(best)
        else np.where(logits == best, 0.0, -4 * LOGIT_LIMIT)
    )
    logit = float(np.clip(_logsumexp(centred, unit) - _logsumexp(centred, 1.0 - unit), -LOGIT_LIMIT, LOGIT_LIMIT))
    label_lse = _logsumexp(centred, np.ones_like(unit))
    if entropy is None:
        p = np.exp(centred - label_lse)
        nats, size = float(-(p * (centred - label_lse)).sum()), logits.size
    else:
        nats, size = _number("entropy", entropy), _vocabulary(vocab_size)
    confidence = min(1.0, max(0.0, 1.0 - nats / math.log(size)))
    return FastSignals(logit, sigmoid(logit), confidence, _label_mass(best, label_lse, log_mass))


def _label_mass(best: float, label_lse: float, log_mass: float | None) -> float:
    """Share of the labels in the whole distribution; all of it when nothing is known of the rest."""
    if log_mass is None or best == math.inf:
        return 1.0
    if best == -math.inf:  # no label can be the next token at all
        return 0.0
    return math.exp(min(0.0, best + label_lse - _number("log_mass", log_mass)))


def _number(name: str, value: float) -> float:
    if math.isnan(value):
        raise GateSpecError(f"gate: {name} is NaN; the model's output is broken")
    return float(value)


def _vocabulary(size: int | None) -> int:
    if size is None or size < 2:
        raise GateSpecError(f"gate: vocab_size is {size!r}, expected >= 2 beside an entropy")
    return size


def _logsumexp(x: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Log of the weighted sum of exp(x); x is at most 0, so nothing overflows. -inf for an empty sum."""
    total = float((weight * np.exp(x)).sum())
    return math.log(total) if total > 0 else -math.inf


def intuition_confidence(logit: float, temperature: float = 1.0) -> float:
    """``|2*sigmoid(logit/temperature) - 1|``, in [0, 1]: how decided the scalar is."""
    return abs(math.tanh(logit / (2.0 * temperature)))


class Gate:
    """Applies a ``GateSpec`` to one response, a pair, or N candidates."""

    def __init__(self, spec: GateSpec) -> None:
        """Keep the spec; the gate has no other state."""
        self.spec = spec

    def single(self, response: Confidences) -> Decision:
        """Decide for one response."""
        return self._decide(
            intuition_confidence(response.logit, self.spec.temperature), response.distribution_confidence
        )

    def pair(self, first: Confidences, second: Confidences) -> Decision:
        """Decide for a pair: Bradley-Terry confidence, and the smaller distribution confidence of the two."""
        return self._decide(
            intuition_confidence(first.logit - second.logit, self.spec.temperature),
            min(first.distribution_confidence, second.distribution_confidence),
        )

    def contenders(self, candidates: Sequence[Confidences]) -> list[int]:
        """Return the positions that the fast scores cannot tell apart from the best, best first.

        The best by fast logit (earliest on ties) is always among them; every other candidate is one when the gate
        fires for the pair (best, candidate). A list of one means that the fast path decides alone.
        """
        order = sorted(range(len(candidates)), key=lambda i: (-candidates[i].logit, i))
        if not order:
            return []
        best = candidates[order[0]]
        return [order[0], *(i for i in order[1:] if self.pair(best, candidates[i]).escalate)]

    def _decide(self, intuition: float, distribution: float) -> Decision:
        spec = self.spec
        reasons = []
        if intuition < spec.intuition_threshold:
            reasons.append(f"intuition confidence {intuition:.3f} < {spec.intuition_threshold:.3f}")
        if distribution < spec.distribution_threshold:
            reasons.append(f"distribution confidence {distribution:.3f} < {spec.distribution_threshold:.3f}")
        escalate = len(reasons) == 2 if spec.combine == "all" else bool(reasons)
        if spec.always:
            escalate, reasons = True, ["the gate is set to escalate everything"]
        return Decision(escalate, intuition, distribution, tuple(reasons) if escalate else ())
