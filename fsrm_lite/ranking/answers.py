r"""Final answers out of free text, so that answers can be counted and checked without a human.

An *extractor* is any function from text to a canonical answer, or None when the text holds none. Two texts agree when
their canonical answers are equal strings. ``numeric``, ``exact`` and ``final`` cover numbers and short words; anything else plugs
in as a callable, or from the command line as ``package.module:function``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from importlib import import_module
from typing import TypeAlias

from fsrm_lite.errors import InputError

Extractor: TypeAlias = Callable[[str], str | None]
"""From a response (or a reference answer) to its canonical answer; None when there is none."""

_NUMBER = re.compile(r"[-+\u2212]?\$?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_HASHES = re.compile(r"####\s*(.+)")  # the form of GSM8K's reference solutions
_PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*(?:is\s*)?(.+)", re.IGNORECASE)
_MARKERS = (_BOXED, _HASHES, _PHRASE)
_SHORT_WORDS = 3
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)


def numeric(text: str) -> str | None:
    r"""Return the last number of the marked answer, or else of the whole text, in canonical form.

    Marked means ``\boxed{...}``, ``#### ...`` or ``answer is ...``, the last such mark winning. Thousands separators, a
    dollar sign and trailing zeros do not matter: ``"$1,250.00"`` and ``"1250"`` are one answer.
    """
    marked = _marked(text)
    if marked is not None:
        # Behind "answer is" the first number is the answer; what follows is prose ("12, because 3 of the 4 ...").
        found = _NUMBER.search(marked)
        if found:
            return _canonical_number(found.group())
    numbers = _NUMBER.findall(_after_thought(text))
    return _canonical_number(numbers[-1]) if numbers else None


def exact(text: str) -> str | None:
    """Return the marked answer, or else the last non-empty line, without case, outer punctuation and extra spaces."""
    marked = _marked(text)
    if marked is None:
        lines = [line for line in _after_thought(text).splitlines() if line.strip()]
        marked = lines[-1] if lines else ""
    return _canonical_words(marked)


def final(text: str) -> str | None:
    """Return the marked answer, its number if it has one, else its words; without a mark only a text of at most 3 words.

    Stricter than the other two: a working that stops before its conclusion has no answer. A unit behind a number does not
    matter: ``"The answer is 12 pens."`` and ``"12"`` are one answer.
    """
    marked = _marked(text)
    if marked is None:
        marked = _after_thought(text)
        if len(marked.split()) > _SHORT_WORDS:
            return None
    found = _NUMBER.search(marked)
    return _canonical_number(found.group()) if found else _canonical_words(marked)


EXTRACTORS: dict[str, Extractor] = {"numeric": numeric, "exact": exact, "final": final}
"""The built-in extractors by name."""


def find_extractor(extractor: str | Extractor) -> Extractor:
    """Return an extractor from its name, from ``"package.module:function"``, or as it is.

    Raises:
        InputError: If the name is unknown or nothing callable is found there.
    """
    if callable(extractor):
        return extractor
    if extractor in EXTRACTORS:
        return EXTRACTORS[extractor]
    found = load_attribute(extractor, "extractor", f"one of {', '.join(EXTRACTORS)} or package.module:function")
    if not callable(found):
        raise InputError(f"extractor {extractor!r} is a {type(found).__name__}, expected a function from text to text")
    return found


def load_attribute(path: str, what: str, expected: str = "package.module:name") -> object:
    """Import ``package.module:name``.

    Args:
        path: Module and attribute, with a colon between them.
        what: What is looked for, for the message.
        expected: What would have been accepted, for the message.

    Raises:
        InputError: If the module or the attribute does not exist.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise InputError(f"{what} {path!r} is unknown, expected {expected}")
    try:
        found: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{what} {path!r} cannot be imported: {error}") from error
    return found


def agrees(text: str, reference: str, extractor: Extractor) -> bool:
    """Whether ``text`` has an answer and it is the reference's; a reference without one agrees with nothing."""
    answer = extractor(text)
    return answer is not None and answer == extractor(reference)


def _marked(text: str) -> str | None:
    """What stands behind the last answer mark; None without a mark."""
    text = _after_thought(text)
    for pattern in _MARKERS:
        found: list[str] = pattern.findall(text)
        if found and found[-1].strip():
            return found[-1]
    return None


def _after_thought(text: str) -> str:
    """Leave out a thought: numbers in it are not the answer."""
    return _THOUGHT.sub("", text)


def _canonical_words(text: str) -> str | None:
    return " ".join(text.split()).casefold().strip(" .,;:!?\"'`*$()[]") or None


def _canonical_number(text: str) -> str | None:
    try:
        value = Decimal(text.replace(",", "").replace("$", "").replace("\u2212", "-"))
        # "f" never writes an exponent; a number too large to be written out is no answer.
        return format(value.normalize() + 0, "f") if abs(value.adjusted()) < 50 else None
    except InvalidOperation:
        return None
