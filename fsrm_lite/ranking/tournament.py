"""The best of N responses: which comparisons a strategy asks for, and what it concludes from them.

A strategy starts from the fast scores of the responses. It may ask for matches, each a comparison of two responses by
the judge:

- ``fast`` asks for none: the best score wins.
- ``knockout`` pairs all responses; the loser of a match is out, and the winners meet again until one is left.
- ``gated`` is a knockout among the responses that the gate cannot tell from the best one. Where the gate has a rule
  for lists (``fsrm_lite.gate.ListSpec``), responses with the same final answer are one team, the best team is found by
  the scores and the number of its members, and only as many teams play as have the shares that the rule asks for.
- ``elo`` lets everyone meet everyone (or only some, within a budget) and rates them by the results.
- ``majority`` asks for none: the final answer that most responses give wins (self-consistency).

Nothing here runs a model. Matches go to a function that judges a whole batch of pairs, and a strategy asks for whole
rounds at once, so that the judge can decode them together. Responses with the same text (or the same value of the
caller's ``key``) form a team: its best member plays for all of them, and members of a team never meet.

Source: RRM (arXiv 2505.14674) for knockout and Elo; PairJudge (arXiv 2501.13007) for teams and for resting in a round
when the number of players is odd. ``gated`` is this project's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, Unpack, get_args

from fsrm_lite.checks import expect, expect_one_of, is_number, is_whole, make_plain
from fsrm_lite.errors import InputError, JudgeError, MisuseError
from fsrm_lite.fast.readings import compare_scores
from fsrm_lite.gate import LOGIT_LIMIT, Gate, ListDecision, ListSpec
from fsrm_lite.ranking.answers import Extractor, final_or_text, find_extractor
from fsrm_lite.ranking.ratings import LEAST_PRECISION, PRIOR_PRECISION, Game, bradley_terry, informative_pairs
from fsrm_lite.types import Comparison, JudgePolicy, Rating, Score, Selection, Strategy, TournamentSettings

STRATEGIES: tuple[str, ...] = get_args(Strategy)

Play: TypeAlias = Callable[[Sequence[tuple[int, int]]], list[Comparison]]
"""Judges a batch of matches, given as pairs of positions, and returns one comparison per pair, in order.

The tokens of a comparison do not include those of the fast readings, which are counted with the scores.
"""

BLANK_SCORE = Score(
    score=0.0,
    logit=-LOGIT_LIMIT,
    intuition_confidence=1.0,
    distribution_confidence=1.0,
    label_mass=0.0,
    reasons=("the response is empty",),
)
"""The score of an empty response in a tournament: below any text's, without a reading by the model."""

EVEN_SCORE = Score(0.5, 0.0, 0.0, None, None)
"""The score of every response in a tournament of a model that reads pairs only: nobody is ahead."""


def too_long_score(why: str) -> Score:
    """Return the score of a response that the model cannot read: that of an empty one, with the reason."""
    return replace(BLANK_SCORE, reasons=(why,))


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TournamentOptions:
    """How a strategy plays.

    Attributes:
        key: Function of a response. Responses with equal keys are one team. None takes the text without white space at
            its ends; for "gated" with a rule for lists, what that rule says.
        on_judge_error: "raise" passes the judge's error on. "fast" decides the round by the fast scores instead; the
            ``reasons`` of each comparison and the log say so.
        budget: For "elo": most matches to play. They are chosen round by round, those that tell most first. None plays
            everyone against everyone.
        precision: For "elo": precision of the prior on strengths, per nat squared, at least ``LEAST_PRECISION``; see
            ``fsrm_lite.ranking.ratings``.
        extractor: For "majority": function (or its name) from a response to its final answer; see
            ``fsrm_lite.ranking.answers``.
        weighted: For "majority": a response counts for its answer as much as its fast score, not as 1.
    """

    key: Callable[[str], Hashable] | None = None
    on_judge_error: Literal["raise", "fast"] = "raise"
    budget: int | None = None
    precision: float = PRIOR_PRECISION
    extractor: str | Extractor = "numeric"
    weighted: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        make_plain(self)
        expect_one_of(("raise", "fast"), "on_judge_error", self.on_judge_error)
        expect(self.key is None or callable(self.key), "key", self.key, "a function of one response, or None")
        expect(
            callable(self.extractor) or isinstance(self.extractor, str),
            "extractor",
            self.extractor,
            "a name or a function from text to text",
        )
        expect(isinstance(self.weighted, bool), "weighted", self.weighted, "true or false")
        games = self.budget
        expect(
            games is None or (is_whole(games) and games >= 0),
            "budget",
            games,
            "a whole number of at least 0 games, or None for all",
        )
        precision = self.precision
        expect(
            is_number(precision) and precision >= LEAST_PRECISION,
            "precision",
            precision,
            f"a finite number of at least {LEAST_PRECISION:g}",
        )


def select(
    strategy: str,
    scores: Sequence[Score],
    responses: Sequence[str],
    gate: Gate,
    play: Play,
    *,
    judge: JudgePolicy = "auto",
    unread: Collection[int] = (),
    decide_fast: Callable[[tuple[int, int]], Comparison | None] | None = None,
    **options: Unpack[TournamentSettings],
) -> Selection:
    """Choose the best of N responses.

    Args:
        strategy: "fast", "gated", "knockout" (n-1 matches), "elo" or "majority"; the module's docstring explains them.
        scores: Fast score per response; an empty response has ``BLANK_SCORE``.
        responses: The texts, at least one.
        gate: Finds who takes part in "gated".
        play: Judges a batch of matches.
        judge: With "always", everyone takes part in "gated". With "never", it is up to ``play`` how a match is decided;
            where the gate has a rule for lists, "gated" then has no matches, and the best team by its share wins.
        unread: Positions of responses that the model cannot read. Like empty ones, they rank last and play no match.
        decide_fast: Returns what the fast path says of a match that the judge failed on, or None if it has not read it:
            then it was not the judge that failed. Without this function the two scores are compared.
        **options: Fields of ``TournamentOptions``.

    Returns:
        The selection. Its ranking holds all N positions, best first, with the members of a team next to each other.

    Raises:
        InputError: If there is no response, the lengths differ, or a strategy or option is unknown or out of range.
        JudgeError: If the judge fails and ``on_judge_error="raise"``.
    """
    expect_one_of(STRATEGIES, "strategy", strategy)
    if not responses or len(scores) != len(responses):
        raise InputError(
            f"there are {len(responses)} responses and {len(scores)} scores; expected equal numbers, at least 1"
        )
    unknown = sorted(set(options) - set(TournamentOptions.__dataclass_fields__))
    if unknown:
        raise InputError(f"unknown options {unknown}, expected among {sorted(TournamentOptions.__dataclass_fields__)}")
    chosen = TournamentOptions(**options)
    rule = gate.spec.lists if strategy == "gated" and judge != "always" else None
    key = chosen.key or team_key(rule)
    chosen = replace(chosen, key=key)
    field_ = _Field(list(scores), list(responses), gate, play, judge, chosen, rule is not None, unread, decide_fast)
    teams, ratings = _PLAY[strategy](field_)
    ranking = tuple(member for team in teams for member in field_.teams[team])
    return Selection(
        index=ranking[0],
        ranking=ranking,
        scores=tuple(scores),
        comparisons=tuple(field_.comparisons),
        strategy=strategy,
        tokens_read=sum(s.tokens_read for s in scores) + sum(c.tokens_read for c in field_.comparisons),
        tokens_generated=sum(s.tokens_generated for s in scores) + sum(c.tokens_generated for c in field_.comparisons),
        ratings=ratings,
    )


def team_key(rule: ListSpec | None) -> Callable[[str], Hashable]:
    """Return what must be equal of two responses for them to be one team, under a rule for lists or without one."""
    return final_or_text if rule is not None and rule.group == "final" else str.strip


@dataclass(slots=True)
class _Field:
    """The teams of one tournament and the matches they have played."""

    scores: list[Score]
    responses: list[str]
    gate: Gate
    play: Play
    policy: JudgePolicy
    options: TournamentOptions
    by_share: bool  # whether the gate's rule for lists orders the teams
    unread: Collection[int] = ()
    decide_fast: Callable[[tuple[int, int]], Comparison | None] | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    teams: dict[int, list[int]] = field(init=False)
    """Maps each team's captain (its best member) to all its members, best first.

    The captains themselves come best first too, by score, or by share under the gate's rule for lists. A captain's
    place here is its seed.
    """
    blank: set[int] = field(init=False)
    """Captains whose response is empty or unread: they lose without a match."""
    decision: ListDecision | None = field(init=False, default=None)
    """What the gate's rule for lists says; None where it is not used, or where every response is empty."""

    def __post_init__(self) -> None:
        """Form the teams."""
        key = self.options.key or str.strip
        empty = [not r.strip() or i in self.unread for i, r in enumerate(self.responses)]
        by_key: dict[Hashable, list[int]] = {}
        # An empty response sorts last, whatever score it was given.
        for i in sorted(range(len(self.responses)), key=lambda i: (empty[i], -self.scores[i].logit, i)):
            by_key.setdefault((empty[i], None if empty[i] else key(self.responses[i])), []).append(i)
        self.teams = {members[0]: members for members in by_key.values()}
        self.blank = {captain for captain in self.teams if empty[captain]}
        playing = [i for captain in self.seeds() for i in self.teams[captain]]
        if self.by_share and playing:
            team = {i: captain for captain, members in self.teams.items() for i in members}
            self.decision = self.gate.best_of([self.scores[i] for i in playing], [team[i] for i in playing])
            order = [playing[k] for k in self.decision.order]
            self.teams = {captain: self.teams[captain] for captain in [*order, *self.blank]}

    def seeds(self) -> list[int]:
        """Return the captains who can play, best fast score first."""
        return [captain for captain in self.teams if captain not in self.blank]

    def judge(self, pairs: list[tuple[int, int]]) -> list[Comparison]:
        """Return the comparisons of one round of matches, in the order of the pairs, and keep them."""
        if not pairs:
            return []
        try:
            played = self.play(pairs)
        except MisuseError:
            raise
        except JudgeError as error:
            if self.options.on_judge_error == "raise":
                raise
            fast = [match for pair in pairs if (match := self._fast(pair)) is not None]
            if len(fast) < len(pairs):
                raise
            logger.warning("the judge failed; %d matches are decided by the fast scores: %s", len(pairs), error)
            played = [replace(match, escalated=True, reasons=(f"the judge failed: {error}",)) for match in fast]
        if len(played) != len(pairs):
            raise InputError(
                f"play returned {len(played)} comparisons for {len(pairs)} pairs; expected one per pair, in order"
            )
        round_ = [
            self._by_share(replace(comparison, pair=pair)) for comparison, pair in zip(played, pairs, strict=True)
        ]
        self.comparisons.extend(round_)
        return round_

    def _by_share(self, comparison: Comparison) -> Comparison:
        """Let the shares of two teams decide where the votes do not, under the gate's rule for lists."""
        votes = comparison.votes
        decided = comparison.route == "slow" and (not votes or 2 * sum(v.winner for v in votes) != len(votes))
        if self.decision is None or comparison.pair is None or decided:
            return comparison
        share = dict(zip(self.teams, self.decision.shares, strict=False))
        first, second = (share[i] for i in comparison.pair)
        both = first + second
        p_first = first / both if both > 0.0 else 0.5  # far behind the best team, shares round to 0
        winner = int(p_first < 0.5)
        rationale = next((vote.rationale for vote in votes if vote.winner == winner), None)
        return replace(comparison, winner=winner, p_first=p_first, rationale=rationale, combined=False)

    def _fast(self, pair: tuple[int, int]) -> Comparison | None:
        """Return what the fast path says of a pair; None if it has not read it."""
        if self.decide_fast is not None:
            return self.decide_fast(pair)
        return compare_scores(self.scores[pair[0]], self.scores[pair[1]], self.gate)[0]


_Result: TypeAlias = tuple[list[int], tuple[Rating, ...]]
"""All captains, best first, and ratings per response where the strategy has them."""


def _fast(tournament: _Field) -> _Result:
    return list(tournament.teams), ()


def _gated(tournament: _Field) -> _Result:
    seeds = tournament.seeds()
    if tournament.policy == "always":
        return _knockout_of(tournament, seeds), ()
    if tournament.by_share:
        contenders = tournament.decision.contenders if tournament.decision and tournament.policy != "never" else 1
        return _knockout_of(tournament, seeds[:contenders]), ()
    near = tournament.gate.contenders([tournament.scores[i] for i in seeds])
    return _knockout_of(tournament, [seeds[i] for i in sorted(near)]), ()


def _knockout(tournament: _Field) -> _Result:
    return _knockout_of(tournament, tournament.seeds()), ()


def _knockout_of(tournament: _Field, players: list[int]) -> list[int]:
    """Play rounds until one player is left. The best seed meets the worst; with an odd number the best seed rests.

    A player's seed is its place by fast score.

    Returns:
        All captains: the winner first, then the players by how many rounds they lasted, then those who did not play.
        Where nothing else decides, the better seed comes first.
    """
    seed = {captain: place for place, captain in enumerate(tournament.teams)}
    alive, out = list(players), list[int]()
    while len(alive) > 1:
        resting = alive[:1] if len(alive) % 2 else []
        paired = alive[len(resting) :]
        pairs = [(paired[k], paired[-1 - k]) for k in range(len(paired) // 2)]
        winners = {pair[c.winner] for pair, c in zip(pairs, tournament.judge(pairs), strict=True)}
        out = [i for i in paired if i not in winners] + out
        alive = sorted([*resting, *winners], key=seed.__getitem__)
    return [*alive, *out, *(i for i in tournament.teams if i not in players)]


def _elo(tournament: _Field) -> _Result:
    """Play all matches, or as many as the budget allows, and return the captains by rating, with all ratings."""
    seeds, options = tournament.seeds(), tournament.options
    everyone = [(a, b) for k, a in enumerate(seeds) for b in seeds[k + 1 :]]
    n = len(tournament.responses)
    if options.budget is None or options.budget >= len(everyone):
        tournament.judge(everyone)
    else:
        _play_informative(tournament, seeds, options.budget)
    ratings = bradley_terry(n, _games(tournament), precision=options.precision).ratings()
    # Rounded, so that players with equal results stay equal, and the fast score decides between them.
    order = sorted(seeds, key=lambda i: -round(ratings[i].rating, 6))
    captain = {member: lead for lead, members in tournament.teams.items() for member in members}
    return [*order, *(i for i in tournament.teams if i in tournament.blank)], tuple(
        ratings[captain[i]] for i in range(n)
    )


def _play_informative(tournament: _Field, seeds: list[int], budget: int) -> None:
    while len(tournament.comparisons) < budget:
        played = {frozenset(c.pair) for c in tournament.comparisons if c.pair}
        posterior = bradley_terry(len(tournament.responses), _games(tournament), precision=tournament.options.precision)
        tournament.judge(informative_pairs(posterior, played, seeds, budget - len(tournament.comparisons)))


def _games(tournament: _Field) -> list[Game]:
    return [(*c.pair, c.p_first) for c in tournament.comparisons if c.pair]


def _majority(tournament: _Field) -> _Result:
    """Count a vote per response for its final answer, and return the captains by the votes of their answers.

    Of answers with equal votes, the one seen first comes first. Captains with the same answer come in seed order.
    """
    extract = find_extractor(tournament.options.extractor)
    lost = {i for captain in tournament.blank for i in tournament.teams[captain]}
    answers = [None if i in lost else extract(r) for i, r in enumerate(tournament.responses)]
    votes: dict[str, float] = {}
    for answer, score in zip(answers, tournament.scores, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + (score.score if tournament.options.weighted else 1.0)
    place: dict[str | None, int] = {answer: k for k, answer in enumerate(sorted(votes, key=lambda a: -votes[a]))}
    order = sorted(tournament.teams, key=lambda i: place.get(answers[i], len(place)))
    return order, ()


_PLAY: dict[str, Callable[[_Field], _Result]] = {
    "fast": _fast,
    "gated": _gated,
    "knockout": _knockout,
    "elo": _elo,
    "majority": _majority,
}
