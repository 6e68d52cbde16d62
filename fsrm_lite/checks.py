"""Checks of what callers give: options, lists and texts.

Every check happens before anything is run. What is refused raises an ``InputError`` whose message is one line that says
what was given and what was expected.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from reprlib import repr as short
from typing import Any, TypeGuard, TypeVar

from fsrm_lite.errors import ContextOverflowError, InputError

_Item = TypeVar("_Item")

MAX_VOTES = 256
MAX_TEXT_CHARACTERS = 1 << 20
"""Longest prompt or response, about a million characters: more than a context of 200,000 tokens holds.

A longer one is refused before it is tokenized, which would take gigabytes of memory for the longest.
"""

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


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that was there before; None if all differ."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


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


def plain(value: Any) -> Any:  # noqa: ANN401 - any value, which is returned
    """Return a number of numpy's, or of another array library, as Python's own; anything else as it is.

    Settings often come from arrays and tables. Stored as they are, they could not be written as JSON or given to C.
    """
    return value.item() if hasattr(value, "dtype") and getattr(value, "shape", None) == () else value


def make_plain(settings: Any) -> None:  # noqa: ANN401 - a dataclass
    """Replace the numbers among the fields of a (frozen) dataclass as ``plain`` says. For its ``__post_init__``."""
    for name in settings.__dataclass_fields__:
        value = getattr(settings, name)
        if plain(value) is not value:
            object.__setattr__(settings, name, plain(value))


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether ``value`` is a whole number, Python's or numpy's.

    True and False, which Python counts as integers, are not.
    """
    value = plain(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a number, Python's or numpy's, that a float can hold.

    True and False, infinities, NaN and whole numbers that are too large are not.
    """
    value = plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_items(items: Iterable[Any], *parts: str) -> list[tuple[Any, ...]]:
    """Return ``items`` as a list of tuples with as many entries as there are ``parts``.

    The entries themselves are not looked at.

    Args:
        items: What the caller gave: tuples or lists, rows of an array, or objects with the parts as keys; or a table
            (of pandas) with the parts as columns.
        *parts: Name of each entry.

    Raises:
        InputError: If ``items`` is not a collection, or an item has another form; the message names the first such
            item.
    """
    shape = f"({', '.join(parts)})"
    if hasattr(items, "columns") and hasattr(items, "itertuples"):
        return _rows_of_table(items, parts, shape)
    listed: list[Any] = _listed(items, "items", f"{shape} tuples")
    for i, item in enumerate(listed):
        if isinstance(item, Mapping):
            if any(part not in item for part in parts):
                given = ", ".join(map(str, item)) or "nothing"
                raise InputError(f"item {i} has {given}; expected a {shape} tuple, or an object with these keys")
            listed[i] = tuple(item[part] for part in parts)
        elif isinstance(item, tuple | list) or len(getattr(item, "shape", ())) == 1:
            listed[i] = tuple(item)
        if not isinstance(listed[i], tuple) or len(listed[i]) != len(parts):
            raise InputError(f"item {i} is not a {shape} tuple")
    return listed


def _rows_of_table(table: Any, parts: tuple[str, ...], shape: str) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Return the named columns of a table as rows. A column is found by its name, a row by its place."""
    columns = list(table.columns)
    if any(columns.count(part) != 1 for part in parts):
        raise InputError(
            f"the table has the columns {', '.join(map(str, columns)) or '(none)'}; expected {', '.join(parts)}, "
            f"or a list of {shape} tuples"
        )
    return list(zip(*(list(table[part]) for part in parts), strict=True))


def check_candidates(responses: Iterable[_Item]) -> list[_Item]:
    """Return the candidates (the responses to choose among) as a list, if there is at least one.

    Their texts are not looked at; see ``check_texts``.

    Raises:
        InputError: If ``responses`` is a single string, not a collection, or empty.
    """
    candidates = check_texts(responses, "responses")
    if not candidates:
        raise InputError("there are 0 responses; expected at least 1")
    return candidates


def check_texts(texts: Iterable[_Item], what: str) -> list[_Item]:
    """Return a collection of texts as a list; the texts themselves are not looked at.

    Args:
        texts: A list, a generator, an array, or a column of a table, which is taken in the order of its rows.
        what: What the message calls them, for example ``"documents"``.

    Raises:
        InputError: If it is a single string, or not a collection, or one without an order.
    """
    return _listed(texts, what, "strings")


def _listed(given: Iterable[_Item], what: str, expected: str) -> list[_Item]:
    """Return what was given as a list, or raise an ``InputError`` if it is not a collection of ``expected``."""
    # Python would take a string as a collection of its characters, and a dict or a table as one of its keys. No caller
    # means that. A set has no order by which its results could be told apart.
    if (
        isinstance(given, str | bytes | Mapping | set | frozenset)
        or hasattr(given, "columns")
        or not isinstance(given, Iterable)
    ):
        raise InputError(
            f"the {what} are {'one string' if isinstance(given, str) else kind_of(given)}; "
            f"expected a list of {expected}"
        )
    try:
        return list(given)
    except TypeError as error:  # an array without dimensions says that it can be iterated over, and cannot
        raise InputError(f"the {what} are {kind_of(given)}; expected a list of {expected}") from error


def valid_unicode(text: str, what: str) -> str:
    """Return ``text``, if it is valid Unicode and not longer than ``MAX_TEXT_CHARACTERS``.

    A lone surrogate (one half of an emoji that was cut in two) cannot be encoded, and the tokenizer's own error would
    not say so.

    Args:
        text: The text.
        what: What the message calls it, for example ``"prompt"``.

    Raises:
        ContextOverflowError: If the text is longer than any context holds.
        InputError: If the text has a lone surrogate; the message says at which character.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ContextOverflowError(
            f"the {what} has {len(text):,} characters, expected at most {MAX_TEXT_CHARACTERS:,}; shorten it"
        )
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
