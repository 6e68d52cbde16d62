"""Critics: whatever accepts or rejects a reasoner's response. A fitted head, the reward model itself, or the reasoner.

The fitted head is DRR's lightweight discriminative model (arXiv 2501.01457): a small ONNX network on the last hidden
state of the frozen, quantized fast model. It is fitted by ``fsrm_lite.export.critic_head``; here it is only run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.batches import each_or_none
from fsrm_lite.errors import BundleError, InputError, JudgeError
from fsrm_lite.loops.reasoners import Reasoner, Sampling, Task, ask
from fsrm_lite.types import JudgePolicy, JudgeSettings, Score

if TYPE_CHECKING:
    from fsrm_lite.runtimes.onnx.session import FastReading
    from fsrm_lite.scorer import FastSlowRM

CRITIC_FORMAT = 1
READ_AT_ONCE = 64
"""Responses per call of the fast model: bounds the memory for hidden states."""

SELF_CRITIQUE = "Question: {question}\nAnswer: {response}\nIs the answer correct?"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Review:
    """A critic's word on one response.

    Attributes:
        accept: Whether the loop may end with it.
        score: How likely it is right, in [0, 1]; ranks responses when none is accepted.
        tokens_generated: Tokens the critic wrote.
        tokens_read: Prompt tokens it computed.
    """

    accept: bool
    score: float
    tokens_generated: int = 0
    tokens_read: int = 0


class Critic(Protocol):
    """Reviews responses."""

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """Return one verdict per (question, response), in order; what cannot be read is rejected with score 0."""
        ...


REJECTED = Review(False, 0.0)
"""What a critic says of a response it cannot read: empty, too long, or not valid text."""


class RewardCritic:
    """The reward model itself: its pointwise score, thinking slowly where its gate says so."""

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
            judge: When to think slowly.
            **options: For ``FastSlowRM.score_many``, for example ``votes`` and ``seed``.

        Raises:
            InputError: If an option is unknown or out of range.
        """
        # Refuses bad options now; later they would look like bad responses.
        model.score_many([], judge=judge, **options)
        self._model = model
        self._threshold = _check_threshold(threshold)
        self._judge = judge
        self._options = options

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """See ``Critic``. When the judge fails, the fast scores decide, and the log says so; with "always" it raises."""
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
    """The reasoner's own word: asked in plain text whether its answer is right, it answers in plain text."""

    def __init__(self, reasoner: Reasoner, *, sampling: Sampling | None = None, prompt: str = SELF_CRITIQUE) -> None:
        """Keep the settings.

        Args:
            reasoner: The one that wrote the responses, or any other.
            sampling: How it is asked; by default once, greedily, with 64 tokens.
            prompt: With ``{question}`` and ``{response}``; the first yes or no of the reply counts.
        """
        self._reasoner = reasoner
        self._sampling = sampling or Sampling(temperature=0.0, max_tokens=64)
        self._prompt = prompt

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """See ``Critic``; the score is the share of yes among the replies, and half or more accepts."""
        verdicts = [REJECTED] * len(items)
        asked = [i for i, (_, response) in enumerate(items) if response.strip()]
        tasks = [
            Task(self._prompt.replace("{question}", items[i][0]).replace("{response}", items[i][1])) for i in asked
        ]
        for i, replies in zip(asked, ask(self._reasoner, tasks, self._sampling), strict=True):
            if not replies:
                continue
            words = [_yes_or_no(reply.text) for reply in replies]
            said = [word for word in words if word is not None]
            share = sum(said) / len(said) if said else 0.0
            verdicts[i] = Review(share >= 0.5, share, sum(reply.tokens_generated for reply in replies))
        return verdicts


class HeadCritic:
    """A fitted head on a bundle's hidden state: one fast reading per response, no generated token."""

    def __init__(self, folder: str | Path, model: FastSlowRM, *, threshold: float | None = None) -> None:
        """Load ``critic.json`` and ``critic.onnx``.

        Args:
            folder: What ``fsrm-lite fit-critic`` wrote.
            model: The reward model whose hidden states the head was fitted on.
            threshold: Accept from this score on, in [0, 1]; None takes the critic's own.

        Raises:
            BundleError: If the critic is missing, altered, of an unknown format, or was fitted on another model.
        """
        self.info = read_critic(Path(folder), model)
        self._threshold = _check_threshold(self.info["threshold"] if threshold is None else threshold)
        self._reader = HiddenReader(model)
        self._session = _open_session(Path(folder) / "critic.onnx")

    def review(self, items: Sequence[tuple[str, str]]) -> list[Review]:
        """See ``Critic``."""
        readings = self._reader.read(items)
        found = [r.hidden for r in readings if r is not None and r.hidden is not None]
        scores = iter(self.score(np.stack(found)).tolist() if found else [])
        verdicts = []
        for reading in readings:
            score = next(scores) if reading is not None else None
            tokens = reading.tokens_read if reading is not None else 0
            verdicts.append(REJECTED if score is None else Review(score >= self._threshold, score, 0, tokens))
        return verdicts

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of being right, shape [N], from hidden states of shape [N, H]."""
        return np.asarray(self._session.run(["probability"], {"hidden": hidden})[0], dtype=np.float32)[:, 0]


class HiddenReader:
    """Reads (question, response) pairs with the fast model and keeps the last hidden state."""

    def __init__(self, model: FastSlowRM) -> None:
        """Use a loaded model's fast path and its pointwise prompt."""
        self._fast = model.fast
        self._encoder = model.encoder

    def read(self, items: Sequence[tuple[str, str]]) -> list[FastReading | None]:
        """Return one reading per pair, in order; None where the text cannot be read (empty, too long, invalid)."""
        encoded = each_or_none(lambda part: [self._encoder.pointwise_fast(*item) for item in part], items, InputError)
        where = [i for i, ids in enumerate(encoded) if ids is not None]
        sequences = [ids for ids in encoded if ids is not None]
        readings: list[FastReading | None] = [None] * len(items)
        for start in range(0, len(where), READ_AT_ONCE):
            found = self._fast.readings(sequences[start : start + READ_AT_ONCE], hidden=True)
            for i, reading in zip(where[start : start + READ_AT_ONCE], found, strict=True):
                readings[i] = reading
        return readings


def read_critic(folder: Path, model: FastSlowRM) -> dict[str, Any]:
    """Return ``critic.json``, checked against its network's hash and the model it was fitted on.

    Raises:
        BundleError: If anything does not fit.
    """
    try:
        info = json.loads((folder / "critic.json").read_text("utf-8"))
        network = (folder / "critic.onnx").read_bytes()
        version, digest, backbone = info["format_version"], info["sha256"], info["backbone_sha256"]
        _check_threshold(info["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder} is not a critic ({error}); expected critic.json and critic.onnx, as fsrm-lite fit-critic writes them"
        ) from error
    if version != CRITIC_FORMAT:
        raise BundleError(
            f"the critic {folder} has format_version {version!r}, this package reads {CRITIC_FORMAT}; fit it again"
        )
    if hashlib.sha256(network).hexdigest() != digest:
        raise BundleError(f"{folder}/critic.onnx is not the file its critic.json describes; fit it again")
    if backbone != backbone_hash(model):
        raise BundleError(
            f"the critic {folder} was fitted on {info.get('backbone', 'another model')!r}, another fast model than this one; fit it again"
        )
    return dict(info)


def backbone_hash(model: FastSlowRM) -> str:
    """Hash of the fast model's files, graph and weights: hidden states of another model mean something else."""
    files = model.bundle.manifest.files
    return hashlib.sha256(
        "".join(files[role].sha256 for role in ("fast", "fast_data") if role in files).encode()
    ).hexdigest()


def _open_session(path: Path) -> Any:  # noqa: ANN401 - onnxruntime ships no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a few thousand multiplications are not worth a second thread
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_threshold(threshold: float) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold is {threshold!r}, expected a number in [0, 1]")
    return float(threshold)


def _yes_or_no(text: str) -> bool | None:
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    return None if found is None else found.group(1).lower() == "yes"
