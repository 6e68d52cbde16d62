"""Drawing the next token of many votes at once, in numpy.

One pass over the rows of llama.cpp's logits replaces one native sampler chain per vote: fewer calls per token, and a
draw that depends only on the vote's own key, its token count and its logits, never on which other votes share the
batch. The filters apply in the order of Hugging Face transformers: temperature, top-k, top-p.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.types import Decoding

_BLOCK = 256  # tokens per partial sum: the distribution is summed in blocks, and only the block that is hit is walked
_SMALL = 2048  # up to this vocabulary one running sum is quicker than two levels of them
_CACHED = 1 << 18  # numbers worked on at once: a megabyte, which stays in the cache from one pass to the next
_SURE = 0.999  # the likeliest token's weight, which is 1, less a margin far above the rounding of a sum of float32
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def draw(decoding: Decoding, logits: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        decoding: Temperature, top-k and top-p.
        logits: float32 [rows, vocabulary]; not changed.
        uniforms: float64 [rows], in [0, 1).

    Returns:
        int64 [rows], token ids.
    """
    likeliest: NDArray[np.int64] = logits.argmax(axis=1)
    if decoding.temperature == 0.0:
        return likeliest
    at_once = max(1, _CACHED // logits.shape[1])
    if len(logits) > at_once:
        starts = range(0, len(logits), at_once)
        return np.concatenate([draw(decoding, logits[i : i + at_once], uniforms[i : i + at_once]) for i in starts])
    weights = logits - logits.take(likeliest + np.arange(0, logits.size, logits.shape[1]))[:, None]
    weights *= np.float32(1.0 / decoding.temperature)
    np.exp(weights, out=weights)
    if decoding.top_k or decoding.top_p < 1.0:
        for row in weights:
            _truncate(decoding, row)
    # A draw that falls on the likeliest token in whatever order the tokens are summed needs no running sum.
    totals = zip(uniforms.tolist(), np.add.reduce(weights, axis=1).tolist(), strict=True)
    others = [i for i, (number, total) in enumerate(totals) if not total - _SURE < number * total < _SURE]
    if others:
        likeliest[others] = _invert(weights[others], uniforms[others])
    return likeliest


def _truncate(decoding: Decoding, row: NDArray[np.float32]) -> None:
    """Set the weights outside the top k and outside the nucleus to zero, in place."""
    if 0 < decoding.top_k < row.size:
        row[row < np.partition(row, -decoding.top_k)[-decoding.top_k]] = 0.0
    if decoding.top_p < 1.0:
        total = float(row.sum(dtype=np.float64))
        # Tokens below this weight hold less than 1 - top_p all together, so none of them is in the nucleus: only the
        # others need sorting.
        candidates = np.flatnonzero(row >= (1.0 - decoding.top_p) * total / row.size)
        order = candidates[np.argsort(-row[candidates], kind="stable")]
        reached = np.cumsum(row[order], dtype=np.float64)
        kept = order[: int(np.searchsorted(reached, decoding.top_p * total)) + 1]
        weights = row[kept]
        row[:] = 0.0
        row[kept] = weights


def _invert(weights: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return per row the first index at which the running sum of ``weights`` exceeds ``uniform * total``."""
    rows, vocabulary = weights.shape
    if vocabulary <= _SMALL:
        running = np.add.accumulate(weights, axis=1, dtype=np.float64)
        # A number below 1 times the total is below the total, rounded too: the largest one is half a step or more away from 1.
        first: NDArray[np.int64] = (running > (uniforms * running[:, -1])[:, None]).argmax(axis=1)
        return first
    starts = np.arange(0, vocabulary, _BLOCK)
    sums = np.add.reduceat(weights, starts, axis=1).cumsum(axis=1, dtype=np.float64)
    total = sums[:, -1]
    target = np.minimum(uniforms * total, np.nextafter(total, 0.0))
    block = (sums <= target[:, None]).sum(axis=1)
    row = np.arange(rows)
    target -= np.where(block > 0, sums[row, block - 1], 0.0)
    columns = block[:, None] * _BLOCK + np.arange(_BLOCK)
    inside = weights[row[:, None], np.minimum(columns, vocabulary - 1)]
    inside[columns >= vocabulary] = 0.0
    running = inside.cumsum(axis=1, dtype=np.float64)
    # Rounding may leave the target at or above the block's own sum: then its last token of positive weight is meant.
    target = np.minimum(target, np.nextafter(running[:, -1], 0.0))
    chosen: NDArray[np.int64] = block * _BLOCK + (running <= target[:, None]).sum(axis=1)
    return chosen


def uniforms(keys: NDArray[np.uint64], counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one number in [0, 1) per (key, counter), broadcast against each other: the splitmix64 generator, addressed by position.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = keys + counters.astype(np.uint64) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def vote_key(seed: int, prompt: tuple[int, ...], index: int) -> int:
    """Return the 64-bit key of vote ``index`` on ``prompt``: the same whatever else is asked in the same call."""
    digest = blake2b(digest_size=8, person=b"fsrm-lite vote")
    digest.update(seed.to_bytes(16, "little", signed=True) + index.to_bytes(4, "little"))
    digest.update(np.asarray(prompt, dtype="<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")
