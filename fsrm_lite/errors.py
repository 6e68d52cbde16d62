"""Every exception the package raises on purpose.

One root, ``FsrmError``. Each message says what was given, what was expected and what to do next. Classes
also inherit the builtin a caller would reach for (``ValueError``, ``ImportError``), so ``except ValueError`` works.
"""

from __future__ import annotations


class FsrmError(Exception):
    """Root of all errors of this package."""


class InputError(FsrmError, ValueError):
    """A prompt, a response, a row or an option is not usable as given."""


class ContextOverflowError(InputError):
    """A rendered prompt is longer than the model's context."""


class DataFormatError(InputError):
    """A data file (JSONL rows, a benchmark file, a results file) is not in the expected form."""


class BundleError(FsrmError):
    """A model bundle is missing, incomplete, altered, or of an unknown format version."""


class GateSpecError(FsrmError, ValueError):
    """A gate specification is malformed or out of range."""


class CalibrationError(FsrmError, ValueError):
    """Labelled data do not allow the calibration that was asked for."""


class MissingExtraError(FsrmError, ImportError):
    """An optional dependency is not installed; the message names the exact install line."""


class JudgeError(FsrmError):
    """The slow judge could not give a judgement."""


class JudgeUnavailableError(JudgeError, MissingExtraError):
    """llama-cpp-python is missing or cannot be imported on this machine."""


class JudgeCrashed(JudgeError):
    """The judge's process died; the next call starts a fresh one."""


class ExportError(FsrmError):
    """A checkpoint cannot be exported, or an export is out of tolerance."""


class UnsupportedCheckpointError(ExportError):
    """The checkpoint uses something (architecture, rope scaling, tokenizer) that cannot be exported faithfully."""


class ToleranceError(ExportError):
    """The exported files do not decide like the checkpoint, by the tolerance that was asked for."""


class ReasonerError(FsrmError):
    """A reasoner raised, hung, or returned nothing."""


def missing_extra(package: str, extra: str, cause: BaseException | None = None) -> MissingExtraError:
    """Return the error for an optional dependency that is not installed.

    Args:
        package: Name of the package that could not be imported.
        extra: Name of the extra of ``fsrm-lite`` that brings it.
        cause: The import error, whose text is quoted.
    """
    why = f" ({cause})" if cause is not None else ""
    return MissingExtraError(
        f"{package} is needed here and could not be imported{why}; run: pip install 'fsrm-lite[{extra}]'"
    )


def one_line(error: BaseException) -> str:
    """Return the text of another package's error without its line breaks: every message of ours is one line."""
    return " ".join(str(error).split())
