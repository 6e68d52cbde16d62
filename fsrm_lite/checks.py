"""Options as callers give them: one line that says what was given and what was expected, before anything is run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from reprlib import repr as short
from typing import TypeGuard

from fsrm_lite.errors import InputError

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
    """Refuse what is none of some words; see :func:`expect`."""
    known = list(choices)
    expect(value in known, name, value, f"one of {', '.join(known)}")


def expect_sampling(votes: object, temperature: object, top_p: object, top_k: object) -> None:
    """Refuse settings of the judge's sampling that are out of range; see :func:`expect`."""
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
