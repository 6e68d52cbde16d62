"""The judge: what to ask the slow model, how often and in which order, and what its answers mean.

About a pair of responses the judge is asked in both orders, K times each, all in one batch. Each time it writes a
*vote*: a chain of thought (a *thought*), and then a verdict. When a thought has used up its budget of tokens, it is
*closed*: the end of the thought is written for the model, and the verdict is read from the logits. So every vote
counts. Only what follows the thought is taken as a verdict; the same words within the thought, or within a response,
are just text.

Determinism: the same calls with the same files, settings, seed and number of threads give the same results, whether the
judge runs in this process or in a child, and however many threads call it. The votes on a pair may change when other
pairs are in the same call, or when another number of votes is asked for. Their random numbers do not depend on that.
But the last bits of the arithmetic may depend on what else is in a batch, most of all with llama.cpp's K-quants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fsrm_lite import gate
from fsrm_lite.bundle.encoder import PromptEncoder
from fsrm_lite.bundle.manifest import VerdictTemplate
from fsrm_lite.errors import BundleError, ContextOverflowError, InputError
from fsrm_lite.runtimes.opening import EngineSource, file_of
from fsrm_lite.slow.sampling import vote_key
from fsrm_lite.slow.verdicts import find_close
from fsrm_lite.slow.voting import choice_of, decided, majority, probabilities
from fsrm_lite.slow.worker import InlineRunner, Runner, SubprocessRunner
from fsrm_lite.types import (
    Completion,
    Decoding,
    Generation,
    Job,
    JudgeOptions,
    PairJudgement,
    PointJudgement,
    Prompt,
    Request,
    Thought,
    VerdictForm,
    Vote,
    Watch,
    WatchIds,
)


class Judge:
    """Slow thinking with one model. Any number of threads may call it; calls are answered one after another."""

    def __init__(
        self,
        source: str | EngineSource,
        encoder: PromptEncoder,
        *,
        threads: int | None = None,
        process: Literal["inline", "subprocess"] = "inline",
        give_way: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Load the model.

        Args:
            source: The model: a GGUF file for llama.cpp, or a fast graph (``.onnx``) for ONNX Runtime; either may be
                opened already.
            encoder: The tokenizer and templates of the same bundle.
            threads: Compute threads; a model that is open has its own. None takes one per core that this process may
                use, or a single one for a small GGUF file.
            process: "inline" runs the runtime in this process, on a thread of its own. "subprocess" runs it in a child
                process: whatever kills the runtime then raises ``JudgeCrashed`` here, and the next call starts a new
                child. A child that has not answered 20 seconds after the deadline of a call (because it is stopped or
                hangs) is killed.
            give_way: Called before each step with the longest time that it may wait for what matters more; see
                ``Precedence``. Not called in a child process.

        Raises:
            BundleError: If the model is damaged, of an unusable kind, or has another vocabulary than the manifest.
            InputError: If ``process`` is unknown.
            JudgeUnavailableError: If it is a GGUF file and llama-cpp-python cannot be used here.
        """
        if process not in ("inline", "subprocess"):
            raise InputError(f"process is {process!r}, expected 'inline' or 'subprocess'")
        self.encoder = encoder
        """The tokenizer and the templates of the model."""
        self._manifest = encoder.manifest
        opened = Path(source) if isinstance(source, str) else source
        self._runner: Runner
        if process == "inline":
            self._runner = InlineRunner(opened, encoder.decode, threads=threads, give_way=give_way)
        else:
            self._runner = SubprocessRunner(opened, encoder.decode, threads=threads)
        self._forms: dict[str, VerdictForm] = {}
        if self._runner.vocab_size != self._manifest.vocab_size:
            self._runner.close()
            raise BundleError(
                f"{file_of(opened)} has a vocabulary of {self._runner.vocab_size} tokens, "
                f"fsrm.json says {self._manifest.vocab_size}; export again"
            )

    def compare(
        self, pairs: Sequence[tuple[Prompt, str, str]], options: JudgeOptions | None = None
    ) -> list[PairJudgement]:
        """Judge pairs of responses: all pairs, orders and votes in one batch.

        Args:
            pairs: (prompt, first response, second response) each.
            options: How to judge; None for the bundle's own settings.

        Returns:
            One judgement per pair, in order.

        Raises:
            ContextOverflowError: If a pair leaves no room for a thought in the context. Nothing has been decoded then.
            InputError: If a text is unusable.
            JudgeCrashed: If the judge's process died.
        """
        options = options or JudgeOptions()
        form = self._form("pairwise_slow")
        jobs: list[Job] = []
        for pair, (prompt, first, second) in enumerate(pairs):
            asked = {False: tuple(self.encoder.pairwise_slow(prompt, first, second))}
            if options.both_orders:
                asked[True] = tuple(self.encoder.pairwise_slow(prompt, second, first))
            for vote in range(self._votes(options)):
                for swapped, ids in asked.items():
                    jobs.append(replace(self._job(ids, vote, form, options), pair=pair, swapped=swapped))
        completions, complete = self._run(jobs, options, len(pairs))
        votes: list[list[tuple[Job, Completion | None]]] = [[] for _ in pairs]
        for job, completion in zip(jobs, completions, strict=True):
            votes[job.pair or 0].append((job, completion))
        return [self._pair(cast, options, complete) for cast in votes]

    def score(self, items: Sequence[tuple[Prompt, str]], options: JudgeOptions | None = None) -> list[PointJudgement]:
        """Judge single responses by the probabilities of the verdict's choices after a thought.

        Args:
            items: (prompt, response) each.
            options: How to judge; None for the bundle's own settings. ``both_orders``, ``adaptive`` and ``error_rate``
                have no meaning here.

        Returns:
            One judgement per item, in order.

        Raises:
            ContextOverflowError: If an item leaves no room for a thought in the context. Nothing has been decoded then.
            InputError: If a text is unusable.
            JudgeCrashed: If the judge's process died.
        """
        options = options or JudgeOptions()
        form, votes = self._form("pointwise_slow"), self._votes(options)
        jobs = []
        for prompt, response in items:
            ids = tuple(self.encoder.pointwise_slow(prompt, response))
            jobs += [self._job(ids, vote, form, options) for vote in range(votes)]
        completions, _ = self._run(jobs, options, len(items))
        return [self._point(completions[i : i + votes]) for i in range(0, len(completions), votes)]

    def has_room(self, prompt: Prompt, *responses: str) -> bool:
        """Return whether the context has room for a thought about one response, or about two in both orders.

        Only the texts are looked at; the model does not run.

        Args:
            prompt: What was asked.
            *responses: One response or two.

        Raises:
            InputError: If a text is unusable.
        """
        pair = len(responses) == 2
        form = self._form("pairwise_slow" if pair else "pointwise_slow")
        try:
            for texts in (responses, responses[::-1]) if pair else (responses,):
                encode = self.encoder.pairwise_slow if pair else self.encoder.pointwise_slow
                self._job(tuple(encode(prompt, *texts)), 0, form, JudgeOptions())
        except ContextOverflowError:
            return False
        return True

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *,
        n: int = 1,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        watch: Watch | None = None,
    ) -> list[list[Generation]]:
        """Let the model continue each prompt ``n`` times, until a stop token or for ``max_tokens``.

        Args:
            prompt_ids: Prompts as token ids; none may be empty.
            n: Texts per prompt, 1 to 256.
            max_tokens: Most tokens of one text, at least 1; less where the context leaves less room.
            temperature: Sampling temperature; 0 is greedy.
            top_p: Keep the smallest set of likeliest tokens whose probability reaches this, in (0, 1].
            seed: Seed of the sampling.
            watch: See ``JudgeOptions``. When it stops the writing, the texts are as long as they are by then, and those
                that were not begun are missing.

        Returns:
            For each prompt, in order, its texts.

        Raises:
            ContextOverflowError: If a prompt fills the context.
            InputError: If an argument is out of range.
            JudgeCrashed: If the judge's process died.
        """
        options = JudgeOptions(
            votes=n,
            thinking_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            seed=seed,
            watch=watch,
        )
        prompts = [tuple(ids) for ids in prompt_ids]
        if any(not ids or min(ids) < 0 or max(ids) >= self._manifest.vocab_size for ids in prompts):
            raise InputError(f"a prompt is empty or has an id outside the vocabulary of {self._manifest.vocab_size}")
        jobs = [self._job(ids, k, None, options) for ids in prompts for k in range(n)]
        completions, _ = self._run(jobs, options, len(prompts))
        texts = [
            None
            if c is None
            else Generation(self.encoder.decode(list(c.ids)), c.ids, len(c.ids), c.finished and len(c.ids) < job.budget)
            for c, job in zip(completions, jobs, strict=True)
        ]
        return [[text for text in texts[i : i + n] if text is not None] for i in range(0, len(texts), n)]

    def close(self) -> None:
        """Free the model. A call that runs in another thread ends with an error. Safe to repeat."""
        self._runner.close()

    def _votes(self, options: JudgeOptions) -> int:
        """Return the number of votes per pair and order, or of thoughts per response."""
        return options.votes if options.votes is not None else self._manifest.judge.votes

    def _form(self, name: str) -> VerdictForm:
        """Return how the verdict of a template is written, as ids. This is worked out once per template."""
        if name not in self._forms:
            template = self._manifest.templates.get(name)
            if template is None or template.verdict is None:
                raise BundleError(f"this bundle has no template {name!r} with a verdict, so its judge cannot do that")
            self._forms[name] = resolve_form(template.verdict, self.encoder)
        return self._forms[name]

    def _job(self, prompt: tuple[int, ...], vote: int, form: VerdictForm | None, options: JudgeOptions) -> Job:
        """Return the job for one vote. Its budget is cut down to the room that the prompt leaves in the context."""
        limits = self._manifest.limits
        around = len(prompt) + (len(form.forced) + form.answer_tokens if form else 0)
        room = limits.context - around
        if room < 1:
            raise ContextOverflowError(
                f"the judge's prompt has {len(prompt)} tokens and needs {around - len(prompt)} more for a verdict; "
                f"the context holds {limits.context}"
            )
        budget = min(options.thinking_tokens or limits.thinking_tokens, room)
        return Job(prompt, vote_key(options.seed, prompt, vote), budget, form)

    def _run(self, jobs: list[Job], options: JudgeOptions, items: int) -> tuple[list[Completion | None], bool]:
        """Have the jobs written, and return what ``fsrm_lite.slow.worker.Answer`` describes.

        The jobs belong to ``items`` pairs, responses or prompts, and each of these has equally many, one after another.
        """
        if not jobs:
            return [], True
        defaults = self._manifest.judge
        decoding = Decoding(
            defaults.temperature if options.temperature is None else options.temperature,
            defaults.top_p if options.top_p is None else options.top_p,
            defaults.top_k if options.top_k is None else options.top_k,
        )
        stop_ids, rule = self._manifest.stop_ids, (options.adaptive, options.error_rate)
        watch = None if options.watch is None else self._watching(options.watch, jobs, len(jobs) // items)
        return self._runner.run(Request(tuple(jobs), decoding, stop_ids, options.deadline, *rule), watch)

    def _watching(self, watch: Watch, jobs: list[Job], votes: int) -> WatchIds:
        """Return a watch of ids that shows the thoughts as text; each item has ``votes`` jobs."""

        def seen(written: Mapping[int, list[int]]) -> bool:
            return watch(
                [
                    Thought(n // votes, n % votes, jobs[n].swapped, self.encoder.decode(ids).rstrip("\ufffd"))
                    for n, ids in sorted(written.items())
                ]
            )

        return seen

    def _pair(self, asked: list[tuple[Job, Completion | None]], options: JudgeOptions, complete: bool) -> PairJudgement:
        """Return what the votes on one pair say together.

        Args:
            asked: The jobs of the pair, each with what was written for it.
            options: How the pair was judged.
            complete: False if a deadline cut something off in this call.
        """
        cast = [(job, c) for job, c in asked if c is not None and c.finished]
        votes = tuple(self._vote(c, job.swapped) for job, c in cast)
        orders = [[v for v in votes if v.swapped is swapped] for swapped in (False, True)]
        written = [len(c.ids) for _, c in asked if c is not None]
        finished = sum(v.tokens_generated for v in votes)
        second = sum(v.winner for v in votes)
        settled = options.adaptive and decided(len(votes) - second, second, len(asked), options.error_rate)
        whole = complete or len(votes) == len(asked) or settled
        saved = max(0, round(finished / len(votes) * len(asked)) - sum(written)) if votes and whole else 0
        return PairJudgement(
            winner=majority(votes) if votes else 0,
            p_first=sum(v.p_first for v in votes) / len(votes) if votes else 0.5,
            votes=votes,
            orders_agree=majority(orders[0]) == majority(orders[1]) if all(orders) else None,
            tokens_read=sum(c.tokens_read for _, c in asked if c is not None),
            tokens_generated=sum(written),
            tokens_saved=saved,
            complete=whole,
        )

    def _vote(self, completion: Completion, swapped: bool) -> Vote:
        """Return a finished completion as a vote, in the caller's order of the two responses."""
        p_shown_first = probabilities(completion.logits)[0]
        return Vote(
            swapped=swapped,
            winner=choice_of(completion) ^ swapped,
            p_first=1.0 - p_shown_first if swapped else p_shown_first,
            rationale=self._rationale(completion, "pairwise_slow"),
            tokens_generated=len(completion.ids),
            closed=completion.choice is None,
        )

    def _rationale(self, completion: Completion, template: str) -> str:
        """Return the thought of a completion as text.

        Where a text ends it, it may end within a token, so that the tokens of the thought alone would cut it short.
        """
        close = self._form(template).close
        end = find_close(self.encoder.decode(list(completion.ids)), close) if close else None
        if end is not None:
            return self.encoder.decode(list(completion.ids))[: end[0]].strip()
        return self.encoder.decode(list(completion.ids[: completion.thought])).strip()

    def _point(self, completions: list[Completion | None]) -> PointJudgement:
        """Return what the thoughts about one response say together, as the mean of their probabilities."""
        verdict = self._manifest.templates["pointwise_slow"].verdict
        assert verdict is not None  # checked when the manifest was read
        started = [c for c in completions if c is not None]
        cast = [c for c in started if c.finished]
        read, written = sum(c.tokens_read for c in started), sum(len(c.ids) for c in started)
        if not cast:
            flat = (1.0 / len(verdict.choices),) * len(verdict.choices)
            return PointJudgement(0.5, 0.0, "", "", flat, read, written, False)
        each = [probabilities(c.logits) for c in cast]
        means = tuple(sum(column) / len(cast) for column in zip(*each, strict=True))
        logits = cast[0].logits if len(cast) == 1 else [math.log(p) if p > 0 else -math.inf for p in means]
        signals = gate.signals(logits, verdict.values)
        words = [choice_of(c) for c in cast]
        chosen = max(range(len(means)), key=lambda i: (words.count(i), means[i], -i))
        rationale = next(
            self._rationale(c, "pointwise_slow") for c, word in zip(cast, words, strict=True) if word == chosen
        )
        whole = len(cast) == len(completions)
        word = verdict.choices[chosen]
        return PointJudgement(signals.score, signals.logit, word, rationale, means, read, written, whole)


def resolve_form(verdict: VerdictTemplate, encoder: PromptEncoder) -> VerdictForm:
    """Return how a verdict is written, as ids.

    The head of the form is the part of ``close`` that ends a thought by itself: everything up to its first special
    token. If it has none, the thought ends where the text of ``close`` stands, whatever its tokens are.

    Args:
        verdict: The manifest's description, as text.
        encoder: The bundle's tokenizer.

    Raises:
        BundleError: If ``close`` is empty, or no token can end it.
    """
    close = encoder.encode_template(verdict.close)
    forced = encoder.encode_template(verdict.close + verdict.prefix)
    special = set(encoder.manifest.special_tokens.values())
    if not verdict.close.strip():
        raise BundleError(
            "a verdict form in fsrm.json has an empty 'close'; the judge could not tell thought from verdict"
        )
    end = next((i + 1 for i, token in enumerate(close) if token in special), 0)
    last = verdict.close.rstrip()[-1]
    ends = [] if end else sorted({i for c in {last, last.lower(), last.upper()} for i in encoder.tokens_with(c[-1])})
    by_text = tuple(ends)
    if not end and not by_text:
        raise BundleError(
            f"a verdict form in fsrm.json has the 'close' {verdict.close!r}, but no token of the tokenizer has its "
            "last character, so that no thought could end; write it with characters that the tokenizer knows"
        )
    return VerdictForm(
        head=tuple(close[:end]),
        forced=tuple(forced),
        tail=encoder.decode(close[end:]) if end else "",
        prefix=verdict.prefix,
        choices=verdict.choice_ids,
        words=verdict.choices,
        close="" if end else verdict.close,
        wake=by_text,
        answer_tokens=encoder.manifest.limits.verdict_tokens,
        several=verdict.several,
    )
