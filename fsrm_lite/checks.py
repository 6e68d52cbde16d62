"""Checks of what callers give: options, lists and texts.

Every check happens before anything is run. What is refused raises an ``InputError`` whose message is one line that says
what was given and what was expected.
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
"""The smallest sampling temperature above 0: logits divided by a smaller number leave the range of float32."""


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise unless an option's value is usable.

    Args:
        holds: Whether the value is usable.
        name: Name of the option.
        value: What was given.
        expected: What would have been usable, in words.

    Raises:
        InputError: With the message ``"NAME is VALUE, expected EXPECTED"``, unless ``holds``.
    """
    if not holds:
        raise InputError(f"{name} is {short(value)}, expected {expected}")


def expect_one_of(choices: Iterable[str], name: str, value: object) -> None:
    """Raise unless ``value`` is one of ``choices``; see ``expect``."""
    known = list(choices)
    expect(value in known, name, value, f"one of {', '.join(known)}")


def expect_decoding(votes: object, temperature: object, top_p: object, top_k: object) -> None:
    """Raise unless the settings by which the judge draws tokens are in range; see ``expect``."""
    expect(is_whole(votes) and 1 <= votes <= MAX_VOTES, "votes", votes, f"a whole number from 1 to {MAX_VOTES}")
    hot = is_number(temperature) and (temperature == 0.0 or temperature >= MIN_TEMPERATURE)
    expect(hot, "temperature", temperature, f"0 (greedy) or a number of at least {MIN_TEMPERATURE:g}")
    expect(is_number(top_p) and 0.0 < top_p <= 1.0, "top_p", top_p, "a number in (0, 1]")
    expect(is_whole(top_k) and top_k >= 0, "top_k", top_k, "a whole number: 0 keeps all, or more")


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether ``value`` is a whole number. True and False, which Python counts as integers, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a number that a float can hold.

    True and False, infinities, NaN and whole numbers that are too large are not.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_items(items: Iterable[_Item], *parts: str) -> list[_Item]:
    """Return ``items`` as a list, if each of them is a tuple or list with as many entries as there are ``parts``.

    The entries themselves are not looked at.

    Args:
        items: What the caller gave.
        *parts: Name of each entry, for the message.

    Raises:
        InputError: If ``items`` is not a collection, or an item has another form; the message names the first such
            item.
    """
    shape = f"({', '.join(parts)})"
    listed = _listed(items, "items", f"{shape} tuples")
    for i, item in enumerate(listed):
        if not isinstance(item, tuple | list) or len(item) != len(parts):
            raise InputError(f"item {i} is not a {shape} tuple")
    return listed


def check_candidates(responses: Iterable[_Item]) -> list[_Item]:
    """Return the candidates (the responses to choose among) as a list, if there is at least one.

    Their texts are not looked at.

    Raises:
        InputError: If ``responses`` is a single string, not a collection, or empty.
    """
    candidates = _listed(responses, "responses", "strings")
    if not candidates:
        raise InputError("there are 0 responses; expected at least 1")
    return candidates


def _listed(given: Iterable[_Item], what: str, expected: str) -> list[_Item]:
    """Return what was given as a list, or raise an ``InputError`` if it is not a collection of ``expected``."""
    # Python would take a string as a collection of its characters and a dict as one of its keys. No caller means that.
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(
            f"the {what} are {'one string' if isinstance(given, str) else kind_of(given)}; "
            f"expected a list of {expected}"
        )
    return list(given)


def valid_unicode(text: str, what: str) -> str:
    """Return ``text``, if it is valid Unicode.

    A lone surrogate (one half of an emoji that was cut in two) cannot be encoded, and the tokenizer's own error would
    not say so.

    Args:
        text: The text.
        what: What the message calls it, for example ``"prompt"``.

    Raises:
        InputError: If the text has a lone surrogate; the message says at which character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {what} has a lone surrogate at character {error.start}; expected valid Unicode text"
        ) from error
    return text


def kind_of(value: object) -> str:
    """Return the words by which a message names a value of the wrong type."""
    return f"of type {type(value).__name__}" if value is not None else "null"
