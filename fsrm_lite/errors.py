"""Every exception that the package raises on purpose.

All of them inherit from ``FsrmError``. Where a caller would expect a built-in exception (``ValueError``,
``ImportError``), the class inherits from that as well, so that ``except ValueError`` works. Each message says what was
given, what was expected and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_QUOTED = 500  # characters of another package's message


class FsrmError(Exception):
    """Root of all errors of this package."""


class InputError(FsrmError, ValueError):
    """A prompt, a response, a row or an option is not usable as given."""


class ContextOverflowError(InputError):
    """A filled-in template has more tokens than the model's context holds."""


class DataFormatError(InputError):
    """A data file (JSONL rows, a benchmark file, a results file) is not in the expected form."""


class BundleError(FsrmError):
    """A model bundle is missing, incomplete, altered, or of an unknown format version."""


class GateSpecError(FsrmError, ValueError):
    """A gate specification is malformed or out of range."""


class CalibrationError(FsrmError, ValueError):
    """The labelled data do not allow the calibration that was asked for."""


class MissingExtraError(FsrmError, ImportError):
    """An optional dependency is not installed; the message has the exact install command."""


class JudgeError(FsrmError):
    """The judge (the slow half of a model) could not give a judgement."""


class JudgeUnavailableError(JudgeError, MissingExtraError):
    """The judge's runtime, llama-cpp-python, is missing or cannot be imported on this machine."""


class JudgeCrashed(JudgeError):
    """The judge's process died; the next call starts a fresh one."""


class MisuseError(InputError, JudgeError):
    """A model is used after it was closed, or in a process that was forked from the one that opened it.

    No text or row is at fault, so nothing that goes on past bad items goes on past this.
    """


class ExportError(FsrmError):
    """A checkpoint cannot be exported, or an export is out of tolerance."""


class UnsupportedCheckpointError(ExportError):
    """The checkpoint uses an architecture, a rope scaling or a tokenizer that cannot be exported faithfully."""


class ToleranceError(ExportError):
    """The exported files differ from the checkpoint by more than the tolerance allows."""


class ReasonerError(FsrmError):
    """A reasoner raised, hung, or returned nothing."""


def missing_extra(package: str, extra: str, cause: BaseException | None = None) -> MissingExtraError:
    """Return the error to raise where an optional dependency is not installed.

    Args:
        package: Name of the package that could not be imported.
        extra: Name of the extra of ``fsrm-lite`` that installs it.
        cause: The import error, whose text is quoted.

    Returns:
        The error, with the install command in its message.
    """
    why = f" ({cause})" if cause is not None else ""
    return MissingExtraError(
        f"{package} is needed here and could not be imported{why}; run: pip install 'fsrm-lite[{extra}]'"
    )


@contextmanager
def as_ours(kind: type[FsrmError], what: str) -> Iterator[None]:
    """Turn whatever a library raises within the block into one error of this package.

    Libraries that read strangers' files raise errors of many kinds, some without a common root; a library written in
    Rust may even raise a ``PanicException``, which is no ``Exception``. Our own errors and requests to stop pass.

    Args:
        kind: The error to raise.
        what: Begins its message; what was raised follows.

    Raises:
        FsrmError: Of the given kind.
    """
    try:
        yield
    except (FsrmError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what}: {type(error).__name__}: {one_line(error)[:_QUOTED]}") from error


def one_line(error: BaseException) -> str:
    """Return the message of another package's error on one line, as all messages of this package are."""
    return " ".join(str(error).split())


def printable(text: str) -> str:
    """Return a text with every character that is not for printing written out, as Python would write it.

    A stranger's card or file name may hold control characters, which a terminal would obey. Line breaks and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
