"""Options, lists and texts as callers give them: each is refused in one line that says what was given and what was expected.

Everything here is checked before anything is run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from reprlib import repr as short
from typing import TypeGuard, TypeVar

from fsrm_lite.errors import InputError

_Item = TypeVar("_Item")

MAX_VOTES = 256
MIN_TEMPERATURE = 1e-6
"""Logits divided by less than this leave the range of float32."""


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuse the value of an option.

    Raises:
        InputError: ``"NAME is VALUE, expected EXPECTED"``, unless ``holds``.
    """
    if not holds:
        raise InputError(f"{name} is {short(value)}, expected {expected}")


def expect_one_of(choices: Iterable[str], name: str, value: object) -> None:
    """Refuse what is none of some words; see ``expect``."""
    known = list(choices)
    expect(value in known, name, value, f"one of {', '.join(known)}")


def expect_decoding(votes: object, temperature: object, top_p: object, top_k: object) -> None:
    """Refuse settings of the judge's decoding that are out of range; see ``expect``."""
    expect(is_whole(votes) and 1 <= votes <= MAX_VOTES, "votes", votes, f"a whole number from 1 to {MAX_VOTES}")
    hot = is_number(temperature) and (temperature == 0.0 or temperature >= MIN_TEMPERATURE)
    expect(hot, "temperature", temperature, f"0 (greedy) or a number of at least {MIN_TEMPERATURE:g}")
    expect(is_number(top_p) and 0.0 < top_p <= 1.0, "top_p", top_p, "a number in (0, 1]")
    expect(is_whole(top_k) and top_k >= 0, "top_k", top_k, "a whole number: 0 keeps all, or more")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, which True is not, nor a whole number too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_items(items: Iterable[_Item], *parts: str) -> list[_Item]:
    """Return ``items`` as a list, if each of them is a tuple or list of the named parts; the parts are not looked at.

    Raises:
        InputError: Naming the first item that is not.
    """
    shape = f"({', '.join(parts)})"
    listed = _listed(items, "items", f"{shape} tuples")
    for i, item in enumerate(listed):
        if not isinstance(item, tuple | list) or len(item) != len(parts):
            raise InputError(f"item {i} is not a {shape} tuple")
    return listed


def check_candidates(responses: Iterable[_Item]) -> list[_Item]:
    """Return the candidates as a list, if there are any; the texts are not looked at.

    Raises:
        InputError: If they are one text, no collection, or none.
    """
    candidates = _listed(responses, "responses", "strings")
    if not candidates:
        raise InputError("there are 0 responses; expected at least 1")
    return candidates


def _listed(given: Iterable[_Item], what: str, expected: str) -> list[_Item]:
    # A string is a collection of strings to Python, and a dict one of its keys; nobody means that.
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(
            f"the {what} are {'one string' if isinstance(given, str) else kind_of(given)}; expected a list of {expected}"
        )
    return list(given)


def valid_unicode(text: str, what: str) -> str:
    """Return ``text``, if it is valid Unicode.

    A lone surrogate (one half of an emoji that was cut in two) cannot be encoded, and the tokenizer's own error would not say so.

    Raises:
        InputError: Naming the position of the surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {what} has a lone surrogate at character {error.start}; expected valid Unicode text"
        ) from error
    return text


def kind_of(value: object) -> str:
    """Return how a message speaks of a value of the wrong type."""
    return f"of type {type(value).__name__}" if value is not None else "null"
