"""Reads the labelled file of ``calibrate``, and runs a model over its rows to make labelled items of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsrm_lite.errors import CalibrationError, DataFormatError
from fsrm_lite.measure.data_files import SourceRow, read_rows
from fsrm_lite.measure.labelled import LabelledItem, content_key, fast_signals, group_key
from fsrm_lite.types import Prompt

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM

_FIRST = {0, "0", "a", "A", "first", "A>B", "response_a"}
_SECOND = {1, "1", "b", "B", "second", "B>A", "response_b"}
_GOOD = {1, "1", "true", "True", "good", "correct", "yes"}
_BAD = {0, "0", "false", "False", "bad", "incorrect", "no"}


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One labelled response or pair, before any model has seen it.

    Attributes:
        prompt: What the responses answer.
        responses: One response, or the two of a pair.
        label: For a single response 1 when it is good, 0 when it is bad. For a pair the position of the better
            response.
        subset: Any name, for reports.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    label: int
    subset: str = ""

    @property
    def key(self) -> str:
        """Identity of the content; the order of a pair does not matter."""
        return content_key(self.prompt, self.responses)


def read_labelled(path: Path | str) -> list[LabelledRow] | list[LabelledItem]:
    """Read labelled rows, or the items that an earlier ``calibrate --record`` made of such rows and that need no model.

    A row has one of these forms:

    - ``{"prompt", "response", "label"}`` with a label of 0/1 or false/true;
    - ``{"prompt", "chosen", "rejected"}``;
    - ``{"prompt", "response_a", "response_b", "label"}`` with a label of 0/1, "a"/"b" or "A>B"/"B>A".

    Args:
        path: A JSON, JSONL or CSV file, plain or gzipped, or a folder of such files.

    Raises:
        DataFormatError: If a row has none of these forms.
        CalibrationError: If the same item has two different labels.
    """
    rows = read_rows(path)
    if "readings" in rows[0].data:
        return [LabelledItem.from_dict(row.data) for row in rows]
    parsed = [_parse(row) for row in rows]
    verdicts: dict[str, tuple[str | int, str]] = {}
    for row, source in zip(parsed, rows, strict=True):
        verdict = row.responses[row.label] if len(row.responses) == 2 else row.label
        known, where = verdicts.setdefault(row.key, (verdict, source.where))
        if known != verdict:
            raise CalibrationError(
                f"labels disagree for the same item in {where} and {source.where}; settle the label or remove both"
            )
    return parsed


def collect(
    rm: FastSlowRM,
    rows: Sequence[LabelledRow],
    *,
    slow: bool = True,
    votes: int | None = None,
    seed: int = 0,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[LabelledItem]:
    """Score every row with the fast model and, if wanted, ask the judge about it.

    Args:
        rm: The model.
        rows: All of them single responses, or all of them pairs.
        slow: Also ask the judge about every row. Every goal of a calibration but a risk needs that.
        votes: Votes per order of a pair, or per response; None takes the model's default.
        seed: Seed of the judge.
        batch: Rows per call, at least 1.
        progress: Called after each call with its number of rows.

    Returns:
        One labelled item per row, in order.
    """
    items: list[LabelledItem] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        items.extend(
            _pairs(rm, part, slow, votes, seed)
            if len(part[0].responses) == 2
            else _singles(rm, part, slow, votes, seed)
        )
        if progress is not None:
            progress(len(part))
    return items


def _pairs(rm: FastSlowRM, rows: Sequence[LabelledRow], slow: bool, votes: int | None, seed: int) -> list[LabelledItem]:
    pairs = [(r.prompt, r.responses[0], r.responses[1]) for r in rows]
    results = rm.compare_many(pairs, judge="always" if slow else "never", votes=votes, seed=seed)
    return [
        LabelledItem.from_comparison(r.key, c, r.label, group=group_key(r.prompt), subset=r.subset)
        for r, c in zip(rows, results, strict=True)
    ]


def _singles(
    rm: FastSlowRM, rows: Sequence[LabelledRow], slow: bool, votes: int | None, seed: int
) -> list[LabelledItem]:
    """Return the labelled items of rows with a single response."""
    asked = [(r.prompt, r.responses[0]) for r in rows]
    fast = rm.score_many(asked, judge="never")
    judged = rm.score_many(asked, judge="always", votes=votes, seed=seed) if slow else [None] * len(rows)
    return [
        LabelledItem(
            r.key,
            (fast_signals(f),),
            r.label,
            slow_correct=(s.score > 0.5) == (r.label == 1) if s is not None else None,
            slow_tokens=s.tokens_generated if s is not None else None,
            group=group_key(r.prompt),
            subset=r.subset,
        )
        for r, f, s in zip(rows, fast, judged, strict=True)
    ]


def _parse(row: SourceRow) -> LabelledRow:
    """Return a row of any of the three forms; refuse another one."""
    data = row.data
    prompt = data.get("prompt")
    if not isinstance(prompt, str | list):
        raise DataFormatError(f"{row.where}: 'prompt' is {prompt!r}, expected text or a list of chat messages")
    subset = str(data.get("subset") or "")
    if "chosen" in data:
        chosen = LabelledRow(prompt, _texts(row, "chosen", "rejected"), 0, subset)
        # About half of the pairs are swapped, so that a judge which prefers the first place gains nothing.
        return chosen if int(chosen.key, 16) % 2 else LabelledRow(prompt, chosen.responses[::-1], 1, subset)
    if "response_a" in data:
        return LabelledRow(prompt, _texts(row, "response_a", "response_b"), _label(row, _FIRST, _SECOND), subset)
    if "response" in data:
        return LabelledRow(prompt, _texts(row, "response"), _label(row, _BAD, _GOOD), subset)
    raise DataFormatError(
        f"{row.where}: expected 'response' and 'label', 'chosen' and 'rejected', "
        "or 'response_a', 'response_b' and 'label'"
    )


def _texts(row: SourceRow, *names: str) -> tuple[str, ...]:
    for name in names:
        if not isinstance(row.data.get(name), str) or not row.data[name].strip():
            raise DataFormatError(f"{row.where}: {name!r} is {row.data.get(name)!r}, expected some text")
    texts = tuple(row.data[name] for name in names)
    if len(texts) == 2 and texts[0] == texts[1]:
        raise DataFormatError(
            f"{row.where}: {names[0]!r} and {names[1]!r} are the same text; neither can be the better one"
        )
    return texts


def _label(row: SourceRow, zero: set[Any], one: set[Any]) -> int:
    label = row.data.get("label", row.data.get("winner"))
    if isinstance(label, str | int | float) and label in one:
        return 1
    if isinstance(label, str | int | float) and label in zero:
        return 0
    raise DataFormatError(f"{row.where}: 'label' is {label!r}, expected 0 or 1")
