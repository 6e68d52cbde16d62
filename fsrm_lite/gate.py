"""The gate: decides whether a fast answer is good enough, or whether slow thinking is worth its tokens.

The fast half of a model reads a prompt and a response once and predicts the first token of its answer. Some tokens are
*labels* (for example "yes" and "no"), each with a numeric value; the expected value of the label is the score. The gate
takes two confidences from that prediction, both in [0, 1]:

- the *intuition confidence* says how decided the score is: 0 at even odds, 1 where there is no doubt. For a pair it
  says so of the probability that the first response is the better one (Bradley-Terry).
- the *word-distribution confidence* says how peaked the distribution over the whole vocabulary is.

When either is below its threshold (with ``combine="all"``: when both are), the gate asks for slow thinking, in which
the judge writes its reasons before it decides. The abstract of F/S-RM (arXiv 2603.20212) names the two confidences
without a formula; the definitions here are this project's own.

To pick the best of N candidates is another decision than to compare two, and a gate may have a rule of its own for it
(``ListSpec``). A gate may also say how much either path counts in the answer to a pair that was thought about
(``AnswerWeights``).

This module depends on numpy alone and imports nothing of the package but its errors, so that a build for GPUs can use
the very same file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsrm_lite.errors import GateSpecError

LOGIT_LIMIT = 50.0
"""Score logits are clipped to +-50. Beyond that the sigmoid is within rounding of 0 or 1, and JSON has no infinity."""

_MOST = 1e300  # two of these can be added and taken from each other; nothing smaller is changed by it

COMBINE_RULES = ("any", "all")
GROUPINGS = ("final", "text")


@dataclass(frozen=True, slots=True)
class ListSpec:
    """The gate's rule for picking the best of N candidates, as stored under ``lists`` of a gate.

    Candidates that say the same are one *team*. A team is worth ``(sum of exp(logit / temperature)) ** sharpness``, the
    sum taken over its members; divided by the sum over all teams this is its *share*, an estimate of the probability
    that the team is right. Both the scores of a team and its number of candidates count for it, and every rival takes
    something away, so that a share does not grow by chance alone when there are more candidates. The *contenders* are
    the best teams, as few as have ``coverage`` of the shares together. Slow thinking is asked for when there are two or
    more. Of two candidates with different answers this is the rule of a pair, whose intuition confidence is twice the
    share minus 1.

    Attributes:
        coverage: In [0, 1]. With 0 there is never a second contender, with 1 every team is one.
        temperature: Divides the logits within a team; above 0. A high one counts candidates and little else (majority),
            a low one takes the best candidate alone.
        sharpness: How far apart the shares are; above 0.
        group: Which candidates say the same: "final" for those with the same final answer (and the same text where
            there is none), "text" for those with the same text. ``fsrm_lite.ranking.answers.final`` finds answers.
    """

    coverage: float
    temperature: float = 1.0
    sharpness: float = 1.0
    group: Literal["final", "text"] = "final"

    def __post_init__(self) -> None:
        """Raise a ``GateSpecError`` on a value out of range."""
        _take_numpy(self)
        if not _is_number(self.coverage) or not 0.0 <= self.coverage <= 1.0:
            raise GateSpecError(f"gate: lists.coverage is {self.coverage!r}, expected a number in [0, 1]")
        for name in ("temperature", "sharpness"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 < value < math.inf:
                raise GateSpecError(f"gate: lists.{name} is {value!r}, expected a finite number above 0")
        if self.group not in GROUPINGS:
            raise GateSpecError(f"gate: lists.group is {self.group!r}, expected one of {', '.join(GROUPINGS)}")


@dataclass(frozen=True, slots=True)
class AnswerWeights:
    """How much the fast path and the judge's votes count in the answer to a pair after slow thinking.

    As stored under ``weights`` of a gate. The log-odds that the first response is the better one are then
    ``fast * (z1 - z2) + votes * v``, with the logits ``z1`` and ``z2`` of the fast scores and the log-odds ``v`` of the
    votes (``votes_logit``). There is no constant: exchanged responses get the opposite answer.

    Attributes:
        fast: Weight of the difference of the fast logits, finite and at least 0.
        votes: Weight of the votes' log-odds, finite and at least 0. One of the two weights is above 0.
    """

    fast: float
    votes: float

    def __post_init__(self) -> None:
        """Raise a ``GateSpecError`` on a value out of range."""
        for name in ("fast", "votes"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value < math.inf:
                raise GateSpecError(f"gate: weights.{name} is {value!r}, expected a finite number of at least 0")
        if self.fast == self.votes == 0:
            raise GateSpecError(
                "gate: both weights are 0, expected one above 0; leave them out to let the votes decide"
            )

    def logit(self, fast: float, votes: Sequence[float]) -> float:
        """Return the log-odds that the first response is the better one, clipped to +-``LOGIT_LIMIT``.

        Args:
            fast: Difference of the fast logits, the first response's less the second's.
            votes: Each vote's probability of the first response, in [0, 1].
        """
        parts = (self.fast * fast, self.votes * votes_logit(votes))
        total = sum(max(-_MOST, min(_MOST, part)) for part in parts)
        return max(-LOGIT_LIMIT, min(LOGIT_LIMIT, total))


@dataclass(frozen=True, slots=True)
class GateSpec:
    """The settings of the gate, as stored under ``gate`` in ``fsrm.json``.

    Attributes:
        intuition_threshold: Ask for slow thinking when the intuition confidence is strictly below this, in [0, 1].
        distribution_threshold: Ask for it when the word-distribution confidence is strictly below this, in [0, 1].
        combine: "any" asks when at least one confidence is too low, "all" only when both are.
        temperature: The score logit is divided by this before the intuition confidence is computed; above 0.
        always: Ask for slow thinking about everything. A calibration that can guarantee nothing returns this.
        lists: The rule for the best of N; without it a candidate is a contender if the pair of the best one and this
            one asks for slow thinking.
        weights: How much either path counts in the answer to a pair after slow thinking; without them the votes alone
            decide.
    """

    intuition_threshold: float = 0.5
    distribution_threshold: float = 0.0
    combine: Literal["any", "all"] = "any"
    temperature: float = 1.0
    always: bool = False
    lists: ListSpec | None = None
    weights: AnswerWeights | None = None

    def __post_init__(self) -> None:
        """Raise a ``GateSpecError`` on a value out of range."""
        _take_numpy(self)
        for name in ("intuition_threshold", "distribution_threshold"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value <= 1.0:
                raise GateSpecError(f"gate: {name} is {value!r}, expected a number in [0, 1]")
        if self.combine not in COMBINE_RULES:
            raise GateSpecError(f"gate: combine is {self.combine!r}, expected one of {', '.join(COMBINE_RULES)}")
        if not _is_number(self.temperature) or not 0.0 < self.temperature < math.inf:
            raise GateSpecError(f"gate: temperature is {self.temperature!r}, expected a finite number above 0")
        if not isinstance(self.always, bool):
            raise GateSpecError(f"gate: always is {self.always!r}, expected true or false")
        if self.lists is not None and not isinstance(self.lists, ListSpec):
            raise GateSpecError(f"gate: lists is {self.lists!r}, expected a ListSpec or None")
        if self.weights is not None and not isinstance(self.weights, AnswerWeights):
            raise GateSpecError(f"gate: weights is {self.weights!r}, expected AnswerWeights or None")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateSpec:
        """Build a spec from its JSON form.

        Raises:
            GateSpecError: If it is not an object, or on an unknown key or a value out of range.
        """
        given = _entries(cls, data, "gate")
        for name, part in _PARTS.items():
            if given.get(name) is not None:
                given[name] = part(**_entries(part, given[name], f"gate: {name}"))
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form. A rule for lists and weights are left out where there are none."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: asdict(value) if name in _PARTS else value
            for name, value in found.items()
            if name not in _PARTS or value is not None
        }


_PARTS: dict[str, type[ListSpec] | type[AnswerWeights]] = {"lists": ListSpec, "weights": AnswerWeights}
"""The entries of a gate that are objects of their own, and may be missing."""


class Confidences(Protocol):
    """What the gate needs to know of one response.

    ``FastSignals`` provides it, and so does a ``fsrm_lite.Score`` that the fast half gave.
    """

    @property
    def logit(self) -> float:
        """Log-odds of the expected label value, clipped to +-``LOGIT_LIMIT``."""

    @property
    def distribution_confidence(self) -> float | None:
        """``1 - H(p)/log|V|``, in [0, 1], of the distribution ``p`` of the first token over the vocabulary ``V``.

        None where the model predicts no token, as one with a scalar head: the gate then has the intuition alone, and
        the second confidence is never too low.
        """


@dataclass(frozen=True, slots=True)
class FastSignals:
    """What the gate and the score are made of, for one response.

    Attributes:
        logit: Log-odds of the expected label value, clipped to +-``LOGIT_LIMIT``.
        score: ``sigmoid(logit)``, which is the expected label value, in [0, 1].
        distribution_confidence: ``1 - H(p)/log|V|`` of the first token's distribution, in [0, 1]; None without one.
        label_mass: Probability of all label tokens together, in [0, 1]; None without a distribution.
    """

    logit: float
    score: float
    distribution_confidence: float | None
    label_mass: float | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate decided, and why.

    Attributes:
        escalate: Whether to think slowly.
        intuition_confidence: How decided the score is, in [0, 1].
        distribution_confidence: How peaked the first token's distribution is, in [0, 1]; None without one.
        reasons: Why to think slowly, one phrase per reason; empty when ``escalate`` is False.
    """

    escalate: bool
    intuition_confidence: float
    distribution_confidence: float | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListDecision:
    """What the gate decided about N candidates.

    Attributes:
        escalate: Whether to think slowly: whether there are two or more contenders.
        order: Position of the best candidate of each team, the best team first. The first one is the fast pick.
        shares: Share of each team in [0, 1], in that order; they add up to 1.
        contenders: How many of the teams, from the first on, are contenders.
    """

    escalate: bool
    order: tuple[int, ...]
    shares: tuple[float, ...]
    contenders: int


def sigmoid(x: float) -> float:
    """Return the logistic function of ``x``, computed without overflow."""
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
    """Compute what the gate and the score need from the logits of the label tokens.

    Args:
        label_logits: Shape [L], raw logits of the label tokens. Infinities are allowed, NaN is not.
        label_values: Shape [L], numeric value of each label. They are scaled to [0, 1] by their own minimum and
            maximum.
        log_mass: logsumexp of the logits of the whole vocabulary. Without it the label mass is taken to be 1.
        entropy: Entropy of the first token's distribution over the whole vocabulary, in nats. Without it the entropy
            among the labels is used.
        vocab_size: Size of the vocabulary, by whose logarithm ``entropy`` is divided. Required with ``entropy``.

    Returns:
        The signals of one response.

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
    # Logits are taken relative to the best label and clipped: an infinite one then means certainty (or a tie), not NaN.
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
    """Return the labels' share of the whole distribution, in [0, 1]; 1 where nothing is known of the rest."""
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
    """Return the log of the weighted sum of ``exp(x)``; -inf where that sum is 0.

    All ``x`` are at most 0, so nothing overflows.
    """
    total = float((weight * np.exp(x)).sum())
    return math.log(total) if total > 0 else -math.inf


def intuition_confidence(logit: float, temperature: float = 1.0) -> float:
    """Return ``|2*sigmoid(logit/temperature) - 1|``, in [0, 1]: 0 at even odds, near 1 where the score is decided."""
    return abs(math.tanh(logit / (2.0 * temperature)))


def votes_logit(votes: Sequence[float]) -> float:
    """Return the log-odds that votes about a pair give its first response; 0 where they are even or there are none.

    With the votes' probabilities ``p`` they are ``log(1 + sum of p) - log(1 + sum of (1 - p))``. These are the log-odds
    of the next vote, if any share of votes is equally likely beforehand (Laplace's rule of succession). So few votes
    say less than many that are of one mind, and none can say infinitely much.

    Args:
        votes: Each vote's probability of the first response, in [0, 1].
    """
    return math.log1p(math.fsum(votes)) - math.log1p(math.fsum(1.0 - p for p in votes))


def list_shares(teams: Sequence[NDArray[np.float64]], rule: ListSpec) -> NDArray[np.float64]:
    """Return the share of each team under a rule for lists.

    Args:
        teams: Logits of the members of each of K teams, each float64 of shape [members].
        rule: Temperature and sharpness.

    Returns:
        float64, shape [K], in [0, 1], adding up to 1.
    """
    with np.errstate(over="ignore"):  # of rules that no calibration finds
        worth = np.array([rule.sharpness * np.logaddexp.reduce(team / rule.temperature) for team in teams])
        weights = np.exp(np.clip(worth, -_MOST, _MOST) - min(worth.max(), _MOST))
    return np.asarray(weights / weights.sum())


def smaller(first: float | None, second: float | None) -> float | None:
    """Return the smaller of two numbers; None if one of them is missing."""
    return None if first is None or second is None else min(first, second)


class Gate:
    """Applies a ``GateSpec`` to one response, to a pair, or to N candidates."""

    def __init__(self, spec: GateSpec) -> None:
        """Keep the spec; the gate has no other state."""
        self.spec = spec

    def single(self, response: Confidences) -> Decision:
        """Decide about one response."""
        return self._decide(
            intuition_confidence(response.logit, self.spec.temperature), response.distribution_confidence
        )

    def pair(self, first: Confidences, second: Confidences) -> Decision:
        """Decide about a pair of responses.

        The intuition confidence is that of the difference of the two logits (Bradley-Terry); the word-distribution
        confidence is the smaller one of the two responses.
        """
        return self._decide(
            intuition_confidence(first.logit - second.logit, self.spec.temperature),
            smaller(first.distribution_confidence, second.distribution_confidence),
        )

    def read_pair(self, logit: float, distribution: float | None) -> Decision:
        """Decide about a pair that the model read as a pair.

        Args:
            logit: Log-odds that the first response is the better one; 0 where the two orders of the pair disagree.
            distribution: The smaller word-distribution confidence of the two orders.
        """
        return self._decide(intuition_confidence(logit, self.spec.temperature), distribution)

    def answer(self, logit: float, votes: Sequence[float]) -> float | None:
        """Return the probability that the first response of a pair is the better one, by both paths together.

        Args:
            logit: Difference of the fast logits, or the log-odds of a pair that was read as a pair.
            votes: The probability of the first response that each of the judge's votes gives, in [0, 1].

        Returns:
            The probability, in [0, 1]; None where the gate has no weights or there are no votes, so that another rule
            has to decide.
        """
        weights = self.spec.weights
        return None if weights is None or not votes else sigmoid(weights.logit(logit, votes))

    def contenders(self, candidates: Sequence[Confidences]) -> list[int]:
        """Return which candidates the fast scores cannot tell apart from the best one.

        The best by fast logit (the earliest on ties) is always among them. Another candidate is, if the gate asks for
        slow thinking about the pair (best, candidate).

        Args:
            candidates: Any number of candidates.

        Returns:
            Their positions, the best first, by falling logit. A list of one means that the fast scores settle it.
        """
        order = sorted(range(len(candidates)), key=lambda i: (-candidates[i].logit, i))
        if not order:
            return []
        best = candidates[order[0]]
        return [order[0], *(i for i in order[1:] if self.pair(best, candidates[i]).escalate)]

    def best_of(self, candidates: Sequence[Confidences], teams: Sequence[Hashable]) -> ListDecision:
        """Decide about N candidates by the rule for lists; ``ListSpec`` explains it.

        Args:
            candidates: At least one.
            teams: The team of each candidate: equal values are one team.

        Returns:
            The decision. Teams of equal share come in the order of their best candidates: by logit, then by position.

        Raises:
            GateSpecError: If the gate has no rule for lists, there is no candidate, or the lengths differ.
        """
        rule = self.spec.lists
        if rule is None:
            raise GateSpecError("gate: there is no rule for lists; calibrate one with fsrm-lite calibrate LISTS.jsonl")
        if not candidates or len(candidates) != len(teams):
            raise GateSpecError(
                f"gate: got {len(candidates)} candidates and {len(teams)} teams, expected one team per candidate"
            )
        logits = np.array([c.logit for c in candidates], dtype=np.float64)
        best_first = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
        members: dict[Hashable, list[int]] = {}
        for i in best_first:
            members.setdefault(teams[i], []).append(i)
        captains = [team[0] for team in members.values()]
        shares = list_shares([logits[team] for team in members.values()], rule)
        order = sorted(range(len(captains)), key=lambda k: -shares[k])
        covered = np.cumsum([shares[k] for k in order])
        enough = 1 + int(np.argmax(covered >= rule.coverage)) if covered[-1] >= rule.coverage else len(order)
        contenders = enough if rule.coverage < 1.0 else len(order)
        return ListDecision(
            contenders > 1, tuple(captains[k] for k in order), tuple(float(shares[k]) for k in order), contenders
        )

    def _decide(self, intuition: float, distribution: float | None) -> Decision:
        """Compare two confidences with the thresholds, and return the decision with its reasons."""
        spec = self.spec
        reasons = []
        if intuition < spec.intuition_threshold:
            reasons.append(f"intuition confidence {intuition:.3f} < {spec.intuition_threshold:.3f}")
        if distribution is not None and distribution < spec.distribution_threshold:
            reasons.append(f"distribution confidence {distribution:.3f} < {spec.distribution_threshold:.3f}")
        escalate = len(reasons) == 2 if spec.combine == "all" else bool(reasons)
        if spec.always:
            escalate, reasons = True, ["the gate is set to escalate everything"]
        return Decision(escalate, intuition, distribution, tuple(reasons) if escalate else ())


def _take_numpy(spec: GateSpec | ListSpec) -> None:
    """Turn numpy's numbers, which come from a table or an array, into Python's own."""
    for name in spec.__dataclass_fields__:
        if isinstance(value := getattr(spec, name), np.generic):
            object.__setattr__(spec, name, value.item())


def _is_number(value: object) -> bool:
    """Return whether a value is a number that a float can hold; infinities are."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def _entries(kind: type, data: object, what: str) -> dict[str, Any]:
    """Return the entries of a JSON object; raise unless they are fields of ``kind`` and none that is needed lacks."""
    if not isinstance(data, Mapping):
        raise GateSpecError(f"{what}: got a {type(data).__name__}, expected an object of thresholds")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise GateSpecError(f"{what}: unknown keys {unknown}, expected among {sorted(known)}")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in data]
    if missing:
        raise GateSpecError(f"{what}: the keys {missing} are missing")
    return dict(data)
