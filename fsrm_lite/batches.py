"""Batches of which one item may be bad: it must not cost the others their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=Exception)

logger = logging.getLogger(__name__)


def log_bad_item(position: int, error: Exception) -> None:
    """Log why an item has no result."""
    logger.warning("one item of a batch has no result: %s", error)


def each_or_none(
    call: Callable[[list[_Item]], Sequence[_Result]],
    items: Sequence[_Item],
    errors: type[_Error],
    on_bad: Callable[[int, _Error], None] = log_bad_item,
) -> list[_Result | None]:
    """Call a batch function; where it fails, halve the batch until the items that make it fail stand alone.

    Args:
        call: From a list of items to one result per item, in order.
        items: Any number; ``call`` is not called for none.
        errors: What counts as a bad item. Anything else is raised.
        on_bad: Called with the position of each item that fails on its own, in order, and its error; it may raise.

    Returns:
        One result per item, in order; None for an item that fails on its own.
    """

    def part(start: int, stop: int) -> list[_Result | None]:
        if start == stop:
            return []
        try:
            return list(call(list(items[start:stop])))
        except errors as error:
            if stop - start == 1:
                on_bad(start, error)
                return [None]
        middle = (start + stop) // 2
        return [*part(start, middle), *part(middle, stop)]

    return part(0, len(items))
