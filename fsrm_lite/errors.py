"""Every exception that the package raises on purpose.

All of them inherit from ``FsrmError``. Where a caller would expect a built-in exception (``ValueError``,
``ImportError``), the class inherits from that as well, so that ``except ValueError`` works. Each message says what was
given, what was expected and what to do next.
"""

from __future__ import annotations


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


def one_line(error: BaseException) -> str:
    """Return the message of another package's error on one line, as all messages of this package are."""
    return " ".join(str(error).split())
