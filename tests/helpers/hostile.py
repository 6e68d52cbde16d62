"""Values that a stranger may put in any place of a JSON value, and all copies of one with one part exchanged."""

import math

HOSTILE = (
    *(None, True, -1, 1.5, 10**400, 2.0**1023 * 1.5, math.inf, math.nan),
    *("x", "1", "", "\ud800", "a\0b", "\u202e\x1b[31m", [], [1], {}, {"a": 1}),
)


def changed_anywhere(data):
    """Copies of a JSON value, each with one of its parts left out or replaced, and parts of lists doubled."""
    if isinstance(data, dict):
        for name in data:
            yield {n: x for n, x in data.items() if n != name}
            for part in (*HOSTILE, *changed_anywhere(data[name])):
                yield {**data, name: part}
        for name in ("unknown", "\ud800"):
            yield {**data, name: 1}
    elif isinstance(data, list | tuple):
        yield [*data, *data[:1]]
        for i in range(len(data)):
            for part in (*HOSTILE, *changed_anywhere(data[i])):
                yield [*data[:i], part, *data[i + 1 :]]
