"""Checks that the gate of another build (for example one in another language) decides like this one.

For that there are test vectors. A vector is one JSON object with thresholds, the numbers of a fast reading (of one
response, of a pair or of N candidates), and what the gate decides on them. A vector of the kind ``list`` also has the
team of each candidate, and tests the gate's rule for lists; one of the kind ``answer`` has the votes on a pair, and
tests how both paths answer together. They come with the package as ``gate_vectors.jsonl``; ``vectors`` makes them.
Decisions that another build recorded on data of its own can be checked as well. A build that computes in float32 agrees
on the confidences to about 1e-6, and must agree on every decision.

JSON has no infinity, so infinite logits are written as the strings ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate
from typing import Any

from fsrm_lite.errors import DataFormatError, GateSpecError
from fsrm_lite.gate import Decision, FastSignals, Gate, GateSpec, ListDecision, signals

VECTORS_FILE = "gate_vectors.jsonl"
DEFAULT_TOLERANCE = 1e-6
"""Largest absolute difference between two builds' confidences that counts as rounding."""

_SEED = 20260320
_VOCAB_SIZES = (2, 1024, 151936)
_LABELS: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.0, 1.0), (1.0, 2.0, 3.0, 4.0, 5.0))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One field of one row on which two builds disagree.

    Attributes:
        row: The row's ``id``, or its position (from 1) where it has none.
        field: ``escalate``, ``contenders``, ``share``, ``winner``, ``p_first``, ``intuition_confidence`` or
            ``distribution_confidence``.
        expected: What this package computes.
        got: What the row says.
        borderline: Whether a confidence is so near to its threshold that rounding alone can change the decision.
    """

    row: str
    field: str
    expected: Any
    got: Any
    borderline: bool = False


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What ``check`` found.

    Attributes:
        checked: Number of rows read.
        mismatches: Every disagreement, in the order of the rows.
    """

    checked: int
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        """Whether the two builds agree on everything."""
        return not self.mismatches


def shipped_vectors() -> list[dict[str, Any]]:
    """Return the vectors that come with the package."""
    text = files("fsrm_lite.measure").joinpath(VECTORS_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def vectors() -> Iterator[dict[str, Any]]:
    """Yield the test vectors, newly made: the same ones each time, in the same order."""
    rng = random.Random(_SEED)
    for number, row in enumerate([*_edge_rows(), *_random_rows(rng), *_list_rows(rng), *_answer_rows(rng)]):
        row = {"id": f"{row['kind']}-{number:04d}", **row}
        yield {**row, "expected": decide(row)}


def decide(row: Mapping[str, Any], gate: GateSpec | None = None) -> dict[str, Any]:
    """Return what this package's gate decides on a row.

    Args:
        row: ``label_values``; ``responses``, each with ``label_logits`` and optionally ``log_mass`` and ``entropy``;
            ``vocab_size``, needed beside an entropy; and optionally ``gate`` and ``kind``. For the kind ``list``
            also ``teams``, a number or text per response: equal ones are one team. For the kind ``answer`` also
            ``votes``, each vote's probability of the first response.
        gate: Used where the row has no ``gate`` of its own.

    Returns:
        For one response or a pair ``intuition_confidence``, ``distribution_confidence`` and ``escalate``. For N
        candidates ``contenders``: the positions that the gate cannot tell from the best, best fast score first. For a
        list ``contenders``, the positions of the contending teams' best candidates, best team first, and ``share``, the
        share of the best team. For an answer ``winner``, 0 or 1, and ``p_first``, the probability of the first
        response; where that is one half, another rule decides, and the winner says nothing.

    Raises:
        DataFormatError: If the row lacks something or is of an unknown kind.
        GateSpecError: If its gate or its numbers cannot be used.
    """
    readings = _readings(row)
    if "gate" not in row and gate is None:
        raise DataFormatError("the row has no 'gate', and none was given; pass one with --gate")
    rule = Gate(GateSpec.from_dict(row["gate"]) if "gate" in row else gate or GateSpec())
    kind = _kind(row, len(readings))
    if kind == "candidates":
        return {"contenders": rule.contenders(readings)}
    if kind == "list":
        decision = _list_decision(row, rule, readings)
        return {"contenders": list(decision.order[: decision.contenders]), "share": decision.shares[0]}
    if kind == "answer":
        p_first = rule.answer(readings[0].logit - readings[1].logit, _votes(row))
        if p_first is None:
            raise GateSpecError("gate: there are no weights for an answer by both paths")
        return {"winner": int(p_first < 0.5), "p_first": p_first}
    return _decision_dict(rule.single(readings[0]) if kind == "single" else rule.pair(*readings))


def check(
    rows: Iterable[Mapping[str, Any]],
    *,
    gate: GateSpec | None = None,
    defaults: Mapping[str, Any] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> CheckResult:
    """Compare another build's recorded decisions with this package's.

    Args:
        rows: Rows like the vectors, with the other build's decision under ``decision`` (or ``expected``). A row of only
            ``id`` and ``decision`` is about the package's vector with that id.
        gate: Used for rows without a gate.
        defaults: ``label_values`` and ``vocab_size`` of a model, for rows that do not give them.
        tolerance: Largest absolute difference of two confidences that is not reported.

    Returns:
        The number of rows read, and every disagreement.

    Raises:
        DataFormatError: If a row cannot be read, or there is none.
    """
    known: dict[str, dict[str, Any]] = {}
    mismatches: list[Mismatch] = []
    checked = 0
    for position, row in enumerate(rows, start=1):
        claimed = row.get(
            "decision", row.get("expected")
        )  # read before the row is joined with a shipped vector, which has a decision of its own
        if "responses" not in row and "id" in row:
            known = known or {v["id"]: v for v in shipped_vectors()}
            if str(row["id"]) not in known:
                raise DataFormatError(
                    f"row {position}: no shipped vector has the id {row['id']!r}, "
                    "and the row has no 'responses' of its own"
                )
            row = {**known[str(row["id"])], **row}
        row = {**(defaults or {}), **row}
        if not isinstance(claimed, Mapping):
            raise DataFormatError(
                f"row {position}: 'decision' is {claimed!r}, expected an object with 'escalate', 'contenders' "
                "or 'winner'"
            )
        try:
            mismatches.extend(_differences(str(row.get("id", position)), row, claimed, gate, tolerance))
        except KeyError as error:
            raise DataFormatError(f"row {position}: the field {error} is missing") from error
        except (GateSpecError, DataFormatError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataFormatError(f"row {position}: {error}") from error
        checked += 1
    if not checked:
        raise DataFormatError("there are no decisions to check; expected one JSON object per line")
    return CheckResult(checked, tuple(mismatches))


def _differences(
    name: str, row: Mapping[str, Any], claimed: Mapping[str, Any], gate: GateSpec | None, tolerance: float
) -> list[Mismatch]:
    """Return the fields of one row on which ``claimed`` differs from what this package decides."""
    expected = decide(row, gate)
    verdict = next(name for name in ("contenders", "winner", "escalate") if name in expected)
    if verdict not in claimed:
        raise DataFormatError(f"'decision' has no {verdict!r}")
    found = []
    for field, value in expected.items():
        if field not in claimed:
            continue
        got = claimed[field]
        if field == verdict:
            if got != value:
                found.append(Mismatch(name, field, value, got, _borderline(row, expected, gate, tolerance)))
        elif not abs(float(got) - value) <= tolerance:
            found.append(Mismatch(name, field, value, got))
    return found


def _borderline(row: Mapping[str, Any], expected: Mapping[str, Any], gate: GateSpec | None, tolerance: float) -> bool:
    spec = GateSpec.from_dict(row["gate"]) if "gate" in row else gate or GateSpec()
    if "share" in expected and spec.lists is not None:
        covered = accumulate(_list_decision(row, Gate(spec), _readings(row)).shares)
        return any(abs(sum_ - spec.lists.coverage) <= tolerance for sum_ in covered)
    if "p_first" in expected:
        return bool(abs(expected["p_first"] - 0.5) <= tolerance)
    names = ("intuition", "distribution")
    return any(
        abs(expected.get(f"{n}_confidence", math.inf) - getattr(spec, f"{n}_threshold")) <= tolerance for n in names
    )


def _kind(row: Mapping[str, Any], count: int) -> str:
    kind = row.get("kind") or {1: "single", 2: "pair"}.get(count, "candidates")
    wanted = {"single": count == 1, "pair": count == 2, "candidates": count >= 1, "list": count >= 1}
    wanted["answer"] = count == 2
    if kind not in wanted:
        raise DataFormatError(f"kind is {kind!r}, expected one of {', '.join(wanted)}")
    if not wanted[kind]:
        raise DataFormatError(f"a row of kind {kind!r} cannot have {count} responses")
    return str(kind)


def _readings(row: Mapping[str, Any]) -> list[FastSignals]:
    """Return what the gate looks at, for each response of a row."""
    for name in ("label_values", "responses"):
        if not isinstance(row.get(name), list) or not row[name]:
            raise DataFormatError(f"the row's {name!r} is {row.get(name)!r}, expected a non-empty list")
    return [
        signals(
            [_number(x) for x in response["label_logits"]],
            row["label_values"],
            log_mass=_optional(response.get("log_mass")),
            entropy=_optional(response.get("entropy")),
            vocab_size=row.get("vocab_size"),
        )
        for response in row["responses"]
    ]


def _list_decision(row: Mapping[str, Any], gate: Gate, readings: list[FastSignals]) -> ListDecision:
    teams = row.get("teams")
    if not isinstance(teams, list) or not all(isinstance(team, int | str) for team in teams):
        raise DataFormatError(f"the row's 'teams' is {teams!r}, expected a number or text per response")
    return gate.best_of(readings, teams)


def _votes(row: Mapping[str, Any]) -> list[float]:
    votes = row.get("votes")
    if not isinstance(votes, list) or not votes or not all(0.0 <= _number(vote) <= 1.0 for vote in votes):
        raise DataFormatError(f"the row's 'votes' is {votes!r}, expected probabilities of the first response")
    return [_number(vote) for vote in votes]


def _number(value: object) -> float:
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("inf", "-inf")):
        raise DataFormatError(f'{value!r} is not a number, "inf" or "-inf"')
    return float(value)


def _optional(value: object) -> float | None:
    return None if value is None else _number(value)


def _decision_dict(decision: Decision) -> dict[str, Any]:
    names = ("intuition_confidence", "distribution_confidence", "escalate")
    return {name: getattr(decision, name) for name in names}


def _spec(
    intuition: float, distribution: float, combine: str = "any", temperature: float = 1.0, always: bool = False
) -> dict[str, Any]:
    return {
        "intuition_threshold": intuition,
        "distribution_threshold": distribution,
        "combine": combine,
        "temperature": temperature,
        "always": always,
    }


def _row(
    kind: str, gate: dict[str, Any], values: tuple[float, ...], responses: list[dict[str, Any]], size: int | None = None
) -> dict[str, Any]:
    return {"kind": kind, "gate": gate, "label_values": list(values), "vocab_size": size, "responses": responses}


def _edge_rows() -> Iterator[dict[str, Any]]:
    """Yield rows with ties, infinities, and confidences that equal their threshold exactly.

    0, 1/2 and 1 are confidences that every build can compute exactly, in any floating-point format: they come from a
    tie, from an entropy of log(2) over four tokens, and from certainty. A confidence equal to its threshold must *not*
    escalate, so each is tried with the threshold of the same value.
    """
    ties, certainties = (
        ((0.0, 0.0), ("inf", "inf"), ("-inf", "-inf")),
        (("inf", 0.0), (0.0, "inf"), ("-inf", 0.0), ("inf", "-inf"), (80.0, -80.0)),
    )
    logits: tuple[tuple[Any, Any], ...] = (*ties, *certainties)
    specs = [
        _spec(*t, combine)
        for t in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
        for combine in ("any", "all")
    ]
    specs.append(_spec(0.0, 0.0, always=True))
    for spec in specs:
        for pair in logits:
            yield _row("single", spec, (1.0, 0.0), [{"label_logits": list(pair)}])
        for one, other in ((0, 0), (3, 3), (3, 4), (0, 5), (1, 2), (6, 7)):
            yield _row("pair", spec, (1.0, 0.0), [{"label_logits": list(logits[i])} for i in (one, other)])
        yield _row("candidates", spec, (1.0, 0.0), [{"label_logits": list(pair)} for pair in logits])
        for nats in (0.0, math.log(2), math.log(4)):
            reading = {"label_logits": [2.0, -1.0], "log_mass": 2.5, "entropy": nats}
            yield _row("single", spec, (1.0, 0.0), [reading], size=4)
            yield _row("pair", spec, (1.0, 0.0), [reading, {**reading, "label_logits": [1.0, 1.0]}], size=4)


def _random_rows(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield 420 random rows: single responses, pairs and lists of candidates in turn."""
    for number in range(420):
        kind = ("single", "pair", "candidates")[number % 3]
        count = {"single": 1, "pair": 2}.get(kind) or rng.choice((1, 2, 3, 4, 8, 16))
        values = rng.choice(_LABELS)
        size = rng.choice((None, *_VOCAB_SIZES))
        spec = _spec(
            round(rng.random(), 3), round(rng.random(), 3), rng.choice(("any", "all")), rng.choice((0.5, 1.0, 1.7))
        )
        yield _row(kind, spec, values, [_random_response(rng, len(values), size) for _ in range(count)], size)


def _random_response(rng: random.Random, labels: int, vocab_size: int | None) -> dict[str, Any]:
    response: dict[str, Any] = {"label_logits": [round(rng.gauss(0.0, 3.0), 3) for _ in range(labels)]}
    if vocab_size is not None:
        response["log_mass"] = round(max(response["label_logits"]) + rng.random() * 3 + math.log(labels), 3)
        response["entropy"] = round(rng.random() ** 2 * math.log(vocab_size), 4)
    return response


def _list_rows(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield 120 lists of candidates in teams: some by hand, with ties and a coverage at both ends, the others random.

    A share never lies so near to the coverage that rounding could change the decision.
    """
    even: dict[str, Any] = {"label_logits": [0.0, 0.0]}
    sure: dict[str, Any] = {"label_logits": ["inf", 0.0]}
    hand: tuple[tuple[list[dict[str, Any]], list[Any]], ...] = (
        ([even], [0]),
        ([even, even], [0, 0]),
        ([even, even], [0, 1]),
        ([even, even, even], [7, 3, 3]),
        ([even, sure, even, even], ["a", "b", "a", "c"]),
    )
    for coverage in (0.0, 0.4, 0.6, 1.0):
        rule = {"coverage": coverage, "temperature": 2.0, "sharpness": 1.0, "group": "final"}
        for responses, teams in hand:
            yield _row("list", _spec(0.5, 0.0) | {"lists": rule}, (1.0, 0.0), responses) | {"teams": teams}
    for _ in range(100):
        count, values = rng.choice((2, 3, 4, 8, 16, 32)), rng.choice(_LABELS)
        rule = {
            "coverage": round(rng.uniform(0.3, 0.99), 3),
            "temperature": round(rng.uniform(0.2, 6.0), 3),
            "sharpness": round(rng.uniform(0.3, 3.0), 3),
            "group": "final",
        }
        row = _row("list", _spec(0.5, 0.0) | {"lists": rule}, values, [])
        while not row["responses"] or _borderline(row, {"share": 0.0}, None, 1e-3):
            row["responses"] = [_random_response(rng, len(values), None) for _ in range(count)]
            row["teams"] = [rng.randrange(1 + count // 2) for _ in range(count)]
        yield row


def _answer_rows(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield 120 pairs with votes: some by hand, with one weight 0 and with unanimous votes, the others random.

    No answer lies so near to one half that rounding could change the winner.
    """
    even: dict[str, Any] = {"label_logits": [0.0, 0.0]}
    sure: dict[str, Any] = {"label_logits": ["inf", 0.0]}
    hand: tuple[tuple[list[dict[str, Any]], list[float]], ...] = (
        ([even, even], [1.0]),
        ([even, even], [0.0, 0.0]),
        ([sure, even], [0.0] * 64),
        ([even, sure], [1.0, 0.0]),
        ([sure, even], [0.5]),
    )
    for weights in ({"fast": 1.0, "votes": 1.0}, {"fast": 0.01, "votes": 2.5}):
        for responses, votes in hand:
            yield _row("answer", _spec(0.5, 0.0) | {"weights": weights}, (1.0, 0.0), responses) | {"votes": votes}
    for responses, votes in hand[2:]:
        fast = {"fast": 0.7, "votes": 0.0}
        yield _row("answer", _spec(0.5, 0.0) | {"weights": fast}, (1.0, 0.0), responses) | {"votes": votes}
    for responses, votes in hand[:3]:
        slow = {"fast": 0.0, "votes": 1.3}
        yield _row("answer", _spec(0.5, 0.0) | {"weights": slow}, (1.0, 0.0), responses) | {"votes": votes}
    for _ in range(104):
        values, size = rng.choice(_LABELS), rng.choice((None, *_VOCAB_SIZES))
        weights = {"fast": round(rng.uniform(0.0, 2.0), 3), "votes": round(rng.uniform(0.1, 4.0), 3)}
        row = _row("answer", _spec(0.5, 0.0) | {"weights": weights}, values, [], size)
        while not row["responses"] or abs(decide(row)["p_first"] - 0.5) < 1e-3:
            row["responses"] = [_random_response(rng, len(values), size) for _ in range(2)]
            sure_votes = rng.random() < 0.5
            row["votes"] = [
                float(rng.random() < 0.5) if sure_votes else round(rng.random(), 3)
                for _ in range(rng.choice((1, 2, 3, 4, 8, 16)))
            ]
        yield row
