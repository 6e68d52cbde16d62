"""The ``fsrm-lite`` command: one module per group of commands, loaded when a command of it is called.

===================  ==================================================================================
``scoring``          score, compare, rank, best-of-n
``evaluation``       calibrate, eval, gate; ``evaluation_text`` writes their reports for a terminal
``exporting``        export
``reasoning``        distill, fit-critic
``inspection``       inspect, doctor
``models``           the options by which every command names its model
``progress``         how far a command has come
===================  ==================================================================================
"""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import Any

import click

from fsrm_lite import __version__
from fsrm_lite.errors import (
    BundleError,
    CalibrationError,
    FsrmError,
    GateSpecError,
    InputError,
    UnsupportedCheckpointError,
)

COMMANDS = {
    "score": "scoring:score",
    "compare": "scoring:compare",
    "rank": "scoring:rank",
    "best-of-n": "scoring:best_of_n",
    "inspect": "inspection:inspect",
    "doctor": "inspection:doctor",
    "export": "exporting:export",
    "calibrate": "evaluation:calibrate",
    "eval": "evaluation:evaluate",
    "gate": "evaluation:gate",
    "distill": "reasoning:distill",
    "fit-critic": "reasoning:fit_critic",
}
"""Command to ``module:attribute`` within this package."""

BAD_INPUT = (InputError, BundleError, GateSpecError, CalibrationError, UnsupportedCheckpointError)
"""Errors that end with exit status 2, like a wrong option; every other error of the package ends with 1."""

_HELP: tuple[type[Exception], ...] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)
"""Not an error, although click 8.2 and later count it as one."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for, and turns our errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command: click.Command = getattr(import_module(f"fsrm_lite.cli.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run, and show an error or a warning as one line on standard error."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except _HELP:
            raise  # a group without a command shows its help
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx is not None else ctx.command_path
            _note("Error", f"{error.format_message()} (see {command} --help)")
            ctx.exit(2)
        except FsrmError as error:
            _note("Error", error)
            ctx.exit(2 if isinstance(error, BAD_INPUT) else 1)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except OSError as error:
            _note("Error", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            ctx.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:  # noqa: ANN401 - where it was raised helps no user of the shell
    _note("Warning", message)


def _note(kind: str, text: object) -> None:
    click.echo(f"{kind}: {' '.join(str(text).split())}", err=True)


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "FSRM_LITE", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fsrm-lite")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to standard error.")
def main(verbose: bool) -> None:
    """Score and compare LLM responses offline: fast by default, slowly when it pays."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
