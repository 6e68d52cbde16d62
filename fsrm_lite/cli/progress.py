"""Shows on standard error how far a command has come. Where that is no terminal, there is a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, Self

import click

LINE_SECONDS = 30.0
"""Time between two lines of progress where standard error is no terminal, such as the log of a batch job."""


class Step(Protocol):
    """Tells a progress display that more work is done."""

    def __call__(self, count: int = 1) -> None:
        """Count ``count`` more."""


@contextmanager
def progress(what: str, total: int | None = None, note: Callable[[], str] | None = None) -> Iterator[Step]:
    """Show a progress bar, or a running count where the total is not known.

    Args:
        what: Label of the bar, or what is counted.
        total: Number of steps; None when it is not known.
        note: Returns a text to show after the bar, for example figures measured so far.

    Yields:
        A function to call with the number of steps just done.
    """
    if not _is_watched():
        yield _Lines(what, total, note)
    elif total is None:
        done = 0

        def count_up(count: int = 1) -> None:
            nonlocal done
            done += count
            click.echo(f"\r{done} {what}", nl=False, err=True)

        try:
            yield count_up
        finally:
            click.echo("", err=True)
    else:
        shown = None if note is None else lambda _: note()
        with click.progressbar(length=total, file=sys.stderr, label=what, item_show_func=shown) as bar:
            yield lambda count=1: bar.update(count, None)


def _is_watched() -> bool:
    """Whether standard error is a terminal; it may also be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


class _Lines:
    """Writes a line of progress at most every ``LINE_SECONDS``; a command that is done before writes none."""

    def __init__(self, what: str, total: int | None, note: Callable[[], str] | None) -> None:
        self._what, self._total, self._note = what, total, note
        self._done = 0
        self._last = time.monotonic()

    def __call__(self, count: int = 1) -> None:
        """Count ``count`` more."""
        self._done += count
        now = time.monotonic()
        if sys.stderr is None or now - self._last < LINE_SECONDS:
            return
        self._last = now
        of = f" of {self._total}" if self._total is not None else ""
        note = f", {text}" if self._note is not None and (text := self._note()) else ""
        click.echo(f"{self._done}{of} {self._what}{note}", err=True)


class Stages:
    """Shows the stages of a long command on standard error: a percentage on a terminal, else one line per stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._live = _is_watched()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if self._live and self._stage:
            click.echo(err=True)

    def show(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of a stage are done."""
        if self._live:
            start = "\n" if self._stage and stage != self._stage else ""
            click.echo(f"{start}\r{stage:<24} {100 * done // max(1, total):3d} %", nl=False, err=True)
        elif stage != self._stage:
            click.echo(f"{stage} ...", err=True)
        self._stage = stage
