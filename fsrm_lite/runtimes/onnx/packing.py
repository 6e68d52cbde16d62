"""Plans which tokens are computed together; no model is in here.

Three things save work. What several sequences have in common at their beginning, a *prefix*, is computed once. Short
sequences are *packed* into one row, in which each token sees its own sequence only. And a long prefix is computed in
*passes*, one chunk after the other, because attention over a past that grows leaves out half of the products.

A plan depends on the sequences of the call alone, never on what happens to be kept from earlier calls. So a prefix that
was kept has the same bits as one that is computed, and two equal calls give equal bits.
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

_DEPTH = 16  # levels of prefixes within prefixes that are looked for


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes that steer the planning, in tokens.

    Attributes:
        chunk: Tokens of one pass of a prefix: enough for the matrix products to be fast.
        row: New tokens that are packed into one row, at most.
        keep: Length from which on a common prefix gets a pass of its own, and can be kept for later calls. Shorter ones
            are shared inside a row.
        split: Tokens that a group of sequences with a longer prefix in common must save, to get that prefix.
    """

    chunk: int = 128
    row: int = 256
    keep: int = 64
    split: int = 256


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of one or more sequences.

    Attributes:
        ids: Its token ids.
        cuts: Lengths at which its passes end, ascending; the last is its own length.
    """

    ids: Ids = ()
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """One sequence in a row.

    Attributes:
        sequence: Which sequence, as numbered by the caller of ``plan_rows``.
        path: For each of its tokens behind the prefix, the place of that token in the row, int64.
        shared: How many of those tokens an earlier branch of the row has brought.
    """

    sequence: int
    path: NDArray[np.int64]
    shared: int


@dataclass(slots=True)
class PackedRow:
    """Tokens that one run of the model reads: a tree of sequences behind one prefix.

    Attributes:
        prefix: What all of them begin with.
        ids: The new tokens.
        positions: Where in its sequence each of them stands, counted from the beginning of the prefix.
        branches: The sequences that end in this row.
    """

    prefix: Prefix
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def bias(self) -> NDArray[np.float32]:
        """Return the attention bias, float32 [new, prefix + new].

        A token sees the prefix, and the tokens of its own sequence up to itself.
        """
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
    """Which sequences get a prefix together.

    Attributes:
        shared: Sequences that share a prefix worth passes of its own, and its length; one entry per such family.
        rest: Sequences that share none.
    """

    shared: list[tuple[list[int], int]]
    rest: list[int]


def _families(sequences: Sequence[Ids], widths: Widths) -> _Families:
    """Group the sequences, which are sorted, so that those with much in common are neighbours."""
    common = [common_length(a, b) for a, b in itertools.pairwise(sequences)]
    return _split(sequences, common, 0, len(sequences), widths, _DEPTH)


def _split(sequences: Sequence[Ids], common: list[int], start: int, stop: int, widths: Widths, depth: int) -> _Families:
    """Group the sequences from ``start`` up to ``stop``, and the groups within them, down to a depth.

    Args:
        sequences: All sequences, sorted.
        common: Per sequence, how many tokens it shares with the next one.
        start: First sequence to look at.
        stop: The one behind the last.
        widths: Sizes.
        depth: How many more levels of groups to look for.

    Returns:
        The families among them. A group within is split off only if its longer prefix saves enough.
    """
    members = list(range(start, stop))
    if len(members) < 2 or not depth:
        return _Families([], members)
    least = min(common[start : stop - 1])
    # At least one token of each sequence stays behind the prefix: the reading is taken at a sequence's last token.
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
    """Return the prefix behind which the end of ``ids`` is read.

    That is the first ``length`` tokens, which it shares with others, and more if what follows is too long for a row.
    """
    cuts = [*range(widths.chunk, length, widths.chunk), length] if length else []
    limit = widths.row if length else widths.chunk
    while len(ids) - (cuts[-1] if cuts else 0) > limit:
        cuts.append((cuts[-1] if cuts else 0) + widths.chunk)
    return Prefix(ids[: cuts[-1]] if cuts else (), tuple(cuts))


def _pack(sequences: Sequence[Ids], members: list[tuple[int, Prefix]], widths: Widths) -> Iterator[PackedRow]:
    """Pack sequences with one prefix into rows, in which neighbours share the tokens that they have in common."""
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
