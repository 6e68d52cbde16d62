r"""Final answers from free text, so that answers can be counted and checked without a human.

An extractor is a function that takes a text and returns its final answer in a fixed spelling, or None when the text
holds no answer. Two texts agree when their answers are equal strings. Three extractors are built in: ``numeric`` for
numbers, ``exact`` for short words, and ``final`` for either, but strict about where the answer stands. Any other
function can be passed in its place, on the command line as ``package.module:function``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from importlib import import_module
from typing import TypeAlias

from fsrm_lite.errors import InputError

Extractor: TypeAlias = Callable[[str], str | None]
"""Takes a response (or a known answer) and returns its final answer in a fixed spelling; None when there is none."""

_NUMBER = re.compile(r"[-+\u2212]?\$?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_HASHES = re.compile(r"####\s*(.+)")  # the form of GSM8K's reference solutions
_PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*(?:is\s*)?(.+)", re.IGNORECASE)
_MARKERS = (_BOXED, _HASHES, _PHRASE)
_SHORT_WORDS = 3
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)


def numeric(text: str) -> str | None:
    r"""Return the number that a text gives as its answer, in a fixed spelling; None if it has no number.

    An answer is marked when it stands in ``\boxed{...}`` or behind ``####`` or ``answer is``. A box is preferred to
    ``####`` and that to ``answer is``; of several marks of one kind the last one counts. The result is the first number
    in the marked answer or, if it has none, the last number of the text. Thousands separators, a dollar sign and
    trailing zeros do not matter: ``"$1,250.00"`` and ``"1250"`` are the same answer.
    """
    marked = _marked(text)
    if marked is not None:
        # Behind "answer is" the first number is the answer; what follows explains it ("12, because 3 of the 4 ...").
        found = _NUMBER.search(marked)
        if found:
            return _canonical_number(found.group())
    numbers = _NUMBER.findall(_after_thought(text))
    return _canonical_number(numbers[-1]) if numbers else None


def exact(text: str) -> str | None:
    """Return the marked answer (see ``numeric``), or else the last line that is not empty; None if nothing is left.

    Upper and lower case, punctuation at both ends and extra spaces do not matter.
    """
    marked = _marked(text)
    if marked is None:
        lines = [line for line in _after_thought(text).splitlines() if line.strip()]
        marked = lines[-1] if lines else ""
    return _canonical_words(marked)


def final(text: str) -> str | None:
    """Return the marked answer (see ``numeric``): its number if it has one, else its words; None if nothing is marked.

    A text of at most three words counts as marked. This is stricter than the other two extractors: a text that works
    towards an answer but stops before it has none. A unit behind a number does not matter: ``"The answer is 12 pens."``
    and ``"12"`` are the same answer.
    """
    marked = _marked(text)
    if marked is None:
        marked = _after_thought(text)
        if len(marked.split()) > _SHORT_WORDS:
            return None
    found = _NUMBER.search(marked)
    return _canonical_number(found.group()) if found else _canonical_words(marked)


def final_or_text(text: str) -> tuple[str, str]:
    """Return what a text says, for finding texts that say the same: its ``final`` answer, or itself if it has none.

    Returns:
        ("answer", the answer), or ("text", the text without white space at its ends).
    """
    answer = final(text)
    return ("text", text.strip()) if answer is None else ("answer", answer)


EXTRACTORS: dict[str, Extractor] = {"numeric": numeric, "exact": exact, "final": final}
"""The built-in extractors by name."""


def find_extractor(extractor: str | Extractor) -> Extractor:
    """Return an extractor.

    Args:
        extractor: A name from ``EXTRACTORS``, a path ``"package.module:function"``, or a function, which is returned as
            it is.

    Raises:
        InputError: If the name is unknown or the path does not lead to a function.
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
    """Import and return the object at ``package.module:name``.

    Args:
        path: Module and name, with a colon between them.
        what: What is looked for, for the error message.
        expected: What would have been accepted, for the error message.

    Raises:
        InputError: If the path has no colon, or the module or the name does not exist.
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
    """Return whether ``text`` has an answer and it equals the answer in ``reference``.

    A reference without an answer agrees with nothing.
    """
    answer = extractor(text)
    return answer is not None and answer == extractor(reference)


def _marked(text: str) -> str | None:
    """Return what the last answer mark marks; None without a mark."""
    text = _after_thought(text)
    for pattern in _MARKERS:
        found: list[str] = pattern.findall(text)
        if found and found[-1].strip():
            return found[-1]
    return None


def _after_thought(text: str) -> str:
    """Return the text without its thought (all up to ``</think>``): a number in the thought is not the answer."""
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
