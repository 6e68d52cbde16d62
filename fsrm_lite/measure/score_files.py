"""Reads scores that another program gave: anybody's reward model, judge or service, whose numbers stand in a file.

A row holds the scores of one item's responses and which of them is right; where there was a judge, also its verdict and
what that cost. Which columns these are, the caller says. What a file does not have is left out of the figures and of
the gate's rule; nothing is made up in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

from fsrm_lite.checks import is_whole
from fsrm_lite.errors import CalibrationError, DataFormatError, InputError
from fsrm_lite.gate import FastSignals, sigmoid, votes_logit
from fsrm_lite.measure.benchmark_formats import FORMATS, Format
from fsrm_lite.measure.data_files import SourceRow, as_list, read_rows
from fsrm_lite.measure.evaluation_records import Record, Slow
from fsrm_lite.measure.labelled import LabelledItem
from fsrm_lite.measure.labelled_lists import LabelledList
from fsrm_lite.measure.verdict_texts import read_verdict

FAST_COLUMNS = (("score_a", "score_b"), ("score_chosen", "score_rejected"), ("scores",), ("score",))
"""Names that are looked for, in this order, if none are given."""

_SIDES: dict[object, int] = {
    0: 0, "0": 0, "a": 0, "first": 0, "a>b": 0, "a>>b": 0, 1: 1, "1": 1, "b": 1, "second": 1, "b>a": 1, "b>>a": 1,
}  # fmt: skip
_TIES = {"a=b", "tie", "both", "equal"}
_DIGITS = 9  # of a position in a text; none has more
_TRUTHS = {1: 1, "1": 1, "true": 1, "yes": 1, "good": 1, 0: 0, "0": 0, "false": 0, "no": 0, "bad": 0}


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a score file's columns.

    Attributes:
        fast: The scores: two columns for a pair, one for a single response, N for N responses; or one column that holds
            a list of numbers. Empty takes the first of ``FAST_COLUMNS`` that the file has.
        label: Which response is right: for a pair 0/1, "a"/"b" or "A>B"/"B>A"; for a single response 0/1 or
            false/true; for N responses a position or a list of positions, counted from 0.
        first_is_right: The first score is always that of the right response, and there is no label.
        slow: The judge's verdict, written like the label; for a pair also "A=B", and a second column for the verdict
            with the responses in the other order. An empty cell is no answer.
        form: Form of the verdicts where ``slow`` holds the judge's texts; see ``fsrm_lite.measure.verdict_texts``.
        tokens: What the judge cost: its generated tokens.
        distribution: Word-distribution confidence of each response, in [0, 1], where there is one.
        group: Items with the same value are not independent, for example those of one prompt.
        subset: Any name, for reports.
        id: Identity of an item; without it the number of the row.
        verdicts_only: The file has no scores, only pairs with a label; every pair then has two scores of 0.
    """

    fast: tuple[str, ...] = ()
    label: str = "label"
    first_is_right: bool = False
    slow: tuple[str, ...] = ()
    form: str | None = None
    tokens: str | None = None
    distribution: tuple[str, ...] = ()
    group: str | None = None
    subset: str | None = None
    id: str | None = None
    verdicts_only: bool = False


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """One row of a score file.

    Attributes:
        id: Identity of the item.
        scores: One number per response, higher is better.
        right: Positions of the right responses; for a single response (0,) if it is good, else empty.
        winners: The judge's preference in each order that it saw: a position, or None for a tie; empty without an
            answer. For a single response 1 where the judge called it good, else 0.
        tokens: What the judge cost; None if the file does not say.
        distribution: Word-distribution confidences; empty if the file has none.
        group: Items of one group are not independent.
        subset: Any name.
    """

    id: str
    scores: tuple[float, ...]
    right: tuple[int, ...]
    winners: tuple[int | None, ...] = ()
    tokens: float | None = None
    distribution: tuple[float, ...] = ()
    group: str = ""
    subset: str = ""

    @property
    def decision(self) -> int | None:
        """What the judge prefers over both orders; None for a tie, or without an answer."""
        lean = sum(0 if w is None else 1 if w == 0 else -1 for w in self.winners)
        if len(self.scores) != 2:
            return self.winners[0] if self.winners else None
        return 0 if lean > 0 else 1 if lean < 0 else None


def read_scores(path: Path | str, columns: Columns) -> list[ScoredItem]:
    """Read a score file.

    Args:
        path: A file or folder; see ``fsrm_lite.measure.data_files``.
        columns: What its columns are called.

    Returns:
        One item per row, in order.

    Raises:
        DataFormatError: If a column is missing or a cell is not what it should be; the message names row and column.
    """
    rows = read_rows(path)
    given = columns.fast or next((c for c in FAST_COLUMNS if all(n in rows[0].data for n in c)), ())
    wanted = [*given, *columns.slow, *columns.distribution]
    wanted += [c for c in (columns.tokens, columns.group, columns.subset, columns.id) if c is not None]
    wanted += [] if columns.first_is_right else [columns.label]
    missing = [name for name in wanted if name not in rows[0].data]
    if missing or (not given and not columns.verdicts_only):
        what = ", ".join(missing) if given or columns.verdicts_only else "of scores"
        raise DataFormatError(
            f"{rows[0].where}: there is no column {what}; the file has "
            f"{', '.join(map(str, rows[0].data))}; name the columns with --fast-columns, --label-column, ..."
        )
    items = [_item(row, number, given, columns) for number, row in enumerate(rows)]
    if len({len(x.scores) == 1 for x in items}) > 1:
        raise DataFormatError(f"{path} mixes single responses with several; put them into files of their own")
    if columns.id is not None and len({x.id for x in items}) < len(items):
        raise DataFormatError(f"{path}: the column {columns.id!r} has a value twice; it should name each item once")
    return items


def with_verdicts(
    items: Sequence[ScoredItem], path: Path | str, names: Sequence[str], form: str, id_column: str | None
) -> tuple[list[ScoredItem], list[str]]:
    """Give items the verdicts that a judge's texts end in.

    Args:
        items: From ``read_scores``.
        path: The file of the texts.
        names: Its columns: the text and, if there is one, the text with the responses in the other order.
        form: Form of the verdicts; see ``fsrm_lite.measure.verdict_texts``.
        id_column: Column by which a text finds its item; None matches the rows by their place.

    Returns:
        The items, and a remark if some texts have no verdict.

    Raises:
        DataFormatError: If a column is missing, an id is there twice, or texts and items do not belong together.
        InputError: If the form is unknown.
    """
    rows = read_rows(path)
    missing = [n for n in (*names, *((id_column,) if id_column else ())) if n not in rows[0].data]
    if missing:
        raise DataFormatError(
            f"{rows[0].where}: there is no column {', '.join(missing)}; the file has {', '.join(rows[0].data)}; "
            "name the texts with --verdict-columns"
        )
    if id_column is None and len(rows) != len(items):
        raise DataFormatError(f"{path} has {len(rows)} rows for {len(items)} items; name an --id-column to match them")
    by_id: dict[str, SourceRow] = {}
    for row, name in zip(
        rows, [_name(r, id_column) for r in rows] if id_column else [x.id for x in items], strict=True
    ):
        if (before := by_id.setdefault(name, row)) is not row:
            raise DataFormatError(f"{before.where} and {row.where} are both about the item {name!r}; keep one of them")
    if by_id.keys().isdisjoint(x.id for x in items):
        raise DataFormatError(
            f"{path}: no text belongs to an item: its {id_column!r} is {next(iter(by_id))!r}, ..., and that of the "
            f"items {items[0].id!r}, ..."
        )
    columns = Columns(slow=tuple(names), form=form)
    found = [replace(x, winners=_winners(by_id[x.id], columns, len(x.scores))) if x.id in by_id else x for x in items]
    unread = sum(not x.winners for x in found)
    return found, [f"{unread} of {len(items)} items have no verdict of the form {form!r}"] if unread else []


def format_of(items: Sequence[ScoredItem], name: str = "auto") -> Format:
    """Return the format whose metric the scores are measured by.

    Args:
        items: From ``read_scores``.
        name: A benchmark's name, to use its metric; "auto" takes plain accuracy on pairs, that of the best of N on
            longer lists, and that of the sign on single responses.

    Raises:
        InputError: If the name is unknown, or the benchmark has another number of responses.
    """
    count = max(len(x.scores) for x in items)
    if name != "auto":
        if name not in FORMATS:
            raise InputError(f"format {name!r} is unknown, expected auto, {', '.join(FORMATS)}")
        if FORMATS[name].pairwise != (count == 2):
            raise InputError(f"{count} scores per item do not fit the format {name!r}")
        return FORMATS[name]
    if count == 2:
        return FORMATS["pairs"]
    return Format("singles" if count == 1 else "best-of-n", False, lambda row: False, lambda row: ())


def holds_lists(items: Sequence[ScoredItem]) -> bool:
    """Return whether the items are lists: some have more than two scores, though shorter lists may be among them."""
    return any(len(x.scores) > 2 for x in items)


def labelled(items: Sequence[ScoredItem], file: str) -> list[LabelledItem]:
    """Return scored responses or pairs as ``calibrate`` takes them.

    Args:
        items: From ``read_scores``.
        file: Name of the file, which tells its items from those of another one.

    Raises:
        CalibrationError: If an item has more than two responses.
    """
    return [_labelled(x, file) for x in items]


def labelled_lists(items: Sequence[ScoredItem], file: str) -> list[LabelledList]:
    """Return scored lists as the calibration of the best of N takes them; each response is a team of its own.

    Args:
        items: From ``read_scores``.
        file: Name of the file, which tells its items from those of another one.
    """
    return [
        LabelledList(
            f"{file}:{x.id}",
            signals_of(x),
            tuple(range(len(x.scores))),
            tuple(int(i in x.right) for i in range(len(x.scores))),
            "text",
            x.group,
        )
        for x in items
    ]


def records(items: Sequence[ScoredItem], escalated: Sequence[Sequence[bool]], judge: str, form: Format) -> list[Record]:
    """Return scored items as the results of an evaluation. Lengths of responses, which nobody knows, are 0.

    Args:
        items: From ``read_scores``.
        escalated: What a gate says of each item.
        judge: "always" if every item has a verdict, else "never".
        form: From ``format_of``. A list of two among longer ones is no pair.
    """
    return [
        Record(
            run="",
            judge=judge,
            id=x.id,
            key=x.id,
            subset=x.subset,
            group=x.group or x.id,
            right=x.right,
            lengths=(0,) * len(x.scores),
            logits=x.scores,
            distribution_confidences=x.distribution or (None,) * len(x.scores),
            label_masses=(None,) * len(x.scores),
            escalated=tuple(up),
            slow=_slow(x, form.pairwise) if x.winners else None,
            asked=judge == "always",
        )
        for x, up in zip(items, escalated, strict=True)
    ]


def signals_of(item: ScoredItem) -> tuple[FastSignals, ...]:
    """Return what a gate looks at. A confidence that the file does not have is None, which never escalates."""
    distribution = item.distribution or (None,) * len(item.scores)
    return tuple(FastSignals(s, sigmoid(s), d, None) for s, d in zip(item.scores, distribution, strict=True))


def _slow(item: ScoredItem, pairwise: bool) -> Slow:
    """Return the judge's answer as a record has it; without tokens each answer counts as one call."""
    cost = 1.0 if item.tokens is None else item.tokens
    if pairwise:
        return Slow(item.winners, item.decision, (), (cost,))
    # The judge named one response: that one gets the best logit. Of a single response it said good or bad.
    chosen = item.decision
    single = len(item.scores) == 1
    logits = (
        (1.0 if chosen else -1.0,) if single else tuple(1.0 if i == chosen else -1.0 for i in range(len(item.scores)))
    )
    return Slow((), None, logits, (cost, *(0.0 for _ in item.scores[1:])))


def _labelled(item: ScoredItem, file: str) -> LabelledItem:
    if len(item.scores) > 2:
        raise CalibrationError(
            f"{item.id}: {len(item.scores)} scores, expected 1 or 2; put lists into a file of their own"
        )
    pair = len(item.scores) == 2
    if pair and not item.right:
        raise CalibrationError(f"{item.id}: its label is a tie; leave it out")
    label = item.right[0] if pair else int(bool(item.right))
    answered = bool(item.winners)
    return LabelledItem(
        f"{file}:{item.id}",
        signals_of(item),
        label,
        slow_correct=item.decision == label if answered else None,
        # Where nobody says what an answer cost, each one counts as one call.
        slow_tokens=(1 if item.tokens is None else item.tokens) if answered else None,
        group=item.group,
        subset=item.subset,
        # A verdict is a vote without doubt; a tie is half a vote for each.
        slow_logit=votes_logit([0.5 if w is None else 1.0 - w for w in item.winners]) if pair and answered else None,
    )


def _item(row: SourceRow, number: int, fast: Sequence[str], columns: Columns) -> ScoredItem:
    scores = (0.0, 0.0) if columns.verdicts_only else _numbers(row, fast)
    count = len(scores)
    right = (0,) if columns.first_is_right else _right(row, columns.label, count)
    distribution = _numbers(row, columns.distribution) if columns.distribution else ()
    if distribution and (len(distribution) != count or not all(0 <= d <= 1 for d in distribution)):
        raise DataFormatError(f"{row.where}: {len(distribution)} confidences in [0, 1] expected beside {count} scores")
    tokens = None
    if columns.tokens is not None and row.data.get(columns.tokens) not in (None, ""):
        tokens = _number(row.data[columns.tokens], row, columns.tokens)
        if tokens < 0:
            raise DataFormatError(f"{row.where}: {columns.tokens!r} is {tokens:g}, expected 0 or more tokens")
    return ScoredItem(
        _name(row, columns.id) if columns.id is not None else f"row {number}",
        scores,
        right,
        _winners(row, columns, count),
        tokens,
        distribution,
        _name(row, columns.group) if columns.group is not None else "",
        _name(row, columns.subset) if columns.subset is not None else "",
    )


def _name(row: SourceRow, column: str) -> str:
    """Return the text, or the number, in a column; an item without one would be taken for one of another group.

    Raises:
        DataFormatError: If there is none.
    """
    value = row.data.get(column)
    if not isinstance(value, str | int | float) or value == "" or value != value:
        raise DataFormatError(f"{row.where}: {column!r} is {short(value)}, expected a text or a number")
    return str(value)


def _numbers(row: SourceRow, names: Sequence[str]) -> tuple[float, ...]:
    """Return the numbers of these columns, or of the list in the only one."""
    values = [row.data.get(name) for name in names]
    if len(values) == 1 and (isinstance(values[0], list) or str(values[0]).lstrip().startswith("[")):
        name = names[0]
        return tuple(
            _number(v[0] if isinstance(v, list) and len(v) == 1 else v, row, name)
            for v in as_list(values[0], row.where)
        )
    return tuple(_number(value, row, name) for value, name in zip(values, names, strict=True))


def _number(value: Any, row: SourceRow, name: str) -> float:  # noqa: ANN401 - a cell
    try:
        # Python would read "1_5" as 15, and digits of any script.
        plain = not isinstance(value, str) or (value.isascii() and "_" not in value)
        number = float(value) if plain and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataFormatError(f"{row.where}: {name!r} is {short(value)}, expected a number")
    return number


def _key(value: object) -> object:
    """Return a label as the tables spell it: 1 for 1.0, lower case; a list or an object as a text that none has."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | dict):
        return short(value)
    return value.strip().casefold() if isinstance(value, str) else value


def _right(row: SourceRow, name: str, count: int) -> tuple[int, ...]:
    """Return the positions of the right responses."""
    value = row.data.get(name)
    if count == 1:
        if (truth := _TRUTHS.get(_key(value))) is None:
            raise DataFormatError(f"{row.where}: {name!r} is {value!r}, expected 0 or 1, false or true")
        return (0,) if truth else ()
    if count == 2 and not isinstance(value, list):
        side = _SIDES.get(_key(value))
        if side is None and _key(value) not in _TIES:
            raise DataFormatError(f'{row.where}: {name!r} is {value!r}, expected 0 or 1, "a" or "b", "A>B" or "B>A"')
        return () if side is None else (side,)
    listed: list[Any] = as_list(value, row.where) if isinstance(value, list) or str(value).startswith("[") else [value]
    if len(listed) == count and all(isinstance(v, bool) for v in listed):
        return tuple(i for i, right in enumerate(listed) if right)
    positions = tuple(_position(_key(v)) for v in listed)
    # [0, 1] about two responses may mean both of them, or the second alone.
    certain = len(set(positions)) == len(positions) and (count > 2 or len(positions) == 1)
    if not positions or not certain or not all(0 <= p < count for p in positions):
        raise DataFormatError(
            f"{row.where}: {name!r} is {short(value)}, expected a position from 0 to {count - 1}, or several, each of "
            "them once; or true or false for each response"
        )
    return positions


def _position(key: object) -> int:
    """Return a label as a position; -1 if it is none."""
    if isinstance(key, str) and key.isascii() and key.isdigit():
        key = int(key[:_DIGITS])
    return key if is_whole(key) else -1


def _winners(row: SourceRow, columns: Columns, count: int) -> tuple[int | None, ...]:
    """Return the judge's answers; empty without one. A column of the other order names what stood there."""
    found: list[int | None] = []
    for order, name in enumerate(columns.slow):
        value = row.data.get(name)
        if columns.form is not None and isinstance(value, str):
            value = read_verdict(value, columns.form)
        key = _key(value)
        if key is None or key == "":
            continue
        if count == 1:
            table: Mapping[Any, int] = _TRUTHS
        elif count == 2:
            table = _SIDES
        else:
            table = {**{i: i for i in range(count)}, **{str(i): i for i in range(count)}}
        side = table.get(key)
        if side is None and not (count == 2 and key in _TIES):
            raise DataFormatError(
                f"{row.where}: {name!r} is {value!r}, expected what the label may be, or an empty cell"
            )
        found.append(1 - side if side is not None and order == 1 and count == 2 else side)
    return tuple(found)
