"""The order of scored responses, in one place, so that it is the same in Python, in the shell and over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from fsrm_lite.types import Score


def best_first(scores: Sequence[Score]) -> list[int]:
    """Return the positions of the scores, best first; equal ones in the order of the input."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i].logit, i))
