"""The order of scored responses. It is defined here alone, so that Python, the shell and HTTP rank alike."""

from __future__ import annotations

from collections.abc import Sequence

from fsrm_lite.types import Score


def best_first(scores: Sequence[Score]) -> list[int]:
    """Return the positions of the scores, best first; equal scores stay in the order of the input."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i].logit, i))
