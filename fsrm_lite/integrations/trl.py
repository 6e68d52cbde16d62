"""A reward model for TRL: a reward function for its trainers, and a judge of pairs like those of earlier versions.

TRL is not imported: its trainers accept any callable of this form. Checked with TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Unpack

from fsrm_lite.batches import each_or_none
from fsrm_lite.bundle.conversation import response_text
from fsrm_lite.checks import check_texts, expect_one_of
from fsrm_lite.errors import FsrmError, InputError
from fsrm_lite.integrations.loading import LazyModel, Source, check_lengths
from fsrm_lite.types import POLICIES, Comparison, JudgePolicy, LoadSettings, Prompt


class RewardFunction(LazyModel):
    """A reward function for ``GRPOTrainer(reward_funcs=...)``, ``RLOOTrainer`` and similar trainers.

    An empty completion gets the lowest reward (score 0, or logit -50), so that the trained model does not learn to say
    nothing. A completion that cannot be scored, because it is too long for the reward model or not valid text, gets
    None, which TRL leaves out. Of a completion of several messages the texts count, and tool calls do not. The function
    can be pickled; a copy in another process loads its own model.
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
            judge: When to ask the judge: "never" (the default, because a training step waits for its rewards), "auto"
                (where the gate says so) or "always".
            scale: What to return: "score", in [0, 1], or "logit", the score's log-odds, in [-50, 50].
            name: Name of the reward in the trainer's logs.
            **load_options: For ``FastSlowRM.from_pretrained``, for example ``threads=2``.
        """
        super().__init__(source, **load_options)
        expect_one_of(("score", "logit"), "scale", scale)
        expect_one_of(POLICIES, "judge", judge)
        self.__name__ = name
        self._judge = judge
        self._scale = scale

    def __call__(self, prompts: Iterable[Prompt], completions: Iterable[object], **_: object) -> list[float | None]:
        """Return one reward per completion, in order.

        Args:
            prompts: Strings or lists of chat messages.
            completions: As many strings or lists of chat messages.
            **_: Whatever else the trainer passes (dataset columns, trainer state); it has no effect.

        Returns:
            One reward per completion, in order; None for one that cannot be scored.

        Raises:
            InputError: If the lengths differ.
            MisuseError: If the model was closed, or opened before a fork.
        """
        asked, given = check_texts(prompts, "prompts"), check_texts(completions, "completions")
        check_lengths(asked, given)
        texts = each_or_none(lambda part: [response_text(c) for c in part], given, InputError)
        lowest = 0.0 if self._scale == "score" else -50.0
        rewards: list[float | None] = [None if text is None else lowest for text in texts]
        filled = {i: (asked[i], text) for i, text in enumerate(texts) if text is not None and text.strip()}
        model = self.model  # loaded here, where an error is not taken for a bad item's
        scores = each_or_none(lambda part: model.score_many(part, judge=self._judge), list(filled.values()), InputError)
        for i, score in zip(filled, scores, strict=True):
            rewards[i] = None if score is None else getattr(score, self._scale)
        return rewards


class PairwiseJudge(LazyModel):
    """A judge of pairs with the method of ``BasePairwiseJudge``, which earlier versions of TRL had."""

    def __init__(
        self, source: Source = None, *, judge: JudgePolicy = "auto", **load_options: Unpack[LoadSettings]
    ) -> None:
        """Keep the settings; arguments as for ``RewardFunction``."""
        super().__init__(source, **load_options)
        expect_one_of(POLICIES, "judge", judge)
        self._judge = judge

    def judge(
        self, prompts: Iterable[Prompt], completions: Iterable[Sequence[object]], shuffle_order: bool = True
    ) -> list[int]:
        """Compare two completions per prompt.

        Args:
            prompts: Strings or lists of chat messages.
            completions: Two completions per prompt.
            shuffle_order: Has no effect. The judge is always asked about both orders, and fast scores know no order.

        Returns:
            Per prompt, the position of the better completion, 0 or 1; -1 where the comparison failed.

        Raises:
            InputError: If the lengths differ or there are not two completions.
        """
        asked, given = check_texts(prompts, "prompts"), check_texts(completions, "completions")
        check_lengths(asked, given)
        if any(len(pair) != 2 for pair in given):
            raise InputError("every prompt needs exactly two completions")

        model = self.model

        def compare(part: list[tuple[Prompt, Sequence[object]]]) -> list[Comparison]:
            items = [(prompt, response_text(first), response_text(second)) for prompt, (first, second) in part]
            return model.compare_many(items, judge=self._judge)

        comparisons = each_or_none(compare, list(zip(asked, given, strict=True)), FsrmError)
        return [-1 if comparison is None else comparison.winner for comparison in comparisons]
