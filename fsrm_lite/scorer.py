"""``FastSlowRM``, the reward model as users see it: it takes texts to scores, comparisons and rankings.

Everything is scored by the fast model first. The gate then decides from the fast result whether slow thinking is worth
its tokens. If so, the judge (the slow model) writes a thought about it and gives a verdict. The judge is loaded when it
is first needed, and not before. This is the only module that knows all of these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypedDict, TypeVar, Unpack

from fsrm_lite.batches import each_or_none
from fsrm_lite.bundle.conversation import read_prompt
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.files import Bundle
from fsrm_lite.checks import check_candidates, check_items, expect, expect_one_of, is_whole, plain
from fsrm_lite.errors import BundleError, InputError, JudgeUnavailableError
from fsrm_lite.fast.path import EncodedResponse, FastPath, text_of
from fsrm_lite.fast.readings import compare_scores
from fsrm_lite.gate import Decision, Gate, GateSpec
from fsrm_lite.ranking.order import best_first
from fsrm_lite.slow.engines import ENGINES, EngineChoice
from fsrm_lite.slow.escalation import SlowPath, with_thought, with_votes
from fsrm_lite.types import (
    POLICIES,
    Comparison,
    JudgeEngine,
    JudgeOptions,
    JudgePolicy,
    JudgeSettings,
    ModelSettings,
    Prompt,
    RankSettings,
    Score,
    ScoringSettings,
    Selection,
    SelectionSettings,
    Strategy,
    TournamentSettings,
)

if TYPE_CHECKING:
    from fsrm_lite.slow.judge import Judge

_Result = TypeVar("_Result")

Response: TypeAlias = str | EncodedResponse
"""A response as text, or what ``FastSlowRM.encode`` made of it."""


class RankedResponse(TypedDict):
    """One entry of ``FastSlowRM.rank``: position in the input, score in [0, 1], text."""

    corpus_id: int
    score: float
    text: str


class FastSlowRM:
    """A fast/slow reward model, offline, on the CPU.

    Thread-safe: any number of threads may call any method. The calls of each model are answered one after another.
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
        judge_engine: JudgeEngine = "auto",
        deterministic: bool = False,
        judge_process: Literal["inline", "subprocess"] = "inline",
        on_judge_crash: Literal["raise", "fast"] = "raise",
    ) -> None:
        """Load the fast model of an open bundle; ``from_pretrained`` does both steps.

        Args:
            bundle: An open bundle.
            threads: Threads for either model. None takes the physical cores that this process may use, and one for a
                judge whose file is small.
            judge: When to think slowly: "auto" where the gate says so, "never", or "always".
            votes: Thoughts that the judge writes per pair and order, or per response; None for the bundle's own
                setting.
            thinking_tokens: Most tokens of one thought; None for the bundle's own setting.
            temperature: Sampling temperature of the judge; 0 is greedy; None for the bundle's own setting.
            seed: Seed of the judge's sampling.
            deadline: Seconds that the judge may take per call. Results that it cut short have ``complete=False``.
            gate: Thresholds to use instead of the bundle's.
            truncate: Cut the end off responses that are too long to be scored, instead of raising an error. The judge
                needs more room and may still find them too long.
            deterministic: Read each response by itself, so that its fast score is the same to the last bit alone and in
                any company. It costs what is gained by reading responses together, which on lists is much.
            judge_engine: The runtime that the judge thinks with: "onnx" (ONNX Runtime, with the fast file), "llama.cpp"
                (with the GGUF file), or "auto"; see ``fsrm_lite.slow.engines.choose_engine``.
            judge_process: "inline" or "subprocess". With "subprocess" a crash of the runtime does not end this process;
                see ``fsrm_lite.slow.judge.Judge``.
            on_judge_crash: With "raise", a crash of the judge raises ``JudgeCrashed``. With "fast", the fast results
                stand, marked as escalated.

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
        expect_one_of(ENGINES, "judge_engine", judge_engine)
        expect_one_of(("inline", "subprocess"), "judge_process", judge_process)
        expect_one_of(("raise", "fast"), "on_judge_crash", on_judge_crash)
        expect(isinstance(deterministic, bool), "deterministic", deterministic, "true or false")
        self.options: ModelSettings = {
            "threads": plain(threads),
            "judge": judge,
            "votes": votes,
            "thinking_tokens": thinking_tokens,
            "temperature": temperature,
            "seed": seed,
            "deadline": deadline,
            "gate": gate,
            "truncate": truncate,
            "deterministic": deterministic,
            "judge_engine": judge_engine,
            "judge_process": judge_process,
            "on_judge_crash": on_judge_crash,
        }
        """The options that the model was opened with."""
        self._policy = judge
        self._settings: JudgeSettings = {
            "votes": votes,
            "thinking_tokens": thinking_tokens,
            "temperature": temperature,
            "seed": seed,
            "deadline": deadline,
        }
        self._judge_options({})  # settings that are out of range are refused now, not at the first escalation
        self.bundle = bundle
        self.encoder = PromptEncoder(bundle.path("tokenizer"), bundle.manifest)
        self.gate = Gate(bundle.manifest.gate if gate is None else gate)
        self.fast = FastPath(bundle, self.encoder, threads=threads, truncate=truncate, apart=deterministic)
        self._slow = SlowPath(
            bundle,
            self.encoder,
            self.fast.opened,
            engine=judge_engine,
            threads=threads,
            process=judge_process,
            on_crash=on_judge_crash,
            give_way=self.fast.precedence.give_way,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Unpack[ModelSettings],
    ) -> FastSlowRM:
        """Open a bundle and load its fast model.

        Args:
            source: None for the embedded model; a folder; else ``"org/name"`` on the Hugging Face hub.
            revision: Branch, tag or commit on the hub.
            cache_dir: Cache folder of huggingface_hub.
            local_files_only: Never use the network.
            token: Access token for the hub.
            **options: Options of the constructor: ``threads``, ``judge``, ``votes``, ``seed``, ...

        Returns:
            The reward model.

        Raises:
            BundleError: If there is no such bundle, or it is incomplete, altered, or of an unknown format version.
            InputError: If an option is out of range.
        """
        bundle = Bundle.open(
            source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        return cls(bundle, **options)

    def score(self, prompt: Prompt, response: Response, **options: Unpack[ScoringSettings]) -> Score:
        """Return the reward of one response; see ``score_many`` for the options."""
        return self.score_many([(prompt, response)], **options)[0]

    def score_many(
        self,
        items: Iterable[tuple[Prompt, Response]],
        *,
        judge: JudgePolicy | None = None,
        **options: Unpack[JudgeSettings],
    ) -> list[Score]:
        """Return the rewards of responses, in input order.

        Args:
            items: (prompt, response) each. Responses to one prompt share the work of reading it, wherever they stand in
                the list. A response may also be given as what ``encode`` made of it.
            judge: When to think slowly in this call; None for the model's own setting.
            **options: ``votes``, ``thinking_tokens``, ``temperature``, ``seed``, ``deadline`` for this call; see
                ``fsrm_lite.types.JudgeOptions``.

        Returns:
            One score per item.

        Raises:
            InputError: On unusable text; the message names the item.
            JudgeUnavailableError: If ``judge="always"``, and only llama-cpp-python could think but cannot be used.
        """
        self._policy_of(judge), self._judge_options(options)  # refused before anything is read
        encoded = [self._encoded(i, *item) for i, item in enumerate(check_items(items, "prompt", "response"))]
        return self.escalate_scores(encoded, self.read(encoded), judge=judge, **options)

    def read(self, items: Sequence[EncodedResponse]) -> list[Score]:
        """Return the fast scores of responses that ``encode`` made ready, in input order. The gate is not asked."""
        return self.fast.read(items, self.gate.spec.temperature)

    def escalate_scores(
        self,
        items: Sequence[EncodedResponse],
        scores: Sequence[Score],
        *,
        asked: Sequence[bool] | None = None,
        judge: JudgePolicy | None = None,
        **options: Unpack[JudgeSettings],
    ) -> list[Score]:
        """Have the judge think about responses whose fast scores are known, where the gate or the policy says so.

        ``score_many`` is this behind ``encode`` and ``read``. A server reads the responses of many requests together
        and then thinks about those of each request.

        Args:
            items: The responses.
            scores: What ``read`` returned for them, in the same order.
            asked: Which of them to think about; None where the gate and ``judge`` decide that.
            judge: As for ``score_many``.
            **options: As for ``score_many``.

        Returns:
            One score per item, in order.
        """
        policy, settings = self._policy_of(judge), self._judge_options(options)
        results = list(scores)
        texts: dict[int, tuple[Prompt, str]] = {}
        for i, score in enumerate(results):
            decision = self.gate.single(score)
            if _thinks(policy, decision) if asked is None else asked[i]:
                texts[i] = (items[i].prompt, items[i].text)
                results[i] = replace(score, escalated=True, reasons=_reasons(decision))
        for i, judgement in self._slow.score(texts, settings, policy).items():
            results[i] = with_thought(results[i], judgement)
        return results

    def score_each(
        self,
        items: Iterable[tuple[Prompt, Response]],
        *,
        judge: JudgePolicy | None = None,
        **options: Unpack[JudgeSettings],
    ) -> list[Score | InputError]:
        """Return the rewards of responses, where an item that cannot be scored costs only itself.

        Arguments are as for ``score_many``.

        Returns:
            One entry per item, in input order: its score, or the error that says why there is none (the text is empty,
            too long, not valid Unicode, or no text).

        Raises:
            InputError: If an option is out of range, or the items have another form.
            MisuseError: If the model was closed, or opened before a fork.
            JudgeUnavailableError: If ``judge="always"`` and llama-cpp-python cannot be used.
        """
        self._policy_of(judge), self._judge_options(options)
        listed = check_items(items, "prompt", "response")
        return _each(lambda part: self.score_many(part, judge=judge, **options), listed)

    def predict(self, pairs: Iterable[tuple[Prompt, Response]], **options: Unpack[ScoringSettings]) -> list[float]:
        """Return the scores of (prompt, response) pairs as plain floats in [0, 1], in input order.

        The options are those of ``score_many``.
        """
        return [score.score for score in self.score_many(pairs, **options)]

    def compare(
        self, prompt: Prompt, first: Response, second: Response, **options: Unpack[ScoringSettings]
    ) -> Comparison:
        """Say which of two responses is better; see ``compare_many`` for the options."""
        return self.compare_many([(prompt, first, second)], **options)[0]

    def compare_many(
        self,
        items: Iterable[tuple[Prompt, Response, Response]],
        *,
        judge: JudgePolicy | None = None,
        **options: Unpack[JudgeSettings],
    ) -> list[Comparison]:
        """Compare pairs of responses.

        The judge gets all pairs that need slow thinking in one batch.

        Args:
            items: (prompt, first response, second response) each. Of two equal responses the first wins, and the judge
                is not asked. A response may also be given as what ``encode`` made of it.
            judge: When to think slowly in this call; None for the model's own setting.
            **options: ``votes``, ``thinking_tokens``, ``temperature``, ``seed``, ``deadline``, ``both_orders``,
                ``adaptive``, ``error_rate`` for this call; see ``fsrm_lite.types.JudgeOptions``.

        Returns:
            One comparison per pair, in input order.

        Raises:
            InputError: On unusable text; the message names the item.
            JudgeUnavailableError: If ``judge="always"``, and only llama-cpp-python could think but cannot be used.
        """
        self._policy_of(judge), self._judge_options(options)  # refused before anything is read
        listed = check_items(items, "prompt", "first", "second")
        encoded = [self._encoded(i, prompt, response) for i, (prompt, *both) in enumerate(listed) for response in both]
        pairs = list(zip(encoded[0::2], encoded[1::2], strict=True))
        if self.fast.reads_pairs:
            policy, settings = self._policy_of(judge), self._judge_options(options)
            fast = self.fast.compare(pairs, self.gate)
            return self._think_about(pairs, fast, [_thinks(policy, d) for _, d in fast], settings, policy)
        scores = self.read(encoded)
        return self.escalate_pairs(pairs, list(zip(scores[0::2], scores[1::2], strict=True)), judge=judge, **options)

    def escalate_pairs(
        self,
        pairs: Sequence[tuple[EncodedResponse, EncodedResponse]],
        scores: Sequence[tuple[Score, Score]],
        *,
        asked: Sequence[bool] | None = None,
        judge: JudgePolicy | None = None,
        **options: Unpack[JudgeSettings],
    ) -> list[Comparison]:
        """Compare pairs whose fast scores are known, and have the judge think where the gate or the policy says so.

        ``compare_many`` is this behind ``encode`` and ``read``; see ``escalate_scores``.

        Args:
            pairs: The two responses of each pair.
            scores: What ``read`` returned for them, in the same order.
            asked: Which of them to think about; None where the gate and ``judge`` decide that.
            judge: As for ``compare_many``.
            **options: As for ``compare_many``.

        Returns:
            One comparison per pair, in order.
        """
        policy, settings = self._policy_of(judge), self._judge_options(options)
        fast = [
            compare_scores(first, second, self.gate, tokens_read=first.tokens_read + second.tokens_read)
            for first, second in scores
        ]
        if asked is None:
            asked = [_thinks(policy, decision) for _, decision in fast]
        return self._think_about(list(pairs), fast, asked, settings, policy)

    def compare_each(
        self,
        items: Iterable[tuple[Prompt, Response, Response]],
        *,
        judge: JudgePolicy | None = None,
        **options: Unpack[JudgeSettings],
    ) -> list[Comparison | InputError]:
        """Compare pairs of responses, where a pair that cannot be compared costs only itself.

        Arguments are as for ``compare_many``, errors as for ``score_each``.

        Returns:
            One entry per pair, in input order: its comparison, or the error that says why there is none.
        """
        self._policy_of(judge), self._judge_options(options)
        listed = check_items(items, "prompt", "first", "second")
        return _each(lambda part: self.compare_many(part, judge=judge, **options), listed)

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[Response],
        top_k: int | None = None,
        **options: Unpack[RankSettings],
    ) -> list[RankedResponse]:
        """Rank responses by score, best first, in the form of ``CrossEncoder.rank`` of sentence-transformers.

        Each response is scored by itself. ``best_of_n`` also compares in pairs those whose scores are close.

        Args:
            prompt: What was asked.
            responses: The candidates, at least one.
            top_k: How many to return; None for all.
            **options: As for ``score_many``.

        Returns:
            ``[{"corpus_id": position in responses, "score": in [0, 1], "text": the response}, ...]``. Equal scores keep
            the input order.
        """
        top_k = plain(top_k)
        expect(
            top_k is None or (is_whole(top_k) and top_k >= 1),
            "top_k",
            top_k,
            "a whole number of at least 1, or None for all",
        )
        candidates = check_candidates(responses)
        scores = self.score_many([(prompt, response) for response in candidates], **options)
        order = best_first(scores)[:top_k]
        return [{"corpus_id": i, "score": scores[i].score, "text": text_of(candidates[i])} for i in order]

    def best_of_n(
        self,
        prompt: Prompt,
        responses: Sequence[Response],
        *,
        strategy: Strategy = "gated",
        **options: Unpack[SelectionSettings],
    ) -> Selection:
        """Choose the best of N responses.

        Candidates that the fast scores cannot tell apart are compared in pairs; such a comparison is called a match.
        Where the gate has a rule for lists (``fsrm_lite.gate.ListSpec``), the default strategy "gated" first puts
        candidates with the same final answer together.

        Args:
            prompt: What was asked.
            responses: The candidates, at least one. Empty ones, and those that are too long, rank last with score 0;
                the ``reasons`` of their scores say why, where the model gives scores.
            strategy: Which matches there are: "gated" (default), "fast", "knockout", "elo" or "majority"; see
                ``fsrm_lite.ranking.tournament.select``. "fast" and "majority" have no matches. A model that reads pairs
                has no scores: "gated" is then a knockout among all, whose matches are read fast, and the gate decides
                which of them the judge is asked about.
            **options: ``judge``, the judge's settings as for ``compare_many``, and the settings of the tournament
                (``fsrm_lite.ranking.tournament.TournamentOptions``). With ``judge="never"`` the fast scores decide
                every match; with "auto" and "always" the judge decides it. With "always" the strategy "gated" becomes a
                knockout among all candidates.

        Returns:
            The selection: the best response, the ranking, and the matches that were played.

        Raises:
            InputError: If there is no response or none can be read, a text is unusable, or an option is unknown.
        """
        from fsrm_lite.ranking.candidates import read_candidates, read_matches
        from fsrm_lite.ranking.tournament import select

        tournament, policy, settings = self._selection_options(strategy, options)
        given = check_candidates(responses)
        read_prompt(prompt)  # an unusable prompt is refused even where every response is empty and none is read
        candidates = read_candidates(self.fast, self.gate, given, lambda i: self._encoded(i, prompt, given[i]))
        encoded, scores, single = candidates.encoded, candidates.scores, self.fast.reads_responses
        read_fast: dict[tuple[int, int], Comparison] = {}  # the matches of a model that reads pairs

        def play(pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
            texts = [(encoded[a], encoded[b]) for a, b in pairs]
            if single:
                # The tokens of the candidates were counted when they were scored. A match adds only those of the judge.
                matches = [compare_scores(scores[a], scores[b], self.gate) for a, b in pairs]
                asked = [policy != "never"] * len(pairs)
            else:
                matches = read_matches(self.fast, self.gate, texts)
                read_fast.update(zip(pairs, (comparison for comparison, _ in matches), strict=True))
                asked = [_thinks(policy, decision) for _, decision in matches]
            if policy == "always":  # one pair that is too long for the judge must not cost the others theirs
                asked = [self.judge.has_room(first.prompt, first.text, second.text) for first, second in texts]
            return self._think_about(texts, matches, asked, settings, policy)

        everyone: JudgePolicy = policy if single else "always"  # without scores nobody is ahead before the matches
        selection = select(
            strategy,
            scores,
            candidates.texts,
            self.gate,
            play,
            judge=everyone,
            unread=candidates.unread,
            decide_fast=None if single else read_fast.get,
            **tournament,
        )
        return selection if single else replace(selection, scores=())

    def encode(self, prompt: Prompt, response: str) -> EncodedResponse:
        """Check a prompt and a response and turn them into token ids.

        Every method that takes a response also takes the result in its place, so that the text is tokenized only once.

        Args:
            prompt: What was asked.
            response: The response.

        Returns:
            The response with its ids, cut at its end if it was too long and ``truncate`` is on.

        Raises:
            InputError: If a text is unusable.
            ContextOverflowError: If both do not fit into the context, and ``truncate`` is off or the prompt alone is
                too long.
        """
        return self.fast.encode(prompt, response)

    @property
    def judge(self) -> Judge:
        """The judge, which is loaded now if it was not yet.

        Raises:
            JudgeUnavailableError: If only llama-cpp-python could think, and it cannot be used here.
            BundleError: If neither of the bundle's files can think, or the one that would is damaged.
        """
        return self._slow.judge

    @property
    def can_think(self) -> bool:
        """Whether one of the bundle's files can think here."""
        try:
            self._slow.choice()
        except (BundleError, JudgeUnavailableError):
            return False
        return True

    @property
    def judge_encoder(self) -> PromptEncoder:
        """Tokenizer and templates of the judge; nothing is loaded for them but its tokenizer."""
        return self._slow.encoder

    @property
    def judge_engine(self) -> EngineChoice:
        """The runtime that the judge thinks with, and why.

        Nothing is loaded, but for the graph of a judge that has a bundle of its own and no GGUF file.

        Raises:
            JudgeUnavailableError: If only llama-cpp-python could think, and it cannot be used here.
            BundleError: If neither of the bundle's files can think.
        """
        return self._slow.choice()

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
        """Return when to think slowly in one call: as given, or as the model is set."""
        expect_one_of(POLICIES, "judge", policy := self._policy if judge is None else judge)
        return policy

    def _judge_options(self, given: Mapping[str, Any]) -> JudgeOptions:
        """Return the judge's options for one call: those given, and the model's own for the others.

        Raises:
            InputError: If an option is unknown or out of range.
        """
        unknown = sorted(set(given) - set(JudgeOptions.__dataclass_fields__))
        if unknown:
            known = sorted({"judge", *JudgeOptions.__dataclass_fields__})
            raise InputError(f"unknown options {unknown}, expected among {known}")
        return JudgeOptions(**{**self._settings, **given})

    def _selection_options(
        self, strategy: Strategy, given: SelectionSettings
    ) -> tuple[TournamentSettings, JudgePolicy, JudgeOptions]:
        """Return the tournament's settings, when to think, and the judge's options for one call of ``best_of_n``.

        Raises:
            InputError: If an option is unknown or out of range, or needs scores that this model does not give.
        """
        from fsrm_lite.ranking.tournament import TournamentOptions

        plays, judges = TournamentOptions.__dataclass_fields__, JudgeOptions.__dataclass_fields__
        unknown = sorted(set(given) - {"judge", *plays, *judges})
        if unknown:
            known = sorted({"strategy", "judge", *plays, *judges})
            raise InputError(f"unknown options {unknown}, expected among {known}")
        tournament: Any = {name: value for name, value in given.items() if name in plays}
        judging = {name: value for name, value in given.items() if name in judges}
        policy, settings = self._policy_of(given.get("judge")), self._judge_options(judging)
        if not self.fast.reads_responses and (strategy == "fast" or tournament.get("weighted")):
            raise InputError(
                f"{'strategy' if strategy == 'fast' else 'weighted'} needs scores of single responses, and this model "
                "reads pairs; expected strategy gated, knockout, elo or majority without weights"
            )
        return tournament, policy, settings

    def _encoded(self, number: int, prompt: Prompt, response: Response) -> EncodedResponse:
        """Return an item with its ids, which are made now unless they were made before. An error names the item."""
        if isinstance(response, EncodedResponse):
            if response.encoder is not self.encoder:
                raise InputError(f"item {number}: the response was encoded by another model; encode it with this one")
            if response.prompt != read_prompt(prompt):
                raise InputError(f"item {number}: the response was encoded for another prompt; encode it for this one")
            return response
        try:
            return self.fast.encode(prompt, response)
        except InputError as error:
            raise type(error)(f"item {number}: {error}") from error

    def _think_about(
        self,
        pairs: list[tuple[EncodedResponse, EncodedResponse]],
        fast: list[tuple[Comparison, Decision]],
        asked: Sequence[bool],
        settings: JudgeOptions,
        policy: JudgePolicy,
    ) -> list[Comparison]:
        """Have the judge compare some of the pairs, whose fast comparisons are known.

        Args:
            pairs: The two responses of each pair.
            fast: The fast comparison of each pair, and what the gate decided about it.
            asked: Which pairs to ask the judge about. It is never asked about two equal responses.
            settings: The judge's options.
            policy: With "always" it is an error if there is no judge; else the fast comparison stands.

        Returns:
            One comparison per pair, in order.
        """
        results = [comparison for comparison, _ in fast]
        texts = {}
        for i, (first, second) in enumerate(pairs):
            if asked[i] and first.text != second.text:
                texts[i] = (first.prompt, first.text, second.text)
                results[i] = replace(results[i], escalated=True, reasons=_reasons(fast[i][1]))
        for i, judgement in self._slow.compare(texts, settings, policy).items():
            results[i] = with_votes(results[i], judgement, self.gate)
        return results


def _each(call: Callable[[list[Any]], Sequence[_Result]], items: Sequence[Any]) -> list[_Result | InputError]:
    """Return one result per item, in order; for an item that ``call`` refuses, the error of that item alone."""
    errors: dict[int, InputError] = {}
    found = each_or_none(call, items, InputError, errors.__setitem__)
    return [errors[i] if result is None else result for i, result in enumerate(found)]


def _thinks(policy: JudgePolicy, decision: Decision) -> bool:
    """Return whether to ask the judge about an item."""
    return policy == "always" or (policy == "auto" and decision.escalate)


def _reasons(decision: Decision) -> tuple[str, ...]:
    """Return why the judge is asked about an item."""
    return decision.reasons or ("slow thinking was asked for",)
