"""What every shape asks of the model: scores, comparisons, the best of N. Knows the lanes, nothing of any API.

A response is encoded first, then read in the fast lane. Only if the gate (or the request's own policy) asks for a
thought does the request go on into the slow lane, so that a request which is settled fast never waits for a thought.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import anyio.to_thread

from fsrm_lite.errors import ContextOverflowError, InputError
from fsrm_lite.fast.readings import compare_scores
from fsrm_lite.ranking.candidates import starting_scores
from fsrm_lite.ranking.tournament import STRATEGIES, Play, select
from fsrm_lite.serve import bodies
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.lanes import FastLane, SlowLane
from fsrm_lite.serve.metrics import Metrics
from fsrm_lite.types import POLICIES, Comparison, JudgePolicy, Prompt, Score, Selection, Strategy, Thought

if TYPE_CHECKING:
    from fsrm_lite.fast.path import EncodedResponse
    from fsrm_lite.loops.reasoners import Reasoner
    from fsrm_lite.scorer import FastSlowRM

_T = TypeVar("_T")

NO_ROOM = "the judge has no room for it; the fast result stands"

MOST_RATED = 64
"""Most responses in a request that are rated by Elo: they play some 2,000 matches. A thousand would play 500,000."""

_INLINE_CHARACTERS = 20_000
"""Texts up to this length in all are tokenized at once, which takes some milliseconds; longer ones in a thread."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes.

    Attributes:
        body_bytes: Longest body of a request.
        documents: Most responses in one request; of a question's choices its API says how many.
        waiting: Most responses that may wait to be read.
        thoughts: Most requests that may wait for a thought.
        body_seconds: Longest time for a client to send a body.
        idle_seconds: Longest time for a client to begin a request, or to take the next part of an answer.
        stop_seconds: Longest time for requests that run to be finished when the server is stopped.
    """

    body_bytes: int = 16 * 2**20
    documents: int = 1000
    waiting: int = 4096
    thoughts: int = 64
    body_seconds: float = 30.0
    idle_seconds: float = 30.0
    stop_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse values that are not above 0."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not value > 0:
                raise InputError(f"the limit {name} is {value!r}, expected a number above 0")


@dataclass(frozen=True, slots=True)
class Thinking:
    """How one request wants to be thought about.

    Attributes:
        judge: When to think.
        due: Value of ``time.monotonic()`` at which the judge has to stop; None for no limit.
        settings: The other settings of the judge that the request gives.
    """

    judge: JudgePolicy
    due: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return the options for a call that begins now."""
        left = {} if self.due is None else {"deadline": max(0.0, self.due - time.monotonic())}
        return {"judge": self.judge, **self.settings, **left}


def thinking(body: Mapping[str, Any], default: JudgePolicy) -> Thinking:
    """Return what a request says about thinking, in fields that this server adds to each API.

    ``x_judge`` is "auto", "never" or "always"; ``x_votes``, ``x_thinking_tokens`` and
    ``x_seed`` are settings of the judge; ``x_deadline`` is in seconds and counts from now, so that waiting is part of
    it. Other fields whose names begin with ``x_`` are the client's own and are ignored.

    Args:
        body: The request.
        default: The policy where the request has none.

    Raises:
        RequestError: If a field is out of range.
    """
    judge = cast(JudgePolicy, bodies.one_of(body, "x_judge", POLICIES, default))
    deadline = bodies.number(body, "x_deadline", None, 0.0)
    settings = {
        "votes": bodies.whole(body, "x_votes", None, 1, 256),
        "thinking_tokens": bodies.whole(body, "x_thinking_tokens", None, 1),
        "seed": bodies.whole(body, "x_seed", None, -(2**63), 2**63),
    }
    return Thinking(
        judge,
        None if deadline is None else time.monotonic() + deadline,
        {name: value for name, value in settings.items() if value is not None},
    )


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why one of many responses has no score."""

    error: InputError


class Service:
    """A loaded model behind its two lanes."""

    def __init__(
        self,
        model: FastSlowRM,
        *,
        reasoner: Reasoner | None = None,
        names: Sequence[str] = (),
        limits: Limits | None = None,
        judge: JudgePolicy = "auto",
        calibration: dict[str, Any] | None = None,
    ) -> None:
        """Take a model. ``start`` begins the work.

        Args:
            model: The reward model.
            reasoner: Answers chats; None for nobody.
            names: Further names under which requests may ask for this model; ``"*"`` stands for any name.
            limits: What the server takes.
            judge: When to think, where a request does not say so. Shapes that promise scores at once do not think
                unless they are told to.
            calibration: What ``fsrm_lite.serve.calibration`` says about the gate; None if nothing is known.

        Raises:
            InputError: If the model reads pairs only.
        """
        if not model.fast.reads_responses:
            raise InputError(
                f"the model {model.bundle.manifest.name!r} reads pairs of responses and gives no score to a single "
                "one, which every request here begins with; expected a model with the template pointwise_fast"
            )
        self.model, self.reasoner, self.judge = model, reasoner, judge
        self.name: str = model.bundle.manifest.name
        self.names = (self.name, "fsrm-lite", "default", *names)
        self.limits = limits or Limits()
        self.calibration = calibration
        self.metrics = Metrics()
        self.fast = FastLane(
            lambda items: model.read(items), most=self.limits.waiting, on_batch=self.metrics.batch.observe
        )
        self.slow = SlowLane(most=self.limits.thoughts)
        self.ready = False
        self.metrics.watch_lane("fast", lambda: self.fast.waiting)
        self.metrics.watch_lane("slow", lambda: self.slow.waiting)

    @cached_property
    def chats(self) -> anyio.CapacityLimiter:
        """Threads for chats with a reasoner of another program: of their own, so that nothing else waits for them."""
        return anyio.CapacityLimiter(self.limits.thoughts)

    def start(self) -> None:
        """Start the lanes."""
        self.fast.start()
        self.slow.start()
        self.ready = True

    def stop(self) -> None:
        """Finish what waits and end the lanes. The model stays open: it is the caller's."""
        self.ready = False
        self.fast.close()
        self.slow.close()

    def own_fields(self) -> dict[str, Any]:
        """Return what this server says about the whole of a reply: the risk of fast decisions, where it is known."""
        return {} if self.calibration is None else {"x_risk": self.calibration["risk"]}

    def check_name(self, body: Mapping[str, Any], *aliases: str) -> None:
        """Refuse a request that asks for another model.

        Args:
            body: The request; a missing or null ``model`` means this one.
            *aliases: Names that the request's API gives to whatever model it finds.

        Raises:
            RequestError: With status 404 for an unknown name.
        """
        name = body.get("model")
        if name is None:
            return
        if not isinstance(name, str):
            bodies.refuse(("model",), name, "a string")
        if name not in (*self.names, *aliases) and "*" not in self.names:
            raise RequestError(
                f"there is no model {name[:100]!r} here; there is {self.name!r} (the server may give it further names)",
                at=("model",),
                status=404,
                code="model_not_found",
            )

    async def encode(self, items: Sequence[tuple[Prompt, str]]) -> list[EncodedResponse | Unreadable]:
        """Tokenize responses. One that cannot be scored (it is blank, too long) does not cost the others theirs."""

        def each() -> list[EncodedResponse | Unreadable]:
            return [self._encoded(prompt, response) for prompt, response in items]

        length = sum(len(response) + (len(prompt) if isinstance(prompt, str) else 1000) for prompt, response in items)
        return each() if length <= _INLINE_CHARACTERS else await anyio.to_thread.run_sync(each)

    def _encoded(self, prompt: Prompt, response: str) -> EncodedResponse | Unreadable:
        try:
            return self.model.encode(prompt, response)
        except InputError as error:
            return Unreadable(error)

    async def scores(
        self, items: Sequence[tuple[Prompt, str]], how: Thinking, *, at: str | None = None
    ) -> list[Score | Unreadable]:
        """Score responses.

        Args:
            items: (prompt, response) each.
            how: Whether to think about them.
            at: Name of the field that holds the responses, for an error.

        Returns:
            Per item its score, or why it has none.

        Raises:
            RequestError: If not one of them can be scored.
        """
        encoded = await self.encode(items)
        readable = [item for item in encoded if not isinstance(item, Unreadable)]
        if not readable:
            bad = next(item for item in encoded if isinstance(item, Unreadable))
            raise RequestError(str(bad.error), at=(at,) if at else ()) from bad.error
        scores = await self.thought_over(readable, await self.fast.read(readable), how)
        self.metrics.count("score", scores)
        found = iter(scores)
        return [item if isinstance(item, Unreadable) else next(found) for item in encoded]

    async def thought_over(
        self, items: Sequence[EncodedResponse], scores: Sequence[Score], how: Thinking, *, every: bool = False
    ) -> list[Score]:
        """Return the scores of responses after the judge has thought about those that need it.

        Args:
            items: The responses.
            scores: Their fast scores.
            how: How to think.
            every: Think about each of them; else the gate decides which, unless ``how`` does.
        """
        if not every and not self._thinks(how, (self.model.gate.single(score).escalate for score in scores)):
            return list(scores)

        def call(options: dict[str, Any]) -> list[Score]:
            asked = [True] * len(items) if every else None
            room = [True] * len(items)
            if how.judge == "always":
                asked = room = [self.model.judge.has_room(item.prompt, item.text) for item in items]
            found = self.model.escalate_scores(items, scores, asked=asked, **options)
            # Where the judge has no room for a response, its fast score stands.
            return [
                score if fits else replace(score, escalated=True, reasons=(NO_ROOM,))
                for score, fits in zip(found, room, strict=True)
            ]

        return await self.think(how, call)

    async def compared(
        self, first: EncodedResponse, second: EncodedResponse, scores: tuple[Score, Score], how: Thinking
    ) -> Comparison:
        """Compare two responses whose fast scores are known."""
        fast, decision = compare_scores(
            *scores, self.model.gate, tokens_read=scores[0].tokens_read + scores[1].tokens_read
        )
        if not self._thinks(how, [decision.escalate]):
            return fast

        def call(options: dict[str, Any]) -> Comparison:
            if how.judge == "always" and not self.model.judge.has_room(first.prompt, first.text, second.text):
                return replace(fast, escalated=True, reasons=(NO_ROOM,))
            return self.model.escalate_pairs([(first, second)], [scores], **options)[0]

        return await self.think(how, call)

    def _thinks(self, how: Thinking, asked: Any) -> bool:  # noqa: ANN401 - an iterable of bool, read only if needed
        return how.judge == "always" or (how.judge == "auto" and any(asked))

    async def think(
        self,
        how: Thinking,
        call: Callable[[dict[str, Any]], _T],
        watch: Callable[[list[Thought]], None] | None = None,
    ) -> _T:
        """Run a call of the model in the slow lane.

        Args:
            how: How to think.
            call: Takes the options for the model's method. When the client goes, what it writes is stopped.
            watch: Sees the thoughts, on the judge's own thread.
        """

        def run(stopped: threading.Event) -> _T:
            def seen(thoughts: list[Thought]) -> bool:
                if watch is not None:
                    watch(thoughts)
                return not stopped.is_set() and (how.due is None or time.monotonic() < how.due)

            return call(how.options() | {"watch": seen})

        return await self.slow.run(run)

    async def best_of(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        how: Thinking,
        *,
        strategy: str = "gated",
        on_scores: Callable[[list[Score]], None] = lambda scores: None,
        on_thought: Callable[[tuple[int, int], Thought], None] = lambda pair, thought: None,
        on_match: Callable[[Comparison], None] = lambda match: None,
    ) -> Selection:
        """Choose the best of N responses, as ``FastSlowRM.best_of_n`` does, and tell what happens meanwhile.

        Args:
            prompt: What was asked.
            responses: The candidates; blank ones, and those that are too long, rank last.
            how: Whether to think.
            strategy: Who meets whom.
            on_scores: Told the fast scores, on a thread.
            on_thought: Told who are compared and what has been written about them so far, on the judge's thread.
            on_match: Told each comparison as soon as it is made, on the slow lane's thread.
        """
        readable = [i for i, response in enumerate(responses) if response.strip()]
        if not readable:
            raise RequestError("every response is empty, expected some text", at=("responses",))
        if strategy == "elo" and len(readable) > MOST_RATED:
            raise RequestError(
                f"in strategy elo everyone plays everyone; there are {len(readable)} responses, expected at most "
                f"{MOST_RATED}; take gated or knockout",
                at=("responses",),
            )
        encoded: dict[int, EncodedResponse] = {}
        too_long: dict[int, ContextOverflowError] = {}
        for i, item in zip(readable, await self.encode([(prompt, responses[i]) for i in readable]), strict=True):
            if not isinstance(item, Unreadable):
                encoded[i] = item
            elif isinstance(item.error, ContextOverflowError):
                too_long[i] = item.error
            else:
                raise RequestError(f"responses[{i}]: {item.error}", at=("responses", i)) from item.error
        if not encoded:
            i, error = next(iter(too_long.items()))
            raise RequestError(f"responses[{i}]: {error}", at=("responses", i)) from error
        read = await self.fast.read(list(encoded.values()))
        self.metrics.count("score", read)
        scores = starting_scores(len(responses), dict(zip(encoded, read, strict=True)), too_long)
        await anyio.to_thread.run_sync(on_scores, scores)  # it may look for the answers of a thousand long texts
        gate = self.model.gate

        def chosen(play: Play) -> Selection:
            return select(
                cast(Strategy, strategy), scores, list(responses), gate, play, judge=how.judge, unread=too_long
            )

        def choose(options: dict[str, Any]) -> Selection:
            def play(pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
                if how.judge == "never":
                    return [compare_scores(scores[a], scores[b], gate)[0] for a, b in pairs]

                def seen(thoughts: list[Thought]) -> bool:
                    for thought in thoughts:
                        on_thought(pairs[thought.item], thought)
                    return bool(options["watch"](thoughts))

                texts = [(encoded[a], encoded[b]) for a, b in pairs]
                read = [(scores[a], scores[b]) for a, b in pairs]
                room = [
                    how.judge != "always" or self.model.judge.has_room(prompt, first.text, second.text)
                    for first, second in texts
                ]
                settings = how.options() | {"asked": room, "watch": seen}
                played = self.model.escalate_pairs(texts, read, **settings)
                # The tokens of the candidates were counted when they were scored.
                matches = [
                    replace(match, pair=pair, tokens_read=match.tokens_read - sum(s.tokens_read for s in both))
                    for match, pair, both in zip(played, pairs, read, strict=True)
                ]
                for match in matches:
                    on_match(match)
                return matches

            return chosen(play)

        if how.judge == "never":
            return await anyio.to_thread.run_sync(choose, {})
        try:
            return await anyio.to_thread.run_sync(
                chosen, _contested
            )  # whether there are matches at all, the strategy knows best
        except _Contested:
            selection = await self.think(how, choose)
        self.metrics.count("comparison", selection.comparisons)
        return selection


class _Contested(Exception):
    """There are matches to be played."""


def _contested(pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    raise _Contested


def strategy_of(body: Mapping[str, Any]) -> str:
    """Return the strategy that a request names."""
    return bodies.one_of(body, "strategy", STRATEGIES, "gated")
