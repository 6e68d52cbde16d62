"""Inference-time scaling in other people's harnesses: its_hub's outcome reward model, lm-eval's filter.

Neither library is imported; both call what has the right methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

from fsrm_lite.errors import InputError
from fsrm_lite.integrations.loading import LazyModel, Source, text_of
from fsrm_lite.types import JudgePolicy, LoadSettings, Message, Prompt, Strategy


class OutcomeRewardModel(LazyModel):
    """its_hub's ``AbstractOutcomeRewardModel``: scores a conversation by its last message."""

    def __init__(
        self, source: Source = None, *, judge: JudgePolicy = "never", **load_options: Unpack[LoadSettings]
    ) -> None:
        """Keep the settings; see ``LazyModel``."""
        super().__init__(source, **load_options)
        self._judge = judge

    def score(self, messages: Sequence[Any], **_: object) -> list[float] | float:
        """Score one conversation (a list of messages) or many (a list of lists); the answer has the same form.

        Raises:
            InputError: If a conversation does not end with an assistant message behind a request.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[list[Message]] = [list(messages)] if single else [list(m) for m in messages]
        items = [_split(conversation) for conversation in conversations]
        scores = [s.score for s in self.model.score_many(items, judge=self._judge)] if items else []
        return scores[0] if single else scores

    async def ascore(self, messages: Sequence[Any], **_: object) -> list[float] | float:
        """Like ``score``, in a worker thread."""
        return await asyncio.to_thread(self.score, messages)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_judge": self._judge}


class BestOfFilter(LazyModel):
    """lm-eval's ``custom`` filter: of the repeats of each document keep the best.

    In a task: ``filter_list: [{name: best, filter: [{function: custom, filter_fn: !function my.best}]}]`` with
    ``best = BestOfFilter(prompt=lambda doc: doc["question"])`` and ``repeats: 8``.
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
            prompt: From a document of the task to what the responses answer.
            strategy: See ``fsrm_lite.ranking.tournament.select``.
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
    return conversation[:-1], text_of(conversation[-1])
