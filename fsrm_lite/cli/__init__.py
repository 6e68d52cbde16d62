"""The ``fsrm-lite`` command. There is one module per group of commands, which is loaded when one of them is called.

===================  ==================================================================================
``scoring``          score, compare, rank, best-of-n
``calibration``      calibrate; ``calibration_text`` writes its reports for a terminal
``evaluation``       eval; ``evaluation_runs`` runs a model, ``comparison`` compares several, ``evaluation_text`` writes
                     the reports, ``evaluation_scores`` has the options about other systems' scores
``gating``           gate
``exporting``        export, recipes, verify
``reasoning``        distill, fit-critic
``inspection``       inspect, doctor
``serving``          serve
``golden``           compares a bundle's examples with what was noted, for doctor and verify
``models``           the options by which every command names its model
``identity``         what decides the contents of a run's results
``progress``         shows how far a command has come
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
    printable,
)

COMMANDS = {
    "score": "scoring:score",
    "compare": "scoring:compare",
    "rank": "scoring:rank",
    "best-of-n": "scoring:best_of_n",
    "inspect": "inspection:inspect",
    "doctor": "inspection:doctor",
    "serve": "serving:serve",
    "export": "exporting:export",
    "recipes": "exporting:recipes",
    "verify": "exporting:verify",
    "calibrate": "calibration:calibrate",
    "eval": "evaluation:evaluate",
    "gate": "gating:gate",
    "distill": "reasoning:distill",
    "fit-critic": "reasoning:fit_critic",
}
"""From each command to ``module:attribute`` within this package."""

BAD_INPUT = (InputError, BundleError, GateSpecError, CalibrationError, UnsupportedCheckpointError)
"""Errors that end with exit status 2, like a wrong option. Every other error of the package ends with 1."""

_HELP: tuple[type[Exception], ...] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)
"""What click 8.2 and later raise where a group is called without a command. It shows the help and is no error here."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, and shows an error on one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command and return it; None if there is none of that name."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command: click.Command = getattr(import_module(f"fsrm_lite.cli.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run the command. An error or a warning becomes one line on standard error."""
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
            raise  # click ends without a message when nobody reads the pipe any more
        except OSError as error:
            _note("Error", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            ctx.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:  # noqa: ANN401 - as ``warnings`` calls it
    # Where in the code it was raised, which the other arguments say, would not help a user of the shell.
    _note("Warning", message)


def _note(kind: str, text: object) -> None:
    click.echo(f"{kind}: {printable(' '.join(str(text).split()))}", err=True)


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "FSRM_LITE", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fsrm-lite")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to standard error.")
def main(verbose: bool) -> None:
    """Score and compare LLM responses offline: fast by default, slowly when it pays."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
