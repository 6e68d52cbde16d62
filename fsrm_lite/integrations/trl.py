"""Rewards for TRL's trainers: a GRPO reward function, and the shape of TRL's former pairwise judges.

Nothing of TRL is imported: its trainers take any callable of this form. Checked with TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

from fsrm_lite.batches import each_or_none
from fsrm_lite.errors import FsrmError, InputError
from fsrm_lite.integrations.loading import LazyModel, Source, check_lengths, text_of
from fsrm_lite.types import JudgePolicy, LoadSettings, Prompt, Score


class RewardFunction(LazyModel):
    """A reward function for ``GRPOTrainer(reward_funcs=...)``, ``RLOOTrainer`` and alike.

    Picklable: a copy in another process loads its own model. An empty completion has the reward 0 (or the lowest logit),
    so that a policy does not learn to say nothing; one that cannot be scored, because it is too long for the reward model
    or is not valid text, has the reward None, which TRL leaves out.
    """

    def __init__(
        self,
        source: Source = None,
        *,
        judge: JudgePolicy = "never",
        scale: Literal["score", "logit"] = "score",
        name: str = "fsrm_reward",
        **load_options: Unpack[LoadSettings],
    ) -> None:
        """Keep the settings; the model is loaded at the first call.

        Args:
            source: A loaded model, a bundle folder, a hub name, or None for the embedded model.
            judge: When to think slowly: "never" (default: a training step waits for its rewards), "auto" or "always".
            scale: "score" in [0, 1], or "logit", its log-odds in [-50, 50].
            name: Name in the trainer's logs.
            **load_options: For ``FastSlowRM.from_pretrained``, for example ``threads=2``.
        """
        super().__init__(source, **load_options)
        if scale not in ("score", "logit"):
            raise InputError(f"scale is {scale!r}, expected 'score' or 'logit'")
        self.__name__ = name
        self._judge = judge
        self._scale = scale

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[object], **_: object) -> list[float | None]:
        """Return one reward per completion, in order.

        Args:
            prompts: Strings or message lists.
            completions: As many strings or message lists.
            **_: Whatever else the trainer passes (dataset columns, trainer state).

        Raises:
            InputError: If the lengths differ or a completion is neither text nor messages.
        """
        check_lengths(prompts, completions)
        items = [(prompt, text_of(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
        lowest = 0.0 if self._scale == "score" else -50.0
        rewards: list[float | None] = [lowest] * len(items)
        filled = [i for i, (_, text) in enumerate(items) if text.strip()]
        for i, score in zip(filled, self._scores([items[i] for i in filled]), strict=True):
            rewards[i] = None if score is None else getattr(score, self._scale)
        return rewards

    def _scores(self, items: list[tuple[Prompt, str]]) -> list[Score | None]:
        return each_or_none(lambda part: self.model.score_many(part, judge=self._judge), items, InputError)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"__name__": self.__name__, "_judge": self._judge, "_scale": self._scale}


class PairwiseJudge(LazyModel):
    """The shape of TRL's former ``BasePairwiseJudge``: ``judge(prompts, completions, shuffle_order=True) -> list[int]``."""

    def __init__(
        self, source: Source = None, *, judge: JudgePolicy = "auto", **load_options: Unpack[LoadSettings]
    ) -> None:
        """Keep the settings; arguments as for ``RewardFunction``."""
        super().__init__(source, **load_options)
        self._judge = judge

    def judge(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[object]], shuffle_order: bool = True
    ) -> list[int]:
        """Return 0 or 1 per pair: the position of the better completion; -1 where there is no judgement.

        Args:
            prompts: Strings or message lists.
            completions: Two completions per prompt.
            shuffle_order: Accepted and without effect: a slow comparison asks for both orders, a fast one has none.

        Raises:
            InputError: If the lengths differ or there are not two completions.
        """
        check_lengths(prompts, completions)
        if any(len(pair) != 2 for pair in completions):
            raise InputError("every prompt needs exactly two completions")
        items = [(prompt, text_of(a), text_of(b)) for prompt, (a, b) in zip(prompts, completions, strict=True)]
        comparisons = each_or_none(lambda part: self.model.compare_many(part, judge=self._judge), items, FsrmError)
        return [-1 if comparison is None else comparison.winner for comparison in comparisons]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_judge": self._judge}
