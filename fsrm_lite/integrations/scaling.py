"""A reward model for two libraries that let a model answer many times and keep the best answer.

``OutcomeRewardModel`` is for its_hub, ``BestOfFilter`` for lm-eval. Neither library is imported: both accept any object
with the methods that they call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

from fsrm_lite.bundle.conversation import response_text
from fsrm_lite.errors import InputError
from fsrm_lite.integrations.loading import LazyModel, Source
from fsrm_lite.types import JudgePolicy, LoadSettings, Message, Prompt, Strategy


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
        self._judge = judge

    def score(self, messages: Sequence[Any], **_: object) -> list[float] | float:
        """Score the last message of one conversation, or of each of several.

        Args:
            messages: A list of chat messages, or a list of such lists.
            **_: its_hub's other options; they have no effect.

        Returns:
            The score in [0, 1]; for a list of conversations a list of scores, in order.

        Raises:
            InputError: If a conversation does not end with an assistant's message that has another message before it.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[list[Message]] = [list(messages)] if single else [list(m) for m in messages]
        items = [_split(conversation) for conversation in conversations]
        scores = [s.score for s in self.model.score_many(items, judge=self._judge)] if items else []
        return scores[0] if single else scores

    async def ascore(self, messages: Sequence[Any], **_: object) -> list[float] | float:
        """Do the same as ``score``, in a thread of its own."""
        return await asyncio.to_thread(self.score, messages)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_judge": self._judge}


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
        """Return the best response of each document, in order."""
        best = []
        for responses, doc in zip(resps, docs, strict=True):
            selection = self.model.best_of_n(self._prompt(doc), list(responses), strategy=self._strategy)
            best.append(responses[selection.index])
        return best

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_prompt": self._prompt, "_strategy": self._strategy}


def _split(conversation: list[Message]) -> tuple[Prompt, str]:
    if len(conversation) < 2 or conversation[-1].get("role") != "assistant":
        raise InputError(
            f"a conversation of {len(conversation)} messages must hold a request and end with an assistant message"
        )
    return conversation[:-1], response_text(conversation[-1])
