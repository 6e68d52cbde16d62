"""Does an exported file decide like the checkpoint? The measures, the tolerances, and nothing that runs a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsrm_lite.bundle.manifest import Manifest
from fsrm_lite.errors import ExportError
from fsrm_lite.export.parity.readings import TIE_LOGIT
from fsrm_lite.gate import FastSignals, Gate, sigmoid, signals

FP32_NOISE_LOGIT = 1e-3
"""Pairs whose score logits are closer than this in the reference are ties to float32."""


class Reading(Protocol):
    """A first-token reading: what :class:`fsrm_lite.runtimes.reading.FastReading` gives, from any file."""

    @property
    def label_logits(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def log_mass(self) -> float | None: ...  # noqa: D102
    @property
    def entropy(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What an export must meet.

    Attributes:
        delta_logit: Largest |delta label logit| of an fp32 graph.
        delta_score: Largest |delta score| of a quantized graph, scores in [0, 1].
        delta_margin: Largest |delta| of a pair's difference of rewards of a quantized graph with a scalar head, as a
            share of the root mean square of these differences: rewards have a scale of their own.
        label_mass: Smallest median of the labels' probability together, in the checkpoint itself. Where it is lower,
            the model was not about to answer with a label, and its scores mean little.
        decisions: Share of pairwise fast decisions that must be alike, of those that are no near ties.
        routes: Share of gate decisions that must be alike, of those that are no near ties.
        verdicts: Share of greedy chains of thought whose verdict must be equal, near ties aside, each file thinking
            for itself, and also behind the checkpoint's own thoughts.
        delta_verdict: How far the probability of a choice may move. Where the checkpoint's two best choices, or the two
            best tokens of its thought, could change places by that, they are a near tie.
    """

    delta_logit: float = 1e-3
    delta_score: float = 0.02
    delta_margin: float = 0.1
    label_mass: float = 0.5
    decisions: float = 0.99
    routes: float = 0.99
    verdicts: float = 0.98
    delta_verdict: float = 0.05

    @classmethod
    def from_mapping(cls, values: Mapping[str, float] | None) -> Tolerance:
        """Build from some of the fields.

        Raises:
            ExportError: On an unknown name or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        for name, value in (values or {}).items():
            if name not in known:
                raise ExportError(f"unknown tolerance {name!r}, expected one of {', '.join(known)}")
            if not isinstance(value, int | float) or not value >= 0 or (not name.startswith("delta") and value > 1):
                raise ExportError(f"tolerance {name} is {value!r}, expected a number >= 0 (a share: at most 1)")
        return cls(**(values or {}))

    def of_fast(self, precision: str, *, scalar: bool = False) -> dict[str, float]:
        """What a fast file of this precision must meet, by field; the others say nothing about it."""
        quantized = {"delta_margin": self.delta_margin} if scalar else {"delta_score": self.delta_score}
        difference = {"delta_logit": self.delta_logit} if precision == "fp32" else quantized
        mass = {} if scalar else {"label_mass": self.label_mass}
        return {**difference, **mass, "decisions": self.decisions, "routes": self.routes}

    def near_tie(self, precision: str, margins: float | None = None) -> float:
        """Score logits this close are a near tie: the difference allowed, where a score is near one half.

        There a score moves by a quarter of what its logit moves by. Two scores that are both within tolerance may
        change places when they are so close, so that a decision between them says nothing about the file.

        Args:
            precision: Of the file.
            margins: With a scalar head the root mean square of the differences of rewards; else None.
        """
        if margins is not None and precision != "fp32":
            return max(FP32_NOISE_LOGIT, self.delta_margin * margins)
        return FP32_NOISE_LOGIT if precision == "fp32" else max(FP32_NOISE_LOGIT, 4 * self.delta_score)

    def near_tie_verdict(self) -> float:
        """Logits of a verdict this close are a near tie, and so are those of a thought's two best tokens.

        As for scores, a probability near one half moves by a quarter of what its logit moves by. llama.cpp rounds what
        goes into a product to 8 bits too, 32 numbers at a time, whatever type the weights have; that alone moves the
        verdicts of a file which nobody would call wrong.
        """
        return max(TIE_LOGIT, 4 * self.delta_verdict)

    def of_slow(self) -> dict[str, float]:
        """What a slow file must meet, by field."""
        return {"verdicts": self.verdicts}


@dataclass(frozen=True, slots=True)
class FirstTokenParity:
    """How close the first-token readings of a file are to the checkpoint's, over a calibration set.

    Attributes:
        items: Responses read.
        pairs: Pairs compared.
        max_delta_logit: Largest |delta| of a label's raw logit.
        mean_delta_logit: Mean of the same.
        max_delta_score: Largest |delta score|.
        mean_delta_score: Mean of the same.
        decisions_alike: Share of clear pairs with the same preferred response; clear is what is no near tie in the
            reference, see :meth:`Tolerance.near_tie`.
        routes_alike: Share of clear gate decisions (each pair, each response) that are the same; clear is what stays
            the same in the reference when its score logit moves by a near tie's distance.
        rank_correlation: Spearman's, of the score logits.
        noise: Mean |delta| of a pair's difference of score logits: what decisions have to stand out from.
        all_decisions_alike: Share of all pairs with the same preferred response, near ties included.
        clear_pairs: Pairs that are clear.
        clear_routes: Gate decisions that are clear.
        margins: Root mean square of the pairs' differences of score logits in the reference.
        max_delta_margin: Largest |delta| of a pair's difference of score logits, as a share of ``margins``.
        label_mass: Median of the labels' probability together in the reference; None with a scalar head.
    """

    items: int
    pairs: int
    max_delta_logit: float
    mean_delta_logit: float
    max_delta_score: float
    mean_delta_score: float
    decisions_alike: float
    routes_alike: float
    rank_correlation: float
    noise: float
    all_decisions_alike: float
    clear_pairs: int
    clear_routes: int
    margins: float = 0.0
    max_delta_margin: float = 0.0
    label_mass: float | None = 1.0

    @property
    def scalar(self) -> bool:
        """Whether a scalar head was read: it has no labels, and its rewards have a scale of their own."""
        return self.label_mass is None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, in six significant digits."""
        figures = asdict(self)
        if not self.scalar:  # differences of rewards are looked at where there is a scalar head
            del figures["margins"], figures["max_delta_margin"]
        return _rounded(figures)


@dataclass(frozen=True, slots=True)
class VerdictParity:
    """How often the judge's greedy chains end in the checkpoint's verdict.

    Attributes:
        chains: Chains of thought compared.
        parted_at_ties: Chains whose thoughts part at a near tie: at a token that the checkpoint itself held nearly as
            likely as its own (:meth:`Tolerance.near_tie_verdict`). They say nothing about the file, and count for
            nothing in the next figure.
        verdicts_alike: Share of the other chains with the same verdict; a verdict that is a near tie in the checkpoint
            counts as the same.
        thoughts_alike: Share whose thought is the same token by token.
        given_thought_alike: Share with the same verdict behind the *checkpoint's* thought: quantization error alone,
            without what one flipped token does to all that follow. A near tie counts as the same.
        max_delta_p: Largest |delta| of the verdict's probability behind the checkpoint's thought.
        thinking_tokens: Longest thought that was allowed.
        near_tie_verdicts: Chains whose verdict is a near tie in the checkpoint.
        all_given_thought_alike: Like ``given_thought_alike``, but a near tie counts as what it is.
        verdict_noise: Mean |delta| of the verdict's logit less that of the best other choice, behind the checkpoint's
            thought.
        parted_at: Where thoughts part, in tokens from their beginning, the median; None if none part.
        thoughts_ended: Share of the checkpoint's own thoughts that it ended by the declared close, within
            ``thinking_tokens``. The others were closed for it. Few of them may mean that the declared close is not what
            the model writes.
        choices_follow: Share of chains in which a choice is the checkpoint's likeliest token behind close and prefix.
            Few of them mean that the model goes on to something else there.
    """

    chains: int
    parted_at_ties: int
    verdicts_alike: float
    thoughts_alike: float
    given_thought_alike: float
    max_delta_p: float
    thinking_tokens: int
    near_tie_verdicts: int
    all_given_thought_alike: float
    verdict_noise: float
    parted_at: float | None
    thoughts_ended: float = 1.0
    choices_follow: float = 1.0

    def rank(self) -> tuple[float, float]:
        """What makes one slow file better than another."""
        return min(self.verdicts_alike, self.given_thought_alike), -self.max_delta_p

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, in six significant digits."""
        return _rounded(asdict(self))


def gate_signals(readings: Sequence[Reading], manifest: Manifest, shift: float = 0.0) -> list[FastSignals]:
    """The gate's view of each reading, its score logit moved by ``shift``."""
    if manifest.head == "scalar":
        rewards = [r.label_logits[0] + shift for r in readings]
        return [FastSignals(reward, sigmoid(reward), None, None) for reward in rewards]
    values = np.array([label.value for label in manifest.labels], dtype=np.float64)
    by = shift * (values - values.mean()) / np.ptp(values)
    vocab_size = manifest.vocab_size
    return [
        signals(np.asarray(r.label_logits) + by, values, log_mass=r.log_mass, entropy=r.entropy, vocab_size=vocab_size)
        for r in readings
    ]


def compare_readings(
    reference: Sequence[Reading],
    actual: Sequence[Reading],
    pairs: Sequence[tuple[int, int]],
    manifest: Manifest,
    near_tie: float = FP32_NOISE_LOGIT,
) -> FirstTokenParity:
    """Measure the readings of an exported file against the checkpoint's.

    Args:
        reference: Of the checkpoint in float32, one per item.
        actual: Of the file, the same items.
        pairs: Positions of two responses to one prompt.
        manifest: Gives label values and gate.
        near_tie: Distance of two score logits up to which a decision between them counts for nothing.
    """
    want, have = gate_signals(reference, manifest), gate_signals(actual, manifest)
    logits = np.abs(np.array([r.label_logits for r in actual]) - np.array([r.label_logits for r in reference]))
    scores = np.abs(np.array([s.score for s in have]) - np.array([s.score for s in want]))
    margins = np.array([[side[i].logit - side[j].logit for i, j in pairs] for side in (want, have)])
    same, clear = (margins[0] > 0) == (margins[1] > 0), np.abs(margins[0]) > near_tie
    moved = [gate_signals(reference, manifest, shift) for shift in (near_tie, -near_tie)]
    expected, got = _routes(want, want, pairs, manifest), _routes(have, have, pairs, manifest)
    spread = root_mean_square(margins[0])
    masses = [s.label_mass for s in want if s.label_mass is not None]
    firm = np.logical_and.reduce([_routes(side, want, pairs, manifest) == expected for side in moved])
    return FirstTokenParity(
        items=len(want),
        pairs=len(pairs),
        max_delta_logit=float(logits.max()),
        mean_delta_logit=float(logits.mean()),
        max_delta_score=float(scores.max()),
        mean_delta_score=float(scores.mean()),
        decisions_alike=_share(same[clear]),
        routes_alike=_share((expected == got)[firm]),
        rank_correlation=spearman([s.logit for s in want], [s.logit for s in have]),
        noise=float(np.abs(margins[0] - margins[1]).mean()) if len(pairs) else 0.0,
        all_decisions_alike=_share(same),
        clear_pairs=int(clear.sum()),
        clear_routes=int(firm.sum()),
        margins=spread,
        max_delta_margin=float(np.abs(margins[0] - margins[1]).max() / max(spread, 1e-12)) if len(pairs) else 0.0,
        label_mass=float(np.median(masses)) if masses else None,
    )


def root_mean_square(values: ArrayLike) -> float:
    """Return the root of the mean of the squares; 0 of no values."""
    array = np.asarray(values, dtype=np.float64)
    return float(np.sqrt(np.square(array).mean())) if array.size else 0.0


def _routes(
    side: Sequence[FastSignals], other: Sequence[FastSignals], pairs: Sequence[tuple[int, int]], manifest: Manifest
) -> NDArray[np.bool_]:
    """Whether the gate escalates each response of ``side``, and each pair of one of it with one of ``other``."""
    gate = Gate(manifest.gate)
    single = [gate.single(s).escalate for s in side]
    return np.array(single + [gate.pair(side[i], other[j]).escalate for i, j in pairs], dtype=bool)


def at_best(part: FirstTokenParity, items: int, pairs: int) -> FirstTokenParity:
    """What the figures of a whole set can be at best when some of it measured ``part``.

    All the rest is clear and alike.
    """
    clear_pairs = part.clear_pairs + pairs - part.pairs
    clear_routes = part.clear_routes + items + pairs - part.items - part.pairs
    return replace(
        part,
        decisions_alike=1 - (1 - part.decisions_alike) * part.clear_pairs / max(clear_pairs, 1),
        routes_alike=1 - (1 - part.routes_alike) * part.clear_routes / max(clear_routes, 1),
    )


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation of two vectors, ties sharing their mean rank; 1 if both are constant."""
    a, b = _ranks(np.asarray(x, dtype=np.float64)), _ranks(np.asarray(y, dtype=np.float64))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float(np.array_equal(a, b))


def excess(precision: str, parity: FirstTokenParity, tolerance: Tolerance) -> float:
    """Worst figure of a fast file divided by what is allowed; at most 1 when it is within tolerance."""
    if precision == "fp32":
        difference = (parity.max_delta_logit, tolerance.delta_logit)
    elif parity.scalar:
        difference = (parity.max_delta_margin, tolerance.delta_margin)
    else:
        difference = (parity.max_delta_score, tolerance.delta_score)
    figures = [
        difference,
        (1 - parity.decisions_alike, 1 - tolerance.decisions),
        (1 - parity.routes_alike, 1 - tolerance.routes),
    ]
    return max((figure / allowed if allowed > 0 else math.inf if figure > 0 else 0.0) for figure, allowed in figures)


@dataclass(frozen=True, slots=True)
class Violations:
    """What is out of tolerance, one sentence each, by the file that is to blame. It is false when all is well.

    Attributes:
        fast: About the fast file, or about the checkpoint whose first token it reads.
        slow: About the slow file.
    """

    fast: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything is out of tolerance."""
        return bool(self.fast or self.slow)

    def lines(self) -> list[str]:
        """Return the sentences, each behind the name of its file."""
        return [*(f"fast: {sentence}" for sentence in self.fast), *(f"slow: {sentence}" for sentence in self.slow)]


def violations(
    precision: str, fast: FirstTokenParity | None, slow: VerdictParity | None, tolerance: Tolerance
) -> Violations:
    """What is out of tolerance, each sentence ending in the flag that would help.

    Args:
        precision: Of the fast file: "fp32", "int8" or "int4".
        fast: Parity of the fast file.
        slow: Parity of the slow file's verdicts, or None if there is no such file.
        tolerance: What to meet.
    """
    return Violations(
        () if fast is None else tuple(_fast_violations(precision, fast, tolerance)),
        () if slow is None else tuple(verdict_violations(slow, tolerance)),
    )


def _fast_violations(precision: str, fast: FirstTokenParity, tolerance: Tolerance) -> list[str]:
    found = []
    help_fast = {"fp32": "", "int8": "; try --fast fp32", "int4": "; try --fast int8"}[precision]
    # "not <=" in place of ">": a figure that is not a number is out of tolerance.
    if precision == "fp32":
        if not fast.max_delta_logit <= tolerance.delta_logit:
            found.append(
                f"a label logit is off by {fast.max_delta_logit:.2g}, allowed {tolerance.delta_logit:.2g}; "
                "see --tolerance delta_logit"
            )
    elif fast.scalar:
        if not fast.max_delta_margin <= tolerance.delta_margin:
            found.append(
                f"a difference of rewards is off by {fast.max_delta_margin:.2g} of their spread, allowed "
                f"{tolerance.delta_margin:.2g}{help_fast}"
            )
    elif not fast.max_delta_score <= tolerance.delta_score:
        found.append(f"a score is off by {fast.max_delta_score:.2g}, allowed {tolerance.delta_score:.2g}{help_fast}")
    shares = (
        (fast.decisions_alike, tolerance.decisions, "clear pairwise decisions"),
        (fast.routes_alike, tolerance.routes, "clear gate routes"),
    )
    found += [
        f"{share:.2%} of {what} alike, expected {least:.2%}{help_fast}"
        for share, least, what in shares
        if not share >= least
    ]
    return found


def verdict_violations(verdicts: VerdictParity, tolerance: Tolerance) -> list[str]:
    """What is out of tolerance in a file's verdicts, one sentence each; empty when all is well."""
    shares = ((verdicts.verdicts_alike, ""), (verdicts.given_thought_alike, " behind the checkpoint's own thoughts"))
    form = "{:.2%} of clear verdicts alike{}, expected {:.2%}; try a wider --slow, up to f16"
    return [form.format(share, what, tolerance.verdicts) for share, what in shares if not share >= tolerance.verdicts]


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in figures.items()}


def _share(alike: Any) -> float:  # noqa: ANN401 - any iterable of bool
    values = list(alike)
    return sum(values) / len(values) if values else 1.0


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
