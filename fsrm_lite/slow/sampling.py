"""Draws the next token of many texts at once, in numpy.

llama.cpp has samplers of its own, to be called once per text and token. Here one pass works on the logits of all texts
together. A draw depends only on the text's own key, on how many tokens it has, and on its logits, not on the other
texts in the batch. The filters are applied in the order of Hugging Face transformers: temperature, top-k, top-p.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.types import Decoding

_BLOCK = 256  # tokens per block: the weights are summed by blocks, and token by token only in the block that is hit
_SMALL = 2048  # in a vocabulary of at most this size, one running sum over all tokens is quicker than blocks
_CACHED = 1 << 18  # logits worked on at once: a megabyte, which stays in the processor's cache between passes
_SURE = 0.999  # 1, the weight of the likeliest token, less a margin far larger than the rounding of float32 sums
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of splitmix64


def draw(decoding: Decoding, logits: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw one token per row, by inverting the cumulative distribution.

    Args:
        decoding: Temperature, top-k and top-p.
        logits: float32 [rows, vocabulary]; not changed.
        uniforms: float64 [rows], random numbers in [0, 1).

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
    # Weights are relative to the likeliest token, whose weight is 1. In a running sum over all tokens it covers a
    # stretch of length 1 that begins between 0 and total - 1. A target between total - 1 and 1 lies in it wherever it
    # begins, so that rows with such a target need no running sum.
    totals = zip(uniforms.tolist(), np.add.reduce(weights, axis=1).tolist(), strict=True)
    others = [i for i, (number, total) in enumerate(totals) if not total - _SURE < number * total < _SURE]
    if others:
        likeliest[others] = _invert(weights[others], uniforms[others])
    return likeliest


def _truncate(decoding: Decoding, row: NDArray[np.float32]) -> None:
    """Set the weights outside the top k and outside the nucleus to zero, in place.

    The nucleus is the smallest set of likeliest tokens whose probability reaches top-p.
    """
    if 0 < decoding.top_k < row.size:
        row[row < np.partition(row, -decoding.top_k)[-decoding.top_k]] = 0.0
    if decoding.top_p < 1.0:
        total = float(row.sum(dtype=np.float64))
        # All tokens below this weight together have a probability of less than 1 - top_p, so none of them is in the
        # nucleus. Only the others need sorting.
        candidates = np.flatnonzero(row >= (1.0 - decoding.top_p) * total / row.size)
        order = candidates[np.argsort(-row[candidates], kind="stable")]
        reached = np.cumsum(row[order], dtype=np.float64)
        kept = order[: int(np.searchsorted(reached, decoding.top_p * total)) + 1]
        weights = row[kept]
        row[:] = 0.0
        row[kept] = weights


def _invert(weights: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row the first index at which the running sum of its weights exceeds ``uniform * total``."""
    rows, vocabulary = weights.shape
    if vocabulary <= _SMALL:
        running = np.add.accumulate(weights, axis=1, dtype=np.float64)
        # uniform * total is below total, also after rounding: even the largest uniform is 2**-53 below 1, which is half
        # a step of float64.
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
    # Rounding can put the target at or above the sum of the block. The last token of positive weight is then taken.
    target = np.minimum(target, np.nextafter(running[:, -1], 0.0))
    chosen: NDArray[np.int64] = block * _BLOCK + (running <= target[:, None]).sum(axis=1)
    return chosen


def uniforms(keys: NDArray[np.uint64], counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one random number in [0, 1) per key and counter, which are broadcast against each other.

    The generator is splitmix64, whose n-th number can be computed without those before it.

    Args:
        keys: uint64, the seeds.
        counters: int64, which number of the sequence to return, from 0 on.

    Returns:
        float64, in the broadcast shape.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = keys + counters.astype(np.uint64) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def vote_key(seed: int, prompt: tuple[int, ...], index: int) -> int:
    """Return the 64-bit key from which the random numbers of one vote come.

    It depends on nothing else that is asked in the same call.

    Args:
        seed: The caller's seed, of up to 127 bits.
        prompt: Token ids of the judge's prompt.
        index: Number of the vote on that prompt, from 0 on.
    """
    digest = blake2b(digest_size=8, person=b"fsrm-lite vote")
    digest.update(seed.to_bytes(16, "little", signed=True) + index.to_bytes(4, "little"))
    digest.update(np.asarray(prompt, dtype="<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")
