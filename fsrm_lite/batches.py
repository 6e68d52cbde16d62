"""Batches of which one item may be bad: it must not cost the others their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


def each_or_none(
    call: Callable[[list[_Item]], Sequence[_Result]], items: Sequence[_Item], errors: type[Exception]
) -> list[_Result | None]:
    """Call a batch function; where it fails, halve the batch until the items that make it fail stand alone.

    Args:
        call: From a list of items to one result per item, in order.
        items: Any number; ``call`` is not called for none.
        errors: What counts as a bad item. Anything else is raised.

    Returns:
        One result per item, in order; None for an item that fails on its own (logged with its reason).
    """
    part = list(items)
    if not part:
        return []
    try:
        return list(call(part))
    except errors as error:
        if len(part) == 1:
            logger.warning("one item of a batch has no result: %s", error)
            return [None]
    half = len(part) // 2
    return [*each_or_none(call, part[:half], errors), *each_or_none(call, part[half:], errors)]
