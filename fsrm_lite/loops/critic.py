"""Critics. A critic reads a question and a reasoner's response to it, and accepts or rejects the response.

There are three: the reward model itself (``RewardCritic``), the reasoner asked about its own answer (``SelfCritic``),
and a fitted head (``HeadCritic``). The head is a small ONNX network that reads numbers which the fast model makes of a
response, such as its last hidden state (``critic_inputs`` has them all). The fast model's own weights stay as they are.
This is the lightweight critic of DRR (arXiv 2501.01457).
``fsrm_lite.export.critic_head`` fits it; here it is only run.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.batches import each_or_none
from fsrm_lite.checks import expect_one_of
from fsrm_lite.errors import BundleError, InputError, JudgeError
from fsrm_lite.files import read_regular
from fsrm_lite.jsonl import parse_json
from fsrm_lite.loops.critic_inputs import INPUTS, reader_of
from fsrm_lite.loops.reasoners import Reasoner, Sampling, Task, ask
from fsrm_lite.types import JudgePolicy, JudgeSettings, Score

if TYPE_CHECKING:
    from fsrm_lite.scorer import FastSlowRM

CRITIC_FORMAT = 1
MAX_CRITIC_BYTES = 1 << 30
"""A longer file of a critic is refused before it is in memory. A head has a few megabytes."""

SELF_CRITIQUE = "Question: {question}\nAnswer: {response}\nIs the answer correct?"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Review:
    """What a critic says about one response.

    Attributes:
        accept: Whether the loop may end with this response.
        score: How likely the response is right, in [0, 1]. When no response is accepted, the scores rank them.
        tokens_generated: Tokens the critic wrote.
        tokens_read: Prompt tokens the critic computed.
    """

    accept: bool
    score: float
    tokens_generated: int = 0
    tokens_read: int = 0


class Critic(Protocol):
    """Anything that reviews responses."""

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """Return one review per (question, response), in order. What cannot be read is rejected with score 0."""
        ...


REJECTED = Review(False, 0.0)
"""The review of a response that a critic cannot read: it is empty, too long, or not valid text."""


class RewardCritic:
    """The reward model as a critic: it accepts a response whose score reaches a threshold."""

    def __init__(
        self,
        model: FastSlowRM,
        *,
        threshold: float = 0.5,
        judge: JudgePolicy = "auto",
        **options: Unpack[JudgeSettings],
    ) -> None:
        """Keep the settings.

        Args:
            model: A loaded reward model.
            threshold: Accept from this score on, in [0, 1].
            judge: When the reward model asks its judge: "auto" (where its gate says so), "always" or "never".
            **options: For ``FastSlowRM.score_many``, for example ``votes`` and ``seed``.

        Raises:
            InputError: If an option is unknown or out of range.
        """
        # Scoring nothing checks the options. Found only in review(), a bad option would look like a bad response.
        model.score_many([], judge=judge, **options)
        self._model = model
        self._threshold = _check_threshold(threshold)
        self._judge = judge
        self._options = options

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """Return one review per (question, response), in order; see ``Critic``.

        Raises:
            JudgeError: If the judge fails and is always to be asked. With another setting the fast scores decide
                instead, and a warning is logged.
        """
        scores = each_or_none(self._scores, items, InputError)
        return [
            REJECTED if s is None else Review(s.score >= self._threshold, s.score, s.tokens_generated, s.tokens_read)
            for s in scores
        ]

    def _scores(self, items: list[tuple[str, str]]) -> list[Score]:
        try:
            return self._model.score_many(items, judge=self._judge, **self._options)
        except JudgeError as error:
            if self._judge == "always":
                raise
            logger.warning("the judge failed; %d responses are reviewed by their fast scores: %s", len(items), error)
            return self._model.score_many(items, judge="never")


class SelfCritic:
    """A reasoner as a critic: it is asked in plain text whether an answer is right, and replies in plain text."""

    def __init__(self, reasoner: Reasoner, *, sampling: Sampling | None = None, prompt: str = SELF_CRITIQUE) -> None:
        """Keep the settings.

        Args:
            reasoner: The reasoner to ask: the one that wrote the responses, or another.
            sampling: How it is asked; by default once, at temperature 0, with up to 64 tokens.
            prompt: The text to ask with; ``{question}`` and ``{response}`` in it are replaced. The first "yes" or "no"
                of a reply counts.
        """
        self._reasoner = reasoner
        self._sampling = sampling or Sampling(temperature=0.0, max_tokens=64)
        self._prompt = prompt

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """Return one review per (question, response), in order; see ``Critic``.

        The score is the share of "yes" among the replies that say "yes" or "no". A share of at least one half accepts.
        """
        verdicts = [REJECTED] * len(items)
        asked = [i for i, (_, response) in enumerate(items) if response.strip()]
        tasks = [Task(_filled(self._prompt, *items[i])) for i in asked]
        for i, replies in zip(asked, ask(self._reasoner, tasks, self._sampling), strict=True):
            if not replies:
                continue
            words = [_yes_or_no(reply.text) for reply in replies]
            said = [word for word in words if word is not None]
            share = sum(said) / len(said) if said else 0.0
            verdicts[i] = Review(share >= 0.5, share, sum(reply.tokens_generated for reply in replies))
        return verdicts


def _filled(prompt: str, question: str, response: str) -> str:
    """Return a prompt with both slots filled in, at once: a question may spell the other slot's name."""
    texts = {"{question}": question, "{response}": response}
    return re.sub(r"\{question\}|\{response\}", lambda slot: texts[slot.group()], prompt)


class HeadCritic:
    """A small network on what the fast model reads of a response. It costs one reading each and writes no token."""

    def __init__(self, folder: str | Path, model: FastSlowRM, *, threshold: float | None = None) -> None:
        """Load ``critic.json`` and ``critic.onnx``.

        Args:
            folder: The folder that ``fsrm-lite fit-critic`` wrote.
            model: The reward model that the head was fitted on.
            threshold: Accept from this score on, in [0, 1]; None takes the threshold stored in ``critic.json``.

        Raises:
            BundleError: If the critic is missing, altered, of an unknown format, or was fitted on another model.
        """
        self.info = read_critic(Path(folder), model)
        self._threshold = _check_threshold(self.info["threshold"] if threshold is None else threshold)
        self._reader = reader_of(model, self.info.get("inputs", "hidden"))
        self._session = _open_session(Path(folder) / "critic.onnx")

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """Return one review per (question, response), in order; see ``Critic``."""
        found = self._reader.read(items)
        numbers = [one.numbers for one in found if one is not None]
        scores = iter(self.score(np.stack(numbers)).tolist() if numbers else [])
        reviews = []
        for one in found:
            if one is None:
                reviews.append(REJECTED)
                continue
            score = next(scores)
            reviews.append(Review(score >= self._threshold, score, tokens_read=one.reading.tokens_read))
        return reviews

    def score(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability that each response is right.

        Args:
            numbers: What the head's reader gave for N responses, float32, shape [N, F]: of each the ``numbers`` of
                ``fsrm_lite.loops.critic_inputs.ReadResponse``.

        Returns:
            float32, shape [N], in [0, 1].

        Raises:
            BundleError: If the head takes another count of numbers.
        """
        taken = self._session.get_inputs()[0].shape[1]
        if numbers.shape[1] != taken:
            raise BundleError(
                f"critic.onnx takes {taken} numbers of each response, and {numbers.shape[1]} were read; "
                "the inputs in critic.json are not those that it was fitted on; fit it again"
            )
        return np.asarray(self._session.run(["probability"], {"hidden": numbers})[0], dtype=np.float32)[:, 0]


def read_critic(folder: Path, model: FastSlowRM) -> dict[str, Any]:
    """Read ``critic.json``.

    Args:
        folder: The folder that ``fsrm-lite fit-critic`` wrote.
        model: The reward model that the critic is to be used with.

    Returns:
        The contents of ``critic.json``.

    Raises:
        BundleError: If a file is missing or malformed, ``critic.onnx`` does not have the recorded hash, or the critic
            was fitted on another fast model.
    """
    try:
        info = parse_json(read_regular(folder / "critic.json", MAX_CRITIC_BYTES))
        network = read_regular(folder / "critic.onnx", MAX_CRITIC_BYTES)
        version, digest, backbone = info["format_version"], info["sha256"], info["backbone_sha256"]
        _check_threshold(info["threshold"])
        expect_one_of(INPUTS, "inputs", info.get("inputs", "hidden"))
    except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder} is not a critic ({error}); "
            "expected critic.json and critic.onnx, as fsrm-lite fit-critic writes them"
        ) from error
    if version != CRITIC_FORMAT:
        raise BundleError(
            f"the critic {folder} has format_version {version!r}, this package reads {CRITIC_FORMAT}; fit it again"
        )
    if hashlib.sha256(network).hexdigest() != digest:
        raise BundleError(f"{folder}/critic.onnx is not the file its critic.json describes; fit it again")
    if backbone != backbone_hash(model):
        raise BundleError(
            f"the critic {folder} was fitted on {info.get('backbone', 'another model')!r}, "
            "another fast model than this one; fit it again"
        )
    return dict(info)


def backbone_hash(model: FastSlowRM) -> str:
    """Return a hash of the fast model's files (graph and weights).

    A critic keeps it, because the hidden states of another model mean something else.
    """
    files = model.bundle.manifest.files
    return hashlib.sha256(
        "".join(files[role].sha256 for role in ("fast", "fast_data") if role in files).encode()
    ).hexdigest()


def _open_session(path: Path) -> Any:  # noqa: ANN401 - onnxruntime ships no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the network is so small that a second thread would not pay
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_threshold(threshold: float) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold is {threshold!r}, expected a number in [0, 1]")
    return float(threshold)


def _yes_or_no(text: str) -> bool | None:
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    return None if found is None else found.group(1).lower() == "yes"
