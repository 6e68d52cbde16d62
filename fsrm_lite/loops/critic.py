"""Critics. A critic reads a question and a reasoner's response to it, and accepts or rejects the response.

There are three: the reward model itself (``RewardCritic``), the reasoner asked about its own answer (``SelfCritic``),
and a fitted head (``HeadCritic``). The head is a small ONNX network that reads the last hidden state of the fast
model, whose own weights stay as they are, and, where it was fitted so, how likely that model finds the response. This
is the lightweight critic of DRR (arXiv 2501.01457).
``fsrm_lite.export.critic_head`` fits it; here it is only run.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from fsrm_lite.batches import each_or_none
from fsrm_lite.checks import expect_one_of
from fsrm_lite.errors import BundleError, InputError, JudgeError
from fsrm_lite.files import read_regular
from fsrm_lite.jsonl import parse_json
from fsrm_lite.loops.reasoners import Reasoner, Sampling, Task, ask
from fsrm_lite.types import JudgePolicy, JudgeSettings, Score

if TYPE_CHECKING:
    from fsrm_lite.runtimes.reading import FastReading
    from fsrm_lite.scorer import FastSlowRM

CRITIC_FORMAT = 1
MAX_CRITIC_BYTES = 1 << 30
"""A longer file of a critic is refused before it is in memory. A head has a few megabytes."""

INPUTS = ("hidden", "likelihood")
"""What a head reads: the last hidden state alone, or behind it how likely the model finds the response."""

LIKELIHOOD_STATISTICS = ("total", "lowest_3", "lowest_8", "entropy", "likeliest", "log_tokens")
"""What ``likelihood`` says of a response, in this order; see ``likelihood_statistics``."""

READ_AT_ONCE = 64
"""Responses per call of the fast model. It limits the memory that hidden states take."""

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
    """A small network on the fast model's hidden state. It costs one fast reading per response and writes no token."""

    def __init__(self, folder: str | Path, model: FastSlowRM, *, threshold: float | None = None) -> None:
        """Load ``critic.json`` and ``critic.onnx``.

        Args:
            folder: The folder that ``fsrm-lite fit-critic`` wrote.
            model: The reward model whose hidden states the head was fitted on.
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
        """Return the probability that each response is right.

        Args:
            hidden: What the head's reader gave for N responses, float32, shape [N, H]: hidden states, and behind them
                the statistics of the likelihood where the head was fitted on these.

        Returns:
            float32, shape [N], in [0, 1].
        """
        return np.asarray(self._session.run(["probability"], {"hidden": hidden})[0], dtype=np.float32)[:, 0]


class HiddenReader:
    """Reads responses with the fast model and keeps the last hidden state of each.

    The last hidden state is the vector from which the model computes the logits of its first output token.
    """

    def __init__(self, model: FastSlowRM) -> None:
        """Use a loaded model's fast path and its prompt for a single response."""
        self._fast = model.fast
        self._encoder = model.encoder

    def read(self, items: Sequence[tuple[str, str]]) -> list[FastReading | None]:
        """Return one reading per (question, response), in order.

        Where the text cannot be read (it is empty, too long or not valid text) there is None instead.
        """
        encoded = each_or_none(lambda part: [self._encoder.pointwise_fast(*item) for item in part], items, InputError)
        where = [i for i, ids in enumerate(encoded) if ids is not None]
        sequences = [ids for ids in encoded if ids is not None]
        readings: list[FastReading | None] = [None] * len(items)
        for start in range(0, len(where), READ_AT_ONCE):
            found = self._fast.readings(sequences[start : start + READ_AT_ONCE], hidden=True)
            for i, reading in zip(where[start : start + READ_AT_ONCE], found, strict=True):
                readings[i] = reading
        return readings


class LikelihoodReader:
    """Reads responses with the fast model and keeps, behind the hidden state, how likely it finds each of them.

    A model that could have written a right solution finds a wrong step unlikely. Each response is read by itself, and
    the head of the model is computed for each of its tokens.
    """

    def __init__(self, model: FastSlowRM) -> None:
        """Use a loaded model's fast path and its prompt for a single response.

        Raises:
            BundleError: If the model's fast graph does not give the logits of its vocabulary.
        """
        if not model.fast.follows:
            raise BundleError(
                f"the fast graph of {model.bundle.manifest.name!r} does not give the logits of its vocabulary, which "
                "the likelihood of a response needs; export it again, or take the hidden state alone"
            )
        self._fast = model.fast
        self._encoder = model.encoder

    def read(self, items: Sequence[tuple[str, str]]) -> list[FastReading | None]:
        """Return one reading per (question, response), in order; None where the text cannot be read.

        Its ``hidden`` is the hidden state, and behind it the ``LIKELIHOOD_STATISTICS`` of the response.
        """
        return each_or_none(lambda part: [self._read(*item) for item in part], items, InputError)

    def _read(self, question: str, response: str) -> FastReading:
        ids = self._encoder.pointwise_fast(question, response)
        # What all responses to the question share at both ends is not theirs. The two probes begin and end unlike.
        one, other = (self._encoder.pointwise_fast(question, probe) for probe in ("a", "1"))
        start, behind = _common(one, other), _common(one[::-1], other[::-1])
        found = self._fast.follow(ids, max(1, start), max(start + 1, len(ids) - behind))
        assert found.reading.hidden is not None
        statistics = likelihood_statistics(found.log_p, found.best, found.entropy)
        return replace(found.reading, hidden=np.concatenate([found.reading.hidden, statistics]))


def reader_of(model: FastSlowRM, inputs: str) -> HiddenReader | LikelihoodReader:
    """Return the reader for one of ``INPUTS``.

    Raises:
        InputError: If there is no such reader.
        BundleError: If the model cannot give what it reads.
    """
    expect_one_of(INPUTS, "inputs", inputs)
    return LikelihoodReader(model) if inputs == "likelihood" else HiddenReader(model)


def likelihood_statistics(
    log_p: NDArray[np.float64], best: NDArray[np.float64], entropy: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return how likely a model finds a text, in few numbers.

    Args:
        log_p: Log-probability of each token, in nats, shape [n], n at least 1.
        best: That of the likeliest token in its place, shape [n].
        entropy: Entropy of each token's distribution, in nats, shape [n].

    Returns:
        float32, one number for each of ``LIKELIHOOD_STATISTICS``: the sum of the log-probabilities, the mean of the 3
        and of the 8 lowest, the mean entropy, the share of tokens that were the likeliest, and the log of their number.
    """
    lowest = np.sort(log_p)
    numbers = (
        log_p.sum(),
        lowest[:3].mean(),
        lowest[:8].mean(),
        entropy.mean(),
        (log_p >= best).mean(),
        np.log(len(log_p)),
    )
    return np.array(numbers, dtype=np.float32)


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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences share at their beginning."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
