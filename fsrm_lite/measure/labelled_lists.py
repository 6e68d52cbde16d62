"""Labelled lists: N candidates for one prompt of which it is known which are right, with their fast readings.

The gate's rule for the best of N (``fsrm_lite.gate.ListSpec``) is calibrated on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.checks import is_whole
from fsrm_lite.errors import CalibrationError, DataFormatError
from fsrm_lite.gate import GROUPINGS, FastSignals
from fsrm_lite.measure.data_files import SourceRow, as_list, first_row, read_rows
from fsrm_lite.measure.labelled import content_key, fast_signals, group_key, signals_from
from fsrm_lite.ranking.answers import final_or_text
from fsrm_lite.types import Prompt

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM

Grouping = Literal["final", "text"]

_RIGHT, _WRONG = (1, True, "1", "true"), (0, False, "0", "false")


@dataclass(frozen=True, slots=True)
class ListRow:
    """One labelled list, before any model has seen it.

    Attributes:
        prompt: What the responses answer.
        responses: The candidates, at least one; an empty one is allowed if it is not right.
        labels: For each candidate 1 when it is right, else 0.
        where: File and position, for messages.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    labels: tuple[int, ...]
    where: str

    @property
    def key(self) -> str:
        """Identity of the content; the order of the candidates does not matter."""
        return content_key(self.prompt, self.responses)


@dataclass(frozen=True, slots=True)
class LabelledList:
    """The candidates of one prompt, with labels and fast readings. Empty candidates are left out.

    Attributes:
        key: Identity of the content; equal keys are the same list.
        readings: Fast reading of each candidate.
        teams: Number of the team of each candidate: equal numbers say the same.
        labels: For each candidate 1 when it is right, else 0.
        grouping: How the teams were formed; see ``fsrm_lite.gate.ListSpec.group``.
        group: Lists of the same prompt share a group. A group is never split between tuning and testing.
    """

    key: str
    readings: tuple[FastSignals, ...]
    teams: tuple[int, ...]
    labels: tuple[int, ...]
    grouping: Grouping = "final"
    group: str = ""

    def __post_init__(self) -> None:
        """Refuse lengths that differ and labels or groupings that do not exist."""
        sizes = {len(self.readings), len(self.teams), len(self.labels)}
        if len(sizes) > 1 or not set(self.labels) <= {0, 1} or self.grouping not in GROUPINGS:
            raise CalibrationError(
                f"list {self.key!r} has {len(self.readings)} readings, {len(self.teams)} teams, the labels "
                f"{list(self.labels)} and the grouping {self.grouping!r}; expected one team and one label (0 or 1) per "
                f"reading, and one of {', '.join(GROUPINGS)}"
            )

    def members(self) -> list[NDArray[np.int64]]:
        """Return the positions of each team's members, the best by logit first; the teams in order of their best."""
        logits = [r.logit for r in self.readings]
        teams: dict[int, list[int]] = {}
        for i in sorted(range(len(logits)), key=lambda i: (-logits[i], i)):
            teams.setdefault(self.teams[i], []).append(i)
        return [np.array(team) for team in teams.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return the list as plain values: one row of the file that ``calibrate --record`` writes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelledList:
        """Make a list from its plain values.

        Raises:
            DataFormatError: If something is missing or of a wrong type.
            CalibrationError: If lengths differ or a label or the grouping is out of range.
        """
        try:
            readings = tuple(signals_from(r) for r in data["readings"])
            names = [data.get(name, "") for name in ("key", "group")]
            if not all(is_whole(team) for team in data["teams"]) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"the teams are {short(data['teams'])}, key and group {short(names)}")
            return cls(**{**data, "readings": readings, "teams": tuple(data["teams"]), "labels": tuple(data["labels"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise DataFormatError(
                f"not a recorded list ({error}); expected what 'calibrate --record' writes"
            ) from error


@dataclass(frozen=True)
class ListSample:
    """Labelled lists as arrays. All candidates stand behind each other, list by list and in a list team by team.

    Attributes:
        logits: Logit of each candidate, the best of its team first; float64, shape [candidates].
        teams: Where each team begins among the candidates; int64, shape [teams].
        lists: Where each list begins among the teams; int64, shape [n].
        right: Whether the best member of each team is right; bool, shape [teams].
        groups: Group of each list, str, shape [n].
    """

    logits: NDArray[np.float64]
    teams: NDArray[np.int64]
    lists: NDArray[np.int64]
    right: NDArray[np.bool_]
    groups: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.lists)

    @classmethod
    def of(cls, lists: Sequence[LabelledList]) -> ListSample:
        """Make a sample of lists, each with a candidate at least."""
        members = [x.members() for x in lists]
        teams = [(x, team) for x, found in zip(lists, members, strict=True) for team in found]
        return cls(
            np.array([x.readings[i].logit for x, team in teams for i in team], dtype=np.float64),
            _starts([len(team) for _, team in teams]),
            _starts([len(found) for found in members]),
            np.array([bool(x.labels[team[0]]) for x, team in teams], dtype=np.bool_),
            np.array([x.group or x.key for x in lists], dtype=np.str_),
        )

    def take(self, positions: NDArray[np.int64]) -> ListSample:
        """Return the lists at the positions as a sample of their own; a position may be there several times."""
        teams = _spans(self.lists, len(self.teams), positions)
        candidates = _spans(self.teams, len(self.logits), teams)
        return ListSample(
            self.logits[candidates],
            _starts(np.diff(self.teams, append=len(self.logits))[teams]),
            _starts(np.diff(self.lists, append=len(self.teams))[positions]),
            self.right[teams],
            self.groups[positions],
        )

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """The list of each team, int64, shape [teams]."""
        return np.repeat(np.arange(len(self)), np.diff(self.lists, append=len(self.teams)))

    def worth(self, temperature: float) -> NDArray[np.float64]:
        """Return the logarithm of the sum of ``exp(logit / temperature)`` of each team, float64, shape [teams]."""
        return np.asarray(np.logaddexp.reduceat(self.logits / temperature, self.teams))

    def shares(self, worth: NDArray[np.float64], sharpness: float) -> NDArray[np.float64]:
        """Return the share of each team in its list, float64, shape [teams], in [0, 1]; see ``ListSpec``."""
        scaled = sharpness * worth
        weights = np.exp(scaled - np.maximum.reduceat(scaled, self.lists)[self.owner])
        return np.asarray(weights / np.add.reduceat(weights, self.lists)[self.owner])

    def best(self, shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the share of the best team of each list, and whether its best member is right; each of shape [n]."""
        order = np.lexsort(
            (np.arange(len(shares)), -shares, self.owner)
        )  # of equal shares the earlier team comes first
        top = order[self.lists]
        return shares[top], self.right[top]


def holds_lists(path: Path | str) -> bool:
    """Return whether the first row of a file or folder is a labelled list, or one that was recorded."""
    first = first_row(path).data
    return ("responses" in first and bool({"labels", "right"} & set(first))) or {"readings", "teams"} <= set(first)


def read_lists(path: Path | str) -> list[ListRow] | list[LabelledList]:
    """Read labelled lists, or what an earlier ``calibrate --record`` made of them, for which no model is needed.

    A row is ``{"prompt", "responses": [...]}`` with ``"labels"``, a list of 0 or 1 (or false and true) for each
    response, or with ``"right"``, the position of the right response or a list of positions.

    Args:
        path: A file or folder; see ``fsrm_lite.measure.data_files``.

    Raises:
        DataFormatError: If a row has another form, labels of another length, or positions out of range.
        CalibrationError: If the same response has two labels in a list, an empty one is labelled as right, or the same
            list is there with different labels.
    """
    rows = read_rows(path)
    if "readings" in rows[0].data:
        return [LabelledList.from_dict(row.data) for row in rows]
    parsed = [_parse(row) for row in rows]
    known: dict[str, ListRow] = {}
    for row in parsed:
        before = known.setdefault(row.key, row)
        if dict(zip(before.responses, before.labels, strict=True)) != dict(zip(row.responses, row.labels, strict=True)):
            raise CalibrationError(
                f"labels disagree for the same list in {before.where} and {row.where}; settle them or remove both"
            )
    return parsed


def collect_lists(
    rm: FastSlowRM,
    rows: Sequence[ListRow],
    *,
    grouping: Grouping = "final",
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[LabelledList]:
    """Score the candidates of every list with the fast model, and put those that say the same into teams.

    Args:
        rm: The model.
        rows: The lists.
        grouping: Which candidates say the same; see ``fsrm_lite.gate.ListSpec.group``.
        batch: Lists per call of the model, at least 1.
        progress: Called after each call with its number of lists.

    Returns:
        One labelled list per row, in order.
    """
    say: Callable[[str], Any] = final_or_text if grouping == "final" else str.strip
    found = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        asked = [(row.prompt, text) for row in part for text in row.responses if text.strip()]
        scores = iter(rm.score_many(asked, judge="never"))
        for row in part:
            kept = [(text, label) for text, label in zip(row.responses, row.labels, strict=True) if text.strip()]
            numbers: dict[Any, int] = {}
            teams = tuple(numbers.setdefault(say(text), len(numbers)) for text, _ in kept)
            readings = tuple(fast_signals(next(scores)) for _ in kept)
            labels = tuple(label for _, label in kept)
            found.append(LabelledList(row.key, readings, teams, labels, grouping, group_key(row.prompt)))
        if progress is not None:
            progress(len(part))
    return found


def _parse(row: SourceRow) -> ListRow:
    data, where = row.data, row.where
    # A list in a CSV cell is a text.
    data = data | {k: as_list(data[k], where) for k in ("responses", "labels", "right") if _is_list_text(data.get(k))}
    prompt, responses = data.get("prompt"), data.get("responses")
    if not isinstance(prompt, str | list):
        raise DataFormatError(f"{where}: 'prompt' is {prompt!r}, expected text or a list of chat messages")
    if not isinstance(responses, list) or not responses or not all(isinstance(r, str) for r in responses):
        raise DataFormatError(f"{where}: 'responses' is not a non-empty list of texts")
    labels = _labels(data, len(responses), where)
    verdicts: dict[str, int] = {}
    for text, label in zip(responses, labels, strict=True):
        if verdicts.setdefault(text, label) != label:
            raise CalibrationError(f"{where}: the response {text[:60]!r} is there twice, once right and once wrong")
        if label and not text.strip():
            raise CalibrationError(f"{where}: an empty response is labelled as right")
    return ListRow(prompt, tuple(responses), labels, where)


def _is_list_text(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("[")


def _labels(data: Mapping[str, Any], count: int, where: str) -> tuple[int, ...]:
    """Return a label per response, from ``labels`` or ``right``."""
    labels, right = data.get("labels"), data.get("right")
    if (labels is None) == (right is None):
        raise DataFormatError(f"{where}: expected either 'labels' (0 or 1 per response) or 'right' (their positions)")
    if right is not None:
        positions = right if isinstance(right, list) else [right]
        if not all(is_whole(i) and 0 <= i < count for i in positions) or len(set(positions)) < len(positions):
            raise DataFormatError(
                f"{where}: 'right' is {right!r}, expected positions from 0 to {count - 1}, each of them once; "
                "0 or 1 for each response is called 'labels'"
            )
        return tuple(int(i in positions) for i in range(count))
    if not isinstance(labels, list) or len(labels) != count:
        given = f"{len(labels)} labels" if isinstance(labels, list) else repr(labels)
        raise DataFormatError(f"{where}: got {given} for {count} responses, expected one label per response")
    if not all(isinstance(x, int | str) and x in (*_RIGHT, *_WRONG) for x in labels):
        raise DataFormatError(f"{where}: 'labels' is {labels!r}, expected 0 or 1 for each response")
    return tuple(int(x in _RIGHT) for x in labels)


def _starts(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of several spans begins that stand behind each other."""
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))[:-1]]).astype(np.int64)


def _spans(starts: NDArray[np.int64], end: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions that the chosen spans cover, one span behind the other."""
    sizes = np.diff(starts, append=end)[chosen]
    within = np.arange(int(sizes.sum())) - np.repeat(_starts(sizes), sizes)
    return np.asarray(np.repeat(starts[chosen], sizes) + within)
