"""Runs batches in which one item may be bad, so that it does not cost the others their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fsrm_lite.errors import MisuseError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=Exception)

logger = logging.getLogger(__name__)


def log_bad_item(position: int, error: Exception) -> None:
    """Log why an item has no result."""
    logger.warning("one item of a batch has no result: %s", error)


def each(
    call: Callable[[list[_Item]], Sequence[_Result]],
    items: Sequence[_Item],
    errors: type[_Error],
    on_bad: Callable[[int, _Error], None] = log_bad_item,
) -> Iterator[_Result | None]:
    """Call a batch function; where it fails, halve the batch until the items that make it fail stand alone.

    Args:
        call: From a list of items to one result per item, in order.
        items: Any number; ``call`` is not called for none.
        errors: What counts as a bad item. Anything else is raised, and so is ``MisuseError``, for which no item is at
            fault.
        on_bad: Called with the position of each item that fails on its own, in order, and its error; it may raise.

    Yields:
        One result per item, in order; None for an item that fails on its own. Whoever stops listening stops the calls.
    """

    def part(start: int, stop: int) -> Iterator[_Result | None]:
        if start == stop:
            return
        try:
            results: Sequence[_Result | None] = list(call(list(items[start:stop])))
        except MisuseError:
            raise
        except errors as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                yield from part(start, middle)
                yield from part(middle, stop)
                return
            on_bad(start, error)
            results = [None]
        yield from results

    return part(0, len(items))


def each_or_none(
    call: Callable[[list[_Item]], Sequence[_Result]],
    items: Sequence[_Item],
    errors: type[_Error],
    on_bad: Callable[[int, _Error], None] = log_bad_item,
) -> list[_Result | None]:
    """Return all results of ``each``, which explains the arguments."""
    return list(each(call, items, errors, on_bad))
