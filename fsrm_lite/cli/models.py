"""The options by which commands name a model and say how it should think."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from fsrm_lite.scorer import FastSlowRM
from fsrm_lite.slow.engines import ENGINES
from fsrm_lite.types import POLICIES

MODEL_NAMES = (
    "model",
    "revision",
    "local_files_only",
    "judge",
    "judge_engine",
    "votes",
    "thinking_tokens",
    "temperature",
    "seed",
    "threads",
    "truncate",
    "deterministic",
    "judge_process",
)
"""Names of the options of ``model_options``, as a command gets them."""

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HUB = (
    click.option("--revision", default=None, help="Branch, tag or commit of a hub model."),
    click.option("--local-files-only", is_flag=True, help="Never use the network."),
)
_OPTIONS = (
    click.option("--model", default=None, help="A bundle folder or org/name.  [default: the embedded model]"),
    *_HUB,
    click.option(
        "--judge",
        type=click.Choice(POLICIES),
        default="auto",
        show_default=True,
        help="When to think slowly.",
    ),
    click.option(
        "--votes", type=int, default=None, help="Thoughts per pair and order, or per response.  [default: the model's]"
    ),
    click.option("--thinking-tokens", type=int, default=None, help="Budget of one thought.  [default: the model's]"),
    click.option("--temperature", type=float, default=None, help="Of the judge; 0 is greedy.  [default: the model's]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the judge."),
    click.option(
        "--threads",
        type=int,
        default=None,
        help="[default: the physical cores this process may use; one for a small judge]",
    ),
    click.option("--truncate", is_flag=True, help="Cut responses that are too long, and say so, instead of stopping."),
    click.option(
        "--judge-engine",
        type=click.Choice(ENGINES),
        default="auto",
        show_default=True,
        help="What the judge thinks with.",
    ),
    click.option(
        "--deterministic", is_flag=True, help="Read each response alone: slower, the same bits in any company."
    ),
    click.option("--judge-process", type=click.Choice(("inline", "subprocess")), default="inline", show_default=True),
)


def model_options(command: _Command) -> _Command:
    """Add the model options to a click command, which passes what it gets on to ``open_model``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def model_argument(command: _Command) -> _Command:
    """Add the argument ``[MODEL]`` to a command about one model.

    ``--model``, by which the other commands name it, is accepted too.
    """

    @wraps(command)
    def named_once(model: str | None, named: str | None, **options: Any) -> Any:  # noqa: ANN401 - as the command
        if model is not None and named is not None:
            raise click.UsageError("name the model once, as MODEL or with --model")
        return command(model=named if model is None else model, **options)

    for add in (
        *reversed(_HUB),
        click.option("--model", "named", default=None, hidden=True),
        click.argument("model", required=False),
    ):
        named_once = add(named_once)
    return named_once  # type: ignore[return-value]


def open_model(options: dict[str, Any]) -> FastSlowRM:
    """Open the model that the options of ``model_options`` name. These options are removed from ``options``."""
    source, *given = (options.pop(name) for name in MODEL_NAMES)
    return FastSlowRM.from_pretrained(source, **dict(zip(MODEL_NAMES[1:], given, strict=True)))
