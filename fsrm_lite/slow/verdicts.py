r"""Finds the end of a thought and the verdict behind it in text, wherever the boundaries of tokens fall.

A model that was trained to write ``</eval>\n<answer>[[A]]`` may write it with other white space, in bold, or with
``\text{}`` inside a box. Such variants mean the same and are read; other words are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_DECORATION = r"(?:\s*(?:\*\*|\\text\s*\{|\\textbf\s*\{))*\s*"
"""What may stand before a word without changing its meaning: bold type, and LaTeX's text inside a formula."""


@dataclass(frozen=True, slots=True)
class WrittenVerdict:
    """What a judge wrote, taken apart.

    Attributes:
        thought: The text before the end of the thought; the whole text if the thought does not end.
        choice: Index of the verdict among the choices, or None where there is no verdict.
    """

    thought: str
    choice: int | None


def read_verdict(text: str, *, close: str, prefix: str, choices: Sequence[str]) -> WrittenVerdict:
    r"""Read the verdict in a text that any engine wrote, by the rules of the judge.

    The first ``close`` ends the thought. The last verdict behind it counts; without a prefix a verdict counts only
    right behind the close. Words before that are part of the thought, whatever they say.

    Args:
        text: What the model wrote behind the prompt.
        close: Text that ends a thought, for example ``"</think>"``.
        prefix: Text right before a choice, for example ``"\\boxed{Assistant "``.
        choices: The words to choose from.

    Returns:
        The thought, and the index of the choice.
    """
    end = find_close(text, close)
    if end is None:
        return WrittenVerdict(text.strip(), None)
    return WrittenVerdict(text[: end[0]].strip(), find_choice(text[end[1] :], prefix, choices))


def find_close(text: str, close: str) -> tuple[int, int] | None:
    """Return where the first ``close`` begins and ends in a text, in characters; white space may differ.

    None if there is none.
    """
    match = _close_pattern(close).search(text)
    return None if match is None else match.span()


def find_choice(answer: str, prefix: str, choices: Sequence[str]) -> int | None:
    """Return the index of the last verdict in the text behind a thought, or None if there is none."""
    words = sorted(choices, key=len, reverse=True)
    pattern = _choice_pattern(prefix, tuple(word.strip() for word in words))
    found = list(pattern.finditer(answer)) if prefix.strip() else [pattern.match(answer)]
    last = found[-1] if found else None
    if last is None:
        return None
    word = last.group("choice").lower()
    return next(i for i, choice in enumerate(choices) if choice.strip().lower() == word)


def choice_follows(answer: str, prefix: str) -> bool:
    """Return whether the next word would be a verdict, given the text behind a thought so far."""
    if not prefix.strip():
        return re.fullmatch(_DECORATION, answer) is not None
    return _prefix_pattern(prefix).search(answer) is not None


@lru_cache(maxsize=64)
def _close_pattern(close: str) -> re.Pattern[str]:
    return re.compile(r"\s*".join(re.escape(part) for part in close.split()) + r"\s*")


@lru_cache(maxsize=64)
def _choice_pattern(prefix: str, words: tuple[str, ...]) -> re.Pattern[str]:
    choice = "|".join(re.escape(word) for word in words)
    return re.compile(rf"{_loose(prefix)}{_DECORATION}(?P<choice>{choice})(?!\w)", re.IGNORECASE)


@lru_cache(maxsize=64)
def _prefix_pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(rf"{_loose(prefix)}{_DECORATION}\Z", re.IGNORECASE)


def _loose(prefix: str) -> str:
    r"""Return a pattern for a prefix in which white space may differ and words may be decorated.

    It begins with a character of the prefix, and no two ``\s*`` stand side by side: a search in a long run of white
    space would try all ways of sharing it out among them.
    """
    pieces = re.findall(r"\w+|[^\w\s]", prefix)
    return "".join(
        ("" if not i else _DECORATION if piece[0].isalnum() else r"\s*") + re.escape(piece)
        for i, piece in enumerate(pieces)
    )
