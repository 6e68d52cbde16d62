r"""Finds the end of a thought and the verdict behind it in text, wherever the boundaries of tokens fall.

A model that was trained to write ``</eval>\n<answer>[[A]]`` may write it with other white space, in bold, in lower
case, or with ``\text{}`` inside a box. Such variants mean the same and are read; other words are not. What cannot be
read for certain is no verdict: ``4.5`` is not 4, ``1-2`` is not 1, and ``[[A]] or [[B]]`` is neither.

What counts of several verdicts was taken from the scripts of the models' authors. RRM's rewards take the last box
behind the thought (deepscaler, ``extract_answer``), since judges correct themselves: this is the rule. RM-R1's scripts
count a text with both verdicts as an error (RM-R1-UIUC/RM-R1, ``lm_as_judge.py`` and ``process_judgement``): its
recipes say so. Prometheus' parser (prometheus-eval, ``parser.py``) wants white space, a bracket, ``/5``, ``out of 5``
or the end behind a rating, and takes brackets around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

SEVERAL = ("last", "none")
"""What counts of verdicts that contradict each other: the last one, or none."""

_STYLE = r"\*\*|\\[ ,;:!]|\\(?:text(?:bf|rm|it|sf)?|math(?:rm|bf|it|sf))\s*\{"
"""Bold type, and LaTeX's spaces and text inside a formula."""

_DECORATION = rf"[\s~]*(?:(?:{_STYLE})[\s~]*)*"
"""What may stand before a word without changing its meaning."""

_DECORATION_OR_BRACE = rf"[\s~]*(?:(?:{_STYLE}|\}})[\s~]*)*"
r"""The same between a word and a choice, where ``\text{}`` may end: ``\text{Assistant }2``."""

_RIGHT_BEHIND = rf"{_DECORATION}(?::{_DECORATION})?(?:[(\[]{_DECORATION})?"
"""What may stand between a close and a choice where there is no prefix."""

_OR = re.compile(r"\W*(?:</\w+>\W*)?(?:or|and|vs)\b\W*(?:\w+:\W*)?|[^\w\n]*[/|][^\w\n]*", re.IGNORECASE)
"""What stands between two verdicts that are named side by side, so that neither is given."""

_NOT = re.compile(r"(?:\bnot|n't|\bnever)[^\w.;!?\n]*\Z", re.IGNORECASE)
"""What stands before a verdict that is denied."""

_NEAR = 40
"""In how many characters before or behind a verdict such words are looked for."""


@dataclass(frozen=True, slots=True)
class WrittenVerdict:
    """What a judge wrote, taken apart.

    Attributes:
        thought: The text before the end of the thought; the whole text if the thought does not end.
        choice: Index of the verdict among the choices, or None where there is no verdict.
    """

    thought: str
    choice: int | None


def read_verdict(
    text: str, *, close: str, prefix: str, choices: Sequence[str], several: str = "last"
) -> WrittenVerdict:
    r"""Read the verdict in a text that any engine wrote, by the rules of the judge.

    The first ``close`` ends the thought. The last verdict behind it counts. Without a prefix a verdict counts only
    right behind a close, and verdicts behind several closes only if they agree. Words before that are part of the
    thought, whatever they say.

    Args:
        text: What the model wrote behind the prompt.
        close: Text that ends a thought, for example ``"</think>"``.
        prefix: Text right before a choice, for example ``"\\boxed{Assistant "``.
        choices: The words to choose from.
        several: "none" if verdicts that contradict each other are no verdict.

    Returns:
        The thought, and the index of the choice.
    """
    end = find_close(text, close)
    if end is None:
        return WrittenVerdict(text.strip(), None)
    choice = find_choice(text[end[1] :], prefix, choices, close=close, several=several)
    return WrittenVerdict(text[: end[0]].strip(), choice)


def find_close(text: str, close: str) -> tuple[int, int] | None:
    """Return where the first ``close`` begins and ends in a text, in characters; white space and case may differ.

    None if there is none.
    """
    match = _close_pattern(close).search(text)
    return None if match is None else match.span()


def find_choice(
    answer: str, prefix: str, choices: Sequence[str], *, close: str = "", several: str = "last"
) -> int | None:
    """Return the index of the verdict in the text behind a thought, or None if there is none, or no certain one.

    Args:
        answer: The text behind the first close.
        prefix: Text right before a choice; if it is empty, a verdict stands right behind a close.
        choices: The words to choose from.
        close: Text that ends a thought, which the answer may repeat; empty where only its beginning counts.
        several: One of ``SEVERAL``.
    """
    words = sorted((choice.strip() for choice in choices), key=len, reverse=True)
    pattern = _choice_pattern(prefix, tuple(words))
    if prefix.strip():
        found = list(pattern.finditer(answer))
    else:
        starts = [0, *(match.end() for match in _close_pattern(close).finditer(answer))] if close.strip() else [0]
        found = [match for start in starts if (match := pattern.match(answer, start)) is not None]
    given = [match.group("choice").lower() for match in _given(found, answer)]
    if not given or (len(set(given)) > 1 and (several == "none" or not prefix.strip())):
        return None
    return next(i for i, choice in enumerate(choices) if choice.strip().lower() == given[-1])


def choice_follows(answer: str, prefix: str) -> bool:
    """Return whether the next word would be a verdict, given the text behind a thought so far."""
    if not prefix.strip():
        return re.fullmatch(_RIGHT_BEHIND, answer) is not None
    return _prefix_pattern(prefix).search(answer) is not None


def _given(found: Sequence[re.Match[str]], answer: str) -> list[re.Match[str]]:
    """Return verdicts without those that are denied, and those named side by side, as in ``[[A]] or [[B]]``."""
    dropped = {i for i, match in enumerate(found) if _NOT.search(answer[max(0, match.start() - _NEAR) : match.start()])}
    for i, (one, other) in enumerate(pairwise(found)):
        apart = one.group("choice").lower() != other.group("choice").lower()
        between = answer[one.end() : other.start()]
        if apart and len(between) <= _NEAR and _OR.fullmatch(between):
            dropped |= {i, i + 1}
    return [match for i, match in enumerate(found) if i not in dropped]


@lru_cache(maxsize=64)
def _close_pattern(close: str) -> re.Pattern[str]:
    # Bold type may begin or end inside, at the edge of a word: **Verdict**:
    parts = (r"\**".join(re.escape(piece) for piece in re.split(r"\b", part) if piece) for part in close.split())
    return re.compile(r"\s*".join(parts) + r"\s*", re.IGNORECASE)


@lru_cache(maxsize=64)
def _choice_pattern(prefix: str, words: tuple[str, ...]) -> re.Pattern[str]:
    choice = "|".join(re.escape(word) for word in words)
    return re.compile(rf"{_lead(prefix)}(?P<choice>{choice}){_ends(words, choice)}", re.IGNORECASE)


def _ends(words: Sequence[str], choice: str) -> str:
    """Return a pattern for the place behind a choice: it matches unless a longer word or number goes on there.

    Args:
        words: The choices. If they are three numbers or more, as ratings are, the largest may follow: ``4/5``.
        choice: A pattern for one of them.
    """
    another = rf"(?:\d|(?:{choice})(?!\w))"
    alone = (
        r"(?!\w)(?!\s*[?%+])(?!\s*[.,:]\d)"
        rf"(?!\s*[-\u2010-\u2015\u2212~/&=<>|]+\s*{another})(?!\s+(?:or|and|to|vs\.?)\s+{another})"
    )
    if len(words) < 3 or not all(word.isdecimal() for word in words):
        return alone
    top = max(words, key=int)
    return rf"(?:(?=\s*(?:/|out\s+of)\s*{top}(?!\w|[.,]\d))|{alone})"


@lru_cache(maxsize=64)
def _prefix_pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(rf"{_lead(prefix)}\Z", re.IGNORECASE)


def _lead(prefix: str) -> str:
    r"""Return a pattern for what stands before a choice: the prefix, in which white space and style may differ.

    With a prefix, the pattern begins with a character of it, and nowhere can two parts of the pattern share out a run
    of white space between them: a search in a long run would try all ways.
    """
    pieces = re.findall(r"\w+|[^\w\s]", prefix)
    if not pieces:
        return _RIGHT_BEHIND
    loose = "".join(
        ("" if not i else _DECORATION if piece[0].isalnum() else r"\s*(?:\*+\s*)?") + re.escape(piece)
        for i, piece in enumerate(pieces)
    )
    return loose + (_DECORATION_OR_BRACE if pieces[-1][0].isalnum() else _DECORATION)
