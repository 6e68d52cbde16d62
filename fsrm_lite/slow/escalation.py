"""The slow path as the scorer sees it: loads the judge when it is first needed, or does without one.

There may be no judge, because the bundle's files cannot think, or only with llama-cpp-python, which is missing. Where
slow thinking was only the gate's wish, the fast result then stands, and one warning is given. An item that is too long
for the judge's context keeps its fast result as well.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fsrm_lite.batches import each_or_none
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.errors import BundleError, ContextOverflowError, JudgeCrashed, JudgeUnavailableError, MisuseError
from fsrm_lite.gate import Gate
from fsrm_lite.runtimes.onnx.graph import Graph
from fsrm_lite.runtimes.onnx.graph_file import check_graph_file
from fsrm_lite.runtimes.opening import GGUF_SUFFIX, EngineSource, file_of
from fsrm_lite.runtimes.owner import Owner, forked
from fsrm_lite.slow.engines import EngineChoice, choose_engine
from fsrm_lite.types import Comparison, JudgeEngine, JudgePolicy, Prompt, Route, Score

if TYPE_CHECKING:
    from fsrm_lite.slow.judge import Judge
    from fsrm_lite.types import JudgeOptions, PairJudgement, PointJudgement

_Item = TypeVar("_Item")
_Judgement = TypeVar("_Judgement")
_Result = TypeVar("_Result", Score, Comparison)

logger = logging.getLogger(__name__)


class SlowPath:
    """Owns the judge of one model.

    If there is no judge, the fast results stand, unless the policy is "always": then an error is raised. A file that is
    there but damaged is always an error, and so is a runtime that was asked for by name and cannot run the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: PromptEncoder,
        opened: EngineSource | None,
        *,
        engine: JudgeEngine,
        threads: int | None,
        process: Literal["inline", "subprocess"],
        on_crash: Literal["raise", "fast"],
        give_way: Callable[[float], None],
    ) -> None:
        """Keep the settings. Nothing is loaded yet, and llama_cpp is not imported.

        Args:
            bundle: An open bundle. If another one lies within it, that one is the slow half.
            encoder: Its tokenizer and templates.
            opened: Its fast file, opened; None if that cannot write.
            engine: The runtime that the judge thinks with; see ``choose_engine``.
            threads: Compute threads of the judge; see ``Judge``.
            process: "inline" or "subprocess"; see ``Judge``.
            on_crash: With "raise" a crash of the judge is raised; with "fast" the fast results stand.
            give_way: Waits for what has precedence over a thought; see ``Judge``.
        """
        self._bundle, self._encoder, self._opened, self._engine = bundle, encoder, opened, engine
        self._threads, self._process, self._on_crash = threads, process, on_crash
        self._give_way = give_way
        self._judge: Judge | None = None
        self._own_graph: Graph | None = None
        self._pid = os.getpid()
        self._lock, self._graph_lock = threading.Lock(), threading.Lock()
        self._warned = self._closed = False

    @property
    def judge(self) -> Judge:
        """The judge, which is loaded now if it was not yet; see ``FastSlowRM.judge``."""
        from fsrm_lite.slow.judge import Judge

        if os.getpid() != self._pid:
            raise forked()
        with self._lock:
            if self._closed:
                raise MisuseError("this model was closed; open another one")
            if self._judge is None:
                choice = self.choice()
                logger.info("loading the judge into %s (%s)", choice.engine, choice.why)
                self._judge = Judge(
                    self._source(choice),
                    self.encoder,
                    threads=self._threads,
                    process=self._process,
                    give_way=self._give_way,
                )
            return self._judge

    @cached_property
    def encoder(self) -> PromptEncoder:
        """Tokenizer and templates of the slow half."""
        half = self.half
        return self._encoder if half is self._bundle else PromptEncoder(half.path("tokenizer"), half.manifest)

    @property
    def half(self) -> Bundle:
        """The bundle of the slow half: the one within the model's bundle, or that one itself."""
        return self._bundle.judge()

    def _source(self, choice: EngineChoice) -> EngineSource:
        """Return the model that the judge thinks with: the opened fast file, where it is the one."""
        if choice.engine == "onnx":
            graph = self._graph()
            assert graph is not None  # otherwise llama.cpp would have been chosen
            return graph
        path = self.half.path("slow")
        return self._opened if self._opened is not None and file_of(self._opened) == path else path

    def _graph(self) -> Graph | None:
        """Return the fast graph of the slow half; that of a bundle within the bundle is opened now."""
        half = self.half
        if half is self._bundle:
            return self._opened if isinstance(self._opened, Graph) else None
        with self._graph_lock:
            if self._closed:
                raise MisuseError("this model was closed; open another one")
            if self._own_graph is None and (path := half.path("fast")).suffix != GGUF_SUFFIX:
                check_graph_file(path, half.beside("fast_data"))
                opener = Owner("fsrm-judge-graph")  # whoever opens a graph has its arithmetic changed, see ``Graph``
                try:
                    self._own_graph = opener.submit(Graph, path, self._threads).result()
                finally:
                    opener.close()
            return self._own_graph

    def _graph_can_think(self) -> bool:
        graph = self._graph()
        return graph is not None and graph.can_think

    def choice(self) -> EngineChoice:
        """Return the runtime that the judge thinks with; see ``choose_engine`` for the errors."""
        from fsrm_lite.runtimes.llama.engine import why_not

        half = self.half
        if half is not self._bundle and self._engine != "onnx" and half.has("slow") and why_not() is None:
            return EngineChoice("llama.cpp", "the judge has a GGUF file of its own")
        graph = self._graph()
        return choose_engine(
            self._engine,
            can_think=graph is not None and graph.can_think,
            in_place=graph is not None and graph.writes_in_place,
            has_gguf=half.has("slow"),
            why_no_llama=why_not,
        )

    def score(
        self, items: Mapping[int, tuple[Prompt, str]], options: JudgeOptions, policy: JudgePolicy
    ) -> dict[int, PointJudgement]:
        """Judge single responses.

        Args:
            items: (prompt, response) by number.
            options: How to judge.
            policy: When the caller wanted slow thinking.

        Returns:
            The judgements by number. Items that keep their fast result are missing.
        """
        judge = self._available(policy, "pointwise_slow") if items else None
        return self._ask(lambda chosen: judge.score(chosen, options), items, policy) if judge is not None else {}

    def compare(
        self, items: Mapping[int, tuple[Prompt, str, str]], options: JudgeOptions, policy: JudgePolicy
    ) -> dict[int, PairJudgement]:
        """Judge pairs, all in one batch.

        Args:
            items: (prompt, first response, second response) by number.
            options: How to judge.
            policy: When the caller wanted slow thinking.

        Returns:
            The judgements by number. Items that keep their fast result are missing.
        """
        judge = self._available(policy, "pairwise_slow") if items else None
        return self._ask(lambda chosen: judge.compare(chosen, options), items, policy) if judge is not None else {}

    def close(self) -> None:
        """Free the judge. Safe to repeat. In a forked process it is left to the one that opened it."""
        if os.getpid() != self._pid:
            return
        with self._lock, self._graph_lock:
            self._closed = True
            if self._judge is not None:
                self._judge.close()
                self._judge = None
            if self._own_graph is not None:
                self._own_graph.close()

    def _available(self, policy: JudgePolicy, template: str) -> Judge | None:
        """Return the judge, or None (after one warning) if there is none and the policy is not "always".

        A slow file that is there but damaged raises an error with any policy.
        """
        half = self.half
        apart = half is not self._bundle
        try:
            if template in half.manifest.templates and (
                self._engine != "auto" or apart or half.has("slow") or self._graph_can_think()
            ):
                return self.judge
        except JudgeUnavailableError as error:
            if policy == "always":
                raise
            self._warn(error)
            return None
        # A bundle that was made without a judge may score fast. A file that is damaged was an error above.
        nothing = BundleError(
            f"the bundle {self._bundle.manifest.name!r} has no file that can think or no {template!r} template; "
            "it can only score fast"
        )
        if policy == "always":
            raise nothing
        self._warn(nothing)
        return None

    def _warn(self, error: Exception) -> None:
        """Give a warning, the first time only."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the gate asked for slow thinking, and the fast result is used instead: {error}", stacklevel=6
            )

    def _ask(
        self, call: Callable[[list[_Item]], list[_Judgement]], items: Mapping[int, _Item], policy: JudgePolicy
    ) -> dict[int, _Judgement]:
        """Judge all items in one call.

        Args:
            call: The judge's method, from a list of items to their judgements.
            items: The items by number.
            policy: With "always" an item that is too long is an error; else it keeps its fast result.

        Returns:
            The judgements by number. Items that keep their fast result (too long, or the judge crashed) are missing.
        """
        numbers = list(items)

        def crash_tolerant(part: list[_Item]) -> Sequence[_Judgement | None]:
            try:
                return call(part)
            except JudgeCrashed as error:
                if self._on_crash == "raise":
                    raise
                logger.warning("the judge crashed; %d items keep their fast result: %s", len(part), error)
                return [None] * len(part)

        def too_long(position: int, error: ContextOverflowError) -> None:
            if policy == "always":
                raise ContextOverflowError(f"item {numbers[position]}: {error}") from error
            logger.warning("an item keeps its fast result, it is too long for the judge: %s", error)

        judged = each_or_none(crash_tolerant, list(items.values()), ContextOverflowError, too_long)
        return {number: j for number, j in zip(numbers, judged, strict=True) if j is not None}


def with_thought(fast: Score, judgement: PointJudgement) -> Score:
    """Return a fast score as it is after slow thinking.

    Score and verdict are the judge's, the confidences stay those of the fast score, and the tokens of both are added.
    """
    answer = {
        "score": judgement.score,
        "logit": judgement.logit,
        "verdict": judgement.verdict,
        "rationale": judgement.rationale,
    }
    return _joined(fast, judgement, answer if judgement.verdict else None)


def with_votes(fast: Comparison, judgement: PairJudgement, gate: Gate) -> Comparison:
    """Return a fast comparison as it is after slow thinking.

    The votes are the judge's, the confidences stay those of the fast comparison, and the tokens of both are added. The
    winner is that of both paths together where the gate has weights for them, else the judge's.

    Where the votes are even, they say nothing: as a rule each order of the pair has then preferred the response that it
    showed first. If the thoughts ended by themselves, the mean probability differs from a half by rounding alone. So
    without weights the fast winner and its probability stand, unless they are even too. What the judge said can still
    be seen in the votes.
    """
    even = 2 * sum(vote.winner for vote in judgement.votes) == len(judgement.votes)
    winner, p_first = (
        (fast.winner, fast.p_first) if even and fast.p_first != 0.5 else (judgement.winner, judgement.p_first)
    )
    together = gate.answer(fast.logit, [vote.p_first for vote in judgement.votes])
    if combined := together is not None and together != 0.5:
        winner, p_first = int(together < 0.5), together
    answer = {
        "winner": winner,
        "p_first": p_first,
        "combined": combined,
        "votes": judgement.votes,
        "orders_agree": judgement.orders_agree,
        "rationale": next((vote.rationale for vote in judgement.votes if vote.winner == winner), None),
        "tokens_saved": judgement.tokens_saved,
    }
    return _joined(fast, judgement, answer if judgement.votes else None)


def _joined(fast: _Result, judgement: PointJudgement | PairJudgement, answer: dict[str, Any] | None) -> _Result:
    """Return a fast result with the judge's answer and tokens.

    If a deadline left no answer (``answer`` is None), the fast answer stands, with ``complete=False``.
    """
    route, complete = (fast.route, False) if answer is None else (Route.SLOW, judgement.complete)
    read, written = fast.tokens_read + judgement.tokens_read, judgement.tokens_generated
    return replace(fast, route=route, complete=complete, tokens_read=read, tokens_generated=written, **(answer or {}))
