"""The options by which ``calibrate`` and ``eval`` take scores and verdicts that another program gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from fsrm_lite.errors import GateSpecError
from fsrm_lite.gate import GateSpec
from fsrm_lite.jsonl import read_json

if TYPE_CHECKING:
    from fsrm_lite.measure.labelled import LabelledItem
    from fsrm_lite.measure.score_files import Columns, ScoredItem

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NAMES = (
    "fast_columns",
    "label_column",
    "first_is_right",
    "slow_columns",
    "tokens_column",
    "confidence_columns",
    "group_column",
    "subset_column",
    "id_column",
)
"""Options that say which columns a file of scores or verdicts has."""

_OPTIONS = (
    click.option(
        "--scores",
        type=click.Path(path_type=Path),
        help="Scores of any other system (JSONL, CSV, Parquet), in place of data and model.",
    ),
    click.option(
        "--fast-columns",
        metavar="A,B",
        help="Its fast scores: one column per response, or one of lists.  [default: score_a,score_b or the like]",
    ),
    click.option("--label-column", default="label", show_default=True, help="Which response is right: 0, b, A>B, ..."),
    click.option("--first-is-right", is_flag=True, help="The first score is always the right response's; no label."),
    click.option(
        "--slow-columns", metavar="V[,W]", help="A judge's verdicts, written like the label; W in the other order."
    ),
    click.option("--tokens-column", help="Tokens that the judge wrote."),
    click.option(
        "--confidence-columns", metavar="C,D", help="Word-distribution confidence of each response, in [0, 1]."
    ),
    click.option("--group-column", help="Items with the same value are not independent, such as those of one prompt."),
    click.option("--subset-column", help="Part of the data, for the report."),
    click.option("--id-column", help="Names each item once; by it --verdicts finds its item."),
    click.option(
        "--verdicts",
        type=click.Path(path_type=Path),
        help="Texts that a judge wrote, in a file of their own or in that of --scores.",
    ),
    click.option(
        "--form",
        "verdict_form",
        help="How these texts end: rrm, rm-r1, gram-rr, judgelrm, prometheus, chat, arena-hard.",
    ),
    click.option(
        "--verdict-columns",
        metavar="T[,U]",
        default="judgement",
        show_default=True,
        help="The texts; U with the responses in the other order.",
    ),
)


def score_options(command: _Command) -> _Command:
    """Add the options about score files to a click command; ``read_items`` takes what they give."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_given(options: dict[str, Any]) -> bool:
    """Return whether scores or verdicts from a file were given."""
    return options["scores"] is not None or options["verdicts"] is not None


def check_source(data: Path | None, options: dict[str, Any]) -> None:
    """Raise a ``click.UsageError`` unless exactly one kind of data was named, with options that are about it."""
    if (data is None) != is_given(options):
        raise click.UsageError("name the data, or --scores FILE with another system's scores; not both")
    if options["verdicts"] is None:
        refuse(("verdict_form", "verdict_columns"), "is about the texts of --verdicts; name that file too")
    elif options["verdict_form"] is None:
        raise click.UsageError("--verdicts needs --form, which says how the texts end")
    else:
        refuse(("slow_columns",), "and --verdicts both say what the judge answered; pass one of them")
    if options["first_is_right"]:
        refuse(("label_column",), "and --first-is-right both say which response is right; pass one of them")
    if data is not None:
        refuse(_NAMES, "is about a file of scores; name it with --scores in place of the data, or leave the option out")
    elif options["scores"] is None:
        refuse(("fast_columns", "confidence_columns", "gate_file"), "needs fast scores; name their file with --scores")


def refuse(names: Iterable[str], why: str) -> None:
    """Raise a ``click.UsageError`` if the command line has an option that would have no effect.

    Args:
        names: Names of options, as the command gets them. Those it does not have are ignored, and so are those that
            were left at their default or stand in the environment for all commands.
        why: What follows the option's name in the message: why it has no effect, and what to do.
    """
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{max(option.opts, key=len)} {why}")


def columns_of(options: dict[str, Any]) -> Columns:
    """Return the names of the columns that the options give."""
    from fsrm_lite.measure.score_files import Columns

    return Columns(
        fast=_names(options["fast_columns"]),
        label=options["label_column"],
        first_is_right=options["first_is_right"],
        slow=_names(options["slow_columns"]),
        tokens=options["tokens_column"],
        distribution=_names(options["confidence_columns"]),
        group=options["group_column"],
        subset=options["subset_column"],
        id=options["id_column"],
    )


def read_items(options: dict[str, Any]) -> tuple[list[ScoredItem], list[str]]:
    """Return the items of ``--scores``, with the verdicts of ``--verdicts`` where there are any, and remarks."""
    from fsrm_lite.measure.score_files import read_scores, with_verdicts

    columns = columns_of(options)
    if options["scores"] is None:
        columns = replace(columns, fast=(), verdicts_only=True)
    items = read_scores(options["scores"] or options["verdicts"], columns)
    if options["verdicts"] is None:
        return items, []
    texts = _names(options["verdict_columns"])
    return with_verdicts(items, options["verdicts"], texts, options["verdict_form"], columns.id)


def unlabelled_items(path: Path, fast_columns: str | None) -> list[LabelledItem]:
    """Return the items of a file for their fast signals alone. Where it has no labels, 0 stands for them."""
    from fsrm_lite.errors import DataFormatError
    from fsrm_lite.measure.data_files import first_row
    from fsrm_lite.measure.labelled_rows import is_recorded, read_labelled
    from fsrm_lite.measure.score_files import Columns, labelled, read_scores

    if is_recorded(first_row(path).data):
        items = list(read_labelled(path).items)
    else:
        items = labelled(read_scores(path, Columns(_names(fast_columns), first_is_right=True)), path.name)
    if not items:
        raise DataFormatError(f"{path} has no item with fast scores")
    return items


def read_gate(path: Path, *, lists: bool) -> GateSpec:
    """Return the gate of a file; refuse one that says nothing about the items at hand.

    Args:
        path: The file.
        lists: Whether the items are lists, and not single responses or pairs.

    Raises:
        GateSpecError: If the file holds no gate, or none for such items.
    """
    data = read_json(path)
    spec = GateSpec.from_dict(data)
    if lists and spec.lists is None:
        raise GateSpecError(
            f"{path} is a gate for single responses and pairs, and these are lists; calibrate a rule for lists: "
            "fsrm-lite calibrate --scores LISTS --risk RISK -o gate.json"
        )
    if not lists and data.keys() == {"lists"}:
        raise GateSpecError(
            f"{path} is a rule for lists alone, and these are single responses or pairs; calibrate a gate on such"
        )
    return spec


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()
