"""Runs batches in which one item may be bad, so that it does not cost the others their results."""

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
    """Call a function on a batch such that an item that makes it fail costs only itself its result.

    A batch that fails is cut in half and each half is tried again, until every item that fails does so on its own.

    Args:
        call: Takes a list of items and returns one result per item, in order. It is never called with an empty list.
        items: Any number of items.
        errors: The exception type that means a bad item. Any other exception is raised at once.
        on_bad: Called with the position and the error of each item that fails on its own, in order. It may raise.

    Returns:
        One result per item, in order; None for an item that fails on its own.
    """

    def part(start: int, stop: int) -> list[_Result | None]:
        """Return the results of ``items[start:stop]``, halving that range where the call fails."""
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
