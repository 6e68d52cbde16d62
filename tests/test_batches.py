"""One bad item must not cost the others their results."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrm_lite.batches import each, each_or_none
from fsrm_lite.errors import InputError


def squares(items):
    """Squares, but for a batch with a negative number in it."""
    if any(i < 0 for i in items):
        raise InputError(f"negative {min(items)}")
    return [i * i for i in items]


def test_the_bad_items_stand_alone_and_are_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="fsrm_lite.batches"):
        assert each_or_none(squares, [1, -2, 3, 4, -5], InputError) == [1, None, 9, 16, None]
    assert "negative -2" in caplog.text


@given(st.lists(st.integers(-3, 9), max_size=40))
def test_good_items_get_theirs_in_order_and_bad_ones_are_named_in_order(items):
    named = []
    found = each_or_none(squares, items, InputError, lambda position, error: named.append(position))
    assert found == [i * i if i >= 0 else None for i in items]
    assert named == [k for k, i in enumerate(items) if i < 0]


def test_a_good_batch_is_one_call_and_none_is_no_call():
    calls = []
    each_or_none(lambda items: calls.append(items) or items, [1, 2, 3], InputError)
    each_or_none(lambda items: calls.append(items) or items, [], InputError)
    assert calls == [[1, 2, 3]]


def test_other_errors_and_what_on_bad_raises_get_through():
    with pytest.raises(ZeroDivisionError):
        each_or_none(lambda items: [1 // i for i in items], [0], InputError)

    def refuse(position, error):
        raise InputError(f"item {position}: {error}") from error

    with pytest.raises(InputError, match="item 2: negative -7"):
        each_or_none(squares, [1, 2, -7], InputError, refuse)


def test_whoever_stops_listening_stops_the_calls():
    calls = []

    def counted(items):
        calls.extend(items)
        return squares(items)

    results = each(counted, [-1, *range(63)], InputError)
    assert next(results) is None
    assert calls.count(-1) == 7  # 64, 32, 16, 8, 4, 2, 1
    seen = len(calls)
    results.close()
    assert len(calls) == seen < 128
