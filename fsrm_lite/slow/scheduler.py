"""Many thoughts at once: one decode call per step, one row per live thought, whatever pair or order it belongs to.

New work is admitted as thoughts finish; a prompt that another stream already holds, wholly or in front, is copied
instead of read again. A thought that reaches its budget is closed and its verdict read from the logits. What to ask
next, and what has become pointless, is decided by the ``Feed``; what the answers mean, by its owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.runtimes.llama.engine import BATCH_TOKENS, Engine, Interrupted
from fsrm_lite.slow.sampling import draw
from fsrm_lite.slow.streams import Streams
from fsrm_lite.types import ANSWER_TOKENS, Completion, Decoding, Job, VerdictForm

_WORTH_COPYING = 16  # tokens; copying a stream costs about as much as computing this many

ToText = Callable[[list[int]], str]
"""Token ids to text, control tokens left out."""


_Texts = dict[int, tuple[int, NDArray[np.int32]]]
"""Ids to be read without logits, by stream: where they start, and what they are."""


class Feed(Protocol):
    """Who gives out jobs and takes what was written."""

    def next(self) -> tuple[int, Job] | None:
        """Return a job to start now and its number, or None when nothing may start before a running one ends."""

    def take(self, number: int, completion: Completion) -> Iterable[int]:
        """Take what was written; return numbers of running jobs that need not go on."""


@dataclass(slots=True)
class _Running:
    """What the arrays do not hold of one running job."""

    number: int
    job: Job
    tokens_read: int
    limit: int  # tokens it may have written: its budget, and once the thought has ended, what the answer may come to
    thought: int | None = None  # length of the thought, once it has ended
    reading: bool = False  # closed: the next row gives the verdict
    pending: bool = False  # the next token stands where a choice belongs
    choice: int | None = None
    logits: tuple[float, ...] = ()


@dataclass(slots=True)
class Scheduler:
    """Runs jobs on an engine.

    Attributes:
        engine: The engine; this thread owns it.
        to_text: Ids to text.
        decoding: How tokens are drawn.
        stop_ids: Ids at which a text ends.
        streams: How many jobs run at once, at most.
        cells: Tokens per stream; no job may need more.
    """

    engine: Engine
    to_text: ToText
    decoding: Decoding
    stop_ids: tuple[int, ...]
    streams: int
    cells: int
    _slots: list[_Running | None] = field(init=False)
    _held: list[NDArray[np.int32]] = field(init=False)
    _closing: _Texts = field(init=False, default_factory=dict)
    _changed: bool = field(init=False, default=True)  # a stream is free, or has a text to read: the feed is asked again

    def __post_init__(self) -> None:
        """Reserve the streams and the per-row state."""
        self.engine.prepare(self.streams, self.cells)
        self._slots = [None] * self.streams
        self._held = [np.zeros(0, np.int32)] * self.streams  # the prompt ids whose keys and values each stream holds

    def run(self, feed: Feed, *, deadline: float | None = None) -> bool:
        """Run until the feed has nothing left.

        Args:
            feed: Gives jobs, takes every completion exactly once.
            deadline: ``time.monotonic()`` value at which running jobs are cut off.

        Returns:
            False when the deadline cut something off; what was running has then been handed to the feed unfinished.
        """
        rows = Streams(self.streams, self.cells, self.engine.vocab_size)
        rows.wake[list(self.stop_ids)] = True
        try:
            while True:
                if deadline is not None and time.monotonic() >= deadline:
                    raise Interrupted
                if self._changed:
                    live = self._admit(feed, rows)
                    if not live:
                        return True
                logits = self.engine.decode(rows.token[:live], rows.position[:live], rows.index[:live], outputs=True)
                drawn = draw(self.decoding, logits, rows.noise(live))
                for i in rows.write(live, drawn):
                    self._attend(i, int(drawn[i]), logits[i], feed, rows)
        except Interrupted:
            for i, slot in enumerate(self._slots):
                if slot is not None:
                    self._finish(i, feed, rows, finished=False)
            return False

    def _admit(self, feed: Feed, rows: Streams) -> int:
        """Fill free streams with new jobs, close the gaps, and return how many run."""
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
        # llama.cpp computes a run of neighbouring streams together: the running ones must be 0, 1, 2, ...
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
        """Put a job on stream ``i``: copy what some stream holds of its prompt, and plan to read the rest."""
        prompt = np.asarray(job.prompt, np.int32)
        body = prompt[:-1]  # the last token is the first row of the decoding steps
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
            rows.wake[job.form.head[-1]] = True

    def _read(self, texts: _Texts) -> None:
        """Run texts through the model, packed, without logits."""
        if not texts:
            return
        tokens = np.concatenate([ids for _, ids in texts.values()])
        streams = np.concatenate([np.full(len(ids), i, np.int32) for i, (_, ids) in texts.items()])
        positions = np.concatenate(
            [np.arange(start, start + len(ids), dtype=np.int32) for start, ids in texts.values()]
        )
        for at in range(0, len(tokens), BATCH_TOKENS):
            part = slice(at, at + BATCH_TOKENS)
            self.engine.decode(tokens[part], positions[part], streams[part], outputs=False)

    def _attend(self, i: int, token: int, logits: NDArray[np.float32], feed: Feed, rows: Streams) -> None:
        """Handle a row at which something happens: the end of a thought, a verdict, a stop, a spent budget."""
        slot = self._slots[i]
        if slot is None:  # dropped by a completion handled before it in this step
            return
        form, stopped = slot.job.form, token in self.stop_ids
        if slot.reading and form:
            slot.logits = tuple(logits[list(form.choices)].tolist())
            rows.unwrite(i)  # that row's draw was not wanted
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
        if slot.thought is not None:
            slot.pending = self._choice_is_next(rows.written(i)[slot.thought + len(form.head) :], form)
        if stopped or rows.count(i) >= slot.limit:
            if slot.choice is not None:
                self._finish(i, feed, rows)
            else:
                self._close(i, slot, form, rows)

    def _end_of_thought(self, i: int, slot: _Running, form: VerdictForm, rows: Streams) -> None:
        """See whether the ids just written end the thought; if so, open the answer."""
        written = rows.written(i)
        if tuple(written[-len(form.head) :].tolist()) == form.head:
            slot.thought = len(written) - len(form.head)
            slot.limit = len(written) + ANSWER_TOKENS - len(form.head)
            rows.watch(i, 0)

    def _choice_is_next(self, answer: NDArray[np.int32], form: VerdictForm) -> bool:
        """Return whether a verdict's choice belongs behind the ids written since the end of the thought."""
        text = self.to_text(answer.tolist())
        return text.endswith(form.prefix) if form.prefix else text == form.tail

    def _close(self, i: int, slot: _Running, form: VerdictForm, rows: Streams) -> None:
        """Close a thought for the model, dropping whatever stands behind it, so that the next row gives the verdict."""
        if slot.thought is None:
            slot.thought = rows.count(i)
        at = len(slot.job.prompt) + slot.thought
        fed = min(at, int(rows.position[i]))  # the newest token of the thought may not have been through the model yet
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
        """Hand over what was written, free the stream, and drop the jobs that have become pointless."""
        slot = self._slots[i]
        if slot is None:
            return
        self._slots[i] = None
        self._changed = True
        self._closing.pop(i, None)
        ids = tuple(rows.written(i).tolist())
        thought = len(ids) if slot.thought is None else slot.thought
        dropped = feed.take(slot.number, Completion(ids, thought, slot.choice, slot.logits, slot.tokens_read, finished))
        self.engine.cut(i, len(self._held[i]))  # the prompt stays, for the next job that shares it
        for number in dropped if finished else ():
            for k, other in enumerate(self._slots):
                if other is not None and other.number == number:
                    self._finish(k, feed, rows, finished=False)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n
