"""Ray: score files and datasets on many machines. Needs ray (extra ``ray``).

``ScoreBatches`` is a callable class for Ray Data's ``map_batches``. ``RayPool`` runs batches on actors of its own and
gives their results in order; it is what ``fsrm-lite score --ray`` uses.

A batch is answered by one worker, which starts it with nothing kept of earlier batches. So its results are, bit for
bit, those of one process that answers the same batches on as many threads, whichever worker it comes to, and also if it
comes to a second one because the first died.
"""

from __future__ import annotations

import heapq
import logging
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack

import numpy as np

from fsrm_lite.checks import expect, expect_one_of, is_whole
from fsrm_lite.errors import FsrmError, InputError, missing_extra, one_line
from fsrm_lite.integrations.loading import LazyModel
from fsrm_lite.types import Comparison, JudgePolicy, LoadSettings, Prompt, Score

if TYPE_CHECKING:
    from fsrm_lite.fast.path import EncodedResponse
    from fsrm_lite.scorer import FastSlowRM

Kind: TypeAlias = Literal["score", "compare", "rank"]
Row: TypeAlias = tuple[Prompt, Sequence[str]]
"""A prompt and its responses: one to score, two to compare, any number to rank."""

Result: TypeAlias = "Score | Comparison | list[Score]"
"""What a row gets: a score, a comparison, or, to be ranked, a score per response."""

Answer: TypeAlias = "list[Result] | InputError"
"""What a batch gets: a result per row, or the error if one of its rows cannot be scored."""

KINDS = ("score", "compare", "rank")
OLDEST = (2, 9)
"""The oldest version of Ray whose interface is used here."""

CONNECT_SECONDS = 10.0
TRIES = 3
"""How often a batch is given to a worker before its deaths are taken to be the batch's fault."""

WINDOW = 8
"""Batches per worker that may be begun and not given out. So many results are held in memory at most."""

logger = logging.getLogger(__name__)


class ClusterError(FsrmError):
    """A Ray cluster cannot be reached or has no room, or its workers die again and again."""


def load_ray() -> ModuleType:
    """Import ray and check its version.

    Raises:
        MissingExtraError: If it is not installed.
        ClusterError: If its version is too old.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray", error) from error
    version = tuple(int(part) for part in ray.__version__.split(".")[:2] if part.isdigit())
    if version < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise ClusterError(f"ray {ray.__version__} is installed, expected at least {wanted}; run: pip install -U ray")
    return ray  # type: ignore[no-any-return]


def connect(address: str) -> ModuleType:
    """Connect to a Ray cluster, unless this process is connected already, and return the module ``ray``.

    Args:
        address: "local" starts a cluster on this machine; "auto" finds the one that runs here; else ``HOST:PORT`` or
            ``ray://HOST:PORT``.

    Raises:
        ClusterError: If there is no such cluster.
    """
    ray = load_ray()
    if ray.is_initialized():
        return ray
    if address not in ("local", "auto"):
        _check_reachable(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # ray raises ConnectionError, RuntimeError, ValueError and others
        raise ClusterError(f"the Ray cluster {address!r} cannot be used: {one_line(error)}") from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise unless somebody listens at an address: Ray itself would try for minutes and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ClusterError(f"the Ray address is {address!r}, expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"nobody answers at the Ray address {address!r}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Reading:
    """What the fast path says about a batch.

    Attributes:
        scores: Per row the fast scores of its responses.
        asked: How many thoughts the gate asks for.
        results: The results, if nothing is to be thought about; else None.
    """

    scores: list[list[Score]]
    asked: int
    results: list[Result] | None


class Worker:
    """A loaded model that answers batches in two steps: it reads all fast, then thinks about what needs it."""

    def __init__(self, source: str | Path | None, options: Mapping[str, Any]) -> None:
        """Load the model; the arguments are those of ``FastSlowRM.from_pretrained``."""
        from fsrm_lite.scorer import FastSlowRM

        self._model = FastSlowRM.from_pretrained(source, **options)
        self._judge = options["judge"]

    def read(self, kind: Kind, rows: Sequence[Row]) -> Reading:
        """Read rows fast. Where no thought is asked for, that is all there is to do."""
        self._model.fast.forget()  # a batch starts alike on every worker
        encoded = [[self._model.encode(prompt, response) for response in responses] for prompt, responses in rows]
        flat = iter(self._model.read([item for row in encoded for item in row]))
        scores = [[next(flat) for _ in row] for row in encoded]
        gate = self._model.gate
        if kind == "compare":
            asked = sum(gate.pair(first, second).escalate for first, second in scores)
        else:
            asked = sum(gate.single(score).escalate for row in scores for score in row)
        needs = self._judge == "always" or (self._judge == "auto" and asked > 0)
        return Reading(scores, asked, None if needs else finished(self._model, kind, rows, scores))

    def finish(self, kind: Kind, rows: Sequence[Row], scores: Sequence[Sequence[Score]]) -> list[Result]:
        """Return the results of rows that were read, after thinking about those that need it."""
        return finished(self._model, kind, rows, scores)


def finished(
    model: FastSlowRM,
    kind: Kind,
    rows: Sequence[Row],
    scores: Sequence[Sequence[Score]],
    **options: Any,  # noqa: ANN401
) -> list[Result]:
    """Return the results of rows whose responses were read.

    Args:
        model: The model.
        kind: What the rows are for.
        rows: The rows.
        scores: Per row the fast scores of its responses.
        **options: The judge's, as for ``FastSlowRM.score_many``.
    """
    encoded: list[list[EncodedResponse]] = [[model.encode(prompt, r) for r in responses] for prompt, responses in rows]
    if kind == "compare":
        pairs = [(first, second) for first, second in encoded]
        return list(model.escalate_pairs(pairs, [(a, b) for a, b in scores], **options))
    flat = [item for row in encoded for item in row]
    found = iter(model.escalate_scores(flat, [score for row in scores for score in row], **options))
    if kind == "score":
        return list(found)
    return [[next(found) for _ in row] for row in encoded]


@dataclass(slots=True)
class _Batch:
    """One batch on its way.

    Attributes:
        number: Its place in the order.
        rows: Its rows.
        scores: Per row the fast scores, once they are there.
        tries: How often a worker died over it.
        result: Its results, once they are there.
    """

    number: int
    rows: list[Row]
    scores: list[list[Score]] | None = None
    tries: int = 0
    result: Answer | None = None


@dataclass(order=True, slots=True)
class _Thought:
    """A batch that waits for the judge; the one with the most to think about comes first."""

    order: tuple[int, int]
    batch: _Batch = field(compare=False)


class RayPool:
    """Workers of a Ray cluster, each an actor with a loaded model.

    Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        address: str = "local",
        workers: int | None = None,
        judge: JudgePolicy = "auto",
        **options: Unpack[LoadSettings],
    ) -> None:
        """Connect, and start the workers.

        Args:
            source: A bundle folder that every machine of the cluster sees, a hub name, or None for the embedded model.
            address: See ``connect``.
            workers: How many; None for as many as the cluster's processors allow.
            judge: When to think slowly.
            **options: For ``FastSlowRM.from_pretrained``. ``threads`` (1 if it is not given) is also the number of
                processors that each worker reserves.

        Raises:
            ClusterError: If the cluster cannot be used.
            InputError: If a number is out of range.
        """
        threads = options.get("threads") or 1
        expect(workers is None or (is_whole(workers) and workers >= 1), "workers", workers, "a whole number above 0")
        expect(is_whole(threads) and threads >= 1, "threads", threads, "a whole number above 0")
        self._ray = connect(address)
        room = int(self._ray.cluster_resources().get("CPU", 0)) // threads
        if room < 1:
            raise ClusterError(
                f"no machine of the cluster has {threads} processors for a worker; ask for fewer threads"
            )
        self._count = min(workers or room, room)
        self._actor = self._ray.remote(Worker).options(num_cpus=threads, max_restarts=0)
        self._arguments = (source, {**options, "threads": threads, "judge": judge})
        self._idle = [self._start() for _ in range(self._count)]

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self._count

    def _start(self) -> Any:  # noqa: ANN401 - a handle of Ray's
        return self._actor.remote(*self._arguments)

    def map(self, kind: Kind, batches: Iterable[Sequence[Row]]) -> Iterator[Answer]:
        """Answer batches, and yield their answers in order.

        Among the batches that are under way everything is read fast first; then the judge thinks, about the batches
        with most to think about first, so that the workers finish together. If a worker dies, another one takes its
        place and its batch.

        Args:
            kind: What the rows are for.
            batches: Rows, as many per batch as one call of the model is to get.

        Raises:
            ClusterError: If workers die over the same batch again and again.
        """
        expect_one_of(KINDS, "kind", kind)
        source = iter(enumerate(batches))
        running: dict[Any, tuple[Any, _Batch, bool]] = {}  # by Ray's reference: worker, batch, whether it thinks
        thoughts: list[_Thought] = []
        again: list[_Batch] = []
        waiting: dict[int, _Batch] = {}
        given = 0
        more = True
        try:
            while True:
                while more and len(waiting) + len(again) < WINDOW * self._count and len(again) < self._count:
                    following = next(source, None)
                    if following is None:
                        more = False
                        break
                    batch = _Batch(following[0], list(following[1]))
                    waiting[batch.number] = batch
                    again.append(batch)
                while self._idle and (again or thoughts):
                    thinks = not again
                    batch = heapq.heappop(thoughts).batch if thinks else again.pop(0)
                    worker = self._idle.pop()
                    if batch.scores is None:
                        reference = worker.read.remote(kind, batch.rows)
                    else:
                        reference = worker.finish.remote(kind, batch.rows, batch.scores)
                    running[reference] = (worker, batch, batch.scores is not None)
                while given in waiting and waiting[given].result is not None:
                    answer = waiting.pop(given).result
                    given += 1
                    yield [] if answer is None else answer
                if not running:
                    if not more and not waiting:
                        return
                    continue
                (reference,), _ = self._ray.wait(list(running), num_returns=1)
                worker, batch, thought = running.pop(reference)
                self._take(reference, worker, batch, thought, again, thoughts)
        finally:  # also when nobody wants the rest
            self._idle += [worker for worker, _, _ in running.values()]

    def _take(
        self,
        reference: Any,  # noqa: ANN401
        worker: Any,  # noqa: ANN401
        batch: _Batch,
        thought: bool,
        again: list[_Batch],
        thoughts: list[_Thought],
    ) -> None:
        """Take what a worker gave, or begin the batch again if it died."""
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError):
                batch.result = cause
                return
            if isinstance(cause, FsrmError):
                raise cause from None
            raise ClusterError(f"a worker failed: {one_line(error)[-500:]}") from error
        except self._ray.exceptions.RayError as error:
            batch.tries += 1
            if batch.tries >= TRIES:
                raise ClusterError(f"{TRIES} workers died over the same batch: {one_line(error)[:500]}") from error
            logger.warning("a worker died; another one takes its place and its batch")
            self._idle.append(self._start())
            if thought:
                heapq.heappush(thoughts, _Thought((0, batch.number), batch))
            else:
                again.append(batch)
            return
        self._idle.append(worker)
        if thought:
            batch.result = answer
            return
        batch.scores, batch.result = answer.scores, answer.results
        if batch.result is None:
            heapq.heappush(thoughts, _Thought((-answer.asked, batch.number), batch))

    def close(self) -> None:
        """End the workers. The connection to the cluster stays."""
        for worker in self._idle:
            self._ray.kill(worker)
        self._idle = []

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ScoreBatches:
    """A callable class for Ray Data's ``map_batches``: adds scores to batches of rows.

    It is made once per actor, loads its model when the first batch comes, and uses as many threads as the actor has
    processors (``num_cpus`` of ``map_batches``). Rows of one prompt that are in the same batch share the reading of it,
    so sort a dataset by prompt first if its rows are mixed.

    A row that cannot be scored costs the others nothing: its score is NaN, and the column ``error`` says why; for all
    other rows that column is null.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        prompt: str = "prompt",
        response: str = "response",
        judge: JudgePolicy = "never",
        prefix: str = "",
        **options: Unpack[LoadSettings],
    ) -> None:
        """Keep the settings; nothing is loaded yet.

        Args:
            source: A bundle folder that every machine sees, a hub name, or None for the embedded model.
            prompt: Name of the column with the prompts: texts, or lists of chat messages.
            response: Name of the column with the responses.
            judge: When to think slowly.
            prefix: Put before the names of the columns that are added: ``score``, ``logit``, ``route``,
                ``tokens_read``, ``tokens_generated`` and ``error``.
            **options: For ``FastSlowRM.from_pretrained``. ``threads`` is taken from the actor if it is not given.
        """
        self._columns, self._prefix, self._judge = (prompt, response), prefix, judge
        if options.get("threads") is None:
            options["threads"] = assigned_threads()
        self._lazy = LazyModel(source, **options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with the columns that were added.

        Args:
            batch: Columns by name, each of the same length: Ray Data's batch format "numpy".

        Raises:
            InputError: If a column is missing, or one that would be added is there already.
        """
        missing = [name for name in self._columns if name not in batch]
        if missing:
            raise InputError(f"the batch has no column {missing[0]!r}; it has {', '.join(sorted(batch))}")
        model = self._lazy.model
        prompts, responses = (list(batch[name]) for name in self._columns)
        encoded: list[EncodedResponse] = []
        errors: list[str | None] = []
        for prompt, response in zip(prompts, responses, strict=True):
            try:
                given = list(prompt) if isinstance(prompt, np.ndarray) else prompt
                encoded.append(model.encode(given, response))
                errors.append(None)
            except InputError as error:
                errors.append(str(error))
        model.fast.forget()  # so that a batch gets the same bits on every actor
        fast = dict(zip((i for i, error in enumerate(errors) if error is None), model.read(encoded), strict=True))
        scores = self._thought_over(dict(zip(fast, encoded, strict=True)), fast, errors)
        added = {
            "score": np.array([s.score if s else np.nan for s in scores]),
            "logit": np.array([s.logit if s else np.nan for s in scores]),
            "route": np.array([str(s.route) if s else None for s in scores], dtype=object),
            "tokens_read": np.array([s.tokens_read if s else 0 for s in scores]),
            "tokens_generated": np.array([s.tokens_generated if s else 0 for s in scores]),
            "error": np.array(errors, dtype=object),
        }
        named = {self._prefix + name: values for name, values in added.items()}
        taken = sorted(set(batch) & set(named))
        if taken:
            raise InputError(f"the batch has the column {taken[0]!r} already; give a prefix")
        return batch | named

    def _thought_over(
        self, encoded: dict[int, EncodedResponse], fast: dict[int, Score], errors: list[str | None]
    ) -> list[Score | None]:
        """Return the scores of all rows after thinking; a row that the judge cannot read gets an error instead."""
        model = self._lazy.model
        for i, item in encoded.items() if self._judge == "always" else ():
            if not model.judge.has_room(item.prompt, item.text):
                errors[i] = "the judge has no room for it"
        rows = [i for i in fast if errors[i] is None]
        found = model.escalate_scores([encoded[i] for i in rows], [fast[i] for i in rows], judge=self._judge)
        scores = dict(zip(rows, found, strict=True))
        return [scores.get(i) for i in range(len(errors))]


def assigned_threads() -> int | None:
    """Return how many processors Ray has reserved for this actor; None outside of one, or where it reserved none."""
    try:
        import ray
    except ImportError:
        return None
    if not ray.is_initialized():
        return None
    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return max(1, int(reserved)) if reserved else None
