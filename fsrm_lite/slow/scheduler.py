"""Writes many texts at once: in each step, one decode call computes the next token of every text that is running.

Each running text has a *stream* of the engine, a sequence of tokens with their keys and values. When a text ends, a new
job takes its stream. If another stream already holds the prompt of the new job, or the beginning of it, that part is
copied instead of being computed again.

A thought that has used up its budget is *closed*: the words that lead to its verdict (see ``VerdictForm``) are put
after it, and the verdict is read from the logits of the choices. The ``Feed`` decides what is written next and what has
become needless. What the verdicts mean is none of this module's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.runtimes.engine import Engine, Interrupted, Outputs
from fsrm_lite.slow.sampling import draw
from fsrm_lite.slow.streams import Streams
from fsrm_lite.slow.verdicts import choice_follows, find_choice, find_close
from fsrm_lite.types import Completion, Decoding, Job, VerdictForm, WatchIds

PATIENCE = 3.0
"""How long a step waits for what has precedence, at most, in steps: a thought takes at most four times as long."""

WATCH_SECONDS = 0.08
"""Least time between two calls of a watch: often enough for an eye, and too seldom to slow the decoding down."""

_CLOSE_WINDOW = 32  # tokens, at the end of what is written, in which a text that closes a thought is looked for
_CERTAIN = 50.0  # logits of choices that the model did not write, relative to the one that it wrote
_WORTH_COPYING = 16  # tokens; to copy a stream takes about as long as to compute this many

ToText = Callable[[list[int]], str]
"""Turns token ids into text, without control tokens."""


_Texts = dict[int, tuple[int, NDArray[np.int32]]]
"""Ids to be computed without returning logits, by stream: the position of the first one, and the ids."""


class Feed(Protocol):
    """Gives out jobs and takes what was written for them."""

    def next(self) -> tuple[int, Job] | None:
        """Return a job to start now with its number, or None if nothing may start before a running job ends."""

    def take(self, number: int, completion: Completion) -> Iterable[int]:
        """Take what was written for a job, and return the numbers of running jobs that are needless now."""


@dataclass(slots=True)
class _Running:
    """What is known of one running job, beside what stands in the arrays of ``Streams``."""

    number: int
    job: Job
    tokens_read: int
    limit: int  # most tokens that it may write: its budget; once the thought has ended, answer_tokens more
    thought: int | None = None  # tokens of the thought, once it has ended
    answer: int = 0  # tokens up to the end of what closed the thought
    lead: str = ""  # text that the token which ended the thought has behind the close
    reading: bool = False  # the thought was closed, and the logits of the next step give the verdict
    pending: bool = False  # the next token is a verdict, if it is one of the choices
    choice: int | None = None  # index of the last verdict that the model wrote itself
    logits: tuple[float, ...] = ()  # logits of the choices at the verdict


@dataclass(slots=True)
class Scheduler:
    """Runs jobs on an engine.

    Attributes:
        engine: The engine, which is used by no other thread meanwhile.
        to_text: Turns ids into text.
        decoding: How tokens are drawn.
        stop_ids: Ids at which a text ends.
        streams: Most jobs that run at once.
        cells: Tokens that a stream can hold; no job may need more.
        give_way: Called before each step with the seconds that it may wait.
    """

    engine: Engine
    to_text: ToText
    decoding: Decoding
    stop_ids: tuple[int, ...]
    streams: int
    cells: int
    give_way: Callable[[float], None] = lambda seconds: None
    _slots: list[_Running | None] = field(init=False)
    _held: list[NDArray[np.int32]] = field(init=False)
    _closing: _Texts = field(init=False, default_factory=dict)
    # Whether a stream has become free or has ids to be computed, so that ``_admit`` is called before the next step.
    _changed: bool = field(init=False, default=True)
    _step_seconds: float = field(init=False, default=0.0)  # of the last step

    def __post_init__(self) -> None:
        """Reserve the streams."""
        self.engine.prepare(self.streams, self.cells)
        self._slots = [None] * self.streams
        self._held = [np.zeros(0, np.int32)] * self.streams  # the prompt whose keys and values each stream holds

    def run(self, feed: Feed, *, deadline: float | None = None, watch: WatchIds | None = None) -> bool:
        """Run until the feed has no more jobs.

        Args:
            feed: Gives out the jobs, and takes each completion exactly once.
            deadline: Value of ``time.monotonic()`` at which running jobs are cut off; None for no limit.
            watch: Sees what is being written, and may stop it; None for nobody.

        Returns:
            False if the deadline, the watch, or an interrupt of the engine cut something off. What was running has then
            been handed to the feed unfinished.
        """
        rows = Streams(self.streams, self.cells, self.engine.vocab_size)
        rows.wake[list(self.stop_ids)] = True
        watched = 0.0
        try:
            while True:
                now = time.monotonic() if deadline is not None or watch is not None else 0.0
                if deadline is not None and now >= deadline:
                    raise Interrupted
                if self._changed:
                    live = self._admit(feed, rows)
                    if not live:
                        return True
                if watch is not None and now - watched >= WATCH_SECONDS:
                    watched = now
                    if not watch(self._written(rows)):
                        raise Interrupted
                logits = self._step(rows.token[:live], rows.position[:live], rows.index[:live], outputs=True)
                drawn = draw(self.decoding, logits, rows.noise(live))
                for i in rows.write(live, drawn):
                    self._attend(i, int(drawn[i]), logits[i], feed, rows)
        except Interrupted:
            for i, slot in enumerate(self._slots):
                if slot is not None:
                    self._finish(i, feed, rows, finished=False)
            return False

    def _step(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], streams: NDArray[np.int32], *, outputs: Outputs
    ) -> NDArray[np.float32]:
        """Let the engine decode, when what has precedence is done or has been waited for long enough."""
        self.give_way(PATIENCE * self._step_seconds)
        began = time.monotonic()
        logits = self.engine.decode(tokens, positions, streams, outputs=outputs)
        self._step_seconds = time.monotonic() - began
        return logits

    def _written(self, rows: Streams) -> dict[int, list[int]]:
        """Return the ids written so far of the jobs that are running, by job number."""
        return {slot.number: rows.written(i).tolist() for i, slot in enumerate(self._slots) if slot is not None}

    def _admit(self, feed: Feed, rows: Streams) -> int:
        """Give free streams new jobs, move running texts together, and return how many run."""
        planned: _Texts = {}
        started: dict[int, Job] = {}
        for i, slot in enumerate(self._slots):
            if slot is None:
                asked = feed.next()
                if asked is None:
                    break
                self._start(i, *asked, planned, rows)
                started[i] = asked[1]
        if started:
            rows.seed(
                list(started),
                [job.key for job in started.values()],
                max(job.room - len(job.prompt) for job in started.values()) + 1,
            )
        self._read(self._closing | planned)
        self._closing.clear()
        self._changed = False
        live = sum(slot is not None for slot in self._slots)
        # Engines compute neighbouring streams together, so the running ones must have the numbers 0, 1, 2, ...
        gaps = [i for i in range(live) if self._slots[i] is None]
        for gap, last in zip(
            gaps, (i for i in range(self.streams - 1, live - 1, -1) if self._slots[i] is not None), strict=True
        ):
            self.engine.copy(last, gap, int(rows.position[last]))
            rows.move(last, gap)
            self._slots[gap], self._slots[last] = self._slots[last], None
            self._held[gap] = self._held[last]
        return live

    def _start(self, i: int, number: int, job: Job, planned: _Texts, rows: Streams) -> None:
        """Put a job on stream ``i``.

        What some stream already holds of its prompt is copied. The rest is added to ``planned``, the prompts that are
        going to be computed together. If a planned prompt would be the one to copy from, the planned ones are computed
        at once.
        """
        prompt = np.asarray(job.prompt, np.int32)
        body = prompt[:-1]  # the last token is computed in the first decoding step, which needs its logits
        shares = [_common(held, body) for held in self._held]
        donor = max(range(self.streams), key=lambda s: (shares[s], s == i))
        if (
            donor in planned
            and shares[donor] - max((n for s, n in enumerate(shares) if s not in planned), default=0) >= _WORTH_COPYING
        ):
            self._read(planned)
            planned.clear()
        shares = [0 if s in planned else n for s, n in enumerate(shares)]
        donor = max(range(self.streams), key=lambda s: (shares[s], s == i))
        share = shares[donor]
        if donor != i and share - shares[i] >= _WORTH_COPYING:
            self.engine.copy(donor, i, share)
        else:
            share = shares[i]
            self.engine.cut(i, share)
        self._held[i] = body
        if share < len(body):
            planned[i] = (share, body[share:])
        self._slots[i] = _Running(number, job, len(prompt) - share, job.budget)
        rows.start(i, int(prompt[-1]), len(body), job.budget)
        if job.form:
            rows.wake[list(job.form.wake or job.form.head[-1:])] = True

    def _read(self, texts: _Texts) -> None:
        """Run ids through the model, all streams together, without returning logits."""
        if not texts:
            return
        tokens = np.concatenate([ids for _, ids in texts.values()])
        streams = np.concatenate([np.full(len(ids), i, np.int32) for i, (_, ids) in texts.items()])
        positions = np.concatenate(
            [np.arange(start, start + len(ids), dtype=np.int32) for start, ids in texts.values()]
        )
        for at in range(0, len(tokens), self.engine.batch_tokens):
            part = slice(at, at + self.engine.batch_tokens)
            self._step(tokens[part], positions[part], streams[part], outputs=False)

    def _attend(self, i: int, token: int, logits: NDArray[np.float32], feed: Feed, rows: Streams) -> None:
        """Handle a text that may have ended its thought, given its verdict, stopped, or used up its budget.

        Args:
            i: The stream.
            token: The token just drawn for it.
            logits: float32 [vocabulary], the logits from which it was drawn.
            feed: Takes the completion, if the text has ended.
            rows: The state of the streams.
        """
        slot = self._slots[i]
        if slot is None:  # dropped in this same step, when another vote decided its pair
            return
        form, stopped = slot.job.form, token in self.stop_ids
        if slot.reading and form:
            slot.logits = tuple(logits[list(form.choices)].tolist())
            rows.unwrite(i)  # only the logits were wanted, not the token drawn from them
            self._finish(i, feed, rows)
            return
        if stopped:
            rows.unwrite(i)
        if form is None:
            if stopped or rows.count(i) >= slot.limit:
                self._finish(i, feed, rows)
            return
        if slot.thought is None:
            self._end_of_thought(i, slot, form, rows)
        elif slot.pending and token in form.choices:
            slot.choice = form.choices.index(token)
            slot.logits = tuple(logits[list(form.choices)].tolist())
        answer = "" if slot.thought is None else slot.lead + self.to_text(rows.written(i)[slot.answer :].tolist())
        if slot.thought is not None:
            exact = answer.endswith(form.prefix) if form.prefix.strip() else answer == form.tail + form.prefix
            slot.pending = exact or choice_follows(answer, form.prefix)
        if stopped or rows.count(i) >= slot.limit:
            if slot.thought is not None and form.words:
                self._read_in_text(slot, form, answer)
            if slot.choice is not None:
                self._finish(i, feed, rows)
            else:
                self._close(i, slot, form, rows)

    def _end_of_thought(self, i: int, slot: _Running, form: VerdictForm, rows: Streams) -> None:
        """Check whether the ids just written end the thought; if so, note its length and how much may follow it."""
        written = rows.written(i)
        if form.head:
            if tuple(written[-len(form.head) :].tolist()) != form.head:
                return
            slot.thought, slot.answer = len(written) - len(form.head), len(written)
            slot.limit = slot.thought + form.answer_tokens
        else:
            start = max(0, len(written) - _CLOSE_WINDOW)
            text = self.to_text(written[start:].tolist())
            end = find_close(text, form.close)
            if end is None:
                return
            slot.thought, slot.answer, slot.lead = start, len(written), text[end[1] :]
            while (
                slot.thought < len(written) and len(self.to_text(written[start : slot.thought + 1].tolist())) <= end[0]
            ):
                slot.thought += 1  # the token belongs to the thought as a whole
            slot.limit = slot.answer + form.answer_tokens
        rows.watch(i, 0)

    def _read_in_text(self, slot: _Running, form: VerdictForm, answer: str) -> None:
        """Take the verdict from the whole text, which has the last word.

        Its token may be another one than that of the choice alone; the logits say nothing about it then. And what began
        like a verdict may have gone on, as 4 in 4.5, or was taken back.
        """
        seen, slot.choice = (
            slot.choice,
            find_choice(answer, form.prefix, form.words, close=form.close, several=form.several),
        )
        if slot.choice is not None and slot.choice != seen:
            slot.logits = tuple(0.0 if n == slot.choice else -_CERTAIN for n in range(len(form.choices)))

    def _close(self, i: int, slot: _Running, form: VerdictForm, rows: Streams) -> None:
        """Close a thought, so that the logits of the next step give its verdict.

        Whatever the model wrote after the thought is removed, and the ids that lead to the verdict are put there.
        """
        if slot.thought is None:
            slot.thought = rows.count(i)
        at = len(slot.job.prompt) + slot.thought
        fed = min(at, int(rows.position[i]))  # the newest token may not have been computed yet
        ids = np.concatenate(
            [rows.written(i)[fed - len(slot.job.prompt) : slot.thought], np.asarray(form.forced, np.int32)]
        )
        self.engine.cut(i, fed)
        if len(ids) > 1:
            self._closing[i] = (fed, ids[:-1])
            self._changed = True
        rows.token[i], rows.position[i] = ids[-1], fed + len(ids) - 1
        rows.watch(i, 0)
        slot.reading = True
        slot.tokens_read += len(form.forced)

    def _finish(self, i: int, feed: Feed, rows: Streams, *, finished: bool = True) -> None:
        """Hand over what was written on stream ``i``, free the stream, and end the jobs that have become needless."""
        slot = self._slots[i]
        if slot is None:
            return
        self._slots[i] = None
        self._changed = True
        self._closing.pop(i, None)
        ids = tuple(rows.written(i).tolist())
        thought = len(ids) if slot.thought is None else slot.thought
        dropped = feed.take(slot.number, Completion(ids, thought, slot.choice, slot.logits, slot.tokens_read, finished))
        self.engine.cut(i, len(self._held[i]))  # the prompt is kept, for the next job that has the same one
        for number in dropped if finished else ():
            for k, other in enumerate(self._slots):
                if other is not None and other.number == number:
                    self._finish(k, feed, rows, finished=False)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return how many ids ``a`` and ``b`` have in common at their beginning."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n
