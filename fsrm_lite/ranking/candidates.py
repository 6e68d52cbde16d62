"""The candidates of a best of N as the fast path sees them: which of them it can read, and with which score they start.

A model that scores single responses gives each candidate its score. A model that reads pairs has no scores: all
candidates start alike, and the fast path reads each match instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fsrm_lite.errors import ContextOverflowError
from fsrm_lite.fast.path import EncodedResponse, FastPath, text_of
from fsrm_lite.gate import Decision, Gate
from fsrm_lite.ranking.tournament import BLANK_SCORE, EVEN_SCORE, too_long_score
from fsrm_lite.types import Comparison, Score


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one prompt, by their position from 0.

    Attributes:
        texts: All responses as text.
        encoded: The responses that the fast path can read. Neither empty ones nor those that are too long are here.
        unread: Why a response is too long.
        scores: What each response starts with; see ``starting_scores``.
    """

    texts: list[str]
    encoded: dict[int, EncodedResponse]
    unread: dict[int, ContextOverflowError]
    scores: list[Score]


def read_candidates(
    fast: FastPath,
    gate: Gate,
    responses: Sequence[str | EncodedResponse],
    encode: Callable[[int], EncodedResponse],
) -> Candidates:
    """Encode the candidates of one prompt, and score them if the model scores single responses.

    Args:
        fast: The fast path.
        gate: Its temperature is that of the scores.
        responses: The candidates, at least one.
        encode: Returns the token ids of the response at a position.

    Raises:
        InputError: If a text is unusable.
        ContextOverflowError: If no response can be read, and one is too long.
    """
    encoded: dict[int, EncodedResponse] = {}
    unread: dict[int, ContextOverflowError] = {}
    for i, response in enumerate(responses):
        if isinstance(response, str) and not response.strip():
            continue
        try:
            encoded[i] = encode(i)
        except ContextOverflowError as error:
            unread[i] = error
    if not fast.reads_responses:
        unread |= fast.unpaired(encoded)
        encoded = {i: response for i, response in encoded.items() if i not in unread}
    if unread and not encoded:
        raise next(iter(unread.values()))
    if fast.reads_responses:
        read = fast.read(list(encoded.values()), gate.spec.temperature)
    else:
        read = [EVEN_SCORE] * len(encoded)
    scores = starting_scores(len(responses), dict(zip(encoded, read, strict=True)), unread)
    return Candidates([text_of(response) for response in responses], encoded, unread, scores)


def starting_scores(count: int, read: Mapping[int, Score], unread: Mapping[int, ContextOverflowError]) -> list[Score]:
    """Return the score that each of ``count`` candidates enters the tournament with.

    Args:
        count: Number of candidates.
        read: The scores of those that were read, by position.
        unread: Why others are too long, by position. All that are in neither are empty.
    """
    scores = [BLANK_SCORE] * count
    for i, score in read.items():
        scores[i] = score
    for i, error in unread.items():
        scores[i] = too_long_score(str(error))
    return scores


def read_matches(
    fast: FastPath, gate: Gate, pairs: Sequence[tuple[EncodedResponse, EncodedResponse]]
) -> list[tuple[Comparison, Decision]]:
    """Read matches between candidates of a model that reads pairs.

    A pair that is too long for it is for the judge, who may have more room; without him the shorter one goes on.

    Returns:
        For each pair, in order, the fast comparison and what the gate decided about it.
    """
    try:
        return fast.compare(pairs, gate)
    except ContextOverflowError:  # which is found before any pair is read
        fits = [fast.pair_fits(*pair) for pair in pairs]
    read = iter(fast.compare([pair for pair, fit in zip(pairs, fits, strict=True) if fit], gate))
    matches = []
    for (first, second), fit in zip(pairs, fits, strict=True):
        if fit:
            matches.append(next(read))
        else:
            shorter = int(len(second.text) < len(first.text))
            decision = Decision(True, 0.0, None, ("the pair is too long to be read fast",))
            matches.append((Comparison(shorter, 0.5, 0.0, None), decision))
    return matches
