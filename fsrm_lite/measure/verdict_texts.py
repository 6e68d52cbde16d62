r"""Reads the verdict out of what a judge wrote elsewhere: the texts of an RRM, an RM-R1 or any chat model.

Each family of judges ends its text in a form of its own. Only what follows the last ``</think>`` is read. Of several
verdicts in it the last one counts, because judges weigh both sides before; but of RM-R1's, as in its authors' script,
none if they contradict each other. A text that ends in the middle of a thought,
with a ``<think>`` that no ``</think>`` follows, has no verdict.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fsrm_lite.errors import InputError

_SIDES = {"1": "a", "2": "b", "a": "a", "b": "b"}
_TEXT = r"(?:\\(?:text|textbf|mathrm)\s*\{)?\s*"


def _last(pattern: str) -> Callable[[str], str | None]:
    """Return a reader of the last match of a pattern, whose first group names the response."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def read(text: str) -> str | None:
        found = compiled.findall(text)
        return _SIDES[found[-1].lower()] if found else None

    return read


def _agreed(pattern: str) -> Callable[[str], str | None]:
    """Return the same of a pattern whose matches must all name one response."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def read(text: str) -> str | None:
        found = {_SIDES[side.lower()] for side in compiled.findall(text)}
        return found.pop() if len(found) == 1 else None

    return read


def _arena(text: str) -> str | None:
    r"""Read ``[[A>>B]]``, ``[[A>B]]``, ``[[A=B]]``, ``[[B>A]]`` or ``[[B>>A]]``; ``\boxed{...}`` as well."""
    found = re.findall(r"(?:\[\[|\\boxed\{)\s*(A|B)\s*(>>|>|=|<|<<)\s*(A|B)\s*(?:\]\]|\})", text, re.IGNORECASE)
    if not found:
        return None
    first, sign, second = (part.lower() for part in found[-1])
    if first == second:
        return None
    return "tie" if sign == "=" else first if sign.startswith(">") else second


def _two_ratings(text: str) -> str | None:
    """Read ``<answer>3</answer><answer>5</answer>``: the rating of each response."""
    found = re.findall(r"<answer>\s*(-?\d+(?:\.\d+)?)\s*</answer>", text)
    if len(found) < 2:
        return None
    first, second = (float(x) for x in found[-2:])
    return "tie" if first == second else "a" if first > second else "b"


def _chat(text: str) -> str | None:
    """Read ``[[A]]``, ``[[B]]`` or, for a tie, ``[[C]]``, as the judges of MT-Bench write."""
    found = re.findall(r"\[\[\s*([ABC])\s*\]\]", text, re.IGNORECASE)
    if not found:
        return None
    side = found[-1].lower()
    return "tie" if side == "c" else side


FORMS: dict[str, Callable[[str], str | None]] = {
    # Reward-Reasoning/RRM-7B, RRM-32B: "\boxed{Assistant 1}"; bold and \text{...} occur as well.
    "rrm": _last(rf"\\boxed\s*\{{\s*\**{_TEXT}\**\s*Assistant[\s~}}]*([12])\b"),
    # gaotang/RM-R1-*: "<answer>[[A]]</answer>"
    "rm-r1": _agreed(r"<answer>\s*\[\[\s*([AB])\s*\]\]\s*</answer>"),
    # NiuTrans/GRAM-RR-*: "<answer>\nA\n</answer>"
    "gram-rr": _last(r"<answer>\s*([AB])\s*</answer>"),
    # nuojohnchen/JudgeLRM-*: two ratings
    "judgelrm": _two_ratings,
    # prometheus-eval/prometheus-7b-v2.0: "[RESULT] A"
    "prometheus": _last(r"\[RESULT\]\s*:?\s*\(?\s*([AB])\b"),
    # lm-sys/FastChat, MT-Bench: "[[A]]"
    "chat": _chat,
    # lmarena/arena-hard-auto, and RM-Bench's prompt: "[[A>>B]]"
    "arena-hard": _arena,
}
"""From the name of a form to its reader: from a text to "a", "b", "tie", or None where no verdict can be read."""


def read_verdict(text: str, form: str) -> str | None:
    """Return the verdict that a judge's text ends in.

    Args:
        text: All that the judge wrote.
        form: A name from ``FORMS``.

    Returns:
        "a" for the response that was shown first, "b" for the other one, "tie", or None where none can be read.

    Raises:
        InputError: If the form is unknown.
    """
    if form not in FORMS:
        raise InputError(f"verdict form {form!r} is unknown, expected one of {', '.join(FORMS)}")
    answer = text.rpartition("</think>")[2]
    return None if "<think>" in answer else FORMS[form](answer)
