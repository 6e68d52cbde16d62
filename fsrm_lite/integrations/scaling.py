"""A reward model for two libraries that let a model answer many times and keep the best answer.

``OutcomeRewardModel`` is for its_hub, ``BestOfFilter`` for lm-eval. Neither library is imported: both accept any object
with the methods that they call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

from fsrm_lite.batches import each_or_none
from fsrm_lite.bundle.conversation import response_text
from fsrm_lite.checks import expect_one_of
from fsrm_lite.errors import InputError
from fsrm_lite.integrations.loading import LazyModel, Source
from fsrm_lite.types import POLICIES, JudgePolicy, LoadSettings, Message, Prompt, Strategy


class OutcomeRewardModel(LazyModel):
    """What its_hub calls an ``AbstractOutcomeRewardModel``: it scores the last message of a conversation."""

    def __init__(
        self, source: Source = None, *, judge: JudgePolicy = "never", **load_options: Unpack[LoadSettings]
    ) -> None:
        """Keep the settings; the model is loaded at the first call.

        Args:
            source: A loaded model, a bundle folder, a hub name, or None for the embedded model.
            judge: When to ask the judge: "never", "auto" (where the gate says so) or "always".
            **load_options: For ``FastSlowRM.from_pretrained``, for example ``threads=2``.
        """
        super().__init__(source, **load_options)
        expect_one_of(POLICIES, "judge", judge)
        self._judge = judge

    def score(self, messages: Sequence[Any], **_: object) -> list[float] | float:
        """Score the last message of one conversation, or of each of several.

        Args:
            messages: A list of chat messages, or a list of such lists.
            **_: its_hub's other options; they have no effect.

        Returns:
            The score in [0, 1]; for a list of conversations a list of scores, in order. Among several, one that cannot
            be scored gets 0 and a line in the log, so that it is never chosen and costs the others nothing.

        Raises:
            InputError: If a single conversation cannot be scored, for example because it does not end with an
                assistant's message that has another message before it.
        """
        model = self.model
        if messages and isinstance(messages[0], Mapping):
            return model.score_many([_split(list(messages))], judge=self._judge)[0].score

        def score(part: list[Sequence[Message]]) -> list[float]:
            return [s.score for s in model.score_many([_split(list(c)) for c in part], judge=self._judge)]

        return [0.0 if s is None else s for s in each_or_none(score, list(messages), InputError)]

    async def ascore(self, messages: Sequence[Any], **_: object) -> list[float] | float:
        """Do the same as ``score``, in a thread of its own."""
        return await asyncio.to_thread(self.score, messages)


class BestOfFilter(LazyModel):
    """A filter for lm-eval: of several responses to a document (one item of a task) it keeps the best.

    Put ``best = BestOfFilter(prompt=lambda doc: doc["question"])`` into a module ``my``, and into the task's file
    ``repeats: 8`` and ``filter_list: [{name: best, filter: [{function: custom, filter_fn: !function my.best}]}]``.
    """

    def __init__(
        self,
        source: Source = None,
        *,
        prompt: Callable[[Any], Prompt],
        strategy: Strategy = "gated",
        **load_options: Unpack[LoadSettings],
    ) -> None:
        """Keep the settings.

        Args:
            source: A loaded model, a bundle folder, a hub name, or None for the embedded model.
            prompt: Function from a document to the prompt that the responses answer.
            strategy: How the best is found; see ``fsrm_lite.ranking.tournament``.
            **load_options: For ``FastSlowRM.from_pretrained``.
        """
        super().__init__(source, **load_options)
        self._prompt = prompt
        self._strategy = strategy

    def __call__(self, resps: Iterable[Sequence[str]], docs: Iterable[Any]) -> list[str]:
        """Return the best response of each document, in order.

        Of a document whose responses cannot be compared (its prompt is too long, say), it is the first one, and the log
        says why.
        """
        model = self.model

        def choose(part: list[tuple[list[str], Any]]) -> list[int]:
            return [
                model.best_of_n(self._prompt(doc), responses, strategy=self._strategy).index for responses, doc in part
            ]

        items = [(list(responses), doc) for responses, doc in zip(resps, docs, strict=True)]
        chosen = [each_or_none(choose, [item], InputError)[0] for item in items]
        return [responses[i or 0] if responses else "" for (responses, _), i in zip(items, chosen, strict=True)]


def _split(conversation: list[Message]) -> tuple[Prompt, str]:
    if len(conversation) < 2 or conversation[-1].get("role") != "assistant":
        raise InputError(
            f"a conversation of {len(conversation)} messages must hold a request and end with an assistant message"
        )
    return conversation[:-1], response_text(conversation[-1])
