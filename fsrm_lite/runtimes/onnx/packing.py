"""Which tokens are computed together: shared prefixes, packed rows, chunks. Pure planning, no model.

A plan depends on the sequences of the call alone, never on what happens to be cached: cached and computed prefixes are
then the same bits, and so are two equal calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MASKED = -1.0e9
"""Attention bias of a key that a query must not see: exp of it is exactly 0 in float32."""

Ids = tuple[int, ...]

_DEPTH = 16  # Levels of families within families that are looked for.


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes that steer the planning, in tokens.

    Attributes:
        chunk: Prefixes are read in pieces of this many tokens: wide enough for fast products, and attention over the
            growing past does the lower triangle only.
        row: Most new tokens that are packed into one row.
        keep: Shortest common prefix that gets a pass of its own (and can be kept); shorter ones are shared inside rows.
        split: Tokens that a sub-family must save to get a prefix of its own.
    """

    chunk: int = 128
    row: int = 256
    keep: int = 64
    split: int = 256


@dataclass(frozen=True, slots=True)
class Prefix:
    """A past: its ids, and the lengths at which it was cut into passes (ascending, the last is its own length)."""

    ids: Ids = ()
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """One sequence in a row.

    Attributes:
        sequence: Which sequence, as numbered by the caller of ``plan_rows``.
        path: PackedRow index of each of its tokens behind the prefix, int64.
        shared: How many of those belong to an earlier branch already.
    """

    sequence: int
    path: NDArray[np.int64]
    shared: int


@dataclass(slots=True)
class PackedRow:
    """Tokens that one run of the model reads: branches of a tree behind a common past."""

    prefix: Prefix
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def bias(self) -> NDArray[np.float32]:
        """Attention bias [new, past + new]: each token sees the past and its own ancestors."""
        past, new = len(self.prefix.ids), len(self.ids)
        bias = np.full((new, past + new), MASKED, dtype=np.float32)
        bias[:, :past] = 0.0
        for branch in self.branches:
            own = branch.path[branch.shared :]
            visible = np.tri(len(own), len(branch.path), branch.shared, dtype=bool)
            bias[own[:, None], past + branch.path[None, :]] = np.where(visible, np.float32(0.0), np.float32(MASKED))
        return bias


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def plan_rows(sequences: Sequence[Ids], widths: Widths) -> Iterator[PackedRow]:
    """Plan the runs that read all ``sequences``.

    Args:
        sequences: Distinct, non-empty, in ascending order; ``Branch`` numbers them.
        widths: Sizes.

    Yields:
        Rows, those of one prefix one after the other. Each sequence ends in exactly one branch, which has at least one
        token of its own behind the prefix.
    """
    families = _families(sequences, widths)
    loose: list[tuple[int, Prefix]] = []
    for members, length in [*families.shared, (families.rest, 0)]:
        short: list[tuple[int, Prefix]] = []
        for i in members:
            prefix = _prefix(sequences[i], length, widths)
            (short if len(prefix.ids) == length else loose).append((i, prefix))
        if length:
            yield from _pack(sequences, short, widths)
        else:
            loose.extend(short)
    for prefix in dict.fromkeys(prefix for _, prefix in loose):
        yield from _pack(sequences, [(i, p) for i, p in loose if p == prefix], widths)


def passes(prefix: Prefix) -> list[Prefix]:
    """Return the prefix after each of its passes, shortest first."""
    return [Prefix(prefix.ids[:cut], prefix.cuts[: i + 1]) for i, cut in enumerate(prefix.cuts)]


def chunk_row(before: Prefix, after: Prefix) -> PackedRow:
    """Return the row that extends one pass of a prefix to the next."""
    start, stop = len(before.ids), len(after.ids)
    path = np.arange(stop - start, dtype=np.int64)
    return PackedRow(before, list(after.ids[start:]), list(range(start, stop)), [Branch(-1, path, 0)])


@dataclass(frozen=True, slots=True)
class _Families:
    """Members that share a prefix of ``length`` tokens worth a pass of its own, and members that share none."""

    shared: list[tuple[list[int], int]]
    rest: list[int]


def _families(sequences: Sequence[Ids], widths: Widths) -> _Families:
    common = [common_length(a, b) for a, b in itertools.pairwise(sequences)]
    return _split(sequences, common, 0, len(sequences), widths, _DEPTH)


def _split(sequences: Sequence[Ids], common: list[int], start: int, stop: int, widths: Widths, depth: int) -> _Families:
    """Split the sorted sequences ``start..stop``; ``common[i]`` is what sequence i shares with the next."""
    members = list(range(start, stop))
    if len(members) < 2 or not depth:
        return _Families([], members)
    least = min(common[start : stop - 1])
    # One token at least stays behind the prefix, to be read from.
    length = min(least, min(len(sequences[i]) for i in members) - 1)
    shared: list[tuple[list[int], int]] = []
    rest: list[int] = []
    edges = [start, *(i + 1 for i in range(start, stop - 1) if common[i] == least), stop]
    for first, last in itertools.pairwise(edges):
        child = _split(sequences, common, first, last, widths, depth - 1)
        saved = sum((len(m) - 1) * (n - length) for m, n in child.shared)
        if saved >= (widths.split if length >= widths.keep else 1):
            shared += child.shared
            rest += child.rest
        else:
            rest += range(first, last)
    if length >= widths.keep and len(rest) > 1:
        return _Families([*shared, (rest, length)], [])
    return _Families(shared, rest)


def _prefix(ids: Ids, length: int, widths: Widths) -> Prefix:
    """Return the past behind which the end of ``ids`` is read: ``length`` shared tokens, and more if what follows is long."""
    cuts = [*range(widths.chunk, length, widths.chunk), length] if length else []
    limit = widths.row if length else widths.chunk
    while len(ids) - (cuts[-1] if cuts else 0) > limit:
        cuts.append((cuts[-1] if cuts else 0) + widths.chunk)
    return Prefix(ids[: cuts[-1]] if cuts else (), tuple(cuts))


def _pack(sequences: Sequence[Ids], members: list[tuple[int, Prefix]], widths: Widths) -> Iterator[PackedRow]:
    """Pack sequences with one prefix into rows; each row is a tree, neighbours share what they have in common."""
    row: PackedRow | None = None
    for i, prefix in members:
        tail = sequences[i][len(prefix.ids) :]
        shared = 0
        if row is not None:
            last = row.branches[-1]
            shared = min(common_length(sequences[last.sequence][len(prefix.ids) :], tail), len(last.path))
            if len(row.ids) + len(tail) - shared > widths.row:
                yield row
                row = None
        if row is None:
            row, shared = PackedRow(prefix), 0
        path = np.arange(len(row.ids) - shared, len(row.ids) - shared + len(tail), dtype=np.int64)
        if shared:
            path[:shared] = row.branches[-1].path[:shared]
        row.branches.append(Branch(i, path, shared))
        row.positions += range(len(prefix.ids) + shared, len(sequences[i]))
        row.ids += tail[shared:]
    if row is not None:
        yield row
