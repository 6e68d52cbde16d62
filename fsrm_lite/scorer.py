"""``FastSlowRM``: the one who walks the line from text to a result.

Fast first, always; the gate decides; the judge is loaded at the first escalation and never before. Nothing else in
the package knows all of prompts, fast model, gate and judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from fsrm_lite.bundle.conversation import prompt_text
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.checks import check_candidates, check_items, expect, expect_one_of, is_whole
from fsrm_lite.errors import ContextOverflowError, InputError
from fsrm_lite.gate import Decision, FastSignals, Gate, GateSpec, sigmoid, signals
from fsrm_lite.runtimes.onnx.session import FastModel, FastReading
from fsrm_lite.slow.escalation import SlowPath, with_thought, with_votes
from fsrm_lite.types import Comparison, JudgePolicy, Prompt, Score, Selection

if TYPE_CHECKING:
    from fsrm_lite.slow.judge import Judge, JudgeOptions

POLICIES = ("auto", "never", "always")


class FastSlowRM:
    """A fast/slow thinking reward model, offline, on the CPU.

    Thread-safe: any number of threads may call any method; model calls are answered one after another.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        judge: JudgePolicy = "auto",
        votes: int | None = None,
        thinking_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        deadline: float | None = None,
        gate: GateSpec | None = None,
        truncate: bool = False,
        judge_process: Literal["inline", "subprocess"] = "inline",
        on_judge_crash: Literal["raise", "fast"] = "raise",
    ) -> None:
        """Load the fast model of an open bundle; :meth:`from_pretrained` does both steps.

        Args:
            bundle: An open bundle.
            threads: Threads for either model; None for the physical cores this process may use (one for a small judge).
            judge: "auto" thinks slowly where the gate says so, "never" does not, "always" does.
            votes: Chains of thought per pair and order, or per response; None for the bundle's own setting.
            thinking_tokens: Budget of one thought in tokens; None for the bundle's own setting.
            temperature: Of the judge's sampling; 0 is greedy; None for the bundle's own setting.
            seed: Of the judge's sampling.
            deadline: Seconds the judge may take per call; results that it cut short say ``complete=False``.
            gate: Thresholds to use instead of the bundle's.
            truncate: Cut the end off responses that are too long to be scored, instead of raising; the judge needs more room and
                may still find them too long.
            judge_process: "subprocess" contains a crash of llama.cpp; see :class:`fsrm_lite.slow.judge.Judge`.
            on_judge_crash: "raise" :class:`JudgeCrashed`, or answer "fast", marked as escalated.

        Raises:
            InputError: If an option is out of range.
            BundleError: If a file of the bundle is missing, altered or unreadable.
        """
        expect(
            isinstance(bundle, Bundle),
            "bundle",
            bundle,
            "an open Bundle; FastSlowRM.from_pretrained opens a folder or hub name",
        )
        expect_one_of(POLICIES, "judge", judge)
        expect(
            gate is None or isinstance(gate, GateSpec),
            "gate",
            gate,
            "a GateSpec (GateSpec.from_dict makes one of JSON), or None",
        )
        expect(isinstance(truncate, bool), "truncate", truncate, "true or false")
        self._policy, self._truncate = judge, truncate
        self._settings = {
            "votes": votes,
            "thinking_tokens": thinking_tokens,
            "temperature": temperature,
            "seed": seed,
            "deadline": deadline,
        }
        self._options({})  # out-of-range settings are refused now, not at the first escalation
        self.bundle = bundle
        self.encoder = PromptEncoder(bundle.path("tokenizer"), bundle.manifest)
        self.gate = Gate(bundle.manifest.gate if gate is None else gate)
        self._values = [label.value for label in bundle.manifest.labels]
        self._slow = SlowPath(bundle, self.encoder, threads=threads, process=judge_process, on_crash=on_judge_crash)
        self.fast = FastModel(bundle.path("fast"), threads=threads)
        self.fast.check(bundle.manifest.vocab_size, [label.id for label in bundle.manifest.labels])

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,  # noqa: ANN401 - the options of the constructor
    ) -> FastSlowRM:
        """Open a bundle and load its fast model.

        Args:
            source: None for the embedded model; a folder; else ``"org/name"`` on the Hugging Face hub.
            revision: Hub branch, tag or commit.
            cache_dir: Cache folder of huggingface_hub.
            local_files_only: Never use the network.
            token: Hub access token.
            **options: Options of the constructor: ``threads``, ``judge``, ``votes``, ``seed``, ...

        Raises:
            BundleError: If there is no such bundle, or it is incomplete, altered, or of an unknown format version.
        """
        bundle = Bundle.open(
            source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        return cls(bundle, **options)

    def score(self, prompt: Prompt, response: str, **options: Any) -> Score:  # noqa: ANN401 - see score_many
        """Return the reward of one response; see :meth:`score_many` for the options."""
        return self.score_many([(prompt, response)], **options)[0]

    def score_many(
        self, items: Iterable[tuple[Prompt, str]], *, judge: JudgePolicy | None = None, **options: Any
    ) -> list[Score]:  # noqa: ANN401
        """Return the rewards of responses, in input order.

        Args:
            items: (prompt, response) each; candidates of one prompt share its computation, in any order.
            judge: Overrides the model's policy for this call.
            **options: ``votes``, ``thinking_tokens``, ``temperature``, ``seed``, ``deadline`` of this call.

        Raises:
            InputError: On unusable text, naming the item.
            JudgeUnavailableError: If ``judge="always"`` and llama-cpp-python cannot be used.
        """
        policy, settings = self._policy_of(judge), self._options(options)
        texts = [self._fit(i, item) for i, item in enumerate(check_items(items, "prompt", "response"))]
        scores = self._read(texts)
        decisions = [self.gate.single(_signals(score)) for score in scores]
        asked = [i for i, d in enumerate(decisions) if policy == "always" or (policy == "auto" and d.escalate)]
        for i in asked:
            scores[i] = replace(scores[i], escalated=True, reasons=_reasons(decisions[i]))
        for i, verdict in self._slow.score({i: texts[i] for i in asked}, settings, policy).items():
            scores[i] = with_thought(scores[i], verdict)
        return scores

    def predict(self, pairs: Iterable[tuple[Prompt, str]], **options: Any) -> list[float]:  # noqa: ANN401 - see score_many
        """Return scores in [0, 1] of (prompt, response) pairs, in input order, as plain floats."""
        return [score.score for score in self.score_many(pairs, **options)]

    def compare(self, prompt: Prompt, first: str, second: str, **options: Any) -> Comparison:  # noqa: ANN401 - see compare_many
        """Say which of two responses is better; see :meth:`compare_many` for the options."""
        return self.compare_many([(prompt, first, second)], **options)[0]

    def compare_many(
        self,
        items: Iterable[tuple[Prompt, str, str]],
        *,
        judge: JudgePolicy | None = None,
        **options: Any,  # noqa: ANN401 - settings of the judge
    ) -> list[Comparison]:
        """Compare pairs of responses, in input order; all pairs that escalate are judged in one batch.

        Args:
            items: (prompt, first response, second response) each. Equal responses are a draw that the first wins, unjudged.
            judge: Overrides the model's policy for this call.
            **options: ``votes``, ``thinking_tokens``, ``temperature``, ``seed``, ``deadline``, ``both_orders``,
                ``adaptive``, ``error_rate`` of this call.

        Raises:
            InputError: On unusable text, naming the item.
            JudgeUnavailableError: If ``judge="always"`` and llama-cpp-python cannot be used.
        """
        policy, settings = self._policy_of(judge), self._options(options)
        listed = check_items(items, "prompt", "first", "second")
        fitted = [self._fit(i, (prompt, response)) for i, (prompt, *both) in enumerate(listed) for response in both]
        scores = self._read(fitted)
        pairs = [(*fitted[i], fitted[i + 1][1]) for i in range(0, len(fitted), 2)]
        return self._compare(pairs, list(zip(scores[0::2], scores[1::2], strict=True)), policy, settings)

    def rank(
        self, prompt: Prompt, responses: Sequence[str], top_k: int | None = None, **options: Any
    ) -> list[dict[str, Any]]:  # noqa: ANN401
        """Rank responses by score, best first, in the form of ``CrossEncoder.rank``; :meth:`best_of_n` lets them meet in pairs.

        Args:
            prompt: What was asked.
            responses: Candidates.
            top_k: Return only this many; None for all.
            **options: As for :meth:`score_many`.

        Returns:
            ``[{"corpus_id": position in responses, "score": in [0, 1], "text": the response}, ...]``; equal scores keep
            the input order.
        """
        expect(
            top_k is None or (is_whole(top_k) and top_k >= 1),
            "top_k",
            top_k,
            "a whole number of at least 1, or None for all",
        )
        responses = check_candidates(responses)
        scores = self.score_many([(prompt, response) for response in responses], **options)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i].logit, i))[:top_k]
        return [{"corpus_id": i, "score": scores[i].score, "text": responses[i]} for i in order]

    def best_of_n(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        *,
        strategy: str = "gated",
        judge: JudgePolicy | None = None,
        **options: Any,  # noqa: ANN401 - of the judge and of the tournament
    ) -> Selection:
        """Choose the best of N responses.

        Args:
            prompt: What was asked.
            responses: Candidates, at least one; empty ones rank last.
            strategy: "gated" (default), "fast", "knockout", "elo" or "majority"; see :func:`fsrm_lite.ranking.tournament.select`.
            judge: "never" decides every match by the fast scores; "auto" and "always" let the judge decide the matches
                that the strategy asks for. With "always" the strategy "gated" asks as if the gate fired for every pair, so
                that everyone meets in a knockout. "fast" and "majority" have no matches.
            **options: Settings of the judge as for :meth:`compare_many`, and of the tournament
                (:class:`fsrm_lite.ranking.tournament.TournamentOptions`).

        Raises:
            InputError: If there is no response, or an option is unknown.
        """
        from fsrm_lite.ranking.tournament import BLANK_SCORE, TournamentOptions, select

        policy, responses = self._policy_of(judge), check_candidates(responses)
        prompt_text(prompt)  # refused even where every response is empty and nothing is read
        tournament = {
            name: options.pop(name) for name in list(options) if name in TournamentOptions.__dataclass_fields__
        }
        settings = self._options(options)
        readable = [i for i, r in enumerate(responses) if not isinstance(r, str) or r.strip()]
        fitted = {i: self._fit(i, (prompt, responses[i])) for i in readable}
        read = dict(zip(readable, self._read(list(fitted.values())), strict=True))
        scores = [read.get(i, BLANK_SCORE) for i in range(len(responses))]

        def play(pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
            texts = [(prompt, fitted[a][1], fitted[b][1]) for a, b in pairs]
            force: JudgePolicy = "never" if policy == "never" else "always"
            played = self._compare(
                texts, [(scores[a], scores[b]) for a, b in pairs], force, settings, optional=policy == "auto"
            )
            # The candidates were read once, for their scores; a match costs only what the judge reads.
            return [
                replace(c, tokens_read=c.tokens_read - scores[a].tokens_read - scores[b].tokens_read)
                for c, (a, b) in zip(played, pairs, strict=True)
            ]

        gate = Gate(replace(self.gate.spec, always=True)) if policy == "always" else self.gate
        return select(strategy, scores, responses, gate, play, **tournament)

    def fit(self, prompt: Prompt, response: str) -> str:
        """Check one (prompt, response) and return the response as it will be scored: cut at its end if that was asked for.

        Raises:
            InputError: If a text is unusable.
            ContextOverflowError: If it does not fit, and ``truncate`` is off or the prompt alone fills the context.
        """
        try:
            self.encoder.pointwise_fast(prompt, response)
        except ContextOverflowError:
            if not self._truncate:
                raise
            return self.encoder.truncated(prompt, response)
        return response

    @property
    def judge(self) -> Judge:
        """The slow judge, loaded now if it was not yet.

        Raises:
            JudgeUnavailableError: If llama-cpp-python cannot be used here.
            BundleError: If the bundle has no slow file, or it is damaged.
        """
        return self._slow.judge

    def close(self) -> None:
        """Release both models. Safe to repeat."""
        self._slow.close()
        self.fast.close()

    def __getstate__(self) -> NoReturn:
        raise InputError(
            "a loaded model cannot be copied or pickled; let each process open its own with from_pretrained"
        )

    def __enter__(self) -> FastSlowRM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _policy_of(self, judge: JudgePolicy | None) -> JudgePolicy:
        expect_one_of(POLICIES, "judge", policy := self._policy if judge is None else judge)
        return policy

    def _options(self, given: dict[str, Any]) -> JudgeOptions:
        from fsrm_lite.slow.judge import JudgeOptions

        unknown = sorted(set(given) - set(JudgeOptions.__dataclass_fields__))
        if unknown:
            raise InputError(f"unknown options {unknown}, expected among {sorted(JudgeOptions.__dataclass_fields__)}")
        return JudgeOptions(**{**self._settings, **given})

    def _fit(self, number: int, item: tuple[Prompt, str]) -> tuple[Prompt, str]:
        prompt, response = item
        try:
            return prompt, self.fit(prompt, response)
        except InputError as error:
            raise type(error)(f"item {number}: {error}") from error

    def _read(self, items: list[tuple[Prompt, str]]) -> list[Score]:
        readings = (
            self.fast.read([self.encoder.pointwise_fast(prompt, response) for prompt, response in items])
            if items
            else []
        )
        return [self._score(reading) for reading in readings]

    def _score(self, reading: FastReading) -> Score:
        s = signals(
            reading.label_logits,
            self._values,
            log_mass=reading.log_mass,
            entropy=reading.entropy,
            vocab_size=self.bundle.manifest.vocab_size,
        )
        decision = self.gate.single(s)
        return Score(
            s.score,
            s.logit,
            decision.intuition_confidence,
            decision.distribution_confidence,
            s.label_mass,
            tokens_read=reading.tokens_read,
        )

    def _compare(
        self,
        pairs: list[tuple[Prompt, str, str]],
        scores: list[tuple[Score, Score]],
        policy: JudgePolicy,
        settings: JudgeOptions,
        *,
        optional: bool = False,
    ) -> list[Comparison]:
        """Compare pairs whose fast scores are known; ``optional`` falls back to them where there is no judge."""
        decisions = [self.gate.pair(_signals(a), _signals(b)) for a, b in scores]
        same = [first == second for _, first, second in pairs]
        asked = [
            i
            for i, d in enumerate(decisions)
            if not same[i] and (policy == "always" or (policy == "auto" and d.escalate))
        ]
        results = [self._fast_comparison(both, decision) for both, decision in zip(scores, decisions, strict=True)]
        for i in asked:
            results[i] = replace(results[i], escalated=True, reasons=_reasons(decisions[i]))
        for i, judgement in self._slow.compare(
            {i: pairs[i] for i in asked}, settings, "auto" if optional else policy
        ).items():
            results[i] = with_votes(results[i], judgement)
        return results

    def _fast_comparison(self, both: tuple[Score, Score], decision: Decision) -> Comparison:
        first, second = both
        margin = first.logit - second.logit
        return Comparison(
            winner=0 if margin >= 0 else 1,
            p_first=sigmoid(margin / self.gate.spec.temperature),
            intuition_confidence=decision.intuition_confidence,
            distribution_confidence=decision.distribution_confidence,
            scores=both,
            tokens_read=first.tokens_read + second.tokens_read,
        )


def _signals(score: Score) -> FastSignals:
    return FastSignals(score.logit, score.score, score.distribution_confidence, score.label_mass)


def _reasons(decision: Decision) -> tuple[str, ...]:
    return decision.reasons or ("slow thinking was asked for",)
