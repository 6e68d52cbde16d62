"""Labelled items, and the same items as arrays (a sample).

A labelled item is a response or a pair whose right answer is known, with its fast readings and, where the judge was
asked, the judge's answer. Calibration and the figures of a model are computed from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.checks import is_number
from fsrm_lite.errors import CalibrationError, DataFormatError
from fsrm_lite.gate import AnswerWeights, FastSignals, intuition_confidence, sigmoid, votes_logit
from fsrm_lite.slow.voting import winner_alone
from fsrm_lite.types import Comparison, Prompt, Score

if TYPE_CHECKING:
    from fsrm_lite.measure.evaluation_records import Record

CONFIDENCE_NAMES = ("intuition", "distribution", "joint")
"""The gate's two confidences, and a third one made of both: the smaller of the two ranks.

A gate whose two thresholds are raised together, from rank to rank, escalates items in the order of the third.
"""


@dataclass(frozen=True, slots=True)
class LabelledItem:
    """One response or one pair with its label, its fast readings and, where the judge was asked, the judge's answer.

    Attributes:
        key: Identity of the content; equal keys are the same item (see ``content_key``).
        readings: Fast readings: one for a single response, two for a pair.
        label: For a single response 1 when it is good, 0 when it is not. For a pair the position of the better
            response, 0 or 1.
        slow_correct: Whether the judge was right, by its votes alone; None when it was not asked.
        slow_tokens: Tokens that the judge wrote; None when it was not asked.
        group: Items with the same prompt share a group. A group is never split between tuning and testing.
        subset: Any name, for reports.
        slow_logit: The log-odds that the judge's votes give the first response of a pair
            (``fsrm_lite.gate.votes_logit``); None where they are not known.
    """

    key: str
    readings: tuple[FastSignals, ...]
    label: int
    slow_correct: bool | None = None
    slow_tokens: float | None = None
    group: str = ""
    subset: str = ""
    slow_logit: float | None = None

    def __post_init__(self) -> None:
        """Refuse a wrong number of readings or a label out of range."""
        if len(self.readings) not in (1, 2):
            raise CalibrationError(
                f"item {self.key!r} has {len(self.readings)} readings, expected 1 (a response) or 2 (a pair)"
            )
        if self.label not in (0, 1):
            raise CalibrationError(f"item {self.key!r} has the label {self.label!r}, expected 0 or 1")

    @property
    def logit(self) -> float:
        """Score logit of a single response; for a pair the first response's minus the second's."""
        return self.readings[0].logit - (self.readings[1].logit if len(self.readings) == 2 else 0.0)

    @property
    def distribution_confidence(self) -> float | None:
        """The word-distribution confidence in [0, 1]; for a pair the smaller one of both responses; None without one.

        The gate takes a confidence that a reading lacks for one that is never too low.
        """
        return min(
            (r.distribution_confidence for r in self.readings if r.distribution_confidence is not None), default=None
        )

    @property
    def fast_correct(self) -> bool:
        """Whether the fast score agrees with the label; a tie does not."""
        toward_one = self.logit if len(self.readings) == 1 else -self.logit
        return toward_one > 0 if self.label == 1 else toward_one < 0

    @classmethod
    def from_comparison(
        cls, key: str, comparison: Comparison, label: int, *, group: str = "", subset: str = ""
    ) -> LabelledItem:
        """Make an item from the comparison of a pair.

        Args:
            key: Identity of the pair; see ``content_key``.
            comparison: Made with ``judge="always"``, or with "never" if the judge's answer is not wanted.
            label: Position of the better response, 0 or 1.
            group: Identity of the prompt; see ``group_key``.
            subset: Any name, for reports.

        """
        readings = pair_signals(comparison)
        slow = comparison.route == "slow"
        alone = winner_alone(comparison.votes, comparison.logit) if comparison.combined else comparison.winner
        return cls(
            key,
            readings,
            label,
            slow_correct=alone == label if slow else None,
            slow_tokens=comparison.tokens_generated if slow else None,
            group=group,
            subset=subset,
            slow_logit=votes_logit([v.p_first for v in comparison.votes]) if comparison.votes else None,
        )

    @classmethod
    def from_record(cls, record: Record) -> list[LabelledItem]:
        """Make items of one line of the results file that ``eval -o`` wrote.

        Args:
            record: The line. Of a pair it becomes one item, otherwise one item per response, as the gate decides.

        Returns:
            The items; none for a pair that its annotators call a tie, and for responses that were not read.
        """
        readings = [
            None if logit is None else FastSignals(logit, sigmoid(logit), confidence, mass)
            for logit, confidence, mass in zip(
                record.logits, record.distribution_confidences, record.label_masses, strict=True
            )
        ]
        slow, known = record.slow, [r for r in readings if r is not None]
        if record.pairwise:
            if len(known) < 2 or not record.right:
                return []
            return [
                cls(
                    record.key,
                    tuple(known),
                    record.right[0],
                    slow_correct=(slow.decision if slow.alone is None else slow.alone) in record.right
                    if slow
                    else None,
                    slow_tokens=slow.tokens[0] if slow else None,
                    group=record.group,
                    subset=record.subset,
                    slow_logit=slow.votes_logit if slow else None,
                )
            ]
        items = []
        for i, reading in enumerate(readings):
            if reading is None:
                continue
            judged = slow.logits[i] if slow else None
            items.append(
                cls(
                    f"{record.key}:{i}",
                    (reading,),
                    int(i in record.right),
                    slow_correct=(judged > 0) == (i in record.right) if judged is not None else None,
                    slow_tokens=slow.tokens[i] if slow and judged is not None else None,
                    group=record.group,
                    subset=record.subset,
                )
            )
        return items

    def to_dict(self) -> dict[str, Any]:
        """Return the item as plain values: one row of the file that ``calibrate --record`` writes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelledItem:
        """Make an item from its plain values.

        Raises:
            DataFormatError: If something is missing or of a wrong type.
            CalibrationError: If the label or the number of readings is out of range.
        """
        try:
            readings = tuple(signals_from(r) for r in data["readings"])
            if data.get("has_distribution") is False:  # older files say so beside a 1
                readings = tuple(replace(r, distribution_confidence=None, label_mass=None) for r in readings)
            names = [data.get(name, "") for name in ("key", "group", "subset")]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"key, group and subset are {names!r}")
            tokens, right = data.get("slow_tokens"), data.get("slow_correct")
            if not (right is None or isinstance(right, bool)) or not (
                tokens is None or (is_number(tokens) and tokens >= 0)
            ):
                raise ValueError(f"slow_correct is {right!r} and slow_tokens {tokens!r}")
            odds = data.get("slow_logit")
            if odds is not None and not is_number(odds):
                raise ValueError(f"slow_logit is {odds!r}")
            fields = {name: value for name, value in data.items() if name != "has_distribution"}
            return cls(**{**fields, "readings": readings})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise DataFormatError(
                f"not a recorded item ({error}); expected what 'calibrate --record' writes"
            ) from error


@dataclass(frozen=True)
class Sample:
    """Labelled items as arrays, each of shape [n].

    Attributes:
        logit: Score logit, or difference of the score logits of a pair; float64.
        distribution: Word-distribution confidence, float64 in [0, 1]; NaN for an item that has none, which no threshold
            escalates.
        toward: Logit in favour of the label, float64: the logit with its sign chosen so that positive means right.
        fast_correct: Whether the fast score agrees with the label, bool.
        slow_correct: Whether the judge was right, bool; None unless it was asked about every item.
        slow_tokens: Tokens that the judge wrote, float64; None unless it was asked about every item.
        groups: Group of each item, str.
        slow_toward: Log-odds that the votes give the label, float64; None unless they are known of every item.
    """

    logit: NDArray[np.float64]
    distribution: NDArray[np.float64]
    toward: NDArray[np.float64]
    fast_correct: NDArray[np.bool_]
    slow_correct: NDArray[np.bool_] | None
    slow_tokens: NDArray[np.float64] | None
    groups: NDArray[np.str_]
    slow_toward: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.logit)

    @property
    def has_distribution(self) -> bool:
        """Whether every item has a word-distribution confidence; only then are thresholds set on it."""
        return not bool(np.isnan(self.distribution).any())

    @classmethod
    def of(cls, items: Sequence[LabelledItem]) -> Sample:
        """Make a sample of items. It has the judge's answers only if every item has one."""
        logit = np.array([x.logit for x in items], dtype=np.float64)
        sign = np.array([1.0 if (x.label == 1) == (len(x.readings) == 1) else -1.0 for x in items])
        slow = bool(items) and all(x.slow_correct is not None and x.slow_tokens is not None for x in items)
        return cls(
            logit=logit,
            distribution=np.array([x.distribution_confidence for x in items], dtype=np.float64),  # None becomes NaN
            toward=logit * sign,
            fast_correct=logit * sign > 0,
            slow_correct=np.array([bool(x.slow_correct) for x in items]) if slow else None,
            slow_tokens=np.array([x.slow_tokens for x in items], dtype=np.float64) if slow else None,
            groups=np.array([x.group or x.key for x in items], dtype=np.str_),
            slow_toward=sign * np.array([x.slow_logit for x in items], dtype=np.float64)
            if slow and all(x.slow_logit is not None for x in items)
            else None,
        )

    def take(self, positions: NDArray[np.int64] | NDArray[np.bool_]) -> Sample:
        """Return the items at the positions (or where the flags are true) as a sample of their own."""
        return Sample(
            self.logit[positions],
            self.distribution[positions],
            self.toward[positions],
            self.fast_correct[positions],
            None if self.slow_correct is None else self.slow_correct[positions],
            None if self.slow_tokens is None else self.slow_tokens[positions],
            self.groups[positions],
            None if self.slow_toward is None else self.slow_toward[positions],
        )

    def answered_by(self, weights: AnswerWeights | None) -> Sample:
        """Return the sample with the answers after slow thinking that a gate with these weights gives.

        Where the log-odds of both paths together are exactly 0, the votes' answer stays, as it does without weights or
        where the votes are not known.
        """
        if weights is None or self.slow_correct is None or self.slow_toward is None:
            return self
        together = weights.fast * self.toward + weights.votes * self.slow_toward
        return replace(self, slow_correct=np.where(together == 0, self.slow_correct, together > 0))

    def intuition(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return the intuition confidence of each item at a temperature, float64, shape [n], in [0, 1].

        It says how decided the score is: 0 for a score of one half (or a tied pair), 1 for a score of 0 or 1. It is
        computed as the gate does it: numpy's tanh may differ in the last bit, and an item that lies on a threshold
        would then be decided otherwise here.
        """
        return np.array([intuition_confidence(logit, temperature) for logit in self.logit.tolist()], dtype=np.float64)

    def confidences(self) -> dict[str, NDArray[np.float64]]:
        """Return the three confidences by name (``CONFIDENCE_NAMES``), each float64 of shape [n].

        Only the order of their values counts, which no temperature changes. Where an item has no word-distribution
        confidence, only the intuition confidence is there.
        """
        # The size of the logit gives the same order as the intuition confidence, but does not round to 1 where large.
        intuition = np.abs(self.logit)
        if not self.has_distribution:
            return {"intuition": intuition}
        return {
            "intuition": intuition,
            "distribution": self.distribution,
            "joint": np.minimum(_ranks(intuition), _ranks(self.distribution)),
        }


def signals_from(data: Mapping[str, Any]) -> FastSignals:
    """Return a reading from its plain values; what it lacks, it may hold as null.

    Raises:
        ValueError: If a value is no number that a float can hold.
        TypeError: If one is missing or unknown.
    """
    wrong = {name: value for name, value in data.items() if value is not None and not is_number(value)}
    if wrong or data.get("logit", 0.0) is None or data.get("score", 0.0) is None:
        raise ValueError(f"a reading is not a number: {short(dict(data))}")
    numbers: dict[str, Any] = {name: None if value is None else float(value) for name, value in data.items()}
    return FastSignals(**numbers)


def fast_signals(score: Score) -> FastSignals:
    """Return what the gate looks at in a fast score."""
    return FastSignals(score.logit, score.score, score.distribution_confidence, score.label_mass)


def pair_signals(comparison: Comparison) -> tuple[FastSignals, ...]:
    """Return what the gate looks at in the comparison of a pair: one reading per response.

    The pair of a model that reads pairs becomes two readings whose logits differ by what the gate saw.
    """
    if comparison.scores is not None:
        return tuple(fast_signals(score) for score in comparison.scores)
    return tuple(
        FastSignals(logit, sigmoid(logit), comparison.distribution_confidence, comparison.label_mass)
        for logit in (comparison.logit, 0.0)
    )


def content_key(prompt: Prompt, responses: Iterable[str]) -> str:
    """Return the identity of an item: the same prompt and responses, in any order, have the same key."""
    text = json.dumps([prompt, sorted(responses)], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def group_key(prompt: Prompt) -> str:
    """Return the identity of a prompt."""
    return content_key(prompt, ())


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value: the share of values below it, float64, shape [n]. Equal values share a rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - counts)[inverse] / len(values))
