"""Reads the labelled file of ``calibrate``, and runs a model over its rows to make labelled items of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsrm_lite.errors import CalibrationError, ContextOverflowError, DataFormatError, InputError
from fsrm_lite.measure.benchmark_formats import (
    FORMATS,
    Benchmark,
    detect_format,
    examples_of,
    is_conversation_cell,
    load_benchmark,
)
from fsrm_lite.measure.data_files import SourceRow, data_files, first_row, read_rows
from fsrm_lite.measure.evaluation_records import read_records
from fsrm_lite.measure.labelled import LabelledItem, content_key, fast_signals, group_key
from fsrm_lite.types import Prompt, Route

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
        group: Rows of one group are not independent; "" for that of the prompt.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    label: int
    subset: str = ""
    group: str = ""

    @property
    def key(self) -> str:
        """Identity of the content; the order of a pair does not matter."""
        return content_key(self.prompt, self.responses)


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """What a labelled file holds.

    Attributes:
        rows: Rows that a model has to read first; empty if ``items`` has them.
        items: Items that need no model; empty if ``rows`` has them.
        notes: What was left out, one phrase each.
    """

    rows: tuple[LabelledRow, ...] = ()
    items: tuple[LabelledItem, ...] = ()
    notes: tuple[str, ...] = ()


def read_labelled(path: Path | str, form: str = "auto") -> LabelledFile:
    """Read labelled rows, or items that need no model any more.

    A row has one of these forms:

    - ``{"prompt", "response", "label"}`` with a label of 0/1 or false/true;
    - ``{"prompt", "chosen", "rejected"}``;
    - ``{"prompt", "response_a", "response_b", "label"}`` with a label of 0/1, "a"/"b" or "A>B"/"B>A";
    - that of a benchmark (see ``fsrm_lite.measure.benchmark_formats``). Where responses are scored one by one, each of
      them becomes a row;
    - a line that ``calibrate --record`` or ``eval -o`` wrote, which needs no model.

    Args:
        path: A file or folder; see ``fsrm_lite.measure.data_files``.
        form: Name of the benchmark format, or "auto".

    Raises:
        DataFormatError: If a row has none of these forms.
        CalibrationError: If the same item has two different labels.
    """
    first = first_row(path)
    if "readings" in first.data:
        return LabelledFile(items=tuple(LabelledItem.from_dict(row.data) for row in read_rows(path)))
    if is_record(first.data):
        records = [record for file in data_files(path) for record in read_records(file)]
        items = tuple(item for record in records for item in LabelledItem.from_record(record))
        left = sum(not LabelledItem.from_record(record) for record in records)
        return LabelledFile(items=items, notes=_left_out(left, "ties of the annotators, empty or not read"))
    if form == "auto" and _is_own_form(first.data):
        rows = read_rows(path)
        return LabelledFile(_without_contradiction([(_parse(row), row.where) for row in rows]))
    return _of_benchmark(load_benchmark(path, form))


def is_recorded(data: dict[str, Any]) -> bool:
    """Return whether a row is one that ``calibrate --record`` or ``eval -o`` wrote, with its fast signals."""
    return "readings" in data or is_record(data)


def is_record(data: dict[str, Any]) -> bool:
    """Return whether a row is a result that ``eval -o`` wrote."""
    return all(name in data for name in ("run", "logits", "escalated", "right"))


def _is_own_form(data: dict[str, Any]) -> bool:
    """Return whether a row is of one of the first three forms of ``read_labelled``."""
    try:
        return detect_format(data).name in ("pairs", "rewardbench")
    except DataFormatError:
        return True


def _of_benchmark(benchmark: Benchmark) -> LabelledFile:
    """Return the examples of a benchmark as labelled rows: pairs, or one row per response."""
    rows: list[tuple[LabelledRow, str]] = []
    left = 0
    for x in benchmark.examples:
        if not benchmark.format.pairwise:
            read = [(i, text) for i, text in enumerate(x.responses) if text.strip()]
            rows += [(LabelledRow(x.prompt, (text,), int(i in x.right), x.subset, x.group), x.id) for i, text in read]
            left += len(x.responses) - len(read)
        elif x.right and all(text.strip() for text in x.responses) and x.responses[0] != x.responses[1]:
            rows.append((LabelledRow(x.prompt, x.responses, x.right[0], x.subset, x.group), x.id))
        else:
            left += 1
    notes = _left_out(left, "ties of the annotators, or with an empty response, or two of the same")
    return LabelledFile(_without_contradiction(rows), notes=(*notes, *(f"not read: {x}" for x in benchmark.not_read)))


def _left_out(count: int, why: str) -> tuple[str, ...]:
    return (f"{count} items were left out: {why}",) if count else ()


def _without_contradiction(rows: Sequence[tuple[LabelledRow, str]]) -> tuple[LabelledRow, ...]:
    """Return the rows, each given with its place for the message, if none of them contradicts another."""
    verdicts: dict[str, tuple[str | int, str]] = {}
    for row, where in rows:
        verdict = row.responses[row.label] if len(row.responses) == 2 else row.label
        known, first = verdicts.setdefault(row.key, (verdict, where))
        if known != verdict:
            raise CalibrationError(
                f"labels disagree for the same item in {first} and {where}; settle the label or remove both"
            )
    return tuple(row for row, _ in rows)


def collect(
    rm: FastSlowRM,
    rows: Sequence[LabelledRow],
    *,
    slow: bool = True,
    votes: int | None = None,
    seed: int = 0,
    batch: int = 32,
    skip_too_long: bool = False,
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
        skip_too_long: Leave out rows that are too long for the model, or for its judge, instead of stopping.
        progress: Called after each call with its number of rows.

    Returns:
        One labelled item per row, in order, without the rows that were left out.

    Raises:
        ContextOverflowError: If a row is too long and ``skip_too_long`` is not set.
        InputError: If a text is unusable.
    """
    items: list[LabelledItem] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        fitting = [row for i, row in enumerate(part, start) if _fits(rm, row, i, slow, skip_too_long)]
        if fitting:
            items.extend(
                _pairs(rm, fitting, slow, votes, seed)
                if len(fitting[0].responses) == 2
                else _singles(rm, fitting, slow, votes, seed)
            )
        if progress is not None:
            progress(len(part))
    return items


def _fits(rm: FastSlowRM, row: LabelledRow, number: int, slow: bool, skip: bool) -> bool:
    """Return whether a row fits into the model's context, and into its judge's; raise if it must and does not."""
    try:
        texts = [rm.encode(row.prompt, text).text for text in row.responses]
        if slow and not rm.judge.has_room(row.prompt, *texts):
            raise ContextOverflowError("the judge has no room for it")
    except ContextOverflowError as error:
        if skip:
            return False
        raise ContextOverflowError(
            f"item {number}: {error}. With --truncate (truncate=True and skip_too_long=True) responses are cut, and "
            "items that are still too long are left out"
        ) from error
    except InputError as error:
        raise type(error)(f"item {number}: {error}") from error
    return True


def _pairs(rm: FastSlowRM, rows: Sequence[LabelledRow], slow: bool, votes: int | None, seed: int) -> list[LabelledItem]:
    pairs = [(r.prompt, r.responses[0], r.responses[1]) for r in rows]
    results = rm.compare_many(pairs, judge="always" if slow else "never", votes=votes, seed=seed)
    return [
        LabelledItem.from_comparison(r.key, c, r.label, group=r.group or group_key(r.prompt), subset=r.subset)
        for r, c in zip(rows, results, strict=True)
    ]


def _singles(
    rm: FastSlowRM, rows: Sequence[LabelledRow], slow: bool, votes: int | None, seed: int
) -> list[LabelledItem]:
    """Return the labelled items of rows with a single response."""
    asked = [(r.prompt, r.responses[0]) for r in rows]
    fast = rm.score_many(asked, judge="never")
    judged = rm.score_many(asked, judge="always", votes=votes, seed=seed) if slow else [None] * len(rows)
    # Where a deadline passed or the judge failed, what came back is a fast score: no answer of the judge.
    answers = [s if s is not None and s.route is Route.SLOW else None for s in judged]
    return [
        LabelledItem(
            r.key,
            (fast_signals(f),),
            r.label,
            slow_correct=(s.score > 0.5) == (r.label == 1) if s is not None else None,
            slow_tokens=s.tokens_generated if s is not None else None,
            group=r.group or group_key(r.prompt),
            subset=r.subset,
        )
        for r, f, s in zip(rows, fast, answers, strict=True)
    ]


def _parse(row: SourceRow) -> LabelledRow:
    """Return a row of any of the three forms; refuse another one."""
    data = row.data
    if any(isinstance(data.get(name), list) or is_conversation_cell(data.get(name)) for name in ("chosen", "rejected")):
        (pair,) = examples_of(FORMATS["pairs"], row)
        return LabelledRow(pair.prompt, pair.responses, pair.right[0], pair.subset)
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
